"""BERT text encoder and the BERT layer of the head. Sources: Hugging Face BertModel; GLIP rpn/modeling_bert.py."""
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from glipv2_jax.models.config import TextEncoderConfig
from glipv2_jax.models.layers import Dense, Embed, TextNorm, rematerialised
from glipv2_jax.ops.einsum import einsum_float32

CLAMP = 50000.0


class Bert(nn.Module):
    """Call: token_ids [B, T] int32, token_mask [B, T] bool → last hidden state [B, T, D], padding not zeroed."""
    config: TextEncoderConfig
    dtype: jnp.dtype = jnp.float32
    remat: str = ""

    @nn.compact
    def __call__(self, token_ids, token_mask, train=False):
        c = self.config
        if token_ids.shape[1] > c.max_positions:
            raise ValueError(f"text of {token_ids.shape[1]} tokens, but the text encoder has {c.max_positions} "
                             "positions")

        def embed(count, name, init=nn.initializers.normal(0.02), rows=None):
            return Embed(count, c.width, dtype=self.dtype, embedding_init=init, names=(rows, "embed"), name=name)
        x = embed(c.vocab_size, "word_embeddings", rows="vocab")(token_ids)
        x = x + embed(c.max_positions, "position_embeddings", sinusoids)(jnp.arange(token_ids.shape[1]))
        x = x + embed(2, "token_type_embeddings")(jnp.zeros((), jnp.int32))
        x = TextNorm(dtype=self.dtype, name="norm")(x)
        x = nn.Dropout(c.dropout, deterministic=not train)(x)
        layer = rematerialised(BertLayer, self.remat, (3,))
        for i in range(c.num_layers):
            x = layer(c.width, c.num_heads, c.mlp_dim, c.dropout, dtype=self.dtype, name=f"layer{i}")(
                x, token_mask, train)
        return x


class BertLayer(nn.Module):
    """Post-norm transformer layer. [B, T, D] → [B, T, D].

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
    def __call__(self, x, token_mask, train=False):
        dense = functools.partial(Dense, dtype=self.dtype, kernel_init=self.kernel_init)
        dropout = nn.Dropout(self.dropout, deterministic=not train)
        clamp = (lambda y: jnp.clip(y, -CLAMP, CLAMP)) if self.clamp else (lambda y: y)

        heads = (*x.shape[:2], self.num_heads, self.width // self.num_heads)
        q, k, v = (dense(self.width, names=("embed", "heads"), name=name)(x).reshape(heads) for name in ("query", "key", "value"))
        context = masked_attention(q, k, v, token_mask, clamp, dropout).reshape(x.shape)
        y = dropout(dense(self.width, names=("heads", "embed"), name="out")(context))
        x = TextNorm(dtype=self.dtype, name="attention_norm")(x + y)

        y = clamp(nn.gelu(clamp(dense(self.mlp_dim, name="mlp_in")(x)), approximate=False))
        y = clamp(dropout(dense(self.width, names=("mlp", "embed"), name="mlp_out")(y)))
        return clamp(TextNorm(dtype=self.dtype, name="mlp_norm")(x + y))


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


def masked_attention(q, k, v, token_mask, clamp=lambda s: s, dropout=lambda w: w):
    """Softmax attention over real tokens.

    Args:
      q, k, v: [B, T, N, d].
      token_mask: [B, T] bool, False on padding keys. A row without a real token attends evenly, and stays finite.
      clamp: applied to the float32 scores before the mask.
      dropout: applied to the weights.
    Returns: [B, T, N, d].
    """
    scores = einsum_float32("bqnd,bknd->bnqk", q * q.shape[-1]**-0.5, k)
    scores = jnp.where(token_mask[:, None, None, :], clamp(scores), jnp.finfo(jnp.float32).min)
    weights = dropout(jax.nn.softmax(scores)).astype(v.dtype)
    return jnp.einsum("bnqk,bknd->bqnd", weights, v)
