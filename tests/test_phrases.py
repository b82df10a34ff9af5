"""Noun phrases: spans of the caption itself, for everything that it names and nothing else."""
import pytest

from glipv2_jax.phrases import noun_phrases
from input_pipeline.scenes import Scenes


@pytest.mark.parametrize("caption,expected", [
    ("A man's dog sits next to two red kayaks.", ["A man's dog", "two red kayaks"]),
    ("a black and white dog", ["a black and white dog"]),
    ("a photo of a cat", ["a cat"]),
    ("She gives it to him", []),
    ("a dog chases a dog", ["a dog", "a dog"]),
    ("A CAT ON A RED CHAIR", ["A CAT", "A RED CHAIR"]),
    ("", []),
    ("  ...  ", []),
    ("a group of people at the café", ["a group of people", "the café"]),
])
def test_phrases(caption, expected):
    assert [caption[begin:end] for begin, end in noun_phrases(caption)] == expected


def test_spans_are_in_order_and_apart():
    spans = noun_phrases("two dogs, a cat and the old woman with a hat in front of a house")
    assert all(a[1] <= b[0] for a, b in zip(spans, spans[1:])) and len(spans) >= 5


def test_most_phrases_of_rendered_captions_are_found():
    source = Scenes(num_examples=200, task="caption")
    hits = total = 0
    for index in range(len(source)):
        record = source[index]
        truth = {tuple(span) for spans in record["spans"] for span in spans}
        hits += len(truth & set(noun_phrases(record["caption"])))
        total += len(truth)
    assert hits / total > 0.9, f"{hits} of {total}"
