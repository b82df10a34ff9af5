"""Masks inside boxes: binary cross-entropy per pixel. Source: GLIP `modeling/roi_heads/mask_head/loss.py`."""
import jax
import jax.numpy as jnp
import optax

from glipv2_jax.detection import boxes as box_ops


def mask_targets(masks, boxes, proposals, matched, size):
    """What the masks of proposals should be: that of their true box, seen through the proposal.

    Differs from GLIP: a proposal is x2 − x1 + 1 wide, as when its mask is pasted; the reference learns on x2 − x1. And
    the truth is a bitmap, where the reference draws polygons anew.

    Args:
      masks: [B, G, m, m] bool, each instance inside its box, on a grid over its whole width (the data contract).
      boxes: [B, G, 4] xyxy, the boxes of masks.
      proposals: [B, K, 4] xyxy. matched: [B, K] int32, index of their true box, −1 for none.
      size: M.
    Returns: targets [B, K, M, M] bool, sampled at the centres of a grid over the proposal; valid [B, K] bool, False
      without a true box, and where its mask is not known: then it has no pixel in the contract.
    """
    index = jnp.maximum(matched, 0)
    truth = jnp.take_along_axis(masks, index[..., None, None], axis=1)                      # [B, K, m, m]
    of_truth = jnp.take_along_axis(boxes, index[..., None], axis=1)
    centers = (jnp.arange(size) + 0.5) / size
    place = proposals[..., None, :2] + centers[:, None] * box_ops.sizes(proposals)[..., None, :]    # [B, K, M, (x, y)]
    cell = (place - of_truth[..., None, :2]) / box_ops.sizes(of_truth)[..., None, :] * masks.shape[-1]
    # Of a place outside of the true box no cell is meant, and its row of the one-hot matrix is 0.
    columns, rows = (jax.nn.one_hot(jnp.floor(cell[..., axis]).astype(jnp.int32), masks.shape[-1]) for axis in (0, 1))
    seen = jnp.einsum("bkin,bknm,bkjm->bkij", rows, truth.astype(jnp.float32), columns)
    return seen > 0.5, (matched >= 0) & truth.any((-2, -1))


def mask_loss(logits, targets, valid):
    """Binary cross-entropy of every pixel of every valid box.

    Differs from GLIP: 0 without a box, where the reference fails.

    Args:
      logits: [B, K, M, M] float. targets: [B, K, M, M] bool. valid: [B, K] bool.
    Returns: (total, count), float32 scalars: the sum over pixels of valid boxes; their number, at least 1.
    """
    losses = optax.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), targets.astype(jnp.float32))
    pixels = logits.shape[-2] * logits.shape[-1]
    total = jnp.where(valid[..., None, None], losses, 0).sum()
    return total, jnp.maximum(valid.sum(dtype=jnp.float32) * pixels, 1)
