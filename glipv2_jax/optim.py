"""AdamW with the reference's parameter groups, schedules, clipping and freezing. Source: GLIP solver/build.py."""
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax


def milestone_steps(milestones, num_steps):
    """Fractions of the run below 1 become steps, rounded half to even as the reference does; others stand as given."""
    return tuple(round(m * num_steps) if m < 1 else int(m) for m in milestones)


def learning_rate(step, base, config, num_steps, factor=1.0):
    """Rate of the update made after `step` completed ones.

    Args:
      step: int array. base: the group's base rate.
      config: `config.optimizer`: schedule "multistep", "cosine" or "plateau", warmup_steps, warmup_factor,
        warmup_method "linear" or "constant", milestones, gamma, min_learning_rate.
      num_steps: of the whole run.
      factor: of the base rate, in schedule "plateau" alone: float array, see `plateau.Plateau`.
    Returns: float32 array.
    Raises: ValueError for an unknown schedule.
    """
    step = jnp.asarray(step, jnp.float32)
    warmup = config.warmup_steps
    if config.warmup_method not in ("linear", "constant"):
        raise ValueError(f"optimizer.warmup_method: found {config.warmup_method!r}, expected 'linear' or 'constant'")
    share = step / max(warmup, 1) if config.warmup_method == "linear" else 0.0
    warm = jnp.where(step < warmup, config.warmup_factor * (1 - share) + share, 1.0)
    if config.schedule == "multistep":
        drops = sum((step >= m).astype(jnp.float32) for m in milestone_steps(config.milestones, num_steps))
        return base * warm * config.gamma**drops
    if config.schedule == "cosine":
        floor = config.min_learning_rate
        # The reference divides by the whole run, not by what warm-up leaves of it.
        decayed = floor + (base - floor) * 0.5 * (1 + jnp.cos(np.pi * (step - warmup) / num_steps))
        return jnp.where(step < warmup, base * warm, decayed)
    if config.schedule == "plateau":
        # A base rate below the floor stays. Differs from GLIP: warm-up covers the first step, which ran at the full rate.
        return warm * jnp.maximum(base * factor, min(base, config.min_learning_rate))
    raise ValueError(f"optimizer.schedule: found {config.schedule!r}, expected 'multistep', 'cosine' or 'plateau'")


def weight_decay_factor(step, config, num_steps):
    """GLIP-L: decay drops by gamma at 0.667 of every milestone. 1 throughout when `decay_weight_decay` is off."""
    if not config.decay_weight_decay:
        return jnp.ones(())
    milestones = milestone_steps(config.milestones, num_steps)
    return config.gamma**sum((jnp.asarray(step, jnp.float32) >= 0.667 * m).astype(jnp.float32) for m in milestones)


def group_of(path, config):
    """(base rate, weight decay) of a parameter.

    Every bias trains at twice the rate and without decay, and so do the relative position tables, `bias_lang` and
    `bias0`, whose names contain "bias"; norms are decayed.

    Args:
      path: "text_encoder/layer0/query/kernel". config: `config.optimizer`.
    """
    rate = config.text_learning_rate if path.startswith("text_encoder/") else config.learning_rate
    if "bias" in path.rsplit("/", 1)[-1]:
        return rate * config.bias_rate_factor, 0.0
    return rate, config.weight_decay


def frozen(path, patterns):
    """Whether a parameter is left alone: one of the regular expressions matches the start of its path."""
    return any(re.match(pattern, path) for pattern in patterns)


def path_string(path):
    """Key path of jax.tree_util → "a/b/c"."""
    return "/".join(str(getattr(key, "key", key)) for key in path)


class PlateauState(NamedTuple):
    """Of schedule "plateau": what an evaluation decides is an array among others, and nothing is compiled anew."""
    count: jax.Array                     # completed updates
    learning_rate_factor: jax.Array      # of the base rates


def with_learning_rate_factor(opt_state, factor):
    """The state of a "plateau" optimizer with another factor, on the same devices."""
    before = optax.tree.get(opt_state, "learning_rate_factor")
    return optax.tree.set(opt_state, learning_rate_factor=jax.device_put(np.float32(factor), before.sharding))


def make_optimizer(config, num_steps, freeze=()):
    """The optimizer of a run.

    Args:
      config: `config.optimizer`.
      num_steps: of the whole run.
      freeze: regular expressions of parameter paths without gradient, moments and decay.
    Returns: optax transformation; its updates are ready to be added to the parameters.
    Raises: ValueError, at its init, for a pattern of `freeze` that matches no parameter.
    """
    def init(params):
        del params
        count = jnp.zeros((), jnp.int32)
        if config.schedule == "plateau":
            return PlateauState(count, jnp.ones((), jnp.float32))
        return optax.ScaleByScheduleState(count)

    def update(updates, state, params):
        step, factor = state.count, getattr(state, "learning_rate_factor", 1.0)
        decay = weight_decay_factor(step, config, num_steps)

        def one(path, u, p):
            rate, weight_decay = group_of(path_string(path), config)
            return -learning_rate(step, rate, config, num_steps, factor) * (u + weight_decay * decay * p)
        return jax.tree_util.tree_map_with_path(one, updates, params), state._replace(count=step + 1)

    adamw = optax.chain(
        optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity(),
        optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8),
        optax.GradientTransformation(init, update))

    def labels(params):
        paths = [path_string(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        for pattern in freeze:
            if not any(frozen(path, [pattern]) for path in paths):
                raise ValueError(f"config.train.freeze: {pattern!r} matches the start of no parameter's path, expected one "
                                 f"like {paths[0]!r}")
        return jax.tree_util.tree_map_with_path(
            lambda path, _: "frozen" if frozen(path_string(path), freeze) else "trained", params)
    return optax.partition({"trained": adamw, "frozen": optax.set_to_zero()}, labels)


def default_freeze(model_config):
    """Patterns of what the reference never trains: its unused classifier, and the backbone's frozen stages."""
    patterns = [r"localization/class_logits/"] if model_config.num_class_logits else []
    stages = model_config.image_encoder.frozen_stages
    if stages >= 0:
        patterns.append(r"image_encoder/patch_embed/")
    return patterns + [rf"image_encoder/stage{stage}_" for stage in range(stages - 1)]
