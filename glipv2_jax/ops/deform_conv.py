"""Modulated deformable 3×3 convolution of several feature maps with several kernels at once.

Three forms compute the same: gathers (`deform_conv_gather`), on GPUs of all taps at once, and on TPUs a kernel that reads windows
(`deform_conv_tpu`), by the compiler's figures faster there with its gradients, but blind to samples far from their place; `forms`
decides between them.
Source: GLIP csrc/cuda/deform_conv_kernel_cuda.cu.
"""
import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np

from glipv2_jax.ops import deform_conv_tpu
from glipv2_jax.ops.deform_conv_gather import TAPS, gather_conv, gather_gradients
from glipv2_jax.ops.deform_conv_tpu import window_conv, window_gradients
from glipv2_jax.ops.forms import check_form, in_form
from glipv2_jax.sharding import map_images

# One convolution: index of its map, its stride (padding is 1), index of its kernel.
Conv = collections.namedtuple("Conv", "source stride kernel")
# Where its taps read, per image: the pixel up and left of a sample (top and left, int32, and valid, bool: [9, Ho, Wo]), and float32
# weights [9, 4, Ho, Wo] of that pixel, the one right of it, and the two below; zero where the sample is not valid.
Points = collections.namedtuple("Points", "top left valid weights")


def deform_convs(maps, convs, offsets, masks, kernels, form="auto"):
    """Modulated deformable 3×3 convolutions with padding 1, without biases.

    Args:
      maps: list of [B, H, W, C]. convs: sequence of Conv, in the order of their kernels.
      offsets: for each, [B, Ho, Wo, 18]: (dy, dx) of tap 0, of tap 1, …, in cells of its map.
      masks: for each, [B, Ho, Wo, 9] modulation.
      kernels: [S, 9, C, Co].
      form: "xla", gathers, tap by tap; "gpu", gathers of all taps; "kernel", windows, interpreted where there is no TPU or it could not;
        "auto": "kernel" when compiled for TPUs and the channels are multiples of 128, "gpu" for GPUs, else "xla". With "kernel" an image
        that has a sample out of its window takes gathers.
    Returns: for each, [B, Ho, Wo, Co] float32. A sample counts only where −1 < y < H and −1 < x < W; pixels outside are zero.
    Raises: ValueError for an unknown form, and for convolutions in another order.
    """
    check_form("deform_conv", form)
    convs = tuple(convs)
    if list(convs) != sorted(convs, key=lambda conv: conv.kernel):
        raise ValueError(f"deform_conv: found kernels {[conv.kernel for conv in convs]}, expected them in ascending order")
    points = [_points(offset, mask, maps[conv.source].shape[1:3], conv.stride)
              for conv, offset, mask in zip(convs, offsets, masks)]
    return _convs((convs, form), list(maps), points, kernels)


def deform_conv(x, offset, mask, kernel, bias, stride=1, form="auto"):
    """One modulated deformable 3×3 convolution, padding 1.

    Args:
      x: [B, H, W, C]. offset: [B, Ho, Wo, 18]. mask: [B, Ho, Wo, 9]. kernel: [3, 3, C, Co]. bias: [Co].
      form: see `deform_convs`.
    Returns: [B, Ho, Wo, Co] float32.
    """
    out, = deform_convs([x], [Conv(0, stride, 0)], [offset], [mask], kernel.reshape(1, TAPS, *kernel.shape[2:]), form)
    return out + bias


def reread(maps, size):
    """Offsets of a finer level as the reference's kernel reads them for a coarser one.

    The kernel takes the flat channel-first buffer and indexes it with the *output's* size: neither a crop nor a
    resize, but released weights were trained with it. Source: GLIP issues 52 and 62.

    Args:
      maps: [B, H, W, K]. size: (h, w) of the output, h·w ≤ H·W.
    Returns: [B, h, w, K].
    """
    b, _, _, k = maps.shape
    flat = maps.transpose(0, 3, 1, 2).reshape(b, -1)[:, :k * size[0] * size[1]]
    return flat.reshape(b, k, *size).transpose(0, 2, 3, 1)


