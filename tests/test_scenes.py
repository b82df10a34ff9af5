"""Rendered scenes: reproducible, split as documented, boxes tight, and every word true of the picture."""
import itertools
import re

import numpy as np
import pytest

from input_pipeline.scenes import (
    ALL_NAMES,
    COLOURS,
    SEEN_SHAPES,
    SPECIAL_NAMES,
    UNSEEN_SHAPES,
    Scenes,
    is_held_out,
)
from input_pipeline.scenes_backgrounds import KINDS, render_background
from input_pipeline.scenes_language import NUMBERS, SIZES, pluralise, relations
from input_pipeline.scenes_render import PALETTE, SHAPES, TEXTURES, Canvas, Cutout, draw_shape

SPLITS = tuple(SPECIAL_NAMES)
NUM = 40


def equal_records(first, second):
    """True if two records hold the same keys and values."""
    assert first.keys() == second.keys()
    return all(np.array_equal(value, second[key]) if isinstance(value, np.ndarray) else value == second[key]
               for key, value in first.items())


def mask_extents(mask):
    """xyxy of the pixels of one mask, corners inclusive, the slow way."""
    y, x = np.nonzero(mask)
    return [x.min(), y.min(), x.max(), y.max()]


def check_record(source, index):
    """What holds for the records of every rendered world, words against objects included."""
    record, scene = source[index], source.scene(index)
    height, width = source.canvas
    count = len(record["boxes"])
    assert count >= 1 and record["image_id"] == index
    assert record["image"].dtype == np.uint8 and record["image"].shape == (height, width, 3)
    assert record["boxes"].dtype == np.float32 and record["boxes"].shape == (count, 4)
    assert record["classes"].dtype == np.int32 and record["classes"].shape == (count,)
    assert record["masks"].dtype == bool and record["masks"].shape == (count, height, width)
    np.testing.assert_array_equal(record["boxes"], [mask_extents(mask) for mask in record["masks"]])
    assert record["masks"].sum(0).max() == 1  # a pixel shows one object
    np.testing.assert_array_equal(scene.image, record["image"])
    if "caption" in record:
        assert (record["classes"] == -1).all()
        check_caption(source, record, scene)
    else:
        np.testing.assert_array_equal(record["boxes"], scene.boxes)
        assert [source.class_names[i] for i in record["classes"]] == [thing.name for thing in scene.things]
    assert len(record["questions"]) >= 2
    for question in record["questions"]:
        assert question["answer"] == answer(source, scene, question["question"]), question


def fitting(source, scene, words):
    """Indices of the things that a phrase without article or number fits, read word by word."""
    fits = []
    for index, thing in enumerate(scene.things):
        nouns = {thing.noun, pluralise(thing.noun), source.generic, pluralise(source.generic)}
        for noun in (noun for noun in nouns if words == noun or words.endswith(" " + noun)):
            adjectives = words.removesuffix(noun).split()
            fits += [index] if set(adjectives) <= {thing.size, thing.texture, thing.colour} else []
    return fits


def check_caption(source, record, scene):
    """Each phrase names all that it fits and nothing else, with the right number and true relations."""
    caption, groups = record["caption"], {}
    of_box = {tuple(box): index for index, box in enumerate(scene.boxes.tolist())}
    assert len(record["spans"]) == len(record["boxes"])
    for (span,), box in zip(record["spans"], record["boxes"].tolist()):
        groups.setdefault(span, []).append(of_box[tuple(box)])
    for (begin, end), things in groups.items():
        first, words = caption[begin:end].split(" ", 1)
        assert NUMBERS.index({"a": "one", "an": "one"}.get(first, first)) == len(things)
        if len(things) == 1:
            assert first == ("an" if words[0] in "aeiou" else "a")
        assert fitting(source, scene, words) == sorted(things), caption
    for one, other in itertools.pairwise(sorted(groups)):
        between = caption[one[1]:other[0]].strip()
        assert between in {"left of", "right of", "above", "below", "and", ",", "."}
        if between not in {"and", ",", "."}:
            assert all(apart(scene.boxes[i], scene.boxes[j], between)
                       for i in groups[one] for j in groups[other])


def apart(first, second, relation):
    """Whether a relation holds between two boxes: nothing of one reaches the other along the axis."""
    return {"left of": first[2] < second[0], "right of": first[0] > second[2],
            "above": first[3] < second[1], "below": first[1] > second[3]}[relation]


