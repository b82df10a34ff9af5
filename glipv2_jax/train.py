"""A run from beginning to end. Read from top to bottom."""
import contextlib
import copy
import dataclasses
import json
import logging
import pathlib
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from glipv2_jax import sharding
from glipv2_jax.bad_steps import BadSteps
from glipv2_jax.build import abstract_params, build, check_tasks, find_answers, make_step
from glipv2_jax.checkpoint import Checkpoints, load_params, read_about, with_fresh
from glipv2_jax.evaluate import EvalSource, check_eval_tasks, evaluate
from glipv2_jax.evaluation.benchmarks import BENCHMARKS, find_sources
from glipv2_jax.files import locked, write_whole
from glipv2_jax.metrics import ProfileWindow, Progress, Speed, Waiting, Writer
from glipv2_jax.optim import with_learning_rate_factor
from glipv2_jax.plateau import Plateau
from glipv2_jax.predictor import Predictor
from glipv2_jax.processes import Stopped, StopSignal, Watchdog, beat
from glipv2_jax.train_state import shardings_of
from glipv2_jax.tuning import may_be_fresh, mode_of
from input_pipeline import BadRecords, train_batches
from input_pipeline.answers import ANSWERS_FILE
from input_pipeline.registry import epoch_records, eval_specs, make_source, train_options, train_specs

log = logging.getLogger(__name__)


def make_eval_sources(data):
    """List of EvalSource that a run is scored on."""
    return [EvalSource(spec["name"], make_source(spec, data.root), spec.get("protocol")) for spec in eval_specs(data)]


def durations(train, epoch_records):
    """Steps of a run, and from one evaluation to the next (0: none): those of `config.train`, or of its epochs.

    Args:
      epoch_records: how many an epoch has, copies included.
    Raises: ValueError for epochs that are too short.
    """
    num_steps = train.num_epochs * epoch_records // train.batch_size if train.num_epochs else train.num_steps
    every = (int(train.eval_every_epochs * epoch_records / train.batch_size) if train.eval_every_epochs
             else train.eval_every_steps)
    if num_steps < 1 or (train.eval_every_epochs and every < 1):
        raise ValueError(f"train.num_epochs {train.num_epochs}, train.eval_every_epochs {train.eval_every_epochs}: found "
                         f"{epoch_records:g} images in an epoch, expected a batch of {train.batch_size} at least; "
                         "`copies` of a source lengthen it")
    return int(num_steps), every


def train_and_evaluate(config, workdir):
    """Trains to its last step or its early stop, resuming what the workdir holds, then evaluates.

    Args:
      config: ConfigDict, as configs/common.py describes it.
      workdir: folder of checkpoints, metrics, results and pictures; made when missing.
    Returns: dict of scores.
    Raises:
      ValueError for a config that cannot work; FloatingPointError for losses that are not finite; OSError for a workdir that
        another run writes to, or a checkpoint that could not be saved; Stopped, after saving, where the run was told to stop.
    """
    with locked(workdir), StopSignal() as stop:
        return _train_and_evaluate(config, workdir, stop)


