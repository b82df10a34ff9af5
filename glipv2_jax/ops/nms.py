"""Greedy non-maximum suppression with fixed shapes."""
import jax
import jax.numpy as jnp

from glipv2_jax.detection import boxes as box_ops


def nms(boxes, scores, labels, valid, threshold, *, max_keep=None, block_size=256):
    """Keeps a box unless one of the same label, already kept and of higher score, overlaps it too much.

    Exactly the greedy rule: boxes are visited by falling score, equal scores in the order given. Blocks take
    the place of single boxes: inside a block, `keep = alive & no kept earlier box overlaps` is repeated until
    nothing changes, and what it kept then silences later boxes. Boxes only ever depend on earlier ones, so
    the repetition has one fixed point, the greedy answer. `jax.vmap` it over a batch.

    Args:
      boxes: [N, 4] xyxy pixels; IoU by the legacy +1 convention.
      scores: [N] float.
      labels: [N] int, only compared.
      valid: [N] bool, False on padding, which is neither kept nor suppresses.
      threshold: IoU strictly above it suppresses.
      max_keep: stop, for speed, after the block in which the number of kept boxes reaches this. Nothing
        after it is kept; the first `max_keep` by score are those of the full answer. None: never stop.
      block_size: static.
    Returns: [N] bool, in the order given.
    Source: GLIP `csrc/cuda/ml_nms.cu`.
    """
    num_boxes = len(scores)
    max_keep = num_boxes if max_keep is None else max_keep
    padding = -num_boxes % block_size
    order = jnp.argsort(jnp.where(valid, -scores, jnp.inf))  # stable; padding last
    boxes = jnp.pad(boxes[order], ((0, padding), (0, 0)))
    labels = jnp.pad(labels[order], (0, padding))
    num_valid = valid.sum()
    position = jnp.arange(num_boxes + padding)
    is_earlier = position[:block_size, None] < position[:block_size]  # row before column

    def unfinished(state):
        start, alive = state
        return (start < num_valid) & ((alive & (position < start)).sum() < max_keep)

    def visit_block(state):
        start, alive = state
        block_boxes = jax.lax.dynamic_slice_in_dim(boxes, start, block_size)
        block_labels = jax.lax.dynamic_slice_in_dim(labels, start, block_size)
        block_alive = jax.lax.dynamic_slice_in_dim(alive, start, block_size)
        overlaps = (box_ops.iou_matrix(block_boxes, boxes) > threshold) & (block_labels[:, None] == labels)
        inside = jax.lax.dynamic_slice_in_dim(overlaps, start, block_size, axis=1) & is_earlier

        def repeat(kept_and_previous):
            kept, _ = kept_and_previous
            return block_alive & ~(inside & kept[:, None]).any(0), kept
        kept, _ = jax.lax.while_loop(lambda pair: (pair[0] != pair[1]).any(), repeat,
                                     repeat((block_alive, block_alive)))
        silenced = (overlaps & kept[:, None]).any(0) & (position >= start + block_size)
        alive = jax.lax.dynamic_update_slice_in_dim(alive & ~silenced, kept, start, axis=0)
        return start + block_size, alive

    reached, alive = jax.lax.while_loop(unfinished, visit_block, (0, position < num_valid))
    kept = alive & (position < reached)
    return jnp.zeros(num_boxes, bool).at[order].set(kept[:num_boxes])
