"""VQA v2 accuracy equals the official evaluation code's."""
import json

import pytest

from glipv2_jax.evaluation.vqa_accuracy import vqa_accuracy
from input_pipeline.answers import normalize_answer, without_punctuation


def test_answers_are_normalised_as_by_the_official_code(shared_data):
    vectors = json.loads((shared_data("eval_parity/vqa/answer_normalisation_vectors.json")).read_text())
    assert len(vectors) == 145
    for vector in vectors:
        assert without_punctuation(vector["raw"]) == vector["after_punctuation"], vector
        assert normalize_answer(vector["raw"]) == vector["normalised"], vector


@pytest.mark.parametrize("name, annotations, results", [
    ("real_3", "v2_annotations_3", "v2_results_3"), ("made_240", "made_annotations_240", "made_results_240")])
def test_equal_to_the_official_code(shared_data, name, annotations, results):
    folder = shared_data("eval_parity/vqa")
    content = json.loads((folder / f"{annotations}.json").read_text())
    content = content if isinstance(content, dict) else {"annotations": content}
    expected = json.loads((folder / "expected.json").read_text())[name]
    scores = vqa_accuracy(content, folder / f"{results}.json")
    assert round(100 * scores["accuracy"], 2) == expected["accuracy"]["overall"]
    assert {question: round(100 * value, 2) for question, value in scores["per_question"].items()} == {
        int(question): value for question, value in expected["per_question"].items()}
    if name == "made_240":
        for ours, theirs in (("per_answer_type", "perAnswerType"), ("per_question_type", "perQuestionType")):
            assert {key: round(100 * value, 2) for key, value in scores[ours].items()} == expected["accuracy"][theirs]


def _question(number, *answers):
    return {"question_id": number, "answers": [{"answer": answer} for answer in answers]}


def test_by_hand():
    # Two of ten agree: of the nine others two do, unless the one left out is among them.
    people = {"annotations": [_question(1, "The cat!", "cat", *["dog"] * 8), _question(2, *["No!"] * 10)]}
    scores = vqa_accuracy(people, [{"question_id": 1, "answer": "a cat"}, {"question_id": 2, "answer": "no"}])
    assert scores["per_question"][1] == pytest.approx((2 * (1 / 3) + 8 * (2 / 3)) / 10)
    assert scores["per_question"][2] == 0                                 # people agree, so nothing is normalised
    assert vqa_accuracy(people, [{"question_id": 1, "answer": "dog"}, {"question_id": 2, "answer": "No!"}])["accuracy"] == 1


@pytest.mark.parametrize("rows, message", [
    ([], "2 questions without an answer, the first is 1"),
    ([{"question_id": n, "answer": ""} for n in (1, 2, 2)], "1 questions answered twice, the first is 2"),
    ([{"question_id": n, "answer": ""} for n in (1, 2, 7)], "1 questions unknown, the first is 7")])
def test_results_that_do_not_fit_are_named(rows, message):
    with pytest.raises(ValueError, match=message):
        vqa_accuracy({"annotations": [_question(1, "a"), _question(2, "a")]}, rows)
