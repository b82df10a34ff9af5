"""Losses, assignment and every stored gradient of the reference's training step.

The fixture's total holds the reference's own inter-image loss, whose five defects this project does not copy. So that
the gradients can be compared at all, that loss is written out here as the reference has it, and only here.
"""
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glipv2_jax.convert.names import NOT_WEIGHTS, parameter_of
from glipv2_jax.detection import atss
from glipv2_jax.detection.anchors import anchors, level_shapes, level_sizes
from glipv2_jax.losses import grounding, localization, mlm
from tests import reference_models
from tests.conftest import find_reference_dir

REFERENCE = find_reference_dir()
CASES = [name for name in reference_models.case_names(REFERENCE)
         if "losses" in json.loads((REFERENCE / f"{name}.json").read_text())]


def _padded(parts):
    """Stacks [n_i, …] arrays, zero-padded to the longest, and the mask of real rows."""
    longest = max(map(len, parts))
    rows = [np.pad(p, [(0, longest - len(p))] + [(0, 0)] * (p.ndim - 1)) for p in parts]
    return np.stack(rows), np.stack([np.arange(longest) < len(p) for p in parts])


def _reference_contrast(arrays, num_images, params, levels, words, token_mask, num_positive):
    """loss_shallow_contrastive with zero padding: fused text, anchors without those of box 0, bare class numbers."""
    def unit(x):
        return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
    flat = jnp.concatenate([x.reshape(num_images, -1, x.shape[-1]) for x in levels], axis=1)
    index, real = _padded([arrays[f"assign.{i}.contrastive_anchors"] for i in range(num_images)])
    region_class, _ = _padded([arrays[f"assign.{i}.contrastive_od_label"] for i in range(num_images)])
    own, _ = _padded([arrays[f"assign.{i}.contrastive_token_map"] for i in range(num_images)])
    token_class = np.stack([arrays[f"target.{i}.positive_map_for_od_labels"] for i in range(num_images)])

    head = params["contrastive"]
    regions = jnp.take_along_axis(flat, index[..., None], axis=1)
    regions = unit(regions @ head["image"]["kernel"] + head["image"]["bias"])
    tokens = unit(unit(words) @ head["text"]["kernel"] + head["text"]["bias"])
    count, length = index.shape[1], tokens.shape[1]
    logits = jnp.einsum("bke,cte->bkct", regions, tokens) / jnp.exp(head["log_scale"])
    logits = jnp.where(token_mask[None, None], logits, -1e6)
    logits = jnp.where(real[:, :, None, None], logits, -1e6).reshape(num_images * count, num_images * length)
    positive = (region_class[:, :, None, None] == token_class[None, None]) & real[:, :, None, None]
    for i in range(num_images):
        positive[i, :, i] = own[i] & real[i][:, None]
    positive = positive.reshape(logits.shape).astype(np.float32)
    total = 0.0
    for axis in (0, 1):
        target = positive / np.maximum(positive.sum(axis, keepdims=True), 1e-6)
        total -= (target * jax.nn.log_softmax(logits, axis)).sum() / 2
    return total / num_positive


def test_reference_directory_holds_a_training_case():
    assert CASES, f"{REFERENCE}: no training case to compare with"


@pytest.mark.parametrize("name", CASES)
def test_reference_losses_and_gradients(name):
    model, params = reference_models.model_and_params(str(REFERENCE), name)
    (case,) = reference_models.load_runs(REFERENCE, name)
    a = case.arrays
    image, size, token_ids, token_mask = reference_models.inputs(REFERENCE, case)
    num_images = len(image)
    boxes, box_mask = _padded([a[f"target.{i}.boxes"] for i in range(num_images)])
    ends = np.cumsum([len(a[f"target.{i}.boxes"]) for i in range(num_images)])[:-1]
    positive_map, _ = _padded(np.split(a["positive_map"] > 0, ends))
    shapes = level_shapes(*image.shape[1:3])
    anchor_boxes = anchors(shapes)
    matched = jax.vmap(lambda b, m: atss.assign(anchor_boxes, level_sizes(shapes), b, m))(boxes, box_mask)
    for i in range(num_images):
        np.testing.assert_array_equal(matched[i], a[f"assign.{i}.matched_gt"])

    labels = a["mlm_labels"]
    positions, valid = mlm.positions(jnp.asarray(labels >= 0), int((labels >= 0).sum(1).max()))
    targets = np.maximum(np.take_along_axis(labels, np.asarray(positions), 1), 0)
    last_layer = f"text_layer_{model.config.num_blocks - 1}"

    def losses(params):
        outputs, state = model.apply(
            {"params": params}, image, size, token_ids, token_mask, positions, mutable=["intermediates"],
            capture_intermediates=lambda module, method: module.path in ((last_layer,), ("fpn",)))
        seen = state["intermediates"]
        num_positive = (matched >= 0).sum()
        terms = {
            "loss_reg": localization.box_loss(outputs.box_deltas, matched, boxes, anchor_boxes),
            "loss_centerness": localization.centerness_loss(outputs.centerness, matched, boxes, anchor_boxes),
            "loss_dot_product_token": grounding.alignment_loss(outputs.alignment_logits, matched, positive_map, token_mask),
            "mlm_loss": mlm.mlm_loss(outputs.mlm_logits, targets, valid)}
        terms = {key: total / count for key, (total, count) in terms.items()}
        terms["loss_shallow_contrastive"] = _reference_contrast(
            a, num_images, params, seen["fpn"]["__call__"][0], seen[last_layer]["__call__"][0], token_mask, num_positive)
        return sum(terms.values()), terms

    (total, terms), grads = jax.jit(jax.value_and_grad(losses, has_aux=True))(params)
    for key, value in terms.items():
        np.testing.assert_allclose(value, a[f"loss.{key}"], rtol=1e-5, err_msg=key)
    np.testing.assert_allclose(total, a["total_loss"], rtol=1e-5)
    _check_gradients(case, model.config.fusion, grads)


def _check_gradients(case, fusion, grads):
    stored = {k.removeprefix("grad."): v for k, v in case.arrays.items() if k.startswith("grad.")}
    checked, failures = 0, []
    for key, about in case.meta["grads"].items():
        if NOT_WEIGHTS.search(key):
            continue
        path, kind, element = parameter_of(key, fusion)
        ours = grads
        for part in path.split("/"):
            ours = ours[part]
        ours = _reference_layout(np.asarray(ours), kind, element, about["shape"])
        theirs = stored.get(key)
        if theirs is None:
            ours, theirs = ours.reshape(-1)[::int(stored[f"{key}.step"])], stored[f"{key}.sample"]
        # The bias of attention keys cancels in the softmax: its true gradient is zero, and both sides hold rounding.
        floor = 1e-6 * max(g["absmax"] for g in case.meta["grads"].values())
        error = np.abs(ours - theirs).max()
        checked += 1
        if error > max(2e-4 * about["absmax"], floor):
            failures.append(f"{key}: {error:.1e}, largest entry {about['absmax']:.1e}")
    assert checked > 100 and not failures, "\n".join(failures)


def _reference_layout(array, kind, element, shape):
    if kind == "dense":
        array = array.T
    elif kind == "conv":
        array = array.reshape(3, 3, *array.shape[-2:]) if array.ndim == 3 else array
        array = array.transpose(3, 2, 0, 1)
    elif kind == "conv1x1":
        array = array.T[..., None, None]
    elif kind == "element":
        array = array[element]
    return array.reshape(shape)
