import numpy as np
import pytest

from input_pipeline import text_ops
from input_pipeline.schema import MLM_NEVER, MLM_SCORED, MLM_UNSCORED, NO_CLASS
from input_pipeline.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer()


def test_positive_maps_equal_the_reference(tokenizer, load_reference):
    cases = load_reference("data_side.json")["positive_maps"]
    assert cases
    for case in cases:
        encoding = tokenizer.encode(case["caption"])
        assert min(encoding.num_tokens, 256) == case["n_tokens"]
        found = text_ops.positive_map(case["tokens_positive"], encoding.offsets)
        assert found.dtype == np.bool_
        assert [np.flatnonzero(row).tolist() for row in found] == case["token_indices"], case["caption"]
        assert np.flatnonzero(found.any(axis=0)).tolist() == case["greenlight"]


def test_token_class_equals_the_reference(tokenizer, load_reference):
    case = load_reference("data_side.json")["od_label_token_map"]
    spans = {int(label): tuple(span) for label, span in case["label_to_positions"].items()}
    found = text_ops.token_class(spans, tokenizer.encode(case["caption"]).offsets)
    assert found.dtype == np.int32
    expected = {int(token): label for token, label in case["token_to_label"].items()}
    assert {t: c for t, c in enumerate(found.tolist()) if c != NO_CLASS} == expected


def test_spans_in_white_space_reach_three_characters(tokenizer):
    offsets = tokenizer.encode("a    cat", 8).offsets                  # "cat" begins at 5
    assert text_ops.span_tokens(offsets, 3, 8) == slice(2, 3)
    assert text_ops.span_tokens(offsets, 2, 8) == slice(0, 0)          # 2, 3 and 4 are all spaces
    assert text_ops.span_tokens(offsets, 0, 3) == slice(1, 2)
    assert text_ops.span_tokens(offsets, 0, 4) == slice(0, 0)
    assert text_ops.span_tokens(offsets, 100, 104) == slice(0, 0)


def test_no_boxes_no_rows(tokenizer):
    assert text_ops.positive_map([], tokenizer.encode("cat", 8).offsets).shape == (0, 8)


def test_blank_label_has_no_tokens(tokenizer):
    offsets = tokenizer.encode("  . black king", 16).offsets
    assert text_ops.label_to_tokens({0: [(0, 2)], 1: [(4, 14)]}, offsets)[1] == [2, 3]


def test_captions_are_masked_and_scored_everywhere(tokenizer):
    found = text_ops.mlm_eligible_caption(tokenizer.encode("a red cat", 8).offsets)
    never, scored = [MLM_NEVER], [MLM_SCORED]
    assert found.tolist() == never + scored * 3 + never * 4
    assert found.dtype == np.int8


def test_class_lists_score_the_names_of_present_classes(tokenizer):
    encoding = tokenizer.encode("cat. hot dog", 8)
    positive = text_ops.positive_map([[(5, 12)]], encoding.offsets)
    found = text_ops.mlm_eligible_detection(positive, encoding.offsets)
    assert found.tolist() == [MLM_NEVER, MLM_UNSCORED, MLM_UNSCORED, MLM_SCORED, MLM_SCORED] + [MLM_NEVER] * 3
