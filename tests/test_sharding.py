"""Meshes: the same loss and gradients on one device and on eight, and errors for meshes that do not fit."""
import json
import pathlib
import subprocess
import sys

import jax
import optax
import pytest
from jax.sharding import PartitionSpec as P

from configs import common
from glipv2_jax import sharding
from glipv2_jax.models.config import model_config
from glipv2_jax.models.glipv2 import GLIPv2, axis_names
from glipv2_jax.train_state import abstract_state


def test_eight_devices_equal_one():
    """The same loss and gradients on every mesh, each begun from a checkpoint that the mesh before has written."""
    run = subprocess.run([sys.executable, "-m", "tests.run_on_meshes"], capture_output=True, text=True,
                         cwd=pathlib.Path(__file__).parent.parent)
    assert run.returncode == 0, run.stderr[-3000:]
    found = json.loads(run.stdout.splitlines()[-1])
    assert len(found["forms"]) == 12 and max(found["forms"].values()) < 3e-6, found["forms"]
    report = found["meshes"]
    for mesh, found in report.items():
        assert found["loss"] < 1e-5 and found["gradient"] < 1e-5, f"mesh {mesh}: {found}"
        assert found["loss_inter"] > 0 and found["restored"]
    split = {mesh: found["split_arrays"] for mesh, found in report.items()}
    assert split["8x1x1"] == 0 and split["1x8x1"] > 20 and split["4x2x1"] > 20 and split["2x2x2"] >= split["4x2x1"]


def test_mesh_must_match_the_devices():
    with pytest.raises(ValueError, match="data=3 × fsdp=5 × tensor=1: found 1 devices"):
        sharding.make_mesh(3, 5)
    mesh = sharding.make_mesh(-1, 1)
    assert dict(mesh.shape) == {"data": len(jax.devices()), "fsdp": 1, "tensor": 1}


def mesh_of(data, fsdp, tensor):
    return jax.sharding.AbstractMesh((data, fsdp, tensor), sharding.AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3)


RULES = common.get_config().mesh.rules


def test_the_first_rule_that_fits_is_followed():
    def axes(*names_and_sizes, mesh=mesh_of(1, 4, 1), rules=RULES):
        names, shape = zip(*names_and_sizes)
        return sharding.axes_of(names, shape, mesh, rules)
    assert axes(("embed", 8), ("mlp", 64)) == P("fsdp", None)
    assert axes(("embed", 7), ("mlp", 64)) == P(None, "fsdp")                # 7 does not divide
    assert axes(("embed", 7), ("mlp", 9)) == P(None, None)
    assert axes(("embed", 8), ("mlp", 64), mesh=mesh_of(2, 2, 2)) == P("fsdp", "tensor")
    assert axes((None, 8), ("heads", 8), mesh=mesh_of(2, 2, 2)) == P(None, "tensor")
    with pytest.raises(ValueError, match=r"found no rule for the axes \['experts'\]"):
        axes(("experts", 8), ("mlp", 64))


@pytest.mark.parametrize("variant, fsdp, largest_whole", [
    ("glipv2_t", 16, "mlm/decoder/bias"),
    ("glipv2_h", 64, "image_encoder/stage0_block0/attn/qkv/kernel")])       # 352 × 1056: neither divides by 64

def test_every_axis_has_a_name_and_a_rule_and_all_large_arrays_are_split(variant, fsdp, largest_whole):
    """Moments and averages too. What stays whole is small: the largest of it is named here."""
    model = GLIPv2(model_config(variant))
    names = jax.tree.leaves(axis_names(model), is_leaf=lambda x: isinstance(x, P))
    assert all(isinstance(spec, P) for spec in names)
    assert {name for spec in names for name in spec} - {None} == {name for name, _ in RULES}
    tx = optax.adamw(1e-4)
    state = abstract_state(model, tx, True, mesh_of(1, fsdp, 1), RULES)[1]
    whole, total = {}, 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        total += leaf.size
        if leaf.sharding.is_fully_replicated:
            whole[jax.tree_util.keystr(path, simple=True, separator="/")] = leaf.size
    assert len([k for k in whole if "mu/" in k]) == len([k for k in whole if "nu/" in k]) == len(
        [k for k in whole if k.startswith("params/")]) == len([k for k in whole if "ema_params/" in k])
    assert sum(whole.values()) < 0.003 * total, sorted(whole.items(), key=lambda item: -item[1])[:10]
    parameters = {k.removeprefix("params/"): v for k, v in whole.items() if k.startswith("params/")}
    assert parameters[largest_whole] == max(parameters.values()), sorted(parameters.items(), key=lambda item: -item[1])[:10]
