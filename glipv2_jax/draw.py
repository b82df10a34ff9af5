"""Pictures of what was found: boxes, masks and captions, with pillow alone.

All sizes follow the picture, so a 128-pixel drawing and a 12-megapixel photograph are equally legible. A
picture smaller than `min_side` is enlarged by a whole factor first. Boxes are `xyxy`, pixels of the given
image, corners inclusive. A phrase has one colour wherever it appears: in boxes, masks, tags, captions and,
through `phrase_colors`, in all pictures of a sheet.
"""
import colorsys
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFilter, ImageFont

# Bright, far apart in hue and in lightness, neighbours first; no brown or grey: photographs are full of them.
_COLORS = ("#ff3b5c", "#18c0ff", "#ffd000", "#3ddc5b", "#ff7ae0", "#ff8a1f", "#7f6bff", "#00e0c0", "#c6f91f",
           "#d63bff", "#4f8dff", "#ffb3a0")
_INK, _PAPER = (24, 26, 30), (255, 255, 255)
MASK_OPACITY = 0.42


def phrase_colors(phrases):
    """A colour for every phrase, in the order they first appear.

    Args:
      phrases: iterable of str; repeats are welcome.
    Returns: dict phrase -> (r, g, b). The first twelve are hand-picked, later ones go round the hues.
    """
    colors = {}
    for phrase in phrases:
        if phrase not in colors:
            colors[phrase] = _color(len(colors))
    return colors


def draw_detections(image, boxes, labels, scores=None, *, masks=None, colors=None, min_side=640):
    """Boxes with their phrase and score on the image.

    Args:
      image: [H, W, 3] uint8 array, or a PIL image.
      boxes: [K, 4] float, `xyxy` pixels of the image.
      labels: K phrases.
      scores: [K] floats in 0..1, or None. The best one is first to choose where its tag goes.
      masks: [K, H, W] bool, or None.
      colors: dict phrase -> (r, g, b), or None for `phrase_colors(labels)`. Give the same dict to pictures
        that will be compared.
      min_side: enlarge by a whole factor until the longer side has this many pixels; 0 keeps the size.
    Returns: PIL image, RGB.
    Raises: ValueError if the lengths differ.
    """
    canvas = _Canvas(image, min_side)
    labels = [str(label) for label in labels]
    boxes = _checked(boxes, labels=labels, scores=scores, masks=masks)
    colors = colors or phrase_colors(labels)
    if masks is not None:
        canvas.masks(masks, [colors[label] for label in labels])
    # Large boxes first: a small one inside a large one stays whole.
    for k in np.argsort(-_areas(boxes), kind="stable"):
        canvas.box(boxes[k], colors[labels[k]])
    texts, order = labels, range(len(boxes))
    if scores is not None:
        texts = [f"{label} {score:.2f}" for label, score in zip(labels, scores, strict=True)]
        order = np.argsort(-np.asarray(scores), kind="stable")
    canvas.tags([(boxes[k], texts[k], labels[k], colors[labels[k]]) for k in order])
    return canvas.picture


