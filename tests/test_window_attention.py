"""Both forms of window attention against an attention of the whole map with a mask: forward, gradients, shifts, meshes, TPUs."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from glipv2_jax import flops, hlo, sharding
from glipv2_jax.absent_devices import absent_devices
from glipv2_jax.models.swin import window_partition, window_reverse
from glipv2_jax.ops.window_attention import window_attention
from tests.test_bidirectional_attention import errors

GRID = (3, 4)              # windows: the last block of the kernel is not full


def arrays(heads=3, width=32, window=4, images=2, grid=GRID):
    """qkv and bias."""
    rng = np.random.default_rng(0)
    cells = window**2
    return (jnp.asarray(rng.normal(size=(images, grid[0] * grid[1], cells, 3 * heads * width)), jnp.float32),
            jnp.asarray(rng.normal(size=(heads, cells, cells)), jnp.float32))


def plain(qkv, bias, shift, grid):
    """Every cell of the rolled map reads those that are in its window, and were neighbours of it before the roll."""
    window = int(qkv.shape[2]**0.5)
    height, width = (n * window for n in grid)
    row, column = (x.reshape(-1) for x in np.indices((height, width)))

    def side(place, size):
        """Part of a map's side that a cell belongs to: what the roll brought to the end lay at the begin."""
        return place // window + (size if shift else 0) * (place >= size - shift)
    part = np.stack([side(row, height), side(column, width)])
    in_window, together = ((a[:, :, None] == a[:, None]).all(0) for a in (np.stack([row // window, column // window]), part))
    inside = row % window * window + column % window
    cells = window_reverse(qkv, window, height, width).reshape(len(qkv), height * width, 3, len(bias), -1)
    q, k, v = (cells[:, :, i] for i in range(3))
    scores = jnp.einsum("bqnd,bknd->bnqk", q, k) / q.shape[-1]**0.5 + bias[:, inside[:, None], inside]
    scores = jnp.where(in_window, scores - 100.0 * ~together, -jnp.inf)
    out = jnp.einsum("bnqk,bknd->bqnd", jax.nn.softmax(scores), v)
    return window_partition(out.reshape(len(qkv), height, width, -1), window)


@functools.partial(jax.jit, static_argnames=("form", "shift", "dtype", "grid"))
def run(arrays, form, shift=0, dtype=jnp.float32, grid=GRID):
    """Results and gradients of both arrays."""
    def forward(qkv, bias):
        if form == "plain":
            return plain(qkv.astype(dtype), bias, shift, grid)
        return window_attention(qkv.astype(dtype), bias, grid=grid, shift=shift, form=form)
    out, pullback = jax.vjp(forward, *arrays)
    return out, pullback(jnp.sin(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape).astype(out.dtype))


@pytest.mark.parametrize("grid", [GRID, (1, 1), (5, 7)])
@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.parametrize("form", ["xla", "kernel"])
def test_each_form_equals_attention_of_the_whole_map(form, shift, grid):
    given = arrays(grid=grid)
    assert max(errors(run(given, form, shift, grid=grid), run(given, "plain", shift, grid=grid))) < 2e-6


@pytest.mark.parametrize("heads, width, window", [(3, 32, 7), (6, 32, 7), (8, 32, 4), (11, 32, 2), (2, 16, 4), (2, 128, 4), (6, 32, 12)])
def test_the_kernel_takes_every_width_of_swin(heads, width, window):
    """On a TPU (`--accelerator`) this one is not interpreted. A group of 128 lanes may be full, or padded."""
    given = arrays(heads, width, window)
    assert max(errors(run(given, "kernel", window // 2), run(given, "xla", window // 2))) < 2e-6


def test_bfloat16_rounds_alike_in_both_forms():
    given = arrays()
    exact = run(given, "xla", 2)
    kernel, plain = (errors(run(given, form, 2, jnp.bfloat16), exact) for form in ("kernel", "xla"))
    assert all(a < 1.5 * b + 1e-4 for a, b in zip(kernel, plain)) and max(plain) < 0.02, (kernel, plain)


def test_the_form_is_chosen_by_platform():
    def lowered(heads, width, platform, form="auto"):
        shapes = jax.eval_shape(lambda: arrays(heads, width))
        return "tpu_custom_call" in jax.jit(functools.partial(run, form=form)).trace(shapes).lower(lowering_platforms=(platform,)).as_text()
    assert lowered(3, 32, "tpu") and not lowered(3, 32, "cpu")
    assert not lowered(3, 48, "tpu") and not lowered(3, 32, "tpu", "xla")


def test_wrong_arguments_are_named():
    qkv, bias = arrays()
    with pytest.raises(ValueError, match="window_attention: found 'scan', expected one of"):
        window_attention(qkv, bias, grid=GRID, form="scan")
    with pytest.raises(ValueError, match="window_attention: found 12 windows, expected 3 × 5"):
        window_attention(qkv, bias, grid=(3, 5))


def test_work_of_the_kernel_is_counted():
    """A head's products are as wide as the lanes that it shares."""
    given = jax.eval_shape(lambda: arrays(heads=4, grid=(2, 2)))
    count = functools.partial(flops.count, functools.partial(run, form="auto", grid=(2, 2)), given)
    product = 2 * 2 * 4 * 4 * 16**2 * 32                                  # images, windows, heads, cells, width
    assert count(platform="cpu")["flops"] == 8 * product                  # two, asked for again beside the gradients of four more
    assert count(platform="tpu")["flops"] == 7 * 4 * product              # without what weighs values, which gradients do not need again


@pytest.mark.slow
@pytest.mark.tpu_compiler
@pytest.mark.parametrize("topology", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
@pytest.mark.parametrize("side, heads, window, dtype", [
    ((200, 336), 3, 7, jnp.bfloat16), ((50, 84), 12, 7, jnp.bfloat16), ((50, 84), 12, 7, jnp.float32), ((200, 336), 6, 12, jnp.bfloat16),
    ((25, 42), 48, 12, jnp.bfloat16), ((200, 336), 11, 7, jnp.bfloat16), ((25, 42), 88, 7, jnp.bfloat16)])
def test_forward_and_gradients_compile_for_tpus(compiler, topology, side, heads, window, dtype):
    """Maps of Swin-T, Swin-L and CoSwin-H, an image of 800 × 1344 on each of four chips: nothing moves between chips."""
    devices, grid = absent_devices(topology), tuple(-(-n // window) for n in side)
    mesh = sharding.make_mesh(devices=devices)
    qkv, bias = jax.eval_shape(lambda: arrays(heads, 32, window, len(devices), grid))
    args = (jax.ShapeDtypeStruct(qkv.shape, dtype, sharding=sharding.batch_sharding(mesh)),
            jax.ShapeDtypeStruct(bias.shape, bias.dtype, sharding=sharding.replicated(mesh)))

    def loss(qkv, bias):
        return (window_attention(qkv, bias, grid=grid, shift=window // 2).astype(jnp.float32)**2).sum()
    with sharding.use(mesh, common.get_config().mesh.rules):
        lowered = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*args)
        compiled = lowered.compile()
    assert lowered.as_text().count("tpu_custom_call") == 2
    if topology.startswith("v5e"):                  # programs for the others cannot always be printed
        assert set(hlo.Program(compiled.as_text()).collectives()) <= {"all-reduce"}
