"""RoIAlign and the pooler of a pyramid: the reference's numbers, and a plain loop over samples."""
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glipv2_jax.detection.boxes import areas, pyramid_level
from glipv2_jax.ops.roi_align import pyramid_roi_align, roi_align

# Ten times the largest noise that the reference's json states: 6e-6 of outputs, 2.5e-5 of gradients.
ATOL, GRADIENT_ATOL = 6e-5, 2.5e-4


@pytest.fixture(scope="module")
def case(load_reference):
    return load_reference("roi_align.npz")


def by_image(rois, batch_size):
    """Rows (image, x1, y1, x2, y2) → boxes [B, K, 4] padded, mask [B, K], and where each row went."""
    image = rois[:, 0].astype(int)
    place = np.array([(image[:i] == image[i]).sum() for i in range(len(image))])
    boxes, mask = np.zeros((batch_size, place.max() + 2, 4), np.float32), np.zeros((batch_size, place.max() + 2), bool)
    boxes[image, place], mask[image, place] = rois[:, 1:], True
    return boxes, mask, (image, place)


def value_and_vjp(function, x, cotangent):
    """As a compiled program, which is what training and prediction run: XLA rounds some divisions otherwise."""
    def both(x):
        value, back = jax.vjp(function, x)
        return value, back(cotangent)[0]
    return jax.jit(both)(x)


def test_every_stored_case_equals_the_reference(case):
    names = [re.fullmatch(r"(scale\d+)\.(out(\d+))\.sr(\d+)\.(legacy|aligned)\.out", key) for key in case]
    names = [name for name in names if name]
    assert len(names) >= 2 and {name[5] for name in names} == {"legacy", "aligned"} and {"0"} <= {name[4] for name in names}
    for name in names:
        scale, size, sampling, key = float(case[f"{name[1]}.scale"]), int(name[3]), int(name[4]), name[0].removesuffix(".out")
        x = case[f"{name[1]}.x"].transpose(0, 2, 3, 1)
        boxes, _, where = by_image(case[f"{name[1]}.rois"], len(x))
        cotangent = np.zeros((*boxes.shape[:2], size, size, x.shape[-1]), np.float32)
        cotangent[where] = case[f"{name[1]}.{name[2]}.cotangent"].transpose(0, 2, 3, 1)
        found, gradient = value_and_vjp(functools.partial(roi_align, boxes=boxes, scale=scale, output_size=size,
                                                          sampling_ratio=sampling, aligned=name[5] == "aligned"), x, cotangent)
        np.testing.assert_allclose(np.asarray(found)[where].transpose(0, 3, 1, 2), case[f"{key}.out"], atol=ATOL, err_msg=key)
        np.testing.assert_allclose(gradient.transpose(0, 3, 1, 2), case[f"{key}.grad_x"], atol=GRADIENT_ATOL, err_msg=key)


def test_levels_equal_the_reference(case):
    boxes = case["levels.boxes"]
    np.testing.assert_allclose(areas(boxes), case["levels.area"], rtol=1e-6)
    ranges = [re.fullmatch(r"levels\.k(\d)_(\d)", key) for key in case]
    for name in filter(None, ranges):
        first, last = int(name[1]), int(name[2])
        np.testing.assert_array_equal(pyramid_level(boxes, first, last) - first, case[name[0]], err_msg=name[0])


def test_poolers_equal_the_reference(case):
    pools = sorted({key.split(".")[0] for key in case if key.startswith("pool")})
    assert pools
    for pool in pools:
        strides = [round(1 / scale) for scale in case[f"{pool}.scales"]]
        levels = [case[f"{pool}.x{i}"].transpose(0, 2, 3, 1) for i in range(sum(key.startswith(f"{pool}.x") for key in case))]
        rois = np.concatenate([np.insert(case[f"{pool}.boxes{i}"], 0, i, axis=1) for i in range(2)])
        boxes, mask, where = by_image(rois, 2)
        size = case[f"{pool}.out"].shape[-1]
        cotangent = np.ones((*mask.shape, size, size, levels[0].shape[-1]), np.float32)     # padding must have no gradient
        cotangent[where] = case[f"{pool}.cotangent"].transpose(0, 2, 3, 1)
        found, gradients = value_and_vjp(lambda levels: pyramid_roi_align(
            levels, boxes, mask, strides, size, int(case.get(f"{pool}.sampling_ratio", 0))), levels, cotangent)
        np.testing.assert_allclose(np.asarray(found)[where].transpose(0, 3, 1, 2), case[f"{pool}.out"], atol=ATOL)
        assert not np.asarray(found)[~mask].any()
        for i, gradient in enumerate(gradients):
            np.testing.assert_allclose(gradient.transpose(0, 3, 1, 2), case[f"{pool}.grad_x{i}"], atol=GRADIENT_ATOL)


def one_bin_at_a_time(x, box, bins, sampling_ratio):
    """The definition, for one image and box in cells of the map."""
    height, width, channels = x.shape
    (x1, y1), size = box[:2], np.maximum(box[2:] - box[:2], 1)
    bin_w, bin_h = size / bins
    count_x, count_y = (sampling_ratio or int(np.ceil(side)) for side in (bin_w, bin_h))
    out = np.zeros((bins, bins, channels))
    for row, column, j, i in np.ndindex(bins, bins, count_y, count_x):
        v, u = y1 + row * bin_h + (j + 0.5) * bin_h / count_y, x1 + column * bin_w + (i + 0.5) * bin_w / count_x
        if -1 <= v <= height and -1 <= u <= width:
            v, u = min(max(v, 0), height - 1), min(max(u, 0), width - 1)
            top, left = int(v), int(u)
            low, right = min(top + 1, height - 1), min(left + 1, width - 1)
            out[row, column] += ((top + 1 - v) * ((left + 1 - u) * x[top, left] + (u - left) * x[top, right])
                                 + (v - top) * ((left + 1 - u) * x[low, left] + (u - left) * x[low, right]))
    return out / (count_x * count_y)


@pytest.mark.parametrize("sampling_ratio", [0, 3])
def test_boxes_of_any_size_equal_the_definition(sampling_ratio):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 9, 13, 2)).astype(np.float32)
    corner, size = rng.uniform(-6, 12, (40, 2)), np.exp(rng.uniform(-1, 5, (40, 2)))
    boxes = np.concatenate([corner, corner + size], 1).astype(np.float32)
    found = jax.jit(lambda x: roi_align(x, boxes[None], 1.0, 3, sampling_ratio))(x)
    wanted = [one_bin_at_a_time(x[0], box.astype(np.float64), 3, sampling_ratio) for box in boxes]
    np.testing.assert_allclose(found[0], wanted, atol=1e-4)


def test_no_boxes_and_only_padding_give_nothing_and_no_gradient():
    levels = [jnp.ones((2, 8, 8, 4)), jnp.ones((2, 4, 4, 4))]
    assert pyramid_roi_align(levels, jnp.zeros((2, 0, 4)), jnp.zeros((2, 0), bool), (8, 16), 7).shape == (2, 0, 7, 7, 4)
    value, gradient = jax.jit(jax.value_and_grad(lambda levels: pyramid_roi_align(
        levels, jnp.zeros((2, 3, 4)), jnp.zeros((2, 3), bool), (8, 16), 7).sum()))(levels)
    assert value == 0 and not any(np.any(g) for g in gradient)
