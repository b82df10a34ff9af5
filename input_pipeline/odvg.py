"""ODVG: one JSON object a line, with boxes of classes or boxes of a caption's phrases.

    {"filename": …, "height": …, "width": …, "detection": {"instances": [{"bbox": [x1, y1, x2, y2], "label": 0,
        "category": "cat"}, …]}}
    {"filename": …, "height": …, "width": …, "grounding": {"caption": …, "regions": [{"bbox": [x1, y1, x2, y2] or a list
        of such, "phrase": "a cat", "tokens_positive": [[begin, end], …]}, …]}}

Far corners are exclusive: a box of one pixel has x2 = x1 + 1. A region or an instance may have a `score`: image-text
pairs with pseudo boxes are such files, and so is what `glipv2 ground` writes beside a picture. It may also have a
`segmentation`, COCO's run lengths or polygons in pixels of the image; where `bbox` is a list of boxes, a list of those.
"""
import json
import os
import pathlib
import re
from collections.abc import Mapping

import numpy as np

from input_pipeline import image_ops
from input_pipeline.annotations import check_option, checked_id, checked_spans, field, inclusive_boxes, parse_object
from input_pipeline.line_file import LineFile
from input_pipeline.masks import decode_masks, encode_mask
from input_pipeline.schema import NO_CLASS


