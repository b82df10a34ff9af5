"""Pictures: colours where they belong, everything inside the frame, and sizes that make text legible."""
import numpy as np
import pytest
from PIL import Image

from glipv2_jax.draw import draw_caption, draw_detections, phrase_colors, sheet

GREY = np.full((120, 160, 3), 128, np.uint8)
BOX = [[40, 50, 99, 89]]


def has(picture, color):
    return (np.asarray(picture) == color).all(-1).any()


def test_phrases_have_distinct_stable_colors():
    colors = phrase_colors(["cat", "dog", "cat"] + [f"thing {n}" for n in range(60)])
    assert list(colors)[:2] == ["cat", "dog"] and len(set(colors.values())) == 62
    assert phrase_colors(["cat", "dog"]) == {name: colors[name] for name in ("cat", "dog")}


def test_box_line_covers_the_boxes_own_edge_pixels():
    picture = np.asarray(draw_detections(GREY, BOX, ["cat"], colors={"cat": (255, 0, 0)}, min_side=0))
    red = (picture == (255, 0, 0)).all(-1)
    assert red[70, 40] and red[70, 99] and red[89, 70]
    assert not red[70, 39] and not red[70, 100] and not red[90, 98] and not red[70, 70]
    assert not red[:, :30].any()


@pytest.mark.parametrize("shape, min_side, expected", [
    ((120, 160), 640, (640, 480)), ((100, 128), 640, (640, 500)), ((700, 300), 640, (300, 700)),
    ((120, 160), 0, (160, 120))])
def test_small_images_grow_by_a_whole_factor(shape, min_side, expected):
    picture = draw_detections(np.zeros((*shape, 3), np.uint8), [], [], min_side=min_side)
    assert picture.size == expected and picture.mode == "RGB"


@pytest.mark.parametrize("shade", [0, 128, 255])
def test_a_box_shows_on_any_ground(shade):
    image = np.full((480, 640, 3), shade, np.uint8)
    picture = np.asarray(draw_detections(image, [[100, 100, 300, 300]], ["cat"], [0.5])).astype(int)
    assert np.abs(picture - shade).max() > 100


def test_input_is_left_alone_and_pil_images_do():
    image = Image.fromarray(GREY)
    assert np.asarray(draw_detections(image, BOX, ["cat"])).shape == (480, 640, 3)
    assert (np.asarray(image) == 128).all()


@pytest.mark.parametrize("box", [
    [-50, -50, 20, 10], [150, 110, 400, 400], [-9, -9, 999, 999], [10, 10, 10, 10]])
def test_boxes_at_and_beyond_the_border_keep_their_tag_inside(box):
    picture = draw_detections(GREY, [box], ["a phrase of middling length"], [0.5], colors={
        "a phrase of middling length": (10, 250, 10)})
    green = (np.asarray(picture) == (10, 250, 10)).all(-1)
    rows, columns = np.flatnonzero(green.sum(1) > 40), np.flatnonzero(green.sum(0) > 8)
    assert picture.size == (640, 480) and len(rows) and len(columns)


def test_a_phrase_longer_than_the_picture_is_shortened():
    draw_detections(GREY, BOX, ["word " * 200])


def test_tags_of_neighbours_do_not_cover_each_other():
    black = np.zeros((480, 640, 3), np.uint8)
    colors = {"a first long phrase": (255, 0, 0), "a second long phrase": (0, 255, 0)}
    boxes = [[200, 200, 230, 300], [240, 200, 270, 300]]        # side by side, each narrower than its tag

    def inked(boxes, phrases, color):
        return (np.asarray(draw_detections(black, boxes, phrases, colors=colors)) == color).all(-1).sum()

    for box, (phrase, color) in zip(boxes, colors.items(), strict=True):
        assert inked(boxes, list(colors), color) > 0.97 * inked([box], [phrase], color)


