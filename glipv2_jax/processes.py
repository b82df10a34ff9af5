"""Several processes as one run: how they find each other, what they do when one is told to stop, is gone or hangs."""
import contextlib
import faulthandler
import logging
import os
import signal
import sys
import threading
import time

import jax
from jax.experimental import multihost_utils

log = logging.getLogger(__name__)

# Exit codes. 75 is EX_TEMPFAIL of sysexits.h: nothing is wrong, the same command goes on.
STOPPED, HUNG = 75, 70


def join(coordinator="auto", num_processes=None, process_id=None, heartbeat_seconds=100):
    """Makes this process part of a run of several, where it is started as one. Before any other call of JAX.

    Args:
      coordinator: address:port of process 0, with `num_processes` and `process_id`; "auto": where a cluster tells, alone elsewhere.
      heartbeat_seconds: a process that was silent for so long is dead, and all others end.
    Raises: ValueError for an address without its numbers.
    """
    if coordinator == "auto":
        if not cluster():
            return
        log.info("part of a run on %s", cluster())
        jax.distributed.initialize(heartbeat_timeout_seconds=heartbeat_seconds)
        return
    if num_processes is None or process_id is None:
        raise ValueError(f"--coordinator={coordinator}: found --num_processes={num_processes}, --process_id={process_id}, expected "
                         "both; --coordinator=auto asks the cluster")
    jax.distributed.initialize(coordinator, num_processes, process_id, heartbeat_timeout_seconds=heartbeat_seconds)


def cluster(environment=os.environ, platforms=None):
    """Name of the cluster whose job this process is: "Slurm", "Open MPI", "Cloud TPU" (VMs and GKE), or None.

    Args:
      environment: dict of variables. platforms: JAX's, e.g. "tpu,cpu"; it names TPUs where it finds chips. Default: this process's.
    """
    def tasks(name):
        value = environment.get(name, "")
        return int(value) if value.isdigit() else 1
    if {"SLURM_STEP_NODELIST", "SLURM_PROCID"} <= environment.keys() and tasks("SLURM_NTASKS") > 1:
        return "Slurm"
    if tasks("OMPI_COMM_WORLD_SIZE") > 1:
        return "Open MPI"
    if "tpu" in (jax.config.jax_platforms or "" if platforms is None else platforms):
        return "Cloud TPU"
    return None


@contextlib.contextmanager
def failing_together():
    """Of a run of several processes one that fails ends at once, and the others with it: nobody waits for it at the exit."""
    try:
        yield
    except Exception:
        if jax.process_count() == 1:
            raise
        log.exception("process %d of %d has failed, and ends the run. If this is about a collective or a connection, another process "
                      "has failed before: look there. The same command goes on from the last checkpoint", jax.process_index(),
                      jax.process_count())
        sys.stderr.flush()
        os._exit(1)                                        # no farewell: the others may be waiting in a collective


class Stopped(SystemExit):
    """The run was told to stop and has saved what it had. Exits with `STOPPED`."""

    def __init__(self):
        super().__init__(STOPPED)


class StopSignal:
    """Whether the run has been told to stop, by SIGTERM or by Ctrl-C: the same answer at the same step on every process.

        with StopSignal() as stop:
            for step in …:
                …
                if stop.reached(step): save, raise Stopped

    The scheduler that takes a machine back sends SIGTERM to any one of the processes; all stop at the step that they agree on.
    A second Ctrl-C ends the process at once.
    """

    def __init__(self):
        self._told, self._at_once, self._before = False, False, {}

    def __enter__(self):
        if threading.current_thread() is not threading.main_thread():
            return self                                    # handlers belong to the main thread: then nothing stops it
        # Of a run of several processes JAX's own service catches SIGTERM and tells the others.
        signals = [signal.SIGINT] + [signal.SIGTERM] * (jax.process_count() == 1)
        self._before = {number: signal.signal(number, self._handle) for number in signals}
        return self

    def __exit__(self, *error):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number, frame):
        del frame
        if self._told and number == signal.SIGINT:
            raise KeyboardInterrupt
        log.warning("%s: stopping after this step, saved; %s", signal.Signals(number).name,
                    "again to stop at once" if number == signal.SIGINT else "the same command goes on")
        self._told = True
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)           # so that JAX's service hears of it
        if self._at_once:
            raise Stopped

    def reached(self, step):
        """Whether to save and stop now. Asked after every step, by all processes."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._told

    @contextlib.contextmanager
    def at_once(self):
        """Within it a signal raises Stopped where it arrives: for work that is saved as it goes, such as an evaluation."""
        if self._told and jax.process_count() == 1:
            raise Stopped
        self._at_once = jax.process_count() == 1
        try:
            yield
        finally:
            self._at_once = False


class Watchdog:
    """Ends the process when nothing has happened for too long: a peer that hangs leaves all others waiting in a collective.

        with Watchdog(seconds=1800):
            for step in …:
                …
                beat(f"step {step}")

    Seconds count from the first beat, so that the first step, which is compiled, may take its time; 0: never.
    """
    current = None                        # the one that `beat` tells

    def __init__(self, seconds):
        self._seconds, self._ended, self.last, self.what = seconds, threading.Event(), None, ""

    def __enter__(self):
        if self._seconds:
            Watchdog.current = self
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *error):
        Watchdog.current = None
        self._ended.set()

    def _watch(self):
        while not self._ended.wait(min(self._seconds / 4, 10)):
            last = self.last
            if last is not None and time.monotonic() - last > self._seconds:
                log.error("process %d of %d: nothing has happened for %.0f s after %s (train.hang_seconds %g). It, or another process of the "
                          "run, hangs. Ended; the same command goes on from the last checkpoint", jax.process_index(), jax.process_count(),
                          time.monotonic() - last, self.what, self._seconds)
                faulthandler.dump_traceback(sys.__stderr__, all_threads=True)
                sys.__stderr__.flush()
                os._exit(HUNG)                             # the main thread cannot be reached


def beat(what):
    """Says to the watchdog, if there is one, that something has happened."""
    if watchdog := Watchdog.current:
        watchdog.what, watchdog.last = what, time.monotonic()
