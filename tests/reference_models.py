"""Shared by the parity tests: model cases of a fixture directory, their weights, and every tensor by its stored name."""
import dataclasses
import functools
import importlib.util
import json
from pathlib import Path

import jax
import numpy as np

from glipv2_jax.convert.names import parameters_from_reference
from glipv2_jax.models.config import ImageEncoderConfig, ModelConfig, TextEncoderConfig
from glipv2_jax.models.glipv2 import GLIPv2, init_params, normalize_image

LEVELS = [f"P{level}" for level in range(3, 8)]


@dataclasses.dataclass
class Case:
    """One model fixture: `arrays` with the prefix of one run removed, and what the json says."""
    name: str
    run: str
    meta: dict
    run_meta: dict
    arrays: dict


def recipe(directory):
    """The module that regenerates weights and images."""
    spec = importlib.util.spec_from_file_location("reference_weights", Path(directory) / "weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def case_names(directory):
    """Stems of the model cases: a json with a case seed whose model has a manifest, and outputs that are stored whole."""
    names = []
    for path in sorted(Path(directory).glob("*.json")):
        meta = json.loads(path.read_text())
        if not (isinstance(meta, dict) and {"case_seed", "images", "model"} <= set(meta)
                and (path.parent / f"manifest_{meta['model']}.json").exists() and path.with_suffix(".npz").exists()):
            continue
        with np.load(path.with_suffix(".npz")) as file:
            # a plain forward pass: each run has its text as fed, and what was detected (in training: assigned)
            runs = {key[:-len("input_ids")] for key in file.files if key == "input_ids" or key.endswith(".input_ids")}
            if runs and all(run + "det.0.boxes" in file.files for run in runs) or (
                    "assign.0.matched_gt" in file.files):
                names.append(path.stem)
    return names


def load_runs(directory, name):
    """List of `Case`, one for each run ("a", "b", …) of a file, or a single one without a prefix."""
    meta = json.loads((Path(directory) / f"{name}.json").read_text())
    with np.load(Path(directory) / f"{name}.npz") as file:
        arrays = dict(file)
    if "input_ids" in arrays:
        return [Case(name, "", meta, meta, arrays)]
    runs = sorted({key.split(".")[0] for key in arrays if key.endswith(".input_ids")})
    # what the runs share (images, image tensors) is stored without a prefix or with the first run only
    return [Case(name, run, meta, meta[run], {
        **{k: v for k, v in arrays.items() if k.split(".")[0] not in runs},
        **{k.removeprefix(run + "."): v for k, v in arrays.items() if k.startswith(run + ".")}}) for run in runs]


def infer_config(manifest, meta):
    """The model's configuration, read off the shapes of its weights; only head counts of BERT stand in the json."""
    shapes = {k.removeprefix("module."): tuple(v["shape"]) for k, v in manifest.items()}

    def count(pattern):
        prefix, suffix = pattern.split("*")
        found = {k[len(prefix):-len(suffix)] for k in shapes if k.startswith(prefix) and k.endswith(suffix)}
        return len({x for x in found if "." not in x})
    tables = [shapes[f"backbone.body.layers.{s}.blocks.0.attn.relative_position_bias_table"] for s in range(4)]
    image = ImageEncoderConfig(
        embed_dim=shapes["backbone.body.patch_embed.proj.weight"][0],
        depths=tuple(count(f"backbone.body.layers.{s}.blocks.*.norm1.weight") for s in range(4)),
        num_heads=tuple(t[1] for t in tables), window=(round(tables[0][0]**0.5) + 1) // 2)
    bert = "language_backbone.body.model."
    vocab, width = shapes[bert + "embeddings.word_embeddings.weight"]
    heads = meta.get("bert", {}).get("num_attention_heads", 12)
    mlp = shapes[bert + "encoder.layer.0.intermediate.dense.weight"][0]
    text = TextEncoderConfig("bert", vocab, width, count(bert + "encoder.layer.*.intermediate.dense.weight"), heads, mlp,
                             shapes[bert + "embeddings.position_embeddings.weight"][0], dropout=0.0)
    projection = "rpn.loss_evaluator.shallow_contrastive_projection_image.weight"
    fusion = any("b_attn" in k for k in shapes)
    return ModelConfig(
        image, text, channels=shapes["rpn.head.bbox_pred.weight"][1], fusion=fusion,
        num_blocks=count("rpn.head.dyhead_tower.*.offset.weight"),
        fusion_dim=shapes["rpn.head.dyhead_tower.0.b_attn.attn.v_proj.weight"][0] if fusion else 2048,
        fusion_dropout=0.0, drop_block=0.0, text_mlp_dim=mlp, text_heads=heads,
        num_class_logits=shapes["rpn.head.cls_logits.weight"][0],
        mlm_head="rpn.head.mlm_head.decoder.weight" in shapes,
        contrastive_dim=shapes[projection][0] if projection in shapes else 0,
        prompt_tokens=shapes.get("rpn.tunable_linear.weight", (0,))[0])


@functools.lru_cache(maxsize=2)
def model_and_params(directory, name):
    """(GLIPv2 module, parameters) of a case, loaded through the project's own name map."""
    directory = Path(directory)
    meta = json.loads((directory / f"{name}.json").read_text())
    manifest = json.loads((directory / f"manifest_{meta['model']}.json").read_text())
    model = GLIPv2(infer_config(manifest, meta))
    expected = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    state = recipe(directory).make_all(manifest, meta["case_seed"])
    return model, parameters_from_reference(state, expected, model.config.fusion)


def inputs(directory, case):
    """(image uint8 RGB on the padded canvas, image_size, token_ids, token_mask), and a check of the recipe's pictures."""
    weights = recipe(directory)
    pictures = [weights.make_image(i["height"], i["width"], i["seed"]) for i in case.meta["images"]]
    padded = weights.pad_batch([weights.normalise(p) for p in pictures])
    image = np.zeros((len(pictures), *padded.shape[2:], 3), np.uint8)
    for canvas, picture in zip(image, pictures):
        canvas[:picture.shape[0], :picture.shape[1]] = picture[..., ::-1]
    size = np.array([p.shape[:2] for p in pictures], np.int32)
    fed = np.asarray(normalize_image(image, size)).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(fed, padded, atol=1e-6)
    return image, size, case.arrays["input_ids"].astype(np.int32), case.arrays["attention_mask"].astype(bool)


def _wanted(module, method):
    names = ("image_encoder", "fpn", "text_encoder", "norm1", "norm2", "norm3", "same_norm", "finer_norm",
             "coarser_norm", "offset", "stage0_block")
    parts = module.path
    if method != "__call__" or not parts or "_block" in parts[-2 if len(parts) > 1 else -1] and len(parts) > 2:
        return False
    return parts[-1].startswith(names) or len(parts) == 1


def forward(model, params, image, image_size, token_ids, token_mask):
    """Every tensor the fixtures may store, by their names: NCHW maps, [B, A_l, T] logits."""
    outputs, state = jax.jit(lambda p: model.apply(
        {"params": p}, image, image_size, token_ids, token_mask, capture_intermediates=_wanted,
        mutable=["intermediates"]))(params)
    seen = state["intermediates"]
    c = model.config

    def maps(prefix, levels, names=LEVELS):
        return {f"{prefix}.{name}": np.asarray(x).transpose(0, 3, 1, 2) for name, x in zip(names, levels)}
    swin = seen["image_encoder"]
    last = f"stage0_block{c.image_encoder.depths[0] - 1}"
    found = {f"swin.stage{i + 2}": np.asarray(swin[name]["__call__"][0]).transpose(0, 3, 1, 2)
             for i, name in enumerate((last, "norm1", "norm2", "norm3"))}
    levels = seen["fpn"]["__call__"][0]
    shapes = [x.shape for x in levels]
    ends = np.cumsum([s[1] * s[2] for s in shapes])[:-1]
    found |= maps("fpn", levels)
    hidden = np.asarray(seen["text_encoder"]["__call__"][0])
    embedded = hidden * token_mask[..., None]
    found |= {"bert.hidden": hidden, "bert.embedded": embedded, "bert.masks": token_mask,
              "bert.aggregate": embedded.sum(1) / token_mask.sum(1, keepdims=True)}
    for i in range(c.num_blocks):
        if c.fusion:
            regions, words = seen[f"fusion_{i}"]["__call__"][0]
            split = np.split(np.asarray(regions), ends, axis=1)
            found |= maps(f"head.{i}.fuse", [x.reshape(s) for x, s in zip(split, shapes)])
            found[f"head.{i}.fuse.lang"] = np.asarray(words)
            found[f"head.{i}.bertlayer.lang"] = np.asarray(seen[f"text_layer_{i}"]["__call__"][0])
        dyconv = seen[f"dyconv_{i}"]
        found |= maps(f"head.{i}.dyconv", dyconv["__call__"][0])
        if i == 0:
            found |= maps("head.0.dyconv.offset_mask", dyconv["offset"]["__call__"])
            found |= maps("head.0.dyconv.same", dyconv["same_norm"]["__call__"])
            found |= maps("head.0.dyconv.down", dyconv["finer_norm"]["__call__"], LEVELS[1:])
            found |= maps("head.0.dyconv.up", dyconv["coarser_norm"]["__call__"], LEVELS[:-1])
    for name, value in (("bbox_reg", outputs.box_deltas), ("centerness", outputs.centerness[..., None]),
                        ("cls_logits", outputs.class_logits)):
        split = np.split(np.asarray(value), ends, axis=1)
        found |= maps(f"out.{name}", [x.reshape(*s[:3], -1) for x, s in zip(split, shapes)])
    for name, value in zip(LEVELS, np.split(np.asarray(outputs.alignment_logits), ends, axis=1)):
        found[f"out.dot_product_logits.{name}"] = value
    return found, outputs


def stored_view(case, key, value):
    """Our tensor in the form that was stored: cut to the valid tokens, and sampled. (ours, theirs)."""
    base = key.removesuffix(".sample")
    valid = case.meta.get("valid_tokens")
    if valid:
        if "lang" in base or base in ("bert.hidden", "bert.embedded"):
            value = value[:, :valid]
        elif "dot_product_logits" in base:
            value = value[..., :valid]
    if key.endswith(".sample"):
        shape = tuple(case.meta["shapes"][base])
        assert value.shape == shape, f"{base}: shape {value.shape}, expected {shape}"
        value = value.reshape(-1)[::int(case.arrays[base + ".step"])]
    return value, case.arrays[key]
