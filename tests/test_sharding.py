"""Meshes: the same loss and gradients on one device and on eight, and errors for meshes that do not fit."""
import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from glipv2_jax import sharding


def test_eight_devices_equal_one():
    run = subprocess.run([sys.executable, "-m", "tests.run_on_meshes"], capture_output=True, text=True,
                         cwd=pathlib.Path(__file__).parent.parent)
    assert run.returncode == 0, run.stderr[-3000:]
    report = json.loads(run.stdout.splitlines()[-1])
    for mesh, found in report.items():
        assert found["loss"] < 1e-5 and found["gradient"] < 1e-5, f"mesh {mesh}: {found}"
        assert found["loss_inter"] > 0
    assert report["1x8"]["split_arrays"] > report["4x2"]["split_arrays"] // 2 > 0
    assert report["8x1"]["split_arrays"] == 0


def test_mesh_must_match_the_devices():
    with pytest.raises(ValueError, match="data=3 × fsdp=5: found 1 devices"):
        sharding.make_mesh(3, 5)
    mesh = sharding.make_mesh(-1, 1)
    assert dict(mesh.shape) == {"data": len(jax.devices()), "fsdp": 1}


def test_arrays_are_split_along_the_largest_axis_that_divides():
    mesh = jax.sharding.AbstractMesh((1, 4), sharding.AXES, axis_types=(jax.sharding.AxisType.Auto,) * 2)
    tree = {"wide": np.zeros((8, 64)), "odd": np.zeros((7, 9)), "small": np.zeros(8), "rows": np.zeros((64, 6))}
    specs = {k: s.spec for k, s in sharding.fsdp_sharding(tree, mesh, min_size=16).items()}
    P = jax.sharding.PartitionSpec
    assert specs == {"wide": P(None, "fsdp"), "odd": P(), "small": P(), "rows": P("fsdp")}