def _train_and_evaluate(config, workdir, stop):
    workdir = pathlib.Path(workdir)
    is_main = jax.process_index() == 0
    t, d = config.train, config.data

    # -- mesh, tokenizer, model; data
    mesh, tokenizer, model = build(config)
    if config.eval.ema and not t.ema_decay:
        raise ValueError("eval.ema is on, but train.ema_decay is 0: there are no averaged parameters to score")
    specs = train_specs(d)
    sources = [make_source(spec, d.root) for spec in specs]
    check_tasks(config, model, sources)
    answers = find_answers(config, model, sources, workdir)
    eval_sources = make_eval_sources(d)
    check_eval_tasks(eval_sources, model.config, answers)
    num_steps, eval_every = durations(t, epoch_records(specs, sources))
    eval_every = eval_every if eval_sources else 0
    rate_falls = config.optimizer.schedule == "plateau"
    if (rate_falls or t.stop_patience) and not eval_every:
        raise ValueError(f"optimizer.schedule {config.optimizer.schedule!r}, train.stop_patience {t.stop_patience}: "
                         "found no evaluation during training, expected train.eval_every_steps or eval_every_epochs, "
                         "and data to evaluate on")

    # -- the step, and what its evaluations may decide
    create, abstract, step_fn = make_step(config, mesh, tokenizer, model, num_steps)
    plateau = Plateau(config.optimizer.patience, config.optimizer.gamma, config.optimizer.warmup_steps, t.stop_patience)

    # -- sharded state: the workdir's own, else init_from's parameters, else fresh
    checkpoints = Checkpoints(workdir, t.keep_checkpoints)
    # The order of the data is a function of these numbers, too.
    records = {spec.get("name", source.name): len(source) for spec, source in zip(specs, sources)}
    about = json.loads(config.to_json_best_effort()) | {"records": records}, dataclasses.asdict(model.config)
    state, unscored = checkpoints.restore(abstract), False
    if state is not None:
        before = read_about(workdir)
        unscored = before.get("unscored", False)
        plateau = dataclasses.replace(plateau, **before.get("plateau", {}))
        for line in changed_fields(before["config"], about[0]) if is_main else ():
            log.warning("resumed with another config than the checkpoint's: %s", line)
    else:
        state = jax.jit(create, out_shardings=shardings_of(abstract))(jax.random.key(config.seed))
        if mode_of(t.tune).trained and not config.init_from:
            raise ValueError(f"train.tune {t.tune!r}: found no init_from, expected a folder of weights; all that does not train would stay as it "
                             "was drawn")
        if config.init_from:
            fresh = (*config.init_fresh, *may_be_fresh(t.tune))
            params = with_fresh(load_params(config.init_from, abstract.params, fresh=fresh), state.params)
            ema = jax.tree.map(jnp.copy, params) if t.ema_decay > 0 else None
            state = state.replace(params=params, ema_params=ema)
    start_step = int(jax.device_get(state.step))
    if is_main:
        count = sum(x.size for x in jax.tree.leaves(state.params))
        log.info("%s: %.1f M parameters, mesh %s, from step %d of %d, %d training images", config.model.variant,
                     count / 1e6, dict(mesh.shape), start_step, num_steps, sum(map(len, sources)))
        write_whole(workdir / "config.json", config.to_json_best_effort(indent=2) + "\n")
    best = Checkpoints(workdir / "best", keep=1) if eval_every else None
    if is_main:
        # With its words beside it a checkpoint is all that prediction needs.
        for folder in [workdir] + [workdir / "best"] * bool(eval_every):
            shutil.copyfile(tokenizer.vocabulary, folder / "vocab.txt")
            if answers:
                write_whole(folder / ANSWERS_FILE, answers.text())

    key = jax.jit(lambda: jax.random.key(config.seed + 1), out_shardings=sharding.replicated(mesh))()

    predictor = Predictor(model, mesh, config.eval)

    def score(state):
        step = int(jax.device_get(state.step))
        predictor.params = state.ema_params if config.eval.ema else state.params
        # Found detections are kept in parts: an evaluation that is stopped loses little.
        with stop.at_once():
            return evaluate(predictor, mesh, config, eval_sources, tokenizer, workdir,
                            f"{workdir.name}, step {step}{', averaged' * config.eval.ema}", answers)

    def judge(state, scores):
        """The state after its scores: it may be kept as the best, its learning rate may fall, and the run may end."""
        step, (name, value) = int(jax.device_get(state.step)), selected_score(scores, t.select_by)
        if plateau.update(value, step):
            best.forget_from(step)
            best.save(state.replace(opt_state=()), *about, selected={"score": name, "value": value})
        if plateau.stopped:
            log.info("step %d: stopped after %d evaluations below the best %s, %.4g at step %d, kept in %s", step,
                     plateau.below_best, name, plateau.best, plateau.best_step, workdir / "best")
        if not rate_falls:
            return state
        writer.scalars(step, {"learning_rate_factor": plateau.factor})
        return state.replace(opt_state=with_learning_rate_factor(state.opt_state, plateau.factor))

    # -- loop
    scores, scored_step = {}, None
    with (sharding.use(mesh, config.mesh.rules), Watchdog(t.hang_seconds), contextlib.closing(checkpoints),
          contextlib.closing(best) if best else contextlib.nullcontext(),
          Writer(workdir, enabled=is_main, start_step=start_step) as writer):
        if unscored:
            scores, scored_step = score(state), start_step
            writer.scalars(start_step, scores)
            state = judge(state, scores)
        if start_step < num_steps and not plateau.stopped:
            bad_records = BadRecords(d.max_bad_records)
            batches = Waiting(train_batches(
                **train_options(config, specs, sources, tokenizer, answers), start_step=start_step,
                process_index=jax.process_index(), process_count=jax.process_count(), parallel_reads=d.parallel_reads,
                bad_records=bad_records))
            bad_steps = BadSteps(workdir, sources, t.not_finite, t.max_skipped_steps)
            speed = Speed(step_fn)
            log.info("compiling the training step, once for each canvas: about a minute for a small model, several for "
                     "a large one")
            with (Progress("train", total=num_steps, unit="steps", done=start_step) as progress, contextlib.closing(ProfileWindow(
                    workdir / "profile", t.profile_from_step, t.profile_steps)) as profile):
                for step, batch in zip(range(start_step, num_steps), batches):
                    arrays = sharding.global_batch(batch, mesh)
                    speed.count(state, arrays, key)
                    profile.before(step)
                    # Nothing travels between host and device by accident, which would wait for the device.
                    with jax.transfer_guard("disallow"):
                        state, metrics = step_fn(state, arrays, key)
                    profile.after(step, metrics)
                    # The former step is looked at while this one runs: the device never waits for the host.
                    bad_steps.look_at(step, metrics, batch)
                    for saved in filter(None, (checkpoints, best)):
                        saved.check()
                    beat(f"step {step}")
                    done = step + 1
                    stopping, last = stop.reached(done), done == num_steps
                    if last or done % t.log_every_steps == 0 or done == start_step + 1:
                        values = {k: float(v) for k, v in jax.device_get(metrics).items()}
                        values |= speed.values() | _input_metrics(batch, batches, bad_records) | {"bad_steps": bad_steps.count}
                        writer.scalars(done, values)
                        progress.update(done, values, images=(done - start_step) * t.batch_size)
                    # Scored before it is saved: a checkpoint holds what its own scores have decided, or that they are due.
                    due = not last and eval_every and done % eval_every == 0
                    if due and not stopping:
                        bad_steps.settle()
                        try:
                            scores, scored_step = score(state), done
                        except Stopped:
                            stopping = True
                        else:
                            writer.scalars(done, scores)
                            state = judge(state, scores)
                            speed.values(), batches.share()              # of the evaluation's time nobody asks
                    if last or stopping or plateau.stopped or (t.checkpoint_every_steps and done % t.checkpoint_every_steps == 0):
                        bad_steps.settle()
                        checkpoints.save(state, *about, plateau=plateau.state(), unscored=bool(due and stopping))
                    if stopping:
                        log.info("step %d: saved and stopped; the same command goes on", done)
                        raise Stopped
                    if plateau.stopped:
                        break
        if scored_step != int(jax.device_get(state.step)):
            started = time.perf_counter()
            scores = score(state)
            writer.scalars(int(jax.device_get(state.step)), scores)
            if eval_every and not plateau.stopped:
                judge(state, scores)
            if is_main:
                log.info("evaluated in %.0f s: %s", time.perf_counter() - started,
                         ", ".join(f"{name} {value:.3f}" for name, value in scores.items()))
    return scores


