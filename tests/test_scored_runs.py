"""Runs that are scored on their way: the best state is kept, the rate falls, the run ends early, and all of it resumes."""
import shutil

import jax
import numpy as np
import pytest

from glipv2_jax import train
from glipv2_jax.checkpoint import read_about
from glipv2_jax.predict import Detector
from glipv2_jax.processes import Stopped
from tests.test_train import metrics, params_of, small_config, timeless

APS = {2: 0.1, 4: 0.3, 6: 0.3, 8: 0.2, 10: 0.1, 12: 0.25}


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """(config, workdir, steps that were evaluated) of a run of at most 20 steps whose evaluations find `APS`."""
    config, workdir, evaluated = small_config(), tmp_path_factory.mktemp("judged"), []
    config.optimizer.schedule, config.optimizer.patience, config.optimizer.warmup_steps = "plateau", 0, 0
    config.train.num_steps, config.train.eval_every_steps, config.train.stop_patience = 20, 2, 3
    config.train.checkpoint_every_steps, config.train.keep_checkpoints = 4, 4

    def evaluate(predictor, mesh, config, sources, tokenizer, workdir, checkpoint, answers):
        evaluated.append(int(checkpoint.split("step ")[1].split(",")[0]))
        return {"captions/recall@1": 0.5, "heldout/AP": APS[evaluated[-1]]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "evaluate", evaluate)
        train.train_and_evaluate(config, workdir)
        yield config, workdir, evaluated


def test_evaluations_lower_the_rate_keep_the_best_and_end_the_run(judged):
    config, workdir, _ = judged
    lines = metrics(workdir)
    assert [line["step"] for line in lines] == list(range(1, 13))            # of 20: the third below the best ends it
    factors = [line["learning_rate_factor"] for line in lines if "learning_rate_factor" in line]
    np.testing.assert_allclose(factors, [1, 1, 0.1, 0.01, 1e-3, 1e-4], rtol=1e-6)   # a tie is no gain
    norms = [line["update_norm"] for line in lines]
    assert norms[6] < 0.5 * norms[5] and norms[8] < 0.5 * norms[7]
    assert read_about(workdir)["next_step"] == 12 and read_about(workdir)["plateau"]["below_best"] == 3
    about = read_about(workdir / "best")                                     # a tie is the best
    assert about["next_step"] == 6 and about["selected"] == {"score": "heldout/AP", "value": 0.3}
    assert [folder.name for folder in (workdir / "best" / "checkpoints").iterdir()] == ["6"]
    best, last = params_of(config, workdir / "best", False), params_of(config, workdir, False)
    assert any(np.any(a != b) for a, b in zip(jax.tree.leaves(best), jax.tree.leaves(last)))
    assert Detector.from_pretrained(workdir / "best", ema=True).detect([np.zeros((64, 64, 3), np.uint8)], ["cat"])


def test_a_judged_run_resumes_bit_for_bit_and_is_not_taken_up_after_its_end(judged, tmp_path):
    """Stopped between a new best and the next checkpoint: what is in `best` was found by steps that are done again."""
    config, workdir, evaluated = judged
    shutil.copytree(workdir / "checkpoints" / "4", tmp_path / "checkpoints" / "4")
    shutil.copytree(workdir / "best", tmp_path / "best")
    shutil.copy(workdir / "metrics.jsonl", tmp_path)
    evaluated.clear()
    train.train_and_evaluate(config, tmp_path)
    assert evaluated == [6, 8, 10, 12]
    assert timeless(metrics(tmp_path)) == timeless(metrics(workdir))
    for folder in (".", "best"):
        jax.tree.map(np.testing.assert_array_equal, *(params_of(config, run / folder, True) for run in (tmp_path, workdir)))
        assert read_about(tmp_path / folder) == read_about(workdir / folder)
    evaluated.clear()
    assert train.train_and_evaluate(config, tmp_path) == {"captions/recall@1": 0.5, "heldout/AP": 0.25}
    assert evaluated == [12] and read_about(tmp_path)["next_step"] == 12


def test_an_evaluation_that_was_due_when_the_run_was_stopped_comes_first(judged, tmp_path, monkeypatch):
    config, workdir, evaluated = judged
    evaluated.clear()
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(train.StopSignal, "reached", lambda self, step: step == 4)
        train.train_and_evaluate(config, tmp_path)
    assert evaluated == [2] and read_about(tmp_path)["unscored"]
    evaluated.clear()
    train.train_and_evaluate(config, tmp_path)
    assert evaluated == [4, 6, 8, 10, 12]
    assert timeless(metrics(tmp_path)) == timeless(metrics(workdir))
    jax.tree.map(np.testing.assert_array_equal, *(params_of(config, folder, False) for folder in (tmp_path, workdir)))
    assert read_about(tmp_path / "best") == read_about(workdir / "best")


def test_a_run_that_is_stopped_while_it_is_scored_loses_no_step(judged, tmp_path, monkeypatch):
    config, workdir, evaluated = judged

    def stopped(*args):
        raise Stopped
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(train, "evaluate", stopped)
        train.train_and_evaluate(config, tmp_path)
    assert read_about(tmp_path)["next_step"] == 2 and read_about(tmp_path)["unscored"]
    evaluated.clear()
    train.train_and_evaluate(config, tmp_path)
    assert evaluated == [2, 4, 6, 8, 10, 12]
    assert timeless(metrics(tmp_path)) == timeless(metrics(workdir))


def test_the_score_that_judges_a_run():
    scores = {"captions/recall@1": 0.5, "a/AP": 0.25, "b/AP": 0.75}
    assert train.selected_score(scores) == ("a/AP", 0.25)
    assert train.selected_score(scores, "b/AP") == ("b/AP", 0.75)
    assert train.selected_score({"captions/recall@1": 0.5}) == ("captions/recall@1", 0.5)
    with pytest.raises(ValueError, match=r"found no score 'c/AP', expected one of \['captions/recall@1', 'a/AP', 'b/AP'\]"):
        train.selected_score(scores, "c/AP")
