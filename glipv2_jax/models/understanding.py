"""Questions and captions: the answer head, and the parts of the forward pass that writing a caption repeats.

The functions take a bound GLIPv2 first: `model.apply({"params": params}, …, method=read_image)`. What they compute equals the
whole forward pass of a causal text, see `GLIPv2`: no region of such an image reads a word, so that every level of every block is
computed once for an image, however many words are written and however many beams there are.
Source: GLIPv2 (arXiv 2206.05836) sec. 3; the sizes of the answer head are not in the paper.
"""
import functools

import flax.linen as nn
import jax.numpy as jnp

from glipv2_jax.models.bert import Cache
from glipv2_jax.models.heads import PRIOR_BIAS
from glipv2_jax.models.layers import Dense, TextNorm, flatten, unflatten


class AnswerHead(nn.Module):
    """Two-layer classifier. Call: fused first token of a question [B, D] → logits over the answer list [B, N] float32."""
    num_answers: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, first):
        dense = functools.partial(Dense, dtype=self.dtype, kernel_init=nn.initializers.normal(0.02))
        x = TextNorm(dtype=self.dtype, name="norm")(first)
        x = nn.gelu(dense(2 * first.shape[-1], name="hidden")(x), approximate=False)
        # Of thousands of answers a few are right.
        out = dense(self.num_answers, bias_init=nn.initializers.constant(PRIOR_BIAS), names=("mlp", "vocab"), name="out")
        return out(x).astype(jnp.float32)


def read_image(model, levels):
    """Un-fused levels → what words of a caption read: a tuple of normed regions [B, A, C], one for each fusion layer."""
    shapes, regions = [x.shape for x in levels], []
    for i, fusion in enumerate(model.fusion):
        regions.append(fusion.norm_regions(flatten(levels)))
        if i + 1 < len(model.fusion):                # no word reads what the last block makes of the regions
            levels = model.dyconv[i](unflatten(regions[-1], shapes))
    return tuple(regions)


def empty_cache(config, num_texts, max_tokens, dtype):
    """Cache of a text of no words yet, for `write_word`.

    Args:
      config: ModelConfig. num_texts: texts that are written at a time. max_tokens: longest text.
    Returns: (tuple of `bert.Cache` of the text encoder's layers, tuple of those of the fusion tower's).
    """
    text = config.text_encoder

    def layers(count, heads):
        zeros = jnp.zeros((num_texts, max_tokens, heads, text.width // heads), dtype)
        return tuple(Cache(zeros, zeros) for _ in range(count))
    return layers(text.num_layers, text.num_heads), layers(config.num_blocks, config.text_heads)


def write_word(model, regions, cache, token_ids, position):
    """One more word of every text.

    Args:
      regions: of `read_image`, B images. cache: of B · K texts, those of an image side by side.
      token_ids: [B, K] int32, the texts' words at `position`, scalar int32: 0 for the first, which is [CLS].
    Returns: (logits of the words at position + 1 [B, K, V] float32, cache).
    """
    b, k = token_ids.shape
    encoder, tower = cache
    seen = (jnp.arange((encoder + tower)[0].keys.shape[1]) <= position)[None]
    words, encoder = model.text_encoder(token_ids.reshape(b * k, 1), seen, False, encoder, position)
    kept = []
    for of_layer, fusion, layer, before in zip(regions, model.fusion, model.text_layer, tower):
        words = fusion.read(of_layer, words.reshape(b, k, -1)).reshape(b * k, 1, -1)
        words, after = layer(words, seen, False, before, position)
        kept.append(after)
    return model.mlm(words.reshape(b, k, -1)), (encoder, tuple(kept))
