"""GLIPv2-T's masks: the mask head alone, from a pre-trained model (--config.init_from=WORKDIR).

    python -m glipv2_jax.main --config=configs/glipv2_t_masks.py --workdir=runs/glipv2_t_masks --config.data.root=DATA \\
        --config.init_from=runs/glipv2_t_stage2

Then everything together: --config.train.tune=full --config.optimizer.learning_rate=1e-5, from the workdir of the first.
"""
from configs import pretrain


def get_config(size="full"):
    config = pretrain.mask_step(pretrain.get_config(
        "glipv2_t", num_steps=130_000, detection=pretrain.MASKS[:2], gold=pretrain.MASKS[2:], size=size))
    config.train.batch_size = 32 if size == "full" else config.train.batch_size
    if size == "rehearsal":
        config.train.num_steps, config.model.overrides.mask_head = 4, {"kind": "hourglass", "num_blocks": 1, "pool_size": 4}
    return config
