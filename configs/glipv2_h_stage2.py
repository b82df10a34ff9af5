"""GLIPv2-H, stage 2: without masked words, from stage 1 (--config.init_from=WORKDIR).

    python -m glipv2_jax.main --config=configs/glipv2_h_stage2.py --workdir=runs/glipv2_h_stage2 --config.data.root=DATA
"""
from configs import pretrain


def get_config(size="full"):
    config = pretrain.second_stage(pretrain.get_config("glipv2_h", num_steps=300_000, detection=pretrain.FIVE_ODS, size=size))
    config.mesh.data, config.mesh.fsdp = 1, -1       # its optimizer state does not fit on one chip
    return config
