"""Answering questions: every answer of the list is right to some degree, each judged apart."""
import jax.numpy as jnp
import optax


def answer_loss(logits, scores, is_question):
    """Binary cross-entropy with soft targets, summed over the answers.

    Args:
      logits: [B, N] float, before the sigmoid.
      scores: [B, N] float32 in 0 … 1, the share of people that is enough for an answer to be right.
      is_question: [B] bool.
    Returns: (total, count), float32 scalars: the sum over questions and answers; questions, at least 1.
    Source: the usual objective of VQA v2 (arXiv 1708.02711); the paper says "classification" only.
    """
    losses = optax.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), scores).sum(-1)
    return jnp.where(is_question, losses, 0).sum(), jnp.maximum(is_question.sum(dtype=jnp.float32), 1)
