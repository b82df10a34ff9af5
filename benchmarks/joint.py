"""The table of one model for every task: a jointly trained checkpoint beside the same model untrained and beside no model at all.

    python -m glipv2_jax.main --config=configs/scenes_joint.py --workdir=runs/joint_stage1
    python -m glipv2_jax.main --config=configs/scenes_joint.py:stage2 --workdir=runs/joint --config.init_from=runs/joint_stage1
    python -m glipv2_jax.main --config=configs/scenes_joint.py --workdir=runs/joint_untrained --config.init_from= \
        --config.init_fresh="()" --config.train.num_steps=1 --config.optimizer.learning_rate=0.0 --config.optimizer.text_learning_rate=0.0
    python -m benchmarks.joint --trained=runs/joint --untrained=runs/joint_untrained

What needs no model: the whole picture as the box of every name and of every phrase; the boxes of the trained model, filled, as masks;
the most frequent answer of the question's type; the most frequent caption.
"""
import argparse
import json
import pathlib

from pycocotools import mask as coco_mask
from rich.console import Console
from rich.table import Table

from configs import scenes_joint
from glipv2_jax.evaluation.coco_ap import coco_ap, ground_truth_from_source
from glipv2_jax.evaluation.phrase_recall import phrase_recall
from glipv2_jax.evaluation.protocols import PhraseRecall
from input_pipeline.registry import make_source

# Name, key in metrics.jsonl, factor of what is shown.
ROWS = (("boxes, AP50", "detections/AP50", 100), ("masks, AP", "detections/mask_AP", 100), ("phrases, recall@1", "captions/recall@1", 100),
        ("questions, accuracy", "questions/accuracy", 100), ("captions, CIDEr-D", "descriptions/CIDEr", 1))


def scores_of(workdir):
    """dict of scores of a run's last evaluation. Raises: ValueError where it has none."""
    path = pathlib.Path(workdir) / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    found = [line for line in lines if "detections/AP50" in line]
    if not found:
        raise ValueError(f"{path}: found no evaluation, expected one of configs/scenes_joint.py")
    return found[-1]


def whole_pictures(source):
    """AP50 of the whole picture as the box of every name, one for each picture and name."""
    truth = ground_truth_from_source(source)
    return coco_ap(truth, [{"image_id": image["id"], "category_id": category["id"], "bbox": [0, 0, image["width"], image["height"]],
                            "score": 1.0} for image in truth["images"] for category in truth["categories"]])["AP50"]


def whole_pictures_for_phrases(source):
    """Recall at 1 of the same for every phrase."""
    examples = []
    for index, phrases in enumerate(PhraseRecall().truth(source)):
        height, width = source[index]["image"].shape[:2]
        examples.append([(boxes, [[0, 0, width - 1, height - 1]]) for boxes in phrases])
    return phrase_recall(examples)["recall@1"]


def filled_boxes(source, rows):
    """Mask AP of result rows whose masks are their boxes."""
    truth = ground_truth_from_source(source)
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    filled = []
    for row in rows:
        height, width = sizes[row["image_id"]]
        x, y, w, h = row["bbox"]
        polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
        filled.append(row | {"segmentation": coco_mask.merge(coco_mask.frPyObjects([polygon], height, width))})
    return coco_ap(truth, filled, iou_type="segm")["AP"]


def baselines(trained, workdir):
    """dict of key → score without a model, of the test data of configs/scenes_joint.py."""
    sources = {spec["name"]: make_source({k: v for k, v in spec.items() if k != "name"}) for spec in scenes_joint.get_config().data.eval}
    rows = json.loads((pathlib.Path(workdir) / "detections.json").read_text())
    return {"detections/AP50": whole_pictures(sources["detections"]), "detections/mask_AP": filled_boxes(sources["detections"], rows),
            "captions/recall@1": whole_pictures_for_phrases(sources["captions"]), "questions/accuracy": trained["questions/baseline_accuracy"],
            "descriptions/CIDEr": trained["descriptions/baseline_CIDEr"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trained", default="runs/joint")
    parser.add_argument("--untrained", default="runs/joint_untrained")
    args = parser.parse_args()
    trained, untrained = scores_of(args.trained), scores_of(args.untrained)
    without = baselines(trained, args.trained)
    table = Table("", "one checkpoint", "untrained", "without a model", title="rendered scenes that training never saw")
    for name, key, factor in ROWS:
        # A model that finds no box at all has no masks to be scored.
        table.add_row(name, *(f"{factor * (scores.get(key) or 0):.{1 if factor > 1 else 3}f}" for scores in (trained, untrained, without)))
    Console().print(table)


if __name__ == "__main__":
    main()
