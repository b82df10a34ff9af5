"""Accuracy of VQA v2: answers made alike, then compared with those of ten people."""
import collections
import statistics

from glipv2_jax.evaluation.coco_ap import load
from glipv2_jax.evaluation.coco_json import checked_rows
from input_pipeline.answers import normalize_answer


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


def most_frequent_answers(annotations):
    """Rows {question_id, answer}: for each type of question the answer that most people gave, by name where several did."""
    truth, count = load(annotations)["annotations"], collections.defaultdict(collections.Counter)
    for one in truth:
        count[one.get("question_type")].update(normalize_answer(said["answer"]) for said in one["answers"])
    best = {kind: min(answers, key=lambda answer: (-answers[answer], answer)) for kind, answers in count.items()}
    return [{"question_id": one["question_id"], "answer": best[one.get("question_type")]} for one in truth]


def _accuracy(answer, people):
    answer, people = _one_line(answer), [_one_line(one["answer"]) for one in people]
    if len(set(people)) > 1:
        answer, people = normalize_answer(answer), [normalize_answer(one) for one in people]
    equal = people.count(answer)
    return statistics.mean(min((equal - (one == answer)) / 3, 1) for one in people)


def _one_line(text):
    return text.replace("\n", " ").replace("\t", " ").strip()
