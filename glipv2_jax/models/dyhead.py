"""DyConv: the visual layer of the head. Source: GLIP rpn/vldyhead.py (DyConv), layers/dyrelu.py."""
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from glipv2_jax.models.layers import TORCH_DEFAULT, Conv, Dense, GroupNorm, named, torch_bias
from glipv2_jax.ops.deform_conv import TAPS, deform_convs, reread
from glipv2_jax.ops.deform_conv import Conv as DeformConv
from glipv2_jax.sharding import gathered

GROUPS = 16


class DyConv(nn.Module):
    """Deformable convolutions within and across levels, scale attention, DyReLU. List of [B, H, W, C] → the same.

    For level i three branches are averaged: its own map, the finer one (stride 2) and the coarser one (upsampled).
    All three use the offsets and modulation computed at level i.
    """
    channels: int
    dtype: jnp.dtype = jnp.float32
    kernels: str = "auto"

    @nn.compact
    def __call__(self, levels):
        num = len(levels)
        sizes = [x.shape[1:3] for x in levels]
        offset_conv = Conv(3 * TAPS, (3, 3), padding=((1, 1), (1, 1)), dtype=self.dtype, names=(None, None, "embed", None),
                           kernel_init=TORCH_DEFAULT, bias_init=torch_bias(9 * self.channels), name="offset")
        offset_mask = [offset_conv(x).astype(jnp.float32) for x in levels]
        offsets = [y[..., :2 * TAPS] for y in offset_mask]
        masks = [jax.nn.sigmoid(y[..., 2 * TAPS:]) for y in offset_mask]

        # (target level, source level, stride) of every convolution, grouped by kernel
        branches = {"same": [(i, i, 1) for i in range(num)],
                    "finer": [(i, i - 1, 2) for i in range(1, num)],
                    "coarser": [(i, i + 1, 1) for i in range(num - 1)]}
        convs, conv_offsets, conv_masks = [], [], []
        for k, group in enumerate(branches.values()):
            for target, source, stride in group:
                offset, mask = offsets[target], masks[target]
                if source > target:
                    offset, mask = reread(offset, sizes[source]), reread(mask, sizes[source])
                convs.append(DeformConv(source, stride, k))
                conv_offsets.append(offset)
                conv_masks.append(mask)

        axes = (None, None, "mlp", "embed")
        weights = [self.param(f"{name}_kernel", named(TORCH_DEFAULT, axes), (3, 3, self.channels, self.channels))
                   for name in branches]
        weights = jnp.stack([gathered(weight.astype(self.dtype), axes) for weight in weights])
        weights = weights.reshape(len(branches), TAPS, self.channels, self.channels)
        outs = iter(deform_convs(levels, convs, conv_offsets, conv_masks, weights, form=self.kernels))

        merged = [[] for _ in levels]
        for name, group in branches.items():
            bias = self.param(f"{name}_bias", named(nn.initializers.zeros, ("embed",)), (self.channels,))
            norm = GroupNorm(GROUPS, dtype=self.dtype, name=f"{name}_norm")
            for branch in group:
                y = norm((next(outs) + bias).astype(self.dtype))
                merged[branch[0]].append(upsample_aligned(y, sizes[branch[0]]) if name == "coarser" else y)
        scale = Dense(1, dtype=self.dtype, kernel_init=nn.initializers.normal(0.01), names=("embed", None),
                      name="scale_attention")
        relu = DyReLU(self.channels, self.dtype, name="relu")
        return [relu(self._average(scale, maps)) for maps in merged]

    def _average(self, scale, maps):
        """Mean of the branches, each weighted by its own attention in [0.5, 1]."""
        total = sum(jax.nn.hard_sigmoid(nn.relu(scale(y.mean((1, 2)))))[:, None, None] * y for y in maps)
        return total / len(maps)


class DyReLU(nn.Module):
    """max(a₁y + b₁, a₂y + b₂) with coefficients from the map's mean. [B, H, W, C] → the same shape."""
    channels: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, y):
        hidden = self.channels // 4
        dense = functools.partial(Dense, dtype=self.dtype, kernel_init=TORCH_DEFAULT)
        theta = nn.relu(dense(hidden, bias_init=torch_bias(self.channels), name="fc1")(y.mean((1, 2))))
        theta = jax.nn.hard_sigmoid(dense(4 * self.channels, bias_init=torch_bias(hidden), names=("mlp", "embed"), name="fc2")(theta))
        a1, b1, a2, b2 = jnp.split(theta[:, None, None] - 0.5, 4, axis=-1)
        return jnp.maximum((2 * a1 + 1) * y + b1, 2 * a2 * y + b2)


def upsample_aligned(x, size):
    """Bilinear resizing with corners aligned, as two small matrix products: their gradients need no scatter.

    Args:
      x: [B, h, w, C]. size: (H, W).
    Returns: [B, H, W, C].
    """
    rows, columns = (jnp.asarray(_interpolation(n, m), x.dtype) for n, m in zip(x.shape[1:3], size))
    return jnp.einsum("Ww,bHwc->bHWc", columns, jnp.einsum("Hh,bhwc->bHwc", rows, x))


def _interpolation(size, new_size):
    """[new_size, size] float32 weights of linear interpolation with aligned corners."""
    position = np.arange(new_size, dtype=np.float32) * np.float32((size - 1) / max(new_size - 1, 1))
    low = np.minimum(position.astype(int), size - 1)
    high = np.minimum(low + 1, size - 1)
    share = position - low
    matrix = np.zeros((new_size, size), np.float32)
    np.add.at(matrix, (np.arange(new_size), low), 1 - share)
    np.add.at(matrix, (np.arange(new_size), high), share)
    return matrix
