"""Deep fusion: one score matrix between all regions and all words, softmaxed in both directions.

Source: GLIP utils/fuse_helper.py, type MHA-B. The 2048-wide projections of the regions are absorbed into the text
side by associativity, `(v Wq)(k)ᵀ = v (Wq kᵀ)` and `Aᵀ(v Wv) = (Aᵀ v) Wv`, so that no regions × 2048 tensor exists;
no regions × words tensor exists either, see `ops/bidirectional_attention.py`.
"""
import flax.linen as nn
import jax
import jax.numpy as jnp

from glipv2_jax.models.bert import CLAMP
from glipv2_jax.models.layers import LayerNorm, named
from glipv2_jax.ops.bidirectional_attention import bidirectional_attention
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
    kernels: str = "auto"
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
        region_delta, context, mass = bidirectional_attention(
            regions, scorer, score_bias, values.astype(self.dtype), token_mask, chunk=self.chunk, clamp=CLAMP,
            dropout=self.dropout, rng=rng, form=self.kernels)
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
        return self._updated(words, einsum("bant,bac->bcnt", weights, regions), jnp.ones(score_bias.shape))

    def _scorer(self, words):
        """Normed words as seen by regions: kernel [B, C, N, T] and bias [B, N, T] of the score matrix."""
        head_scale = (self.dim // self.num_heads)**-0.5
        keys = (einsum("btd,dnh->bnth", words, self.key[0]) + self.key[1][:, None]).astype(self.dtype)
        scorer = einsum("cnh,bnth->bcnt", self.query[0], keys) * head_scale
        return scorer.astype(self.dtype), einsum("nh,bnth->bnt", self.query[1], keys) * head_scale

    def _updated(self, words, context, mass):
        """Normed words with what they have read of the regions, `context` [B, C, N, T] and `mass` [B, N, T]."""
        delta = einsum("bcnt,cnh->bnth", context.astype(self.dtype), self.region_value[0])
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
