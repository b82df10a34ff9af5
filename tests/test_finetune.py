"""`glipv2 finetune` from data to report: recipe, runs that go on, what is scored, words kept without the text encoder."""
import dataclasses
import functools
import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from glipv2_jax.build import abstract_params, build
from glipv2_jax.checkpoint import Checkpoints, load_params
from glipv2_jax.convert import command as convert_command
from glipv2_jax.evaluation.command import config_of
from glipv2_jax.finetune import command, recipe
from glipv2_jax.finetune.curve import draw_curves
from glipv2_jax.models.glipv2 import init_params
from glipv2_jax.predict import Detector
from glipv2_jax.train_state import TrainState
from input_pipeline import stand_ins
from input_pipeline.registry import epoch_records, make_source, train_options, train_specs
from input_pipeline.tokenizer import Tokenizer
from tests.test_train import small_config


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """What a run on scenes leaves, held-out scenes among its evaluation sources; fresh parameters save its training."""
    config, workdir = small_config(), tmp_path_factory.mktemp("start")
    _, tokenizer, model = build(config)
    params = jax.jit(functools.partial(init_params, model))(jax.random.key(0))
    checkpoints = Checkpoints(workdir)
    checkpoints.save(TrainState(np.int32(0), params, (), None, np.float32(0)), json.loads(config.to_json_best_effort()),
                     dataclasses.asdict(model.config))
    checkpoints.close()
    shutil.copyfile(tokenizer.vocabulary, workdir / "vocab.txt")
    return workdir


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data set of scenes in the layout of ODinW: annotations/{train,val,test}.json beside images/{train,val,test}."""
    folder = tmp_path_factory.mktemp("data")
    for split in ("train", "val", "test"):
        stand_ins.write({"kind": "coco_json", "json_path": f"annotations/{split}.json", "image_folder": f"images/{split}"},
                        folder, num_images=2)
    return folder


@pytest.fixture(scope="module")
def tuned(checkpoint, folder, tmp_path_factory):
    """(arguments, output folder) of a prompt tuned for two steps."""
    output = tmp_path_factory.mktemp("tuned") / "out"
    arguments = [f"--checkpoint={checkpoint}", f"--data={folder}", "--mode=prompt", "--shots=1", "--seeds=3",
                 f"--output={output}", "--config.train.batch_size=2", "--config.eval.batch_size=2", "--config.train.num_epochs=2",
                 "--config.train.eval_every_epochs=1", "--config.data.train_copies=1", "--config.data.max_tokens=64"]
    command.main(arguments)
    return arguments, output


def test_a_prompt_is_tuned_and_nothing_else(tuned, checkpoint):
    _, output = tuned
    report = json.loads((output / "report.json").read_text())
    (run,) = report["runs"]
    assert report["mode"] == "prompt" and report["shots"] == 1 and run["seed"] == 3 and run["steps"] == 2
    assert set(report["zero_shot"]) == set(run["scores"]) >= {"val/AP", "test/AP", "test/AP50", "heldout/AP", "heldout/AP50"}
    assert report["mean"] == run["scores"] and report["std"]["test/AP"] is None
    for place in ("zero_shot", "seed_3/after"):
        for part in ("", "val", "heldout"):
            assert (output / place / part / "detections.json").exists(), (place, part)
    with Image.open(output / "curve.png") as curve:
        assert curve.size == (900, 560)
    before, after = _params(checkpoint), _params(output / "seed_3" / "best")
    prompt = after.pop("prompt")
    assert prompt.any() and prompt.shape[0] == 64
    jax.tree.map(np.testing.assert_array_equal, before, after)


def _params(workdir):
    config = config_of(workdir)
    mesh, _, model = build(config)
    return jax.device_get(load_params(workdir, abstract_params(mesh, model, config)))


def test_the_same_command_goes_on_and_another_is_refused(tuned, capsys, monkeypatch):
    arguments, output = tuned
    first = (output / "report.json").read_text()

    def fail(*args, **kwargs):
        raise AssertionError("worked twice")
    for name in ("train_and_evaluate", "score"):
        monkeypatch.setattr(f"glipv2_jax.finetune.runs.{name}", fail)
    command.main(arguments)
    assert (output / "report.json").read_text() == first
    shown = capsys.readouterr().out
    assert "prompt, 1 shots" in shown and "zero-shot" in shown and "seed 3" in shown and "held-out AP50" in shown
    with pytest.raises(SystemExit, match="other settings, expected the same ones or a new folder:\n.*learning_rate: 0.05 → 1.0"):
        command.main([*arguments, "--config.optimizer.learning_rate=1"])


def test_splits_of_other_classes_are_refused(checkpoint, folder, tmp_path):
    other = tmp_path / "val.json"
    content = json.loads((folder / "annotations" / "val.json").read_text())
    content["categories"][0]["name"] = "wombat"
    other.write_text(json.dumps(content))
    images = folder / "images" / "val"
    with pytest.raises(SystemExit, match=r"val.json: found the classes \['wombat'.*expected those of .*train.json, in their order"):
        command.main([f"--checkpoint={checkpoint}", f"--data={folder / 'annotations' / 'train.json'}",
                      f"--images={folder / 'images' / 'train'}", f"--val={other}", f"--val_images={images}",
                      f"--output={tmp_path / 'out'}"])


def test_words_of_a_tuned_prompt_need_no_text_encoder(tuned, folder, tmp_path):
    _, output = tuned
    whole = Detector.from_pretrained(output / "seed_3" / "best")
    names = list(make_source({"kind": "coco_json", "json_path": str(folder / "annotations" / "val.json"),
                              "image_folder": str(folder / "images" / "val")}).class_names)[:5]
    slim = tmp_path / "slim"
    convert_command.main([str(output / "seed_3" / "best"), "--to=slim", f"--words={'. '.join(names)}.", f"--output={slim}"])
    kept = Detector.from_pretrained(slim)
    assert kept.class_names == names and not {"text_encoder", "prompt"} & set(kept.params)
    photo = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    # Both from the parameters that were kept, in bfloat16: only the way to the words differs.
    whole._predictor.params = jax.tree.map(lambda x: x, {**whole.params, **kept.params})
    for detector in (whole, kept):
        detector.settings.score_threshold = 0.0
    a, b = (detector.detect([photo], names, threshold=0.0)[0] for detector in (whole, kept))
    assert len(a.scores)
    np.testing.assert_allclose(a.scores, b.scores, atol=1e-6)
    np.testing.assert_allclose(a.boxes, b.boxes, atol=1e-3)
    with pytest.raises(ValueError, match="this checkpoint has no text encoder: it knows the class list"):
        kept.detect([photo], names[:2])
    with pytest.raises(SystemExit, match="--words: found --to=None, expected --to=slim"):
        convert_command.main(["a.pth", "--words=a. b.", f"--output={tmp_path / 'x'}"])


@pytest.mark.parametrize("mode, shots, expected", [
    ("full", 1, {"learning_rate": 1e-4, "weight_decay": 0.05, "copies": 8, "patience": 3, "stop": 8}),
    ("full", 3, {"copies": 4}), ("linear", 5, {"learning_rate": 1e-4, "weight_decay": 0.05, "copies": 2}),
    ("prompt", 10, {"learning_rate": 0.05, "weight_decay": 0.25, "copies": 1, "patience": 3, "stop": 8}),
    ("full", 0, {"copies": 1, "patience": 2, "stop": 4}),
])
def test_recipe_is_the_references(folder, mode, shots, expected):
    from configs import common
    base = common.get_config()
    config = recipe.recipe(base, recipe.find_data(folder), mode, shots)
    found = {"learning_rate": config.optimizer.learning_rate, "weight_decay": config.optimizer.weight_decay,
             "copies": config.data.train_copies, "patience": config.optimizer.patience, "stop": config.train.stop_patience}
    assert expected == {key: found[key] for key in expected}
    assert (config.train.batch_size, config.train.num_epochs, config.optimizer.warmup_steps, config.train.ema_decay) == (4, 200, 0, 0)
    assert config.optimizer.schedule == "plateau" and config.model.overrides.image_encoder.frozen_stages == 2
    assert config.data.augment == "resize((480, 560, 640, 720, 800), 1333)|flip(0.5)" and config.data.num_negatives == -1
    assert base.train.tune == "full" and not base.data.train_json              # the checkpoint's own config stays


def test_rehearsal_mixes_the_former_sources_by_their_share(checkpoint, folder):
    base = config_of(checkpoint)
    config = recipe.recipe(base, recipe.find_data(folder), "full", 1, rehearsal=0.5)
    config.data.num_negatives, config.data.max_tokens = -1, 256
    config.data.train_copies = 8
    specs = train_specs(config.data)
    assert [spec["weight"] for spec in specs] == [0.5, 0.25, 0.25] and "flip(0.5, True)" in config.data.augment
    sources = [make_source(spec, config.data.root) for spec in specs]
    assert epoch_records(specs, sources) == 2 * 8 * len(sources[0])
    options = train_options(config, specs, sources, Tokenizer())
    assert options["num_negatives"] == [None, 5, 5]
    with pytest.raises(ValueError, match="rehearsal_share: found 1.0, expected a number between 0 and 1"):
        config.data.rehearsal_share = 1.0
        train_specs(config.data)
    config.data.train_json = ""
    with pytest.raises(ValueError, match="rehearsal: found sources, but no data.train_json"):
        train_specs(config.data)
    base.data.train = ()
    with pytest.raises(ValueError, match="says nothing of what it was trained on"):
        recipe.recipe(base, recipe.find_data(folder), "full", 1, rehearsal=0.5)


def test_data_is_found_by_layout(folder, tmp_path):
    found = recipe.find_data(folder)
    assert found.test == (str(folder / "annotations" / "test.json"), str(folder / "images" / "test"))
    archive = tmp_path / "odinw" / "pothole"
    for split, name in (("train", "train"), ("val", "valid")):
        shutil.copytree(folder / "images" / split, archive / name)
        content = json.loads((folder / "annotations" / f"{split}.json").read_text())
        content["categories"] = [{"id": 1, "name": "pothole"}]
        content["annotations"] = [annotation | {"category_id": 1} for annotation in content["annotations"]]
        (archive / name / "annotations_without_background.json").write_text(json.dumps(content))
    found = recipe.find_data(archive)
    assert found.test == found.val and found.class_names["pothole"]["name"] == "holes"
    assert make_source(found.spec("train")).class_names == ("holes",)
    train_file, images = str(folder / "annotations" / "train.json"), str(folder / "images" / "train")
    found = recipe.find_data(train_file, images, train_file, images)
    assert found.train == found.val == found.test == (train_file, images)
    for arguments, message in (((train_file, images), "found no val file"), ((train_file,), "found no train images"),
                               ((str(tmp_path),), "found no training file"), ((str(folder), images), "is a folder: found files"),
                               ((str(folder), None, None, None, train_file), "found no --test_images")):
        with pytest.raises(ValueError, match=message):
            recipe.find_data(*arguments)


@pytest.mark.parametrize("flags, message", [
    (["--size=256,128"], "--size: found '256,128', expected the short and the longest side"),
    (["--seeds=3,x"], "--seeds: found '3,x', expected whole numbers"),
    (["--config.train.lr=1"], "--config.train.lr: no such field"),
    (["--config.train.num_epochs=many"], "--config.train.num_epochs:"),
    (["--heldout=a.json"], "found no --heldout_images"),
    (["--shots=-1"], "found --shots=-1 .*, expected shots from 0"),
    (["--seeds=3,3"], "--seeds=3,3, expected .* seeds from 0, each once"),
    (["--rehearsal=1"], "--rehearsal=1 .*, expected .* a share from 0 to below 1"),
    (["--config.train.batch_size=64", "--config.train.num_epochs=1", "--config.eval.batch_size=64"], "images in an epoch, expected a batch of 64"),
    (["--config.train.batch_size=0", "--config.optimizer.learning_rate=-1"], "train.batch_size: found 0, .*; optimizer.learning_rate: found -1"),
    (["--checkpoint=nowhere"], "nowhere: no checkpoint"),
])
def test_bad_arguments_are_named(checkpoint, folder, tmp_path, flags, message):
    with pytest.raises(SystemExit, match=message):
        command.main([f"--checkpoint={checkpoint}", f"--data={folder}", f"--output={tmp_path / 'out'}", *flags])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content, message", [("[1]", "words.json: found a list, expected an object"), ("{", "words.json: not JSON"),
                                              ('{"wombat": "animal"}', r"class_names: found \['wombat'\], expected names of")])
def test_a_file_of_class_names_is_checked(checkpoint, folder, tmp_path, content, message):
    (tmp_path / "words.json").write_text(content)
    with pytest.raises(SystemExit, match=message):
        command.main([f"--checkpoint={checkpoint}", f"--data={folder}", f"--output={tmp_path / 'out'}",
                      f"--class_names={tmp_path / 'words.json'}"])


def test_fields_are_replaced_by_json_or_text(checkpoint, folder):
    config = recipe.recipe(config_of(checkpoint), recipe.find_data(folder), "linear", 3, size=(256, 256)).lock()
    for field, text in (("data.wordings", '["{name}", "{name} , {definition}"]'), ("train.num_epochs", "7"),
                        ("eval.ema", "True"), ("data.augment", "flip(0.5)"), ("model.overrides.drop_block", "0.1")):
        command.replace_field(config, field, text)
    assert config.data.wordings == ("{name}", "{name} , {definition}") and config.train.num_epochs == 7
    assert config.eval.ema is True and config.data.augment == "flip(0.5)" and config.model.overrides.drop_block == 0.1
    assert config.eval.canvases == ((256, 256),) and config.eval.short_side == 256
    assert recipe.recipe(config_of(checkpoint), recipe.find_data(folder), "full", 3, size=(800, 1333)).eval.canvases == (
        (800, 1344), (1344, 800), (1344, 1344))


def test_a_curve_lies_where_its_scores_are():
    picture = np.asarray(draw_curves({"a": [(0, 0.0), (10, 0.5)], "b": [(0, 0.0)]}, "title", "steps"))
    red = (np.abs(picture.astype(int) - (255, 59, 92)).sum(-1) < 30)
    lower = np.argwhere(red[:, 80:90])
    upper = np.argwhere(red[:, 800:825])
    assert lower[:, 0].min() > 460 and upper[:, 0].min() < 80, "from the origin to the upper right"
    draw_curves({"zero": [(0, 0.0)]}, "", "")


def test_scores_over_seeds():
    from glipv2_jax.finetune.runs import _over_seeds
    runs = [{"scores": {"test/AP": value, "test/APs": None if value == 0.1 else 1.0}} for value in (0.1, 0.2, 0.6)]
    runs[0]["scores"].pop("test/APs")
    found = _over_seeds(runs)
    assert found["mean"] == pytest.approx({"test/AP": 0.3}) and found["std"]["test/AP"] == pytest.approx(0.26457513)
