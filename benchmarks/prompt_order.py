"""How much detections depend on the order of the class names, with the weights that come with the package.

    python -m benchmarks.prompt_order --images=50 --orders=4 --average=4

The text encoder reads positions, and the names of one prompt read each other, so a name's score depends on its place in
the list and on its neighbours. Held-out rendered scenes are searched with the list as it is and with shuffled ones.
"list": any name may go anywhere, so into another prompt, too. "prompts": names change places inside of their prompt.
Each detection of the first order with a score above 0.3 is looked for in the others: same name, IoU above 0.9, the best
such box. `orders=4` is what `Detector.detect` offers against it: the mean over that many orders inside of each prompt.
"""
import argparse
import dataclasses
import os
import platform
import time

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from configs import quickstart
from glipv2_jax.detection.boxes import iou_matrix
from glipv2_jax.evaluation.coco_ap import coco_ap, ground_truth_from_source
from glipv2_jax.predict import Detector
from input_pipeline import prompts
from input_pipeline.registry import make_source

MIN_SCORE, MIN_IOU = 0.3, 0.9


def shuffled(groups, orders, within):
    """Orders of a class list, the first as it is.

    Args:
      groups: classes of each prompt. orders: how many. within: names stay in their prompt.
    Returns: list of int [C].
    """
    rng = np.random.default_rng(0)
    found = [np.concatenate(groups)]
    for _ in range(orders - 1):
        found.append(np.concatenate([rng.permutation(group) for group in groups]) if within
                     else rng.permutation(found[0]))
    return found


def detect(detector, pictures, names, order, classes_per_prompt, average):
    """Everything above the detector's own threshold, with labels that count `names` whatever the order."""
    found = detector.detect(pictures, [names[c] for c in order], threshold=0, classes_per_prompt=classes_per_prompt,
                            max_detections=detector.settings.max_detections * len(names), orders=average, batch_size=10)
    return [dataclasses.replace(one, labels=order[one.labels], names=tuple(names)) for one in found]


def moved(first, other):
    """Score differences of the detections of one image in two orders.

    Args:
      first, other: Detections with the same `names`. All of `other` count, whatever their score.
    Returns: (absolute differences of those of `first` above MIN_SCORE that `other` has, float [M]; how many it lacks).
    """
    first = first.above(MIN_SCORE)
    # One shape for all images of an order up to the next power of two: each new one is compiled.
    rows, columns = (1 << (len(found) | 7).bit_length() for found in (first, other))
    overlaps = np.array(iou_matrix(np.pad(first.boxes, ((0, rows - len(first)), (0, 0))),
                                   np.pad(other.boxes, ((0, columns - len(other)), (0, 0)))))[:len(first), :len(other)]
    overlaps[first.labels[:, None] != other.labels] = 0
    if not overlaps.size:
        return np.zeros(0), len(first)
    matched = overlaps.max(1) > MIN_IOU
    return np.abs(first.scores - other.scores[overlaps.argmax(1)])[matched], int((~matched).sum())


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--orders", type=int, default=4, help="of the class list; the first is the list as it is")
    parser.add_argument("--average", type=int, default=4, help="also with the mean over that many orders; 1: without")
    args = parser.parse_args()
    if args.orders < 2:
        parser.error(f"--orders: found {args.orders}, expected at least 2 to compare")
    detector, config = Detector.from_pretrained(), quickstart.get_config()
    spec = next(spec for spec in config.data.eval if spec["split"] == "test" and spec["task"] == "detection")
    source = make_source({**spec, "num_examples": args.images})
    names, per_prompt = source.class_names, config.eval.classes_per_prompt
    groups = prompts.groups_that_fit(names, detector.tokenizer, detector.max_tokens, per_prompt)
    truth = ground_truth_from_source(source)
    pictures, ids = zip(*((record["image"], record["image_id"]) for record in (source[i] for i in range(len(source)))))

    console = Console(width=140)
    console.print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, {len(os.sched_getaffinity(0))} cores, "
                  f"{platform.machine()}, {time.strftime('%Y-%m-%d')}; built-in weights, {len(source)} scenes of "
                  f"split {spec['split']}, {len(names)} names in {len(groups)} prompts, {args.orders} orders")
    table = Table("shuffled", "orders averaged", "detections", "score moved: mean", "95 %", "most", "lost",
                  "AP50 of each order", title=f"detections of the first order above {MIN_SCORE}, in the other orders")
    for within in (False, True):
        for average in sorted({1, args.average}):
            with console.status(f"shuffled {'prompts' if within else 'list'}, {average} averaged"):
                runs = [detect(detector, pictures, names, order, per_prompt, average)
                        for order in shuffled(groups, args.orders, within)]
            pairs = [moved(first, other) for run in runs[1:] for first, other in zip(runs[0], run)]
            differences, lost = np.concatenate([part for part, _ in pairs]), sum(count for _, count in pairs)
            rows = [[row for image_id, one in zip(ids, run) for row in one.to_coco(image_id, source.category_ids)]
                    for run in runs]
            ap = [coco_ap(truth, of_order)["AP50"] for of_order in rows]
            sought = len(differences) + lost
            moves = (differences.mean(), np.quantile(differences, 0.95), differences.max()) if len(differences) else ()
            table.add_row("prompts" if within else "list", str(average), str(sought // (args.orders - 1)),
                          *([f"{move:.3f}" for move in moves] or ["-"] * 3), f"{lost / sought:.1%}" if sought else "-",
                          " ".join(f"{100 * score:.1f}" for score in ap))
    console.print(table)


if __name__ == "__main__":
    main()
