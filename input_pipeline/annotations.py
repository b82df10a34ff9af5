"""What readers of annotation files have in common: checks that name the place, boxes, spans, lists of problems."""
import contextlib
import contextvars
import json
import math
import os
import pathlib

import numpy as np

LARGEST_ID = 2**31 - 1
_SHOWN = 10                          # problems listed in one error
_collected = contextvars.ContextVar("collected", default=None)


class Problems:
    """Collects the ValueErrors raised inside `with`, to list them together."""

    def __init__(self):
        self.found = []

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if kind is None or not issubclass(kind, ValueError):
            return False
        self.found.append(str(error))
        return True


@contextlib.contextmanager
def collecting():
    """Inside `with`, a reader that is opened goes on without the records at fault, where it can: `refuse` raises nothing.

    Yields: list that is filled with every problem, each once. For reports; to train, a file has to be right.
    """
    found = {}                                                 # an ordered set: readers refuse what they have so far
    problems = []
    token = _collected.set(found)
    try:
        yield problems
    finally:
        _collected.reset(token)
        problems += found


def refuse(path, problems):
    """Raises: ValueError listing the first problems of a file, if there are any. Collects them inside `collecting`."""
    collected = _collected.get()
    if collected is not None:
        collected |= dict.fromkeys(f"{path}: {problem}" for problem in problems)
    elif problems:
        rest = len(problems) - _SHOWN
        lines = problems[:_SHOWN] + ([f"and {rest} more"] if rest > 0 else [])
        raise ValueError(f"{path}: problems: {len(problems)}\n  " + "\n  ".join(lines))


def check_option(bad_boxes):
    """Raises: ValueError for what is no way to treat bad boxes."""
    if bad_boxes not in ("error", "repair"):
        raise ValueError(f"bad_boxes: found {bad_boxes!r}, expected 'error' or 'repair'")


def load_json(path):
    """Content of a JSON file. Raises: ValueError naming it."""
    try:
        return json.loads(pathlib.Path(path).read_bytes())
    except OSError as error:
        raise ValueError(f"{path}: cannot read the annotation file: {error.strerror}") from error
    except ValueError as error:                                # JSONDecodeError, UnicodeDecodeError
        raise ValueError(f"{path}: not a JSON file: {error}") from error


def load_lists(path, keys):
    """dict of a JSON file that holds a list under each of `keys`. Raises: ValueError for anything else."""
    content = load_json(path)
    if type(content) is not dict:
        raise ValueError(f"{path}: found a {type(content).__name__}, expected an object with {', '.join(keys)}"
                         + (" (is this a result file?)" if type(content) is list else ""))
    for key in keys:
        kind = type(content[key]).__name__ if key in content else "nothing"
        if kind != "list":
            raise ValueError(f"{path}: {key!r}: found {kind}, expected a list")
    return content


def missing_images(places):
    """What is wrong with each image whose file is not there, {image id: text}.

    One listing for each folder: asking for each file alone takes minutes on a network drive.

    Args:
      places: {image id: path}.
    """
    listed, missing = {}, {}
    for image_id, path in places.items():
        if path.parent not in listed:
            listed[path.parent] = set(os.listdir(path.parent)) if path.parent.is_dir() else set()
        if path.name not in listed[path.parent]:
            missing[image_id] = f"image {image_id}: no file {path}"
    return missing


def parse_object(line, where):
    """dict of a line of JSON. Raises: ValueError."""
    try:
        found = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where}: not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{where}: found a {type(found).__name__}, expected an object")
    return found


def field(entry, key, kind, where):
    """entry[key]. Raises: ValueError if it is missing or of another type, or entry no object; a bool is no number."""
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: found {repr(entry)[:80]}, expected an object")
    value = entry.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        found = repr(value)[:80] if key in entry else "nothing"
        kinds = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise ValueError(f"{where}: {key!r}: found {found}, expected {kinds}")
    return value


def checked_id(value, where):
    """The id of an image. Raises: ValueError for anything but 0 to 2³¹ − 1: ids travel through the device as int32."""
    if type(value) is not int or not 0 <= value <= LARGEST_ID:
        raise ValueError(f"{where}: found image id {value!r}, expected a whole number from 0 to {LARGEST_ID}")
    return value


def inclusive_boxes(boxes, size, where, bad_boxes="error"):
    """Boxes whose far corners are exclusive (x2 = x1 + width), as a record has them.

    Args:
      boxes: list of n lists [x1, y1, x2, y2]. size: (height, width) of the image.
      bad_boxes: "error", or "repair": what has no area inside the image is marked to be dropped.
    Returns: float32 [n, 4] with inclusive corners; bool [n], which to keep.
    Raises: ValueError for a box that is no four finite numbers, and with "error" for one without area in the image.
    """
    keep = np.ones(len(boxes), np.bool_)
    for n, box in enumerate(boxes):
        if not (isinstance(box, list) and len(box) == 4
                and all(isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v) for v in box)):
            raise ValueError(f"{where}: found box {box!r}, expected four finite numbers [x1, y1, x2, y2]")
        x1, y1, x2, y2 = box
        keep[n] = x1 < x2 and y1 < y2 and x1 < size[1] and y1 < size[0] and x2 > 0 and y2 > 0
        if not keep[n] and bad_boxes == "error":
            kind = "an inverted or empty box" if x2 <= x1 or y2 <= y1 else "a box outside the image"
            raise ValueError(f"{where}: found {kind} {box}, expected x1 < x2, y1 < y2 inside the {size[1]}x{size[0]} "
                             "image; bad_boxes='repair' drops such boxes")
    found = np.asarray(boxes, np.float32).reshape(-1, 4)
    return found - np.array([0, 0, 1, 1], np.float32), keep


def checked_spans(spans, caption, where, bad_boxes="error"):
    """A box's spans as tuples.

    Args:
      spans: list of [begin, end]. bad_boxes: "repair" drops a span that does not lie in the caption.
    Raises: ValueError for what is no list of pairs of whole numbers, and with "error" for one outside of the caption.
    """
    if not isinstance(spans, list):
        raise ValueError(f"{where}: found spans {spans!r}, expected a list of [begin, end]")
    found = []
    for span in spans:
        if not (isinstance(span, list) and len(span) == 2 and all(type(v) is int for v in span)):
            raise ValueError(f"{where}: found span {span!r}, expected [begin, end], whole numbers of characters")
        if 0 <= span[0] < span[1] <= len(caption):
            found.append(tuple(span))
        elif bad_boxes == "error":
            raise ValueError(f"{where}: found span {span}, expected 0 ≤ begin < end ≤ {len(caption)} characters of "
                             f"{caption[:60]!r}; bad_boxes='repair' drops such spans")
    return found
