"""What compiling a training step takes, part by part, with equal layers in a loop and one by one.

    python -m benchmarks.compile_parts --variant=glipv2_t --topology=v5e:2x2 --forms=loop

Each part of the model is compiled by itself, forward and gradients, for the devices of the topology; with `--whole` the step, too, which
has losses, targets and optimizer besides. Seconds of CPU time, as the compiler uses several threads and the machine may have other work.
"""
import argparse
import copy
import json
import pathlib
import time

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from configs import pretrain
from glipv2_jax import sharding
from glipv2_jax.absent_devices import absent_devices
from glipv2_jax.build import abstract_params, build
from glipv2_jax.plan import compile_train

FORMS = {"loop": True, "unrolled": False}             # → config.model.overrides.scan_layers


def parts_of(model, config, mesh):
    """dict of name → (function of parameters and arrays, those arrays)."""
    c, t, split = model.config, config.data.max_tokens, sharding.batch_sharding(mesh)

    def array(*shape, dtype=model.dtype):
        return jax.ShapeDtypeStruct((config.train.batch_size, *shape), dtype, sharding=split)
    height, width = config.data.canvases[0]
    sides = [(-(-height // stride), -(-width // stride)) for stride in (8, 16, 32, 64, 128)]
    levels = [array(*side, c.channels) for side in sides]
    words, mask = array(t, c.text_encoder.width), array(t, dtype=bool)

    def of(method):
        def loss(params, *args):
            outs = model.apply({"params": params}, *args, train=True, rngs={"dropout": jax.random.key(0)}, method=method)
            return sum((out.astype(jnp.float32)**2).sum() for out in jax.tree.leaves(outs))
        return loss
    return {"image encoder, pyramid": (of("encode_image"), (array(height, width, 3, dtype=jnp.uint8), array(2, dtype=jnp.int32))),
            "text encoder": (of("encode_text"), (array(t, dtype=jnp.int32), mask)),
            "fusion, convolutions, heads": (of("predict"), (levels, words, mask))}


def compile_part(function, args, params):
    """(seconds of CPU time, GB of temporaries)."""
    floats = tuple(i for i, arg in enumerate((params, *args)) if jnp.issubdtype(jax.tree.leaves(arg)[0].dtype, jnp.floating))
    started = time.process_time()
    compiled = jax.jit(jax.grad(function, argnums=floats)).lower(params, *args).compile()
    return time.process_time() - started, compiled.memory_analysis().temp_size_in_bytes / 1e9


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--variant", default="glipv2_t", help="named model, with the recipe of pre-training")
    parser.add_argument("--topology", default="v5e:2x2")
    parser.add_argument("--images", type=int, default=4, help="of a device")
    parser.add_argument("--forms", default=",".join(FORMS), help=f"of {', '.join(FORMS)}; default: both")
    parser.add_argument("--whole", action="store_true", help="the whole step, too: a quarter of an hour each")
    parser.add_argument("--json", type=pathlib.Path, help="file for the numbers")
    args = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)
    base, devices = pretrain.get_config(args.variant, num_steps=330_000), absent_devices(args.topology)
    base.train.batch_size = base.eval.batch_size = args.images * len(devices)
    results = {}
    forms = args.forms.split(",")
    if set(forms) - set(FORMS):
        parser.error(f"--forms: found {args.forms!r}, expected some of {', '.join(FORMS)}")
    for form in forms:
        config = copy.deepcopy(base)
        with config.unlocked():
            config.model.overrides.scan_layers = FORMS[form]
        mesh, _, model = build(config, devices)
        params = abstract_params(mesh, model, config)
        with sharding.use(mesh, config.mesh.rules):
            for part, (function, arrays) in parts_of(model, config, mesh).items():
                results.setdefault(part, {})[form] = compile_part(function, arrays, params)
                print(part, form, *(f"{value:.1f}" for value in results[part][form]), flush=True)
        if args.whole:
            started = time.process_time()
            plan = compile_train(config, devices, args.topology, args.variant)
            results.setdefault("whole step", {})[form] = time.process_time() - started, plan.temporaries / 1e9
    table = Table("part", *(f"{form}, {what}" for form in forms for what in ("CPU s", "GB of temporaries")),
                  title=f"{args.variant} for {args.topology}, {args.images} images a device")
    for part, of_forms in results.items():
        table.add_row(part, *(f"{value:.1f}" for form in forms for value in of_forms[form]))
    Console(width=140).print(f"jax {jax.__version__}, {time.strftime('%Y-%m-%d')}", table)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
