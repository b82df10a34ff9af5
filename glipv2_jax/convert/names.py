"""The name map between microsoft/GLIP's state_dict keys and this project's parameters. Strict in both directions.

Every key is placed, or is one of the `NOT_WEIGHTS` the reference recomputes, or is refused by name.
"""
import re

import numpy as np

# Buffers that follow from the configuration.
NOT_WEIGHTS = re.compile(r"(relative_position_index|position_ids|anchor_generator\.cell_anchors\.\d+)$")

_DENSE = {"weight": ("kernel", "dense"), "bias": ("bias", "same")}
_CONV = {"weight": ("kernel", "conv"), "bias": ("bias", "same")}
_CONV_AS_DENSE = {"weight": ("kernel", "conv1x1"), "bias": ("bias", "same")}
_NORM = {"weight": ("scale", "same"), "bias": ("bias", "same")}
_EMBED = {"weight": ("embedding", "same")}
_VALUE = {"": ("", "same")}

_BERT_LAYER = [
    (r"attention\.self\.(query|key|value)", r"\1", _DENSE),
    (r"attention\.output\.dense", r"out", _DENSE),
    (r"attention\.output\.LayerNorm", r"attention_norm", _NORM),
    (r"intermediate\.dense", r"mlp_in", _DENSE),
    (r"output\.dense", r"mlp_out", _DENSE),
    (r"output\.LayerNorm", r"mlp_norm", _NORM),
]
_CLIP_LAYER = [
    (r"attn\.in_proj_weight", r"qkv/kernel", {"": ("", "dense")}),
    (r"attn\.in_proj_bias", r"qkv/bias", _VALUE),
    (r"attn\.out_proj", r"out", _DENSE),
    (r"ln_1", r"attention_norm", _NORM),
    (r"ln_2", r"mlp_norm", _NORM),
    (r"mlp\.c_fc", r"mlp_in", _DENSE),
    (r"mlp\.c_proj", r"mlp_out", _DENSE),
]
_BODY = r"backbone\.body\."
_TOWER = r"rpn\.head\.dyhead_tower\.(\d+)\."