class Odvg:
    """Random access to the records of an ODVG file; only the offsets of its lines are held.

    The first line says whether the file holds `detection` or `grounding`; all others must be alike. A record's
    `image_id` is `image_id` of the line, else its number.

    Args:
      jsonl_path: the file.
      image_folder: what `filename` is relative to.
      label_map: JSON file {"0": "cat", …} of a detection file; None: one pass collects `category`.
      min_score: boxes with a score below are left out; those without a score stay.
      with_masks: records have `masks`, from `segmentation`; an object without one among others has its box as mask, as in
        GLIP; a line without any gives none.
      bad_boxes: "error", or "repair": boxes without area in their image and spans outside of their caption are dropped.
      name: of the source in errors and logs.
    Attributes:
      replace_empty: True for captions, see `schema.py`.
    Raises: ValueError for a file without lines or a bad label map; while reading for a bad line, which it names.
    Source: the format of Open-GroundingDino and mmdetection's grounding data sets.
    """

    def __init__(self, jsonl_path: str | os.PathLike, image_folder: str | os.PathLike, *,
                 label_map: str | os.PathLike | None = None, min_score: float = 0.0, with_masks: bool = False,
                 bad_boxes: str = "error", name: str | None = None):
        check_option(bad_boxes)
        self._lines, self._folder = LineFile(jsonl_path), pathlib.Path(image_folder)
        self.name = name or self._lines.path.stem
        self._min_score, self._with_masks, self._bad_boxes = min_score, with_masks, bad_boxes
        if not len(self._lines):
            raise ValueError(f"{jsonl_path}: found no line, expected one for each image")
        first, where = self._line(0)
        self._kind = _kind(first, where)
        if self._kind == "grounding":
            if label_map is not None:
                raise ValueError(f"label_map: found {label_map}, but {jsonl_path} is of grounding, without classes")
            names = {}
        else:
            names = _read_label_map(label_map) if label_map is not None else self._collected_names()
        self.replace_empty = self._kind == "grounding"
        self.category_ids = tuple(sorted(names))
        self.class_names = tuple(names[label] for label in self.category_ids)
        self._class_of = {label: place for place, label in enumerate(self.category_ids)}

    def __len__(self) -> int:
        return len(self._lines)

    def image_size(self, index: int) -> tuple[int, int]:
        """(height, width) as the line states."""
        entry, where = self._line(index)
        return field(entry, "height", int, where), field(entry, "width", int, where)

    def caption(self, index: int) -> str:
        """The caption of a grounding record, without its image."""
        entry, where = self._line(index)
        return field(field(entry, self._kind, dict, where), "caption", str, where)

    def file_name(self, index: int) -> str:
        """As the line has it."""
        entry, where = self._line(index)
        return field(entry, "filename", str, where)

    def image_bytes(self, index: int) -> bytes:
        """The image file as it is."""
        return image_ops.read_file(self._folder / self.file_name(index))

    def __getitem__(self, index: int) -> dict:
        entry, where = self._line(index)
        if _kind(entry, where) != self._kind:
            raise ValueError(f"{where}: found no {self._kind!r}, which the first line has")
        size = field(entry, "height", int, where), field(entry, "width", int, where)
        path = self._folder / field(entry, "filename", str, where)
        record = {"image": lambda: image_ops.decode_of_size(path, size, where, "it states"),
                  "image_id": checked_id(entry.get("image_id", index), where)}
        content = field(entry, self._kind, dict, where)
        return record | (self._detection if self._kind == "detection" else self._grounding)(content, size, where)

    def _detection(self, content, size, where):
        instances = self._confident(field(content, "instances", list, where))
        boxes, keep = inclusive_boxes([i.get("bbox") for i in instances], size, where, self._bad_boxes)
        unknown = [i.get("label") for i in instances if i.get("label") not in self._class_of]
        if unknown:
            raise ValueError(f"{where}: found label {unknown[0]!r}, expected one of {list(self.category_ids[:20])}")
        classes = np.array([self._class_of[i["label"]] for i in instances], np.int32)
        return {"boxes": boxes[keep], "classes": classes[keep]} | self._masks(
            [i.get("segmentation") for i in instances], boxes, keep, size, where)

    def _grounding(self, content, size, where):
        caption = field(content, "caption", str, where)
        boxes, spans, segmentations = [], [], []
        for region in self._confident(field(content, "regions", list, where)):
            found, segmentation = field(region, "bbox", list, where), region.get("segmentation") if self._with_masks else None
            several = found and isinstance(found[0], list)
            if several and segmentation and not (isinstance(segmentation, list) and len(segmentation) == len(found)):
                raise ValueError(f"{where}: found {len(found)} boxes of a region and the segmentation "
                                 f"{repr(segmentation)[:80]}, expected a list with one for each")
            segmentations += (segmentation or [None] * len(found)) if several else [segmentation]
            found = found if several else [found]
            of_region = (checked_spans(region["tokens_positive"], caption, where, self._bad_boxes)
                         if "tokens_positive" in region else _occurrence(caption, region.get("phrase"), where))
            boxes += found
            spans += [of_region] * len(found)
        boxes, keep = inclusive_boxes(boxes, size, where, self._bad_boxes)
        return {"boxes": boxes[keep], "classes": np.full(int(keep.sum()), NO_CLASS, np.int32), "caption": caption,
                "spans": [span for span, kept in zip(spans, keep) if kept]} | self._masks(
                    segmentations, boxes, keep, size, where)

    def _masks(self, segmentations, boxes, keep, size, where):
        """{"masks": bool [n, h, w] of the boxes to keep}, or nothing where a line has no segmentation."""
        if not self._with_masks or not any(segmentations):
            return {}
        rows = np.flatnonzero(keep).tolist()
        return {"masks": decode_masks([segmentations[row] for row in rows], boxes[keep], size,
                                      lambda n: f"{where}, box {rows[n]}")}

    def _confident(self, entries):
        return [entry for entry in entries if entry.get("score", np.inf) >= self._min_score]

    def _line(self, index):
        where = f"{self._lines.path}, line {index + 1}"
        return parse_object(self._lines[index], where), where

    def _collected_names(self):
        names = {}
        for index in range(len(self)):
            entry, where = self._line(index)
            for instance in field(field(entry, "detection", dict, where), "instances", list, where):
                label, category = field(instance, "label", int, where), field(instance, "category", str, where)
                if names.setdefault(label, category) != category:
                    raise ValueError(f"{where}: found label {label} for {category!r}, before for {names[label]!r}")
        if not names:
            raise ValueError(f"{self._lines.path}: found no instance, and no label_map to name the classes")
        return names


