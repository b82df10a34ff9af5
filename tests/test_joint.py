"""Boxes, phrases, masks, answers and captions in one batch, and one checkpoint that gives them all."""
import json

import numpy as np
import pytest

from configs import scenes_joint
from glipv2_jax import train
from glipv2_jax.build import build, find_answers
from glipv2_jax.predict import Detector
from input_pipeline import train_batches
from input_pipeline.registry import make_source, train_options, train_specs
from tests.test_models import MASK_HEAD
from tests.test_text_evaluation import SCENES, talking_config


def joint_config():
    """Two steps of eight images, of all tasks; the tiny model with all heads."""
    config = talking_config()
    config.model.overrides = config.model.overrides.to_dict() | {"mask_head": MASK_HEAD, "mlm_head": True}
    config.data.train = tuple({**SCENES, "task": task, "num_examples": 20, "weight": 1.0} for task in scenes_joint.TASKS)
    config.data.eval = tuple({**SCENES, "task": task, "split": "test", "num_examples": 2, "name": task} for task in scenes_joint.TASKS)
    config.data.mask_size, config.loss.mask_boxes = 8, 6
    config.train.batch_size, config.train.ema_decay = 8, 0.0
    config.seed = 2                          # whose two batches have examples of every task
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("joint")
    return workdir, train.train_and_evaluate(joint_config(), workdir)


def test_a_batch_has_every_task_and_every_loss_its_own_examples(finished):
    workdir, _ = finished
    config = joint_config()
    specs = train_specs(config.data)
    sources = [make_source(spec) for spec in specs]
    _, tokenizer, model = build(config)
    answers = find_answers(config, model, sources, None)
    batches = train_batches(**train_options(config, specs, sources, tokenizer, answers), start_step=0, process_index=0, process_count=1)
    for batch, line in zip(batches, (workdir / "metrics.jsonl").read_text().splitlines()):
        line = json.loads(line)
        assert set(batch["source"].tolist()) == {0, 1, 2, 3}
        written, asked = batch["causal"], batch["is_question"]
        np.testing.assert_array_equal(written, batch["source"] == 3)
        np.testing.assert_array_equal(asked, batch["source"] == 2)
        assert not batch["is_grounded"][written].any() and (batch["mlm_eligible"][written] != 1).all()
        assert line["count_answer"] == asked.sum() and line["count_caption"] == np.minimum(
            batch["token_mask"][written].sum(1) - 1, config.loss.caption_words).sum()
        pixels = (2 * MASK_HEAD["pool_size"])**2
        assert 0 < line["count_mask"] <= 2 * batch["box_mask"][~written].sum() * pixels
        for loss in ("box", "centerness", "alignment", "inter", "mlm", "mask", "answer", "caption"):
            assert np.isfinite(line[f"loss_{loss}"])


def test_one_checkpoint_gives_boxes_masks_phrases_answers_and_captions(finished):
    workdir, scores = finished
    assert {"detection/AP50", "detection/mask_AP", "caption/recall@1", "question/accuracy", "description/CIDEr"} <= set(scores)
    detector = Detector.from_pretrained(workdir)
    image = np.zeros((64, 64, 3), np.uint8)
    found = detector.detect([image], ["red star", "blue moon"], threshold=0.0)[0]
    assert len(found.masks) == len(found.boxes) and np.asarray(found.masks).shape[1:] == (64, 64)
    assert detector.ground(image, "a red star above a moon", threshold=0.0).phrases
    said = detector.answer(image, "how many stars are there?")
    assert len(said.answers) == 5 and said.found.boxes.shape[1] == 4
    assert isinstance(detector.describe(image).caption, str)


def test_the_config_has_both_stages():
    first, second = scenes_joint.get_config(), scenes_joint.get_config("stage2")
    assert first.loss.mlm_rate > 0 and second.loss.mlm_rate == 0 and first.model == second.model
    with pytest.raises(ValueError, match="found 'stage3', expected 'stage1' or 'stage2'"):
        scenes_joint.get_config("stage3")
