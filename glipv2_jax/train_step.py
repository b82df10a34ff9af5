"""One training step as pure functions of arrays: mask words, forward, assign, losses, update."""
import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax

from glipv2_jax import sharding
from glipv2_jax.detection import atss, box_coder, proposals
from glipv2_jax.detection.anchors import anchors, level_shapes, level_sizes
from glipv2_jax.losses import answers, captions, contrastive, grounding, localization, mask, mlm, total
from glipv2_jax.optim import frozen, path_string
from glipv2_jax.train_state import TrainState


@dataclasses.dataclass(frozen=True)
class Objective:
    """Which losses are on and their settings. L = L_loc + L_intra + L_inter + L_mlm, and L_mask, captions and answers of
    GLIPv2's transfer."""
    mask_id: int
    vocab_size: int
    mlm_rate: float = 0.15               # 0 switches masked language modelling off
    mlm_positions: int = 64              # most words of a text that are scored; the vocabulary layer is the widest there is
    caption_words: int = 0               # most words of a caption that are learned; 0 switches writing off
    answers: bool = False                # questions are answered
    contrastive_regions: int = 100       # K regions of an image in the inter-image loss; 0 switches it off
    weights: tuple[tuple[str, float], ...] = ()
    mask_boxes: int = 0                  # boxes of an image in which masks are learned, at most; 0 switches them off
    mask_own_boxes: bool = True          # true boxes and the model's own; False: true ones alone
    freeze: tuple[str, ...] = ()         # patterns of parameters without gradient, see `optim.frozen`


def compute_losses(model, objective, params, batch, key, train=True):
    """All losses of a batch.

    A text that is being written (`causal`) trains the caption's loss alone, and one whose words nobody has matched to boxes
    those of words and answers alone: their images are padding to the losses of boxes, alignment and inter-image contrast.

    Args:
      model: GLIPv2 module. objective: Objective.
      params: its parameters. batch: dict of arrays, the data contract. key: random key of the step.
      train: dropout, drop path and DropBlock on.
    Returns: (loss, metrics), a float32 scalar and a dict of scalars: loss_<term>, count_<term>.
    """
    # Nothing is kept for a gradient that nobody takes: tuning a prompt needs no activation of the image encoder.
    params = jax.tree_util.tree_map_with_path(
        lambda path, x: jax.lax.stop_gradient(x) if frozen(path_string(path), objective.freeze) else x, params)
    key_mlm, key_regions, key_dropout = jax.random.split(key, 3)
    token_ids, mlm_positions = batch["token_ids"], None
    if objective.mlm_rate > 0:
        token_ids, scored = mlm.mask_tokens(key_mlm, token_ids, batch["token_mask"], batch["mlm_eligible"],
                                            mask_id=objective.mask_id, vocab_size=objective.vocab_size,
                                            rate=objective.mlm_rate)
        mlm_positions, mlm_valid = mlm.positions(scored, min(objective.mlm_positions, token_ids.shape[1]))
        targets = jnp.take_along_axis(batch["token_ids"], mlm_positions, axis=1)
    positions, causal = mlm_positions, None
    if objective.caption_words:
        causal = batch["causal"]
        written = captions.next_words(batch["token_ids"], batch["token_mask"] & causal[:, None], objective.caption_words)
        positions = written[0] if mlm_positions is None else jnp.concatenate([mlm_positions, written[0]], axis=1)
    outputs = model.apply({"params": params}, batch["image"], batch["image_size"], token_ids, batch["token_mask"],
                          positions, train, causal, rngs={"dropout": key_dropout})

    shapes = level_shapes(*batch["image"].shape[1:3])
    boxes = anchors(shapes)
    if "is_grounded" in batch:
        batch = batch | {key: batch[key] & batch["is_grounded"][:, None] for key in ("box_mask", "token_mask")}
    matched = jax.vmap(lambda b, m: atss.assign(boxes, level_sizes(shapes), b, m))(batch["boxes"], batch["box_mask"])
    matched = sharding.constrain_batch(matched)
    terms = {
        "box": localization.box_loss(outputs.box_deltas, matched, batch["boxes"], boxes),
        "centerness": localization.centerness_loss(outputs.centerness, matched, batch["boxes"], boxes),
        "alignment": grounding.alignment_loss(outputs.alignment_logits, matched, batch["positive_map"],
                                              batch["token_mask"]),
    }
    if objective.contrastive_regions:
        terms["inter"] = _inter_image(objective, outputs, matched, batch, key_regions)
    if objective.mask_boxes:
        terms["mask"] = _masks(model, objective, params, outputs, boxes, matched, batch, jax.random.fold_in(key_regions, 1))
    asked = 0 if mlm_positions is None else mlm_positions.shape[1]
    if mlm_positions is not None:
        terms["mlm"] = mlm.mlm_loss(outputs.mlm_logits[:, :asked], targets, mlm_valid)
    if objective.caption_words:
        terms["caption"] = captions.caption_loss(outputs.mlm_logits[:, asked:], *written[1:])
    if objective.answers:
        terms["answer"] = answers.answer_loss(outputs.answer_logits, batch["answer_scores"], batch["is_question"])
    return total.combine(terms, dict(objective.weights))


