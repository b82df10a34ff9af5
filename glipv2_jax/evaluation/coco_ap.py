"""COCO average precision by pycocotools, and COCO ground truth from any source of records."""
import contextlib
import io
import os

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from glipv2_jax.evaluation.coco_json import checked_rows
from input_pipeline import image_ops
from input_pipeline.annotations import load_json
from input_pipeline.masks import encode_mask

# Where COCOeval.stats keeps each number.
_STATS = {"AP": 0, "AP50": 1, "AP75": 2, "APs": 3, "APm": 4, "APl": 5, "AR100": 8}


def coco_ap(ground_truth, results, *, classes=None, iou_type="bbox", scorer="pycocotools"):
    """Scores COCO result rows against COCO ground truth.

    Args:
      ground_truth: dict in COCO's instances format, or the path of such a JSON file. Missing `area` and
        `iscrowd` are taken as width × height and 0, as small data sets often leave them out.
      results: list of rows of `coco_json.detection_rows`, or the path of a result file. May be empty.
      classes: names or ids of categories; only these are scored, as if the others did not exist. None: all.
      iou_type: "bbox", or "segm" where both sides have `segmentation`.
      scorer: "pycocotools", or "faster": the same numbers by faster-coco-eval, `pip install 'glipv2_jax[fast]'`.
    Returns: dict with floats `AP` (mean over IoU 0.50:0.95), `AP50`, `AP75`, `APs`, `APm`, `APl` (area < 32²,
      up to 96², above) and `AR100`, at 100 detections per image and class; and `per_class_AP50`, category
      name -> float. A number without any ground truth behind it is None (pycocotools says −1, which spoils
      averages).
    Raises: ValueError if a class is unknown, names repeat, an annotation has no mask where masks are compared, or a row lacks
      something or has an image or a category that the ground truth lacks.
    """
    coco, coco_eval = scorer_classes(scorer)
    content = load(ground_truth)
    if iou_type == "segm" and not all("segmentation" in annotation for annotation in content["annotations"]):
        raise ValueError("ground truth: found annotations without segmentation, so masks cannot be scored")
    truth = _index(_complete(content), coco)
    found = _index({"images": truth.dataset["images"], "categories": truth.dataset["categories"],
                    "annotations": _annotations_of(load(results), truth, iou_type)}, coco)

    with contextlib.redirect_stdout(io.StringIO()):      # pycocotools prints its progress and its table
        evaluation = coco_eval(truth, found, iou_type)
        evaluation.params.catIds = _category_ids(truth.dataset["categories"], classes)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()

    scores = {name: _known(evaluation.stats[place]) for name, place in _STATS.items()}
    # [recall, class] at IoU 0.50, of all areas, with 100 detections.
    precision = evaluation.eval["precision"][0, :, :, 0, -1]
    names = {category["id"]: category["name"] for category in truth.dataset["categories"]}
    scores["per_class_AP50"] = {
        names[category_id]: _known(precision[:, k].mean())
        for k, category_id in enumerate(evaluation.params.catIds)}
    return scores


def ground_truth_from_source(source, indices=None):
    """COCO ground truth of the records of any detection source, for data sets that have no COCO file.

    Areas are those of the masks, or of the boxes where a record has no masks. Where the official COCO file
    exists pass that to `coco_ap` instead: its areas decide between small, medium and large.

    Args:
      source: a source as `input_pipeline/schema.py` describes it, with class names.
      indices: which records; None for all.
    Returns: dict with images, annotations and categories. Every image is listed, also those without a box.
      bbox is xywh with width = x2 − x1 + 1; crowds keep `iscrowd` 1.
    Raises: ValueError if the source is of captions, if a box has no class, or if an image id comes twice.
    """
    if not source.class_names:
        raise ValueError(f"source {source.name!r}: no class names, so no average precision per class")
    categories = [{"id": int(category_id), "name": name}
                  for category_id, name in zip(source.category_ids, source.class_names, strict=True)]
    images, annotations = {}, []
    for index in range(len(source)) if indices is None else indices:
        record = source[index]
        height, width = (source.image_size(index) if hasattr(source, "image_size")
                         else image_ops.pixels_of(record).shape[:2])
        image_id = int(record["image_id"])
        if image_id in images:
            raise ValueError(f"source {source.name!r}: image id {image_id} at index {index} was seen before")
        images[image_id] = {"id": image_id, "height": height, "width": width}
        annotations += _annotations(record, image_id, source, first_id=len(annotations) + 1)
    return {"images": list(images.values()), "annotations": annotations, "categories": categories}


