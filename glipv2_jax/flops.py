"""Counts the work of a program before it is compiled: products, and rows that are gathered and scattered.

Loops are counted as often as they run, recomputation included, which XLA's own cost analysis does not do.
"""
import collections
import math
import re

import jax
from jax.extend import core as jax_core

# Peak of a chip: bfloat16 operations a second, bytes of memory, bytes of memory a second, bytes a second to other chips over all
# links, and the clock and cycles that a gathered and a scattered row cost; docs/scale.md says where these come from.
Chip = collections.namedtuple("Chip", "flops memory bandwidth interconnect clock gather_cycles scatter_cycles")
CHIPS = {
    "v5e": Chip(197e12, 16e9, 819e9, 200e9, 1.5e9, 4.5, 26),
    "v5p": Chip(459e12, 95e9, 2765e9, 600e9, 1.75e9, 4.5, 26),
    "v6e": Chip(918e12, 32e9, 1640e9, 448e9, 1.75e9, 4.5, 26),
    "a100": Chip(312e12, 80e9, 2039e9, 300e9, 1.4e9, 0, 0),
    "h100": Chip(989e12, 80e9, 3350e9, 450e9, 1.7e9, 0, 0),
    "h200": Chip(989e12, 141e9, 4800e9, 450e9, 1.7e9, 0, 0),
}
_KINDS = {"TPU v5 lite": "v5e", "TPU v5e": "v5e", "TPU v5": "v5p", "TPU v5p": "v5p", "TPU v6 lite": "v6e", "TPU v6e": "v6e"}


def chip_of(device):
    """Name in `CHIPS` of a device, or None where its peak is not known."""
    kind = device.device_kind
    return _KINDS.get(kind) or next((chip for chip in CHIPS if re.search(rf"\b{chip.upper()}\b", kind)), None)


def count(function, *args, platform=None):
    """Work of one call.

    Args:
      function: of arrays. args: arrays or ShapeDtypeStructs.
      platform: "cpu", "gpu" or "tpu", for functions that do their work in another way there; default: where JAX runs.
    Returns: Counter of "flops" (of matrix products and convolutions, two a multiply-add), "gathered_rows", "scattered_rows".
    """
    return count_jaxpr(jax.make_jaxpr(function)(*args).jaxpr, platform)


def count_jaxpr(jaxpr, platform=None):
    """Work of a traced program, as in `count`; all devices together."""
    platform = platform or jax.default_backend()
    total = collections.Counter()
    for eqn in jaxpr.eqns:
        name, out = eqn.primitive.name, eqn.outvars[0].aval if eqn.outvars else None
        if name == "dot_general":
            contracted = eqn.params["dimension_numbers"][0][0]
            total["flops"] += 2 * math.prod(out.shape) * math.prod(eqn.invars[0].aval.shape[i] for i in contracted)
        elif name == "conv_general_dilated":
            kernel, numbers = eqn.invars[1].aval.shape, eqn.params["dimension_numbers"]
            outputs = kernel[numbers.rhs_spec[0]] // eqn.params["feature_group_count"]
            # A stretched input, as in the gradient of a strided convolution, is mostly zeros that need no product.
            stretched = math.prod(eqn.params["lhs_dilation"])
            total["flops"] += 2 * math.prod(out.shape) * math.prod(kernel) // max(outputs, 1) // stretched
        elif name in ("gather", "scatter-add", "scatter"):
            indices = eqn.invars[1].aval.shape
            total["gathered_rows" if name == "gather" else "scattered_rows"] += math.prod(indices[:-1])
        times = eqn.params["length"] if name == "scan" else 1
        if name == "shard_map":                          # written for one device
            axes = eqn.params.get("newly_manual_axes") or eqn.params.get("manual_axes", ())     # jax 0.10; others
            times = math.prod(eqn.params["mesh"].shape[axis] for axis in axes)
        if name == "pallas_call":                        # written for one step of its grid
            times = math.prod(eqn.params["grid_mapping"].grid)
        inner = [count_jaxpr(sub, platform) for sub in _inner_jaxprs(eqn)]
        if name == "cond":
            of_platforms = eqn.params.get("branches_platforms")
            if of_platforms is None:
                inner = [max(inner, key=lambda c: c["flops"])]
            else:
                names = {"cuda", "rocm"} if platform == "gpu" else {platform}
                inner = [next(c for c, named in zip(inner, of_platforms) if named is None or names & set(named))]
        for counter in inner:
            for key, value in counter.items():
                total[key] += times * value
    return total


def _inner_jaxprs(eqn):
    for value in eqn.params.values():
        for one in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(one, jax_core.ClosedJaxpr):
                yield one.jaxpr
            elif isinstance(one, jax_core.Jaxpr):
                yield one