def _points(offset, mask, map_size, stride):
    """Points of a batch, with a leading axis B, of a map of size (H, W)."""
    height, width = map_size
    b, ho, wo, _ = mask.shape
    offset, mask = offset.astype(jnp.float32), mask.astype(jnp.float32)
    offset = offset.reshape(b, ho, wo, TAPS, 2).transpose(0, 3, 1, 2, 4)        # [B, 9, Ho, Wo, 2]
    tap_y, tap_x = np.divmod(np.arange(TAPS), 3)
    base_y = (np.arange(ho) * stride - 1)[None, :, None] + tap_y[:, None, None]
    base_x = (np.arange(wo) * stride - 1)[None, None, :] + tap_x[:, None, None]
    y, x = base_y.astype(np.float32) + offset[..., 0], base_x.astype(np.float32) + offset[..., 1]
    valid = (y > -1) & (y < height) & (x > -1) & (x < width)
    # floor's derivative is zero, so at integer coordinates the gradient is the one-sided one of the reference
    top, left = jnp.floor(y), jnp.floor(x)
    fy, fx = y - top, x - left
    weights = jnp.stack([(1 - fy) * (1 - fx), (1 - fy) * fx, fy * (1 - fx), fy * fx], axis=2)
    weights = weights * jnp.where(valid, mask.transpose(0, 3, 1, 2), 0.0)[:, :, None]
    return Points(top.astype(jnp.int32), left.astype(jnp.int32), valid, weights)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _convs(static, maps, points, kernels):
    convs, form = static
    return _for_images(form, functools.partial(gather_conv, convs), functools.partial(window_conv, convs), convs, maps, points, kernels)


def _convs_forward(static, maps, points, kernels):
    return _convs(static, maps, points, kernels), (maps, points, kernels)


def _convs_backward(static, residuals, grads):
    convs, form = static
    maps, points, kernels = residuals
    grad_maps, grad_weights, grad_kernels = _for_images(
        form, functools.partial(gather_gradients, convs), functools.partial(window_gradients, convs), convs, maps, points, kernels, grads)
    return ([g.astype(x.dtype) for g, x in zip(grad_maps, maps)],
            [Points(None, None, None, g.astype(p.weights.dtype)) for g, p in zip(grad_weights, points)],
            grad_kernels.sum(0).astype(kernels.dtype))


_convs.defvjp(_convs_forward, _convs_backward)


def _for_images(form, gather, window, convs, maps, points, kernels, *grads):
    """Runs `gather` or `window`, functions of one image's maps, points and gradients and of the kernels, for every image of a batch."""
    def gathered(maps, points, kernels, *grads):
        # vmap, not a batch folded into the rows: the partitioner then keeps every image on its own device
        return jax.vmap(gather, in_axes=(0, 0, None, *[0] * len(grads)))(maps, points, kernels, *grads)

    def all_taps(maps, points, kernels, *grads):
        """One image after the other, for the sake of memory; tap by tap, the sums would travel nine times."""
        def local(maps, points, *rest):
            *grads, kernels = rest
            return jax.lax.map(lambda image: gather(*image[:2], kernels, *image[2:], together=TAPS), (maps, points, *grads))
        return map_images(local, maps, points, *grads, whole=(kernels,))

    def windowed(maps, points, kernels, *grads, interpret=False):
        def local(maps, points, *rest):
            *grads, kernels = rest

            def one(image):
                maps, points, *grads = image
                return jax.lax.cond(deform_conv_tpu.all_fit(convs, points), functools.partial(window, interpret=interpret), gather,
                                    maps, points, kernels, *grads)
            return jax.lax.map(one, (maps, points, *grads))
        return map_images(local, maps, points, *grads, whole=(kernels,))

    supported = deform_conv_tpu.supported(kernels.shape[2:], {conv.stride for conv in convs})
    return in_form(form, supported, gathered, windowed, maps, points, kernels, *grads, on_gpus=all_taps)
