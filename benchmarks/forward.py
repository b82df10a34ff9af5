"""Seconds per image of a named model's forward pass on this machine, split into its parts, compilation apart.

    python -m benchmarks.forward --variant=glip_t --sizes=320x480,800x1344 --repeats=3

Weights are random: time does not depend on them. The parts are compiled separately, so that their sum is a little more
than the whole, which is compiled as one program. Post-processing takes every pair of anchor and class for a candidate, as an untrained
model has none above a threshold. The suppression of overlaps (NMS) stands alone, too: 3,350 candidates, padded to 4,096, in clusters,
to the 100 best as in post-processing, and to the last one.
"""
import argparse
import functools
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
from glipv2_jax.ops.nms import nms

CANDIDATES, PADDED = 3350, 4096        # of NMS: a thousand of each fine level, all of the coarse ones


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


def nms_candidates(seed, count, padded, classes, size):
    """Boxes [padded, 4], scores, labels and which of them are valid [padded], `count` of them: clusters of a dozen around objects."""
    rng = np.random.default_rng(seed)
    objects = rng.uniform(0, 0.8, (max(1, count // 12), 2)), rng.uniform(0.02, 0.2, (max(1, count // 12), 2))
    corner, sides = (part[rng.integers(0, len(part), padded)] for part in objects)
    corner, sides = corner + rng.normal(0, 0.01, corner.shape), sides * rng.uniform(0.8, 1.25, sides.shape)
    boxes = np.concatenate([corner, corner + sides], axis=1) * (size[::-1] * 2)
    labels = np.where(rng.random(padded) < 0.7, (corner[:, 0] * 97).astype(int), rng.integers(0, classes, padded)) % classes
    return boxes.astype(np.float32), rng.random(padded).astype(np.float32), labels.astype(np.int32), np.arange(padded) < count


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
                           token_to_label, image_size, score_threshold=0.0)
    encode_image, encode_text, predict = (
        jax.jit(lambda p, *args, method=method: model.apply({"params": p}, *args, method=method))
        for method in ("encode_image", "encode_text", "predict"))
    times = {}
    levels, *times["backbone and FPN"] = measure(encode_image, (params, image, image_size), repeats)
    words, *times["text encoder"] = measure(encode_text, (params, ids, mask), repeats)
    outputs, *times["fusion tower and heads"] = measure(predict, (params, levels, words, mask), repeats)
    _, *times["post-processing"] = measure(jax.jit(decode), (outputs,), repeats)
    candidates = [np.stack(part) for part in zip(*(nms_candidates(i, CANDIDATES, PADDED, classes, size) for i in range(batch)))]
    for name, most in (("NMS alone, 100 best", 100), ("NMS alone, all", None)):
        alone = jax.jit(jax.vmap(functools.partial(nms, threshold=0.6, max_keep=most)))
        _, *times[name] = measure(alone, candidates, repeats)
    whole = jax.jit(lambda p, *args: decode(model.apply({"params": p}, *args)))
    _, *times["whole, one program"] = measure(whole, (params, image, image_size, ids, mask), repeats)
    return times


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--variant", default="glip_t", choices=sorted(VARIANTS))
    parser.add_argument("--sizes", default="320x480,800x1344", help="height x width, several with commas")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    args = parser.parse_args(arguments)
    console = Console(width=140)
    console.print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, {os.cpu_count()} cores, {platform.machine()}, "
                  f"{time.strftime('%Y-%m-%d')}; {args.variant}, {args.dtype}, batch {args.batch}, {args.tokens} tokens")
    for size in args.sizes.split(","):
        height, width = (int(side) for side in size.split("x"))
        times = run(args.variant, (height, width), args.batch, args.tokens, args.classes, args.repeats,
                    jnp.dtype(args.dtype))
        table = Table("part", "seconds per image", "share of the whole", "first call", title=size)
        for part, (first, median) in times.items():
            table.add_row(part, f"{median / args.batch:.4f}", f"{median / times['whole, one program'][1]:.1%}", f"{first:.1f} s")
        console.print(table)


if __name__ == "__main__":
    main()
