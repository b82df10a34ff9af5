"""GLIP's TSV data sets: images and labels in tab-separated files with byte offsets beside them.

A data set is a YAML file that names its parts, each relative to the YAML's folder:

    img: train.tsv            last column: the image file in base64
    label: train.label.tsv    second column: JSON, of objects or of a caption
    hw: train.hw.tsv          optional; second column: {"height", "width"}, a list that starts with that, or "H W"
    linelist: train.linelist  optional; rows to use, one number a line, in this order, repeats allowed
    imageid2idx: ids.json     optional; img_id of a label → row of the image file
    labelmap: names.json      of objects (or `jsondict`): {name: id}, {"label_to_idx": {name: id}}, or a .tsv of names

Source: GLIP `datasets/tsv.py`, `datasets/od_to_grounding.py`, `datasets/caption.py`.
"""
import base64
import binascii
import os
import pathlib

import numpy as np
import yaml

from input_pipeline import image_ops
from input_pipeline.annotations import LARGEST_ID, checked_spans, field, load_json, parse_object
from input_pipeline.captions import without_boxes
from input_pipeline.line_file import LineFile
from input_pipeline.schema import NO_CLASS

_BACKGROUND = "__background__"


class Tsv:
    """Random access to the records of a TSV data set; of each file only the byte offsets of its lines are held.

    With a label map the rows are objects with classes, without one they are captions with pseudo boxes: `bboxes`,
    `scores`, `tokens_positive` for each box, or for each entity with lists of boxes and scores (version v2, seen by its
    form); a caption alone, as the reference's rows to be labelled are, has no boxes. Corners are inclusive, as the reference reads
    them. A caption's boxes are in pixels of an `img_w` × `img_h` image and are scaled to the image that is there.

    Args:
      yaml_path: the data set.
      min_score: of a caption's boxes (GLIP-L: 0.5).
      name: of the source in errors and logs.
    Attributes:
      replace_empty: True for captions, see `schema.py`; the reference draws a random other sample there; so does
        training here, as a function of seed and position.
    Raises: ValueError for parts that are missing or do not fit; while reading for a bad row, which it names.
    """

    def __init__(self, yaml_path: str | os.PathLike, *, min_score: float = 0.0, name: str | None = None):
        self._path, self._min_score = pathlib.Path(yaml_path), min_score
        self.name = name or self._path.stem
        parts = read_yaml(self._path)
        self._images, self._labels = LineFile(parts["img"]), LineFile(parts["label"])
        self._sizes = LineFile(parts["hw"]) if "hw" in parts else None
        self._image_rows = load_json(parts["imageid2idx"]) if "imageid2idx" in parts else None
        self._rows = (_read_numbers(parts["linelist"], len(self._labels)) if "linelist" in parts
                      else np.arange(len(self._labels)))
        if not len(self._rows):
            raise ValueError(f"{yaml_path}: found no row, expected at least one")
        if self._image_rows is None and len(self._images) != len(self._labels):
            raise ValueError(f"{yaml_path}: found {len(self._images)} rows of images and {len(self._labels)} of "
                             "labels, expected as many, or imageid2idx")
        label_map = parts.get("labelmap") or parts.get("jsondict")
        names = _read_label_map(label_map) if label_map else {}
        self.category_ids = tuple(sorted(names))
        self.class_names = tuple(names[category] for category in self.category_ids)
        self._class_of = {name: index for index, name in enumerate(self.class_names)}
        self.replace_empty = not names

    def __len__(self) -> int:
        return len(self._rows)

    def image_size(self, index: int) -> tuple[int, int]:
        """(height, width): of the hw file, else of a caption's label, else from the image's header."""
        if self._sizes is not None:
            return self._stated_size(index)
        label, where = self._label(index)
        if not self.class_names and "img_h" in label:
            return field(label, "img_h", int, where), field(label, "img_w", int, where)
        return image_ops.header_size(self.image_bytes(index), name=where)

    def caption(self, index: int) -> str:
        """The caption of a row, without its image."""
        return self._text(*self._label(index))

    def image_bytes(self, index: int) -> bytes:
        """The image file that the row holds."""
        row, where = int(self._rows[index]), self._where(index)
        if self._image_rows is not None:
            image_id = str(field(self._label(index)[0], "img_id", (str, int), where))
            if image_id not in self._image_rows:
                raise ValueError(f"{where}: img_id: found {image_id!r}, expected one of imageid2idx")
            row = self._image_rows[image_id]
        try:
            return base64.b64decode(self._images[row].split(b"\t")[-1].strip(), validate=True)
        except (binascii.Error, IndexError, TypeError) as error:
            raise ValueError(f"{self._images.path}, line {row + 1}: the image is not base64: {error}") from error

    def __getitem__(self, index: int) -> dict:
        label, where = self._label(index)
        key = self._columns(self._labels, int(self._rows[index]))[0].decode(errors="replace")
        record = {"image": lambda: image_ops.decode(self.image_bytes(index), name=where),
                  "image_id": int(key) if key.isdecimal() and int(key) <= LARGEST_ID else index}
        return record | (self._objects(label, where) if self.class_names else self._caption(label, index, where))

    def _objects(self, label, where):
        objects = field(label, "objects", list, where)
        names = [field(entry, "class", str, where) for entry in objects]
        unknown = set(names) - set(self._class_of)
        if unknown:
            raise ValueError(f"{where}: found class {min(unknown)!r}, which the label map does not have")
        return {"boxes": _boxes([entry.get("rect") for entry in objects], where),
                "classes": np.array([self._class_of[name] for name in names], np.int32)}

    def _caption(self, label, index, where):
        caption = self._text(label, where)
        if not label.keys() & {"bboxes", "scores", "tokens_positive"}:
            return without_boxes(caption)
        entities = [field(label, key, list, where) for key in ("bboxes", "scores", "tokens_positive")]
        if len({len(part) for part in entities}) != 1:
            raise ValueError(f"{where}: found {', '.join(str(len(part)) for part in entities)} bboxes, scores and "
                             "tokens_positive, expected as many of each")
        found = []
        for boxes, scores, spans in zip(*entities):
            several = bool(boxes) and isinstance(boxes[0], list)
            spans = checked_spans(spans, caption, where)
            found += [(box, spans) for box, score in zip(boxes, scores, strict=True) if score > self._min_score] \
                if several else [(boxes, spans)] * (scores > self._min_score)
        boxes = _boxes([box for box, _ in found], where)
        if len(found) and "img_h" in label:
            height, width = image_ops.header_size(self.image_bytes(index), name=where)
            stated = field(label, "img_w", int, where), field(label, "img_h", int, where)
            boxes *= np.array([width / stated[0], height / stated[1]] * 2, np.float32)
        return {"boxes": boxes, "classes": np.full(len(found), NO_CLASS, np.int32), "caption": caption,
                "spans": [spans for _, spans in found]}

    @staticmethod
    def _text(label, where):
        """The caption of a label: of a pair without boxes it may be that of the first of a list, or a list to be joined."""
        if label.get("objects"):
            label = label["objects"][0]
        if "captions" in label:
            return " ".join(field({"captions": text}, "captions", str, where) for text in field(label, "captions", list, where))
        return field(label, "caption", str, where)

    def _label(self, index):
        """(dict of a label row, what errors call it); a bare list of objects is wrapped."""
        where = self._where(index)
        columns = self._columns(self._labels, int(self._rows[index]))
        if len(columns) < 2:
            raise ValueError(f"{where}: found {len(columns)} columns, expected a key and JSON")
        text = columns[1].strip()
        return parse_object(b'{"objects": %s}' % text if text.startswith(b"[") else text, where), where

    def _stated_size(self, index):
        row = int(self._rows[index])
        where = f"{self._sizes.path}, line {row + 1}"
        text = self._columns(self._sizes, row)[-1].strip()
        if not text.startswith((b"{", b"[")):
            try:
                height, width = map(int, text.split())
            except ValueError:
                raise ValueError(f"{where}: found {text[:40]!r}, expected a height and a width") from None
            return height, width
        size = parse_object(b'{"size": %s}' % text, where)["size"]
        size = size[0] if isinstance(size, list) and size else size
        return field(size, "height", int, where), field(size, "width", int, where)

    def _where(self, index):
        return f"{self._labels.path}, line {int(self._rows[index]) + 1}"

    @staticmethod
    def _columns(lines, row):
        return lines[row].split(b"\t")


