"""Images and their boxes: decode, view, resize, flip, pad. Pixels, boxes and masks move together.

Images are uint8 [h, w, 3] RGB. Boxes are float32 [n, 4] `xyxy` in pixels with inclusive corners: the box of a
single pixel has x2 = x1, a width is x2 − x1 + 1. Sizes are (height, width).
"""
import dataclasses
import io
import os
import struct

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

# Pixels of the largest image that is opened. A file of a few bytes may claim to hold any number of them; its header is
# asked before memory is taken. Pillow warns from 89 million on and refuses twice that.
MAX_PIXELS = 120_000_000

# Rounding may carry a box this far over the border of its image; further is a mistake.
BORDER_PIXELS = 2

# What Pillow raises on broken files, besides OSError.
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


def decode(file: str | os.PathLike | bytes, *, name: str | None = None, upright: bool = True) -> np.ndarray:
    """Reads an image of any common kind as RGB.

    Grey, palette, CMYK and 16-bit grey images become RGB; transparent pixels are laid over white (Differs
    from GLIP, which shows whatever colour hides below them).

    Args:
      file: path, or the bytes of a file.
      name: what to call it in an error, by default the path.
      upright: turn the image as its EXIF orientation asks.
    Returns: uint8 [h, w, 3].
    Raises: ValueError naming the file if it is missing, truncated or not an image.
    """
    name = name or _name(file)
    try:
        with _open(file) as image:
            image.load()
            if upright:
                image = ImageOps.exif_transpose(image)
            return np.asarray(_to_rgb(image))
    except _BROKEN as error:
        raise ValueError(f"{name}: cannot read the image: {error}") from error


def encode_png(image: np.ndarray) -> bytes:
    """A PNG file of a uint8 [h, w, 3] image."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def read_file(path: str | os.PathLike) -> bytes:
    """The bytes of an image file. Raises: ValueError naming it."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise ValueError(f"{path}: cannot read the image: {error.strerror}") from error


def decode_of_size(file: str | os.PathLike | bytes, size: tuple[int, int], record: str, source: str, *,
                   name: str | None = None) -> np.ndarray:
    """Reads an image whose annotations state its size.

    As a rule that is the upright image. Where EXIF asks for a quarter turn and the size is that before it, the image is
    given as stored: that is what was annotated, and what results are scored in.

    Args:
      size: (height, width). record, source: what an error calls the record, and how it says where the size is from.
    Returns: uint8 [h, w, 3].
    Raises: ValueError as `decode`, or for another size.
    """
    image = decode(file, name=name)
    if image.shape[:2] != tuple(size):
        upright, image = image, decode(file, name=name, upright=False)
        if image.shape[:2] != tuple(size):
            raise ValueError(f"{name or _name(file)}: {record}: found {upright.shape[1]}x{upright.shape[0]} pixels "
                             f"(width x height), expected {size[1]}x{size[0]} as {source}")
    return image


def header_size(file: str | os.PathLike | bytes, *, name: str | None = None) -> tuple[int, int]:
    """(height, width) of the upright image, from the header alone. Raises: ValueError naming the file."""
    try:
        with _open(file) as image:
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            return image.size if turned else image.size[::-1]
    except _BROKEN as error:
        raise ValueError(f"{name or _name(file)}: cannot read the image: {error}") from error


def as_pixels(image, *, name: str = "image") -> np.ndarray:
    """An image in any form that people have it in: a path or the bytes of a file, a PIL image, an array.

    Files and PIL images are turned upright as their EXIF orientation asks.

    Args:
      image: path, bytes, PIL image, or uint8 array [h, w, 3] RGB, [h, w, 4] RGBA or [h, w] grey.
      name: what to call it in an error; a path names itself.
    Returns: uint8 [h, w, 3] RGB.
    Raises: ValueError for a broken file, another shape or dtype, or an image without pixels.
    """
    if isinstance(image, (str, os.PathLike, bytes)):
        return decode(image, name=name if isinstance(image, bytes) else None)
    if isinstance(image, (list, tuple)):
        raise ValueError(f"{name}: found a {type(image).__name__} of {len(image)}, expected one image")
    if not isinstance(image, Image.Image):
        array = np.asarray(image)
        if array.dtype != np.uint8 or not (array.ndim == 2 or array.ndim == 3 and array.shape[2] in (3, 4)):
            raise ValueError(f"{name}: found an array of {array.dtype} {list(array.shape)}, expected uint8 "
                             "[height, width, 3]")
        if not array.size:
            raise ValueError(f"{name}: found no pixels in an array of shape {list(array.shape)}")
        if array.ndim == 3 and array.shape[2] == 3:
            return array
        image = Image.fromarray(array)
    try:
        return np.asarray(_to_rgb(ImageOps.exif_transpose(image)))
    except _BROKEN as error:
        raise ValueError(f"{name}: cannot read the image: {error}") from error


