"""Characters to tokens: which token positions name a box, a class, or may be masked.

A span is (begin, end), characters [begin, end) of the text. Offsets are those of `tokenizer.Encoding`.
Special tokens hold their positions ([CLS] is 0) but belong to no span.
"""
from collections.abc import Mapping, Sequence

import numpy as np

from input_pipeline.schema import MLM_NEVER, MLM_SCORED, MLM_UNSCORED, NO_CLASS

Span = tuple[int, int]


def span_tokens(offsets: np.ndarray, begin: int, end: int) -> slice:
    """Token positions of one span; an empty slice where it has no token (white space, or truncated away).

    The first token is that of character begin, else begin + 1, else begin + 2; the last that of end − 1, else
    end − 2, else end − 3: spans may start or end in white space, which belongs to no token.

    Args:
      offsets: int [T, 2].
    Source: GLIP `create_positive_map`.
    """
    first = _first_token(offsets, (begin, begin + 1, begin + 2))
    last = _first_token(offsets, (end - 1, end - 2, end - 3))
    return slice(0, 0) if first is None or last is None else slice(first, last + 1)


def _first_token(offsets, characters):
    for character in characters:
        inside = np.flatnonzero((offsets[:, 0] <= character) & (character < offsets[:, 1]))
        if inside.size:
            return int(inside[0])
    return None


def positive_map(spans: Sequence[Sequence[Span]], offsets: np.ndarray) -> np.ndarray:
    """bool [n, T]: token t lies in a span of box n. A box whose spans have no tokens has an empty row.

    Args:
      spans: for each of n boxes, its spans.
      offsets: int [T, 2].
    """
    found = np.zeros((len(spans), len(offsets)), np.bool_)
    for row, box_spans in zip(found, spans):
        for begin, end in box_spans:
            row[span_tokens(offsets, begin, end)] = True
    return found


def phrases_of(record: Mapping) -> tuple[list[tuple[Span, ...]], np.ndarray]:
    """The phrases that a caption's boxes speak of: boxes with the same words are of one phrase.

    Args:
      record: of a caption, see `schema`.
    Returns: spans of each phrase, in the order in which its first box comes; and phrase of each box, int [n].
    """
    known = {}
    of_box = [known.setdefault(tuple(map(tuple, spans)), len(known)) for spans in record["spans"]]
    return list(known), np.array(of_box, int)


def asked_phrases(record: Mapping) -> list[tuple[Span, ...]]:
    """The phrases that a model is asked for: those that the record states, else those of its boxes.

    Args:
      record: of a caption, see `schema`.
    """
    return [tuple(map(tuple, spans)) for spans in record["asked"]] if "asked" in record else phrases_of(record)[0]


def spans_of(words: np.ndarray, offsets: np.ndarray) -> list[Span]:
    """The characters of a set of words, one span for each run of neighbouring tokens: back from `positive_map`.

    Args:
      words: bool [T]. offsets: int [T, 2].
    """
    chosen = np.flatnonzero(words)
    runs = np.split(chosen, np.flatnonzero(np.diff(chosen) > 1) + 1) if chosen.size else []
    return [(int(offsets[run[0], 0]), int(offsets[run[-1], 1])) for run in runs]


def label_to_tokens(spans: Mapping[int, Sequence[Span]], offsets: np.ndarray) -> dict[int, list[int]]:
    """Token positions of each label, ascending; an empty list for a label without tokens (a blank name)."""
    rows = positive_map(list(spans.values()), offsets)
    return {label: np.flatnonzero(row).tolist() for label, row in zip(spans, rows)}


def token_class(spans: Mapping[int, Span], offsets: np.ndarray) -> np.ndarray:
    """int32 [T]: the class whose name token t belongs to, else NO_CLASS.

    Args:
      spans: class id -> its span, for every class in the prompt, present in the image or not.
    """
    found = np.full(len(offsets), NO_CLASS, np.int32)
    for class_id, (begin, end) in spans.items():
        found[span_tokens(offsets, begin, end)] = class_id
    return found


def mlm_eligible_caption(offsets: np.ndarray) -> np.ndarray:
    """int8 [T] for a caption: every word is MLM_SCORED; [CLS], [SEP] and padding are MLM_NEVER.

    Differs from GLIP: there [CLS] and [SEP] can be replaced, which teaches nothing.
    """
    is_word = offsets[:, 1] > offsets[:, 0]
    return np.where(is_word, MLM_SCORED, MLM_NEVER).astype(np.int8)


def mlm_eligible_detection(positive: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """int8 [T] for a class list: names of present classes MLM_SCORED, the other words MLM_UNSCORED.

    Only of use where a configuration asks for it. By default a class list is MLM_NEVER: corrupting class
    names changes what the region-word loss has to match.

    Args:
      positive: bool [n, T], the positive map of the boxes.
    """
    eligible = np.where(offsets[:, 1] > offsets[:, 0], MLM_UNSCORED, MLM_NEVER).astype(np.int8)
    eligible[positive.any(axis=0)] = MLM_SCORED
    return eligible
