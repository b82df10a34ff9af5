import re

import numpy as np
import pytest

from glipv2_jax.detection import anchors


def canvases(arrays):
    return sorted({key.split(".")[0] for key in arrays if re.match(r"\d+x\d+\.", key)})


def test_reference_grids(load_reference):
    arrays = load_reference("anchors.npz")
    assert canvases(arrays)
    for canvas in canvases(arrays):
        height, width = map(int, canvas.split("x"))
        levels = sorted(key.split(".")[1] for key in arrays if re.fullmatch(rf"{canvas}\.P\d+\.anchors", key))
        shapes = anchors.level_shapes(height, width, len(levels))
        assert shapes == tuple(tuple(arrays[f"{canvas}.{level}.feature_hw"]) for level in levels)
        expected = np.concatenate([arrays[f"{canvas}.{level}.anchors"] for level in levels])
        found = anchors.anchors(shapes)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected, err_msg=canvas)


def test_reference_base_boxes(load_reference):
    arrays = load_reference("anchors.npz")
    base = np.concatenate([arrays[key] for key in sorted(arrays) if key.startswith("cell.")])
    np.testing.assert_array_equal(anchors.anchors([(1, 1)] * len(base)), base)


def test_canvas_that_is_no_multiple_of_the_strides():
    assert anchors.level_shapes(190, 158) == ((24, 20), (12, 10), (6, 5), (3, 3), (2, 2))


def test_levels_of_anchors():
    shapes = anchors.level_shapes(64, 32)
    assert anchors.level_sizes(shapes) == (32, 8, 2, 1, 1)
    assert len(anchors.anchors(shapes)) == sum(anchors.level_sizes(shapes))


def test_lists_of_different_length_are_refused():
    with pytest.raises(ValueError, match="2 level shapes, 5 strides"):
        anchors.anchors([(1, 1), (1, 1)])
