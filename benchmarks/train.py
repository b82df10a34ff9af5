"""Images per second of the training step on the devices that are there, beside GroundingDINO-T's under torch.

    python -m benchmarks.train --variant=glipv2_t --size=800x1344 --batches=1,2,4,8 --peer --output=train.json

The step is the one that `glipv2_jax.train` runs with the recipe of pre-training: all losses of the variant, AdamW, averaged
parameters, state sharded and donated. It is fed one batch of noise, already on the devices. Every row has a process of its own,
so that its peak of memory is its own; one that does not fit says so. Times are medians of single steps, each waited for; the first
step after the compilation is left out.

"TFLOP/s" and "MFU" are of the products and convolutions that a step needs, a device, beside the device's peak in bfloat16; what
`--remat` makes a step compute again is not counted (the JSON has that as `tflops_done`), recomputation inside of fusion's chunks and
of the deformable convolution is.

`--flags` adds rows with these XLA_FLAGS; the ratio to the peer leaves them out.

`--peer` is transformers' GroundingDINO-T with random weights: images of the same size, texts of as many tokens and as many boxes,
in bfloat16 by autocast, the losses of all decoder layers and of the proposals with their Hungarian matching, clipped gradients,
AdamW; eager, and through torch.compile, on one GPU or the CPU. Without torch it says so.
"""
import argparse
import itertools
import json
import os
import pathlib
import time

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.device import describe, facts, in_own_process
from configs import pretrain
from glipv2_jax.files import write_whole
from glipv2_jax.models.config import REMAT_POLICIES, VARIANTS
from input_pipeline.schema import MLM_SCORED, NO_CLASS, batch_spec

BOXES = 20                             # of an image, as in a rich photograph of COCO


def noise_boxes(rng, batch_size, count, size):
    """[B, count, 4] float32 `xyxy` in images of (height, width), a twentieth to a third of them along each axis."""
    corner = rng.uniform(0, 0.65, (batch_size, count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0.05, 0.34, corner.shape)], axis=-1)
    return (boxes * (np.array(size[::-1] * 2) - 1)).astype(np.float32)


