import collections

import numpy as np
import pytest

from input_pipeline.canvases import Order, by_canvas
from input_pipeline.schema import NO_CLASS
from input_pipeline.sources import ClassTable, Mixture, mixture_weights, shuffled


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


def test_the_order_of_released_runs_stays():
    """A new order would break the resumption of every run that goes on."""
    mixture = Mixture([10, 3, 500], [1, 1, 6], seed=7)
    expected = [(2, 340), (2, 400), (2, 406), (2, 436), (0, 0), (2, 481), (2, 369)]
    assert [mixture[p] for p in (0, 1, 2, 3, 4, 5000, 1_000_000)] == expected
    sources = [Sized([(9, 9)] * n) for n in (10, 3, 500)]
    order = Order(sources, [1, 1, 6], 7, 4, [(9, 9)], 9, 9)
    assert [order.place(*divmod(p, 4)) for p in range(9000)] == [mixture[p] for p in range(9000)]


class Sized:
    """A source that knows the sizes of its images and nothing else."""
    def __init__(self, sizes, name="sized", class_names=("cat",)):
        self.sizes, self.name, self.class_names = sizes, name, class_names

    def __len__(self):
        return len(self.sizes)

    def image_size(self, index):
        return self.sizes[index]


WIDE, TALL, SQUARE = (50, 100), (100, 50), (60, 60)


def test_every_record_lies_on_one_canvas():
    source = Sized([(40, 80), (80, 40), (50, 55), (30, 90), (55, 50)])
    found = by_canvas(source, [WIDE, TALL, SQUARE], 50, 100)
    assert [chosen.tolist() for chosen in found] == [[0, 3], [1], [2, 4]]
    assert found[0].dtype == np.uint32
    without = type("Plain", (), {"__len__": lambda self: 3})()
    assert [list(chosen) for chosen in by_canvas(without, [WIDE, TALL, SQUARE], 50, 100)] == [[], [], [0, 1, 2]]
    # One tall record among many is not worth a canvas of its own; it goes where it stays largest.
    source = Sized([(40, 80)] * 50 + [(80, 40)] + [(50, 55)] * 5)
    assert [len(chosen) for chosen in by_canvas(source, [WIDE, TALL, SQUARE], 50, 100, least=2)] == [50, 0, 6]
    assert [len(chosen) for chosen in by_canvas(source, [WIDE, TALL, SQUARE], 50, 100, least=100)].count(0) == 2


def test_canvases_follow_the_proportions_of_the_data_and_epochs_stay_whole():
    wide, mixed = Sized([(40, 80)] * 30, "wide"), Sized([(40, 80)] * 10 + [(80, 40)] * 20 + [(50, 50)] * 10, "mixed", ())
    sources, canvases = [wide, mixed], [WIDE, TALL, SQUARE]
    order = Order(sources, [1, 1], 3, 4, canvases, 50, 100)
    assert order.canvases == canvases
    np.testing.assert_allclose(order.shares, [0.625, 0.25, 0.125])     # half wide; of the other half 1/4, 1/2, 1/4
    steps = 4096
    chosen = [order.canvas(step) for step in range(steps)]
    assert [chosen.count(canvas) for canvas in canvases] == [2560, 1024, 512]
    places = [[order.place(step, row) for row in range(4)] for step in range(steps)]
    for canvas, step in zip(chosen, places):
        for place in step:
            size = sources[place.source].image_size(place.record)
            assert canvas == {(40, 80): WIDE, (80, 40): TALL, (50, 50): SQUARE}[size]
    counts = collections.Counter(place for step in places for place in step)
    assert abs(sum(n for place, n in counts.items() if place.source == 0) - 8192) < 20
    for source in range(2):
        found = [counts[source, record] for record in range(len(sources[source]))]
        assert max(found) - min(found) <= 4                            # of about 273 and 205
    tall = [place.record for canvas, step in zip(chosen, places) if canvas == TALL for place in step]
    assert all(sorted(tall[k:k + 20]) == list(range(10, 30)) for k in range(0, 4000, 20))
    again = Order(sources, [1, 1], 3, 4, canvases, 50, 100)
    assert [again.place(step, 2) for step in range(4000, 4010)] == [step[2] for step in places[4000:4010]]
    found = order.padding(sources, (50,), 100)
    # Shown 50×100 on 50×100, its mirror image, and 50×50 on 60×60.
    area = 0.875 * 5000 + 0.125 * 3600
    assert found["canvases"] == pytest.approx(1 - (0.875 * 5000 + 0.125 * 2500) / area)
    assert found["square"] == pytest.approx(1 - (0.875 * 5000 + 0.125 * 2500) / 10000)


def test_a_rare_shape_among_many_sources():
    """A share too small for the turns of a canvas is not an error: one tall image in 20 000."""
    sources = [Sized([(40, 80)] * 20_000 + [(80, 40)], "many"), Sized([(80, 40)] * 30, "tall")]
    order = Order(sources, [0.9, 0.1], 0, 2, [WIDE, TALL], 50, 100)
    records = {order.place(step, 0) for step in range(2000) if order.canvas(step) == TALL}
    assert {place.source for place in records} == {1}
    with pytest.raises(ValueError, match=r"found no record in \['none'\]"):
        Order([Sized([], "none")], [1], 0, 2, [WIDE], 50, 100)


def test_weights_or_copies():
    detection, small, captions = Sized([WIDE] * 100), Sized([WIDE] * 50), Sized([WIDE] * 1000, class_names=())
    both = [detection, captions]
    assert mixture_weights([{"weight": 3}, {"weight": 1}], both) == [3, 1]
    assert mixture_weights([{}, {}], both) == [1000, 1000]              # detection raised to a half
    assert mixture_weights([{"copies": 2}, {"copies": 8}, {}], [detection, small, captions]) == [
        pytest.approx(1000 / 3), pytest.approx(2000 / 3), 1000]
    assert mixture_weights([{"copies": 20}, {}], both) == [2000, 1000]  # as it is: more than half
    assert mixture_weights([{}], [captions]) == [1000]
    with pytest.raises(ValueError, match=r"train\[1\]: found no 'weight', expected one for every source or for none"):
        mixture_weights([{"weight": 1}, {"copies": 2}], both)
    with pytest.raises(ValueError, match="found copies 0"):
        mixture_weights([{"copies": 0}, {}], both)


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
