"""Few-shot subsets: the few images of a data set that show every class at least a given number of times."""
import collections
import random
from collections.abc import Hashable, Iterable, Mapping


def pick(box_classes: Mapping[int, Iterable[Hashable]], shots: int, seed: int | None = 0) -> list[int]:
    """Greedily picks images until every class occurs in `shots` of them, or in all that show it.

    An image is taken while one of its classes still wants images, and then counts for all of them: rare classes get what
    was asked for, those that keep them company get more. An image comes with all its boxes.

    Args:
      box_classes: image id → the class of each of its boxes.
      shots: images wanted of each class, at least 1.
      seed: of the order in which images are offered, Python's own shuffle of the sorted ids; 0 or None: sorted.
    Returns: the ids of the picked images, in the order of picking.
    Raises: ValueError for shots below 1.
    Source: GLIP, data/datasets/coco.py with DATASETS.FEW_SHOT and SHUFFLE_SEED.
    Differs from GLIP: its list of wanted images is indexed by category id − 1 and fails where ids have gaps, as COCO's;
    and its documented few-shot command reads data with a class that ignores the seed, as seed 0 does here.
    """
    if shots < 1:
        raise ValueError(f"shots: found {shots}, expected at least 1")
    offered = sorted(box_classes)
    if seed:
        random.Random(seed).shuffle(offered)
    wanted, picked = collections.defaultdict(lambda: shots), []
    for image_id in offered:
        present = set(box_classes[image_id])
        if any(wanted[c] > 0 for c in present):
            picked.append(image_id)
            for c in present:
                wanted[c] -= 1
    return picked
