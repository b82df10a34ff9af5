"""Prepared data: the records of any source in sharded files with random access, and the source that reads them.

A prepared folder is a data set of TensorFlow Datasets in its ArrayRecord format, so that
`tfds.builder_from_directory(folder).as_data_source("records")` reads it anywhere; this module alone knows its features.
Beside the shards lie `dataset.json`, the card, and `sizes.npy`, int32 [records, 2] with the height and width of every image:
images are sorted onto canvases by it without touching a record. `glipv2 prepare` writes such folders.
"""
import functools
import hashlib
import io
import json
import os
import pathlib

import numpy as np

from input_pipeline import image_ops
from input_pipeline.annotations import load_json
from input_pipeline.masks import decode_mask, encode_mask
from input_pipeline.pipeline import usable_record
from input_pipeline.prompts import Phrase, names_of
from input_pipeline.schema import TASKS, text_task

CARD, SIZES, SPLIT, DATASET = "dataset.json", "sizes.npy", "records", "glipv2"
LAYOUT = 1                           # of what a record holds; another number is refused
_OPTIONAL = ("is_crowd", "masks", "negatives", "questions", "about")
_CHUNK = 2**24


@functools.cache
def features():
    """What a stored record holds, as TFDS features. Keys are those of `schema.py`, but for:

    `size` (height, width) of the image as the annotations see it; `is_caption`; `spans` int [k, 3], rows of box, begin, end;
    `masks` as COCO's compressed run lengths; `questions` and `about` as JSON; `optional`, the optional keys that the record
    has.
    """
    # Here: the import takes a second, and other sources do without.
    import tensorflow_datasets as tfds
    f = tfds.features
    return f.FeaturesDict({
        "image": f.Image(shape=(None, None, 3)), "size": f.Tensor(shape=(2,), dtype=np.int32),
        "image_id": np.int64, "file_name": f.Text(),
        "boxes": f.Tensor(shape=(None, 4), dtype=np.float32), "classes": f.Tensor(shape=(None,), dtype=np.int32),
        "is_caption": np.bool_, "caption": f.Text(), "spans": f.Tensor(shape=(None, 3), dtype=np.int32),
        "optional": f.Sequence(f.Text()), "is_crowd": f.Tensor(shape=(None,), dtype=np.bool_),
        "masks": f.Sequence(f.Text()), "negatives": f.Tensor(shape=(None,), dtype=np.int32),
        "questions": f.Text(), "about": f.Text(),
    })


def complete(source, index: int) -> tuple[dict, bytes, tuple[int, int]]:
    """(record, bytes of its image file, (height, width)) of a record that training can use.

    A source without files gives its pixels as PNG. Raises: ValueError for what cannot be trained on.
    """
    record = source[index]
    size = usable_record(record, source.class_names)["image"].shape[:2]
    if hasattr(source, "image_bytes"):
        return record, source.image_bytes(index), size
    return record, image_ops.encode_png(image_ops.pixels_of(record)), size


def example(record: dict, image_bytes: bytes, size: tuple[int, int], file_name: str) -> dict:
    """A record under the names of `features()`, for TFDS to encode.

    Args:
      record: see `schema.py`; its `image` is not read.
      image_bytes: the image file. size: (height, width) of the record's pixels.
      file_name: what the annotations call the image; may be empty.
    """
    boxes = np.asarray(record["boxes"], np.float32).reshape(-1, 4)
    spans = [(box, *span) for box, found in enumerate(record.get("spans", ())) for span in found]
    return {
        "image": io.BytesIO(image_bytes), "size": np.array(size, np.int32), "image_id": int(record["image_id"]),
        "file_name": file_name, "boxes": boxes, "classes": np.asarray(record["classes"], np.int32).reshape(-1),
        "is_caption": "caption" in record, "caption": record.get("caption", ""),
        "spans": np.array(spans, np.int32).reshape(-1, 3),
        "optional": [key for key in _OPTIONAL if key in record],
        "is_crowd": np.asarray(record.get("is_crowd", ()), np.bool_).reshape(-1),
        "masks": [encode_mask(mask)["counts"] for mask in record.get("masks", ())],
        "negatives": np.asarray(record.get("negatives", ()), np.int32).reshape(-1),
        "questions": json.dumps(record.get("questions"), ensure_ascii=False),
        "about": json.dumps(record.get("about"), ensure_ascii=False)}


