"""Accuracy of VQA v2: answers made alike, then compared with those of ten people."""
import collections
import re
import statistics

from glipv2_jax.evaluation.coco_ap import load
from glipv2_jax.evaluation.coco_json import checked_rows

_PUNCTUATION = ";/[]\"{}()=+\\_-><@`,?!"
_PERIOD = re.compile(r"\.(?!\d)")
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_NUMBERS = {word: str(n) for n, word in enumerate(
    ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"])} | {"none": "0"}
_ARTICLES = {"a", "an", "the"}
# The protocol knows these and writes the apostrophe that an answer has left out, one at most.
_WITH_APOSTROPHE = (
    "ain't", "aren't", "can't", "could've", "couldn't", "couldn't've", "didn't", "doesn't", "don't", "hadn't",
    "hadn't've", "hasn't", "haven't", "he'd", "he'd've", "he's", "how'd", "how'll", "how's", "isn't", "it'd", "it'd've",
    "it'll", "ma'am", "mightn't", "mightn't've", "might've", "mustn't", "must've", "needn't", "not've", "o'clock",
    "oughtn't", "'ow's'at", "shan't", "she'd've", "should've", "shouldn't", "shouldn't've", "somebody'd've",
    "somebody'll", "somebody's", "someone'd", "someone'd've", "someone'll", "someone's", "something'd",
    "something'd've", "something'll", "that's", "there'd", "there'd've", "there're", "there's", "they'd", "they'd've",
    "they'll", "they're", "they've", "'twas", "wasn't", "we'd've", "we've", "weren't", "what'll", "what're", "what's",
    "what've", "when's", "where'd", "where's", "where've", "who'd", "who'd've", "who'll", "who's", "who've", "why'll",
    "why're", "why's", "won't", "would've", "wouldn't", "wouldn't've", "y'all", "y'all'll", "y'all'd've", "you'd",
    "you'd've", "you'll", "you're", "you've")
_CONTRACTIONS = {word[:place] + word[place + 1:]: word
                 for word in _WITH_APOSTROPHE for place, letter in enumerate(word) if letter == "'"} | {"somebody'd": "somebodyd"}


def without_punctuation(text):
    """A mark beside a space, or any in a text with a comma between digits, goes; others become spaces. So do periods, unless a
    digit follows."""
    out = text
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if beside_space or _COMMA_IN_NUMBER.search(text) else " ")
    return _PERIOD.sub("", out)


def normalize_answer(text):
    """An answer as it is compared: lower case, without punctuation and articles, numbers to ten as digits, apostrophes put back.

    Source: the official evaluation code of VQA v2 (`vqaEval.py`), rules and word lists.
    """
    words = (_NUMBERS.get(word, word) for word in without_punctuation(text).lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(annotations, results):
    """Scores answers.

    An answer counts min(n / 3, 1) for n equal answers of nine people, averaged over the ten ways to leave one out. Answers are
    normalised only where the ten people disagree.

    Args:
      annotations: content or path of an annotation file: `annotations`, each with question_id, ten answers and
        perhaps question_type and answer_type. results: rows {question_id, answer}, or a path of them.
    Returns: dict with floats in [0, 1]: accuracy, `per_answer_type`, `per_question_type` (dicts), and `per_question`, question
      id → float.
    Raises: ValueError naming questions that are missing, unknown or answered twice.
    """
    content = load(annotations)
    if not isinstance(content, dict) or not isinstance(content.get("annotations"), list):
        raise ValueError("annotations: expected an object with the list annotations, as the files of VQA v2 have it")
    truth = {one["question_id"]: one for one in checked_rows(content["annotations"], ("question_id", "answers"), "annotations")}
    rows = checked_rows(load(results), ("question_id", "answer"))
    count = collections.Counter(row["question_id"] for row in rows)
    for problem, ids in (("answered twice", [i for i, n in count.items() if n > 1]),
                         ("unknown", sorted(set(count) - set(truth))), ("without an answer", sorted(set(truth) - set(count)))):
        if ids:
            raise ValueError(f"results: {len(ids)} questions {problem}, the first is {ids[0]}; expected one answer for each of "
                             f"the {len(truth)} questions")
    per_question = {row["question_id"]: _accuracy(row["answer"], truth[row["question_id"]]["answers"]) for row in rows}
    groups = {"answer_type": collections.defaultdict(list), "question_type": collections.defaultdict(list)}
    for question, value in per_question.items():
        for name, group in groups.items():
            group[truth[question].get(name, "unknown")].append(value)
    return {"accuracy": statistics.mean(per_question.values()), "per_question": per_question,
            **{f"per_{name}": {key: statistics.mean(values) for key, values in group.items()} for name, group in groups.items()}}


def _accuracy(answer, people):
    answer, people = _one_line(answer), [_one_line(one["answer"]) for one in people]
    if len(set(people)) > 1:
        answer, people = normalize_answer(answer), [normalize_answer(one) for one in people]
    equal = people.count(answer)
    return statistics.mean(min((equal - (one == answer)) / 3, 1) for one in people)


def _one_line(text):
    return text.replace("\n", " ").replace("\t", " ").strip()
