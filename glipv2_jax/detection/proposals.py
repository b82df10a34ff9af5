"""Boxes in which masks are learned: the true ones, and beside each the one that the model itself would give.

Source: GLIP `modeling/roi_heads/mask_head/`. Differs from GLIP: of the model's boxes each object has one, its best, in
fixed shapes, where the reference takes up to 1000 detections of a single image.
"""
import jax
import jax.numpy as jnp

from glipv2_jax.detection import boxes as box_ops

LEAST_IOU = 0.5


def match(proposals, boxes, box_mask):
    """The true box that each proposal overlaps most, by at least `LEAST_IOU` (legacy +1).

    Args:
      proposals: [N, 4] xyxy. boxes: [G, 4] xyxy. box_mask: [G] bool.
    Returns: [N] int32, −1 for none.
    """
    overlaps = jnp.where(box_mask, box_ops.iou_matrix(proposals, boxes), -1)
    return jnp.where(overlaps.max(-1, initial=-1) >= LEAST_IOU, overlaps.argmax(-1) if len(boxes) else -1, -1).astype(jnp.int32)


def best_of_each(found, quality, matched, num_boxes):
    """The box that the model would give for each object: of the anchors that answer for it, the one with the best score.

    Args:
      found: [A, 4] xyxy, the boxes of all anchors. quality: [A] float, their scores, at least 0.
      matched: [A] int32, the object that an anchor answers for, −1 for none. num_boxes: G.
    Returns: [G, 4] xyxy, all 0 for an object without anchors.
    """
    of_object = matched == jnp.arange(num_boxes)[:, None]                                   # [G, A]
    best = jnp.where(of_object, quality, -1).argmax(-1)
    return jnp.where(of_object.any(-1)[:, None], found[best], 0)


def training_boxes(key, boxes, box_mask, own, count):
    """Proposals of one image, at most `count`, drawn at random where there are more.

    Args:
      key: random key. boxes: [G, 4] xyxy, true. box_mask: [G] bool.
      own: [N, 4] xyxy, boxes of the model; those that overlap no true one are left out.
      count: K, at most G + N.
    Returns: proposals [K, 4] xyxy, matched [K] int32: index of a proposal's true box, −1 on padding.
    """
    truth = jnp.where(box_mask, jnp.arange(len(boxes), dtype=jnp.int32), -1)
    proposals = jnp.concatenate([boxes, jax.lax.stop_gradient(own)])
    matched = jnp.concatenate([truth, match(own, boxes, box_mask)])
    _, chosen = jax.lax.top_k(jnp.where(matched >= 0, jax.random.uniform(key, matched.shape), -1), count)
    return proposals[chosen], matched[chosen]
