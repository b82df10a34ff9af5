"""Augmentation: the text, and that pixels, boxes, masks and words move together."""
import dataclasses

import numpy as np
import pytest

from input_pipeline import image_ops, ops
from input_pipeline.ops import mirrored_caption, parse

CANVAS = (64, 96)


def test_a_text_is_a_chain_of_ops():
    assert parse("") == ()
    assert parse("crop(0.5)| resize((480, 800), 1333) |flip(0.5, swap_words=True)") == (
        ops.Crop(0.5, 0.3), ops.Resize((480, 800), 1333), ops.Flip(0.5, True))
    assert parse("resize(800, max_size=1333)|jitter(0.1, 2)|color(0.4)") == (
        ops.Resize((800,), 1333), ops.Jitter(0.1, 2), ops.Color(0.4))


@pytest.mark.parametrize("text, message", [
    ("rotate(3)", "found op 'rotate', expected one of crop, resize, jitter, flip, color"),
    ("flip", "found 'flip', expected ops such as flip"),
    ("flip(0.5)||color(1)", "found '', expected ops"),
    ("flip(__import__('os'))", "expected ops such as flip"),
    ("flip(0.5).real", "expected ops such as flip"),
    ("flip(0.5, chance=1)", r"unexpected keyword argument 'chance', expected flip\(probability, swap_words\)"),
    ("flip()", r"missing a required argument: 'probability', expected flip\("),
    ("resize(800)", r"expected resize\(short_sides, max_size\)"),
    ("resize((), 9)", "expected whole numbers above 0"),
    ("resize((480.5,), 1333)", "expected whole numbers above 0"),
    ("flip(1.5)", "expected a probability of 0 to 1"),
    ("flip('often')", "not supported between"),
    ("jitter(2, 0.1)", "expected 0 < least <= most"),
    ("crop(0.5, 0)", "0 < least <= 1"),
    ("color(-1)", "expected 0 <= strength <= 1"),
])
def test_what_cannot_be_is_named(text, message):
    with pytest.raises(ValueError, match="augment: .*" + message):
        parse(text)


def picture(rng, caption=True, size=(60, 90), boxes=3):
    """A record whose every box is filled with its own grey, on black."""
    corners = np.sort(rng.integers(0, np.array(size[::-1]) - 12, (boxes, 2)), axis=0)
    boxes = np.concatenate([corners, corners + rng.integers(3, 12, corners.shape)], axis=1).astype(np.float32)
    image = np.zeros((*size, 3), np.uint8)
    for grey, (x1, y1, x2, y2) in enumerate(boxes.astype(int), 1):
        image[y1:y2 + 1, x1:x2 + 1] = 60 * grey
    return {"image": image, "boxes": boxes} | ({"caption": "three things"} if caption else {})


@pytest.mark.parametrize("text", [
    "crop(1, 0.1)", "resize((32, 90), 200)|jitter(0.3, 4)", "crop(0.7, 0.2)|resize(60, 90)|flip(0.5)",
    "resize(64, 96)|crop(1)|jitter(0.5, 3)|flip(0.5)|crop(1)"])
def test_what_a_caption_names_stays_whole_and_in_its_box(text):
    chain, seen = parse(text), set()
    for seed in range(40):
        rng = np.random.default_rng(seed)
        record = picture(rng)
        view = ops.augmented_view(chain, record, rng, CANVAS)
        seen.add(view)
        assert view.size[0] <= CANVAS[0] and view.size[1] <= CANVAS[1] and min(view.size) >= 1
        top, left, bottom, right = view.window
        assert 0 <= top < bottom <= 60 and 0 <= left < right <= 90
        cut, left_over = image_ops.cut_boxes(record["boxes"], view)
        assert (left_over == 1).all()
        np.testing.assert_array_equal(cut, record["boxes"])
        image, boxes = image_ops.show(record["image"], cut, view)
        assert image.shape[:2] == view.size
        x1, y1, x2, y2 = boxes[-1]                          # drawn last, so not covered
        assert -0.5 <= x1 and x2 <= view.size[1] and y2 <= view.size[0]
        scale = np.array(view.size[::-1]) / view.window_size[::-1]
        if min(x2 - x1, y2 - y1) > 4:
            # The middle of the object, half a pixel of the image off its inclusive corners.
            x = int((x1 + x2) / 2 + scale[0] / 2 - view.mirrored * (scale[0] - 1))
            y = int((y1 + y2) / 2 + scale[1] / 2)
            assert abs(int(image[y, x, 0]) - 180) < 60
    assert len(seen) > 20


