"""Modulated deformable 3×3 convolutions in window form: a Pallas kernel for TPUs, without gathers and scatters.

A tile of 8 × 16 outputs reads one window of the map into fast memory. Its samples are the product of the window and a matrix that
holds the four corner weights of each sample, which the matrix unit does at full speed; gradients are the transposed products. All
maps lie below each other on one canvas, so that the convolutions of a layer are one list of tiles for each stride.

Within a tile positions lie along the lanes: comparing with the rows and columns of the window is cheap there, and every product but
one has its operands the way the matrix unit wants them.
"""
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from glipv2_jax.ops.deform_conv_gather import TAPS
from glipv2_jax.ops.einsum import kernel_dot

TILE = (8, 16)                            # outputs
REACH = 6                                 # pixels of the map by which any sample may be away from its place in the kernel
WINDOWS = {1: (24, 32), 2: (32, 48)}      # by stride: rows and columns of the map, (tile − 1) · stride + 3 + 2 · REACH + 1 at least
_BORDER = REACH + 1                       # a window begins as far above and left of its tile
_POSITIONS = TILE[0] * TILE[1]
_LANES = 128
_VMEM_BYTES = 48 * 2**20


def supported(channels, strides):
    """Whether the kernel takes convolutions from and to these numbers of channels, with these strides."""
    return all(c % _LANES == 0 for c in channels) and set(strides) <= set(WINDOWS)


def all_fit(convs, points):
    """Scalar bool: whether every sample of an image that counts lies within the window of its tile.

    Args:
      convs: tuple of Conv. points: list of Points of one image.
    """
    fit = True
    for conv, p in zip(convs, points):
        (y, x), (height, width) = _in_window(conv.stride, p), WINDOWS[conv.stride]
        inside = (y >= 0) & (y <= height - 2) & (x >= 0) & (x <= width - 2)
        fit &= jnp.all(inside | ~p.valid)
    return fit


def window_conv(convs, maps, points, kernels, interpret=False):
    """Convolutions of one image whose samples all fit (`all_fit`).

    Args:
      convs: tuple of Conv. maps: list of [H, W, C]. points: list of Points, each [9, Ho, Wo].
      kernels: [S, 9, C, Co]. interpret: run on any platform, slowly.
    Returns: list of [Ho, Wo, Co] float32.
    """
    rows, canvas = _canvas(convs, maps)
    outs = [None] * len(convs)
    for stride in sorted({conv.stride for conv in convs}):
        chosen, tiles = _tiles(convs, points, rows, stride)
        corners, weights = _tiled_points(convs, points, chosen)
        flat = _forward_call(tiles, corners, weights, kernels.swapaxes(2, 3), canvas, stride, interpret)
        counts = np.cumsum([np.prod(_grid(points[i])) for i in chosen])[:-1]
        for i, part in zip(chosen, jnp.split(flat, counts)):
            outs[i] = _untiled(part, points[i].top.shape[1:])
    return outs


def window_gradients(convs, maps, points, kernels, grads, interpret=False):
    """Gradients of `window_conv`.

    Args:
      grads: list of [Ho, Wo, Co]; others as there.
    Returns: (list of [H, W, C], list of [9, 4, Ho, Wo] of the corner weights, [S, 9, C, Co]), float32.
    """
    rows, canvas = _canvas(convs, maps)
    grad_canvas, grad_kernels = jnp.zeros(canvas.shape, jnp.float32), jnp.zeros(kernels.shape, jnp.float32)
    grad_weights = [None] * len(convs)
    for stride in sorted({conv.stride for conv in convs}):
        chosen, tiles = _tiles(convs, points, rows, stride)
        corners, weights = _tiled_points(convs, points, chosen)
        grad = jnp.concatenate([_tiled(grads[i].astype(kernels.dtype)) for i in chosen])
        grad_canvas, flat, some_kernels = _backward_call(tiles, corners, weights, kernels, canvas, grad, grad_canvas, stride, interpret)
        used = np.isin(np.arange(len(kernels)), tiles[2])        # others were not written
        grad_kernels += jnp.where(used[:, None, None, None], some_kernels, 0)
        counts = np.cumsum([np.prod(_grid(points[i])) for i in chosen])[:-1]
        for i, part in zip(chosen, jnp.split(flat, counts)):
            size = points[i].top.shape[1:]
            part = part.reshape(*_grid(points[i]), TAPS, 4, *TILE).transpose(2, 3, 0, 4, 1, 5)
            ny, nx = _grid(points[i])
            grad_weights[i] = part.reshape(TAPS, 4, ny * TILE[0], nx * TILE[1])[:, :, :size[0], :size[1]]
    grad_maps = [grad_canvas[row + _BORDER:row + _BORDER + x.shape[0], _BORDER:_BORDER + x.shape[1]] for row, x in zip(rows, maps)]
    return grad_maps, grad_weights, grad_kernels


