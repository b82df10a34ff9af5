"""Swin Transformer v1 as GLIP builds it, and its CoSwin form. NHWC. Source: GLIP backbone/swint.py, swint_v2.py."""
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from glipv2_jax.models.config import ImageEncoderConfig
from glipv2_jax.models.layers import Conv, Dense, LayerNorm, named, rematerialised, scanned, torch_bias
from glipv2_jax.models.regularization import drop_path
from glipv2_jax.ops.window_attention import window_attention


class Swin(nn.Module):
    """Image encoder.

    Call: image [B, H, W, 3], normalised → list of three maps [B, ⌈H/s⌉, ⌈W/s⌉, D·s/4] for s = 8, 16, 32 (C3, C4, C5).
    """
    config: ImageEncoderConfig
    dtype: jnp.dtype = jnp.float32
    remat: str = ""
    scan_layers: bool = False
    kernels: str = "auto"

    @nn.compact
    def __call__(self, image, train=False):
        c = self.config
        block = rematerialised(SwinBlock, self.remat, (3,))
        rates = np.split(np.float32(drop_path_rates(c)), np.cumsum(c.depths)[:-1])
        x = PatchEmbed(c.embed_dim, c.convolutional, self.dtype, name="patch_embed")(image)
        outputs = []
        for stage, depth in enumerate(c.depths):
            dim = c.embed_dim * 2**stage
            # Frozen stages stay in evaluation mode.
            drops = train and c.drop_path > 0 and stage > c.frozen_stages - 2
            blocks = [block(dim, c.num_heads[stage], c.window, c.window // 2 if i % 2 else 0, self.dtype, self.kernels,
                            name=f"stage{stage}_block{i}")
                      for i in range(depth)]
            if self.scan_layers and depth > 2 and depth % 2 == 0 and not self.is_initializing():
                rng = self.make_rng("dropout") if drops else None
                x = scanned(list(zip(blocks[::2], blocks[1::2])), functools.partial(_pair, drops=drops), x, rng, rates[stage].reshape(-1, 2))
            else:
                for of_block, rate in zip(blocks, rates[stage]):
                    x = of_block(x, rate, drops)
            if stage > 0:
                outputs.append(LayerNorm(dtype=self.dtype, name=f"norm{stage}")(x))
            if stage < len(c.depths) - 1:
                x = PatchMerging(2 * dim, c.convolutional, self.dtype, name=f"stage{stage}_merge")(x)
        return outputs


def _pair(blocks, x, rates, drops):
    """One block with windows in place and one with shifted windows."""
    for block, rate in zip(blocks, rates):
        x = block(x, rate, drops)
    return x


class PatchEmbed(nn.Module):
    """[B, H, W, 3] → [B, ⌈H/4⌉, ⌈W/4⌉, D]."""
    dim: int
    convolutional: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        size, pad = (7, 2) if self.convolutional else (4, 0)
        # With a bias of zero, padding would come out as zeros, and every norm after it would multiply its gradient by 300.
        x = Conv(self.dim, (size, size), (4, 4), ((pad, pad), (pad, pad)), dtype=self.dtype,
                    bias_init=torch_bias(3 * size**2), name="proj")(_pad_to_multiple(x, 4))
        return LayerNorm(dtype=self.dtype, name="norm")(x)


class PatchMerging(nn.Module):
    """[B, H, W, C] → [B, ⌈H/2⌉, ⌈W/2⌉, D]."""
    dim: int
    convolutional: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        if self.convolutional:
            x = Conv(self.dim, (3, 3), (2, 2), ((1, 1), (1, 1)), dtype=self.dtype, name="reduction")(x)
            return LayerNorm(dtype=self.dtype, name="norm")(x)
        x = _pad_to_multiple(x, 2)
        x = jnp.concatenate([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], axis=-1)
        x = LayerNorm(dtype=self.dtype, name="norm")(x)
        return Dense(self.dim, use_bias=False, dtype=self.dtype, names=("mlp", "embed"), name="reduction")(x)


