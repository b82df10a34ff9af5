"""Values are compared relatively."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glipv2_jax.losses import mlm

LIMIT = 1e-5
MASK_ID, VOCAB = 3, 50
mlm_loss = jax.jit(mlm.mlm_loss)
mask_tokens = jax.jit(mlm.mask_tokens, static_argnames=("vocab_size", "rate"))


def layer_norm(x, scale, bias):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12) * scale + bias


def test_reference_training_loss(load_reference, reference_weights):
    arrays, meta = load_reference("tiny_train.npz"), load_reference("tiny_train.json")
    manifest = load_reference("manifest_tiny_train.json")
    head = {key.split("mlm_head.")[1]: reference_weights.make(key, entry["shape"], meta["case_seed"])
            for key, entry in manifest.items() if "mlm_head." in key}
    layer = max(int(key.split(".")[1]) for key in arrays if key.endswith(".bertlayer.lang"))

    labels = arrays["mlm_labels"]
    max_positions = int((labels >= 0).sum(-1).max()) + 2
    indices, valid = mlm.positions(jnp.asarray(labels >= 0), max_positions)
    text = np.take_along_axis(arrays[f"head.{layer}.bertlayer.lang"], np.asarray(indices)[..., None], axis=1)
    hidden = text @ head["transform.dense.weight"].T + head["transform.dense.bias"]
    hidden = layer_norm(np.asarray(jax.nn.gelu(hidden, approximate=False)),
                        head["transform.LayerNorm.weight"], head["transform.LayerNorm.bias"])
    logits = hidden @ head["decoder.weight"].T + head["decoder.bias"]
    target_ids = np.take_along_axis(arrays["input_ids_unmasked"], np.asarray(indices), axis=1)
    total, count = mlm_loss(jnp.asarray(logits), target_ids, valid)
    assert count == (labels >= 0).sum()
    np.testing.assert_allclose(total / count, arrays["loss.mlm_loss"], rtol=LIMIT)


def test_masking_respects_eligibility_and_rates():
    b, t = 64, 512
    rng = np.random.default_rng(0)
    ids = jnp.asarray(rng.integers(10, VOCAB, (b, t)), jnp.int32)
    mask = jnp.asarray(rng.random((b, t)) < 0.9)
    eligible = jnp.asarray(rng.integers(-1, 2, (b, t)), jnp.int8)
    masked, scored = mask_tokens(jax.random.key(0), ids, mask, eligible, mask_id=MASK_ID, vocab_size=VOCAB)
    changed = np.asarray(masked != ids)
    assert not changed[np.asarray(~mask | (eligible < 0))].any()
    assert not np.asarray(scored & (~mask | (eligible != 1))).any()
    assert changed[np.asarray(mask & (eligible == 0))].any()
    # Standard deviations of these fractions are about 0.004, 0.009 and 0.007.
    possible, chosen = np.asarray(mask & (eligible == 1)), np.asarray(scored)
    assert abs(chosen.sum() / possible.sum() - 0.15) < 0.02
    assert abs((np.asarray(masked)[chosen] == MASK_ID).mean() - (0.8 + 0.1 / VOCAB)) < 0.04
    stays = 0.1 + 0.1 / VOCAB
    assert abs((~changed[chosen]).mean() - stays) < 0.03


def test_masking_is_a_function_of_the_key():
    ids, ones = jnp.arange(40).reshape(2, 20), jnp.ones((2, 20), jnp.int8)
    first, again, other = (
        mask_tokens(jax.random.key(seed), ids, ones > 0, ones, mask_id=MASK_ID, vocab_size=VOCAB, rate=0.5)[0]
        for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_positions_keep_reading_order():
    scored = jnp.array([[0, 1, 0, 1, 1], [0, 0, 0, 0, 1]], bool)
    indices, valid = mlm.positions(scored, 2)
    np.testing.assert_array_equal(valid, [[True, True], [True, False]])
    np.testing.assert_array_equal(indices[0], [1, 3])
    assert indices[1, 0] == 4
    with pytest.raises(ValueError, match="6 positions asked of 5 tokens"):
        mlm.positions(scored, 6)


def test_hand_computed_and_empty():
    logits, ids = jnp.zeros((2, 3, 7)), jnp.zeros((2, 3), jnp.int32)
    valid = jnp.array([[True, False, False], [True, True, False]])
    total, count = mlm_loss(logits, ids, valid)
    np.testing.assert_allclose(total, 3 * np.log(7), rtol=1e-6)
    assert count == 3
    value_and_gradient = jax.jit(jax.value_and_grad(mlm_loss, has_aux=True))
    (total, count), gradient = value_and_gradient(logits, ids, jnp.zeros((2, 3), bool))
    assert total == 0 and count == 1 and not np.asarray(gradient).any()
