"""Region-word alignment: the grounding (intra-image) loss of GLIP."""
import jax
import jax.numpy as jnp


def focal_loss(logits, targets, alpha=0.25, gamma=2.0):
    """Sigmoid focal loss, element by element.

    Args:
      logits: any shape, float, before the sigmoid; any magnitude.
      targets: same shape, bool.
      alpha: weight of positives; negatives weigh 1 − alpha.
      gamma: exponent of (1 − p_t).
    Returns: same shape, float32.
    Source: arXiv 1708.02002, GLIP `layers/sigmoid_focal_loss.py`.
    """
    # With s = ±logit, p_t = sigmoid(s): both factors then follow from softplus, and none of them overflows.
    signed = jnp.where(targets, logits, -logits).astype(jnp.float32)
    cross_entropy = jax.nn.softplus(-signed)
    one_minus_p = jnp.exp(-gamma * jax.nn.softplus(signed))
    return jnp.where(targets, alpha, 1 - alpha) * one_minus_p * cross_entropy


def gather_tokens(positive_map, box_index):
    """Token row of the box that each region belongs to.

    Args:
      positive_map: [B, G, T] bool.
      box_index: [B, R] int32, −1 for a region without a box.
    Returns: [B, R, T] bool, all False for a region without a box.
    """
    rows = jnp.take_along_axis(positive_map, jnp.maximum(box_index, 0)[..., None], axis=1)
    return rows & (box_index >= 0)[..., None]


def alignment_loss(logits, matched, positive_map, token_mask, *, alpha=0.25, gamma=2.0):
    """Sigmoid focal loss between every anchor and every real token, [CLS] and [SEP] included.

    Differs from GLIP: an unmatched anchor has no positive token, where the reference marks column 255 (inert
    there while that column is padding). Differs from GLIP: the count is global, not a mean over devices.

    Args:
      logits: [B, A, T] float, before the sigmoid.
      matched: [B, A] int32, index of the anchor's box, −1 for none.
      positive_map: [B, G, T] bool, token t names box g.
      token_mask: [B, T] bool, False on padding.
      alpha, gamma: of the focal loss.
    Returns: (total, count), float32 scalars: the sum over anchors and tokens; matched anchors, at least 1.
    Source: arXiv 2112.03857 sec. 3.1, GLIP `token_sigmoid_binary_focal_loss`.
    """
    # Targets are bool and everything behind the logits is recomputed in the backward pass: at full size one
    # float tensor of this shape is 23 MB an image.
    @jax.checkpoint
    def total(logits):
        targets = gather_tokens(positive_map, matched)
        mask = token_mask[:, None]
        losses = focal_loss(jnp.where(mask, logits, 0), targets, alpha, gamma)
        return jnp.where(mask, losses, 0).sum()

    count = jnp.maximum((matched >= 0).sum(dtype=jnp.float32), 1)
    return total(logits), count
