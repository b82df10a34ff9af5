"""Values are compared relatively; gradients by ‖found − expected‖ / ‖expected‖."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glipv2_jax.losses import contrastive

inter_image_loss = jax.jit(contrastive.inter_image_loss)
value_and_gradients = jax.jit(jax.value_and_grad(
    contrastive.inter_image_loss, argnums=(0, 1, 2), has_aux=True))


def three_images():
    """Two detection images that share class 7, and a caption with the same noun; K = 3, T = 4, G = 2.

    The third text is shorter. Box 0 of every image has regions: the released code would drop them.
    """
    rng = np.random.default_rng(0)
    regions, texts = rng.normal(size=(3, 3, 5)), rng.normal(size=(3, 4, 5))
    return {
        "region_embeddings": (regions / np.linalg.norm(regions, axis=-1, keepdims=True)).astype(np.float32),
        "text_embeddings": (texts / np.linalg.norm(texts, axis=-1, keepdims=True)).astype(np.float32),
        "log_temperature": np.float32(np.log(0.2)),
        "region_positive": np.array([[1, 1, 0], [1, 0, 0], [1, 1, 0]], bool),
        "region_matched": np.array([[0, 1, -1], [0, -1, -1], [0, 1, -1]]),
        "positive_map": np.array([[[0, 1, 1, 0], [0, 0, 0, 1]],      # class 7 is two tokens, class 8 one
                                  [[0, 0, 1, 0], [0, 0, 0, 0]],
                                  [[0, 1, 0, 0], [0, 1, 1, 0]]], bool),
        "token_mask": np.array([[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 0]], bool),
        "box_class": np.array([[7, 8], [7, -1], [-1, -1]]),
        # The second prompt also lists class 8, a negative there and a positive for the first image.
        "token_class": np.array([[-1, 7, 7, 8], [-1, 8, 7, -1], [-1, -1, -1, -1]]),
    }


# Rows: regions that are positive, (image, region). Columns: (text, token). Written by hand from the rule.
POSITIVE_PAIRS = {
    (0, 0): [(0, 1), (0, 2), (1, 2)],   # own span of two tokens; class 7 in the other prompt; not the caption
    (0, 1): [(0, 3), (1, 1)],           # class 8 is propagated to a prompt that lists it as a negative
    (1, 0): [(1, 2), (0, 1), (0, 2)],
    (2, 0): [(2, 1)],                   # caption boxes stay in their caption
    (2, 1): [(2, 1), (2, 2)],
}


def expected_total(case):
    logits = np.einsum("bke,cte->bkct", case["region_embeddings"].astype(float),
                       case["text_embeddings"].astype(float)) / np.exp(case["log_temperature"])
    logits = np.where(case["token_mask"], logits, -np.inf)
    total = 0.0
    for (b, k), tokens in POSITIVE_PAIRS.items():
        normalizer = np.log(np.exp(logits[b, k]).sum())
        total += np.mean([normalizer - logits[b, k][token] for token in tokens])
    for token in sorted({token for tokens in POSITIVE_PAIRS.values() for token in tokens}):
        column = logits[:, :, token[0], token[1]]
        normalizer = np.log(np.exp(column).sum())
        regions = [region for region, tokens in POSITIVE_PAIRS.items() if token in tokens]
        total += np.mean([normalizer - column[region] for region in regions])
    return total / 2


def test_hand_computed_three_images():
    case = three_images()
    total, count = inter_image_loss(**case)
    np.testing.assert_allclose(total, expected_total(case), rtol=1e-5)
    assert count == 5


def test_order_of_images_does_not_matter():
    case = three_images()
    shuffled = {key: value if value.ndim == 0 else value[[2, 0, 1]] for key, value in case.items()}
    np.testing.assert_allclose(inter_image_loss(**shuffled)[0], inter_image_loss(**case)[0], rtol=1e-5)


def test_a_word_without_region_is_a_negative_for_every_region():
    case = three_images()
    word = 2, 0  # of the caption; names no box
    found = value_and_gradients(*case.values())[1][1][word]
    temperature = np.exp(case["log_temperature"])
    logits = np.einsum("bke,cte->bkct", case["region_embeddings"], case["text_embeddings"]) / temperature
    odds = np.exp(np.where(case["token_mask"], logits, -np.inf))
    share = (odds / odds.sum((2, 3), keepdims=True))[:, :, word[0], word[1]] * case["region_positive"]
    pushed = np.einsum("bk,bke->e", share, case["region_embeddings"]) / temperature / 2
    assert np.linalg.norm(found - pushed) / np.linalg.norm(pushed) < 1e-5


def test_padding_example_changes_nothing():
    case = three_images()
    rng = np.random.default_rng(1)
    padding = {
        "region_embeddings": rng.normal(size=(1, 3, 5)).astype(np.float32),
        "text_embeddings": rng.normal(size=(1, 4, 5)).astype(np.float32),
        "region_positive": np.ones((1, 3), bool), "region_matched": np.zeros((1, 3), int),
        "positive_map": np.ones((1, 2, 4), bool), "token_mask": np.zeros((1, 4), bool),
        "box_class": np.full((1, 2), 7), "token_class": np.full((1, 4), 7),
    }
    padded = {key: np.concatenate([value, padding[key]]) if key in padding else value
              for key, value in case.items()}
    (total, count), gradients = value_and_gradients(*padded.values())
    (expected, expected_count), expected_gradients = value_and_gradients(*case.values())
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    assert count == expected_count
    for found, wanted in zip(gradients[:2], expected_gradients[:2]):
        assert np.linalg.norm(found[:3] - wanted) / np.linalg.norm(wanted) < 1e-5
        assert not np.asarray(found[3]).any()


def test_nothing_positive_and_nothing_at_all_are_zero_with_zero_gradients():
    case = three_images()
    for change in ({"region_positive": np.zeros((3, 3), bool)}, {"token_mask": np.zeros((3, 4), bool)}):
        (total, count), gradients = value_and_gradients(*{**case, **change}.values())
        assert total == 0 and count == 1
        assert not any(np.asarray(gradient).any() for gradient in gradients)


def test_similar_pairs_cost_less():
    case = three_images()
    aligned = case["region_embeddings"].copy()
    for (b, k), tokens in POSITIVE_PAIRS.items():
        mean = np.mean([case["text_embeddings"][token] for token in tokens], axis=0)
        aligned[b, k] = mean / np.linalg.norm(mean)
    assert inter_image_loss(**{**case, "region_embeddings": aligned})[0] < inter_image_loss(**case)[0]


def test_sampled_regions_are_positives_first_then_others():
    rng = np.random.default_rng(2)
    matched = np.full((3, 60), -1)
    few, many = rng.choice(60, 4, replace=False), rng.choice(60, 30, replace=False)
    matched[0, few], matched[1, many] = 0, 1
    sample = jax.jit(contrastive.sample_regions, static_argnums=2)
    indices, positive = map(np.asarray, sample(matched, jax.random.key(0), 10))
    assert all(len(set(row)) == 10 for row in indices)
    np.testing.assert_array_equal(positive, np.take_along_axis(matched, indices, 1) >= 0)
    np.testing.assert_array_equal(positive.sum(1), [4, 10, 0])
    assert set(few) <= set(indices[0])
    # Over many draws every positive of the crowded image comes up, none twice as often as expected.
    draws = [np.asarray(sample(matched, jax.random.key(seed), 10)[0][1]) for seed in range(150)]
    counts = np.bincount(np.concatenate(draws), minlength=60)
    assert set(np.nonzero(counts)[0]) == set(many)
    assert counts.max() < 100
    with pytest.raises(ValueError, match="61 regions asked of 60 anchors"):
        contrastive.sample_regions(jnp.asarray(matched), jax.random.key(0), 61)


def direct_form(region_embeddings, text_embeddings, log_temperature, region_positive, region_matched, positive_map, token_mask,
                box_class, token_class):
    """The whole matrix of regions by words at once: what the loss computes without ever holding it."""
    (b, k, _), t = region_embeddings.shape, text_embeddings.shape[1]
    is_image = token_mask.any(-1)
    matched = jnp.where(region_positive & is_image[:, None], region_matched, -1)
    logits = jnp.einsum("bke,cte->bkct", region_embeddings, text_embeddings,
                        precision=jax.lax.Precision.HIGHEST) / jnp.exp(log_temperature)
    own = jnp.take_along_axis(positive_map, jnp.maximum(matched, 0)[..., None], axis=1) & (matched >= 0)[..., None]
    name = jnp.where(matched >= 0, jnp.take_along_axis(box_class, jnp.maximum(matched, 0), axis=1), -1)[..., None, None]
    targets = jnp.where(jnp.eye(b, dtype=bool)[:, None, :, None], own[:, :, None], (name == token_class) & (name >= 0))
    valid = is_image[:, None, None, None] & token_mask
    flat, targets, valid = (jnp.broadcast_to(x, logits.shape).reshape(b * k, b * t) for x in (logits, targets & token_mask, valid))
    total = 0.0
    for axis in (0, 1):
        positives = targets.sum(axis)
        mean_positive = jnp.where(targets, flat / jnp.maximum(jnp.expand_dims(positives, axis), 1), 0).sum(axis)
        normalizer = jax.nn.logsumexp(jnp.where(valid, flat, -1e9), axis=axis)
        total += jnp.where(positives > 0, normalizer - mean_positive, 0).sum() / 2
    return total


@pytest.mark.parametrize("images", [1, 7, 16])
def test_pieces_equal_the_whole_matrix(images):
    """7 images go one piece of seven, 16 two of eight; one image of them is padding."""
    rng = np.random.default_rng(images)
    def unit(*shape):
        x = rng.normal(size=shape).astype(np.float32)
        return x / np.linalg.norm(x, axis=-1, keepdims=True)
    case = {"region_embeddings": unit(images, 6, 8), "text_embeddings": unit(images, 9, 8), "log_temperature": np.float32(-2),
            "region_positive": rng.random((images, 6)) < 0.6, "region_matched": rng.integers(0, 3, (images, 6)),
            "positive_map": rng.random((images, 3, 9)) < 0.3, "token_mask": rng.random((images, 9)) < 0.8,
            "box_class": rng.integers(-1, 4, (images, 3)), "token_class": rng.integers(-1, 4, (images, 9))}
    case["token_mask"][images // 2] &= images == 1
    (found, _), gradients = value_and_gradients(*case.values())
    expected, expected_gradients = jax.value_and_grad(direct_form, argnums=(0, 1, 2))(*case.values())
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    for a, b in zip(gradients, expected_gradients):
        assert np.linalg.norm(a - b) <= 2e-6 * np.linalg.norm(b)
