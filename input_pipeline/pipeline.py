"""Sources to batches: order, read, augment, write the prompt, pad, batch, prefetch.

The only file of the package that imports TensorFlow, and only when batches are read.

Everything random about the example at position p comes from (seed, p), and step k holds positions k·B to k·B
+ B − 1. So a run resumes at any step, on any number of hosts, with the batches of an unbroken run.
"""
import atexit
import contextlib
import dataclasses
import functools
import itertools
import logging
import math
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from input_pipeline import image_ops, ops, prompts, text_ops
from input_pipeline.answers import AnswerList
from input_pipeline.canvases import Order, by_canvas
from input_pipeline.caption_packing import ALONE, Packing, pack
from input_pipeline.schema import MLM_NEVER, NO_CLASS, batch_spec, text_task
from input_pipeline.sources import ClassTable
from input_pipeline.tokenizer import Tokenizer

log = logging.getLogger(__name__)

_FOREVER = np.iinfo(np.int64).max
_LEAST_LEFT_OVER = 0.25              # share of a box's area; an object with less of it in sight is no example of its kind
_ATTEMPTS = 100                      # records tried in the place of one that cannot be read
_open_streams = weakref.WeakSet()


class BadRecords:
    """Records of this host that could not be read: each is logged once, and one too many ends the run.

    Args:
      limit: how many different records of this host are let pass since its start.
      option: what a user calls the limit. instead: what happens in their place, for the log.
    """

    def __init__(self, limit: int = 0, option: str = "data.max_bad_records", instead: str = "another is read in its place"):
        _check_at_least(max_bad_records=(limit, 0))
        self._limit, self._option, self._instead = limit, option, instead
        self._found, self._lock = set(), threading.Lock()

    def __len__(self) -> int:
        return len(self._found)

    def add(self, source: int, index: int, error: ValueError):
        """Raises: the error, when the limit is passed."""
        with self._lock:
            if (source, index) in self._found:
                return
            if len(self._found) == self._limit:
                error.add_note(f"That is one more than the {self._limit} of {self._option}.")
                raise error
            self._found.add((source, index))
        log.warning("bad record %d of at most %d, %s: %s", len(self), self._limit, self._instead, error)


