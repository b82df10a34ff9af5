"""The one table of names: a reference key and the parameter it is, in rows that are read in both directions.

A row holds two templates, `rpn.head.dyhead_tower.{conv}.offset` and `dyconv_{conv}/offset`. A `{field}` is a
number or a word on either side; most fields are written alike on both, `_fields` says how the others differ.
"""
import re
from collections.abc import Callable
from typing import NamedTuple


class _Field(NamedTuple):
    """What a field may be on each side, as a regular expression, and the way from one side to the other."""
    key: str
    path: str
    to_path: Callable[[str], str | None]      # None: not a possible value after all
    to_key: Callable[[str], str]


class Line(NamedTuple):
    """One leaf of a row: `key` and `path` match whole names, the templates rebuild them."""
    key: re.Pattern
    key_template: str
    path: re.Pattern
    path_template: str
    kind: str                 # how the array is laid out here: same, dense, conv, conv1x1, deconv or element
    text: str | None          # only in models with this text encoder, "bert" or "clip"
    fields: dict


_NUMBER = r"0|[1-9]\d{0,5}"
_SAME = _Field(_NUMBER, _NUMBER, str, str)
_BRANCHES = {"0": "coarser", "1": "same", "2": "finer"}
_UNITS = {"up1": "skip", "low1": "down", "low2": "inner", "low3": "up"}       # of an hourglass
_DEPTHS = range(4)                                                           # of hourglasses within hourglasses


def _tower(place, step):
    """Index in the reference's tower ↔ index of our block: `step` entries of the tower are one block."""
    def to_path(index):
        block, found = divmod(int(index), step)
        return str(block) if found == place else None
    return _Field(_NUMBER, _NUMBER, to_path, lambda block: str(int(block) * step + place))


def _fields(fusion):
    """Fields of a model. With fusion, a block is three entries of the tower: fusion, text layer, DyConv."""
    fields = {name: _SAME for name in ("stage", "block", "n", "layer")}
    fields["level"] = _Field(r"[234]", r"[345]", lambda k: str(int(k) + 1), lambda p: str(int(p) - 1))
    for name, ours in (("branch", _BRANCHES), ("unit", _UNITS)):
        fields[name] = _Field("|".join(ours), "|".join(ours.values()), ours.get, {value: key for key, value in ours.items()}.get)
    fields["from1"] = _Field(r"[1-9]\d{0,5}", _NUMBER, lambda n: str(int(n) - 1), lambda n: str(int(n) + 1))
    fields["element"] = _SAME
    fields["conv"] = _tower(2, 3) if fusion else _tower(0, 1)
    if fusion:
        fields |= {"fuse": _tower(0, 3), "text": _tower(1, 3)}
    return fields


# Last part of a key → (last part of the path, layout). What starts with "_" is joined without a slash.
_DENSE = {".weight": ("/kernel", "dense"), ".bias": ("/bias", "same")}
_CONV = {".weight": ("/kernel", "conv"), ".bias": ("/bias", "same")}
_DECONV = {".weight": ("/dense/kernel", "deconv"), ".bias": ("/bias", "same")}
_CONV_AS_DENSE = {".weight": ("/kernel", "conv1x1"), ".bias": ("/bias", "same")}
_NORM = {".weight": ("/scale", "same"), ".bias": ("/bias", "same")}
_EMBED = {".weight": ("/embedding", "same")}
_VALUE = {"": ("", "same")}
_BARE_DENSE = {".weight": ("_kernel", "dense"), ".bias": ("_bias", "same")}
_BARE_CONV = {".weight": ("_kernel", "conv"), ".bias": ("_bias", "same")}

