"""Differences are the largest one over the standard deviation of the expected tensor."""
import jax
import numpy as np

from glipv2_jax.detection import box_coder

LIMIT = 1e-5


def error(found, expected):
    return np.abs(np.asarray(found) - expected).max() / expected.std()


def test_reference_encode(load_reference):
    case = load_reference("box_coder.npz")
    assert error(box_coder.encode(case["gt"], case["anchors"]), case["encoded"]) < LIMIT


def test_reference_decode(load_reference):
    case = load_reference("box_coder.npz")
    assert error(box_coder.decode(case["deltas"], case["anchors"]), case["decoded"]) < LIMIT


def test_decode_undoes_encode():
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 300, (2, 50, 2, 2)).astype(np.float32)
    boxes, anchors = np.sort(corners, axis=2).reshape(2, 50, 4)
    assert error(box_coder.decode(box_coder.encode(boxes, anchors), anchors), boxes) < LIMIT


def test_size_limit_is_62_and_a_half_anchors_and_has_finite_gradient():
    anchor = np.array([0, 0, 15, 15], np.float32)
    deltas = np.array([0, 0, 1e6, -1e6], np.float32)
    x1, y1, x2, y2 = box_coder.decode(deltas, anchor)
    np.testing.assert_allclose(x2 - x1 + 1, 1000, rtol=1e-6)
    np.testing.assert_allclose(y2 - y1 + 1, 0, atol=1e-6)
    assert np.isfinite(jax.jacobian(box_coder.decode)(deltas, anchor)).all()
