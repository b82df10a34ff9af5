"""Steps that were left out: their loss or gradient was not finite, or their loss jumped. They changed nothing; here they are told."""
import json
import logging
import pathlib

import jax
import numpy as np

log = logging.getLogger(__name__)
POLICIES = ("stop", "skip")


class BadSteps:
    """Looks at every step after the next one has been started, so that the device never waits.

    Args:
      workdir: folder; `bad_steps-<process>.jsonl` there has a line for each bad step, with the examples that this process fed it.
      sources: list, as the batches number them.
      policy: for a step that is not finite, "stop" or "skip". A jump of the loss is always skipped.
      max_in_a_row: more bad steps than that, one after another, end the run all the same.
    Raises: ValueError for another policy.
    """

    def __init__(self, workdir, sources, policy, max_in_a_row):
        if policy not in POLICIES:
            raise ValueError(f"train.not_finite: found {policy!r}, expected one of {POLICIES}")
        self._path = pathlib.Path(workdir) / f"bad_steps-{jax.process_index()}.jsonl"
        self._sources, self._policy, self._max = sources, policy, max_in_a_row
        self._pending, self._in_a_row, self.count = None, 0, 0

    def look_at(self, step, metrics, batch):
        """Looks at the step handed over before, and keeps this one. Raises: as `settle`."""
        self.settle()
        self._pending = step, metrics, (batch["source"], batch["example_id"])

    def settle(self):
        """Looks at the last step that was handed over: before anything is saved, and at the end.

        Raises: FloatingPointError for a step that ends the run; it names the step, its losses and its examples.
        """
        if self._pending is None:
            return
        (step, metrics, (source, example)), self._pending = self._pending, None
        if bool(jax.device_get(metrics["applied"])):
            self._in_a_row = 0
            return
        self.count += 1
        self._in_a_row += 1
        values = {k: float(v) for k, v in jax.device_get(metrics).items()}
        finite = bool(values["finite"])
        names = sorted({f"{self._sources[s].name} image {e}" for s, e in zip(np.asarray(source), np.asarray(example))})
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step + 1, "finite": finite, "examples": names}
                                  | {k: repr(v) for k, v in values.items() if k.startswith("loss") or k == "grad_norm"}) + "\n")
        ends = self._in_a_row > self._max or (not finite and self._policy == "stop")
        message = (f"step {step + 1}: loss {values['loss']}, gradient norm {values['grad_norm']}; expected "
                   f"{'a loss near its average' if finite else 'finite numbers'}. Losses: "
                   f"{ {k: v for k, v in values.items() if k.startswith('loss_')} }. Examples on this host, also in "
                   f"{self._path.name}: {', '.join(names)}")
        if ends:
            raise FloatingPointError(message if self._policy == "stop" and not finite
                                     else f"{self._in_a_row} bad steps in a row, train.max_skipped_steps is {self._max}. {message}")
        log.warning("left out %s", message)
