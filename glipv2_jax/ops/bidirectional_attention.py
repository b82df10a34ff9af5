"""Attention in both directions through one score matrix: regions read words, words read regions.

Two forms compute the same, gradients too: a scan over chunks of regions, and on TPUs a kernel (`bidirectional_attention_tpu`) whose scores
never leave the chip; `forms` decides between them. Neither holds a regions × words matrix: the softmax over regions
is an online one, and the backward pass computes scores again from what the forward pass has kept of every column.

Heads and words lie side by side in one axis of K = N · T columns, so that every product is a plain batched matrix product.
Source: GLIP utils/fuse_helper.py, BiMultiHeadAttention.
"""
import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np

from glipv2_jax.ops import bidirectional_attention_tpu as tpu
from glipv2_jax.ops.dropout_masks import dropout_masks
from glipv2_jax.ops.einsum import einsum_float32 as einsum
from glipv2_jax.ops.forms import check_form, in_form
from glipv2_jax.sharding import map_images

# What a program is made for: the form, regions of a chunk, the largest score, the rate of dropout.
Settings = collections.namedtuple("Settings", "form chunk clamp dropout")


def bidirectional_attention(regions, scorer, score_bias, values, token_mask, *, chunk, clamp, dropout=0.0, rng=None, form="auto"):
    """Both softmaxes of the scores `regions · scorer + score_bias`, and what they weigh.

    Args:
      regions: [B, A, C]. scorer: [B, C, N, T]. score_bias: [B, N, T]. values: [B, N, T, C], what regions read.
      token_mask: [B, T] bool, the words that regions read; every word reads all regions.
      chunk: regions a step of the scan. clamp: scores are clipped to ±clamp. dropout: rate on the weights of both directions, with `rng`.
      form: "xla" or "gpu", the scan; "kernel", interpreted where there is no TPU; "auto": "kernel" when compiled for TPUs and the sizes allow it.
    Returns:
      region_delta: [B, A, C] float32, Σ over heads and words of word weights · values.
      context: [B, C, N, T] float32, Σ over regions of region weights · regions.
      mass: [B, N, T] float32, Σ of the region weights: 1 without dropout.
    Raises: ValueError for an unknown form.
    """
    check_form("bidirectional_attention", form)
    b, a, c = regions.shape
    n, t = score_bias.shape[1:]
    seeds = jnp.zeros((b, 2), jnp.uint32) if rng is None else jax.random.bits(rng, (b, 2), jnp.uint32)
    settings = Settings(form, min(chunk, a), float(clamp), 0.0 if rng is None else dropout)
    delta, context, mass = _attention(
        settings, regions, scorer.reshape(b, c, n * t), score_bias.reshape(b, n * t), values.reshape(b, n * t, c), token_mask, seeds)
    return delta, context.reshape(b, c, n, t), mass.reshape(b, n, t)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(settings, *args):
    return _attention_forward(settings, *args)[0]


def _attention_forward(settings, *args):
    delta, context, mass, columns = _for_images(settings, _scan, tpu.attention, *args)
    return (delta, context, mass), (args, context, mass, columns)


def _attention_backward(settings, residuals, grads):
    args, context, mass, columns = residuals
    regions, scorer, score_bias, values, *_ = args
    grad_delta, grad_context, grad_mass = grads
    grad_context = grad_context.astype(regions.dtype)
    # Σ over regions of weight · gradient of weight, which the softmax over regions takes off each column: no pass over regions needed. Of the
    # rounded gradient, which is what the weights get: what all regions have in common has to cancel.
    share = (context * grad_context.astype(jnp.float32)).sum(1) + mass * grad_mass
    grad_regions, *rest = _for_images(settings, _scan_gradients, tpu.attention_gradients, *args, columns, share,
                                   grad_delta.astype(regions.dtype), grad_context, grad_mass)
    grad_scorer, grad_bias, grad_values = rest
    return (grad_regions.astype(regions.dtype), grad_scorer.astype(scorer.dtype), grad_bias.astype(score_bias.dtype),
            grad_values.astype(values.dtype), None, None)


_attention.defvjp(_attention_forward, _attention_backward)


def _for_images(settings, scan, kernel, *args):
    """Runs one of two functions of a batch."""
    def on_chip(*args, interpret=False):
        return map_images(functools.partial(kernel, settings.clamp, settings.dropout, interpret=interpret), *args)
    regions, token_mask = args[0], args[4]
    supported = tpu.supported(regions.shape[2], token_mask.shape[1])
    return in_form(settings.form, supported, functools.partial(scan, settings), on_chip, *args)


