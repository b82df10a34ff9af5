"""Test-time augmentation: an image at several sizes, plain and mirrored, and one set of boxes from all of them.

Source: GLIP, data/datasets/evaluation/box_aug.py. Differs from GLIP: an unknown rule is an error instead of plain
suppression; soft-nms has a floor of its own for scores, where the reference takes the overlap's threshold, so that hardly
anything is left; each view has its range of sizes, where the reference drops all ranges if their number is not that of the
scales.
"""
import dataclasses

import numpy as np
from pycocotools import mask as coco_mask

from glipv2_jax.detection.boxes import PIXEL

RULES = ("none", "vote", "soft-vote", "soft-nms")
_SIGMA = 0.95                # of soft-nms: scores fall by exp(−IoU² / _SIGMA)


@dataclasses.dataclass(frozen=True)
class View:
    """How an image is shown once.

    short_side, max_size: pixels, as `config.eval` has them. mirrored: left and right swapped.
    least, largest: boxes whose square root of the area in the view, legacy +1, lies outside of them are dropped.
    """
    short_side: int
    max_size: int = 2500
    mirrored: bool = False
    least: float = 0
    largest: float = 10_000

    def to_original(self, boxes, shown_size, original_size):
        """Boxes of this view as boxes of the image.

        Args:
          boxes: [K, 4] xyxy, pixels of the view. shown_size, original_size: (height, width) in the view and of the image.
        Returns: [K', 4] float32 xyxy in pixels of the image, and bool [K], which of the boxes these are.
        """
        boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
        if self.mirrored:
            boxes = np.stack([shown_size[1] - boxes[:, 2] - PIXEL, boxes[:, 1], shown_size[1] - boxes[:, 0] - PIXEL, boxes[:, 3]], 1)
        area = np.prod(boxes[:, 2:] - boxes[:, :2] + PIXEL, axis=1)
        keep = (area > self.least**2) & (area < self.largest**2)
        y, x = (np.float32(original / shown) for original, shown in zip(original_size, shown_size))
        return boxes[keep] * np.array([x, y, x, y], np.float32), keep


# The twelve scales with which GLIP-L's 61.7 AP on COCO was reached; small views for large objects, large ones for small.
RELEASED_VIEWS = tuple(
    dataclasses.astuple(View(short_side, 2500, mirrored, least, largest))
    for short_side, least, largest in ((400, 96, 10_000), (500, 96, 10_000), (600, 64, 10_000), (640, 64, 10_000),
                                       (700, 64, 10_000), (900, 0, 10_000), (1000, 0, 10_000), (1100, 0, 256), (1200, 0, 256),
                                       (1300, 0, 192), (1400, 0, 192), (1800, 0, 96))
    for mirrored in (False, True))


def check_rule(rule):
    """Raises: ValueError for an unknown rule of `merge`."""
    if rule not in RULES:
        raise ValueError(f"merge: found rule {rule!r}, expected one of {', '.join(RULES)}")


def merge(boxes, scores, labels, rule="none", threshold=0.6, *, classes=None, keep=1000, score_floor=0.05):
    """One set of boxes from those of all views, class by class.

    Args:
      boxes: [N, 4] xyxy. scores: [N]. labels: [N] int.
      rule: "none": of boxes that overlap by more than the threshold (plain lengths) the best stays. "vote": boxes that
        overlap the best one by at least the threshold (legacy +1) are averaged, weighted by score, and get its score.
        "soft-vote": beside that each of them comes again, its score times 1 − IoU. "soft-nms": scores fall with the overlap.
      threshold: of IoU; None leaves all boxes as they are.
      classes: labels to merge, in this order, others are dropped; None: all, ascending.
      keep: boxes of the image; of equal scores at the limit all stay.
      score_floor: least score that a box may fall to in soft-vote and soft-nms. The reference: 0.05 and its threshold.
    Returns: boxes [M, 4] float32, scores [M] float32, labels [M], class by class.
    Raises: ValueError for an unknown rule.
    """
    check_rule(rule)
    boxes, scores, labels = np.asarray(boxes, np.float32).reshape(-1, 4), np.asarray(scores, np.float32), np.asarray(labels)
    merged = []
    for label in np.unique(labels) if classes is None else classes:
        of_class = labels == label
        found = boxes[of_class], scores[of_class]
        if threshold is not None:
            found = _MERGE[rule](*found, np.float64(threshold), score_floor)
        merged.append((*found, np.full(len(found[1]), label, labels.dtype)))
    boxes, scores, labels = (np.concatenate([empty, *parts]) for empty, parts in zip(
        (boxes[:0], scores[:0], labels[:0]), zip(*merged) if merged else ((), (), ())))
    if len(scores) > keep:
        best = scores >= np.sort(scores)[-keep]
        boxes, scores, labels = boxes[best], scores[best], labels[best]
    return boxes, scores, labels


def _overlaps(box, boxes, pixel):
    """IoU of a box with others; pixel: what a width is more than x2 − x1."""
    def xywh(some):
        some = np.asarray(some, np.float64).reshape(-1, 4)
        return np.concatenate([some[:, :2], some[:, 2:] - some[:, :2] + pixel], axis=1)
    return coco_mask.iou(xywh(box), xywh(boxes), [0] * len(boxes))[0] if len(boxes) else np.zeros(0)


def _suppressed(boxes, scores, threshold, score_floor):
    left, kept = np.argsort(-scores, kind="stable"), []
    while len(left):
        kept.append(left[0])
        left = left[1:][_overlaps(boxes[left[0]], boxes[left[1:]], 0) <= threshold]
    return boxes[kept], scores[kept]


def _voted(boxes, scores, threshold, score_floor, soft=False):
    if len(scores) < 2:
        return boxes, scores
    left, found, weaker = np.argsort(-scores, kind="stable"), [], []
    while len(left):
        overlaps = _overlaps(boxes[left[0]], boxes[left], PIXEL)
        near = overlaps >= threshold
        near[0] = True
        cluster, weights = boxes[left[near]], scores[left[near]][:, None]
        found.append((cluster[0] if near.sum() == 1 else (cluster * weights).sum(0) / weights.sum(), weights.max()))
        weaker += [(box, score) for box, score in zip(cluster, weights[:, 0] * (1 - overlaps[near])) if score >= score_floor]
        left = left[~near]
    if soft:
        found = sorted(found + weaker, key=lambda one: -one[1])
    return np.array([box for box, _ in found], np.float32), np.array([score for _, score in found], np.float32)


def _soft_voted(boxes, scores, threshold, score_floor):
    return _voted(boxes, scores, threshold, score_floor, soft=True)


def _softly_suppressed(boxes, scores, threshold, score_floor):
    scores, found = scores.astype(np.float64), []
    left = np.arange(len(scores))
    while len(left):
        best = left[scores[left].argmax()]
        found.append((boxes[best], scores[best]))
        left = left[left != best]
        scores[left] *= np.exp(-_overlaps(boxes[best], boxes[left], PIXEL) ** 2 / _SIGMA)
        left = left[scores[left] >= score_floor]
    return np.array([box for box, _ in found], np.float32).reshape(-1, 4), np.array([s for _, s in found], np.float32)


_MERGE = {"none": _suppressed, "vote": _voted, "soft-vote": _soft_voted, "soft-nms": _softly_suppressed}
