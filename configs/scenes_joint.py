"""One set of weights for every task: boxes, phrases, masks, answers and captions of rendered scenes, in one batch, on a CPU.

    python -m glipv2_jax.main --config=configs/scenes_joint.py --workdir=runs/joint_stage1
    python -m glipv2_jax.main --config=configs/scenes_joint.py:stage2 --workdir=runs/joint --config.init_from=runs/joint_stage1

Stage 1 starts from the weights of the package and has all losses, masked words among them; stage 2 goes on without masked words,
at a tenth of the rate, as the paper has it.
"""
from configs import quickstart
from glipv2_jax.weights import BUILT_IN

# Shares of the images drawn. The weights of the package have learned to detect and to ground; answers and captions start fresh.
TASKS = {"detection": 0.2, "caption": 0.1, "question": 0.4, "description": 0.3}


def get_config(stage="stage1"):
    """stage: "stage1" or "stage2". Raises: ValueError for another."""
    if stage not in ("stage1", "stage2"):
        raise ValueError(f"configs/scenes_joint.py: found {stage!r}, expected 'stage1' or 'stage2'")
    config = quickstart.get_config()
    config.init_from = str(BUILT_IN)
    config.init_fresh = ("mlm/", "answers/", "mask_head/")
    config.model.overrides = {"num_answers": 25, "mask_head": {"kind": "hourglass", "num_blocks": 1, "group_norm": True}}
    scenes = {"kind": "scenes", "canvas": (128, 128), "max_objects": 8}
    config.data.train = tuple(
        {**scenes, "task": task, "split": "train", "seed": seed, "num_examples": 100_000, "weight": weight}
        for seed, (task, weight) in enumerate(TASKS.items()))
    tests = {"detection": 100, "caption": 100, "question": 400, "description": 200}
    config.data.eval = tuple({**scenes, "task": task, "split": "test", "num_examples": count, "name": f"{task}s"}
                             for task, count in tests.items())
    config.data.mask_size, config.loss.mask_boxes = 56, 8
    config.loss.caption_words, config.eval.caption_words = 40, 32
    config.train.num_steps = 4000
    if stage == "stage2":
        config.init_fresh = ()
        config.loss.mlm_rate = 0.0
        config.train.num_steps, config.optimizer.warmup_steps = 1000, 20
        config.optimizer.learning_rate = config.optimizer.text_learning_rate = 1e-4
    return config
