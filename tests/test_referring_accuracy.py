"""Accuracy of referring expressions."""
import numpy as np
import pytest

from glipv2_jax.evaluation.referring_accuracy import referring_accuracy

TARGET = [10, 10, 30, 30]


def test_equal_to_the_reference(load_reference):
    told = load_reference("evaluation/coco_convert.json")["refexp"]
    for name in sorted({item["dataset"] for item in told["items"]}):
        examples = []
        for item in told["items"]:
            if item["dataset"] == name:
                x, y, w, h = item["target_xywh"]
                order = np.argsort(-np.array(item["scores"]), kind="stable")
                examples.append(([x, y, x + w, y + h], np.array(item["boxes"])[order]))
        scores = referring_accuracy(examples, overlap="giou")
        found = [scores[k] for k in ("accuracy", "precision@5", "precision@10")]
        assert found == pytest.approx(told["precision_at_1_5_10"][name])


def test_the_rank_of_the_first_hit_counts():
    wrong = [100, 100, 120, 120]
    scores = referring_accuracy([(TARGET, [TARGET, wrong]), (TARGET, [wrong] * 4 + [TARGET]), (TARGET, [])])
    assert scores == {"accuracy": pytest.approx(1 / 3), "precision@5": pytest.approx(2 / 3),
                      "precision@10": pytest.approx(2 / 3), "num_expressions": 3}
    assert referring_accuracy([])["accuracy"] is None
    with pytest.raises(ValueError, match="diou"):
        referring_accuracy([], overlap="diou")
