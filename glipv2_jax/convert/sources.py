"""What a file of weights holds: GLIP's state_dict, or another project's encoder under the reference's names.

    file ─▶ content ─▶ the state_dict in it (`model`, `model_ema`) ─▶ the reference's keys ─▶ names.place
"""
import dataclasses
import pathlib
import re
from typing import Any, NamedTuple

import numpy as np

from glipv2_jax.convert.table import BERT, IMAGE
from glipv2_jax.convert.torch_file import TorchFile

# Entries beside the weights. None of them is needed: training starts with a fresh optimizer.
_ENTRIES = {
    "optimizer": "optimizer state", "scheduler": "learning-rate schedule",
    "lr_scheduler": "learning-rate schedule",
    "iteration": "step of the run", "epoch": "epoch of the run", "eval_result": "score at that step",
    "max_accuracy": "best score of the run", "scaler": "loss scale of the run",
}
_STATE_NAMES = ("model", "state_dict")

# Weights that some files hold and detection does not read: (key, why).
_UNUSED = {
    "glip": [
        (r"language_backbone\.body\.model\.pooler\.", "BERT's pooler: no GLIP model reads it"),
        (r"rpn\.resizer\.", "projection of the contrastive-alignment variant: unused beside the dot product"),
        (r"rpn\.head\.mlm_head\.", "masked-word head, for training only: glipv2_t has it, this variant not"),
        (r"rpn\.loss_evaluator\.shallow_", "inter-image loss, for training only: this variant has none"),
        (r"rpn\.head\.cls_logits\.", "classifier that the reference never uses: this variant has none"),
        (r"roi_heads\.mask\.", "mask head: this variant has none"),
        (r"rpn\.tunable_linear\.weight$", "prompt matrix, all zero: changes nothing"),
    ],
    "bert": [
        (r"pooler\.", "BERT's pooler: detection reads words, not sentences"),
        (r"cls\.", "BERT's own pre-training heads"),
    ],
    "swin": [
        (r"norm\.(weight|bias)$", "norm before the classifier: the pyramid has one for each of its levels"),
        (r"head\.", "classifier"),
        (r"layers\.\d+\.blocks\.\d+\.attn_mask$", "buffer: follows from the image's size"),
    ],
}
# Zero means absent; anything else would change what the model finds.
_ZERO = re.compile(r"rpn\.tunable_linear\.weight$")

# Parameters that a file of this kind need not hold. Each group that the pattern matches is whole or absent.
FRESH = {
    "glip": re.compile(r"(mlm|contrastive|mask_head|localization/class_logits)/"),
    "bert": re.compile(r"(?!text_encoder/)[^/]+/"),
    "swin": re.compile(r"(?!image_encoder/)[^/]+/|image_encoder/norm\d/"),
}
KINDS = {"glip": "GLIP checkpoint", "bert": "BERT encoder", "swin": "Swin encoder"}


class _Slice(NamedTuple):
    key: str
    shape: tuple[int, ...]


class SafetensorsFile:
    """An open safetensors file: `content` is a dict of key → something with a shape; `read` gives its values.

    Raises: ValueError for a file that is not whole or contradicts itself.
    """

    def __init__(self, path):
        from safetensors import SafetensorError, safe_open
        self.path = pathlib.Path(path)
        try:
            self._file = safe_open(str(path), framework="np")
            keys = self._file.keys()
            self.content = {key: _Slice(key, tuple(self._file.get_slice(key).get_shape())) for key in keys}
        except SafetensorError as error:
            raise ValueError(f"{path}: {error}; expected a whole safetensors file") from error

    def read(self, found):
        return self._file.get_tensor(found.key)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._file = None


def open_weights(path):
    """Opens a file by what it begins with, not by its name.

    Returns: TorchFile or SafetensorsFile, to be used in a with statement.
    Raises: ValueError for another format; OSError for a file that cannot be read.
    """
    with open(path, "rb") as file:
        start = file.read(9)
    # eight bytes of length, at most a hundred million, then JSON
    if start[8:] == b"{" and start[4:8] == bytes(4):
        return SafetensorsFile(path)
    return TorchFile(path)


@dataclasses.dataclass
class Source:
    """One file, understood.

    file: the open file. kind: key of `KINDS`.
    states: {"model": …} and, where the file holds averaged weights, "ema": dict of reference key → tensor.
    names: reference key → key in the file, for messages.
    unused: key in the file → why it is left out.
    entries: entry beside the weights → what it is.
    """
    file: Any
    kind: str
    states: dict
    names: dict
    unused: dict
    entries: dict


