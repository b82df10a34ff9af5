"""Layers that several parts share. Each names the axes of its parameters, for `sharding.py` to place them."""
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from glipv2_jax.sharding import gathered

# Initialiser of a parameter whose axes have these names.
named = nn.with_logical_partitioning

_norm = {"scale_init": named(nn.initializers.ones, ("embed",)), "bias_init": named(nn.initializers.zeros, ("embed",)),
         "use_fast_variance": False}
# The fast variance (mean of squares minus square of mean) loses digits that parity needs. The text side has
# an epsilon of its own.
LayerNorm = functools.partial(nn.LayerNorm, epsilon=1e-5, **_norm)
TextNorm = functools.partial(nn.LayerNorm, epsilon=1e-12, **_norm)
GroupNorm = functools.partial(nn.GroupNorm, epsilon=1e-5, **_norm)

# PyTorch's defaults for a layer that sums n products: U(±1/√n) for weight and bias.
TORCH_DEFAULT = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def torch_bias(fan_in):
    """Initialiser of a bias, U(±1/√n) of n = `fan_in` products."""
    bound = fan_in**-0.5
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


class _Named:
    """A layer whose parameters' axes have the names in `names`; a vector has the last of them."""

    def param(self, name, init_fn, *args, **kwargs):
        names = self.names if name in ("kernel", "embedding") else self.names[-1:]
        value = super().param(name, named(init_fn, names), *args, **kwargs)
        return gathered(value.astype(self.dtype or value.dtype), names)


class Dense(_Named, nn.Dense):
    """nn.Dense over flattened leading axes.

    The gradient of the kernel is then one plain matrix product; contracting three axes at once takes XLA's CPU backend
    four times as long. Shapes and parameters are those of nn.Dense.
    """
    names: tuple[str | None, str | None] = ("embed", "mlp")

    def __call__(self, x):
        return super().__call__(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], self.features)


class Conv(_Named, nn.Conv):
    names: tuple[str | None, ...] = (None, None, "mlp", "embed")


class Embed(_Named, nn.Embed):
    names: tuple[str | None, str | None] = ("vocab", "embed")


def rematerialised(module, policy, static_argnums=()):
    """A module class whose activations are computed again in the backward pass.

    Args:
      module: nn.Module class.
      policy: "" leaves it as it is; "nothing" keeps only its inputs; another is the name of a jax.checkpoint policy, such as
        "dots_with_no_batch_dims_saveable", which says what is kept besides.
      static_argnums: arguments of its call that are no arrays, counted with self.
    """
    if not policy:
        return module
    kept = None if policy == "nothing" else getattr(jax.checkpoint_policies, policy)
    return nn.remat(module, policy=kept, static_argnums=static_argnums)


def scanned(layers, body, carry, rng=None, rates=None):
    """Runs through equal layers in one loop, of which the compiler sees one: it needs less time and much less memory.

    Values are those of one layer after another, but for dropout, which draws other numbers. The loop reads the layers' parameters side
    by side, kernels in the compute type; where they are kept does not change.

    Args:
      layers: list of tuples of bound modules, the modules of a step; those at the same place differ in their parameters alone.
      body: function of (functions in the place of the modules, carry, entry of `rates` or None) → carry.
      carry: tree of arrays.
      rng: for dropout, or None.
      rates: [len(layers), …] array, or None.
    Returns: the last carry.
    """
    modules = [module.clone(parent=None, name=None) for module in layers[0]]

    def cast(path, x, dtype):
        return x.astype(dtype) if path[-1].key.endswith("kernel") else x

    def parameters(module):
        to_dtype = functools.partial(cast, dtype=getattr(module, "dtype", None))
        return jax.tree_util.tree_map_with_path(to_dtype, module.variables.get("params", {}))
    params = [[parameters(module) for module in step] for step in layers]
    params = jax.tree.map(lambda *x: jnp.stack(x), *params)
    keys = None if rng is None else jax.random.split(rng, (len(layers), len(modules)))

    def step(carry, inputs):
        params, keys, rate = inputs

        def function(i):
            rngs = {} if keys is None else {"dropout": keys[i]}
            return lambda *args: modules[i].apply({"params": params[i]}, *args, rngs=rngs)
        return body([function(i) for i in range(len(modules))], carry, rate), None
    return jax.lax.scan(step, carry, (params, keys, rates))[0]


def flatten(levels):
    """List of [B, H, W, C] → [B, A, C], level after level, row-major inside of one."""
    return jnp.concatenate([x.reshape(x.shape[0], -1, x.shape[-1]) for x in levels], axis=1)


def unflatten(regions, shapes):
    """[B, A, C] → the levels of these shapes [B, H, W, C]."""
    ends = np.cumsum([shape[1] * shape[2] for shape in shapes])[:-1].tolist()
    return [x.reshape(shape) for x, shape in zip(jnp.split(regions, ends, axis=1), shapes)]
