"""Window attention as a Pallas kernel for TPUs: a few windows at a time, their scores in fast memory alone.

Heads are narrower than the chip's 128 lanes, so those that share a group of lanes are not taken apart: a query whose other lanes are zero
has the scores of its own head, and of what its weights gather only the lanes of that head are kept. The matrix unit is as wide as the group,
so that the zeros cost nothing.
"""
import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

_LANES = 128
_BLOCK_BYTES = 2**20                   # of queries, keys and values that a block of windows may take
_MOST_WINDOWS = 16
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
    qkv, bias, c = _whole_groups(qkv, bias)
    return _call("window_attention", _forward_kernel, (qkv,), bias, masks, grid, interpret, out_columns=qkv.shape[3] // 3)[..., :c]


def attention_gradients(qkv, grad, bias, masks, grid, interpret=False):
    """`window_attention._plain_gradients` in one kernel.

    Args:
      grad: [B, W, M², C], of the results. Others as in `attention`.
    Returns: gradients [B, W, M², 3·C] of qkv and [B, N, M², M²] float32 of the bias, for every image.
    """
    heads = len(bias)
    qkv, bias, c = _whole_groups(qkv, bias)
    padded = qkv.shape[3] // 3
    grad = jnp.pad(grad, ((0, 0), (0, 0), (0, 0), (0, padded - c)))
    grad_qkv, grad_bias = _call("window_attention_gradients", _backward_kernel, (qkv, grad), bias, masks, grid, interpret,
                                out_columns=3 * padded, of_bias=True)
    b, w, t, _ = qkv.shape
    return grad_qkv.reshape(b, w, t, 3, padded)[..., :c].reshape(b, w, t, 3 * c), grad_bias[:, :heads]


def _whole_groups(qkv, bias):
    """Queries, keys and values, each padded with heads of zeros to a multiple of 128 lanes; the bias, padded alike; channels before."""
    b, w, t, columns = qkv.shape
    heads, c = len(bias), columns // 3
    padded = -(-c // _LANES) * _LANES
    if padded > c:
        qkv = jnp.pad(qkv.reshape(b, w, t, 3, c), ((0, 0), (0, 0), (0, 0), (0, 0), (0, padded - c))).reshape(b, w, t, 3 * padded)
        bias = jnp.pad(bias, ((0, padded // (c // heads) - heads), (0, 0), (0, 0)))
    return qkv, bias, c


def _call(name, kernel, batched, bias, masks, grid, interpret, out_columns, of_bias=False):
    b, w, t, columns = batched[0].shape
    qkv = batched[0]
    windows = max(1, min(_MOST_WINDOWS, w, _BLOCK_BYTES // (t * columns * qkv.dtype.itemsize)))
    shared = [bias] + ([] if masks is None else [jnp.asarray(masks)])

    def block(columns):
        return pl.BlockSpec((1, windows, t, columns), lambda image, step: (image, step, 0, 0))
    out_shape, out_specs = jax.ShapeDtypeStruct((b, w, t, out_columns), qkv.dtype), block(out_columns)
    if of_bias:
        out_shape = out_shape, jax.ShapeDtypeStruct((b, *bias.shape), jnp.float32)
        out_specs = out_specs, pl.BlockSpec((1, *bias.shape), lambda image, step: (image, 0, 0, 0))
    return pl.pallas_call(
        functools.partial(kernel, grid, masks is not None), name=name, interpret=interpret, compiler_params=_PARAMS,
        grid=(b, -(-w // windows)), out_shape=out_shape, out_specs=out_specs,
        in_specs=[*(block(x.shape[3]) for x in batched), *(pl.BlockSpec(x.shape, lambda image, step: (0, 0, 0)) for x in shared)],
    )(*batched, *shared)


def _dot(a, b, contracted):
    # One bfloat16 pass over float32 operands would round them first.
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    return jax.lax.dot_general(a, b, (contracted, ((), ())), preferred_element_type=jnp.float32, precision=precision)


def _rows_by_rows(a, b):
    """[M, K], [N, K] → [M, N]."""
    return _dot(a, b, ((1,), (1,)))


def _sum_over_rows(a, b):
    """[K, M], [K, N] → [M, N]."""
    return _dot(a, b, ((0,), (0,)))


def _for_groups(grid, masked, qkv_ref, bias_ref, rest, body):
    """Calls `body` for every window of the block and group of lanes.

    body: function of (window of the block, whether it is one of the image, lanes of the group, [heads] functions that keep the lanes of a
      head, [heads] numbers of the heads, [heads] weights [M², M²] float32 of their queries, those queries scaled [M², 128], keys, values).
    """
    windows, t, columns = qkv_ref.shape[1:]
    padded, heads = columns // 3, bias_ref.shape[0]
    width, first = padded // heads, pl.program_id(1) * windows
    lane = jax.lax.broadcasted_iota(jnp.int32, (t, _LANES), 1)

    def keep(head):
        return lambda x: jnp.where((lane >= head * width) & (lane < (head + 1) * width), x, jnp.zeros_like(x))
    keepers = [keep(head) for head in range(_LANES // width)]

    def of_window(window, _):
        index = first + window
        row, column = jax.lax.div(index, grid[1]), jax.lax.rem(index, grid[1])
        kind = 2 * (row == grid[0] - 1).astype(jnp.int32) + (column == grid[1] - 1).astype(jnp.int32)

        def of_group(group, _):
            q, k, v = (qkv_ref[0, window, :, pl.ds(pl.multiple_of(part * padded + group * _LANES, _LANES), _LANES)] for part in range(3))
            scale = jnp.asarray(width**-0.5, q.dtype)
            queries, numbers, weights = [], [], []
            for head, kept in enumerate(keepers):
                numbers.append(group * len(keepers) + head)
                queries.append(kept(q) * scale)
                scores = _rows_by_rows(queries[-1], k) + bias_ref[numbers[-1]]
                if masked:
                    scores += rest[0][kind]
                shifted = jnp.exp(scores - scores.max(1, keepdims=True))
                weights.append(shifted / shifted.sum(1, keepdims=True))
            body(window, index < grid[0] * grid[1], pl.ds(pl.multiple_of(group * _LANES, _LANES), _LANES), keepers, numbers, weights, queries,
                 k, v)
            return 0
        return jax.lax.fori_loop(0, padded // _LANES, of_group, 0)
    jax.lax.fori_loop(0, windows, of_window, 0)


def _forward_kernel(grid, masked, qkv_ref, bias_ref, *refs):
    *rest, out_ref = refs

    def body(window, real, lanes, keepers, numbers, weights, queries, k, v):
        out = sum(kept(_dot(p.astype(v.dtype), v, ((1,), (0,)))) for kept, p in zip(keepers, weights))
        out_ref[0, window, :, lanes] = out.astype(out_ref.dtype)
    _for_groups(grid, masked, qkv_ref, bias_ref, rest, body)


def _backward_kernel(grid, masked, qkv_ref, grad_ref, bias_ref, *refs):
    *rest, grad_qkv_ref, grad_bias_ref = refs
    padded = grad_ref.shape[3]

    @pl.when(pl.program_id(1) == 0)
    def _():
        grad_bias_ref[...] = jnp.zeros_like(grad_bias_ref)

    def body(window, real, lanes, keepers, numbers, weights, queries, k, v):
        grad = grad_ref[0, window, :, lanes]
        grad_q, grad_k, grad_v = 0.0, 0.0, 0.0
        for kept, number, p, q in zip(keepers, numbers, weights, queries):
            of_head = kept(grad)
            grad_p = _rows_by_rows(of_head, v)
            grad_scores = p * (grad_p - (p * grad_p).sum(1, keepdims=True))
            # A block's windows behind the last one hold whatever was there.
            grad_bias_ref[0, number] += jnp.where(real, grad_scores, 0.0)
            grad_scores = grad_scores.astype(q.dtype)
            grad_v += _sum_over_rows(p.astype(v.dtype), of_head)
            grad_k += _sum_over_rows(grad_scores, q)
            grad_q += kept(_dot(grad_scores, k, ((1,), (0,))))
        width = padded // bias_ref.shape[0]
        for part, of_part in enumerate((grad_q * width**-0.5, grad_k, grad_v)):
            grad_qkv_ref[0, window, :, pl.ds(pl.multiple_of(part * padded, _LANES) + lanes.start, _LANES)] = of_part.astype(grad_qkv_ref.dtype)
    _for_groups(grid, masked, qkv_ref, bias_ref, rest, body)
