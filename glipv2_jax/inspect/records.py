"""Every record of a source read once: what is wrong with it, and what there is to count."""
import collections
import concurrent.futures
import contextlib
import hashlib
import os
import warnings
from array import array

import numpy as np

from glipv2_jax.metrics import Progress
from input_pipeline import image_ops, prompts, text_ops

LARGE_IMAGE = 25_000_000             # pixels; such an image takes half a second to decode
SMALL, MEDIUM = 32**2, 96**2         # pixels of area, where COCO's small and medium objects end
# What readers may raise on broken data, ValueError for what they expected.
BROKEN = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, OSError, RuntimeError)
_CHUNK = 1024                        # records handed to the threads at a time
_CJK = "\u2e80"                      # from here on, scripts do not put spaces between words


class Findings:
    """What is known of a source after its records were read.

    problems: list of str, what has to be mended, each naming its record. notes: Counter of what is worth knowing.
    records: how many were read. class_boxes, class_images: int [classes], boxes and images of each class.
    cut_classes: Counter of class → images whose prompt had no room for it.
    phrases: Counter of the caption phrases of boxes, lower case. box_sizes: Counter of "small", "medium", "large".
    boxes, tokens: Counter of boxes and of prompt tokens of a record; sides: Counter of (height, width).
    image_ids: int64 array; files, pixels: uint64 hashes of file names and of decoded pixels, empty where unknown.
    """

    def __init__(self, name, class_names, problems=()):
        self.name, self.class_names, self.problems = name, tuple(class_names), list(problems)
        self.notes, self.phrases, self.box_sizes = collections.Counter(), collections.Counter(), collections.Counter()
        self.boxes, self.tokens, self.sides = collections.Counter(), collections.Counter(), collections.Counter()
        self.records = self.captions = 0
        self.class_boxes = np.zeros(len(self.class_names), np.int64)
        self.class_images = np.zeros(len(self.class_names), np.int64)
        self.cut_classes = collections.Counter()
        self.image_ids, self.texts = array("q"), array("Q")
        self.files, self.pixels = array("Q"), array("Q")
        self.all_classes_tokens = None                         # of the prompt of all class names


def inspect(source, findings, tokenizer, *, max_tokens, num_negatives, repaired=False, hashed=False, keys_only=False,
            limit=0, threads=None):
    """Reads the records of a source and adds what it finds to `findings`.

    Args:
      findings: Findings of the source, with the problems of opening it.
      max_tokens, num_negatives: as in `train_batches`: prompts of class names are drawn as in training.
      repaired: the source was asked to repair bad boxes; boxes over the border are then notes.
      hashed: keep a hash of the pixels of each image.
      keys_only: only what tells images apart; nothing is decoded unless `hashed`.
      limit: records to read, evenly spread; 0: all. Ids and file names alone are read of all.
      threads: None: as many as there are processors, and four more, as much of the time is spent on reading files.
    """
    if limit and len(source) > limit and not (keys_only and not hashed):
        indices = np.unique(np.linspace(0, len(source) - 1, limit).astype(int))
        findings.notes[f"only {len(indices):,} of {len(source):,} records were read"] = 1
    else:
        indices = range(len(source))

    def read(index):
        if keys_only:
            return _keys(source, int(index), hashed)
        return _examined(source, int(index), tokenizer, max_tokens, num_negatives, repaired, hashed)
    if not keys_only:
        _check_classes(findings, prompts.names_of(source), tokenizer, max_tokens, num_negatives)
    workers = threads or (os.cpu_count() or 1) + 4
    with warnings.catch_warnings(), concurrent.futures.ThreadPoolExecutor(workers) as pool, \
            Progress(f"inspect {findings.name}", total=len(indices), unit="records") as progress:
        warnings.simplefilter("ignore")                        # Pillow's, on files that are read all the same
        for start in range(0, len(indices), _CHUNK):
            for found in pool.map(read, indices[start:start + _CHUNK]):
                _add(findings, found)
                progress.advance()
    if not keys_only:
        _check_ids(findings, unique=not findings.captions)


# One record.

