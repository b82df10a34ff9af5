"""Pseudo-labels beside the truth that was hidden from the model: precision and recall on rendered scenes.

    python -m benchmarks.pseudo_labels --pairs=500 --output=runs/pseudo_labels

Labels the captions of scenes that training never saw, as `glipv2 pseudo-label` does, and reads the records that it wrote. A box
is right if it lies on an object with IoU 0.5 or more that the caption names with words of the same phrase, and no better box has
taken it. Recall counts all objects that the captions name, those of pairs that were left out among them.
"""
import argparse
import pathlib

import numpy as np
from pycocotools import mask as coco_mask
from rich.console import Console
from rich.table import Table

from glipv2_jax.evaluation.phrase_recall import xywh
from glipv2_jax.main import set_up_compilation_cache, set_up_logging
from glipv2_jax.phrases import noun_phrases
from glipv2_jax.pseudo_labels import command
from glipv2_jax.pseudo_labels.labels import LABELS, Labelled
from glipv2_jax.weights import BUILT_IN
from input_pipeline.registry import make_source

THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7)


def right(regions, boxes, truth):
    """bool [n]: which boxes of a pair are right, each object taken once, the best box first.

    Args:
      regions: of a line, by falling score. boxes: [n, 4] of them. truth: record with the true boxes and spans.
    """
    overlaps = coco_mask.iou(xywh(boxes), xywh(truth["boxes"]), [0] * len(truth["boxes"])) if len(boxes) else ()
    free, found = np.ones(len(truth["boxes"]), bool), np.zeros(len(boxes), bool)
    for row, region in enumerate(regions):
        named = [any(begin < end_of and start < end for begin, end in spans for start, end_of in region["tokens_positive"])
                 for spans in truth["spans"]]
        best = np.where(free & named, overlaps[row], 0)
        if best.size and best.max() >= 0.5:
            free[best.argmax()], found[row] = False, True
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default=str(BUILT_IN))
    parser.add_argument("--pairs", type=int, default=500)
    parser.add_argument("--output", default="runs/pseudo_labels")
    args = parser.parse_args()
    set_up_logging()
    set_up_compilation_cache()
    spec = {"kind": "scenes", "task": "caption", "split": "test", "seed": 7, "num_examples": args.pairs, "canvas": (128, 128),
            "max_objects": 8}
    command.run(spec, args.checkpoint, args.output, threshold=min(THRESHOLDS))
    source, output = make_source(spec), pathlib.Path(args.output)
    lines, stored = Labelled(output / LABELS, source), make_source({"kind": "records", "folder": str(output / command.RECORDS)})
    scores, hits = [], []
    for index in range(len(stored)):
        line = lines.line(index)
        regions = line["grounding"]["regions"]
        scores += [region["score"] for region in regions]
        hits.append(right(regions, stored[index]["boxes"], source[line["pair"]]))
    scores, hits = np.array(scores), np.concatenate(hits)
    truth = [source[index] for index in range(len(source))]
    objects = sum(len(record["boxes"]) for record in truth)
    named = [span for record in truth for span in {tuple(map(tuple, spans)) for spans in record["spans"]}]
    exact = sum(span[0] in found for record in truth for found in [noun_phrases(record["caption"])]
                for span in {tuple(map(tuple, spans)) for spans in record["spans"]})
    table = Table("least score", "boxes", "precision", "recall", title=f"{len(source)} captions, {objects} named objects, IoU 0.5")
    for threshold in THRESHOLDS:
        kept = scores >= threshold
        table.add_row(f"{threshold}", f"{kept.sum():,}", f"{hits[kept].mean():.1%}" if kept.any() else "–",
                      f"{hits[kept].sum() / objects:.1%}")
    Console().print(table)
    print(f"{exact / len(named):.1%} of the captions' {len(named)} naming phrases are noun phrases to the letter")


if __name__ == "__main__":
    main()
