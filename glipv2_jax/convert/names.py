"""From the reference's state_dict to this project's parameters and back. Strict in both directions.

Every key is placed, or is one of the `NOT_WEIGHTS` that follow from the configuration, or is refused by name.
"""
import collections
import dataclasses
import re

import numpy as np

from glipv2_jax.convert.table import LINES

# Buffers that follow from the configuration.
NOT_WEIGHTS = re.compile(r"(relative_position_index|position_ids|anchor_generator\.cell_anchors\.\d+)$")


def parameter_of(key, fusion=True):
    """Where a reference key lives here.

    Args:
      key: state_dict key, with or without a leading "module.".
      fusion: whether the model fuses (the tower's indices then run over three kinds of layers).
    Returns: (path, kind, element): path "a/b/c" in the parameter tree; kind how the array is laid out there,
      one of same, dense, conv, conv1x1, deconv, element; element the index for kind "element". None for a recomputed
      buffer.
    Raises: KeyError for a key with no place.
    """
    name = key.removeprefix("module.")
    if NOT_WEIGHTS.search(name):
        return None
    for line in LINES[fusion]:
        match = line.key.fullmatch(name)
        values = match and {field: line.fields[field].to_path(text)
                            for field, text in match.groupdict().items()}
        if match and None not in values.values():
            element = int(values["element"]) if line.kind == "element" else None
            return line.path_template.format(**values), line.kind, element
    raise KeyError(key)


def keys_of(path, fusion=True, text="bert"):
    """The reference keys of a parameter, the inverse of `parameter_of`.

    Args:
      path: "a/b/c" in the parameter tree.
      fusion: as in `parameter_of`. text: the model's kind of text encoder; both kinds share some names here.
    Returns: list of (key without "module.", kind). Two for a tied tensor. For kind "element" the key still
      holds "{element}": there is one key for each entry.
    Raises: KeyError for a parameter that the reference does not have.
    """
    found = []
    for line in LINES[fusion]:
        match = line.path.fullmatch(path)
        if match and line.text in (None, text):
            values = {field: line.fields[field].to_key(value) for field, value in match.groupdict().items()}
            if line.kind == "element":
                values["element"] = "{element}"
            found.append((line.key_template.format(**values), line.kind))
    if not found:
        raise KeyError(path)
    return found


def to_parameter(array, kind):
    """Reference layout → this project's: linear weights [out, in] → [in, out], convolutions OIHW → HWIO.

    A patch merging is a linear layer in Swin and a convolution in CoSwin, under one name.
    """
    if kind == "conv" or kind == "dense" and array.ndim == 4:
        return array.transpose(2, 3, 1, 0)
    if kind == "dense":
        return array.T
    if kind == "conv1x1":
        return array[:, :, 0, 0].T
    if kind == "deconv":        # [in, out, 2, 2] → [in, 2 × 2 × out]
        return array.transpose(0, 2, 3, 1).reshape(len(array), -1)
    return array


def to_reference(array, kind):
    """The inverse of `to_parameter`."""
    if kind == "conv" or kind == "dense" and array.ndim == 4:
        return array.transpose(3, 2, 0, 1)
    if kind == "dense":
        return array.T
    if kind == "conv1x1":
        return array.T[:, :, None, None]
    if kind == "deconv":
        return array.reshape(len(array), 2, 2, -1).transpose(0, 3, 1, 2)
    return array


@dataclasses.dataclass
class Placement:
    """Which key of a file fills which parameter, known from names and shapes alone.

    sources: path → list of (key, kind); more than one for tied tensors, one for each entry of kind "element".
    buffers: keys that the model recomputes.
    missing: paths without a key.
    homeless: (key, path or None) of keys whose parameter this model, or any model, does not have.
    problems: a sentence for each name or shape that is wrong in any model.
    """
    sources: dict
    buffers: list
    missing: list
    homeless: list
    problems: list


def place(shapes, expected, fusion=True):
    """Matches the keys of a state_dict with the parameters of a model. Reads no values.

    Args:
      shapes: dict of reference key → shape.
      expected: dict of path → shape, the model's parameters.
      fusion: as the model's config has it.
    Returns: Placement.
    """
    elements = collections.defaultdict(dict)
    found = Placement({}, [], [], [], [])
    for key, shape in shapes.items():
        try:
            where = parameter_of(key, fusion)
        except KeyError:
            found.homeless.append((key, None))
            continue
        if where is None:
            found.buffers.append(key)
            continue
        path, kind, element = where
        if path not in expected:
            found.homeless.append((key, path))
        elif kind == "element":
            elements[path][element] = (key, kind)
            if np.prod(shape, dtype=np.int64) != 1:
                found.problems.append(f"{key}: found shape {shape}, expected (1,)")
        else:
            found.sources.setdefault(path, []).append((key, kind))
            ours = _shape_here(shape, kind)
            if ours != expected[path]:
                found.problems.append(
                    f"{key} {shape}: found {path} of shape {ours}, expected {expected[path]}")
    for path, parts in elements.items():
        if sorted(parts) != list(range(*expected[path])):
            last = expected[path][0] - 1
            found.problems.append(f"{path}: found elements {sorted(parts)}, expected 0 … {last}")
        found.sources[path] = [parts[i] for i in sorted(parts)]
    found.missing = sorted(set(expected) - set(found.sources))
    return found


