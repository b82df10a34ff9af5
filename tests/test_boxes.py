import jax
import jax.numpy as jnp
import numpy as np

from glipv2_jax.detection import boxes

A = jnp.array([[0.0, 0.0, 9.0, 9.0], [5.0, 5.0, 14.0, 14.0], [20.0, 20.0, 20.0, 20.0]])


def test_one_pixel_box_has_size_one():
    np.testing.assert_array_equal(boxes.areas(A), [100, 100, 1])
    np.testing.assert_array_equal(boxes.sizes(A)[2], [1, 1])
    np.testing.assert_array_equal(boxes.centers(A)[0], [4.5, 4.5])


def test_iou_counts_pixels():
    # Pixels 5..9 in both directions are common: 25 of 175.
    expected = np.array([[1, 25 / 175, 0], [25 / 175, 1, 0], [0, 0, 1]])
    np.testing.assert_allclose(boxes.iou_matrix(A, A), expected, rtol=1e-6)


def test_giou_measures_lengths():
    # 9×9 boxes, 4×4 common, hull 14×14.
    union = 2 * 81 - 16
    np.testing.assert_allclose(boxes.giou(A[0], A[1]), 16 / union - (196 - union) / 196, rtol=1e-6)
    np.testing.assert_allclose(boxes.giou(A[:2], A[:2]), 1, rtol=1e-6)


def test_giou_of_boxes_without_extent_has_finite_gradient():
    reversed_box = jnp.array([9.0, 9.0, 0.0, 0.0])
    for pred, target in ((reversed_box, A[0]), (A[2], A[2]), (A[2], A[0])):
        value, gradient = jax.value_and_grad(boxes.giou)(pred, target)
        assert np.isfinite(value) and np.isfinite(gradient).all()


def test_clip_uses_the_last_pixel_of_each_image():
    image_size = jnp.array([[10, 20], [30, 5]])
    outside = jnp.broadcast_to(jnp.array([-3.0, -2.0, 99.0, 98.0]), (2, 4, 4))
    clipped = boxes.clip(outside, image_size)
    np.testing.assert_array_equal(clipped[0, 0], [0, 0, 19, 9])
    np.testing.assert_array_equal(clipped[1, 3], [0, 0, 4, 29])
