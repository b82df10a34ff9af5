"""Detections in COCO's result format, rows of result files checked, and the protocol file that says how they were made."""
import json
import math
import numbers
import os

import numpy as np

from glipv2_jax.files import write_whole
from input_pipeline.masks import encode_mask

# What a reader needs to repeat a measurement. `write_protocol` refuses a protocol that leaves one out.
PROTOCOL_KEYS = (
    "checkpoint",            # path or name of the weights, with the step where there is one
    "dataset",               # name or annotation file, and how many images
    "canvas",                # rule that resizes and pads an image
    "prompt",                # text given to the model; a list when there are several
    "classes_per_prompt",    # class names in one prompt; null when all are in one
    "score_threshold",
    "nms_threshold",
    "max_detections",        # per image
    "metric",                # what the numbers are, e.g. "COCO bbox AP by pycocotools 2.0.11"
)


def detection_rows(image_id, boxes, scores, labels, *, category_ids, scale=(1.0, 1.0), masks=None, legacy_width=True):
    """The detections of one image as rows of a COCO result file, in pixels of the file.

    Args:
      image_id: int, 0 or more.
      boxes: [K, 4] float, `xyxy` on the canvas, corners inclusive.
      scores: [K] float.
      labels: [K] int, 0-based index into `category_ids`.
      category_ids: the id that the result file uses for each label.
      scale: (y, x) floats: canvas pixels = scale × original pixels.
      masks: K masks in the file's own pixels, each bool [h, w] or COCO's run lengths; or None.
      legacy_width: width = x2 − x1 + 1, as the reference writes and its AP was measured; False: x2 − x1.
    Returns: list of K dicts {image_id, category_id, bbox, score} of plain ints and floats, best score first.
      bbox is [x, y, width, height], its width taken after the division by the scale. With masks each
      row also has `segmentation`, a compressed RLE as in COCO.
    Raises: ValueError if lengths differ, a label has no category, the image is a padding example, or a value
      is not finite.
    Source: GLIP, data/datasets/evaluation/coco (boxes are rescaled first and get +1 after).
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    scores, labels = np.asarray(scores, np.float64).reshape(-1), np.asarray(labels).reshape(-1)
    lengths = {"boxes": len(boxes), "scores": len(scores), "labels": len(labels)}
    if masks is not None:
        lengths["masks"] = len(masks)
    if len(set(lengths.values())) > 1:
        raise ValueError(f"image {image_id}: detections of different lengths: {lengths}")
    if image_id < 0:
        raise ValueError(f"image id {image_id}: a padding example has no results")
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(category_ids):
        raise ValueError(f"image {image_id}: found labels {labels.min()}..{labels.max()}, "
                         f"expected 0..{len(category_ids) - 1}")
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise ValueError(f"image {image_id}: a box or a score is not finite")

    y, x = scale
    boxes = boxes / np.array([x, y, x, y], np.float64)
    sizes = boxes[:, 2:] - boxes[:, :2] + legacy_width
    rows = []
    for k in np.argsort(-scores, kind="stable"):
        row = {
            "image_id": int(image_id),
            "category_id": int(category_ids[labels[k]]),
            "bbox": [*boxes[k, :2].tolist(), *sizes[k].tolist()],
            "score": float(scores[k]),
        }
        if masks is not None:
            row["segmentation"] = encode_mask(masks[k])
        rows.append(row)
    return rows


def write_results(path, rows):
    """Writes rows of `detection_rows` sorted by image id, then by descending score; whole or not at all.

    Args:
      path: file to write; its folder is made.
      rows: iterable of rows. The order of equal scores is kept.
    """
    ordered = sorted(rows, key=lambda row: (row["image_id"], -row["score"]))
    # One row a line: readable with less, and two runs can be compared with diff.
    lines = [json.dumps(row, allow_nan=False) for row in ordered]
    write_whole(path, "[" + ",\n ".join(lines) + "]\n")


def checked_rows(rows, keys, where="results"):
    """The rows of a result file of any model.

    Args:
      rows: what the file holds. keys: what each row must have; `bbox` has to be four numbers, `score` one.
      where: what errors call the file.
    Returns: rows.
    Raises: ValueError naming the first row that is no object, or whose key is missing or of another kind.
    """
    if not isinstance(rows, list):
        raise ValueError(f"{where}: found a {type(rows).__name__}, expected a list of objects with {', '.join(keys)}")
    for place, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError(f"{where}, row {place}: found {repr(row)[:80]}, expected an object with {', '.join(keys)}")
        for key in keys:
            if key not in row:
                raise ValueError(f"{where}, row {place}: found no {key}, expected {', '.join(keys)}")
            if key == "score" and not _is_number(row[key]):
                raise ValueError(f"{where}, row {place}: found score {row[key]!r}, expected a finite number")
            if key == "bbox" and not (isinstance(row[key], (list, tuple)) and len(row[key]) == 4 and all(map(_is_number, row[key]))):
                raise ValueError(f"{where}, row {place}: found bbox {repr(row[key])[:80]}, expected [x, y, width, height]")
    return rows


def _is_number(value):
    return isinstance(value, numbers.Real) and math.isfinite(value)


def write_protocol(path, protocol):
    """Writes what was measured and how, beside the results.

    Args:
      path: file to write; its folder is made.
      protocol: dict with at least `PROTOCOL_KEYS`; other keys (the scores themselves, hardware, date) are
        welcome. Arrays, numpy numbers and paths are written as lists, numbers and strings.
    Raises: ValueError naming the missing keys, or if a number is not finite.
    """
    missing = [key for key in PROTOCOL_KEYS if key not in protocol]
    if missing:
        raise ValueError(f"{path}: missing keys {missing}, a protocol has at least {list(PROTOCOL_KEYS)}")
    write_whole(path, json.dumps(protocol, indent=2, allow_nan=False, default=_plain) + "\n")


def _plain(value):
    """What json.dumps calls for a value it does not know."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"protocol: cannot write {value!r} of type {type(value).__name__}")
