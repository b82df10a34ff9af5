"""Modulated deformable 3×3 convolutions in gather form: every platform runs it, for any offsets.

Each map is packed once with the four corners of a bilinear sample side by side in the channels, so that one gather
fetches a sample; all maps share one table and all convolutions of a layer are one list of positions. A scan over the
nine taps, some at a time, never holds more than their samples.
"""
import jax
import jax.numpy as jnp
import numpy as np

from glipv2_jax.ops.einsum import einsum_float32

TAPS = 9


def gather_conv(convs, maps, points, kernels, together=1):
    """Convolutions of one image.

    Args:
      convs: tuple of Conv, in the order of their kernels. maps: list of [H, W, C].
      points: list of Points, each [9, Ho, Wo]. kernels: [S, 9, C, Co].
      together: taps of a step, a divisor of 9; their samples lie side by side and are multiplied at once.
    Returns: list of [Ho, Wo, Co] float32.
    """
    table, rows, weights, segments = _flat(convs, maps, points, len(kernels))

    def step(totals, args):
        rows, weights, kernels = args
        samples = _side_by_side(_samples(table, rows, weights)[0], together)
        # A sum for each kernel: XLA adds the products to them in place; one array of all would be copied in every step.
        return [total + einsum_float32("pc,cd->pd", s.astype(k.dtype), k)
                for total, s, k in zip(totals, _segments(samples, segments), kernels)], None
    totals = [jnp.zeros((count, kernels.shape[-1]), jnp.float32) for count in segments]
    totals = jax.lax.scan(step, totals, _steps(rows, weights, kernels, together))[0]
    return [part.reshape(*p.top.shape[1:], -1) for part, p in zip(_segments(jnp.concatenate(totals), _counts(points)), points)]


def gather_gradients(convs, maps, points, kernels, grads, together=1):
    """Gradients of `gather_conv`.

    One table accumulator goes through all taps; plain autodiff would zero-fill and add a table nine times.

    Args:
      grads: list of [Ho, Wo, Co] float32; others as there.
    Returns: (list of [H, W, C], list of [9, 4, Ho, Wo] of the corner weights, [S, 9, C, Co]).
    """
    table, rows, weights, segments = _flat(convs, maps, points, len(kernels))
    grads = _segments(jnp.concatenate([g.reshape(-1, g.shape[-1]) for g in grads]).astype(kernels.dtype), segments)

    def step(grad_table, args):
        rows, weights, kernels = args
        samples, corners = _samples(table, rows, weights)
        samples = _side_by_side(samples.astype(kernels.dtype), together)
        grad_kernels = jnp.stack([einsum_float32("pc,pd->cd", s, g) for s, g in zip(_segments(samples, segments), grads)])
        # Rounded as the samples are, summed in float32 by the corners' weights and by the table.
        grad_samples = jnp.concatenate([jnp.einsum("pd,cd->pc", g, k) for g, k in zip(grads, kernels)])
        grad_samples = grad_samples.reshape(len(rows), -1).astype(jnp.float32)
        grad_weights = jnp.stack([(corner * grad_samples).sum(-1) for corner in corners])
        grad_rows = jnp.concatenate([w[:, None] * grad_samples for w in weights], axis=1)
        return grad_table.at[rows].add(grad_rows, mode="promise_in_bounds"), (grad_weights, grad_kernels)

    grad_table, (grad_weights, grad_kernels) = jax.lax.scan(
        step, jnp.zeros(table.shape, jnp.float32), _steps(rows, weights, kernels, together))
    _, unpack = jax.vjp(lambda *maps: _corner_table(maps)[0], *(x.astype(jnp.float32) for x in maps))
    # [steps, 4, P · together] → [9, 4, P]
    grad_weights = grad_weights.reshape(-1, 4, rows.shape[1], together).transpose(0, 3, 1, 2).reshape(weights.shape)
    grad_weights = [part.reshape(p.weights.shape) for part, p in zip(_segments(grad_weights, _counts(points), axis=2), points)]
    return list(unpack(grad_table)), grad_weights, grad_kernels.swapaxes(0, 1).reshape(kernels.shape)


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


def _steps(rows, weights, kernels, together):
    """Rows [9, P], weights [9, 4, P] and kernels [S, 9, C, Co] of every step: [steps, P · together], the taps of a position side by side,
    [steps, 4, P · together] and [steps, S, together · C, Co]."""
    steps, positions = TAPS // together, rows.shape[1]
    return (rows.reshape(steps, together, positions).swapaxes(1, 2).reshape(steps, -1),
            weights.reshape(steps, together, 4, positions).transpose(0, 2, 3, 1).reshape(steps, 4, -1),
            kernels.reshape(len(kernels), steps, -1, kernels.shape[-1]).swapaxes(0, 1))


def _samples(table, rows, weights):
    """[N, C] float32 samples and the list of their four gathered corners [N, C]."""
    corners = jnp.split(table.at[rows].get(mode="promise_in_bounds"), 4, axis=1)
    # Four multiply-adds over whole rows: a reduction over a corner axis compiles to strided loops on the CPU.
    return sum(corner * w[:, None] for corner, w in zip(corners, weights)), corners


def _side_by_side(samples, together):
    """[P · together, C] → [P, together · C]."""
    return samples.reshape(len(samples) // together, -1)
