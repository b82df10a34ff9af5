"""What a model found in each record, on disk in parts: an evaluation that was stopped goes on after its last part."""
import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
from jax.experimental import multihost_utils

from glipv2_jax.detection.masks import PastedMasks
from glipv2_jax.files import write_whole


@dataclasses.dataclass(frozen=True)
class Found:
    """Detections of one record.

    record: index in the source. image_id: what result files call it.
    scale: (y, x): pixels of `boxes` = scale × pixels of the image.
    boxes: [K, 4] float32 `xyxy`. scores: [K] float32. labels: [K] int32, class of the source or phrase of the caption.
    masks: K run lengths in COCO's form, in pixels of the image, or until they are stored `detection.masks.PastedMasks`; None of a
      model without masks.
    """
    record: int
    image_id: int
    scale: tuple[float, float]
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    masks: list[dict] | PastedMasks | None = None

    def original_boxes(self):
        """[K, 4] float64 `xyxy` in pixels of the image."""
        y, x = self.scale
        return self.boxes.astype(np.float64) / np.array([x, y, x, y], np.float64)

    def only(self, keep):
        """The same with some of its detections. keep: bool or int [K]."""
        masks = self.masks
        if isinstance(masks, PastedMasks):
            masks = masks[keep]
        elif masks is not None:
            masks = [masks[row] for row in np.arange(len(self.scores))[keep].tolist()]
        return dataclasses.replace(self, boxes=self.boxes[keep], scores=self.scores[keep], labels=self.labels[keep], masks=masks)


@dataclasses.dataclass(frozen=True)
class Said:
    """Words about one record: the answer to its question, or a caption of its image.

    record, image_id: as of `Found`. text: what was said. score: its probability, of a caption its log-probability.
    """
    record: int
    image_id: int
    text: str
    score: float


class Parts:
    """A folder of numbered parts, written by process 0 one after the other; iterating gives every Found in order.

    Args:
      folder: of the parts alone; whatever it holds of another evaluation is deleted.
      key: JSON-able dict that tells one evaluation from another: weights, data, settings.
    Attributes:
      finished: how many parts there are, the same on every process.
    """

    def __init__(self, folder, key):
        self._folder, self.finished = pathlib.Path(folder), 0
        key = json.loads(json.dumps(key))
        if jax.process_index() == 0:
            stored = self._folder / "key.json"
            if not stored.is_file() or json.loads(stored.read_text()) != key:
                shutil.rmtree(self._folder, ignore_errors=True)
                self._folder.mkdir(parents=True)
                write_whole(stored, json.dumps(key))
            while self._path(self.finished).exists():
                self.finished += 1
        if jax.process_count() > 1:
            self.finished = int(multihost_utils.broadcast_one_to_all(np.int32(self.finished)))

    def add(self, found):
        """Writes the next part, a list of Found; whole or not at all. `Texts` has lists of Said."""
        if jax.process_index() == 0:
            path = self._path(self.finished)
            partial = path.with_suffix(".partial")
            with partial.open("wb") as file:
                self._dump(file, found)
            partial.replace(path)
        self.finished += 1

    def __iter__(self):
        for number in range(self.finished):
            yield from self._load(self._path(number))

    def delete(self):
        if jax.process_index() == 0:
            shutil.rmtree(self._folder)

    def _path(self, number):
        return self._folder / f"part-{number:05d}.{self._suffix}"

    _suffix = "npz"

    def _dump(self, file, found):
        masks = {}
        if any(f.masks is not None for f in found):
            counts = [mask["counts"].encode("ascii") for f in found for mask in f.masks]
            masks = {"mask_size": np.array([mask["size"] for f in found for mask in f.masks], np.int64).reshape(-1, 2),
                     "mask_end": np.cumsum([len(text) for text in counts], dtype=np.int64),
                     "mask_counts": np.frombuffer(b"".join(counts), np.uint8)}
        np.savez(file, **masks, record=np.array([f.record for f in found], np.int64),
                 image_id=np.array([f.image_id for f in found], np.int64),
                 scale=np.array([f.scale for f in found], np.float64).reshape(-1, 2),
                 count=np.array([len(f.scores) for f in found], np.int64),
                 **{name: np.concatenate([empty, *(getattr(f, name) for f in found)]).astype(empty.dtype)
                    for name, empty in (("boxes", np.zeros((0, 4), np.float32)),
                                        ("scores", np.zeros(0, np.float32)), ("labels", np.zeros(0, np.int32)))})

    def _load(self, path):
        with np.load(path) as stored:
            part = dict(stored)
        ends = np.cumsum(part["count"])
        for i, end in enumerate(ends.tolist()):
            rows = slice(end - int(part["count"][i]), end)
            yield Found(int(part["record"][i]), int(part["image_id"][i]), tuple(part["scale"][i].tolist()),
                        part["boxes"][rows], part["scores"][rows], part["labels"][rows],
                        _masks(part, rows) if "mask_counts" in part else None)


def _masks(part, rows):
    ends = np.concatenate([[0], part["mask_end"]])[rows.start:rows.stop + 1].tolist()
    return [{"size": size, "counts": part["mask_counts"][begin:end].tobytes().decode("ascii")}
            for size, begin, end in zip(part["mask_size"][rows].tolist(), ends, ends[1:])]


class Texts(Parts):
    """The same of Said, as JSON."""
    _suffix = "json"

    def _dump(self, file, found):
        file.write(json.dumps([dataclasses.asdict(one) for one in found], ensure_ascii=False).encode())

    def _load(self, path):
        return (Said(**one) for one in json.loads(path.read_bytes()))
