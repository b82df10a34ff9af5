"""What a run needs and how fast it could be, before it is paid for: the true training step compiled for devices that are not there.

    glipv2 plan --config=configs/glipv2_h_stage1.py --topology=v5p:2x2x4
    glipv2 plan --config=configs/glipv2_t_stage1.py --topology=h100:8

Compilers of TPUs (package libtpu) and of GPUs (JAX's CUDA plugin) run on any Linux machine. A full-size step takes the first 15 to 30
minutes of one core, and 12 GB, the second about 5 minutes and 6 GB.
"""
import copy
import dataclasses
import functools
import json
import logging
import math
import pathlib
import re
import time

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from glipv2_jax import flops, hlo, sharding
from glipv2_jax.absent_devices import COMPILER_OPTIONS, GPUS, absent_devices
from glipv2_jax.build import abstract_params, build, make_step
from glipv2_jax.config_ranges import check_ranges
from glipv2_jax.files import write_whole
from input_pipeline.schema import batch_spec

log = logging.getLogger(__name__)
# Of a GPU's memory: what JAX takes unless told, and what a run can have of it.
GPU_DEFAULT, GPU_MOST = 0.75, 0.95


@dataclasses.dataclass
class Plan:
    """One program on one topology. Bytes and FLOPs are of one device and one step."""
    config: str
    program: str                      # train or inference
    variant: str
    topology: str
    chip: str
    devices: int
    mesh: dict
    batch_size: int                   # images over all devices
    canvas: tuple
    remat: str
    kernels: list                     # names of the kernels of our own in the program
    parameters: int                   # bytes
    optimizer: int                    # bytes of moments and averages
    batch: int
    temporaries: int                  # activations and scratch, at their peak
    program_bytes: int
    flops: float
    bytes_moved: float                # between memory and chip
    traffic: dict                     # part of the model → bytes, of `bytes_moved`; empty where the program cannot be printed
    gathered_rows: float
    scattered_rows: float
    collectives: dict                 # kind → [count, bytes], loops counted as often as they run
    compile_seconds: float
    versions: dict

    @property
    def total(self):
        """Bytes of memory of a device."""
        return self.parameters + self.optimizer + self.batch + self.temporaries + self.program_bytes

    @property
    def memory(self):
        """Bytes of a device that a run can have."""
        return flops.CHIPS[self.chip].memory * (GPU_MOST if self.chip in GPUS else 1)

    @property
    def spare(self):
        """Bytes left; negative: it does not fit."""
        return self.memory - self.total

    def seconds(self):
        """dict of part → seconds of a step if that part ran alone at the chip's peak."""
        chip = flops.CHIPS[self.chip]
        moved = sum(size for _, size in self.collectives.values())
        return {"products": self.flops / chip.flops, "memory": self.bytes_moved / chip.bandwidth,
                "rows": (self.gathered_rows * chip.gather_cycles + self.scattered_rows * chip.scatter_cycles) / chip.clock,
                "collectives": moved / chip.interconnect}

    def step_seconds(self):
        """Roofline: products and memory overlap, as do collectives; rows of gathers and scatters do not."""
        parts = self.seconds()
        return max(parts["products"], parts["memory"], parts["collectives"]) + parts["rows"]

    def images_per_second(self):
        return self.batch_size / self.step_seconds()


def compile_train(config, devices, topology, name):
    """Plan of the training step of a config. Raises: ValueError where batch or mesh do not fit the devices."""
    mesh, tokenizer, model = build(config, devices)
    _, state, step = make_step(config, mesh, tokenizer, model, config.train.num_steps)
    d, t = config.data, config.train
    whole = sharding.replicated(mesh)
    batch = {key: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.batch_sharding(mesh)) for key, (shape, dtype) in batch_spec(
        t.batch_size, tuple(d.canvases[0]), d.max_tokens, d.max_boxes, d.mask_size or None,
        writes=config.loss.caption_words > 0, num_answers=model.config.num_answers).items()}
    key = jax.eval_shape(lambda: jax.random.key(0))
    key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=whole)
    kept = bytes_on_one(state.params)
    rest = bytes_on_one((state.opt_state, state.ema_params))
    return _compiled(step, (state, batch, key), config, mesh, model, devices, topology, name, "train", t.batch_size,
                     tuple(d.canvases[0]), kept, rest, bytes_on_one(batch))


def compile_inference(config, devices, topology, name):
    """Plan of the forward pass that evaluation runs, image and text encoders included, on the first of its canvases."""
    mesh, _, model = build(config, devices)
    params = abstract_params(mesh, model, config)
    e, tokens, split = config.eval, config.data.max_tokens, sharding.batch_sharding(mesh)
    b, canvas = e.batch_size, tuple(e.canvases[0])
    batch = [jax.ShapeDtypeStruct(shape, dtype, sharding=split) for shape, dtype in (
        ((b, *canvas, 3), jnp.uint8), ((b, 2), jnp.int32), ((b, tokens), jnp.int32), ((b, tokens), bool))]

    def forward(params, *batch):
        outputs = model.apply({"params": params}, *batch)
        return outputs.box_deltas, outputs.centerness, outputs.alignment_logits
    return _compiled(jax.jit(forward), (params, *batch), config, mesh, model, devices, topology, name, "inference", b, canvas,
                     bytes_on_one(params), 0, bytes_on_one(batch))