_BERT_LAYER = [
    *((f"attention.self.{name}", name, _DENSE) for name in ("query", "key", "value")),
    ("attention.output.dense", "out", _DENSE),
    ("attention.output.LayerNorm", "attention_norm", _NORM),
    ("intermediate.dense", "mlp_in", _DENSE),
    ("output.dense", "mlp_out", _DENSE),
    ("output.LayerNorm", "mlp_norm", _NORM),
]
_CLIP_LAYER = [
    ("attn.in_proj_weight", "qkv/kernel", {"": ("", "dense")}),
    ("attn.in_proj_bias", "qkv/bias", _VALUE),
    ("attn.out_proj", "out", _DENSE),
    ("ln_1", "attention_norm", _NORM),
    ("ln_2", "mlp_norm", _NORM),
    ("mlp.c_fc", "mlp_in", _DENSE),
    ("mlp.c_proj", "mlp_out", _DENSE),
]
_SWIN_BLOCK = [
    ("norm{n}", "norm{n}", _NORM),
    ("attn.qkv", "attn/qkv", _DENSE),
    ("attn.proj", "attn/proj", _DENSE),
    ("attn.relative_position_bias_table", "attn/relative_position_bias_table", _VALUE),
    ("mlp.fc1", "mlp_in", _DENSE),
    ("mlp.fc2", "mlp_out", _DENSE),
]
_FUSION = [
    ("gamma_v", "/region_scale", _VALUE), ("gamma_l", "/word_scale", _VALUE),
    ("layer_norm_v", "/region_norm", _NORM), ("layer_norm_l", "/word_norm", _NORM),
    ("attn.v_proj", "/query", _BARE_DENSE), ("attn.l_proj", "/key", _BARE_DENSE),
    ("attn.values_v_proj", "/region_value", _BARE_DENSE), ("attn.values_l_proj", "/word_value", _BARE_DENSE),
    ("attn.out_v_proj", "/region_out", _BARE_DENSE), ("attn.out_l_proj", "/word_out", _BARE_DENSE),
]

IMAGE, TEXT = "backbone.body.", "language_backbone.body."
BERT, _HEAD, _LOSS = TEXT + "model.", "rpn.head.", "rpn.loss_evaluator."
_TOWER = _HEAD + "dyhead_tower."
_MASK_FEATURES, _MASK = "roi_heads.mask.feature_extractor.", "roi_heads.mask.predictor."


def _conv_norm(key, path):
    """A convolution under its own name, or with GroupNorm as the first of two."""
    return [(key, path + "/conv", _CONV), (key + ".0", path + "/unbiased_conv", {".weight": _CONV[".weight"]}),
            (key + ".1", path + "/norm", _NORM)]


