"""Caption scores equal the official evaluation's, words those of its Java tokenizer."""
import json

import numpy as np
import pytest

from glipv2_jax.evaluation.caption_scores import caption_scores
from glipv2_jax.evaluation.ptb_tokenizer import tokenize

NAMES = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr")


@pytest.fixture(scope="module")
def folder(shared_data):
    return shared_data("eval_parity/captions/captions_val2017.json").parent


@pytest.fixture(scope="module")
def people(folder):
    captions = {}
    for annotation in json.loads((folder / "captions_val2017.json").read_text())["annotations"]:
        captions.setdefault(annotation["image_id"], []).append(annotation["caption"])
    return captions


def test_words_are_those_of_the_java_tokenizer(shared_data):
    pairs = json.loads(shared_data("eval_parity/captions/ptb_tokenize_vectors.json").read_text())
    assert len(pairs) == 511
    for caption, words in pairs:
        assert " ".join(tokenize(caption)) == words


def test_official_results(folder, people):
    expected = json.loads((folder / "expected_fakecap_val2017_126.json").read_text())
    made = {row["image_id"]: row["caption"] for row in json.loads(
        (folder / "captions_val2014_fakecap_results.json").read_text())}
    scores = caption_scores({i: people[i] for i in expected["image_ids"]}, {i: made[i] for i in expected["image_ids"]})
    for name in NAMES:
        assert scores[name] == pytest.approx(expected["corpus"][name], abs=1e-9)
    for name in ("ROUGE_L", "CIDEr"):
        np.testing.assert_allclose([scores["per_image"][i][name] for i in expected["image_ids"]],
                                   expected["per_image"][name], atol=1e-8)


def test_people_against_each_other(folder, people):
    """One caption of the 1,500 has other words than Java's: CIDEr 0.94436 and not 0.94440."""
    expected = json.loads((folder / "expected_human_first_vs_rest_300.json").read_text())
    scores = caption_scores({i: people[i][1:] for i in expected["image_ids"]}, {i: people[i][0] for i in expected["image_ids"]})
    for name in NAMES:
        assert scores[name] == pytest.approx(expected["corpus"][name], abs=1e-4)


def test_the_best_and_the_worst_caption():
    truth = {1: ["a red car on the road", "a red car on the road"], 2: ["two dogs play in the snow"]}
    best = caption_scores(truth, {image: captions[0] for image, captions in truth.items()})
    assert best["Bleu_4"] == pytest.approx(1) and best["ROUGE_L"] == pytest.approx(1)
    # Every n-gram tells an image from the other, so its weights match in all four orders.
    assert best["CIDEr"] == pytest.approx(10)
    worst = caption_scores(truth, {1: "", 2: "..."})
    assert worst["ROUGE_L"] == worst["CIDEr"] == 0 and worst["Bleu_4"] < 1e-6
    assert caption_scores({1: ["a cat"]}, {1: "a cat"})["CIDEr"] == 0     # of one image nothing is characteristic


def test_words_that_no_vocabulary_knows_are_compared_as_they_are():
    truth = {1: ["\u16a0\u16a2\u16a6 \u16a8\u16b1"], 2: ["a cat on a mat"]}
    same = caption_scores(truth, {1: "\u16a0\u16a2\u16a6 \u16a8\u16b1", 2: "a dog"})["per_image"]
    assert same[1]["ROUGE_L"] == pytest.approx(1) and same[1]["CIDEr"] == pytest.approx(5)         # of two words two orders of four
    other = caption_scores(truth, {1: "a dog", 2: "\u16a0\u16a2\u16a6 \u16a8\u16b1"})
    assert other["CIDEr"] == other["ROUGE_L"] == 0 and 0 <= other["Bleu_4"] < 1e-6
    marks = caption_scores({1: ["\u2603"], 2: ["..."]}, {1: "\u2603", 2: "..."})                # a reference without a word
    assert marks["per_image"][1]["CIDEr"] > 0 and marks["per_image"][2] == {"CIDEr": 0, "ROUGE_L": 0}


@pytest.mark.parametrize("truth, found, message", [
    ({1: ["a"], 2: ["b"]}, {1: "a"}, "1 images without a caption, among them 2"),
    ({1: ["a"]}, {1: "a", 5: "b"}, "1 images that have no references, among them 5"),
    ({1: []}, {1: "a"}, "empty list of references"), ({}, {}, "found none")])
def test_what_does_not_fit_is_named(truth, found, message):
    with pytest.raises(ValueError, match=message):
        caption_scores(truth, found)
