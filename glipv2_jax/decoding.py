"""Writing a text word by word: the likeliest word each time, or beam search. Fixed shapes; knows nothing of models."""
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Written(NamedTuple):
    """Texts [B]: `token_ids` [B, M] int32 without the start, from the end token on padded with it; `scores` [B] float32."""
    token_ids: jax.Array
    scores: jax.Array


def greedy_search(step, cache, batch_size, *, start_id, end_id, max_words):
    """Takes the likeliest word each time, until every text has ended or has `max_words` words, the end among them.

    Args:
      step: function of (cache, token_ids [B, 1] int32, position scalar int32) → (logits of the next words [B, 1, V] float32, cache).
      cache: tree of arrays, for no word. batch_size: B.
      start_id, end_id: tokens that every text starts and ends with.
    Returns: Written; a score is the log-probability of the text.
    """
    def write(carry):
        position, ids, last, done, scores, cache = carry
        logits, cache = step(cache, last[:, None], position)
        log_probs = jax.nn.log_softmax(logits[:, 0])
        best = jnp.where(done, end_id, log_probs.argmax(-1).astype(jnp.int32))
        scores = scores + jnp.where(done, 0, jnp.take_along_axis(log_probs, best[:, None], axis=1)[:, 0])
        return position + 1, ids.at[:, position].set(best), best, done | (best == end_id), scores, cache

    start = (jnp.int32(0), jnp.full((batch_size, max_words), end_id, jnp.int32), jnp.full(batch_size, start_id, jnp.int32),
             jnp.zeros(batch_size, bool), jnp.zeros(batch_size), cache)
    _, ids, _, _, scores, _ = jax.lax.while_loop(lambda carry: (carry[0] < max_words) & ~carry[3].all(), write, start)
    return Written(ids, scores)


def beam_search(step, cache, batch_size, *, start_id, end_id, max_words, beams, length_penalty=1.0):
    """The best text that a search with a few beams finds, by log-probability / words^length_penalty.

    Each round the 2K best continuations of the K beams are looked at: those that end compete with the finished text, of the others
    the K best go on. A search is over when no beam can pass its finished text any more; a text of `max_words` words counts as it
    stands. With as many beams as there are texts this is the best text of all.

    Args:
      step: as for `greedy_search`, of token_ids [B, K], whose logits are [B, K, V]. The leading axis of every array of the cache has
        B · K entries, those of a text side by side.
      cache, batch_size, start_id, end_id, max_words: as for `greedy_search`.
      beams: K. length_penalty: at least 0; at 0 short texts win.
    Returns: Written; a score is the log-probability over that power of the number of words, the end counted.
    """
    b, k = batch_size, beams

    def penalized(scores, words):
        return scores / jnp.float32(words)**length_penalty

    def of_beams(x, parents):
        """Entries [B, K, …] of the chosen beams [B, K]."""
        return jnp.take_along_axis(x, parents.reshape(b, k, *[1] * (x.ndim - 2)), axis=1)

    def write(carry):
        position, ids, last, scores, best_ids, best_scores, cache = carry
        logits, cache = step(cache, last, position)
        vocabulary = logits.shape[-1]
        totals = (scores[..., None] + jax.nn.log_softmax(logits)).reshape(b, -1)
        totals, chosen = jax.lax.top_k(totals, min(2 * k, totals.shape[1]))
        parents, words = chosen // vocabulary, (chosen % vocabulary).astype(jnp.int32)
        texts = jnp.take_along_axis(ids, parents[..., None], axis=1).at[:, :, position].set(words)

        # A text is finished by its end, or by being as long as texts may be.
        finished = (words == end_id) | (position + 1 == max_words)
        finals = jnp.where(finished, penalized(totals, position + 1), -jnp.inf)
        best = finals.argmax(1)[:, None]
        final = jnp.take_along_axis(finals, best, axis=1)[:, 0]
        better = final > best_scores
        best_ids = jnp.where(better[:, None], jnp.take_along_axis(texts, best[..., None], axis=1)[:, 0], best_ids)
        best_scores = jnp.where(better, final, best_scores)

        # At most K of the 2K end here, one for each beam.
        scores, going_on = jax.lax.top_k(jnp.where(words == end_id, -jnp.inf, totals), k)
        parents, last = (jnp.take_along_axis(x, going_on, axis=1) for x in (parents, words))
        ids = jnp.take_along_axis(texts, going_on[..., None], axis=1)
        cache = jax.tree.map(lambda x: of_beams(x.reshape(b, k, *x.shape[1:]), parents).reshape(x.shape), cache)
        return position + 1, ids, last, scores, best_ids, best_scores, cache

    def goes_on(carry):
        position, _, _, scores, _, best_scores, _ = carry
        # Log-probabilities only fall, and no divisor is larger than the longest text's.
        return (position < max_words) & (penalized(scores.max(1), max_words) > best_scores).any()

    ids = jnp.full((b, k, max_words), end_id, jnp.int32)
    # All beams start alike: only the first counts.
    scores = jnp.tile(jnp.where(jnp.arange(k) == 0, 0.0, -jnp.inf), (b, 1))
    start = (jnp.int32(0), ids, jnp.full((b, k), start_id, jnp.int32), scores, ids[:, 0], jnp.full(b, -jnp.inf), cache)
    carry = jax.lax.while_loop(goes_on, write, start)
    return Written(carry[4], carry[5])
