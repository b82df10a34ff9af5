"""Masks in two steps, as GLIPv2 has them: the mask head alone on a trained model, then everything together; on a CPU.

    python -m glipv2_jax.main --config=configs/scenes_masks.py --workdir=runs/masks
    python -m glipv2_jax.main --config=configs/scenes_masks.py:joint --workdir=runs/masks_joint --config.init_from=runs/masks

The first starts from the weights of the package.
"""
from configs import quickstart
from glipv2_jax.weights import BUILT_IN


def get_config(step="head"):
    """step: "head" or "joint". Raises: ValueError for another."""
    if step not in ("head", "joint"):
        raise ValueError(f"configs/scenes_masks.py: found step {step!r}, expected 'head' or 'joint'")
    config = quickstart.get_config()
    config.init_from = str(BUILT_IN)
    config.model.overrides = {"mlm_head": False, "mask_head": {"kind": "hourglass", "num_blocks": 1, "group_norm": True}}
    config.loss.mlm_rate = 0.0                   # the weights of the package are without that head
    config.data.mask_size = 56
    config.loss.mask_boxes = 8
    config.train.tune = "masks"
    config.train.num_steps = 500
    if step == "joint":
        config.train.tune = "full"
        config.train.num_steps = 200
        config.optimizer.learning_rate = config.optimizer.text_learning_rate = 1e-4
    return config
