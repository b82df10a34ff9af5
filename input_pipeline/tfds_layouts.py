"""How the data sets of TensorFlow Datasets lay out an example, and the record (see `schema.py`) that it is.

A layout is a source without a name: `Tfds` opens the data set, chooses the layout and adds the name.
"""
from typing import ClassVar

import numpy as np

from input_pipeline import image_ops, records
from input_pipeline.annotations import inclusive_boxes
from input_pipeline.coco_classes import COCO_IDS
from input_pipeline.schema import NO_CLASS

# Stored as float32 shares of the image; what published files state has fewer decimals and comes back exactly.
_DECIMALS = 3


class Rows:
    """Stored examples, of which only what is asked for is decoded; `image` stays the bytes of a file.

    Args:
      builder: of TFDS, opened. split: of it, also "train[:100]".
    """

    def __init__(self, builder, split):
        import tensorflow_datasets as tfds
        self.name, self.features = f"{builder.info.full_name} {split}", builder.info.features
        self._partial = tfds.decode.PartialDecoding
        self._skip = {"image": tfds.decode.SkipDecoding()}
        self._stored = builder.as_data_source(split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
        self._parsers = {}

    def __len__(self) -> int:
        return len(self._stored)

    def read(self, row: int, wanted: dict) -> dict:
        """The features of an example that `wanted` holds as {name: True}, nested as they are.

        Raises: ValueError naming an example that is damaged.
        """
        key = repr(wanted)
        if key not in self._parsers:
            self._parsers[key] = self._partial(wanted).extract_features(self.features)
        try:
            return self._parsers[key].deserialize_example_np(
                self._stored[int(row)], decoders=self._skip if "image" in wanted else None)
        except Exception as error:                             # the reader's own kinds for what is damaged
            raise ValueError(f"{self.name}, example {row}: cannot be read: {error}; is its file damaged?") from error


class Layout:
    """What every layout has; here a record is an example.

    Args:
      rows: see `Rows`.
    """

    class_names, category_ids = (), ()
    ragged: ClassVar = {}                                      # features that have to be read with any other

    def __init__(self, rows: Rows):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, index: int) -> int:
        """The stored example that a record is in."""
        return index

    def image_bytes(self, index: int) -> bytes:
        """The image file as it is."""
        return self.rows.read(self.row(index), self.ragged | {"image": True})["image"]

    def image_size(self, index: int) -> tuple[int, int]:
        """(height, width) from the header of the image."""
        return image_ops.header_size(self.image_bytes(index), name=self.where(index))

    def where(self, index: int) -> str:
        """What an error calls a record."""
        return f"{self.rows.name}, example {self.row(index)}"


class Stored(Layout):
    """What our own builders write: see `records.example`."""

    def __init__(self, rows, told):
        super().__init__(rows)
        if told["layout"] != records.LAYOUT:
            raise ValueError(f"{rows.name}: found layout {told['layout']!r}, expected {records.LAYOUT}; build it anew")
        records.describe(self, told)

    def image_size(self, index: int) -> tuple[int, int]:
        """(height, width) as the record states."""
        return tuple(map(int, self.rows.read(index, {"size": True})["size"]))

    def caption(self, index: int) -> str:
        """The caption alone."""
        return self.rows.read(index, {"caption": True})["caption"].decode()

    def file_name(self, index: int) -> str:
        """As the annotations had it."""
        return self.rows.read(index, {"file_name": True})["file_name"].decode()

    def __getitem__(self, index: int) -> dict:
        return records.record_of(self.rows.read(index, dict.fromkeys(self.rows.features, True)), self.where(index))


