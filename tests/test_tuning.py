"""Modes of fine-tuning against the reference: what trains, the tuned prompt's outputs, losses and gradients."""
import functools
import json

import jax
import numpy as np
import pytest

from glipv2_jax.convert.names import NOT_WEIGHTS, parameter_of, parameters_from_reference
from glipv2_jax.models.config import model_config
from glipv2_jax.models.glipv2 import PARTS, GLIPv2, init_params
from glipv2_jax.optim import frozen
from glipv2_jax.train_step import Objective, compute_losses
from glipv2_jax.tuning import MODES, freeze_patterns, mode_of, tuned_model
from tests import reference_models
from tests.conftest import find_reference_dir
from tests.test_models import TINY
from tests.test_reference_models import MARGIN, compare_detections
from tests.test_reference_train import _padded, _reference_layout

REFERENCE = find_reference_dir()
# The reference's mode → ours. Its v3 trains what v1 does, its v4 what v2 does.
OURS = {"full": "full", "linear_prob": "linear", "language_prompt_v1": "text", "language_prompt_v2": "prompt",
        "language_prompt_v3": "text", "language_prompt_v4": "prompt"}
PART_OF = {"language_backbone": "text_encoder", "backbone.body": "image_encoder", "backbone.fpn": "fpn", "rpn.head": "head"}
PROMPT = "rpn.tunable_linear.weight"


def _meta():
    path = REFERENCE / "prompt_tuning.json"
    if not path.exists():
        pytest.skip(f"{REFERENCE} holds no prompt_tuning.json")
    return json.loads(path.read_text())


def _manifest(meta, fusion=True):
    if fusion:
        return json.loads((REFERENCE / f"manifest_{meta['model']}.json").read_text()) | meta["extra_manifest_entries"]
    return meta["no_fusion"]["manifest"]


@functools.cache
def _model_and_params(fusion=True):
    meta = _meta()
    manifest = _manifest(meta, fusion)
    model = GLIPv2(reference_models.infer_config(manifest, meta))
    state = reference_models.recipe(REFERENCE).make_all(manifest, meta["case_seed"])
    expected = jax.eval_shape(functools.partial(init_params, model), jax.random.key(0))
    return model, parameters_from_reference(state, expected, fusion)


def _case(load_reference):
    return reference_models.Case("prompt_tuning", "", _meta(), _meta(), load_reference("prompt_tuning.npz"))


def test_reference_modes_train_the_same_keys():
    meta = _meta()
    shapes = {key.removeprefix("module."): about["shape"] for key, about in _manifest(meta).items() if about["weight"]}
    config = reference_models.infer_config(_manifest(meta), meta)
    for name, about in meta["modes"].items():
        mode = OURS[name]
        # Without the prompt the matrix is not there.
        keys = {key for key in shapes if not NOT_WEIGHTS.search(key) and (mode == "prompt" or key != PROMPT)}
        patterns = freeze_patterns(config, mode)
        trained = {key for key in keys if not frozen(parameter_of(key)[0], patterns)}
        expected = set(about["trainable"]) if "trainable" in about else keys - set(about["not_trainable"])
        assert trained == expected, name
        assert len(trained) == about["trainable_count"], name
        assert sum(int(np.prod(shapes[key])) for key in trained) == about["trainable_numbers"], name
        moving = about["module_in_train_mode"]
        assert {PART_OF[part] for part in PART_OF if not moving[part]} == set(MODES[mode].still), name


