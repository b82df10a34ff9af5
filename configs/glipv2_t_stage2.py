"""GLIPv2-T, stage 2: without masked words, from stage 1 (--config.init_from=WORKDIR).

    python -m glipv2_jax.main --config=configs/glipv2_t_stage2.py --workdir=runs/glipv2_t_stage2 --config.data.root=DATA
"""
from configs import pretrain


def get_config(size="full"):
    return pretrain.second_stage(pretrain.get_config("glipv2_t", num_steps=300_000, size=size))
