"""Seconds per image of a named model's forward pass on this machine, split into its parts, compilation apart.

    python -m benchmarks.forward --variant=glip_t --sizes=320x480,800x1344 --repeats=3

Weights are random: time does not depend on them. The parts are compiled separately, so that their sum is a little more
than the whole, which is compiled as one program.
"""
import argparse
import os
import platform
import time

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from glipv2_jax.detection.anchors import anchors, level_shapes, level_sizes
from glipv2_jax.detection.postprocess import postprocess
from glipv2_jax.models.config import VARIANTS
from glipv2_jax.models.glipv2 import GLIPv2, init_params


def measure(function, arguments, repeats):
    """(result, seconds of compilation and first run, median seconds of the later runs)."""
    started = time.perf_counter()
    result = jax.block_until_ready(function(*arguments))
    first, times = time.perf_counter() - started, []
    for _ in range(repeats):
        started = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - started)
    return result, first, float(np.median(times))


def run(variant, size, batch, tokens, classes, repeats, dtype):
    """dict of part → (first, median) seconds for a batch."""
    model = GLIPv2(VARIANTS[variant], dtype=dtype)
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (batch, *size, 3), dtype=np.uint8)
    image_size = np.tile(np.int32(size), (batch, 1))
    ids, mask = rng.integers(1000, 20_000, (batch, tokens)).astype(np.int32), np.ones((batch, tokens), bool)
    token_to_label = np.repeat(np.eye(classes, dtype=bool), max(1, tokens // classes), axis=1)
    token_to_label = np.pad(token_to_label, ((0, 0), (0, tokens)))[:, :tokens]
    params = jax.jit(lambda: init_params(model, jax.random.key(0)))()
    shapes = level_shapes(*size)
    boxes, sizes = anchors(shapes), level_sizes(shapes)

    def decode(outputs):
        return postprocess(outputs.alignment_logits, outputs.box_deltas, outputs.centerness, boxes, sizes,
                           token_to_label, image_size)
    encode_image, encode_text, predict = (
        jax.jit(lambda p, *args, method=method: model.apply({"params": p}, *args, method=method))
        for method in ("encode_image", "encode_text", "predict"))
    times = {}
    levels, *times["backbone and FPN"] = measure(encode_image, (params, image, image_size), repeats)
    words, *times["text encoder"] = measure(encode_text, (params, ids, mask), repeats)
    outputs, *times["fusion tower and heads"] = measure(predict, (params, levels, words, mask), repeats)
    _, *times["post-processing"] = measure(jax.jit(decode), (outputs,), repeats)
    whole = jax.jit(lambda p, *args: decode(model.apply({"params": p}, *args)))
    _, *times["whole, one program"] = measure(whole, (params, image, image_size, ids, mask), repeats)
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--variant", default="glip_t", choices=sorted(VARIANTS))
    parser.add_argument("--sizes", default="320x480,800x1344", help="height x width, several with commas")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    args = parser.parse_args()
    console = Console()
    console.print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, {os.cpu_count()} cores, {platform.machine()}, "
                  f"{time.strftime('%Y-%m-%d')}; {args.variant}, {args.dtype}, batch {args.batch}, {args.tokens} tokens")
    for size in args.sizes.split(","):
        height, width = (int(side) for side in size.split("x"))
        times = run(args.variant, (height, width), args.batch, args.tokens, args.classes, args.repeats,
                    jnp.dtype(args.dtype))
        table = Table("part", "seconds per image", "first call", title=size)
        for part, (first, median) in times.items():
            table.add_row(part, f"{median / args.batch:.3f}", f"{first:.1f} s")
        console.print(table)


if __name__ == "__main__":
    main()
