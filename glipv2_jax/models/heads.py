"""Prediction heads. Source: GLIP rpn/vldyhead.py; MLM head as BERT's."""
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from glipv2_jax.models.bert import CLAMP
from glipv2_jax.models.layers import TORCH_DEFAULT, Dense, TextNorm, named
from glipv2_jax.ops.einsum import einsum_float32

# A region is a match with probability 1 % before training.
PRIOR_BIAS = -4.59511985013459
# Axes of a layer whose outputs are read one by one.
_OUT = ("embed", None)


class LocalizationHead(nn.Module):
    """Call: list of [B, H, W, C] → box deltas [B, A, 4], centerness [B, A], class logits [B, A, K] or None; float32."""
    num_class_logits: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, levels):
        dense = functools.partial(Dense, dtype=self.dtype, kernel_init=nn.initializers.normal(0.01))
        box, centerness = dense(4, names=_OUT, name="box"), dense(1, names=_OUT, name="centerness")
        scales = self.param("scales", named(nn.initializers.ones, (None,)), (len(levels),))
        flat = [x.reshape(x.shape[0], -1, x.shape[-1]) for x in levels]
        # The level's scale multiplies the bias too.
        deltas = [box(x).astype(jnp.float32) * scale for x, scale in zip(flat, scales)]
        regions = jnp.concatenate(flat, axis=1)
        logits = None
        if self.num_class_logits:
            prior = nn.initializers.constant(PRIOR_BIAS)
            logits = dense(self.num_class_logits, bias_init=prior, names=_OUT, name="class_logits")(regions).astype(jnp.float32)
        return jnp.concatenate(deltas, axis=1), centerness(regions)[..., 0].astype(jnp.float32), logits


class GroundingHead(nn.Module):
    """Dot product of regions and words.

    Call: regions [B, A, C], words [B, T, D] → alignment logits [B, A, T] float32.
    """
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, regions, words):
        bias0 = self.param("bias0", named(nn.initializers.constant(PRIOR_BIAS), (None,)), (1,))
        directions, bias, log_scale = word_directions(self, words, regions.shape[-1], self.dtype)
        logits = einsum_float32("bac,btc->bat", regions, directions) / jnp.exp(log_scale)
        return jnp.clip(logits + (bias + bias0)[:, None], -CLAMP, CLAMP)


def word_directions(module, words, channels, dtype):
    """What a head compares visual features with: logit = feature · direction / exp(log_scale) + bias.

    Args:
      module: the head, inside its compact call; it gets the parameters `text_projection`, `bias_lang` and `log_scale`.
      words: [B, T, D]. channels: C, of the features.
    Returns: directions [B, T, C] of dtype, bias [B, T] float32, log_scale [1].
    """
    bias_lang = module.param("bias_lang", named(nn.initializers.zeros, ("embed",)), (words.shape[-1],))
    log_scale = module.param("log_scale", named(nn.initializers.zeros, (None,)), (1,))
    words = normalize(words)
    # Only the projection sees the halved embedding; the bias is neither halved nor divided by the temperature.
    projection = Dense(channels, dtype=dtype, kernel_init=TORCH_DEFAULT, name="text_projection", parent=module)
    return projection((words / 2).astype(dtype)), words @ bias_lang, log_scale


class MLMHead(nn.Module):
    """Call: fused words at masked positions [B, M, D] → vocabulary logits [B, M, V] float32."""
    vocab_size: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, words):
        dense = functools.partial(Dense, dtype=self.dtype, kernel_init=nn.initializers.normal(0.02))
        x = nn.gelu(dense(words.shape[-1], name="transform")(words), approximate=False)
        x = TextNorm(dtype=self.dtype, name="norm")(x)
        return dense(self.vocab_size, names=("embed", "vocab"), name="decoder")(x).astype(jnp.float32)


class ContrastiveHead(nn.Module):
    """Un-fused features into the common space of the inter-image loss.

    Call: regions [B, A, C] (FPN), words [B, T, D] (text encoder) → unit vectors [B, A, E], [B, T, E] and the log
    temperature, a scalar; all float32.
    """
    dim: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, regions, words):
        dense = functools.partial(Dense, self.dim, dtype=self.dtype, kernel_init=nn.initializers.xavier_uniform())
        # Differs from GLIP: its temperature starts at 1, which leaves a softmax over 10⁴ unit vectors nearly flat.
        log_scale = self.param("log_scale", named(nn.initializers.constant(jnp.log(0.07)), (None,)), (1,))
        return normalize(dense(name="image")(regions)), normalize(dense(name="text")(words)), log_scale[0]


def normalize(x):
    """x over its last axis' L2 norm, float32; zero stays zero with a finite gradient."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-24))