def _compiled(function, args, config, mesh, model, devices, topology, name, program, batch_size, canvas, kept, rest, fed):
    started = time.perf_counter()
    with sharding.use(mesh, config.mesh.rules):
        counted = flops.count(function, *args, platform=devices[0].platform)
        lowered = function.lower(*args)
        compiled = lowered.compile(COMPILER_OPTIONS.get(devices[0].platform))
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    try:
        text = hlo.Program(compiled.as_text())
        collectives, traffic = text.collectives(), dict(text.traffic(part_of).most_common())
    except (RuntimeError, jax.errors.JaxRuntimeError) as error:       # some programs cannot be printed
        log.warning("collectives are not counted, and bytes by XLA's own rule: %s", str(error).splitlines()[0])
        collectives, traffic = {}, {}
    # Results are written over the arguments that they replace; what is not, is extra.
    extra = max(memory.output_size_in_bytes - memory.alias_size_in_bytes, 0)
    import jaxlib
    kernels = sorted(set(re.findall(r'kernel_name = "(\w+)"', lowered.as_text())))
    return Plan(
        name, program, config.model.variant, topology, flops.chip_of(devices[0]), len(devices), dict(mesh.shape), batch_size,
        canvas, model.config.remat, kernels, kept, rest, fed, memory.temp_size_in_bytes + extra, memory.generated_code_size_in_bytes,
        counted["flops"] / len(devices), sum(traffic.values()) or cost.get("bytes accessed", 0.0), traffic,
        counted["gathered_rows"] / len(devices), counted["scattered_rows"] / len(devices), collectives, time.perf_counter() - started,
        {"jax": jax.__version__, "jaxlib": jaxlib.__version__, "date": time.strftime("%Y-%m-%d")})


_PARTS = (("image encoder", "image_encoder"), ("pyramid", "/fpn/"), ("text encoder", "text_encoder"), ("fusion", "/Fusion|/fusion_"),
          ("text layers of the tower", "BertLayer|ClipLayer|/text_layer_"), ("deformable convolutions", "DyConv|/dyconv_"),
          ("heads", "GLIPv2"), ("losses, targets, optimizer", "."))


def part_of(origin):
    """Part of the training step that an instruction of this origin belongs to, for `traffic`."""
    return next((part for part, pattern in _PARTS if re.search(pattern, origin)), "copies that the compiler adds")


