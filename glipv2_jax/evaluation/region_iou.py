"""PhraseCut: the region that a phrase names, all its instances as one mask."""
import numpy as np
from pycocotools import mask as coco_mask

PRECISION_AT = (0.5, 0.7, 0.9)


def region_iou(examples):
    """Overlap of predicted and true regions.

    Args:
      examples: iterable of pairs (true region, predicted region), each COCO RLE, or None for an empty one.
    Returns: dict of floats `mean_IoU`, `cumulative_IoU` (all intersections over all unions), `precision@0.5`, `@0.7`, `@0.9`
      (share of phrases with a greater IoU), None without an example; `num_phrases`. Two empty regions have IoU 0, as in the
      official code.
    Source: Wu et al., PhraseCut (CVPR 2020), section 4.
    """
    intersections, unions = [], []
    for true, predicted in examples:
        areas = [0 if region is None else int(coco_mask.area(region)) for region in (true, predicted)]
        both = 0 if None in (true, predicted) else int(coco_mask.area(coco_mask.merge([true, predicted], intersect=True)))
        intersections.append(both)
        unions.append(sum(areas) - both)
    intersections, unions = np.array(intersections, np.float64), np.array(unions, np.float64)
    iou = intersections / np.maximum(unions, 1)
    if not len(iou):
        return {"mean_IoU": None, "cumulative_IoU": None, **{f"precision@{t}": None for t in PRECISION_AT}, "num_phrases": 0}
    return {"mean_IoU": float(iou.mean()),
            "cumulative_IoU": float(intersections.sum() / max(unions.sum(), 1)),
            **{f"precision@{t}": float((iou > t).mean()) for t in PRECISION_AT}, "num_phrases": len(iou)}


def union_of_boxes(boxes, size):
    """RLE of all pixels in any of the boxes: the region of a model without masks.

    Args:
      boxes: [K, 4] xyxy, corners inclusive. size: (height, width).
    """
    mask = np.zeros(size, np.uint8, order="F")
    edges = np.round(np.asarray(boxes, np.float64).reshape(-1, 4)).astype(int) + [0, 0, 1, 1]
    for left, top, right, bottom in edges.clip(0).tolist():     # clipped as edges: a box left of the image has no pixel in it
        mask[top:bottom, left:right] = 1
    return coco_mask.encode(mask)


def union_of_runs(masks, size):
    """RLE of all pixels in any of the masks, which are RLE themselves: the region of a model with masks."""
    return coco_mask.merge(list(masks)) if len(masks) else union_of_masks(masks, size)


def union_of_masks(masks, size):
    """RLE of all pixels in any of the masks [n, h, w]."""
    return coco_mask.encode(np.asfortranarray(np.any(masks, axis=0) if len(masks) else np.zeros(size), np.uint8))