def _grid(points):
    """Tiles along each axis of a convolution's outputs."""
    return tuple(-(-n // t) for n, t in zip(points.top.shape[-2:], TILE))


def _in_window(stride, points):
    """Row and column of a sample's upper left corner in its tile's window, [9, Ho, Wo] each."""
    ho, wo = points.top.shape[-2:]
    first_row = np.arange(ho) // TILE[0] * TILE[0] * stride - _BORDER
    first_column = np.arange(wo) // TILE[1] * TILE[1] * stride - _BORDER
    return points.top - first_row[:, None].astype(np.int32), points.left - first_column.astype(np.int32)


def _canvas(convs, maps):
    """(first row of each map's part, [rows, columns, C]): the maps with zeros around them, as far as windows reach."""
    heights, widths = [], []
    for m, x in enumerate(maps):
        strides = {conv.stride for conv in convs if conv.source == m} or {1}
        reach = []
        for s in strides:
            tiles = [-(-((n - 1) // s + 1) // t) for n, t in zip(x.shape[:2], TILE)]
            reach.append([(n - 1) * t * s + w for n, t, w in zip(tiles, TILE, WINDOWS[s])])
        height, width = np.max(reach, axis=0)
        heights.append(int(height))
        widths.append(int(width))
    width = max(widths)
    parts = [jnp.pad(x, ((_BORDER, h - _BORDER - x.shape[0]), (_BORDER, width - _BORDER - x.shape[1]), (0, 0)))
             for x, h in zip(maps, heights)]
    return np.cumsum([0, *heights[:-1]]).tolist(), jnp.concatenate(parts)


def _tiles(convs, points, rows, stride):
    """Convolutions of one stride, ordered by kernel, and [4, tiles] int32: row and column of the window, kernel, first of its kernel."""
    chosen = sorted((i for i, conv in enumerate(convs) if conv.stride == stride), key=lambda i: convs[i].kernel)
    tiles = []
    for i in chosen:
        ny, nx = _grid(points[i])
        y, x = np.divmod(np.arange(ny * nx), nx)
        tiles.append(np.stack([rows[convs[i].source] + y * TILE[0] * stride, x * TILE[1] * stride, np.full(ny * nx, convs[i].kernel)]))
    tiles = np.concatenate(tiles, axis=1)
    first = np.diff(tiles[2], prepend=-1) != 0
    return chosen, np.concatenate([tiles, first[None]]).astype(np.int32)


def _tiled_points(convs, points, chosen):
    """Corners [tiles, 18, 128] int32, rows of all taps, then columns; weights [tiles, 36, 128] float32, the four of tap 0 first."""
    corners, weights = [], []
    for i in chosen:
        p = points[i]
        corner = [jnp.where(p.valid, at, 0) for at in _in_window(convs[i].stride, p)]
        corners.append(_tiled(jnp.concatenate(corner).transpose(1, 2, 0)).swapaxes(1, 2))
        weights.append(_tiled(p.weights.reshape(4 * TAPS, *p.top.shape[1:]).transpose(1, 2, 0)).swapaxes(1, 2))
    return jnp.concatenate(corners), jnp.concatenate(weights)


def _tiled(x):
    """[Ho, Wo, K] → [tiles, 128, K], zeros beyond the edges."""
    ny, nx = (-(-n // t) for n, t in zip(x.shape, TILE))
    x = jnp.pad(x, ((0, ny * TILE[0] - x.shape[0]), (0, nx * TILE[1] - x.shape[1]), (0, 0)))
    return x.reshape(ny, TILE[0], nx, TILE[1], -1).transpose(0, 2, 1, 3, 4).reshape(ny * nx, _POSITIONS, -1)


def _untiled(x, size):
    """[tiles, 128, K] → [Ho, Wo, K]."""
    ny, nx = (-(-n // t) for n, t in zip(size, TILE))
    x = x.reshape(ny, nx, *TILE, -1).transpose(0, 2, 1, 3, 4)
    return x.reshape(ny * TILE[0], nx * TILE[1], -1)[:size[0], :size[1]]


def _corners_of(corners_ref, weights_ref, tap):
    """Row, column [1, 128] int32 and four weights [1, 128] of a tap's samples."""
    return (corners_ref[0, pl.ds(tap, 1), :], corners_ref[0, pl.ds(TAPS + tap, 1), :],
            [weights_ref[0, pl.ds(4 * tap + k, 1), :] for k in range(4)])


def _interpolation(top, left, weights, height, width, dtype):
    """[height · width, 128]: the weight of every pixel of the window in each sample."""
    column = jax.lax.broadcasted_iota(jnp.int32, (width, _POSITIONS), 0)
    at_left, at_right = column == left, column == left + 1
    upper = jnp.where(at_left, weights[0], jnp.where(at_right, weights[1], 0.0))
    lower = jnp.where(at_left, weights[2], jnp.where(at_right, weights[3], 0.0))
    row = jax.lax.broadcasted_iota(jnp.int32, (height, 1, _POSITIONS), 0)
    matrix = jnp.where(row == top, upper, jnp.where(row == top + 1, lower, 0.0))
    return matrix.astype(dtype).reshape(height * width, _POSITIONS)


def _at_corners(matrix, top, left, height, width):
    """[height · width, 128] → its four entries [1, 128] at each sample's corners: what `_interpolation` spreads, picked up."""
    matrix = matrix.reshape(height, width, _POSITIONS)
    row = jax.lax.broadcasted_iota(jnp.int32, (height, 1, _POSITIONS), 0)
    column = jax.lax.broadcasted_iota(jnp.int32, (width, _POSITIONS), 0)
    return [jnp.where(column == x, jnp.where(row == y, matrix, 0.0).sum(0), 0.0).sum(0, keepdims=True)
            for y in (top, top + 1) for x in (left, left + 1)]


def _forward_kernel(tiles_ref, corners_ref, weights_ref, kernel_ref, window_ref, out_ref, total_ref):
    height, width, channels = window_ref.shape
    window = window_ref[...].reshape(height * width, channels).T                            # [C, pixels]
    total_ref[...] = jnp.zeros_like(total_ref)

    @pl.loop(0, 3)
    def _(row):
        for tap in (3 * row, 3 * row + 1, 3 * row + 2):
            matrix = _interpolation(*_corners_of(corners_ref, weights_ref, tap), height, width, window.dtype)
            sample = kernel_dot(window, matrix)                                                   # [C, 128]
            total_ref[...] += kernel_dot(kernel_ref[0, tap], sample.astype(kernel_ref.dtype))
    out_ref[0] = total_ref[...].T


def _backward_kernel(tiles_ref, corners_ref, weights_ref, kernel_ref, window_ref, grad_ref, _, grad_canvas_ref, grad_weights_ref,
                     grad_kernel_ref, grad_window_ref, sum_ref, read, written):
    step, steps = pl.program_id(0), pl.num_programs(0)
    height, width, channels = window_ref.shape

    def place(step):
        row, column = tiles_ref[0, step], pl.multiple_of(tiles_ref[1, step], TILE[1])
        return grad_canvas_ref.at[pl.ds(row, height), pl.ds(column, width)]

    @pl.when(tiles_ref[3, step] == 1)
    def _():
        grad_kernel_ref[...] = jnp.zeros_like(grad_kernel_ref)

    grad_window_ref[...] = jnp.zeros_like(grad_window_ref)
    pixels = window_ref[...].reshape(height * width, channels)
    window, grad = pixels.T, grad_ref[0]
    grad_across = grad.T                                                                    # [Co, 128]

    @pl.loop(0, 3)
    def _(row):
        @pl.when(row == 1)
        def _():
            # Windows overlap: the tile before has to be written before this one's share of the canvas is read.
            @pl.when(step > 0)
            def _():
                pltpu.make_async_copy(sum_ref, place(step - 1), written).wait()
            pltpu.make_async_copy(place(step), sum_ref, read).start()
        for tap in (3 * row, 3 * row + 1, 3 * row + 2):
            top, left, weights = _corners_of(corners_ref, weights_ref, tap)
            matrix = _interpolation(top, left, weights, height, width, window.dtype)
            sample = kernel_dot(window, matrix)                                                   # [C, 128]
            grad_kernel_ref[0, tap] += kernel_dot(sample.astype(grad.dtype), grad)
            grad_sample = kernel_dot(kernel_ref[0, tap], grad_across).astype(window.dtype)        # [C, 128]
            grad_window_ref[...] += kernel_dot(matrix, grad_sample.T).reshape(height, width, channels)
            grad_matrix = kernel_dot(pixels, grad_sample)                                         # [pixels, 128]
            for k, value in enumerate(_at_corners(grad_matrix, top, left, height, width)):
                grad_weights_ref[0, pl.ds(4 * tap + k, 1), :] = value

    pltpu.make_async_copy(place(step), sum_ref, read).wait()
    sum_ref[...] += grad_window_ref[...]
    pltpu.make_async_copy(sum_ref, place(step), written).start()

    @pl.when(step == steps - 1)
    def _():
        pltpu.make_async_copy(sum_ref, place(step), written).wait()


def _specs(stride, channels, kernel_shape):
    """Blocks that both kernels read: corners, weights, kernel, window."""
    height, width = WINDOWS[stride]
    return [pl.BlockSpec((1, 2 * TAPS, _POSITIONS), lambda i, tiles: (i, 0, 0)),
            pl.BlockSpec((1, 4 * TAPS, _POSITIONS), lambda i, tiles: (i, 0, 0)),
            pl.BlockSpec((1, *kernel_shape), lambda i, tiles: (tiles[2, i], 0, 0, 0)),
            pl.BlockSpec((pl.Element(height), pl.Element(width), pl.Element(channels)),
                         lambda i, tiles: (tiles[0, i], pl.multiple_of(tiles[1, i], TILE[1]), 0))]


_PARAMS = pltpu.CompilerParams(dimension_semantics=("arbitrary",), vmem_limit_bytes=_VMEM_BYTES)


@functools.partial(jax.jit, static_argnames=("stride", "interpret"))      # traced once for all layers
def _forward_call(tiles, corners, weights, kernels, canvas, stride, interpret):
    count, outputs = tiles.shape[1], kernels.shape[2]
    return pl.pallas_call(
        _forward_kernel, name="deform_conv", interpret=interpret, compiler_params=_PARAMS,
        out_shape=jax.ShapeDtypeStruct((count, _POSITIONS, outputs), jnp.float32),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1, grid=(count,), in_specs=_specs(stride, canvas.shape[2], kernels.shape[1:]),
            out_specs=pl.BlockSpec((1, _POSITIONS, outputs), lambda i, tiles: (i, 0, 0)),
            scratch_shapes=[pltpu.VMEM((outputs, _POSITIONS), jnp.float32)]),
    )(jnp.asarray(tiles), corners, weights, kernels, canvas)


@functools.partial(jax.jit, static_argnames=("stride", "interpret"))      # traced once for all layers
def _backward_call(tiles, corners, weights, kernels, canvas, grad, grad_canvas, stride, interpret):
    count, channels, outputs = tiles.shape[1], canvas.shape[2], kernels.shape[3]
    window = (*WINDOWS[stride], channels)
    return pl.pallas_call(
        _backward_kernel, name="deform_conv_gradients", interpret=interpret, compiler_params=_PARAMS,
        out_shape=(jax.ShapeDtypeStruct(canvas.shape, jnp.float32), jax.ShapeDtypeStruct(weights.shape, jnp.float32),
                   jax.ShapeDtypeStruct(kernels.shape, jnp.float32)),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1, grid=(count,),
            in_specs=[*_specs(stride, channels, kernels.shape[1:]),
                      pl.BlockSpec((1, _POSITIONS, outputs), lambda i, tiles: (i, 0, 0)),
                      pl.BlockSpec(memory_space=pl.ANY)],
            out_specs=(pl.BlockSpec(memory_space=pl.ANY),
                       pl.BlockSpec((1, 4 * TAPS, _POSITIONS), lambda i, tiles: (i, 0, 0)),
                       pl.BlockSpec((1, *kernels.shape[1:]), lambda i, tiles: (tiles[2, i], 0, 0, 0))),
            scratch_shapes=[pltpu.VMEM(window, jnp.float32), pltpu.VMEM(window, jnp.float32),
                            pltpu.SemaphoreType.DMA, pltpu.SemaphoreType.DMA]),
        input_output_aliases={6: 0},
    )(jnp.asarray(tiles), corners, weights, kernels, canvas, grad, grad_canvas)
