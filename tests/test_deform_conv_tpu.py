"""The window form against the gather form, forward and gradients: interpreted here, compiled for TPUs that are not there."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from glipv2_jax import flops, hlo, sharding
from glipv2_jax.absent_devices import absent_devices
from glipv2_jax.ops import deform_conv as ops
from glipv2_jax.ops.deform_conv import Conv, deform_convs, reread
from glipv2_jax.ops.deform_conv_gather import gather_conv
from glipv2_jax.ops.deform_conv_tpu import REACH, all_fit, window_conv

# A layer in small: a map and the coarser one, the three kinds of branches; no size is a multiple of the tile's.
SIZES = [(19, 37), (10, 19)]
CONVS = (Conv(0, 1, 0), Conv(1, 1, 0), Conv(0, 2, 1), Conv(1, 1, 2))


def layer(channels=8, reach=REACH, images=2):
    """Maps, offsets, masks, kernels; offsets of one branch are reread from the finer level's, those of another are whole numbers."""
    rng = np.random.default_rng(0)
    uniform = functools.partial(rng.uniform, -reach, reach)
    offsets = [uniform((images, *SIZES[0], 18)), np.round(uniform((images, *SIZES[1], 18))), uniform((images, *SIZES[1], 18))]
    offsets[0][:, ::3] = 0
    masks = [rng.random((*x.shape[:3], 9)) for x in offsets]
    offsets.append(reread(offsets[0], SIZES[1]))
    masks.append(reread(masks[0], SIZES[1]))
    arrays = ([rng.normal(size=(images, *size, channels)) for size in SIZES], offsets, masks, rng.normal(size=(3, 9, channels, channels)) / 9)
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), arrays)


@functools.partial(jax.jit, static_argnames=("form", "dtype"))
def run(arrays, form, dtype=jnp.float32):
    """Outputs and gradients of maps, offsets, masks, kernels, of as many branches as there are offsets."""
    def forward(maps, offsets, masks, kernels):
        return deform_convs([x.astype(dtype) for x in maps], CONVS[:len(offsets)], offsets, masks, kernels.astype(dtype), form)
    outs, pullback = jax.vjp(forward, *arrays)
    return outs, pullback([jnp.sin(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape) for out in outs])


def branch(arrays):
    """The first branch alone."""
    maps, offsets, masks, kernels = arrays
    return maps[:1], offsets[:1], masks[:1], kernels[:1]


def largest_error(found, expected):
    """Largest ‖found − expected‖ / ‖expected‖ of all arrays."""
    return max(float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected)))


def fits(arrays):
    maps, offsets, masks, _ = arrays
    points = [ops._points(o, m, maps[c.source].shape[1:3], c.stride) for c, o, m in zip(CONVS, offsets, masks)]
    return [bool(all_fit(CONVS, jax.tree.map(lambda x, i=i: x[i], points))) for i in range(len(maps[0]))]


def test_window_form_equals_gather_form():
    arrays = layer()
    assert fits(arrays) == [True, True]
    assert largest_error(run(arrays, "kernel"), run(arrays, "xla")) < 2e-6        # measured: 3e-7


@pytest.mark.skipif(jax.default_backend() != "tpu", reason="elsewhere the kernel is interpreted, which the test above does in small")
def test_window_form_equals_gather_form_in_sizes_that_a_tpu_takes():
    arrays = layer(channels=128)
    assert largest_error(run(arrays, "kernel"), run(arrays, "xla")) < 1e-5


def test_gathers_of_all_taps_equal_gathers_tap_by_tap():
    arrays = layer()
    exact = run(arrays, "xla")
    assert largest_error(run(arrays, "gpu"), exact) < 2e-6
    maps, convs = [x[0] for x in arrays[0]], CONVS
    points = [jax.tree.map(lambda x: x[0], ops._points(offset, mask, maps[conv.source].shape[:2], conv.stride))
              for conv, offset, mask in zip(convs, *arrays[1:3])]
    assert largest_error(gather_conv(convs, maps, points, arrays[3], together=3), [out[0] for out in exact[0]]) < 2e-6
    assert largest_error(run(arrays, "gpu", jnp.bfloat16), exact) < 1.2 * largest_error(run(arrays, "xla", jnp.bfloat16), exact) < 1e-2