def _boxes(rects, where):
    for rect in rects:
        if not (isinstance(rect, list) and len(rect) == 4 and all(isinstance(v, (int, float)) for v in rect)):
            raise ValueError(f"{where}: found box {rect!r}, expected [x1, y1, x2, y2]")
    boxes = np.array(rects, np.float32).reshape(-1, 4)
    if not np.isfinite(boxes).all():
        raise ValueError(f"{where}: found a box that is not finite")
    return boxes


def read_yaml(path):
    """Name of a part → its path. Raises: ValueError."""
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: cannot read the data set: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not YAML: {error}") from error
    if not isinstance(found, dict) or not all(isinstance(found.get(key), str) for key in ("img", "label")):
        raise ValueError(f"{path}: found {found!r:.80}, expected file names under 'img' and 'label'")
    return {key: path.parent / part for key, part in found.items() if isinstance(part, str) and part}


def _read_numbers(path, count):
    try:
        rows = np.array(path.read_bytes().split(), np.int64)
    except OSError as error:
        raise ValueError(f"{path}: cannot read the file: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}; expected one row number a line") from error
    if len(rows) and not (0 <= rows.min() and rows.max() < count):
        raise ValueError(f"{path}: found rows {rows.min()} to {rows.max()}, expected 0 to {count - 1}")
    return rows


def _read_label_map(path):
    """id → name, the background left out. Raises: ValueError."""
    if path.suffix == ".tsv":
        lines = LineFile(path)
        ids = {lines[i].decode().strip(): i + 1 for i in range(len(lines))}
    else:
        ids = load_json(path)
        ids = ids.get("label_to_idx", ids) if isinstance(ids, dict) else ids
    if not isinstance(ids, dict) or not all(type(i) is int for i in ids.values()):
        raise ValueError(f"{path}: found {ids!r:.80}, expected {{name: id}}")
    names = {i: name for name, i in ids.items() if name != _BACKGROUND}
    if len(names) != len(set(ids) - {_BACKGROUND}) or not names:
        raise ValueError(f"{path}: found {len(names)} ids for {len(ids)} names, expected one for each")
    return names
