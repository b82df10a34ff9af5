"""Checkpoints with Orbax: state, data position and config together, so that they always describe the same moment.

Restore order of a run: the same workdir → `config.init_from` (parameters only) → scratch.
"""
import json
import pathlib

import jax
import orbax.checkpoint as ocp
from absl import logging

_LAYOUT = 1     # raised when the meaning of what is stored changes


class Checkpoints:
    """Numbered checkpoints of a workdir."""

    def __init__(self, workdir, keep=2):
        """workdir: path; the checkpoints lie in its folder `checkpoints`. keep: how many of the latest stay."""
        self._directory = pathlib.Path(workdir).absolute() / "checkpoints"
        self._manager = ocp.CheckpointManager(
            self._directory, options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True))

    def latest_step(self):
        return self._manager.latest_step()

    def save(self, state, config, model_config, **more):
        """Saves in the background; a step that is already there is not written again.

        more: what else `read_about` should tell.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        about = {"layout": _LAYOUT, "next_step": step, "model": model_config, "config": config, **more}
        self._manager.save(step, args=ocp.args.Composite(
            state=ocp.args.StandardSave(state), about=ocp.args.JsonSave(about)))

    def forget_from(self, step):
        """Deletes checkpoints of this step and later ones, which a run that was set back does over."""
        for later in [found for found in self._manager.all_steps() if found >= step]:
            self._manager.delete(later)

    def restore(self, abstract):
        """The latest state, on the shardings of `abstract`. None when the workdir holds no checkpoint."""
        step = self.latest_step()
        if step is None:
            return None
        read_about(self._directory.parent)               # refuses a layout that this version does not know
        return self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract)))["state"]

    def close(self):
        self._manager.wait_until_finished()
        self._manager.close()


def read_about(directory):
    """What the latest checkpoint of a workdir says of itself: step, model, config; `plateau`, what its evaluations have
    decided so far; of a best one `selected`, the score it was chosen by.

    Raises: FileNotFoundError when there is no checkpoint; ValueError for a layout this version does not know.
    """
    step_directory = _latest(directory)
    about = json.loads((step_directory / "about" / "metadata").read_text())
    if about["layout"] != _LAYOUT:
        raise ValueError(f"{step_directory}: found checkpoint layout {about['layout']}, expected {_LAYOUT}")
    return about


def load_params(directory, abstract_params, ema=False):
    """Parameters of the latest checkpoint of a workdir.

    Args:
      directory: a workdir.
      abstract_params: tree of ShapeDtypeStructs, with shardings where they matter.
      ema: take the averaged parameters.
    Raises: FileNotFoundError without a checkpoint; ValueError naming parameters that are missing, extra or misshapen.
    """
    name = "ema_params" if ema else "params"
    step_directory = _latest(directory)
    with ocp.StandardCheckpointer() as checkpointer:
        stored = _quietly(checkpointer.metadata, step_directory / "state").item_metadata
        if not stored.get(name):
            raise ValueError(f"{step_directory}: holds no {name}")
        _check_same(stored[name], abstract_params, step_directory)
    with ocp.PyTreeCheckpointer() as checkpointer:
        return checkpointer.restore(step_directory / "state", args=ocp.args.PyTreeRestore(
            item={name: abstract_params}, partial_restore=True,
            restore_args={name: ocp.checkpoint_utils.construct_restore_args(abstract_params)}))[name]


def _latest(directory):
    found = [p for p in (pathlib.Path(directory).absolute() / "checkpoints").glob("*") if p.name.isdigit()]
    if not found:
        raise FileNotFoundError(f"{directory}: no checkpoint; expected a workdir with checkpoints/<step>")
    return max(found, key=lambda p: int(p.name))


def _quietly(function, *args):
    """Orbax warns that the state has no metadata of its own; the step, which holds it, has."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        return function(*args)
    finally:
        logging.set_verbosity(verbosity)


def _check_same(stored, expected, where):
    def shapes(tree):
        return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
                for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    stored, expected = shapes(stored), shapes(expected)
    problems = [f"{k} {expected[k]}: not in the checkpoint" for k in sorted(set(expected) - set(stored))]
    problems += [f"{k} {stored[k]}: not in the model" for k in sorted(set(stored) - set(expected))]
    problems += [f"{k}: found {stored[k]}, expected {expected[k]}"
                 for k in sorted(set(stored) & set(expected)) if stored[k] != expected[k]]
    if problems:
        raise ValueError(f"{where}: does not fit the model:\n  " + "\n  ".join(problems))
