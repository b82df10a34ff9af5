"""What a run carries from step to step: arrays only. Created sharded, never whole on one device."""
import flax.struct
import jax
import jax.numpy as jnp

from glipv2_jax import sharding
from glipv2_jax.models.glipv2 import axis_names, init_params


@flax.struct.dataclass
class TrainState:
    step: jax.Array                   # completed updates
    params: dict
    opt_state: tuple
    ema_params: dict | None           # exponential moving average, None when off
    loss_average: jax.Array           # of the last hundred steps or so that changed the parameters; what a spike is measured by


def abstract_state(model, optimizer, use_ema, mesh, rules, min_shard_size=2**14):
    """Shapes and shardings of the state.

    Args:
      model: GLIPv2 module. optimizer: optax transformation.
      use_ema: whether averaged parameters are kept.
      mesh, rules: where axes go, see `sharding.axes_of`. min_shard_size: elements; smaller arrays stay whole.
    Returns: (function of a key that creates the state, TrainState of ShapeDtypeStructs that carry shardings).
    """
    def create(key):
        params = init_params(model, key)
        # a copy: donated states must not hold one buffer twice
        ema = jax.tree.map(jnp.copy, params) if use_ema else None
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), ema, jnp.zeros(()))
    shapes = jax.eval_shape(create, jax.random.key(0))
    shardings = sharding.parameter_shardings(shapes, axis_names(model), mesh, rules, min_shard_size)
    return create, jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def shardings_of(abstract):
    return jax.tree.map(lambda x: x.sharding, abstract)
