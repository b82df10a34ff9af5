"""A source over the official release of Flickr30k Entities: sentences whose phrases name entities, entities with boxes."""
import os
import pathlib
from typing import NamedTuple

import numpy as np

from input_pipeline import image_ops
from input_pipeline.annotations import Problems, check_option, inclusive_boxes, missing_images, refuse
from input_pipeline.schema import NO_CLASS
from input_pipeline.xml_file import read_xml


class EntityPhrase(NamedTuple):
    """A phrase of a sentence. span: characters of the caption. id: of the entity. types: "people", "scene", …"""
    span: tuple[int, int]
    id: str
    types: tuple[str, ...]


def parse_sentence(line: str) -> tuple[str, list[EntityPhrase]]:
    """A line of `Sentences/*.txt` as caption, its words with one space between them, and phrases.

    Raises: ValueError for brackets that do not match.
    Source: GLIP `datasets/evaluation/flickr/flickr_eval.py` (`get_sentence_data`).
    """
    words, phrases, opened, length = [], [], None, 0
    for word in line.split():
        if word.startswith("["):
            fields = word[1:].split("/")
            if opened is not None or len(fields) < 3 or not fields[1].startswith("EN#"):
                raise ValueError(f"found {word!r}, expected a phrase to begin with [/EN#id/type, after the end of another")
            opened = length, fields[1][3:], tuple(fields[2:])
            continue
        closes = opened is not None and word.endswith("]")
        word = word[:-1] if closes else word
        if word:
            words.append(word)
            length += len(word) + 1
        if closes:
            begin, entity, types = opened
            if length == begin:
                raise ValueError(f"found a phrase of entity {entity} without words")
            phrases.append(EntityPhrase((begin, length - 1), entity, types))
            opened = None
    if opened is not None:
        raise ValueError(f"found a phrase of entity {opened[1]} that does not end")
    return " ".join(words), phrases


class FlickrEntities:
    """Random access to the sentences with at least one phrase that has a box.

    All files are read when the source is opened. `image_id` of a record is its place: one photograph has several sentences.

    Args:
      folder: holds Annotations/*.xml and Sentences/*.txt.
      image_folder: holds <number>.jpg; None: annotations alone.
      split: file with the number of a photograph on each line, below the folder or as given; None: all of Sentences.
      bad_boxes: "error", or "repair": boxes without area in their image are dropped.
      name: of the source in errors and logs.
    Raises: ValueError listing the files at fault.
    """

    class_names, category_ids = (), ()

    def __init__(self, folder: str | os.PathLike, image_folder: str | os.PathLike | None = None, *,
                 split: str | os.PathLike | None = None, bad_boxes: str = "error", name: str | None = None):
        check_option(bad_boxes)
        folder = pathlib.Path(folder)
        self._images = None if image_folder is None else pathlib.Path(image_folder)
        self.name = name or folder.name
        for place in (folder / "Annotations", folder / "Sentences", self._images):
            if place is not None and not place.is_dir():
                raise ValueError(f"{place}: no such folder, expected the release of Flickr30k Entities")
        self._records, self._sizes, problems = [], {}, Problems()
        numbers = photographs(folder, split)
        for number in numbers:
            entities = None
            with problems:
                if not number.isdecimal():
                    raise ValueError(f"photograph {number!r}: expected a number of Flickr")
                self._sizes[number], entities = _read_boxes(folder / "Annotations" / f"{number}.xml", bad_boxes)
            with problems:
                sentences = _read_sentences(folder / "Sentences" / f"{number}.txt")
                for line, (caption, phrases) in enumerate(sentences if entities is not None else []):
                    boxed = [(phrase, entities[phrase.id]) for phrase in phrases if phrase.id in entities]
                    if boxed:
                        self._records.append((number, line, caption, boxed))
        if self._images is not None:
            missing = missing_images({number: self._images / f"{number}.jpg" for number in numbers})
            problems.found += missing.values()
            self._records = [record for record in self._records if record[0] not in missing]
        refuse(folder, problems.found)
        if not self._records:
            raise ValueError(f"{folder}: found no sentence with a phrase that has boxes, expected at least one")

    def __len__(self) -> int:
        return len(self._records)

    def image_size(self, index: int) -> tuple[int, int]:
        """(height, width) as the XML states."""
        return self._sizes[self._records[index][0]]

    def caption(self, index: int) -> str:
        """The caption alone."""
        return self._records[index][2]

    def file_name(self, index: int) -> str:
        return f"{self._records[index][0]}.jpg"

    def image_bytes(self, index: int) -> bytes:
        """The image file as it is."""
        if self._images is None:
            raise ValueError(f"{self.name}: opened without image_folder, so it has no images")
        return image_ops.read_file(self._images / self.file_name(index))

    def __getitem__(self, index: int) -> dict:
        """A record: a row for each box of each boxed phrase. `about` has what the benchmark scores: `original_img_id`,
        `sentence_id` and `phrases`, each with span, id, types and its boxes as the XML has them."""
        number, line, caption, boxed = self._records[index]
        rows = [(phrase.span, box) for phrase, entity in boxed for box in entity["usable"]]
        return {"image": lambda: image_ops.decode_of_size(self.image_bytes(index), self.image_size(index),
                                                          f"image {number}", "its annotation states"),
                "image_id": index, "caption": caption,
                "boxes": np.array([box for _, box in rows], np.float32).reshape(-1, 4),
                "classes": np.full(len(rows), NO_CLASS, np.int32), "spans": [[span] for span, _ in rows],
                "about": {"original_img_id": int(number), "sentence_id": line, "phrases": [
                    {"span": phrase.span, "id": phrase.id, "types": phrase.types, "boxes": entity["stored"]}
                    for phrase, entity in boxed]}}