def _keys(source, index, hashed):
    """dict: image_id, file and pixels of a record, where they can be had; `problems`, a list."""
    found = {"problems": [], "notes": []}
    with _problem(found, _where(source, index)):
        record = source[index]
        found["image_id"] = _photograph(record)
        found["file"] = _file(source, index)
        if hashed:
            found["pixels"] = _hash(image_ops.pixels_of(record))
    return found


def _examined(source, index, tokenizer, max_tokens, num_negatives, repaired, hashed):
    """dict of all that one record tells; see Findings."""
    found = {"problems": [], "notes": []}
    where = _where(source, index)
    record = None
    with _problem(found, where):
        record = source[index]
    if record is None:
        return found
    found["image_id"], found["file"] = _photograph(record), _file(source, index)
    found["record_id"] = int(record["image_id"])
    where = _where(source, index, record["image_id"])
    size = None
    with _problem(found, where):
        image = image_ops.pixels_of(record)
        size = image.shape[:2]
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"found an image of {image.dtype} {list(image.shape)}, expected uint8 [height, width, 3]")
        if hasattr(source, "image_size") and tuple(source.image_size(index)) != size:
            stated = source.image_size(index)
            raise ValueError(f"found {size[1]}x{size[0]} pixels, expected {stated[1]}x{stated[0]} as it states")
        found["size"] = size
        if size[0] * size[1] > LARGE_IMAGE:
            found["notes"].append(f"images of more than {LARGE_IMAGE // 10**6} million pixels: slow to decode")
        if hashed:
            found["pixels"] = _hash(image)
    with _problem(found, where):
        _check_boxes(found, record, size, where, repaired)
    with _problem(found, where):
        if "caption" in record:
            _check_caption(found, record, tokenizer, max_tokens, where)
        else:
            _check_labels(found, record, prompts.names_of(source), tokenizer, max_tokens, num_negatives, index)
    return found


def _check_boxes(found, record, size, where, repaired):
    boxes = np.asarray(record["boxes"], np.float64)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"found boxes of shape {list(boxes.shape)}, expected [n, 4]")
    crowd = np.asarray(record.get("is_crowd", np.zeros(len(boxes))), np.bool_)
    sides = boxes[:, 2:] - boxes[:, :2] + 1
    wrong = [(~np.isfinite(boxes).all(axis=1), "found a box that is not finite"),
             ((sides < 0).any(axis=1), "found an inverted box"),
             ((sides == 0).any(axis=1), "found a box of zero area")]
    if size is not None:
        last = np.array([size[1], size[0]]) - 1
        over = np.maximum((-boxes[:, :2]).max(axis=1), (boxes[:, 2:] - last).max(axis=1)) if len(boxes) else np.zeros(0)
        outside = (boxes[:, :2] > last).any(axis=1) | (boxes[:, 2:] < 0).any(axis=1)
        wrong += [(outside, f"found a box outside the {size[1]}x{size[0]} image"),
                  (over > image_ops.BORDER_PIXELS, f"found a box over the border of the {size[1]}x{size[0]} image")]
    bad = np.zeros(len(boxes), np.bool_)
    for which, what in wrong:
        for box in boxes[which & ~bad].round(2).tolist():
            if repaired and "border" in what:
                found["notes"].append("boxes over the border, cut by bad_boxes='repair'")
            else:
                found["problems"].append(f"{where}: {what}, xyxy {box}")
        bad |= which
    good = sides[~bad & ~crowd]
    areas = good.prod(axis=1)
    small, large = int((areas < SMALL).sum()), int((areas >= MEDIUM).sum())
    found["box_sizes"] = {"small": small, "medium": len(areas) - small - large, "large": large}
    found["boxes"] = int((~crowd).sum())
    thin = int((good <= 1).any(axis=1).sum())
    rows = [(tuple(box), label) for box, label in zip(boxes.tolist(), _labels(record))]
    found["notes"] += (["crowd boxes: scored, never trained on"] * int(crowd.sum())
                       + ["boxes no wider or higher than a pixel: not trained on"] * thin
                       + ["boxes that stand twice in their record, with the same words"] * (len(rows) - len(set(rows)))
                       + ["records without a box"] * (not len(boxes)))


