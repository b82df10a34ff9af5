"""Layers that several parts share."""
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

# The fast variance (mean of squares minus square of mean) loses digits that parity needs. The text side has
# an epsilon of its own.
LayerNorm = functools.partial(nn.LayerNorm, epsilon=1e-5, use_fast_variance=False)
TextNorm = functools.partial(nn.LayerNorm, epsilon=1e-12, use_fast_variance=False)

# PyTorch's defaults for a layer that sums n products: U(±1/√n) for weight and bias.
TORCH_DEFAULT = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def torch_bias(fan_in):
    """Initialiser of a bias, U(±1/√n) of n = `fan_in` products."""
    bound = fan_in**-0.5
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


class Dense(nn.Dense):
    """nn.Dense over flattened leading axes.

    The gradient of the kernel is then one plain matrix product; contracting three axes at once takes XLA's CPU backend
    four times as long. Shapes and parameters are those of nn.Dense.
    """

    def __call__(self, x):
        return super().__call__(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], self.features)
