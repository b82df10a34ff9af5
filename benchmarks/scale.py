"""The table of docs/scale.md: what pre-training needs on TPU slices and how fast it could be, from plans that were compiled.

    glipv2 plan --config=configs/glipv2_t_stage1.py --topology=v5e:4x4 --output=benchmarks/plans/glipv2_t_v5e_4x4.json       # and so on
    python -m benchmarks.scale

A row for a slice that was compiled is what the compiler said. The others are derived from a row of the same model, with as many
images on a device: parameters and optimizer state are placed anew, by shape; activations, temporaries and work of a device are
those of the compiled row, as only whole images are split over devices; so are the collectives: sums of gradients hardly depend on
how many take part, what the inter-image loss gathers grows with the batch and is small. The estimate takes the chip's own peaks. A GPU
without a plan of its own is estimated so from a TPU's, whose program is another one.
"""
import dataclasses
import functools
import json
import pathlib

import jax

from configs import glipv2_b_stage1, glipv2_h_stage1, glipv2_t_stage1
from glipv2_jax import plan, sharding
from glipv2_jax.absent_devices import TPUS
from glipv2_jax.models.config import model_config
from glipv2_jax.models.glipv2 import GLIPv2, axis_names
from glipv2_jax.optim import default_freeze, make_optimizer
from glipv2_jax.train_state import abstract_state

PLANS = pathlib.Path(__file__).parent / "plans"
# H's state does not fit on a device: it lies over all of them.
CONFIGS = {"glipv2_t": glipv2_t_stage1, "glipv2_b": glipv2_b_stage1, "glipv2_h": glipv2_h_stage1}
PARTS = ("products", "memory", "rows", "collectives")
SLICES = (("v5e", 16), ("v5e", 256), ("v5p", 64), ("v5p", 128), ("v6e", 64), ("v6e", 256), ("h100", 8))


def compiled():
    """List of Plan of the training steps in `benchmarks/plans`."""
    found = [plan.Plan(**entry) for path in sorted(PLANS.glob("*.json")) for entry in json.loads(path.read_text())]
    return [p for p in found if p.program == "train"]


@functools.cache
def state_of(variant):
    """(config, TrainState of ShapeDtypeStructs, names of its axes) of a model's pre-training."""
    config = CONFIGS[variant].get_config()
    model = GLIPv2(model_config(variant, config.model.overrides))
    optimizer = make_optimizer(config.optimizer, config.train.num_steps, default_freeze(model.config))
    _, state = abstract_state(model, optimizer, config.train.ema_decay > 0, mesh_of({"data": 1, "fsdp": 1, "tensor": 1}), config.mesh.rules,
                              config.mesh.min_shard_size)
    return config, state, axis_names(model)


def mesh_of(axes):
    """AbstractMesh of a dict of axis → size."""
    return jax.sharding.AbstractMesh(tuple(axes.values()), tuple(axes), axis_types=(jax.sharding.AxisType.Auto,) * len(axes))


def derived(base, chip, devices):
    """Plan for another slice, by the rule above, from the Plan `base` of the same model."""
    # More chips for one copy of the state would not help: many sizes divide by 16 and no further.
    fsdp = min(base.mesh["fsdp"], devices)
    axes = {"data": devices // fsdp, "fsdp": fsdp, "tensor": 1}
    config, state, names = state_of(base.variant)
    placed = sharding.parameter_shardings(state, names, mesh_of(axes), config.mesh.rules, config.mesh.min_shard_size)
    state = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, placed)
    return dataclasses.replace(
        base, topology=f"{chip}, {devices} devices", chip=chip, devices=devices, mesh=axes,
        batch_size=base.batch_size // base.devices * devices, parameters=plan.bytes_on_one(state.params),
        optimizer=plan.bytes_on_one((state.opt_state, state.ema_params)))


def rows(plans):
    """Lists of the table's cells, models in their order, slices in theirs."""
    for variant in CONFIGS:
        of_variant = [p for p in plans if p.variant == variant]
        for chip, devices in SLICES if of_variant else ():
            exact = [p for p in of_variant if (p.chip, p.devices) == (chip, devices)]
            # A slice of the same kind says most about it, and a TPU more about another than a GPU.
            base = min(exact or of_variant, key=lambda p: (p.chip != chip, (p.chip in TPUS) != (chip in TPUS), p.devices))
            p = base if exact else derived(base, chip, devices)
            origin = "compiled" if exact else "derived" if (base.chip in TPUS) == (chip in TPUS) else "estimated"
            seconds = p.seconds()
            kernels = "–" if origin == "estimated" else ", ".join(name for name in p.kernels if not name.endswith("_gradients")) or "none"
            yield [variant, f"{chip}-{devices}", origin, kernels, f"{p.batch_size}",
                   f"{p.total / 1e9:.1f} of {p.memory / 1e9:.0f}",
                   f"{(p.parameters + p.optimizer) / 1e9:.2f}", f"{p.temporaries / 1e9:.2f}",
                   " / ".join("–" if part == "collectives" and not p.traffic else f"{1e3 * seconds[part]:.0f}" for part in PARTS),
                   f"{1e3 * p.step_seconds():.0f}", f"{p.images_per_second():.0f}"]


def table(plans):
    """The table as markdown."""
    head = ["model", "slice", "how", "kernels of our own", "images a step", "GB a device", "state", "temporaries",
            "ms: products / memory / rows / collectives", "estimate, ms a step", "images/s by it"]
    lines = [head, ["---"] * len(head), *rows(plans)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    print(table(compiled()))
