"""Parts of the network alone against stored numbers: DropBlock, drop path, FPN in training, the CLIP text tower."""
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glipv2_jax.convert.names import parameter_of, parameters_from_reference, to_parameter
from glipv2_jax.models.clip_text import ClipLayer, ClipText
from glipv2_jax.models.config import ImageEncoderConfig, TextEncoderConfig
from glipv2_jax.models.fpn import FPN
from glipv2_jax.models.regularization import drop_block
from glipv2_jax.models.swin import SwinBlock, drop_path_rates


def nhwc(x):
    return x.transpose(0, 2, 3, 1)


def error(ours, theirs):
    return np.abs(np.asarray(ours) - theirs).max() / theirs.std()


def nested(flat):
    import flax.traverse_util
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def test_reference_drop_block(load_reference):
    meta, arrays = load_reference("swin_train.json"), load_reference("swin_train.npz")
    for name, about in meta["dropblock"].items():
        if not isinstance(about, dict):
            continue
        case = {k.removeprefix(f"dropblock.{name}."): v for k, v in arrays.items() if k.startswith(f"dropblock.{name}.")}
        out, pullback = jax.vjp(
            lambda x: drop_block(x, case["uniforms"], about["drop_prob"], about["block_size"]), nhwc(case["x"]))
        np.testing.assert_allclose(out, nhwc(case["out"]), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(pullback(nhwc(case["cotangent"]))[0], nhwc(case["grad_x"]), rtol=1e-5, atol=1e-6)


def test_reference_drop_path_rates(load_reference):
    for name, about in load_reference("swin_train.json")["drop_path"].items():
        rates = drop_path_rates(ImageEncoderConfig(depths=tuple(about["depths"]), drop_path=about["rate"]))
        np.testing.assert_allclose(rates, sum(about["per_stage"], []), rtol=1e-6, err_msg=name)


def test_reference_fpn_in_training(load_reference, reference_weights):
    meta, arrays = load_reference("swin_train.json"), load_reference("swin_train.npz")
    state = reference_weights.make_all(meta["fpn_manifest"], meta["seed"])
    channels = meta["fpn_manifest"]["module.backbone.fpn.fpn_inner2.weight"]["shape"][0]
    inputs = [nhwc(arrays[f"fpn.in.C{i}"]) for i in (3, 4, 5)]
    fpn = FPN(channels)
    expected = {"fpn": nn.unbox(jax.eval_shape(fpn.init, jax.random.key(0), inputs)["params"])}
    params = parameters_from_reference(state, expected)["fpn"]
    for i, level in enumerate(jax.jit(lambda p: fpn.apply({"params": p}, inputs))(params)):
        assert error(level, nhwc(arrays[f"fpn.eval.P{i + 3}"])) < 1e-5
    drawn = [arrays["fpn.uniforms.P4"], arrays["fpn.uniforms.P3"]]
    with mock.patch("jax.random.uniform", side_effect=drawn):
        levels = fpn.apply({"params": params}, inputs, True, rngs={"dropout": jax.random.key(0)})
    for i, level in enumerate(levels):
        assert error(level, nhwc(arrays[f"fpn.train.P{i + 3}"])) < 1e-5


def test_reference_swin_block_with_drop_path(load_reference, reference_weights):
    meta, arrays = load_reference("swin_train.json"), load_reference("swin_train.npz")
    about = meta["drop_path_block"]
    prefix = about["key_prefix"]
    flat = {}
    for key, shape in about["shapes"].items():
        path, kind, _ = parameter_of(prefix + key)
        value = to_parameter(reference_weights.make(prefix + key, shape, meta["seed"]), kind)
        flat[path.split("/", 2)[2]] = value
    x = arrays["drop_path_block.x"]
    side = int(x.shape[1]**0.5)
    block = SwinBlock(about["dim"], about["heads"], about["window"], about["shift"], jnp.float32)
    with mock.patch("jax.random.uniform", side_effect=[arrays["drop_path_block.u_attn"], arrays["drop_path_block.u_mlp"]]):
        out = block.apply({"params": nested(flat)}, x.reshape(len(x), side, side, -1), about["rate"], True,
                          rngs={"dropout": jax.random.key(0)})
    assert error(out.reshape(x.shape), arrays["drop_path_block.out"]) < 1e-5


def clip_state(manifest, arrays, weights, seed):
    """The recipe's weights; norms that it has no rule for are stored."""
    return {key: arrays[about["stored_as"]] if "stored_as" in about else weights.make(key, about["shape"], seed)
            for key, about in manifest.items()}


def clip_variants(load_reference):
    meta, arrays = load_reference("clip_text.json"), load_reference("clip_text.npz")
    for name, about in meta["variants"].items():
        manifest = about["manifest"]
        shapes = {k.removeprefix("module.language_backbone.body."): v["shape"] for k, v in manifest.items()}
        options = dict(zip(about["overrides"][::2], about["overrides"][1::2]))
        width = shapes["token_embedding.weight"][1]
        config = TextEncoderConfig("clip", shapes["token_embedding.weight"][0], width,
                                   len({k.split(".")[1] for k in shapes if k.startswith("resblocks.")}),
                                   options["MODEL.CLIP.HEADS"], shapes["resblocks.0.mlp.c_fc.weight"][0],
                                   shapes["positional_embedding"][0], 0.0)
        yield name, config, manifest, {k.removeprefix(name + "."): v for k, v in arrays.items() if k.startswith(name + ".")}


def test_reference_clip_text_tower(load_reference, reference_weights):
    seed, arrays = load_reference("clip_text.json")["seed"], load_reference("clip_text.npz")
    for name, config, manifest, case in clip_variants(load_reference):
        tower = ClipText(config)
        ids, mask = case["input_ids"].astype(np.int32), case["attention_mask"].astype(bool)
        expected = {"text_encoder": nn.unbox(jax.eval_shape(tower.init, jax.random.key(0), ids, mask)["params"])}
        params = parameters_from_reference(clip_state(manifest, arrays, reference_weights, seed), expected)["text_encoder"]
        hidden, pullback = jax.vjp(lambda p: tower.apply({"params": p}, ids, mask), params)
        assert error(hidden, case["hidden"]) < 4e-5, name
        if "cotangent" not in case:
            continue
        grads = {"text_encoder": pullback(case["cotangent"])[0]}
        for key in (k.removeprefix("grad.") for k in case if k.startswith("grad.")):
            path, kind, _ = parameter_of(key)
            ours = grads
            for part in path.split("/"):
                ours = ours[part]
            theirs = to_parameter(case[f"grad.{key}"], kind)
            assert np.abs(ours - theirs).max() < 2e-4 * max(np.abs(theirs).max(), 1e-3), key


def test_reference_clip_layer_of_the_head(load_reference, reference_weights):
    meta, arrays = load_reference("clip_text.json"), load_reference("clip_text.npz")
    about, case = meta["head_layer"], {k.removeprefix("head_layer."): v for k, v in arrays.items()}
    state = clip_state(about["manifest"], arrays, reference_weights, meta["seed"])
    x, mask = case["hidden_in"], case["masks"].astype(bool)
    mlp_dim = next(v["shape"][0] for k, v in about["manifest"].items() if k.endswith("c_fc.weight"))
    layer = ClipLayer(x.shape[-1], about["heads"], mlp_dim)
    flat = {}
    for key, value in state.items():
        path, kind, _ = parameter_of(key)
        flat[path.split("/", 1)[1]] = to_parameter(value, kind)
    assert error(layer.apply({"params": nested(flat)}, x, mask), case["hidden_out"]) < 4e-5


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_drop_block_keeps_the_mean(rate):
    x = jnp.ones((4, 32, 32, 2))
    out = drop_block(x, jax.random.uniform(jax.random.key(0), (4, 32, 32)), rate, 3)
    np.testing.assert_allclose(out.mean(), 1.0, rtol=1e-5)
