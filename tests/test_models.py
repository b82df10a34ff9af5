"""The model's sizes, its options, and what may not influence what."""
import dataclasses
import functools
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glipv2_jax.models.config import VARIANTS, model_config
from glipv2_jax.models.describe import count_parameters, parameter_shapes
from glipv2_jax.models.glipv2 import GLIPv2, init_params
from glipv2_jax.models.layers import scanned
from glipv2_jax.train_step import Objective, compute_losses, gradients
from input_pipeline.schema import batch_spec

# GLIP-T (A), GLIP-T and GLIP-L: counted in the reference's own models. The others were never released: our count, so
# that a change of their size does not go unseen.
REFERENCE_PARAMETERS = {"glip_a": 151_430_526, "glip_t": 231_780_222, "glip_l": 430_422_384}
OUR_PARAMETERS = {"glipv2_t": 255_909_433, "glipv2_b": 257_600_805, "glipv2_h": 852_574_151, "glipv2_nano": 6_490_571}
TINY = {"image_encoder": {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8), "window": 4,
                          "drop_path": 0.0},
        "text_encoder": {"vocab_size": 64, "width": 32, "num_layers": 1, "num_heads": 2, "mlp_dim": 32,
                         "max_positions": 16, "dropout": 0.0},
        "channels": 16, "drop_block": 0.0, "fusion_dropout": 0.0, "num_blocks": 1,
        "fusion_dim": 32, "fusion_heads": 2, "fusion_chunk": 7, "text_mlp_dim": 32,
        "text_heads": 2, "contrastive_dim": 8}


def tiny_batch(batch_size=4, seed=0, canvas=(64, 64), tokens=16, boxes=4, mask_size=None):
    """A batch of noise that obeys the contract: two detection prompts with shared names, then captions."""
    rng = np.random.default_rng(seed)
    batch = {k: np.zeros(shape, dtype) for k, (shape, dtype) in batch_spec(
        batch_size, canvas, tokens, boxes, mask_size).items()}
    batch["image"][:] = rng.integers(0, 256, batch["image"].shape)
    batch["image_size"][:] = canvas
    batch["token_ids"][:] = rng.integers(5, 64, batch["token_ids"].shape)
    batch["token_mask"][:, :12] = True
    corner = rng.uniform(0, 30, (batch_size, boxes, 2))
    batch["boxes"][:] = np.concatenate([corner, corner + rng.uniform(10, 33, corner.shape)], -1)
    batch["box_mask"][:, :-1] = True
    for g in range(boxes):
        batch["positive_map"][:, g, 1 + 2 * g:3 + 2 * g] = True
    batch["box_class"][:] = batch["token_class"][:] = -1
    batch["box_class"][:2] = np.arange(boxes)
    batch["token_class"][:2, 1:1 + 2 * boxes] = np.repeat(np.arange(boxes), 2)
    batch["mlm_eligible"][:] = np.where(batch["token_mask"], 1, -1)
    if mask_size:
        batch["masks"][:, :-1] = rng.random(batch["masks"][:, :-1].shape) > 0.5
    return batch


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_parameter_counts(variant):
    found = sum(count_parameters(VARIANTS[variant]).values())
    assert found == sum(x.size for x in jax.tree.leaves(parameter_shapes(VARIANTS[variant])))
    assert found == (REFERENCE_PARAMETERS | OUR_PARAMETERS)[variant]
    if variant == "glipv2_t":
        # GLIP-T, the MLM head (transform, norm, decoder) and two projections to 64 with a temperature
        mlm = 768 * 768 + 768 + 2 * 768 + 768 * 30522 + 30522
        assert found == REFERENCE_PARAMETERS["glip_t"] + mlm + (256 + 1) * 64 + (768 + 1) * 64 + 1


def test_unknown_fields_and_values_are_refused():
    with pytest.raises(ValueError, match="unknown fields .*chanels"):
        model_config("glip_t", {"chanels": 3})
    with pytest.raises(ValueError, match="expected one of .*glip_a"):
        model_config("glip_x")
    with pytest.raises(ValueError, match="multiple of 16"):
        model_config("glip_t", {"channels": 100})
    with pytest.raises(ValueError, match="model.kernels: found 'windows', expected 'auto' or 'xla'"):
        model_config("glip_t", {"kernels": "windows"})


