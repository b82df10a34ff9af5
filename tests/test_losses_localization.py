"""Values are compared relatively; tensors by ‖found − expected‖ / ‖expected‖."""
import re

import jax
import jax.numpy as jnp
import numpy as np

from glipv2_jax.detection import anchors as anchor_grid
from glipv2_jax.detection import box_coder, boxes
from glipv2_jax.losses import localization

LIMIT = 1e-5


def distance(found, expected):
    return np.linalg.norm(np.asarray(found) - expected) / np.linalg.norm(expected)


def assignments(arrays):
    """Yields (prefix, anchors [A, 4]) for every image of atss.npz."""
    for case in sorted({key.split(".")[0] for key in arrays}):
        yield f"{case}.", anchor_grid.anchors(tuple(map(tuple, arrays[f"{case}.feature_hw"].tolist())))


def test_reference_targets(load_reference):
    arrays = load_reference("atss.npz")
    for case, all_anchors in assignments(arrays):
        positive = arrays[case + "positive_anchors"]
        gt = arrays[case + "gt_boxes"][arrays[case + "matched_gt"][positive]]
        assert distance(box_coder.encode(gt, all_anchors[positive]), arrays[case + "reg_targets_pos"]) < LIMIT
        found = localization.centerness_targets(gt, all_anchors[positive])
        assert distance(found, arrays[case + "centerness_targets"]) < LIMIT


def test_reference_giou(load_reference):
    arrays = load_reference("atss.npz")
    for case, all_anchors in assignments(arrays):
        positive, pred = arrays[case + "positive_anchors"], arrays[case + "giou.pred"]
        target = box_coder.decode(arrays[case + "reg_targets_pos"], all_anchors[positive])
        per_box = 1 - boxes.giou(box_coder.decode(pred, all_anchors[positive]), target)
        assert distance(per_box, arrays[case + "giou.per_box"]) < LIMIT

        def total(box_deltas, case=case, all_anchors=all_anchors):
            total, count = localization.box_loss(box_deltas[None], arrays[case + "matched_gt"][None],
                                                 arrays[case + "gt_boxes"][None], all_anchors)
            return total, count
        # Anchors that are not matched get a prediction that must not matter.
        box_deltas = np.full((len(all_anchors), 4), 1e9, np.float32)
        box_deltas[positive] = pred
        (value, count), gradient = jax.value_and_grad(total, has_aux=True)(box_deltas)
        np.testing.assert_allclose(value / 2, arrays[case + "giou.weighted_sum"], rtol=LIMIT)
        np.testing.assert_allclose(count, arrays[case + "centerness_targets"].sum(), rtol=LIMIT)
        assert distance(gradient[positive] / 2, arrays[case + "giou.grad_pred"]) < LIMIT
        assert not np.delete(gradient, positive, axis=0).any()


def test_reference_centerness(load_reference):
    arrays = load_reference("focal.npz")
    logits, wanted = arrays["centerness.logits"], arrays["centerness.targets"]
    # A box whose distances to the anchor's centre are 1 above and below and right, c² left, has centerness c.
    all_anchors = np.zeros((len(wanted), 4), np.float32)
    gt = np.stack([-(wanted ** 2), -np.ones_like(wanted), np.ones_like(wanted), np.ones_like(wanted)], -1)
    matched = np.arange(len(wanted))
    total, count = localization.centerness_loss(logits[None], matched[None], gt[None].astype(np.float32), all_anchors)
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
    total, count = localization.box_loss(flat("bbox_reg"), matched, gt, all_anchors)
    np.testing.assert_allclose(total / count, arrays["loss.loss_reg"], rtol=LIMIT)
    total, count = localization.centerness_loss(flat("centerness")[..., 0], matched, gt, all_anchors)
    np.testing.assert_allclose(total / count, arrays["loss.loss_centerness"], rtol=LIMIT)


def test_perfect_boxes_cost_nothing():
    all_anchors = np.array([[0, 0, 15, 15], [8, 8, 31, 23]], np.float32)
    gt, matched = np.array([[[2, 3, 20, 17]]], np.float32), np.zeros((1, 2), int)
    box_deltas = box_coder.encode(gt, all_anchors)
    total, _ = localization.box_loss(box_deltas, matched, gt, all_anchors)
    np.testing.assert_allclose(total, 0, atol=1e-5)


def test_without_matches_losses_are_zero_with_zero_gradients():
    all_anchors = jnp.array([[0.0, 0.0, 15.0, 15.0]])
    nothing = (jnp.full((2, 1), -1), jnp.zeros((2, 3, 4)), all_anchors)
    for loss, prediction in ((localization.box_loss, jnp.full((2, 1, 4), 1e9)),
                             (localization.centerness_loss, jnp.full((2, 1), jnp.inf))):
        (total, count), gradient = jax.value_and_grad(loss, has_aux=True)(prediction, *nothing)
        assert total == 0 and count == 1 and not np.asarray(gradient).any()