def selected_score(scores, name=""):
    """(name, value) of the score that a run is judged by, the same on all processes; process 0 alone has scores.

    Args:
      scores: dict "name/metric" → float. name: empty for the first AP, without one the first score of all.
    Raises: ValueError without such a score.
    """
    name = name or next((key for key in scores if key.endswith("/AP")), next(iter(scores), ""))
    value = float(scores.get(name, np.nan))
    if jax.process_count() > 1:
        # As bytes: on the device float64 would be rounded, and a near tie be decided in several ways.
        value = np.frombuffer(np.asarray(multihost_utils.broadcast_one_to_all(
            np.frombuffer(np.float64(value).tobytes(), np.uint8))).astype(np.uint8).tobytes(), np.float64).item()
    if np.isnan(value):
        raise ValueError(f"train.select_by: found no score {name!r}, expected one of {list(scores)}")
    return name, value


def changed_fields(before, now, where="config"):
    """Yields "config.a.b: before → now" for every field of two nested dicts that differs."""
    for key in sorted(before.keys() | now.keys()):
        a, b = before.get(key), now.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from changed_fields(a, b, f"{where}.{key}")
        elif a != b:
            yield f"{where}.{key}: {a} → {b}"


def _input_metrics(batch, batches, bad_records):
    """Of the input: on average over hosts the share of this batch's pixels that are padding, and of the time since last
    asked that went into waiting for batches; and how many bad records all hosts have met since their start."""
    padding = 1 - np.prod(batch["image_size"], axis=1).sum() / np.prod(batch["image"].shape[:3])
    of_hosts = np.array([[padding, batches.share(), len(bad_records)]])
    if jax.process_count() > 1:
        of_hosts = multihost_utils.process_allgather(of_hosts[0])
    return {"padding": float(of_hosts[:, 0].mean()), "input_wait": float(of_hosts[:, 1].mean()),
            "bad_records": float(of_hosts[:, 2].sum())}


def evaluate_only(config, workdir):
    """Scores the latest checkpoint of a workdir, and writes the results there.

    Scored are the config's evaluation sources, or where `config.data.benchmark` names one that benchmark, in a folder of its
    name and with its settings.

    Returns: dict of scores.
    Raises: FileNotFoundError without a checkpoint; ValueError if it does not fit the config's model, or for missing data; OSError
      while another run writes to the same folder.
    """
    output, d = pathlib.Path(workdir), config.data
    if d.benchmark:
        specs = find_sources(d.benchmark, pathlib.Path(d.root, d.benchmark_folder), d.benchmark_split or None)
        output, config = output / d.benchmark, copy.deepcopy(config)
        config.eval.update(BENCHMARKS[d.benchmark].settings)
        sources = [EvalSource(spec["name"], make_source(spec), spec["protocol"]) for spec in specs]
    else:
        sources = make_eval_sources(d)
    mesh, tokenizer, model = build(config)
    answers = find_answers(config, model, (), workdir)
    params = load_params(workdir, abstract_params(mesh, model, config), ema=config.eval.ema)
    with locked(output), sharding.use(mesh, config.mesh.rules), StopSignal() as stop, stop.at_once():
        predictor = Predictor(model, mesh, config.eval)
        predictor.params = params
        name = f"{pathlib.Path(workdir).name}, step {read_about(workdir)['next_step']}{', averaged' * config.eval.ema}"
        scores = evaluate(predictor, mesh, config, sources, tokenizer, output, name, answers)
    if jax.process_index() == 0:
        log.info("%s", ", ".join(f"{name} {value:.3f}" for name, value in scores.items()))
    return scores
