"""What is asked of a source, the file that answers it, and the scores of that file: one class for each protocol.

`settings` is `config.eval`. `reads_masks` says whether masks matter. `predictions` gathers what a model found, `write` puts
it into the benchmark's own format, `read` takes such a file of any model, or what it holds, and `score` compares either with
the truth. Protocols with a `task` are about words that a model says, the others about boxes.
"""
import collections
import importlib.metadata
import json

import numpy as np

from glipv2_jax.evaluation import (
    augmented_views,
    caption_scores,
    coco_ap,
    coco_json,
    lvis_ap,
    phrase_recall,
    referring_accuracy,
    region_iou,
    vqa_accuracy,
)
from glipv2_jax.files import write_whole
from input_pipeline import text_ops
from input_pipeline.annotations import load_lists
from input_pipeline.registry import make_source

LVIS_MAX_DETS = 300      # of an image, in the standard AP


class CocoAP:
    """Objects of named classes: COCO result rows, average precision by pycocotools; of masks, too, where the rows have them."""
    file = "detections.json"
    reads_masks = True
    metric = f"COCO bbox AP by pycocotools {importlib.metadata.version('pycocotools')}; mask_: segm AP"

    def truth(self, source):
        """The file itself where there is one: its areas decide what is small and what is large."""
        truth = getattr(source, "official_json", None) or coco_ap.ground_truth_from_source(source)
        return truth, [source.category_ids[index] for index in getattr(source, "held_out", ())]

    def truth_of(self, spec):
        """The same from the description of a benchmark's source; its images need not be there."""
        return spec["json_path"], ()

    def predictions(self, source, parts, settings):
        rows = []
        for found in parts:
            rows += coco_json.detection_rows(found.image_id, found.boxes, found.scores, found.labels,
                                             category_ids=source.category_ids, scale=found.scale, masks=found.masks,
                                             legacy_width=settings.legacy_width)
        return rows

    def write(self, path, rows):
        coco_json.write_results(path, rows)

    def read(self, stored):
        return coco_json.checked_rows(coco_ap.load(stored), ("image_id", "category_id", "score"))

    def score(self, truth, rows, settings):
        truth, held_out = coco_ap.load(truth[0]), truth[1]
        masks = bool(rows) and all("segmentation" in row for row in rows)
        boxes = not masks or all("bbox" in row for row in rows)
        # A model with masks may be scored on data that has boxes alone.
        masks = masks and (not boxes or all(annotation.get("segmentation") for annotation in truth["annotations"]))
        scores = {}
        for iou_type, prefix in [("bbox", "")] * boxes + [("segm", "mask_")] * masks:
            found = coco_ap.coco_ap(truth, rows, iou_type=iou_type, scorer=settings.coco_scorer)
            scores |= {f"{prefix}{key}": value for key, value in found.items() if key != "per_class_AP50"}
            if held_out:
                scores[f"{prefix}heldout_AP50"] = coco_ap.coco_ap(truth, rows, classes=held_out, iou_type=iou_type,
                                                                  scorer=settings.coco_scorer)["AP50"]
        return scores


class LvisAP:
    """Objects of LVIS's classes: fixed AP over the best 10,000 detections of each class, and the standard AP over the best 300
    of each image."""
    file = "detections.json"
    reads_masks = False
    metric = ("LVIS bbox AP, federated rules; AP: fixed, best 10,000 detections of a class over all images; standard_AP: best "
              "300 of an image")

    def truth(self, source):
        return coco_ap.load(source.json_path)

    def truth_of(self, spec):
        return coco_ap.load(spec["json_path"])

    def predictions(self, source, parts, settings):
        fixed, standard = lvis_ap.BestPerClass(), lvis_ap.BestPerClass(None)
        for found in parts:
            boxes = phrase_recall.xywh(found.original_boxes())                               # no +1, unlike COCO's files
            categories = np.asarray(source.category_ids)[found.labels]
            fixed.add(found.image_id, boxes, found.scores, categories)
            best = np.argsort(-found.scores, kind="stable")[:LVIS_MAX_DETS]
            standard.add(found.image_id, boxes[best], found.scores[best], categories[best])
        return fixed.arrays(), standard.arrays()

    def write(self, path, predictions):
        lvis_ap.write_results(path, predictions[0])

    def read(self, stored):
        """Rows of any model; the limit of each class is kept here, too."""
        rows = lvis_ap.as_arrays(coco_ap.load(stored))
        best = lvis_ap.BestPerClass()
        order = np.argsort(rows["image_id"], kind="stable")
        images, starts = np.unique(rows["image_id"][order], return_index=True)
        for image, chosen in zip(images, np.split(order, starts[1:])):
            best.add(image, rows["bbox"][chosen], rows["score"][chosen], rows["category_id"][chosen])
        return best.arrays(), rows

    def score(self, truth, predictions, settings):
        fixed, standard = (lvis_ap.lvis_ap(truth, found, max_dets=limit)
                           for found, limit in zip(predictions, (-1, LVIS_MAX_DETS)))
        return {key: value for key, value in fixed.items() if key != "per_class"} | {
            f"standard_{key}": standard[key] for key in ("AP", "APr", "APc", "APf")}


