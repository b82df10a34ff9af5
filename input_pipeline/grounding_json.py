"""A source over MDETR-style grounding files: captions whose boxes know their characters.

Flickr30k Entities (separate and merged), the mixed file of GQA, Visual Genome and RefCOCO, RefCOCO/+/g, GQA, PhraseCut.
"""
import os
import pathlib

import numpy as np

from input_pipeline import image_ops
from input_pipeline.annotations import (
    Problems,
    check_option,
    checked_id,
    checked_spans,
    field,
    inclusive_boxes,
    load_lists,
    missing_images,
    refuse,
)
from input_pipeline.masks import decode_masks
from input_pipeline.schema import NO_CLASS

# What evaluation asks of a record, where a file has it.
ABOUT = ("dataset_name", "original_img_id", "original_id", "sentence_id", "task_id", "tokens_positive_eval")


class GroundingJson:
    """Random access to the records of a file: one for each pair of image and caption, sorted by id.

    `images` need `id`, `file_name`, `height`, `width`, `caption`; `annotations` need `image_id`, `bbox` ([x, y, width,
    height], width = x2 − x1) and `tokens_positive` or `tokens`, a list of [begin, end) characters of the caption.
    `image_id` of a record is the pair's id: one photograph has several. What is kept of a file is arrays, file names
    and captions.

    Args:
      json_path: the annotation file.
      image_folder: what `file_name` is relative to; None: annotations alone.
      coco_folder: the same for images whose `data_source` is "coco" (mixed files); needed where there are such.
      without_coco: leave those images out, as GLIP's no_coco files do.
      with_masks: records have `masks`, from `segmentation`; an object without one among others has its box
        as mask, as in GLIP; a file without any gives none.
      separate_phrases: where an image has `tokens_positive_eval`, its phrases as Flickr30k Entities evaluates them, a row for
        each phrase and box: MDETR's files have one box for all phrases that speak of the same thing.
      keep_empty: keep pairs without any box wider and higher than a pixel. The reference drops them.
      bad_boxes: "error", or "repair": boxes without area in their image are dropped, and spans outside the caption.
      name: of the source in errors and logs.
    Raises: ValueError listing the records at fault.
    Source: GLIP `datasets/modulated_coco.py`, `datasets/mixed.py`, `datasets/flickr.py`, `datasets/phrasecut.py`.
    """

    class_names, category_ids = (), ()

    def __init__(self, json_path: str | os.PathLike, image_folder: str | os.PathLike | None, *,
                 coco_folder: str | os.PathLike | None = None, without_coco: bool = False, with_masks: bool = False,
                 separate_phrases: bool = False, keep_empty: bool = False, bad_boxes: str = "error", name: str | None = None):
        check_option(bad_boxes)
        self.json_path = pathlib.Path(json_path)
        self.name = name or self.json_path.stem
        self._folders = None if image_folder is None else (pathlib.Path(image_folder), pathlib.Path(coco_folder or image_folder))
        content = load_lists(self.json_path, ("images", "annotations"))
        problems = Problems()
        images = {}
        for n, image in enumerate(content["images"]):
            with problems:
                images |= _checked_image(image, f"images[{n}]", images)
        refuse(self.json_path, problems.found)
        from_coco = [image for image in images.values() if image.get("data_source") == "coco"]
        if without_coco:
            images = {key: image for key, image in images.items() if image.get("data_source") != "coco"}
        elif from_coco and coco_folder is None and any(i.get("data_source") != "coco" for i in images.values()):
            raise ValueError(f"{json_path}: found images of the data sources coco and others, expected a coco_folder "
                             "beside image_folder, or without_coco=True")
        known = {image["id"] for image in content["images"]
                 if isinstance(image, dict) and isinstance(image.get("id"), int)}
        of_image = {key: [] for key in sorted(images)}
        for n, annotation in enumerate(content["annotations"]):
            with problems:
                where = f"annotations[{n}]"
                image_id = field(annotation, "image_id", int, where)
                if image_id not in known:
                    raise ValueError(f"{where}: found image_id {image_id}, expected the id of one of 'images'")
                if image_id in of_image:
                    found = _checked(annotation, images[image_id], f"{where} of image {image_id}", bad_boxes)
                    of_image[image_id] += found
        refuse(self.json_path, problems.found)
        if separate_phrases:
            of_image = {key: _by_phrase(found, images[key]) for key, found in of_image.items()}
        if not keep_empty:
            of_image = {key: found for key, found in of_image.items() if any(map(_has_area, found))}
        if not of_image:
            raise ValueError(f"{json_path}: found no caption with a box, expected at least one")
        if self._folders:
            missing = missing_images({key: self._folders[images[key].get("data_source") == "coco"] / images[key]["file_name"]
                                      for key in of_image})
            refuse(self.json_path, list(missing.values()))
            of_image = {key: found for key, found in of_image.items() if key not in missing}
        self._keep([images[key] for key in of_image], list(of_image.values()), with_masks)

    def _keep(self, images, of_image, with_masks):
        """Arrays instead of millions of dicts; image i has boxes starts[i] to starts[i + 1] − 1, and so for spans."""
        flat = [annotation for found in of_image for annotation in found]
        self._ids = np.array([image["id"] for image in images], np.int64)
        self._sizes = np.array([(image["height"], image["width"]) for image in images], np.int32)
        self._files = [image["file_name"] for image in images]
        self._captions = [image["caption"] for image in images]
        self._is_coco = np.array([image.get("data_source") == "coco" for image in images], np.bool_)
        about = [{key: image[key] for key in ABOUT if key in image} for image in images]
        self._about = about if any(about) else None
        self._starts = np.cumsum([0] + [len(found) for found in of_image])
        self._boxes = np.array([box for box, _, _, _ in flat], np.float32).reshape(-1, 4)
        self._is_crowd = np.array([crowd for _, _, crowd, _ in flat], np.bool_)
        self._span_starts = np.cumsum([0] + [len(spans) for _, spans, _, _ in flat])
        self._spans = np.array([span for _, spans, _, _ in flat for span in spans], np.int32).reshape(-1, 2)
        found = [segmentation for *_, segmentation in flat] if with_masks else []
        self._segmentations = found if any(found) else None

    def __len__(self) -> int:
        return len(self._ids)

    def image_size(self, index: int) -> tuple[int, int]:
        """(height, width) as the file states."""
        return tuple(map(int, self._sizes[index]))

    def caption(self, index: int) -> str:
        """The caption alone."""
        return self._captions[index]

    def file_name(self, index: int) -> str:
        """As the file has it."""
        return self._files[index]

    def image_bytes(self, index: int) -> bytes:
        """The image file as it is."""
        return image_ops.read_file(self._path(index))

    def __getitem__(self, index: int) -> dict:
        rows = range(self._starts[index], self._starts[index + 1])
        here = slice(rows.start, rows.stop)
        record = {
            "image": lambda: image_ops.decode_of_size(self._path(index), self.image_size(index),
                                                      f"image {self._ids[index]}", f"{self.json_path.name} states"),
            "image_id": int(self._ids[index]),
            "boxes": self._boxes[here].copy(),
            "classes": np.full(len(rows), NO_CLASS, np.int32),
            "is_crowd": self._is_crowd[here].copy(),
            "caption": self._captions[index],
            "spans": [list(map(tuple, self._spans[self._span_starts[row]:self._span_starts[row + 1]].tolist()))
                      for row in rows],
        }
        if self._about is not None:
            record["about"] = self._about[index]
        if self._segmentations is not None:
            record["masks"] = decode_masks(self._segmentations[here], self._boxes[here], self.image_size(index),
                                           lambda n: f"{self.json_path}: box {n} of image {self._ids[index]}")
        return record

    def _path(self, index):
        if self._folders is None:
            raise ValueError(f"{self.name}: opened without image_folder, so it has no images")
        return self._folders[int(self._is_coco[index])] / self._files[index]