class SwinBlock(nn.Module):
    """Window attention and MLP, each a residual branch. [B, H, W, C] → the same shape.

    `rate`, a scalar, is that of drop path, which is on where `drops`.
    """
    dim: int
    num_heads: int
    window: int
    shift: int
    dtype: jnp.dtype
    kernels: str = "auto"

    @nn.compact
    def __call__(self, x, rate=0.0, drops=False):
        height, width = x.shape[1:3]
        y = LayerNorm(dtype=self.dtype, name="norm1")(x)
        # Padding comes after the norm and is not masked: a padded cell becomes the bias of qkv.
        y = _pad_to_multiple(y, self.window)
        padded = y.shape[1:3]
        if self.shift:
            y = jnp.roll(y, (-self.shift, -self.shift), axis=(1, 2))
        y = window_partition(y, self.window)
        grid = tuple(side // self.window for side in padded)
        y = WindowAttention(self.dim, self.num_heads, self.window, self.shift, self.dtype, self.kernels, name="attn")(y, grid)
        y = window_reverse(y, self.window, *padded)
        if self.shift:
            y = jnp.roll(y, (self.shift, self.shift), axis=(1, 2))
        x = x + self._drop_path(y[:, :height, :width], rate, drops)
        y = LayerNorm(dtype=self.dtype, name="norm2")(x)
        y = Dense(4 * self.dim, dtype=self.dtype, name="mlp_in")(y)
        y = Dense(self.dim, dtype=self.dtype, names=("mlp", "embed"), name="mlp_out")(nn.gelu(y, approximate=False))
        return x + self._drop_path(y, rate, drops)

    def _drop_path(self, y, rate, drops):
        return drop_path(y, jax.random.uniform(self.make_rng("dropout"), (y.shape[0],)), rate) if drops else y


class WindowAttention(nn.Module):
    """Attention inside windows with a learned bias per relative position.

    Call: x [B, W, M², C] of a map that was rolled by `shift`; windows along its height and width → [B, W, M², C].
    """
    dim: int
    num_heads: int
    window: int
    shift: int
    dtype: jnp.dtype
    kernels: str = "auto"

    @nn.compact
    def __call__(self, x, grid):
        table = self.param("relative_position_bias_table", named(nn.initializers.truncated_normal(0.02), (None, "heads")),
                           ((2 * self.window - 1)**2, self.num_heads))
        bias = table[relative_position_index(self.window)].transpose(2, 0, 1)         # [N, M², M²]
        qkv = Dense(3 * self.dim, dtype=self.dtype, names=("embed", "heads"), name="qkv")(x)
        out = window_attention(qkv, bias, grid=grid, shift=self.shift, form=self.kernels)
        return Dense(self.dim, dtype=self.dtype, names=("heads", "embed"), name="proj")(out)


def drop_path_rates(config):
    """Rate of every block, growing linearly from 0 to `config.drop_path` over all stages."""
    return np.linspace(0, config.drop_path, sum(config.depths)).tolist()


def window_partition(x, window):
    """[B, H, W, C], sides multiples of M → [B, HW/M², M², C], row-major windows and cells."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // window, window, w // window, window, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, -1, window * window, c)


def window_reverse(x, window, height, width):
    """Inverse of `window_partition`: [B, HW/M², M², C] → [B, H, W, C]."""
    b, _, _, c = x.shape
    x = x.reshape(b, height // window, width // window, window, window, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, height, width, c)


def relative_position_index(window):
    """[M², M²] int row of the bias table for each query and key cell of a window."""
    cells = np.stack(np.meshgrid(np.arange(window), np.arange(window), indexing="ij")).reshape(2, -1)
    dy, dx = cells[:, :, None] - cells[:, None, :] + window - 1
    return dy * (2 * window - 1) + dx


def _pad_to_multiple(x, multiple):
    pad = [-x.shape[1] % multiple, -x.shape[2] % multiple]
    return jnp.pad(x, ((0, 0), (0, pad[0]), (0, pad[1]), (0, 0))) if any(pad) else x