def draw_caption(image, caption, spans, boxes, scores=None, *, masks=None, colors=None, min_side=640):
    """The image with its grounded caption underneath: each phrase in the colour of its boxes.

    Args:
      image: [H, W, 3] uint8 array, or a PIL image.
      caption: str.
      spans: for each box a list of (begin, end) characters of the caption, as in a record of `schema.py`.
        Boxes with equal spans are one phrase.
      boxes: [K, 4] float, `xyxy` pixels of the image.
      scores, masks, min_side: as in `draw_detections`.
      colors: dict phrase -> (r, g, b), where a phrase is the text of its spans joined by spaces.
    Returns: PIL image, RGB: the picture, and the caption wrapped to its width on white below.
    Raises: ValueError if lengths differ or a span lies outside the caption.
    """
    for begin, end in (span for of_box in spans for span in of_box):
        if not 0 <= begin < end <= len(caption):
            raise ValueError(f"span ({begin}, {end}) is empty or outside a caption of {len(caption)} letters")
    phrases = [" ".join(caption[begin:end] for begin, end in of_box) for of_box in spans]
    colors = colors or phrase_colors(phrases)
    picture = draw_detections(image, boxes, phrases, scores, masks=masks, colors=colors, min_side=min_side)

    # A word inside two phrases takes the colour of the shorter one, the more exact of the two.
    color_of = [None] * len(caption)
    by_length = sorted(((begin, end, phrase) for of_box, phrase in zip(spans, phrases, strict=True)
                        for begin, end in of_box), key=lambda span: span[0] - span[1])
    for begin, end, phrase in by_length:
        color_of[begin:end] = [colors[phrase]] * (end - begin)
    strip = _caption_strip(caption, color_of, picture.width, _font(round(_font_size(picture) * 1.3)))
    return _stacked([picture, strip])


