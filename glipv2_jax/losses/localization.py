"""Where the boxes are: GIoU of matched anchors, and centerness.

Source: GLIP `modeling/rpn/loss.py`. Differs from GLIP: sums and counts are global, not means over devices.
"""
import jax.numpy as jnp
import optax

from glipv2_jax.detection import box_coder
from glipv2_jax.detection import boxes as box_ops

# GLIP's ATSS.REG_LOSS_WEIGHT, part of the definition of L_loc rather than a weight to tune.
BOX_FACTOR = 2.0


def centerness_targets(boxes, anchors):
    """How central an anchor's centre lies in its box: 1 in the middle, 0 on the edge.

    Args:
      boxes, anchors: [..., 4] xyxy pixels, broadcast; the centre of the anchor lies inside the box.
    Returns: [...] float32 in [0, 1].
    """
    center = box_ops.centers(anchors)
    before, after = center - boxes[..., :2], boxes[..., 2:] - center
    ratios = jnp.minimum(before, after) / jnp.maximum(before, after)
    return jnp.sqrt(ratios[..., 0] * ratios[..., 1])


def _targets(matched, boxes, anchors):
    """Box and centerness that anchors should give: [B, A, 4], [B, A]. Unmatched ones get themselves and 0."""
    positive = matched >= 0
    gt_boxes = jnp.take_along_axis(boxes, jnp.maximum(matched, 0)[..., None], axis=1)
    gt_boxes = jnp.where(positive[..., None], gt_boxes, anchors)
    # Through the coder, as the reference: the size limit of decode applies to targets too.
    gt_boxes = box_coder.decode(box_coder.encode(gt_boxes, anchors), anchors)
    return gt_boxes, jnp.where(positive, centerness_targets(gt_boxes, anchors), 0)


def box_loss(box_deltas, matched, boxes, anchors):
    """1 − GIoU of the decoded boxes, weighted by centerness.

    Args:
      box_deltas: [B, A, 4] float, as `box_coder.decode` takes them.
      matched: [B, A] int32, index of the anchor's box, −1 for none.
      boxes: [B, G, 4] xyxy pixels.
      anchors: [A, 4] xyxy pixels.
    Returns: (total, count), float32 scalars: twice the weighted sum over matched anchors; the sum of weights,
      or 1 where nothing is matched.
    """
    gt_boxes, weights = _targets(matched, boxes, anchors)
    box_deltas = jnp.where((matched >= 0)[..., None], box_deltas, 0)
    losses = 1 - box_ops.giou(box_coder.decode(box_deltas, anchors), gt_boxes)
    count = weights.sum()
    return BOX_FACTOR * (weights * losses).sum(), jnp.where(count > 0, count, 1)


def centerness_loss(centerness, matched, boxes, anchors):
    """Binary cross-entropy of the centerness of matched anchors.

    Args:
      centerness: [B, A] float, before the sigmoid.
      matched, boxes, anchors: as for `box_loss`.
    Returns: (total, count), float32 scalars: the sum; matched anchors, at least 1.
    """
    positive = matched >= 0
    _, targets = _targets(matched, boxes, anchors)
    logits = jnp.where(positive, centerness, 0).astype(jnp.float32)
    losses = optax.sigmoid_binary_cross_entropy(logits, targets)
    return jnp.where(positive, losses, 0).sum(), jnp.maximum(positive.sum(dtype=jnp.float32), 1)
