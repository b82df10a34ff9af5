"""Captions of other images around a caption, so that words without a box are seen.

Source: GLIP `datasets/caption.py` (`PACK_RANDOM_CAPTION_NUMBER`).
"""
import dataclasses

import numpy as np

from input_pipeline.text_ops import Span
from input_pipeline.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Packing:
    """How many captions are added.

    count: at most; 0: packing is off (GLIP-L: 20).
    none_probability: how often none.
    all_probability: of the rest, how often `count`; else a uniform number from 0 to count − 1.
    """
    count: int = 0
    none_probability: float = 0.4
    all_probability: float = 0.5

    def draw(self, rng: np.random.Generator) -> int:
        """A number of captions."""
        if not self.count or rng.random() < self.none_probability:
            return 0
        return self.count if rng.random() < self.all_probability else int(rng.integers(self.count))


ALONE = Packing()


def pack(caption: str, spans: list[list[Span]], others: list[str], tokenizer: Tokenizer, max_tokens: int,
         rng: np.random.Generator) -> tuple[str, list[list[Span]], Span]:
    """A caption among others, in random order, each with a full stop and a space after it.

    The caption itself is safe: others are taken in random order while their tokens fit into what it leaves of
    `max_tokens`; one that does not fit is passed over.

    Args:
      spans: for each box, its characters of `caption`. others: captions of other images.
    Returns: the text; the spans in it; where the caption lies in it.
    """
    left = max_tokens - tokenizer.count(caption) - 2                       # [CLS] and [SEP]
    chosen = []
    for place in rng.permutation(len(others)).tolist():
        cost = tokenizer.count(others[place]) + 2
        if cost < left:
            left -= cost
            chosen.append(others[place])
    if not chosen:
        return caption, spans, (0, len(caption))
    texts = [None, *chosen]                                                # None: the caption itself
    text, begin = "", 0
    for place in rng.permutation(len(texts)).tolist():
        part = caption if texts[place] is None else texts[place]
        if texts[place] is None:
            begin = len(text)
        text += part + ("" if part.endswith(".") else ".") + " "
    moved = [[(b + begin, e + begin) for b, e in of_box] for of_box in spans]
    return text, moved, (begin, begin + len(caption))