def serialize(record: dict, image_bytes: bytes, size: tuple[int, int], file_name: str) -> bytes:
    """A record as bytes, with the arguments of `example`; equal records give equal bytes."""
    encoded = features().encode_example(example(record, image_bytes, size, file_name))
    return _serializer().get_tf_example(encoded).SerializeToString(deterministic=True)


def record_of(stored: dict, where: str) -> dict:
    """What `example` was made of.

    Args:
      stored: decoded by TFDS, but for the image. where: what an error calls it.
    """
    size, boxes = tuple(map(int, stored["size"])), stored["boxes"]
    record = {"image": lambda: image_ops.decode_of_size(stored["image"], size, where, "was prepared", name=where),
              "image_id": int(stored["image_id"]), "boxes": boxes, "classes": stored["classes"]}
    if stored["is_caption"]:
        spans = [[] for _ in boxes]
        for box, begin, end in stored["spans"].tolist():
            spans[box].append((begin, end))
        record |= {"caption": stored["caption"].decode(), "spans": spans}
    for key in map(bytes.decode, stored["optional"]):
        if key == "masks":
            masks = [decode_mask({"size": size, "counts": counts}, None, size) for counts in stored["masks"]]
            record["masks"] = np.array(masks, np.bool_).reshape(-1, *size)
        else:
            record[key] = json.loads(stored[key]) if key in ("questions", "about") else stored[key]
    return record


def description(source) -> dict:
    """What is true of all records of a source, ready for JSON; `describe` gives it to the source that reads them."""
    return {"layout": LAYOUT, "class_names": list(source.class_names), "category_ids": list(source.category_ids),
            "prompts": [[name] if isinstance(name, str) else [name.name, name.prefix, name.suffix]
                        for name in names_of(source)],
            "replace_empty": bool(getattr(source, "replace_empty", False))} | {
                key: text_task(source, key) for key, default in TASKS.items() if text_task(source, key) != default}


def describe(source, told: dict):
    """Sets the attributes that `description` told."""
    source.class_names, source.category_ids = tuple(told["class_names"]), tuple(told["category_ids"])
    source.phrases = tuple(words[0] if len(words) == 1 else Phrase(*words) for words in told["prompts"])
    source.replace_empty = told["replace_empty"]
    for key, default in TASKS.items():
        setattr(source, key, told.get(key, default))


@functools.cache
def _serializer():
    from tensorflow_datasets.core.example_serializer import ExampleSerializer
    return ExampleSerializer(features().get_serialized_info())


