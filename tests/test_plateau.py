"""Falling rates, the best state and the early stop against the reference's trainer, evaluation by evaluation."""
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glipv2_jax.optim import learning_rate, make_optimizer, with_learning_rate_factor
from glipv2_jax.plateau import Plateau
from tests.test_optim import settings


def opened(about, case):
    """(Plateau, settings of the optimizer) of a case of the reference."""
    options = about["released_options"] | case["options"]
    scheduler = about["scheduler"]
    plateau = Plateau(options["SOLVER.STEP_PATIENCE"], scheduler["factor"], options["SOLVER.WARMUP_ITERS"],
                      max(options["SOLVER.AUTO_TERMINATE_PATIENCE"], 0))
    return plateau, settings(schedule="plateau", learning_rate=options.get("SOLVER.BASE_LR", 1e-4),
                             min_learning_rate=scheduler["min_lr"], warmup_steps=options["SOLVER.WARMUP_ITERS"])


def test_reference_runs(load_reference):
    about = load_reference("evaluation/autostep.json")
    # An AP of 0 and one of −1 are what the reference handles in its own way, see below.
    cases = [case for case in about["cases"].values() if min(case["evaluations"]["ap"]) > 0]
    assert cases
    for case in cases:
        _check_run(about, case)


def _check_run(about, case):
    plateau, config = opened(about, case)
    found = case["evaluations"]
    rates = {}
    for i, (step, score) in enumerate(zip(found["iteration"], found["ap"])):
        assert not plateau.stopped
        is_best = plateau.update(score, step)
        assert plateau.bad == found["plateau_bad_count_after"][i], step
        assert plateau.gained == found["plateau_best_after"][i], step
        if plateau.stop_patience:
            assert (is_best, plateau.below_best, plateau.best) == (
                found["saves_model_best"][i], found["terminate_counter_after"][i], found["best_after"][i]), step
        if step >= config.warmup_steps:                     # the ramp itself differs, see below
            for group, base in (("rpn", config.learning_rate), ("language", 1e-5), ("backbone", config.learning_rate)):
                key = base, plateau.drops
                if key not in rates:
                    rates[key] = float(learning_rate(step, base, config, case["iterations"], plateau.factor))
                np.testing.assert_allclose(rates[key], found[f"lr_after_{group}_weight"][i], rtol=1e-6)
    assert plateau.stopped == case["stopped_early"]
    if plateau.stop_patience:
        assert plateau.best_step == case["model_best_final_iteration"]


def test_without_early_stop_there_is_a_best_state_all_the_same(load_reference):
    about = load_reference("evaluation/autostep.json")
    case = about["cases"]["early_stop_off"]
    plateau, found = opened(about, case)[0], case["evaluations"]
    for step, score in zip(found["iteration"], found["ap"]):
        plateau.update(score, step)
    assert not any(found["saves_model_best"]) and not plateau.stopped
    assert plateau.best_step == found["iteration"][int(np.argmax(found["ap"]))]


def test_a_score_of_zero_counts(load_reference):
    """To the rate part of the reference a 0 is no score: a run that finds nothing keeps its rate to the end."""
    about = load_reference("evaluation/autostep.json")
    case = about["cases"]["always_zero"]
    plateau, found = opened(about, case)[0], case["evaluations"]
    for step, score in zip(found["iteration"][:9], found["ap"]):
        plateau.update(score, step)
    # The first sets the mark, every fourth after it lowers the rate.
    assert plateau.drops == 2 and set(found["lr_after_rpn_weight"]) == {1e-4}
    assert plateau.below_best == 0 and plateau.best_step == 36          # ties are best, as in the reference

    case = about["cases"]["zeros_then_value"]
    plateau, found = opened(about, case)[0], case["evaluations"]
    drops = []
    for i, (step, score) in enumerate(zip(found["iteration"], found["ap"])):
        assert plateau.update(score, step) == found["saves_model_best"][i]
        assert plateau.below_best == found["terminate_counter_after"][i]
        drops.append(plateau.drops)
    assert plateau.stopped
    # 0.2, then 0.1, 0, 0 and 0.1 without a gain; the reference sees two of these four.
    assert drops[6:9] == [0, 1, 1] and set(found["lr_after_rpn_weight"][:13]) == {1e-4}


@pytest.mark.parametrize("score", [-1.0, float("nan")])
def test_no_score_is_refused(score):
    """Without ground truth the reference goes on with −1, which is a gain to its rate every time: −1 > −1.0001."""
    with pytest.raises(ValueError, match=f"step 4: found score {score}, expected a number from 0 on"):
        Plateau().update(score, 4)


def test_the_ramp_covers_the_first_step_and_ends_when_it_should(load_reference):
    about = load_reference("evaluation/autostep.json")
    case = about["cases"]["warm_up_12"]
    _, config = opened(about, case)
    rates = [float(learning_rate(step, 1e-4, config, 800, 1.0)) for step in range(14)]
    assert rates[0] == pytest.approx(1e-7) and np.all(np.diff(rates[:13]) > 0)
    assert rates[12] == rates[13] == pytest.approx(1e-4)
    # The reference starts at the full rate, repeats the ramp's start, and jumps over the two evaluations in it.
    theirs = dict(case["lr_used_rpn_weight_changes"])
    assert theirs[1] == 1e-4 and theirs[2] == pytest.approx(rates[0]) and theirs[11] == 1e-4


def test_a_rate_below_the_floor_stays():
    config = settings(schedule="plateau", min_learning_rate=1e-6)
    assert float(learning_rate(5, 1e-7, config, 10, 0.1)) == pytest.approx(1e-7)


def test_state_goes_through_json_in_the_middle():
    scores = np.random.default_rng(0).uniform(size=40)
    whole = Plateau(patience=2, stop_patience=30)
    for step, score in enumerate(scores):
        whole.update(float(score), step)
        restored = dataclasses.replace(Plateau(patience=2, stop_patience=30), **json.loads(json.dumps(whole.state())))
        assert restored == whole
    assert whole.drops and whole.below_best


def test_the_factor_is_an_array_of_the_optimizer():
    params = {name: {"kernel": jnp.ones(3)} for name in ("fpn", "text_encoder", "neck")}
    optimizer = make_optimizer(settings(schedule="plateau", weight_decay=0.0), 100, freeze=("neck/",))
    state = jax.device_put(optimizer.init(params), jax.devices()[0])        # committed to its place, as a run's state is
    grads, step = jax.tree.map(jnp.ones_like, params), jax.jit(optimizer.update)
    first, state = step(grads, state, params)
    second, state = step(grads, with_learning_rate_factor(state, 0.01), params)
    third, state = step(grads, state, params)
    np.testing.assert_allclose(second["fpn"]["kernel"], 0.01 * first["fpn"]["kernel"], rtol=1e-4)
    np.testing.assert_allclose(third["fpn"]["kernel"], second["fpn"]["kernel"], rtol=1e-4)
    # 1e-5 may fall to the floor of 1e-6 and no further
    np.testing.assert_allclose(second["text_encoder"]["kernel"], 0.1 * first["text_encoder"]["kernel"], rtol=1e-4)
    assert step._cache_size() == 1
