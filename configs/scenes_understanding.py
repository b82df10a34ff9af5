"""The built-in weights learn to answer questions and to write captions about rendered scenes, on a CPU.

    python -m glipv2_jax.main --config=configs/scenes_understanding.py --workdir=runs/understanding

Questions name objects and have their boxes, so that grounding goes on with them. The heads of answers and words start fresh: the
built-in weights have none.
"""
from configs import quickstart
from glipv2_jax.weights import BUILT_IN


def get_config():
    config = quickstart.get_config()
    config.init_from = str(BUILT_IN)
    config.init_fresh = ("mlm/", "answers/")
    config.model.overrides.num_answers = 25      # yes, no, 0 to 12 and ten colours
    size = (128, 128)
    scenes = {"kind": "scenes", "canvas": size, "max_objects": 8}
    config.data.train = (
        {**scenes, "task": "question", "split": "train", "seed": 2, "num_examples": 100_000, "weight": 0.6},
        {**scenes, "task": "description", "split": "train", "seed": 3, "num_examples": 100_000, "weight": 0.4},
    )
    config.data.eval = (
        {**scenes, "task": "question", "split": "test", "num_examples": 400, "name": "questions"},
        {**scenes, "task": "description", "split": "test", "num_examples": 200, "name": "descriptions"},
    )
    config.loss.mlm_rate = 0.0
    config.loss.caption_words = 40
    config.eval.caption_words = 32
    config.train.num_steps = 2000
    config.train.log_every_steps = 50
    return config
