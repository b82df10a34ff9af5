"""Noun phrases: cases by kind of phrase, the built-in scenes, and real captions where they are at hand.

Prints precision, recall and speed on the second 500 images of the Flickr30k Entities val split, which no rule
was written for; $GLIPV2_FLICKR30K is a directory with val.txt and entities_val_1000.tar.gz:

    pytest tests/test_phrases.py -s -k flickr
"""
import os
import pathlib
import re
import tarfile
import time

import numpy as np
import pytest

from glipv2_jax import phrases_words
from glipv2_jax.phrases import noun_phrases
from input_pipeline.flickr_entities import parse_sentence
from input_pipeline.scenes import Scenes
from tests.conftest import REPOSITORY

CASES = {
    "determiners and adjectives": "[A small brown dog] chases [the red ball] .",
    "no determiner": "[Man] in [blue kayak] paddling through [rough water]",
    "numbers": "[two dogs], [3 cats] and [twenty-one birds] near [one tree]",
    "numbers alone": "[two] are asleep and [one] is awake",
    "owners": "[a man's hat] beside [the boys' toys] and [her mother's car]",
    "owners, tokenised": "[a man 's hat] beside [the children 's merry-go-round]",
    "typographic apostrophe": "[a café’s garden] , she’s in [the woman’s car]",
    "'s that is a verb": "[the dog]'s running and he's watching it",
    "quotation is no owner": "[a sign] says '[dogs]' to [drivers]",
    "coordinated adjectives": "[a black and white dog] and [a white , brown and tan cat]",
    "coordinated nouns": "[a boy] and [girl] play with [a ball] and [a dog]",
    "complement with of": "[a group of people] at [the edge of the water]",
    "complement of a complement": "[the bank of a body of water]",
    "of that belongs to a preposition":
        "[a man] in front of [a house] on top of [a hill] jumps out of [a car]",
    "participles before a noun": "[a smiling woman] in [a striped shirt] waves at [the running children]",
    "participles after a noun": "[a woman] smiling at [a man] dressed in [a suit] holding [bags]",
    "participle between nouns": "[a snow covered mountain]",
    "purpose": "[men] with [fishing poles] near [a swimming pool] and [shopping carts]",
    "gerund is a verb": "[a man] is fishing from [a boat] while riding [a horse]",
    "nouns in -ing": "[a building] with [a ceiling] and [a wooden railing]",
    "workers building": "[workers] building [a wall]",
    "hyphens": "[a long-haired , middle-aged woman] with [a t-shirt] and [a 5-year-old girl]",
    "adverb before adjective": "[a very tall man] wears [brightly colored clothes]",
    "all caps": "[THE RED CAR] IS PARKED BESIDE [TWO MEN]",
    "noun or verb, singular": "[A man] walks [his dog] past [a woman] who watches [birds]",
    "noun or verb, plural": "[Two men] walk along [the street] and [people] watch them",
    "noun or verb, noun": "[a walk] in [the park] , [a jump rope] and [a baseball bat]",
    "noun or verb, sticks": "[boys] with [hockey sticks]",
    "two verbs": "[A girl] sits and reads [a book]",
    "verb after a colour that is worn": "[A man] in [blue] walks , [a girl] in [red and white] sits",
    "verb in no list": "[A gardener] embalms [a flower] ; [the scribes] annotate [a scroll]",
    "people by an adjective": "[a male] and [a young blond] are watching",
    "pronouns": "He gives it to her while they look at each other and at themselves",
    "pronouns that are things": "[A man] and [others] watch [someone]",
    "relative clauses": "[a man] who wears [a hat] that is red",
    "there is": "There is [a cup] on [the table] , there are [two spoons]",
    "contractions": "They don't see it and can't run",
    "can": "[a can of dog food] that can fall",
    "photo of": "a photo of [a cat]",
    "picture of, said twice": "This is a close-up picture of [a smiling woman]",
    "photo showing": "A photo showing [two cats]",
    "photo that is a thing": "[A man] holding [a photo of a dog]",
    "left and right": "[a cat] to the left of [the dog] , [a bird] on the right",
    "left hand": "[his left hand]",
    "background": "[a man] in the background and [trees] in the distance",
    "class names": "[person]. [traffic light]. [stop sign]. [hair drier]",
    "class names, with a separator after the last": "[remote control] . [cat] . ",
    "repeated": "[a dog] near [a dog] and [a dog]",
    "unicode": "[a café] in [São Paulo] – [a naïve cat] 🐕 “[a dog]”",
    "combining accents": "[a cafe\u0301] and [a dog]",
    "line breaks and spaces": " [a  dog]\n and\t[two\ncats] ",
    "one word": "[dog]",
    "letter that grows in lower case": "[İİ] is near [a dog]",
}


