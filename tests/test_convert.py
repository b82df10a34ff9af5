"""`glipv2 convert`: recipe-made files into checkpoints and back, and what is said about every key."""
import dataclasses
import functools
import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glipv2_jax.checkpoint import load_params, read_about
from glipv2_jax.convert import convert as convert_module
from glipv2_jax.convert import names
from glipv2_jax.convert.command import main
from glipv2_jax.convert.report import check_names
from glipv2_jax.convert.torch_file import TorchFile, write_torch
from glipv2_jax.models import describe
from glipv2_jax.models.config import VARIANTS, config_from_dict, model_config
from tests.reference_models import infer_config

# Small enough for a file of two megabytes; the names are those of GLIP-T.
TINY = {"image_encoder": {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window": 2},
        "text_encoder": {"vocab_size": 7, "width": 16, "num_layers": 1, "num_heads": 2, "mlp_dim": 16,
                         "max_positions": 8},
        "channels": 16, "num_blocks": 2, "fusion_dim": 16, "fusion_heads": 2, "text_mlp_dim": 16,
        "text_heads": 2,        "num_class_logits": 3}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cat", "dog"]


parameter_shapes = functools.lru_cache(describe.parameter_shapes)       # each traces a whole model


@pytest.fixture(autouse=True)
def traced_once(monkeypatch):
    monkeypatch.setattr(convert_module, "parameter_shapes", parameter_shapes)


def tiny_manifest(variant="glip_t"):
    """key → shape of the tiny model, in the reference's layout."""
    config = model_config(variant, TINY)
    zeros = jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape), parameter_shapes(config))
    return {key: value.shape for key, value in names.reference_from_parameters(zeros, config).items()}


@pytest.fixture
def recipe_state(reference_weights):
    """Function of a variant: the tiny model's state_dict of the recipe, with the buffers and position_ids."""
    def make(variant="glip_t", seed=3):
        state = {key: value for key, shape in tiny_manifest(variant).items()
                 if (value := reference_weights.make(key, shape, seed)) is not None}
        if "rpn.head.mlm_head.bias" in state:
            state["rpn.head.mlm_head.decoder.bias"] = state["rpn.head.mlm_head.bias"]
        config = model_config(variant, TINY)
        state |= names._buffers(config)
        return state | {"language_backbone.body.model.embeddings.position_ids": np.arange(8)[None]}
    return make


@pytest.fixture
def convert(tmp_path):
    """Function of files and arguments: the folder that `glipv2 convert` made."""
    (tmp_path / "words.txt").write_text("\n".join(WORDS) + "\n")

    def run(*files, model="glip_t", output="out", options=()):
        main([*map(str, files), f"--model={model}", f"--output={tmp_path / output}",
              f"--overrides={json.dumps(TINY)}", f"--vocabulary={tmp_path / 'words.txt'}", *options])
        return tmp_path / output
    return run


def with_prefix(state):
    return {f"module.{key}": value for key, value in state.items()}


def layouts(state):
    """The four forms a checkpoint comes in."""
    moments = {i: {"step": 7, "exp_avg": value, "exp_avg_sq": value * 2}
               for i, value in enumerate(state.values())}
    group = {"lr": 1e-4, "betas": [0.9, 0.999], "params": list(range(len(state)))}
    return {
        "bare": state,
        "model": {"model": state},
        "module": {"model": with_prefix(state)},
        "training": {"model": with_prefix(state), "optimizer": {"state": moments, "param_groups": [group]},
                     "scheduler": {"milestones": [4, 9], "last_epoch": 3}, "iteration": 3,
                     "model_ema": with_prefix({
                         key: value if value.dtype.kind == "i" else value + np.float32(1)
                         for key, value in state.items()}),
                     "surprise": [1, 2]},
    }


def loaded(directory, ema=False):
    config = config_from_dict(read_about(directory)["model"])
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
                            parameter_shapes(config))
    return load_params(directory, abstract, ema=ema), config


def assert_equal_states(found, expected):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dtype == value.dtype and found[key].shape == value.shape, key
        assert found[key].tobytes() == value.tobytes(), key


def read_torch(path, entry="model"):
    with TorchFile(path) as file:
        return {key: file.read(tensor) for key, tensor in file.content[entry].items()}


