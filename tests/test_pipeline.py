"""Batches from small sources in memory."""
import itertools
import logging
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from input_pipeline import BadRecords, eval_batches, prompts, train_batches
from input_pipeline.answers import AnswerList
from input_pipeline.captions import without_boxes
from input_pipeline.pipeline import train_reader
from input_pipeline.registry import make_source
from input_pipeline.schema import MLM_NEVER, MLM_SCORED, NO_CLASS, batch_spec
from input_pipeline.sources import ClassTable, mixture_weights
from input_pipeline.tokenizer import Tokenizer

CANVAS, TOKENS, BOXES = (64, 96), 32, 3
NAMES = ("zebra", "hot_dog", "cat", "cow")


class Detection:
    """Records whose every box is filled with a grey that tells its class; odd records are portraits."""
    name, class_names, category_ids = "toy", NAMES, (4, 5, 6, 7)

    def __init__(self, length=10):
        self._length = length

    def __len__(self):
        return self._length

    def image_size(self, index):
        return (60, 40) if index % 2 else (40, 60)

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        height, width = self.image_size(index)
        corner = rng.integers(0, 20, (2, 2))
        boxes = np.concatenate([corner, corner + rng.integers(4, 12, (2, 2))], axis=1).astype(np.float32)
        classes = rng.integers(0, 4, 2).astype(np.int32)
        masks = np.zeros((2, height, width), np.bool_)
        image = np.zeros((height, width, 3), np.uint8)
        for (x1, y1, x2, y2), mask, class_id in zip(boxes.astype(int), masks, classes):
            image[y1:y2 + 1, x1:x2 + 1] = 60 * (class_id + 1)
            mask[y1:y2 + 1, x1:(x1 + x2) // 2] = True
        return {"image": lambda: image, "image_id": 100 + index, "boxes": boxes, "classes": classes,
                "masks": masks}


class Captions:
    name, class_names, category_ids = "captions", (), ()

    def __len__(self):
        return 5

    def __getitem__(self, index):
        return {"image": np.full((40, 60, 3), index, np.uint8), "image_id": index,
                "boxes": np.array([[1, 2, 20, 25], [30, 3, 30, 9], [30, 5, 50, 22]], np.float32),
                "classes": np.full(3, -1, np.int32), "caption": "a red cat, nothing, and a dog",
                "spans": [[(0, 9)], [(11, 18)], [(24, 29)]]}


class One(Detection):
    """One record, given."""
    def __init__(self, **record):
        super().__init__(1)
        self._record = {"image": np.zeros((40, 60, 3), np.uint8), "image_id": 1} | record

    def __getitem__(self, index):
        return self._record


BOTH = (Detection(), Captions())


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer()


@pytest.fixture(scope="module")
def train(tokenizer):
    def batches(sources=BOTH, weights=None, start_step=0, **changes):
        options = {"seed": 3, "batch_size": 4, "canvases": [CANVAS], "augment": "resize((32, 48, 64), 96)|flip(0.5)",
                   "max_tokens": TOKENS, "max_boxes": BOXES, "num_negatives": 5,
                   "class_table": ClassTable.from_sources(sources), "tokenizer": tokenizer} | changes
        return train_batches(sources, weights or [1] * len(sources), start_step=start_step, **options)
    return batches


@pytest.fixture(scope="module")
def evaluate(tokenizer):
    def batches(source, **changes):
        options = {"batch_size": 4, "canvases": [CANVAS], "short_side": 64, "max_size": 96,
                   "max_tokens": TOKENS, "max_boxes": BOXES, "tokenizer": tokenizer} | changes
        return eval_batches(source, **options)
    return batches


def take(batches, count):
    return list(itertools.islice(batches, count))


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for key in one:
        np.testing.assert_array_equal(one[key], other[key], err_msg=key)


def check_batch(batch, canvas, max_tokens, max_boxes):
    """The contract of `schema.py`."""
    if "image" not in batch:
        raise ValueError("batch: key 'image' is missing")
    spec = batch_spec(len(batch["image"]), canvas, max_tokens, max_boxes)
    missing, extra = sorted(set(spec) - set(batch)), sorted(set(batch) - set(spec) - {"masks", "record", "phrase_tokens"})
    if missing or extra:
        raise ValueError(f"batch: missing keys {missing}, unknown keys {extra}")
    for key, (shape, dtype) in spec.items():
        found = (tuple(batch[key].shape), np.dtype(batch[key].dtype))
        if found != (shape, np.dtype(dtype)):
            raise ValueError(f"batch[{key!r}]: found shape {found[0]} {found[1]}, expected {shape} {np.dtype(dtype)}")


def test_batches_keep_the_contract(train, evaluate):
    for batch in take(train(), 3) + list(evaluate(Detection())) + list(evaluate(Captions())):
        check_batch(batch, CANVAS, TOKENS, BOXES)


ROUGH = "crop(0.5)|resize((32, 48, 64), 96)|flip(0.5, swap_words=True)|color(0.3)"
THREE = ((64, 96), (96, 64), (64, 64))


class Holes(Detection):
    """Two of its records are never readable."""
    def __getitem__(self, index):
        if index in (2, 5):
            raise ValueError(f"photo{index}.jpg: truncated")
        return super().__getitem__(index)


STREAMS = {
    "plain": {},
    "several canvases, rough augmentation": {"canvases": THREE, "augment": ROUGH, "mask_size": 4},
    "several canvases, bad records": {"canvases": THREE, "sources": (Holes(), Captions()), "max_bad_records": 2},
}


@pytest.fixture(params=STREAMS.values(), ids=STREAMS)
def stream(train, request):
    """A function that opens the same stream anew."""
    def open_stream(**changes):
        options = {"batch_size": 8, **request.param, **changes}
        limit = options.pop("max_bad_records", 0)
        return train(bad_records=BadRecords(limit), **options)
    return open_stream


def test_a_resumed_stream_equals_the_unbroken_one(stream):
    unbroken = take(stream(), 9)
    for start in (1, 7):                                               # stopped after step 7, goes on with step 8
        for batch, expected in zip(take(stream(start_step=start), 2), unbroken[start:]):
            assert_equal(batch, expected)
    assert not np.array_equal(unbroken[0]["example_id"], unbroken[1]["example_id"])
    other = take(stream(seed=4), 9)
    assert not all(np.array_equal(a["example_id"], b["example_id"]) for a, b in zip(unbroken, other))


def test_the_number_of_hosts_and_readers_changes_nothing(stream):
    whole = take(stream(parallel_reads=1), 4)
    for count in (2, 4):
        hosts = [take(stream(process_index=host, process_count=count), 4) for host in range(count)]
        for batch, *shares in zip(whole, *hosts):
            assert len({share["image"].shape for share in shares}) == 1
            assert_equal(batch, {key: np.concatenate([share[key] for share in shares]) for key in batch})


def test_batches_read_ahead_are_those_read_one_by_one(train, tokenizer):
    """Neither threads nor prefetching have a say in what is in a batch."""
    sources, count = (Holes(), Captions()), 8
    options = {"seed": 3, "batch_size": count, "canvases": THREE, "augment": ROUGH, "max_tokens": TOKENS, "max_boxes": BOXES,
               "num_negatives": 5, "class_table": ClassTable.from_sources(sources), "tokenizer": tokenizer}
    read = train_reader(sources, [1, 1], bad_records=BadRecords(2), **options)
    for step, batch in enumerate(take(train(sources, bad_records=BadRecords(2), **options), 4)):
        rows = [read(step, row) for row in reversed(range(count))][::-1]
        assert_equal(batch, {key: np.stack([row[key] for row in rows]) for key in batch})


def test_all_images_of_a_step_lie_on_the_same_canvas_which_fits_them(train):
    seen = set()
    for batch in take(train([Detection()], canvases=THREE, augment="resize(64, 96)", batch_size=2), 12):
        canvas = batch["image"].shape[1:3]
        seen.add(canvas)
        check_batch(batch, canvas, TOKENS, BOXES)
        portrait = batch["original_size"][:, 0] > batch["original_size"][:, 1]
        assert (portrait == (canvas == (96, 64))).all()
        np.testing.assert_array_equal(batch["image_size"], [canvas] * 2)       # 40×60 at 64: nothing is padded
    assert seen == {(64, 96), (96, 64)}
    for batch in take(train([Captions()], canvases=THREE), 3):         # does not say how large its images are
        assert batch["image"].shape[1:3] == (64, 64)


def test_fewer_records_than_hosts(train, evaluate):
    few = Detection(2)
    hosts = [take(train([few], batch_size=4, process_index=host, process_count=4), 2) for host in range(4)]
    for step in range(2):
        ids = np.concatenate([batches[step]["example_id"] for batches in hosts])
        assert sorted(ids.tolist()) == [100, 100, 101, 101]
    hosts = [list(evaluate(few, process_index=host, process_count=4)) for host in range(4)]
    assert [batches[0]["example_id"].tolist() for batches in hosts] == [[100], [101], [-1], [-1]]


def test_a_source_without_records(train, evaluate):
    with pytest.raises(ValueError, match=r"found no record in \['toy'\], expected at least one"):
        train([Captions(), Detection(0)])
    for canvases in ([CANVAS], THREE):
        assert not list(evaluate(Detection(0), canvases=canvases))


def test_bad_records_are_replaced_up_to_a_limit(train, caplog):
    bad = BadRecords(2)
    with caplog.at_level(logging.WARNING, "input_pipeline"):
        batches = take(train([Holes()], batch_size=10, bad_records=bad), 4)
    assert len(bad) == 2
    assert sorted(record.args[-1].args[0] for record in caplog.records) == [          # each once, though met four times
        f"source 'toy', record {n}: photo{n}.jpg: truncated" for n in (2, 5)]
    good = set(range(100, 110)) - {102, 105}
    for batch in batches:                                              # an epoch each
        assert good <= set(batch["example_id"].tolist()) <= good
    stream = train([Holes()], batch_size=10, bad_records=BadRecords(1))
    with pytest.raises(ValueError, match="source 'toy', record [25]: photo[25].jpg: truncated") as found:
        take(stream, 2)
    assert found.value.__notes__ == ["That is one more than the 1 of data.max_bad_records."]
    with pytest.raises(ValueError, match="max_bad_records: found -1"):
        BadRecords(-1)


def test_a_source_without_a_single_good_record_ends(train):
    with pytest.raises(ValueError, match="source 'toy', record 0: .*bbox"):
        take(train([Always()], bad_records=BadRecords(5)), 1)


class Always(Detection):
    def __init__(self):
        super().__init__(1)

    def __getitem__(self, index):
        raise KeyError("bbox")


def test_half_detection_gives_every_batch_prompts_of_several_images(train):
    """The inter-image loss compares regions with the class names of other images."""
    sources = (Detection(), Captions())
    weights = mixture_weights([{}, {}], sources)
    for batch in take(train(sources, weights, batch_size=16, num_negatives=1), 30):
        prompts_of = {tuple(row.tolist()) for row in batch["token_class"] if (row != NO_CLASS).any()}
        assert len(prompts_of) >= 3
        assert (batch["token_class"] == NO_CLASS).all(axis=1).any()    # and captions


def test_left_and_right_follow_a_mirrored_image(train, tokenizer):
    class Sides(Captions):
        def __getitem__(self, index):
            return super().__getitem__(index) | {"caption": "the left cat", "spans": [[(4, 12)]] * 3}
    texts = {}
    for batch in take(train([Sides()], augment="flip(0.5, swap_words=True)"), 4):
        for row in range(4):
            mirrored = batch["boxes"][row, 0, 0] > 30                  # the first box is at the left
            words = batch["token_ids"][row][batch["positive_map"][row, 0]]
            texts.setdefault(bool(mirrored), set()).add(tuple(words.tolist()))
    left, right = (tuple(tokenizer.encode(text, 8).ids[1:3].tolist()) for text in ("left cat", "right cat"))
    assert texts == {False: {left}, True: {right}}


def test_answers_follow_a_mirrored_image(train):
    class Asked(Captions):
        asks = True

        def __getitem__(self, index):
            question = {"question": "which cat is it, left or right?", "answer": "left", "answers": ["left"] * 10}
            return super().__getitem__(index) | {"caption": question["question"], "spans": [[(6, 9)]] * 3, "questions": [question]}
    found = {}
    for batch in take(train([Asked()], augment="flip(0.5, swap_words=True)", answers=AnswerList(("left", "right"))), 4):
        for row in range(4):
            found.setdefault(bool(batch["boxes"][row, 0, 0] > 30), set()).add(tuple(batch["answer_scores"][row].tolist()))
    assert found == {False: {(1.0, 0.0)}, True: {(0.0, 1.0)}}


def test_a_question_about_an_image_without_boxes_is_an_example_beside_masks(train):
    class Asked(Captions):
        asks, names_boxes = True, False

        def __getitem__(self, index):
            asked = {"question": "is it?", "answer": "yes", "answers": ["yes"]}
            return super().__getitem__(index) | without_boxes("is it?") | {"questions": [asked], "masks": np.zeros((0, 40, 60), bool)}
    batch = take(train([Asked(), Detection()], mask_size=4, answers=AnswerList(("yes", "no")), batch_size=16), 1)[0]
    asked = batch["source"] == 0
    assert asked.any() and not asked.all() and (batch["is_question"] == asked).all() and (batch["is_grounded"] == ~asked).all()
    assert not batch["box_mask"][asked].any() and not batch["masks"][asked].any() and batch["token_mask"][asked].any(axis=1).all()
    assert batch["masks"][~asked].any() and (batch["answer_scores"][asked, 0] > 0).all() and not batch["answer_scores"][~asked].any()


def test_words_that_the_vocabulary_does_not_have_are_words(train, tokenizer):
    class Runes(Captions):
        writes = True

        def __getitem__(self, index):
            return super().__getitem__(index) | {"caption": "\u16a0\u16a2\u16a6 \u16a8\u16b1", "spans": [[(0, 3)], [(4, 6)], [(4, 6)]]}
    for writes in (False, True):
        batch = take(train([Runes()], augment="resize(48, 96)", writes=writes), 1)[0]
        assert (batch["token_ids"][:, :4] == [tokenizer.cls_id, tokenizer.unk_id, tokenizer.unk_id, tokenizer.sep_id]).all()
        assert [np.flatnonzero(row).tolist() for row in batch["positive_map"][0]] == [[1], [2], []]     # the second box has one pixel
        assert (batch["mlm_eligible"] == MLM_SCORED).sum(axis=1).tolist() == [0 if writes else 2] * 4


def test_cut_boxes_masks_and_words_agree(train):
    """What is left of a cut object fills what is left of its box; one that is gone is neither box nor wanted word."""
    boxes = np.array([[2, 2, 11, 11], [50, 28, 57, 37]], np.float32)
    masks = np.zeros((2, 40, 60), np.bool_)
    masks[0, 2:12, 2:12] = masks[1, 28:38, 50:58] = True
    image = np.repeat((100 * masks[0] + 200 * masks[1]).astype(np.uint8)[..., None], 3, axis=2)
    source = One(image=image, boxes=boxes, masks=masks, classes=np.array([0, 1]))
    counts = []
    augment = "crop(1)|resize(60, 90)|flip(0.5)"
    for batch in take(train([source], augment=augment, mask_size=4, num_negatives=0, batch_size=8), 4):
        for row in range(8):
            count = int(batch["box_mask"][row].sum())
            counts.append(count)
            assert batch["masks"][row, :count].all() and not batch["masks"][row, count:].any()
            assert batch["positive_map"][row, :count].any(axis=1).all()
            for (x1, y1, x2, y2), class_id in zip(batch["boxes"][row, :count], batch["box_class"][row]):
                grey = batch["image"][row, int((y1 + y2) / 2) + 1, int((x1 + x2) / 2) + 1, 0]
                assert abs(int(grey) - {3: 100, 2: 200}[class_id]) < 40        # "hot dog" is 2, "zebra" 3
            assert len(set(batch["token_class"][row].tolist()) - {NO_CLASS}) == count
    assert set(counts) == {1, 2}


def test_batches_mix_sources_by_weight(train):
    batches = take(train(weights=[3, 1], batch_size=16), 8)
    counts = np.bincount(np.concatenate([batch["source"] for batch in batches]), minlength=2)
    assert 80 <= counts[0] <= 112                                      # 96 of 128 expected
    assert sum(len(set(batch["source"].tolist())) == 2 for batch in batches) >= 7


def test_pixels_boxes_and_words_agree(train, tokenizer):
    table = ClassTable(NAMES)
    flips = set()
    for batch in take(train([Detection()], batch_size=8), 3):
        assert batch["box_mask"].sum() == 16
        for row in range(8):
            height, width = batch["image_size"][row]
            assert not batch["image"][row, height:].any() and not batch["image"][row, :, width:].any()
            record = Detection()[int(batch["example_id"][row]) - 100]
            scale = batch["scale"][row, ::-1]
            expected = record["boxes"] * np.tile(scale, 2)
            flipped = not np.allclose(batch["boxes"][row, :2], expected, atol=1e-3)
            flips.add(flipped)
            if flipped:
                expected[:, [0, 2]] = width - 1 - expected[:, [2, 0]]
            np.testing.assert_allclose(batch["boxes"][row, :2], expected, atol=1e-3)
            for box in range(2):
                word = table.names[batch["box_class"][row, box]]
                assert word == NAMES[record["classes"][box]].replace("_", " ")
                tokens = batch["positive_map"][row, box]
                ids = tokenizer.encode(word, 8)
                assert batch["token_ids"][row, tokens].tolist() == ids.ids[ids.mask][1:-1].tolist()
                assert (batch["token_class"][row, tokens] == batch["box_class"][row, box]).all()
                if box == 1:                                           # drawn last, so not covered
                    x, y = batch["boxes"][row, box].reshape(2, 2).mean(axis=0).round().astype(int)
                    assert batch["image"][row, y, x, 0] == 60 * (record["classes"][box] + 1)
        assert (batch["mlm_eligible"] == MLM_NEVER).all()
        assert (batch["box_class"][~batch["box_mask"]] == NO_CLASS).all()
    assert flips == {True, False}


def test_captions(train):
    batch = take(train([Captions()], augment="resize((32, 48, 64), 96)"), 1)[0]
    assert batch["box_mask"].sum(axis=1).tolist() == [2] * 4         # the box of one pixel is gone
    assert [np.flatnonzero(row).tolist() for row in batch["positive_map"][0]] == [[1, 2, 3], [8, 9], []]
    assert (batch["box_class"] == NO_CLASS).all() and (batch["token_class"] == NO_CLASS).all()
    assert np.flatnonzero(batch["mlm_eligible"][0] == MLM_SCORED).tolist() == list(range(1, 10))


def test_class_lists_can_be_scored(train):
    batch = take(train([Detection()], mlm_on_detection=True), 1)[0]
    np.testing.assert_array_equal(batch["mlm_eligible"] == MLM_SCORED, batch["positive_map"].any(axis=1))


def test_all_classes_in_order(train, tokenizer):
    expected = tokenizer.encode("zebra. hot dog. cat. cow", TOKENS).ids
    batch = take(train([Detection()], num_negatives=None), 1)[0]
    assert (batch["token_ids"] == expected).all()
    with pytest.raises(ValueError, match="source 'toy': prompt of classes 0 to 3 .*expected at most 8"):
        train([Detection()], num_negatives=None, max_tokens=8)


def test_negatives_are_drawn_as_each_source_says(train, tokenizer):
    """One source writes all classes in order, the other its present ones alone."""
    expected = tokenizer.encode("zebra. hot dog. cat. cow", TOKENS)
    batches = take(train([Detection(), Detection()], num_negatives=[None, 0]), 8)
    for source, ids, mask in ((s, i, m) for b in batches for s, i, m in zip(b["source"], b["token_ids"], b["token_mask"])):
        if source == 0:
            np.testing.assert_array_equal(ids, expected.ids)
        else:
            assert mask.sum() < expected.num_tokens
    with pytest.raises(ValueError):
        train([Detection()], num_negatives=[None, 0])


def test_images_without_usable_boxes_stay(train):
    boxes = np.array([[1, 1, 20, 20], [5, 5, 5, 9], [70, 5, 90, 20]], np.float32)
    source = One(boxes=boxes, classes=np.zeros(3, np.int32), is_crowd=np.array([True, False, False]))
    batch = take(train([source]), 1)[0]
    assert not batch["box_mask"].any() and not batch["positive_map"].any()
    assert batch["token_mask"].any()


def test_boxes_of_classes_that_do_not_fit_are_dropped(train):
    boxes = np.tile(np.array([[1, 1, 20, 20]], np.float32), (3, 1))
    source = One(boxes=boxes, classes=np.array([0, 1, 2], np.int32))
    batch = take(train([source], max_tokens=7, batch_size=16), 1)[0]     # room for five tokens
    for row in range(16):
        kept = batch["box_mask"][row]
        assert 1 <= kept.sum() <= 2
        assert batch["positive_map"][row, kept].any(axis=1).all()


def test_more_boxes_than_room(train, evaluate):
    boxes = np.array([[n, n, n + 9, n + 9] for n in range(8)], np.float32)
    source = One(boxes=boxes, classes=np.zeros(8, np.int32))
    batch = take(train([source], batch_size=16), 1)[0]
    assert batch["box_mask"].all()
    tops = (batch["boxes"][:, :, 1] / batch["scale"][:, :1]).round().astype(int)
    chosen = {tuple(row) for row in tops.tolist()}
    assert len(chosen) > 4 and all(len(set(choice)) == BOXES for choice in chosen)
    batch = next(evaluate(source, batch_size=1))
    assert (batch["boxes"][0, :, 1] / batch["scale"][0, 0]).round().tolist() == [0, 1, 2]


def test_masks_follow_their_boxes(train):
    batches = take(train([Detection()], mask_size=8, batch_size=8), 2)
    for batch in batches:
        assert batch["masks"].shape == (8, BOXES, 8, 8)
        left, right = (batch["masks"][:, :2, :, side].any(axis=(2, 3)) for side in (slice(0, 3), slice(5, 8)))
        assert not (left & right).any()                                # half of the box, on one side
        assert not batch["masks"][:, 2].any()
        check_batch(batch, CANVAS, TOKENS, BOXES)
    lefts = np.concatenate([batch["masks"][:, :2, :, 0].any(axis=(1, 2)) for batch in batches])
    assert lefts.any() and not lefts.all()                             # some are mirrored


def test_evaluation_reads_every_record_once_in_order(evaluate):
    batches = list(evaluate(Detection()))
    assert [batch["example_id"].tolist() for batch in batches] == [
        [100, 101, 102, 103], [104, 105, 106, 107], [108, 109, -1, -1]]
    last = batches[-1]
    for key in ("token_mask", "box_mask", "positive_map", "image"):
        assert not last[key][2:].any()
    for key in ("image_size", "original_size", "scale"):
        assert (last[key][2:] == 1).all()
    assert last["original_size"][:2].tolist() == [[40, 60], [60, 40]]
    np.testing.assert_allclose((last["scale"] * last["original_size"])[:2], last["image_size"][:2], rtol=1e-6)
    np.testing.assert_allclose(last["boxes"][0, :2], Detection()[8]["boxes"] * 1.6, rtol=1e-5)
    for batch, again in zip(batches, evaluate(Detection(), parallel_reads=1)):
        assert_equal(batch, again)


def test_evaluation_leaves_out_what_cannot_be_read_where_that_is_allowed(evaluate):
    bad = {}
    batches = list(evaluate(Holes(), on_bad=bad.__setitem__))
    assert sorted(bad) == [2, 5] and "photo2.jpg: truncated" in str(bad[2])
    assert [batch["record"].tolist() for batch in batches] == [[0, 1, -1, 3], [4, -1, 6, 7], [8, 9, -1, -1]]
    with pytest.raises(ValueError, match="record 2: photo2.jpg: truncated"):
        list(evaluate(Holes()))


def test_a_record_may_ask_for_other_phrases_than_those_of_its_boxes(evaluate):
    class Asked(Captions):
        def __getitem__(self, index):
            return super().__getitem__(index) | {"asked": [[(2, 5)], [(6, 9), (26, 29)]]}

    own, asked = (next(iter(evaluate(source)))["phrase_tokens"] for source in (Captions(), Asked()))
    assert own[0].any(axis=1).sum() == 3 and own[0, 0].sum() == 3
    assert asked[0].any(axis=1).sum() == 2 and asked[0].sum(axis=1)[:2].tolist() == [1, 2]


def test_evaluation_hosts_take_turns_and_yield_alike(evaluate):
    whole = list(evaluate(Detection(9)))
    hosts = [list(evaluate(Detection(9), process_index=host, process_count=4)) for host in range(4)]
    assert [len(batches) for batches in hosts] == [3] * 4
    for step, batch in enumerate(whole):
        assert_equal(batch, {key: np.concatenate([host[step][key] for host in hosts]) for key in batch})


def test_evaluation_on_several_canvases(evaluate):
    canvases = [(96, 96), (96, 64), (64, 96)]
    batches = list(evaluate(Detection(), canvases=canvases))
    assert [batch["image"].shape[1:3] for batch in batches] == [(96, 64)] * 2 + [(64, 96)] * 2
    assert [batch["example_id"].tolist() for batch in batches] == [
        [101, 103, 105, 107], [109, -1, -1, -1], [100, 102, 104, 106], [108, -1, -1, -1]]
    with pytest.raises(ValueError, match="source 'captions': found 3 canvases and no method image_size"):
        evaluate(Captions(), canvases=canvases)


def test_evaluation_prompts(evaluate, tokenizer):
    table = ClassTable(NAMES)
    chunks = prompts.evaluation_prompts(NAMES, tokenizer, TOKENS, classes_per_prompt=2)
    whole, = prompts.evaluation_prompts(NAMES, tokenizer, TOKENS)
    batch = next(evaluate(Detection(), class_table=table))
    assert (batch["token_ids"] == whole.encoding.ids).all()
    assert (batch["positive_map"].any(axis=2) == batch["box_mask"]).all()
    assert (batch["mlm_eligible"] == MLM_NEVER).all()
    first = next(evaluate(Detection(), prompt=chunks[1]))
    assert (first["token_ids"] == chunks[1].encoding.ids).all()
    np.testing.assert_array_equal(first["boxes"], batch["boxes"])
    named = first["positive_map"].any(axis=2)
    in_chunk = np.isin(batch["box_class"], table.ids(NAMES[2:]))
    np.testing.assert_array_equal(named, in_chunk & batch["box_mask"])
    assert (first["box_class"] == NO_CLASS).all()


class Broken(Detection):
    def __init__(self, error):
        super().__init__()
        self._error = error

    def __getitem__(self, index):
        if index == 6:
            raise self._error
        return super().__getitem__(index)


@pytest.mark.parametrize("error, message", [
    (ValueError("photo.jpg: cannot read"), "source 'toy', record 6: photo.jpg: cannot read"),
    (KeyError("bbox"), "source 'toy', record 6: KeyError: 'bbox'"),
])
def test_a_failing_record_is_named_when_its_batch_is_due(train, evaluate, error, message):
    batches = evaluate(Broken(error), batch_size=2)
    assert len(take(batches, 3)) == 3
    with pytest.raises(ValueError) as found:
        next(batches)
    assert str(found.value) == message
    with pytest.raises(ValueError, match="record 6"):
        take(train([Broken(error)]), 5)


BOX = np.array([[1, 1, 9, 9]], np.float32)


@pytest.mark.parametrize("record, message", [
    ({"boxes": BOX, "classes": [4]}, "classes: found 4 to 4, expected 0 to 3"),
    ({"boxes": BOX, "classes": []}, "classes: found 0 for 1 boxes"),
    ({"boxes": BOX, "classes": [0], "image": np.zeros((4, 4), np.uint8)}, r"image: found uint8 \[4, 4\]"),
    ({"boxes": BOX, "classes": [-1], "caption": "a cat", "spans": []}, "spans: found 0 for 1 boxes"),
    ({"boxes": BOX, "classes": [0], "caption": "a cat", "spans": [[]]}, "classes: found 0 to 0, expected -1"),
])
def test_records_against_the_contract_are_refused(evaluate, record, message):
    with pytest.raises(ValueError, match="source 'toy', record 0: " + message):
        next(evaluate(One(**record)))


@pytest.mark.parametrize("changes, message", [
    ({"batch_size": 5, "process_count": 2}, "batch_size: found 5, expected a positive multiple of the 2"),
    ({"process_index": 1}, "process_index: found 1, expected 0 to 0"),
    ({"max_boxes": 0}, "max_boxes: found 0, expected at least 1"),
    ({"augment": "resize((0, 48), 96)"}, "expected whole numbers above 0"),
    ({"weights": [1, -1]}, "weights: found"),
])
def test_impossible_settings_are_refused_at_once(train, changes, message):
    with pytest.raises(ValueError, match=message):
        train(**changes)


UNFINISHED = """
import time
import numpy as np
from input_pipeline import train_batches
from input_pipeline.sources import ClassTable, mixture_weights
from input_pipeline.tokenizer import Tokenizer

class Slow:
    name, class_names, category_ids = "slow", ("cat",), (1,)
    def __len__(self):
        return 4
    def __getitem__(self, index):
        time.sleep(0.01)
        return {"image": np.zeros((8, 8, 3), np.uint8), "image_id": index,
                "boxes": np.zeros((0, 4)), "classes": []}

stream = train_batches([Slow()], [1], seed=0, start_step=0, batch_size=2, canvases=[(32, 32)],
                       augment="resize(8, 32)", max_tokens=8, max_boxes=2, num_negatives=1,
                       class_table=ClassTable(["cat"]), tokenizer=Tokenizer())
next(stream)
"""


def test_a_program_ends_while_its_stream_is_open():
    done = subprocess.run([sys.executable, "-c", UNFINISHED], cwd=pathlib.Path(__file__).parent.parent,
                          capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


def test_texts_to_write_and_questions_stand_beside_class_lists():
    scenes = {"kind": "scenes", "canvas": (64, 64), "num_examples": 8}
    sources = [make_source({**scenes, "task": task}) for task in ("detection", "question", "description", "caption")]
    answers = AnswerList.most_frequent(sources, 25)
    options = {"seed": 0, "batch_size": 12, "canvases": [(64, 64)], "augment": "", "max_tokens": 48, "max_boxes": 8,
               "num_negatives": 3, "class_table": ClassTable.from_sources(sources), "tokenizer": Tokenizer()}
    batch = next(train_batches(sources, [1] * 4, start_step=0, writes=True, answers=answers, **options))
    spec = batch_spec(12, (64, 64), 48, 8, writes=True, num_answers=25)
    assert {key: (value.shape, value.dtype) for key, value in batch.items()} == {key: (s, np.dtype(d)) for key, (s, d) in spec.items()}
    kind = batch["source"]
    assert set(kind.tolist()) == {0, 1, 2, 3}
    np.testing.assert_array_equal(batch["causal"], kind == 2)
    np.testing.assert_array_equal(batch["is_question"], kind == 1)
    np.testing.assert_array_equal(batch["is_grounded"], kind != 2)
    np.testing.assert_array_equal(batch["answer_scores"].max(1), kind == 1)
    assert (batch["mlm_eligible"][kind == 2] == -1).all() and (batch["mlm_eligible"][kind == 3] == 1).any()
    # A run that neither writes nor answers reads the same texts as captions, and has no more keys than ever.
    plain = next(train_batches(sources, [1] * 4, start_step=0, **options))
    assert not {"causal", "is_grounded", "is_question", "answer_scores"} & set(plain)
    np.testing.assert_array_equal(plain["token_ids"], batch["token_ids"])