def _chunks(settings, *arrays):
    """[B, A, …] → [steps, B, chunk, …] of each, zeros at the end; and of every step its first row, and [chunk, 1], what is added to the
    scores of each row: −∞ to those after the last region."""
    b, a = arrays[0].shape[:2]
    steps = -(-a // settings.chunk)
    padded = [jnp.pad(x, ((0, 0), (0, steps * settings.chunk - a), (0, 0))) for x in arrays]
    padded = [x.reshape(b, steps, settings.chunk, -1).swapaxes(0, 1) for x in padded]
    rows = np.arange(steps * settings.chunk, dtype=np.int32).reshape(steps, settings.chunk, 1)
    return *padded, rows[:, 0, 0], np.where(rows < a, np.float32(0), -np.float32(np.inf))


def _in_this_step(inputs):
    """A step's inputs, known in that step and no earlier.

    What does not depend on the regions, JAX's scan computes ahead of the loop over layers: the masks of all steps, [steps, B, chunk, K], which
    every step would then read from memory instead of computing them where they are used. For the same reason masks are sums and products:
    jnp.where broadcasts its constants to the full size, and that broadcast would be computed ahead, too.
    """
    return jax.lax.optimization_barrier(inputs)


def _whole(chunks, a):
    """[steps, B, chunk, C] → [B, A, C]."""
    steps, b, chunk, c = chunks.shape
    return chunks.swapaxes(0, 1).reshape(b, steps * chunk, c)[:, :a]


def _unread(token_mask):
    """[B, 1, 1, T] what is added to the scores of each word: the lowest number to those that regions do not read."""
    return jnp.where(token_mask, 0.0, jnp.finfo(jnp.float32).min)[:, None, None]


def _word_softmax(scores, unread):
    """[B, R, K] → weights over the words of each head."""
    b, rows, k = scores.shape
    scores = scores.reshape(b, rows, -1, unread.shape[-1]) + unread
    scores = scores - scores.max(-1, keepdims=True)
    # Not exp(scores) / total: XLA would keep both exponentials, as large as the scores, for the sake of one.
    return jnp.exp(scores - jnp.log(jnp.exp(scores).sum(-1, keepdims=True))).reshape(b, rows, k)


def _kept(settings, seeds, first, shape):
    """Factors by which word weights and region weights are multiplied."""
    if not settings.dropout:
        return 1.0, 1.0
    return jax.vmap(lambda seed: dropout_masks(seed[0], seed[1], first, shape, settings.dropout))(seeds)


def _scan(settings, regions, scorer, score_bias, values, token_mask, seeds):
    """(region_delta, context [B, C, K], mass [B, K], columns).

    Columns are what the backward pass needs of each, [B, K]: the largest score of all regions, the sum of the exponentials below it.
    """
    b, a, c = regions.shape
    k, unread = scorer.shape[2], _unread(token_mask)

    def step(carry, inputs):
        largest, total, mass, context = carry
        x, first, after_last = _in_this_step(inputs)
        kept_words, kept_regions = _kept(settings, seeds, first, (settings.chunk, k))
        scores = jax.lax.clamp(-settings.clamp, einsum("bac,bck->bak", x, scorer) + score_bias[:, None], settings.clamp)
        delta = einsum("bak,bkc->bac", (_word_softmax(scores, unread) * kept_words).astype(x.dtype), values)

        scores = scores + after_last
        new_largest = jnp.maximum(largest, scores.max(1))
        shrink, weights = jnp.exp(largest - new_largest), jnp.exp(scores - new_largest[:, None])
        kept = weights * kept_regions
        total, mass = total * shrink + weights.sum(1), mass * shrink + kept.sum(1)
        context = context * shrink[:, None] + einsum("bac,bak->bck", x, kept.astype(x.dtype))
        return (new_largest, total, mass, context), delta

    start = (jnp.full((b, k), -2.0 * settings.clamp), *jnp.zeros((2, b, k)), jnp.zeros((b, c, k)))
    (largest, total, mass, context), delta = jax.lax.scan(step, start, _chunks(settings, regions))
    return _whole(delta, a), context / total[:, None], mass / total, (largest, total)


def _scan_gradients(settings, regions, scorer, score_bias, values, token_mask, seeds, columns, share, grad_delta, grad_context, grad_mass):
    """Gradients of regions, scorer, score_bias and values, float32. grad_context: [B, C, K]."""
    b, a, c = regions.shape
    k, unread = scorer.shape[2], _unread(token_mask)
    largest, total = columns

    def step(carry, inputs):
        grad_scorer, grad_bias, grad_values = carry
        x, grad, first, after_last = _in_this_step(inputs)
        kept_words, kept_regions = _kept(settings, seeds, first, (settings.chunk, k))
        scores = einsum("bac,bck->bak", x, scorer) + score_bias[:, None]
        inside = (jnp.abs(scores) < settings.clamp).astype(jnp.float32)
        scores = jax.lax.clamp(-settings.clamp, scores, settings.clamp)

        words = _word_softmax(scores, unread)
        grad_values += einsum("bak,bac->bkc", (words * kept_words).astype(x.dtype), grad)
        grad_words = einsum("bac,bkc->bak", grad, values) * kept_words
        per_head = (b, settings.chunk, -1, token_mask.shape[1])
        summed = (words * grad_words).reshape(per_head).sum(-1, keepdims=True)
        grad_scores = words.reshape(per_head) * (grad_words.reshape(per_head) - summed) * (unread == 0)
        grad_scores = grad_scores.reshape(words.shape)

        weights = jnp.exp(scores + after_last - largest[:, None]) / total[:, None]
        grad_weights = (einsum("bac,bck->bak", x, grad_context) + grad_mass[:, None]) * kept_regions
        grad_scores = (grad_scores + weights * (grad_weights - share[:, None])) * inside

        grad_x = einsum("bak,bck->bac", (weights * kept_regions).astype(x.dtype), grad_context)
        grad_x += einsum("bak,bck->bac", grad_scores.astype(x.dtype), scorer)
        grad_scorer += einsum("bac,bak->bck", x, grad_scores.astype(x.dtype))
        return (grad_scorer, grad_bias + grad_scores.sum(1), grad_values), grad_x

    start = jnp.zeros((b, c, k)), jnp.zeros((b, k)), jnp.zeros((b, k, c))
    rest, grad_regions = jax.lax.scan(step, start, _chunks(settings, regions, grad_delta))
    return _whole(grad_regions, a), *rest
