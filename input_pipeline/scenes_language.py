"""Phrases, captions and questions about a list of things, true by construction.

A phrase names *all* things it fits: "a red star" is used only where there is exactly one red star, and
"two striped circles" names exactly the striped circles. So no unnamed object is a wrong negative.
"""
import dataclasses
from collections.abc import Sequence
from itertools import zip_longest
from typing import NamedTuple

import numpy as np

SIZES = ("small", "medium", "large")
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
           "twelve")
_PLURALS = {"leaf": "leaves", "wolf": "wolves", "knife": "knives", "mouse": "mice", "goose": "geese",
            "sheep": "sheep", "fish": "fish", "deer": "deer", "bison": "bison", "squid": "squid"}
_ATTRIBUTES = ("noun", "size", "colour", "texture")
_OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


@dataclasses.dataclass(frozen=True)
class Thing:
    """What words can say of one object. `colour` and `texture` are None where the world has none."""
    noun: str
    size: str = "medium"
    colour: str | None = None
    texture: str | None = None

    @property
    def name(self) -> str:
        """The class name, such as "red star"."""
        return f"{self.colour} {self.noun}" if self.colour else self.noun


@dataclasses.dataclass(frozen=True)
class Phrase:
    """A description; an attribute that is None is not mentioned. `generic` stands in for a missing noun."""
    noun: str | None = None
    size: str | None = None
    colour: str | None = None
    texture: str | None = None
    generic: str = "object"

    def fits(self, thing: Thing) -> bool:
        """True if every attribute mentioned is the thing's."""
        return all(getattr(self, key) in (None, getattr(thing, key)) for key in _ATTRIBUTES)

    def words(self, plural: bool = False) -> str:
        """The phrase without article or number, such as "small red stars"."""
        noun = self.noun or self.generic
        adjectives = [word for word in (self.size, self.texture, self.colour) if word]
        return " ".join([*adjectives, pluralise(noun) if plural else noun])

    def counted(self, count: int) -> str:
        """The phrase for `count` ≥ 1 things, such as "a red star" or "two red stars"."""
        if count > 1:
            return f"{NUMBERS[count]} {self.words(plural=True)}"
        words = self.words()
        return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def pluralise(noun: str) -> str:
    """Plural of a noun or of the last word of a compound."""
    start, space, last = noun.rpartition(" ")
    if last in _PLURALS:
        last = _PLURALS[last]
    elif last.endswith(("s", "x", "z", "ch", "sh")):
        last += "es"
    elif last.endswith("y") and last[-2] not in "aeiou":
        last = last[:-1] + "ies"
    else:
        last += "s"
    return start + space + last


def relations(first: np.ndarray, second: np.ndarray) -> list[str]:
    """Which relations hold between two boxes (xyxy), or between every pair of two groups [n, 4] and [m, 4].

    A relation holds only where the boxes are apart along its axis, so it is never a matter of taste.
    """
    first, second = np.atleast_2d(first), np.atleast_2d(second)
    found = []
    for axis, (before, after) in enumerate((("left of", "right of"), ("above", "below"))):
        if first[:, axis + 2].max() < second[:, axis].min():
            found.append(before)
        elif second[:, axis + 2].max() < first[:, axis].min():
            found.append(after)
    return found


def random_phrase(rng, thing: Thing, generic: str) -> Phrase:
    """A phrase that fits `thing`, with attributes dropped at random."""
    noun, size, colour, texture = rng.random(4) < (0.88, 0.4, 0.6, 0.5)
    # Medium and plain are what one says nothing about.
    size = thing.size if size and thing.size != "medium" else None
    texture = thing.texture if texture and thing.texture != "plain" else None
    colour = thing.colour if colour else None
    named = noun or not (size or colour or texture)
    return Phrase(thing.noun if named else None, size, colour, texture, generic)


