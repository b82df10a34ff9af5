"""Inter-image region-word contrast of GLIPv2: every region of the batch against every word of the batch.

Both sides are taken before fusion, so that no region has seen its own text. Source: GLIPv2 (arXiv 2206.05836)
sec. 3.2. Differs from GLIP's released `shallow contrastive` code: un-fused text, all assigned anchors (that
code drops those of the first box), class ids that are global over data sets, and gradients through the whole
batch.
"""
import jax
import jax.numpy as jnp

from glipv2_jax.losses.grounding import gather_tokens

# Stands for minus infinity, and keeps the sums of rows without any entry finite.
MASKED = -1e9


def sample_regions(matched, key, num_regions):
    """Draws K anchors of each image: its matched ones, a random subset if too many, then random others.

    Args:
      matched: [B, A] int32, index of the anchor's box, −1 for none.
      key: random key.
      num_regions: K, at most A.
    Returns: (indices [B, K] int32 without repetition, is_positive [B, K] bool).
    Raises: ValueError if K exceeds A.
    """
    if num_regions > matched.shape[-1]:
        raise ValueError(f"sample_regions: {num_regions} regions asked of {matched.shape[-1]} anchors")
    is_positive = matched >= 0
    priority = is_positive + jax.random.uniform(key, matched.shape)
    indices = jax.lax.top_k(priority, num_regions)[1]
    return indices, jnp.take_along_axis(is_positive, indices, axis=-1)


def _targets(region_positive, region_matched, positive_map, box_class, token_class):
    """Which region belongs to which token. Returns: [B, K, B, T] bool.

    In its own text a region belongs to the tokens that name its box. In other texts it belongs to the tokens
    of the same class name, if both are class names: words of a caption keep to their own image.
    """
    region_matched = jnp.where(region_positive, region_matched, -1)
    own = gather_tokens(positive_map, region_matched)  # [B, K, T]
    region_class = jnp.take_along_axis(box_class, jnp.maximum(region_matched, 0), axis=1)
    region_class = jnp.where(region_matched >= 0, region_class, -1)[:, :, None, None]
    same_class = (region_class == token_class) & (region_class >= 0)  # [B, K, B, T]
    is_own = jnp.eye(len(own), dtype=bool)[:, None, :, None]
    return jnp.where(is_own, own[:, :, None], same_class)


def inter_image_loss(region_embeddings, text_embeddings, log_temperature, region_positive, region_matched,
                     positive_map, token_mask, box_class, token_class):
    """Symmetric cross-entropy with several positives over the whole batch.

    Each region is classified among all real tokens of the batch, each token among all regions of the batch.
    Targets are spread evenly over the positives of a row or column; one without positives costs nothing and
    still counts as a negative for the others. An image without a single real token is padding: its regions
    take no part. The matrix of B·K regions by B·T tokens is formed, in float32.

    Args:
      region_embeddings: [B, K, E] float, unit vectors, before fusion.
      text_embeddings: [B, T, E] float, unit vectors, before fusion.
      log_temperature: scalar; similarities are divided by its exponential.
      region_positive: [B, K] bool, the region is matched to a box.
      region_matched: [B, K] int32, index of that box.
      positive_map: [B, G, T] bool, token t names box g.
      token_mask: [B, T] bool, False on padding.
      box_class, token_class: [B, G], [B, T] int32, global id of a class name, −1 for captions.
    Returns: (total, count), float32 scalars: mean of the two directions' sums; regions with a box,
      at least 1.
    """
    (b, k, _), t = region_embeddings.shape, text_embeddings.shape[1]
    is_image = token_mask.any(-1)
    region_positive = region_positive & is_image[:, None]
    # float32 products: at temperature 0.07 the rounding of bfloat16 would reach 0.05 in the logits.
    similarity = jnp.einsum("bke,cte->bkct", region_embeddings.astype(jnp.float32),
                            text_embeddings.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST)
    logits = similarity / jnp.exp(log_temperature)
    targets = _targets(region_positive, region_matched, positive_map, box_class, token_class) & token_mask
    valid = jnp.broadcast_to(is_image[:, None, None, None] & token_mask, logits.shape)

    logits, targets, valid = (x.reshape(b * k, b * t) for x in (logits, targets, valid))
    masked = jnp.where(valid, logits, MASKED)
    total = 0.0
    for axis in (0, 1):  # 0: each token among the regions; 1: each region among the tokens
        positives = targets.sum(axis, keepdims=True)
        mean_positive = jnp.where(targets, logits / jnp.maximum(positives, 1), 0).sum(axis, keepdims=True)
        normalizer = jax.nn.logsumexp(masked, axis=axis, keepdims=True)
        total += jnp.where(positives > 0, normalizer - mean_positive, 0).sum() / 2
    return total, jnp.maximum(region_positive.sum(dtype=jnp.float32), 1)