def _inter_image(objective, outputs, matched, batch, key):
    count = min(objective.contrastive_regions, matched.shape[1])
    regions, positive = contrastive.sample_regions(matched, key, count)
    embeddings = jnp.take_along_axis(outputs.region_embeddings, regions[..., None], axis=1)
    return contrastive.inter_image_loss(
        embeddings, outputs.text_embeddings, outputs.contrastive_log_scale, positive,
        jnp.take_along_axis(matched, regions, axis=1), batch["positive_map"], batch["token_mask"],
        batch["box_class"], batch["token_class"])


def _masks(model, objective, params, outputs, places, matched, batch, key):
    boxes, box_mask, words_of = batch["boxes"], batch["box_mask"], batch["positive_map"]
    own = jnp.zeros((len(boxes), 0, 4))
    if objective.mask_own_boxes:
        # As prediction ranks them: of an object's anchors the best survives the suppression of overlaps.
        words = jnp.take_along_axis(words_of, jnp.maximum(matched, 0)[..., None], axis=1)                # [B, A, T]
        score = (jax.nn.sigmoid(outputs.alignment_logits) * words).sum(-1) / jnp.maximum(words.sum(-1), 1)
        own = jax.vmap(functools.partial(proposals.best_of_each, num_boxes=boxes.shape[1]))(
            box_coder.decode(outputs.box_deltas, places), score * jax.nn.sigmoid(outputs.centerness), matched)
    count = min(objective.mask_boxes, boxes.shape[1] + own.shape[1])
    chosen, of_box = jax.vmap(functools.partial(proposals.training_boxes, count=count))(
        jax.random.split(key, len(boxes)), boxes, box_mask, own)
    tokens = jnp.take_along_axis(words_of, jnp.maximum(of_box, 0)[..., None], axis=1)
    logits = model.apply({"params": params}, outputs.mask_inputs, *sharding.constrain_batch((chosen, of_box >= 0, tokens)),
                         method="segment")
    return mask.mask_loss(logits, *mask.mask_targets(batch["masks"], boxes, chosen, of_box, logits.shape[-1]))


def gradients(model, objective, params, batch, key, accumulation_steps=1):
    """Gradient of the loss, over micro-batches when asked.

    With accumulation the batch is cut into interleaved micro-batches whose gradients are averaged: counts, and the
    inter-image pairs, are then those of a micro-batch.

    Returns: (metrics, gradients), the metrics averaged over micro-batches.
    """
    def one(batch, key):
        return jax.value_and_grad(lambda p: compute_losses(model, objective, p, batch, key), has_aux=True)(params)
    if accumulation_steps == 1:
        (_, metrics), grads = one(batch, key)
        return metrics, grads

    def cut(x):
        return x.reshape(-1, accumulation_steps, *x.shape[1:]).swapaxes(0, 1)

    def step(carry, inputs):
        micro, index = inputs
        (_, metrics), grads = one(sharding.constrain_batch(micro), jax.random.fold_in(key, index))
        return jax.tree.map(jnp.add, carry, (metrics, grads)), None
    micro = jax.tree.map(cut, batch)
    shapes = jax.eval_shape(lambda: one(jax.tree.map(lambda x: x[0], micro), key))
    start = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (shapes[0][1], shapes[1]))
    sums, _ = jax.lax.scan(step, start, (micro, jnp.arange(accumulation_steps)))
    return jax.tree.map(lambda x: x / accumulation_steps, sums)


SPIKE_MEMORY = 100    # steps over which the loss is averaged


def train_step(model, objective, optimizer, ema_decay, accumulation_steps, spike_factor, state, batch, key):
    """One update.

    A step whose loss or gradient is not finite, or whose loss is a spike, changes neither parameters nor moments nor averages;
    it counts as a step, so that the data go on, and `metrics["applied"]` says so.

    Args:
      model, objective, optimizer: as built by build.py.
      ema_decay: of the averaged parameters; unused when the state has none.
      spike_factor: a loss above so many times the average of the last hundred steps is a spike; 0: none is.
      state: TrainState, donated. batch: global arrays. key: random key of the run.
    Returns: (TrainState, metrics): the losses, gradient, update and parameter norms, finite, applied.
    """
    metrics, grads = gradients(model, objective, state.params, batch, jax.random.fold_in(key, state.step),
                               accumulation_steps)
    grad_norm, loss = optax.tree.norm(grads), metrics["loss"]
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    applied = finite
    if spike_factor:
        # The average of the first steps is of too few to judge by.
        applied &= (state.step < SPIKE_MEMORY) | (loss <= spike_factor * state.loss_average)

    def update(state):
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema_params
        if ema is not None:
            ema = jax.tree.map(lambda e, p: ema_decay * e + (1 - ema_decay) * p, ema, params)
        weight = 1 / jnp.minimum(state.step + 1, SPIKE_MEMORY)
        average = state.loss_average + weight * (loss - state.loss_average)
        return TrainState(state.step, params, opt_state, ema, average), optax.tree.norm(updates)

    state, update_norm = jax.lax.cond(applied, update, lambda state: (state, jnp.zeros(())), state)
    return state.replace(step=state.step + 1), metrics | {
        "grad_norm": grad_norm, "update_norm": update_norm, "param_norm": optax.tree.norm(state.params), "finite": finite,
        "applied": applied}
