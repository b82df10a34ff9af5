"""A student of few gold scenes and of many captions with pseudo-labels, beside the same student of the gold alone.

    python -m glipv2_jax.main --config=configs/scenes_student.py:gold --workdir=runs/gold
    glipv2 pseudo-label --checkpoint=runs/gold --format=scenes --task=caption --split=train --seed=2 --num_examples=5000 \
        --canvas=[128,128] --max_objects=8 --output=runs/pseudo --shards=4
    python -m glipv2_jax.main --config=configs/scenes_student.py --workdir=runs/student --config.data.root=runs

Both runs are the quickstart's in all but data. The first is also the teacher; the boxes of the 5000 scenes are never shown.
"""
from configs import quickstart

GOLD = 100       # scenes with boxes, of classes and of captions each: few, so that more of them would help


def get_config(data="gold_and_pseudo"):
    if data not in ("gold", "gold_and_pseudo"):
        raise ValueError(f"configs/scenes_student.py: found data {data!r}, expected 'gold' or 'gold_and_pseudo'")
    config = quickstart.get_config()
    detection, captions = ({**spec, "num_examples": GOLD} for spec in config.data.train)
    if data == "gold_and_pseudo":
        # A fifth of the images. With three fifths the student learns the teacher's mistakes, docs/pseudo_labels.md.
        pseudo = {"kind": "records", "name": "pseudo", "folder": "pseudo/records", "weight": captions["weight"] / 2}
        config.data.train = (detection, {**captions, "weight": captions["weight"] / 2}, pseudo)
    else:
        config.data.train = (detection, captions)
    return config
