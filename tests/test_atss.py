import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glipv2_jax.detection import anchors, atss

assign = jax.jit(atss.assign, static_argnums=1)


def grid(height, width):
    shapes = anchors.level_shapes(height, width)
    return anchors.anchors(shapes), anchors.level_sizes(shapes)


def pad(boxes, num_boxes):
    """Appends large boxes that would win everything if the mask were ignored."""
    filler = np.tile(np.array([[0, 0, 1e3, 1e3]], np.float32), (num_boxes - len(boxes), 1))
    return np.concatenate([boxes, filler]), np.arange(num_boxes) < len(boxes)


def tied(all_anchors, sizes, boxes):
    """Anchors at exactly the distance of a box's last candidate on a level, where more of them tie than fit.

    Which of them become candidates is undefined in the reference: it depends on the inside of a partial sort.
    """
    center = (all_anchors[:, :2] + all_anchors[:, 2:]) / 2
    tie = np.zeros(len(all_anchors), bool)
    for box in boxes:
        distance = np.sqrt(np.square(center - (box[:2] + box[2:]) / 2).sum(-1, dtype=np.float32))
        for start, end in itertools.pairwise(np.cumsum((0, *sizes))):
            order = np.sort(distance[start:end])
            if len(order) > 9 and order[8] == order[9]:
                tie[start:end] |= distance[start:end] == order[8]
    return tie


def check(matched, expected, tie, name):
    """Equality, except where the reference leaves the choice open."""
    np.testing.assert_array_equal(np.where(tie, -1, matched), np.where(tie, -1, expected), err_msg=name)
    assert tie.mean() < 0.05, f"{name}: {tie.sum()} of {len(tie)} anchors tie"


def test_reference_images(load_reference):
    arrays = load_reference("atss.npz")
    cases = sorted({key.split(".")[0] for key in arrays})
    assert cases
    for case in cases:
        shapes = tuple(map(tuple, arrays[f"{case}.feature_hw"].tolist()))
        boxes = arrays[f"{case}.gt_boxes"]
        sizes = anchors.level_sizes(shapes)
        all_anchors = anchors.anchors(shapes)
        matched = assign(all_anchors, sizes, *pad(boxes, len(boxes) + 3))
        check(matched, arrays[f"{case}.matched_gt"], tied(all_anchors, sizes, boxes), f"image {case}")


def test_reference_training_batch(load_reference):
    arrays = load_reference("tiny_train.npz")
    levels = sorted(key for key in arrays if re.fullmatch(r"anchors\.P\d+", key))
    all_anchors = np.concatenate([arrays[level] for level in levels])
    sizes = tuple(len(arrays[level]) for level in levels)
    images = sorted(key.split(".")[1] for key in arrays if re.fullmatch(r"assign\.\d+\.matched_gt", key))
    most = max(len(arrays[f"target.{i}.boxes"]) for i in images)
    boxes, masks = map(np.stack, zip(*(pad(arrays[f"target.{i}.boxes"], most) for i in images)))
    matched = jax.jit(jax.vmap(lambda b, m: atss.assign(all_anchors, sizes, b, m)))(boxes, masks)
    for i, found in zip(images, matched):
        tie = tied(all_anchors, sizes, arrays[f"target.{i}.boxes"])
        check(found, arrays[f"assign.{i}.matched_gt"], tie, f"image {i}")


def oracle(all_anchors, sizes, boxes):
    """The rule of the paper, box by box."""
    center = (all_anchors[:, :2] + all_anchors[:, 2:]) / 2
    matched, best = np.full(len(all_anchors), -1), np.zeros(len(all_anchors))
    starts = np.cumsum((0, *sizes))
    for g, box in enumerate(boxes):
        distance = np.linalg.norm(center - (box[:2] + box[2:]) / 2, axis=-1)
        candidates = np.concatenate([start + np.argsort(distance[start:end], kind="stable")[:9]
                                     for start, end in itertools.pairwise(starts)])
        wh = np.minimum(all_anchors[:, 2:], box[2:]) - np.maximum(all_anchors[:, :2], box[:2]) + 1
        common = wh.clip(0).prod(-1)
        areas = (all_anchors[:, 2:] - all_anchors[:, :2] + 1).prod(-1)
        overlap = common / (areas + (box[2:] - box[:2] + 1).prod() - common)
        threshold = overlap[candidates].mean() + overlap[candidates].std(ddof=1)
        for a in candidates:
            inside = min(*(center[a] - box[:2]), *(box[2:] - center[a])) > 0.01
            if overlap[a] >= threshold and inside and overlap[a] > best[a]:
                matched[a], best[a] = g, overlap[a]
    return matched


def test_random_boxes_follow_the_rule():
    rng = np.random.default_rng(1)
    all_anchors, sizes = grid(96, 128)
    corner = rng.uniform(0, 80, (2, 12, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(4, 60, (2, 12, 2))], -1).astype(np.float32)
    for image in boxes:
        matched = assign(all_anchors, sizes, image, np.ones(12, bool))
        np.testing.assert_array_equal(matched, oracle(all_anchors.astype(float), sizes, image.astype(float)))


def test_levels_with_few_cells_and_a_duplicate_box():
    all_anchors, sizes = grid(64, 32)  # levels of 32, 8, 2, 1, 1 cells
    boxes = np.array([[2, 2, 29, 40]] * 2, np.float32)
    matched = assign(all_anchors, sizes, boxes, np.ones(2, bool))
    assert (np.asarray(matched) == 0).any() and not (np.asarray(matched) == 1).any()


def test_without_boxes_every_anchor_is_negative():
    all_anchors, sizes = grid(64, 64)
    for boxes in (np.zeros((4, 4), np.float32), np.full((4, 4), 30, np.float32)):
        assert (np.asarray(assign(all_anchors, sizes, boxes, np.zeros(4, bool))) == -1).all()


def test_wrong_level_sizes_are_refused():
    with pytest.raises(ValueError, match="sum to 3, but there are 4 anchors"):
        atss.assign(jnp.zeros((4, 4)), (1, 2), jnp.zeros((1, 4)), jnp.ones(1, bool))