@pytest.mark.parametrize("fusion", [True, False])
def test_reference_prompt_outputs(load_reference, fusion):
    meta, case = _meta(), _case(load_reference)
    model, params = _model_and_params(fusion)
    start = "" if fusion else "no_fusion."
    without = params | {"prompt": np.zeros_like(params["prompt"])}
    inputs = reference_models.inputs(REFERENCE, case)
    found = {}
    for run, values in (("prompt.", params), ("no_prompt.", without)):
        tensors, outputs = reference_models.forward(model, values, *inputs)
        words = jax.jit(functools.partial(model.apply, method="encode_text"))({"params": values}, *inputs[2:])
        # What the reference adds to the other of its two text features is not read by the model.
        tensors["head_in.hidden" if fusion else "head_in.embedding_arg"] = np.asarray(words)
        found |= {start + run + key: value for key, value in tensors.items()}
        if fusion:
            _check_detections(case, run, outputs, inputs)
    found["no_fusion.head_in.embedding_arg"] = found.get("no_fusion.prompt.head_in.embedding_arg")
    wrong, checked = [], 0
    for key, theirs in case.arrays.items():
        if key.startswith("no_fusion.") == fusion or found.get(key) is None:
            continue
        ours = found[key][..., :theirs.shape[-1]] if "dot_product_logits" in key else found[key]
        base = key.removeprefix("no_fusion.").removeprefix("prompt.").removeprefix("no_prompt.")
        noise = meta["noise_fp32_vs_fp64"].get(base, {"max_abs_over_std": meta["no_fusion"]["noise_max_abs_over_std"], "max_abs": 0})
        bound = MARGIN * max(noise["max_abs"], noise["max_abs_over_std"] * theirs.std())
        checked += 1
        if np.abs(ours - theirs).max() > bound:
            wrong.append(f"{key}: {np.abs(ours - theirs).max():.1e}, bound {bound:.1e}")
    assert checked >= (34 if fusion else 21) and not wrong, "\n".join(wrong)


def _check_detections(case, run, outputs, inputs):
    from glipv2_jax.detection.anchors import anchors, level_shapes, level_sizes
    from glipv2_jax.detection.postprocess import postprocess
    labels = {int(k): v for k, v in case.meta["positive_map"].items()}
    token_to_label = np.zeros((max(labels), outputs.alignment_logits.shape[-1]), bool)
    for label, tokens in labels.items():
        token_to_label[label - 1, tokens] = True
    shapes = level_shapes(*inputs[0].shape[1:3])
    found = jax.device_get(jax.jit(postprocess, static_argnames=("level_sizes",))(
        outputs.alignment_logits, outputs.box_deltas, outputs.centerness, anchors(shapes), level_sizes=level_sizes(shapes),
        token_to_label=token_to_label, image_size=inputs[1]))
    for i in range(len(inputs[1])):
        keep = found["mask"][i]
        # The tolerances of the forward cases: no noise of detections was measured here.
        compare_detections((found["boxes"][i][keep], found["scores"][i][keep], found["labels"][i][keep] + 1),
                           tuple(case.arrays[f"{run}det.{i}.{part}"] for part in ("boxes", "scores", "labels")),
                           score_tolerance=5e-5, box_tolerance=5e-3)


