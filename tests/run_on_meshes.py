"""Loss and gradients of one batch, and forms that run an image or a block at a time, on several meshes of eight fake CPU devices; prints the differences as JSON.

A program of its own, started by test_sharding.py: the number of devices is fixed when JAX starts.
"""
import functools
import json
import math
import os
import tempfile

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np

from configs import common
from glipv2_jax import sharding
from glipv2_jax.checkpoint import Checkpoints
from glipv2_jax.models.config import model_config
from glipv2_jax.models.glipv2 import GLIPv2, axis_names, init_params
from glipv2_jax.train_state import TrainState
from glipv2_jax.train_step import gradients
from tests import test_bidirectional_attention, test_deform_conv_tpu, test_window_attention
from tests.test_bidirectional_attention import errors
from tests.test_models import DEEP, MASK_HEAD, WITH_MASKS, tiny_batch

RULES = common.get_config().mesh.rules
MESHES = [(1, 1, 1), (8, 1, 1), (1, 8, 1), (4, 2, 1), (2, 2, 2)]


def state_of(params):
    return TrainState(np.int32(7), params, (), None, np.float32(0))


def through_a_checkpoint(params, shardings, workdir):
    """Parameters saved where they lie, and restored onto other shardings."""
    checkpoints = Checkpoints(workdir)
    checkpoints.save(state_of(params), {}, {})
    checkpoints.close()
    checkpoints = Checkpoints(workdir)
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), params, shardings)
    scalar = jax.ShapeDtypeStruct((), np.int32, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    restored = checkpoints.restore(TrainState(scalar, abstract, (), None, jax.ShapeDtypeStruct((), np.float32, sharding=scalar.sharding)))
    checkpoints.close()
    return restored.params


def form_errors():
    """Largest error of kernels of both attentions, and of convolutions as GPUs gather them, on four devices: results and gradients of images that divide among them, and of some that do not."""
    found = {}
    for sizes, images in (((4, 1, 1), 4), ((4, 1, 1), 3), ((2, 1, 2), 4), ((2, 2, 1), 4)):
        mesh = sharding.make_mesh(*sizes, devices=jax.devices()[:4])
        for name, given, run, form, plain in (
                ("fusion", test_bidirectional_attention.arrays(images), lambda x, form: test_bidirectional_attention.run(x, form, 0.3),
                 "kernel", "plain"),
                ("windows", test_window_attention.arrays(images=images, grid=(3, 3)),
                 lambda x, form: test_window_attention.run(x, form, 2, grid=(3, 3)), "kernel", "plain"),
                ("convolutions", test_deform_conv_tpu.branch(test_deform_conv_tpu.layer(images=images)), test_deform_conv_tpu.run, "gpu", "xla")):
            with sharding.use(mesh, RULES):
                split = run(given, form)
            found[f"{name}, {images} images on {sizes}"] = max(errors(split, run(given, plain)))
    return found


def main():
    jax.config.update("jax_default_matmul_precision", "highest")
    model, batch = GLIPv2(model_config("glipv2_t", DEEP | {"mask_head": MASK_HEAD, "scan_layers": True})), tiny_batch(8, mask_size=8)
    params = jax.device_get(jax.jit(functools.partial(init_params, model))(jax.random.key(0)))
    # Fresh parameters stand on a kink: with one channel in each group, a normalised map has mean zero, and the ReLU of
    # the scale attention answers rounding noise. A step away from there every gradient is a smooth function.
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: x + 0.05 * rng.standard_normal(x.shape).astype(x.dtype), params)
    results, report, before = {}, {}, params
    for sizes in MESHES:
        mesh = sharding.make_mesh(*sizes, devices=jax.devices()[:math.prod(sizes)])
        shardings = sharding.parameter_shardings(params, axis_names(model), mesh, RULES, min_size=64)
        # As a run that goes on where another mesh has stopped.
        with tempfile.TemporaryDirectory() as workdir:
            placed = through_a_checkpoint(before, shardings, workdir)
        same = jax.tree.all(jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), jax.device_get(placed), params))
        placed_as_asked = jax.tree.all(jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), placed, shardings))
        before = placed
        with sharding.use(mesh, RULES):
            step = jax.jit(lambda p, b: gradients(model, WITH_MASKS, p, b, jax.random.key(1)),
                           out_shardings=(None, shardings))
            metrics, grads = step(placed, sharding.global_batch(batch, mesh))
        split = sum(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(grads))
        results[sizes] = jax.device_get((metrics, grads))
        (one, one_grads), (here, here_grads) = results[1, 1, 1], results[sizes]
        pairs = zip(jax.tree.leaves(one_grads), jax.tree.leaves(here_grads))
        report["x".join(map(str, sizes))] = {
            "loss": max(abs(float(one[k]) - float(here[k])) / max(abs(float(one[k])), 1e-6) for k in one),
            "gradient": float(np.sqrt(sum(((a - b)**2).sum() for a, b in pairs)
                                      / sum((a**2).sum() for a in jax.tree.leaves(one_grads)))),
            "restored": same and placed_as_asked, "split_arrays": split, "loss_inter": float(here["loss_inter"])}
    print(json.dumps({"meshes": report, "forms": form_errors()}))


if __name__ == "__main__":
    main()
