"""Whether two data sets share images: a test set that was trained on proves nothing."""
import numpy as np

_SHOWN = 5


def overlap(ours, theirs):
    """What two sources have in common.

    The same picture, or without pixels the same file name, is a problem. The same id alone is a note: many data sets
    count their images from 1.

    Args:
      ours, theirs: records.Findings.
    Returns: dict of "against"; "ids", "files", "pixels": how many images of `ours` are in `theirs` by each, None where
      it cannot be said; "problems" and "notes", lists of str.
    """
    ids, ours_ids = _common(ours.image_ids, theirs.image_ids, np.int64), np.array(ours.image_ids, np.int64)
    found = {"against": theirs.name, "ids": _images(ours_ids, ids), "problems": [], "notes": []}
    same = {}
    for key in ("files", "pixels"):
        a, b = getattr(ours, key), getattr(theirs, key)
        known = any(a) and any(b)
        same[key] = _common(a, b, np.uint64) if known else None
        found[key] = _images(ours_ids, same[key]) if known else None

    def say(where, which, what):
        if which.any():
            examples = ", ".join(map(str, np.unique(ours_ids[which])[:_SHOWN]))
            found[where].append(f"{ours.name}: found {_images(ours_ids, which)} images that are in {theirs.name} too, by "
                                f"{what}: image ids {examples}{', …' * (_images(ours_ids, which) > _SHOWN)}")
    none = np.zeros(len(ours_ids), np.bool_)
    files, pixels = (none if same[key] is None else same[key] for key in ("files", "pixels"))
    say("problems", pixels, "the pixels themselves")
    if same["pixels"] is None:
        say("problems", files, "their file name (--hash compares the pixels)")
    else:
        say("notes", files & ~pixels, "their file name, with other pixels")
    say("notes", ids & ~files & ~pixels, "their id alone, which can be chance" +
        ("" if same["pixels"] is not None else "; --hash compares the pixels"))
    return found


def _common(a, b, kind):
    """bool [len(a)]: which entries of `a` are in `b`; 0 in a hash stands for unknown."""
    a, b = np.array(a, kind), np.array(b, kind)
    return np.isin(a, b) & ((a != 0) | (kind is np.int64))


def _images(ids, which):
    """Photographs, not records: one photograph may have many captions."""
    return len(np.unique(ids[which]))
