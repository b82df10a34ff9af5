"""Inter-image region-word contrast of GLIPv2: every region of the batch against every word of the batch.

Both sides are taken before fusion, so that no region has seen its own text. Source: GLIPv2 (arXiv 2206.05836)
sec. 3.2. Differs from GLIP's released `shallow contrastive` code: un-fused text, all assigned anchors (that
code drops those of the first box), class ids that are global over data sets, and gradients through the whole
batch.
"""
import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from glipv2_jax.losses.grounding import gather_tokens
from glipv2_jax.sharding import BATCH_AXES, batch_size_of

# Stands for minus infinity, and keeps the sums of rows without any entry finite.
MASKED = -1e9
# Of 100 regions and 256 tokens each against four images a device: 0.8 MB an image of these.
_IMAGES_AT_A_TIME = 8


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


def inter_image_loss(region_embeddings, text_embeddings, log_temperature, region_positive, region_matched,
                     positive_map, token_mask, box_class, token_class):
    """Symmetric cross-entropy with several positives over the whole batch.

    Each region is classified among all real tokens of the batch, each token among all regions of the batch.
    Targets are spread evenly over the positives of a row or column; one without positives costs nothing and
    still counts as a negative for the others. An image without a single real token is padding: its regions
    take no part.

    In its own text a region belongs to the tokens that name its box. In other texts it belongs to the tokens of the same
    class name, if both are class names: words of a caption keep to their own image.

    The matrix of B·K regions by B·T tokens is never formed: the images of a device meet those of the batch a few at a time,
    with a running softmax. On a mesh the embeddings of all images, which are small, travel to every device.

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
    is_image = token_mask.any(-1)
    region_positive = region_positive & is_image[:, None]
    matched = jnp.where(region_positive, region_matched, -1)
    region_class = jnp.where(matched >= 0, jnp.take_along_axis(box_class, jnp.maximum(matched, 0), axis=1), -1)
    own = gather_tokens(positive_map, matched) & token_mask[..., None, :]                    # [B, K, T]
    regions = {"vector": region_embeddings.astype(jnp.float32), "class": region_class,
               "valid": jnp.broadcast_to(is_image[:, None], matched.shape)}
    words = {"vector": text_embeddings.astype(jnp.float32), "class": jnp.where(token_mask, token_class, -1),
             "valid": token_mask}

    def total(regions, words, own, log_temperature, axes):
        numbers = jnp.arange(len(own))
        if axes:
            numbers += jax.lax.axis_index(axes) * len(own)
        every = {name: jax.tree.map(lambda x: jax.lax.all_gather(x, axes, tiled=True) if axes else x, side)
                 for name, side in (("regions", regions), ("words", words))}
        sums = (_among(regions, every["words"], own, numbers, log_temperature)
                + _among(words, every["regions"], own.swapaxes(1, 2), numbers, log_temperature)) / 2
        return jax.lax.psum(sums, axes) if axes else sums

    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or len(own) % batch_size_of(mesh):
        value = total(regions, words, own, log_temperature, ())
    else:
        split = PartitionSpec(BATCH_AXES)
        value = jax.shard_map(functools.partial(total, axes=BATCH_AXES), in_specs=(split, split, split, PartitionSpec()),
                              out_specs=PartitionSpec(), axis_names=set(BATCH_AXES), check_vma=False)(
            regions, words, own, log_temperature)
    return value, jnp.maximum(region_positive.sum(dtype=jnp.float32), 1)


def _among(rows, columns, own, numbers, log_temperature):
    """Sum of the cross-entropies of each of these rows among all columns.

    Args:
      rows: dict of vector [b, R, E], class [b, R], valid [b, R], of some images. columns: the same of the whole batch, B images.
      own: [b, R, C] bool, pairs of one image that belong together. numbers: [b] int32, which images of the batch the rows are of.
      log_temperature: scalar.
    Returns: float32 scalar.
    """
    b, r = rows["class"].shape
    size = max(n for n in range(1, _IMAGES_AT_A_TIME + 1) if len(columns["class"]) % n == 0)
    images = jnp.arange(len(columns["class"])).reshape(-1, size)
    pieces = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), columns)

    @jax.checkpoint
    def step(carry, piece):
        largest, mass, positive_sum, positives = carry
        columns, images = piece
        # float32 products: at temperature 0.07 the rounding of bfloat16 would reach 0.05 in the logits.
        logits = jnp.einsum("bre,kce->brkc", rows["vector"], columns["vector"], precision=jax.lax.Precision.HIGHEST)
        logits = logits / jnp.exp(log_temperature)
        same_class = (rows["class"][..., None, None] == columns["class"]) & (rows["class"] >= 0)[..., None, None]
        is_own = (numbers[:, None] == images)[:, None, :, None]
        targets = jnp.where(is_own, own[:, :, None], same_class) & columns["valid"]
        masked = jnp.where(columns["valid"], logits, MASKED)
        # The maximum only keeps exp in range: no gradient passes through it.
        new = jax.lax.stop_gradient(jnp.maximum(largest, masked.max((2, 3))))
        mass = mass * jnp.exp(largest - new) + jnp.exp(masked - new[..., None, None]).sum((2, 3))
        positive_sum = positive_sum + jnp.where(targets, logits, 0).sum((2, 3))
        return (new, mass, positive_sum, positives + targets.sum((2, 3))), None

    start = (jnp.full((b, r), MASKED), *jnp.zeros((2, b, r)), jnp.zeros((b, r), jnp.int32))
    (largest, mass, positive_sum, positives), _ = jax.lax.scan(step, start, (pieces, images))
    loss = largest + jnp.log(mass) - positive_sum / jnp.maximum(positives, 1)
    return jnp.where((positives > 0) & rows["valid"], loss, 0).sum()
