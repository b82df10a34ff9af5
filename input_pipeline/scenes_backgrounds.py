"""Procedural backgrounds of the built-in worlds: tinted noise, wood, grass, paper and the like.

Every texture is a window of a periodic tile that is computed once per process, so a background costs well
under a millisecond. H W are canvas pixels.
"""
import functools

import numpy as np

TILE = 512  # Side of a tile in pixels; it repeats without a seam, so a canvas may be larger.

# Words that captions use: "a red star on <words>". Kinds without an entry are never named.
BACKGROUND_WORDS = {
    "wood": "a wooden table",
    "grass": "the grass",
    "paper": "a sheet of paper",
    "sand": "fine sand",
    "stone": "a stone floor",
    "sky": "a cloudy sky",
}

# Darkest and lightest colour, RGB 0 to 255, chosen muted so that objects stand out.
_TINTS = {
    "wood": ((133, 101, 74), (199, 166, 128)),
    "grass": ((88, 116, 70), (158, 182, 118)),
    "paper": ((212, 206, 190), (246, 242, 231)),
    "sand": ((190, 168, 128), (236, 219, 180)),
    "stone": ((128, 129, 132), (186, 186, 184)),
    "sky": ((138, 172, 205), (232, 238, 243)),
}
KINDS = (*_TINTS, "gradient", "mist", "grain", "marble", "tiles", "weave")


def render_background(rng: np.random.Generator, canvas: tuple[int, int]) -> tuple[np.ndarray, str]:
    """Draws a background.

    Args:
      rng: source of every choice.
      canvas: (H, W) pixels.
    Returns: (float32 [3, H, W] RGB in 0 to 1, name of the kind).
    """
    kind = KINDS[rng.integers(len(KINDS))]
    tile = _tile(kind)
    (top, left), (flip_y, flip_x) = rng.integers(TILE, size=2), rng.integers(2, size=2) * -2 + 1
    rows = (np.arange(canvas[0]) * flip_y + top) % TILE
    columns = (np.arange(canvas[1]) * flip_x + left) % TILE
    field = tile.take(rows, axis=0).take(columns, axis=1)  # [H, W]
    # A slow ramp of light over the picture; for the plain gradient it is the whole picture.
    angle, strength = rng.uniform(0, 2 * np.pi), 1.0 if kind == "gradient" else rng.uniform(0.0, 0.5)
    y, x = (np.linspace(-0.5, 0.5, side, dtype=np.float32) for side in canvas)
    ramp = np.float32(np.sin(angle)) * y[:, None] + np.float32(np.cos(angle)) * x
    field += np.float32(strength) * ramp
    dark, light = _tint(rng, kind)
    return dark + field * (light - dark), kind


def _tint(rng, kind):
    """Darkest and lightest colour, float32 [3, 1, 1] each, jittered."""
    if kind in _TINTS:
        pair = np.array(_TINTS[kind]) / 255 * rng.uniform(0.92, 1.06) + rng.uniform(-0.02, 0.02, 3)
    else:
        # Two greyish colours of nearby hue: saturation stays low because objects are saturated.
        hue, middle, spread = rng.uniform(0, 1), rng.uniform(0.35, 0.85), rng.uniform(0.06, 0.16)
        phase = 2 * np.pi * (hue + np.array([[0], [rng.uniform(-0.15, 0.15)]]) + np.array([0, 1 / 3, 2 / 3]))
        pair = np.array([[middle - spread], [middle + spread]]) + rng.uniform(0.02, 0.13) * np.cos(phase)
    return pair.astype(np.float32)[..., None, None]


