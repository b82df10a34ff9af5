"""The update: what a bad step may change, and what the work of a step is."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from glipv2_jax import flops, train_step
from glipv2_jax.train_state import TrainState


@pytest.fixture
def step(monkeypatch):
    """Function of (state, loss, gradient) → (state, metrics): train_step with these in the place of a model's."""
    def gradients(model, objective, params, batch, key, accumulation_steps):
        return {"loss": batch["loss"]}, {"w": jnp.full_like(params["w"], batch["gradient"])}
    monkeypatch.setattr(train_step, "gradients", gradients)
    run = jax.jit(functools.partial(train_step.train_step, None, None, optax.adam(0.1), 0.9, 1, 3.0))

    def one(state, loss, gradient=1.0):
        return run(state, {"loss": jnp.float32(loss), "gradient": jnp.float32(gradient)}, jax.random.key(0))
    return one


def fresh(step=0, loss_average=0.0):
    params = {"w": jnp.arange(3.0)}
    return TrainState(jnp.int32(step), params, optax.adam(0.1).init(params), {"w": jnp.zeros(3)}, jnp.float32(loss_average))


@pytest.mark.parametrize("loss, gradient", [(np.nan, 1.0), (np.inf, 1.0), (1.0, np.nan), (1.0, np.inf)])
def test_a_step_that_is_not_finite_changes_nothing_but_its_number(step, loss, gradient):
    before, _ = step(fresh(), 2.0)
    after, metrics = step(before, loss, gradient)
    assert int(after.step) == 2 and not metrics["finite"] and not metrics["applied"] and metrics["update_norm"] == 0
    jax.tree.map(np.testing.assert_array_equal, after.replace(step=before.step), before)
    again, metrics = step(after, 2.0)
    assert metrics["applied"] and np.isfinite(again.params["w"]).all() and np.any(again.params["w"] != before.params["w"])


def test_a_jump_of_the_loss_is_left_out_once_the_average_can_be_trusted(step):
    _, metrics = step(fresh(step=99, loss_average=1.0), 50.0)
    assert metrics["applied"]
    before = fresh(step=100, loss_average=1.0)
    after, metrics = step(before, 3.5)
    assert metrics["finite"] and not metrics["applied"] and after.loss_average == 1.0
    jax.tree.map(np.testing.assert_array_equal, after.params, before.params)
    after, metrics = step(before, 2.9)
    assert metrics["applied"] and after.loss_average == pytest.approx(1.019)


def test_work_is_counted_as_often_as_it_runs():
    a, b = jnp.ones((4, 8)), jnp.ones((8, 16))
    assert flops.count(jnp.dot, a, b)["flops"] == 2 * 4 * 8 * 16

    def scanned(a, b):
        return jax.lax.scan(lambda c, _: (c, jax.checkpoint(jnp.dot)(a, b)), 0, None, length=5)[1]
    assert flops.count(scanned, a, b)["flops"] == 5 * 2 * 4 * 8 * 16
    branches = flops.count(lambda p, a, b: jax.lax.cond(p, lambda: a @ b, lambda: jnp.zeros((4, 16))), True, a, b)
    assert branches["flops"] == 2 * 4 * 8 * 16
    image, kernel = jnp.ones((1, 10, 10, 3)), jnp.ones((3, 3, 3, 5))
    convolve = functools.partial(jax.lax.conv_general_dilated, window_strides=(1, 1), padding="VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    assert flops.count(convolve, image, kernel)["flops"] == 2 * 8 * 8 * 5 * 3 * 3 * 3
    rows = flops.count(lambda x, i: x[i], a, jnp.array([0, 1, 2]))
    assert rows["gathered_rows"] == 3 and rows["scattered_rows"] == 0
    grads = flops.count(jax.grad(lambda x, i: x[i].sum()), a, jnp.array([0, 1, 2]))
    assert grads["scattered_rows"] == 3
