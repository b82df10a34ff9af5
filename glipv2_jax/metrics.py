"""What a run says about itself: metrics.jsonl and TensorBoard events, and progress on the terminal."""
import collections
import json
import math
import pathlib
import time

import jax
from rich import progress as rich_progress
from rich.console import Console

from glipv2_jax import flops
from glipv2_jax.processes import beat


class Writer:
    """Metrics of a run in its workdir: one line of `metrics.jsonl` per step, and TensorBoard events.

    Args:
      workdir: folder of the run; made when missing.
      enabled: False on all processes but the first: every call does nothing.
      start_step: the step from which the run goes on. Lines of later steps, which an interrupted run wrote
        after its last checkpoint, are dropped: the run will write them again.
    """

    def __init__(self, workdir, enabled=True, start_step=0):
        self._enabled = enabled
        if not enabled:
            return
        # clu's SummaryWriter imports TensorFlow, which takes seconds: only where something is written.
        from clu.metric_writers import SummaryWriter
        workdir = pathlib.Path(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        self._events = SummaryWriter(str(workdir))
        path, partial = workdir / "metrics.jsonl", workdir / ".metrics.jsonl.partial"
        lines = _lines_up_to(path, start_step)
        partial.write_text("".join(lines), encoding="utf-8")
        partial.replace(path)
        self._file = path.open("a", encoding="utf-8")
        # The last line stays open: another call for the same step adds to it.
        self._line = json.loads(lines[-1]) if lines else {}
        self._line_start = sum(map(len, lines[:-1]))        # in bytes: the lines are ASCII

    def scalars(self, step, values):
        """Writes numbers of a step; numbers of the same step from several calls share a line.

        Args:
          step: int, not smaller than in earlier calls.
          values: dict name -> number or array of one. None is left out; null stands for what is not finite.
        """
        if not self._enabled:
            return
        values = {name: float(value) for name, value in values.items() if value is not None}
        if step != self._line.get("step"):
            self._line_start, self._line = self._file.tell(), {"step": int(step)}
        self._line |= {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.truncate(self._line_start)
        self._file.write(json.dumps(self._line, allow_nan=False) + "\n")
        self._file.flush()
        self._events.write_scalars(int(step), values)
        self._events.flush()

    def close(self):
        if self._enabled:
            self._file.close()
            self._events.close()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()


def _lines_up_to(path, step):
    """Lines of steps up to `step`. A line cut short by a killed process is not among them."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]


class Waiting:
    """An iterator that knows how much of the time goes into waiting for its next item."""

    def __init__(self, iterator):
        self._iterator, self._since, self._waited = iter(iterator), time.perf_counter(), 0.0

    def __iter__(self):
        return self

    def __next__(self):
        started = time.perf_counter()
        item = next(self._iterator)
        self._waited += time.perf_counter() - started
        return item

    def share(self) -> float:
        """0 to 1, of the time since this was last asked."""
        now = time.perf_counter()
        share = self._waited / max(now - self._since, 1e-9)
        self._since, self._waited = now, 0.0
        return share


class Speed:
    """Time, memory and utilisation of the steps since last asked.

    Args:
      step_fn: the jitted training step. Its work is counted once for each shape of batch, from the trace that it needs anyway.
    """

    def __init__(self, step_fn):
        self._step_fn, self._work, self._flops, self._steps, self._since = step_fn, {}, 0.0, 0, None

    def count(self, state, batch, key):
        """Counts the step that is about to run."""
        shape = batch["image"].shape
        if shape not in self._work:
            self._work[shape] = flops.count_jaxpr(self._step_fn.trace(state, batch, key).jaxpr.jaxpr)["flops"]
            self._since = None                            # the time until the next line has a compilation in it
        self._flops += self._work[shape]
        self._steps += 1

    def values(self):
        """dict of `step_seconds`, `tflops` a second and device, of products and convolutions; where the device tells, `mfu`, their share of
        its peak in bfloat16, and `device_memory_gb`, the most that was in use. Without times where a step was compiled meanwhile."""
        now, found, device = time.perf_counter(), {}, jax.local_devices()[0]
        if self._since is not None and self._steps:
            seconds = now - self._since
            rate = self._flops / seconds / jax.device_count()
            found = {"step_seconds": seconds / self._steps, "tflops": rate / 1e12}
            if chip := flops.chip_of(device):
                found["mfu"] = rate / flops.CHIPS[chip].flops
        if peak := (device.memory_stats() or {}).get("peak_bytes_in_use"):
            found["device_memory_gb"] = peak / 1e9
        self._flops, self._steps, self._since = 0.0, 0, now
        return found


class ProfileWindow:
    """The timeline of some steps, for TensorBoard and Perfetto.

    Args:
      folder: of the trace, one of each process. first: step that is the first. count: how many; 0: none.
    """

    def __init__(self, folder, first, count):
        self._folder, self._first, self._last = str(folder), first, first + count - 1
        self._running = False

    def before(self, step):
        if step == self._first <= self._last:
            jax.profiler.start_trace(self._folder)
            self._running = True

    def after(self, step, result):
        if self._running and step == self._last:
            jax.block_until_ready(result)
            self.close()

    def close(self):
        """Writes what there is, where the run ends within the window."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False


class Progress:
    """How far a job is, how fast and for how long yet: a bar on a terminal, elsewhere now and then a line.

        with Progress("train", total=1500, done=200) as progress:
            ...
            progress.update(step, {"loss": 1.2}, images=(step - 200) * 16)

    Jobs may be nested: an evaluation within the training has its bar below. Only process 0 says anything.

    Args:
      title: name of the job.
      total: how many units there are.
      unit: plural name of what is counted.
      done: how many were done before.
      every_seconds: least time between plain lines; the first and the last are always printed.
      console: rich Console, for tests; standard error without one.
    """

    def __init__(self, title, total, *, unit="steps", done=0, every_seconds=15.0, console=None):
        self.done = done
        self._title, self._total, self._unit, self._every_seconds = title, total, unit, every_seconds
        self._enabled = jax.process_index() == 0
        self._console = console or Console(stderr=True, soft_wrap=True)
        # (time, done, images) of the last updates. The first follows the compilation: no rate includes it.
        self._recent = collections.deque(maxlen=8)
        self._values, self._bar = {}, None
        self._started = self._printed_at = None

    def update(self, done, values=None, images=None):
        """Says that `done` units are done in all.

        Args:
          done: int.
          values: dict name -> number; `loss` and the terms `loss_<name>` are shown.
          images: how many images this run has handled so far, for images/s; None where the unit says enough.
        """
        self.done = done
        beat(f"{self._title} {done}/{self._total} {self._unit}")
        self._recent.append((time.perf_counter(), done, images))
        self._values = values or {}
        if self._bar is not None:
            _display.update(self._bar, done, self._told())
        elif self._enabled and (self._printed_at is None
                                or time.perf_counter() - self._printed_at >= self._every_seconds):
            self._print()

    def advance(self, count=1):
        """Says that `count` more units are done."""
        self.update(self.done + count)

    def __enter__(self):
        self._started = time.perf_counter()
        if self._enabled and self._console.is_terminal:
            self._bar = _display.open(self._console, self._title, self._total, self.done)
        return self

    def __exit__(self, *error):
        if self._bar is not None:
            _display.close(self._bar)
        elif self._enabled and self._recent:
            self._print(f"in {_duration(time.perf_counter() - self._started)}")

    def _print(self, ending=None):
        told = f", {ending}" if ending else f", {told}" if (told := self._told()) else ""
        self._console.print(f"{self._title}: {self.done}/{self._total} {self._unit}{told}", markup=False,
                            highlight=False)
        self._printed_at = time.perf_counter()

    def _told(self):
        """Speed, time left and losses, as far as they are known."""
        (start, first, first_images), (now, last, images) = self._recent[0], self._recent[-1]
        parts = []
        if last > first and now > start:
            speed = (last - first) / (now - start)
            parts.append(f"{speed:.3g} {self._unit}/s" if images is None
                         else f"{(images - first_images) / (now - start):.3g} images/s")
            parts.append(f"{_duration(max(self._total - last, 0) / speed)} left")
        if "input_wait" in self._values:
            parts.append(f"{self._values['input_wait']:.0%} of the time waiting for data")
        if "loss" in self._values:
            parts.append(f"loss {self._values['loss']:.4g}")
        parts += [f"{name.removeprefix('loss_')} {value:.3g}" for name, value in self._values.items()
                  if name.startswith("loss_")]
        return ", ".join(parts)


class _Display:
    """The bars on the terminal. A terminal has room for one live display, so nested jobs share it."""

    def __init__(self):
        self._live, self._open = None, 0

    def open(self, console, title, total, done):
        if self._live is None:
            columns = (rich_progress.TextColumn("{task.description}"), rich_progress.BarColumn(bar_width=24),
                       rich_progress.MofNCompleteColumn(), rich_progress.TextColumn("{task.fields[told]}"))
            self._live = rich_progress.Progress(*columns, console=console)
            self._live.start()
        self._open += 1
        return self._live.add_task(title, total=total, completed=done, told="")

    def update(self, bar, done, told):
        self._live.update(bar, completed=done, told=told)

    def close(self, bar):
        self._open -= 1
        if self._open:
            self._live.remove_task(bar)
        else:
            self._live.stop()
            self._live = None


_display = _Display()


def _duration(seconds):
    """ "45 s", "3 min 20 s", "1 h 05 min". """
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