def sheet(pictures, columns=2, titles=None, *, cell_width=None):
    """A contact sheet: pictures in rows on white, each under its title.

    Args:
      pictures: PIL images or [H, W, 3] uint8 arrays.
      columns: pictures in a row.
      titles: one str per picture, or None.
      cell_width: every picture is scaled to this many pixels; None: to the narrowest of them.
    Returns: PIL image, RGB.
    Raises: ValueError if there are no pictures or the number of titles differs.
    """
    pictures = [_as_image(picture) for picture in pictures]
    if not pictures or (titles is not None and len(titles) != len(pictures)):
        raise ValueError(f"sheet of {len(pictures)} pictures with {len(titles or ())} titles")
    width = cell_width or min(picture.width for picture in pictures)
    cells = []
    for n, picture in enumerate(pictures):
        if picture.width != width:
            height = max(1, round(picture.height * width / picture.width))
            picture = picture.resize((width, height), Image.LANCZOS)
        title = _title_strip(titles[n], width) if titles is not None else None
        cells.append(_stacked([title, picture]) if title else picture)

    gap = max(8, width // 48)
    rows = [cells[n:n + columns] for n in range(0, len(cells), columns)]
    heights = [max(cell.height for cell in row) for row in rows]
    used = min(columns, len(cells))
    page = Image.new("RGB", (used * (width + gap) + gap, sum(heights) + gap * (len(rows) + 1)), _PAPER)
    top = gap
    for row, height in zip(rows, heights, strict=True):
        for n, cell in enumerate(row):
            page.paste(cell, (gap + n * (width + gap), top))
        top += height + gap
    return page


@dataclass(frozen=True)
class _Rectangle:
    """Half-open pixels of the canvas: right and bottom are one past the last."""
    left: int
    top: int
    right: int
    bottom: int

    def overlap(self, other):
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(width, 0) * max(height, 0)


class _Canvas:
    """The enlarged picture, and the boxes on it."""

    def __init__(self, image, min_side):
        image = _as_image(image)
        self.factor = max(1, -(-min_side // max(image.size)))
        self.picture = image.resize((image.width * self.factor, image.height * self.factor), Image.BILINEAR)
        self.pen = ImageDraw.Draw(self.picture)
        self.font = _font(_font_size(self.picture))
        self.line = max(2, round(self.font.size / 5))
        self.boxes = []             # rectangles drawn so far

    def box(self, box, color):
        """A line of the colour between two thin dark ones, so that it shows on snow and at night."""
        place = self._rectangle(box)
        self.boxes.append(place)
        halo = max(1, self.line // 3)
        for grow, width, ink in ((halo, self.line + 2 * halo, _INK), (0, self.line, color)):
            corners = place.left - grow, place.top - grow, place.right - 1 + grow, place.bottom - 1 + grow
            self.pen.rectangle(corners, outline=ink, width=width)

    def masks(self, masks, colors):
        """Each mask's colour laid over it, with an opaque rim; where masks overlap, the smallest one's."""
        height, width = self.picture.height // self.factor, self.picture.width // self.factor
        masks = np.asarray(masks, bool)
        if masks.shape[1:] != (height, width):
            raise ValueError(f"masks of shape {masks.shape} on an image of {height}×{width}")
        tint, cover = self.picture.copy(), Image.new("L", self.picture.size)
        for k in np.argsort(-masks.sum((1, 2)), kind="stable"):
            inside = Image.fromarray(masks[k].astype(np.uint8) * 255)
            inside = inside.resize(self.picture.size, Image.BILINEAR).point(lambda value: 255 * (value > 127))
            # Pixels whose whole neighbourhood is inside; a box blur takes the same time for any width.
            core = inside.filter(ImageFilter.BoxBlur(self.line - 1)).point(lambda value: 255 * (value == 255))
            tint.paste(colors[k], mask=inside)
            cover.paste(255, mask=inside)
            cover.paste(round(255 * MASK_OPACITY), mask=core)
        self.picture.paste(tint, mask=cover)

    def tags(self, tags):
        """Writes (box, text, phrase, color) tags; the first ones choose their places first and lie on top."""
        placed, tagged = [], set()
        pad = max(2, round(self.font.size * 0.25))
        ascent, descent = self.font.getmetrics()
        for box, text, phrase, color in tags:
            text = _shortened(text, self.font, self.picture.width - 2 * pad)
            width, height = round(self.font.getlength(text)) + 2 * pad, ascent + descent + pad // 2
            places = self._places(box, width, height)
            hidden = [sum(place.overlap(other) for other, _, _ in placed) for place in places]
            # Another tag is the worst thing to cover, then a found object; among equals the first place wins.
            covered = [sum(place.overlap(other) for other in self.boxes) for place in places]
            best = min(range(len(places)), key=lambda n: 4 * hidden[n] + covered[n])
            # In a crowd the colour says the phrase, once one tag has said which it is.
            if hidden[best] > 0.1 * width * height and phrase in tagged:
                continue
            placed.append((places[best], text, color))
            tagged.add(phrase)
        for place, text, color in reversed(placed):
            _chip(self.picture, place, pad, color)
            start = place.left + pad, place.bottom - descent - pad // 4
            self.pen.text(start, text, readable_on(color), self.font, anchor="ls")

    def _places(self, box, width, height):
        """Where a tag may stand: above the box, in its top, below it, in its bottom; the same flush right.

        All are moved inside the picture.
        """
        place = self._rectangle(box)
        out = self.line // 3 + 1
        tops = (place.top - height - out, place.top, place.bottom + out, place.bottom - height)
        places = []
        for left in (place.left - out, place.right - width + out):
            left = max(0, min(left, self.picture.width - width))
            for top in tops:
                top = max(0, min(top, self.picture.height - height))
                places.append(_Rectangle(left, top, left + width, top + height))
        return places

    def _rectangle(self, box):
        x1, y1, x2, y2 = np.asarray(box, np.float64) * self.factor
        # x2 is the last pixel, not the edge.
        right, bottom = round(x2) + self.factor, round(y2) + self.factor
        return _Rectangle(round(x1), round(y1), max(right, round(x1) + 1), max(bottom, round(y1) + 1))


def _caption_strip(caption, color_of, width, font):
    """The caption on white, wrapped to the width; characters with a colour stand on a chip of that colour."""
    # A chip is one space wider than its text on either side, so that it does not touch its neighbours.
    text, colors = "", []
    for first, last, color in _runs(color_of, 0, len(caption)):
        piece = f" {caption[first:last]} " if color else caption[first:last]
        text, colors = text + piece, colors + [color] * len(piece)

    pad = round(font.size * 0.6)
    lines = _wrapped(text, font, width - 2 * pad)
    ascent, descent = font.getmetrics()
    step = round((ascent + descent) * 1.35)
    strip = Image.new("RGB", (width, 2 * pad + step * len(lines)), _PAPER)
    pen = ImageDraw.Draw(strip)
    for row, (begin, end) in enumerate(lines):
        base = pad + row * step + ascent + (step - ascent - descent) // 2
        for first, last, color in _runs(colors, begin, end):
            # Measured from the start of the line, as kerning makes widths of pieces not add up.
            left, right = (pad + round(font.getlength(text[begin:n])) for n in (first, last))
            if color:
                rise = round(font.size * 0.1)
                place = _Rectangle(left, base - ascent - rise, right, base + descent)
                _chip(strip, place, round(font.size * 0.3), color)
            ink = readable_on(color) if color else _INK
            pen.text((left, base), text[first:last], ink, font, anchor="ls")
    return strip


def _chip(picture, place, radius, color):
    """A filled rectangle with smooth round corners: drawn four times larger as a mask, then reduced."""
    width, height = place.right - place.left, place.bottom - place.top
    shape = Image.new("L", (4 * width, 4 * height))
    corners = 0, 0, 4 * width - 1, 4 * height - 1
    ImageDraw.Draw(shape).rounded_rectangle(corners, radius=4 * radius, fill=255)
    picture.paste(color, (place.left, place.top), shape.resize((width, height), Image.BOX))


def _wrapped(text, font, width):
    """(begin, end) of each line; breaks at spaces, and within a word only where it is longer than a line."""
    lines, begin = [], 0
    while begin < len(text):
        end = begin + 1
        while end < len(text) and font.getlength(text[begin:end + 1]) <= width:
            end += 1
        if end < len(text):
            space = text.rfind(" ", begin, end + 1)
            end = space if space > begin else end
        lines.append((begin, end))
        begin = end + 1 if text[end:end + 1] == " " else end
    return lines


def _runs(color_of, begin, end):
    """Pieces (first, last, color) of equal colour within begin..end."""
    first = begin
    for n in range(begin + 1, end + 1):
        if n == end or color_of[n] != color_of[first]:
            yield first, n, color_of[first]
            first = n


def _title_strip(title, width):
    font = _font(max(14, width // 26))
    ascent, descent = font.getmetrics()
    strip = Image.new("RGB", (width, round((ascent + descent) * 1.35)), _PAPER)
    ImageDraw.Draw(strip).text((0, ascent + 1), _shortened(title, font, width), _INK, font, anchor="ls")
    return strip


def _stacked(parts):
    page = Image.new("RGB", (max(part.width for part in parts), sum(part.height for part in parts)), _PAPER)
    top = 0
    for part in parts:
        page.paste(part, (0, top))
        top += part.height
    return page


def _shortened(text, font, width):
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text.rstrip() + "..."


def _as_image(image):
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image: found {image.dtype} of shape {image.shape}, expected uint8 [H, W, 3]")
    return Image.fromarray(image)


def _checked(boxes, **others):
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    for name, values in others.items():
        if values is not None and len(values) != len(boxes):
            raise ValueError(f"{len(boxes)} boxes with {len(values)} {name}")
    return boxes


def _areas(boxes):
    return np.prod(boxes[:, 2:] - boxes[:, :2] + 1, axis=1)


def _font_size(picture):
    return max(13, round(0.022 * (picture.width * picture.height) ** 0.5))


def _font(size):
    return ImageFont.load_default(size=size)


def _color(n):
    if n < len(_COLORS):
        return ImageColor.getrgb(_COLORS[n])
    # Golden-ratio steps never repeat a hue; every other colour is paler.
    red, green, blue = colorsys.hsv_to_rgb(n * 0.618034 % 1, 0.55 if n % 2 else 0.95, 1)
    return round(red * 255), round(green * 255), round(blue * 255)


def readable_on(color):
    """Dark or white ink, whichever has the greater contrast (WCAG relative luminance)."""
    linear = [(c / 255 / 12.92) if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in color]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return _INK if luminance > 0.2 else _PAPER