def test_a_class_list_keeps_a_box_in_sight_and_cuts_others():
    shares = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        record = picture(rng, caption=False)
        view = ops.augmented_view(parse("crop(1, 0.1)"), record, rng, CANVAS)
        cut, left_over = image_ops.cut_boxes(record["boxes"], view)
        assert left_over.max() == 1
        top, left, bottom, right = view.window
        inside = left_over > 0
        assert (cut[inside] >= [left, top, left, top]).all() and (cut[inside] <= [right - 1, bottom - 1] * 2).all()
        shares += left_over.tolist()
    assert 0 in shares and any(0 < share < 1 for share in shares)


def test_cut_boxes_counts_pixels():
    view = image_ops.View((0, 10, 20, 30), (20, 20))
    boxes = np.array([[5, 0, 14, 9], [10, 0, 29, 19], [0, 0, 9, 9], [30, 0, 31, 1]], np.float32)
    cut, left_over = image_ops.cut_boxes(boxes, view)
    assert left_over.tolist() == [0.5, 1, 0, 0]                       # 5 of 10 columns are seen
    assert cut[0].tolist() == [10, 0, 14, 9]
    _, moved = image_ops.show(np.zeros((40, 40, 3), np.uint8), cut[:2], dataclasses.replace(view, mirrored=True))
    assert moved.tolist() == [[15, 0, 19, 9], [0, 0, 19, 19]]


def test_jitter_draws_sizes_over_its_range():
    record = {"image": np.zeros((40, 60, 3), np.uint8), "boxes": np.zeros((0, 4), np.float32)}
    views = [ops.augmented_view(parse("jitter(0.1, 2)"), record, np.random.default_rng(seed), CANVAS) for seed in range(300)]
    scales = [view.size[0] / view.window_size[0] for view in views]
    assert min(scales) < 0.15 and max(scales) > 1.9 and abs(np.mean(scales) - 1.05) < 0.1
    zoomed = [view for view, scale in zip(views, scales) if scale > 1.7]
    assert zoomed and all(min(view.size) >= 60 and max(view.size) >= 92 for view in zoomed)
    assert all(view.window_size[0] < 40 and view.window_size[1] < 60 for view in zoomed)


def test_color_moves_no_hue_and_no_box():
    image = np.tile(np.array([200, 100, 50], np.uint8), (8, 8, 1))
    record = {"image": image, "boxes": np.array([[1, 1, 4, 4]], np.float32)}
    found = []
    for seed in range(20):
        view = ops.augmented_view(parse("color(0.4)"), record, np.random.default_rng(seed), CANVAS)
        shown, boxes = image_ops.show(image, record["boxes"], view)
        np.testing.assert_array_equal(boxes, record["boxes"])
        red, green, blue = shown[0, 0].tolist()
        assert red > green > blue
        found.append((red, green, blue))
    assert len(set(found)) > 15


@pytest.mark.parametrize("caption, spans, expected, moved", [
    ("the left cup", [[(4, 12)], [(0, 3)]], "the right cup", [[(4, 13)], [(0, 3)]]),
    ("cup right of a cup, LEFT", [[(0, 3)], [(13, 18)], [(20, 24)]], "cup left of a cup, RIGHT",
     [[(0, 3)], [(12, 17)], [(19, 24)]]),
    ("Leftmost, right-hand and rightward", [[(0, 8)]], "Rightmost, left-hand and leftward", [[(0, 9)]]),
    ("a bright cleft, leftover copyright, righteous", [[(2, 8)]], "a bright cleft, leftover copyright, righteous",
     [[(2, 8)]]),
])
def test_left_and_right_change_places(caption, spans, expected, moved):
    assert mirrored_caption(caption, spans) == (expected, moved)
    again, back = mirrored_caption(expected, moved)
    assert (again, back) == (caption, spans)
