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
from glipv2_jax.predict import Detector
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


def _metrics(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def _timeless(lines):
    """Time is not part of what resumes."""
    return [{k: v for k, v in line.items() if k not in ("input_wait", "step_seconds", "tflops")} for line in lines]


def test_a_run_leaves_results_that_pycocotools_reads(finished):
    _, workdir, scores = finished
    assert set(scores) >= {"heldout/AP50", "heldout/heldout_AP50", "captions/recall@1"}
    lines = _metrics(workdir)
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
    assert _timeless(_metrics(tmp_path)) == _timeless(_metrics(workdir))
    assert (tmp_path / "detections.json").read_text() == (workdir / "detections.json").read_text()
    for ema in (False, True):
        resumed, unbroken = (_params(config, folder, ema) for folder in (tmp_path, workdir))
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
    jax.tree.map(np.testing.assert_array_equal, *(_params(config, folder, True) for folder in (tmp_path, workdir)))


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
    theirs, ours = _params(config, before, False), _params(config, tmp_path / "run", False)
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


def _params(config, workdir, ema):
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


APS = {2: 0.1, 4: 0.3, 6: 0.3, 8: 0.2, 10: 0.1, 12: 0.25}


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """(config, workdir, steps that were evaluated) of a run of at most 20 steps whose evaluations find `APS`."""
    config, workdir, evaluated = small_config(), tmp_path_factory.mktemp("judged"), []
    config.optimizer.schedule, config.optimizer.patience, config.optimizer.warmup_steps = "plateau", 0, 0
    config.train.num_steps, config.train.eval_every_steps, config.train.stop_patience = 20, 2, 3
    config.train.checkpoint_every_steps, config.train.keep_checkpoints = 4, 4

    def evaluate(predictor, mesh, config, sources, tokenizer, workdir, checkpoint, answers):
        evaluated.append(int(checkpoint.split("step ")[1].split(",")[0]))
        return {"captions/recall@1": 0.5, "heldout/AP": APS[evaluated[-1]]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "evaluate", evaluate)
        train.train_and_evaluate(config, workdir)
        yield config, workdir, evaluated


def test_evaluations_lower_the_rate_keep_the_best_and_end_the_run(judged):
    config, workdir, _ = judged
    lines = _metrics(workdir)
    assert [line["step"] for line in lines] == list(range(1, 13))            # of 20: the third below the best ends it
    factors = [line["learning_rate_factor"] for line in lines if "learning_rate_factor" in line]
    np.testing.assert_allclose(factors, [1, 1, 0.1, 0.01, 1e-3, 1e-4], rtol=1e-6)   # a tie is no gain
    norms = [line["update_norm"] for line in lines]
    assert norms[6] < 0.5 * norms[5] and norms[8] < 0.5 * norms[7]
    assert read_about(workdir)["next_step"] == 12 and read_about(workdir)["plateau"]["below_best"] == 3
    about = read_about(workdir / "best")                                     # a tie is the best
    assert about["next_step"] == 6 and about["selected"] == {"score": "heldout/AP", "value": 0.3}
    assert [folder.name for folder in (workdir / "best" / "checkpoints").iterdir()] == ["6"]
    best, last = _params(config, workdir / "best", False), _params(config, workdir, False)
    assert any(np.any(a != b) for a, b in zip(jax.tree.leaves(best), jax.tree.leaves(last)))
    assert Detector.from_pretrained(workdir / "best", ema=True).detect([np.zeros((64, 64, 3), np.uint8)], ["cat"])


def test_a_judged_run_resumes_bit_for_bit_and_is_not_taken_up_after_its_end(judged, tmp_path):
    """Stopped between a new best and the next checkpoint: what is in `best` was found by steps that are done again."""
    config, workdir, evaluated = judged
    shutil.copytree(workdir / "checkpoints" / "4", tmp_path / "checkpoints" / "4")
    shutil.copytree(workdir / "best", tmp_path / "best")
    shutil.copy(workdir / "metrics.jsonl", tmp_path)
    evaluated.clear()
    train.train_and_evaluate(config, tmp_path)
    assert evaluated == [6, 8, 10, 12]
    assert _timeless(_metrics(tmp_path)) == _timeless(_metrics(workdir))
    for folder in (".", "best"):
        jax.tree.map(np.testing.assert_array_equal, *(_params(config, run / folder, True) for run in (tmp_path, workdir)))
        assert read_about(tmp_path / folder) == read_about(workdir / folder)
    evaluated.clear()
    assert train.train_and_evaluate(config, tmp_path) == {"captions/recall@1": 0.5, "heldout/AP": 0.25}
    assert evaluated == [12] and read_about(tmp_path)["next_step"] == 12


def test_an_evaluation_that_was_due_when_the_run_was_stopped_comes_first(judged, tmp_path, monkeypatch):
    config, workdir, evaluated = judged
    evaluated.clear()
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(train.StopSignal, "reached", lambda self, step: step == 4)
        train.train_and_evaluate(config, tmp_path)
    assert evaluated == [2] and read_about(tmp_path)["unscored"]
    evaluated.clear()
    train.train_and_evaluate(config, tmp_path)
    assert evaluated == [4, 6, 8, 10, 12]
    assert _timeless(_metrics(tmp_path)) == _timeless(_metrics(workdir))
    jax.tree.map(np.testing.assert_array_equal, *(_params(config, folder, False) for folder in (tmp_path, workdir)))
    assert read_about(tmp_path / "best") == read_about(workdir / "best")


def test_a_run_that_is_stopped_while_it_is_scored_loses_no_step(judged, tmp_path, monkeypatch):
    config, workdir, evaluated = judged

    def stopped(*args):
        raise Stopped
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(train, "evaluate", stopped)
        train.train_and_evaluate(config, tmp_path)
    assert read_about(tmp_path)["next_step"] == 2 and read_about(tmp_path)["unscored"]
    evaluated.clear()
    train.train_and_evaluate(config, tmp_path)
    assert evaluated == [2, 4, 6, 8, 10, 12]
    assert _timeless(_metrics(tmp_path)) == _timeless(_metrics(workdir))


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


def test_the_score_that_judges_a_run():
    scores = {"captions/recall@1": 0.5, "a/AP": 0.25, "b/AP": 0.75}
    assert train.selected_score(scores) == ("a/AP", 0.25)
    assert train.selected_score(scores, "b/AP") == ("b/AP", 0.75)
    assert train.selected_score({"captions/recall@1": 0.5}) == ("captions/recall@1", 0.5)
    with pytest.raises(ValueError, match=r"found no score 'c/AP', expected one of \['captions/recall@1', 'a/AP', 'b/AP'\]"):
        train.selected_score(scores, "c/AP")


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
