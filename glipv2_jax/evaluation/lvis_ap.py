"""Average precision on LVIS: federated rules, fixed AP over a data set or the standard AP over images."""
import json
import os

import numpy as np
from pycocotools import mask as coco_mask

from glipv2_jax.evaluation.coco_ap import load
from glipv2_jax.evaluation.coco_json import checked_rows

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
AREAS = {"": (0, 1e5**2), "s": (0, 32**2), "m": (32**2, 96**2), "l": (96**2, 1e5**2)}       # square pixels
FREQUENCIES = ("r", "c", "f")
_KEYS = ("image_id", "category_id", "bbox", "score")


class BestPerClass:
    """Detections image by image, of which each class keeps its best; the memory is bounded whatever the number of images.

    Args:
      limit: how many of a class; None: all. Of equal scores the one that came first stays.
      buffer: detections that are taken in, at least, before all but the best are dropped.
    Source: GLIP, data/datasets/evaluation/lvis/lvis_eval.py (`topk`).
    """

    def __init__(self, limit=10_000, buffer=2**21):
        self._limit, self._buffer, self._kept, self._fresh = limit, buffer, 0, 0
        self._parts = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 4), np.float32), np.zeros(0))]

    def add(self, image_id, boxes, scores, category_ids):
        """boxes: [K, 4] xywh. scores: [K]. category_ids: [K] int. All of one image."""
        scores = np.asarray(scores, np.float64)
        self._parts.append((np.full(len(scores), image_id, np.int64), np.asarray(category_ids, np.int64),
                            np.asarray(boxes, np.float32).reshape(-1, 4), scores))
        self._fresh += len(scores)
        if self._fresh > max(self._buffer, self._kept) and self._limit is not None:
            self._join()

    def arrays(self):
        """dict: image_id [N] int64, category_id [N] int64, bbox [N, 4] float32 xywh, score [N] float64; as they came."""
        self._join()
        return dict(zip(_KEYS, self._parts[0]))

    def _join(self):
        joined = [np.concatenate(part) for part in zip(*self._parts)]
        if self._limit is not None:
            _, categories, _, scores = joined
            order = np.lexsort((-scores, categories))                   # equal scores in the order in which they came
            of_class = categories[order]
            rank = np.arange(len(order)) - np.searchsorted(of_class, of_class)
            best = np.sort(order[rank < self._limit])
            joined = [values[best] for values in joined]
        self._parts, self._kept, self._fresh = [tuple(joined)], len(joined[0]), 0


def write_results(path, detections):
    """LVIS result rows, one a line, sorted by image and falling score; whole or not at all.

    Args:
      path: file to write; its folder is made. detections: arrays as `BestPerClass.arrays` gives them.
    """
    order = np.lexsort((-detections["score"], detections["image_id"]))
    path = os.fspath(path)
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(path + ".partial", "w", encoding="utf-8") as file:                # millions of rows: never one text
        file.write("[")
        file.writelines((",\n " if place else "") + json.dumps(
                {"image_id": int(detections["image_id"][row]), "category_id": int(detections["category_id"][row]),
                 "bbox": detections["bbox"][row].astype(float).tolist(), "score": float(detections["score"][row])},
                allow_nan=False) for place, row in enumerate(order.tolist()))
        file.write("]\n")
    os.replace(path + ".partial", path)


def lvis_ap(ground_truth, detections, *, max_dets=-1):
    """Scores detections of LVIS.

    A detection counts only where its class is annotated in its image or known to be absent from it; one that matches
    nothing is no error where the class is not annotated exhaustively, or its area lies outside of the range.

    Args:
      ground_truth: dict in LVIS's format, or the path of the JSON file.
      detections: arrays as `BestPerClass.arrays` gives them, LVIS result rows, or a path of such rows. Width is x2 − x1.
      max_dets: detections of an image over all classes, the best; −1: no limit, for fixed AP.
    Returns: dict with floats AP, AP50, AP75, APs, APm, APl, APr, APc, APf, AR, ARs, ARm, ARl, None without ground truth; and
      `per_class`, category id → [AP, AP50, mean of the highest recall], of classes with ground truth.
    Raises: ValueError for a file that lacks what LVIS has, or detections of unknown images.
    Source: the rules of the lvis package, as GLIP uses it; fixed AP: Dave et al., arXiv 2102.01066.
    """
    truth = _Truth(load(ground_truth))
    found = _Found(as_arrays(load(detections)), truth, max_dets)
    count = len(truth.categories)
    precision = np.full((len(IOU_THRESHOLDS), len(RECALLS), count, len(AREAS)), -1.0)
    recall = np.full((len(IOU_THRESHOLDS), count, len(AREAS)), -1.0)
    for category in range(count):
        rows = found.of_category(category)
        wanted = truth.count[category] > 0
        precision[:, :, category, wanted], recall[:, category, wanted] = 0, 0        # until something is found
        if len(rows) and wanted.any():
            matched, ignored = found.match(category, rows, truth)
            order = np.argsort(-found.score[rows], kind="stable")
            for area, total in enumerate(truth.count[category]):
                if total:
                    precision[:, :, category, area], recall[:, category, area] = _curve(
                        matched[area][:, order], ignored[area][:, order], total)
    return _summary(precision, recall, truth)


