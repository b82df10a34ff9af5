"""What a plan reads off a compiled program, and the true step on TPUs that are not there."""
import dataclasses
import importlib.util
import json
import logging
import sys

import pytest

from configs import glipv2_t_stage1
from glipv2_jax import plan

PROGRAM = """HloModule step, entry_computation_layout={()->f32[]}

%body (p: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %x = f32[4,8]{1,0} get-tuple-element(%p), index=1
  %sum = f32[4,8]{1,0} all-reduce(%x), replica_groups={{0,1}}, to_apply=%add
  ROOT %out = (s32[], f32[4,8]) tuple(%i, %sum)
}

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %c = f32[] add(%a, %b)
}

%fused (p: bf16[2,16]) -> bf16[2,16] {
  ROOT %p = bf16[2,16]{1,0} parameter(0)
}

ENTRY %main (p0: bf16[16]) -> f32[] {
  %gathered = (bf16[16]{0}, bf16[64]{0}) all-gather-start(%p0), dimensions={0}
  %done = bf16[64]{0} all-gather-done(%gathered)
  %both = (f32[10]{0}, f32[6]{0}) all-reduce(%a, %b), to_apply=%add
  %loop = (s32[], f32[4,8]) while(%init), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  ROOT %r = f32[] constant(0)
}
"""


def test_collectives_are_counted_as_often_as_their_loop_runs():
    assert plan.collectives_of(PROGRAM) == {"all-gather": [1, 128], "all-reduce": [4, 64 + 3 * 128]}


PLAN = plan.Plan("configs/x.py", "train", "glipv2_t", "v5e:4x4", "v5e", 16, {"data": 16, "fsdp": 1, "tensor": 1}, 64, (800, 1344), "nothing",
                 int(1e9), int(2e9), int(1e6), int(5e9), int(1e8), 3e12, 6e9, 1e6, 1e6, {"all-reduce": [3, int(1e9)]}, 60.0, {})


def test_memory_and_floor_of_a_plan():
    assert PLAN.total == 8.101e9 and PLAN.spare == 16e9 - 8.101e9
    assert PLAN.seconds() == pytest.approx({"products": 3e12 / 197e12, "memory": 6e9 / 819e9, "rows": 30.5e6 / 1.5e9, "collectives": 1 / 200})
    assert PLAN.step_seconds() == pytest.approx(3e12 / 197e12 + 30.5e6 / 1.5e9)
    assert PLAN.images_per_second() == pytest.approx(64 / PLAN.step_seconds())


def test_a_plan_says_whether_it_fits_and_what_it_costs(capsys):
    plan.print_plan(PLAN, hourly_rate=1.2, epoch_images=2_000_000)
    said = capsys.readouterr().out
    assert "fits" in said and "7.90 GB left" in said and "2 M images" in said and "at 1.2 a chip and hour" in said
    plan.print_plan(dataclasses.replace(PLAN, temporaries=int(20e9)))
    assert "DOES NOT FIT" in capsys.readouterr().out


def test_without_the_compiler_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    with pytest.raises(ValueError, match=r"pip install 'glipv2_jax\[plan\]'"):
        plan.run(glipv2_t_stage1.get_config("rehearsal"), "v5e:4x4", "configs/x.py")


@pytest.fixture
def compiler():
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("needs the TPU compiler: pip install 'glipv2_jax[plan]'")
    # Its own warnings, of a machine without TPUs, go to C++'s standard error.
    logging.getLogger("jax").setLevel(logging.ERROR)


@pytest.mark.slow
def test_unknown_topologies(compiler):
    with pytest.raises(ValueError, match="--topology: found 'v99:4x4', expected chips and their shape"):
        plan.run(glipv2_t_stage1.get_config("rehearsal"), "v99:4x4", "configs/x.py")


@pytest.mark.slow
def test_the_small_step_for_four_chips(compiler, tmp_path):
    """Images stay where they are: gradients are summed, nothing is handed from chip to chip."""
    config = glipv2_t_stage1.get_config("rehearsal")
    found, forward = plan.run(config, "v5e:2x2", "configs/x.py", inference=True, output=tmp_path / "plan.json")
    assert found.batch_size == 8 and found.devices == 4 and found.spare > 0 and forward.program == "inference"
    assert "all-to-all" not in found.collectives and found.collectives["all-reduce"][1] < 1.2 * found.parameters
    assert [entry["program"] for entry in json.loads((tmp_path / "plan.json").read_text())] == ["train", "inference"]
    config.mesh.data, config.mesh.fsdp = 1, 4
    sharded, = plan.run(config, "v5e:2x2", "configs/x.py")
    assert sharded.parameters < 0.4 * found.parameters and sharded.optimizer < 0.4 * found.optimizer
    assert "all-to-all" not in sharded.collectives


@pytest.mark.slow
@pytest.mark.tpu_compiler
def test_glipv2_t_for_sixteen_chips(compiler):
    """The full size: four images on a chip, gradients summed once, nothing handed from chip to chip."""
    found, = plan.run(glipv2_t_stage1.get_config(), "v5e:4x4", "configs/glipv2_t_stage1.py")
    assert found.batch_size == 64 and found.spare > 0
    assert found.collectives.get("all-to-all", [0])[0] == 0 and found.collectives["all-reduce"][1] < 1.2 * found.parameters
