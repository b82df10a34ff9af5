"""GLIPv2 learns to ground words in rendered scenes, all losses on, on a CPU.

    python -m glipv2_jax.main --config=configs/quickstart.py --workdir=runs/quickstart
"""
from configs import common


def get_config():
    config = common.get_config()
    config.model.variant = "glipv2_nano"
    size = (128, 128)
    scenes = {"kind": "scenes", "canvas": size, "seed": 0, "max_objects": 8}
    config.data.train = (
        {**scenes, "task": "detection", "split": "train", "num_examples": 100_000, "weight": 0.6},
        {**scenes, "task": "caption", "split": "train", "seed": 1, "num_examples": 100_000, "weight": 0.4},
    )
    config.data.eval = (
        {**scenes, "task": "detection", "split": "test", "num_examples": 100, "name": "seen"},
        {**scenes, "task": "detection", "split": "heldout", "num_examples": 100, "name": "heldout"},
        {**scenes, "task": "caption", "split": "test", "num_examples": 100, "name": "captions"},
    )
    config.data.canvases = (size,)
    config.data.augment = ""                 # captions say left and right
    config.data.max_tokens = 64
    config.data.max_boxes = 16
    config.data.num_negatives = 12

    config.train.batch_size = 8
    config.train.num_steps = 1300
    config.train.ema_decay = 0.0
    config.train.checkpoint_every_steps = 500
    config.optimizer.learning_rate = 1e-3
    config.optimizer.text_learning_rate = 1e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 50
    config.loss.contrastive_regions = 32
    config.loss.mlm_positions = 6
    config.loss.weights.mlm = 0.2            # easy sentences would otherwise outweigh the rest of the clipped gradient

    config.eval.batch_size = 24
    config.eval.canvases = (size,)
    config.eval.short_side = 128
    config.eval.max_size = 128
    config.eval.classes_per_prompt = 20
    return config
