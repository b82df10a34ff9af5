"""A source (see `schema.py`) over a COCO-format JSON file and a folder of images.

The file is checked as a whole when it is opened, and everything wrong is listed by name: a run should not die
in its third hour of a typing error that the first second could see. What only decoding can show (a truncated
image, a size other than the file says) comes up when the record is read; `glipv2 inspect` reads all.
"""
import math
import os
import pathlib
from collections.abc import Mapping

import numpy as np

from input_pipeline import image_ops
from input_pipeline.annotations import LARGEST_ID, check_option, load_lists, missing_images, refuse
from input_pipeline.few_shot import pick
from input_pipeline.masks import decode_masks
from input_pipeline.prompts import Phrase

_XYXY = "is it [x1, y1, x2, y2] where [x, y, width, height] is expected?"
_KNOWLEDGE = ("synonym", "definition")
_REPAIR = "bad_boxes='repair' cuts or drops such boxes"


class CocoJson:
    """Random access to the records of a COCO-format data set, sorted by image id; of a few-shot subset, as picked.

    Classes come in the order of the file's categories. `images` need `id`, `file_name`, `width`, `height`;
    `annotations` need `id`, `image_id`, `category_id`, `bbox` ([x, y, width, height] in pixels) and may have
    `iscrowd` and `segmentation`; `categories` need `id`, `name`. All ids are integers, each once.

    LVIS files are read too: an image without `file_name` lies where the last two parts of its `coco_url` say, and
    `neg_category_ids`, the classes known to be absent, become the record's `negatives`.

    Boxes belong to the image of the size that the JSON states. As a rule that is the upright image; where
    EXIF asks for a quarter turn and the JSON states the size before it, the image is given as stored: that is
    what was annotated, and what results are scored in. Any other size is an error.

    Args:
      json_path: the annotation file.
      image_folder: what `file_name` is relative to.
      class_names: better words for the prompt, {name in the file: name to use}, e.g. {"RBC": "red blood
        cell"}, or {name in the file: {"prefix": …, "name": …, "suffix": …}} for words around it, as ODinW's prompts have
        them: {"penguin": {"suffix": " , which is black and white"}}. Each part may be left out. `synonym` and
        `definition` beside them are what wordings may use (`prompts.worded`), where the file, as LVIS, has none.
      with_masks: records have `masks`, from polygons or RLE; an object without one among others has its box
        as mask, as in GLIP; a file without any gives none.
      keep_empty: keep images that training can draw nothing from: no box, or only crowd or one-pixel boxes.
        The reference trains without them.
      require_boxes: refuse a file without any annotation.
      bad_boxes: "error", or "repair": boxes without area or outside the image are dropped, others are cut at
        the border.
      shots: keep a few-shot subset, `few_shot.pick`, with this many images of each class; 0: all images. Differs from
        GLIP: images that training can draw nothing from are not offered; in GLIP crowds alone count as boxes.
      shots_seed: which subset; 0: the lowest image ids.
      name: what errors and logs call the source, by default the name of the JSON file.
    Attributes:
      official_json: path of the file if it is what results are compared with, None if images were left out. Repaired boxes
        stay there as they are: whoever scores the results again has that file.
      repaired: how many boxes are dropped, or cut by more than `image_ops.BORDER_PIXELS`.
    Raises: ValueError listing the records at fault, with what was found and what was expected.
    """

    def __init__(self, json_path: str | os.PathLike, image_folder: str | os.PathLike, *,
                 class_names: Mapping[str, str | Mapping[str, str]] | None = None, with_masks: bool = False,
                 keep_empty: bool = True, require_boxes: bool = True, bad_boxes: str = "error",
                 shots: int = 0, shots_seed: int = 0, name: str | None = None):
        check_option(bad_boxes)
        self.json_path, self.image_folder = pathlib.Path(json_path), pathlib.Path(image_folder)
        self.name = name or self.json_path.stem
        self.official_json = self.json_path if keep_empty and not shots else None
        content = load_lists(self.json_path, ("images", "annotations", "categories"))
        problems = []
        categories = _unique(content["categories"], "categories", {"id": int, "name": str}, problems)
        if not content["categories"]:
            problems.append("'categories': found none, expected at least one")
        for image in content["images"]:
            if isinstance(image, dict) and "file_name" not in image and isinstance(image.get("coco_url"), str):
                image["file_name"] = "/".join(image["coco_url"].split("/")[-2:])
        images = _unique(content["images"], "images",
                         {"id": int, "file_name": str, "width": int, "height": int}, problems)
        images = _sound(images, _problems_of_image, problems)
        names = [category["name"] for category in categories.values()]
        problems += [f"category {category['id']} {category['name']!r}: another category has the same name"
                     for n, category in enumerate(categories.values()) if category["name"] in names[:n]]
        refuse(self.json_path, problems)
        annotations = _unique(content["annotations"], "annotations",
                              {"id": int, "image_id": int, "category_id": int, "bbox": list}, problems)
        if require_boxes and not annotations:
            problems.append("found no annotations, expected at least one "
                            "(require_boxes=False allows none, to predict only)")
        refuse(self.json_path, problems)

        self.category_ids = tuple(categories)
        names = [category["name"] for category in categories.values()]
        self.phrases = _phrases(names, class_names or {}, self.json_path)
        self.class_names = tuple(p.name if isinstance(p, Phrase) else p for p in self.phrases)
        self.class_about = tuple(_about(category, (class_names or {}).get(category["name"])) for category in categories.values())
        class_of = {category_id: index for index, category_id in enumerate(self.category_ids)}
        of_image = {image_id: [] for image_id in sorted(images)}
        # Annotations of what is itself at fault are not at fault.
        without = _ids(content["images"]) - set(images), _ids(content["categories"]) - set(categories)
        annotations = {key: annotation for key, annotation in annotations.items()
                       if annotation["image_id"] not in without[0] and annotation["category_id"] not in without[1]}
        self.repaired = 0                              # boxes that are cut or dropped
        for annotation in _sound(annotations, lambda a: _problems_of(a, images, class_of, bad_boxes), problems).values():
            self.repaired += _pixels_over(annotation["bbox"], images[annotation["image_id"]]) > image_ops.BORDER_PIXELS or not _has_area_inside(
                annotation["bbox"], images[annotation["image_id"]])
            if _has_area_inside(annotation["bbox"], images[annotation["image_id"]]):
                of_image[annotation["image_id"]].append(annotation)
        refuse(self.json_path, problems)

        if shots or not keep_empty:
            of_image = {key: found for key, found in of_image.items() if any(map(_trainable, found))}
        if shots:
            picked = pick({key: [a["category_id"] for a in found] for key, found in of_image.items()}, shots, shots_seed)
            of_image = {key: of_image[key] for key in picked}
        if not of_image:
            why = " with a box (shots)" if shots else "" if keep_empty else " with a box (keep_empty=False)"
            refuse(self.json_path, [f"found no image to use, expected at least one{why}"])
        used = {image_id: images[image_id] for image_id in of_image}
        used = _sound(used, lambda image: _unknown_negatives(image, class_of), problems)
        if self.image_folder.is_dir():
            missing = missing_images({image_id: self.image_folder / image["file_name"] for image_id, image in used.items()})
            problems += missing.values()
            used = {image_id: image for image_id, image in used.items() if image_id not in missing}
        else:
            used, problems = {}, [*problems, f"image folder {self.image_folder}: no such folder"]
        refuse(self.json_path, problems)
        self._images, self._class_of = list(used.values()), class_of
        self._keep([of_image[image_id] for image_id in used], class_of, with_masks)

    def _keep(self, of_image, class_of, with_masks):
        """Arrays over all annotations instead of millions of dicts; image i has rows starts[i] to starts[i +
        1] − 1."""
        flat = [annotation for found in of_image for annotation in found]
        self._starts = np.cumsum([0] + [len(found) for found in of_image])
        self._boxes = image_ops.boxes_from_xywh([a["bbox"] for a in flat])
        self._classes = np.array([class_of[a["category_id"]] for a in flat], np.int32)
        self._is_crowd = np.array([bool(a.get("iscrowd", 0)) for a in flat], np.bool_)
        self._annotation_ids = np.array([a["id"] for a in flat], np.int64)
        found = [a.get("segmentation") for a in flat] if with_masks else []
        self._segmentations = found if any(found) else None

    def __len__(self) -> int:
        return len(self._images)

    def image_size(self, index: int) -> tuple[int, int]:
        """(height, width) as the JSON states, without touching the image."""
        return self._images[index]["height"], self._images[index]["width"]

    def __getitem__(self, index: int) -> dict:
        """A record; `image` is a callable, so nothing is decoded before it is needed."""
        rows = slice(self._starts[index], self._starts[index + 1])
        record = {
            "image": lambda: self._read_image(index),
            "image_id": self._images[index]["id"],
            "boxes": self._boxes[rows].copy(),
            "classes": self._classes[rows].copy(),
            "is_crowd": self._is_crowd[rows].copy(),
        }
        if self._segmentations is not None:
            record["masks"] = self._read_masks(index)
        if "neg_category_ids" in self._images[index]:
            negatives = self._images[index]["neg_category_ids"]
            record["negatives"] = np.array([self._class_of[category] for category in negatives], np.int32)
        return record

    def file_name(self, index: int) -> str:
        """As the JSON has it."""
        return self._images[index]["file_name"]

    def image_bytes(self, index: int) -> bytes:
        """The image file as it is."""
        return image_ops.read_file(self.image_folder / self.file_name(index))

    def _read_image(self, index):
        image = self._images[index]
        return image_ops.decode_of_size(self.image_folder / image["file_name"], self.image_size(index),
                                        f"image {image['id']}", f"{self.json_path.name} states")

    def _read_masks(self, index):
        begin, end = self._starts[index], self._starts[index + 1]
        return decode_masks(self._segmentations[begin:end], self._boxes[begin:end], self.image_size(index), lambda n: (
            f"{self.json_path}: annotation {self._annotation_ids[begin + n]} of image {self._images[index]['id']}"))


