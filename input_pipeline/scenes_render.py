"""Draws objects onto a canvas and keeps track of which object each pixel shows. Knows nothing of words.

Shapes are tables of signed distance, computed once per process and looked up over the small window of each
object: the distance gives smooth edges, rims and soft shadows for the price of one interpolation. Float
arrays hold colours first ([3, H, W]): NumPy runs long rows several times faster than rows of three. H W are
canvas pixels, h w those of a window.
"""
import dataclasses
import functools

import numpy as np

_TABLE = 129      # Side of a distance table.
_REACH = 2.0      # A table covers −2 to 2; the shape itself spans −1 to 1 along its longer side.
_GRAIN = 1 << 17  # Values of sensor noise kept; larger canvases repeat them.

# RGB of the colour words, 0 to 255.
PALETTE = {
    "red": (216, 38, 42),
    "orange": (247, 138, 22),
    "yellow": (250, 217, 47),
    "green": (42, 157, 74),
    "blue": (40, 98, 222),
    "purple": (128, 58, 176),
    "pink": (247, 142, 186),
    "brown": (118, 70, 36),
    "black": (36, 36, 42),
    "white": (246, 245, 240),
}
TEXTURES = ("plain", "striped", "dotted", "checked")


@dataclasses.dataclass(frozen=True)
class Cutout:
    """An object before it has a place.

    Attributes:
      rgb: float32 [3, h, w], 0 to 1.
      alpha: float32 [h, w], coverage of each pixel.
      shadow: float32 [h, w], how much of the light the object takes from what lies below.
    """
    rgb: np.ndarray
    alpha: np.ndarray
    shadow: np.ndarray


class Canvas:
    """A picture being painted from the back to the front.

    Attributes:
      pixels: float32 [3, H, W], 0 to 1.
      owner: int16 [H, W], number of the object that a pixel shows, −1 for the background.
    """

    def __init__(self, background):
        self.pixels = background
        self.owner = np.full(background.shape[1:], -1, np.int16)
        self._areas = np.zeros(0, np.int64)  # pixels of each object when nothing covers it
        self._visible = np.zeros(0, np.int64)

    def place(self, rng: np.random.Generator, cutout: Cutout, min_visible: float, tries: int = 20) -> bool:
        """Paints the cutout at a random place where it lies inside and hides no object too much.

        Args:
          min_visible: share of its own pixels that every object below must still show afterwards.
        Returns: False if no such place was found; the canvas is then unchanged.
        """
        solid = cutout.alpha > 0.5
        if not solid.any():  # thinner than half a pixel everywhere
            return False
        rows, columns = np.flatnonzero(solid.any(1)), np.flatnonzero(solid.any(0))
        height, width = (int(found[-1] - found[0]) + 1 for found in (rows, columns))
        room = np.array(self.owner.shape) - (height, width)
        if (room < 0).any():
            return False
        solid = solid[rows[0]:rows[0] + height, columns[0]:columns[0] + width]
        for top, left in rng.integers(0, room + 1, (tries, 2)).tolist():
            region = self.owner[top:top + height, left:left + width]
            hidden = np.bincount(region[solid] + 1, minlength=len(self._areas) + 1)[1:]
            left_over = self._visible - hidden
            if not (left_over < min_visible * self._areas).any():
                region[solid] = len(self._areas)
                self._areas = np.append(self._areas, np.count_nonzero(solid))
                self._visible = np.append(left_over, self._areas[-1])
                self._paint(cutout, top - int(rows[0]), left - int(columns[0]))
                return True
        return False

    def _paint(self, cutout, top, left):
        """Blends the window, whose corner may lie outside, into the picture."""
        height, width = cutout.alpha.shape
        y0, x0 = max(top, 0), max(left, 0)
        y1, x1 = min(top + height, self.owner.shape[0]), min(left + width, self.owner.shape[1])
        window = np.s_[..., y0 - top:y1 - top, x0 - left:x1 - left]
        below = self.pixels[:, y0:y1, x0:x1]
        below *= 1 - cutout.shadow[window]
        below += cutout.alpha[window] * (cutout.rgb[window] - below)

    def masks(self) -> np.ndarray:
        """Visible pixels of each object, bool [n, H, W]."""
        return self.owner == np.arange(len(self._areas), dtype=np.int16)[:, None, None]

    def image(self, rng: np.random.Generator) -> np.ndarray:
        """The finished picture with a trace of sensor noise, uint8 [H, W, 3]."""
        image = self.pixels * 255
        grain = np.arange(self.owner.size) + rng.integers(_GRAIN)
        image += _sensor_noise().take(grain, mode="wrap").reshape(self.owner.shape)
        return np.ascontiguousarray(np.moveaxis(np.clip(image, 0, 255, out=image).astype(np.uint8), 0, -1))