@pytest.mark.parametrize("layout", ["bare", "model", "module", "training"])
def test_layouts_convert_and_come_back_bit_for_bit(layout, recipe_state, convert, tmp_path, capsys):
    state = recipe_state()
    write_torch(tmp_path / "glip.pth", layouts(state)[layout])
    out = convert(tmp_path / "glip.pth")
    params, config = loaded(out)
    assert config == model_config("glip_t", TINY)
    expected = {key: value for key, value in state.items() if not key.endswith("position_ids")}
    assert_equal_states(names.reference_from_parameters(params, config), expected)
    assert (out / "vocab.txt").read_text().split() == WORDS
    about = read_about(out)
    assert about["model"] == json.loads(json.dumps(dataclasses.asdict(config)))
    assert about["config"]["model"]["variant"] == "glip_t" and about["config"]["eval"]["nms_threshold"] == 0.6
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["counts"]["keys"] == len(state) and manifest["counts"]["fresh_tensors"] == 0
    assert set(manifest["recomputed"]) == {key for key in state if names.NOT_WEIGHTS.search(key)}
    if layout == "training":
        assert manifest["averaged"]
        assert manifest["entries"] == {
            "optimizer": "optimizer state; not read: a dict of 2 entries",
            "scheduler": "learning-rate schedule; not read: a dict of 2 entries",
            "iteration": "step of the run; not read: 3",
            "surprise": "an entry that GLIP's trainer does not write; not read: a list of 2 entries"}
        assert "surprise" in capsys.readouterr().out
        averaged = names.reference_from_parameters(loaded(out, ema=True)[0], config)
        weight = "rpn.head.bbox_pred.weight"
        assert averaged[weight].tobytes() == (state[weight] + np.float32(1)).tobytes()

    main([str(out), "--to=torch", f"--output={tmp_path / 'back.pth'}"])
    assert_equal_states(read_torch(tmp_path / "back.pth"), with_prefix(expected))
    main([str(out), "--to=safetensors", f"--output={tmp_path / 'back.safetensors'}"])
    again = convert(tmp_path / "back.safetensors", output="again")
    assert_equal_states(names.reference_from_parameters(loaded(again)[0], config), expected)
    if layout == "training":
        ema = {key: value if value.dtype.kind == "i" or "cell_anchors" in key else value + np.float32(1)
               for key, value in expected.items()}
        assert_equal_states(read_torch(tmp_path / "back.pth", "model_ema"), with_prefix(ema))
        params, _ = loaded(convert(tmp_path / "glip.pth", output="averaged", options=["--ema"]))
        assert_equal_states(names.reference_from_parameters(params, config), ema)


def test_recipe_of_the_reference_model_converts(load_reference, reference_weights, tmp_path):
    """The stored tiny model: what is written back has all its keys, with the recipe's values."""
    manifest = load_reference("manifest_tiny_train.json")
    config = infer_config(manifest, load_reference("tiny_train.json"))
    state = reference_weights.make_all(manifest, 11)
    write_torch(tmp_path / "tiny.pth", {"model": state})
    overrides = json.loads(json.dumps(dataclasses.asdict(config)))
    main([str(tmp_path / "tiny.pth"), "--model=glipv2_t", f"--overrides={json.dumps(overrides)}",
          f"--output={tmp_path / 'tiny'}"])
    main([str(tmp_path / "tiny"), "--to=torch", f"--output={tmp_path / 'back.pth'}"])
    back = read_torch(tmp_path / "back.pth")
    assert back.keys() == {key for key, about in manifest.items() if not about.get("optional")}
    for key, about in manifest.items():
        if key in state:
            assert back[key].tobytes() == state[key].tobytes(), key
        elif not about.get("optional"):
            assert list(back[key].shape) == about["shape"] and back[key].dtype == about["dtype"], key
    np.testing.assert_array_equal(back["module.rpn.anchor_generator.cell_anchors.1"],
                                  load_reference("anchors.npz")["cell.P4"])


