"""A source over the official release of Flickr30k Entities: sentences whose phrases name entities, entities with boxes."""
import dataclasses
import os
import pathlib

import numpy as np

from input_pipeline import image_ops
from input_pipeline.annotations import Problems, refuse
from input_pipeline.schema import NO_CLASS
from input_pipeline.xml_file import read_xml


@dataclasses.dataclass(frozen=True)
class EntityPhrase:
    """A phrase of a sentence. span: characters of the caption. entity: its id. types: "people", "scene", …"""
    span: tuple[int, int]
    entity: str
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
            if opened is not None or len(fields) < 3:
                raise ValueError(f"found {word!r}, expected [/EN#id/type before the words of a phrase")
            opened = length, fields[1][3:], tuple(fields[2:])
            continue
        closes = opened is not None and word.endswith("]")
        words.append(word[:-1] if closes else word)
        end = length + len(words[-1])
        if closes:
            phrases.append(EntityPhrase((opened[0], end), *opened[1:]))
            opened = None
        length = end + 1
    if opened is not None:
        raise ValueError("found a phrase without its closing bracket")
    return " ".join(words), phrases


class FlickrEntities:
    """Random access to the sentences with at least one phrase that has a box.

    Boxes are those of the XML as they stand, which is how the benchmark measures them. All files are read when the source is
    opened.

    Args:
      folder: holds Annotations/*.xml and Sentences/*.txt. image_folder: holds <id>.jpg.
      split: file with an image id on each line; None: every image of Sentences.
      name: of the source in errors and logs.
    Raises: ValueError listing the files at fault.
    """

    class_names, category_ids = (), ()

    def __init__(self, folder: str | os.PathLike, image_folder: str | os.PathLike, *, split: str | os.PathLike | None = None,
                 name: str | None = None):
        folder, self._images = pathlib.Path(folder), pathlib.Path(image_folder)
        self.name = name or folder.name
        for part in ("Annotations", "Sentences"):
            if not (folder / part).is_dir():
                raise ValueError(f"{folder}: found no folder {part}, expected the release of Flickr30k Entities")
        try:
            ids = (sorted(path.stem for path in (folder / "Sentences").glob("*.txt")) if split is None
                   else pathlib.Path(split).read_text(encoding="utf-8").split())
        except OSError as error:
            raise ValueError(f"{split}: cannot read the list of images: {error.strerror}") from error
        self._records, self._sizes, problems = [], {}, Problems()
        for image in ids:
            with problems:
                if not (self._images / f"{image}.jpg").is_file():
                    raise ValueError(f"image {image}: no file {self._images / f'{image}.jpg'}")
                self._sizes[image], boxes_of = _read_boxes(folder / "Annotations" / f"{image}.xml")
                for number, (caption, phrases) in enumerate(_read_sentences(folder / "Sentences" / f"{image}.txt")):
                    boxed = [(phrase, boxes_of[phrase.entity]) for phrase in phrases if phrase.entity in boxes_of]
                    if boxed:
                        self._records.append((image, number, caption, boxed))
        refuse(folder, problems.found)
        if not self._records:
            raise ValueError(f"{folder}: found no sentence with a box, expected at least one")

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
        return image_ops.read_file(self._images / self.file_name(index))

    def __getitem__(self, index: int) -> dict:
        """A record: a row for each box of each boxed phrase; `about` has `original_img_id`, `sentence_id` and the `types` of
        each phrase."""
        image, number, caption, boxed = self._records[index]
        boxes = np.array([box for _, boxes in boxed for box in boxes], np.float32)
        return {"image": lambda: image_ops.decode_of_size(self._images / f"{image}.jpg", self._sizes[image],
                                                          f"image {image}", "its annotation states"),
                "image_id": int(image), "caption": caption, "boxes": boxes,
                "classes": np.full(len(boxes), NO_CLASS, np.int32),
                "spans": [[phrase.span] for phrase, boxes in boxed for _ in boxes],
                "about": {"original_img_id": int(image), "sentence_id": number,
                          "types": [phrase.types for phrase, _ in boxed]}}


def _read_boxes(path):
    """((height, width), {entity: [[x1, y1, x2, y2], …]})."""
    root, boxes = read_xml(path), {}
    try:
        size = int(root.findtext("size/height")), int(root.findtext("size/width"))
        for entry in root.iter("object"):
            if entry.find("bndbox") is not None:
                box = [float(entry.findtext(f"bndbox/{key}")) for key in ("xmin", "ymin", "xmax", "ymax")]
                for entity in entry.findall("name"):
                    boxes.setdefault(entity.text.strip(), []).append(box)
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: expected size/height and size/width, and in each object names and perhaps bndbox/xmin, "
                         f"ymin, xmax, ymax as numbers: {error}") from error
    return size, boxes


def _read_sentences(path):
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise ValueError(f"{path}: cannot read the sentences: {error.strerror}") from error
    found = []
    for number, line in enumerate(lines):
        try:
            found.append(parse_sentence(line))
        except ValueError as error:
            raise ValueError(f"{path}, line {number + 1}: {error}") from error
    return found
