"""Geometry of boxes: the only copy in the project.

Boxes are `xyxy` pixels. The reference counts pixels, not lengths: a box that starts and ends on the same
pixel is one pixel wide, so width = x2 − x1 + 1. That legacy convention is `PIXEL`, and every function that
uses it says so. GIoU is the one place where the reference measures plain lengths.

Source: GLIP `structures/boxlist_ops.py`, `structures/bounding_box.py`, `modeling/rpn/loss.py`, `modeling/poolers.py`.
"""
import jax.numpy as jnp
import numpy as np
from pycocotools import mask as coco_mask

# What the legacy convention adds to x2 − x1 to get a width.
PIXEL = 1.0


def sizes(boxes):
    """Width and height, legacy +1. boxes: [..., 4] xyxy. Returns: [..., 2] (w, h)."""
    return boxes[..., 2:] - boxes[..., :2] + PIXEL


def areas(boxes):
    """Areas in pixels, legacy +1. boxes: [..., 4] xyxy. Returns: [...]."""
    wh = sizes(boxes)
    return wh[..., 0] * wh[..., 1]


def centers(boxes):
    """Plain midpoints of the corners, no +1. boxes: [..., 4] xyxy. Returns: [..., 2] (x, y)."""
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def iou(boxes_a, boxes_b):
    """Intersection over union of pairs, legacy +1. Both [..., 4] xyxy, broadcast. Returns: [...]."""
    top_left = jnp.maximum(boxes_a[..., :2], boxes_b[..., :2])
    bottom_right = jnp.minimum(boxes_a[..., 2:], boxes_b[..., 2:])
    wh = jnp.maximum(bottom_right - top_left + PIXEL, 0)
    intersection = wh[..., 0] * wh[..., 1]
    return intersection / (areas(boxes_a) + areas(boxes_b) - intersection)


def iou_matrix(boxes_a, boxes_b):
    """IoU of every pair, legacy +1. boxes_a: [N, 4], boxes_b: [M, 4] xyxy. Returns: [N, M]."""
    return iou(boxes_a[:, None], boxes_b[None])


def best_of_places(boxes, scores, threshold=0.7):
    """The boxes that overlap no better one by more than `threshold` (IoU, legacy +1), whatever they are called. On the host.

    Args:
      boxes: [K, 4] xyxy. scores: [K].
    Returns: int [M], best first.
    """
    if not len(boxes):
        return np.zeros(0, int)
    xywh = np.concatenate([boxes[:, :2], sizes(boxes)], axis=1).astype(np.float64)
    keep, overlaps = [], coco_mask.iou(xywh, xywh, [0] * len(boxes))
    for k in np.argsort(-np.asarray(scores), kind="stable"):
        if not (overlaps[k, keep] > threshold).any():
            keep.append(k)
    return np.array(keep, int)


def giou(pred, target, eps=1e-7):
    """Generalised IoU of pairs, plain lengths (no +1).

    Args:
      pred: [..., 4] xyxy; corners in the wrong order give a box without extent.
      target: [..., 4] xyxy.
      eps: added to the union and to the enclosing area, square pixels.
    Returns: [...], at most 1.
    """
    pred = jnp.concatenate([pred[..., :2], jnp.maximum(pred[..., :2], pred[..., 2:])], axis=-1)
    wh_pred = pred[..., 2:] - pred[..., :2]
    wh_target = target[..., 2:] - target[..., :2]
    wh = jnp.minimum(pred[..., 2:], target[..., 2:]) - jnp.maximum(pred[..., :2], target[..., :2])
    intersection = jnp.where((wh > 0).all(-1), wh[..., 0] * wh[..., 1], 0)
    wh_hull = jnp.maximum(pred[..., 2:], target[..., 2:]) - jnp.minimum(pred[..., :2], target[..., :2])
    hull = wh_hull[..., 0] * wh_hull[..., 1] + eps
    union = wh_pred[..., 0] * wh_pred[..., 1] + wh_target[..., 0] * wh_target[..., 1] - intersection + eps
    return intersection / union - (hull - union) / hull


def clip(boxes, image_size):
    """Moves corners into the image: x to [0, W−1], y to [0, H−1].

    Args:
      boxes: [..., N, 4] xyxy.
      image_size: [..., 2] (height, width) in pixels.
    Returns: [..., N, 4].
    """
    height, width = image_size[..., None, 0], image_size[..., None, 1]
    limit = jnp.stack([width, height, width, height], axis=-1) - PIXEL
    return jnp.clip(boxes, 0, limit)


def pyramid_level(boxes, first, last):
    """Number of the pyramid level that a box is read from: a box of 224 × 224 pixels belongs to P4, legacy +1.

    Args:
      boxes: [..., 4] xyxy. first, last: lowest and highest level there are, strides 2^first … 2^last.
    Returns: [...] int32 in first … last.
    Source: FPN (arXiv 1612.03144), equation 1.
    """
    side = jnp.sqrt(jnp.maximum(areas(boxes), 0))
    level = jnp.floor(4 + jnp.log2(side / 224 + 1e-6))
    return jnp.clip(level, first, last).astype(jnp.int32)