def test_glipv2_starts_from_glip_with_new_heads_listed(recipe_state, convert, tmp_path, capsys):
    write_torch(tmp_path / "glip.pth", {"model": recipe_state()})
    out = convert(tmp_path / "glip.pth", model="glipv2_t", options=["--report"])
    params, config = loaded(out)
    fresh = json.loads((out / "manifest.json").read_text())["fresh"]
    assert {path.split("/")[0] for path in fresh} == {"mlm", "contrastive"}
    assert np.std(params["mlm"]["transform"]["kernel"]) > 0.01
    printed = capsys.readouterr().out
    assert "start fresh: contrastive, mlm" in printed and "mlm/transform/kernel (16, 16)" in printed
    state = names.reference_from_parameters(params, config)
    assert all(state[key].tobytes() == value.tobytes() for key, value in recipe_state().items()
               if "position_ids" not in key)


def test_slim_keeps_what_prediction_needs_in_bfloat16(recipe_state, convert, tmp_path, capsys):
    file = tmp_path / "glip.pth"
    write_torch(file, {"model": with_prefix(recipe_state("glipv2_t"))})
    full = convert(file, model="glipv2_t")
    main([str(full), "--to=slim", f"--output={tmp_path / 'slim'}"])
    assert "parameters in bfloat16" in capsys.readouterr().out
    (before, _), (after, config) = loaded(full), loaded(tmp_path / "slim")
    assert "mlm" in before and "mlm" not in after and not config.mlm_head
    before.pop("mlm")
    assert jax.tree.all(jax.tree.map(
        lambda x, y: y.dtype == np.float32 and np.array_equal(np.asarray(x, jnp.bfloat16), y), before, after))
    assert (tmp_path / "slim" / "vocab.txt").read_bytes() == (full / "vocab.txt").read_bytes()
    with pytest.raises(SystemExit, match="found checkpoints there"):
        main([str(full), "--to=slim", f"--output={tmp_path / 'slim'}"])


def test_training_heads_are_taken_or_listed(recipe_state, convert, tmp_path):
    state = recipe_state("glipv2_t")
    write_torch(tmp_path / "glip.pth", {"model": state})
    manifest = json.loads((convert(tmp_path / "glip.pth") / "manifest.json").read_text())
    assert set(manifest["unused"]) == {key for key in state if "mlm_head" in key or "shallow" in key}
    params, config = loaded(convert(tmp_path / "glip.pth", model="glipv2_t", output="v2"))
    back = names.reference_from_parameters(params, config)
    assert all(back[key].tobytes() == value.tobytes() for key, value in state.items()
               if "position_ids" not in key)
    del state["rpn.head.mlm_head.transform.dense.bias"]
    write_torch(tmp_path / "part.pth", {"model": state})
    with pytest.raises(SystemExit, match=r"mlm/transform/bias \(16,\): a parameter of this model, but not"):
        convert(tmp_path / "part.pth", model="glipv2_t", output="part")


def test_optional_names_are_explained_and_others_refused(recipe_state, convert, tmp_path):
    extra = {"language_backbone.body.model.pooler.dense.weight": np.ones((16, 16), np.float32),
             "rpn.tunable_linear.weight": np.zeros((9, 16), np.float32)}
    write_torch(tmp_path / "glip.pth", {"model": recipe_state() | extra})
    manifest = json.loads((convert(tmp_path / "glip.pth") / "manifest.json").read_text())
    unused = manifest["unused"]
    assert unused["rpn.tunable_linear.weight"] == "(9, 16): prompt matrix, all zero: changes nothing"
    assert len(unused) == 2

    broken = recipe_state() | {"rpn.head.surprise.weight": np.zeros((2, 3), np.float32),
                               "rpn.tunable_linear.weight": np.ones((9, 16), np.float32),
                               "rpn.head.dyhead_tower.1.b_attn.gamma_v": np.ones(16, np.float32),
                               "rpn.head.bbox_pred.weight": np.zeros((4, 17, 1, 1), np.float32)}
    del broken["rpn.head.centerness.bias"], broken["rpn.head.scales.2.scale"]
    write_torch(tmp_path / "broken.pth", {"model": with_prefix(broken)})
    with pytest.raises(SystemExit) as error:
        convert(tmp_path / "broken.pth", output="broken")
    for sentence in ("rpn.head.surprise.weight (2, 3): no such weight in this model",
                     "rpn.tunable_linear.weight (9, 16): a tuned prompt matrix",
                     "rpn.head.dyhead_tower.1.b_attn.gamma_v (16,): no such weight",
                     "(4, 17, 1, 1): found localization/box/kernel of shape (17, 4), expected (16, 4)",
                     "localization/centerness/bias (1,): a parameter of this model, but not in the file",
                     "localization/scales: found elements [0, 1, 3, 4], expected 0 … 4"):
        assert sentence in str(error.value)
    assert not (tmp_path / "broken").exists()


