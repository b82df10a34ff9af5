"""The table of docs/scale.md."""
import dataclasses
import pathlib

import pytest

from benchmarks import scale
from glipv2_jax import flops
from tests.test_plan import PLAN


def test_a_slice_of_another_kind_is_derived():
    found = scale.derived(PLAN, "v6e", 64)
    assert (found.chip, found.devices, found.batch_size, found.mesh) == ("v6e", 64, 256, {"data": 64, "fsdp": 1, "tensor": 1})
    assert (found.temporaries, found.flops, found.collectives) == (PLAN.temporaries, PLAN.flops, PLAN.collectives)
    # Four bytes for each of 256 M parameters, twice that in moments and once in averages.
    assert found.parameters == pytest.approx(1.02e9, rel=0.01) and found.optimizer == pytest.approx(3 * found.parameters, rel=0.01)
    assert found.seconds()["products"] == pytest.approx(PLAN.flops / flops.CHIPS["v6e"].flops)


@pytest.mark.slow
def test_a_state_lies_over_as_many_devices_as_in_the_compiled_row():
    sharded = dataclasses.replace(PLAN, mesh={"data": 1, "fsdp": 16, "tensor": 1})
    sixteen, sixty_four = scale.derived(sharded, "v5e", 16), scale.derived(sharded, "v5e", 64)
    assert sixteen.parameters < 1.02e9 / 14 and sixty_four.parameters == sixteen.parameters
    assert sixty_four.mesh == {"data": 4, "fsdp": 16, "tensor": 1} and scale.derived(sharded, "h100", 8).mesh["fsdp"] == 8


def test_rows_say_how_they_came_about():
    rows = list(scale.rows([PLAN]))
    assert [row[:3] for row in rows] == [["glipv2_t", "v5e-16", "compiled"], *(["glipv2_t", name, "derived"] for name in (
        "v5e-256", "v5p-64", "v5p-128", "v6e-64", "v6e-256")), ["glipv2_t", "h100-8", "estimated"]]
    assert rows[0][3] == "deform_conv" and rows[0][5] == "8.1 of 16"
    assert next(scale.rows([dataclasses.replace(PLAN, kernels=[])]))[3] == "none"
    gpus = dataclasses.replace(PLAN, chip="h100", topology="h100:8", devices=8, mesh={"data": 8, "fsdp": 1, "tensor": 1}, kernels=[])
    *tpus, compiled = scale.rows([gpus, PLAN])
    assert tpus == rows[:-1] and compiled[1:4] == ["h100-8", "compiled", "none"]


@pytest.mark.slow
def test_the_page_shows_the_table_of_the_plans():
    plans = scale.compiled()
    assert {plan.variant for plan in plans} >= {"glipv2_t", "glipv2_b"}
    page = (pathlib.Path(__file__).parent.parent / "docs" / "scale.md").read_text()
    assert scale.table(plans) in page, "write it anew: python -m benchmarks.scale"