class Records:
    """Random access to a prepared folder.

    Args:
      folder: what `glipv2 prepare` wrote.
      name: of the source in errors and logs; by default the card's.
    Attributes:
      card: content of `dataset.json`.
      image_sizes: int32 [records, 2], height and width, mapped from the disk.
    Raises: ValueError for a folder that was not finished, misses a shard or has one of another size than the card says;
      while reading for a damaged record. `verify` reads all bytes.
    """

    def __init__(self, folder: str | os.PathLike, *, name: str | None = None):
        import tensorflow_datasets as tfds
        self._folder = pathlib.Path(folder)
        self.card = read_card(folder)
        self.name = name or self.card["name"]
        describe(self, self.card)
        for shard in self.card["shards"]:
            _check_size(self._folder, shard)
        self.image_sizes = np.load(self._folder / SIZES, mmap_mode="r")
        self._records = tfds.builder_from_directory(self._folder).as_data_source(
            SPLIT, decoders={"image": tfds.decode.SkipDecoding()})
        if not len(self._records) == len(self.image_sizes) == self.card["records"]:
            raise ValueError(f"{folder}: found {len(self._records)} records and {len(self.image_sizes)} sizes, expected "
                             f"{self.card['records']} as {CARD} says; prepare it anew")

    def __len__(self) -> int:
        return len(self.image_sizes)

    def image_size(self, index: int) -> tuple[int, int]:
        """(height, width) without reading the record."""
        return tuple(map(int, self.image_sizes[index]))

    def caption(self, index: int) -> str:
        """The caption of a record, without decoding its image."""
        return self._read(index)["caption"].decode()

    def questions(self, index: int) -> list[dict]:
        """`questions` of the record, without decoding its image."""
        return json.loads(self._read(index)["questions"])

    def file_name(self, index: int) -> str:
        """As the annotations had it."""
        return self._read(index)["file_name"].decode()

    def image_bytes(self, index: int) -> bytes:
        """The image file as it is."""
        return self._read(index)["image"]

    def __getitem__(self, index: int) -> dict:
        return record_of(self._read(index), f"{self._folder}, record {index}")

    def _read(self, index):
        if not 0 <= index < len(self):
            raise IndexError(f"{self._folder}: record {index}, expected 0 to {len(self) - 1}")
        try:
            return self._records[int(index)]
        except Exception as error:                             # the reader's own kinds for what is damaged
            ends = np.cumsum([shard["records"] for shard in self.card["shards"]])
            shard = int(np.searchsorted(ends, index, side="right"))
            place = index - int(ends[shard]) + self.card["shards"][shard]["records"]
            raise ValueError(f"{self._folder}, record {index}: cannot read record {place} of "
                             f"{self.card['shards'][shard]['file']}: {error}; `glipv2 prepare --verify` finds all damage"
                             ) from error


def read_card(folder) -> dict:
    """Content of a prepared folder's card. Raises: ValueError where there is none, or one of another layout."""
    path = pathlib.Path(folder) / CARD
    if not path.is_file():
        raise ValueError(f"{folder}: found no {CARD}, expected a folder that `glipv2 prepare` has finished")
    card = load_json(path)
    if not isinstance(card, dict) or card.get("layout") != LAYOUT:
        found = card.get("layout") if isinstance(card, dict) else type(card).__name__
        raise ValueError(f"{path}: found layout {found!r}, expected {LAYOUT}; prepare the data anew")
    return card


def verify(folder, progress=lambda count: None) -> int:
    """Compares all bytes of a prepared folder with its card.

    Args:
      progress: called with 1 after each shard.
    Returns: number of shards.
    Raises: ValueError naming every shard that is missing or damaged.
    """
    card, wrong = read_card(folder), []
    for shard in card["shards"]:
        try:
            _check_size(pathlib.Path(folder), shard)
            found = sha256(pathlib.Path(folder) / shard["file"])
            if found != shard["sha256"]:
                wrong.append(f"{shard['file']}: found sha256 {found[:12]}…, expected {shard['sha256'][:12]}…")
        except ValueError as error:
            wrong.append(str(error))
        progress(1)
    if wrong:
        raise ValueError(f"{folder}: damaged shards: {len(wrong)} of {len(card['shards'])}\n  " + "\n  ".join(wrong))
    return len(card["shards"])


def sha256(*paths) -> str:
    """Of one file, or of several one after the other; read in pieces."""
    found = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while chunk := file.read(_CHUNK):
                found.update(chunk)
    return found.hexdigest()


def _check_size(folder, shard):
    path = folder / shard["file"]
    found = f"{path.stat().st_size:,} bytes" if path.is_file() else "no file"
    if found != f"{shard['bytes']:,} bytes":
        raise ValueError(f"{path}: found {found}, expected {shard['bytes']:,} bytes as {CARD} says: copy it again, or "
                         "delete the folder and prepare it anew")
