"""Released weights into a checkpoint of this project, and a checkpoint into the reference's layout.

    glip.pth, bert.safetensors, swin.pth ─▶ sources ─▶ names.place ─▶ parameters ─▶ a workdir, manifest.json
    DIR ─▶ parameters ─▶ names.reference_from_parameters ─▶ FILE.pth, FILE.safetensors

Everything is checked by name and shape before a weight is read, and every weight before anything is written.
"""
import contextlib
import dataclasses
import functools
import importlib
import json
import pathlib
import shutil

import jax
import numpy as np

from glipv2_jax.checkpoint import Checkpoints, holds_ema, load_params, read_about
from glipv2_jax.convert import names
from glipv2_jax.convert.sources import FRESH, KINDS, explain_unused, open_weights, read_source
from glipv2_jax.convert.torch_file import TorchFile, write_torch
from glipv2_jax.files import write_whole
from glipv2_jax.metrics import Progress
from glipv2_jax.models.config import config_from_dict, model_config
from glipv2_jax.models.describe import parameter_shapes
from glipv2_jax.models.glipv2 import GLIPv2, init_params
from glipv2_jax.train_state import TrainState
from input_pipeline.records import sha256
from input_pipeline.tokenizer import VOCABULARY, Tokenizer

FORMATS = ("torch", "safetensors")


@dataclasses.dataclass
class Conversion:
    """What became of every key and every parameter.

    sources: dicts of file, kind, bytes, sha256, format.
    filled: path → (name of the file, its keys). shapes: path → shape, of all parameters.
    fresh: paths that keep their random start.
    buffers: keys that the model recomputes. unused, entries: what else the files held → why it was left out.
    averaged: whether there are averaged parameters too.
    """
    sources: list
    filled: dict
    shapes: dict
    fresh: list
    buffers: list
    unused: dict
    entries: dict
    averaged: bool

    def manifest(self, variant, overrides):
        """The same as a JSON-able dict."""
        def size(paths):
            return int(sum(np.prod(self.shapes[path], dtype=np.int64) for path in paths))
        keys = sum(len(keys) for _, keys in self.filled.values())
        return {
            "sources": self.sources, "model": {"variant": variant, "overrides": overrides},
            "counts": {"keys": keys + len(self.buffers) + len(self.unused), "keys_placed": keys,
                       "tensors": len(self.filled), "parameters": size(self.filled),
                       "fresh_tensors": len(self.fresh), "fresh_parameters": size(self.fresh)},
            "averaged": self.averaged, "fresh": self.fresh, "recomputed": self.buffers, "unused": self.unused,
            "entries": self.entries}


def convert(files, variant, output, *, overrides=None, vocabulary=None, ema=False, seed=0):
    """Writes a workdir that `Detector`, `init_from` and `load_params` read.

    Args:
      files: weights in torch's zip format or safetensors: a GLIP checkpoint, or encoders; each parameter in
        one of them.
      variant: a name in models/config.py.
      overrides: nested dict of field values, as a config file writes them.
      output: folder; must not hold checkpoints yet.
      vocabulary: WordPiece file of the text encoder, None for bert-base-uncased.
      ema: take the averaged weights of the file as the parameters.
      seed: of the parameters that no file fills.
    Returns: Conversion.
    Raises: ValueError naming every key that has no place and every parameter that a file should fill and does
      not.
    """
    output = pathlib.Path(output)
    if (output / "checkpoints").exists():
        raise ValueError(f"{output}: found checkpoints there, expected a new folder")
    overrides = dict(overrides or {})
    config = model_config(variant, overrides)
    vocabulary = _checked_vocabulary(vocabulary, config)
    expected = names.shapes_by_path(parameter_shapes(config))
    with contextlib.ExitStack() as stack:
        sources = [read_source(stack.enter_context(open_weights(path))) for path in files]
        if ema:
            _swap_in_ema(sources)
        places, conversion = _match(sources, expected, config, seed)
        params, averaged = _read(sources, places, conversion, config, seed)
    # The config of a run that never was, the released settings: everything that reads a workdir finds them.
    run = importlib.import_module("configs.common").get_config()
    run.model.variant, run.seed, run.data.vocabulary = variant, seed, str(vocabulary or "")
    run.model.overrides = type(run)(overrides)
    run.data.max_tokens = min(run.data.max_tokens, config.text_encoder.max_positions)
    run = json.loads(run.to_json_best_effort())

    output.mkdir(parents=True, exist_ok=True)
    checkpoints = Checkpoints(output)
    checkpoints.save(TrainState(np.int32(0), params, (), averaged, np.float32(0)), run, dataclasses.asdict(config))
    checkpoints.close()
    if config.text_encoder.kind == "bert":
        shutil.copyfile(vocabulary or VOCABULARY, output / "vocab.txt")
    for name, content in (("config.json", run), ("manifest.json", conversion.manifest(variant, overrides))):
        write_whole(output / name, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return conversion


def export(directory, path, to, *, ema=False):
    """Writes a checkpoint in the reference's key layout.

    Args:
      directory: a workdir, of training or of `convert`.
      path: file to write.
      to: "torch": {"model": …} with the prefix "module.", as released files are, and "model_ema" where the
        checkpoint holds averaged parameters. "safetensors": the bare keys.
      ema: write the averaged parameters as the model's.
    Returns: dict of key → array, as written for the model.
    Raises: FileNotFoundError without a checkpoint; ValueError for parameters that the reference has no names
      for.
    """
    path = pathlib.Path(path)
    if path.exists():
        raise ValueError(f"{path}: found a file there, expected a new name")
    config = config_from_dict(read_about(directory)["model"])
    place = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
                            parameter_shapes(config))

    def state(averaged):
        return names.reference_from_parameters(load_params(directory, abstract, ema=averaged), config)
    model = state(ema)
    path.parent.mkdir(parents=True, exist_ok=True)
    if to == "safetensors":
        from safetensors.numpy import save_file
        save_file({key: np.asarray(value, order="C") for key, value in model.items()}, path)
        return model
    tree = {"model": _with_prefix(model)}
    if not ema and holds_ema(directory):
        tree["model_ema"] = _with_prefix(state(True))
    write_torch(path, tree)
    return model