def pixels_of(record: dict) -> np.ndarray:
    """uint8 [h, w, 3] of a record, read now if the record only says how."""
    return record["image"]() if callable(record["image"]) else record["image"]


def _name(file):
    return "image bytes" if isinstance(file, bytes) else os.fspath(file)


def _open(file):
    """The image with its header read, no pixel decoded."""
    image = Image.open(io.BytesIO(file) if isinstance(file, bytes) else file)
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise ValueError(f"found {image.height}x{image.width} pixels, expected at most {MAX_PIXELS:,} in all "
                         "(image_ops.MAX_PIXELS)")
    return image


def _to_rgb(image):
    if image.mode.startswith("I;16"):                              # Pillow would clip at 255
        image = Image.fromarray((np.asarray(image).astype(np.uint32) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"found pixels of mode {image.mode!r}, expected 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def boxes_from_xywh(boxes: np.ndarray) -> np.ndarray:
    """float32 `xyxy` [n, 4] with inclusive corners (x2 = x1 + w − 1) from `xywh` [n, 4]."""
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    corners = boxes[:, :2] + np.maximum(boxes[:, 2:] - 1, 0)
    return np.concatenate([boxes[:, :2], corners], axis=1).astype(np.float32)


def clip_boxes(boxes: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Clips to the image.

    Args:
      boxes: [n, 4].
      size: (height, width).
    Returns: clipped boxes [n, 4], and bool [n], False on boxes no wider or no higher than one pixel, to be
      dropped.
    """
    height, width = size
    last = np.array([width, height] * 2, np.float32) - 1
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4).clip(0, last)
    return boxes, (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])


def resized_size(size: tuple[int, int], short_side: int, max_size: int,
                 canvas: tuple[int, int] | None = None) -> tuple[int, int]:
    """(height, width) after the resize rule of the reference.

    A `short_side` of 0 leaves the size as it is. Otherwise the short side becomes `short_side`, less where the long
    side would pass `max_size`. Rounding may leave the long side up to long/(2·short) pixels above `max_size`. An image
    that would pass the canvas shrinks further, keeping its proportions (the reference has no canvas: it pads to the largest image of the batch).

    Source: GLIP `transforms.Resize.get_size`.
    """
    height, width = size
    short, long = min(size), max(size)
    short_side = short_side or short
    if long / short * short_side > max_size:
        short_side = max(1, round(max_size * short / long))
    if short != short_side:
        if width < height:
            height, width = int(short_side * height / width), short_side
        else:
            height, width = short_side, int(short_side * width / height)
    if canvas is not None and (height > canvas[0] or width > canvas[1]):
        factor = min(canvas[0] / height, canvas[1] / width)
        height = max(1, min(canvas[0], int(height * factor)))
        width = max(1, min(canvas[1], int(width * factor)))
    return height, width


def smallest_canvas(size: tuple[int, int], short_side: int, max_size: int, canvases) -> tuple[int, int]:
    """The canvas of least area that holds the resized image whole, else the one on which it stays largest."""
    height, width = resized_size(size, short_side, max_size)
    holding = [canvas for canvas in canvases if height <= canvas[0] and width <= canvas[1]]
    if holding:
        return min(holding, key=lambda canvas: canvas[0] * canvas[1])
    return max(canvases, key=lambda canvas: min(canvas[0] / height, canvas[1] / width))


def resize(image: np.ndarray, boxes: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Resizes pixels (Pillow bilinear, antialiased) and boxes, x and y by their own realised ratio."""
    height, width = image.shape[:2]
    if size == (height, width):
        return image, boxes
    ratio = np.array([size[1] / width, size[0] / height] * 2, np.float32)
    pixels = np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR))
    return pixels, boxes * ratio


def flip(image: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mirrors left and right: x1' = width − 1 − x2. Flipping twice changes nothing."""
    mirrored = boxes.copy()
    mirrored[:, [0, 2]] = image.shape[1] - 1 - boxes[:, [2, 0]]
    return image[:, ::-1], mirrored


@dataclasses.dataclass(frozen=True)
class View:
    """How an image is seen.

    window: (top, left, bottom, right), half-open, whole pixels of the image: the part that is seen.
    size: (height, width) at which it is seen.
    mirrored: left and right are swapped.
    swap_words: so they are in the caption of a mirrored image.
    color: factors of brightness, contrast and saturation.
    """
    window: tuple[int, int, int, int]
    size: tuple[int, int]
    mirrored: bool = False
    swap_words: bool = False
    color: tuple[float, float, float] = (1.0, 1.0, 1.0)

    @property
    def window_size(self) -> tuple[int, int]:
        """(height, width) of the part, in pixels of the image."""
        return self.window[2] - self.window[0], self.window[3] - self.window[1]


def whole(image_size: tuple[int, int], size: tuple[int, int]) -> View:
    """A whole image, seen at another size."""
    return View((0, 0, *image_size), size)


def cut_boxes(boxes: np.ndarray, view: View) -> tuple[np.ndarray, np.ndarray]:
    """Cuts boxes at the border of what is seen; still in pixels of the image.

    Args:
      boxes: [n, 4], inside the image.
    Returns: boxes [n, 4], and float [n], the share of its area that is left of each; 0 for one out of sight.
    """
    top, left, bottom, right = view.window
    first, last = np.float32([left, top] * 2), np.float32([right, bottom] * 2) - 1
    cut = boxes.clip(first, last)
    inside = ((boxes[:, :2] <= last[:2]) & (boxes[:, 2:] >= first[:2])).all(axis=1)
    left_over, area = (np.prod(b[:, 2:] - b[:, :2] + 1, axis=1) for b in (cut, boxes))
    return cut, np.where(inside, left_over / area, 0)


def show(image: np.ndarray, boxes: np.ndarray, view: View) -> tuple[np.ndarray, np.ndarray]:
    """Pixels and boxes as the view has them.

    Args:
      boxes: [n, 4], inside the view's window; see `cut_boxes`.
    Returns: uint8 [*view.size, 3], and boxes [n, 4] in its pixels.
    """
    top, left, bottom, right = view.window
    image, boxes = resize(image[top:bottom, left:right], boxes - np.float32([left, top] * 2), view.size)
    if view.color != (1.0, 1.0, 1.0):
        picture = Image.fromarray(image)
        for kind, factor in zip((ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color), view.color):
            picture = kind(picture).enhance(factor)
        image = np.asarray(picture)
    return flip(image, boxes) if view.mirrored else (image, boxes)


def pad(image: np.ndarray, canvas: tuple[int, int]) -> np.ndarray:
    """Zeros below and to the right. The device blanks this part again after normalisation, as GLIP does."""
    height, width = image.shape[:2]
    if height > canvas[0] or width > canvas[1]:
        raise ValueError(f"image: found {height}x{width} pixels, expected at most the canvas of "
                         f"{canvas[0]}x{canvas[1]}")
    padded = np.zeros((*canvas, 3), np.uint8)
    padded[:height, :width] = image
    return padded


def crop_masks(masks: np.ndarray, boxes: np.ndarray, size: int) -> np.ndarray:
    """The part of each mask inside its box, sampled at the centres of a size × size grid.

    Taken from masks and boxes of the original image, so that no resize blurs them; a flipped image needs
    `crops[:, :, ::-1]`.

    Args:
      masks: bool [n, h, w].
      boxes: [n, 4], clipped to the image.
    Returns: bool [n, size, size].
    """
    steps = (np.arange(size) + 0.5) / size
    crops = np.zeros((len(masks), size, size), np.bool_)
    for crop, mask, (x1, y1, x2, y2) in zip(crops, masks, boxes):
        columns = np.clip(x1 + steps * (x2 - x1 + 1), 0, mask.shape[1] - 1).astype(np.int64)
        rows = np.clip(y1 + steps * (y2 - y1 + 1), 0, mask.shape[0] - 1).astype(np.int64)
        crop[:] = mask[np.ix_(rows, columns)]
    return crops
