"""GLIP-L: Swin-L, eight fusion layers; patch embedding and first stage frozen, weight decay stepped.

    python -m glipv2_jax.main --config=configs/glip_l.py --workdir=runs/glip_l --config.data.root=DATA
"""
from configs import pretrain


def get_config(size="full"):
    config = pretrain.get_config("glip_l", num_steps=1_000_000, detection=pretrain.FIVE_ODS[:4],
                                 captions=pretrain.CAP24M, size=size)
    config.data.packed_captions = 20
    config.optimizer.weight_decay = 0.01
    config.optimizer.decay_weight_decay = True
    config.train.ema_decay = 0.0
    return config
