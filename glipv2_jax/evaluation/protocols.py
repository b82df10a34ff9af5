"""What is asked of a source, the file that answers it, and the scores of that file: one class for each protocol.

`predictions` gathers what a model found, `write` puts it into the benchmark's own format, `read` takes such a file of any
model, and `score` compares either with the truth.
"""
import importlib.metadata
import json
import pathlib

import numpy as np

from glipv2_jax.evaluation import coco_ap, coco_json, phrase_recall
from glipv2_jax.files import write_whole
from input_pipeline import text_ops
from input_pipeline.registry import make_source


class CocoAP:
    """Objects of named classes: COCO result rows, average precision by pycocotools."""
    file = "detections.json"
    metric = f"COCO bbox AP by pycocotools {importlib.metadata.version('pycocotools')}"

    def truth(self, source):
        """The file itself where there is one: its areas decide what is small and what is large."""
        truth = getattr(source, "official_json", None) or coco_ap.ground_truth_from_source(source)
        return truth, [source.category_ids[index] for index in getattr(source, "held_out", ())]

    def truth_of(self, spec, root):
        """The same from the description of a source; its images need not be there."""
        if spec["kind"] == "coco_json":
            return str(pathlib.Path(root, spec["json_path"])), ()
        return self.truth(make_source(spec, root))

    def predictions(self, source, parts):
        rows = []
        for found in parts:
            rows += coco_json.detection_rows(found.image_id, found.boxes, found.scores, found.labels,
                                             category_ids=source.category_ids, scale=found.scale)
        return rows

    def write(self, path, rows):
        coco_json.write_results(path, rows)

    def read(self, path):
        return coco_ap.load(path)

    def score(self, truth, rows):
        truth, held_out = truth
        everything = coco_ap.coco_ap(truth, rows)
        scores = {key: everything[key] for key in ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100")}
        if held_out:
            scores["heldout_AP50"] = coco_ap.coco_ap(truth, rows, classes=held_out)["AP50"]
        return scores


class PhraseRecall:
    """Phrases of captions: the share of them that one of their k best boxes finds."""
    file = "predictions.json"
    metric = "recall of phrases at IoU 0.5, any of the phrase's boxes"

    def truth(self, source):
        """For each record the boxes of its phrases."""
        return [_boxes_of_phrases(source[index]) for index in range(len(source))]

    def truth_of(self, spec, root):
        return self.truth(make_source(spec, root))

    def predictions(self, source, parts):
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

    def write(self, path, rows):
        write_whole(path, "[" + ",\n ".join(json.dumps(row, ensure_ascii=False) for row in rows) + "]\n")

    def read(self, path):
        return coco_ap.load(path)

    def score(self, truth, rows):
        if len(truth) != len(rows):
            raise ValueError(f"results: found {len(rows)} captions, expected the {len(truth)} of the data")
        for place, (phrases, row) in enumerate(zip(truth, rows)):
            if len(phrases) != len(row["boxes"]):
                raise ValueError(f"results, caption {place}: found {len(row['boxes'])} phrases, expected {len(phrases)}")
        return phrase_recall.phrase_recall(list(zip(phrases, row["boxes"])) for phrases, row in zip(truth, rows))


def _boxes_of_phrases(record):
    _, phrase_of_box = text_ops.phrases_of(record)
    return [record["boxes"][phrase_of_box == phrase] for phrase in range(phrase_of_box.max(initial=-1) + 1)]


PROTOCOLS = {"coco": CocoAP(), "phrases": PhraseRecall()}
