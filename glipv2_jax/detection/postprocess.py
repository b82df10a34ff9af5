"""From the head's outputs to detections.

Source: GLIP `modeling/rpn/inference.py` (`ATSSPostProcessor`). Differs from GLIP: labels count from 0,
detections come sorted by score, and there are never more than `max_detections` of them (the reference keeps
every score equal to the last one, and so may return more).
"""
import functools

import jax
import jax.numpy as jnp

from glipv2_jax.detection import box_coder
from glipv2_jax.detection import boxes as box_ops
from glipv2_jax.ops.nms import nms


def class_scores(alignment_logits, token_to_label, aggregation="mean"):
    """Score of every class from the probabilities of its words.

    Args:
      alignment_logits: [A, T] float, before the sigmoid.
      token_to_label: [C, T] bool, token t names class c; or weights of at least 0.
      aggregation: "mean" of probabilities, "max", or "power", their geometric mean.
    Returns: [A, C] float32 in [0, 1]; 0 for a class without tokens.
    Raises: ValueError for another aggregation.
    """
    logits = alignment_logits.astype(jnp.float32)
    weights = token_to_label.astype(jnp.float32)
    total = weights.sum(-1)
    shares = (weights / jnp.where(total > 0, total, 1)[:, None]).T  # [T, C]
    product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    if aggregation == "mean":
        return product(jax.nn.sigmoid(logits), shares)
    if aggregation == "power":
        return jnp.where(total > 0, jnp.exp(product(jax.nn.log_sigmoid(logits), shares)), 0)
    if aggregation == "max":
        # Class by class: all at once would take A × C × T numbers.
        probabilities = jax.nn.sigmoid(logits)
        return jax.lax.map(lambda row: jnp.where(row > 0, probabilities, 0).max(-1), weights).T
    raise ValueError(f"aggregation {aggregation!r}; expected 'mean', 'max' or 'power'")


def _best_pairs(scores, count):
    """The highest entries of [A, C]: their values, anchors and classes, each [min(count, A·C)], falling.

    They lie in the `count` anchors with the highest maxima, so only those are searched: an order of magnitude
    less than A × C at full size.
    """
    num_anchors, num_classes = scores.shape
    anchors = jax.lax.top_k(scores.max(-1), min(count, num_anchors))[1]
    values, pairs = jax.lax.top_k(scores[anchors].reshape(-1), min(count, num_anchors * num_classes))
    return values, anchors[pairs // num_classes], pairs % num_classes


def _one_image(logits, box_deltas, centerness, token_to_label, image_size, *, anchors, level_sizes,
               score_threshold, pre_nms_top_n, nms_threshold, max_detections, aggregation):
    quality = jax.nn.sigmoid(centerness.astype(jnp.float32))
    candidates, start = [], 0
    for size in level_sizes:
        level = slice(start, start + size)
        scores = class_scores(logits[level], token_to_label, aggregation)
        # The threshold is on the class score, the order on its product with centerness.
        ranked = jnp.where(scores > score_threshold, scores * quality[level, None], -1)
        values, index, labels = _best_pairs(ranked, pre_nms_top_n)
        candidates.append((values, index + start, labels))
        start += size
    values, index, labels = (jnp.concatenate(parts) for parts in zip(*candidates))
    boxes = box_ops.clip(box_coder.decode(box_deltas[index], anchors[index]), image_size)
    keep = nms(boxes, values, labels, values >= 0, nms_threshold, max_keep=max_detections)

    # Padded so that there are K to choose from; a padded index reads some box, which the mask then clears.
    missing = max(0, max_detections - len(values))
    values = jnp.pad(jnp.where(keep, values, -1), (0, missing), constant_values=-1)
    values, best = jax.lax.top_k(values, max_detections)
    mask = values >= 0
    return {"boxes": jnp.where(mask[:, None], boxes[best], 0),
            "scores": jnp.sqrt(jnp.where(mask, values, 0)),
            "labels": jnp.where(mask, labels[best], -1),
            "mask": mask}


def postprocess(alignment_logits, box_deltas, centerness, anchors, level_sizes, token_to_label, image_size, *,
                score_threshold=0.05, pre_nms_top_n=1000, nms_threshold=0.6, max_detections=100,
                aggregation="mean"):
    """Detections of a batch, in fixed shapes.

    A pair of anchor and class is a candidate if the class score exceeds `score_threshold`. Of each level the
    `pre_nms_top_n` best by class score × centerness go on to NMS within their class.

    Args:
      alignment_logits: [B, A, T] float, before the sigmoid.
      box_deltas: [B, A, 4] float, as `box_coder.decode` takes them.
      centerness: [B, A] float, before the sigmoid.
      anchors: [A, 4] xyxy pixels of the canvas, levels in order.
      level_sizes: tuple of ints that sum to A, static.
      token_to_label: [C, T] for one prompt, or [B, C, T] for a prompt per image; bool, or weights of at least
        0. A class without tokens is never detected.
      image_size: [B, 2] (height, width) of the picture on the canvas; boxes are clipped to it.
      score_threshold, nms_threshold: numbers.
      pre_nms_top_n, max_detections: static ints; max_detections is K.
      aggregation: "mean", "max" or "power", see `class_scores`; static.
    Returns: dict by falling score: boxes [B, K, 4] float32 xyxy pixels of the canvas, scores [B, K] float32
      (square root of class score × centerness), labels [B, K] int32 (row of token_to_label; the reference's
      is one more), mask [B, K] bool. Where mask is False: 0, 0 and −1.
    Raises: ValueError if level_sizes do not sum to A, or for an unknown aggregation.
    """
    if sum(level_sizes) != len(anchors):
        raise ValueError(f"postprocess: level sizes {level_sizes} sum to {sum(level_sizes)}, but there are "
                         f"{len(anchors)} anchors")
    one_image = functools.partial(
        _one_image, anchors=jnp.asarray(anchors), level_sizes=level_sizes, score_threshold=score_threshold,
        pre_nms_top_n=pre_nms_top_n, nms_threshold=nms_threshold, max_detections=max_detections,
        aggregation=aggregation)
    prompt_axis = 0 if token_to_label.ndim == 3 else None
    return jax.vmap(one_image, in_axes=(0, 0, 0, prompt_axis, 0))(
        alignment_logits, box_deltas, centerness, token_to_label, image_size)
