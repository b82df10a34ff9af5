"""Augmentation written as text: `crop(0.5)|resize((480, 800), 1333)|flip(0.5)|color(0.4)`.

The text is a chain of ops, each with its arguments in the manner of Python. An op is a frozen dataclass whose fields
are its arguments. It touches no pixel: it decides how an image is to be seen, as an `image_ops.View`, by which pixels,
boxes and masks then move together, resampled once however many ops there are. Its randomness comes from the generator
that it is given, so the same example is always seen alike.

Boxes that a caption names are never cut: they would leave words without an object.
"""
import ast
import dataclasses
import inspect
import math
import re
from collections.abc import Sequence

import numpy as np

from input_pipeline import image_ops
from input_pipeline.image_ops import View
from input_pipeline.text_ops import Span


@dataclasses.dataclass(frozen=True)
class Resize:
    """The reference's resize: the short side becomes one of `short_sides`, the long side at most `max_size` pixels."""
    short_sides: int | tuple[int, ...]
    max_size: int

    def __post_init__(self):
        sides = (self.short_sides,) if isinstance(self.short_sides, int) else tuple(self.short_sides)
        object.__setattr__(self, "short_sides", sides)
        _check(bool(sides) and all(_whole(side) for side in (*sides, self.max_size)), self, "whole numbers above 0")

    def __call__(self, view, record, rng, canvas):
        short_side = int(rng.choice(self.short_sides))
        return dataclasses.replace(
            view, size=image_ops.resized_size(view.window_size, short_side, self.max_size, canvas))


@dataclasses.dataclass(frozen=True)
class Flip:
    """Mirrors left and right. `swap_words` also swaps left and right in the captions of mirrored images.

    The reference mirrors images only. Words are swapped by their spelling: "turn right" becomes "turn left", but so
    does "right away" become "left away".
    """
    probability: float
    swap_words: bool = False

    def __post_init__(self):
        _check(0 <= self.probability <= 1 and isinstance(self.swap_words, bool), self,
               "a probability of 0 to 1, and True or False")

    def __call__(self, view, record, rng, canvas):
        if rng.random() >= self.probability:
            return view
        return dataclasses.replace(view, mirrored=not view.mirrored, swap_words=self.swap_words)


@dataclasses.dataclass(frozen=True)
class Jitter:
    """Large-scale jitter: the size is multiplied by a factor drawn from `least` to `most`.

    Of an image that then passes the canvas a random part is seen, at most as large as the canvas. It holds a box: all
    of them with a caption, which limits the factor, else a random one.
    Source: Ghiasi et al., Simple Copy-Paste (arXiv 2012.07177), with 0.1 to 2.
    """
    least: float
    most: float

    def __post_init__(self):
        _check(0 < self.least <= self.most < math.inf, self, "0 < least <= most")

    def __call__(self, view, record, rng, canvas):
        factor, kept = rng.uniform(self.least, self.most), _kept_part(view.window, record, rng)
        shown, size = [], []
        for axis in range(2):
            needed = kept[axis + 2] - kept[axis] if kept else 1
            factor = min(factor, max(1.0, canvas[axis] * view.window_size[axis] / (needed * view.size[axis])))
        for axis, (pixels, length) in enumerate(zip(view.window_size, view.size)):
            needed = kept[axis + 2] - kept[axis] if kept else 1
            shown.append(max(needed, min(pixels, int(pixels * canvas[axis] / (length * factor)))))
            size.append(max(1, min(canvas[axis], round(shown[axis] * length * factor / pixels))))
        return dataclasses.replace(view, window=_place(view.window, shown, kept, rng), size=tuple(size))


@dataclasses.dataclass(frozen=True)
class Crop:
    """With `probability` a random part is seen: each side a share from `least` to 1, at the scale it had.

    The part holds a box: all of them with a caption, else a random one; others are cut at its border.
    """
    probability: float
    least: float = 0.3

    def __post_init__(self):
        _check(0 <= self.probability <= 1 and 0 < self.least <= 1, self, "a probability of 0 to 1, and 0 < least <= 1")

    def __call__(self, view, record, rng, canvas):
        if rng.random() >= self.probability:
            return view
        kept = _kept_part(view.window, record, rng)
        shown = [max(1, round(pixels * rng.uniform(self.least, 1))) for pixels in view.window_size]
        if kept:
            shown = [max(shown[axis], kept[axis + 2] - kept[axis]) for axis in range(2)]
        size = tuple(max(1, round(length * part / pixels))
                     for length, part, pixels in zip(view.size, shown, view.window_size))
        return dataclasses.replace(view, window=_place(view.window, shown, kept, rng), size=size)


