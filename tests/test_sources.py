import collections

import numpy as np
import pytest

from input_pipeline.schema import NO_CLASS
from input_pipeline.sources import ClassTable, Mixture, shuffled


@pytest.mark.parametrize("length", [1, 2, 3, 5, 16, 17, 100, 1000])
def test_shuffled_is_a_permutation(length):
    for key in ((0,), (5, 2, 3)):
        assert sorted(shuffled(i, length, key) for i in range(length)) == list(range(length))


def test_shuffled_reaches_every_order_evenly():
    seen = collections.Counter(tuple(shuffled(i, 4, (key,)) for i in range(4)) for key in range(2400))
    assert len(seen) == 24
    assert min(seen.values()) > 60 and max(seen.values()) < 140        # 100 expected


def test_one_source_is_read_epoch_by_epoch():
    mixture = Mixture([130], [1], seed=3)
    epochs = np.array([mixture[p].record for p in range(1300 * 4)]).reshape(-1, 130)
    assert (np.sort(epochs) == np.arange(130)).all()
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)


def test_weights_are_exact_over_a_block_and_epochs_whole_within_each_source():
    mixture = Mixture([10, 3, 500], [1, 1, 6], seed=7)
    places = [mixture[p] for p in range(8192)]
    counts = collections.Counter(place.source for place in places)
    assert counts == {0: 1024, 1: 1024, 2: 6144}
    records = [place.record for place in places if place.source == 0]
    assert all(sorted(records[k:k + 10]) == list(range(10)) for k in range(0, 1020, 10))
    batches = np.array([place.source for place in places]).reshape(-1, 16)
    assert np.mean((batches == 2).all(axis=1)) < 0.05                  # 1 % by chance: batches are mixed


def test_order_depends_on_the_seed_alone():
    order = [Mixture([50, 20], [1, 2], seed=1)[p] for p in range(100)]
    again = Mixture([50, 20], [1, 2], seed=1)
    assert order == [again[p] for p in reversed(range(100))][::-1]
    assert order != [Mixture([50, 20], [1, 2], seed=2)[p] for p in range(100)]


@pytest.mark.parametrize("lengths, weights, message", [
    ([], [], "found 0 for 0 sources"),
    ([5], [1, 2], "found 2 for 1 sources"),
    ([5, 0], [1, 1], "at least one record"),
    ([5, 5], [1, 0], "above 0"),
    ([5, 5], [1, float("nan")], "above 0"),
    ([5, 5], [1, 1e6], "at least 1/4096"),
])
def test_refuses_impossible_mixtures(lengths, weights, message):
    with pytest.raises(ValueError, match=message):
        Mixture(lengths, weights, seed=0)


def test_class_ids_are_shared_over_spellings():
    table = ClassTable(["Dog", "traffic_light", "cat", "dog ", "  "])
    assert table.names == ("cat", "dog", "traffic light")
    assert table.ids(["dog", "Traffic Light", " ", "CAT"]).tolist() == [1, 2, NO_CLASS, 0]
    assert table.ids([]).dtype == np.int32
    with pytest.raises(ValueError, match=r"unknown names \['cow'\]"):
        table.ids(["cow"])
