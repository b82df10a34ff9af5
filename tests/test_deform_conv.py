"""Modulated deformable convolution against the reference's numbers, forward and gradient; the cross-level re-read."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glipv2_jax.ops.deform_conv import Conv, deform_conv, deform_convs, reread
from tests.conftest import find_reference_dir

PATH = find_reference_dir() / "deform_conv.npz"


def _names():
    with np.load(PATH) as file:
        return sorted({key.split(".")[0] for key in file.files})


def _error(ours, theirs):
    return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)


@pytest.mark.parametrize("form", ["xla", "gpu", "kernel"])
@pytest.mark.parametrize("name", _names())
def test_reference_deform_conv(name, form):
    with np.load(PATH) as file:
        case = {k.removeprefix(name + "."): file[k] for k in file.files if k.startswith(name + ".")}
    nhwc = {k: case[k].transpose(0, 2, 3, 1) for k in ("x", "offset", "mask", "out", "cotangent")}
    kernel = case["weight"].transpose(2, 3, 1, 0)
    size, stride = nhwc["out"].shape[1:3], int(case["stride"])

    def run(x, offset, mask, kernel, bias):
        if offset.shape[1:3] != size:
            offset, mask = reread(offset, size), reread(mask, size)
        return deform_conv(x, offset, mask, kernel, bias, stride, form)
    arguments = nhwc["x"], nhwc["offset"], nhwc["mask"], kernel, case["bias"]
    out, pullback = jax.vjp(jax.jit(run), *arguments)
    assert _error(out, nhwc["out"]) < 1e-5
    names = "grad_x", "grad_offset", "grad_mask", "grad_weight", "grad_bias"
    for key, grad in zip(names, pullback(nhwc["cotangent"])):
        grad = np.asarray(grad)
        if key == "grad_weight":
            grad = grad.transpose(3, 2, 0, 1)
        elif grad.ndim == 4:
            grad = grad.transpose(0, 3, 1, 2)
        assert _error(grad, case[key]) < 1e-5, key


def test_several_maps_and_kernels_equal_single_convolutions():
    rng = np.random.default_rng(0)
    maps = [rng.normal(size=(2, 9, 7, 4)), rng.normal(size=(2, 5, 4, 4))]
    maps = [jnp.asarray(x, jnp.float32) for x in maps]
    kernels = jnp.asarray(rng.normal(size=(2, 9, 4, 3)), jnp.float32)
    offsets = [jnp.asarray(rng.normal(size=(*x.shape[:3], 18)) * 2, jnp.float32) for x in maps]
    masks = [jnp.asarray(rng.random((*x.shape[:3], 9)), jnp.float32) for x in maps]
    outs = deform_convs(maps, [Conv(0, 1, 0), Conv(1, 1, 1)], offsets, masks, kernels)
    for i, out in enumerate(outs):
        single = deform_conv(maps[i], offsets[i], masks[i], kernels[i].reshape(3, 3, 4, 3), jnp.zeros(3))
        np.testing.assert_allclose(out, single, atol=1e-5)


def test_unknown_forms_and_orders_are_refused():
    with pytest.raises(ValueError, match="found 'windows', expected one of"):
        deform_convs([], [], [], [], jnp.zeros((1, 9, 4, 3)), "windows")
    with pytest.raises(ValueError, match=r"found kernels \[1, 0\], expected them in ascending order"):
        deform_convs([], [Conv(0, 1, 1), Conv(0, 1, 0)], [], [], jnp.zeros((2, 9, 4, 3)))
