"""Every config file describes a model and data that exist; the command line says what it knows."""
import importlib
import pathlib
import subprocess
import sys

import pytest

from configs import common
from glipv2_jax.build import build
from glipv2_jax.config_ranges import RANGES, check_ranges
from glipv2_jax.evaluation.benchmarks import BENCHMARKS
from glipv2_jax.models.config import model_config
from input_pipeline.registry import KINDS, eval_specs, make_source, train_specs

FOLDER = pathlib.Path(__file__).parent.parent / "configs"
RUNS = sorted(p.stem for p in FOLDER.glob("*.py") if p.stem not in ("__init__", "common", "pretrain"))


@pytest.mark.parametrize("name", RUNS)
def test_config_is_complete(name):
    config = importlib.import_module(f"configs.{name}").get_config()
    model = model_config(config.model.variant, config.model.overrides)
    assert model.mlm_head or config.loss.mlm_rate == 0 or name.startswith("glip_")
    if name == "coco_json":
        with pytest.raises(ValueError, match="nothing to train on"):
            train_specs(config.data)
        config.data.train_json, config.data.train_images = "a.json", "a"
        assert eval_specs(config.data)[0]["name"] == "train_set"
    for spec in train_specs(config.data) + eval_specs(config.data):
        assert spec["kind"] in KINDS
    check_ranges(config)
    assert config.data.max_tokens <= model.text_encoder.max_positions


@pytest.mark.parametrize("name", [name for name in RUNS if name.startswith("glip")])
def test_a_rehearsal_differs_in_size_alone(name):
    module = importlib.import_module(f"configs.{name}")
    full, small = module.get_config(), module.get_config("rehearsal")
    assert train_specs(small.data) == train_specs(full.data) and eval_specs(small.data) == eval_specs(full.data)
    assert small.loss == full.loss and small.mesh == full.mesh
    assert model_config(small.model.variant, small.model.overrides).text_encoder.vocab_size == 30522
    assert small.train.num_steps == 4 and small.train.freeze == full.train.freeze
    with pytest.raises(ValueError, match="found size 'tiny', expected 'full' or 'rehearsal'"):
        module.get_config("tiny")


def test_stage_two_masks_no_words():
    for name in ("t", "b", "h"):
        config = importlib.import_module(f"configs.glipv2_{name}_stage2").get_config()
        assert config.loss.mlm_rate == 0 and config.optimizer.learning_rate < 1e-4


@pytest.mark.parametrize("least, most, field", [(*bounds, field) for bounds, fields in RANGES.items() for field in fields])
def test_numbers_out_of_their_range_are_told_by_name(least, most, field):
    section, name = field.split(".")
    for right in (least, *([] if most is None else [most])):
        config = common.get_config()
        config[section][name] = right
        check_ranges(config)
    for wrong in (least - 1, float("nan"), float("inf"), "many", *([] if most is None else [most + 1])):
        config = common.get_config()
        with config[section].ignore_type():
            config[section][name] = wrong
        expected = f"at least {least}" if most is None else f"{least} to {most}"
        with pytest.raises(ValueError, match=f"^{field}: found {config[section][name]!r}, expected {expected}$"):
            check_ranges(config)


def test_settings_of_benchmarks_are_in_their_ranges():
    for benchmark in BENCHMARKS.values():
        config = common.get_config()
        config.eval.update(benchmark.settings)
        check_ranges(config)


def test_all_numbers_out_of_their_range_are_told_at_once():
    config = common.get_config()
    config.eval.batch_size, config.optimizer.learning_rate = 0, -1e-4
    with pytest.raises(ValueError, match="learning_rate: found -0.0001, expected at least 0") as told:
        build(config)
    assert "eval.batch_size: found 0, expected at least 1" in str(told.value)


def test_relative_paths_start_from_the_root(tmp_path):
    with pytest.raises(ValueError, match=str(tmp_path / "a.json")):
        make_source({"kind": "coco_json", "json_path": "a.json", "image_folder": "images"}, str(tmp_path))
    with pytest.raises(ValueError, match="source of kind 'scenes'.*colour"):
        make_source({"kind": "scenes", "colour": "red"})


def test_command_line():
    def run(*args):
        return subprocess.run([sys.executable, "-m", "glipv2_jax.cli", *args], capture_output=True, text=True, check=False)
    assert "models" in run("--help").stdout
    wrong = run("detekt")
    assert wrong.returncode and "unknown command 'detekt', expected one of detect, ground" in wrong.stderr
    for command in ("train", "evaluate"):
        assert "--config" in run(command, "--workdir=nowhere").stderr
    table = run("models")
    assert "231.8" in table.stdout, table.stdout + table.stderr
