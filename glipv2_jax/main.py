"""`python -m glipv2_jax.main --config=configs/X.py --workdir=DIR --mode=train|evaluate`: flags and dispatch, no more."""
import os

import jax
from absl import app, flags, logging
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file; --config.a.b=value replaces a field.",
                                          lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of checkpoints, metrics and results. The same one resumes.")
_MODE = flags.DEFINE_enum("mode", "train", ["train", "evaluate"], "evaluate: only score the latest checkpoint.")


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}")
    # Compilations are kept between runs, so that a second start is fast.
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", os.path.expanduser("~/.cache/glipv2_jax/xla"))
    jax.config.update("jax_compilation_cache_dir", cache)
    logging.info("jax %s on %d %s device(s), %d process(es)", jax.__version__, jax.device_count(),
                 jax.default_backend(), jax.process_count())
    from glipv2_jax import train  # TensorFlow comes with the data: not for --help
    if _MODE.value == "train":
        train.train_and_evaluate(_CONFIG.value, _WORKDIR.value)
    else:
        train.evaluate_only(_CONFIG.value, _WORKDIR.value)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)