@pytest.mark.slow
def test_window_form_in_bfloat16_rounds_little_more_than_the_gather_form():
    arrays = branch(layer())
    exact = run(arrays, "xla")
    window, gather = (largest_error(run(arrays, form, jnp.bfloat16), exact) for form in ("kernel", "xla"))
    assert window < 1e-2 and window < 2 * gather


def test_an_image_with_far_samples_takes_the_gather_form():
    maps, offsets, masks, kernels = layer()
    offsets[0] = offsets[0].at[1, 16, 18, :2].set(-9.0)
    arrays = maps, offsets, masks, kernels
    assert fits(arrays) == [True, False]
    expected = run(arrays, "xla")
    assert largest_error(run(arrays, "kernel"), expected) < 2e-6
    # without the other form that sample would be lost
    points = ops._points(offsets[0], masks[0], SIZES[0], 1)
    lost, = window_conv(CONVS[:1], [maps[0][1]], [jax.tree.map(lambda x: x[1], points)], kernels, interpret=True)
    assert largest_error(lost, expected[0][0][1]) > 1e-3


def test_far_samples_outside_of_the_map_do_not_matter():
    maps, offsets, masks, kernels = layer()
    offsets[0] = offsets[0].at[:, 0, 0, :2].set(-30.0)
    assert fits((maps, offsets, masks, kernels)) == [True, True]


@pytest.mark.slow
def test_the_window_form_runs_under_a_mesh():
    arrays = branch(layer())
    with sharding.use(sharding.make_mesh(devices=jax.devices()[:1]), common.get_config().mesh.rules):
        found = run(arrays, "kernel")
    assert largest_error(found, run(arrays, "xla")) < 2e-6


def test_the_form_is_chosen_by_platform():
    def lowered(channels, platform, form="auto"):
        """Whether a kernel of our own, and products of all taps."""
        traced = jax.jit(functools.partial(run, form=form, dtype=jnp.bfloat16)).trace(jax.eval_shape(lambda: layer(channels)))
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        return "tpu_custom_call" in text, f"x{9 * channels}xbf16" in text
    assert lowered(128, "tpu")[0] and lowered(128, "cpu") == lowered(8, "tpu") == lowered(128, "tpu", "xla") == (False, False)
    assert lowered(128, "cuda") == lowered(8, "cuda") == (False, True) and lowered(128, "cuda", "xla") == (False, False)


def test_work_is_counted_for_the_platform():
    arrays = jax.eval_shape(lambda: branch(layer(128, images=1)))
    count = functools.partial(flops.count, lambda maps, *args: deform_convs(maps, CONVS[:1], *args), *arrays)
    positions, products = 19 * 37, 2 * 9 * 128 * 128
    cpu, tpu = count(platform="cpu"), count(platform="tpu")
    assert count(platform="gpu") == cpu
    assert cpu["flops"] == positions * products and cpu["gathered_rows"] == positions * 9
    tiles = 3 * 3 * 128
    assert tpu["flops"] == tiles * (products + 2 * 9 * 24 * 32 * 128) and tpu["gathered_rows"] == 0


@pytest.mark.slow
@pytest.mark.tpu_compiler
@pytest.mark.parametrize("topology", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_forward_and_gradients_compile_for_tpus(compiler, topology):
    """P3 of an image of 800 × 1344 on each of four chips: nothing moves between them but gradients of the kernels."""

    def loss(x, offset, mask, kernels):
        out, = deform_convs([x], [Conv(0, 1, 0)], [offset], [mask], kernels)
        return (out**2).sum()
    devices = absent_devices(topology)
    mesh = sharding.make_mesh(devices=devices)
    split = sharding.batch_sharding(mesh)
    args = [jax.ShapeDtypeStruct((len(devices), 100, 168, channels), dtype, sharding=split)
            for channels, dtype in ((256, jnp.bfloat16), (18, jnp.float32), (9, jnp.float32))]
    args.append(jax.ShapeDtypeStruct((1, 9, 256, 256), jnp.bfloat16, sharding=sharding.replicated(mesh)))
    with sharding.use(mesh, common.get_config().mesh.rules):
        lowered = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3))).lower(*args)
        compiled = lowered.compile()
    assert lowered.as_text().count("tpu_custom_call") >= 2
    assert compiled.memory_analysis().temp_size_in_bytes < 400e6
    if topology.startswith("v5e"):                  # programs for the others cannot always be printed
        assert set(hlo.Program(compiled.as_text()).collectives()) == {"all-reduce"}