def answer(source, scene, question):
    """The answer, worked out from the objects."""
    if found := re.fullmatch(r"how many (.*) are there\?", question):
        return str(len(fitting(source, scene, found[1])))
    if found := re.fullmatch(r"is there an? (.*)\?", question):
        return "yes" if fitting(source, scene, found[1]) else "no"
    if found := re.fullmatch(r"what color is the (.*)\?", question):
        (index,) = fitting(source, scene, found[1])
        return scene.things[index].colour
    found = re.fullmatch(r"is the (.*) (left of|right of|above|below) the (.*)\?", question)
    (one,), (other,) = fitting(source, scene, found[1]), fitting(source, scene, found[3])
    return "yes" if apart(scene.boxes[one], scene.boxes[other], found[2]) else "no"


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("task", ["detection", "caption"])
def test_records_are_true(split, task):
    source = Scenes(5, NUM, split=split, task=task)
    for index in range(NUM):
        check_record(source, index)


@pytest.mark.parametrize("canvas", [(64, 64), (96, 200), (200, 96)])
def test_canvas_sizes(canvas):
    source = Scenes(1, 10, canvas=canvas)
    for index in range(10):
        check_record(source, index)


def test_reading_is_a_function_of_the_index():
    forward, backward = Scenes(3, 12, task="mixed"), Scenes(3, 12, task="mixed")
    later = {index: backward[index] for index in reversed(range(12))}
    assert all(equal_records(forward[index], later[index]) for index in range(12))
    assert all(equal_records(forward[index], forward[index]) for index in range(12))
    # More examples, or another task, leave the pictures as they are.
    longer = Scenes(3, 500)
    assert all(np.array_equal(longer[index]["image"], later[index]["image"]) for index in range(12))
    assert ["caption" in later[index] for index in range(12)] == [False, True] * 6


def test_seeds_and_splits_share_no_picture():
    sources = [Scenes(seed, 10, split=split) for seed in (0, 1) for split in SPLITS]
    pictures = {source[index]["image"].tobytes() for source in sources for index in range(10)}
    assert len(pictures) == 10 * len(sources)


def test_vocabulary_and_held_out_rule():
    assert (len(ALL_NAMES), len(SEEN_SHAPES), len(UNSEEN_SHAPES), len(COLOURS)) == (160, 12, 4, 10)
    train, test, heldout, unseen = (Scenes(split=split) for split in SPLITS)
    assert len(train.class_names) == 96 and train.class_names == test.class_names and train.held_out == ()
    assert len(heldout.held_out) == 24 and len(heldout.class_names) == 120
    assert len(unseen.held_out) == 40 and len(unseen.class_names) == 136
    for source in (heldout, unseen):
        special = {source.class_names[index] for index in source.held_out}
        assert special.isdisjoint(train.class_names)
        assert special | set(train.class_names) == set(source.class_names)
        # A name has one id, whatever the split.
        ids = dict(zip(source.class_names, source.category_ids))
        assert len(set(ids.values())) == len(ids) and min(ids.values()) >= 1
        assert all(ids[name] == number for name, number in zip(train.class_names, train.category_ids))
    # Every held-out combination is made of words that training shows elsewhere.
    for colour in COLOURS:
        assert 0 < sum(is_held_out(colour, shape) for shape in SEEN_SHAPES) < len(SEEN_SHAPES)
    for shape in SEEN_SHAPES:
        assert sum(is_held_out(colour, shape) for colour in COLOURS) == 2
    assert Scenes(task="caption").class_names == ()


@pytest.mark.parametrize("split", SPLITS)
def test_splits_show_what_they_say(split):
    source = Scenes(0, NUM, split=split, task="caption")
    special = {thing.name for thing in SPECIAL_NAMES[split]}
    never = {thing.name for things in SPECIAL_NAMES.values() for thing in things} - special
    for index in range(NUM):
        names = {thing.name for thing in source.scene(index).things}
        assert names.isdisjoint(never) and bool(names & special) == bool(special)
        record = source[index]
        text = " ".join([record["caption"], *(question["question"] for question in record["questions"])])
        assert not any(re.search(rf"\b{name}\b", text) for name in never)
        if split != "unseen_shapes":
            assert not any(re.search(rf"\b({shape}|{pluralise(shape)})\b", text) for shape in UNSEEN_SHAPES)


def test_pictures_vary():
    scenes = [Scenes(0, 300).scene(index) for index in range(120)]
    things = [thing for scene in scenes for thing in scene.things]
    for key, words in (("noun", SEEN_SHAPES), ("colour", COLOURS), ("size", SIZES), ("texture", TEXTURES)):
        assert {getattr(thing, key) for thing in things} == set(words)
    assert {scene.background for scene in scenes} == set(KINDS)
    counts = [len(scene.things) for scene in scenes]
    assert min(counts) == 1 and 8 <= max(counts) <= 12
    assert max(len(Scenes(0, 300, max_objects=2)[index]["boxes"]) for index in range(20)) == 2


