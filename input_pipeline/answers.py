"""Answers to questions: how they are compared, and the list of those that a model chooses from."""
import collections
import os
import pathlib
import re
from collections.abc import Iterable, Sequence

import numpy as np

from input_pipeline.schema import text_task

ANSWERS_FILE = "answers.txt"     # beside a checkpoint, as vocab.txt
ENOUGH = 3               # people who say the same make an answer right

_PUNCTUATION = ";/[]\"{}()=+\\_-><@`,?!"
_PERIOD = re.compile(r"\.(?!\d)")
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_NUMBERS = {word: str(n) for n, word in enumerate(
    ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"])} | {"none": "0"}
_ARTICLES = {"a", "an", "the"}
# The protocol knows these and writes the apostrophe that an answer has left out, one at most.
_WITH_APOSTROPHE = (
    "ain't", "aren't", "can't", "could've", "couldn't", "couldn't've", "didn't", "doesn't", "don't", "hadn't",
    "hadn't've", "hasn't", "haven't", "he'd", "he'd've", "he's", "how'd", "how'll", "how's", "isn't", "it'd", "it'd've",
    "it'll", "ma'am", "mightn't", "mightn't've", "might've", "mustn't", "must've", "needn't", "not've", "o'clock",
    "oughtn't", "'ow's'at", "shan't", "she'd've", "should've", "shouldn't", "shouldn't've", "somebody'd've",
    "somebody'll", "somebody's", "someone'd", "someone'd've", "someone'll", "someone's", "something'd",
    "something'd've", "something'll", "that's", "there'd", "there'd've", "there're", "there's", "they'd", "they'd've",
    "they'll", "they're", "they've", "'twas", "wasn't", "we'd've", "we've", "weren't", "what'll", "what're", "what's",
    "what've", "when's", "where'd", "where's", "where've", "who'd", "who'd've", "who'll", "who's", "who've", "why'll",
    "why're", "why's", "won't", "would've", "wouldn't", "wouldn't've", "y'all", "y'all'll", "y'all'd've", "you'd",
    "you'd've", "you'll", "you're", "you've")
_CONTRACTIONS = {word[:place] + word[place + 1:]: word
                 for word in _WITH_APOSTROPHE for place, letter in enumerate(word) if letter == "'"} | {"somebody'd": "somebodyd"}


def without_punctuation(text):
    """A mark beside a space, or any in a text with a comma between digits, goes; others become spaces. So do periods, unless a
    digit follows."""
    out = text
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if beside_space or _COMMA_IN_NUMBER.search(text) else " ")
    return _PERIOD.sub("", out)


def normalize_answer(text):
    """An answer as it is compared: lower case, without punctuation and articles, numbers to ten as digits, apostrophes put back.

    Source: the official evaluation code of VQA v2 (`vqaEval.py`), rules and word lists.
    """
    words = (_NUMBERS.get(word, word) for word in without_punctuation(text).lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


class AnswerList:
    """The answers that a model chooses from. Their order is that of the model's outputs, so that the list travels with weights.

    Args:
      names: the answers; they are normalised, and equal ones are one.
    Raises: ValueError for an empty list.
    """

    def __init__(self, names: Iterable[str]):
        self.names = tuple(dict.fromkeys(filter(None, map(normalize_answer, names))))
        if not self.names:
            raise ValueError("answers: found none, expected at least one")
        self._index = {name: index for index, name in enumerate(self.names)}

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def read(cls, path: str | os.PathLike) -> "AnswerList":
        """From a file with one answer a line. Raises: ValueError naming a file that is not there or holds none."""
        try:
            return cls(pathlib.Path(path).read_text(encoding="utf-8").splitlines())
        except (OSError, ValueError) as error:
            raise ValueError(f"{path}: cannot read a list of answers: {error}") from error

    def text(self) -> str:
        """Content of such a file."""
        return "".join(f"{name}\n" for name in self.names)

    @classmethod
    def most_frequent(cls, sources: Sequence, count: int) -> "AnswerList":
        """The `count` answers that most questions of the sources have as theirs, by falling number, then by name.

        A source that `asks` may have `possible_answers`, which it can say without looking at its questions.

        Raises: ValueError for fewer answers than `count`, or no source that asks.
        """
        found, sources = collections.Counter(), [source for source in sources if text_task(source, "asks")]
        for source in sources:
            if hasattr(source, "possible_answers"):
                found.update(map(normalize_answer, source.possible_answers))
            else:
                asked = getattr(source, "questions", lambda index, source=source: source[index]["questions"])
                found.update(normalize_answer(one["answer"]) for index in range(len(source)) for one in asked(index))
        found.pop("", None)
        if len(found) < count:
            raise ValueError(f"answers: found {len(found)} different ones in the sources {[s.name for s in sources]}, expected the "
                             f"model's {count}; set model.overrides.num_answers to their number, or data.answers to a list")
        return cls(sorted(found, key=lambda name: (-found[name], name))[:count])

    def scores(self, answers: Sequence[str]) -> np.ndarray:
        """float32 [N], how right each answer of the list is: min(1, n / 3) where n of the people gave it.

        Args:
          answers: what people answered.
        """
        scores = np.zeros(len(self), np.float32)
        for name, people in collections.Counter(map(normalize_answer, answers)).items():
            if name in self._index:
                scores[self._index[name]] = min(1.0, people / ENOUGH)
        return scores
