"""The pre-training configs from stand-ins of every source to scores, on eight devices of one process and of two."""
import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parent.parent


def rehearse(config, data, workdir, processes=1):
    """Runs a rehearsal on eight devices in all. Returns the lines of metrics.jsonl."""
    program = [sys.executable, "-m", "glipv2_jax.main"]
    devices = "--xla_backend_optimization_level=0"
    if processes > 1:
        program = [sys.executable, "launch/local_pod.py", f"--processes={processes}", f"--devices_per_process={8 // processes}", "--"]
    else:
        devices += " --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [*program, f"--config=configs/{config}.py:rehearsal", f"--workdir={workdir}", f"--config.data.root={data}",
         "--config.train.checkpoint_every_steps=2"], cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "XLA_FLAGS": devices}, timeout=1500, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout[-6000:]
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory):
    """Folder with stand-ins of every source of GLIPv2-B's two stages, which are those of GLIPv2-T's and more."""
    folder = tmp_path_factory.mktemp("stand_ins")
    for config in ("glipv2_t_stage1", "glipv2_b_stage1", "glipv2_b_stage2"):
        subprocess.run([sys.executable, "-m", "input_pipeline.stand_ins", f"--config=configs/{config}.py", f"--root={folder}"],
                       check=True, cwd=ROOT, capture_output=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    return folder


@pytest.mark.slow
def test_two_processes_train_as_one(stand_ins, tmp_path):
    one = rehearse("glipv2_t_stage1", stand_ins, tmp_path / "one")
    two = rehearse("glipv2_t_stage1", stand_ins, tmp_path / "two", processes=2)
    assert [line["step"] for line in one] == [line["step"] for line in two] == [1, 2, 3, 4]
    assert {"loss_alignment", "loss_box", "loss_inter", "loss_mlm"} <= set(one[0])
    # The first step is equal but for the order of sums; what Adam makes of tiny gradients then drifts apart.
    np.testing.assert_allclose(two[0]["loss"], one[0]["loss"], rtol=1e-5)
    np.testing.assert_allclose([line["loss"] for line in two], [line["loss"] for line in one], rtol=2e-3)
    assert "coco_val2017/AP50" in one[-1] and "coco_val2017/AP50" in two[-1]
    assert (tmp_path / "two" / "detections.json").exists() and (tmp_path / "two" / "checkpoints" / "4").exists()
    # One process goes on from the middle of what two have begun, with the same data.
    shutil.rmtree(tmp_path / "two" / "checkpoints" / "4")
    resumed = rehearse("glipv2_t_stage1", stand_ins, tmp_path / "two")
    assert [line["step"] for line in resumed] == [1, 2, 3, 4] and resumed[:2] == two[:2]
    np.testing.assert_allclose(resumed[2]["loss"], two[2]["loss"], rtol=1e-5)
    np.testing.assert_allclose(resumed[3]["loss"], two[3]["loss"], rtol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("config", ["glipv2_t_stage2", "glipv2_b_stage1", "glipv2_b_stage2"])
def test_other_stages_run(stand_ins, tmp_path, config):
    lines = rehearse(config, stand_ins, tmp_path / "run")
    assert [line["step"] for line in lines] == [1, 2, 3, 4] and all(line["finite"] == 1 for line in lines)
    assert ("loss_mlm" in lines[0]) == config.endswith("stage1")