@pytest.mark.parametrize("colour", COLOURS)
def test_colour_words_are_true_of_the_pixels(colour):
    rng = np.random.default_rng(0)
    for shape in SHAPES:
        cutout = draw_shape(rng, shape, colour, "plain", 48, light=1.0)
        found = 255 * np.median(cutout.rgb[:, cutout.alpha > 0.99], axis=1)
        nearest = min(PALETTE, key=lambda name: np.abs(found - PALETTE[name]).sum())
        assert nearest == colour, shape


def length(mask):
    """Longest extent over all directions: unlike the sides of a box, equal however the object is turned."""
    angles = np.arange(0, np.pi, np.pi / 60)
    along = np.argwhere(mask) @ np.stack([np.sin(angles), np.cos(angles)])
    return np.ptp(along, axis=0).max() + 1


@pytest.mark.parametrize("shape", SHAPES)
def test_size_words_are_true_of_the_pixels(shape):
    rng = np.random.default_rng(1)
    lengths = {}
    for size, diameters in Scenes.diameters.items():
        cutouts = [draw_shape(rng, shape, "red", texture, diameter, 0.0)
                   for texture in TEXTURES for diameter in diameters]
        lengths[size] = [length(cutout.alpha > 0.5) for cutout in cutouts]
        # Nothing of the shape is cut off by its window.
        assert all((c.alpha[[0, -1]] == 0).all() and (c.alpha[:, [0, -1]] == 0).all() for c in cutouts)
    assert max(lengths["small"]) < min(lengths["medium"])
    assert max(lengths["medium"]) < min(lengths["large"])


def test_canvas_keeps_objects_visible_and_inside():
    rng = np.random.default_rng(0)
    block = Cutout(*(np.full(shape, value, np.float32)
                     for shape, value in (((3, 20, 20), 1), ((20, 20), 1), ((20, 20), 0))))
    canvas = Canvas(np.zeros((3, 30, 30), np.float32))
    assert canvas.place(rng, block, 0.5)
    placed = sum(canvas.place(rng, block, 0.5) for _ in range(10))
    masks = canvas.masks()
    assert len(masks) == placed + 1 and masks.sum((1, 2)).min() >= 200
    before = canvas.pixels.copy()
    assert not Canvas(np.zeros((3, 19, 30), np.float32)).place(rng, block, 0.5)  # does not fit
    clear = Cutout(block.rgb, 0.4 * block.alpha, block.shadow)
    assert not canvas.place(rng, clear, 0.5) and np.array_equal(canvas.pixels, before)


@pytest.mark.parametrize("kind", KINDS)
def test_backgrounds_are_seamless_pictures(kind):
    shown = (render_background(np.random.default_rng(seed), (40, 600)) for seed in itertools.count())
    pixels = next(pixels for pixels, found in shown if found == kind)
    assert pixels.dtype == np.float32 and pixels.shape == (3, 40, 600) and np.isfinite(pixels).all()
    assert 0.1 < pixels.mean() < 1.0
    # The tile repeats inside this canvas; its joint is no sharper than what lies beside it.
    steps = np.abs(np.diff(pixels, axis=2)).mean((0, 1))
    assert steps.max() < 6 * np.quantile(steps, 0.95)


def test_relations_need_a_gap():
    box = np.array([10, 10, 20, 20])
    assert relations(box, box + [11, 0, 11, 0]) == ["left of"]
    assert relations(box, box + [10, 0, 10, 0]) == []  # they share a column
    assert relations(box + [0, 30, 0, 30], box) == ["below"]
    assert relations(np.stack([box, box + [30, 0, 30, 0]]), box + [15, 15, 15, 15]) == ["above"]


@pytest.mark.parametrize("noun, plural", [("circle", "circles"), ("cross", "crosses"), ("cherry", "cherries"),
                                          ("maple leaf", "maple leaves"), ("key", "keys"), ("fish", "fish")])
def test_plurals(noun, plural):
    assert pluralise(noun) == plural


@pytest.mark.parametrize("arguments, message", [
    ({"split": "val"}, "split 'val'"), ({"task": "vqa"}, "task 'vqa'"), ({"seed": -1}, "seed -1"),
    ({"num_examples": 0}, "num_examples 0"), ({"canvas": (32, 128)}, r"canvas \(32, 128\)"),
    ({"max_objects": 13}, "max_objects 13")])
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Scenes(**arguments)


@pytest.mark.parametrize("index", [-1, 5])
def test_reading_outside_raises(index):
    with pytest.raises(IndexError, match=f"index {index}, expected 0 to 4"):
        Scenes(0, 5)[index]
