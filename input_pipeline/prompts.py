"""Class names to prompt text and back: training and evaluation write prompts with the same lines.

A prompt is the class names joined by a separator, with none after the last: `person. bicycle. car`. A span
(begin, end) covers the characters of a name alone, without its prefix, suffix or separator.
"""
import dataclasses
import functools
import re
from collections.abc import Sequence

import numpy as np

from input_pipeline import text_ops
from input_pipeline.text_ops import Span
from input_pipeline.tokenizer import Encoding, Tokenizer

SEPARATOR = ". "
SPECIAL_TOKENS = 2                  # [CLS] and [SEP] take their share of the budget


@functools.lru_cache(maxsize=65536)         # every training example cleans every name of its source
def clean_name(name: str) -> str:
    """A class name as the prompt spells it.

    From the first "(" to the *last* ")" goes, "_" becomes a space, each pair of spaces one space. Nothing is
    stripped and the case stays: `flip-flop_(sandal)` is `flip-flop `.
    Source: GLIP `clean_name`.
    """
    return re.sub(r"\(.*\)", "", name).replace("_", " ").replace("  ", " ")


@dataclasses.dataclass(frozen=True)
class Phrase:
    """A hand-written prompt for one class, e.g. Phrase("penguin", suffix=" , which is black and white")."""
    name: str
    prefix: str = ""
    suffix: str = ""


@functools.lru_cache(maxsize=65536)
def canonical_name(name: str | Phrase) -> str:
    """What identifies a class over all sources: the cleaned name in lower case, stripped. May be empty."""
    return clean_name(name.name if isinstance(name, Phrase) else name).lower().strip()


def names_of(source) -> Sequence[str | Phrase]:
    """What prompts call the classes of a source: its hand-written `phrases` where it has them, else its names."""
    return getattr(source, "phrases", source.class_names)


def _phrase(name):
    return name if isinstance(name, Phrase) else Phrase(clean_name(name))


def wordings_of(source, templates: Sequence[str]) -> list[Sequence[str | Phrase]]:
    """What prompts call the classes of a source, once for each template (see `worded`); () is ("{name}",)."""
    names = names_of(source)
    about = getattr(source, "class_about", [{}] * len(names))
    return [[worded(template, name, of_class) for name, of_class in zip(names, about)] for template in templates or ("{name}",)]


def worded(template: str, name: str | Phrase, about: dict) -> str | Phrase:
    """A class name in other words, for training and evaluation with several prompts.

    Args:
      template: text with {name} or {synonym} once, which is what the class is known by, and perhaps {definition}.
      about: what the source tells of the class: `synonym`, `definition`. A class without what the template needs stays as
        it is.
    Raises: ValueError for a template without a place for the name.
    """
    place = next((key for key in ("synonym", "name") if template.count(f"{{{key}}}") == 1), None)
    if place is None:
        raise ValueError(f"wordings: found {template!r}, expected {{name}} or {{synonym}} in it once")
    needed = [key for key in ("synonym", "definition") if f"{{{key}}}" in template]
    if template == "{name}" or any(not about.get(key) for key in needed):
        return name
    phrase = _phrase(name)
    if place == "synonym":
        phrase = Phrase(clean_name(about["synonym"]))
    before, after = template.replace("{definition}", about.get("definition", "")).split(f"{{{place}}}")
    return Phrase(phrase.name, before + phrase.prefix, phrase.suffix + after)


def detection_prompt(names: Sequence[str | Phrase], separator: str = SEPARATOR) -> tuple[str, list[Span]]:
    """The prompt for a list of classes, and the span of each.

    Args:
      names: class names, cleaned here, or Phrases, taken as they are.
      separator: text between two classes.
    """
    caption, spans = "", []
    for name in names:
        phrase = _phrase(name)
        if spans:
            caption += separator
        begin = len(caption) + len(phrase.prefix)
        spans.append((begin, begin + len(phrase.name)))
        caption += phrase.prefix + phrase.name + phrase.suffix
    return caption, spans


@dataclasses.dataclass(frozen=True)
class EvaluationPrompt:
    """One prompt of a class list.

    classes: indices into the class list, in the order of the prompt.
    spans: the span of each of `classes`.
    tokens: class index -> token positions; empty for a name without tokens, which can never be found.
    """
    caption: str
    classes: tuple[int, ...]
    spans: tuple[Span, ...]
    tokens: dict[int, list[int]]
    encoding: Encoding


def evaluation_prompts(names: Sequence[str | Phrase], tokenizer: Tokenizer, max_tokens: int = 256,
                       classes_per_prompt: int | None = None,
                       separator: str = SEPARATOR) -> list[EvaluationPrompt]:
    """Prompts that together name every class once, in order.

    Args:
      classes_per_prompt: consecutive classes in one prompt; None puts all into one.
    Raises: ValueError if a prompt does not fit `max_tokens`: a class cut off could never be found.
    """
    if not names:
        raise ValueError("class names: found none, expected at least one")
    step = len(names) if classes_per_prompt is None else classes_per_prompt
    if step < 1:
        raise ValueError(f"classes_per_prompt: found {step}, expected at least 1")
    prompts = []
    for start in range(0, len(names), step):
        classes = tuple(range(start, min(start + step, len(names))))
        prompt = prompt_of(names, classes, tokenizer, max_tokens, separator)
        if prompt.encoding.num_tokens > max_tokens:
            raise ValueError(
                f"prompt of classes {classes[0]} to {classes[-1]} ({prompt.caption[:60]!r}...): found "
                f"{prompt.encoding.num_tokens} tokens, expected at most {max_tokens}; set classes_per_prompt "
                f"(GLIP uses 40 for LVIS)")
        prompts.append(prompt)
    return prompts