def test_values_that_are_no_weights_are_refused(recipe_state, convert, tmp_path):
    key, good = "rpn.head.bbox_pred.weight", recipe_state()
    for name, value, message in (
            ("nan", np.full_like(good[key], np.nan), "64 entries that are no finite float32"),
            ("int", good[key].astype(np.int64), "found int64, expected a floating-point weight"),
            ("double", good[key].astype(np.float64) + 1e-12, "float64 values that float32 lacks")):
        write_torch(tmp_path / f"{name}.pth", good | {key: value})
        with pytest.raises(SystemExit, match=rf"{key} \(4, 16, 1, 1\).*{message}"):
            convert(tmp_path / f"{name}.pth", output=name)
        assert not (tmp_path / name).exists()
    write_torch(tmp_path / "exact.pth", good | {key: good[key].astype(np.float16).astype(np.float64)})
    kernel = loaded(convert(tmp_path / "exact.pth", output="exact"))[0]["localization"]["box"]["kernel"]
    np.testing.assert_array_equal(kernel, good[key].astype(np.float16).astype(np.float32)[:, :, 0, 0].T)


def encoder(state, prefix):
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def test_encoders_of_other_projects(recipe_state, convert, tmp_path, monkeypatch):
    # Drawing the rest of the model is what takes time; the test above has it.
    monkeypatch.setattr(convert_module, "_fresh_parameters", lambda config, paths, seed: {
        path: np.zeros(names.shapes_by_path(parameter_shapes(config))[path], np.float32) for path in paths})
    state = recipe_state()
    old_names = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    bert = {"bert." + re.sub(r"LayerNorm\.\w+", lambda match: old_names[match[0]], key): value
            for key, value in encoder(state, "language_backbone.body.model.").items()}
    bert |= {"bert.pooler.dense.weight": np.ones((16, 16), np.float32),
             "cls.predictions.bias": np.ones(7, np.float32)}
    swin = {key: value for key, value in encoder(state, "backbone.body.").items()
            if not key.startswith(("norm1", "norm2", "norm3"))}
    swin |= {"norm.weight": np.ones(64, np.float32), "norm.bias": np.ones(64, np.float32),
             "head.weight": np.ones((10, 64), np.float32),
             "layers.0.blocks.1.attn_mask": np.ones((4, 4, 4), np.float32)}
    timm = {key.replace(f"layers.{i}.down", f"layers.{i + 1}.down"): value for key, value in swin.items()
            for i in [int(key.split(".")[1]) if key.startswith("layers") else 0]}
    write_torch(tmp_path / "bert.bin", bert)
    write_torch(tmp_path / "swin.pth", {"model": swin})
    write_torch(tmp_path / "timm.pth", timm)
    for name in ("swin", "timm"):
        out = convert(tmp_path / "bert.bin", tmp_path / f"{name}.pth", output=name)
        params, config = loaded(out)
        found = names.reference_from_parameters(params, config)
        filled = [key for key in found if key.startswith(("backbone.body.", "language_backbone."))
                  and not key.startswith("backbone.body.norm")]
        assert len(filled) > 80 and all(found[key].tobytes() == state[key].tobytes() for key in filled)
        manifest = json.loads((out / "manifest.json").read_text())
        assert len(manifest["sources"]) == 2 and len(manifest["unused"]) == 6
        assert {"image_encoder/norm1/scale", "grounding/bias0"} <= set(manifest["fresh"])
    alone = json.loads((convert(tmp_path / "bert.bin", output="alone") / "manifest.json").read_text())
    assert "image_encoder/patch_embed/proj/kernel" in alone["fresh"]
    del bert["bert.encoder.layer.0.output.dense.bias"]
    write_torch(tmp_path / "bert.bin", bert)
    with pytest.raises(SystemExit, match=r"text_encoder/layer0/mlp_out/bias \(16,\): .* not in the file"):
        convert(tmp_path / "bert.bin", output="part")
    with pytest.raises(SystemExit, match="swin.pth: fills image_encoder/.*, and so does timm.pth"):
        convert(tmp_path / "timm.pth", tmp_path / "swin.pth", output="twice")


