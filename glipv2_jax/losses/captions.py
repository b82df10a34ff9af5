"""Writing captions: each word is to be told from the image and the words before it.

The paper has captions written under a causal mask by the head of masked words; the loss is the usual one of next words.
"""
import jax.numpy as jnp

from glipv2_jax.losses.mlm import mlm_loss


def next_words(token_ids, token_mask, max_words):
    """Where a caption is continued and by what: after [CLS] by its first word, after its last by [SEP].

    Args:
      token_ids: [B, T] int32, from [CLS] to [SEP]. token_mask: [B, T] bool, False on padding and on texts that are not written.
      max_words: M; what follows the M-th word is left out of the loss, and M is at most T − 1.
    Returns: (positions [B, M] int32, targets [B, M] int32, valid [B, M] bool).
    """
    count = min(max_words, token_ids.shape[1] - 1)
    positions = jnp.broadcast_to(jnp.arange(count, dtype=jnp.int32), (token_ids.shape[0], count))
    return positions, token_ids[:, 1:count + 1], token_mask[:, 1:count + 1]


def caption_loss(logits, target_ids, valid):
    """Cross-entropy of the next words, as that of masked words.

    Args:
      logits: [B, M, V] float, said at the positions of `next_words`. target_ids: [B, M] int32. valid: [B, M] bool.
    Returns: (total, count), float32 scalars: the sum over words; their number, at least 1.
    """
    return mlm_loss(logits, target_ids, valid)
