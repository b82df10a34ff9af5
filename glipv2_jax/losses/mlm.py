"""Masked language modelling: which tokens to hide, and the loss of guessing them.

Source: arXiv 1810.04805; GLIP `detector/generalized_vl_rcnn.py` (`random_word`).
"""
import jax
import jax.numpy as jnp
import optax


def mask_tokens(key, token_ids, token_mask, mlm_eligible, *, mask_id, vocab_size, rate=0.15):
    """Hides a random part of the text: of the chosen tokens 80 % become [MASK], 10 % any word, 10 % stay.

    Args:
      key: random key.
      token_ids: [B, T] int32.
      token_mask: [B, T] bool, False on padding, which is never chosen.
      mlm_eligible: [B, T] int8: −1 never chosen, 0 chosen but not scored, 1 chosen and scored (the data
        contract).
      mask_id: id of the mask token.
      vocab_size: random words are drawn from 0..vocab_size−1, special tokens included, as in the reference.
      rate: probability of being chosen.
    Returns: (masked_ids [B, T] int32, scored [B, T] bool).
    """
    key_choice, key_action, key_word = jax.random.split(key, 3)
    shape = token_ids.shape
    chosen = (jax.random.uniform(key_choice, shape) < rate) & token_mask & (mlm_eligible >= 0)
    action = jax.random.uniform(key_action, shape)
    word = jax.random.randint(key_word, shape, 0, vocab_size, token_ids.dtype)
    hidden = jnp.where(action < 0.8, mask_id, jnp.where(action < 0.9, word, token_ids))
    return jnp.where(chosen, hidden, token_ids), chosen & (mlm_eligible > 0)


def positions(scored, max_positions):
    """First scored tokens of each text, so that the vocabulary layer sees M tokens instead of T.

    Args:
      scored: [B, T] bool. Tokens beyond the first M scored ones are left out of the loss.
      max_positions: M, at most T. Of 256 tokens at rate 0.15, 64 are exceeded once in 10^5 texts.
    Returns: (indices [B, M] int32, valid [B, M] bool).
    Raises: ValueError if M exceeds T.
    """
    if max_positions > scored.shape[-1]:
        raise ValueError(f"mlm: {max_positions} positions asked of {scored.shape[-1]} tokens")
    # top_k takes the lowest index first among equals, which keeps reading order.
    valid, indices = jax.lax.top_k(scored.astype(jnp.int32), max_positions)
    return indices, valid > 0


def mlm_loss(logits, target_ids, valid):
    """Cross-entropy over the vocabulary.

    Differs from GLIP: 0, not NaN, when nothing is scored.

    Args:
      logits: [B, M, V] float.
      target_ids: [B, M] int32, the original tokens.
      valid: [B, M] bool.
    Returns: (total, count), float32 scalars: the sum over valid positions; their number, at least 1.
    """
    losses = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), target_ids)
    return jnp.where(valid, losses, 0).sum(), jnp.maximum(valid.sum(dtype=jnp.float32), 1)