def _tables(fusion):
    """(pattern, path, leaves) rows. `{block}` in a path is the head block of a tower index."""
    rows = [
        (_BODY + r"patch_embed\.proj", r"image_encoder/patch_embed/proj", _CONV),
        (_BODY + r"patch_embed\.norm", r"image_encoder/patch_embed/norm", _NORM),
        (_BODY + r"layers\.(\d)\.blocks\.(\d+)\.norm([12])", r"image_encoder/stage\1_block\2/norm\3", _NORM),
        (_BODY + r"layers\.(\d)\.blocks\.(\d+)\.attn\.(qkv|proj)", r"image_encoder/stage\1_block\2/attn/\3", _DENSE),
        (_BODY + r"layers\.(\d)\.blocks\.(\d+)\.attn\.relative_position_bias_table",
         r"image_encoder/stage\1_block\2/attn/relative_position_bias_table", _VALUE),
        (_BODY + r"layers\.(\d)\.blocks\.(\d+)\.mlp\.fc1", r"image_encoder/stage\1_block\2/mlp_in", _DENSE),
        (_BODY + r"layers\.(\d)\.blocks\.(\d+)\.mlp\.fc2", r"image_encoder/stage\1_block\2/mlp_out", _DENSE),
        (_BODY + r"layers\.(\d)\.downsample\.reduction", r"image_encoder/stage\1_merge/reduction", _DENSE),
        (_BODY + r"layers\.(\d)\.downsample\.norm", r"image_encoder/stage\1_merge/norm", _NORM),
        (_BODY + r"norm(\d)", r"image_encoder/norm\1", _NORM),
        (r"backbone\.fpn\.fpn_inner([234])", r"fpn/lateral{level}", _CONV),
        (r"backbone\.fpn\.fpn_layer([234])", r"fpn/output{level}", _CONV),
        (r"backbone\.fpn\.top_blocks\.(p[67])", r"fpn/\1", _CONV),
        (r"language_backbone\.body\.model\.embeddings\.(word|position|token_type)_embeddings",
         r"text_encoder/\1_embeddings", _EMBED),
        (r"language_backbone\.body\.model\.embeddings\.LayerNorm", r"text_encoder/norm", _NORM),
        (r"language_backbone\.body\.positional_embedding", r"text_encoder/positional_embedding", _VALUE),
        (r"language_backbone\.body\.token_embedding", r"text_encoder/token_embedding", _EMBED),
        (r"language_backbone\.body\.ln_final", r"text_encoder/final_norm", _NORM),
        (_TOWER + r"DyConv\.([012])\.conv", r"dyconv_{block}/{branch}", {"weight": ("_kernel", "conv"),
                                                                       "bias": ("_bias", "same")}),
        (_TOWER + r"DyConv\.([012])\.bn", r"dyconv_{block}/{branch}_norm", _NORM),
        (_TOWER + r"offset", r"dyconv_{block}/offset", _CONV),
        (_TOWER + r"AttnConv\.1", r"dyconv_{block}/scale_attention", _CONV_AS_DENSE),
        (_TOWER + r"relu\.fc\.0", r"dyconv_{block}/relu/fc1", _DENSE),
        (_TOWER + r"relu\.fc\.2", r"dyconv_{block}/relu/fc2", _DENSE),
        (r"rpn\.head\.cls_logits", r"localization/class_logits", _CONV_AS_DENSE),
        (r"rpn\.head\.bbox_pred", r"localization/box", _CONV_AS_DENSE),
        (r"rpn\.head\.centerness", r"localization/centerness", _CONV_AS_DENSE),
        (r"rpn\.head\.scales\.(\d)\.scale", r"localization/scales", {"": ("", "element")}),
        (r"rpn\.head\.dot_product_projection_text", r"grounding/text_projection", _DENSE),
        (r"rpn\.head\.(log_scale|bias0|bias_lang)", r"grounding/\1", _VALUE),
        (r"rpn\.head\.mlm_head\.transform\.dense", r"mlm/transform", _DENSE),
        (r"rpn\.head\.mlm_head\.transform\.LayerNorm", r"mlm/norm", _NORM),
        (r"rpn\.head\.mlm_head\.decoder", r"mlm/decoder", _DENSE),
        (r"rpn\.head\.mlm_head\.bias", r"mlm/decoder/bias", _VALUE),
        (r"rpn\.loss_evaluator\.shallow_contrastive_projection_(image|text)", r"contrastive/\1", _DENSE),
        (r"rpn\.loss_evaluator\.shallow_log_scale", r"contrastive/log_scale", _VALUE),
    ]
    rows += [(r"language_backbone\.body\.model\.encoder\.layer\.(\d+)\." + key, r"text_encoder/layer\1/" +
              path.replace(r"\1", r"\2"), leaves) for key, path, leaves in _BERT_LAYER]
    rows += [(r"language_backbone\.body\.resblocks\.(\d+)\." + key, r"text_encoder/layer\1/" + path, leaves)
             for key, path, leaves in _CLIP_LAYER]
    if fusion:
        rows += [(_TOWER + key, "text_layer_{block}/" + path.replace(r"\1", r"\2"), leaves)
                 for key, path, leaves in _BERT_LAYER + _CLIP_LAYER]
        rows += [
            (_TOWER + r"b_attn\.gamma_v", r"fusion_{block}/region_scale", _VALUE),
            (_TOWER + r"b_attn\.gamma_l", r"fusion_{block}/word_scale", _VALUE),
            (_TOWER + r"b_attn\.layer_norm_v", r"fusion_{block}/region_norm", _NORM),
            (_TOWER + r"b_attn\.layer_norm_l", r"fusion_{block}/word_norm", _NORM),
        ]
        for key, name in (("v_proj", "query"), ("l_proj", "key"), ("values_v_proj", "region_value"),
                          ("values_l_proj", "word_value"), ("out_v_proj", "region_out"), ("out_l_proj", "word_out")):
            rows.append((_TOWER + rf"b_attn\.attn\.{key}", f"fusion_{{block}}/{name}",
                         {"weight": ("_kernel", "dense"), "bias": ("_bias", "same")}))
    return [(re.compile(pattern), path, leaves) for pattern, path, leaves in rows]


