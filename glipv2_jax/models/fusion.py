"""Deep fusion: one score matrix between all regions and all words, softmaxed in both directions.

Source: GLIP utils/fuse_helper.py, type MHA-B. The 2048-wide projections of the regions are absorbed into the text
side by associativity, `(v Wq)(k)ᵀ = v (Wq kᵀ)` and `Aᵀ(v Wv) = (Aᵀ v) Wv`, so that no regions × 2048 tensor exists,
and the regions are scanned in chunks with an online softmax over them, so that no regions × words tensor exists either.
"""
import flax.linen as nn
import jax
import jax.numpy as jnp

from glipv2_jax.models.bert import CLAMP
from glipv2_jax.models.layers import LayerNorm, named
from glipv2_jax.ops.einsum import einsum_float32 as einsum
from glipv2_jax.sharding import gathered


class Fusion(nn.Module):
    """Bidirectional cross-attention.

    Call: regions [B, A, C], words [B, T, D], token_mask [B, T] bool → the same two shapes. Every region attends to the
    real words; every word, padding included, attends to all regions, those of the padded canvas included.
    """
    dim: int
    num_heads: int
    dropout: float
    chunk: int
    scale_init: float
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, regions, words, token_mask, train=False):
        c, d = regions.shape[-1], words.shape[-1]
        # The residual starts from the normed features; the raw ones are not used again.
        regions = LayerNorm(dtype=self.dtype, name="region_norm")(regions)
        words = LayerNorm(dtype=self.dtype, name="word_norm")(words)
        query, region_value = self._projection("query", c), self._projection("region_value", c)
        key, word_value = self._projection("key", d), self._projection("word_value", d)
        region_out, word_out = self._projection("region_out", c, out=True), self._projection("word_out", d, out=True)

        head_scale = (self.dim // self.num_heads)**-0.5
        keys = (einsum("btd,dnh->bnth", words, key[0]) + key[1][:, None]).astype(self.dtype)
        scorer = einsum("cnh,bnth->bcnt", query[0], keys) * head_scale             # words as seen by regions
        score_bias = einsum("nh,bnth->bnt", query[1], keys) * head_scale
        values = (einsum("btd,dnh->bnth", words, word_value[0]) + word_value[1][:, None]).astype(self.dtype)
        values = einsum("bnth,nhc->bntc", values, region_out[0])                   # words as written to regions

        rng = self.make_rng("dropout") if train and self.dropout > 0 else None
        region_delta, context, mass = _attend(
            regions, scorer.astype(self.dtype), score_bias, values.astype(self.dtype), token_mask,
            self.chunk, self.dropout, rng)
        word_delta = einsum("bntc,cnh->bnth", context.astype(self.dtype), region_value[0])
        word_delta = (word_delta + mass[..., None] * region_value[1][:, None]).astype(self.dtype)
        word_delta = einsum("bnth,nhd->btd", word_delta, word_out[0])

        region_scale = self.param("region_scale", named(nn.initializers.constant(self.scale_init), ("embed",)), (c,))
        word_scale = self.param("word_scale", named(nn.initializers.constant(self.scale_init), ("embed",)), (d,))
        regions = regions + (region_scale * (region_delta + region_out[1])).astype(self.dtype)
        words = words + (word_scale * (word_delta + word_out[1])).astype(self.dtype)
        return regions, words

    def _projection(self, name, width, out=False):
        """Kernel [width, N, h] in the compute dtype and float32 bias [N, h]; for `out` [N, h, width] and [width]."""
        n, h = self.num_heads, self.dim // self.num_heads
        flat, bias = ((self.dim, width), width) if out else ((width, self.dim), self.dim)
        axes = ("heads", "embed") if out else ("embed", "heads")
        kernel = self.param(f"{name}_kernel", named(nn.initializers.xavier_uniform(), axes), flat)
        kernel = gathered(kernel.astype(self.dtype), axes)
        bias = self.param(f"{name}_bias", named(nn.initializers.zeros, axes[-1:]), (bias,))
        return (kernel.reshape(n, h, width), bias) if out else (kernel.reshape(width, n, h), bias.reshape(n, h))


def _attend(regions, scorer, score_bias, values, token_mask, chunk, dropout, rng):
    """Both softmaxes of the score matrix, in chunks of regions.

    Heads and words lie side by side in one axis, so that every product is a plain batched matrix product.

    Args:
      regions: [B, A, C]. scorer: [B, C, N, T]. score_bias: [B, N, T]. values: [B, N, T, C]. token_mask: [B, T] bool.
      chunk: regions a step. dropout: rate on both weight matrices, used when rng is not None.
    Returns:
      region_delta: [B, A, C] float32, Σ over heads and words of word weights · values.
      context: [B, N, T, C] float32, Σ over regions of region weights · regions.
      mass: [B, N, T] float32, Σ of the region weights: 1 without dropout.
    """
    b, a, c = regions.shape
    n, t = score_bias.shape[1:]
    chunk = min(chunk, a)
    steps = -(-a // chunk)
    padded = jnp.pad(regions, ((0, 0), (0, steps * chunk - a), (0, 0)))
    real = (jnp.arange(steps * chunk) < a).reshape(steps, chunk, 1)
    padded = padded.reshape(b, steps, chunk, c).swapaxes(0, 1)
    scorer, values = scorer.reshape(b, c, n * t), values.reshape(b, n * t, c)
    score_bias = score_bias.reshape(b, 1, n * t)

    def drop(weights, key):
        if rng is None:
            return weights
        return jnp.where(jax.random.bernoulli(key, 1 - dropout, weights.shape), weights / (1 - dropout), 0.0)

    @jax.checkpoint
    def step(carry, inputs):
        largest, total, mass, context = carry
        x, real, index = inputs
        key_words, key_regions = (None, None) if rng is None else jax.random.split(jax.random.fold_in(rng, index))
        scores = jnp.clip(einsum("bac,bck->bak", x, scorer) + score_bias, -CLAMP, CLAMP)
        masked = jnp.where(token_mask[:, None, None], scores.reshape(b, chunk, n, t), jnp.finfo(jnp.float32).min)
        word_weights = jax.nn.softmax(masked).reshape(scores.shape)
        delta = einsum("bak,bkc->bac", drop(word_weights, key_words).astype(x.dtype), values)

        # Online softmax over regions. The running maximum only keeps exp in range: no gradient passes through it.
        scores = jnp.where(real, scores, -jnp.inf)
        new_largest = jax.lax.stop_gradient(jnp.maximum(largest, scores.max(1)))
        shrink = jnp.exp(largest - new_largest)
        weights = jnp.exp(scores - new_largest[:, None])
        kept = drop(weights, key_regions)
        total = total * shrink + weights.sum(1)
        mass = mass * shrink + kept.sum(1)
        context = context * shrink[..., None] + einsum("bak,bac->bkc", kept.astype(x.dtype), x)
        return (new_largest, total, mass, context), delta

    start = (jnp.full((b, n * t), -2 * CLAMP), *jnp.zeros((2, b, n * t)), jnp.zeros((b, n * t, c)))
    (_, total, mass, context), delta = jax.lax.scan(step, start, (padded, real, jnp.arange(steps)))
    delta = delta.swapaxes(0, 1).reshape(b, steps * chunk, c)[:, :a]
    return delta, (context / total[..., None]).reshape(b, n, t, c), (mass / total).reshape(b, n, t)