def _labels(record):
    """What names each box, in a form that can be compared."""
    if "caption" in record:
        return [tuple(map(tuple, spans)) for spans in record["spans"]]
    return np.asarray(record["classes"]).reshape(-1).tolist()


def _check_caption(found, record, tokenizer, max_tokens, where):
    caption, spans = record["caption"], record["spans"]
    found["text"] = _hash(caption.encode())
    if not caption.strip():
        raise ValueError("found an empty caption")
    if len(spans) != len(record["boxes"]):
        raise ValueError(f"found spans for {len(spans)} boxes, expected them for {len(record['boxes'])}")
    found["phrases"], sound = [], []
    for of_box in spans:
        kept = []
        for begin, end in of_box:
            text = caption[max(begin, 0):max(end, 0)]
            if not 0 <= begin < end <= len(caption):
                found["problems"].append(f"{where}: found span [{begin}, {end}], expected 0 ≤ begin < end ≤ "
                                         f"{len(caption)} characters of {caption[:60]!r}")
            elif not text.strip():
                found["problems"].append(f"{where}: found span [{begin}, {end}] on white space of {caption[:60]!r}")
            else:
                kept.append((begin, end))
                if _inside_word(caption, begin) or _inside_word(caption, end):
                    found["problems"].append(f"{where}: found span [{begin}, {end}] that cuts a word, {text!r} in "
                                             f"{caption[max(begin - 12, 0):end + 12]!r}")
        sound.append(kept)
        found["phrases"] += [" ".join(caption[b:e] for b, e in kept).lower()] * bool(kept)
    encoding = tokenizer.encode(caption, max_tokens)
    found["tokens"] = encoding.num_tokens
    named = text_ops.positive_map(sound, encoding.offsets).any(axis=1)
    unseen = sum(bool(kept) and not seen for kept, seen in zip(sound, named))
    found["notes"] += ([f"captions longer than the {max_tokens} tokens"] * (encoding.num_tokens > max_tokens)
                       + [f"boxes whose words come after the {max_tokens} tokens"] * unseen
                       + ["boxes without words"] * sum(not of_box for of_box in spans))


def _inside_word(text, place):
    """Whether a word goes on over the border before character `place`."""
    before, after = text[place - 1:place], text[place:place + 1]
    return before.isalnum() and after.isalnum() and max(before, after) < _CJK


def _check_labels(found, record, names, tokenizer, max_tokens, num_negatives, index):
    classes = np.asarray(record["classes"], np.int64).reshape(-1)
    if not names:
        raise ValueError("found neither a caption in the record nor class names in the source, expected one")
    if len(classes) != len(record["boxes"]):
        raise ValueError(f"found {len(classes)} classes for {len(record['boxes'])} boxes")
    if len(classes) and not 0 <= classes.min() <= classes.max() < len(names):
        raise ValueError(f"found classes {classes.min()} to {classes.max()}, expected 0 to {len(names) - 1}")
    crowd = np.asarray(record.get("is_crowd", np.zeros(len(classes))), np.bool_)
    found["classes"] = classes[~crowd]
    if num_negatives is None:
        return
    chosen = prompts.sample_classes(names, found["classes"], tokenizer, np.random.default_rng(index),
                                    max_tokens=max_tokens, num_negatives=num_negatives,
                                    candidates=record.get("negatives"))
    found["tokens"] = tokenizer.count(prompts.detection_prompt([names[c] for c in chosen])[0]) + prompts.SPECIAL_TOKENS
    texts = {prompts.canonical_name(names[c]) for c in chosen}
    found["cut"] = [int(c) for c in np.unique(found["classes"]) if prompts.canonical_name(names[c]) not in texts]


@contextlib.contextmanager
def _problem(found, where):
    """Whatever goes wrong inside is a problem of the record."""
    try:
        yield
    except BROKEN as error:
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        text = f"{kind}{error}"
        found["problems"].append(text if where in text else f"{where}: {text}")


def _where(source, index, image_id=None):
    with contextlib.suppress(*BROKEN):
        return (f"{source.name}, " + (f"record {index}" if image_id is None else f"image {image_id}")
                + (f" ({source.file_name(index)})" if hasattr(source, "file_name") else ""))
    return f"{source.name}, record {index}"


