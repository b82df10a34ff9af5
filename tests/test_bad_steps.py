"""Steps whose loss is not finite or jumps: told, left out, and at last the end of the run."""
import json
import logging
import types

import jax.numpy as jnp
import numpy as np
import pytest

from glipv2_jax.bad_steps import BadSteps

SOURCES = [types.SimpleNamespace(name="photos"), types.SimpleNamespace(name="captions")]
BATCH = {"source": np.array([0, 1]), "example_id": np.array([12, 2**40])}


def metrics(loss, applied):
    return {"loss": jnp.float32(loss), "loss_box": jnp.float32(loss), "grad_norm": jnp.float32(1), "finite": jnp.isfinite(jnp.float32(loss)),
            "applied": jnp.bool_(applied)}


def test_stop_names_step_and_examples(tmp_path):
    bad = BadSteps(tmp_path, SOURCES, "stop", 10)
    bad.look_at(0, metrics(1, True), BATCH)
    bad.look_at(1, metrics(np.nan, False), BATCH)
    with pytest.raises(FloatingPointError, match=r"step 2: loss nan.*expected finite.*captions image 1099511627776, photos image 12"):
        bad.settle()
    line, = (tmp_path / "bad_steps-0.jsonl").read_text().splitlines()
    assert json.loads(line) == {"step": 2, "finite": False, "examples": ["captions image 1099511627776", "photos image 12"],
                                "loss": "nan", "loss_box": "nan", "grad_norm": "1.0"}


def test_skip_goes_on_until_too_many_in_a_row(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("glipv2_jax"), "propagate", True)
    bad = BadSteps(tmp_path, SOURCES, "skip", 2)
    for step, applied in enumerate([False, False, True, False, False]):
        bad.look_at(step, metrics(1 if applied else np.inf, applied), BATCH)
    bad.settle()
    # By their identity: a handler that stands at two loggers gets every record twice.
    said = {id(record): record.getMessage() for record in caplog.records}
    assert bad.count == 4 and sum("left out step" in line for line in said.values()) == 4
    bad.look_at(5, metrics(np.nan, False), BATCH)
    with pytest.raises(FloatingPointError, match=r"3 bad steps in a row, train.max_skipped_steps is 2. step 6"):
        bad.settle()


def test_a_jump_is_left_out_also_where_not_finite_stops(tmp_path):
    bad = BadSteps(tmp_path, SOURCES, "stop", 1)
    bad.look_at(0, metrics(1e6, False), BATCH)
    bad.look_at(1, metrics(1e6, False), BATCH)
    with pytest.raises(FloatingPointError, match="2 bad steps in a row.*expected a loss near its average"):
        bad.settle()


def test_unknown_policy():
    with pytest.raises(ValueError, match=r"train.not_finite: found 'ignore', expected one of \('stop', 'skip'\)"):
        BadSteps(".", SOURCES, "ignore", 1)