class _Truth:
    def __init__(self, content):
        if not isinstance(content, dict):
            raise ValueError(f"ground truth: found a {type(content).__name__}, expected an object with images, annotations "
                             "and categories")
        for key in ("images", "annotations", "categories"):
            if not isinstance(content.get(key), list):
                raise ValueError(f"ground truth: found no list {key!r}, expected LVIS's format")
        for kind, needed in (("images", ("neg_category_ids", "not_exhaustive_category_ids")), ("categories", ("frequency",))):
            lacking = [key for key in needed if any(key not in entry for entry in content[kind])]
            if lacking:
                raise ValueError(f"ground truth: {kind} without {', '.join(lacking)}: expected a file of LVIS, not of COCO")
        self.image_ids = np.array(sorted(image["id"] for image in content["images"]), np.int64)
        self.categories = sorted(content["categories"], key=lambda category: category["id"])
        self.category_ids = np.array([category["id"] for category in self.categories], np.int64)
        annotations = content["annotations"]
        self.image = np.searchsorted(self.image_ids, [a["image_id"] for a in annotations])
        category = np.searchsorted(self.category_ids, [a["category_id"] for a in annotations])
        self.area = np.array([a["area"] for a in annotations], np.float64)
        self.bbox = np.array([a["bbox"] for a in annotations], np.float64).reshape(-1, 4)
        # [area, annotation]: not looked for in this range of areas.
        self.ignored = np.array([(self.area < low) | (self.area > high) for low, high in AREAS.values()])
        self.key = self.image * len(self.categories) + category
        self.rows = {}
        for row, key in enumerate(self.key.tolist()):
            self.rows.setdefault(key, []).append(row)
        self.count = np.zeros((len(self.categories), len(AREAS)), int)
        np.add.at(self.count, category, (~self.ignored).T)
        self.asked = np.union1d(self.key, self._pairs(content["images"], "neg_category_ids"))
        self.not_exhaustive = self._pairs(content["images"], "not_exhaustive_category_ids")

    def _pairs(self, images, name):
        """Sorted keys of the pairs of image and category under a name of the images."""
        ids = [(image["id"], category) for image in images for category in image[name]]
        pairs = np.array(ids, np.int64).reshape(-1, 2)
        return np.unique(np.searchsorted(self.image_ids, pairs[:, 0]) * len(self.categories)
                         + np.searchsorted(self.category_ids, pairs[:, 1]))


class _Found:
    """Detections that count, sorted by class, image and falling score."""

    def __init__(self, arrays, truth, max_dets):
        unknown = np.setdiff1d(arrays["image_id"], truth.image_ids)
        if len(unknown):
            raise ValueError(f"results: image_id {unknown[0]}, one of {len(unknown)} not in the ground truth")
        order = np.lexsort((-arrays["score"], arrays["image_id"]))
        if max_dets >= 0:
            _, starts, lengths = np.unique(arrays["image_id"][order], return_index=True, return_counts=True)
            order = order[np.arange(len(order)) - np.repeat(starts, lengths) < max_dets]
        arrays = {key: value[order] for key, value in arrays.items()}
        area = arrays["bbox"][:, 2].astype(np.float64) * arrays["bbox"][:, 3]
        known = np.isin(arrays["category_id"], truth.category_ids) & (area > 0)
        image = np.searchsorted(truth.image_ids, arrays["image_id"])
        category = np.searchsorted(truth.category_ids, arrays["category_id"])
        key = image * len(truth.categories) + category
        chosen = np.flatnonzero(known & np.isin(key, truth.asked))
        chosen = chosen[np.argsort(category[chosen], kind="stable")]
        self.key, self.score, self.area = key[chosen], arrays["score"][chosen], area[chosen]
        self.bbox = arrays["bbox"][chosen].astype(np.float64)
        self.exhaustive = ~np.isin(self.key, truth.not_exhaustive)
        self._starts = np.searchsorted(category[chosen], np.arange(len(truth.categories) + 1))

    def of_category(self, category):
        return np.arange(self._starts[category], self._starts[category + 1])

    def match(self, category, rows, truth):
        """(matched, ignored), bool [areas, thresholds, len(rows)]."""
        shape = len(AREAS), len(IOU_THRESHOLDS), len(rows)
        matched, ignored = np.zeros(shape, bool), np.zeros(shape, bool)
        keys, starts = np.unique(self.key[rows], return_index=True)
        for key, begin, end in zip(keys.tolist(), starts, [*starts[1:], len(rows)]):
            if key in truth.rows:
                hidden = truth.ignored[:, truth.rows[key]]
                overlaps = coco_mask.iou(self.bbox[rows[begin:end]], truth.bbox[truth.rows[key]], [0] * hidden.shape[1])
                _match(overlaps, hidden, matched[..., begin:end], ignored[..., begin:end])
        outside = np.array([(self.area[rows] < low) | (self.area[rows] > high) for low, high in AREAS.values()])
        excused = outside | ~self.exhaustive[rows]
        return matched, ignored | (~matched & excused[:, None])


