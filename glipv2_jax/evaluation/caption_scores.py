"""BLEU, ROUGE-L and CIDEr-D of captions. METEOR and SPICE need Java and are not built."""
import collections
import math

import numpy as np

from glipv2_jax.evaluation.ptb_tokenizer import tokenize

_ORDERS = 4                  # n-grams of up to four words
_SIGMA = 6.0                 # of CIDEr-D: how fast other lengths lose
_BETA = 1.2                  # of ROUGE-L: weight of recall


def caption_scores(references, candidates):
    """Scores one caption for each image against those of people.

    Args:
      references: dict image id → list of captions. candidates: dict image id → caption.
    Returns: dict with floats Bleu_1 to Bleu_4 (of the whole set, closest length), ROUGE_L and CIDEr (CIDEr-D; document
      frequencies are those of the references), and `per_image`, image id → {"CIDEr", "ROUGE_L"}.
    Raises: ValueError if the images differ or one has no reference.
    Source: the official COCO caption evaluation; Vedantam et al., arXiv 1411.5726 (CIDEr-D).
    """
    for problem, ids in (("without a caption", references.keys() - candidates.keys()),
                         ("that have no references", candidates.keys() - references.keys()),
                         ("with an empty list of references", {i for i, captions in references.items() if not captions})):
        if ids:
            raise ValueError(f"captions: {len(ids)} images {problem}, among them {min(ids, key=str)}; expected one caption for "
                             f"each of {len(references)} images")
    if not references:
        raise ValueError("captions: found none, expected at least one")
    images = list(references)
    texts = [tokenize(candidates[image]) for image in images]
    truth = [[tokenize(caption) for caption in references[image]] for image in images]
    cider = _cider(texts, truth)
    rouge = [_rouge_l(text, people) for text, people in zip(texts, truth)]
    return {**{f"Bleu_{n}": value for n, value in enumerate(_bleu(texts, truth), start=1)},
            "ROUGE_L": float(np.mean(rouge)), "CIDEr": float(np.mean(cider)),
            "per_image": {image: {"CIDEr": c, "ROUGE_L": r} for image, c, r in zip(images, cider, rouge)}}


def _ngrams(words):
    """Counter of all n-grams of up to `_ORDERS` words."""
    return collections.Counter(tuple(words[i:i + n]) for n in range(1, _ORDERS + 1) for i in range(len(words) - n + 1))


def _bleu(texts, truth):
    correct, possible, length, closest = np.zeros(_ORDERS), np.zeros(_ORDERS), 0, 0
    for text, people in zip(texts, truth):
        most = collections.Counter()
        for reference in people:
            most |= _ngrams(reference)
        for ngram, count in (_ngrams(text) & most).items():
            correct[len(ngram) - 1] += count
        possible += [max(0, len(text) - n) for n in range(_ORDERS)]
        length += len(text)
        closest += min((abs(len(reference) - len(text)), len(reference)) for reference in people)[1]
    # The official constants, which keep empty counts from dividing by zero.
    precision = (correct + 1e-15) / (possible + 1e-9)
    ratio = (length + 1e-15) / (closest + 1e-9)
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    return [brevity * float(np.prod(precision[:n]) ** (1 / n)) for n in range(1, _ORDERS + 1)]


def _rouge_l(text, people):
    common = [_longest_common(text, reference) for reference in people]
    precision = max(c / len(text) if text else 0 for c in common)
    recall = max(c / len(reference) if reference else 0 for c, reference in zip(common, people))
    if not precision or not recall:
        return 0.0
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def _longest_common(a, b):
    """Length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for word in a:
        diagonal = 0
        for j, other in enumerate(b, start=1):
            diagonal, row[j] = row[j], diagonal + 1 if word == other else max(row[j], row[j - 1])
    return row[-1]


def _cider(texts, truth):
    frequency = collections.Counter()
    for people in truth:
        frequency.update({ngram for reference in people for ngram in _ngrams(reference)})
    images = math.log(len(truth))

    def vector(words):
        weights = [{} for _ in range(_ORDERS)]
        for ngram, count in _ngrams(words).items():
            weights[len(ngram) - 1][ngram] = count * (images - math.log(max(1, frequency[ngram])))
        norms = [math.sqrt(sum(w * w for w in of_order.values())) for of_order in weights]
        return weights, norms, max(0, len(words) - 1)              # lengths count pairs of words, as in the official code

    scores = []
    for text, people in zip(texts, truth):
        ours, our_norms, our_length = vector(text)
        total = 0.0
        for reference in people:
            theirs, their_norms, length = vector(reference)
            close = math.exp(-(our_length - length) ** 2 / (2 * _SIGMA**2))
            for a, b, norm_a, norm_b in zip(ours, theirs, our_norms, their_norms):
                product = sum(min(weight, b.get(ngram, 0.0)) * b.get(ngram, 0.0) for ngram, weight in a.items())
                total += close * (product / (norm_a * norm_b) if norm_a and norm_b else product)
        scores.append(10 * total / (_ORDERS * len(people)))
    return scores