def write(source, path: str | os.PathLike, filename) -> int:
    """Writes any source as an ODVG file.

    Args:
      source: see `schema.py`.
      path: new file.
      filename: function of an index: what the line calls its image.
    Returns: the number of lines.
    """
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(line_of(source, index, filename(index)), ensure_ascii=False) + "\n"
                        for index in range(len(source)))
    return len(source)


def line_of(source, index: int, filename: str) -> dict:
    """A record as an ODVG object; crowds are left out, since the format cannot mark them."""
    record = source[index]
    size = source.image_size(index) if hasattr(source, "image_size") else image_ops.pixels_of(record).shape[:2]
    line = {"filename": filename, "height": int(size[0]), "width": int(size[1]), "image_id": int(record["image_id"])}
    crowd = np.asarray(record.get("is_crowd", np.zeros(len(record["boxes"]))), np.bool_)
    boxes, masks = record["boxes"][~crowd], np.asarray(record["masks"])[~crowd] if "masks" in record else None
    if "caption" in record:
        spans = [of_box for of_box, is_crowd in zip(record["spans"], crowd) if not is_crowd]
        return line | grounding(record["caption"], spans, boxes, masks=masks)
    return line | detection(source.class_names, record["classes"][~crowd], boxes, masks=masks)


def detection(names, labels, boxes: np.ndarray, scores=None, masks=None) -> dict:
    """What a line of detection says of its image.

    Args:
      names: of all classes. labels: n indices into them. boxes: [n, 4] `xyxy`, corners inclusive.
      scores: n numbers, or None. masks: n masks, bool [h, w] of the image or COCO's run lengths, or None.
    """
    return {"detection": {"instances": [
        {"bbox": box, "label": int(label), "category": names[label]} | more
        for label, (box, more) in zip(labels, _boxes(boxes, scores, masks), strict=True)]}}


def grounding(caption: str, spans, boxes: np.ndarray, scores=None, masks=None) -> dict:
    """What a line of grounding says of its image.

    Args:
      spans: for each of n boxes, the characters of the caption that name it. The rest as of `detection`.
    """
    return {"grounding": {"caption": caption, "regions": [
        {"bbox": box, "phrase": " ".join(caption[b:e] for b, e in of_box),
         "tokens_positive": [list(map(int, span)) for span in of_box]} | more
        for of_box, (box, more) in zip(spans, _boxes(boxes, scores, masks), strict=True)]}}


def _boxes(boxes, scores, masks):
    """Yields each box with exclusive far corners, and the keys of its score and mask."""
    for n, box in enumerate((boxes + np.array([0, 0, 1, 1], np.float32)).round(2).tolist()):
        score = {} if scores is None else {"score": round(float(scores[n]), 4)}
        yield box, score if masks is None else score | {"segmentation": encode_mask(masks[n])}


def _kind(entry, where):
    kinds = [kind for kind in ("detection", "grounding") if kind in entry]
    if len(kinds) != 1:
        raise ValueError(f"{where}: found keys {sorted(entry)}, expected one of 'detection' and 'grounding'")
    return kinds[0]


def _read_label_map(path):
    where = str(path)
    try:
        found: Mapping = parse_object(pathlib.Path(path).read_bytes(), where)
        names = {int(label): name for label, name in found.items()}
    except OSError as error:
        raise ValueError(f"{path}: cannot read the label map: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}; expected {{\"0\": \"cat\", …}}") from error
    if not names or not all(isinstance(name, str) for name in names.values()):
        raise ValueError(f"{path}: found {dict(list(names.items())[:5])}, expected {{\"0\": \"cat\", …}}")
    return names


def _occurrence(caption, phrase, where):
    """The first place of a phrase in its caption, upper or lower case."""
    match = re.search(re.escape(phrase), caption, re.IGNORECASE) if isinstance(phrase, str) and phrase else None
    if match is None:
        raise ValueError(f"{where}: found phrase {phrase!r} and no tokens_positive, expected a part of the caption "
                         f"{caption[:60]!r}")
    return [match.span()]
