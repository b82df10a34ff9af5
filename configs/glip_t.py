"""GLIP-T: Swin-T with deep fusion. On Objects365 alone this is GLIP-T (B).

    python -m glipv2_jax.main --config=configs/glip_t.py --workdir=runs/glip_t --config.data.root=DATA
"""
from configs import pretrain


def get_config(size="full"):
    return pretrain.get_config("glip_t", num_steps=380_000, captions=pretrain.CAP4M, size=size)