def prompt_of(names: Sequence[str | Phrase], classes: Sequence[int], tokenizer: Tokenizer, max_tokens: int,
              separator: str = SEPARATOR) -> EvaluationPrompt:
    """The prompt that names some classes of a list in the given order. One too long is cut: its last classes
    then have no tokens."""
    caption, spans = detection_prompt([names[c] for c in classes], separator)
    encoding = tokenizer.encode(caption, max_tokens)
    tokens = text_ops.label_to_tokens({c: [span] for c, span in zip(classes, spans)}, encoding.offsets)
    return EvaluationPrompt(caption, tuple(classes), tuple(spans), tokens, encoding)


def groups_that_fit(names: Sequence[str | Phrase], tokenizer: Tokenizer, max_tokens: int,
                    classes_per_prompt: int | None = None, separator: str = SEPARATOR) -> list[list[int]]:
    """Consecutive classes in as few prompts as their tokens allow.

    A name that is equal to an earlier one but for case is left out: its words would be positive for both. So is
    one without any letter for the tokenizer. A name that is too long by itself gets a prompt, which is cut.

    Args:
      classes_per_prompt: most classes in one prompt; None: as many as fit.
    Returns: class indices of each prompt.
    """
    groups, seen, room = [], set(), 0
    for index, name in enumerate(names):
        text, _ = detection_prompt([name])
        key = text.lower().strip()
        tokens = tokenizer.count(text)
        if key in seen or not tokens:
            continue
        seen.add(key)
        cost = tokenizer.count(text + separator)
        # The last name of a prompt needs no separator.
        if not groups or tokens > room or len(groups[-1]) == classes_per_prompt:
            groups.append([])
            room = max_tokens - SPECIAL_TOKENS
        groups[-1].append(index)
        room -= cost
    return groups


def sample_classes(names: Sequence[str | Phrase], present: Sequence[int], tokenizer: Tokenizer,
                   rng: np.random.Generator, *, max_tokens: int = 256, num_negatives: int = 85,
                   full_probability: float = 0.5, separator: str = SEPARATOR,
                   candidates: Sequence[int] | None = None) -> list[int]:
    """Classes of one training prompt: those present in the image and some that are not, in random order.

    1. Present classes are shuffled and taken while they fit; the first that does not fit and all after it are
       left out, and then no negative is added. The caller drops the boxes of classes left out.
    2. With `full_probability` the number of draws is `num_negatives` (at most all classes), otherwise uniform
       from 1 to that. Draws are without replacement from *all* classes; those present are discarded, not
       redrawn.
    3. Negatives are taken in random order while the token budget stays above zero.

    A class whose text equals one already in the prompt shares its place: only the first of them is returned
    (`bat_(animal)`, `bat_(baseball)`), and `class_spans` gives all of them its span.

    Args:
      names: the source's class names.
      present: class indices of the boxes; repetitions allowed.
      candidates: what negatives are drawn from; None: all classes. LVIS marks so few classes of an image as absent that
        any other may be there unmarked.
    Returns: class indices, in prompt order.
    Source: GLIP `convert_object_detection_to_grounding_optimized_for_od`. Differs from GLIP: its
      `__background__` entry is never a negative, and equal texts are not repeated (there, a word is positive
      and negative at once).
    """
    texts = [canonical_name(name) for name in names]
    cost = [tokenizer.count(detection_prompt([name])[0] + separator) for name in names]
    budget = max_tokens - SPECIAL_TOKENS

    chosen = {}                                            # canonical text -> class index
    for index in rng.permutation(np.unique(np.asarray(present, np.int64))).tolist():
        if texts[index] in chosen:
            continue
        budget -= cost[index]
        if budget < 0:
            break
        chosen[texts[index]] = index

    candidates = np.arange(len(names)) if candidates is None else np.asarray(candidates, np.int64)
    full = min(num_negatives, len(candidates))
    draws = full if full == 0 or rng.random() < full_probability else int(rng.integers(1, full + 1))
    for index in rng.choice(candidates, size=draws, replace=False).tolist():
        if texts[index] in chosen:
            continue
        budget -= cost[index]
        if budget <= 0:
            break
        chosen[texts[index]] = index
    return rng.permutation(list(chosen.values())).tolist()


def class_spans(names: Sequence[str | Phrase], classes: Sequence[int], spans: Sequence[Span]) -> dict[int, Span]:
    """Class index -> span, also for classes that share their text with one of `classes`."""
    by_text = {canonical_name(names[c]): span for c, span in zip(classes, spans)}
    texts = map(canonical_name, names)
    return {c: by_text[text] for c, text in enumerate(texts) if text in by_text} | dict(zip(classes, spans))