class _OfCaptions:
    """What protocols of captions share: a result file is a list with a row for each record."""
    file = "predictions.json"
    reads_masks = False

    def truth_of(self, spec):
        """The truth from the description of a source; its images need not be there."""
        return self.truth(make_source(spec))

    def write(self, path, rows):
        write_whole(path, "[" + ",\n ".join(json.dumps(row, ensure_ascii=False) for row in rows) + "]\n")

    def read(self, stored):
        return coco_json.checked_rows(coco_ap.load(stored), self.keys)


class PhraseRecall(_OfCaptions):
    """Phrases of captions: the share of them that one of their k best boxes finds."""
    keys = ("boxes",)
    metric = "recall of phrases at IoU 0.5, any of the phrase's boxes"

    def truth(self, source):
        """For each record the boxes of its phrases."""
        return [_boxes_of_phrases(source[index]) for index in range(len(source))]

    def predictions(self, source, parts, settings):
        """A row for each record, in order: every phrase of its caption with its boxes, by falling score."""
        rows = [None] * len(source)
        for found in parts:
            record, boxes = source[found.record], found.original_boxes()
            order = np.argsort(-found.scores, kind="stable")
            spans, _ = text_ops.phrases_of(record)
            of_phrase = [order[found.labels[order] == phrase] for phrase in range(len(spans))]
            rows[found.record] = {
                "image_id": found.image_id, "caption": record["caption"],
                "phrases": [" ".join(record["caption"][b:e] for b, e in spans_of_one) for spans_of_one in spans],
                "boxes": [boxes[chosen].tolist() for chosen in of_phrase],
                "scores": [found.scores[chosen].tolist() for chosen in of_phrase]}
        return rows

    def score(self, truth, rows, settings):
        _check_length(truth, rows)
        for place, (phrases, row) in enumerate(zip(truth, rows)):
            if len(phrases) != len(row["boxes"]):
                raise ValueError(f"results, caption {place}: found {len(row['boxes'])} phrases, expected {len(phrases)}")
        return phrase_recall.phrase_recall(list(zip(phrases, row["boxes"])) for phrases, row in zip(truth, rows))


class FlickrRecall(_OfCaptions):
    """Phrases of Flickr30k Entities: any of a phrase's boxes, and beside it the box around all of them."""
    keys = ("image_id", "sentence_id", "boxes")
    metric = "recall of phrases at IoU 0.5, any box of the phrase; merged_: the smallest box around all of them"

    def truth(self, source):
        """(image, sentence) → [(boxes, types)] of its phrases; boxes as the annotation has them, corners not inclusive."""
        truth = {}
        for index in range(len(source)):
            record = source[index]
            about = record.get("about", {})
            if "original_img_id" not in about or "sentence_id" not in about:
                raise ValueError(f"source {source.name!r}, record {index}: found no original_img_id and sentence_id, expected "
                                 "the release of Flickr30k Entities or its file of MDETR")
            truth[about["original_img_id"], about["sentence_id"]] = [
                (boxes, types) for _, boxes, types in _benchmark_phrases(record)]
        return truth

    def predictions(self, source, parts, settings):
        """A row for each sentence: for each phrase of the benchmark its boxes, by falling score."""
        rows = [None] * len(source)
        for found in parts:
            record, boxes = source[found.record], found.original_boxes()
            order = np.argsort(-found.scores, kind="stable")
            label_of = {spans: label for label, spans in enumerate(text_ops.phrases_of(record)[0])}
            chosen = [order[found.labels[order] == label_of.get(spans, -1)] for spans, _, _ in _benchmark_phrases(record)]
            rows[found.record] = {
                "image_id": record["about"]["original_img_id"], "sentence_id": record["about"]["sentence_id"],
                "boxes": [boxes[one].tolist() for one in chosen], "scores": [found.scores[one].tolist() for one in chosen]}
        return rows

    def score(self, truth, rows, settings):
        scores = phrase_recall.flickr_recall(truth, rows)
        merged = phrase_recall.flickr_recall(truth, rows, "merged")
        by_type = {f"recall@1 ({kind})": values["recall@1"] for kind, values in scores.pop("per_type", {}).items()}
        return scores | {f"merged_recall@{k}": merged[f"recall@{k}"] for k in phrase_recall.RECALL_AT} | by_type


