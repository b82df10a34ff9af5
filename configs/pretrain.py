"""The data and the recipe that the pre-training configs share; docs/data.md says where each data set comes from.

Every config that uses it has two sizes: `configs/X.py` is the paper's; `configs/X.py:rehearsal` has the same data, mixture, losses
and schedule with a small model, small canvases and four steps, to try a folder of data, or stand-ins for it, on any machine.

Shares of a mixture: records × `copies`, the repeat factors of GLIP-L's released config; `mixture_weights` raises
detection to at least half of the stream.
"""
from configs import common


def _detection(name, json_path, image_folder, copies=1.0):
    return {"kind": "coco_json", "name": name, "json_path": json_path, "image_folder": image_folder, "copies": copies,
            "keep_empty": False, "bad_boxes": "repair"}


def _grounding(name, json_path, image_folder, copies):
    return {"kind": "grounding_json", "name": name, "json_path": f"mdetr_annotations/{json_path}",
            "image_folder": image_folder, "copies": copies, "bad_boxes": "repair"}


def _pairs(name):
    """Image-text pairs with pseudo boxes; as in GLIP, those of a score above 0.5."""
    return {"kind": "odvg", "name": name, "jsonl_path": f"{name}/train.jsonl", "image_folder": f"{name}/images",
            "copies": 1.0, "min_score": 0.5, "bad_boxes": "repair"}


OBJECTS365 = _detection("objects365", "objects365/annotations/objects365_train.json", "objects365/train", 2.0)
# FourODs has the first four, FiveODs COCO too.
FIVE_ODS = (
    OBJECTS365,
    _detection("openimages", "openimages/annotations/openimages_train.json", "openimages/train"),
    _detection("visual_genome", "visual_genome/annotations/vg_train_no_coco.json", "visual_genome/images", 3.0),
    _detection("imagenet_boxes", "imagenet_boxes/annotations/imagenet_boxes_train.json", "imagenet_boxes/train", 2.0),
    _detection("coco", "coco/annotations/instances_train2017.json", "coco/train2017"),
)
# GoldG: Flickr30k Entities, and GQA with Visual Genome, without the images of COCO.
GOLD = (
    _grounding("flickr30k", "final_flickr_separateGT_train.json", "flickr30k/flickr30k_images/train", 8.0),
    _grounding("mixed", "final_mixed_train_no_coco.json", "gqa/images", 4.0),
)
# Cap4M and Cap24M were never released: any pairs with pseudo boxes take their place.
CAP4M, CAP24M = (_pairs("cap4m"),), (_pairs("cap24m"),)
CC15M_SBU = (_pairs("cc3m"), _pairs("cc12m"), _pairs("sbu"))


def get_config(variant, num_steps, captions=(), detection=(OBJECTS365,), gold=GOLD, size="full"):
    """GLIP's recipe for a variant: AdamW 1e-4 / 1e-5, batch 64, short side 480 to 800, long side at most 1333.

    Raises: ValueError for a size other than "full" and "rehearsal".
    """
    if size not in ("full", "rehearsal"):
        raise ValueError(f"config of {variant}: found size {size!r}, expected 'full' or 'rehearsal'")
    config = common.get_config()
    config.model.variant = variant
    config.model.overrides.remat = "nothing"
    config.model.overrides.scan_layers = True
    config.model.dtype = "bfloat16"
    config.data.train = (*detection, *gold, *captions)
    config.data.eval = ({"kind": "coco_json", "name": "coco_val2017", "image_folder": "coco/val2017",
                         "json_path": "coco/annotations/instances_val2017.json"},)
    config.data.max_bad_records = 1000           # of millions; each is named in the log
    config.data.mlm_on_detection = not gold and not captions     # the only words there are
    config.train.num_steps = num_steps
    if variant.startswith(("glipv2_b", "glipv2_h")):
        # The released towers read CLIP's byte pairs; trained from scratch they read the WordPieces that ship here.
        config.model.overrides.text_encoder = {"vocab_size": 30522}
        config.optimizer.weight_decay = 0.01     # the paper is silent
    if size == "rehearsal":
        _shrink(config)
    return config


def _shrink(config):
    config.model.variant, config.model.dtype = "glipv2_nano", "float32"
    if "text_encoder" in config.model.overrides:
        del config.model.overrides.text_encoder
    config.data.canvases = config.eval.canvases = ((96, 128), (128, 96), (128, 128))
    config.data.augment = "resize((80, 96), 128)|flip(0.5)"
    config.eval.short_side, config.eval.max_size = 96, 128
    config.data.max_tokens, config.data.max_boxes = 128, 32
    config.eval.batch_size = config.train.batch_size = 8
    config.train.num_steps, config.train.log_every_steps, config.optimizer.warmup_steps = 4, 1, 1


# The truth of masks. LVIS has COCO's images; the phrases of PhraseCut may name several instances.
MASKS = tuple(spec | {"with_masks": True} for spec in (
    _detection("coco", "coco/annotations/instances_train2017.json", "coco/train2017"),
    _detection("lvis", "lvis/lvis_v1_train.json", "coco/train2017"),
    _grounding("phrasecut", "finetune_phrasecut_train.json", "visual_genome/images", 1.0)))


def mask_step(config):
    """GLIPv2's first step of masks: the head alone, from the weights that `init_from` names.

    The paper has no numbers for it: about twelve passes over the images of COCO, LVIS and PhraseCut, in equal shares;
    28 × 28 pixels, 56 × 56 with pool_size 28.
    """
    config.model.overrides.mask_head = {"kind": "hourglass", "group_norm": True}
    config.data.train = tuple({**spec, "weight": 1.0} for spec in config.data.train)
    config.data.mask_size = 56
    config.data.mlm_on_detection = False
    config.loss.mlm_rate = 0.0
    config.train.tune = "masks"
    return config


def second_stage(config):
    """GLIPv2's stage 2: no masked words, from the end of stage 1's schedule."""
    config.loss.mlm_rate = 0.0
    config.optimizer.learning_rate = 1e-5
    config.optimizer.text_learning_rate = 1e-6
    config.optimizer.warmup_steps = 500
    return config
