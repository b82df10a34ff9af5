"""Checkpoints that cannot lie: damage is named and passed over, kills and full disks leave whole ones, one run writes."""
import json
import logging
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from glipv2_jax import manifest
from glipv2_jax.checkpoint import Checkpoints, holds_ema, load_params, read_about, with_fresh
from glipv2_jax.files import locked
from tests.save_in_a_loop import state_of

ROOT = pathlib.Path(__file__).parent.parent


def abstract(step=0):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state_of(step))


def assert_is(found, step):
    jax.tree.map(np.testing.assert_array_equal, found, state_of(step))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A workdir with the steps 1, 2 and 3."""
    workdir = tmp_path_factory.mktemp("written")
    checkpoints = Checkpoints(workdir, keep=3)
    for step in (1, 2, 3):
        checkpoints.save(state_of(step), {"seed": step}, {}, more=step)
    checkpoints.close()
    return workdir


@pytest.fixture
def workdir(written, tmp_path):
    """A copy that a test may damage."""
    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture(autouse=True)
def told(caplog, monkeypatch):
    """What the project warns of, whatever an earlier test did to its logger."""
    monkeypatch.setattr(logging.getLogger("glipv2_jax"), "propagate", True)
    caplog.set_level(logging.WARNING)
    return caplog


def test_everything_comes_back_and_only_the_asked_number_stays(written, tmp_path):
    checkpoints = Checkpoints(written, keep=3)
    assert_is(checkpoints.restore(abstract()), 3)
    checkpoints.close()
    assert read_about(written) == {"layout": 2, "next_step": 3, "model": {}, "config": {"seed": 3}, "more": 3}
    assert holds_ema(written)
    for ema in (False, True):
        found = load_params(written, abstract().params, ema=ema)
        jax.tree.map(np.testing.assert_array_equal, found, state_of(3).ema_params if ema else state_of(3).params)
    for step in ("1", "2", "3"):
        assert manifest.problems(written / "checkpoints" / step) == []
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 3):
        checkpoints.save(state_of(step), {}, {})
    checkpoints.close()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["2", "3"]


def test_averages_begin_where_a_run_without_them_ended(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state_of(5).replace(ema_params=None), {}, {})
    checkpoints.close()
    assert not holds_ema(tmp_path)
    with pytest.raises(ValueError, match="holds no averaged parameters"):
        load_params(tmp_path, abstract().params, ema=True)
    checkpoints = Checkpoints(tmp_path)
    found = checkpoints.restore(abstract())
    checkpoints.close()
    jax.tree.map(np.testing.assert_array_equal, found.ema_params, state_of(5).params)


def _largest(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def _flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


DAMAGE = {
    "a flipped bit of an array": lambda step: _flip(_largest(step / "state")),
    "a flipped bit of the averages": lambda step: _flip(_largest(step / "ema")),
    "a flipped bit of the description": lambda step: _flip(step / "about" / "metadata"),
    "a flipped bit of the sums": lambda step: _flip(step / manifest.NAME),
    "a file cut short": lambda step: os.truncate(_largest(step / "state"), 100),
    "a file less": lambda step: _largest(step / "state").unlink(),
    "no mark of completion": lambda step: (step / "_CHECKPOINT_METADATA").unlink(),
    "an empty folder": lambda step: [shutil.rmtree(step), step.mkdir()],
    "a copy cut short, without its sums": lambda step: [shutil.rmtree(step / "state"), (step / manifest.NAME).unlink()],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_and_the_step_before_takes_its_place(workdir, damage, told):
    steps = workdir / "checkpoints"
    DAMAGE[damage](steps / "3")
    assert read_about(workdir)["next_step"] == 2                       # who only reads leaves everything where it is
    jax.tree.map(np.testing.assert_array_equal, load_params(workdir, abstract().params), state_of(2).params)
    assert (steps / "3").exists()
    assert "checkpoints/3: damaged" in told.text and ("another sum" in told.text or "missing" in told.text)
    checkpoints = Checkpoints(workdir, keep=3)
    assert_is(checkpoints.restore(abstract()), 2)
    assert sorted(p.name for p in steps.iterdir()) == ["1", "2", "damaged-3"]
    checkpoints.save(state_of(3), {}, {})                              # the run comes to this step again
    checkpoints.close()
    assert read_about(workdir)["next_step"] == 3 and manifest.problems(steps / "3") == []


def test_damage_of_all_but_the_first(workdir, told):
    for step in ("2", "3"):
        _flip(_largest(workdir / "checkpoints" / step / "state"))
    assert read_about(workdir)["next_step"] == 1
    _flip(_largest(workdir / "checkpoints" / "1" / "state"))
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        read_about(workdir)


def test_what_is_no_checkpoint_is_passed_over(workdir, told):
    steps = workdir / "checkpoints"
    (steps / "notes").mkdir()
    (steps / "9.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    (steps / "12").mkdir()
    checkpoints = Checkpoints(workdir, keep=3)
    assert_is(checkpoints.restore(abstract()), 3)
    checkpoints.save(state_of(4), {}, {})
    checkpoints.close()
    assert "notes: not a checkpoint" in told.text and "9.orbax-checkpoint-tmp: not a checkpoint" in told.text
    assert "12: damaged" in told.text and read_about(workdir)["next_step"] == 4 and (steps / "notes").exists()


def test_a_step_without_sums_is_taken_with_a_warning(workdir, told):
    """As a run leaves it that is killed between the last byte and its sums."""
    (workdir / "checkpoints" / "3" / manifest.NAME).unlink()
    assert read_about(workdir)["next_step"] == 3
    assert "3: has no manifest.sha256" in told.text


def test_another_layout_is_refused(workdir):
    path = workdir / "checkpoints" / "3" / "about" / "metadata"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"layout": 7}))
    manifest.write(path.parent.parent)
    with pytest.raises(ValueError, match="found checkpoint layout 7, expected 2"):
        read_about(workdir)


def test_only_named_parameters_start_fresh(workdir, told):
    wanted = abstract().params
    leaf = wanted["b"]["c"]
    wanted = {**wanted, "mask": {"kernel": leaf, "deep": {"bias": leaf}}}
    with pytest.raises(ValueError, match=r"mask/deep/bias \(7,\): not in the checkpoint\n.*mask/kernel"):
        load_params(workdir, wanted, fresh=("masks",))
    found = load_params(workdir, wanted, fresh=("mask/",))
    assert set(found) == {"a", "b"} and "mask/deep/bias: not in" in told.text
    fresh = {"a": 0, "b": {"c": 1}, "mask": {"kernel": 2, "deep": {"bias": 3}}}
    merged = with_fresh(found, fresh)
    assert merged["mask"] == fresh["mask"] and merged["a"] is found["a"] and merged["b"]["c"] is found["b"]["c"]


def start(workdir, *arguments):
    return subprocess.Popen([sys.executable, "-m", "tests.save_in_a_loop", str(workdir), *map(str, arguments)], cwd=ROOT, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"JAX_PLATFORMS": "cpu"})


def kill_while_it_saves(workdir, kills, rng):
    """Kills a run again and again; what it had said to be whole is there each time, and unharmed."""
    sure = 0
    for _ in range(kills):
        process = start(workdir)
        assert int(process.stdout.readline().split()[1]) >= sure
        more = int(rng.integers(1, 4))
        for _ in range(more):
            process.stdout.readline()
        try:
            process.wait(timeout=float(rng.uniform(0, 0.3)))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        rest, errors = process.communicate()
        assert process.returncode == -signal.SIGKILL, errors
        sure = max([sure] + [int(line.split()[1]) for line in rest.splitlines() if line.startswith("whole")])
        checkpoints = Checkpoints(workdir)
        found = checkpoints.restore(abstract())
        checkpoints.close()
        assert found is not None or sure == 0
        if found is not None:
            assert int(found.step) >= sure
            assert_is(found, int(found.step))
            sure = int(found.step)
    return sure


def test_a_kill_loses_no_saved_step(tmp_path):
    assert kill_while_it_saves(tmp_path, 2, np.random.default_rng(0)) > 0


@pytest.mark.slow
def test_twenty_kills_lose_no_saved_step(tmp_path):
    assert kill_while_it_saves(tmp_path, 20, np.random.default_rng(1)) > 20


def test_a_full_disk_ends_the_run_and_leaves_what_was_saved(tmp_path):
    process = start(tmp_path, 20_000)
    said, errors = process.communicate(timeout=120)
    assert process.returncode == 1 and "whole 2" in said and "whole 3" not in said
    assert "OSError" in errors and "step 3 was not saved, earlier ones are as they were" in errors and "File too large" in errors
    assert read_about(tmp_path)["next_step"] == 2
    checkpoints = Checkpoints(tmp_path)
    assert_is(checkpoints.restore(abstract()), 2)
    checkpoints.close()


def test_a_second_run_is_kept_from_a_workdir_until_the_first_is_gone(tmp_path):
    process = start(tmp_path)
    process.stdout.readline()
    with pytest.raises(OSError, match=rf"another run writes there, process {process.pid} on "), locked(tmp_path):
        pass
    process.kill()
    process.communicate()
    with locked(tmp_path):
        pass


def test_a_workdir_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file" / "run", "/proc/run"):
        with pytest.raises(OSError, match="found a folder that cannot be written to"), locked(folder):
            pass
