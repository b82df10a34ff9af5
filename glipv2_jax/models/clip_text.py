"""CLIP-style text tower and its layer: pre-norm, QuickGELU, causal only where the mask is. Source: GLIP clip_model.py."""
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from glipv2_jax.models.bert import encoded, extended, masked_attention, sinusoids
from glipv2_jax.models.config import TextEncoderConfig
from glipv2_jax.models.layers import Dense, Embed, TextNorm, named, rematerialised


class ClipText(nn.Module):
    """Call: token_ids [B, T] int32, mask as for `masked_attention` → final normed state [B, T, D], padding not zeroed.

    With a `cache`, a tuple of one for each layer, the tokens are those from `position` on, and the answer is (state, cache).
    """
    config: TextEncoderConfig
    dtype: jnp.dtype = jnp.float32
    remat: str = ""
    scan_layers: bool = False

    @nn.compact
    def __call__(self, token_ids, mask, train=False, cache=None, position=0):
        c = self.config
        if cache is None and token_ids.shape[1] != c.max_positions:
            raise ValueError(f"text of {token_ids.shape[1]} tokens, but the tower's context is {c.max_positions}")
        x = Embed(c.vocab_size, c.width, dtype=self.dtype, embedding_init=nn.initializers.normal(0.02),
                  name="token_embedding")(token_ids)
        places = self.param("positional_embedding", named(sinusoids, (None, "embed")), (c.max_positions, c.width))
        x = x + jax.lax.dynamic_slice_in_dim(places, position, token_ids.shape[1]).astype(self.dtype)
        layer, norm = rematerialised(ClipLayer, self.remat, (3,)), TextNorm(dtype=self.dtype, name="final_norm")
        layers = [layer(c.width, c.num_heads, c.mlp_dim, dtype=self.dtype, name=f"layer{i}") for i in range(c.num_layers)]
        x = encoded(self, layers, x, mask, train, cache, position)
        return norm(x) if cache is None else (norm(x[0]), x[1])


class ClipLayer(nn.Module):
    """Pre-norm transformer layer. [B, T, D] → [B, T, D]; with a `cache` → (that, cache), see `bert.Cache`.

    No dropout, in training neither.
    """
    width: int
    num_heads: int
    mlp_dim: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, mask, train=False, cache=None, position=0):
        dense = functools.partial(Dense, dtype=self.dtype, kernel_init=nn.initializers.normal(0.02))
        y = TextNorm(dtype=self.dtype, name="attention_norm")(x)
        qkv = dense(3 * self.width, names=("embed", "heads"), name="qkv")(y).reshape(*x.shape[:2], 3, self.num_heads, -1)
        cache, k, v = extended(cache, qkv[:, :, 1], qkv[:, :, 2], position)
        y = masked_attention(qkv[:, :, 0], k, v, mask).reshape(x.shape)
        x = x + dense(self.width, names=("heads", "embed"), name="out")(y)
        y = dense(self.mlp_dim, name="mlp_in")(TextNorm(dtype=self.dtype, name="mlp_norm")(x))
        x = x + dense(self.width, names=("mlp", "embed"), name="mlp_out")(y * jax.nn.sigmoid(1.702 * y))
        return x if cache is None else (x, cache)
