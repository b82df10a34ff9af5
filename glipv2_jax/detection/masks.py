"""From a mask inside a box to pixels of the image, on the host. Source: GLIP `modeling/roi_heads/mask_head/inference.py`."""
import dataclasses

import numpy as np

from glipv2_jax.detection.boxes import PIXEL

THRESHOLD = 0.5


def paste(probabilities, box, size):
    """One mask in its image.

    A rim of zeros goes around the mask and the box grows with it; its corners are truncated toward zero, also negative ones, and
    what counts is above `THRESHOLD` after bilinear interpolation between pixel centres.

    Args:
      probabilities: [M, M] float.
      box: [4] xyxy pixels of the image, corners inclusive.
      size: (height, width) of the image.
    Returns: bool [height, width].
    """
    cells = probabilities.shape[-1] + 2
    box = np.asarray(box, np.float32)
    center, half = (box[:2] + box[2:]) * np.float32(0.5), (box[2:] - box[:2]) * np.float32(0.5)
    half *= np.float32(cells / (cells - 2))
    corners = np.stack([center - half, center + half]).astype(np.int32)                    # (x, y) of both
    mask = np.zeros(size, np.bool_)
    (left, columns), (top, rows) = (_interpolation(*corners[:, axis], size[1 - axis], cells) for axis in (0, 1))
    soft = rows @ np.pad(np.asarray(probabilities, np.float32), 1) @ columns.T
    mask[top:top + len(rows), left:left + len(columns)] = soft > THRESHOLD
    return mask


def _interpolation(begin, end, length, cells):
    """First pixel of an interval that is in the image, and the weights [pixels, cells] of those that are."""
    extent = max(end - begin + int(PIXEL), 1)
    first = min(max(begin, 0), length)
    pixels = np.arange(first, min(begin + extent, length)) - begin
    place = np.maximum((pixels.astype(np.float32) + np.float32(0.5)) * np.float32(cells / extent) - np.float32(0.5), 0)
    place = np.minimum(place, np.float32(cells - 1))
    return first, np.maximum(1 - np.abs(place[:, None] - np.arange(cells, dtype=np.float32)), 0)


@dataclasses.dataclass(frozen=True)
class PastedMasks:
    """Masks of an image, pasted when they are asked for: K images of many megapixels are never held at once.

    A sequence of bool [height, width]; an array or a slice of places gives another such sequence, `numpy.asarray` all
    masks as one bool [K, height, width].

    Attributes:
      probabilities: [K, M, M] float32, inside the boxes. boxes: [K, 4] xyxy pixels of the image. size: (height, width).
    """
    probabilities: np.ndarray
    boxes: np.ndarray
    size: tuple[int, int]

    @property
    def shape(self):
        return len(self), *self.size

    def __len__(self):
        return len(self.boxes)

    def __getitem__(self, place):
        if np.ndim(place) == 0 and not isinstance(place, slice):
            return paste(self.probabilities[place], self.boxes[place], self.size)
        return PastedMasks(self.probabilities[place], self.boxes[place], self.size)

    def __array__(self, dtype=None, copy=None):
        masks = np.zeros(self.shape, np.bool_)
        for k, mask in enumerate(self):
            masks[k] = mask
        return masks.astype(dtype or np.bool_, copy=False)