def _photograph(record):
    """The id of the photograph: records of captions and questions have ids of their own beside it."""
    about = record.get("about", {})
    return int(about.get("original_img_id", about.get("image_id", record["image_id"])))


def _file(source, index):
    """Hash of the file's name without folders, or None."""
    return _hash(os.path.basename(source.file_name(index)).encode()) if hasattr(source, "file_name") else None


def _hash(content):
    """64 bits of text, or of the pixels and shape of an image."""
    if isinstance(content, np.ndarray):
        content = repr(content.shape).encode() + np.ascontiguousarray(content).tobytes()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest())


# All records together.

def _add(findings, found):
    findings.records += 1
    findings.problems += found["problems"]
    findings.notes.update(found["notes"])
    findings.box_sizes.update(found.get("box_sizes", {}))
    findings.phrases.update(found.get("phrases", ()))
    for key, counter in (("boxes", findings.boxes), ("tokens", findings.tokens), ("size", findings.sides)):
        if key in found:
            counter[found[key]] += 1
    if "classes" in found:
        findings.class_boxes += np.bincount(found["classes"], minlength=len(findings.class_names))
        findings.class_images[np.unique(found["classes"])] += 1
    findings.cut_classes.update(found.get("cut", ()))
    if found.get("cut"):
        findings.notes["images whose own classes do not fit the prompt: boxes of the rest are dropped"] += 1
    findings.captions += "text" in found
    # Arrays grow together, so that place k in each is the same record; 0 stands for what could not be read.
    if "image_id" in found:
        findings.image_ids.append(found["image_id"])
        findings.files.append(found.get("file") or 0)
        findings.pixels.append(found.get("pixels", 0))
        findings.texts.append(found.get("text", 0))


def _check_classes(findings, names, tokenizer, max_tokens, num_negatives):
    """Class names that no prompt can hold."""
    texts = [prompts.canonical_name(name) for name in names]
    findings.problems += [f"{findings.name}: class {name!r} leaves no words for the prompt"
                          for name, text in zip(names, texts) if not tokenizer.count(text)]
    doubled = [text for text, count in collections.Counter(texts).items() if count > 1]
    findings.notes["classes whose text equals another's: they share its words"] += len(doubled)
    if names:
        prompt = prompts.prompt_of(names, range(len(names)), tokenizer, max_tokens)
        findings.all_classes_tokens = prompt.encoding.num_tokens
        if num_negatives is None and prompt.encoding.num_tokens > max_tokens:
            cut = sum(not prompt.tokens[c] for c in range(len(names)))
            findings.problems.append(
                f"{findings.name}: found {prompt.encoding.num_tokens} tokens in the prompt of all {len(names)} classes, "
                f"expected at most {max_tokens}: {cut} classes are cut; raise data.max_tokens, or draw negatives "
                "(data.num_negatives)")
        if num_negatives is None:
            findings.tokens[prompt.encoding.num_tokens] += 1


def _check_ids(findings, unique):
    """Ids and pictures that stand in several records; of captions that is the rule."""
    ids, texts = np.array(findings.image_ids, np.int64), np.array(findings.texts, np.uint64)
    both = np.stack([ids.astype(np.uint64), texts], axis=1) if len(ids) else np.zeros((0, 2), np.uint64)
    _, counts = np.unique(both, axis=0, return_counts=True)
    if not unique:
        findings.notes["records that repeat an image with the same caption"] += int((counts - 1).sum())
        return
    repeated, counts = np.unique(ids, return_counts=True)
    findings.problems += [f"{findings.name}: image id {key} stands in {count} records, expected each once"
                          for key, count in zip(repeated[counts > 1].tolist(), counts[counts > 1].tolist())]
    for what, hashes in (("file names that stand in several records", findings.files),
                         ("pictures that stand in several records, pixel for pixel", findings.pixels)):
        hashes = np.array(hashes, np.uint64)
        hashes = hashes[hashes > 0]
        findings.notes[what] += len(hashes) - len(np.unique(hashes))