def read_source(file):
    """Finds the weights of an open file and says which project's they are.

    Args:
      file: TorchFile or SafetensorsFile.
    Returns: Source.
    Raises: ValueError for content that is none of the known kinds.
    """
    content = file.content
    if type(content) is not dict or not content:
        raise ValueError(f"{file.path}: found {_described(content)}, expected a dict of weights")
    entries, ema = {}, None
    if any(_is_tensor(value) for value in content.values()):
        state = content
    else:
        name = next((n for n in _STATE_NAMES if type(content.get(n)) is dict), None)
        if name is None:
            raise ValueError(f"{file.path}: found the entries {_list(content)}, expected weights, or an "
                             "entry 'model' or 'state_dict' that holds them")
        state, ema = content[name], content.get("model_ema")
        for key, value in content.items():
            if key != name and not (key == "model_ema" and type(value) is dict):
                what = _ENTRIES.get(key, "an entry that GLIP's trainer does not write")
                entries[str(key)[:80]] = f"{what}; not read: {_described(value)}"
    states = {"model": _tensors(state, file.path)}
    if type(ema) is dict:
        states["ema"] = _tensors(ema, file.path)
    kind = _kind(states["model"], file.path)
    names, unused = {}, {}
    for which, tensors in states.items():
        renamed = {}
        for key, tensor in tensors.items():
            new = _RENAME[kind](key, tensors)
            if new in renamed:
                raise ValueError(f"{file.path}: {key} and {names[new]} are names of one weight, {new}; "
                                 "expected one of them")
            renamed[new], names[new] = tensor, key
        states[which] = renamed
    return Source(file, kind, states, names, unused, entries)


def explain_unused(source, which, homeless):
    """Sorts weights that have no place in a model into known ones, noted in `source.unused`, and others.

    Args:
      source: Source. which: "model" or "ema".
      homeless: as in `names.Placement`.
    Returns: a sentence for each of the others.
    """
    problems = []
    for key, path in homeless:
        tensor, name = source.states[which][key], source.names[key]
        why = next((why for pattern, why in _UNUSED[source.kind]
                    if re.match(pattern, _without_prefix(name))), None)
        if why is None:
            elsewhere = f"; it would be {path}, which this model does not have" if path else ""
            problems.append(f"{name} {tensor.shape}: no such weight in this model{elsewhere}")
        elif _ZERO.match(key) and np.any(source.file.read(tensor)):
            problems.append(f"{name} {tensor.shape}: a tuned prompt matrix with values other than 0, which changes what is "
                            f"found; --overrides='{{\"prompt_tokens\": {tensor.shape[0]}}}' gives the model a place for it")
        else:
            source.unused[name] = f"{tensor.shape}: {why}"
    return problems


def _tensors(state, path):
    """Keys without a prefix "module." → tensors. Raises: ValueError for a value that is no tensor."""
    tensors = {}
    for key, value in state.items():
        if type(key) is not str or not _is_tensor(value):
            raise ValueError(f"{path}: found {str(key)[:80]!r} with {_described(value)} among the weights, "
                             "expected names with tensors")
        name = key.removeprefix("module.")
        if name in tensors:
            raise ValueError(f"{path}: found {name} with and without the prefix 'module.', expected one")
        tensors[name] = value
    return tensors


def _kind(tensors, path):
    if any(key.startswith(("backbone.", "rpn.", "language_backbone.")) for key in tensors):
        return "glip"
    if any(_without_prefix(key) == "embeddings.word_embeddings.weight" for key in tensors):
        return "bert"
    if "patch_embed.proj.weight" in tensors:
        return "swin"
    raise ValueError(f"{path}: found weights named {_list(tensors)}, expected those of GLIP (backbone.…, "
                     "rpn.…), BERT (embeddings.…, encoder.…) or Swin (patch_embed.…, layers.…)")


def _without_prefix(key):
    return key.removeprefix("bert.")


def _bert_name(key, tensors):
    """Hugging Face's names. Files from TensorFlow days call a norm's weight gamma and its bias beta."""
    del tensors
    name = re.sub(r"LayerNorm\.(gamma|beta)$",
                  lambda match: "LayerNorm." + {"gamma": "weight", "beta": "bias"}[match[1]],
                  _without_prefix(key))
    return BERT + name if name.startswith(("embeddings.", "encoder.")) else name


def _swin_name(key, tensors):
    """Microsoft's and timm's names. A merging lies at the end of a stage; newer timm puts it before the next.

    As in GLIP, the patch embedding is taken as it is, although it learned red first and here sees blue first.
    """
    stages = [int(match[1]) for name in tensors if (match := re.match(r"layers\.(\d+)\.downsample\.", name))]
    match = re.fullmatch(r"layers\.(\d+)(\.downsample\..*)", key)
    if match and 0 not in stages:
        key = f"layers.{int(match[1]) - 1}{match[2]}"
    backbone = key.startswith(("patch_embed.", "layers.")) and not key.endswith(".attn_mask")
    return IMAGE + key if backbone else key


_RENAME = {"glip": lambda key, tensors: key, "bert": _bert_name, "swin": _swin_name}


def _is_tensor(value):
    return hasattr(value, "shape")


def _described(value):
    """What a value is, in words. Not its repr, which a file can make endless."""
    if _is_tensor(value):
        return f"a tensor {value.shape}"
    if type(value) in (dict, list, tuple):
        return f"a {type(value).__name__} of {len(value)} entries"
    return str(value)[:40] if type(value) in (int, float, bool) else f"a {type(value).__name__}"


def _list(keys):
    shown = [str(key)[:80] for key in list(keys)[:5]]
    return ", ".join(shown) + (f", … ({len(keys)} in all)" if len(keys) > 5 else "")
