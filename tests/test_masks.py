"""Masks from boxes to images: what is pasted where, and that nothing is pasted before it is asked for."""
import numpy as np
import pytest

from glipv2_jax.detection import masks
from glipv2_jax.detection.masks import PastedMasks, paste


def test_a_full_mask_fills_its_box_and_nothing_beyond():
    found = paste(np.ones((28, 28)), [10, 20, 37, 47], (60, 80))
    # The rim of zeros is interpolated into the outermost pixels, which reach half: not above the threshold, or just.
    assert found[21:47, 11:37].all()
    found[20:48, 10:38] = False
    assert not found.any()


def test_the_left_half_of_a_mask_is_the_left_half_of_its_box():
    left = np.zeros((28, 28))
    left[:, :14] = 1
    found = paste(left, [0, 0, 99, 49], (50, 100))
    assert found[5:45, 2:48].all() and not found[:, 52:].any()


@pytest.mark.parametrize("box", [[-50, -50, -20, -20], [200, 5, 230, 9], [70, 50, 120, 90], [-5.5, -5.5, 4, 4], [3, 3, 3, 3]])
def test_boxes_at_and_beyond_the_edge_of_the_image(box):
    found = paste(np.ones((28, 28)), box, (60, 80))
    assert found.shape == (60, 80) and found.dtype == bool
    inside = np.zeros((60, 80), bool)
    x1, y1, x2, y2 = np.clip(np.round(box).astype(int) + [-1, -1, 2, 2], 0, None)
    inside[y1:y2, x1:x2] = True
    assert not (found & ~inside).any()


def test_masks_are_pasted_one_by_one_when_asked(monkeypatch):
    rng = np.random.default_rng(0)
    calls = []
    monkeypatch.setattr(masks, "paste", lambda *args: calls.append(1) or paste(*args))
    found = PastedMasks(rng.uniform(size=(5, 28, 28)), rng.uniform(0, 60, (5, 4)), (60, 80))
    assert found.shape == (5, 60, 80) and len(found) == 5 and not calls
    assert found[2].shape == (60, 80) and len(calls) == 1
    chosen = found[np.array([3, 1])]
    assert chosen.shape == (2, 60, 80) and len(calls) == 1
    np.testing.assert_array_equal(np.asarray(chosen), np.stack([found[3], found[1]]))
    np.testing.assert_array_equal(np.asarray(found[np.array([True, False, False, True, False])]), np.asarray(found)[[0, 3]])
    assert np.asarray(found[:0]).shape == (0, 60, 80)
