"""Values are compared relatively; tensors by ‖found − expected‖ / ‖expected‖."""
import re

import jax
import jax.numpy as jnp
import numpy as np

from glipv2_jax.detection import anchors as anchor_grid
from glipv2_jax.detection import box_coder, boxes
from glipv2_jax.losses import localization

LIMIT = 1e-5
box_loss = jax.jit(localization.box_loss)
centerness_loss = jax.jit(localization.centerness_loss)


def distance(found, expected):
    return np.linalg.norm(np.asarray(found) - expected) / np.linalg.norm(expected)


def positives(arrays):
    """Matched anchors of all images of atss.npz: image names; per anchor image number, itself, its box."""
    cases = sorted({key.split(".")[0] for key in arrays})
    image, matched_anchors, gt = [], [], []
    for number, case in enumerate(cases):
        index = arrays[f"{case}.positive_anchors"]
        image += [number] * len(index)
        matched_anchors.append(anchor_grid.anchors(arrays[f"{case}.feature_hw"].tolist())[index])
        gt.append(arrays[f"{case}.gt_boxes"][arrays[f"{case}.matched_gt"][index]])
    return cases, np.array(image), np.concatenate(matched_anchors), np.concatenate(gt)


def test_reference_targets(load_reference):
    arrays = load_reference("atss.npz")
    cases, image, anchors, gt = positives(arrays)
    encoded = jax.jit(box_coder.encode)(gt, anchors)
    centerness = jax.jit(localization.centerness_targets)(gt, anchors)
    for number, case in enumerate(cases):
        assert distance(encoded[image == number], arrays[f"{case}.reg_targets_pos"]) < LIMIT
        assert distance(centerness[image == number], arrays[f"{case}.centerness_targets"]) < LIMIT


def test_reference_giou(load_reference):
    arrays = load_reference("atss.npz")
    cases, image, anchors, gt = positives(arrays)

    @jax.jit
    def per_box(pred, target):
        return 1 - boxes.giou(box_coder.decode(pred, anchors), box_coder.decode(target, anchors))
    pred = np.concatenate([arrays[f"{case}.giou.pred"] for case in cases])
    losses = per_box(pred, np.concatenate([arrays[f"{case}.reg_targets_pos"] for case in cases]))

    value_and_gradient = jax.jit(jax.value_and_grad(localization.box_loss, has_aux=True))
    for number, case in enumerate(cases):
        mine = image == number
        assert distance(losses[mine], arrays[f"{case}.giou.per_box"]) < LIMIT
        # Anchors that are not matched get a prediction that must not matter.
        box_deltas, matched = np.where(mine[:, None], pred, 1e9), np.where(mine, np.arange(len(mine)), -1)
        (total, count), gradient = value_and_gradient(
            box_deltas[None].astype(np.float32), matched[None], gt[None], anchors)
        np.testing.assert_allclose(total / 2, arrays[f"{case}.giou.weighted_sum"], rtol=LIMIT)
        np.testing.assert_allclose(count, arrays[f"{case}.centerness_targets"].sum(), rtol=LIMIT)
        assert distance(gradient[0, mine] / 2, arrays[f"{case}.giou.grad_pred"]) < LIMIT
        assert not np.asarray(gradient)[0, ~mine].any()


def test_reference_centerness(load_reference):
    arrays = load_reference("focal.npz")
    logits, wanted = arrays["centerness.logits"], arrays["centerness.targets"]
    # A box whose distances to the anchor's centre are 1 above and below and right, c² left, has centerness c.
    all_anchors = np.zeros((len(wanted), 4), np.float32)
    gt = np.stack([-(wanted ** 2), -np.ones_like(wanted), np.ones_like(wanted), np.ones_like(wanted)], -1)
    matched = np.arange(len(wanted))
    total, count = centerness_loss(logits[None], matched[None], gt[None].astype(np.float32), all_anchors)
    np.testing.assert_allclose(total, arrays["centerness.loss_sum"], rtol=LIMIT)
    assert count == len(wanted)


def test_reference_training_losses(load_reference):
    arrays = load_reference("tiny_train.npz")
    levels = sorted(key.split(".")[1] for key in arrays if re.fullmatch(r"anchors\.P\d+", key))
    all_anchors = np.concatenate([arrays[f"anchors.{level}"] for level in levels])

    def flat(name):  # [B, C, H, W] of every level to [B, A, C]
        maps = [arrays[f"out.{name}.{level}"] for level in levels]
        return np.concatenate([m.reshape(*m.shape[:2], -1).transpose(0, 2, 1) for m in maps], axis=1)
    images = range(len(flat("centerness")))
    matched = np.stack([arrays[f"assign.{i}.matched_gt"] for i in images])
    most = max(len(arrays[f"target.{i}.boxes"]) for i in images)
    gt = np.stack([np.resize(arrays[f"target.{i}.boxes"], (most, 4)) for i in images])
    total, count = box_loss(flat("bbox_reg"), matched, gt, all_anchors)
    np.testing.assert_allclose(total / count, arrays["loss.loss_reg"], rtol=LIMIT)
    total, count = centerness_loss(flat("centerness")[..., 0], matched, gt, all_anchors)
    np.testing.assert_allclose(total / count, arrays["loss.loss_centerness"], rtol=LIMIT)


def test_perfect_boxes_cost_nothing():
    all_anchors = np.array([[0, 0, 15, 15], [8, 8, 31, 23]], np.float32)
    gt, matched = np.array([[[2, 3, 20, 17]]], np.float32), np.zeros((1, 2), int)
    box_deltas = jax.jit(box_coder.encode)(gt, all_anchors)
    total, _ = box_loss(box_deltas, matched, gt, all_anchors)
    np.testing.assert_allclose(total, 0, atol=1e-5)


def test_without_matches_losses_are_zero_with_zero_gradients():
    all_anchors = jnp.array([[0.0, 0.0, 15.0, 15.0]])
    nothing = (jnp.full((2, 1), -1), jnp.zeros((2, 3, 4)), all_anchors)
    for loss, prediction in ((box_loss, jnp.full((2, 1, 4), 1e9)),
                             (centerness_loss, jnp.full((2, 1), jnp.inf))):
        (total, count), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(prediction, *nothing)
        assert total == 0 and count == 1 and not np.asarray(gradient).any()
