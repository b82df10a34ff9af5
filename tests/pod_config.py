"""The config of the runs that tests start as several processes: the smallest main job, for eight devices."""
from tests.test_train import small_config


def get_config(num_steps="6"):
    config = small_config()
    config.train.batch_size, config.train.num_steps, config.train.checkpoint_every_steps = 8, int(num_steps), 2
    config.eval.batch_size = 8
    return config
