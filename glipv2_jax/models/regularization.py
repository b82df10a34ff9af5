"""Noise that is on in training only: drop path and DropBlock. Each takes its uniforms, so a test can give them."""
import jax
import jax.numpy as jnp


def drop_path(x, uniforms, rate):
    """Drops the whole residual branch of some examples and scales the others up.

    Args:
      x: [B, ...] branch output.
      uniforms: [B] float32 in [0, 1).
      rate: probability of dropping, in [0, 1).
    Returns: [B, ...], x / (1 − rate) where uniforms ≥ rate, else 0.
    Source: timm's DropPath, as GLIP's swint.py uses it.
    """
    keep = jnp.floor(1.0 - rate + uniforms).reshape((-1,) + (1,) * (x.ndim - 1))
    return x * (keep / (1.0 - rate)).astype(x.dtype)


def drop_block(x, uniforms, probability, size):
    """Zeroes size × size squares of a feature map in all channels and rescales by the kept share of the batch.

    Args:
      x: [B, H, W, C].
      uniforms: [B, H, W] float32 in [0, 1).
      probability: expected share of dropped positions, borders not corrected for.
      size: side of a square in cells.
    Returns: [B, H, W, C].
    Source: GLIP layers/dropblock.py. Differs from GLIP: all-dropped batches give 0, not NaN.
    """
    seeds = (uniforms < probability / size**2).astype(jnp.float32)
    pad = size // 2
    dropped = jax.lax.reduce_window(seeds, 0.0, jax.lax.max, (1, size, size), (1, 1, 1),
                                    ((0, 0), (pad, pad), (pad, pad)))
    if size % 2 == 0:                                  # the pooled map is one row and one column too large
        dropped = dropped[:, :-1, :-1]
    keep = 1.0 - dropped
    scale = keep.size / jnp.maximum(keep.sum(), 1.0)
    return x * (keep * scale)[..., None].astype(x.dtype)