@dataclasses.dataclass(frozen=True)
class Color:
    """Brightness, contrast and saturation each by a factor from 1 − strength to 1 + strength; hues stay.

    Captions name colours, so that no hue is turned into another.
    """
    strength: float

    def __post_init__(self):
        _check(0 <= self.strength <= 1, self, "0 <= strength <= 1")

    def __call__(self, view, record, rng, canvas):
        factors = rng.uniform(1 - self.strength, 1 + self.strength, 3).tolist()
        return dataclasses.replace(view, color=tuple(factors))


OPS = {"crop": Crop, "resize": Resize, "jitter": Jitter, "flip": Flip, "color": Color}


def parse(text: str) -> tuple:
    """Ops of a text, in order; an empty text is none.

    Raises: ValueError naming what is wrong and what is allowed: an op, an argument, or its value.
    """
    return tuple(_op(part.strip()) for part in text.split("|")) if text.strip() else ()


def augmented_view(ops: Sequence, record: dict, rng: np.random.Generator, canvas: tuple[int, int]) -> View:
    """How the ops, one after the other, let a record be seen.

    Args:
      record: with `image` read and `boxes` inside of it, of captions only those that the caption names.
      canvas: (H, W) pixels; an image that would pass it shrinks.
    """
    size = record["image"].shape[:2]
    view = image_ops.whole(size, image_ops.resized_size(size, 0, max(size), canvas))
    for op in ops:
        view = op(view, record, rng, canvas)
    return view


def largest_resize(ops: Sequence) -> tuple[int, int]:
    """(short side, max size) of the largest size to which ops resize; (0, a large number) if they do not."""
    sizes = [(max(op.short_sides), op.max_size) for op in ops if isinstance(op, Resize)]
    return sizes[-1] if sizes else (0, np.iinfo(np.int32).max)


def mirrored_caption(caption: str, spans: Sequence[Sequence[Span]]) -> tuple[str, list[list[Span]]]:
    """Swaps the words left and right, alone or at the start of a longer one (leftmost, right-hand); spans follow.

    Args:
      spans: for each box, its (begin, end) in the caption.
    Returns: caption, and spans of the same characters or what took their place.
    """
    moved = np.arange(len(caption) + 1)                     # where each gap between characters comes to lie
    parts, end = [], 0
    for found in re.finditer(r"\b(left|right)(?=(most|wards?|y)?\b)", caption, re.IGNORECASE):
        old = found[0]
        new = "right" if old.lower() == "left" else "left"
        new = new.upper() if old.isupper() else new.capitalize() if old[0].isupper() else new
        parts += [caption[end:found.start()], new]
        moved[found.start() + 1:found.end()] = moved[found.start()] + np.minimum(np.arange(1, len(old)), len(new))
        moved[found.end():] += len(new) - len(old)
        end = found.end()
    swapped = "".join((*parts, caption[end:]))
    return swapped, [[(int(moved[b]), int(moved[e])) for b, e in of_box] for of_box in spans]


def _op(text):
    try:
        call = ast.parse(text, mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
            raise ValueError
        name, found = call.func.id, [ast.literal_eval(argument) for argument in call.args]
        named = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError):
        raise ValueError(f"augment: found {text!r}, expected ops such as flip(0.5), joined by |") from None
    if name not in OPS:
        raise ValueError(f"augment: found op {name!r}, expected one of {', '.join(OPS)}")
    kind = OPS[name]
    try:
        inspect.signature(kind).bind(*found, **named)
        return kind(*found, **named)
    except TypeError as error:
        fields = ", ".join(field.name for field in dataclasses.fields(kind))
        raise ValueError(f"augment: found {text!r}: {error}, expected {name}({fields})") from error


def _check(claim, op, expected):
    if not claim:
        raise ValueError(f"augment: found {op}, expected {expected}")


def _whole(value):
    return isinstance(value, int) and value > 0


def _kept_part(window, record, rng):
    """(top, left, bottom, right) of what has to stay in view, whole pixels: of a caption all boxes, else a random one
    of those in view. None if there is no box."""
    boxes = record["boxes"]
    if not len(boxes):
        return None
    corners = np.concatenate([np.floor(boxes[:, 1::-1]), np.ceil(boxes[:, :1:-1]) + 1], axis=1).astype(int)
    top, left, bottom, right = window
    corners = corners.clip([top, left, top, left], [bottom, right, bottom, right])
    if "caption" not in record:
        corners = corners[(corners[:, 2:] > corners[:, :2]).all(axis=1)]
        if not len(corners):
            return None
        corners = corners[[rng.integers(len(corners))]]
    return (*corners[:, :2].min(axis=0).tolist(), *corners[:, 2:].max(axis=0).tolist())


def _place(window, shown, kept, rng):
    """A random window of `shown` (rows, columns) inside of `window`, around `kept`."""
    starts = []
    for axis in range(2):
        first, last = window[axis], window[axis + 2] - shown[axis]
        if kept:
            first, last = max(first, kept[axis + 2] - shown[axis]), min(last, kept[axis])
        starts.append(int(rng.integers(first, last + 1)))
    return (*starts, starts[0] + shown[0], starts[1] + shown[1])