@functools.cache
def _sensor_noise():
    """Noise in steps of 1/255, float32 [_GRAIN]; its mean of a half makes the cut to uint8 a rounding."""
    return 0.5 + np.random.Generator(np.random.Philox(99)).normal(0, 2, _GRAIN).astype(np.float32)


def boxes_of(masks: np.ndarray) -> np.ndarray:
    """Tight boxes, float32 [n, 4] xyxy with inclusive corners, of non-empty masks bool [n, H, W]."""
    rows, columns = masks.any(2), masks.any(1)
    y1, x1 = rows.argmax(1), columns.argmax(1)
    y2, x2 = masks.shape[1] - 1 - rows[:, ::-1].argmax(1), masks.shape[2] - 1 - columns[:, ::-1].argmax(1)
    return np.stack([x1, y1, x2, y2], 1).astype(np.float32)


def draw_shape(rng, shape: str, colour: str, texture: str, diameter: float, light: float) -> Cutout:
    """Draws one object.

    Args:
      shape: a key of SHAPES.
      colour: a key of PALETTE.
      texture: one of TEXTURES.
      diameter: longer side before rotation, pixels.
      light: direction the light comes from, radians; shared by the objects of a picture.
    """
    table, reach = _distance_table(shape)
    radius = diameter / 2
    drop = 0.09 * radius + 1                         # pixels from the object to its shadow
    blur = 0.12 * radius + 2
    half = int(np.ceil(radius * reach * 1.06 + drop + blur / 2 + 1))
    along = np.arange(-half, half + 1, dtype=np.float32)
    y, x = (along - np.float32(offset) for offset in rng.uniform(-0.5, 0.5, 2))
    turn, stretch = np.radians(rng.uniform(-1, 1) * MAX_TURN.get(shape, 25)), rng.uniform(0.94, 1.06)
    cos, sin = np.float32(np.cos(turn) / radius), np.float32(np.sin(turn) / radius)
    u = (cos * x + (sin * y)[:, None]) * np.float32(stretch)    # [h, w], along the object's own axes
    v = ((cos * y)[:, None] - sin * x) / np.float32(stretch)
    distance = _look_up(table, u, v)
    distance *= np.float32(radius)                  # pixels, negative inside

    base, second, rim = _paints(rng, colour)
    alpha = np.clip(0.5 - distance, 0, 1)
    pattern = _pattern(rng, texture, u, v, radius)
    rgb = base if pattern is None else base + pattern * (second - base)  # [3, 1, 1] or [3, h, w]
    # Light falls off across the object and towards its rim; a darker (on black: lighter) line closes it.
    lit_x, lit_y = np.float32(np.cos(light)), np.float32(np.sin(light))
    towards = (lit_x / radius * x + (lit_y / radius * y)[:, None]).astype(np.float32)
    shade = 1 + np.float32(rng.uniform(0.06, 0.16)) * towards
    bevel = np.clip(1 + distance / np.float32(0.3 * radius), 0, 1)
    shade -= np.float32(rng.uniform(0.05, 0.28)) * bevel * bevel
    rgb = rgb * shade  # [3, h, w]
    line = np.clip(distance + np.float32(rng.uniform(0.2, 1.0) * (0.5 + 0.045 * radius) + 0.5), 0, 1)
    rgb += line * (rim - rgb)
    down, right = (round(-drop * float(part)) for part in (lit_y, lit_x))
    shadow = np.clip(0.5 - np.roll(distance, (down, right), (0, 1)) / np.float32(blur), 0, 1)
    return Cutout(rgb, alpha, shadow * np.float32(rng.uniform(0.2, 0.45)))


