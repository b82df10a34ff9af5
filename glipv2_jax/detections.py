"""What was found in one image, in its own pixels, and the forms in which people take it along."""
import dataclasses

import numpy as np

from glipv2_jax import draw
from glipv2_jax.detection.boxes import best_of_places
from glipv2_jax.detection.masks import PastedMasks
from glipv2_jax.evaluation.coco_json import detection_rows
from input_pipeline import odvg


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a model says to a question about an image.

    Attributes:
      question: as it was asked.
      answers: the likeliest of the model's list, best first.
      probabilities: float32, of each of them; each is judged apart, so that they need not sum to 1.
      found: Detections of the question's noun phrases.
    """
    question: str
    answers: tuple[str, ...]
    probabilities: np.ndarray
    found: "Detections"

    def draw(self):
        """The picture with the boxes of the question's words, question and best answer below; PIL image, RGB."""
        return dataclasses.replace(self.found, caption=f"{self.question} {self.answers[0]}").draw()

    def without_overlaps(self, iou=0.7):
        """The same with `Detections.without_overlaps`."""
        return dataclasses.replace(self, found=self.found.without_overlaps(iou))

    def to_odvg(self, filename):
        """`Detections.to_odvg` of the question, with `answers`, a list of {answer, probability}."""
        return self.found.to_odvg(filename) | {"answers": [
            {"answer": answer, "probability": round(float(share), 4)} for answer, share in zip(self.answers, self.probabilities)]}


@dataclasses.dataclass(frozen=True)
class Detections:
    """Objects of an image, best score first.

    Attributes:
      boxes: [K, 4] float32 `xyxy` in pixels of the original, upright image, corners inclusive.
      scores: [K] float32 in 0 … 1.
      labels: [K] int, index into `names`.
      names: the class names or phrases that were asked for, as they were given.
      image: uint8 [H, W, 3], the image itself.
      caption: the grounded text, None for class names.
      spans: with a caption, for each of `names` its list of (begin, end) characters.
      masks: bool [K, H, W], or PastedMasks, a sequence of K bool [H, W] that are pasted when asked for; None where the
        model has no masks.
    """
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]
    image: np.ndarray = dataclasses.field(repr=False)
    caption: str | None = None
    spans: tuple[tuple[tuple[int, int], ...], ...] | None = None
    masks: np.ndarray | PastedMasks | None = dataclasses.field(default=None, repr=False)

    def __len__(self):
        return len(self.scores)

    @property
    def phrases(self):
        """The name of every detection, a list of K str."""
        return [self.names[label] for label in self.labels]

    def above(self, threshold):
        """Only the detections with a score above a number. Nothing is computed again."""
        return self._only(self.scores > threshold)

    def without_overlaps(self, iou=0.7):
        """The best detection of every place: those that cover a better one of any name are left out.

        Suppression inside a name has been done; names like "cat" and "kitten" may still share a box.

        Args:
          iou: a detection goes if its box overlaps a better one's by more.
        """
        return self._only(best_of_places(self.boxes, self.scores, iou))

    def _only(self, keep):
        masks = None if self.masks is None else self.masks[keep]
        return dataclasses.replace(self, boxes=self.boxes[keep], scores=self.scores[keep], labels=self.labels[keep],
                                   masks=masks)

    def draw(self, image=None):
        """The picture with its boxes, phrases and scores; a caption stands below, coloured like its boxes.

        Args:
          image: another picture of the same size to draw on, array or PIL; None for the image itself.
        Returns: PIL image, RGB.
        """
        image = self.image if image is None else image
        if self.caption is None:
            # Only names that were found take a colour: of a thousand classes the first twelve would have the best.
            return draw.draw_detections(image, self.boxes, self.phrases, self.scores, masks=self.masks)
        texts = [" ".join(self.caption[begin:end] for begin, end in of_name) for of_name in self.spans]
        return draw.draw_caption(image, self.caption or "…", [self.spans[label] for label in self.labels], self.boxes,
                                 self.scores, masks=self.masks, colors=draw.phrase_colors(texts))

    def to_coco(self, image_id, category_ids=None):
        """Rows of a COCO result file.

        Args:
          image_id: int. category_ids: the id of each of `names`, by default 1, 2, ….
        Returns: list of {image_id, category_id, bbox, score}, with `segmentation` where there are masks.
        """
        ids = category_ids or range(1, len(self.names) + 1)
        return detection_rows(image_id, self.boxes, self.scores, self.labels, category_ids=ids, masks=self.masks)

    def to_supervision(self):
        """`supervision.Detections`, for its annotators and trackers. Raises: ImportError without the package."""
        try:
            import supervision
        except ImportError as error:
            raise ImportError("to_supervision needs the package supervision: pip install supervision") from error
        # Its corners are exclusive: the far edge of the last pixel.
        return supervision.Detections(
            xyxy=self.boxes + np.array([0, 0, 1, 1], np.float32), confidence=self.scores,
            mask=None if self.masks is None else np.asarray(self.masks),
            class_id=self.labels.astype(int), data={"class_name": np.array(self.phrases, dtype=str)})

    def to_odvg(self, filename):
        """A record of an ODVG file: `grounding` for a caption, `detection` for class names.

        Args:
          filename: what the record calls the image.
        Returns: dict, one line of a JSONL file. Its boxes are xyxy with exclusive far corners, in original pixels; where
          there are masks each has its `segmentation` beside it, COCO's run lengths.
        """
        height, width = self.image.shape[:2]
        record = {"filename": str(filename), "height": height, "width": width}
        if self.caption is None:
            return record | odvg.detection(self.names, self.labels, self.boxes, self.scores, self.masks)
        spans = [self.spans[label] for label in self.labels]
        return record | odvg.grounding(self.caption, spans, self.boxes, self.scores, self.masks)
