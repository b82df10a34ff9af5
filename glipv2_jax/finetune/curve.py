"""Scores over steps as a picture, with pillow alone."""
import math

from PIL import Image, ImageDraw, ImageFont

from glipv2_jax.draw import phrase_colors

_SIZE, _MARGIN = (900, 560), (80, 60, 60, 70)         # left, top, right without the names, bottom
_INK, _PALE = (24, 26, 30), (222, 224, 228)


def draw_curves(curves, title, horizontal):
    """Lines over a common origin, scores in percent.

    Args:
      curves: name → list of (step, score in 0 … 1), in order; at least one point in all.
      title: text above. horizontal: what the axis below counts.
    Returns: PIL image, RGB.
    """
    picture = Image.new("RGB", _SIZE, "white")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(size=16)
    names = math.ceil(max(font.getlength(name) for name in curves))       # to the right of the lines, over none of them
    left, top, right, bottom = _MARGIN[0], _MARGIN[1], _SIZE[0] - _MARGIN[2] - names, _SIZE[1] - _MARGIN[3]
    points = [point for curve in curves.values() for point in curve]
    x_tick = _tick(max(step for step, _ in points) or 1)
    y_tick = _tick(max(100 * score for _, score in points) or 1)
    x_end = x_tick * max(1, math.ceil(max(step for step, _ in points) / x_tick))
    y_end = y_tick * max(1, math.ceil(max(100 * score for _, score in points) / y_tick))

    def place(step, score):
        return left + (right - left) * step / x_end, bottom - (bottom - top) * 100 * score / y_end
    pen.text((left, 20), title, _INK, ImageFont.load_default(size=20))
    for i in range(round(y_end / y_tick) + 1):
        y = place(0, i * y_tick / 100)[1]
        pen.line([(left, y), (right, y)], _PALE)
        pen.text((left - 10, y), f"{i * y_tick:g}", _INK, font, anchor="rm")
    for i in range(round(x_end / x_tick) + 1):
        x = place(i * x_tick, 0)[0]
        pen.line([(x, bottom), (x, bottom + 6)], _INK)
        pen.text((x, bottom + 10), f"{i * x_tick:g}", _INK, font, anchor="mt")
    pen.line([(left, top), (left, bottom), (right, bottom)], _INK)
    pen.text(((left + right) / 2, _SIZE[1] - 12), horizontal, _INK, font, anchor="mb")
    for row, (name, color) in enumerate(phrase_colors(curves).items()):
        line = [place(*point) for point in curves[name]]
        pen.line(line, color, 3, joint="curve")
        for x, y in line:
            pen.ellipse((x - 3, y - 3, x + 3, y + 3), color)
        pen.rectangle((right + 20, top + 8 + 24 * row, right + 34, top + 22 + 24 * row), color)
        pen.text((right + 42, top + 15 + 24 * row), name, _INK, font, anchor="lm")
    return picture


def _tick(largest):
    """A round distance of which the largest value holds four to eight."""
    power = 10 ** math.floor(math.log10(largest / 4))
    return max(step * power for step in (1, 2, 5) if step * power <= largest / 4)