def _paints(rng, colour):
    """Base, pattern and rim colour, float32 [3, 1, 1] each."""
    base = np.array(PALETTE[colour], np.float32)[:, None, None] / 255
    base = base * rng.uniform(0.93, 1.05) + rng.uniform(-0.025, 0.025, (3, 1, 1))
    base = np.clip(base, 0, 1).astype(np.float32)
    # The pattern is another shade of the same colour, so the colour word stays true.
    towards, amount = {"black": (1.0, 0.36), "white": (0.0, 0.3), "yellow": (0.0, 0.3)}.get(
        colour, (1.0, 0.55) if rng.random() < 0.6 else (0.0, 0.45))
    second = base + np.float32(amount) * (np.float32(towards) - base)
    rim = base * np.float32(0.55) if colour != "black" else base + np.float32(0.2)
    return base, second, rim


def _pattern(rng, texture, u, v, radius):
    """Share of the second colour at each pixel, float32 [h, w], or None for a plain object."""
    if texture == "plain":
        return None
    # Periods of at least 5 pixels stay visible on the smallest objects.
    period = max(5.0 / radius, rng.uniform(0.34, 0.46))
    sharpness = np.float32(period * radius / np.pi)  # an edge about a pixel wide
    step, phase = np.float32(2 * np.pi / period), rng.uniform(0, 2 * np.pi, 2).astype(np.float32)
    if texture == "striped":
        lean = rng.choice([0.0, np.pi / 4, np.pi / 2, -np.pi / 4])
        wave = np.sin(step * (np.float32(np.cos(lean)) * u + np.float32(np.sin(lean)) * v) + phase[0])
    else:
        step = step * np.float32(0.8)
        first, other = np.sin(step * u + phase[0]), np.sin(step * v + phase[1])
        wave = first * other if texture == "checked" else first + other - np.float32(0.75)
    return np.clip(0.5 + sharpness * wave, 0, 1)


def _look_up(table, u, v):
    """Bilinear reading of a distance table at u, v [h, w]; beyond its border the border's values go on."""
    scale, top = (_TABLE - 1) / (2 * _REACH), _TABLE - 1.001
    column = np.clip((u + np.float32(_REACH)) * np.float32(scale), 0, np.float32(top))
    row = np.clip((v + np.float32(_REACH)) * np.float32(scale), 0, np.float32(top))
    column_index, row_index = column.astype(np.int32), row.astype(np.int32)
    column -= column_index
    row -= row_index
    corner = row_index * _TABLE + column_index
    upper, lower = table.take(corner), table.take(corner + _TABLE)
    upper += column * (table.take(corner + 1) - upper)
    lower += column * (table.take(corner + _TABLE + 1) - lower)
    upper += row * (lower - upper)
    return upper


@functools.cache
def _distance_table(shape):
    """(flat float32 [_TABLE²] signed distances, farthest point of the shape from its centre)."""
    if shape not in SHAPES:
        raise ValueError(f"shape {shape!r}: expected one of {tuple(SHAPES)}")
    axis = np.linspace(-_REACH, _REACH, _TABLE)
    # The first pass finds the extents, the second centres the shape and makes its longer side 2.
    fine = np.linspace(-1.2, 1.2, 481)
    y, x = np.meshgrid(fine, fine, indexing="ij")
    inside = SHAPES[shape](x, y) < 0
    low, high = np.array([[hits.min(), hits.max()] for hits in (x[inside], y[inside])]).T
    centre, scale = (low + high) / 2, (high - low).max() / 2
    y, x = np.meshgrid(axis * scale + centre[1], axis * scale + centre[0], indexing="ij")
    distance = SHAPES[shape](x, y) / scale
    reach = np.hypot(x - centre[0], y - centre[1])[distance < 0].max() / scale
    return distance.astype(np.float32).ravel(), float(reach) + 2 * _REACH / _TABLE


