"""Forms of an operation side by side: on this machine's device, or compiled for a TPU or a GPU that is not there.

    python -m benchmarks.kernels --topology=v5e:2x2
    python -m benchmarks.kernels --topology=h100:1 --images=4
    python -m benchmarks.kernels --sizes=100x168,50x84,25x42,13x21,7x11 --only=deform_conv

One device, random input, offsets within ±2. With several maps of `--sizes` the deformable convolutions are a layer of the head as the model
runs it: every map by itself, with the finer one (stride 2) and with the coarser one; fusion's attention has the cells of all maps as
regions. A device gives measured times; a topology gives the memory of temporaries, the bytes that travel between memory and
chip, and the times that products and gathered rows take at the chip's peak, which no program reaches.
"""
import argparse
import functools
import json
import math
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.forward import measure
from configs import common
from glipv2_jax import flops, hlo, sharding
from glipv2_jax.absent_devices import COMPILER_OPTIONS, absent_devices
from glipv2_jax.models.bert import CLAMP
from glipv2_jax.ops.bidirectional_attention import bidirectional_attention
from glipv2_jax.ops.deform_conv import Conv, deform_convs
from glipv2_jax.ops.window_attention import window_attention

WORDS, HEADS, CHUNK, DROPOUT, WINDOW = 256, 8, 2240, 0.1, 7         # of GLIP-T


def deform_conv(sizes, channels, images, dtype):
    """(function of a form and of arrays, those arrays as ShapeDtypeStructs)."""
    levels = range(len(sizes))
    convs = ([Conv(i, 1, 0) for i in levels] + [Conv(i, 2, 1) for i in levels[:-1]] + [Conv(i, 1, 2) for i in levels[1:]])
    outputs = [tuple((n - 1) // conv.stride + 1 for n in sizes[conv.source]) for conv in convs]
    array = jax.ShapeDtypeStruct
    args = ([array((images, *size, channels), dtype) for size in sizes],
            [array((images, *size, 18), jnp.float32) for size in outputs],
            [array((images, *size, 9), jnp.float32) for size in outputs],
            array((convs[-1].kernel + 1, 9, channels, channels), dtype))

    def run(form, maps, *rest):
        return deform_convs(maps, convs, *rest, form=form)
    return run, args


def attention(sizes, channels, images, dtype):
    """The same of fusion's attention, with dropout."""
    regions, array = sum(math.prod(size) for size in sizes), jax.ShapeDtypeStruct
    args = (array((images, regions, channels), dtype), array((images, channels, HEADS, WORDS), dtype),
            array((images, HEADS, WORDS), jnp.float32), array((images, HEADS, WORDS, channels), dtype))

    def run(form, regions, *rest):
        return bidirectional_attention(regions, *rest, jnp.ones((images, WORDS), bool), chunk=CHUNK, clamp=CLAMP, dropout=DROPOUT,
                                       rng=jax.random.key(0), form=form)
    return run, args


def windows(sizes, channels, images, dtype):
    """The same of window attention on the first map, rolled, with heads and windows of Swin-T."""
    grid, array = tuple(-(-side // WINDOW) for side in sizes[0]), jax.ShapeDtypeStruct
    args = (array((images, math.prod(grid), WINDOW**2, 3 * channels), dtype), array((max(1, channels // 32), WINDOW**2, WINDOW**2), jnp.float32))
    return lambda form, *arrays: window_attention(*arrays, grid=grid, shift=WINDOW // 2, form=form), args


OPERATIONS = {"deform_conv": deform_conv, "attention": attention, "windows": windows}
# Where they run, forms other than XLA's plain one; interpreted, which is what it is elsewhere, a kernel's time says nothing.
FORMS = {"tpu": dict.fromkeys(OPERATIONS, ("kernel",)), "gpu": {"deform_conv": ("gpu",)}, "cpu": {"deform_conv": ("gpu",)}}


def programs(run, form):
    """dict of name → function of the arrays."""
    forward = functools.partial(run, form)

    def both(*args):
        outs, pullback = jax.vjp(forward, *args)
        return outs, pullback(jax.tree.map(jnp.ones_like, outs))
    return {"forward": forward, "forward and gradients": both}


def compiled(function, args, devices):
    """What the compiler and the counted work tell of a program on the first of these devices."""
    mesh, chip = sharding.make_mesh(devices=devices[:1]), flops.CHIPS[flops.chip_of(devices[0])]
    placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding.replicated(mesh)), args)
    with sharding.use(mesh, common.get_config().mesh.rules):
        work, started = flops.count(function, *args, platform=devices[0].platform), time.perf_counter()
        program = jax.jit(function).lower(*placed).compile(COMPILER_OPTIONS.get(devices[0].platform))
    rows = (work["gathered_rows"] * chip.gather_cycles + work["scattered_rows"] * chip.scatter_cycles) / chip.clock
    try:
        moved = sum(hlo.Program(program.as_text()).traffic(lambda origin: "all").values())
    except (RuntimeError, jax.errors.JaxRuntimeError):                # some programs cannot be printed
        moved = math.nan
    return {"temporaries MB": program.memory_analysis().temp_size_in_bytes / 1e6, "moved MB": moved / 1e6, "GFLOP": work["flops"] / 1e9,
            "products ms": 1e3 * work["flops"] / chip.flops, "moved ms": 1e3 * moved / chip.bandwidth, "rows ms": 1e3 * rows,
            "compile s": time.perf_counter() - started}


def measured(function, args, repeats):
    rng = np.random.default_rng(0)
    args = jax.tree.map(lambda x: jnp.asarray(rng.uniform(-2, 2, x.shape), x.dtype), args)
    _, first, seconds = measure(jax.jit(function), args, repeats)
    return {"ms": 1e3 * seconds, "first call s": first}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--topology", help="such as v5e:2x2 or h100:1; default: the device that is there")
    parser.add_argument("--only", choices=tuple(OPERATIONS), help="one operation; default: all")
    parser.add_argument("--sizes", default="100x168", help="height x width of the maps, the finest first, several with commas")
    parser.add_argument("--channels", type=int, default=256)
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=pathlib.Path, help="file for the numbers")
    args = parser.parse_args()
    sizes = [tuple(int(side) for side in size.split("x")) for size in args.sizes.split(",")]
    devices = absent_devices(args.topology) if args.topology else None
    platform, results = devices[0].platform if devices else jax.default_backend(), {}
    for operation in [args.only] if args.only else OPERATIONS:
        run, arrays = OPERATIONS[operation](sizes, args.channels, args.images, jnp.dtype(args.dtype))
        for form in ("xla", *FORMS.get(platform, {}).get(operation, ())):
            for name, function in programs(run, form).items():
                results[f"{operation}, {form}, {name}"] = (compiled(function, arrays, devices) if devices
                                                           else measured(function, arrays, args.repeats))
    table = Table("form", *next(iter(results.values())), title=f"{args.images} × {args.sizes}, {args.channels} channels, {args.dtype}")
    for name, values in results.items():
        table.add_row(name, *(f"{value:.2f}" for value in values.values()))
    console = Console(width=160)
    where = args.topology or f"{jax.devices()[0].device_kind}, median of {args.repeats}"
    console.print(f"jax {jax.__version__}, {where}, {time.strftime('%Y-%m-%d')}", table)
    if args.json:
        args.json.write_text(json.dumps({"where": where, "sizes": sizes, "channels": args.channels, "images": args.images,
                                         "dtype": args.dtype, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
