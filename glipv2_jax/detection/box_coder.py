"""Boxes relative to anchors, the form in which the head predicts them.

Source: GLIP `modeling/rpn/vldyhead.py` (its own `BoxCoder`; sizes count pixels, centres are plain midpoints).
"""
import math

import jax.numpy as jnp

from glipv2_jax.detection import boxes as box_ops

# Scales of (dx, dy, log w, log h): makes the four of similar spread.
WEIGHTS = (10.0, 10.0, 5.0, 5.0)
# A decoded box is at most 62.5 anchors wide: exp cannot overflow early in training.
MAX_LOG_SIZE = math.log(1000 / 16)


def encode(boxes, anchors):
    """Offsets that turn anchors into boxes. Both [..., 4] xyxy pixels, broadcast. Returns: [..., 4]."""
    anchor_sizes = box_ops.sizes(anchors)
    offsets = (box_ops.centers(boxes) - box_ops.centers(anchors)) / anchor_sizes
    log_sizes = jnp.log(box_ops.sizes(boxes) / anchor_sizes)
    return jnp.concatenate([offsets, log_sizes], axis=-1) * jnp.asarray(WEIGHTS)


def decode(box_deltas, anchors):
    """Boxes from offsets; sizes are limited from above only.

    Args:
      box_deltas: [..., 4] (10 dx, 10 dy, 5 log w, 5 log h), in units of the anchor.
      anchors: [..., 4] xyxy pixels.
    Returns: [..., 4] float32 xyxy pixels, not clipped to any image.
    """
    box_deltas = box_deltas.astype(jnp.float32) / jnp.asarray(WEIGHTS)
    anchor_sizes = box_ops.sizes(anchors)
    center = box_deltas[..., :2] * anchor_sizes + box_ops.centers(anchors)
    half = (jnp.exp(jnp.minimum(box_deltas[..., 2:], MAX_LOG_SIZE)) * anchor_sizes - box_ops.PIXEL) / 2
    return jnp.concatenate([center - half, center + half], axis=-1)
