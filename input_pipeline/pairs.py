"""Image-text pairs without boxes: one JSON object a line, beside a folder of images.

    {"image": "0001/17.jpg", "caption": "A dog chases two geese."}

Optional: `image_id`, a whole number, else that of the line; `height` and `width`, which spare a look at the image's header.
"""
import os
import pathlib

from input_pipeline import image_ops
from input_pipeline.annotations import checked_id, field, parse_object
from input_pipeline.captions import without_boxes
from input_pipeline.line_file import LineFile


class Pairs:
    """Random access to the pairs of a file; only the offsets of its lines are held.

    Args:
      jsonl_path: the file.
      image_folder: what `image` is relative to.
      name: of the source in errors and logs.
    Raises: ValueError for a file without lines; while reading for a bad line, which it names.
    """

    class_names, category_ids = (), ()

    def __init__(self, jsonl_path: str | os.PathLike, image_folder: str | os.PathLike, *, name: str | None = None):
        self._lines, self._folder = LineFile(jsonl_path), pathlib.Path(image_folder)
        self.name = name or self._lines.path.stem
        if not len(self._lines):
            raise ValueError(f"{jsonl_path}: found no line, expected one for each pair")

    def __len__(self) -> int:
        return len(self._lines)

    def image_size(self, index: int) -> tuple[int, int]:
        """(height, width) as the line states, else from the image's header."""
        entry, where = self._line(index)
        return _stated_size(entry, where) or image_ops.header_size(self._folder / field(entry, "image", str, where))

    def caption(self, index: int) -> str:
        """The caption alone."""
        entry, where = self._line(index)
        caption = field(entry, "caption", str, where).strip()
        if not caption:
            raise ValueError(f"{where}: found an empty caption")
        return caption

    def file_name(self, index: int) -> str:
        """As the line has it."""
        entry, where = self._line(index)
        return field(entry, "image", str, where)

    def image_bytes(self, index: int) -> bytes:
        """The image file as it is."""
        return image_ops.read_file(self._folder / self.file_name(index))

    def __getitem__(self, index: int) -> dict:
        entry, where = self._line(index)
        path, size = self._folder / field(entry, "image", str, where), _stated_size(entry, where)
        return {"image": lambda: image_ops.decode_of_size(path, size, where, "it states") if size else image_ops.decode(path),
                "image_id": checked_id(entry.get("image_id", index), where)} | without_boxes(self.caption(index))

    def _line(self, index):
        where = f"{self._lines.path}, line {index + 1}"
        return parse_object(self._lines[index], where), where


def _stated_size(entry, where):
    if "height" not in entry and "width" not in entry:
        return None
    return field(entry, "height", int, where), field(entry, "width", int, where)