def train_batches(sources: Sequence, weights: Sequence[float], *, seed: int, start_step: int, batch_size: int,
                  canvases: Sequence[tuple[int, int]], augment: str, max_tokens: int, max_boxes: int,
                  num_negatives: int | None | Sequence[int | None], class_table: ClassTable, tokenizer: Tokenizer,
                  process_index: int = 0, process_count: int = 1, full_probability: float = 0.5, separator: str = prompts.SEPARATOR,
                  mlm_on_detection: bool = False, mask_size: int | None = None, parallel_reads: int = 8,
                  bad_records: BadRecords | None = None, packing: Packing = ALONE, wordings: Sequence[str] = (),
                  writes: bool = False, answers: AnswerList | None = None) -> Iterator[dict]:
    """Endless training batches of this host, from `start_step` on.

    Crowd boxes and boxes no wider or higher than a pixel are dropped. An image left without boxes stays, with
    an empty `box_mask`. Of more than `max_boxes` boxes a random `max_boxes` are kept. Where augmentation leaves
    less than a quarter of a box in sight, the box is dropped.

    Args:
      sources, weights: what to mix, and the share of each in the stream, in any unit.
      start_step: first step; the resumed stream equals the unbroken one bit for bit.
      batch_size: images of one step over all hosts.
      canvases: (H, W) pixels. All images of a step, on all hosts, lie on the same one, see `canvases.Order`; an
        image too large for it shrinks to fit.
      augment: how images are varied, see `ops`.
      num_negatives: absent classes drawn into a prompt at most. None writes *all* classes in the order of the
        source (fine-tuning on a short class list), and then their prompt has to fit. A sequence has one for each source.
      class_table: global class ids.
      process_index, process_count: this host among the hosts; host i gets the i-th slice of B/count rows.
      full_probability: how often exactly `num_negatives` are drawn, instead of 1 to `num_negatives`.
      mlm_on_detection: let masked language modelling score the names of present classes; by default class
        lists are never masked.
      mask_size: adds `masks`, bool [B, G, mask_size, mask_size]: each instance inside its box.
      parallel_reads: examples read at a time.
      bad_records: collects records that cannot be read, up to its limit; by default the first one ends the stream.
        In its place stands a record of the same source and canvas, drawn by (seed, position, attempt).
      packing: how many captions of other records stand around a caption, for sources that give captions without images.
      wordings: templates of class names, see `prompts.worded`; every prompt of class names takes one of them at random.
      writes: texts of sources that `writes` are to be written; else they are captions like others.
      answers: what questions of sources that `asks` are answered from; None: they are captions like others.
    Yields: dicts of `schema.batch_spec` for batch_size / process_count images.
    Raises: ValueError on settings that cannot work, and while iterating for a record that cannot be read,
      naming it.
    """
    rows = _rows_per_host(batch_size, process_index, process_count)
    read = train_reader(
        sources, weights, seed=seed, batch_size=batch_size, canvases=canvases, augment=augment, max_tokens=max_tokens,
        max_boxes=max_boxes, num_negatives=num_negatives, class_table=class_table, tokenizer=tokenizer,
        full_probability=full_probability, separator=separator, mlm_on_detection=mlm_on_detection, mask_size=mask_size,
        bad_records=bad_records, packing=packing, wordings=wordings, writes=writes, answers=answers)

    def read_row(counter):
        step, row = divmod(counter, rows)
        return read(step, process_index * rows + row)
    # The canvas may change from step to step.
    spec = _example_spec((None, None), max_tokens, max_boxes, mask_size, writes=writes, num_answers=len(answers or ()))
    return _read_ahead(read_row, range(start_step * rows, _FOREVER), rows, spec, parallel_reads)