@pytest.fixture(scope="module")
def tiny():
    model = GLIPv2(model_config("glipv2_t", TINY))
    batch = tiny_batch()
    return model, jax.jit(functools.partial(init_params, model))(jax.random.key(0)), batch


OBJECTIVE = Objective(mask_id=4, vocab_size=64, mlm_positions=8, contrastive_regions=12)


def test_inter_image_loss_does_not_see_the_fusion_tower(tiny):
    model, params, batch = tiny

    def inter(params):
        return compute_losses(model, OBJECTIVE, params, batch, jax.random.key(1))[1]["loss_inter"]
    run = jax.jit(jax.value_and_grad(inter))
    value, grads = run(params)
    tower = [name for name in params if name.startswith(("fusion_", "text_layer_", "dyconv_", "grounding", "localization"))]
    changed = params | {name: jax.tree.map(lambda x: x + 0.3, params[name]) for name in tower}
    value_after, grads_after = run(changed)
    assert value == value_after
    jax.tree.map(np.testing.assert_array_equal, grads, grads_after)
    assert all(not np.any(x) for name in tower for x in jax.tree.leaves(grads[name]))
    assert all(np.any(x) for name in ("image_encoder", "fpn", "text_encoder", "contrastive")
               for x in jax.tree.leaves(grads[name])[:1])


@pytest.mark.parametrize("change", ["no boxes", "no tokens", "nothing to mask", "all padding"])
def test_degenerate_batches_give_finite_losses_and_gradients(tiny, change):
    model, params, batch = tiny
    batch = {k: v.copy() for k, v in batch.items()}
    if change in ("no boxes", "all padding"):
        batch["box_mask"][:] = False
        batch["positive_map"][:] = False
    if change in ("no tokens", "all padding"):
        batch["token_mask"][:] = False
        batch["positive_map"][:] = False
    if change in ("nothing to mask", "no tokens", "all padding"):
        batch["mlm_eligible"][:] = -1
    if change == "all padding":
        batch["image_size"][:] = 1
    (loss, _), grads = jax.jit(jax.value_and_grad(
        lambda p: compute_losses(model, OBJECTIVE, p, batch, jax.random.key(1)), has_aux=True))(params)
    assert np.isfinite(loss)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))


def test_fusion_chunks_do_not_change_the_result(tiny):
    model, params, batch = tiny
    whole = GLIPv2(model_config("glipv2_t", TINY | {"fusion_chunk": 10_000}))
    inputs = [batch[k] for k in ("image", "image_size", "token_ids", "token_mask")]
    chunked, full = (jax.jit(m.apply)({"params": params}, *inputs) for m in (model, whole))
    np.testing.assert_allclose(chunked.alignment_logits, full.alignment_logits, atol=2e-5)
    np.testing.assert_allclose(chunked.box_deltas, full.box_deltas, atol=2e-5)


def test_remat_does_not_change_the_gradient(tiny):
    model, params, batch = tiny
    again = GLIPv2(model_config("glipv2_t", TINY | {"remat": "nothing"}))
    grads = [jax.jit(jax.grad(lambda p, m=m: compute_losses(m, OBJECTIVE, p, batch, jax.random.key(1), train=False)[0]))(
        params) for m in (model, again)]
    pairs = list(zip(*map(jax.tree.leaves, grads)))
    assert sum(((a - b)**2).sum() for a, b in pairs) < 1e-8 * sum((a**2).sum() for a, _ in pairs)


DEEP = TINY | {"image_encoder": TINY["image_encoder"] | {"depths": (1, 1, 4, 1)},
               "text_encoder": TINY["text_encoder"] | {"num_layers": 3}, "num_blocks": 2}


def both_ways(variant, kind, dtype=jnp.float32):
    """(models one layer after another and in a loop, their parameters, a batch)."""
    overrides = DEEP | {"text_encoder": DEEP["text_encoder"] | {"kind": kind}, "remat": "nothing"}
    models = [GLIPv2(model_config(variant, overrides | {"scan_layers": scan}), dtype=dtype) for scan in (False, True)]
    # Fresh layers differ from each other, so that a loop over the wrong ones would show.
    return models, jax.jit(functools.partial(init_params, models[0]))(jax.random.key(0)), tiny_batch(2)


