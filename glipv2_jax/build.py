"""What a config makes: mesh, words and model, the objective, the compiled step. Needs no data."""
import functools
import pathlib

import jax
import jax.numpy as jnp
import optax

from glipv2_jax import sharding
from glipv2_jax.config_ranges import check_ranges
from glipv2_jax.evaluation.protocols import check_settings
from glipv2_jax.models.config import model_config
from glipv2_jax.models.glipv2 import GLIPv2
from glipv2_jax.optim import make_optimizer
from glipv2_jax.train_state import abstract_state, shardings_of
from glipv2_jax.train_step import Objective, train_step
from glipv2_jax.tuning import freeze_patterns, mode_of, tuned_model
from input_pipeline.answers import ANSWERS_FILE, AnswerList
from input_pipeline.schema import text_task
from input_pipeline.tokenizer import Tokenizer


def build(config, devices=None):
    """(mesh, tokenizer, model) of a config.

    Args:
      devices: list, default all of this run.
    Raises: ValueError for numbers out of their range, or where parts do not fit each other.
    """
    check_ranges(config)
    check_settings(config.eval)
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor, devices=devices)
    tokenizer = Tokenizer(config.data.vocabulary or None)
    tune = config.train.tune
    chosen = tuned_model(model_config(config.model.variant, config.model.overrides), tune, config.data.max_tokens)
    model = GLIPv2(chosen, dtype=jnp.dtype(config.model.dtype), still=mode_of(tune).still)
    words = model.config.text_encoder.vocab_size
    if words != tokenizer.vocab_size:
        raise ValueError(f"model: a text encoder of {words} words, but the vocabulary has {tokenizer.vocab_size}; set "
                         "data.vocabulary or model.overrides.text_encoder.vocab_size")
    devices = sharding.batch_size_of(mesh)
    for name, found, unit in (("eval.batch_size", config.eval.batch_size, devices),
                              ("train.batch_size", config.train.batch_size, devices * config.train.accumulation_steps)):
        if found % unit:
            parts = f" in {config.train.accumulation_steps} micro-batches" * (unit != devices)
            raise ValueError(f"{name}: found {found}{parts}, expected a multiple of the {devices} devices of the mesh's "
                             f"data × fsdp{' in each' * bool(parts)}, such as {-(-found // unit) * unit}")
    return mesh, tokenizer, model


def abstract_params(mesh, model, config):
    """Shapes and shardings of a model's parameters, to restore a checkpoint onto."""
    return abstract_state(model, optax.identity(), False, mesh, config.mesh.rules, config.mesh.min_shard_size)[1].params


def make_objective(config, model, tokenizer):
    """The losses that are on. A loss whose head the model lacks, or whose truth the data, is off.

    Raises: ValueError where captions are to be written by a model that cannot, or masks alone are to be learned without any.
    """
    check_tasks(config, model)
    mlm_rate = config.loss.mlm_rate if model.config.mlm_head else 0.0
    contrastive_regions = config.loss.contrastive_regions if model.config.contrastive_dim else 0
    mask_boxes = config.loss.mask_boxes if model.config.mask_head.kind and config.data.mask_size else 0
    if config.train.tune == "masks" and not mask_boxes:
        raise ValueError(f"train.tune 'masks': found loss.mask_boxes {config.loss.mask_boxes} and data.mask_size "
                         f"{config.data.mask_size}, expected more than 0")
    caption_words, answers = config.loss.caption_words, bool(model.config.num_answers)
    off = {name for name, setting in (("mlm", mlm_rate), ("inter", contrastive_regions), ("mask", mask_boxes),
                                      ("caption", caption_words), ("answer", answers)) if not setting}
    weights = tuple((name, weight) for name, weight in config.loss.weights.items() if name not in off)
    return Objective(tokenizer.mask_id, tokenizer.vocab_size, mlm_rate, config.loss.mlm_positions, caption_words, answers,
                     contrastive_regions, weights, mask_boxes, config.loss.mask_own_boxes,
                     freeze_patterns(model.config, config.train.tune, config.train.freeze))


def check_tasks(config, model, sources=()):
    """Raises: ValueError where the texts of a run and its model are not for the same tasks."""
    if config.loss.caption_words and not model.config.can_write:
        raise ValueError(f"loss.caption_words: found {config.loss.caption_words} with a model without mlm_head or without fusion, "
                         "expected both, or 0: captions are written by the head of masked words, from words that see the image")
    for source in sources:
        if text_task(source, "writes") and not config.loss.caption_words:
            raise ValueError(f"config.data.train: {source.name!r} has captions to be written, but loss.caption_words is 0; "
                             "expected the most words that are learned of one, such as 40")
        if text_task(source, "asks") and not model.config.num_answers:
            raise ValueError(f"config.data.train: {source.name!r} asks questions, but the model has no head of answers; expected "
                             "model.overrides.num_answers, the length of the answer list")


def find_answers(config, model, sources, workdir):
    """The answers that the outputs of a model's head stand for.

    Those beside its parameters, of the workdir or of `init_from`; a checkpoint without the head has none. Else those of
    `data.answers`, else the most frequent of the training data.

    Args:
      sources: of training; only looked at in the last case. workdir: path, or None.
    Returns: AnswerList, None for a model without the head.
    Raises: ValueError for a list that is not as long as the head.
    """
    count = model.config.num_answers
    if not count:
        return None
    places = [pathlib.Path(folder) / ANSWERS_FILE for folder in (workdir, config.init_from) if folder]
    path = next((path for path in places if path.exists()), config.data.answers)
    if not path and not sources:
        raise ValueError(f"{workdir}: found no {ANSWERS_FILE}, expected the {count} answers of the model beside its checkpoint")
    answers = AnswerList.read(path) if path else AnswerList.most_frequent(sources, count)
    if len(answers) != count:
        raise ValueError(f"{path}: found {len(answers)} answers, expected the {count} of model.num_answers")
    return answers


def make_step(config, mesh, tokenizer, model, num_steps):
    """The training step of a config.

    Returns: (function of a key that creates the state, TrainState of ShapeDtypeStructs with shardings, the jitted step of
      (state, batch, key), which consumes its state).
    """
    t = config.train
    objective = make_objective(config, model, tokenizer)
    optimizer = make_optimizer(config.optimizer, num_steps, objective.freeze)
    create, abstract = abstract_state(model, optimizer, t.ema_decay > 0, mesh, config.mesh.rules, config.mesh.min_shard_size)
    step = functools.partial(train_step, model, objective, optimizer, t.ema_decay, t.accumulation_steps, t.spike_factor)
    return create, abstract, jax.jit(step, donate_argnums=0,
                                     out_shardings=(shardings_of(abstract), sharding.replicated(mesh)))
