"""The flags of `python -m glipv2_jax.main` and of `glipv2 plan`, `train`, `evaluate`: help, and words for what cannot be."""
import os
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY

CONFIG = "--config=configs/quickstart.py"


def glipv2(*arguments):
    return subprocess.run([sys.executable, "-m", "glipv2_jax.cli", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False,
                          env=os.environ | {"JAX_PLATFORMS": "cpu"})


@pytest.mark.parametrize("arguments, says", [
    (["train", "--config=configs/nowhere.py", "--workdir=/nowhere"], "No such file or directory: 'configs/nowhere.py'"),
    (["train", CONFIG, "--workdir=/nowhere", "--config.train.steps=3"], "--config.train.steps=3: found no field 'steps' in"),
    (["train", CONFIG, "--workdir=/nowhere", "--config.train.num_step=3"], "found no field 'num_step' in the config. Did you mean"),
    (["train", CONFIG, "--workdir=/nowhere", "--config.train.num_steps=x"], "flag --config.train.num_steps=x: invalid"),
    (["train", CONFIG], "--workdir is missing"),
    (["evaluate", CONFIG, "--workdir=/nowhere/at/all"], "glipv2: /nowhere/at/all: no checkpoint"),
    (["plan", CONFIG], "--topology is missing: chips and their shape, such as v5e:4x4"),
    (["plan", CONFIG, "--topology=v4:2x2x4"], "--topology: found 'v4:2x2x4', expected chips and their shape such as v5e:4x4")])
def test_what_cannot_be_is_said_without_a_traceback(arguments, says):
    done = glipv2(*arguments)
    assert done.returncode and says in done.stdout + done.stderr and "Traceback" not in done.stderr


def test_a_mistake_in_a_config_file_is_shown_where_it_is(tmp_path):
    (tmp_path / "mine.py").write_text("from configs import quickstart\ndef get_config():\n    return quickstart.get_confg()\n")
    done = glipv2("train", f"--config={tmp_path / 'mine.py'}", "--workdir=/nowhere", "--config.train.num_steps=3")
    assert done.returncode and "mine.py" in done.stderr and "has no attribute 'get_confg'" in done.stderr


def test_help_lists_the_flags():
    done = glipv2("plan", "--help")
    assert done.returncode == 0 and all(f"--{flag}:" in done.stdout for flag in ("config", "topology", "batch", "workdir", "hourly_rate"))
    assert "Exit codes: 0, finished; 75" in done.stdout


@pytest.mark.slow
@pytest.mark.tpu_compiler
def test_the_tpu_compiler_says_nothing_where_there_is_no_tpu(compiler):
    program = "from glipv2_jax.main import set_up_logging; set_up_logging(); import jax; print(jax.default_backend())"
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True,
                          env={key: value for key, value in os.environ.items() if key != "JAX_PLATFORMS"})
    assert done.stdout.split() and not done.stderr
