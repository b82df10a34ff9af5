"""Adaptive training sample selection: which anchors answer for which ground-truth box.

Source: ATSS (arXiv 1912.02424) and GLIP `modeling/rpn/loss.py` (`prepare_targets`).
"""
import jax
import jax.numpy as jnp

from glipv2_jax.detection import boxes as box_ops

CANDIDATES_PER_LEVEL = 9
MIN_INSIDE = 0.01  # pixels by which an anchor's centre must lie inside the box


def _nearest(anchors, level_sizes, boxes):
    """Indices of the anchors nearest to each box, by centre, on every level. Returns: [G, Q] int32."""
    offsets = box_ops.centers(anchors) - box_ops.centers(boxes)[:, None]  # [G, A, 2]
    distance = jnp.sqrt(jnp.square(offsets).sum(-1))
    nearest, start = [], 0
    for size in level_sizes:
        k = min(CANDIDATES_PER_LEVEL, size)
        # Equal distances are common (boxes on the grid). top_k takes the lowest index first; the reference
        # leaves the choice to a partial sort, so there anchors that tie for the last place are the only ones
        # that can differ.
        nearest.append(start + jax.lax.top_k(-distance[:, start:start + size], k)[1])
        start += size
    return jnp.concatenate(nearest, axis=-1)


def assign(anchors, level_sizes, boxes, box_mask):
    """Matches anchors to boxes of one image; `jax.vmap` it over a batch.

    A box's candidates are the 9 nearest anchors of each level (all of them where a level has fewer). Those
    whose IoU reaches mean + standard deviation over the candidates, and whose centre lies inside the box,
    become positive. An anchor that several boxes want goes to the one with the highest IoU, on equal IoU to
    the first. Padded boxes get nothing; a real box may get nothing too. Anchors over the padded part of the
    canvas take part, as in the reference.
    Differs from GLIP: an image without boxes is all negative, where the reference fails.

    Args:
      anchors: [A, 4] xyxy pixels, levels in order.
      level_sizes: tuple of ints that sum to A, static.
      boxes: [G, 4] xyxy pixels.
      box_mask: [G] bool, False on padding.
    Returns: matched, [A] int32: index of the anchor's box, −1 for a negative anchor.
    Raises: ValueError if level_sizes do not sum to A.
    """
    num_anchors, num_boxes = len(anchors), len(boxes)
    if sum(level_sizes) != num_anchors:
        raise ValueError(f"assign: level sizes {level_sizes} sum to {sum(level_sizes)}, but there are "
                         f"{num_anchors} anchors")
    anchors = jnp.asarray(anchors)
    index = _nearest(anchors, level_sizes, boxes)  # [G, Q]
    candidates = anchors[index]  # [G, Q, 4]
    iou = box_ops.iou(candidates, boxes[:, None])  # [G, Q]
    # Unbiased, as torch computes it: division by Q − 1.
    threshold = iou.mean(-1, keepdims=True) + iou.std(-1, ddof=1, keepdims=True)
    center = box_ops.centers(candidates)
    inside = jnp.concatenate([center - boxes[:, None, :2], boxes[:, None, 2:] - center], axis=-1).min(-1)
    positive = (iou >= threshold) & (inside > MIN_INSIDE) & box_mask[:, None]

    # Two scatters into [A] choose the winner without an [A, G] table: first the highest IoU, then the first
    # box with it.
    iou = jnp.where(positive, iou, -1)
    best = jnp.full(num_anchors, -1.0).at[index].max(iou)
    is_best = positive & (iou == best[index])
    box_index = jnp.where(is_best, jnp.arange(num_boxes, dtype=jnp.int32)[:, None], num_boxes)
    winner = jnp.full(num_anchors, num_boxes, jnp.int32).at[index].min(box_index)
    return jnp.where(winner < num_boxes, winner, -1)