def noise_batch(config, rng):
    """A batch that obeys the data contract: noise, all tokens real, two of them for each box."""
    d, size = config.data, tuple(config.data.canvases[0])
    batch = {key: np.zeros(shape, dtype) for key, (shape, dtype) in batch_spec(
        config.train.batch_size, size, d.max_tokens, d.max_boxes).items()}
    count = min(BOXES, d.max_boxes, (d.max_tokens - 2) // 2)
    batch["image"] = rng.integers(0, 256, batch["image"].shape, dtype=np.uint8)
    batch["image_size"][:] = batch["original_size"][:] = size
    batch["scale"][:] = 1
    batch["token_ids"][:] = rng.integers(1000, 20_000, batch["token_ids"].shape)
    batch["token_mask"][:] = True
    batch["mlm_eligible"][:] = MLM_SCORED
    batch["boxes"][:, :count] = noise_boxes(rng, config.train.batch_size, count, size)
    batch["box_mask"][:, :count] = True
    batch["box_class"][:] = batch["token_class"][:] = NO_CLASS
    batch["box_class"][:, :count] = np.arange(count)
    for box in range(count):
        batch["positive_map"][:, box, 1 + 2 * box:3 + 2 * box] = True
        batch["token_class"][:, 1 + 2 * box:3 + 2 * box] = box
    return batch


def config_of(variant, size, tokens, dtype, remat, scan_layers):
    """The config of pre-training for a variant and one canvas."""
    config = pretrain.get_config(variant, num_steps=330_000)
    config.model.dtype = dtype
    config.model.overrides.remat, config.model.overrides.scan_layers = remat, scan_layers
    config.data.canvases, config.data.max_tokens = (size,), tokens
    return config


def step_speed(config, images, steps):
    """Measures the training step of a config on all devices of this process.

    Args:
      images: on each device. steps: how many are timed.
    Returns: dict of `compile_seconds` (tracing included), `step_seconds` (median), `images_per_second` (all devices), `tflops`, `tflops_done` and
      `mfu` of a device, `memory_gb` of the fullest device, `planned_memory_gb` by the compiler, `loss`, `finite`; None for what the
      device does not tell.
    """
    import jax

    from glipv2_jax import flops, sharding
    from glipv2_jax.build import build, make_step
    from glipv2_jax.train_state import shardings_of
    config.train.batch_size = config.eval.batch_size = images * jax.device_count()
    rng = np.random.default_rng(0)

    def traced(config):
        mesh, tokenizer, model = build(config)
        create, abstract, step = make_step(config, mesh, tokenizer, model, config.train.num_steps)
        with sharding.use(mesh, config.mesh.rules):
            batch = sharding.global_batch(noise_batch(config, rng), mesh)
            key = jax.jit(lambda: jax.random.key(config.seed + 1), out_shardings=sharding.replicated(mesh))()
            return mesh, create, abstract, batch, key, step.trace(abstract, batch, key)

    kept = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)               # a compilation that was kept would be no time
    try:
        started = time.perf_counter()
        mesh, create, abstract, batch, key, trace = traced(config)
        with sharding.use(mesh, config.mesh.rules):
            compiled = trace.lower().compile()
        compile_seconds = time.perf_counter() - started
    finally:
        jax.config.update("jax_enable_compilation_cache", kept)
    with sharding.use(mesh, config.mesh.rules):
        state = jax.jit(create, out_shardings=shardings_of(abstract))(jax.random.key(config.seed))
        times = []
        for _ in range(1 + steps):
            started = time.perf_counter()
            state, metrics = jax.block_until_ready(compiled(state, batch, key))
            times.append(time.perf_counter() - started)
    seconds, loss = float(np.median(times[1:])), float(metrics["loss"])
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in jax.local_devices()]
    planned = compiled.memory_analysis()

    done = needed = flops.count_jaxpr(trace.jaxpr.jaxpr)["flops"]
    if config.model.overrides.get("remat"):
        del state, compiled
        config.model.overrides.remat = ""
        needed = flops.count_jaxpr(traced(config)[-1].jaxpr.jaxpr)["flops"]
    rate, chip = needed / seconds / jax.device_count(), flops.chip_of(jax.devices()[0])
    return {"compile_seconds": compile_seconds, "step_seconds": seconds, "images_per_second": config.train.batch_size / seconds,
            "tflops": rate / 1e12, "tflops_done": done / seconds / jax.device_count() / 1e12,
            "mfu": rate / flops.CHIPS[chip].flops if chip else None, "memory_gb": max(peaks) / 1e9 or None,
            "planned_memory_gb": (planned.argument_size_in_bytes + planned.output_size_in_bytes - planned.alias_size_in_bytes
                                  + planned.temp_size_in_bytes + planned.generated_code_size_in_bytes) / 1e9,
            "loss": loss, "finite": bool(np.isfinite(loss))}


def ours(settings, images, remat, flags, steps):
    """`step_speed` of the config of these settings, for a process of its own, in which JAX has not started."""
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
    return step_speed(config_of(remat=remat, **settings), images, steps)


def peer(backend, size, images, tokens, dtype, compiled, steps):
    """The same numbers of GroundingDINO-T, for a process of its own."""
    from benchmarks import peer_training
    return peer_training.step_speed("cuda" if backend == "gpu" else "cpu", size, images, tokens, BOXES, dtype, compiled, steps)


def ratios(rows):
    """dict of images a device → images/s of our fastest row over those of the peer's fastest."""
    found = {}
    for images in sorted({row["images"] for row in rows}):
        best = [max((row["images_per_second"] for row in rows
                     if row["images"] == images and row["peer"] == peer and not row.get("flags") and "failed" not in row), default=None)
                for peer in (False, True)]
        if None not in best:
            found[images] = best[0] / best[1]
    return found


