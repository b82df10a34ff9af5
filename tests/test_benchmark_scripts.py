"""The scripts of `benchmarks`: what they feed, what they report, how they fail. No time is asserted."""
import argparse
import importlib
import json
import os
import sys

import jax
import numpy as np
import pytest

from benchmarks import accelerator, compile_parts, device, forward, kernels, train
from configs import pretrain
from glipv2_jax import flops, sharding
from glipv2_jax.build import abstract_params, build
from glipv2_jax.models.config import VARIANTS, model_config
from input_pipeline.schema import batch_spec
from tests.test_models import TINY
from tests.test_train import small_config

MEASURED = {"compile_seconds": 9.0, "step_seconds": 0.5, "images_per_second": 8.0, "tflops": 1.0, "tflops_done": 1.5, "mfu": None,
            "memory_gb": None, "planned_memory_gb": 0.2, "loss": 3.0, "finite": True}


def test_noise_obeys_the_contract():
    config = train.config_of("glipv2_nano", (64, 96), 64, "float32", "", False)
    config.train.batch_size = 2
    batch = train.noise_batch(config, np.random.default_rng(0))
    spec = batch_spec(2, (64, 96), 64, config.data.max_boxes)
    assert {key: (value.shape, value.dtype) for key, value in batch.items()} == {
        key: (shape, np.dtype(dtype)) for key, (shape, dtype) in spec.items()}
    boxes, mask = batch["boxes"], batch["box_mask"]
    assert mask.sum() == 2 * train.BOXES
    assert (boxes[mask][:, 2:] > boxes[mask][:, :2]).all() and (boxes >= 0).all() and (boxes <= [95, 63] * 2).all()
    # Every box has words of its own, none is beyond the text, and padding has none.
    words = batch["positive_map"].sum(-1)
    assert (words[mask] == 2).all() and not words[~mask].any() and (batch["positive_map"].sum(1) <= 1).all()


@pytest.mark.slow
def test_the_true_step_is_measured():
    """On all devices, state and batch sharded; the work that a step needs does not depend on what is computed again."""
    found = []
    for remat in ("", "nothing"):
        config = small_config()
        config.model.overrides.remat = remat
        found.append(train.step_speed(config, 1, 2))
    plain, again = found
    assert plain["finite"] and again["finite"] and plain["loss"] == pytest.approx(again["loss"], rel=1e-3)
    assert plain["tflops_done"] == plain["tflops"] > 0 and again["tflops_done"] > again["tflops"] > 0
    assert plain["step_seconds"] * plain["images_per_second"] == pytest.approx(jax.device_count())
    assert plain["mfu"] is None and plain["memory_gb"] is None and plain["planned_memory_gb"] > 0       # a CPU tells neither


@pytest.fixture
def in_this_process(monkeypatch):
    for module in (train, accelerator):
        monkeypatch.setattr(module, "in_own_process", lambda function, *args: function(*args))


def test_what_does_not_fit_is_a_row(in_this_process, monkeypatch, tmp_path, capsys):
    def ours(settings, images, remat, flags, steps):
        return MEASURED if images == 1 else {"failed": "does not fit: RESOURCE_EXHAUSTED"}
    monkeypatch.setattr(train, "ours", ours)
    monkeypatch.setattr(train, "facts", lambda: device.facts() | {"devices": 1, "versions": {"torch": "2"}})
    monkeypatch.setattr(train, "peer", lambda *args: MEASURED | {"images_per_second": 2.0 + 2 * args[-2]})
    train.main(["--variant=glipv2_nano", "--batches=1,2", "--remat=none,nothing", "--peer", f"--output={tmp_path / 'train.json'}"])
    said = capsys.readouterr().out
    assert "does not fit" in said and "1 images a device: 2.00 × the images/s of the peer" in said
    found = json.loads((tmp_path / "train.json").read_text())
    assert [(row["model"], row["images"], row["how"], row.get("images_per_second")) for row in found["rows"]] == [
        ("glipv2_nano", 1, "", 8.0), ("glipv2_nano", 1, "remat nothing", 8.0), ("GroundingDINO-T", 1, "eager", 2.0),
        ("GroundingDINO-T", 1, "torch.compile", 4.0), ("glipv2_nano", 2, "", None), ("glipv2_nano", 2, "remat nothing", None),
        ("GroundingDINO-T", 2, "eager", 2.0), ("GroundingDINO-T", 2, "torch.compile", 4.0)]
    assert found["faster_than_peer"] == {"1": 2.0} and found["device"] and found["date"]


