"""A source (see `schema.py`) over what TensorFlow Datasets has prepared: coco, lvis, voc, ref_coco, and our builders."""
import os

from input_pipeline.annotations import check_option
from input_pipeline.tfds_layouts import Rows, layout_of


class Tfds:
    """Random access to a split of a data set that TFDS has prepared in a format with random access.

    Boxes of the official builders are shares of the image, which is taken upright; they come back as pixels, to 1/1000.

    Args:
      builder: name with its configuration, and its version where another than the newest is meant: "coco/2017".
      split: "train", or a part as TFDS writes it: "train[:10%]".
      data_dir: folder of TFDS; None: its default.
      with_masks: lvis and ref_coco: records have `masks`.
      keep_difficult: voc: keep objects marked difficult.
      bad_boxes: official builders: "repair": boxes without area in their image are dropped, as published files have
        some, or "error": such a record cannot be read.
      name: of the source in errors and logs.
    Raises: ValueError for a data set that is unknown, not prepared, or has no random access, and for an option that it
      does not have; while reading for a damaged record.
    """

    def __init__(self, builder: str, split: str, *, data_dir: str | os.PathLike | None = None, with_masks: bool = False,
                 keep_difficult: bool = False, bad_boxes: str = "repair", name: str | None = None):
        check_option(bad_boxes)
        opened = _open(builder, data_dir)
        options = {"with_masks": with_masks, "keep_difficult": keep_difficult}
        self.name = name or f"{builder}:{split}"
        self._layout = layout_of(opened.name, opened.info.metadata or {}, _rows(opened, builder, split), bad_boxes,
                                 {key: True for key, value in options.items() if value})
        for key in ("class_names", "category_ids", "phrases", "replace_empty", "caption"):
            if hasattr(self._layout, key):
                setattr(self, key, getattr(self._layout, key))

    def __len__(self) -> int:
        return len(self._layout)

    def image_size(self, index: int) -> tuple[int, int]:
        """(height, width) without decoding; reads the example."""
        return self._read(self._layout.image_size, index)

    def image_bytes(self, index: int) -> bytes:
        """The image file as it is."""
        return self._read(self._layout.image_bytes, index)

    def file_name(self, index: int) -> str:
        """As the annotations have it."""
        return self._read(self._layout.file_name, index)

    def __getitem__(self, index: int) -> dict:
        return self._read(self._layout.__getitem__, index)

    def _read(self, read, index):
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name}: record {index}, expected 0 to {len(self) - 1}")
        return read(int(index))


def _open(name, data_dir):
    import tensorflow_datasets as tfds

    import input_pipeline.tfds_builders  # noqa: F401 – registers ours
    try:
        return tfds.builder(name, data_dir=data_dir)
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        raise ValueError(f"{name}: TFDS knows no such data set or configuration, and found none under "
                         f"{data_dir or 'its default folder'}: {error}") from error


def _rows(builder, name, split):
    if not builder.info.splits:
        raise ValueError(f"{name}: found nothing prepared in {builder.data_dir}; `tfds.builder({name!r}, data_dir=…)."
                         "download_and_prepare(file_format=\"array_record\")` prepares it")
    try:
        return Rows(builder, split)
    except NotImplementedError as error:
        raise ValueError(f"{name}: found the file format {builder.info.file_format.value} in {builder.data_dir}, "
                         "expected one with random access; `download_and_prepare(file_format=\"array_record\")` of a "
                         "builder with another data_dir prepares it so") from error
    except (ValueError, KeyError) as error:
        raise ValueError(f"{name}: found the splits {sorted(builder.info.splits)}, expected {split!r} to be one or part "
                         f"of one: {error}") from error