def row_cells(row):
    """The cells of a row of the table."""
    head = [row["model"], str(row["images"]), row["how"] or "-"]
    if "failed" in row:
        return [*head, row["failed"]]
    return [*head, f"{row['compile_seconds']:.0f} s", f"{1e3 * row['step_seconds']:.1f}", f"{row['images_per_second']:.2f}",
            *(f"{value:.{digits}f}" if value is not None else "-" for value, digits in (
                (row.get("memory_gb"), 2), (row.get("planned_memory_gb"), 2), (row.get("tflops"), 1))),
            f"{row['mfu']:.1%}" if row.get("mfu") else "-", "yes" if row["finite"] else "NO"]


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--variant", default="glipv2_t", choices=sorted(VARIANTS))
    parser.add_argument("--size", default="800x1344", help="height x width")
    parser.add_argument("--batches", default="1,2,4,8", help="images on each device, several with commas")
    parser.add_argument("--remat", default="nothing", help=f"policies with commas, of {', '.join(filter(None, REMAT_POLICIES))}; 'none': no remat")
    parser.add_argument("--flags", action="append", default=[], help="XLA_FLAGS of further rows, beside those without; may be repeated")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--scan_layers", action="store_true", help="equal layers as one loop")
    parser.add_argument("--steps", type=int, default=10, help="how many are timed")
    parser.add_argument("--peer", action="store_true", help="beside GroundingDINO-T under torch")
    parser.add_argument("--output", help="JSON file")
    args = parser.parse_args(arguments)
    size, policies = tuple(int(side) for side in args.size.split("x")), ["" if name == "none" else name for name in args.remat.split(",")]
    if not set(policies) <= set(REMAT_POLICIES):
        parser.error(f"--remat: found {args.remat!r}, expected some of none,{','.join(filter(None, REMAT_POLICIES))}")
    settings = {"variant": args.variant, "size": size, "tokens": args.tokens, "dtype": args.dtype, "scan_layers": args.scan_layers}
    console, about, rows = Console(width=140), in_own_process(facts), []
    console.print(describe(about), markup=False)
    with_peer = args.peer and about["versions"]["torch"] is not None and about["devices"] == 1 and about["backend"] != "tpu"
    if args.peer and not with_peer:
        console.print("no peer: it needs torch (pip install 'glipv2_jax[benchmark]') and one device, a GPU or a CPU", markup=False)

    def add(model, images, how, peer, found, flags=""):
        rows.append({"model": model, "images": images, "how": how, "peer": peer, "flags": flags} | found)
        console.print(" ".join(row_cells(rows[-1])[:6]), markup=False)
        if args.output:                                    # after every row: what comes later may take the machine down
            write_whole(pathlib.Path(args.output), json.dumps(
                {"protocol": __doc__, "settings": vars(args), **about, "rows": rows, "faster_than_peer": ratios(rows)}, indent=1) + "\n")
    for images in map(int, args.batches.split(",")):
        for remat, flags in itertools.product(policies, ("", *args.flags)):
            how = " ".join(filter(None, (f"remat {remat}" if remat else "", flags)))
            with console.status(f"{args.variant}, {images} images a device, {how or 'no remat'}"):
                add(args.variant, images, how, False, in_own_process(ours, settings, images, remat, flags, args.steps), flags)
        for compiled in (False, True) if with_peer else ():
            how = "torch.compile" if compiled else "eager"
            with console.status(f"GroundingDINO-T, {images} images, {how}"):
                add("GroundingDINO-T", images, how, True, in_own_process(
                    peer, about["backend"], size, images, args.tokens, args.dtype, compiled, args.steps))
    table = Table("model", "images a device", "how", "compile", "ms a step", "images/s", "peak GB", "planned GB", "TFLOP/s", "MFU", "finite",
                  title=f"training step, {args.size}, {args.tokens} tokens, {BOXES} boxes, {args.dtype}, median of {args.steps}")
    for row in rows:
        table.add_row(*row_cells(row))
    console.print(table)
    for images, ratio in ratios(rows).items():
        console.print(f"{images} images a device: {ratio:.2f} × the images/s of the peer, the fastest of each")


if __name__ == "__main__":
    main()
