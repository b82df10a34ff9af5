"""A model on data sets: detections, scores, protocol and pictures. Every image exactly once, on any number of devices."""
import importlib.metadata
import pathlib
import time

import jax
import numpy as np

from glipv2_jax import draw, sharding
from glipv2_jax.evaluation import coco_ap, coco_json, phrase_recall
from glipv2_jax.metrics import Progress
from input_pipeline import eval_batches, image_ops, prompts, text_ops
from input_pipeline.schema import NO_CLASS


def evaluate(predictor, mesh, config, sources, tokenizer, workdir, checkpoint):
    """Scores a model on every evaluation source and writes what it found.

    Args:
      predictor: Predictor. mesh: its mesh. config: the run's config.
      sources: list of (name, source). The first one's files go to `workdir`, the others' to `workdir/<name>`.
      tokenizer: input_pipeline Tokenizer. workdir: folder of the results.
      checkpoint: what the protocol calls the weights.
    Returns: dict "name/metric" → float. Process 0 writes `detections.json`, `protocol.json` and `pictures.jpg`.
    """
    scores = {}
    for place, (name, source) in enumerate(sources):
        started = time.perf_counter()
        folder = pathlib.Path(workdir) if place == 0 else pathlib.Path(workdir) / name
        run = _detect_classes if source.class_names else _ground_captions
        found, pictures, protocol = run(predictor, mesh, config, source, tokenizer, folder, name)
        scores |= {f"{name}/{key}": value for key, value in found.items() if value is not None}
        if jax.process_index() == 0:
            e = config.eval
            coco_json.write_protocol(folder / "protocol.json", {
                "checkpoint": checkpoint, "dataset": f"{source.name}, {len(source)} images",
                "canvas": f"short side {e.short_side}, long side at most {e.max_size}, on the smallest of "
                          f"{[tuple(c) for c in e.canvases]} pixels that holds it",
                "score_threshold": e.score_threshold, "nms_threshold": e.nms_threshold,
                "max_detections": e.max_detections, "pre_nms_top_n": e.pre_nms_top_n, "aggregation": e.aggregation,
                "scores": found, "seconds": time.perf_counter() - started, **protocol})
            if pictures:
                titles = [title for _ in range(len(pictures) // 2) for title in ("truth", "prediction")]
                draw.sheet(pictures, columns=4, titles=titles, cell_width=420).save(folder / "pictures.jpg", quality=88)
    return scores


def _batches(config, source, tokenizer, mesh, name, prompt=None):
    """Evaluation batches on the mesh, with a progress bar."""
    e, d = config.eval, config.data
    host = eval_batches(
        source, batch_size=e.batch_size, canvases=[tuple(c) for c in e.canvases], short_side=e.short_side,
        max_size=e.max_size, max_tokens=d.max_tokens, max_boxes=d.max_boxes, tokenizer=tokenizer, prompt=prompt,
        process_index=jax.process_index(), process_count=jax.process_count(), parallel_reads=d.parallel_reads)
    with Progress(f"evaluate {name}", total=len(source), unit="images") as progress:
        for batch in host:
            yield sharding.global_batch(batch, mesh)
            progress.advance(min(e.batch_size, len(source) - progress.done))


def _detect_classes(predictor, mesh, config, source, tokenizer, folder, name):
    chunks = prompts.evaluation_prompts(prompts.names_of(source), tokenizer, config.data.max_tokens,
                                        config.eval.classes_per_prompt or None)
    rows_of_prompt = max(len(chunk.classes) for chunk in chunks)     # one shape for all prompts: one compilation
    encoded = []
    for chunk in chunks:
        token_to_label = np.zeros((rows_of_prompt, config.data.max_tokens), bool)
        for row, class_index in enumerate(chunk.classes):
            token_to_label[row, chunk.tokens[class_index]] = True
        ids, mask = chunk.encoding.ids[None], chunk.encoding.mask[None]
        encoded.append((chunk, predictor.encode_text(ids, mask), mask, token_to_label))

    rows = []
    for batch in _batches(config, source, tokenizer, mesh, name, prompt=chunks[0]):
        levels = predictor.encode_image(batch)
        about = predictor.gather({key: batch[key] for key in ("example_id", "scale")})
        for chunk, words, mask, token_to_label in encoded:
            found = predictor.detect(levels, words, mask, token_to_label, batch)
            for i, image_id in enumerate(about["example_id"]):
                if image_id < 0:
                    continue                                          # padding of the last batch
                keep = found["mask"][i]
                labels = np.asarray(chunk.classes)[found["labels"][i][keep]]
                rows += coco_json.detection_rows(image_id, found["boxes"][i][keep], found["scores"][i][keep], labels,
                                                 category_ids=source.category_ids, scale=about["scale"][i])
    scores, pictures = {}, []
    if jax.process_index() == 0:
        coco_json.write_results(folder / "detections.json", rows)
        # The file itself where there is one: its areas decide what is small and what is large.
        truth = getattr(source, "official_json", None) or coco_ap.ground_truth_from_source(source)
        everything = coco_ap.coco_ap(truth, rows)
        scores = {key: everything[key] for key in ("AP", "AP50", "AP75")}
        held_out = getattr(source, "held_out", ())
        if held_out:
            classes = [source.category_ids[index] for index in held_out]
            scores["heldout_AP50"] = coco_ap.coco_ap(truth, rows, classes=classes)["AP50"]
        pictures = _class_pictures(source, rows, config.eval.num_pictures)
    return scores, pictures, {
        "prompt": [chunk.caption for chunk in chunks], "classes_per_prompt": rows_of_prompt,
        "metric": f"COCO bbox AP by pycocotools {importlib.metadata.version('pycocotools')}"}


def _ground_captions(predictor, mesh, config, source, tokenizer, folder, name):
    examples, drawn = [], {}
    for batch in _batches(config, source, tokenizer, mesh, name):
        levels = predictor.encode_image(batch)
        words = predictor.encode_text(batch["token_ids"], batch["token_mask"])
        about = predictor.gather({key: batch[key] for key in
                                  ("example_id", "positive_map", "box_mask", "boxes", "scale")})
        token_to_label, phrase_of_box = _phrases(about["positive_map"], about["box_mask"])
        found = predictor.detect(levels, words, batch["token_mask"], token_to_label, batch)
        for i, image_id in enumerate(about["example_id"]):
            if image_id < 0:
                continue
            phrases = []
            for phrase in range(phrase_of_box[i].max(initial=-1) + 1):
                hits = found["mask"][i] & (found["labels"][i] == phrase)
                phrases.append((about["boxes"][i][phrase_of_box[i] == phrase], found["boxes"][i][hits]))
            examples.append(phrases)
            if len(drawn) < config.eval.num_pictures:
                y, x = about["scale"][i]
                best = [boxes[0] / [x, y, x, y] if len(boxes) else None for _, boxes in phrases]
                drawn[int(image_id)] = list(zip(token_to_label[i], best))
    scores, pictures = {}, []
    if jax.process_index() == 0:
        scores = phrase_recall.phrase_recall(examples)
        pictures = _caption_pictures(source, drawn, tokenizer, config.data.max_tokens)
    return scores, pictures, {
        "prompt": "each caption", "classes_per_prompt": None,
        "metric": "recall of phrases at IoU 0.5, any of the phrase's boxes"}


def _phrases(positive_map, box_mask):
    """Boxes with the same words are one phrase.

    Args:
      positive_map: [B, G, T] bool. box_mask: [B, G] bool.
    Returns: token_to_label [B, G, T] bool, row p the words of phrase p; phrase_of_box [B, G] int, −1 for no phrase.
    """
    token_to_label = np.zeros_like(positive_map)
    phrase_of_box = np.full(box_mask.shape, NO_CLASS)
    for i, (rows, real) in enumerate(zip(positive_map, box_mask)):
        known = {}
        for g in np.flatnonzero(real & rows.any(-1)):
            phrase = known.setdefault(rows[g].tobytes(), len(known))
            token_to_label[i, phrase], phrase_of_box[i, g] = rows[g], phrase
    return token_to_label, phrase_of_box


def _class_pictures(source, rows, count):
    """Truth and prediction of the first records, drawn alike."""
    name_of = dict(zip(source.category_ids, source.class_names))
    pictures = []
    for index in range(min(count, len(source))):
        record = source[index]
        image = image_ops.pixels_of(record)
        found = [row for row in rows if row["image_id"] == record["image_id"] and row["score"] > 0.4]
        boxes = np.array([row["bbox"] for row in found], np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2] - 1
        labels = [name_of[row["category_id"]] for row in found]
        truth = [source.class_names[c] for c in record["classes"]]
        colors = draw.phrase_colors(truth + labels)
        pictures += [draw.draw_detections(image, record["boxes"], truth, colors=colors),
                     draw.draw_detections(image, boxes, labels, [row["score"] for row in found], colors=colors)]
    return pictures


def _caption_pictures(source, drawn, tokenizer, max_tokens):
    """The caption over its true boxes, and over the best box found for each phrase.

    Args:
      drawn: image id → list of (words [T] bool, best box [4] or None) of its phrases.
    """
    pictures = []
    for index in range(len(source)):
        record = source[index]
        if record["image_id"] not in drawn:
            continue
        image, caption = image_ops.pixels_of(record), record["caption"]
        offsets = tokenizer.encode(caption, max_tokens).offsets
        hits = [(text_ops.spans_of(words, offsets), box) for words, box in drawn[record["image_id"]] if box is not None]
        colors = draw.phrase_colors(" ".join(caption[b:e] for b, e in of_box)
                                    for of_box in [*record["spans"], *(spans for spans, _ in hits)])
        pictures += [draw.draw_caption(image, caption, record["spans"], record["boxes"], colors=colors),
                     draw.draw_caption(image, caption, [spans for spans, _ in hits],
                                       np.array([box for _, box in hits]).reshape(-1, 4), colors=colors)]
        if len(pictures) == 2 * len(drawn):
            break
    return pictures
