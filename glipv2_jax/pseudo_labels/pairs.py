"""Image-text pairs as a model is asked about them: each caption with its noun phrases, each image with its size."""
import concurrent.futures
import os

import numpy as np

from glipv2_jax.metrics import Progress
from glipv2_jax.phrases import noun_phrases
from input_pipeline import image_ops
from input_pipeline.captions import without_boxes
from input_pipeline.registry import make_source

_CHUNK = 4096                        # images handed to the threads at a time


def open_pairs(spec, root=""):
    """A source of captions; boxes that it may have are not looked at.

    Args:
      spec, root: as `registry.make_source` takes them.
    Raises: ValueError for one of class names.
    """
    source = make_source(spec, root)
    if source.class_names:
        raise ValueError(f"found {source.name!r}, a source of {len(source.class_names)} class names, expected one of captions "
                         "(of readers that make either: --task=caption)")
    return source


def image_sizes(source, on_bad, threads=None):
    """Height and width of every image, from its header where they are not stated.

    Args:
      on_bad: called with index and error of a pair whose image cannot be opened, in their order.
      threads: None: as many as there are processors, and four more, as most of the time is spent on waiting for files.
    Returns: int32 [n, 2]; 0, 0 where it cannot be opened.
    """
    if hasattr(source, "image_sizes"):
        return np.array(source.image_sizes, np.int32)

    def read(index):
        try:
            if hasattr(source, "image_size"):
                return source.image_size(index), None
            return image_ops.pixels_of(source[index]).shape[:2], None
        except Exception as error:  # noqa: BLE001 – a reader may raise anything on broken data
            return (0, 0), ValueError(f"source {source.name!r}, record {index}: {error}")
    sizes = np.zeros((len(source), 2), np.int32)
    with Progress(f"sizes of {source.name}", len(source), unit="images") as progress, \
            concurrent.futures.ThreadPoolExecutor(threads or (os.cpu_count() or 1) + 4) as pool:
        for start in range(0, len(source), _CHUNK):
            found = list(pool.map(read, range(start, min(start + _CHUNK, len(source)))))
            for index, (size, error) in enumerate(found, start):
                sizes[index] = size
                if error is not None:
                    on_bad(index, error)
            progress.advance(len(found))
    return sizes


class PhrasedPairs:
    """The pairs of a source that can be opened, without boxes; `asked` are the noun phrases of the caption.

    Args:
      source: of captions. sizes: int [n, 2] of its images, 0 where one cannot be opened.
    Attributes:
      places: int [m], which pair of the source each record is.
      image_sizes: int [m, 2].
    """

    class_names, category_ids = (), ()

    def __init__(self, source, sizes):
        self.source, self.name = source, source.name
        self.places = np.flatnonzero(sizes[:, 0] > 0)
        self.image_sizes = sizes[self.places]

    def __len__(self):
        return len(self.places)

    def image_size(self, index):
        """(height, width)"""
        return tuple(map(int, self.image_sizes[index]))

    def file_name(self, index):
        """What the source calls the image; a name made up of its place where there are no files."""
        place = int(self.places[index])
        return self.source.file_name(place) if hasattr(self.source, "file_name") else f"{self.name}/{place}.png"

    def __getitem__(self, index):
        record = self.source[int(self.places[index])]
        caption = record["caption"]
        return {"image": record["image"], "image_id": record["image_id"],
                "asked": [[span] for span in noun_phrases(caption)]} | without_boxes(caption)