def test_masks_tint_their_pixels_and_the_smaller_one_wins():
    masks = np.zeros((2, 120, 160), bool)
    masks[0, 50:90, 40:100] = True
    masks[1, 60:80, 60:90] = True
    boxes, labels = np.array([BOX[0], [60, 60, 89, 79]]), np.array(["cat", "ear"])
    colors = {"cat": (255, 0, 0), "ear": (0, 0, 255)}
    for order in ([0, 1], [1, 0]):
        picture = draw_detections(GREY, boxes[order], labels[order], masks=masks[order], colors=colors)
        picture = np.asarray(picture).astype(int)
        ear, cat = picture[280, 300], picture[340, 200]
        assert ear[2] > 150 > ear[0] and cat[0] > 150 > cat[2]


def test_caption_colors_its_spans_below_the_picture():
    caption = "a cat asleep on a red sofa"
    spans = [[(0, 5)], [(16, 26)], [(0, 5)]]
    colors = {"a cat": (255, 0, 0), "a red sofa": (0, 255, 0)}
    picture = draw_caption(GREY, caption, spans, BOX * 3, colors=colors)
    below = picture.crop((0, 480, *picture.size))
    assert picture.width == 640 and below.height > 20
    assert all(has(below, color) for color in colors.values())
    assert below.getpixel((0, below.height - 1)) == (255, 255, 255)


def test_caption_wraps_long_text_and_long_words():
    short = draw_caption(GREY, "one line", [], [])
    words = draw_caption(GREY, "several words " * 30, [], [])
    no_spaces = draw_caption(GREY, "x" * 400, [[(0, 400)]], BOX)
    assert short.height < words.height < 1200 and short.height < no_spaces.height < 1200


def test_caption_words_in_two_phrases_take_the_shorter_ones_color():
    caption = "the hat of the man"
    colors = {caption: (255, 0, 0), "the man": (0, 255, 0)}
    picture = draw_caption(GREY, caption, [[(0, 18)], [(11, 18)]], BOX * 2, colors=colors)
    below = np.asarray(picture)[480:]
    red, green = ((below == color).all(-1).any(0).nonzero()[0] for color in colors.values())
    assert red.max() < green.min()


def test_empty_caption_and_empty_detections():
    assert draw_caption(GREY, "", [], []).size[0] == 640
    nothing = draw_detections(GREY, np.zeros((0, 4)), [], [], masks=np.zeros((0, 120, 160), bool))
    assert (np.asarray(nothing) == 128).all()


def test_sheet_lays_pictures_in_rows_under_titles():
    picture = Image.new("RGB", (200, 100), (255, 0, 0))
    bare = sheet([picture] * 3, columns=2)
    titles = ["truth", "prediction", "a title far too long for its picture" * 3]
    titled = sheet([picture] * 3, columns=2, titles=titles)
    assert bare.width == titled.width == 2 * 200 + 3 * 8 and bare.height == 2 * 100 + 3 * 8
    assert titled.height > bare.height
    assert sheet([picture, GREY], columns=4, cell_width=50).size == (50 * 2 + 3 * 8, 38 + 2 * 8)


@pytest.mark.parametrize("call, message", [
    (lambda: draw_detections(GREY, BOX, []), "1 boxes with 0 labels"),
    (lambda: draw_detections(GREY, BOX, ["a"], [0.1, 0.2]), "1 boxes with 2 scores"),
    (lambda: draw_detections(GREY / 255, BOX, ["a"]), "expected uint8"),
    (lambda: draw_detections(GREY, BOX, ["a"], masks=np.zeros((1, 5, 5), bool)), "120×160"),
    (lambda: draw_caption(GREY, "cat", [[(0, 9)]], BOX), r"span \(0, 9\) is empty or outside"),
    (lambda: sheet([]), "sheet of 0 pictures"),
    (lambda: sheet([GREY], titles=["a", "b"]), "1 pictures with 2 titles"),
])
def test_refuses_what_does_not_fit(call, message):
    with pytest.raises(ValueError, match=message):
        call()