def test_flags_of_xla_are_rows_of_their_own(in_this_process, monkeypatch, tmp_path):
    monkeypatch.setenv("XLA_FLAGS", "--mine")
    monkeypatch.setattr(train, "step_speed", lambda config, images, steps: MEASURED | {"environment": os.environ["XLA_FLAGS"]})
    monkeypatch.setattr(train, "in_own_process", lambda function, *args: [os.environ.update(XLA_FLAGS="--mine"), function(*args)][1])
    train.main(["--variant=glipv2_nano", "--batches=1", "--flags=--a=1 --b", "--flags=--c", f"--output={tmp_path / 'train.json'}"])
    rows = json.loads((tmp_path / "train.json").read_text())["rows"]
    assert [(row["how"], row["flags"], row["environment"]) for row in rows] == [
        ("remat nothing", "", "--mine"), ("remat nothing --a=1 --b", "--a=1 --b", "--mine --a=1 --b"),
        ("remat nothing --c", "--c", "--mine --c")]
    rows.append({"peer": True, "images": 1, "flags": "", "images_per_second": 4.0})
    rows[1]["images_per_second"] = 16.0
    assert train.ratios(rows) == {1: 2.0}


def test_without_torch_ours_is_measured_alone(in_this_process, monkeypatch, capsys):
    monkeypatch.setattr(train, "ours", lambda *args: MEASURED)
    monkeypatch.setattr(train, "facts", lambda: device.facts() | {"versions": {"torch": None}})
    train.main(["--variant=glipv2_nano", "--batches=1", "--peer"])
    said = capsys.readouterr().out
    assert "no peer: it needs torch" in said and "glipv2_nano" in said
    with pytest.raises(SystemExit):
        train.main(["--remat=everything"])
    assert "--remat: found 'everything', expected some of none,nothing" in capsys.readouterr().err


def _end(how):
    if how == "memory":
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 byte\nmore")
    if how == "error":
        raise RuntimeError("a bug")
    if how == "killed":
        os._exit(9)
    return {"fine": True}


def test_processes_end_in_rows_or_in_errors():
    assert device.in_own_process(_end, "memory") == {"failed": "does not fit: RESOURCE_EXHAUSTED: Out of memory allocating 1 byte"}
    assert "killed" in device.in_own_process(_end, "killed")["failed"]
    assert device._fits(_end, "") == {"fine": True}
    with pytest.raises(RuntimeError, match="a bug"):
        device._fits(_end, "error")


@pytest.mark.slow
def test_forward_times_its_parts_and_nms(monkeypatch, capsys):
    tiny = TINY | {"text_encoder": TINY["text_encoder"] | {"vocab_size": 20_000}}
    monkeypatch.setitem(VARIANTS, "tiny", model_config("glip_t", tiny))
    monkeypatch.setattr(forward, "CANDIDATES", 100)
    monkeypatch.setattr(forward, "PADDED", 128)
    forward.main(["--variant=tiny", "--sizes=64x64", "--tokens=16", "--classes=8", "--repeats=1"])
    said = capsys.readouterr().out
    for part in ("backbone and FPN", "text encoder", "fusion tower and heads", "post-processing", "NMS alone, 100 best", "NMS alone, all"):
        assert part in said
    assert "share of the whole" in said and "100.0%" in said


