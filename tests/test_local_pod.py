"""Processes of one machine that live and end together and start again by one rule: a made-up program, the true one."""
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import REPOSITORY as ROOT

PROGRAM = """
import os, pathlib, signal, sys, time
flags = dict(flag[2:].split("=", 1) for flag in sys.argv[1:])
me, folder = int(flags["process_id"]), pathlib.Path(flags["workdir"])
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
signal.signal(signal.SIGINT, lambda *_: sys.exit(75))
(folder / f"started_{me}_{time.monotonic()}").touch()
start = len(list(folder.glob(f"started_{me}_*")))
print(flags["coordinator"].split(":")[0], flags["num_processes"], os.environ["XLA_FLAGS"], "start", start)
"""
WAIT = "time.sleep(60)"


@pytest.fixture
def local_pod(tmp_path):
    """Function of the program's last lines and options: a started local_pod, its output on standard output."""
    shutil.copytree(ROOT / "launch", tmp_path / "project" / "launch")
    (tmp_path / "project" / "glipv2_jax").mkdir()
    (tmp_path / "project" / "glipv2_jax" / "__init__.py").touch()
    running = []

    def start(ending, *options, processes=2):
        (tmp_path / "project" / "glipv2_jax" / "main.py").write_text(PROGRAM + ending)
        environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "XLA_FLAGS")}
        running.append(subprocess.Popen(
            [sys.executable, tmp_path / "project" / "launch" / "local_pod.py", f"--processes={processes}", *options,
             "--", f"--workdir={tmp_path}"],
            cwd=tmp_path, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.communicate()


def test_processes_speak_with_their_number_and_know_each_other(local_pod):
    pod = local_pod("", "--devices_per_process=4", processes=3)
    output, _ = pod.communicate(timeout=30)
    assert pod.returncode == 0
    assert sorted(output.splitlines()) == [
        f"[{i}] 127.0.0.1 3 --xla_force_host_platform_device_count=4 start 1" for i in range(3)]


def test_the_first_failure_stops_the_others_and_is_the_exit_code(local_pod):
    pod = local_pod(f"if me == 1: sys.exit(3)\n{WAIT}")
    output, _ = pod.communicate(timeout=30)
    assert pod.returncode == 3 and "process 1 ended with exit code 3; stopping the others" in output


def test_a_process_that_does_not_stop_is_killed(local_pod):
    pod = local_pod("while me == 1:\n  if (folder / 'ready').exists(): os.kill(os.getpid(), 9)\n"
                    f"signal.signal(signal.SIGTERM, signal.SIG_IGN)\n(folder / 'ready').touch()\n{WAIT}", "--grace=0.3")
    output, _ = pod.communicate(timeout=30)
    assert pod.returncode == 128 + 9 and "killed" in output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_goes_to_all_and_ends_the_supervisor(local_pod, tmp_path, number):
    pod = local_pod(WAIT, "--restarts=5")
    while len(list(tmp_path.glob("started_*"))) < 2:
        time.sleep(0.05)
    pod.send_signal(number)
    output, _ = pod.communicate(timeout=30)
    assert pod.returncode == 75 and "starting again" not in output
    assert len(list(tmp_path.glob("started_*"))) == 2


def test_a_stop_after_saving_is_followed_by_a_start_as_often_as_it_happens(local_pod):
    pod = local_pod("if start < 5: sys.exit(75)", "--restarts=0")
    output, _ = pod.communicate(timeout=30)
    assert pod.returncode == 0 and output.count("stopped after saving; starting again") == 4
    assert "[1] 127.0.0.1 2 --xla_force_host_platform_device_count=1 start 5" in output


def test_failures_are_followed_by_a_start_up_to_the_limit(local_pod):
    pod = local_pod("if me == 0 and start < 3: sys.exit(1)\nif me == 0: (folder / 'done').touch()\n"
                    "while not (folder / 'done').exists(): time.sleep(0.05)", "--restarts=2", "--pause=0.05")
    output, _ = pod.communicate(timeout=30)
    assert pod.returncode == 0 and "start 1 of 2 again in 0.05 s" in output and "start 2 of 2 again in 0.1 s" in output
    pod = local_pod("sys.exit(4)", "--restarts=2", "--pause=0.05")
    output, _ = pod.communicate(timeout=30)
    assert pod.returncode == 4 and "failure 3 in a row; --restarts=2 allows no more" in output


def test_without_restarts_nothing_is_started_again(local_pod):
    pod = local_pod("sys.exit(75)")
    output, _ = pod.communicate(timeout=30)
    assert pod.returncode == 75 and "starting again" not in output


def test_a_killed_supervisor_leaves_nothing_behind(local_pod, tmp_path):
    pod = local_pod("(folder / f'pid_{me}').write_text(str(os.getpid()))\n"
                    f"(folder / f'ready_{{me}}').touch()\n{WAIT}")
    while len(list(tmp_path.glob("ready_*"))) < 2:
        time.sleep(0.05)
    pod.kill()
    pod.wait()
    for path in tmp_path.glob("pid_*"):
        until = time.monotonic() + 10
        while pathlib.Path(f"/proc/{path.read_text()}/cmdline").exists() and time.monotonic() < until:
            if not pathlib.Path(f"/proc/{path.read_text()}/cmdline").read_bytes():
                break               # dead, not yet collected
            time.sleep(0.05)
        assert time.monotonic() < until


def test_the_supervisor_of_one_host_lets_lines_through_and_keeps_to_the_rule(tmp_path):
    supervise = [sys.executable, ROOT / "launch" / "supervise.py"]
    program = (f"import pathlib, sys; p = pathlib.Path({str(tmp_path / 'n')!r}); "
               "n = int(p.read_text()) if p.exists() else 0; p.write_text(str(n + 1)); print('line', n); "
               "sys.exit([75, 9, 75, 0][n])")
    done = subprocess.run([*supervise, "--restarts=1", "--pause=0.05", "--", sys.executable, "-c", program],
                          capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0 and done.stdout == "line 0\nline 1\nline 2\nline 3\n"
    assert "supervise: failed with exit code 9; start 1 of 1 again" in done.stderr


@pytest.mark.parametrize("script, arguments, says", [
    ("supervise.py", ["python"], "found no -- with what to run"),
    ("supervise.py", ["--", "no_such_program"], "found no program 'no_such_program' to run behind --"),
    ("local_pod.py", ["--processes=2"], "found no -- with what to run"),
    ("local_pod.py", ["--processes=0", "--", "--config=c"], "--processes: found 0, expected 1 or more"),
    ("local_pod.py", ["--", "--config=c"], "--processes")])
def test_a_call_that_cannot_work_is_explained(script, arguments, says):
    done = subprocess.run([sys.executable, ROOT / "launch" / script, *arguments], capture_output=True, text=True,
                          check=False, timeout=30)
    assert done.returncode != 0 and says in done.stderr


CONFIG = """
from tests.test_train import small_config


def get_config():
    config = small_config()
    config.train.batch_size = config.eval.batch_size = 8
    config.train.checkpoint_every_steps = 2
    return config
"""


def command_lines():
    """Yields (process id, words) of what runs on this machine."""
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield int(path.parent.name), path.read_text().split("\0")
        except OSError:
            pass                    # ended meanwhile


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_the_true_program_survives_a_killed_process(tmp_path, processes):
    """One process is killed after the first checkpoint; all resume from it, and end with scores."""
    (tmp_path / "config.py").write_text(CONFIG)
    workdir, output = tmp_path / "run", tmp_path / "output"
    with output.open("w") as file:
        pod = subprocess.Popen(
            [sys.executable, ROOT / "launch" / "local_pod.py", f"--processes={processes}",
             f"--devices_per_process={8 // processes}", "--restarts=1", "--pause=1", "--grace=20", "--",
             f"--config={tmp_path}/config.py", f"--workdir={workdir}",
             "--heartbeat_seconds=1000"],                # a busy machine is silent for long
            cwd=tmp_path, stdout=file, stderr=subprocess.STDOUT,
            env=os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"})
    try:
        until = time.monotonic() + 1500
        while not (workdir / "checkpoints" / "2" / "manifest.sha256").exists():
            assert pod.poll() is None and time.monotonic() < until, output.read_text()[-3000:]
            time.sleep(0.1)
        (victim,) = [pid for pid, words in command_lines() if {f"--process_id={processes - 1}", f"--workdir={workdir}"}
                     <= set(words)]
        os.kill(victim, signal.SIGKILL)
        assert pod.wait(timeout=1500) == 0, output.read_text()[-3000:]
    finally:
        pod.kill()
    said = output.read_text()
    assert "local_pod: failed with exit code" in said and re.search(r"from step [2-4] of 6", said), said[-3000:]
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines][-2:] == [5, 6] and "heldout/AP50" in lines[-1]
    assert (workdir / "detections.json").exists() and (workdir / "checkpoints" / "6").exists()