def test_arguments_are_checked(recipe_state, convert, tmp_path):
    write_torch(tmp_path / "glip.pth", {"model": recipe_state()})
    out = convert(tmp_path / "glip.pth")
    for arguments, message in (
            ([tmp_path / "glip.pth", "--model=glip_t"], "found checkpoints there, expected a new folder"),
            ([tmp_path / "none.pth", "--model=glip_t"], "none.pth"),
            ([tmp_path / "glip.pth"], "--model: found none"),
            ([tmp_path / "glip.pth", "--model=glip_t", "--overrides={"], "--overrides: "),
            ([tmp_path / "glip.pth", "--model=glip_t", "--overrides=[1]"], "No such file"),
            ([tmp_path / "glip.pth", "--model=glip_t", "--overrides={\"depth\": 1}"], "unknown fields"),
            ([out, "--to=torch", "--model=glip_t"], "--to: found --model"),
            ([tmp_path, "--to=torch"], "no checkpoint")):
        target = out if "new folder" in message else tmp_path / "other"
        with pytest.raises(SystemExit, match=message):
            main([*map(str, arguments), f"--output={target}"])
    with pytest.raises(SystemExit, match="found no entry model_ema"):
        convert(tmp_path / "glip.pth", output="averaged", options=["--ema"])
    write_torch(tmp_path / "foreign.pth", {"conv1.weight": np.zeros(3, np.float32)})
    with pytest.raises(SystemExit, match="found weights named conv1.weight, expected those of GLIP"):
        convert(tmp_path / "foreign.pth", output="foreign")
    with pytest.raises(SystemExit, match="a text encoder of 30522 words, but the vocabulary has 7"):
        main([str(tmp_path / "glip.pth"), "--model=glip_t", f"--vocabulary={tmp_path / 'words.txt'}",
              f"--output={tmp_path / 'words'}"])


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_every_parameter_has_a_reference_name_that_leads_back(variant):
    config = VARIANTS[variant]
    for path in names.shapes_by_path(parameter_shapes(config)):
        for key, kind in names.keys_of(path, config.fusion, config.text_encoder.kind):
            element = 3 if kind == "element" else None
            back = names.parameter_of("module." + key.format(element=3), config.fusion)
            assert back == (path, kind, element)


@pytest.mark.parametrize("variant", ["glip_a", "glip_t", "glip_l"])
def test_reference_manifests_are_placed_whole(variant, load_reference, reference_dir):
    manifest, config = load_reference(f"manifest_{variant}.json"), VARIANTS[variant]
    expected = names.shapes_by_path(parameter_shapes(config))
    shapes = {key: tuple(about["shape"]) for key, about in manifest.items()}
    found = names.place(shapes, expected, config.fusion)
    assert not (found.missing or found.homeless or found.problems)
    assert len(found.buffers) == sum(not about["weight"] for about in manifest.values())

    class Done:
        shapes = expected
    count = sum(about["weight"] for about in manifest.values())
    lines = check_names(Done, config, reference_dir)
    assert lines[-1] == f"manifest_{variant}.json: all {count} names and shapes equal"


def test_layouts_of_arrays_are_inverse():
    rng = np.random.default_rng(0)
    for kind, shape in (("dense", (3, 4)), ("dense", (5, 4, 3, 2)), ("conv", (5, 4, 3, 2)),
                        ("conv1x1", (5, 4, 1, 1)), ("deconv", (5, 4, 2, 2)), ("same", (3, 4))):
        array = rng.normal(size=shape)
        assert names.to_reference(names.to_parameter(array, kind), kind).tolist() == array.tolist()


def test_convert_is_a_command_and_needs_no_torch(monkeypatch, capsys):
    from glipv2_jax import cli
    monkeypatch.setattr(sys, "argv", ["glipv2", "convert", "--help"])
    with pytest.raises(SystemExit) as error:
        cli.main()
    assert error.value.code == 0 and "GLIP checkpoint" in capsys.readouterr().out
    assert "torch" not in sys.modules