def test_one_failure_does_not_end_the_rest(in_this_process, monkeypatch, tmp_path, capsys):
    (tmp_path / "tests.xml").write_text(
        '<testsuites><testsuite><testcase classname="a" name="x"/><testcase classname="a" name="y"><failure message="no"/></testcase>'
        '<testcase classname="a" name="z"><skipped/></testcase></testsuite></testsuites>')
    monkeypatch.setattr(accelerator, "commands", lambda args, output, backend: {
        "correctness": ("-c", "raise SystemExit(1)"), "train": ("-c", "import time; print('begun', flush=True); time.sleep(600)"),
        "forward": ("-c", "print('0.1 s')")})
    with pytest.raises(SystemExit, match=r"some commands failed: see .*report\.md"):
        accelerator.main([f"--output={tmp_path}", "--limit_s=3"])
    found, text = json.loads((tmp_path / "report.json").read_text()), (tmp_path / "report.md").read_text()
    results = found["results"]
    assert {name: (result["ok"], result["code"]) for name, result in results.items()} == {
        "correctness": (False, 1), "train": (False, "stopped after 3 s"), "forward": (True, 0)}
    assert results["correctness"]["tests"] == {"passed": 1, "failed": 1, "skipped": 1, "names_of_failed": ["a::y"]}
    assert results["train"]["output"] == "begun\n" and "| forward | ok |" in text and "FAILED (1), 1 passed, 1 failed, 1 skipped" in text
    assert found["device"] in text and found["date"] in text
    accelerator.main([f"--output={tmp_path}", "--only=forward"])
    with pytest.raises(SystemExit):
        accelerator.main([f"--output={tmp_path}", "--only=backward"])
    assert "found backward, expected some of correctness, train, forward" in capsys.readouterr().err


class _Understood(Exception):
    pass


def test_every_command_is_understood_by_its_script(in_this_process, monkeypatch, tmp_path):
    """Arguments are parsed by the true parsers, which are stopped there; tests that are named are there."""
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(parser, arguments=None, namespace=None):
        parse(parser, arguments, namespace)
        raise _Understood
    asked = []
    monkeypatch.setattr(accelerator, "run", lambda arguments, limit_s: asked.append(arguments) or {
        "command": "", "ok": True, "code": 0, "seconds": 1.0, "output": ""})
    monkeypatch.setattr(accelerator, "facts", lambda facts=accelerator.facts: facts() | {"backend": "gpu"})
    accelerator.main([f"--output={tmp_path}", "--slow"])
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    for (_, module, *arguments) in asked:
        if module == "pytest":
            assert "--slow" in arguments and all((accelerator.ROOT / name).exists() for name in arguments if name.startswith("tests/"))
            continue
        monkeypatch.setattr(sys, "argv", [module, *arguments])
        with pytest.raises(_Understood):
            importlib.import_module(module).main()
    assert len(asked) == 9


def test_kernels_are_measured_where_they_run(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["kernels", "--sizes=8x12,4x6", "--channels=16", "--repeats=1", f"--json={tmp_path / 'out.json'}"])
    kernels.main()
    found = json.loads((tmp_path / "out.json").read_text())["results"]
    assert set(found) == {f"{form}, {name}" for form in ("deform_conv, xla", "deform_conv, gpu", "attention, xla", "windows, xla")
                          for name in ("forward", "forward and gradients")}
    assert all(values["ms"] > 0 for values in found.values()) and "attention, xla, forward" in capsys.readouterr().out


def test_parts_of_a_step_are_functions_of_their_arrays():
    """And together they do the work of the whole forward pass."""
    config = pretrain.get_config("glipv2_nano", num_steps=10)
    config.train.batch_size = config.eval.batch_size = len(jax.devices())
    mesh, _, model = build(config)
    params = abstract_params(mesh, model, config)
    with sharding.use(mesh, config.mesh.rules):
        parts = compile_parts.parts_of(model, config, mesh)
        (_, image), (_, text), _ = parts.values()
        work = [flops.count(function, params, *arrays)["flops"] for function, arrays in parts.values()]
        gradients = [flops.count(jax.grad(function), params, *arrays)["flops"] for function, arrays in parts.values()]
        whole = flops.count(lambda params, *args: model.apply({"params": params}, *args, train=True, rngs={"dropout": jax.random.key(0)}),
                            params, *image, *text)["flops"]
    assert min(work) > 0 and sum(work) == whole
    assert all(2 * one < both < 5 * one for one, both in zip(work, gradients))
