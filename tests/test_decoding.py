"""Greedy and beam search beside a search through all texts of a tiny vocabulary."""
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glipv2_jax.decoding import beam_search, greedy_search

VOCABULARY, END, START, WORDS = 4, 1, 0, 4


def random_language(seed, sharpness=1.5):
    """(step, cache of so many beams, table) of two texts, whose words depend on the two before them."""
    rng = np.random.default_rng(seed)
    logits = sharpness * rng.standard_normal((2, VOCABULARY, VOCABULARY, VOCABULARY))
    table = np.asarray(jax.nn.log_softmax(logits.astype(np.float32)))

    def step(cache, ids, position):
        b, k = ids.shape
        logits = jnp.asarray(table)[cache["text"].reshape(b, k), cache["before"].reshape(b, k), ids]
        return logits, {"before": ids.reshape(-1), "text": cache["text"]}

    def cache(beams):
        return {"before": jnp.zeros(2 * beams, jnp.int32), "text": jnp.repeat(jnp.arange(2), beams)}
    return step, cache, table


OPTIONS = {"start_id": START, "end_id": END, "max_words": WORDS}


def best_of_all(table, length_penalty):
    """Texts that end, or are WORDS long, and their scores: the best one."""
    found = []
    for length in range(1, WORDS + 1):
        for words in itertools.product(range(VOCABULARY), repeat=length):
            if END in words[:-1] or (words[-1] != END and length < WORDS):
                continue
            before, last, total = 0, START, 0.0
            for word in words:
                total += table[before, last, word]
                before, last = last, word
            found.append((total / length**length_penalty, words + (END,) * (WORDS - length)))
    return max(found)


@pytest.mark.parametrize("length_penalty", [0.0, 0.7, 1.5])
@pytest.mark.parametrize("seed", range(4))
def test_wide_beams_find_the_best_of_all_texts(seed, length_penalty):
    step, cache, table = random_language(seed)
    beams = VOCABULARY**(WORDS - 1)
    found = jax.jit(lambda: beam_search(step, cache(beams), 2, beams=beams, length_penalty=length_penalty, **OPTIONS))()
    for text in range(2):
        score, words = best_of_all(table[text], length_penalty)
        assert tuple(found.token_ids[text].tolist()) == words
        assert found.scores[text] == pytest.approx(score, abs=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_one_beam_is_greedy(seed):
    step, cache, _ = random_language(seed)
    one = beam_search(step, cache(1), 2, beams=1, length_penalty=0.0, **OPTIONS)
    greedy = greedy_search(step, cache(1), 2, **OPTIONS)
    np.testing.assert_array_equal(one.token_ids, greedy.token_ids)
    np.testing.assert_allclose(one.scores, greedy.scores, atol=1e-6)


def test_a_few_beams_are_no_worse_than_greedy_on_average_and_penalties_lengthen():
    lengths, gains = [], []
    for seed in range(6):
        step, cache, _ = random_language(seed, sharpness=0.7)
        greedy = greedy_search(step, cache(1), 2, **OPTIONS)
        beams = [beam_search(step, cache(3), 2, beams=3, length_penalty=p, **OPTIONS) for p in (0.0, 2.0)]
        gains.append(np.mean(beams[0].scores - greedy.scores))
        lengths.append([(np.asarray(found.token_ids) != END).sum() for found in beams])
    assert np.mean(gains) > 0
    short, long = np.sum(lengths, axis=0)
    assert long > short