def _match(overlaps, hidden, matched, ignored):
    """Each detection takes the best truth that is still free: one to be found, else one outside of the range of areas.

    Args:
      overlaps: [K, G], detections by falling score. hidden: [areas, G]. matched, ignored: [areas, thresholds, K], filled in.
    """
    thresholds = np.minimum(IOU_THRESHOLDS, 1 - 1e-10)[None, :, None]
    free = np.ones((len(hidden), len(IOU_THRESHOLDS), overlaps.shape[1]), bool)
    areas, levels = np.ogrid[:free.shape[0], :free.shape[1]]
    for row in np.flatnonzero(overlaps.max(axis=1) >= IOU_THRESHOLDS[0]):
        fits = free & (overlaps[row] >= thresholds)
        wanted = fits & ~hidden[:, None]
        fits = np.where(wanted.any(-1, keepdims=True), wanted, fits)
        # Of equal overlaps the last is taken.
        best = overlaps.shape[1] - 1 - np.where(fits, overlaps[row], -1)[..., ::-1].argmax(-1)
        hit = fits.any(-1)
        matched[..., row] = hit
        ignored[..., row] = hit & hidden[areas, best]
        free[areas, levels, best] &= ~hit


def _curve(matched, ignored, total):
    """Precision at `RECALLS` [thresholds, 101] and the highest recall [thresholds], detections by falling score."""
    true = np.cumsum(matched & ~ignored, axis=1, dtype=np.float64)
    false = np.cumsum(~matched & ~ignored, axis=1, dtype=np.float64)
    recall, precision = true / total, true / (true + false + np.spacing(1))
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    curve = np.zeros((len(true), len(RECALLS)))
    for level in range(len(true)):
        place = np.searchsorted(recall[level], RECALLS, side="left")
        reached = place < recall.shape[1]
        curve[level, reached] = precision[level, place[reached]]
    return curve, recall[:, -1]


def _summary(precision, recall, truth):
    frequency = np.array([category["frequency"] for category in truth.categories])
    areas = list(AREAS)

    def mean(values):
        values = values[values > -1]
        return float(values.mean()) if len(values) else None
    scores = {"AP": mean(precision[..., 0]), "AP50": mean(precision[0, ..., 0]), "AP75": mean(precision[5, ..., 0])}
    scores |= {f"AP{name}": mean(precision[..., area]) for area, name in enumerate(areas) if name}
    scores |= {f"AP{name}": mean(precision[:, :, frequency == name, 0]) for name in FREQUENCIES}
    scores |= {f"AR{name}": mean(recall[..., area]) for area, name in enumerate(areas)}
    scores["per_class"] = {
        int(truth.category_ids[c]): [mean(precision[:, :, c, 0]), mean(precision[0, :, c, 0]), mean(recall[:, c, 0])]
        for c in np.flatnonzero(truth.count[:, 0])}
    return scores


def as_arrays(detections):
    """LVIS result rows as arrays, see `BestPerClass.arrays`; arrays as they are. Raises: ValueError for a row that does not fit."""
    if isinstance(detections, dict):
        return detections
    checked_rows(detections, _KEYS)
    return {"image_id": np.array([row["image_id"] for row in detections], np.int64),
            "category_id": np.array([row["category_id"] for row in detections], np.int64),
            "bbox": np.array([row["bbox"] for row in detections], np.float64).reshape(-1, 4),
            "score": np.array([row["score"] for row in detections], np.float64)}
