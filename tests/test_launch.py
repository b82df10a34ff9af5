"""The launch scripts with made-up interpreters: what they run, when they install, what they say."""
import os
import pathlib
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
SCRIPTS = [*sorted((ROOT / "launch").glob("*.sh")), ROOT / ".ci" / "run"]

# Answers as python and as pip do, and logs how it was called. A virtual environment is a copy of it.
FAKE_PYTHON = """#!/bin/bash
echo "$*" >>"$CALLS"
case "$*" in
  "-c "*) echo {version} ;;
  "-m venv "*) {venv} ;;
  "-m pytest "*" fails") exit 3 ;;
esac
"""
MAKE_VENV = 'mkdir -p "$3/bin" && cp "$0" "$3/bin/python"'


class Machine:
    """A copy of the scripts, and a PATH with only the given made-up interpreters beside system tools."""

    def __init__(self, folder, venv=MAKE_VENV, **pythons):
        self.root, self.bin, self.calls = folder / "project", folder / "bin", folder / "calls"
        shutil.copytree(ROOT / "launch", self.root / "launch")
        shutil.copytree(ROOT / ".ci", self.root / ".ci")
        for name in ("setup.cfg", "pyproject.toml"):
            shutil.copy(ROOT / name, self.root)
        self.bin.mkdir()
        for tool in ("bash", "cat", "cksum", "cp", "dirname", "mkdir", "mktemp", "rm"):
            (self.bin / tool).symlink_to(shutil.which(tool))
        for name, version in pythons.items():
            script = self.bin / name.replace("_", ".")
            script.write_text(FAKE_PYTHON.format(version=version, venv=venv))
            script.chmod(0o755)

    def run(self, script, *arguments, **environment):
        """(return code, standard error, calls of python since the last run)"""
        self.calls.write_text("")
        here = self.root.parent
        done = subprocess.run(
            ["bash", str(self.root / script), *arguments], check=False, capture_output=True, text=True,
            env={"PATH": str(self.bin), "CALLS": str(self.calls), "TMPDIR": str(here), **environment},
            cwd=here, timeout=60)
        return done.returncode, done.stderr, self.calls.read_text().splitlines()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse_and_can_be_run(script):
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert os.access(script, os.X_OK)
    assert "set -euo pipefail" in script.read_text()


def test_the_second_run_installs_nothing(tmp_path):
    machine = Machine(tmp_path, python3_11="3.11")
    code, _, calls = machine.run("launch/test.sh", "-q", "tests/test_draw.py")
    assert code == 0
    assert calls[1] == f"-m venv {machine.root}/.venv"
    assert calls[2].startswith("-m pip install ") and calls[2].endswith(f" -e {machine.root}[test]")
    shared = "-m pytest --numprocesses={} --dist=loadfile"
    assert calls[3:] == [f"{shared.format(2)} -q tests/test_draw.py"]
    assert machine.run("launch/test.sh", WORKERS="3")[2] == [shared.format(3)]
    for alone in ("--slow", "--accelerator"):
        assert machine.run("launch/test.sh", "-q", alone)[2] == [f"{shared.format(0)} -q {alone}"]

    with (machine.root / "setup.cfg").open("a") as file:
        file.write("# one more dependency\n")
    assert any("pip install" in call for call in machine.run("launch/test.sh")[2])
    assert any("[test,cuda]" in call for call in machine.run("launch/test.sh", EXTRAS="test,cuda")[2])


def test_quickstart_runs_the_main_job_and_hands_flags_on(tmp_path):
    machine = Machine(tmp_path, python3="3.12")
    job = f"-m glipv2_jax.main --config={machine.root}/configs/quickstart.py"
    assert machine.run("launch/quickstart.sh", "--config.train.num_steps=3")[2][-1] == (
        f"{job} --workdir=runs/quickstart --config.train.num_steps=3")
    assert machine.run("launch/quickstart.sh", WORKDIR="/a b/c")[2] == [f"{job} --workdir=/a b/c"]


@pytest.mark.parametrize("pythons, found", [
    ({}, "found: none."), ({"python3": "3.9"}, "found: python3 (3.9)."),
    ({"python3": "2.12"}, "found: python3 (2.12).")])
def test_without_a_new_enough_python_it_says_what_to_do(tmp_path, pythons, found):
    code, error, _ = Machine(tmp_path, **pythons).run("launch/quickstart.sh")
    assert code == 1
    assert f"needs Python 3.11 or newer; {found}" in error and "apt install" in error


def test_an_old_python3_is_passed_over_and_a_named_one_is_taken(tmp_path):
    machine = Machine(tmp_path, python3="3.9", python3_13="3.13", my_python="3.14")
    assert "with python3.13 (3.13)" in machine.run("launch/test.sh")[1]
    assert "with my.python (3.14)" in machine.run("launch/test.sh", PYTHON="my.python", VENV="elsewhere")[1]
    assert (tmp_path / "elsewhere" / "bin" / "python").exists()


def test_a_python_that_cannot_make_environments_is_named(tmp_path):
    code, error, _ = Machine(tmp_path, venv="exit 1", python3="3.11").run("launch/test.sh")
    assert code == 1 and "apt install python3.11-venv" in error


@pytest.mark.parametrize("argument, expected", [("passes", 0), ("fails", 3)])
def test_the_commit_check_is_fresh_cleans_up_and_keeps_the_exit_status(tmp_path, argument, expected):
    machine = Machine(tmp_path, python3="3.11")
    code, _, calls = machine.run(".ci/run", argument)
    assert code == expected and calls[-1] == f"-m pytest --numprocesses=2 --dist=loadfile {argument}"
    assert not (machine.root / ".venv").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin", "calls", "project"]
