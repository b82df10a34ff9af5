import numpy as np
import pytest

from input_pipeline import prompts
from input_pipeline.prompts import Phrase
from input_pipeline.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer()


@pytest.fixture(scope="module")
def reference(load_reference):
    return load_reference("data_side.json")


def test_clean_name_equals_the_reference(reference):
    assert reference["clean_name"]
    for name, expected in reference["clean_name"].items():
        assert prompts.clean_name(name) == expected


def test_canonical_name_joins_spellings():
    assert {prompts.canonical_name(n) for n in ("Hot_Dog", "hot dog ", "hot  dog (food)")} == {"hot dog"}
    assert prompts.canonical_name("  ") == ""


@pytest.mark.parametrize("key, separator", [("coco80", ". "), ("coco80_space_separator", " ")])
def test_coco_prompt_equals_the_reference(tokenizer, reference, key, separator):
    case, names = reference[key], reference["coco80"]["names"]
    labels = reference["coco80"]["ids"] if key == "coco80" else range(1, 81)
    prompt, = prompts.evaluation_prompts(names, tokenizer, separator=separator)
    assert prompt.caption == case["caption"]
    assert prompt.encoding.ids[prompt.encoding.mask].tolist() == case["input_ids"]
    assert {str(label): prompt.tokens[c] for c, label in enumerate(labels)} == case["label_to_tokens"]


def test_chunks_equal_the_reference(tokenizer, reference):
    case = reference["lvis_chunks_of_40"]
    found = prompts.evaluation_prompts(case["names"], tokenizer, classes_per_prompt=40)
    assert [prompt.caption for prompt in found] == case["captions"]
    assert [prompt.encoding.num_tokens for prompt in found] == case["lengths"]
    for prompt, expected in zip(found, case["label_to_tokens"]):
        assert {str(c + 1): tokens for c, tokens in prompt.tokens.items()} == expected
    assert [c for prompt in found for c in prompt.classes] == list(range(len(case["names"])))


def test_a_prompt_that_does_not_fit_is_refused(tokenizer, reference):
    with pytest.raises(ValueError, match=r"found \d+ tokens, expected at most 256; set classes_per_prompt"):
        prompts.evaluation_prompts(reference["lvis_chunks_of_40"]["names"] * 2, tokenizer)
    with pytest.raises(ValueError, match="found none"):
        prompts.evaluation_prompts([], tokenizer)
    with pytest.raises(ValueError, match="classes_per_prompt: found 0"):
        prompts.evaluation_prompts(["cat"], tokenizer, classes_per_prompt=0)


def test_all_classes_in_order_equal_the_reference(reference):
    cases = [case for case in reference["od_to_grounding_simple"] if not case["shuffle"]]
    assert cases
    for case in cases:
        names = list(case["names"].values())
        if case["caption_prompt"]:
            names = [Phrase(p["name"], p["prefix"], p["suffix"]) for p in case["caption_prompt"]]
        caption, spans = prompts.detection_prompt(names, case["separation_tokens"])
        assert caption == case["caption"]
        assert [[list(spans[label - 1])] for label in case["labels"]] == case["tokens_positive"]


def test_sampled_prompts_are_written_as_the_reference_writes_them(tokenizer, reference):
    """Its draws cannot be repeated; its captions and spans can, from the classes that it drew."""
    names = {"0": "__background__"} | {
        str(i + 1): name for i, name in enumerate(reference["coco80"]["names"])}
    lvis = {"0": "__background__"} | {
        str(i + 1): name for i, name in enumerate(reference["lvis_chunks_of_40"]["names"])}
    for case in reference["od_to_grounding"]:
        if case["add_detection_prompt"]:
            continue
        table = lvis if case["classes"] == "lvis" else names
        caption, spans = prompts.detection_prompt([table[label] for label in case["label_to_positions"]],
                                                  case["separation_tokens"])
        assert caption == case["caption"]
        assert [list(span) for span in spans] == list(case["label_to_positions"].values())


@pytest.mark.parametrize("seed", range(5))
def test_sample_keeps_the_present_classes_once(tokenizer, reference, seed):
    names = reference["coco80"]["names"]
    found = prompts.sample_classes(names, [3, 3, 17, 60], tokenizer, np.random.default_rng(seed))
    again = prompts.sample_classes(names, [3, 3, 17, 60], tokenizer, np.random.default_rng(seed))
    assert found == again
    assert len(set(found)) == len(found)
    assert {3, 17, 60} <= set(found)


def test_number_of_negatives(tokenizer):
    names = [f"name{n}" for n in range(20)]
    sizes = [len(prompts.sample_classes(names, [0], tokenizer, np.random.default_rng(s), num_negatives=10))
             for s in range(300)]
    assert max(sizes) == 11 and min(sizes) == 1
    assert 0.45 < np.mean([size >= 10 for size in sizes]) < 0.7        # half all ten, the others 1 to 10
    full = [len(prompts.sample_classes(names, [0, 1], tokenizer, np.random.default_rng(s), num_negatives=20,
                                       full_probability=1.0)) for s in range(5)]
    assert full == [20] * 5
    assert prompts.sample_classes(names, [7], tokenizer, np.random.default_rng(0), num_negatives=0) == [7]
    assert prompts.sample_classes(names, [], tokenizer, np.random.default_rng(0), num_negatives=5)


def test_order_is_random(tokenizer):
    names = ["cat", "dog", "bird", "cow"]
    orders = {tuple(prompts.sample_classes(names, [0, 1], tokenizer, np.random.default_rng(seed),
                                           full_probability=1.0)) for seed in range(200)}
    assert len(orders) == 24


def test_prompts_fit_the_token_budget(tokenizer, reference):
    names = reference["lvis_chunks_of_40"]["names"]
    for seed in range(20):
        rng = np.random.default_rng(seed)
        present = rng.choice(len(names), 8, replace=False)
        classes = prompts.sample_classes(names, present, tokenizer, rng, max_tokens=64)
        caption, _ = prompts.detection_prompt([names[c] for c in classes])
        assert tokenizer.encode(caption).num_tokens <= 64
        assert len(set(classes) & set(present.tolist())) >= 6


def test_overflow_of_present_classes_leaves_some_out_and_adds_none(tokenizer):
    names = [f"{word} thing" for word in ("red", "blue", "green", "old", "new")] + ["cat"]
    for seed in range(20):
        found = prompts.sample_classes(names, [0, 1, 2, 3, 4], tokenizer, np.random.default_rng(seed),
                                       max_tokens=12, full_probability=1.0)
        assert len(found) == 3 and 5 not in found                       # 3 × 3 tokens of the 10 that are free


def test_equal_texts_share_one_place(tokenizer):
    names = ["bat_(animal)", "bat_(baseball)", "ball"]
    found = prompts.sample_classes(names, [0], tokenizer, np.random.default_rng(0), full_probability=1.0)
    assert sorted(found) == [0, 2]
    caption, spans = prompts.detection_prompt([names[c] for c in found])
    by_class = prompts.class_spans(names, found, spans)
    assert by_class[0] == by_class[1]
    assert caption[slice(*by_class[1])] == "bat "
    both = prompts.sample_classes(names, [0, 1], tokenizer, np.random.default_rng(0), num_negatives=0)
    assert len(both) == 1
