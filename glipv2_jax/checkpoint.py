"""Checkpoints with Orbax: state, data position and config together, so that they always describe the same moment.

A step is a folder `checkpoints/<step>` of the workdir with the items `state` (step, parameters, optimizer), `ema` (averaged
parameters, where a run keeps them) and `about` (config, model, next step), and the sums of all their files. The data position
and the random numbers of a run are functions of its seed and step, so they need no item of their own.

Restore order of a run: the same workdir → `config.init_from` (parameters only) → scratch. Of a workdir it is the newest step
whose files are as they were written.
"""
import json
import logging
import pathlib
import re
import threading

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging as absl_logging
from jax.experimental import multihost_utils

from glipv2_jax import manifest

log = logging.getLogger(__name__)
_LAYOUT = 2     # raised when the meaning of what is stored changes; 1 had averaged parameters within `state`


class Checkpoints:
    """Numbered checkpoints of a workdir, for the one run that writes them."""

    def __init__(self, workdir, keep=2):
        """Opens the folder `checkpoints` of a workdir. Steps that cannot be restored are moved out of the way, to `damaged-<step>`.

        Args:
          workdir: path. keep: how many of the latest stay.
        Raises: OSError for a folder that cannot be made.
        """
        self._directory = pathlib.Path(workdir).absolute() / "checkpoints"
        self._step = _newest(self._directory, _move_aside)
        self._manager = ocp.CheckpointManager(self._directory, options=ocp.CheckpointManagerOptions(
            max_to_keep=keep, create=True, cleanup_tmp_directories=True))
        self._saving = self._failure = None

    def save(self, state, config, model_config, **more):
        """Saves in the background; a step that is already there is not written again.

        more: what else `read_about` should tell.
        Raises: OSError where the former save has failed.
        """
        self._finish()
        step = int(jax.device_get(state.step))
        if step in self._manager.all_steps():
            return
        about = {"layout": _LAYOUT, "next_step": step, "model": model_config, "config": config, **more}
        items = {"state": ocp.args.StandardSave(state.replace(ema_params=None)), "about": ocp.args.JsonSave(about)}
        if state.ema_params is not None:
            items["ema"] = ocp.args.StandardSave(state.ema_params)
        try:
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)
        except Exception as error:
            raise self._not_saved(step, error) from error
        self._saving = threading.Thread(target=self._complete, args=(step,), name="manifest")
        self._saving.start()

    def _complete(self, step):
        """Waits until a step is written, and adds its sums."""
        try:
            self._manager.wait_until_finished()
            if jax.process_index() == 0:
                manifest.write(self._directory / str(step))
        except Exception as error:                    # whatever it is, the run has to know
            self._failure = step, error

    def check(self):
        """Raises OSError if a save has failed since last asked. Asked at every step, it costs nothing."""
        if self._failure:
            (step, error), self._failure = self._failure, None
            raise self._not_saved(step, error) from error

    def _not_saved(self, step, error):
        return OSError(f"{self._directory}: step {step} was not saved, earlier ones are as they were. "
                       f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")

    def _finish(self):
        if self._saving:
            self._saving.join()
        self.check()

    def forget_from(self, step):
        """Deletes checkpoints of this step and later ones, which a run that was set back does over."""
        self._finish()
        for later in [found for found in self._manager.all_steps() if found >= step]:
            self._manager.delete(later)

    def restore(self, abstract):
        """The newest whole state, on the shardings of `abstract`. None when the workdir holds no checkpoint.

        Raises: ValueError for a layout that this version does not know, or a state that does not fit.
        """
        if self._step is None:
            return None
        folder = self._directory / str(self._step)
        about = _about_of(folder)
        if about["layout"] != _LAYOUT:
            raise ValueError(f"{folder}: found checkpoint layout {about['layout']}, expected {_LAYOUT}; init_from={self._directory.parent} "
                             "takes its parameters")
        averages = abstract.ema_params is not None
        items = {"state": ocp.args.StandardRestore(abstract.replace(ema_params=None))}
        if averages and (folder / "ema").exists():
            items["ema"] = ocp.args.StandardRestore(abstract.ema_params)
        restored = self._manager.restore(self._step, args=ocp.args.Composite(**items))
        state = restored["state"]
        if averages:
            # A run that begins to average does so from where it is. A copy: donated states must not hold one buffer twice.
            state = state.replace(ema_params=restored["ema"] if "ema" in items else jax.tree.map(jnp.copy, state.params))
        return state

    def close(self):
        """Waits until all is written. Raises: OSError where that has failed."""
        try:
            self._finish()
        finally:
            self._manager.close()


def read_about(directory):
    """What the newest whole checkpoint of a workdir says of itself: step, model, config; `plateau`, what its evaluations have
    decided so far; of a best one `selected`, the score it was chosen by.

    Raises: FileNotFoundError when there is no checkpoint; ValueError for a layout this version does not know.
    """
    return _about_of(_latest(directory))


def load_params(directory, abstract_params, ema=False, fresh=()):
    """Parameters of the newest whole checkpoint of a workdir.

    Args:
      directory: a workdir.
      abstract_params: tree of ShapeDtypeStructs, with shardings where they matter.
      ema: take the averaged parameters.
      fresh: regular expressions of the paths of parameters that may be missing, such as those of a new head.
    Returns: tree like `abstract_params`, without what was missing; the log names it.
    Raises: FileNotFoundError without a checkpoint; ValueError naming parameters that are missing, extra or misshapen.
    """
    folder = _latest(directory)
    _about_of(folder)                                    # refuses a layout that this version does not know
    item, prefix = ("ema", ()) if ema else ("state", ("params",))
    if not (folder / item).exists():
        raise ValueError(f"{folder}: holds no averaged parameters")
    with ocp.StandardCheckpointer() as checkpointer:
        stored = _quietly(checkpointer.metadata, folder / item).item_metadata
        for name in prefix:
            stored = stored[name]
    missing = _missing(stored, abstract_params, fresh, folder)
    wanted = _without(abstract_params, missing)
    tree, arguments = wanted, ocp.checkpoint_utils.construct_restore_args(wanted)
    for name in prefix:
        tree, arguments = {name: tree}, {name: arguments}
    with ocp.PyTreeCheckpointer() as checkpointer:
        restored = checkpointer.restore(folder / item, args=ocp.args.PyTreeRestore(
            item=tree, partial_restore=True, restore_args=arguments))
    for name in prefix:
        restored = restored[name]
    return restored


def with_fresh(loaded, fresh):
    """The tree `fresh` with every leaf that `loaded` has in its place; both nested dicts."""
    return {key: with_fresh(loaded[key], value) if key in loaded and isinstance(value, dict) else loaded.get(key, value)
            for key, value in fresh.items()}


def holds_ema(directory):
    """Whether the newest whole checkpoint of a workdir has averaged parameters."""
    return (_latest(directory) / "ema").exists()


def _about_of(folder):
    about = json.loads((folder / "about" / "metadata").read_text())
    if about["layout"] not in (1, _LAYOUT):
        raise ValueError(f"{folder}: found checkpoint layout {about['layout']}, expected {_LAYOUT}")
    return about


def _latest(directory):
    folder = pathlib.Path(directory).absolute() / "checkpoints"
    step = _newest(folder)
    if step is None:
        within = next((f", such as {parent.parent}" for parent in folder.parents if parent.name == "checkpoints"), "")
        raise FileNotFoundError(f"{directory}: no checkpoint; expected a workdir with checkpoints/<step>{within}")
    return folder / str(step)


def _newest(folder, set_aside=None):
    """The newest step in a folder whose files are as they were written, the same on every process; None without any.

    Args:
      folder: path of `checkpoints`. set_aside: function of the path of a step that cannot be used, or None.
    """
    step = -1
    if jax.process_index() == 0:
        names = sorted(path.name for path in folder.glob("*")) if folder.is_dir() else []
        for name in names:
            if not name.isdigit() and not name.startswith("damaged-"):
                log.warning("%s: not a checkpoint, ignored", folder / name)
        for name in sorted((name for name in names if name.isdigit()), key=int, reverse=True):
            wrong = _wrong_with(folder / name)
            if not wrong:
                step = int(name)
                break
            log.warning("%s: damaged, an earlier checkpoint takes its place. %s", folder / name, "; ".join(wrong[:5]))
            if set_aside:
                set_aside(folder / name)
    if jax.process_count() > 1:
        step = int(multihost_utils.broadcast_one_to_all(np.int32(step)))
    return None if step < 0 else step


def _wrong_with(step_folder):
    wrong = manifest.problems(step_folder)
    if wrong is None:
        # A run killed between the last byte and its sums; Orbax gives a step its name when all is written.
        wrong = [f"{name}: missing" for name in ("_CHECKPOINT_METADATA", "about/metadata", "state") if not (step_folder / name).exists()]
        if not wrong:
            log.warning("%s: has no %s, its files are taken as they are", step_folder, manifest.NAME)
    return wrong


def _move_aside(step_folder):
    target, number = step_folder.with_name(f"damaged-{step_folder.name}"), 1
    while target.exists():
        number += 1
        target = step_folder.with_name(f"damaged-{step_folder.name}-{number}")
    step_folder.rename(target)
    log.warning("%s: moved to %s", step_folder, target.name)


def _quietly(function, *args):
    """Orbax warns that the state has no metadata of its own; the step, which holds it, has."""
    verbosity = absl_logging.get_verbosity()
    absl_logging.set_verbosity(absl_logging.ERROR)
    try:
        return function(*args)
    finally:
        absl_logging.set_verbosity(verbosity)


def _missing(stored, expected, fresh, where):
    """Paths of parameters that a checkpoint lacks and may lack. Raises: ValueError for everything else that does not fit."""
    def shapes(tree):
        return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
                for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    stored, expected = shapes(stored), shapes(expected)
    absent = sorted(set(expected) - set(stored))
    missing = [k for k in absent if any(re.match(pattern, k) for pattern in fresh)]
    problems = [f"{k} {expected[k]}: not in the checkpoint" for k in absent if k not in missing]
    problems += [f"{k} {stored[k]}: not in the model" for k in sorted(set(stored) - set(expected))]
    problems += [f"{k}: found {stored[k]}, expected {expected[k]}"
                 for k in sorted(set(stored) & set(expected)) if stored[k] != expected[k]]
    if problems:
        raise ValueError(f"{where}: does not fit the model:\n  " + "\n  ".join(problems))
    for k in missing:
        log.warning("%s: not in %s, starts fresh", k, where)
    return set(missing)


def _without(tree, paths, prefix=""):
    """A nested dict without some of its leaves, and without dicts that this empties."""
    kept = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict):
            if value := _without(value, paths, f"{path}/"):
                kept[key] = value
        elif path not in paths:
            kept[key] = value
    return kept