# Shapes: signed distance of points x, y (y grows downwards), roughly within −1 to 1; any unit of length.
def _polygon(*corners):
    """Exact distance to a polygon."""
    corners = np.array(corners, np.float64)

    def distance(x, y):
        nearest, inside = np.full(x.shape, np.inf), np.zeros(x.shape, bool)
        for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, 0)):
            dx, dy = x1 - x0, y1 - y0
            t = np.clip(((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy), 0, 1)
            nearest = np.minimum(nearest, np.hypot(x - x0 - t * dx, y - y0 - t * dy))
            if dy:
                inside ^= ((y0 > y) != (y1 > y)) & (x < x0 + (y - y0) * dx / dy)
        return np.where(inside, -nearest, nearest)
    return distance


def _rounded(distance, radius):
    """The shape grown by `radius`, which rounds its corners."""
    return lambda x, y: distance(x, y) - radius


def _curve(x_of, y_of, points=72):
    """A closed curve, as a polygon over t from 0 to 2π."""
    t = np.arange(points) * (2 * np.pi / points)
    return _polygon(*np.stack([x_of(t), y_of(t)], 1))


def _disc(centre_x, centre_y, radius):
    return lambda x, y: np.hypot(x - centre_x, y - centre_y) - radius


def _union(*parts):
    return lambda x, y: np.minimum.reduce([part(x, y) for part in parts])


def _minus(whole, part):
    return lambda x, y: np.maximum(whole(x, y), -part(x, y))


def _star(points, inner):
    turn = np.arange(2 * points) * np.pi / points - np.pi / 2
    length = np.where(np.arange(2 * points) % 2, inner, 1.0)
    return _polygon(*np.stack([length * np.cos(turn), length * np.sin(turn)], 1))


SHAPES = {
    "circle": _disc(0, 0, 0.9),
    "square": _rounded(_polygon((-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)), 0.08),
    "triangle": _rounded(_polygon((0, -0.85), (0.85, 0.7), (-0.85, 0.7)), 0.06),
    "star": _rounded(_star(5, 0.46), 0.05),
    "heart": _curve(lambda t: np.sin(t) ** 3,
                    lambda t: -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t)) / 16),
    "moon": _minus(_disc(0, 0, 0.9), _disc(0.5, -0.1, 0.72)),
    "cross": _union(_rounded(_polygon((-0.25, -0.9), (0.25, -0.9), (0.25, 0.9), (-0.25, 0.9)), 0.05),
                    _rounded(_polygon((-0.9, -0.25), (0.9, -0.25), (0.9, 0.25), (-0.9, 0.25)), 0.05)),
    "arrow": _rounded(_polygon((-0.9, -0.22), (0.05, -0.22), (0.05, -0.62), (0.9, 0), (0.05, 0.62),
                               (0.05, 0.22), (-0.9, 0.22)), 0.04),
    "ring": _minus(_disc(0, 0, 0.9), _disc(0, 0, 0.5)),
    "diamond": _rounded(_polygon((0, -0.95), (0.58, 0), (0, 0.95), (-0.58, 0)), 0.03),
    "leaf": _union(_curve(lambda t: 0.5 * np.sin(t) * np.sin(t / 2), lambda t: 0.15 - 0.8 * np.cos(t)),
                   _rounded(_polygon((-0.02, 0.8), (0.02, 0.8), (0.1, 1.1), (0.06, 1.1)), 0.05)),
    "drop": _curve(lambda t: 0.8 * np.sin(t) * np.sin(t / 2) ** 1.5, lambda t: -0.95 * np.cos(t)),
    "flower": _union(*(_disc(0.52 * np.sin(a), -0.52 * np.cos(a), 0.36) for a in np.arange(6) * np.pi / 3),
                     _disc(0, 0, 0.4)),
    "cloud": _union(_disc(-0.5, 0.2, 0.36), _disc(0.5, 0.2, 0.36), _disc(-0.12, -0.1, 0.46),
                    _disc(0.3, -0.02, 0.34), _polygon((-0.5, 0), (0.5, 0), (0.5, 0.56), (-0.5, 0.56))),
    "house": _rounded(_polygon((0, -0.9), (0.9, -0.1), (0.62, -0.1), (0.62, 0.8), (-0.62, 0.8),
                               (-0.62, -0.1), (-0.9, -0.1)), 0.05),
    "crown": _rounded(_polygon((-0.85, -0.55), (-0.4, 0.0), (0, -0.75), (0.4, 0.0), (0.85, -0.55),
                               (0.7, 0.65), (-0.7, 0.65)), 0.06),
}
# Degrees an object may lean to either side; 25 for shapes not listed. Limits keep a square from looking like
# a diamond and a cross like an x.
MAX_TURN = {"circle": 180, "ring": 180, "star": 36, "arrow": 180, "leaf": 180, "flower": 30, "square": 18,
            "diamond": 18, "house": 12, "cloud": 12, "crown": 18, "cross": 20}