def test_layers_in_a_loop_are_layers_one_after_another():
    models, params, batch = both_ways("glipv2_t", "bert")
    inputs = [batch[k] for k in ("image", "image_size", "token_ids", "token_mask")]

    def total(params, model):
        outputs = model.apply({"params": params}, *inputs)
        return jnp.sum(outputs.alignment_logits**2) + jnp.sum(outputs.box_deltas**2) + jnp.sum(outputs.text_embeddings[..., 0])
    (value, grads), (looped, looped_grads) = (jax.jit(jax.value_and_grad(lambda p, m=m: total(p, m)))(params) for m in models)
    assert jax.tree.structure(grads) == jax.tree.structure(looped_grads) and abs(looped - value) < 1e-5 * abs(value)
    pairs = list(zip(*map(jax.tree.leaves, (grads, looped_grads))))
    assert sum(((a - b)**2).sum() for a, b in pairs) < 1e-10 * sum((a**2).sum() for a, _ in pairs)


@pytest.mark.parametrize("dtype, tolerance", [(jnp.float32, 1e-5), pytest.param(jnp.bfloat16, 0.03, marks=pytest.mark.slow)])
def test_layers_of_the_clip_style_tower_in_a_loop(dtype, tolerance):
    models, params, batch = both_ways("glipv2_b", "clip", dtype)
    inputs = [batch[k] for k in ("image", "image_size", "token_ids", "token_mask")]
    plain, looped = (np.asarray(jax.jit(m.apply)({"params": params}, *inputs).alignment_logits) for m in models)
    assert np.linalg.norm(looped - plain) < tolerance * np.linalg.norm(plain)


@pytest.mark.slow
def test_layers_in_a_loop_drop_each_its_own():
    overrides = DEEP | {"image_encoder": DEEP["image_encoder"] | {"drop_path": 0.5}, "fusion_dropout": 0.3, "scan_layers": True,
                        "text_encoder": DEEP["text_encoder"] | {"dropout": 0.3}}
    model, batch = GLIPv2(model_config("glipv2_t", overrides)), tiny_batch(2)
    params = jax.jit(functools.partial(init_params, model))(jax.random.key(0))
    inputs = [batch[k] for k in ("image", "image_size", "token_ids", "token_mask")]
    run = jax.jit(lambda key: model.apply({"params": params}, *inputs, train=True, rngs={"dropout": key}).alignment_logits)
    first, again, other = run(jax.random.key(0)), run(jax.random.key(0)), run(jax.random.key(1))
    np.testing.assert_array_equal(first, again)
    assert np.isfinite(first).all() and (first != other).any()


class Noisy(nn.Module):
    """Call: nothing → what each of six layers, two in a step, lets through of 64 ones, [6, 64]."""

    def setup(self):
        self.layers = [nn.Dropout(0.5, deterministic=False) for _ in range(6)]

    def __call__(self):
        def step(layers, seen, number):
            return seen.at[number].set(jnp.stack([layer(jnp.ones(64)) for layer in layers]))
        pairs = list(zip(self.layers[::2], self.layers[1::2]))
        return scanned(pairs, step, jnp.zeros((3, 2, 64)), self.make_rng("dropout"), jnp.arange(3)).reshape(6, 64)


def test_each_layer_of_a_loop_has_noise_of_its_own():
    seen = np.asarray(Noisy().apply({}, rngs={"dropout": jax.random.key(0)}))
    assert len(np.unique(seen, axis=0)) == 6 and set(np.unique(seen)) == {0, 2}


