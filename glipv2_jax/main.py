"""`python -m glipv2_jax.main --config=configs/X.py --workdir=DIR --mode=train|evaluate`: flags and dispatch, no more."""
import logging
import os
import sys

import jax
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file; --config.a.b=value replaces a field.",
                                          lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of checkpoints, metrics and results. The same one resumes.")
_MODE = flags.DEFINE_enum("mode", "train", ["train", "evaluate"], "evaluate: only score the latest checkpoint.")
_COORDINATOR = flags.DEFINE_string(
    "coordinator", "", "Several processes as one run: address:port of the first, with num_processes and process_id; or "
    "auto, where the cluster tells (Cloud TPU pods, Slurm, Open MPI). Every process gets the same other flags.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Of the run, with --coordinator=address:port.", 1)
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Of this process, from 0, with --coordinator=address:port.", 0)

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
    absl_logging.set_verbosity(absl_logging.WARNING)
    handler = _StandardError()
    handler.setFormatter(logging.Formatter("%(message)s"))
    for own in (log, logging.getLogger("input_pipeline")):
        own.handlers = [handler]
        own.setLevel(logging.INFO if jax.process_index() == 0 else logging.WARNING)
        own.propagate = False


def set_up_compilation_cache():
    """Keeps compiled programs between runs, so that a second start is fast. JAX_COMPILATION_CACHE_DIR moves it."""
    jax.config.update("jax_compilation_cache_dir", os.environ.get(
        "JAX_COMPILATION_CACHE_DIR", os.path.expanduser("~/.cache/glipv2_jax/xla")))


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}")
    if _COORDINATOR.value == "auto":
        jax.distributed.initialize()
    elif _COORDINATOR.value:
        jax.distributed.initialize(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    set_up_logging()
    set_up_compilation_cache()
    log.info("jax %s, %d %s device(s), %d process(es)", jax.__version__, jax.device_count(), jax.default_backend(),
             jax.process_count())
    from glipv2_jax import train  # late: TensorFlow comes with the data
    run = {"train": train.train_and_evaluate, "evaluate": train.evaluate_only}[_MODE.value]
    run(_CONFIG.value, _WORKDIR.value)


def run():
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)


if __name__ == "__main__":
    run()
