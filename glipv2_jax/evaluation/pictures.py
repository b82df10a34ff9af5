"""Truth beside prediction, of the images that a model did worst and best on."""
import heapq

import numpy as np
from pycocotools import mask as coco_mask

from glipv2_jax import draw
from glipv2_jax.detection.boxes import best_of_places
from glipv2_jax.evaluation.phrase_recall import xywh
from input_pipeline import image_ops, text_ops
from input_pipeline.masks import decode_mask

SHOWN_SCORE = 0.4        # of class detections; what is weaker, or lies under a better one, would hide the rest


def write(path, source, parts, count):
    """A sheet of `count` images, half of them the worst; none if there is no truth to compare with.

    The measure for classes is the F score at IoU 0.5 of what is shown: detections above `SHOWN_SCORE`, the best of every place.
    For captions it is the share of phrases whose best box lies on one of their boxes.

    Args:
      path: file to write. source: of the records. parts: iterable of `parts.Found`. count: images.
    """
    rated = []
    for found in parts:
        quality = _quality(source[found.record], found)
        if quality is not None:
            rated.append((quality, found.record))
    worst = heapq.nsmallest(min(count // 2, len(rated) // 2), rated)
    best = heapq.nlargest(min(count - len(worst), len(rated) - len(worst)), rated, key=lambda one: (one[0], -one[1]))
    chosen = [record for _, record in worst + best]
    kept = {found.record: found for found in parts if found.record in set(chosen)}
    pictures, titles = [], []
    for place, record in enumerate(chosen):
        kind = "worst" if place < len(worst) else "best"
        pictures += (_of_classes if source.class_names else _of_caption)(source, source[record], kept[record])
        titles += [f"{kind}: truth", f"{kind}: prediction"]
    if pictures:
        draw.sheet(pictures, columns=4, titles=titles, cell_width=420).save(path, quality=88)


def write_texts(path, source, said, ratings, wanted, count):
    """A sheet of `count` images with what was to be said and what was said, half of them the worst.

    Args:
      path: file to write. source: of the records. said: iterable of `parts.Said`. ratings: image id → how good, as a protocol's
        `ratings`. wanted: function of a record → (text before, the true text). count: images.
    """
    rated = sorted(said, key=lambda one: (ratings[one.image_id], one.record))
    worst, pictures, titles = rated[:min(count // 2, len(rated) // 2)], [], []
    best = rated[len(worst):][::-1][:count - len(worst)]
    for kind, one in [*(("worst", one) for one in worst), *(("best", one) for one in best)]:
        record = source[one.record]
        before, truth = wanted(record)
        for title, text in (("truth", truth), ("prediction", one.text)):
            pictures.append(draw.draw_caption(image_ops.pixels_of(record), f"{before} {text}".strip() or "…", [], np.zeros((0, 4))))
            titles.append(f"{kind}: {title}")
    if pictures:
        draw.sheet(pictures, columns=4, titles=titles, cell_width=420).save(path, quality=88)


def _quality(record, found):
    """In [0, 1]; None without truth."""
    crowd = np.asarray(record.get("is_crowd", np.zeros(len(record["boxes"]))), bool)
    truth = np.asarray(record["boxes"])[~crowd]
    if not len(truth):
        return None
    boxes = found.original_boxes()
    overlaps = coco_mask.iou(xywh(boxes), xywh(truth), [0] * len(truth)) if len(boxes) else np.zeros((0, len(truth)))
    if "caption" in record:
        phrase = text_ops.phrases_of(record)[1][~crowd]
        best = {label: row for row, label in reversed(list(enumerate(found.labels.tolist())))}       # by falling score
        hits = [label in best and overlaps[best[label]][phrase == label].max() >= 0.5 for label in set(phrase.tolist())]
        return float(np.mean(hits))
    classes, free, hits = np.asarray(record["classes"])[~crowd], np.ones(len(truth), bool), 0
    shown = _shown(found, boxes)
    for row in shown:
        row_overlaps = np.where(free & (classes == found.labels[row]), overlaps[row], 0)
        match = row_overlaps.argmax()
        if row_overlaps[match] >= 0.5:
            free[match], hits = False, hits + 1
    return 2 * hits / (len(truth) + len(shown))


def _shown(found, boxes):
    """int [M]: which class detections are drawn, best first."""
    strong = np.flatnonzero(found.scores > SHOWN_SCORE)
    return strong[best_of_places(boxes[strong], found.scores[strong])]


def _of_classes(source, record, found):
    image, boxes = image_ops.pixels_of(record), found.original_boxes()
    shown = _shown(found, boxes)
    labels = [source.class_names[label] for label in found.labels[shown]]
    truth = [source.class_names[c] for c in record["classes"]]
    colors = draw.phrase_colors(truth + labels)
    true_masks = masks = None
    if found.masks is not None:
        true_masks = record.get("masks")
        masks = np.array([decode_mask(found.masks[k], boxes[k], image.shape[:2]) for k in shown], bool)
        masks = masks.reshape(-1, *image.shape[:2])
    return [draw.draw_detections(image, record["boxes"], truth, masks=true_masks, colors=colors),
            draw.draw_detections(image, boxes[shown], labels, found.scores[shown], masks=masks, colors=colors)]


def _of_caption(source, record, found):
    """The caption over its true boxes, and over the best box found for each phrase."""
    image, caption, boxes = image_ops.pixels_of(record), record["caption"], found.original_boxes()
    spans, _ = text_ops.phrases_of(record)
    hits = [(of_phrase, boxes[np.flatnonzero(found.labels == label)[0]])
            for label, of_phrase in enumerate(spans) if (found.labels == label).any()]
    colors = draw.phrase_colors(" ".join(caption[b:e] for b, e in of_phrase) for of_phrase in spans)
    return [draw.draw_caption(image, caption, record["spans"], record["boxes"], colors=colors),
            draw.draw_caption(image, caption, [of_phrase for of_phrase, _ in hits],
                              np.array([box for _, box in hits]).reshape(-1, 4), colors=colors)]