def _rows(fusion):
    """(key template, path template, leaves, text encoder or None)."""
    rows = [
        (IMAGE + "patch_embed.proj", "image_encoder/patch_embed/proj", _CONV),
        (IMAGE + "patch_embed.norm", "image_encoder/patch_embed/norm", _NORM),
        *((IMAGE + "layers.{stage}.blocks.{block}." + key,
           "image_encoder/stage{stage}_block{block}/" + path, leaves)
          for key, path, leaves in _SWIN_BLOCK),
        (IMAGE + "layers.{stage}.downsample.reduction", "image_encoder/stage{stage}_merge/reduction", _DENSE),
        (IMAGE + "layers.{stage}.downsample.norm", "image_encoder/stage{stage}_merge/norm", _NORM),
        (IMAGE + "norm{n}", "image_encoder/norm{n}", _NORM),
        ("backbone.fpn.fpn_inner{level}", "fpn/lateral{level}", _CONV),
        ("backbone.fpn.fpn_layer{level}", "fpn/output{level}", _CONV),
        ("backbone.fpn.top_blocks.p6", "fpn/p6", _CONV),
        ("backbone.fpn.top_blocks.p7", "fpn/p7", _CONV),
        *((BERT + f"embeddings.{name}_embeddings", f"text_encoder/{name}_embeddings", _EMBED, "bert")
          for name in ("word", "position", "token_type")),
        (BERT + "embeddings.LayerNorm", "text_encoder/norm", _NORM, "bert"),
        *((BERT + "encoder.layer.{layer}." + key, "text_encoder/layer{layer}/" + path, leaves, "bert")
          for key, path, leaves in _BERT_LAYER),
        (TEXT + "token_embedding", "text_encoder/token_embedding", _EMBED, "clip"),
        (TEXT + "positional_embedding", "text_encoder/positional_embedding", _VALUE, "clip"),
        (TEXT + "ln_final", "text_encoder/final_norm", _NORM, "clip"),
        *((TEXT + "resblocks.{layer}." + key, "text_encoder/layer{layer}/" + path, leaves, "clip")
          for key, path, leaves in _CLIP_LAYER),
        (_TOWER + "{conv}.DyConv.{branch}.conv", "dyconv_{conv}/{branch}", _BARE_CONV),
        (_TOWER + "{conv}.DyConv.{branch}.bn", "dyconv_{conv}/{branch}_norm", _NORM),
        (_TOWER + "{conv}.offset", "dyconv_{conv}/offset", _CONV),
        (_TOWER + "{conv}.AttnConv.1", "dyconv_{conv}/scale_attention", _CONV_AS_DENSE),
        (_TOWER + "{conv}.relu.fc.0", "dyconv_{conv}/relu/fc1", _DENSE),
        (_TOWER + "{conv}.relu.fc.2", "dyconv_{conv}/relu/fc2", _DENSE),
        (_HEAD + "cls_logits", "localization/class_logits", _CONV_AS_DENSE),
        (_HEAD + "bbox_pred", "localization/box", _CONV_AS_DENSE),
        (_HEAD + "centerness", "localization/centerness", _CONV_AS_DENSE),
        (_HEAD + "scales.{element}.scale", "localization/scales", {"": ("", "element")}),
        (_HEAD + "dot_product_projection_text", "grounding/text_projection", _DENSE),
        *((_HEAD + name, f"grounding/{name}", _VALUE) for name in ("log_scale", "bias0", "bias_lang")),
        ("rpn.tunable_linear.weight", "prompt", _VALUE),
        # One tensor under two names: BERT's prediction head ties them.
        (_HEAD + "mlm_head.bias", "mlm/decoder/bias", _VALUE),
        (_HEAD + "mlm_head.transform.dense", "mlm/transform", _DENSE),
        (_HEAD + "mlm_head.transform.LayerNorm", "mlm/norm", _NORM),
        (_HEAD + "mlm_head.decoder", "mlm/decoder", _DENSE),
        (_LOSS + "shallow_log_scale", "contrastive/log_scale", _VALUE),
        (_LOSS + "shallow_contrastive_projection_image", "contrastive/image", _DENSE),
        (_LOSS + "shallow_contrastive_projection_text", "contrastive/text", _DENSE),
        *_conv_norm(_MASK_FEATURES + "mask_fcn{from1}", "mask_head/features/block{from1}"),
        *(row for depth in _DEPTHS for row in _conv_norm(
            _MASK_FEATURES + "mask_hg{from1}." + "low2." * depth + "{unit}.conv{n}",
            "mask_head/features/hourglass{from1}/" + "inner/" * depth + "{unit}/conv{n}")),
        (_MASK + "conv5_mask", "mask_head/upsample", _DECONV),
        (_MASK + "mask_fcn_logits", "mask_head/logits", _CONV_AS_DENSE),
        (_MASK + "dot_product_projection_text", "mask_head/text_projection", _DENSE),
        *((_MASK + name, f"mask_head/{name}", _VALUE) for name in ("log_scale", "bias_lang")),
    ]
    if fusion:
        rows += [(_TOWER + "{fuse}.b_attn." + key, "fusion_{fuse}" + path, leaves)
                 for key, path, leaves in _FUSION]
        rows += [(_TOWER + "{text}." + key, "text_layer_{text}/" + path, leaves, kind)
                 for kind, layer in (("bert", _BERT_LAYER), ("clip", _CLIP_LAYER))
                 for key, path, leaves in layer]
    return [(*row, None)[:4] for row in rows]


def _pattern(template, fields, side):
    parts = re.split(r"\{(\w+)\}", template)
    return re.compile("".join(f"(?P<{part}>{getattr(fields[part], side)})" if i % 2 else re.escape(part)
                              for i, part in enumerate(parts)))


def _lines(fusion):
    fields = _fields(fusion)
    return tuple(
        Line(_pattern(key + last, fields, "key"), key + last, _pattern(path + end, fields, "path"),
             path + end, kind, text, fields)
        for key, path, leaves, text in _rows(fusion) for last, (end, kind) in leaves.items())


LINES = {fusion: _lines(fusion) for fusion in (True, False)}
