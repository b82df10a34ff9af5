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

    `causal`, [B] bool, names the texts that are being written: their regions read no word, O_t2i = 0. Else a region that has
    read word u > t would hand it to word t, here or in a later layer. With it regions are a function of the image alone, and a
    word's share of the region weights one of that word alone (the softmax runs over regions, for each word apart), so that
    the layer passes nothing from word to word.
    """
    channels: int         # C
    width: int            # D
    dim: int
    num_heads: int
    dropout: float
    chunk: int
    scale_init: float
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        c, d = self.channels, self.width
        self.region_norm, self.word_norm = LayerNorm(dtype=self.dtype), LayerNorm(dtype=self.dtype)
        self.query, self.region_value = self._projection("query", c), self._projection("region_value", c)
        self.key, self.word_value = self._projection("key", d), self._projection("word_value", d)
        self.region_out, self.word_out = self._projection("region_out", c, out=True), self._projection("word_out", d, out=True)
        self.region_scale, self.word_scale = (
            self.param(name, named(nn.initializers.constant(self.scale_init), ("embed",)), (width,))
            for name, width in (("region_scale", c), ("word_scale", d)))

    def __call__(self, regions, words, token_mask, train=False, causal=None):
        # The residual starts from the normed features; the raw ones are not used again.
        regions, words = self.norm_regions(regions), self.word_norm(words)
        scorer, score_bias = self._scorer(words)
        values = (einsum("btd,dnh->bnth", words, self.word_value[0]) + self.word_value[1][:, None]).astype(self.dtype)
        values = einsum("bnth,nhc->bntc", values, self.region_out[0])              # words as written to regions

        rng = self.make_rng("dropout") if train and self.dropout > 0 else None
        region_delta, context, mass = _attend(
            regions, scorer, score_bias, values.astype(self.dtype), token_mask, self.chunk, self.dropout, rng)
        region_delta = region_delta + self.region_out[1]
        if causal is not None:
            region_delta = jnp.where(causal[:, None, None], 0, region_delta)
        return regions + (self.region_scale * region_delta).astype(self.dtype), self._updated(words, context, mass)

    def norm_regions(self, regions):
        """Regions as words read them. Of an image whose text is being written, the layer does nothing else to them."""
        return self.region_norm(regions)

    def read(self, regions, words):
        """The words' half of the layer, for a few words of many texts: equal to what `__call__` makes of them.

        Args:
          regions: [B, A, C] of `norm_regions`. words: [B, K, D].
        Returns: [B, K, D].
        """
        words = self.word_norm(words)
        scorer, score_bias = self._scorer(words)
        scores = einsum("bac,bcnt->bant", regions, scorer) + score_bias[:, None]
        weights = jax.nn.softmax(jnp.clip(scores, -CLAMP, CLAMP), axis=1).astype(self.dtype)
        return self._updated(words, einsum("bant,bac->bntc", weights, regions), jnp.ones(score_bias.shape))

    def _scorer(self, words):
        """Normed words as seen by regions: kernel [B, C, N, T] and bias [B, N, T] of the score matrix."""
        head_scale = (self.dim // self.num_heads)**-0.5
        keys = (einsum("btd,dnh->bnth", words, self.key[0]) + self.key[1][:, None]).astype(self.dtype)
        scorer = einsum("cnh,bnth->bcnt", self.query[0], keys) * head_scale
        return scorer.astype(self.dtype), einsum("nh,bnth->bnt", self.query[1], keys) * head_scale

    def _updated(self, words, context, mass):
        """Normed words with what they have read of the regions, `context` [B, N, T, C] and `mass` [B, N, T] of `_attend`."""
        delta = einsum("bntc,cnh->bnth", context.astype(self.dtype), self.region_value[0])
        delta = (delta + mass[..., None] * self.region_value[1][:, None]).astype(self.dtype)
        delta = einsum("bnth,nhd->btd", delta, self.word_out[0])
        return words + (self.word_scale * (delta + self.word_out[1])).astype(self.dtype)

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
