"""RoIAlign: what lies inside a box of a feature map, on a grid of fixed size; and of a pyramid, from the box's level.

The mean over a grid of bilinear samples is a product of a factor for rows and one for columns, so a box is two small
matrices, [P, H] and [P, W], and the pooled map is two matrix products. No gather, no scatter in the gradient, and the adaptive
grid, whose size differs from box to box, is exact with fixed shapes.

Source: Mask R-CNN (arXiv 1703.06870) as GLIP computes it: `csrc/cpu/ROIAlign_cpu.cpp`, `layers/roi_align.py`,
`modeling/poolers.py`.
"""
import jax
import jax.numpy as jnp

from glipv2_jax.detection.boxes import pyramid_level

# Adaptive samples lie more than half a cell apart, or alone in their bin. So at most five of a bin are within a cell of
# one row; two more, as the first of them is found by rounding.
_NEAR = 7
# Boxes of an image that are pooled together: bounds the memory of the first product, [boxes, P, H, C] for each image.
_CHUNK = 32


def sampling_matrix(start, length, size, bins, sampling_ratio):
    """How much each row of a map counts in each bin of an interval, along one axis.

    Args:
      start, length: [...] float32, cells of the map.
      size: H, rows of the map. bins: P.
      sampling_ratio: samples of a bin; 0: as many as cells, ⌈length / P⌉.
    Returns: [..., P, H] float32. A sample below −1 or above H counts nothing, and yet belongs to the number that is divided by;
      between −1 and 0, and beyond the last row, it counts as that row.
    """
    start, length = start[..., None, None, None], length[..., None, None, None]
    width = length / bins
    if sampling_ratio:
        count = jnp.float32(sampling_ratio)
    else:
        # XLA makes a product with 1 / P of the division, and 210 / 14 a little more than 15: the product decides.
        count = jnp.ceil(width)
        count -= (count - 1) * bins >= length
    step = width / jnp.maximum(count, 1)
    begin = start + jnp.arange(bins, dtype=jnp.float32)[:, None, None] * width                  # [..., P, 1, 1]
    rows = jnp.arange(size, dtype=jnp.float32)[:, None]                                         # [H, 1]
    if sampling_ratio:
        sample = jnp.arange(sampling_ratio, dtype=jnp.float32)
    else:
        # Only samples within a cell of a row count in it; which these are follows from the even spacing.
        first = jnp.where(count > 1, jnp.floor((rows - 1 - begin) / step - 0.5), 0)
        sample = jnp.maximum(first, 0) + jnp.arange(_NEAR, dtype=jnp.float32)                   # [..., P, H, samples]
    place = begin + (sample + 0.5) * width / jnp.maximum(count, 1)
    counts = (sample < count) & (place >= -1) & (place <= size)
    weight = jnp.maximum(1 - jnp.abs(jnp.clip(place, 0, size - 1) - rows), 0)
    return jnp.where(counts, weight, 0).sum(-1) / jnp.maximum(count[..., 0] if count.ndim else count, 1)


def _matrices(boxes, map_size, scale, output_size, sampling_ratio, aligned):
    """[..., P, H] and [..., P, W] of boxes [..., 4] on a map. Boxes have no gradient, as in the reference."""
    boxes = jax.lax.stop_gradient(boxes.astype(jnp.float32)) * scale
    start, end = boxes[..., :2], boxes[..., 2:]
    if aligned:
        start, end = start - 0.5, end - 0.5
    length = end - start if aligned else jnp.maximum(end - start, 1)
    return tuple(sampling_matrix(start[..., axis], length[..., axis], size, output_size, sampling_ratio)
                 for axis, size in ((1, map_size[0]), (0, map_size[1])))


def _pooled(x, rows, columns):
    """x [B, H, W, C], rows [B, K, P, H], columns [B, K, P, W] → [B, K, P, P, C] float32, some boxes at a time."""
    x, exact = x.astype(jnp.float32), jax.lax.Precision.HIGHEST

    def some(rows, columns):
        across = jnp.einsum("bhwc,bkqw->bkqhc", x, columns, precision=exact)
        return jnp.einsum("bkqhc,bkph->bkpqc", across, rows, precision=exact)
    if rows.shape[1] <= _CHUNK:
        return some(rows, columns)
    one_box = jax.tree.map(lambda matrix: jnp.moveaxis(matrix, 1, 0)[:, :, None], (rows, columns))
    return jnp.moveaxis(jax.lax.map(lambda matrices: some(*matrices)[:, 0], one_box, batch_size=_CHUNK), 0, 1)


def roi_align(x, boxes, scale, output_size, sampling_ratio=0, aligned=False):
    """Boxes of one feature map.

    Args:
      x: [B, H, W, C].
      boxes: [B, K, 4] xyxy pixels of the image.
      scale: cells of the map in a pixel, 1 / stride.
      output_size: P.
      sampling_ratio: samples of a bin along each axis; 0: adaptive, as many as the bin has cells.
      aligned: False: coordinates times scale, at least one cell wide and high. True: half a cell less, any size; a box
        whose corners are in the wrong order has no adaptive samples and gives 0.
    Returns: [B, K, P, P, C] float32.
    """
    return _pooled(x, *_matrices(boxes, x.shape[1:3], scale, output_size, sampling_ratio, aligned))


def pyramid_roi_align(levels, boxes, box_mask, strides, output_size, sampling_ratio=0):
    """Boxes of a pyramid, each from the map that suits its size (`boxes.pyramid_level`).

    Args:
      levels: list of [B, H, W, C], as many as strides or more; further ones are not read.
      boxes: [B, K, 4] xyxy pixels of the image. box_mask: [B, K] bool, False on padding.
      strides: pixels between cells of the maps, powers of two, each twice the one before.
      output_size, sampling_ratio: as in `roi_align`.
    Returns: [B, K, P, P, C] float32; 0 on padding.
    """
    first = strides[0].bit_length() - 1
    level = pyramid_level(boxes, first, first + len(strides) - 1)
    total = 0
    for place, (x, stride) in enumerate(zip(levels, strides)):
        rows, columns = _matrices(boxes, x.shape[1:3], 1 / stride, output_size, sampling_ratio, aligned=False)
        mine = box_mask & (level == first + place)
        total += _pooled(x, jnp.where(mine[..., None, None], rows, 0), columns)
    return total
