"""Modulated deformable 3×3 convolutions in gather form: every platform runs it, for any offsets.

Each map is packed once with the four corners of a bilinear sample side by side in the channels, so that one gather
fetches a sample; all maps share one table and all convolutions of a layer are one list of positions. A scan over the
nine taps never holds more than one tap's samples.
"""
import jax
import jax.numpy as jnp
import numpy as np

from glipv2_jax.ops.einsum import einsum_float32

TAPS = 9


def gather_conv(convs, maps, points, kernels):
    """Convolutions of one image.

    Args:
      convs: tuple of Conv, in the order of their kernels. maps: list of [H, W, C].
      points: list of Points, each [9, Ho, Wo]. kernels: [S, 9, C, Co].
    Returns: list of [Ho, Wo, Co] float32.
    """
    table, rows, weights, segments = _flat(convs, maps, points, len(kernels))

    def tap(total, args):
        rows, weights, kernels = args
        sample, _ = _sample(table, rows, weights)
        products = [einsum_float32("pc,cd->pd", s.astype(k.dtype), k)
                    for s, k in zip(_segments(sample, segments), kernels)]
        return total + jnp.concatenate(products), None
    total = jnp.zeros((rows.shape[-1], kernels.shape[-1]), jnp.float32)
    flat = jax.lax.scan(tap, total, (rows, weights, kernels.swapaxes(0, 1)))[0]
    return [part.reshape(*p.top.shape[1:], -1) for part, p in zip(_segments(flat, _counts(points)), points)]


def gather_gradients(convs, maps, points, kernels, grads):
    """Gradients of `gather_conv`.

    One table accumulator goes through all taps; plain autodiff would zero-fill and add a table nine times.

    Args:
      grads: list of [Ho, Wo, Co] float32; others as there.
    Returns: (list of [H, W, C], list of [9, 4, Ho, Wo] of the corner weights, [S, 9, C, Co]).
    """
    table, rows, weights, segments = _flat(convs, maps, points, len(kernels))
    grad = jnp.concatenate([g.reshape(-1, g.shape[-1]) for g in grads])

    def tap(grad_table, args):
        rows, weights, kernels = args
        sample, corners = _sample(table, rows, weights)
        grads = _segments(grad, segments)
        grad_kernels = jnp.stack([einsum_float32("pc,pd->cd", s, g)
                                  for s, g in zip(_segments(sample, segments), grads)])
        grad_sample = jnp.concatenate([einsum_float32("pd,cd->pc", g.astype(k.dtype), k)
                                       for g, k in zip(grads, kernels)])
        grad_weights = jnp.stack([(corner * grad_sample).sum(-1) for corner in corners])
        grad_rows = jnp.concatenate([w[:, None] * grad_sample for w in weights], axis=1)
        return grad_table.at[rows].add(grad_rows, mode="promise_in_bounds"), (grad_weights, grad_kernels)

    grad_table, (grad_weights, grad_kernels) = jax.lax.scan(
        tap, jnp.zeros(table.shape, jnp.float32), (rows, weights, kernels.swapaxes(0, 1)))
    _, unpack = jax.vjp(lambda *maps: _corner_table(maps)[0], *(x.astype(jnp.float32) for x in maps))
    grad_weights = [part.reshape(p.weights.shape) for part, p in zip(_segments(grad_weights, _counts(points), axis=2), points)]
    return list(unpack(grad_table)), grad_weights, grad_kernels.swapaxes(0, 1)


def _corner_table(maps):
    """([R, 4C], starts): row starts[m] + i·(W+1) + j holds the pixels (i−1, j−1), (i−1, j), (i, j−1), (i, j) of map m, zeros
    outside of it."""
    tables, starts, row = [], [], 0
    for x in maps:
        h, w, c = x.shape
        p = jnp.pad(x, ((1, 1), (1, 1), (0, 0)))
        corners = [p[:-1, :-1], p[:-1, 1:], p[1:, :-1], p[1:, 1:]]
        tables.append(jnp.concatenate(corners, axis=-1).reshape((h + 1) * (w + 1), 4 * c))
        starts.append(row)
        row += (h + 1) * (w + 1)
    return jnp.concatenate(tables), starts


def _flat(convs, maps, points, num_kernels):
    """Table; rows [9, P] and weights [9, 4, P] of all positions; number of each kernel's positions."""
    table, starts = _corner_table(maps)
    rows, weights, segments = [], [], [0] * num_kernels
    for conv, p, count in zip(convs, points, _counts(points)):
        start = starts[conv.source]
        at = (p.top + 1) * (maps[conv.source].shape[1] + 1) + p.left + 1 + start
        rows.append(jnp.where(p.valid, at, start).reshape(TAPS, count))
        weights.append(p.weights.reshape(TAPS, 4, count))
        segments[conv.kernel] += count
    return table, jnp.concatenate(rows, axis=-1), jnp.concatenate(weights, axis=-1), segments


def _counts(points):
    return [int(np.prod(p.top.shape[1:])) for p in points]


def _segments(x, counts, axis=0):
    return jnp.split(x, np.cumsum(counts)[:-1].tolist(), axis=axis)


def _sample(table, rows, weights):
    """[P, C] float32 samples and the list of their four gathered corners [P, C]."""
    corners = jnp.split(table.at[rows].get(mode="promise_in_bounds"), 4, axis=1)
    # Four multiply-adds over whole rows: a reduction over a corner axis compiles to strided loops on the CPU.
    return sum(corner * w[:, None] for corner, w in zip(corners, weights)), corners
