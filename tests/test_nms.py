import functools

import jax
import numpy as np

from benchmarks.forward import CANDIDATES, PADDED, nms_candidates
from glipv2_jax.ops.nms import nms

jitted = jax.jit(nms, static_argnames=("max_keep", "block_size"))


def pad(boxes, scores, labels, size):
    """Appends candidates that would win and suppress everything if they were not masked."""
    extra = size - len(scores)
    return (np.concatenate([boxes, np.tile(np.array([[0, 0, 1e4, 1e4]], np.float32), (extra, 1))]),
            np.concatenate([scores, np.full(extra, 9, np.float32)]),
            np.concatenate([labels, np.ones(extra, labels.dtype)]), np.arange(size) < len(scores))


def test_reference_cases(load_reference):
    arrays = load_reference("ml_nms.npz")
    cases = sorted({key.split(".")[0] for key in arrays})
    assert cases
    size = max(len(arrays[f"{case}.scores"]) for case in cases) + 5
    for case in cases:
        candidates = pad(*(arrays[f"{case}.{key}"] for key in ("boxes", "scores", "labels")), size)
        kept = jitted(*candidates, float(arrays[f"{case}.threshold"]))
        np.testing.assert_array_equal(np.nonzero(kept)[0], np.sort(arrays[f"{case}.keep"]), err_msg=case)


def greedy(boxes, scores, labels, threshold):
    """One box after the other, in numpy."""
    area = (boxes[:, 2:] - boxes[:, :2] + 1).prod(-1)
    kept = np.zeros(len(scores), bool)
    for i in np.argsort(-scores, kind="stable"):
        wh = np.minimum(boxes[i, 2:], boxes[:, 2:]) - np.maximum(boxes[i, :2], boxes[:, :2]) + 1
        common = wh.clip(0).prod(-1)
        overlap = common / (area[i] + area - common)
        kept[i] = not (kept & (labels == labels[i]) & (overlap > np.float32(threshold))).any()
    return kept


def random_candidates(seed, count, num_labels, span):
    """Whole-pixel boxes with duplicates, scores of few values: many ties, and IoUs exactly at a threshold."""
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, span, (count, 2))
    boxes = np.concatenate([corner, corner + rng.integers(0, 20, (count, 2))], -1).astype(np.float32)
    boxes[rng.integers(0, count, count // 5)] = boxes[rng.integers(0, count, count // 5)]
    return boxes, (rng.integers(0, 40, count) / 40).astype(np.float32), rng.integers(0, num_labels, count)


def test_random_candidates_follow_the_greedy_rule():
    cases = ((0, 1, 30, 0.5), (1, 4, 60, 0.6), (2, 2, 10, 0.25), (3, 30, 20, 0.0))
    for seed, num_labels, span, threshold in cases:
        candidates = random_candidates(seed, 300, num_labels, span)
        kept = jitted(*candidates, np.ones(300, bool), threshold, block_size=64)
        np.testing.assert_array_equal(kept, greedy(*candidates, threshold), err_msg=f"seed {seed}")


def test_as_many_candidates_as_a_photograph_of_eighty_classes_has():
    """What benchmarks.forward times; what is padded would win and suppress everything if it counted."""
    boxes, scores, labels, valid = nms_candidates(0, CANDIDATES, PADDED, 80, (800, 1344))
    boxes[~valid], scores[~valid] = (0, 0, 1e4, 1e4), 9
    kept = np.asarray(jitted(boxes, scores, labels, valid, 0.6))
    expected = greedy(boxes[valid], scores[valid], labels[valid], 0.6)
    np.testing.assert_array_equal(kept[valid], expected)
    assert not kept[~valid].any() and 500 < expected.sum() < 3000 and len(set(labels[valid])) == 80


def test_a_chain_inside_a_block():
    # Each box overlaps the next only: greedy keeps every other one, which takes one repetition per box.
    x = np.arange(40, dtype=np.float32) * 5
    boxes = np.stack([x, 0 * x, x + 9, 0 * x + 9], -1)
    scores, labels = np.linspace(1, 0.1, 40, dtype=np.float32), np.zeros(40, int)
    kept = jitted(boxes, scores, labels, np.ones(40, bool), 0.2, block_size=64)
    np.testing.assert_array_equal(kept, np.arange(40) % 2 == 0)


def test_stopping_early_keeps_the_same_best_boxes():
    boxes, scores, labels = random_candidates(4, 300, 8, 80)
    full = np.asarray(jitted(boxes, scores, labels, np.ones(300, bool), 0.5, block_size=64))
    short = np.asarray(jitted(boxes, scores, labels, np.ones(300, bool), 0.5, max_keep=20, block_size=64))
    order = np.argsort(-scores, kind="stable")
    assert 20 <= short.sum() < full.sum()
    np.testing.assert_array_equal(order[full[order]][:20], order[short[order]][:20])


def test_batches_and_empty_batches():
    batch = [np.stack(x) for x in zip(*(random_candidates(seed, 100, 3, 40) for seed in (5, 6, 7)))]
    valid = np.array([[True], [True], [False]]) & np.ones((3, 100), bool)
    kept = jax.jit(jax.vmap(functools.partial(nms, threshold=0.5, block_size=64)))(*batch, valid)
    for i in (0, 1):
        np.testing.assert_array_equal(kept[i], greedy(*(x[i] for x in batch), 0.5))
    assert not np.asarray(kept[2]).any()