def test_bfloat16_computes_near_float32_and_keeps_float32_parameters(tiny):
    model, params, batch = tiny
    half = GLIPv2(model.config, dtype=jnp.bfloat16)
    inputs = [batch[k] for k in ("image", "image_size", "token_ids", "token_mask")]
    shapes = jax.eval_shape(half.init, jax.random.key(0), *inputs)
    assert {x.dtype for x in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    exact, rounded = (jax.jit(m.apply)({"params": params}, *inputs) for m in (model, half))
    for name in ("box_deltas", "centerness", "alignment_logits"):
        a, b = np.asarray(getattr(exact, name)), np.asarray(getattr(rounded, name))
        assert b.dtype == np.float32
        assert np.linalg.norm(a - b) < 0.05 * np.linalg.norm(a), name


def test_clip_style_towers_train():
    overrides = TINY | {"text_encoder": {**TINY["text_encoder"], "kind": "clip"}}
    overrides["image_encoder"] = overrides["image_encoder"] | {"convolutional": True}
    model, batch = GLIPv2(model_config("glipv2_b", overrides)), tiny_batch(2)
    params = jax.jit(functools.partial(init_params, model))(jax.random.key(0))
    loss, grads = jax.jit(jax.value_and_grad(
        lambda p: compute_losses(model, OBJECTIVE, p, batch, jax.random.key(1))[0]))(params)
    assert np.isfinite(loss) and all(np.isfinite(x).all() for x in jax.tree.leaves(grads))


MASK_HEAD = {"kind": "hourglass", "num_blocks": 1, "pool_size": 4, "group_norm": False}
WITH_MASKS = dataclasses.replace(OBJECTIVE, mask_boxes=5)


def test_masks_are_learned_where_boxes_have_some():
    model, batch = GLIPv2(model_config("glipv2_t", TINY | {"mask_head": MASK_HEAD})), tiny_batch(2, mask_size=8)
    params = jax.jit(functools.partial(init_params, model))(jax.random.key(0))

    @jax.jit
    def run(batch):
        def loss(params):
            metrics = compute_losses(model, WITH_MASKS, params, batch, jax.random.key(1))[1]
            return metrics["loss_mask"], metrics["count_mask"]
        return jax.value_and_grad(loss, has_aux=True)(params)
    (value, count), grads = run(batch)
    # Of each image three true boxes, and of the model's own those that are near one; five at most, 8 × 8 pixels each.
    assert 2 * 3 * 64 <= count <= 2 * 5 * 64 and value > 0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))
    reached = {part for part in params if any(np.any(x) for x in jax.tree.leaves(grads[part]))}
    assert {"mask_head", "image_encoder", "text_encoder"} <= reached
    assert not reached & {"localization", "grounding", "contrastive"}
    for nothing in ("box_mask", "masks"):                    # no box at all, and boxes of unknown masks
        (value, count), grads = run(batch | {nothing: np.zeros_like(batch[nothing])})
        assert (count, value) == (1, 0) and not any(np.any(x) for x in jax.tree.leaves(grads))


@pytest.mark.parametrize("overrides,message", [
    ({"kind": "cube"}, "expected '', 'hourglass' or 'conv'"), ({"kind": "hourglass", "depth": 2}, "depth 2 and pool_size 14"),
    ({"kind": "conv", "num_levels": 6}, "1 to 5 levels")])
def test_mask_heads_that_cannot_be_are_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        model_config("glip_t", {"mask_head": overrides})
    assert model_config("glip_t", {"mask_head": {"kind": "hourglass", "pool_size": 28}}).mask_head.resolution == 56


def test_model_losses_and_decoding_import_without_tensorflow_and_torch():
    code = ("import sys, glipv2_jax, glipv2_jax.models.glipv2, glipv2_jax.train_step, glipv2_jax.detection.postprocess, "
            "glipv2_jax.convert.names, glipv2_jax.draw, input_pipeline.tokenizer, input_pipeline.prompts; "
            "bad = [m for m in ('tensorflow', 'torch') if m in sys.modules]; assert not bad, bad")
    subprocess.run([sys.executable, "-c", code], check=True)


def test_text_longer_than_the_encoder_is_refused():
    config = model_config("glip_t", {"text_encoder": {"max_positions": 8}})
    with pytest.raises(ValueError, match="16 tokens.*8 positions"):
        jax.eval_shape(GLIPv2(config).init, jax.random.key(0), *(tiny_batch(1)[k] for k in (
            "image", "image_size", "token_ids", "token_mask")))


def test_accumulated_gradient_is_the_mean_of_the_micro_batches(tiny):
    model, params, batch = tiny
    objective = Objective(mask_id=4, vocab_size=64, mlm_rate=0.0, contrastive_regions=0)
    one = jax.jit(lambda p, b: gradients(model, objective, p, b, jax.random.key(1)))
    both = jax.jit(lambda p, b: gradients(model, objective, p, b, jax.random.key(1), accumulation_steps=2))
    metrics, found = both(params, batch)
    parts = [one(params, {k: v[start::2] for k, v in batch.items()}) for start in (0, 1)]
    expected = jax.tree.map(lambda a, b: (a + b) / 2, *(grads for _, grads in parts))
    np.testing.assert_allclose(metrics["loss"], np.mean([m["loss"] for m, _ in parts]), rtol=1e-5)
    pairs = list(zip(jax.tree.leaves(found), jax.tree.leaves(expected)))
    assert sum(((a - b)**2).sum() for a, b in pairs) < 1e-9 * sum((b**2).sum() for _, b in pairs)
