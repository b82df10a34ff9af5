"""Attention in both directions as a Pallas kernel for TPUs: a block of regions at a time, its scores in fast memory alone.

Of an image's regions each is read once, forward and backward; the text side, [C, K] each way, and the sums over regions stay on
the chip while the regions of an image pass by. Columns are sums over the rows of a block, words of a head are 128-aligned slices of
its lanes, and every product has its operands as they lie, but for the block of regions, which is turned for sums over regions.
"""
import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from glipv2_jax.ops.dropout_masks import dropout_masks
from glipv2_jax.ops.einsum import kernel_dot

ROWS = 256                  # regions of a block
_LANES = 128
# A TPU v4 has less fast memory than the backward pass needs: there models take `kernels` "xla".
_PARAMS = pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=60 * 2**20)


def supported(channels, words):
    """Whether the kernel takes regions of so many channels and texts of so many tokens."""
    return channels % _LANES == 0 and words % _LANES == 0


def attention(clamp, dropout, regions, scorer, score_bias, values, token_mask, seeds, interpret=False):
    """`bidirectional_attention._scan` in one kernel.

    Args:
      clamp: scores are clipped to ±clamp. dropout: rate.
      regions: [B, A, C]. scorer: [B, C, K]. score_bias: [B, K]. values: [B, K, C]. token_mask: [B, T] bool.
      seeds: [B, 2] uint32. interpret: run on any platform, slowly.
    Returns: region_delta [B, A, C], context [B, C, K], mass [B, K], (largest, total) [B, K] each; float32.
    """
    b, a, c = regions.shape
    k, t = scorer.shape[2], token_mask.shape[1]
    rows = _rows(a)
    column = jax.ShapeDtypeStruct((b, 1, k), jnp.float32)
    delta, context, mass, largest, total = pl.pallas_call(
        functools.partial(_forward_kernel, clamp, dropout, a), name="bidirectional_attention", interpret=interpret, compiler_params=_PARAMS,
        out_shape=(jax.ShapeDtypeStruct((b, a, c), jnp.float32), jax.ShapeDtypeStruct((b, c, k), jnp.float32), column, column, column),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1, grid=(b, -(-a // rows)),
            in_specs=[_block(rows, c), _image(c, k), _image(1, k), _image(k, c), _image(1, t)],
            out_specs=(_block(rows, c), _image(c, k), _image(1, k), _image(1, k), _image(1, k))),
    )(seeds, regions, scorer, score_bias[:, None], values, token_mask.astype(jnp.int32)[:, None])
    return delta, context, mass[:, 0], (largest[:, 0], total[:, 0])


def attention_gradients(clamp, dropout, regions, scorer, score_bias, values, token_mask, seeds, columns, share, grad_delta, grad_context,
                        grad_mass, interpret=False):
    """`bidirectional_attention._scan_gradients` in one kernel.

    Args:
      columns: (largest, total) of `attention`. share: [B, K] float32, Σ over regions of a column's weights times their gradients.
      grad_delta: [B, A, C]. grad_context: [B, C, K]. grad_mass: [B, K]. Others as there.
    Returns: gradients [B, A, C] of regions, [B, C, K] of scorer, [B, K] of score_bias, [B, K, C] of values; float32.
    """
    b, a, c = regions.shape
    k, t = scorer.shape[2], token_mask.shape[1]
    rows = _rows(a)
    matrix, column = jax.ShapeDtypeStruct((b, c, k), jnp.float32), jax.ShapeDtypeStruct((b, 1, k), jnp.float32)
    grad_regions, grad_scorer, grad_bias, grad_values = pl.pallas_call(
        functools.partial(_backward_kernel, clamp, dropout, a), name="bidirectional_attention_gradients", interpret=interpret,
        compiler_params=_PARAMS,
        out_shape=(jax.ShapeDtypeStruct((b, a, c), jnp.float32), matrix, column, matrix),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1, grid=(b, -(-a // rows)),
            in_specs=[_block(rows, c), _block(rows, c), *[_image(c, k)] * 3, *[_image(k, c)] * 2, *[_image(1, k)] * 5, _image(1, t)],
            out_specs=(_block(rows, c), _image(c, k), _image(1, k), _image(c, k))),
    )(seeds, regions, grad_delta, scorer, values.swapaxes(1, 2), grad_context, scorer.swapaxes(1, 2), grad_context.swapaxes(1, 2),
      *(x[:, None] for x in (score_bias, *columns, share, grad_mass)), token_mask.astype(jnp.int32)[:, None])
    return grad_regions, grad_scorer, grad_bias[:, 0], grad_values.swapaxes(1, 2)


def _rows(regions):
    return min(ROWS, -(-regions // 16) * 16)


def _block(rows, columns):
    """A block of an image's regions."""
    return pl.BlockSpec((1, rows, columns), lambda image, step, seeds: (image, step, 0))


def _image(*shape):
    """What all blocks of an image share: read, or kept, once for all of them."""
    return pl.BlockSpec((1, *shape), lambda image, step, seeds: (image, 0, 0))


def _real_rows(ref, regions):
    """The block's rows with zeros for those after the last region, and [rows, 1] which ones are regions."""
    rows = ref.shape[1]
    real = pl.program_id(1) * rows + jax.lax.broadcasted_iota(jnp.int32, (rows, 1), 0) < regions
    return jnp.where(real, ref[0], jnp.zeros_like(ref[0])), real


def _kept(seeds_ref, dropout, shape):
    """Factors by which word weights and region weights are multiplied."""
    if not dropout:
        return 1.0, 1.0
    image, step = pl.program_id(0), pl.program_id(1)
    return dropout_masks(seeds_ref[image, 0], seeds_ref[image, 1], step * shape[0], shape, dropout)


def _heads(words, k):
    """The lanes of each head."""
    return [slice(first, first + words) for first in range(0, k, words)]


def _word_softmax(scores, mask_ref):
    """[rows, K] → weights over the words of each head."""
    words = mask_ref.shape[2]
    real = mask_ref[0] != 0
    parts = []
    for head in _heads(words, scores.shape[1]):
        of_head = jnp.where(real, scores[:, head], jnp.finfo(jnp.float32).min)
        weights = jnp.exp(of_head - of_head.max(1, keepdims=True))
        parts.append(weights / weights.sum(1, keepdims=True))
    return jnp.concatenate(parts, axis=1)


def _forward_kernel(clamp, dropout, regions, seeds_ref, x_ref, scorer_ref, bias_ref, values_ref, mask_ref, delta_ref, context_ref, mass_ref,
                    largest_ref, total_ref):
    step, steps = pl.program_id(1), pl.num_programs(1)

    @pl.when(step == 0)
    def _():
        largest_ref[...] = jnp.full_like(largest_ref, -2.0 * clamp)
        for ref in (total_ref, mass_ref, context_ref):
            ref[...] = jnp.zeros_like(ref)

    x, real = _real_rows(x_ref, regions)
    scores = jnp.clip(kernel_dot(x, scorer_ref[0]) + bias_ref[0], -clamp, clamp)
    kept_words, kept_regions = _kept(seeds_ref, dropout, scores.shape)
    delta_ref[0] = kernel_dot((_word_softmax(scores, mask_ref) * kept_words).astype(x.dtype), values_ref[0])

    largest = largest_ref[0]
    new_largest = jnp.maximum(largest, jnp.where(real, scores, -2.0 * clamp).max(0, keepdims=True))
    shrink = jnp.exp(largest - new_largest)
    weights = jnp.where(real, jnp.exp(scores - new_largest), 0.0)
    kept = weights * kept_regions
    largest_ref[0] = new_largest
    total_ref[0] = total_ref[0] * shrink + weights.sum(0, keepdims=True)
    mass_ref[0] = mass_ref[0] * shrink + kept.sum(0, keepdims=True)
    context_ref[0] = context_ref[0] * shrink + kernel_dot(x.T, kept.astype(x.dtype))

    @pl.when(step == steps - 1)
    def _():
        mass_ref[0] /= total_ref[0]
        context_ref[0] /= total_ref[0]


def _backward_kernel(clamp, dropout, regions, seeds_ref, x_ref, grad_ref, scorer_ref, values_ref, grad_context_ref, scorer_across_ref,
                     grad_context_across_ref, bias_ref, largest_ref, total_ref, share_ref, grad_mass_ref, mask_ref,
                     grad_x_ref, grad_scorer_ref, grad_bias_ref, grad_values_ref):
    @pl.when(pl.program_id(1) == 0)
    def _():
        for ref in (grad_scorer_ref, grad_bias_ref, grad_values_ref):
            ref[...] = jnp.zeros_like(ref)

    (x, real), (grad, _) = _real_rows(x_ref, regions), _real_rows(grad_ref, regions)
    unclamped = kernel_dot(x, scorer_ref[0]) + bias_ref[0]
    scores = jnp.clip(unclamped, -clamp, clamp)
    kept_words, kept_regions = _kept(seeds_ref, dropout, scores.shape)

    words = _word_softmax(scores, mask_ref)
    grad_values_ref[0] += kernel_dot(grad.T, (words * kept_words).astype(x.dtype))
    grad_words = kernel_dot(grad, values_ref[0]) * kept_words
    products = words * grad_words
    grad_scores = []
    for head in _heads(mask_ref.shape[2], products.shape[1]):
        of_head = products[:, head] - words[:, head] * products[:, head].sum(1, keepdims=True)
        grad_scores.append(jnp.where(mask_ref[0] != 0, of_head, 0.0))

    weights = jnp.where(real, jnp.exp(scores - largest_ref[0]) / total_ref[0], 0.0)
    grad_weights = (kernel_dot(x, grad_context_ref[0]) + grad_mass_ref[0]) * kept_regions
    grad_scores = jnp.concatenate(grad_scores, axis=1) + weights * (grad_weights - share_ref[0])
    grad_scores = jnp.where(jnp.abs(unclamped) < clamp, grad_scores, 0.0)

    grad_bias_ref[0] += grad_scores.sum(0, keepdims=True)
    grad_scores = grad_scores.astype(x.dtype)
    grad_x_ref[0] = (kernel_dot(grad_scores, scorer_across_ref[0])
                     + kernel_dot((weights * kept_regions).astype(x.dtype), grad_context_across_ref[0]))
    grad_scorer_ref[0] += kernel_dot(x.T, grad_scores)
