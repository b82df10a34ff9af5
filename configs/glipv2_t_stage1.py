"""GLIPv2-T, stage 1: all four losses.

    python -m glipv2_jax.main --config=configs/glipv2_t_stage1.py --workdir=runs/glipv2_t_stage1 --config.data.root=DATA
"""
from configs import pretrain


def get_config(size="full"):
    return pretrain.get_config("glipv2_t", num_steps=330_000, captions=pretrain.CAP4M, size=size)
