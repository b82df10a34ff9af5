"""Recall@k of phrase grounding: is one of the k best boxes of a phrase on one of the things that it names?"""
import logging

import numpy as np
from pycocotools import mask as coco_mask

RECALL_AT = (1, 5, 10)
PROTOCOLS = ("any", "merged")

log = logging.getLogger(__name__)


def phrase_recall(examples, *, iou_threshold=0.5, protocol="any"):
    """Recall of caption phrases under the protocols of Flickr30k Entities.

    A phrase is found at k if one of its k best boxes overlaps its truth by `iou_threshold` or more. Overlap is of continuous
    boxes, width = x2 − x1, as this benchmark has it; COCO files count one pixel more.

    Args:
      examples: iterable, one per caption, of lists of phrases; a phrase is (gt_boxes, pred_boxes) or (gt_boxes, pred_boxes,
        types):
        gt_boxes: [m, 4] float, `xyxy`; a phrase without any is not counted, as in the benchmark.
        pred_boxes: [K, 4] float in the same pixels, best score first; may be empty, and then counts as missed.
        types: names of what the phrase speaks of; it counts for each.
      protocol: "any", any of the boxes, or "merged", the smallest box around all of them.
    Returns: dict of floats `recall@1`, `recall@5`, `recall@10` and `upper_bound` (any of all its boxes), None
      without a phrase to count; `num_phrases`, int; and with types `per_type`, type → the same.
    Raises: ValueError naming the caption and phrase whose boxes are not [n, 4]; for an unknown protocol.
    Source: GLIP, data/datasets/evaluation/flickr/flickr_eval.py, FLICKR_GT_TYPE "separate" and "merged".
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol: found {protocol!r}, expected one of {', '.join(PROTOCOLS)}")
    first_hits, types = [], []
    for n, phrases in enumerate(examples):
        for m, (gt_boxes, pred_boxes, *of_types) in enumerate(phrases):
            gt_boxes = _boxes(gt_boxes, f"caption {n}, phrase {m}: gt_boxes")
            pred_boxes = _boxes(pred_boxes, f"caption {n}, phrase {m}: pred_boxes")
            if len(gt_boxes):
                if protocol == "merged":
                    gt_boxes = np.concatenate([gt_boxes[:, :2].min(0), gt_boxes[:, 2:].max(0)])[None]
                first_hits.append(_first_hit(gt_boxes, pred_boxes, iou_threshold))
                types.append(of_types[0] if of_types else ())
    first_hits = np.asarray(first_hits, np.float64)
    per_type = {name: _recalls(first_hits[[name in of_phrase for of_phrase in types]])
                for name in sorted({name for of_phrase in types for name in of_phrase})}
    return _recalls(first_hits) | ({"per_type": per_type} if per_type else {})


def flickr_recall(truth, rows, protocol="any"):
    """Recall of a prediction file of Flickr30k Entities.

    Args:
      truth: dict (image id, sentence id) → list of (gt_boxes, types), a phrase each, in the order of the sentence.
      rows: list of {image_id, sentence_id, boxes}: for each phrase its boxes, best first; ids as numbers or texts. A last box
        [0, 0, 0, 0], as the reference writes it, changes nothing. Of two rows for a sentence the first counts, rows of
        unknown sentences do not.
      protocol: as in `phrase_recall`.
    Returns: as `phrase_recall`.
    Raises: ValueError naming a sentence that is missing, or has another number of phrases.
    """
    truth = {(str(image), str(sentence)): phrases for (image, sentence), phrases in truth.items()}
    found = {}
    for row in rows:
        key = str(row["image_id"]), str(row["sentence_id"])
        if key not in truth or key in found:
            log.warning("%s: sentence %s of image %s is not counted", "repeated" if key in found else "unknown", key[1], key[0])
        elif len(row["boxes"]) != len(truth[key]):
            raise ValueError(f"sentence {key[1]} of image {key[0]}: found boxes of {len(row['boxes'])} phrases, expected "
                             f"{len(truth[key])}")
        else:
            found[key] = row["boxes"]
    missing = [key for key in truth if key not in found]
    if missing:
        raise ValueError(f"results: found nothing for {len(missing)} of {len(truth)} sentences, the first is sentence "
                         f"{missing[0][1]} of image {missing[0][0]}")
    return phrase_recall(([(boxes, predicted, types) for (boxes, types), predicted in zip(phrases, found[key])]
                          for key, phrases in truth.items()), protocol=protocol)


def _recalls(first_hits):
    limits = {**{f"recall@{k}": k for k in RECALL_AT}, "upper_bound": np.inf}
    recalls = {name: float(np.mean(first_hits < k)) if len(first_hits) else None for name, k in limits.items()}
    return {**recalls, "num_phrases": len(first_hits)}


def _first_hit(gt_boxes, pred_boxes, iou_threshold):
    """Rank from 0 of the first box that hits; infinity if none does."""
    if not len(pred_boxes):
        return np.inf
    overlaps = coco_mask.iou(xywh(pred_boxes), xywh(gt_boxes), [0] * len(gt_boxes))     # [K, m]
    hits = np.flatnonzero(overlaps.max(axis=1) >= iou_threshold)
    return hits[0] if len(hits) else np.inf


def _boxes(boxes, where):
    boxes = np.asarray(boxes, np.float64)
    if boxes.size == 0:
        return boxes.reshape(0, 4)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"{where}: found shape {boxes.shape}, expected [n, 4]")
    return boxes


def xywh(boxes):
    """[n, 4] xyxy → what pycocotools compares: continuous, width = x2 − x1."""
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
