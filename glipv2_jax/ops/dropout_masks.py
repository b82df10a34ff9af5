"""Dropout as a function of the place of an element, so that a backward pass, a chunk or a kernel computes the same masks again."""
import jax
import jax.numpy as jnp


def dropout_masks(seed_a, seed_b, first_row, shape, rate):
    """Two independent masks for `shape` elements of a matrix, the rows from `first_row` on.

    32 bits of a multiplicative hash of place and seeds, the finalizer of MurmurHash3 with the second seed in its middle; the
    lower half decides the first mask and the upper half the second. Runs inside of kernels.

    Args:
      seed_a, seed_b: scalar uint32, random bits: masks of seeds that differ in one bit are not independent.
      first_row: scalar int32. shape: (rows, columns); rows · columns of the whole matrix stay below 2³².
      rate: in [0, 1), taken to the nearest 1/65536.
    Returns: two [rows, columns] float32: 0 where an element is dropped, else 1 / (share of elements that are kept).
    """
    row = jax.lax.broadcasted_iota(jnp.int32, (shape[0], 1), 0) + first_row
    column = jax.lax.broadcasted_iota(jnp.int32, (1, shape[1]), 1)
    bits = (row * shape[1] + column).astype(jnp.uint32) ^ seed_a
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x85EBCA6B)
    bits = bits ^ seed_b
    bits = (bits ^ (bits >> 13)) * jnp.uint32(0xC2B2AE35)
    bits = bits ^ (bits >> 16)
    threshold = round(rate * 2**16)
    scale = 2**16 / (2**16 - threshold)
    return tuple((half.astype(jnp.int32) >= threshold).astype(jnp.float32) * scale for half in (bits & 0xFFFF, bits >> 16))
