"""BERT text encoder and the BERT layer of the head. Sources: Hugging Face BertModel; GLIP rpn/modeling_bert.py."""
import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from glipv2_jax.models.config import TextEncoderConfig
from glipv2_jax.models.layers import Dense, Embed, TextNorm, rematerialised, scanned
from glipv2_jax.ops.einsum import einsum_float32

CLAMP = 50000.0


class Bert(nn.Module):
    """Call: token_ids [B, T] int32, mask as for `masked_attention` → last hidden state [B, T, D], padding not zeroed.

    With a `cache`, a tuple of one for each layer, the tokens are those from `position` on, and the answer is (state, cache).
    """
    config: TextEncoderConfig
    dtype: jnp.dtype = jnp.float32
    remat: str = ""
    scan_layers: bool = False

    @nn.compact
    def __call__(self, token_ids, mask, train=False, cache=None, position=0):
        c = self.config
        if token_ids.shape[1] > c.max_positions:
            raise ValueError(f"text of {token_ids.shape[1]} tokens, but the text encoder has {c.max_positions} "
                             "positions")

        def embed(count, name, init=nn.initializers.normal(0.02), rows=None):
            return Embed(count, c.width, dtype=self.dtype, embedding_init=init, names=(rows, "embed"), name=name)
        x = embed(c.vocab_size, "word_embeddings", rows="vocab")(token_ids)
        x = x + embed(c.max_positions, "position_embeddings", sinusoids)(position + jnp.arange(token_ids.shape[1]))
        x = x + embed(2, "token_type_embeddings")(jnp.zeros((), jnp.int32))
        x = TextNorm(dtype=self.dtype, name="norm")(x)
        x = nn.Dropout(c.dropout, deterministic=not train)(x)
        layer = rematerialised(BertLayer, self.remat, (3,))
        layers = [layer(c.width, c.num_heads, c.mlp_dim, c.dropout, dtype=self.dtype, name=f"layer{i}") for i in range(c.num_layers)]
        return encoded(self, layers, x, mask, train, cache, position)


def encoded(module, layers, x, mask, train, cache, position):
    """Embedded tokens through the layers of a text encoder, `module`.

    Returns: x, or (x, cache) with a cache.
    """
    if cache is not None:
        kept = []
        for of_layer, before in zip(layers, cache):
            x, after = of_layer(x, mask, train, before, position)
            kept.append(after)
        return x, tuple(kept)
    if module.scan_layers and not module.is_initializing():
        rng = module.make_rng("dropout") if train else None
        return scanned([(of_layer,) for of_layer in layers], lambda step, x, _: step[0](x, mask, train), x, rng)
    for of_layer in layers:
        x = of_layer(x, mask, train)
    return x


class BertLayer(nn.Module):
    """Post-norm transformer layer. [B, T, D] → [B, T, D]; with a `cache` → (that, cache), see `Cache`.

    `clamp` limits scores and feed-forward activations to ±50000, as in the head's copy of the layer.
    """
    width: int
    num_heads: int
    mlp_dim: int
    dropout: float
    clamp: bool = False
    dtype: jnp.dtype = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.normal(0.02)

    @nn.compact
    def __call__(self, x, mask, train=False, cache=None, position=0):
        dense = functools.partial(Dense, dtype=self.dtype, kernel_init=self.kernel_init)
        dropout = nn.Dropout(self.dropout, deterministic=not train)
        clamp = (lambda y: jnp.clip(y, -CLAMP, CLAMP)) if self.clamp else (lambda y: y)

        heads = (*x.shape[:2], self.num_heads, self.width // self.num_heads)
        q, k, v = (dense(self.width, names=("embed", "heads"), name=name)(x).reshape(heads) for name in ("query", "key", "value"))
        cache, k, v = extended(cache, k, v, position)
        context = masked_attention(q, k, v, mask, clamp, dropout).reshape(x.shape)
        y = dropout(dense(self.width, names=("heads", "embed"), name="out")(context))
        x = TextNorm(dtype=self.dtype, name="attention_norm")(x + y)

        y = clamp(nn.gelu(clamp(dense(self.mlp_dim, name="mlp_in")(x)), approximate=False))
        y = clamp(dropout(dense(self.width, names=("mlp", "embed"), name="mlp_out")(y)))
        y = clamp(TextNorm(dtype=self.dtype, name="mlp_norm")(x + y))
        return y if cache is None else (y, cache)


def sinusoids(key, shape, dtype=jnp.float32):
    """Initial position table [P, D] of BERT's usual magnitude, 0.02.

    Neighbours are alike in the same way everywhere from the first step on, so that an encoder trained from scratch
    binds "red" to "star" early; random vectors would have to learn that for each position anew.
    """
    del key
    half = shape[1] // 2
    angle = np.arange(shape[0])[:, None] / 10_000**(np.arange(half) / half)
    table = np.concatenate([np.sin(angle), np.cos(angle)], axis=1)
    return jnp.asarray(np.pad(table, ((0, 0), (0, shape[1] - 2 * half))) * 0.02 * 2**0.5, dtype)


class Cache(NamedTuple):
    """Keys and values of a layer's attention for the tokens so far, [B, T, N, d] each; the rest is not read."""
    keys: jax.Array
    values: jax.Array


def extended(cache, k, v, position):
    """(cache with the keys and values of the tokens from `position` on, all its keys, all its values); without a cache
    (None, k, v)."""
    if cache is None:
        return None, k, v
    cache = Cache(*(jax.lax.dynamic_update_slice_in_dim(before, new.astype(before.dtype), position, axis=1)
                    for before, new in zip(cache, (k, v))))
    return cache, *cache


def attention_mask(token_mask, causal=None):
    """Which tokens each token reads, as `masked_attention` takes it.

    Args:
      token_mask: [B, T] bool, False on padding.
      causal: [B] bool, texts whose tokens read themselves and what stands before them alone; None: no text.
    Returns: [B, T] bool without `causal`, else [B, T, T] bool, the reading token first.
    """
    if causal is None:
        return token_mask
    before = jnp.tril(jnp.ones((token_mask.shape[1],) * 2, bool))
    return token_mask[:, None] & (before | ~causal[:, None, None])


def masked_attention(q, k, v, mask, clamp=lambda s: s, dropout=lambda w: w):
    """Softmax attention over real tokens.

    Args:
      q: [B, Q, N, d]. k, v: [B, T, N, d].
      mask: [B, T] bool, tokens that all read, or [B, Q, T] bool, those that each reads. Who reads none attends evenly, and stays
        finite.
      clamp: applied to the float32 scores before the mask.
      dropout: applied to the weights.
    Returns: [B, Q, N, d].
    """
    mask = mask[:, None, None] if mask.ndim == 2 else mask[:, None]
    scores = einsum_float32("bqnd,bknd->bnqk", q * q.shape[-1]**-0.5, k)
    scores = jnp.where(mask, clamp(scores), jnp.finfo(jnp.float32).min)
    weights = dropout(jax.nn.softmax(scores)).astype(v.dtype)
    return jnp.einsum("bnqk,bknd->bqnd", weights, v)
