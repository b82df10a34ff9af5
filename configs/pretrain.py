"""What the pre-training configs share: Objects365 as a COCO-format file under `data.root`, COCO to be scored on.

Of the paper's data this version reads the detection part. Grounding (GoldG) and pseudo-boxed captions join `data.train`
as further sources when their readers do.
"""
from configs import common


def get_config(variant, num_steps):
    """GLIP's recipe for a variant: AdamW 1e-4 / 1e-5, batch 64, short side 480 to 800, long side at most 1333."""
    config = common.get_config()
    config.model.variant = variant
    config.model.overrides.remat = True
    config.model.dtype = "bfloat16"
    config.data.train = ({"kind": "coco_json", "weight": 1.0, "name": "objects365", "keep_empty": False,
                          "bad_boxes": "repair", "json_path": "objects365/annotations/objects365_train.json",
                          "image_folder": "objects365/train"},)
    config.data.eval = ({"kind": "coco_json", "name": "coco_val2017", "image_folder": "coco/val2017",
                         "json_path": "coco/annotations/instances_val2017.json"},)
    config.data.mlm_on_detection = True          # the only words there are, without captions
    config.train.num_steps = num_steps
    if variant.startswith(("glipv2_b", "glipv2_h")):
        # The released towers read CLIP's byte pairs; trained from scratch they read the WordPieces that ship here.
        config.model.overrides.text_encoder = {"vocab_size": 30522}
        config.optimizer.weight_decay = 0.01     # the paper is silent
    return config


def second_stage(config):
    """GLIPv2's stage 2: detection and grounding data only, no masked words, from the end of stage 1's schedule."""
    config.loss.mlm_rate = 0.0
    config.optimizer.learning_rate = 1e-5
    config.optimizer.text_learning_rate = 1e-6
    config.optimizer.warmup_steps = 500
    return config
