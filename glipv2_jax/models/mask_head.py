"""Masks: what of a box belongs to the words that name it. Source: GLIP roi_heads/mask_head/, layers/misc.py."""
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from glipv2_jax.detection.anchors import STRIDES
from glipv2_jax.models.bert import CLAMP
from glipv2_jax.models.config import MaskHeadConfig
from glipv2_jax.models.fpn import upsample_nearest
from glipv2_jax.models.heads import word_directions
from glipv2_jax.models.layers import Conv, Dense, GroupNorm, named
from glipv2_jax.ops.einsum import einsum_float32
from glipv2_jax.ops.roi_align import pyramid_roi_align

# Kaiming-normal over the outputs, as the reference initialises every convolution of the head.
KAIMING = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
_GROUPS = 16


class ConvNorm(nn.Module):
    """3 × 3 convolution of the same size, then GroupNorm where asked; the convolution has a bias where there is none."""
    features: int
    dilation: int
    group_norm: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        d = self.dilation
        conv = functools.partial(Conv, self.features, (3, 3), padding=((d, d), (d, d)), kernel_dilation=(d, d),
                                 dtype=self.dtype, kernel_init=KAIMING)
        if not self.group_norm:
            return conv(name="conv")(x)
        return GroupNorm(num_groups=_GROUPS, dtype=self.dtype, name="norm")(conv(use_bias=False, name="unbiased_conv")(x))


class Residual(nn.Module):
    """Three convolutions before the sum. The reference means sizes 1, 3, 1 and sets dilations: all are 3 × 3."""
    group_norm: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        y, width = x, x.shape[-1]
        for n, (features, dilation) in enumerate(((width // 2, 1), (width // 2, 3), (width, 1)), start=1):
            y = ConvNorm(features, dilation, self.group_norm, self.dtype, name=f"conv{n}")(nn.relu(y))
        return x + y


class Hourglass(nn.Module):
    """Down by max-pooling, `depth` times, and up again by repetition, over a residual unit at every size.

    The reference hands its option for GroupNorm to two of the four units only.
    """
    depth: int
    group_norm: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        unit = functools.partial(Residual, dtype=self.dtype)
        low = unit(False, name="down")(nn.max_pool(x, (2, 2), (2, 2)))
        if self.depth > 1:
            low = Hourglass(self.depth - 1, self.group_norm, self.dtype, name="inner")(low)
        else:
            low = unit(self.group_norm, name="inner")(low)
        low = unit(self.group_norm, name="up")(low)
        return unit(False, name="skip")(x) + upsample_nearest(low, x.shape[1:3])


class MaskFeatures(nn.Module):
    """Call: pooled boxes [N, P, P, C] → features of the same shape."""
    config: MaskHeadConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        c = self.config
        for n in range(c.num_blocks):
            if c.kind == "hourglass":
                block = Hourglass(c.depth, c.group_norm, self.dtype, name=f"hourglass{n}")
            else:
                block = ConvNorm(x.shape[-1], c.dilation, c.group_norm, self.dtype, name=f"block{n}")
            x = nn.relu(block(x))
        return x


class Upsample(nn.Module):
    """2 × 2 transposed convolution of stride 2: every pixel becomes four. Call: [N, P, P, C] → [N, 2P, 2P, C]."""
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        n, height, width, channels = x.shape
        # Its windows do not overlap, so it is one matrix product.
        x = Dense(4 * channels, use_bias=False, dtype=self.dtype, kernel_init=KAIMING, name="dense")(x)
        x = x.reshape(n, height, width, 2, 2, channels).swapaxes(2, 3).reshape(n, 2 * height, 2 * width, channels)
        bias = self.param("bias", named(nn.initializers.zeros, ("embed",)), (channels,))
        return x + bias.astype(self.dtype)


class MaskHead(nn.Module):
    """Pixels of boxes against words.

    Differs from GLIP: any number of images in a batch, and of boxes, none included. The mean of a box's token logits is
    taken as the logit of the mean of its tokens' directions, which is the same but for the limit of ±50000, here that of
    the mean; T maps of each box are never made.

    Call:
      levels: list of [B, H/s, W/s, C], s = 8, 16, …; fused or not, as the config has it.
      words: [B, T, D] fused.
      boxes: [B, K, 4] xyxy pixels of the canvas. box_mask: [B, K] bool.
      tokens: [B, K, T] bool, the words of each box.
    Returns: [B, K, M, M] float32, logits of the mask inside each box, M = 2P; 0 for a box without words.
    """
    config: MaskHeadConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, levels, words, boxes, box_mask, tokens):
        c = self.config
        x = pyramid_roi_align(levels, boxes, box_mask, STRIDES[:c.num_levels], c.pool_size, c.sampling_ratio)
        batch, count, *_, channels = x.shape
        x = x.reshape(batch * count, c.pool_size, c.pool_size, channels).astype(self.dtype)
        x = nn.relu(Upsample(self.dtype, name="upsample")(MaskFeatures(c, self.dtype, name="features")(x)))
        pixels = x.reshape(batch, count, c.resolution, c.resolution, channels)
        if c.class_agnostic:
            # Of its two channels, background and object, the reference reads the second.
            return Dense(2, names=("embed", None), dtype=self.dtype, kernel_init=KAIMING, name="logits")(
                pixels)[..., 1].astype(jnp.float32)
        directions, bias, log_scale = word_directions(self, words, channels, self.dtype)
        tokens = tokens.astype(jnp.float32)
        shares = tokens / jnp.maximum(tokens.sum(-1, keepdims=True), 1)
        exact = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
        direction = exact("bkt,btc->bkc", shares, directions.astype(jnp.float32)).astype(self.dtype)
        logits = einsum_float32("bkyxc,bkc->bkyx", pixels, direction) / jnp.exp(log_scale)
        return jnp.clip(logits + exact("bkt,bt->bk", shares, bias)[..., None, None], -CLAMP, CLAMP)
