"""Anchor boxes: one square per cell of each pyramid level. Constants of a canvas, made with numpy.

Order everywhere: levels P3 to P7, row-major inside a level.
Source: GLIP `modeling/rpn/anchor_generator.py` (one scale, one ratio, visibility flag unused).
"""
import numpy as np

STRIDES = (8, 16, 32, 64, 128)     # pixels between cells, P3..P7
SIZES = (64, 128, 256, 512, 1024)  # side of a level's anchors, pixels, legacy +1


def level_shapes(height, width, num_levels=5):
    """Cells of each level on a canvas.

    The backbone pads to patches of 4 and then halves, rounding up, and so do the levels above it.

    Args:
      height, width: canvas in pixels.
      num_levels: L.
    Returns: tuple of L pairs (rows, columns).
    """
    shape = tuple(-(-side // 4) for side in (height, width))
    shapes = []
    for _ in range(num_levels):
        shape = tuple(-(-side // 2) for side in shape)
        shapes.append(shape)
    return tuple(shapes)


def level_sizes(shapes):
    """Anchors of each level: tuple of L ints, the static argument of assignment and post-processing."""
    return tuple(rows * columns for rows, columns in shapes)


def anchors(shapes, strides=STRIDES, sizes=SIZES):
    """Anchor boxes of all levels.

    Args:
      shapes: L pairs (rows, columns), as `level_shapes` gives.
      strides: pixels between cells, L numbers.
      sizes: side of a level's anchors in pixels, L numbers.
    Returns: [A, 4] float32 numpy, xyxy pixels of the canvas.
    Raises: ValueError if the three lists differ in length.
    """
    if not len(shapes) == len(strides) == len(sizes):
        raise ValueError(f"anchors: {len(shapes)} level shapes, {len(strides)} strides, {len(sizes)} sizes; "
                         "expected one of each per level")
    levels = []
    for (rows, columns), stride, size in zip(shapes, strides, sizes):
        y, x = np.meshgrid(np.arange(rows) * stride, np.arange(columns) * stride, indexing="ij")
        # A cell covers pixels 0..stride−1, so its centre lies half a pixel before stride / 2.
        center = np.stack([x, y], axis=-1).reshape(-1, 2) + (stride - 1) / 2
        half = (size - 1) / 2
        levels.append(np.concatenate([center - half, center + half], axis=-1))
    return np.concatenate(levels).astype(np.float32)
