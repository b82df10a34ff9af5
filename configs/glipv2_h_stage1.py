"""GLIPv2-H, stage 1: a CoSwin-H-sized backbone, pre-norm text tower, eight fusion layers.

    python -m glipv2_jax.main --config=configs/glipv2_h_stage1.py --workdir=runs/glipv2_h_stage1 --config.data.root=DATA
"""
from configs import pretrain


def get_config(size="full"):
    config = pretrain.get_config("glipv2_h", num_steps=330_000, detection=pretrain.FIVE_ODS,
                                captions=pretrain.CC15M_SBU, size=size)
    config.mesh.data, config.mesh.fsdp = 1, -1       # its optimizer state does not fit on one chip
    return config