class Detection(Layout):
    """Objects with a class: a record for each stored example.

    Args:
      rows: see `Rows`. bad_boxes: see `Tfds`. ids: function of the class names, their ids in result files.
      number, file_name: (name of a feature, function of its value) for the image's id and the name of its file.
      crowd, negatives, masks: names of these features, where there are such.
      dropped: name of a feature of objects; those that have it are left out. None: none.
      first_pixel: what the data set calls the first pixel of a row. 1: far corners are inclusive there as well.
    """

    def __init__(self, rows, bad_boxes, *, ids, number=("image/id", int), file_name=("image/filename", bytes.decode),
                 crowd=None, negatives=None, masks=None, dropped=None, first_pixel=0):
        super().__init__(rows)
        self._bad_boxes, self._first_pixel = bad_boxes, first_pixel
        self._number, self._file_name = number, file_name
        self._crowd, self._negatives, self._masks, self._dropped = crowd, negatives, masks, dropped
        label = rows.features["objects"].feature["label"]
        if not label.names:
            raise ValueError(f"{rows.name}: found no class names beside the data, expected those that TFDS writes when "
                             "it prepares a data set")
        self.class_names = tuple(label.names)
        self.category_ids = tuple(ids(self.class_names))
        objects = {"bbox", "label"} | {key for key in (crowd, masks, dropped) if key}
        self._wanted = {"objects": dict.fromkeys(sorted(objects), True)}
        self._wanted |= dict.fromkeys([key for key in ("image", number[0], negatives) if key], True)

    def file_name(self, index: int) -> str:
        """What the data set calls the image."""
        feature, name_of = self._file_name
        return name_of(self.rows.read(index, {feature: True})[feature])

    def __getitem__(self, index: int) -> dict:
        stored, where = self.rows.read(index, self._wanted), self.where(index)
        size, objects = image_ops.header_size(stored["image"], name=where), stored["objects"]
        boxes, keep = _inclusive(objects["bbox"], size, where, self._bad_boxes, self._first_pixel)
        if self._dropped:
            keep &= ~np.asarray(objects[self._dropped], np.bool_)
        record = {"image": lambda: image_ops.decode(stored["image"], name=where),
                  "image_id": self._number[1](stored[self._number[0]]), "boxes": boxes[keep],
                  "classes": np.asarray(objects["label"], np.int32).reshape(-1)[keep]}
        if self._crowd:
            record["is_crowd"] = np.asarray(objects[self._crowd], np.bool_).reshape(-1)[keep]
        if self._negatives:
            record["negatives"] = np.asarray(stored[self._negatives], np.int32).reshape(-1)
        if self._masks:
            record["masks"] = _masks(objects[self._masks], keep, size, where)
        return record


class Expressions(Layout):
    """Objects with expressions: a record for each expression, whose every character names the one box.

    All examples are gone through once to count the expressions; images are not decoded for that. An expression without
    text is left out. `image_id` is the expression's id, `about` holds that of the photograph.
    """

    # The parser of TFDS 4.9 fails on an example that has ragged features where they are not asked for.
    ragged: ClassVar = {"objects": {"refexp": True}}

    def __init__(self, rows, bad_boxes, *, file_name, masks=None):
        super().__init__(rows)
        self._bad_boxes, self._masks, self._file_name = bad_boxes, masks, file_name
        self._places, self._captions = [], []
        for row in range(len(rows)):
            found = rows.read(row, self.ragged)["objects"]["refexp"]
            for place, (ids, texts) in enumerate(zip(found["refexp_id"], found["raw"])):
                for number, text in zip(ids, texts):
                    if caption := text.decode().strip():
                        self._places.append((row, place, number))
                        self._captions.append(caption)
        self._places = np.array(self._places, np.int64).reshape(-1, 3)
        self._wanted = {"image": True, "image/id": True, "objects": self.ragged["objects"] | {"bbox": True}
                        | ({masks: True} if masks else {})}

    def __len__(self) -> int:
        return len(self._captions)

    def row(self, index: int) -> int:
        """The stored example that an expression is in."""
        return int(self._places[index, 0])

    def caption(self, index: int) -> str:
        """The expression alone."""
        return self._captions[index]

    def file_name(self, index: int) -> str:
        """What the data set calls the image."""
        return self._file_name(self.rows.read(self.row(index), self.ragged | {"image/id": True})["image/id"])

    def where(self, index: int) -> str:
        """What an error calls a record."""
        return f"{super().where(index)}, expression {self._places[index, 2]}"

    def __getitem__(self, index: int) -> dict:
        row, place, number = map(int, self._places[index])
        stored, where = self.rows.read(row, self._wanted), self.where(index)
        size = image_ops.header_size(stored["image"], name=where)
        boxes, keep = _inclusive(stored["objects"]["bbox"][place:place + 1], size, where, self._bad_boxes, 0)
        caption = self._captions[index]
        record = {"image": lambda: image_ops.decode(stored["image"], name=where), "image_id": number,
                  "boxes": boxes[keep], "classes": np.full(keep.sum(), NO_CLASS, np.int32),
                  "caption": caption, "spans": [[(0, len(caption))]] * int(keep.sum()),
                  "about": {"original_img_id": int(stored["image/id"])}}
        if self._masks:
            record["masks"] = _masks(stored["objects"][self._masks][place:place + 1], keep, size, where)
        return record