def _checked_vocabulary(vocabulary, config):
    """The file to use, None for the package's. Raises: ValueError if it does not fit the text encoder."""
    if config.text_encoder.kind != "bert":
        if vocabulary:
            raise ValueError(f"vocabulary: found {vocabulary}, but this variant's text encoder has no "
                             "WordPiece one")
        return None
    words, found = config.text_encoder.vocab_size, Tokenizer(vocabulary).vocab_size
    if words != found:
        raise ValueError(f"a text encoder of {words} words, but the vocabulary has {found}; give "
                         "--vocabulary, or text_encoder.vocab_size in --overrides")
    return vocabulary


def _swap_in_ema(sources):
    if not any("ema" in source.states for source in sources):
        raise ValueError("--ema: found no entry model_ema in the files, expected averaged weights in one")
    for source in sources:
        source.states = {"model": source.states.get("ema", source.states["model"])}


def _match(sources, expected, config, seed):
    """Decides which key fills which parameter.

    Returns: (places, Conversion); places: for each source a dict of "model" or "ema" → its
      `names.Placement.sources`.
    Raises: ValueError with every problem of every file.
    """
    places, problems, filled, buffers = [], [], {}, []
    for source in sources:
        about = source.file.path.name
        places.append({})
        for which, state in source.states.items():
            where = about if which == "model" else f"{about}, model_ema"
            shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
            found = names.place(shapes, expected, config.fusion)
            wrong = found.problems + explain_unused(source, which, found.homeless)
            wrong += [f"{path} {expected[path]}: a parameter of this model, but not in the file"
                      for path in _must_not_miss(found, FRESH[source.kind])]
            problems += [f"{where}: {sentence}" for sentence in wrong]
            places[-1][which] = found.sources
            if which == "model":
                buffers += [source.names[key] for key in found.buffers]
        for path, keys in places[-1]["model"].items():
            if path in filled:
                problems.append(f"{about}: fills {path}, and so does {filled[path][0]}; expected one of them")
            filled[path] = about, [source.names[key] for key, _ in keys]
        if "ema" in places[-1] and places[-1]["ema"].keys() != places[-1]["model"].keys():
            problems.append(f"{about}: model_ema fills other parameters than model; expected the same")
    if problems:
        raise ValueError("the weights do not fit the model:\n  " + "\n  ".join(problems))
    about = [{"file": source.file.path.name, "kind": KINDS[source.kind],
              "bytes": source.file.path.stat().st_size,
              "format": "torch" if isinstance(source.file, TorchFile) else "safetensors",
              "sha256": sha256(source.file.path)} for source in sources]
    return places, Conversion(
        about, filled, expected, sorted(set(expected) - set(filled)), buffers,
        {key: why for source in sources for key, why in source.unused.items()},
        {key: what for source in sources for key, what in source.entries.items()},
        any("ema" in place for place in places))


def _must_not_miss(found, may_be_fresh):
    """Missing paths, less the groups that may be fresh and are wholly missing."""
    there = {match[0] for path in found.sources if (match := may_be_fresh.match(path))}
    return [path for path in found.missing if not (match := may_be_fresh.match(path)) or match[0] in there]


def _read(sources, places, conversion, config, seed):
    """Returns: (parameters, averaged parameters or None), nested dicts of float32 arrays."""
    fresh = _fresh_parameters(config, conversion.fresh, seed)
    values, averaged, problems = dict(fresh), dict(fresh), []
    total = sum(len(keys) for place in places for keys in place.values())
    with Progress("read weights", total, unit="tensors") as progress:
        for source, place in zip(sources, places):
            for which, paths in place.items():
                read = functools.partial(_read_key, source, which)
                for path, keys in paths.items():
                    try:
                        value = names.read_parameter(path, keys, read)
                    except ValueError as error:
                        problems.append(f"{source.file.path.name}: {error}")
                    else:
                        (values if which == "model" else averaged)[path] = value
                    progress.advance()
            if "ema" not in place:                     # an encoder beside averaged weights is its own average
                averaged |= {path: values.get(path) for path in place["model"]}
    if problems:
        raise ValueError("the weights cannot be used:\n  " + "\n  ".join(problems))
    return names.nested(values), names.nested(averaged) if conversion.averaged else None


def _read_key(source, which, key):
    return source.file.read(source.states[which][key])


def _fresh_parameters(config, paths, seed):
    """dict of path → array, as training would start them. Only these are computed."""
    if not paths:
        return {}
    @jax.jit
    def make(key):
        params = names.flattened(init_params(GLIPv2(config), key))
        return {path: params[path] for path in paths}
    return jax.device_get(make(jax.random.key(seed)))


def _with_prefix(state):
    return {f"module.{key}": value for key, value in state.items()}
