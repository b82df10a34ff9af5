"""Saves step after step of a state that its number determines, and says which are whole; a program that tests kill.

    python -m tests.save_in_a_loop WORKDIR [LIMIT]

LIMIT: bytes that a file may have from the third step on, in the place of a full disk.
"""
import resource
import signal
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from glipv2_jax.checkpoint import Checkpoints
from glipv2_jax.files import locked
from glipv2_jax.train_state import TrainState


def state_of(step):
    """TrainState whose arrays are a function of the step, and do not compress."""
    rng = np.random.default_rng(step)
    params = {"a": jnp.asarray(rng.standard_normal(50_000, np.float32)), "b": {"c": jnp.arange(7.0) + step}}
    averages = {"a": jnp.asarray(rng.standard_normal(50_000, np.float32)), "b": {"c": jnp.zeros(7)}}
    return TrainState(jnp.int32(step), params, (jnp.full((9,), -step, jnp.float32),), averages, jnp.float32(step))


def main():
    workdir, limit = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 0
    with locked(workdir):
        checkpoints = Checkpoints(workdir)
        shardings = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state_of(0))
        restored = checkpoints.restore(shardings)
        step = int(restored.step) if restored is not None else 0
        print(f"from {step}", flush=True)
        while True:
            step += 1
            if limit and step == 3:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            checkpoints.save(state_of(step), {}, {})       # returns when the former is whole
            print(f"whole {step - 1}", flush=True)
            if limit:
                for _ in range(100):
                    checkpoints.check()
                    time.sleep(0.02)


if __name__ == "__main__":
    main()
