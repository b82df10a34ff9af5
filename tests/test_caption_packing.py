"""Captions among others: spans, budget, masked words, and captions without boxes replaced."""
import itertools

import numpy as np
import pytest

from input_pipeline import caption_packing, train_batches
from input_pipeline.caption_packing import Packing
from input_pipeline.pipeline import BadRecords
from input_pipeline.schema import MLM_NEVER, MLM_SCORED
from input_pipeline.sources import ClassTable
from input_pipeline.tokenizer import Tokenizer

OTHERS = ["two dogs run.", "a plane", "a very long caption " * 30, "snow"]


def test_packed_captions_keep_their_spans_and_their_budget():
    tokenizer, caption, places = Tokenizer(), "a cat on a mat", set()
    for seed in range(12):
        text, spans, (begin, end) = caption_packing.pack(
            caption, [[(2, 5)], [(9, 14), (0, 1)]], OTHERS, tokenizer, 32, np.random.default_rng(seed))
        assert text[begin:end] == caption and [text[b:e] for b, e in spans[0]] == ["cat"]
        assert [text[b:e] for b, e in spans[1]] == ["a mat", "a"]
        assert tokenizer.count(text) + 2 <= 32 and "very long" not in text
        assert "two dogs run. " in text and "a plane. " in text and "snow. " in text
        places.add(begin)
    assert len(places) > 2


def test_a_full_caption_takes_no_others():
    caption = "word " * 29
    assert caption_packing.pack(caption, [[(0, 4)]], OTHERS, Tokenizer(), 31, np.random.default_rng(0)) == (
        caption, [[(0, 4)]], (0, len(caption)))


def test_how_many_captions_are_packed():
    rng, packing = np.random.default_rng(0), caption_packing.Packing(20, 0.4, 0.5)
    drawn = np.array([packing.draw(rng) for _ in range(4000)])
    # 40 % none on purpose; 30 % twenty; the rest uniform over 0 … 19.
    assert abs((drawn == 20).mean() - 0.3) < 0.03 and abs((drawn == 0).mean() - (0.4 + 0.3 / 20)) < 0.03
    assert set(drawn) == set(range(21))
    assert not any(caption_packing.Packing().draw(rng) for _ in range(100))


class Numbers:
    """Captions with one box each, named by their number; every third has none."""
    name, class_names, category_ids, replace_empty = "numbers", (), (), True
    words = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")

    def __len__(self):
        return 9

    def caption(self, index):
        return f"a {self.words[index]}"

    def __getitem__(self, index):
        boxes = np.array([[1, 2, 20, 25]] * (index % 3 > 0), np.float32).reshape(-1, 4)
        return {"image": np.full((40, 60, 3), index, np.uint8), "image_id": index, "boxes": boxes,
                "classes": np.full(len(boxes), -1, np.int32), "caption": self.caption(index),
                "spans": [[(2, len(self.caption(index)))]] * len(boxes)}


def batches(count, start=0, **options):
    stream = train_batches([Numbers()], [1.0], seed=1, start_step=start, batch_size=8, canvases=[(64, 96)],
                           augment="resize(48, 96)", max_tokens=48, max_boxes=4, num_negatives=4,
                           class_table=ClassTable(()), tokenizer=Tokenizer(), **options)
    return list(itertools.islice(stream, count))


def test_packed_batches_name_the_own_words_and_mask_only_them():
    tokenizer = Tokenizer()
    ids = {int(tokenizer.encode(word, 4).ids[1]): n for n, word in enumerate(Numbers.words)}
    packed = 0
    for batch in batches(4, packing=Packing(3, 0.2, 0.5)):
        for row, number in enumerate(batch["example_id"].tolist()):
            named = batch["token_ids"][row][batch["positive_map"][row, 0]]
            assert [ids[int(token)] for token in named] == [number]
            there = [ids[int(token)] for token in batch["token_ids"][row] if int(token) in ids]
            packed += len(there) > 1
            scored = batch["token_ids"][row][batch["mlm_eligible"][row] == MLM_SCORED]
            assert [ids[int(token)] for token in scored if int(token) in ids] == [number]
            assert batch["mlm_eligible"][row, 0] == MLM_NEVER
    assert packed > 10


def test_packing_is_a_function_of_the_step():
    one, two = batches(3, packing=Packing(3))[2], batches(1, start=2, packing=Packing(3))[0]
    for key in one:
        np.testing.assert_array_equal(one[key], two[key])


def test_a_packed_caption_that_cannot_be_read_is_a_bad_record(monkeypatch):
    def caption(self, index):
        if index == 4:
            raise ValueError("line 5: not JSON")
        return "no number"
    monkeypatch.setattr(Numbers, "caption", caption)
    with pytest.raises(ValueError, match="record 4: line 5: not JSON"):
        batches(4, packing=Packing(3, 0.0, 1.0))
    bad = BadRecords(1)
    batches(4, packing=Packing(3, 0.0, 1.0), bad_records=bad)
    assert len(bad) == 1


def test_only_pairs_are_packed(monkeypatch):
    monkeypatch.setattr(Numbers, "replace_empty", False)
    for ours, theirs in zip(batches(2, packing=Packing(3, 0.0, 1.0)), batches(2)):
        np.testing.assert_array_equal(ours["token_ids"], theirs["token_ids"])


def test_captions_without_boxes_are_replaced_and_cost_nothing():
    drawn = np.concatenate([batch["example_id"] for batch in batches(6)])
    assert set(drawn) == {1, 2, 4, 5, 7, 8}