def bytes_on_one(tree):
    """Bytes on one device of a tree of arrays or ShapeDtypeStructs with shardings; a key's are not counted."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def search(config, devices, topology, name):
    """The fastest batch, remat policy and mesh that fit, by the roofline.

    For every mesh and policy the step is compiled with one and two images a device; memory grows in proportion from there, and the
    largest power of two that fits is compiled to make sure.

    Returns: list of Plan that were compiled, the best first.
    """
    found, best = [], None
    for fsdp in sorted({1, len(devices)}):
        for remat in ("nothing", "dots_with_no_batch_dims_saveable"):
            @functools.cache
            def at(images, fsdp=fsdp, remat=remat):
                changed = copy.deepcopy(config)
                with changed.unlocked():
                    changed.model.overrides.remat = remat
                changed.mesh.data, changed.mesh.fsdp = len(devices) // fsdp, fsdp
                changed.train.batch_size = images * len(devices) * changed.train.accumulation_steps
                changed.eval.batch_size = len(devices)
                found.append(compile_train(changed, devices, topology, name))
                return found[-1]
            if at(1).spare < 0:
                continue
            images = 2**int(math.log2(1 + at(1).spare // max(at(2).total - at(1).total, 1)))
            while at(images).spare < 0:
                images //= 2
            if best is None or at(images).images_per_second() > best.images_per_second():
                best = at(images)
    return sorted(found, key=lambda p: (p is not best, p.spare < 0, -p.images_per_second()))


def run(config, topology, name, *, batch=0, hourly_rate=0.0, epoch_images=0, searching=False, inference=False, output=None):
    """Compiles and prints.

    Args:
      config: ConfigDict. topology: see `absent_devices`. name: the config's, for the table.
      batch: images of a step over all devices; 0: the config's, rounded up to a multiple of the devices.
      hourly_rate: price of one chip for an hour. epoch_images: images of an epoch, for its price.
      searching: look for the best batch, policy and mesh. inference: compile the forward pass of evaluation, too.
      output: file for the plans as JSON, or None.
    Returns: list of Plan.
    Raises: ValueError for devices or a batch that do not fit.
    """
    config = copy.deepcopy(config)
    check_ranges(config)
    devices = absent_devices(topology)
    if config.mesh.data * config.mesh.fsdp * config.mesh.tensor > 0:
        config.mesh.data = -1
    unit = len(devices) // max(config.mesh.tensor, 1) * config.train.accumulation_steps
    if batch % unit:
        raise ValueError(f"--batch: found {batch}, expected a multiple of {unit}, such as {-(-batch // unit) * unit}: {len(devices)} devices"
                         f"{f' / {config.mesh.tensor} (mesh.tensor)' * (config.mesh.tensor > 1)}"
                         f"{f' × {config.train.accumulation_steps} (train.accumulation_steps)' * (config.train.accumulation_steps > 1)}")
    wanted = batch or config.train.batch_size
    config.train.batch_size = -(-wanted // unit) * unit
    if config.train.batch_size > wanted:
        log.warning("the config's batch of %d was rounded up to %d, a multiple of %d", wanted, config.train.batch_size, unit)
    config.eval.batch_size = -(-config.eval.batch_size // unit) * unit
    log.info("compiling %s for %s, %d images a step: %s minutes for a full-size model", name, topology, config.train.batch_size,
             "5 to 10" if topology.startswith(tuple(GPUS)) else "15 to 30")
    plans = search(config, devices, topology, name) if searching else [compile_train(config, devices, topology, name)]
    if inference:
        plans.append(compile_inference(config, devices, topology, name))
    for plan in plans[:1] + plans[1:] * (not searching) + [p for p in plans[1:] if searching and p.program == "inference"]:
        print_plan(plan, hourly_rate, epoch_images)
    if searching:
        Console(width=140).print(_compared(plans))
    if output:
        write_whole(pathlib.Path(output), json.dumps([dataclasses.asdict(plan) for plan in plans], indent=1) + "\n")
    return plans


def _compared(plans):
    table = Table("mesh", "remat", "images a device", "GB", "images/s", title="compiled, the best first")
    for p in plans:
        table.add_row(" × ".join(f"{k} {v}" for k, v in p.mesh.items() if v > 1), p.remat or "none", f"{p.batch_size / p.devices:g}",
                      f"{p.total / 1e9:.2f}{' does not fit' * (p.spare < 0)}", f"{p.images_per_second():.0f}")
    return table


def _amount(size):
    """Bytes in words."""
    unit, name = next(((unit, name) for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if size >= unit), (1, "B"))
    return f"{size / unit:.3g} {name}"


def print_plan(p, hourly_rate=0.0, epoch_images=0):
    """Prints one plan as a table."""
    seconds, chip = p.seconds(), flops.CHIPS[p.chip]
    table = Table(title=f"{p.config}: {p.program} on {p.topology}, {p.batch_size} images of {p.canvas[0]}×{p.canvas[1]} a step, "
                        f"mesh {' × '.join(f'{k} {v}' for k, v in p.mesh.items())}, remat {p.remat or 'none'}", show_header=False)
    table.add_row("fits" if p.spare >= 0 else "DOES NOT FIT", f"{p.total / 1e9:.2f} of {p.memory / 1e9:.0f} GB a device, "
                  f"{abs(p.spare) / 1e9:.2f} GB {'left' if p.spare >= 0 else 'too much'}")
    if p.chip in GPUS and p.spare >= 0 and p.total > GPU_DEFAULT * chip.memory:
        table.add_row("", f"more than the {GPU_DEFAULT:.0%} of a GPU that JAX takes: set XLA_PYTHON_CLIENT_MEM_FRACTION={GPU_MOST}")
    table.add_row("of which", f"parameters {p.parameters / 1e9:.2f}, optimizer and averages {p.optimizer / 1e9:.2f}, "
                  f"batch {p.batch / 1e9:.3f}, activations and temporaries {p.temporaries / 1e9:.2f}, "
                  f"program {p.program_bytes / 1e9:.2f} GB")
    table.add_row("work of a device", f"{p.flops / 1e12:.2f} TFLOP, {p.bytes_moved / 1e9:.1f} GB moved, "
                  f"{p.gathered_rows / 1e6:.2f} M rows gathered, {p.scattered_rows / 1e6:.2f} M scattered")
    if p.traffic:
        table.add_row("moved by", ", ".join(f"{part} {100 * size / p.bytes_moved:.0f} %" for part, size in p.traffic.items()))
    table.add_row("kernels of our own", ", ".join(p.kernels) or "none")
    table.add_row("collectives", ", ".join(f"{kind} {number}× {_amount(size)}" for kind, (number, size) in p.collectives.items())
                  or ("none" if p.traffic else "not counted: this program cannot be printed"))
    table.add_row("at the chip's peak", ", ".join(f"{part} {1e3 * value:.1f} ms" for part, value in seconds.items()))
    table.add_row("roofline", f"{1e3 * p.step_seconds():.1f} ms a step, {p.images_per_second():.0f} images/s, "
                  f"{100 * seconds['products'] / p.step_seconds():.0f} % of the peak in products; an estimate, nothing was timed")
    if hourly_rate:
        images = epoch_images or 1e6
        hours = images / p.images_per_second() / 3600
        table.add_row(f"{images / 1e6:g} M images", f"{hours:.2f} h, {hours * p.devices * hourly_rate:.2f} at {hourly_rate:g} a chip and hour, "
                      "by this estimate")
    Console(width=140).print(table)