def photographs(folder: str | os.PathLike, split: str | os.PathLike | None = None) -> list[str]:
    """Numbers of the photographs of a split, in its order; see `FlickrEntities`. Raises: ValueError if there are none."""
    folder = pathlib.Path(folder)
    if split is None:
        found = sorted((path.stem for path in (folder / "Sentences").glob("*.txt")), key=lambda stem: (len(stem), stem))
    else:
        places = [place for place in (folder / split, pathlib.Path(split)) if place.is_file()]
        if not places:
            raise ValueError(f"{split}: cannot read the split, looked in {folder} too")
        found = places[0].read_text(encoding="utf-8").split()
    if not found:
        raise ValueError(f"{split or folder / 'Sentences'}: found no photograph, expected at least one")
    return found


def _read_boxes(path, bad_boxes):
    """((height, width), {entity: {"stored": boxes as they are, "usable": those inside the image, corners inclusive}})."""
    root, stored = read_xml(path), {}
    try:
        size = int(root.findtext("size/height")), int(root.findtext("size/width"))
        for entry in root.iter("object"):
            for bndbox in entry.findall("bndbox"):
                box = [float(bndbox.findtext(key)) for key in ("xmin", "ymin", "xmax", "ymax")]
                box = [int(value) if value.is_integer() else value for value in box]
                for entity in entry.findall("name"):
                    stored.setdefault(entity.text.strip(), []).append(box)
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: expected size/height and size/width, and in each object names and perhaps bndbox/xmin, "
                         f"ymin, xmax, ymax as numbers: {error}") from error
    entities = {}
    for entity, boxes in stored.items():
        usable, keep = inclusive_boxes(boxes, size, f"{path}, entity {entity}", bad_boxes)
        entities[entity] = {"stored": boxes, "usable": usable[keep]}
    return size, entities


def _read_sentences(path):
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ValueError(f"{path}: cannot read the sentences: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8: {error}") from error
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(parse_sentence(line))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    return found
