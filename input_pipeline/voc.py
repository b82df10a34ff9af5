"""A source over a folder of Pascal VOC: one XML file for each image."""
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from input_pipeline import image_ops
from input_pipeline.annotations import Problems, check_option, inclusive_boxes, refuse
from input_pipeline.xml_file import read_xml

CLASSES = ("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
           "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor")


class Voc:
    """Random access to the records of `Annotations/*.xml` with the images of `JPEGImages/`.

    Pixels of the files count from 1 and corners are inclusive. All files are checked when the source is opened.

    Args:
      folder: holds Annotations, JPEGImages and, for a `split`, ImageSets/Main/<split>.txt.
      split: file of ImageSets/Main without .txt; None: every annotation.
      class_names: the classes in order; None: the twenty of VOC, or where a file has others, all names found, sorted.
      keep_difficult: keep objects marked difficult (the reference: only to evaluate). They are else left out.
      bad_boxes: "error", or "repair": boxes without area in their image are dropped.
      name: of the source in errors and logs.
    Raises: ValueError listing the files at fault.
    Source: GLIP `datasets/voc.py`.
    """

    def __init__(self, folder: str | os.PathLike, *, split: str | None = None,
                 class_names: Sequence[str] | None = None, keep_difficult: bool = False, bad_boxes: str = "error",
                 name: str | None = None):
        check_option(bad_boxes)
        self._folder = pathlib.Path(folder)
        self.name = name or self._folder.name
        problems, found = Problems(), []
        for path in self._files(split):
            with problems:
                found.append(_read(path, keep_difficult, bad_boxes))
        names = {name for _, _, _, names in found for name in names}
        self.class_names = tuple(class_names or (CLASSES if names <= set(CLASSES) else sorted(names)))
        self.category_ids = tuple(range(1, len(self.class_names) + 1))
        problems.found += [f"{file}: found classes {sorted(set(names) - set(self.class_names))}, expected some of "
                           f"{list(self.class_names)[:20]}" for file, _, _, names in found
                           if not set(names) <= set(self.class_names)]
        refuse(self._folder, problems.found)
        found = [entry for entry in found if set(entry[3]) <= set(self.class_names)]
        class_of = {name: index for index, name in enumerate(self.class_names)}
        self._images = [file for file, *_ in found]
        self._sizes = [size for _, size, _, _ in found]
        self._boxes = [boxes for _, _, boxes, _ in found]
        self._classes = [np.array([class_of[name] for name in names], np.int32) for *_, names in found]

    def _files(self, split):
        annotations = self._folder / "Annotations"
        if split is None:
            files = sorted(annotations.glob("*.xml"))
        else:
            listing = self._folder / "ImageSets" / "Main" / f"{split}.txt"
            try:
                lines = listing.read_text().splitlines()
            except OSError as error:
                raise ValueError(f"{listing}: cannot read the split: {error.strerror}") from error
            files = [annotations / f"{line.split()[0]}.xml" for line in lines if line.strip()]
        if not files:
            raise ValueError(f"{annotations}: found no annotation, expected .xml files")
        return files

    def __len__(self) -> int:
        return len(self._images)

    def image_size(self, index: int) -> tuple[int, int]:
        """(height, width) as the XML states."""
        return self._sizes[index]

    def file_name(self, index: int) -> str:
        """As the annotation has it."""
        return self._images[index]

    def image_bytes(self, index: int) -> bytes:
        """The image file as it is."""
        return image_ops.read_file(self._path(index))

    def __getitem__(self, index: int) -> dict:
        """A record. VOC has no numeric ids: `image_id` is the place of the annotation."""
        return {"image": lambda: image_ops.decode_of_size(self._path(index), self._sizes[index],
                                                          f"image {self._images[index]}", "its annotation states"),
                "image_id": index, "boxes": self._boxes[index].copy(), "classes": self._classes[index].copy()}

    def _path(self, index):
        return self._folder / "JPEGImages" / self._images[index]


def _read(path, keep_difficult, bad_boxes):
    """(image file, (height, width), boxes [n, 4], class names)."""
    root = read_xml(path)
    try:
        size = int(root.findtext("size/height")), int(root.findtext("size/width"))
        entries = [(entry.findtext("name").strip(), entry.findtext("difficult", "0").strip(),
                    [float(entry.findtext(f"bndbox/{key}")) for key in ("xmin", "ymin", "xmax", "ymax")])
                   for entry in root.iter("object")]
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: expected size/height and size/width, and in each object a name and bndbox/xmin, "
                         f"ymin, xmax, ymax as numbers: {error}") from error
    entries = [entry for entry in entries if keep_difficult or entry[1] != "1"]
    # From 1-based inclusive corners to 0-based ones with an exclusive end, which the check takes.
    boxes, keep = inclusive_boxes([[x1 - 1, y1 - 1, x2, y2] for *_, (x1, y1, x2, y2) in entries], size, str(path),
                                  bad_boxes)
    names = [name for name, _, _ in entries]
    return (pathlib.PurePath(root.findtext("filename") or f"{path.stem}.jpg").name, size, boxes[keep],
            [name for name, kept in zip(names, keep) if kept])