def _benchmark_phrases(record):
    """[(spans, boxes as the annotation has them, types)] of the phrases that are scored."""
    if "phrases" in record["about"]:
        return [((phrase["span"],), phrase["boxes"], phrase["types"]) for phrase in record["about"]["phrases"]]
    spans, of_box = text_ops.phrases_of(record)
    return [(of_phrase, record["boxes"][of_box == label] + np.float32([0, 0, 1, 1]), ())
            for label, of_phrase in enumerate(spans)]


class Referring(_OfCaptions):
    """Expressions that each mean one object: is the best box on it?"""
    keys = ("boxes",)
    metric = "accuracy at IoU 0.5 of the best box of each expression; precision@k: of one of the k best"

    def truth(self, source):
        """For each record the box that is meant."""
        return [source[index]["boxes"][0] if len(source[index]["boxes"]) else None for index in range(len(source))]

    def predictions(self, source, parts, settings):
        """A row for each record, in order: its ten best boxes."""
        rows = [None] * len(source)
        for found in parts:
            boxes, best = found.original_boxes(), np.argsort(-found.scores, kind="stable")
            best = best[found.labels[best] == 0][:max(referring_accuracy.PRECISION_AT)]
            rows[found.record] = {"image_id": found.image_id, "expression": source.caption(found.record),
                                  "boxes": boxes[best].tolist(), "scores": found.scores[best].tolist()}
        return rows

    def score(self, truth, rows, settings):
        _check_length(truth, rows)
        return referring_accuracy.referring_accuracy(
            (target, row["boxes"]) for target, row in zip(truth, rows) if target is not None)


class Regions(_OfCaptions):
    """Phrases that name regions of any number of instances: all boxes, or masks, of a phrase as one region."""
    keys = ("segmentation",)
    reads_masks = True
    metric = ("IoU of regions; predicted: union of the masks, of a model without them of the boxes, with a score above "
              "eval.region_score, or else the best one; true: union of the masks")

    def truth(self, source):
        """For each record the region as RLE, None without any instance."""
        return [_true_region(source, index) for index in range(len(source))]

    def predictions(self, source, parts, settings):
        """A row for each record, in order: the region as RLE."""
        rows = [None] * len(source)
        for found in parts:
            mine = found.labels == 0
            chosen = mine & (found.scores > settings.region_score)
            if mine.any() and not chosen.any():
                chosen = np.arange(len(mine)) == np.where(mine, found.scores, -1).argmax()
            size = source.image_size(found.record)
            if found.masks is None:
                region = region_iou.union_of_boxes(found.original_boxes()[chosen], size)
            else:
                region = region_iou.union_of_runs([mask for mask, one in zip(found.masks, chosen) if one], size)
            rows[found.record] = {"image_id": found.image_id, "phrase": source.caption(found.record),
                                  "segmentation": region | {"counts": region["counts"].decode("ascii")}}
        return rows

    def score(self, truth, rows, settings):
        _check_length(truth, rows)
        return region_iou.region_iou((true, row["segmentation"]) for true, row in zip(truth, rows))


