"""Modulated deformable 3×3 convolution in gather form, for several feature maps and kernels at once.

Each map is packed once with the four corners of a bilinear sample side by side in the channels, so that one gather
fetches a sample; all maps share one table and all convolutions of a layer are one list of positions. A scan over the
nine taps never holds more than one tap's samples. Source: GLIP csrc/cuda/deform_conv_kernel_cuda.cu.
"""
import functools

import jax
import jax.numpy as jnp
import numpy as np

from glipv2_jax.ops.einsum import einsum_float32

TAPS = 9


def corner_table(maps):
    """Packs feature maps for bilinear sampling.

    Args:
      maps: list of [B, H, W, C].
    Returns: ([B, R, 4C], starts): row starts[m] + i·(W+1) + j holds the pixels (i−1, j−1), (i−1, j), (i, j−1), (i, j)
      of map m, zeros outside of it.
    """
    tables, starts, row = [], [], 0
    for x in maps:
        b, h, w, c = x.shape
        p = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        corners = [p[:, :-1, :-1], p[:, :-1, 1:], p[:, 1:, :-1], p[:, 1:, 1:]]
        tables.append(jnp.concatenate(corners, axis=-1).reshape(b, (h + 1) * (w + 1), 4 * c))
        starts.append(row)
        row += (h + 1) * (w + 1)
    return jnp.concatenate(tables, axis=1), starts


def sampling(offset, mask, map_size, stride, start):
    """Table rows and corner weights of every tap at every output position.

    Args:
      offset: [B, Ho, Wo, 18] float32, (dy, dx) of tap 0, of tap 1, …, in cells of the map.
      mask: [B, Ho, Wo, 9] float32 modulation.
      map_size: (H, W) of the sampled map.
      stride: of the convolution, padding 1.
      start: the map's first table row.
    Returns: rows [B, 9, Ho·Wo] int32, weights [B, 9, Ho·Wo, 4] float32. A sample counts only where −1 < y < H and
      −1 < x < W; its corners outside the map read the table's zeros.
    """
    height, width = map_size
    b, ho, wo, _ = mask.shape
    offset = offset.reshape(b, ho, wo, TAPS, 2).transpose(0, 3, 1, 2, 4)        # [B, 9, Ho, Wo, 2]
    tap_y, tap_x = np.divmod(np.arange(TAPS), 3)
    base_y = (np.arange(ho) * stride - 1)[None, :, None] + tap_y[:, None, None]
    base_x = (np.arange(wo) * stride - 1)[None, None, :] + tap_x[:, None, None]
    y, x = base_y.astype(np.float32) + offset[..., 0], base_x.astype(np.float32) + offset[..., 1]
    valid = (y > -1) & (y < height) & (x > -1) & (x < width)
    # floor's derivative is zero, so at integer coordinates the gradient is the one-sided one of the reference
    top, left = jnp.floor(y), jnp.floor(x)
    fy, fx = y - top, x - left
    weights = jnp.stack([(1 - fy) * (1 - fx), (1 - fy) * fx, fy * (1 - fx), fy * fx], axis=-1)
    weights = weights * jnp.where(valid, mask.transpose(0, 3, 1, 2), 0.0)[..., None]
    rows = (top.astype(jnp.int32) + 1) * (width + 1) + left.astype(jnp.int32) + 1 + start
    rows = jnp.where(valid, rows, start)
    return rows.reshape(b, TAPS, ho * wo), weights.reshape(b, TAPS, ho * wo, 4)


def gather_conv(table, rows, weights, kernels, segments):
    """Sums over taps: (corner weights · table rows) @ kernel.

    Args:
      table: [B, R, 4C].
      rows: [B, 9, P] int32 in [0, R).
      weights: [B, 9, P, 4] float32.
      kernels: [S, 9, C, Co], one kernel for each segment of positions.
      segments: S static position counts, their sum is P.
    Returns: [B, P, Co] float32.
    """
    # vmap, not a batch folded into the rows: the partitioner then keeps every image on its own device
    return jax.vmap(functools.partial(_gather_conv, tuple(segments)), in_axes=(0, 0, 0, None))(
        table, rows, weights, kernels)


def deform_conv(x, offset, mask, kernel, bias, stride=1):
    """One modulated deformable 3×3 convolution, padding 1.

    Args:
      x: [B, H, W, C]. offset: [B, Ho, Wo, 18]. mask: [B, Ho, Wo, 9]. kernel: [3, 3, C, Co]. bias: [Co].
    Returns: [B, Ho, Wo, Co] float32.
    """
    table, (start,) = corner_table([x])
    rows, weights = sampling(offset, mask, x.shape[1:3], stride, start)
    out = gather_conv(table, rows, weights, kernel.reshape(1, TAPS, *kernel.shape[2:]), (rows.shape[-1],))
    return out.reshape(*mask.shape[:3], -1) + bias


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


def _segments(x, counts):
    return jnp.split(x, np.cumsum(counts)[:-1].tolist())


def _sample(table, rows, weights):
    """[P, C] float32 samples and the list of their four gathered corners [P, C]."""
    corners = jnp.split(table.at[rows].get(mode="promise_in_bounds"), 4, axis=1)
    # Four multiply-adds over whole rows: a reduction over a corner axis compiles to strided loops on the CPU.
    return sum(corner * weights[:, k:k + 1] for k, corner in enumerate(corners)), corners


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gather_conv(segments, table, rows, weights, kernels):
    def tap(total, args):
        rows, weights, kernels = args
        sample, _ = _sample(table, rows, weights)
        products = [einsum_float32("pc,cd->pd", s.astype(k.dtype), k)
                    for s, k in zip(_segments(sample, segments), kernels)]
        return total + jnp.concatenate(products), None
    total = jnp.zeros((rows.shape[-1], kernels.shape[-1]), jnp.float32)
    return jax.lax.scan(tap, total, (rows, weights, kernels.swapaxes(0, 1)))[0]


def _forward(segments, table, rows, weights, kernels):
    return _gather_conv(segments, table, rows, weights, kernels), (table, rows, weights, kernels)


def _backward(segments, residuals, grad):
    """One table accumulator through all taps; plain autodiff would zero-fill and add a table nine times."""
    table, rows, weights, kernels = residuals

    def tap(grad_table, args):
        rows, weights, kernels = args
        sample, corners = _sample(table, rows, weights)
        grads = _segments(grad, segments)
        grad_kernels = jnp.stack([einsum_float32("pc,pd->cd", s, g)
                                  for s, g in zip(_segments(sample, segments), grads)])
        grad_sample = jnp.concatenate([einsum_float32("pd,cd->pc", g.astype(k.dtype), k)
                                       for g, k in zip(grads, kernels)])
        grad_weights = jnp.stack([(corner * grad_sample).sum(-1) for corner in corners], axis=-1)
        grad_rows = jnp.concatenate([weights[:, k:k + 1] * grad_sample for k in range(4)], axis=1)
        return grad_table.at[rows].add(grad_rows, mode="promise_in_bounds"), (grad_weights, grad_kernels)

    grad_table, (grad_weights, grad_kernels) = jax.lax.scan(
        tap, jnp.zeros(table.shape, jnp.float32), (rows, weights, kernels.swapaxes(0, 1)))
    return (grad_table.astype(table.dtype), None, grad_weights.astype(weights.dtype),
            grad_kernels.swapaxes(0, 1).astype(kernels.dtype))


_gather_conv.defvjp(_forward, _backward)
