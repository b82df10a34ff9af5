"""Runs a command until it has finished: the one home of the rule by which a stopped or failed run is started again.

    python launch/supervise.py --restarts=10 -- python -m glipv2_jax.main --config=… --workdir=…

The program's exit code decides. 0: finished. 75 (EX_TEMPFAIL): stopped by a signal after saving; started again at once,
as often as it happens. Anything else: failed; started again up to `--restarts` times in a row, each time after a longer
pause. A run that lasted half an hour before it failed starts that count anew.

SIGTERM and SIGINT go on to the program, and end the supervisor with the program's exit code: it was told to stop.
"""
import argparse
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

_STEADY_SECONDS = 1800
_LONGEST_PAUSE = 300


class Supervisor:
    """Starts processes that live and end together, passes signals on, and starts them again by the rule above."""

    def __init__(self, name, grace):
        """Takes over SIGTERM and SIGINT.

        Args:
          name: of the program that speaks, for its messages. grace: seconds from a request to stop to SIGKILL.
        """
        self._name, self._grace = name, grace
        self._told_to_stop, self._signals = False, []
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._receive)

    def _receive(self, number, _):
        self._told_to_stop = True
        self._signals.append(number)

    def supervise(self, commands, restarts, pause, environment=None, prefixes=None):
        """Runs to the end.

        Args:
          commands: function that gives the list of commands of one start, each a list of words.
          restarts: failures in a row that are followed by another start; None: never start again, after a 75 neither.
          pause: seconds before the first start after a failure, doubled from failure to failure.
          environment: variables of all processes; None: as here.
          prefixes: of the lines of each process; None: lines go through as they are.
        Returns: exit code of the last start.
        """
        failures = 0
        while True:
            started = time.monotonic()
            code = self._run(commands(), environment, prefixes)
            if code == 0 or self._told_to_stop or restarts is None:
                return code
            if code == os.EX_TEMPFAIL:
                self._say("stopped after saving; starting again")
                continue
            failures = 1 if time.monotonic() - started > _STEADY_SECONDS else failures + 1
            if failures > restarts:
                self._say(f"failed with exit code {code}, failure {failures} in a row; "
                          f"--restarts={restarts} allows no more")
                return code
            seconds = min(pause * 2**(failures - 1), _LONGEST_PAUSE)
            self._say(f"failed with exit code {code}; start {failures} of {restarts} again in {seconds:g} s")
            until = time.monotonic() + seconds
            while time.monotonic() < until and not self._told_to_stop:
                time.sleep(0.05)
            if self._told_to_stop:
                return code

    def _say(self, text):
        print(f"{self._name}: {text}", file=sys.stderr, flush=True)

    def _run(self, commands, environment, prefixes):
        """Exit code of one start: of the process that failed first, else 0."""
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} if prefixes else {}
        # Sessions of their own: a Ctrl-C then reaches the processes once, from here.
        processes = [subprocess.Popen(command, env=environment, start_new_session=True, **output,
                                      preexec_fn=_end_with_parent)                # noqa: PLW1509  no thread runs here
                     for command in commands]
        readers = [threading.Thread(target=_copy, args=(process.stdout, prefix.encode()), daemon=True)
                   for process, prefix in zip(processes, prefixes or ())]
        for reader in readers:
            reader.start()
        code = self._wait(processes)
        for reader in readers:
            reader.join(timeout=5)        # what a process has started may hold its output open
        return code

    def _wait(self, processes):
        code, deadline = 0, None
        while True:
            while self._signals:
                _send(processes, self._signals.pop(0))
                deadline = deadline or time.monotonic() + self._grace
            codes = [process.poll() for process in processes]
            if code == 0 and any(codes):
                i = next(i for i, found in enumerate(codes) if found)
                # As a shell says it: 128 + the number of the signal that ended the process.
                code = codes[i] if codes[i] > 0 else 128 - codes[i]
                if None in codes and not deadline:
                    deadline = time.monotonic() + self._grace
                    if code != os.EX_TEMPFAIL:       # else the others are about to end by themselves, at the same step
                        self._say(f"process {i} ended with exit code {code}; stopping the others")
                        _send(processes, signal.SIGTERM)
            if None not in codes:
                return code
            if deadline and time.monotonic() > deadline:
                self._say(f"still running {self._grace:g} s after they should have stopped: killed")
                _send(processes, signal.SIGKILL)
                deadline = float("inf")
            time.sleep(0.05)


def _send(processes, number):
    for process in processes:
        if process.poll() is None:
            process.send_signal(number)


def _end_with_parent():
    """On Linux, a process does not outlive a supervisor that is killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)      # PR_SET_PDEATHSIG


def _copy(stream, prefix):
    for line in stream:
        sys.stdout.buffer.write(prefix + line.rstrip(b"\n") + b"\n")
        sys.stdout.buffer.flush()


def split_command(argv):
    """(arguments before the first "--", those behind it).

    Raises: SystemExit without anything behind it.
    """
    if "--" not in argv or argv[-1] == "--":
        sys.exit(f"{os.path.basename(sys.argv[0])}: found no -- with what to run behind it, expected: [options] -- …; "
                 "see --help")
    at = argv.index("--")
    return argv[:at], argv[at + 1:]


def add_arguments(parser):
    """The options of whoever supervises."""
    parser.add_argument("--pause", type=float, default=5,
                        help="seconds before the first start after a failure, then doubled")
    parser.add_argument("--grace", type=float, default=60, help="seconds from a request to stop to SIGKILL")


def parsed(parser, options, **least):
    """Arguments, of which --pause and --grace are at least 0 and others what `least` says. Exits with a message where they are not."""
    args = parser.parse_args(options)
    for name, smallest in ({"pause": 0, "grace": 0} | least).items():
        found = getattr(args, name)
        if found is not None and found < smallest:
            parser.error(f"--{name}: found {found:g}, expected {smallest} or more")
    return args


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--restarts", type=int, default=10, help="starts again after failures in a row")
    add_arguments(parser)
    if {"-h", "--help"} & set(sys.argv[1:2]):
        parser.parse_args()
    options, command = split_command(sys.argv[1:])
    args = parsed(parser, options, restarts=0)
    if not shutil.which(command[0]):
        sys.exit(f"supervise.py: found no program {command[0]!r} to run behind --, expected one such as python -m glipv2_jax.main …")
    return Supervisor("supervise", args.grace).supervise(lambda: [command], args.restarts, args.pause)


if __name__ == "__main__":
    sys.exit(main())
