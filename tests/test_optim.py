"""Optimizer groups, schedules, averaging and freezing against the reference's numbers."""
import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from glipv2_jax.convert.names import parameter_of
from glipv2_jax.models.config import VARIANTS
from glipv2_jax.optim import (
    default_freeze,
    frozen,
    group_of,
    learning_rate,
    make_optimizer,
    milestone_steps,
    weight_decay_factor,
)


def settings(**changes):
    values = {"learning_rate": 1e-4, "text_learning_rate": 1e-5, "weight_decay": 1e-4, "bias_rate_factor": 2.0,
              "clip_norm": 1.0, "schedule": "multistep", "milestones": (0.67, 0.89), "gamma": 0.1, "warmup_steps": 0,
              "warmup_factor": 0.001, "warmup_method": "linear", "min_learning_rate": 1e-6, "decay_weight_decay": False}
    return types.SimpleNamespace(**{**values, **changes})


def test_reference_parameter_groups(load_reference):
    for name, about in load_reference("optimizer_groups.json").items():
        if name == "note":
            continue
        config = settings(learning_rate=about["base_lr"], text_learning_rate=about["lang_lr"],
                          weight_decay=about["weight_decay"], bias_rate_factor=about["bias_lr_factor"])
        freeze = default_freeze(VARIANTS["glip_l" if "Swin_L" in about["config"] else "glip_t"])
        for key, expected in about["parameters"].items():
            path = parameter_of(key)[0]
            np.testing.assert_allclose(group_of(path, config), (expected["lr"], expected["weight_decay"]), rtol=1e-6,
                                       err_msg=key)
            assert not frozen(path, freeze), key
        for key in about["not_in_optimizer"]:
            assert frozen(parameter_of(key)[0], freeze), key


def test_reference_frozen_stages(load_reference, reference_dir):
    manifest = json.loads((reference_dir / "manifest_tiny.json").read_text())
    keys = {key.removeprefix("module.") for key, about in manifest.items() if about["weight"]}
    for k, about in load_reference("freeze.json")["FREEZE_CONV_BODY_AT"].items():
        image_encoder = dataclasses.replace(VARIANTS["glip_t"].image_encoder, frozen_stages=int(k))
        patterns = default_freeze(dataclasses.replace(VARIANTS["glip_t"], image_encoder=image_encoder))
        expected = {key.removeprefix("module.") for key in about["frozen"]} & keys
        assert {key for key in keys if frozen(parameter_of(key)[0], patterns)} == expected, k


def test_reference_schedules(load_reference):
    cases, checked = load_reference("schedule.json"), 0
    for about in cases.values():
        if not isinstance(about, dict) or "lr_at" not in about:
            continue
        config = settings(schedule="multistep" if "steps" in about else "cosine", milestones=about.get("steps", ()),
                          gamma=about.get("gamma", 0.1), warmup_steps=about["warmup_iters"],
                          warmup_factor=about["warmup_factor"], warmup_method=about.get("warmup_method", "linear"),
                          min_learning_rate=about.get("min_lr", 0.0))
        for step, rates in about["lr_at"].items():
            found = [learning_rate(int(step), base, config, about["max_iter"]) for base in about["base_lrs"]]
            np.testing.assert_allclose(found, rates, rtol=1e-5)
            checked += 1
    assert checked > 20
    for steps, expected in cases["rounding_of_milestones"].items():
        assert list(milestone_steps((0.67, 0.89), int(steps))) == expected
    decay = cases["weight_decay_schedule"]
    config = settings(milestones=decay["milestones"], decay_weight_decay=True)
    for step, expected in decay["wd_at"].items():
        np.testing.assert_allclose(decay["weight_decay"] * weight_decay_factor(int(step), config, 10_000), expected, rtol=1e-5)


def test_adamw_by_hand():
    """Two steps in numpy: clipping of the whole gradient, decoupled decay, bias at twice the rate and without decay."""
    params = {"fpn": {"kernel": jnp.array([2.0, -1.0]), "bias": jnp.array([1.0])}}
    steps = [{"kernel": np.array([30.0, -40.0]), "bias": np.array([5.0])},
             {"kernel": np.array([0.1, 0.2]), "bias": np.array([-0.3])}]
    optimizer = make_optimizer(settings(weight_decay=0.1), num_steps=100)
    state = optimizer.init(params)
    mean, square = ({k: np.zeros(v.shape) for k, v in params["fpn"].items()} for _ in range(2))
    for t, grads in enumerate(steps, start=1):
        updates, state = optimizer.update({"fpn": jax.tree.map(jnp.asarray, grads)}, state, params)
        norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
        for key, g in grads.items():
            g = g * min(1.0, 1.0 / norm)
            mean[key] = 0.9 * mean[key] + 0.1 * g
            square[key] = 0.999 * square[key] + 0.001 * g**2
            adam = mean[key] / (1 - 0.9**t) / (np.sqrt(square[key] / (1 - 0.999**t)) + 1e-8)
            rate, decay = (2e-4, 0.0) if key == "bias" else (1e-4, 0.1)
            expected = -rate * (adam + decay * np.asarray(params["fpn"][key]))
            np.testing.assert_allclose(updates["fpn"][key], expected, rtol=1e-4)
        params = optax.apply_updates(params, updates)


def test_frozen_parameters_have_no_moments_and_do_not_move():
    params = {"text_encoder": {"kernel": jnp.ones(3)}, "fpn": {"kernel": jnp.ones(3)}}
    optimizer = make_optimizer(settings(), 100, freeze=("text_encoder/",))
    state = optimizer.init(params)
    assert sum(x.size for x in jax.tree.leaves(state) if x.ndim) == 2 * 3
    updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)
    assert not updates["text_encoder"]["kernel"].any() and updates["fpn"]["kernel"].all()


def test_a_frozen_part_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="'backbone/' matches the start of no parameter's path, expected one like 'fpn/w'"):
        make_optimizer(settings(), 100, freeze=("fpn/", "backbone/")).init({"fpn": {"w": np.zeros(2)}})


def test_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match="found 'linear', expected 'multistep', 'cosine' or 'plateau'"):
        learning_rate(0, 1.0, settings(schedule="linear"), 10)