def test_reference_losses_and_gradients_of_each_mode(load_reference):
    meta, case = _meta(), _case(load_reference)
    model, params = _model_and_params()
    a = {key.removeprefix("train."): value for key, value in case.arrays.items() if key.startswith("train.")}
    image, size = reference_models.inputs(REFERENCE, case)[:2]
    boxes, box_mask = _padded([a[f"target.{i}.boxes"] for i in range(len(image))])
    ends = np.cumsum([len(a[f"target.{i}.boxes"]) for i in range(len(image))])[:-1]
    batch = {"image": image, "image_size": size, "token_ids": a["input_ids"].astype(np.int32),
             "token_mask": a["attention_mask"] > 0, "boxes": boxes, "box_mask": box_mask,
             "positive_map": _padded(np.split(a["positive_map"] > 0, ends))[0]}
    modes = [name for name, about in meta["train"].items() if isinstance(about, dict) and "losses" in about]
    assert modes
    for name in modes:
        mode, about = OURS[name], meta["train"][name]
        # linear_prob is a model without the prompt.
        start = params if mode == "prompt" else params | {"prompt": np.zeros_like(params["prompt"])}
        objective = Objective(0, 1, mlm_rate=0.0, contrastive_regions=0, freeze=freeze_patterns(model.config, mode))
        still = GLIPv2(model.config, still=mode_of(mode).still)
        (_, metrics), grads = jax.jit(jax.value_and_grad(functools.partial(compute_losses, still, objective), has_aux=True))(
            start, batch, jax.random.key(0))
        for ours, theirs in (("box", "reg"), ("centerness", "centerness"), ("alignment", "dot_product_token")):
            np.testing.assert_allclose(metrics[f"loss_{ours}"], about["losses"][f"loss_{theirs}"], rtol=1e-5, err_msg=name)
        stored = {key.split(".grad.")[1]: value for key, value in a.items() if key.startswith(f"{name}.grad.")}
        assert set(stored) == set(about["grad_norm"])
        moved = {"/".join(k.key for k in path) for path, g in jax.tree_util.tree_leaves_with_path(grads) if np.any(g)}
        assert moved == {parameter_of(key)[0] for key in stored}, name
        for key, theirs in stored.items():
            path, kind, element = parameter_of(key)
            ours = functools.reduce(lambda tree, part: tree[part], path.split("/"), grads)
            ours = np.asarray(ours)
            if key == PROMPT:
                assert not ours[len(theirs):].any()
                ours = ours[:len(theirs)]
            ours = _reference_layout(ours, kind, element, theirs.shape)
            bound = MARGIN * max(about["grad_noise_over_absmax"][key], 2e-7) * np.abs(theirs).max()
            assert np.abs(ours - theirs).max() <= bound, (name, key, np.abs(ours - theirs).max(), bound)


def test_a_fresh_prompt_changes_nothing_and_a_longer_text_is_refused():
    plain = model_config("glipv2_t", TINY)
    tuned = tuned_model(plain, "prompt", 12)
    assert tuned.prompt_tokens == 12 and tuned_model(plain, "linear", 16) is plain and tuned_model(tuned, "prompt", 8) is tuned
    params = jax.jit(functools.partial(init_params, GLIPv2(tuned)))(jax.random.key(0))
    assert params["prompt"].shape == (12, tuned.text_encoder.width) and not params["prompt"].any()
    ids, mask = np.arange(12, dtype=np.int32)[None], np.ones((1, 12), bool)

    def words(config, params, ids, mask):
        return GLIPv2(config).apply({"params": params}, ids, mask, method="encode_text")
    np.testing.assert_array_equal(words(tuned, params, ids, mask),
                                  words(plain, {k: v for k, v in params.items() if k != "prompt"}, ids, mask))
    with pytest.raises(ValueError, match="text of 13 tokens, but the tuned prompt has 12 rows"):
        words(tuned, params, np.zeros((1, 13), np.int32), np.ones((1, 13), bool))


def test_still_parts_have_no_dropout():
    """With every part still a training pass is the evaluation pass; with one moving it is not."""
    overrides = TINY | {"drop_block": 1.0, "text_encoder": TINY["text_encoder"] | {"dropout": 0.5}}
    config = model_config("glipv2_t", overrides)
    params = jax.jit(functools.partial(init_params, GLIPv2(config)))(jax.random.key(0))
    inputs = (np.full((1, 64, 64, 3), 9, np.uint8), np.full((1, 2), 64), np.arange(8, dtype=np.int32)[None], np.ones((1, 8), bool))

    def run(still, train):
        return jax.jit(lambda params: GLIPv2(config, still=still).apply(
            {"params": params}, *inputs, None, train, rngs={"dropout": jax.random.key(1)}))(params)
    without = run((), False)
    for a, b in zip(jax.tree.leaves(run(PARTS, True)), jax.tree.leaves(without)):
        np.testing.assert_array_equal(a, b)
    for part in ("fpn", "text_encoder", "head"):
        still = tuple(other for other in PARTS if other != part)
        assert np.any(run(still, True).alignment_logits != without.alignment_logits), part


def test_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="train.tune: found 'lora', expected one of full, linear, prompt, text"):
        mode_of("lora")