class Answers(_OfCaptions):
    """Questions as VQA v2 has them, ten answers each; results {question_id, answer}."""
    file, task, keys = "answers.json", "answers", ("question_id", "answer")
    metric = ("VQA v2 accuracy, official normalisation; baseline: the answer that is most frequent among the true ones of each type of "
              "question")

    def truth(self, source):
        """The annotation file, or the content of one for a source without."""
        if getattr(source, "annotations_path", None):
            return coco_ap.load(source.annotations_path)
        annotations = []
        for index in range(len(source)):
            record = source[index]
            one = record["questions"][0]
            if not one["answers"]:
                raise ValueError(f"source {source.name!r}, record {index}: found a question without answers, expected those of people")
            kind = "yes/no" if one["answer"] in ("yes", "no") else "number" if one["answer"].isdigit() else "other"
            annotations.append({"question_id": int(record["image_id"]), "answers": [{"answer": said} for said in one["answers"]],
                                "question_type": record.get("about", {}).get("question_type", "all"), "answer_type": kind})
        return {"annotations": annotations}

    def predictions(self, source, said, settings):
        return [{"question_id": one.image_id, "answer": one.text} for one in sorted(said, key=lambda one: one.record)]

    def ratings(self, truth, rows):
        """Id of a question → how right its answer is, in [0, 1]."""
        return vqa_accuracy.vqa_accuracy(truth, rows)["per_question"]

    def baseline(self, truth):
        rows = vqa_accuracy.most_frequent_answers(truth)
        return {"accuracy": vqa_accuracy.vqa_accuracy(truth, rows)["accuracy"]}

    def wanted(self, record):
        """What a picture of the record says: (its question, the true answer)."""
        return record["questions"][0]["question"], record["questions"][0]["answer"]

    def truth_of(self, spec):
        return spec["annotations_path"]

    def score(self, truth, rows, settings):
        found = vqa_accuracy.vqa_accuracy(truth, rows)
        return {"accuracy": found["accuracy"]} | {
            f"accuracy ({kind})": value for kind, value in sorted(found["per_answer_type"].items())}


class Captions(_OfCaptions):
    """Captions as COCO has them; results {image_id, caption}. Of a result file only the images in it are scored."""
    file, task, keys = "captions.json", "captions", ("image_id", "caption")
    metric = ("CIDEr-D, BLEU, ROUGE-L over Penn Treebank tokens; baseline: the caption that is most frequent among the true ones, for "
              "every image")

    def truth(self, source):
        """Image id → its captions."""
        references = {}
        for index in range(len(source)):
            record = source[index]
            references.setdefault(int(record["image_id"]), record["about"]["references"])
        return references

    def predictions(self, source, said, settings):
        return [{"image_id": one.image_id, "caption": one.text} for one in sorted(said, key=lambda one: one.record)]

    def ratings(self, references, rows):
        """Id of an image → CIDEr-D of its caption."""
        found = caption_scores.caption_scores(references, {row["image_id"]: row["caption"] for row in rows})
        return {image: scores["CIDEr"] for image, scores in found["per_image"].items()}

    def baseline(self, references):
        count = collections.Counter(caption for captions in references.values() for caption in captions)
        found = caption_scores.caption_scores(references, dict.fromkeys(references, count.most_common(1)[0][0]))
        return {key: found[key] for key in ("Bleu_4", "CIDEr")}

    def wanted(self, record):
        """What a picture of the record says: (nothing before it, a true caption)."""
        return "", record["about"]["references"][0]

    def truth_of(self, spec):
        references = {}
        for annotation in load_lists(spec["json_path"], ("annotations",))["annotations"]:
            references.setdefault(annotation["image_id"], []).append(annotation["caption"])
        return references

    def score(self, references, rows, settings):
        candidates = {row["image_id"]: row["caption"] for row in rows}
        if len(candidates) < len(rows):
            raise ValueError(f"results: found {len(rows)} captions of {len(candidates)} images, expected one of each")
        wanted = {image: references[image] for image in candidates if image in references}
        found = caption_scores.caption_scores(wanted, candidates)
        return {key: value for key, value in found.items() if key != "per_image"}


def _true_region(source, index):
    record = source[index]
    if not len(record["boxes"]):
        return None
    return region_iou.union_of_masks(record["masks"], source.image_size(index))


def _check_length(truth, rows):
    if len(truth) != len(rows):
        raise ValueError(f"results: found {len(rows)} rows, expected the {len(truth)} records of the data, in their order")


def _boxes_of_phrases(record):
    _, phrase_of_box = text_ops.phrases_of(record)
    return [record["boxes"][phrase_of_box == phrase] for phrase in range(phrase_of_box.max(initial=-1) + 1)]


PROTOCOLS = {"coco": CocoAP(), "lvis": LvisAP(), "phrases": PhraseRecall(), "flickr": FlickrRecall(),
             "referring": Referring(), "regions": Regions(),
             "answers": Answers(), "captions": Captions()}


def check_settings(settings):
    """What would otherwise come up at the end of a long evaluation. Raises: ValueError naming the field of `config.eval`."""
    coco_ap.scorer_classes(settings.coco_scorer)
    augmented_views.check_rule(settings.merge)
    for view in settings.views:
        try:
            augmented_views.View(*view)
        except TypeError as error:
            raise ValueError(f"eval.views: found {view!r}, expected a list of (short side, longest side, mirrored, least and "
                             "largest side of a box) of each pass") from error
