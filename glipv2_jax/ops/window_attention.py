"""Attention inside the windows of a map, with a bias for each head and pair of cells.

Two forms compute the same, gradients too: XLA's operations, and on TPUs a kernel (`window_attention_tpu`) whose scores never leave the
chip, and are computed again in the backward pass; `forms` decides between them. XLA's form asks for them again, too, but XLA takes those of
the forward pass where one program holds both; `flops.count` counts them twice.
Source: GLIP backbone/swint.py, WindowAttention.
"""
import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np

from glipv2_jax.ops import window_attention_tpu as tpu
from glipv2_jax.ops.einsum import einsum_float32
from glipv2_jax.ops.forms import check_form, in_form
from glipv2_jax.sharding import map_images

# What a program is made for: the form, heads, windows along height and width, cells that a window is shifted by.
Settings = collections.namedtuple("Settings", "form heads grid shift")


def window_attention(qkv, bias, *, grid, shift=0, form="auto"):
    """Every cell reads the cells of its window.

    Args:
      qkv: [B, W, M², 3·C], of each cell the query, key and value of all heads, side by side; windows are row-major.
      bias: [N, M², M²] float32, added to the scores of query and key.
      grid: (windows along the height, along the width); W is their product.
      shift: cells by which the map was rolled before it was cut: what the roll brought together in the last row and column of windows
        does not read each other (−100 is added, as in the reference); 0: it was not.
      form: "xla" or "gpu"; "kernel", interpreted where there is no TPU; "auto": "kernel" when compiled for TPUs and the sizes allow it.
    Returns: [B, W, M², C] in the type of `qkv`.
    Raises: ValueError for an unknown form, or a grid that does not fit.
    """
    check_form("window_attention", form)
    if grid[0] * grid[1] != qkv.shape[1]:
        raise ValueError(f"window_attention: found {qkv.shape[1]} windows, expected {grid[0]} × {grid[1]}")
    return _attention(Settings(form, len(bias), tuple(grid), shift), qkv, bias)


def shift_masks(window, shift):
    """[4, M², M²] float32, −100 between cells that the cyclic shift brought together, else 0: for windows that are neither in the last row
    nor column, in the last column, in the last row, in both."""
    def regions(last):
        return last * (1 + (np.arange(window) >= window - shift))
    labels = [(3 * regions(row)[:, None] + regions(column)).reshape(-1) for row in (0, 1) for column in (0, 1)]
    return np.stack([np.where(of_window[:, None] == of_window, 0.0, -100.0) for of_window in labels]).astype(np.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(settings, qkv, bias):
    return _attention_forward(settings, qkv, bias)[0]


def _attention_forward(settings, qkv, bias):
    return _for_images(settings, _plain, _kernel, (qkv,), bias), (qkv, bias)


def _attention_backward(settings, residuals, grad):
    qkv, bias = residuals
    return _for_images(settings, _plain_gradients, _kernel_gradients, (qkv, grad), bias)


_attention.defvjp(_attention_forward, _attention_backward)


def _for_images(settings, plain, kernel, batched, bias):
    """Runs one of two functions of a batch."""
    _, _, cells, columns = batched[0].shape
    masks = shift_masks(int(cells**0.5), settings.shift) if settings.shift else None
    supported = tpu.supported(columns // 3, settings.heads)
    return in_form(settings.form, supported, functools.partial(plain, settings, masks), functools.partial(kernel, settings, masks),
                   *batched, bias)


def _kernel(settings, masks, qkv, bias, interpret=False):
    return map_images(lambda qkv, bias: tpu.attention(qkv, bias, masks, settings.grid, interpret), qkv, whole=(bias,))


def _kernel_gradients(settings, masks, qkv, grad, bias, interpret=False):
    grad_qkv, grad_bias = map_images(lambda qkv, grad, bias: tpu.attention_gradients(qkv, grad, bias, masks, settings.grid, interpret),
                                     qkv, grad, whole=(bias,))
    return grad_qkv, grad_bias.sum(0)


def _plain(settings, masks, qkv, bias):
    b, w, t, _ = qkv.shape
    parts = qkv.reshape(b, w, t, 3, settings.heads, -1)
    q, k, v = parts[..., 0, :, :], parts[..., 1, :, :], parts[..., 2, :, :]
    scores = einsum_float32("bwqnd,bwknd->bwnqk", q * q.shape[-1]**-0.5, k) + bias
    if masks is not None:
        rows, columns = settings.grid
        kinds = 2 * (np.arange(rows) == rows - 1)[:, None] + (np.arange(columns) == columns - 1)
        scores = scores + masks[kinds.reshape(-1)][:, None]
    weights = jax.nn.softmax(scores).astype(qkv.dtype)
    return jnp.einsum("bwnqk,bwknd->bwqnd", weights, v).reshape(b, w, t, -1)


def _plain_gradients(settings, masks, qkv, grad, bias):
    return jax.vjp(functools.partial(_plain, settings, masks), qkv, bias)[1](grad)
