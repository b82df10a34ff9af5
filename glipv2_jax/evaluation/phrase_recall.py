"""Recall@k of phrase grounding: is one of the k best boxes of a phrase on one of the things that it names?"""
import numpy as np
from pycocotools import mask as coco_mask

RECALL_AT = (1, 5, 10)


def phrase_recall(examples, *, iou_threshold=0.5):
    """Recall of caption phrases under the any-box protocol of Flickr30k Entities.

    A phrase is found at k if any of its k best boxes overlaps any of its true boxes by `iou_threshold` or
    more. Overlap is of continuous boxes, width = x2 − x1, as this benchmark has it; COCO files count one
    pixel more.

    Args:
      examples: iterable, one per caption, of lists of phrases; a phrase is a pair (gt_boxes, pred_boxes):
        gt_boxes: [m, 4] float, `xyxy`; a phrase without any is not counted, as in the benchmark.
        pred_boxes: [K, 4] float in the same pixels, best score first; may be empty.
    Returns: dict of floats `recall@1`, `recall@5`, `recall@10` and `upper_bound` (any of all its boxes), None
      without a phrase to count; and `num_phrases`, int.
    Raises: ValueError naming the caption and phrase whose boxes are not [n, 4].
    Source: GLIP, data/datasets/evaluation/flickr/flickr_eval.py, FLICKR_GT_TYPE "separate".
    """
    first_hits = []
    for n, phrases in enumerate(examples):
        for m, (gt_boxes, pred_boxes) in enumerate(phrases):
            gt_boxes = _boxes(gt_boxes, f"caption {n}, phrase {m}: gt_boxes")
            pred_boxes = _boxes(pred_boxes, f"caption {n}, phrase {m}: pred_boxes")
            if len(gt_boxes):
                first_hits.append(_first_hit(gt_boxes, pred_boxes, iou_threshold))
    first_hits = np.asarray(first_hits, np.float64)
    limits = {**{f"recall@{k}": k for k in RECALL_AT}, "upper_bound": np.inf}
    recalls = {name: float(np.mean(first_hits < k)) if len(first_hits) else None
               for name, k in limits.items()}
    return {**recalls, "num_phrases": len(first_hits)}


def _first_hit(gt_boxes, pred_boxes, iou_threshold):
    """Rank from 0 of the first box that hits; infinity if none does."""
    if not len(pred_boxes):
        return np.inf
    overlaps = coco_mask.iou(_xywh(pred_boxes), _xywh(gt_boxes), [0] * len(gt_boxes))     # [K, m]
    hits = np.flatnonzero(overlaps.max(axis=1) >= iou_threshold)
    return hits[0] if len(hits) else np.inf


def _boxes(boxes, where):
    boxes = np.asarray(boxes, np.float64)
    if boxes.size == 0:
        return boxes.reshape(0, 4)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"{where}: found shape {boxes.shape}, expected [n, 4]")
    return boxes


def _xywh(boxes):
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
