"""What a run carries from step to step: arrays only. Created sharded, never whole on one device."""
import flax.struct
import jax
import jax.numpy as jnp

from glipv2_jax import sharding


@flax.struct.dataclass
class TrainState:
    step: jax.Array                   # completed updates
    params: dict
    opt_state: tuple
    ema_params: dict | None           # exponential moving average, None when off


def abstract_state(model, optimizer, canvas, max_tokens, use_ema, mesh, min_shard_size=2**14):
    """Shapes and shardings of the state.

    Args:
      model: GLIPv2 module. optimizer: optax transformation.
      canvas: (H, W) pixels. max_tokens: T.
      use_ema: whether averaged parameters are kept.
    Returns: (function of a key that creates the state, TrainState of ShapeDtypeStructs that carry shardings).
    """
    one = (jnp.zeros((1, *canvas, 3), jnp.uint8), jnp.ones((1, 2), jnp.int32), jnp.zeros((1, max_tokens), jnp.int32),
           jnp.ones((1, max_tokens), bool))

    def create(key):
        params = model.init(key, *one)["params"]
        # a copy: donated states must not hold one buffer twice
        ema = jax.tree.map(jnp.copy, params) if use_ema else None
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), ema)
    shapes = jax.eval_shape(create, jax.random.key(0))
    shardings = sharding.fsdp_sharding(shapes, mesh, min_shard_size)
    return create, jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def shardings_of(abstract):
    return jax.tree.map(lambda x: x.sharding, abstract)
