"""The settings of a fine-tuning run, from its mode and its shots, and the files of its data.

Source: GLIP, README and tools/finetune.py, as it fine-tunes on ODinW. Differs from GLIP: docs/finetune.md lists where.
"""
import copy
import dataclasses
import os
import pathlib

from ml_collections import ConfigDict

from glipv2_jax.evaluation import odinw
from input_pipeline.registry import train_specs

# Shots → times that an epoch shows each image.
COPIES = {1: 8, 3: 4, 5: 2}
_SHORT_SIDES = (0.6, 0.7, 0.8, 0.9, 1.0)     # shares of the short side of evaluation: 480 … 800 of 800


@dataclasses.dataclass(frozen=True)
class Data:
    """train, val, test: (COCO file, folder of its images). class_names: as the `coco_json` source takes them."""
    train: tuple[str, str]
    val: tuple[str, str]
    test: tuple[str, str]
    class_names: dict

    def spec(self, split):
        """The source of a split, as the registry takes it. Boxes are repaired as for the benchmark."""
        json_path, images = getattr(self, split)
        return {"kind": "coco_json", "json_path": json_path, "image_folder": images, "class_names": self.class_names,
                "bad_boxes": "repair"}


def find_data(data, images=None, val=None, val_images=None, test=None, test_images=None, class_names=None):
    """The files of a data set.

    Args:
      data: folder of a set of ODinW, in a layout that `odinw.files_of` knows; or a COCO file, with `images`, its folder of
        images, and a file to choose the best state on, `val` with `val_images`.
      test, test_images: what is scored before and after; else the folder's test split, else val.
      class_names: better words for the classes; a known set of ODinW has those of the benchmark.
    Returns: Data.
    Raises: ValueError for what is missing.
    """
    folder = pathlib.Path(os.path.abspath(data))
    if folder.is_dir():
        if images or val or val_images:
            raise ValueError(f"--data={data} is a folder: found files or folders of images beside it, expected a set of ODinW "
                             "alone; a COCO file goes to --data itself")
        known = next((one for one in odinw.SETS if str(folder).endswith(f"/{one.folder.rstrip('/')}")), None)
        train = odinw.files_of(folder, "train")
        chosen = odinw.files_of(folder, known.split if known else "val") or odinw.files_of(folder, "minival")
        if train is None or chosen is None:
            raise ValueError(f"{data}: found no {'validation' if train else 'training'} file, expected "
                             "annotations/{train,val}.json beside images/{train,val}, or the folders of ODinW's archives")
        if known and class_names is None:
            class_names = odinw.class_names(train[0], odinw.words(known, "35"))
        found = {"train": train, "val": chosen, "test": odinw.files_of(folder, "test") or chosen}
    else:
        pairs = {"train": (data, images), "val": (val, val_images)}
        for split, (file, of_images) in pairs.items():
            if not file or not of_images:
                raise ValueError(f"--data={data} is no folder: found no {split} {'images' if file else 'file'}, expected a COCO "
                                 "file with --images, --val and --val_images")
        found = pairs | {"test": (test, test_images or val_images) if test else pairs["val"]}
    if test and folder.is_dir():
        found["test"] = test, test_images
    if not all(found["test"]):
        raise ValueError(f"--test={test}: found no --test_images, expected the folder of its images")
    return Data(**{split: tuple(os.path.abspath(path) for path in pair) for split, pair in found.items()},
                class_names=dict(class_names or {}))


def recipe(base, data, mode, shots, size=None, rehearsal=0.0):
    """The config of a run; its seed is left to the caller.

    Args:
      base: config of the checkpoint to start from. data: Data.
      mode: name in `tuning.MODES`. shots: images of each class, at least; 0: all images.
      size: (short side, longest side) of images, pixels; None: those of the checkpoint.
      rehearsal: share of the images drawn that come from the checkpoint's own training sources; 0: none.
    Returns: ConfigDict.
    Raises: ValueError for a checkpoint that knows no training sources to rehearse.
    """
    config = copy.deepcopy(base)
    d, t, o, e = config.data, config.train, config.optimizer, config.eval
    d.train_json, d.train_images = data.train
    d.eval_json, d.eval_images = data.val
    d.class_names, d.bad_boxes = ConfigDict(data.class_names), "repair"
    d.train_shots, d.train_copies = shots, COPIES.get(shots, 1)
    d.num_negatives = -1                      # every class in every prompt, in the file's order
    d.packed_captions, d.mlm_on_detection = 0, False
    if rehearsal:
        try:
            rehearsed = train_specs(base.data)
        except ValueError as error:
            raise ValueError(f"--rehearsal: the checkpoint says nothing of what it was trained on: {error}") from error
        d.rehearsal = tuple({"num_negatives": base.data.num_negatives, **spec} for spec in rehearsed)
        d.rehearsal_share = rehearsal
    if size:
        short, longest = size
        wide, tall = (-(-side // 32) * 32 for side in (longest, short))
        e.short_side, e.max_size = short, longest
        e.canvases = ((tall, wide), (wide, tall), (wide, wide)) if tall != wide else ((wide, wide),)
    d.canvases = e.canvases
    sides = tuple(round(share * e.short_side) for share in _SHORT_SIDES)
    d.augment = f"resize({sides}, {e.max_size})|flip(0.5{', True' * bool(rehearsal)})"   # captions say left and right
    e.ema, e.batch_size = False, 4

    t.tune, t.batch_size, t.num_epochs, t.eval_every_epochs = mode, 4, 200, 1.0
    t.ema_decay, t.checkpoint_every_steps, t.keep_checkpoints, t.log_every_steps = 0.0, 100, 1, 10
    t.stop_patience, o.patience = (8, 3) if shots else (4, 2)
    t.select_by = "eval/AP"
    overrides = config.model.overrides.to_dict()
    frozen = {"image_encoder": overrides.get("image_encoder", {}) | {"frozen_stages": 2}}
    config.model.overrides = ConfigDict(overrides | frozen)
    o.schedule, o.warmup_steps = "plateau", 0
    o.learning_rate, o.text_learning_rate = (0.05 if mode == "prompt" else 1e-4), 1e-5
    o.weight_decay = 0.25 if mode == "prompt" else 0.05
    config.loss.mlm_rate, config.loss.contrastive_regions = 0.0, 0    # one fixed prompt: nothing to guess, nothing to contrast
    return config
