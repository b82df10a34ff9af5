"""Pseudo-labels as files: ODVG lines of the pairs that have boxes, a line with its reason for each that is left out."""
import collections
import contextlib
import dataclasses
import json

import numpy as np

from input_pipeline import image_ops, odvg, text_ops
from input_pipeline.annotations import field
from input_pipeline.pipeline import usable_record

LABELS, LEFT_OUT = "labels.jsonl", "left_out.jsonl"
NO_PHRASE, NO_IMAGE = "no noun phrase in the caption", "not readable"
SCORE_BINS = 20                      # of the histogram, from 0 to 1


def write(folder, pairs, parts, *, threshold, min_boxes):
    """Writes `labels.jsonl` and `left_out.jsonl`: every pair of the source has its line in one of them.

    Lines come canvas by canvas, in the order of the source within each. Beside the keys of ODVG a line has `pair`, the place in
    the source, and `num_phrases`, the number of noun phrases that were asked for.

    Args:
      folder: path. pairs: PhrasedPairs. parts: iterable of `evaluation.parts.Found` whose boxes have passed the threshold.
      threshold: least score, for the reasons. min_boxes: a pair with fewer is left out.
    """
    labels, left_out = folder / LABELS, folder / LEFT_OUT
    found_none = np.ones(len(pairs.source), np.bool_)
    with _whole(left_out) as rest, _whole(labels) as file:
        for found in parts:
            place = int(pairs.places[found.record])
            found_none[place] = False
            line = line_of(pairs, found)
            if not line["num_phrases"]:
                reason = NO_PHRASE
            elif len(found.scores) < min_boxes:
                reason = f"fewer boxes than {min_boxes} with a score of at least {threshold}"
            else:
                reason = None
            if reason and min_boxes:
                line = {key: line[key] for key in ("pair", "image_id", "filename")} | {"reason": reason}
                rest.write(json.dumps(line, ensure_ascii=False) + "\n")
            else:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        for place in np.flatnonzero(found_none).tolist():
            line = {"pair": place, "reason": NO_IMAGE, "error": _why(pairs.source, place)}
            rest.write(json.dumps(line, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def _whole(path):
    """A text file that is there when the `with` has ended well."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        yield file
    partial.replace(path)


def line_of(pairs, found):
    """A pair and what was found in it as a line; boxes and masks by falling score, in pixels of the image.

    Args:
      pairs: PhrasedPairs. found: `evaluation.parts.Found`; labels count the phrases asked for.
    """
    record, size = pairs[found.record], pairs.image_size(found.record)
    asked = text_ops.asked_phrases(record)
    found = found.only(np.argsort(-found.scores, kind="stable"))
    boxes = found.original_boxes().clip(0, np.array([size[1], size[0]] * 2) - 1)
    spans = [asked[label] for label in found.labels.tolist()]
    return {"pair": int(pairs.places[found.record]), "filename": pairs.file_name(found.record), "height": size[0], "width": size[1],
            "image_id": found.image_id, "num_phrases": len(asked)} | odvg.grounding(
                record["caption"], spans, boxes, found.scores, found.masks)


def _why(source, place):
    """Why a pair cannot be read: it is tried again, as another process may have met it."""
    try:
        usable_record(source[place], source.class_names)
    except Exception as error:  # noqa: BLE001 – a reader may raise anything on broken data
        return f"{type(error).__name__}: {error}"
    return "it could not be read when its turn came, and can now"


class Labelled(odvg.Odvg):
    """The records of `labels.jsonl` with the images of the source that was labelled.

    Args:
      path: the file. source: of the pairs.
    """

    def __init__(self, path, source):
        super().__init__(path, "", with_masks=True, name=source.name)
        self._source = source

    def image_bytes(self, index):
        """The image file as it is, or the pixels as PNG where there is none."""
        place = self.line(index)["pair"]
        if hasattr(self._source, "image_bytes"):
            return self._source.image_bytes(place)
        return image_ops.encode_png(image_ops.pixels_of(self._source[place]))

    def line(self, index):
        """The line as it is, dict."""
        return self._line(index)[0]

    def __getitem__(self, index):
        entry, where = self._line(index)
        return super().__getitem__(index) | {"image": self._source[field(entry, "pair", int, where)]["image"]}


@dataclasses.dataclass
class Summary:
    """What both files hold.

    labelled, boxes, masks: counts. left_out: Counter of reasons. unreadable: [(pair, error)] of the first ones.
    phrases: Counter of the boxes of each phrase, lower case. scores: int [SCORE_BINS]. boxes_of_pair: Counter.
    quality: float32 [labelled], of each line: the mean over its noun phrases of the score of the best box, 0 for a phrase without.
    """
    labelled: int = 0
    boxes: int = 0
    masks: int = 0
    left_out: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    unreadable: list = dataclasses.field(default_factory=list)
    phrases: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    scores: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(SCORE_BINS, int))
    boxes_of_pair: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    quality: np.ndarray = None

    @classmethod
    def of(cls, folder, unreadable=10):
        """Reads the files of a folder; of pairs that cannot be read so many are kept by name."""
        found, quality = cls(), []
        for entry in _lines(folder / LABELS):
            regions = entry["grounding"]["regions"]
            found.labelled, found.boxes = found.labelled + 1, found.boxes + len(regions)
            found.masks += sum("segmentation" in region for region in regions)
            found.boxes_of_pair[len(regions)] += 1
            best = {}
            for region in regions:
                found.phrases[region["phrase"].lower()] += 1
                found.scores[min(int(region["score"] * SCORE_BINS), SCORE_BINS - 1)] += 1
                phrase = str(region["tokens_positive"])
                best[phrase] = max(best.get(phrase, 0), region["score"])
            quality.append(sum(best.values()) / max(entry["num_phrases"], 1))
        for entry in _lines(folder / LEFT_OUT):
            found.left_out[entry["reason"]] += 1
            if entry["reason"] == NO_IMAGE and len(found.unreadable) < unreadable:
                found.unreadable.append((entry["pair"], entry["error"]))
        found.quality = np.array(quality, np.float32)
        return found


def _lines(path):
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)