def train_reader(sources, weights, *, seed, batch_size, canvases, augment, max_tokens, max_boxes, num_negatives,
                 class_table, tokenizer, full_probability=0.5, separator=prompts.SEPARATOR, mlm_on_detection=False,
                 mask_size=None, bad_records=None, packing=ALONE, wordings=(), writes=False,
                 answers=None) -> Callable[[int, int], dict]:
    """The function (step, row of the global batch) -> example that `train_batches` reads with, without TensorFlow."""
    _check_at_least(max_tokens=(max_tokens, 2), max_boxes=(max_boxes, 1), canvases=(min(map(min, canvases)), 1))
    steps = ops.parse(augment)
    order = Order(sources, weights, seed, batch_size, canvases, *ops.largest_resize(steps))
    _report(order, sources, steps)
    bad_records = BadRecords() if bad_records is None else bad_records
    class_ids = [class_table.ids(source.class_names) for source in sources]
    if num_negatives is None or isinstance(num_negatives, int):
        num_negatives = [num_negatives] * len(sources)
    worded = [prompts.wordings_of(source, wordings) for source in sources]
    for source, of_source, count in zip(sources, worded, num_negatives, strict=True):
        for names in of_source if count is None else ():
            _all_classes(source, tokenizer, max_tokens, separator, names)   # a prompt that does not fit fails now

    def other_captions(place, index, rng):
        """Captions of other records to pack around one; those that cannot be read are bad records like any other."""
        source, found = sources[place], []
        count = packing.draw(rng) if getattr(source, "replace_empty", False) and hasattr(source, "caption") else 0
        for other in rng.integers(len(source), size=count).tolist():
            if other != index:
                try:
                    with _naming(source, other):
                        found.append(source.caption(other))
                except ValueError as error:
                    bad_records.add(place, other, error)
        return found

    def text_of(record, place, index, rng):
        if writes and text_task(sources[place], "writes"):
            text, kept = _caption_text(record, tokenizer, max_tokens)
            return text | {"mlm_eligible": np.full(max_tokens, MLM_NEVER, np.int8)}, kept
        if "caption" in record:
            return _caption_text(record, tokenizer, max_tokens, other_captions(place, index, rng), rng)
        names = worded[place][rng.integers(len(wordings)) if len(wordings) > 1 else 0]
        classes = range(len(names)) if num_negatives[place] is None else prompts.sample_classes(
            names, record["classes"], tokenizer, rng, max_tokens=max_tokens, num_negatives=num_negatives[place],
            full_probability=full_probability, separator=separator, candidates=record.get("negatives"))
        caption, spans = prompts.detection_prompt([names[c] for c in classes], separator)
        spans = prompts.class_spans(names, classes, spans)
        return _class_text(record, tokenizer.encode(caption, max_tokens), spans, class_ids[place], mlm_on_detection)

    def readable_record(step, row):
        """(index of the source, index of the record, record, generator of all that is random about the example)"""
        place = order.place(step, row)
        source, index = sources[place.source], place.record
        for attempt in itertools.count():
            rng = np.random.default_rng((seed, step * batch_size + row, attempt))
            if attempt:
                index = order.another(step, place.source, rng)
            try:
                with _naming(source, index):
                    record = usable_record(source[index], source.class_names)
            except ValueError as error:
                bad_records.add(place.source, index, error)
                if attempt == _ATTEMPTS:
                    raise
            else:
                # A caption of which no box is left would teach that its words are nowhere.
                if len(record["boxes"]) or not getattr(source, "replace_empty", False) or attempt == _ATTEMPTS:
                    return place.source, index, record, rng

    def read(step, row):
        place, index, record, rng = readable_record(step, row)
        source, canvas = sources[place], order.canvas(step)
        with _naming(source, index):
            view = ops.augmented_view(steps, record, rng, canvas)
            record = _seen(record, view)
            text, kept = text_of(record, place, index, rng)
            if len(kept) > max_boxes:
                kept = np.sort(rng.choice(kept, max_boxes, replace=False))
            return _assemble(record, text, kept, view, canvas, max_boxes, mask_size) | _task(
                source, record, writes, answers) | {"source": np.int32(place)}
    return read