def make_caption(rng, things: Sequence[Thing], boxes, generic="object", ending=None, max_phrases=4):
    """Writes a caption about some of the things.

    Args:
      things: n ≥ 1 things.
      boxes: [n, 4] xyxy of the same.
      generic: noun for "two red <objects>".
      ending: where it all is ("a wooden table"), put after "on", or None.
    Returns: (caption, dict of index of a named thing -> (begin, end) of its phrase), in order of index.
    """
    wanted, chosen, named = rng.integers(1, max_phrases + 1), [], set()
    for index in rng.permutation(len(things)).tolist():
        if len(chosen) == wanted:
            break
        thing = things[index]
        # A loose phrase may fit things already named; the full description is the second try.
        for phrase in (random_phrase(rng, thing, generic), _full_phrase(thing, generic)):
            group = [i for i, other in enumerate(things) if phrase.fits(other)]
            if index not in named and named.isdisjoint(group):
                chosen.append((phrase, group))
                named.update(group)
    listing = rng.random() < 0.3
    text, spans = str(rng.choice(["", "", "", "a picture of ", "here we see "])), {}
    for place, (phrase, group) in enumerate(chosen):
        if place and listing:
            text += " and " if place == len(chosen) - 1 else ", "
        elif place:
            text += _link(rng, boxes[chosen[place - 1][1]], boxes[group]) if place % 2 else ". "
        begin = len(text)
        text += phrase.counted(len(group))
        spans.update(dict.fromkeys(group, (begin, len(text))))
    return text + (f" on {ending}" if ending else ""), dict(sorted(spans.items()))


def _full_phrase(thing, generic):
    return Phrase(thing.noun, None if thing.size == "medium" else thing.size, thing.colour,
                  None if thing.texture == "plain" else thing.texture, generic)


def _link(rng, before, after):
    """What joins the two phrases of a sentence. With two to a sentence it is clear whose a relation is."""
    found = relations(before, after)
    return f" {_pick(rng, found)} " if found and rng.random() < 0.75 else " and "


class Question(NamedTuple):
    """text, its answer, and index of a thing that it names → (begin, end) of the phrase, in order of index."""
    text: str
    answer: str
    spans: dict[int, tuple[int, int]]


def make_questions(rng, things: Sequence[Thing], boxes, names: Sequence[Thing], generic="object"):
    """A count, an existence, a colour and a relation, each where the picture has a clear one.

    Args:
      things, boxes, generic: as for `make_caption`.
      names: things of the vocabulary that questions about absent things may mention.
    Returns: list of Question; answers are digits, "yes", "no" or a colour word.
    """
    made = []

    def ask(pattern, answer, *asked):
        """asked: for each {} of the pattern (its words, indices of the things that they name)."""
        text, spans = "", {}
        for part, (words, group) in zip_longest(pattern.split("{}"), asked, fillvalue=("", ())):
            text += part
            spans.update(dict.fromkeys(group, (len(text), len(text) + len(words))))
            text += words
        made.append(Question(text, answer, dict(sorted(spans.items()))))

    def group(phrase):
        return [i for i, thing in enumerate(things) if phrase.fits(thing)]
    absent = _absent(rng, things, names)
    asked = absent if absent and rng.random() < 0.2 else random_phrase(rng, _pick(rng, things), generic)
    ask("how many {} are there?", str(len(group(asked))), (asked.words(plural=True), group(asked)))
    asked = absent if absent and rng.random() < 0.5 else random_phrase(rng, _pick(rng, things), generic)
    ask("is there {}?", "no" if asked is absent else "yes", (asked.counted(1), group(asked)))
    phrases = [_full_phrase(thing, generic) for thing in things]
    unique = [i for i, phrase in enumerate(phrases) if sum(map(phrase.fits, things)) == 1]
    if unique:
        index = _pick(rng, unique)
        asked = dataclasses.replace(phrases[index], colour=None)
        if things[index].colour and sum(map(asked.fits, things)) == 1:
            ask("what color is {}?", things[index].colour, (f"the {asked.words()}", [index]))
    if len(unique) > 1:
        one, other = rng.choice(unique, 2, replace=False)
        if found := relations(boxes[one], boxes[other]):
            relation, answer = _pick(rng, found), "yes"
            if rng.random() < 0.5:
                relation, answer = _OPPOSITE[relation], "no"
            ask(f"is {{}} {relation} {{}}?", answer, *((f"the {phrases[i].words()}", [int(i)]) for i in (one, other)))
    return made


def _pick(rng, items):
    return items[rng.integers(len(items))]


def _absent(rng, things, names):
    """A phrase of the vocabulary that fits nothing in the picture, or None after a few draws."""
    for _ in range(4):
        name = _pick(rng, names)
        phrase = Phrase(name.noun, colour=name.colour)
        if not any(map(phrase.fits, things)):
            return phrase
    return None
