"""Lists of answers: counted, read, and what the ten people of VQA v2 make of them."""
import numpy as np
import pytest

from input_pipeline.answers import AnswerList
from input_pipeline.registry import make_source


class Asking:
    """A source of questions, an answer each."""
    name, asks = "asking", True

    def __init__(self, answers):
        self._answers = answers

    def __len__(self):
        return len(self._answers)

    def questions(self, index):
        return [{"question": "?", "answer": self._answers[index], "answers": [self._answers[index]] * 10}]


def test_the_most_frequent_answers_of_all_sources_that_ask():
    sources = [Asking(["a Cat", "two", "cat", "dog"]), Asking(["2", "dog.", "cat"]), object()]
    assert AnswerList.most_frequent(sources, 2).names == ("cat", "2")          # two and dog come twice each: by name
    assert AnswerList.most_frequent(sources, 3).names == ("cat", "2", "dog")
    with pytest.raises(ValueError, match=r"found 3 different ones in the sources \['asking', 'asking'\], expected the model's 4"):
        AnswerList.most_frequent(sources, 4)


def test_scores_are_those_of_three_people():
    answers = AnswerList(["yes", "no", "2"])
    np.testing.assert_allclose(answers.scores(["Yes"] * 7 + ["two", "2.", "maybe"]), [1, 0, 2 / 3])
    assert answers.scores([]).tolist() == [0, 0, 0] and answers.scores(["a no"]).dtype == np.float32


def test_a_file_of_answers_comes_back_and_equal_ones_are_one(tmp_path):
    answers = AnswerList(["Yes", "yes.", "a red star", "", "none"])
    assert answers.names == ("yes", "red star", "0") and len(answers) == 3
    (tmp_path / "answers.txt").write_text(answers.text())
    assert AnswerList.read(tmp_path / "answers.txt").names == answers.names
    (tmp_path / "empty.txt").write_text("\n")
    for name, message in (("empty.txt", "found none, expected at least one"), ("missing.txt", "No such file")):
        with pytest.raises(ValueError, match=rf"{name}: cannot read a list of answers: .*{message}"):
            AnswerList.read(tmp_path / name)


def test_scenes_ask_what_their_list_answers():
    source = make_source({"kind": "scenes", "task": "question", "canvas": (64, 64), "num_examples": 24})
    answers = AnswerList.most_frequent([source], 25)
    kinds = set()
    for index in range(len(source)):
        record = source[index]
        (asked,) = record["questions"]
        assert record["caption"] == asked["question"] and answers.scores(asked["answers"]).max() == 1
        kinds.add(record["about"]["question_type"])
        words = [record["caption"][begin:end] for spans in record["spans"] for begin, end in spans]
        if asked["question"].startswith("how many"):
            assert int(asked["answer"]) == len(record["boxes"])
        elif asked["answer"] == "yes" or asked["question"].startswith("what"):
            assert words and all("?" not in text for text in words)
    assert kinds == {"how many", "is there", "what color", "is the"}
