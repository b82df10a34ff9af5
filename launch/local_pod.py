"""Runs the true program as several processes on this machine's CPU: a pod to try things on.

    python launch/local_pod.py --processes=2 --devices_per_process=4 --restarts=3 -- \\
        --config=configs/quickstart.py --workdir=runs/pod

Behind -- are the flags of glipv2_jax.main. The processes find each other with jax.distributed and exchange arrays with
gloo, JAX's default between CPUs. Lines of process i begin with [i]. When one ends with a failure the others are
stopped; with --restarts all are started again, by the rule of supervise.py, and resume from their last checkpoint.
"""
import argparse
import os
import pathlib
import socket
import sys

from supervise import Supervisor, add_arguments, parsed, split_command

ROOT = pathlib.Path(__file__).resolve().parent.parent


def commands(processes, flags):
    """The command of each process, with a free port for all."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [[sys.executable, "-m", "glipv2_jax.main", *flags, f"--coordinator=127.0.0.1:{port}",
             f"--num_processes={processes}", f"--process_id={i}"] for i in range(processes)]


def environment(devices):
    """Variables of a process with so many devices, which finds this project from any folder."""
    return os.environ | {
        "JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}".strip(),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, required=True, help="how many, as of so many hosts")
    parser.add_argument("--devices_per_process", type=int, default=1, help="devices that each process sees")
    parser.add_argument("--restarts", type=int,
                        help="starts again after failures in a row; without it, nothing is started again")
    add_arguments(parser)
    if {"-h", "--help"} & set(sys.argv[1:2]):
        parser.parse_args()
    options, flags = split_command(sys.argv[1:])
    args = parsed(parser, options, restarts=0, processes=1, devices_per_process=1)
    return Supervisor("local_pod", args.grace).supervise(
        lambda: commands(args.processes, flags), args.restarts, args.pause, environment(args.devices_per_process),
        [f"[{i}] " for i in range(args.processes)])


if __name__ == "__main__":
    sys.exit(main())