def _unique(entries, key, fields, problems):
    """{id: entry} in file order of the entries with the right fields; what is wrong goes to `problems`."""
    found = {}
    for position, entry in enumerate(entries):
        where = f"{key}[{position}]"
        if not isinstance(entry, dict):
            problems.append(f"{where}: found {entry!r}, expected an object")
            continue
        wrong = [f"{where}: {field!r}: found {repr(entry[field]) if field in entry else 'nothing'}, "
                 f"expected {kind.__name__}"
                 for field, kind in fields.items() if type(entry.get(field)) is not kind]
        if wrong:
            problems += wrong
        elif entry["id"] in found:
            problems.append(f"{where}: id {entry['id']} was used before, expected each id once")
        else:
            found[entry["id"]] = entry
    return found


def _sound(entries, check, problems):
    """The entries {id: entry} in which `check(entry)` finds nothing; what it finds goes to `problems`."""
    sound = {}
    for key, entry in entries.items():
        found = check(entry)
        problems += found
        if not found:
            sound[key] = entry
    return sound


def _ids(entries):
    return {entry["id"] for entry in entries if isinstance(entry, dict) and isinstance(entry.get("id"), int)}


def _problems_of_image(image):
    where, found = f"image {image['id']} ({image['file_name']})", []
    if min(image["width"], image["height"]) < 1:
        found.append(f"{where}: found size {image['width']}x{image['height']}, expected positive numbers")
    # Ids travel with their image through the device, whose integers have 32 bits.
    if not 0 <= image["id"] <= LARGEST_ID:
        found.append(f"{where}: expected an id of 0 to {LARGEST_ID}")
    return found


