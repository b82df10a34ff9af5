"""Window attention as a Pallas kernel for TPUs: a few windows at a time, their scores in fast memory alone.

Heads are narrower than the chip's 128 lanes, so those that share a group of lanes are not taken apart: a query whose other lanes are zero
has the scores of its own head, and of what its weights gather only the lanes of that head are kept. The matrix unit is as wide as the group,
so that the zeros cost nothing.
"""
import collections
import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from glipv2_jax.ops.einsum import kernel_dot

_LANES = 128
_BLOCK_BYTES = 2**20                   # of queries, keys and values that a block of windows may take
_MOST_WINDOWS = 16
_SIDE_BY_SIDE = 4
_PARAMS = pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=60 * 2**20)


def supported(channels, heads):
    """Whether the kernel takes so many channels and heads."""
    return channels % heads == 0 and _LANES % (channels // heads) == 0


def attention(qkv, bias, masks, grid, interpret=False):
    """`window_attention._plain` in one kernel.

    Args:
      qkv: [B, W, M², 3·C]. bias: [N, M², M²] float32. masks: `window_attention.shift_masks`, or None. grid: windows along height and width.
      interpret: run on any platform, slowly.
    Returns: [B, W, M², C].
    """
    return _call("window_attention", _forward_kernel, (qkv,), bias, masks, grid, interpret, out_columns=qkv.shape[3] // 3)


def attention_gradients(qkv, grad, bias, masks, grid, interpret=False):
    """`window_attention._plain_gradients` in one kernel.

    Args:
      grad: [B, W, M², C], of the results. Others as in `attention`.
    Returns: gradients [B, W, M², 3·C] of qkv and [B, N, M², M²] float32 of the bias, for every image.
    """
    return _call("window_attention_gradients", _backward_kernel, (qkv, grad), bias, masks, grid, interpret, out_columns=qkv.shape[3],
                 of_bias=True)


def _call(name, kernel, batched, bias, masks, grid, interpret, out_columns, of_bias=False):
    b, w, t, columns = batched[0].shape
    qkv = batched[0]
    windows = max(1, min(_MOST_WINDOWS, w, _BLOCK_BYTES // (t * columns * qkv.dtype.itemsize)))
    windows = windows // _SIDE_BY_SIDE * _SIDE_BY_SIDE or windows
    shared = [bias] + ([] if masks is None else [jnp.asarray(masks)])

    def block(columns):
        return pl.BlockSpec((1, windows, t, columns), lambda image, step: (image, step, 0, 0))
    out_shape, out_specs = jax.ShapeDtypeStruct((b, w, t, out_columns), qkv.dtype), block(out_columns)
    if of_bias:
        out_shape = out_shape, jax.ShapeDtypeStruct((b, *bias.shape), jnp.float32)
        out_specs = out_specs, pl.BlockSpec((1, *bias.shape), lambda image, step: (image, 0, 0, 0))
    return pl.pallas_call(
        functools.partial(kernel, grid), name=name, interpret=interpret, compiler_params=_PARAMS,
        grid=(b, -(-w // windows)), out_shape=out_shape, out_specs=out_specs,
        in_specs=[*(block(x.shape[3]) for x in batched), *(pl.BlockSpec(x.shape, lambda image, step: (0, 0, 0)) for x in shared)],
    )(*batched, *shared)


def _rows_by_rows(a, b):
    """[M, K], [N, K] → [M, N]."""
    return kernel_dot(a, b, ((1,), (1,)))


def _sum_over_rows(a, b):
    """[K, M], [K, N] → [M, N]."""
    return kernel_dot(a, b, ((0,), (0,)))


# Some windows of a block side by side, and of each the heads of one group of lanes. places: [windows] in the block; real: [windows] whether it
# is one of the image. lanes: function of a part (0: query, 1: key, 2: value) → the group's lanes there; the last group may have fewer than 128.
# keep: [heads] functions that zero all lanes but a head's; numbers: [heads] of the layer. queries: [windows][heads], scaled, other heads
# zero, and keys, values: [windows], each [M², lanes]. weights: [windows][heads], [M², M²] float32.
_Group = collections.namedtuple("_Group", "places real lanes keep numbers queries keys values weights")


def _for_groups(grid, qkv_ref, bias_ref, masks_ref, body):
    """Calls `body` for every _Group of a block. One window alone would wait for each of its products."""
    windows, _, columns = qkv_ref.shape[1:]
    channels, heads = columns // 3, bias_ref.shape[0]
    width, first = channels // heads, pl.program_id(1) * windows
    together = math.gcd(windows, _SIDE_BY_SIDE)

    def keep(head):
        def kept(x):
            lane = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
            return jnp.where((lane >= head * width) & (lane < (head + 1) * width), x, jnp.zeros_like(x))
        return kept

    def kind(index):
        row, column = jax.lax.div(index, grid[1]), jax.lax.rem(index, grid[1])
        return 2 * (row == grid[0] - 1).astype(jnp.int32) + (column == grid[1] - 1).astype(jnp.int32)

    def of_windows(step, _):
        places = [step * together + i for i in range(together)]

        def of_group(group, lanes):
            queries, keys, values = ([qkv_ref[0, place, :, lanes(part)] for place in places] for part in range(3))
            keepers = [keep(head) for head in range(queries[0].shape[1] // width)]
            numbers = [group * (_LANES // width) + head for head in range(len(keepers))]
            scale = jnp.asarray(width**-0.5, qkv_ref.dtype)
            queries = [[kept(q) * scale for kept in keepers] for q in queries]
            scores = [[_rows_by_rows(q, k) + bias_ref[number] for q, number in zip(of_heads, numbers)] for of_heads, k in zip(queries, keys)]
            if masks_ref is not None:
                masks = [masks_ref[kind(first + place)] for place in places]
                scores = [[x + mask for x in of_heads] for of_heads, mask in zip(scores, masks)]
            weights = [[jnp.exp(x - x.max(1, keepdims=True)) for x in of_heads] for of_heads in scores]
            weights = [[x / x.sum(1, keepdims=True) for x in of_heads] for of_heads in weights]
            real = [first + place < grid[0] * grid[1] for place in places]
            body(_Group(places, real, lanes, keepers, numbers, queries, keys, values, weights))

        if channels % _LANES:                     # parts begin and end anywhere, which only a program without a loop can tell
            for group, begin in enumerate(range(0, channels, _LANES)):
                of_group(group, lambda part, begin=begin: slice(part * channels + begin, part * channels + min(begin + _LANES, channels)))
        else:
            jax.lax.fori_loop(0, channels // _LANES, lambda group, _: of_group(
                group, lambda part: pl.ds(pl.multiple_of(part * channels + group * _LANES, _LANES), _LANES)), None)
    jax.lax.fori_loop(0, windows // together, of_windows, None)


def _forward_kernel(grid, qkv_ref, bias_ref, *refs):
    *masks_ref, out_ref = refs

    def body(g):
        outs = [sum(kept(kernel_dot(p.astype(v.dtype), v)) for kept, p in zip(g.keep, of_heads))
                for of_heads, v in zip(g.weights, g.values)]
        for place, out in zip(g.places, outs):
            out_ref[0, place, :, g.lanes(0)] = out.astype(out_ref.dtype)
    _for_groups(grid, qkv_ref, bias_ref, *masks_ref or (None,), body)


def _backward_kernel(grid, qkv_ref, grad_ref, bias_ref, *refs):
    *masks_ref, grad_qkv_ref, grad_bias_ref = refs
    width = grad_ref.shape[3] // bias_ref.shape[0]

    @pl.when(pl.program_id(1) == 0)
    def _():
        grad_bias_ref[...] = jnp.zeros_like(grad_bias_ref)

    def body(g):
        grads = [[kept(grad_ref[0, place, :, g.lanes(0)]) for kept in g.keep] for place in g.places]
        grad_weights = [[_rows_by_rows(grad, v) for grad in of_heads] for of_heads, v in zip(grads, g.values)]
        grad_scores = [[p * (grad - (p * grad).sum(1, keepdims=True)) for p, grad in zip(*of_heads)] for of_heads in zip(g.weights, grad_weights)]
        for head, number in enumerate(g.numbers):
            # A block's windows behind the last one hold whatever was there.
            grad_bias_ref[0, number] += sum(jnp.where(real, of_heads[head], 0.0) for real, of_heads in zip(g.real, grad_scores))
        grad_scores = [[x.astype(qkv_ref.dtype) for x in of_heads] for of_heads in grad_scores]
        grad_q = [sum(kept(kernel_dot(x, k)) for kept, x in zip(g.keep, of_heads)) * width**-0.5
                  for of_heads, k in zip(grad_scores, g.keys)]
        grad_k = [sum(_sum_over_rows(x, q) for x, q in zip(*of_heads)) for of_heads in zip(grad_scores, g.queries)]
        grad_v = [sum(_sum_over_rows(p.astype(qkv_ref.dtype), grad) for p, grad in zip(*of_heads)) for of_heads in zip(g.weights, grads)]
        for part, of_windows in enumerate((grad_q, grad_k, grad_v)):
            for place, grad in zip(g.places, of_windows):
                grad_qkv_ref[0, place, :, g.lanes(part)] = grad.astype(grad_qkv_ref.dtype)
    _for_groups(grid, qkv_ref, bias_ref, *masks_ref or (None,), body)
