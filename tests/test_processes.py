"""How a run is stopped, how processes find each other, and what ends one that hangs."""
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading

import pytest

from glipv2_jax.processes import HUNG, STOPPED, Stopped, StopSignal, cluster, join

SLURM = {"SLURM_STEP_NODELIST": "node[1-2]", "SLURM_PROCID": "1", "SLURM_NTASKS": "2"}


@pytest.mark.parametrize("environment, platforms, name", [
    ({}, "", None),
    ({}, "cpu", None),
    (SLURM, "", "Slurm"),
    (SLURM | {"SLURM_NTASKS": "1"}, "", None),                          # an interactive shell on one node
    ({"SLURM_NTASKS": "8", "SLURM_JOB_ID": "1"}, "", None),             # the batch script itself, outside of srun
    ({"OMPI_COMM_WORLD_SIZE": "4"}, "", "Open MPI"),
    ({}, "tpu,cpu", "Cloud TPU"),
    ({"TPU_WORKER_HOSTNAMES": "a,b"}, "cpu", None),                     # a TPU machine that is told to use its CPU
])
def test_clusters(environment, platforms, name):
    assert cluster(environment, platforms) == name


def test_an_address_needs_its_numbers():
    with pytest.raises(ValueError, match=r"--coordinator=a:1: found --num_processes=2, --process_id=None, expected both"):
        join("a:1", 2, None)
    join("auto")                                                         # alone: nothing to do


def test_sigterm_stops_at_a_step():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignal() as stop:
        assert not stop.reached(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.reached(2) and stop.reached(3)
        with pytest.raises(Stopped) as told, stop.at_once():
            pytest.fail("work that goes on elsewhere is not begun")
        assert told.value.code == STOPPED == 75
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_is_saved_as_it_goes_is_left_at_once():
    with StopSignal() as stop:
        with pytest.raises(Stopped), stop.at_once():
            os.kill(os.getpid(), signal.SIGTERM)
            signal.sigtimedwait([], 5)
        assert stop.reached(1)


def test_a_second_interrupt_does_not_wait():
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.reached(1)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            signal.sigtimedwait([], 5)


def test_other_threads_leave_signals_alone():
    found = []

    def run():
        with StopSignal() as stop:
            found.append(stop.reached(1))
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [False]


HANGS = """
import time
from glipv2_jax.processes import Watchdog, beat
with Watchdog({seconds}):
    if {beats}:
        beat("step 7")
    time.sleep(2)
print("went on")
"""


@pytest.mark.parametrize("seconds, beats, hangs", [(0.4, True, True), (0.4, False, False), (0, True, False)])
def test_what_hangs_is_ended_and_says_where(seconds, beats, hangs):
    done = subprocess.run([sys.executable, "-c", HANGS.format(seconds=seconds, beats=beats)], capture_output=True, text=True,
                          cwd=pathlib.Path(__file__).parent.parent, env=os.environ | {"JAX_PLATFORMS": "cpu"}, check=False)
    if hangs:
        assert done.returncode == HUNG and "went on" not in done.stdout
        assert "after step 7" in done.stderr and "time.sleep" not in done.stdout and 'File "<string>"' in done.stderr
    else:
        assert done.returncode == 0 and "went on" in done.stdout, done.stderr


HOLDS_A_FOLDER = """
import sys
from glipv2_jax import files, processes
folder, address, i = sys.argv[1:]
processes.join(address, 2, int(i))
files._SECONDS_TO_SEE = 1
with processes.failing_together(), files.locked(folder):
    print("holds")
"""


@pytest.mark.parametrize("share", [True, False])
def test_a_folder_that_processes_do_not_share_is_refused_by_all(tmp_path, share):
    """As where the file server was not mounted, and every machine would write to a folder of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    running = [subprocess.Popen(
        [sys.executable, "-c", HOLDS_A_FOLDER, str(tmp_path / ("one" if share else str(i))), address, str(i)],
        cwd=pathlib.Path(__file__).parent.parent, env=os.environ | {"JAX_PLATFORMS": "cpu"}, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE) for i in range(2)]
    for process in running:
        output, error = process.communicate(timeout=120)
        assert (process.returncode == 0) == share and ("holds" in output) == share, error
    if not share:
        assert "processes [1] of 2 do not see what process 0 writes there" in error
