"""Recall of phrases: hand-made cases of the any-box protocol."""
import json

import numpy as np
import pytest

from glipv2_jax.evaluation.phrase_recall import phrase_recall

TRUE = [[10, 10, 30, 30]]
WRONG = [100, 100, 120, 120]


def phrase(rank, total=12, gt_boxes=TRUE):
    """A phrase with `total` boxes, of which only the one at `rank` is right."""
    return gt_boxes, [TRUE[0] if n == rank else WRONG for n in range(total)]


def test_a_hit_counts_from_its_rank_on():
    scores = phrase_recall([[phrase(0), phrase(4)], [phrase(5), phrase(9)], [phrase(11), phrase(99)]])
    assert scores == {
        "recall@1": pytest.approx(1 / 6), "recall@5": pytest.approx(2 / 6), "recall@10": pytest.approx(4 / 6),
        "upper_bound": pytest.approx(5 / 6), "num_phrases": 6}


def test_any_true_box_will_do():
    assert phrase_recall([[phrase(0, gt_boxes=[[200, 200, 210, 210], TRUE[0]])]])["recall@1"] == 1


@pytest.mark.parametrize("right, found", [(20, 1), (20.01, 0)])
def test_overlap_is_continuous_and_half_is_enough(right, found):
    # 10×10 inside right×10: exactly 0.5 at 20. Counting one pixel more, 11 of 21.01 would do as well.
    assert phrase_recall([[([[0, 0, 10, 10]], [[0, 0, right, 10]])]])["recall@1"] == found


def test_phrases_without_truth_are_not_counted_and_without_boxes_are_misses():
    scores = phrase_recall([[phrase(0, gt_boxes=np.zeros((0, 4))), (TRUE, []), phrase(0)]])
    assert (scores["num_phrases"], scores["recall@1"], scores["upper_bound"]) == (2, 0.5, 0.5)


def test_nothing_to_score_is_none_and_everything_is_json():
    scores = phrase_recall([])
    assert scores["recall@1"] is None and scores["num_phrases"] == 0
    json.dumps([scores, phrase_recall([[phrase(0)]])])


def test_misshapen_boxes_are_named():
    with pytest.raises(ValueError, match=r"caption 1, phrase 0: pred_boxes: found shape \(1, 5\)"):
        phrase_recall([[], [(TRUE, [[0, 0, 1, 1, 0.5]])]])