def _shape_here(shape, kind):
    """Shape after `to_parameter`; where the layout does not fit, the shape itself: unequal."""
    dims = {"conv": (4,), "conv1x1": (4,), "deconv": (4,), "dense": (2, 4)}.get(kind)
    if dims and len(shape) not in dims or kind == "conv1x1" and tuple(shape[2:]) != (1, 1):
        return tuple(shape)
    # a stand-in that has the shape and no memory
    return to_parameter(np.broadcast_to(np.float32(0), shape), kind).shape


def read_parameter(path, sources, read):
    """The value of one parameter.

    Args:
      path: for messages. sources: list of (key, kind), as in `Placement`.
      read: function of a key: its array.
    Returns: contiguous float32 numpy array.
    Raises: ValueError when the value is no float, does not survive float32, is not finite, or differs between
      the names of a tied tensor.
    """
    values = [to_parameter(_float32(key, read(key)), kind) for key, kind in sources]
    if sources[0][1] == "element":
        return np.stack([value.reshape(()) for value in values])
    for (key, _), value in zip(sources[1:], values[1:]):
        if not np.array_equal(value, values[0]):
            raise ValueError(f"{key}: another key, {sources[0][0]}, gave {path} different values")
    return np.asarray(values[0], order="C")


def _float32(key, array):
    if array.dtype.name not in ("float16", "bfloat16", "float32", "float64"):
        raise ValueError(f"{key} {array.shape}: found {array.dtype}, expected a floating-point weight")
    with np.errstate(over="ignore"):
        value = np.asarray(array, np.float32)
    if not np.isfinite(value).all():
        count = value.size - np.isfinite(value).sum()
        raise ValueError(f"{key} {array.shape}: found {count} entries that are no finite float32, expected 0")
    if array.dtype == np.float64 and not np.array_equal(value, array):
        raise ValueError(f"{key} {array.shape}: found float64 values that float32 lacks, expected float32")
    return value


def parameters_from_reference(state, expected, fusion=True):
    """A full parameter tree from a reference state_dict.

    Args:
      state: dict of key → numpy array.
      expected: nested dict of arrays or ShapeDtypeStructs, the model's parameters.
      fusion: as the model's config has it.
    Returns: nested dict of float32 numpy arrays, the structure of `expected`.
    Raises: ValueError naming every key without a place, every parameter left without a value, every wrong
      shape and every tied pair that differs.
    """
    expected = shapes_by_path(expected)
    found = place({key: tuple(array.shape) for key, array in state.items()}, expected, fusion)
    problems = found.problems + [f"{key} {tuple(state[key].shape)}: no such weight in this model"
                                 for key, _ in found.homeless]
    problems += [f"{path} {expected[path]}: a parameter of this model, but not in the file"
                 for path in found.missing]
    values = {}
    if not problems:
        for path, sources in found.sources.items():
            try:
                values[path] = read_parameter(path, sources, state.__getitem__)
            except ValueError as error:
                problems.append(str(error))
    if problems:
        raise ValueError("weights do not fit the model:\n  " + "\n  ".join(problems))
    return nested(values)


def reference_from_parameters(params, config):
    """The reference's state_dict, buffers included, of a model. The inverse of `parameters_from_reference`.

    Args:
      params: nested dict of arrays.
      config: ModelConfig.
    Returns: dict of key, without "module.", → numpy array. Tied keys hold the same array.
    Raises: ValueError naming every parameter that the reference has no name for.
    """
    state, problems = {}, []
    for path, value in flattened(params).items():
        try:
            keys = keys_of(path, config.fusion, config.text_encoder.kind)
        except KeyError:
            problems.append(f"{path} {value.shape}: the reference has no name for it")
            continue
        for key, kind in keys:
            if kind == "element":
                state |= {key.format(element=i): np.asarray(entry).reshape(1)
                          for i, entry in enumerate(value)}
            else:
                state[key] = to_reference(np.asarray(value), kind)
        if len(keys) > 1:
            state |= dict.fromkeys((key for key, _ in keys), state[keys[0][0]])
    if problems:
        raise ValueError("parameters have no place in the reference's layout:\n  " + "\n  ".join(problems))
    return state | _buffers(config)


def _buffers(config):
    """What the reference's modules compute when they are built, and save."""
    from glipv2_jax.detection.anchors import anchors
    from glipv2_jax.models.swin import relative_position_index
    index = relative_position_index(config.image_encoder.window).astype(np.int64)
    buffers = {f"backbone.body.layers.{stage}.blocks.{block}.attn.relative_position_index": index
               for stage, depth in enumerate(config.image_encoder.depths) for block in range(depth)}
    # The first anchor of each level: strides are even, so a cell's own anchor is centred on (stride − 1) / 2.
    cells = anchors(((1, 1),) * 5)
    return buffers | {f"rpn.anchor_generator.cell_anchors.{level}": cells[level:level + 1]
                      for level in range(5)}


def flattened(tree):
    """Nested dict → dict of "a/b/c" → leaf."""
    import flax.traverse_util  # late: the map itself is plain Python
    return flax.traverse_util.flatten_dict(tree, sep="/")


def nested(values):
    """The inverse of `flattened`."""
    import flax.traverse_util
    return flax.traverse_util.unflatten_dict(values, sep="/")


def shapes_by_path(tree):
    """Nested dict of arrays or ShapeDtypeStructs → dict of "a/b/c" → shape."""
    return {path: tuple(leaf.shape) for path, leaf in flattened(tree).items()}