_TABLES = {fusion: _tables(fusion) for fusion in (True, False)}
_BRANCHES = {"0": "coarser", "1": "same", "2": "finer"}


def parameter_of(key, fusion=True):
    """Where a reference key lives here.

    Args:
      key: state_dict key, with or without a leading "module.".
      fusion: whether the model fuses (the tower's indices then run over three kinds of layers).
    Returns: (path, kind, element): path "a/b/c" in the parameter tree; kind how the array is laid out there, one of
      same, dense, conv, conv1x1, element; element the index for kind "element". None for a recomputed buffer.
    Raises: KeyError for a key with no place.
    """
    name = key.removeprefix("module.")
    if NOT_WEIGHTS.search(name):
        return None
    for pattern, path, leaves in _TABLES[fusion]:
        for leaf, (suffix, kind) in leaves.items():
            match = re.fullmatch(pattern.pattern + (rf"\.{leaf}" if leaf else ""), name)
            if not match:
                continue
            groups = match.groups()
            if "{block}" in path:
                path = path.replace("{block}", str(int(groups[0]) // (3 if fusion else 1)))
            if "{branch}" in path:
                path = path.replace("{branch}", _BRANCHES[groups[1]])
            if "{level}" in path:
                path = path.replace("{level}", str(int(groups[0]) + 1))
            path = match.expand(path)
            joined = path + suffix if suffix.startswith("_") or not suffix else f"{path}/{suffix}"
            return joined, kind, int(groups[0]) if kind == "element" else None
    raise KeyError(key)


def to_parameter(array, kind):
    """Reference layout → this project's: linear weights [out, in] → [in, out], convolutions OIHW → HWIO."""
    if kind == "dense":
        return array.T
    if kind == "conv":
        return array.transpose(2, 3, 1, 0)
    if kind == "conv1x1":
        return array[:, :, 0, 0].T
    return array


def parameters_from_reference(state, expected, fusion=True):
    """A full parameter tree from a reference state_dict.

    Args:
      state: dict of key → numpy array.
      expected: nested dict of arrays or ShapeDtypeStructs, the model's parameters.
      fusion: as the model's config has it.
    Returns: nested dict of float32 numpy arrays, the structure of `expected`.
    Raises: ValueError naming every key without a place, every parameter left without a value, every wrong shape and
      every tied pair that differs.
    """
    import flax.traverse_util  # only needed here; the map itself is plain Python
    shapes = {path: tuple(leaf.shape) for path, leaf in flax.traverse_util.flatten_dict(expected, sep="/").items()}
    values, elements, problems = {}, {}, []
    for key, array in state.items():
        try:
            place = parameter_of(key, fusion)
        except KeyError:
            problems.append(f"{key} {tuple(array.shape)}: no such weight in this model")
            continue
        if place is None:
            continue
        path, kind, element = place
        if kind == "element":
            elements.setdefault(path, {})[element] = np.asarray(array, np.float32).reshape(())
            continue
        value = np.asarray(to_parameter(array, kind), np.float32)
        if path in values and not np.array_equal(values[path], value):
            problems.append(f"{key}: another key gave {path} different values")
        values[path] = value
    for path, parts in elements.items():
        if sorted(parts) != list(range(len(parts))):
            problems.append(f"{path}: found elements {sorted(parts)}, expected 0 … {len(parts) - 1}")
            continue
        values[path] = np.stack([parts[i] for i in range(len(parts))])
    for path in sorted(set(values) - set(shapes)):
        problems.append(f"{path} {values[path].shape}: in the file, but this model has no such parameter")
    for path in sorted(set(shapes) - set(values)):
        problems.append(f"{path} {shapes[path]}: a parameter of this model, but not in the file")
    for path in sorted(set(shapes) & set(values)):
        if values[path].size == np.prod(shapes[path]) and len(shapes[path]) > values[path].ndim:
            values[path] = values[path].reshape(shapes[path])       # DyConv kernels [9, C, C] are stored as 3 × 3
        if values[path].shape != shapes[path]:
            problems.append(f"{path}: found shape {values[path].shape}, expected {shapes[path]}")
    if problems:
        raise ValueError("weights do not fit the model:\n  " + "\n  ".join(problems))
    return flax.traverse_util.unflatten_dict(values, sep="/")