def _phrases(names, better, path):
    """What prompts call each class: str, or Phrase where words stand around it."""
    unknown = sorted(set(better) - set(names))
    if unknown:
        raise ValueError(f"class_names: found {unknown}, expected names of {path}: {names[:20]}")
    found = {}
    for name, words in better.items():
        if isinstance(words, str):
            found[name] = words
        elif (isinstance(words, Mapping) and set(words) <= {"prefix", "name", "suffix", *_KNOWLEDGE}
              and all(isinstance(part, str) for part in words.values())):
            around = {part: text for part, text in words.items() if part not in _KNOWLEDGE}
            found[name] = Phrase(**{"name": name} | around) if around else name
        else:
            raise ValueError(f"class_names: {name!r}: found {words!r}, expected a text, or texts under prefix, name, suffix, "
                             "synonym and definition")
    return tuple(found.get(name, name) for name in names)


def _about(category, words):
    """What is told of a category beside its name, by the config or, as in LVIS, by the file; see `prompts.worded`."""
    others = [name for name in category.get("synonyms") or () if isinstance(name, str) and name != category["name"]]
    definition = category.get("def")
    told = {key: words[key] for key in _KNOWLEDGE if key in words} if isinstance(words, Mapping) else {}
    return {"synonym": others[0] if others else "", "definition": definition if isinstance(definition, str) else ""} | told


def _problems_of(annotation, images, class_of, bad_boxes):
    image, box = images.get(annotation["image_id"]), annotation["bbox"]
    where = f"annotation {annotation['id']} of image {annotation['image_id']}"
    if image is None:
        return [f"{where}: found no such image, expected one of 'images'"]
    where += f" ({image['file_name']})"
    if annotation["category_id"] not in class_of:
        some = sorted(class_of)[:20]
        return [f"{where}: found category_id {annotation['category_id']}, expected one of {some}"]
    if len(box) != 4 or not all(isinstance(v, (int, float)) and math.isfinite(v) for v in box):
        return [f"{where}: found bbox {box}, expected four finite numbers [x, y, width, height]"]
    if bad_boxes == "repair":
        return []
    size = f"{image['width']}x{image['height']} image"
    if not _has_area_inside(box, image):
        least = min(box[2:])
        kind = "an inverted box" if least < 0 else "an empty box" if least == 0 else "a box outside the image"
        expected = f"expected [x, y, width, height] inside the {size}"
        return [f"{where}: found {kind}, bbox {box}, {expected}; {_REPAIR}"]
    over = _pixels_over(box, image)
    if over > image_ops.BORDER_PIXELS:
        found = f"found bbox {box}, {over:g} pixels over the border of the {size}"
        return [f"{where}: {found}; {_XYXY}; {_REPAIR}"]
    return []


def _pixels_over(box, image):
    x, y, width, height = box
    return max(-x, -y, x + width - image["width"], y + height - image["height"])


def _has_area_inside(box, image):
    x, y, width, height = box
    inside = -width < x < image["width"] and -height < y < image["height"]
    return width > 0 and height > 0 and inside


def _unknown_negatives(image, class_of):
    unknown = [c for c in image.get("neg_category_ids", ()) if c not in class_of]
    return ([f"image {image['id']}: neg_category_ids: found {unknown[:5]}, expected ids of 'categories'"]
            if unknown else [])


def _trainable(annotation):
    """Training drops crowds and boxes of one pixel."""
    return not annotation.get("iscrowd", 0) and min(annotation["bbox"][2:]) > 1
