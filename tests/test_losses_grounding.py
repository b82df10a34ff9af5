"""Values are compared relatively; gradients by ‖found − expected‖ / ‖expected‖."""
import re

import jax
import jax.numpy as jnp
import numpy as np

from glipv2_jax.losses import grounding

LIMIT = 1e-5
alignment_loss = jax.jit(grounding.alignment_loss)


def distance(found, expected):
    return np.linalg.norm(np.asarray(found) - expected) / np.linalg.norm(expected)


def test_reference_focal(load_reference):
    arrays = load_reference("focal.npz")
    targets = arrays["token.targets"] > 0
    # Every anchor with a positive token has its own box; the others have none.
    matched = np.where(targets.any(-1), np.arange(targets.shape[1]), -1)
    for case, mask in (("masked", arrays["token.text_mask"] > 0), ("unmasked", np.ones_like(targets[:, 0]))):
        def total(logits, mask=mask):
            return grounding.alignment_loss(
                logits, matched, targets, mask,
                alpha=float(arrays["token.alpha"]), gamma=float(arrays["token.gamma"]))[0]
        value, gradient = jax.jit(jax.value_and_grad(total))(arrays["token.logits"])
        np.testing.assert_allclose(value, arrays[f"token.{case}.loss"], rtol=LIMIT)
        assert distance(gradient, arrays[f"token.{case}.grad"]) < LIMIT


def test_reference_training_loss(load_reference):
    arrays = load_reference("tiny_train.npz")
    levels = sorted(key for key in arrays if re.fullmatch(r"out\.dot_product_logits\.P\d+", key))
    logits = np.concatenate([arrays[level] for level in levels], axis=1)
    images = range(len(logits))
    matched = np.stack([arrays[f"assign.{i}.matched_gt"] for i in images])
    counts = [len(arrays[f"target.{i}.boxes"]) for i in images]
    rows = np.split(arrays["positive_map"] > 0, np.cumsum(counts)[:-1])
    positive_map = np.stack([np.pad(r, ((0, max(counts) - len(r)), (0, 0))) for r in rows])
    total, count = alignment_loss(logits, matched, positive_map, arrays["attention_mask"] > 0)
    assert count == sum(len(arrays[f"assign.{i}.positive_anchors"]) for i in images)
    np.testing.assert_allclose(total / count, arrays["loss.loss_dot_product_token"], rtol=LIMIT)


def test_hand_computed_logit_zero():
    # Every term is weight · 0.25 · log 2: two anchors × two real tokens, one of them positive.
    total, count = alignment_loss(
        jnp.zeros((1, 2, 3)), jnp.array([[1, -1]]), jnp.array([[[1, 1, 1], [0, 1, 1]]], bool),
        jnp.array([[True, True, False]]))
    np.testing.assert_allclose(total, (0.25 + 3 * 0.75) * 0.25 * np.log(2), rtol=1e-6)
    assert count == 1


def test_padding_never_matters_even_if_not_finite():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 5, 4)).astype(np.float32)
    matched, positive_map = rng.integers(-1, 3, (2, 5)), rng.random((2, 3, 4)) < 0.5
    mask = np.array([[1, 1, 0, 0], [1, 1, 1, 0]], bool)

    def total(logits):
        return alignment_loss(logits, matched, positive_map, mask)[0]
    broken = np.where(mask[:, None], logits, np.inf)
    assert total(broken) == total(logits)
    np.testing.assert_array_equal(jax.grad(total)(broken), jax.grad(total)(logits))


def test_extreme_logits_and_empty_batches_are_finite():
    @jax.jit
    @jax.value_and_grad
    def mean(logits, matched, real):
        total, count = grounding.alignment_loss(
            logits, jnp.full((2, 3), matched), jnp.ones((2, 1, 4), bool), jnp.full((2, 4), real))
        return total / count
    for scale in (0, 5e4, -5e4):
        for matched in (-1, 0):
            for real in (True, False):
                value, gradient = mean(jnp.full((2, 3, 4), scale, jnp.bfloat16), matched, real)
                assert value.dtype == jnp.float32 and np.isfinite(value) and jnp.isfinite(gradient).all()
                assert real or value == 0