def _annotations(record, image_id, source, first_id):
    boxes = np.asarray(record["boxes"], np.float64).reshape(-1, 4)
    crowds = record.get("is_crowd", np.zeros(len(boxes), bool))
    annotations = []
    for n, (box, class_index) in enumerate(zip(boxes, record["classes"], strict=True)):
        if not 0 <= class_index < len(source.class_names):
            raise ValueError(f"source {source.name!r}, image {image_id}: box {n} has class {class_index}, "
                             f"expected 0..{len(source.class_names) - 1}")
        width, height = (box[2:] - box[:2] + 1).tolist()
        annotation = {
            "id": first_id + n, "image_id": image_id, "category_id": int(source.category_ids[class_index]),
            "bbox": [*box[:2].tolist(), width, height], "area": width * height, "iscrowd": int(crowds[n])}
        if "masks" in record:
            annotation["segmentation"] = encode_mask(record["masks"][n])
            annotation["area"] = float(np.count_nonzero(record["masks"][n]))
        annotations.append(annotation)
    return annotations


def load(data):
    """What a path of a JSON file holds; anything else as it is. Raises: ValueError naming a file that is no JSON."""
    return load_json(data) if isinstance(data, (str, os.PathLike)) else data


def _complete(dataset):
    """A copy with area and iscrowd filled in, and annotations numbered from 1.

    COCOeval takes the annotation id 0 for "not matched": files that count from 0 would lose one detection.
    """
    annotations = []
    for number, annotation in enumerate(dataset["annotations"], start=1):
        width, height = annotation["bbox"][2:]
        annotations.append({"area": width * height, "iscrowd": 0, **annotation, "id": number})
    return {"images": dataset["images"], "categories": dataset["categories"], "annotations": annotations}


def _annotations_of(rows, truth, iou_type):
    """Result rows as annotations: as COCO.loadRes, which fails on no rows and prefers the area of the box."""
    checked_rows(rows, ("image_id", "category_id", "segmentation" if iou_type == "segm" else "bbox", "score"))
    for key, known in (("image_id", truth.imgs), ("category_id", truth.cats)):
        unknown = sorted({row[key] for row in rows} - set(known), key=str)
        if unknown:
            raise ValueError(f"results: {key} {unknown[0]}, one of {len(unknown)} not in the ground truth")
    annotations = []
    for number, row in enumerate(rows, start=1):
        area = coco_mask.area(row["segmentation"]) if iou_type == "segm" else row["bbox"][2] * row["bbox"][3]
        annotations.append({**row, "id": number, "area": area, "iscrowd": 0})
    return annotations


def scorer_classes(name):
    """The classes that index and score. Raises: ValueError for an unknown name, or one whose package is not installed."""
    if name == "pycocotools":
        return COCO, COCOeval
    if name != "faster":
        raise ValueError(f"scorer: found {name!r}, expected pycocotools or faster")
    try:
        from faster_coco_eval import COCO as FasterCOCO
        from faster_coco_eval import COCOeval_faster
    except ImportError as error:
        raise ValueError("scorer 'faster': found no faster-coco-eval; pip install 'glipv2_jax[fast]'") from error
    return FasterCOCO, COCOeval_faster


def _index(dataset, kind=COCO):
    coco = kind()
    coco.dataset = dataset
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _category_ids(categories, classes):
    """Sorted ids of the classes asked for by name or by id."""
    by_name = {category["name"]: category["id"] for category in categories}
    if len(by_name) < len(categories):
        raise ValueError("ground truth: two categories have the same name")
    ids = set(by_name.values())
    if classes is None:
        return sorted(ids)
    unknown = [name for name in classes if name not in by_name and name not in ids]
    if unknown:
        raise ValueError(f"classes {unknown} are not in the ground truth, which has {sorted(by_name)}")
    return sorted({by_name.get(name, name) for name in classes})


def _known(value):
    return None if value < 0 else float(value)
