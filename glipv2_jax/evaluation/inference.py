"""A model on every record of a source: prompts, views, parts. Every record exactly once, on any number of devices."""
import dataclasses
import functools

import jax
import numpy as np

from glipv2_jax.detection.masks import PastedMasks
from glipv2_jax.evaluation import augmented_views
from glipv2_jax.evaluation.parts import Found, Parts
from glipv2_jax.evaluation.sweep import batches, sweep
from glipv2_jax.predictor import PAD_MULTIPLE, averaged
from input_pipeline import prompts
from input_pipeline.masks import encode_mask


@dataclasses.dataclass(frozen=True)
class Chunk:
    """One prompt of a class list, in one or several wordings.

    classes: indices into the class list. captions: the text of each wording.
    encoded: [(words, mask [1, T])] of each wording, on the device.
    token_to_label: [rows, wordings × T] float; shares of a class's words, which sum to 1 in each wording.
    """
    classes: np.ndarray
    captions: tuple[str, ...]
    encoded: list
    token_to_label: np.ndarray


def class_prompts(names, tokenizer, max_tokens, classes_per_prompt):
    """Prompts of a class list, each a list of its wordings.

    Args:
      names: a list for each wording, of the name or Phrase of every class.
      classes_per_prompt: consecutive classes in one prompt; None: all.
    Raises: ValueError for a prompt that is too long.
    """
    wordings = [prompts.evaluation_prompts(of_wording, tokenizer, max_tokens, classes_per_prompt) for of_wording in names]
    return list(zip(*wordings))


def detect(predictor, mesh, config, source, tokenizer, folder, title, key, classes=(), masks=True, *, chosen=None, on_bad=None):
    """Runs a model on every record of a source, or on what a run that was stopped left to do.

    Args:
      predictor: Predictor with its parameters. mesh: its mesh. config: the run's config.
      source: of class names, or of captions whose phrases are asked for.
      folder: for the parts. title: of the progress bar.
      key: JSON-able dict that names the weights; what is asked, settings and data are added here.
      classes: what `class_prompts` gives, for a source of class names.
      masks: whether masks are asked for, where the model has a mask head.
      chosen: function of a Found: what of it is stored; None: all.
      on_bad: called with index and error of a record that cannot be read, which is then in no part.
    Returns: Parts.
    Raises: ValueError for a record that cannot be read, without `on_bad`, and for masks of several views, which nobody has
      defined.
    """
    e, masks = config.eval, masks and predictor.with_masks
    if e.views and masks:
        raise ValueError(f"eval.views: found {len(e.views)} views and a model with a mask head, expected eval.masks=False "
                         "beside them: boxes are merged, masks cannot be")
    chunks = _encoded(predictor, classes, config.data.max_tokens)
    views = [augmented_views.View(*view) for view in e.views]
    prompt = classes[0][0] if classes else None
    choose = chosen or (lambda found: found)

    def run(canvas, indices, view):
        """Yields for each batch a list of (Found, its (height, width) on the canvas, that of the file), as the records."""
        options = {"prompt": prompt, "on_bad": on_bad}
        if view:
            canvas = _scaled(canvas, e.short_side, view)
            options |= {"short_side": view.short_side, "max_size": view.max_size, "mirrored": view.mirrored}
        for batch in batches(mesh, config, source, tokenizer, canvas, indices, **options):
            # What is not stored needs no mask. Of views only what they give together can be chosen from.
            yield list(_batch(predictor, batch, chunks, predictor.candidates, lambda found: found) if view else
                       _batch(predictor, batch, chunks, functools.partial(predictor.decode, masks=masks), choose))

    def look(canvas, indices, advance):
        seen = {}
        for view in views or [None]:
            for batch in run(canvas, indices, view):
                for found, *sizes in batch:
                    seen.setdefault(found.record, []).append((view, found, *sizes))
                advance(len(batch))
        return [choose(_merged(of_record, e)) if views else of_record[0][1] for of_record in seen.values()]
    key = key | {"prompts": [chunk.captions for chunk in chunks], "masks": masks}
    return sweep(Parts, folder, key, config, source, title, look, passes=max(len(views), 1), unit="views" if views else "images")


def _encoded(predictor, classes, max_tokens):
    rows = max((len(wordings[0].classes) for wordings in classes), default=0)   # one shape for all: one compilation
    chunks = []
    for wordings in classes:
        token_to_label = np.zeros((len(wordings), rows, max_tokens), np.float32)
        for table, wording in zip(token_to_label, wordings):
            for row, class_index in enumerate(wording.classes):
                tokens = wording.tokens[class_index]
                table[row, tokens] = 1 if len(wordings) == 1 else 1 / max(len(tokens), 1)
        encoded = [(predictor.encode_text(wording.encoding.ids[None], wording.encoding.mask[None]),
                    wording.encoding.mask[None]) for wording in wordings]
        chunks.append(Chunk(np.array(wordings[0].classes), tuple(wording.caption for wording in wordings), encoded,
                            np.concatenate(token_to_label, axis=-1)))
    return chunks


def _batch(predictor, batch, chunks, decode, choose):
    """Yields (Found with what is chosen of it, size on the canvas, size of the file) of a global batch's records."""
    levels = predictor.encode_image(batch)
    keys = ("record", "scale", "image_size", "original_size", *(() if chunks else ("phrase_tokens",)))
    about = predictor.gather({key: batch[key] for key in keys})
    results = []
    if chunks:
        for chunk in chunks:
            raw = averaged([predictor.predict(levels, words, mask) for words, mask in chunk.encoded])
            found = decode(raw, chunk.token_to_label, batch)
            results.append(found | {"labels": chunk.classes[found["labels"].clip(0)]})
    else:
        words = predictor.encode_text(batch["token_ids"], batch["token_mask"])
        raw = predictor.predict(levels, words, batch["token_mask"])
        results.append(decode(raw, about["phrase_tokens"], batch))
    for i, record in enumerate(about["record"].tolist()):
        if record < 0:
            continue                                                      # padding of the last batch
        kept = [{key: value[i][found["mask"][i]] for key, value in found.items()} for found in results]
        size = tuple(about["original_size"][i].tolist())
        one = Found(record, record, tuple(about["scale"][i].tolist()),
                    *(np.concatenate([part[key] for part in kept]) for key in ("boxes", "scores", "labels")))
        if "masks" in results[0]:
            soft = np.concatenate([part["masks"] for part in kept])
            one = dataclasses.replace(one, masks=PastedMasks(soft, one.original_boxes(), size))
        one = choose(one)
        if one.masks is not None:
            # As run lengths from here on, and by the process that writes them.
            masks = one.masks if jax.process_index() == 0 else ()
            one = dataclasses.replace(one, masks=[encode_mask(mask) for mask in masks])
        yield one, tuple(about["image_size"][i].tolist()), size


def _scaled(canvas, short_side, view):
    """The canvas on which a view's images lie: as much larger or smaller as they are."""
    longest = -(-view.max_size // PAD_MULTIPLE) * PAD_MULTIPLE
    return tuple(min(-(-side * view.short_side // (short_side * PAD_MULTIPLE)) * PAD_MULTIPLE, longest) for side in canvas)


def _merged(seen, settings):
    """One Found, in pixels of the file, from what each view gave of a record."""
    found = []
    for view, one, *sizes in seen:
        boxes, keep = view.to_original(one.boxes, *sizes)
        found.append((boxes, one.scores[keep], one.labels[keep]))
    merged = augmented_views.merge(*(np.concatenate(part) for part in zip(*found)), settings.merge, settings.merge_threshold)
    return Found(one.record, one.image_id, (1.0, 1.0), *merged)
