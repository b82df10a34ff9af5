"""`python -m glipv2_jax.main --config=configs/X.py --workdir=DIR --mode=train|evaluate|plan`: flags and dispatch, no more.

Exit codes: 0, finished; 75, told to stop, all is saved, the same command goes on; 70, ended by its watchdog; others, failed.
"""
import logging
import os
import sys

import jax
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from glipv2_jax import processes

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file; --config.a.b=value replaces a field.",
                                          lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of checkpoints, metrics and results. The same one resumes.")
_MODE = flags.DEFINE_enum("mode", "train", ["train", "evaluate", "plan"], "evaluate: only score the latest checkpoint. plan: compile "
                          "the step for TPUs or GPUs that are not there, and say what it needs; needs no workdir.")
_COORDINATOR = flags.DEFINE_string(
    "coordinator", "auto", "Several processes as one run: address:port of the first, with num_processes and process_id; "
    "auto: as the cluster says (Cloud TPU, GKE, Slurm, Open MPI), alone elsewhere. Every process gets the same other flags.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Of the run, with --coordinator=address:port.", 1)
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Of this process, from 0, with --coordinator=address:port.", 0)
_HEARTBEAT = flags.DEFINE_integer("heartbeat_seconds", 100, "A process that was silent for so long is dead, and the others end.", 10)
_TOPOLOGY = flags.DEFINE_string("topology", None, "plan: chips and their shape, such as v5e:4x4, v5p:2x2x4, v6e:16x16, or GPUs of one "
                                "host, such as h100:8.")
_BATCH = flags.DEFINE_integer("batch", 0, "plan: images of a step over all devices; 0: the config's, rounded up to a multiple of the "
                              "devices.", 0)
_SEARCH = flags.DEFINE_bool("search", False, "plan: look for the fastest batch, remat policy and mesh that fit.")
_INFERENCE = flags.DEFINE_bool("inference", False, "plan: the forward pass of evaluation, too.")
_HOURLY_RATE = flags.DEFINE_float("hourly_rate", 0.0, "plan: price of a chip for an hour, for the price of an epoch.", 0.0)
_EPOCH_IMAGES = flags.DEFINE_integer("epoch_images", 1_000_000, "plan: images of an epoch.", 1)
_OUTPUT = flags.DEFINE_string("output", None, "plan: file for the numbers as JSON.")

log = logging.getLogger("glipv2_jax")


class _StandardError(logging.StreamHandler):
    """Standard error as it is when a line is written: a progress bar puts its own in place for a while."""

    @property
    def stream(self):
        return sys.stderr

    @stream.setter
    def stream(self, value):
        pass


def set_up_logging():
    """The run's own lines on standard error. Libraries, which log every file that they touch, only warn."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")      # TensorFlow only reads files here; it announces the option
    if processes.cluster() != "Cloud TPU":                   # the TPU compiler, installed for `glipv2 plan`, says at length that there is none
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
        os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-1")
    absl_logging.set_verbosity(absl_logging.WARNING)
    handler = _StandardError()
    handler.setFormatter(logging.Formatter("%(message)s"))
    for own in (log, logging.getLogger("input_pipeline")):
        own.handlers = [handler]
        own.setLevel(logging.INFO if jax.process_index() == 0 else logging.WARNING)
        own.propagate = False


def set_up_compilation_cache():
    """Keeps compiled programs between runs, so that a second start is fast. JAX_COMPILATION_CACHE_DIR moves it.

    Not for several processes on CPUs: JAX keeps the programs of the first alone, which would be minutes ahead of the others at the next
    start, and gloo waits for half a minute.
    """
    if jax.process_count() > 1 and jax.default_backend() == "cpu":
        jax.config.update("jax_enable_compilation_cache", False)
        return
    jax.config.update("jax_compilation_cache_dir", os.environ.get(
        "JAX_COMPILATION_CACHE_DIR", os.path.expanduser("~/.cache/glipv2_jax/xla")))


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}")
    if _MODE.value == "plan":
        if not _TOPOLOGY.value:
            raise app.UsageError("--topology is missing: chips and their shape, such as v5e:4x4, v5p:2x2x4 or v6e:16x16, or GPUs, such as "
                                 "h100:8")
        jax.config.update("jax_platforms", "cpu")           # the machine's own devices take no part
        set_up_logging()
        from glipv2_jax import plan
        try:
            plan.run(_CONFIG.value, _TOPOLOGY.value, config_flags.get_config_filename(flags.FLAGS["config"]), batch=_BATCH.value,
                     hourly_rate=_HOURLY_RATE.value, epoch_images=_EPOCH_IMAGES.value, searching=_SEARCH.value,
                     inference=_INFERENCE.value, output=_OUTPUT.value)
        except ValueError as error:
            sys.exit(f"glipv2 plan: {error}")
        return
    if not _WORKDIR.value:
        raise app.UsageError("--workdir is missing: the folder of checkpoints, metrics and results")
    processes.join(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value, _HEARTBEAT.value)
    set_up_logging()
    set_up_compilation_cache()
    log.info("jax %s, %d %s device(s), %d process(es)", jax.__version__, jax.device_count(), jax.default_backend(),
             jax.process_count())
    from glipv2_jax import train  # late: TensorFlow comes with the data
    run = {"train": train.train_and_evaluate, "evaluate": train.evaluate_only}[_MODE.value]
    with processes.failing_together():
        try:
            run(_CONFIG.value, _WORKDIR.value)
        except FileNotFoundError as error:
            if jax.process_count() > 1 or error.errno is not None:               # not one in words of ours
                raise
            sys.exit(f"glipv2: {error}")


def _parsed(argv):
    """absl's parser of flags, which has no words of its own for a field that the config lacks, nor for a config file that is missing."""
    try:
        rest = app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError) as error:
        inner = error
        while inner.args and isinstance(inner.args[0], Exception):         # ml_collections wraps one in the other
            inner = inner.args[0]
        name, *hint = str(inner.args[0] if inner.args else "").splitlines() or [""]
        name = name.strip("\"'")
        wrong = [flag for flag in argv if flag.startswith("--config.") and name in flag.partition("=")[0].split(".")[1:]]
        if not wrong:                                            # an error of the config file itself
            raise
        sys.exit(f"glipv2: {', '.join(wrong)}: found no field {name!r} in the config{''.join(f'. {line}' for line in hint)}")
    try:
        hasattr(_CONFIG.value, "to_dict")                        # a missing file is told by whatever is asked of it first
    except OSError as error:
        sys.exit(f"glipv2: --config: {error}")
    return rest


def run():
    """Entry point of `python -m glipv2_jax.main`, and of `glipv2 train` and its like."""
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(__doc__ + flags.FLAGS.module_help(sys.modules[__name__]))
        return
    flags.mark_flag_as_required("config")
    app.run(main, flags_parser=_parsed)


if __name__ == "__main__":
    run()