def marked(text):
    """The caption and spans of a text in which phrases stand in [brackets]."""
    caption, spans = "", []
    for plain, phrase in re.findall(r"([^\[]*)(?:\[([^\]]*)\])?", text):
        caption += plain
        if phrase:
            spans.append((len(caption), len(caption) + len(phrase)))
            caption += phrase
    return caption, spans


@pytest.mark.parametrize("text", CASES.values(), ids=CASES)
def test_phrases_of(text):
    caption, spans = marked(text)
    found = noun_phrases(caption)
    assert [caption[b:e] for b, e in found] == [caption[b:e] for b, e in spans]
    assert found == spans


@pytest.mark.parametrize("caption", [
    "", " ", "\n", "...", "!?", "'", "'s", "’s’s", "of", "of of", "the", "a", "and", "the left", "of the",
    "\u0301", "-", "--", "_", "close up", "to", "her", "that", "'s of and , the", "0", "\x00", "🐕"])
def test_nothing_is_found_and_nothing_breaks(caption):
    assert [caption[b:e] for b, e in noun_phrases(caption)] in ([], [caption])


def test_what_is_counted_is_named_without_the_question():
    def said(text):
        return [text[begin:end] for begin, end in noun_phrases(text)]
    assert said("how many red stars are left of the moon?") == ["red stars", "the moon"]
    assert said("many red stars") == ["many red stars"] and said("how many?") == []


def test_any_words_give_spans_in_order():
    """Words in a random order: no rule may look past an end, and spans never overlap."""
    rng = np.random.default_rng(0)
    vocabulary = sorted(set(" ".join(CASES.values()).replace("[", "").replace("]", "").split()) | {
        word for idiom in phrases_words.IDIOMS for word in idiom} | set(".,;'\"&"))
    for _ in range(2000):
        caption = " ".join(rng.choice(vocabulary, rng.integers(1, 12)))
        ends = [0]
        for begin, end in noun_phrases(caption):
            assert ends[-1] <= begin < end <= len(caption)
            assert caption[begin:end] == caption[begin:end].strip()
            ends.append(end)


def test_long_text_takes_no_more_than_its_share():
    began = time.perf_counter()
    assert len(noun_phrases("a man in red, white and blue holds two cups of tea. " * 500)) == 1500
    noun_phrases("red , " * 5000)
    assert time.perf_counter() - began < 5


def test_idioms_have_a_letter_for_each_word():
    assert [words for words, tags in phrases_words.IDIOMS.items() if len(words) != len(tags)] == []


def test_captions_of_scenes():
    """Every phrase of the built-in captions, whose spans are exact."""
    source = Scenes(num_examples=300, task="caption")
    missed = []
    for index in range(len(source)):
        record = source[index]
        caption, true = record["caption"], {tuple(span) for spans in record["spans"] for span in spans}
        missed += [(caption, caption[b:e]) for b, e in true - set(noun_phrases(caption))]
    assert missed == []


PRONOUNS = frozenset((
    "i", "you", "he", "she", "it", "we", "they", "me", "him", "her", "us", "them", "who", "whom", "which", "that",
    "what", "this", "these", "those", "himself", "herself", "itself", "themselves", "there", "each other"))
FLICKR = pathlib.Path(
    os.environ.get("GLIPV2_FLICKR30K") or REPOSITORY.parent / "shared/data/flickr30k_entities")


@pytest.mark.skipif(not (FLICKR / "entities_val_1000.tar.gz").exists(), reason="no Flickr30k Entities here")
def test_flickr30k_entities():
    """Exact spans of every annotated phrase, boxed or not, that is no pronoun."""
    captions = []
    with tarfile.open(FLICKR / "entities_val_1000.tar.gz") as archive:
        for image in (FLICKR / "val.txt").read_text().split()[500:]:
            lines = archive.extractfile(f"Sentences/{image}.txt").read().decode().splitlines()
            captions += map(parse_sentence, lines)
    began = time.perf_counter()
    found = [set(noun_phrases(caption)) for caption, _ in captions]
    seconds = time.perf_counter() - began
    true = [{(b, e) for (b, e), *_ in phrases if caption[b:e].lower() not in PRONOUNS} for caption, phrases in captions]
    right = sum(len(one & other) for one, other in zip(found, true))
    precision, recall = right / sum(map(len, found)), right / sum(map(len, true))
    print(f"\n{len(captions)} captions, {sum(map(len, true))} phrases: precision {precision:.3f}, recall "
          f"{recall:.3f}, {len(captions) / seconds:.0f} captions/s")
    assert precision > 0.9 and recall > 0.88