def coco(rows, bad_boxes):
    """COCO 2014 and 2017. Labels are places in the list of the official file, so the names say which ids they have."""
    return Detection(rows, bad_boxes, ids=lambda names: _coco_ids(names, rows.name), crowd="is_crowd")


def lvis(rows, bad_boxes, with_masks=False):
    """LVIS v1. TFDS has its category ids less one as labels."""
    return Detection(rows, bad_boxes, ids=lambda names: range(1, len(names) + 1), negatives="neg_category_ids",
                     masks="segmentation" if with_masks else None,
                     file_name=("image/id", lambda number: f"{int(number):012d}.jpg"))


def voc(rows, bad_boxes, keep_difficult=False):
    """Pascal VOC 2007 and 2012. TFDS divides the corners of the XML, which count from 1 and are inclusive, as they are.

    `image_id` is the number that the file's name is, without the underscore.
    """
    return Detection(rows, bad_boxes, ids=lambda names: range(1, len(names) + 1),
                     number=("image/filename", lambda name: int(name.decode().removesuffix(".jpg").replace("_", ""))),
                     dropped=None if keep_difficult else "is_difficult", first_pixel=1)


def ref_coco(rows, bad_boxes, with_masks=False):
    """RefCOCO, RefCOCO+ and RefCOCOg, whose photographs are of COCO train2014."""
    return Expressions(rows, bad_boxes, masks="mask" if with_masks else None,
                       file_name=lambda number: f"COCO_train2014_{int(number):012d}.jpg")


def _coco_ids(names, where):
    unknown = [name for name in names if name not in COCO_IDS]
    if unknown:
        raise ValueError(f"{where}: found classes {unknown[:5]}, expected the 80 of COCO, whose ids are known")
    return [COCO_IDS[name] for name in names]


def _inclusive(shares, size, where, bad_boxes, first_pixel):
    """Boxes and which to keep, from float32 [n, 4] shares of the image: ymin, xmin, ymax, xmax.

    Far corners are exclusive where pixels count from 0. Where they count from 1 and are inclusive, only the near corners
    move: x2 is both the last pixel counted from 1 and the end counted from 0.
    """
    y1, x1, y2, x2 = np.asarray(shares, np.float64).reshape(-1, 4).T
    corners = np.round(np.stack([x1, y1, x2, y2], axis=1) * [size[1], size[0], size[1], size[0]], _DECIMALS)
    corners[:, :2] -= first_pixel
    return inclusive_boxes(corners.tolist(), size, where, bad_boxes)


def _masks(stored, keep, size, where):
    """bool [n, h, w] from images [n, h, w, 1 or 3] that are not black where the object is."""
    masks = np.asarray(stored).any(-1) if len(keep) else np.zeros((0, *size), np.bool_)
    if masks.shape[1:] != size:
        raise ValueError(f"{where}: found masks of {masks.shape[1]}x{masks.shape[2]} pixels, expected those of the "
                         f"image, {size[0]}x{size[1]}")
    return masks[keep]


# Name of the builder → function of (rows, bad_boxes, and the options beside) that gives the layout; its options.
_LAYOUTS = {"coco": (coco, set()), "lvis": (lvis, {"with_masks"}), "voc": (voc, {"keep_difficult"}),
            "ref_coco": (ref_coco, {"with_masks"})}


def layout_of(name: str, metadata: dict, rows: Rows, bad_boxes: str, options: dict) -> Layout:
    """The layout of a data set.

    Args:
      name, metadata: of its builder. rows: its examples.
      bad_boxes: see `Tfds`. options: further ones that are set.
    Raises: ValueError for an unknown data set, or an option that it does not have.
    """
    if "layout" in metadata:
        known = set()
    elif name in _LAYOUTS and "objects" in rows.features:
        known = _LAYOUTS[name][1]
    else:
        raise ValueError(f"{rows.name}: found features {sorted(rows.features)}, expected 'objects' of one of "
                         f"{', '.join(_LAYOUTS)}, or a data set of input_pipeline.tfds_builders")
    if set(options) - known:
        raise ValueError(f"{rows.name}: found the options {sorted(options)}, expected of them {sorted(known)}")
    return Stored(rows, metadata) if "layout" in metadata else _LAYOUTS[name][0](rows, bad_boxes, **options)
