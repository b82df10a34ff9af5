"""GLIP-T (A): Swin-T, no fusion, Objects365 only.

    python -m glipv2_jax.main --config=configs/glip_a.py --workdir=runs/glip_a --config.data.root=DATA
"""
from configs import pretrain


def get_config(size="full"):
    return pretrain.get_config("glip_a", num_steps=380_000, gold=(), size=size)