def eval_batches(source, *, batch_size: int, canvases: Sequence[tuple[int, int]], short_side: int,
                 max_size: int, max_tokens: int, max_boxes: int, tokenizer: Tokenizer,
                 class_table: ClassTable | None = None, prompt: prompts.EvaluationPrompt | None = None,
                 separator: str = prompts.SEPARATOR, mask_size: int | None = None, process_index: int = 0,
                 process_count: int = 1, parallel_reads: int = 8, indices: Sequence[int] | None = None,
                 mirrored: bool = False,
                 on_bad: Callable[[int, ValueError], None] | None = None) -> Iterator[dict]:
    """Every record of a source exactly once, without randomness; all hosts yield equally many batches.

    Records come in order; with several canvases, in order within each canvas, the smaller canvas first. The
    last batch of a canvas is filled with padding examples: example_id −1, every mask False, sizes and scale
    1. Detection records all carry one prompt. For a class list in several prompts, replace `token_ids` and
    `token_mask` of each batch by those of each prompt: images need not be read again. Captions stay as they
    are.

    Args:
      batch_size: images of one batch over all hosts.
      canvases: (H, W) choices; an image goes to the smallest that holds it, and shrinks to fit if none does.
        More than one needs `source.image_size(index) -> (height, width)`, so that nothing is decoded to plan.
      prompt: the prompt of detection records, one of `evaluation_prompts(prompts.names_of(source), ...)`; by
        default all classes in one. Boxes of classes that it lacks have an empty positive map.
      class_table: for `box_class` and `token_class`; None leaves them NO_CLASS.
      indices: which records; None: all.
      mirrored: show images and boxes left to right; words stay as they are.
      on_bad: called with index and error of a record that cannot be read, in whose place a padding example stands; by
        default the first one ends the stream.
      The rest is as in `train_batches`. Of more than `max_boxes` boxes the first are kept.
    Yields: dicts of `schema.batch_spec` for this host, and beside it `record`, int64 [B], the index in the source (−1 on
      a padding example), and from captions `phrase_tokens`, bool [B, G, T], the words of each of `text_ops.asked_phrases`
      of the record, of which the first `max_boxes` are asked.
    """
    rows = _rows_per_host(batch_size, process_index, process_count)
    _check_at_least(max_tokens=(max_tokens, 2), max_boxes=(max_boxes, 1), max_size=(max_size, 1),
                    short_side=(short_side, 1), canvases=(min(map(min, canvases)), 1))
    class_ids = (np.full(len(source.class_names), NO_CLASS, np.int32) if class_table is None
                 else class_table.ids(source.class_names))
    prompt = prompt or _all_classes(source, tokenizer, max_tokens, separator, prompts.names_of(source))
    spans = dict(zip(prompt.classes, prompt.spans)) if prompt else {}

    def spec_of(canvas):
        spec = _example_spec(canvas, max_tokens, max_boxes, mask_size) | {"record": ((), np.int64)}
        return spec if prompt else spec | {"phrase_tokens": ((max_boxes, max_tokens), np.bool_)}

    def read(canvas, of_canvas, counter):
        batch, row = divmod(counter, rows)
        position = batch * batch_size + process_index * rows + row
        if position >= len(of_canvas):
            return _padding_example(spec_of(canvas), tokenizer.pad_id)
        index = int(of_canvas[position])
        try:
            return example_of(canvas, index)
        except ValueError as error:
            if on_bad is None:
                raise
            on_bad(index, error)
            return _padding_example(spec_of(canvas), tokenizer.pad_id)

    def example_of(canvas, index):
        with _naming(source, index):
            stored = source[index]
            record = usable_record(stored, source.class_names)
            text, _ = (_caption_text(record, tokenizer, max_tokens) if "caption" in record else
                       _class_text(record, prompt.encoding, spans, class_ids))
            if not prompt:
                offsets = tokenizer.encode(record["caption"], max_tokens).offsets
                phrases = text_ops.positive_map(text_ops.asked_phrases(stored)[:max_boxes], offsets)
                text["phrase_tokens"] = _padded(phrases, max_boxes, False)
            text["mlm_eligible"] = np.full(max_tokens, MLM_NEVER, np.int8)
            kept = np.arange(min(len(record["boxes"]), max_boxes))     # also those of other prompts' classes
            size = record["image"].shape[:2]
            view = image_ops.whole(size, image_ops.resized_size(size, short_side, max_size, canvas))
            view = dataclasses.replace(view, mirrored=mirrored)
            return _assemble(record, text, kept, view, canvas, max_boxes, mask_size) | {
                "source": np.int32(0), "record": np.int64(index)}

    return itertools.chain.from_iterable(
        _read_ahead(functools.partial(read, canvas, of_canvas), range(-(-len(of_canvas) // batch_size) * rows),
                    rows, spec_of(canvas), parallel_reads)
        for canvas, of_canvas in eval_plan(source, canvases, short_side, max_size, indices))


# Before reading.

def _rows_per_host(batch_size, process_index, process_count):
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(f"batch_size: found {batch_size}, expected a positive multiple of the "
                         f"{process_count} hosts")
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index: found {process_index}, expected 0 to {process_count - 1}")
    return batch_size // process_count


def _check_at_least(**values):
    for key, (found, least) in values.items():
        if found < least:
            raise ValueError(f"{key}: found {found}, expected at least {least}")


def _all_classes(source, tokenizer, max_tokens, separator, names):
    """The prompt of all classes of a source, by what they are called; None for a source of captions."""
    if not source.class_names:
        return None
    try:
        return prompts.evaluation_prompts(names, tokenizer, max_tokens, separator=separator)[0]
    except ValueError as error:
        raise ValueError(f"source {source.name!r}: {error}") from error


def eval_plan(source, canvases: Sequence[tuple[int, int]], short_side: int, max_size: int,
              indices: Sequence[int] | None = None) -> list[tuple[tuple[int, int], Sequence[int]]]:
    """[(canvas, indices of the records that go there)], the smaller canvas first; the arguments are `eval_batches`'.

    Raises: ValueError for several canvases and a source that does not state the sizes of its images.
    """
    if len(canvases) == 1:
        return [(canvases[0], range(len(source)) if indices is None else indices)]
    if not hasattr(source, "image_size"):
        raise ValueError(f"source {source.name!r}: found {len(canvases)} canvases and no method "
                         f"image_size(index), expected that method or a single canvas")
    canvases = sorted(canvases, key=math.prod)
    found = zip(canvases, by_canvas(source, canvases, short_side, max_size))
    if indices is not None:
        found = [(canvas, np.intersect1d(of_canvas, indices)) for canvas, of_canvas in found]
    return [(canvas, of_canvas) for canvas, of_canvas in found if len(of_canvas)]


def _report(order, sources, steps):
    """Says once how the canvases share the steps and what they save."""
    if len(order.canvases) == 1:
        return
    shares = ", ".join(f"{height}x{width} {share:.1%}" for (height, width), share in zip(order.canvases, order.shares))
    short, longest = ops.largest_resize(steps)
    sides = next((op.short_sides for op in reversed(steps) if isinstance(op, ops.Resize)), (short,))
    padding = order.padding(sources, sides, longest)
    log.info("canvases, share of the steps: %s%s", shares, "" if padding is None else
             f"; about {padding['canvases']:.0%} of the pixels are padding, on one square {padding['square']:.0%}")


def _example_spec(canvas, max_tokens, max_boxes, mask_size, **tasks):
    """key -> (shape, dtype) of one example."""
    batched = batch_spec(1, canvas, max_tokens, max_boxes, mask_size, **tasks)
    return {key: (shape[1:], dtype) for key, (shape, dtype) in batched.items()}


# One example.

@contextlib.contextmanager
def _naming(source, index):
    """Whatever goes wrong inside becomes a ValueError that names the record."""
    try:
        yield
    except Exception as error:
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ValueError(f"source {source.name!r}, record {index}: {kind}{error}") from error


def usable_record(record, class_names):
    """The record with its image read, boxes clipped, crowd and degenerate boxes gone.

    Args:
      record: see `schema.py`. class_names: of its source.
    Raises: ValueError for what cannot be trained on: a broken image, classes or spans that do not fit.
    """
    if "caption" not in record and not class_names:
        raise ValueError("found neither a caption in the record nor class names in the source, expected one")
    image = image_ops.pixels_of(record)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image: found {image.dtype} {list(image.shape)}, expected uint8 [h, w, 3]")
    boxes, keep = image_ops.clip_boxes(record["boxes"], image.shape[:2])
    classes = np.asarray(record["classes"], np.int32).reshape(-1)
    if len(classes) != len(boxes):
        raise ValueError(f"classes: found {len(classes)} for {len(boxes)} boxes, expected one for each")
    least, end = (0, len(class_names)) if "caption" not in record else (NO_CLASS, 0)
    if len(classes) and not (least <= classes.min() and classes.max() < end):
        raise ValueError(f"classes: found {classes.min()} to {classes.max()}, expected {least} to {end - 1}")
    keep &= ~np.asarray(record.get("is_crowd", np.zeros(len(boxes))), np.bool_)
    usable = record | {"image": image, "boxes": boxes[keep], "classes": classes[keep]}
    if "caption" in record:
        if len(record["spans"]) != len(boxes):
            raise ValueError(f"spans: found {len(record['spans'])} for {len(boxes)} boxes, "
                             f"expected a list for each")
        usable["spans"] = [spans for spans, kept in zip(record["spans"], keep) if kept]
    if "masks" in record:
        usable["masks"] = np.asarray(record["masks"])[keep]
    return usable


def _seen(record, view):
    """The record as a view has it, still in pixels of its image: boxes cut, those out of sight gone, words swapped,
    those of answers too."""
    boxes, left_over = image_ops.cut_boxes(record["boxes"], view)
    keep = left_over >= _LEAST_LEFT_OVER
    seen = record | {"boxes": boxes[keep], "classes": record["classes"][keep]}
    if "masks" in record:
        seen["masks"] = record["masks"][keep]
    if "caption" in record:
        seen["spans"] = [spans for spans, kept in zip(record["spans"], keep) if kept]
        if view.mirrored and view.swap_words:
            seen["caption"], seen["spans"] = ops.mirrored_caption(record["caption"], seen["spans"])
            seen["questions"] = [question | {"answers": [ops.mirrored_caption(answer, [])[0] for answer in question.get("answers", ())]}
                                 for question in record.get("questions", ())]
    return seen


def _caption_text(record, tokenizer, max_tokens, others=(), rng=None):
    """Text keys of a caption, packed with others, and the indices of the boxes to keep: all.

    Only words of the caption itself are masked (GLIP: a choice, `MLM_OBJ_FOR_ONLY_POSITIVE`).
    """
    caption, spans, own = record["caption"], record["spans"], (0, len(record["caption"]))
    if others:
        caption, spans, own = pack(caption, spans, others, tokenizer, max_tokens, rng)
    encoding = tokenizer.encode(caption, max_tokens)
    is_own = (encoding.offsets[:, 0] >= own[0]) & (encoding.offsets[:, 1] <= own[1])
    return {
        "token_ids": encoding.ids,
        "token_mask": encoding.mask,
        "positive_map": text_ops.positive_map(spans, encoding.offsets),                 # [n, T]
        "box_class": np.full(len(record["boxes"]), NO_CLASS, np.int32),
        "token_class": np.full(max_tokens, NO_CLASS, np.int32),
        "mlm_eligible": np.where(is_own, text_ops.mlm_eligible_caption(encoding.offsets), MLM_NEVER).astype(np.int8),
    }, np.arange(len(record["boxes"]))


def _task(source, record, writes, answers):
    """Keys of an example that say what its text is for, where the run writes or answers."""
    if not writes and answers is None:
        return {}
    causal = writes and text_task(source, "writes")
    found = {"causal": np.bool_(causal), "is_grounded": np.bool_(text_task(source, "names_boxes") and not causal)}
    if answers is not None:
        asks = text_task(source, "asks")
        if asks and len(record["questions"]) != 1:
            raise ValueError(f"questions: found {len(record['questions'])}, expected one, the caption")
        if asks and not record["questions"][0].get("answers"):
            raise ValueError("question: found no answers to learn, expected what people said; of `vqa` annotations_path names their file")
        found |= {"is_question": np.bool_(asks),
                  "answer_scores": answers.scores(record["questions"][0]["answers"] if asks else ())}
    return found


def _class_text(record, encoding, spans, class_ids, mlm=False):
    """Text keys of a class list, and the indices of the boxes to keep: those whose class is in the prompt.

    Args:
      spans: class index of the source -> span.
      class_ids: int [classes of the source], global ids.
    """
    kept = np.flatnonzero([c in spans for c in record["classes"].tolist()])
    rows = [[spans[c]] if c in spans else [] for c in record["classes"].tolist()]
    positive = text_ops.positive_map(rows, encoding.offsets)                            # [n, T]
    classes = text_ops.token_class(spans, encoding.offsets)                             # [T], of the source
    return {
        "token_ids": encoding.ids,
        "token_mask": encoding.mask,
        "positive_map": positive,
        "box_class": class_ids[record["classes"]],
        "token_class": np.where(classes == NO_CLASS, NO_CLASS, class_ids[classes]).astype(np.int32),
        "mlm_eligible": (text_ops.mlm_eligible_detection(positive, encoding.offsets) if mlm
                         else np.full(len(encoding.ids), MLM_NEVER, np.int8)),
    }, kept


def _assemble(record, text, kept, view, canvas, max_boxes, mask_size):
    """One example without its `source`: the view of the record on the canvas, boxes `kept` padded."""
    image, boxes = image_ops.show(record["image"], record["boxes"], view)
    example = text | {
        "image": image_ops.pad(image, canvas),
        "image_size": np.array(view.size, np.int32),
        "boxes": _padded(boxes[kept], max_boxes, 0),
        "box_mask": np.arange(max_boxes) < len(kept),
        "positive_map": _padded(text["positive_map"][kept], max_boxes, False),
        "box_class": _padded(text["box_class"][kept], max_boxes, NO_CLASS),
        "example_id": np.int64(record["image_id"]),
        "original_size": np.array(record["image"].shape[:2], np.int32),
        "scale": (np.array(view.size) / view.window_size).astype(np.float32),
    }
    if mask_size is not None:
        masks = record.get("masks", np.zeros((len(boxes), *record["image"].shape[:2]), np.bool_))
        crops = image_ops.crop_masks(masks[kept], record["boxes"][kept], mask_size)
        example["masks"] = _padded(crops[:, :, ::-1] if view.mirrored else crops, max_boxes, False)
    return example


def _padded(rows, length, value):
    padded = np.full((length, *rows.shape[1:]), value, rows.dtype)
    padded[:len(rows)] = rows
    return padded


def _padding_example(spec, pad_id):
    """Fills the last batch: nothing in it is real, nothing divides by zero."""
    fill = {"example_id": -1, "record": -1, "token_ids": pad_id, "box_class": NO_CLASS, "token_class": NO_CLASS,
            "mlm_eligible": MLM_NEVER, "image_size": 1, "original_size": 1, "scale": 1}
    return {key: np.full(shape, fill.get(key, 0), dtype) for key, (shape, dtype) in spec.items()}


# Reading ahead.

def _read_ahead(read, counters, rows, spec, parallel_reads):
    """Batches of `rows` examples read(counter), in order, `parallel_reads` at a time, two batches ahead."""
    stream = _stream(read, counters, rows, spec, parallel_reads)
    _open_streams.add(stream)
    return stream


def _stream(read, counters, rows, spec, parallel_reads):
    tf = _tensorflow()
    failures = {}

    def guarded(counter):
        try:
            example = read(int(counter))
        except Exception as error:
            failures[int(counter)] = error         # TensorFlow would pass on a traceback as text
            raise
        return [example[key] for key in spec]

    def tensors(counter):
        found = tf.numpy_function(guarded, [counter], [tf.as_dtype(dtype) for _, dtype in spec.values()])
        return {key: tf.ensure_shape(tensor, shape) for tensor, (key, (shape, _)) in zip(found, spec.items())}

    dataset = tf.data.Dataset.range(counters.start, counters.stop)
    dataset = dataset.map(tensors, num_parallel_calls=parallel_reads, deterministic=True)
    iterator = dataset.batch(rows, drop_remainder=True).prefetch(2).as_numpy_iterator()
    while True:
        try:
            batch = next(iterator)
        except StopIteration:
            return
        except tf.errors.OpError:
            if not failures:
                raise
            raise failures[min(failures)] from None
        yield batch


@functools.cache
def _tensorflow():
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow as tf
    tf.config.set_visible_devices([], "GPU")       # or it would take the memory of the accelerator for itself
    atexit.register(_close_streams)
    return tf


def _close_streams():
    """A stream still reading when the interpreter ends would wait for it for ever, and it for the stream."""
    for stream in list(_open_streams):
        stream.close()
