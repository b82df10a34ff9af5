"""Accuracy of referring expressions (RefCOCO, RefCOCO+, RefCOCOg): is one of the k best boxes the one that is meant?"""
import numpy as np
from pycocotools import mask as coco_mask

from glipv2_jax.detection import boxes as box_ops
from glipv2_jax.evaluation.phrase_recall import xywh

PRECISION_AT = (1, 5, 10)


def referring_accuracy(examples, *, overlap="iou", threshold=0.5):
    """Share of expressions for which one of the k best boxes overlaps the target by the threshold or more.

    Args:
      examples: iterable of (target [4] xyxy, boxes [K, 4] xyxy best first, perhaps none).
      overlap: "iou", the benchmark's, or "giou", generalised, as the reference's evaluator has it. Both of continuous boxes.
    Returns: dict of floats `accuracy` (the best box), `precision@5`, `precision@10`, None without an example; `num_expressions`.
    Raises: ValueError for another overlap.
    Source: GLIP, data/datasets/refexp.py (`RefExpEvaluator`).
    """
    if overlap not in ("iou", "giou"):
        raise ValueError(f"overlap: found {overlap!r}, expected iou or giou")
    ranks = np.array([_first_hit(target, boxes, overlap, threshold) for target, boxes in examples], np.float64)
    names = {k: "accuracy" if k == 1 else f"precision@{k}" for k in PRECISION_AT}
    return {**{names[k]: float(np.mean(ranks < k)) if len(ranks) else None for k in PRECISION_AT},
            "num_expressions": len(ranks)}


def _first_hit(target, boxes, overlap, threshold):
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    if not len(boxes):
        return np.inf
    found = (coco_mask.iou(xywh(boxes), xywh(target), [0])[:, 0] if overlap == "iou"
             else np.asarray(box_ops.giou(boxes, np.asarray(target, np.float64))))
    hits = np.flatnonzero(found >= threshold)
    return hits[0] if len(hits) else np.inf
