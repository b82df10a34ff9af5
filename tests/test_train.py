"""The main job from end to end on rendered scenes: train, stop, resume, evaluate; and how it fails."""
import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest
from pycocotools.coco import COCO

from configs import common
from glipv2_jax import train
from glipv2_jax.build import abstract_params, build
from glipv2_jax.checkpoint import load_params, read_about
from glipv2_jax.models.glipv2 import init_params
from glipv2_jax.processes import Stopped
from input_pipeline import stand_ins
from input_pipeline.canvases import Order
from input_pipeline.registry import make_source
from tests.test_models import TINY

SIZE = (64, 64)


def small_config():
    """Six steps of a model that sees nothing, with every part of the main job in it."""
    config = common.get_config()
    config.model.overrides = TINY | {"text_encoder": {**TINY["text_encoder"], "vocab_size": 30522, "max_positions": 64}}
    scenes = {"kind": "scenes", "canvas": SIZE, "max_objects": 3}
    config.data.train = ({**scenes, "task": "detection", "num_examples": 20, "weight": 1.0},
                         {**scenes, "task": "caption", "num_examples": 20, "weight": 1.0})
    config.data.eval = ({**scenes, "task": "detection", "split": "heldout", "num_examples": 3, "name": "heldout"},
                        {**scenes, "task": "caption", "split": "test", "num_examples": 3, "name": "captions"})
    config.data.canvases, config.data.augment = (SIZE,), "resize(64, 64)|flip(0.5)"
    config.data.max_tokens, config.data.max_boxes, config.data.num_negatives = 64, 4, 5
    config.train.batch_size, config.train.num_steps = 2, 6
    config.train.checkpoint_every_steps, config.train.log_every_steps = 3, 1
    config.optimizer.learning_rate = config.optimizer.text_learning_rate = 1e-3
    config.optimizer.warmup_steps = 2
    config.loss.contrastive_regions, config.loss.mlm_positions = 8, 4
    config.eval.batch_size, config.eval.canvases = 2, (SIZE,)
    config.eval.short_side = config.eval.max_size = 64
    config.eval.classes_per_prompt, config.eval.num_pictures = 20, 2
    config.eval.score_threshold = 0.0        # an untrained model finds nothing above the usual threshold
    config.eval.pre_nms_top_n, config.eval.max_detections = 20, 5
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(config, workdir, scores) of an unbroken run."""
    config, workdir = small_config(), tmp_path_factory.mktemp("run")
    return config, workdir, train.train_and_evaluate(config, workdir)


def metrics(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def timeless(lines):
    """Time is not part of what resumes."""
    return [{k: v for k, v in line.items() if k not in ("input_wait", "step_seconds", "tflops")} for line in lines]


def test_a_run_leaves_results_that_pycocotools_reads(finished):
    _, workdir, scores = finished
    assert set(scores) >= {"heldout/AP50", "heldout/heldout_AP50", "captions/recall@1"}
    lines = metrics(workdir)
    assert [line["step"] for line in lines] == list(range(1, 7))
    assert {"loss_box", "loss_centerness", "loss_alignment", "loss_inter", "loss_mlm", "grad_norm"} <= set(lines[0])
    assert all(line["padding"] == 0 and line["bad_records"] == 0 and 0 <= line["input_wait"] <= 1 for line in lines)
    assert all(line["step_seconds"] > 0 and line["tflops"] > 0 for line in lines[1:]) and "mfu" not in lines[1]     # a CPU's peak is not known
    assert lines[-1]["heldout/AP50"] == scores["heldout/AP50"]
    rows = json.loads((workdir / "detections.json").read_text())
    assert rows and [r["image_id"] for r in rows] == sorted(r["image_id"] for r in rows)
    truth = COCO()
    truth.dataset = {"images": [{"id": i} for i in range(3)], "annotations": [], "categories": []}
    truth.createIndex()
    assert len(truth.loadRes(rows).anns) == len(rows)
    protocol = json.loads((workdir / "protocol.json").read_text())
    assert "step 6" in protocol["checkpoint"] and len(protocol["prompt"]) == 6
    assert (workdir / "pictures.jpg").exists() and (workdir / "captions" / "pictures.jpg").exists()
    assert list(workdir.glob("events.out.tfevents*"))


def test_a_stopped_run_resumes_bit_for_bit(finished, tmp_path):
    """The workdir as it was after step 3, its later lines of metrics included, goes on to the same state."""
    config, workdir, _ = finished
    shutil.copytree(workdir / "checkpoints" / "3", tmp_path / "checkpoints" / "3")
    shutil.copy(workdir / "metrics.jsonl", tmp_path)
    train.train_and_evaluate(config, tmp_path)
    assert timeless(metrics(tmp_path)) == timeless(metrics(workdir))
    assert (tmp_path / "detections.json").read_text() == (workdir / "detections.json").read_text()
    for ema in (False, True):
        resumed, unbroken = (params_of(config, folder, ema) for folder in (tmp_path, workdir))
        jax.tree.map(np.testing.assert_array_equal, resumed, unbroken)


def test_sigterm_saves_at_that_step_and_the_same_command_goes_on(finished, tmp_path, monkeypatch):
    config, workdir, _ = finished
    scalars = train.Writer.scalars

    def told_to_stop(writer, step, values):
        scalars(writer, step, values)
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
    with monkeypatch.context() as patch, pytest.raises(Stopped) as stopped:
        patch.setattr(train.Writer, "scalars", told_to_stop)
        train.train_and_evaluate(config, tmp_path)
    assert stopped.value.code == 75 and read_about(tmp_path)["next_step"] == 5     # no multiple of three: saved for this
    train.train_and_evaluate(config, tmp_path)
    assert (tmp_path / "detections.json").read_text() == (workdir / "detections.json").read_text()
    jax.tree.map(np.testing.assert_array_equal, *(params_of(config, folder, True) for folder in (tmp_path, workdir)))


def test_a_coco_file_trains_from_another_run_and_is_scored_in_its_own_pixels(finished, tmp_path):
    _, before, _ = finished
    stand_ins.write({"kind": "coco_json", "json_path": "train.json", "image_folder": "images"}, tmp_path, num_images=5)
    config = small_config()
    config.data.train_json = config.data.eval_json = str(tmp_path / "train.json")
    config.data.train_images = config.data.eval_images = str(tmp_path / "images")
    config.init_from, config.train.num_steps = str(before), 2
    config.optimizer.learning_rate = config.optimizer.text_learning_rate = 1e-6
    scores = train.train_and_evaluate(config, tmp_path / "run")
    assert set(scores) >= {"eval/AP", "eval/AP50"}
    theirs, ours = params_of(config, before, False), params_of(config, tmp_path / "run", False)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), theirs, ours)

    truth = COCO(tmp_path / "train.json")
    rows = truth.loadRes(str(tmp_path / "run" / "detections.json")).loadAnns(
        truth.loadRes(str(tmp_path / "run" / "detections.json")).getAnnIds())
    assert rows
    for row in rows:
        image = truth.imgs[row["image_id"]]
        x, y, width, height = row["bbox"]
        assert 0 <= x and 0 <= y and x + width <= image["width"] and y + height <= image["height"]
    # The canvas has 64 pixels: boxes that were left on it would not reach the far border.
    assert max(row["bbox"][0] + row["bbox"][2] for row in rows) > 64


def _abstract(config):
    mesh, _, model = build(config)
    return abstract_params(mesh, model, config)


def params_of(config, workdir, ema):
    return load_params(workdir, _abstract(config), ema=ema)


def test_evaluate_only_gives_the_same_scores(finished):
    config, workdir, scores = finished
    before = (workdir / "detections.json").read_text()
    assert train.evaluate_only(config, workdir) == scores
    assert (workdir / "detections.json").read_text() == before


def test_checkpoint_of_another_model_is_refused_by_name(finished):
    config, workdir, _ = finished
    other = small_config()
    other.model.overrides = config.model.overrides.to_dict() | {"channels": 32}
    with pytest.raises(ValueError, match=r"fpn/lateral3/kernel: found \(1, 1, 32, 16\), expected \(1, 1, 32, 32\)"):
        train.evaluate_only(other, workdir)
    assert read_about(workdir)["next_step"] == 6
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        train.evaluate_only(config, workdir / "nowhere")


def test_epochs_as_the_reference_counts_them(load_reference):
    for about in load_reference("evaluation/odinw_fewshot.json")["sets"].values():
        for cases in about["documented_command"].values():
            for expected in cases.values():
                if expected is not True:
                    settings = small_config().train
                    settings.batch_size, settings.num_epochs, settings.eval_every_epochs = 4, 200, 1.0
                    assert train.durations(settings, expected["dataset_length"]) == (
                        expected["iterations"], expected["evaluation_period"])
    settings = small_config().train
    settings.eval_every_steps = 5
    assert train.durations(settings, 100) == (6, 5)
    settings.eval_every_epochs = 0.5
    assert train.durations(settings, 100) == (6, 25)
    with pytest.raises(ValueError, match="found 2 images in an epoch, expected a batch of 2 at least"):
        train.durations(settings, 2)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_step_and_examples(tmp_path):
    config = small_config()
    config.loss.weights.alignment = float("nan")
    with pytest.raises(FloatingPointError, match=r"step 1: loss nan.*Examples.*scenes_train_\w+ image \d+"):
        train.train_and_evaluate(config, tmp_path)


def test_accumulation_and_frozen_parts_train(tmp_path):
    config = small_config()
    config.train.accumulation_steps, config.train.num_steps = 2, 2
    config.train.freeze = ("text_encoder/", "image_encoder/")
    # A step of wide pictures and one of tall ones: nothing assumes one canvas.
    canvases = ((64, 96), (96, 64))
    scenes = dict(config.data.train[0])
    config.data.train = tuple({**scenes, "canvas": canvas} for canvas in canvases)
    config.data.canvases, config.data.augment, config.seed = canvases, "", 0
    order = Order([make_source(spec) for spec in config.data.train], [1, 1], config.seed, 2, canvases, 0, 96)
    assert {order.canvas(0), order.canvas(1)} == set(canvases)
    config.data.eval = ()
    train.train_and_evaluate(config, tmp_path)
    model, after = build(config)[2], load_params(tmp_path, _abstract(config))
    before = jax.jit(lambda: init_params(model, jax.random.key(config.seed)))()
    for part in ("text_encoder", "image_encoder"):
        jax.tree.map(np.testing.assert_array_equal, before[part], after[part])
    assert any(np.any(a != b) for a, b in zip(jax.tree.leaves(before["fpn"]), jax.tree.leaves(after["fpn"])))


@pytest.mark.parametrize("change, message", [
    (lambda c: setattr(c.data, "train", ()), "found nothing to train on"),
    (lambda c: setattr(c.data, "train", ({"kind": "scene", "weight": 1.0},)), "found source kind 'scene', expected one of"),
    (lambda c: setattr(c.data, "train_json", "a.json"), "train_images, the folder of its images, is empty"),
    (lambda c: setattr(c.train, "accumulation_steps", 3), "found 2 in 3 micro-batches"),
    (lambda c: setattr(c.optimizer, "schedule", "plateau"), "schedule 'plateau'.*found no evaluation during training"),
    (lambda c: setattr(c.train, "stop_patience", 8), "stop_patience 8: found no evaluation during training"),
    (lambda c: setattr(c.mesh, "fsdp", 7), "expected the product of the axes"),
    (lambda c: setattr(c.model, "overrides", {"text_encoder": {"vocab_size": 9}}), "text encoder of 9 words, but the vocabulary has 30522"),
])
def test_configs_that_cannot_work_say_why(tmp_path, change, message):
    config = small_config()
    with config.unlocked():
        change(config)
    with pytest.raises(ValueError, match=message):
        train.train_and_evaluate(config, tmp_path)
