"""Gather form against window form of a deformable convolution: on this machine's device, or compiled for a TPU that is not there.

    python -m benchmarks.deform_conv --topology=v5e:2x2
    python -m benchmarks.deform_conv --sizes=100x168,50x84,25x42,13x21,7x11

One device, random input, offsets within ±2. `--sizes` with several maps is a layer of the head as the model runs it: every map by
itself, with the finer one (stride 2) and with the coarser one. A device gives measured times; a topology gives the memory of
temporaries and the time that the counted work takes at the chip's peak, which no program reaches.
"""
import argparse
import json
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.forward import measure
from configs import common
from glipv2_jax import flops, sharding
from glipv2_jax.ops.deform_conv import Conv, deform_convs
from glipv2_jax.plan import absent_devices


def layer(sizes, channels, images, dtype):
    """(convolutions, [maps, offsets, masks, kernels] as ShapeDtypeStructs)."""
    levels = range(len(sizes))
    convs = ([Conv(i, 1, 0) for i in levels] + [Conv(i, 2, 1) for i in levels[:-1]] + [Conv(i, 1, 2) for i in levels[1:]])
    outputs = [tuple((n - 1) // conv.stride + 1 for n in sizes[conv.source]) for conv in convs]
    array = jax.ShapeDtypeStruct
    return tuple(convs), [[array((images, *size, channels), dtype) for size in sizes],
                          [array((images, *size, 18), jnp.float32) for size in outputs],
                          [array((images, *size, 9), jnp.float32) for size in outputs],
                          array((convs[-1].kernel + 1, 9, channels, channels), dtype)]


def programs(convs, form):
    """dict of name → function of the arrays."""
    def forward(*args):
        return deform_convs(args[0], convs, *args[1:], form=form)

    def both(*args):
        outs, pullback = jax.vjp(forward, *args)
        return outs, pullback([jnp.ones_like(out) for out in outs])
    return {"forward": forward, "forward and gradients": both}


def compiled(function, args, devices):
    """What the compiler and the counted work tell of a program on the first of these devices."""
    mesh, chip = sharding.make_mesh(devices=devices[:1]), flops.CHIPS[flops.chip_of(devices[0])]
    placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding.replicated(mesh)), args)
    with sharding.use(mesh, common.get_config().mesh.rules):
        work, started = flops.count(function, *args, platform=devices[0].platform), time.perf_counter()
        memory = jax.jit(function).lower(*placed).compile().memory_analysis()
    rows = (work["gathered_rows"] * chip.gather_cycles + work["scattered_rows"] * chip.scatter_cycles) / chip.clock
    return {"temporaries MB": memory.temp_size_in_bytes / 1e6, "GFLOP": work["flops"] / 1e9, "products ms": 1e3 * work["flops"] / chip.flops,
            "rows ms": 1e3 * rows, "compile s": time.perf_counter() - started}


def measured(function, args, repeats):
    rng = np.random.default_rng(0)
    args = jax.tree.map(lambda x: jnp.asarray(rng.uniform(-2, 2, x.shape), x.dtype), args)
    _, first, seconds = measure(jax.jit(function), args, repeats)
    return {"ms": 1e3 * seconds, "first call s": first}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--topology", help="such as v5e:2x2; default: the device that is there")
    parser.add_argument("--sizes", default="100x168", help="height x width of the maps, the finest first, several with commas")
    parser.add_argument("--channels", type=int, default=256)
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=pathlib.Path, help="file for the numbers")
    args = parser.parse_args()
    sizes = [tuple(int(side) for side in size.split("x")) for size in args.sizes.split(",")]
    convs, arrays = layer(sizes, args.channels, args.images, jnp.dtype(args.dtype))
    # Interpreted, which is what it is elsewhere, the window form's time says nothing.
    forms = ("xla", "kernel") if args.topology or jax.default_backend() == "tpu" else ("xla",)
    results = {}
    for form in forms:
        for name, function in programs(convs, form).items():
            if args.topology:
                results[f"{form}, {name}"] = compiled(function, arrays, absent_devices(args.topology))
            else:
                results[f"{form}, {name}"] = measured(function, arrays, args.repeats)
    table = Table("form", *next(iter(results.values())), title=f"{args.images} × {args.sizes}, {args.channels} channels, {args.dtype}")
    for name, values in results.items():
        table.add_row(name, *(f"{value:.2f}" for value in values.values()))
    console = Console(width=140)
    where = args.topology or f"{jax.devices()[0].device_kind}, median of {args.repeats}"
    console.print(f"jax {jax.__version__}, {where}, {time.strftime('%Y-%m-%d')}", table)
    if args.json:
        args.json.write_text(json.dumps({"where": where, "sizes": sizes, "channels": args.channels, "images": args.images,
                                         "dtype": args.dtype, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