@functools.cache
def _tile(kind):
    """Periodic float32 [TILE, TILE] of values around 0 to 1."""
    if kind == "gradient":
        return np.full((TILE, TILE), 0.5, np.float32) + 0.02 * _noise(1, _flat)
    if kind == "mist":
        return 0.5 + 0.25 * _noise(2, lambda fy, fx: (fy**2 + fx**2 + 9) ** -1.4)
    if kind == "grain":
        return 0.5 + 0.16 * _noise(3, _flat) + 0.1 * _noise(4, _band(6))
    if kind == "sky":
        return np.clip(0.45 + 0.3 * _noise(5, lambda fy, fx: (4 * fy**2 + fx**2 + 16) ** -1.25), 0, 1)
    if kind == "paper":
        return 0.6 + 0.1 * _noise(6, _band(60)) + 0.07 * _noise(7, _flat)
    if kind == "sand":
        ripple = _noise(8, lambda fy, fx: np.exp(-((fy - 22) / 6) ** 2 - (fx / 8) ** 2))
        return 0.5 + 0.18 * ripple + 0.12 * _noise(9, _flat)
    if kind == "stone":
        return 0.5 + 0.16 * _noise(10, _band(12)) + 0.12 * _noise(11, _band(70)) + 0.05 * _noise(12, _flat)
    if kind == "grass":
        blades = _noise(13, lambda fy, fx: np.exp(-((fx - 75) / 35) ** 2 - (fy / 26) ** 2))
        return 0.5 + 0.2 * blades + 0.12 * _noise(14, _band(10)) + 0.05 * _noise(15, _flat)
    if kind == "wood":
        bend = _noise(16, lambda fy, fx: np.exp(-((fy / 5) ** 2) - (fx / 1.6) ** 2))
        lines = np.sin(2 * np.pi * (14 * np.arange(TILE, dtype=np.float32)[:, None] / TILE + 0.8 * bend))
        fibres = _noise(17, lambda fy, fx: np.exp(-((fx / 7) ** 2)) * (fy > 20))
        return 0.5 + 0.2 * lines + 0.14 * fibres
    if kind == "marble":
        veins = np.abs(np.sin(2.2 * _noise(18, lambda fy, fx: (fy**2 + fx**2 + 12) ** -1.15)))
        return 0.15 + 0.85 * veins**0.6
    at = np.arange(TILE)
    if kind == "tiles":
        shade = np.random.Generator(np.random.Philox(19)).uniform(0.3, 0.7, (16, 16)).astype(np.float32)
        joint = np.minimum(at % 32, 31 - at % 32) < 1
        slabs = shade[np.ix_(at // 32, at // 32)] + 0.06 * _noise(20, _band(40))
        return np.where(joint[:, None] | joint, np.float32(0.0), slabs)
    if kind == "weave":
        over = ((at[:, None] // 8 + at // 8) % 2).astype(np.float32)
        rise = np.sin(np.pi * (at % 8 + 0.5) / 8).astype(np.float32)
        return 0.2 + 0.6 * (over * rise[:, None] + (1 - over) * rise) + 0.05 * _noise(21, _flat)
    raise ValueError(f"background {kind!r}: expected one of {KINDS}")


def _flat(fy, fx):
    """Spectrum of white noise."""
    return 1.0


def _band(centre):
    """Spectrum around `centre` cycles per tile, in every direction."""
    return lambda fy, fx: np.exp(-((np.hypot(fy, fx) - centre) / (0.6 * centre)) ** 2)


def _noise(number, spectrum):
    """Periodic Gaussian noise of zero mean and unit deviation, float32 [TILE, TILE].

    `spectrum(fy, fx)` weighs frequencies, in cycles per tile; `number` names one fixed draw.
    """
    white = np.random.Generator(np.random.Philox(number)).standard_normal((TILE, TILE), np.float32)
    fy, fx = np.abs(np.fft.fftfreq(TILE, 1 / TILE))[:, None], np.fft.rfftfreq(TILE, 1 / TILE)
    noise = np.fft.irfft2(np.fft.rfft2(white) * spectrum(fy, fx), (TILE, TILE))
    noise -= noise.mean()
    return (noise / noise.std()).astype(np.float32)