def _checked_image(image, where, seen):
    if not isinstance(image, dict):
        raise ValueError(f"{where}: found {image!r}, expected an object")
    image_id = checked_id(image.get("id"), where)
    where = f"image {image_id}"
    if image_id in seen:
        raise ValueError(f"{where}: another image has the same id")
    field(image, "file_name", str, where)
    if min(field(image, "height", int, where), field(image, "width", int, where)) < 1:
        raise ValueError(f"{where}: found size {image['width']}x{image['height']}, expected positive numbers")
    if not field(image, "caption", str, where).strip():
        raise ValueError(f"{where}: found an empty caption")
    return {image_id: image}


def _checked(annotation, image, where, bad_boxes):
    """[(box, spans, is_crowd, segmentation)], or [] for a box to be dropped."""
    x, y, width, height = _four(annotation, where)
    size = image["height"], image["width"]
    boxes, keep = inclusive_boxes([[x, y, x + width, y + height]], size, where, bad_boxes)
    key = "tokens" if "tokens" in annotation else "tokens_positive"
    spans = checked_spans(field(annotation, key, list, where), image["caption"], where, bad_boxes)
    if not keep[0]:
        return []
    return [(boxes[0], spans, bool(annotation.get("iscrowd", 0)), annotation.get("segmentation"))]


def _by_phrase(found, image):
    """What `_checked` gives of an image, a row for each phrase in the order of its `tokens_positive_eval` and each of its boxes."""
    if "tokens_positive_eval" not in image:
        return found
    phrases = [checked_spans(spans, image["caption"], f"image {image['id']}, tokens_positive_eval")
               for spans in field(image, "tokens_positive_eval", list, f"image {image['id']}")]
    return [(box, phrase, crowd, segmentation) for phrase in phrases
            for box, spans, crowd, segmentation in found if phrase and set(phrase) <= set(spans)]


def _four(annotation, where):
    box = field(annotation, "bbox", list, where)
    if len(box) != 4 or not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in box):
        raise ValueError(f"{where}: found bbox {box}, expected four numbers [x, y, width, height]")
    return box


def _has_area(annotation):
    (x1, y1, x2, y2), *_ = annotation
    return x2 > x1 and y2 > y1
