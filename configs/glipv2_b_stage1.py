"""GLIPv2-B, stage 1: Swin-B, pre-norm text tower, eight fusion layers.

    python -m glipv2_jax.main --config=configs/glipv2_b_stage1.py --workdir=runs/glipv2_b_stage1 --config.data.root=DATA
"""
from configs import pretrain


def get_config(size="full"):
    return pretrain.get_config("glipv2_b", num_steps=330_000, detection=pretrain.FIVE_ODS,
                               captions=pretrain.CC15M_SBU, size=size)
