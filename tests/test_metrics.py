"""metrics.jsonl over interruptions, TensorBoard events, and progress with and without a terminal."""
import io
import json
import logging
import sys

import numpy as np
import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from glipv2_jax import metrics
from glipv2_jax.main import set_up_logging
from glipv2_jax.metrics import Progress, Writer


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


class TestWriter:
    def test_one_line_per_step(self, tmp_path):
        with Writer(tmp_path / "run") as writer:
            writer.scalars(10, {"loss": np.float32(0.5), "finite": np.bool_(True)})
            writer.scalars(20, {"loss": 0.25})
            writer.scalars(20, {"seen/AP": 0.1, "seen/APs": None})
            writer.scalars(30, {"loss": float("nan")})
        assert lines(tmp_path / "run") == [
            {"step": 10, "loss": 0.5, "finite": 1.0}, {"step": 20, "loss": 0.25, "seen/AP": 0.1},
            {"step": 30, "loss": None}]

    def test_what_is_written_is_in_the_file_at_once(self, tmp_path):
        with Writer(tmp_path) as writer:
            writer.scalars(1, {"loss": 2})
            writer.scalars(2, {"loss": 1})
            assert [line["step"] for line in lines(tmp_path)] == [1, 2]

    def test_resuming_drops_the_steps_that_will_come_again(self, tmp_path):
        with Writer(tmp_path) as writer:
            for step in (10, 20, 30, 40):
                writer.scalars(step, {"loss": step})
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write('{"step": 50, "lo')                     # killed while writing
        with Writer(tmp_path, start_step=20) as writer:
            assert [line["step"] for line in lines(tmp_path)] == [10, 20]
            writer.scalars(20, {"AP": 0.5})
            writer.scalars(30, {"loss": 3})
        assert lines(tmp_path) == [{"step": 10, "loss": 10}, {"step": 20, "loss": 20, "AP": 0.5},
                                   {"step": 30, "loss": 3}]

    def test_starting_anew_in_a_used_folder_drops_everything(self, tmp_path):
        with Writer(tmp_path) as writer:
            writer.scalars(10, {"loss": 1})
        Writer(tmp_path, start_step=0).close()
        assert lines(tmp_path) == []

    def test_tensorboard_reads_scalars(self, tmp_path):
        with Writer(tmp_path) as writer:
            writer.scalars(10, {"loss": 0.5})
        file, = tmp_path.glob("events.out.tfevents.*")
        tags = {value.tag for event in EventFileLoader(str(file)).Load() for value in event.summary.value}
        assert tags == {"loss"}

    def test_other_processes_write_nothing(self, tmp_path):
        with Writer(tmp_path / "run", enabled=False) as writer:
            writer.scalars(1, {"loss": 1})
        assert not (tmp_path / "run").exists()


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets."""
    now = [0.0]
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: now[0])
    return now


def console(terminal):
    return Console(file=io.StringIO(), force_terminal=terminal, width=150, color_system=None)


class TestPlainProgress:
    def test_says_the_first_the_last_and_one_now_and_then(self, clock):
        out = console(False)
        with Progress("train", total=100, done=40, console=out) as progress:
            for step in range(41, 101):
                clock[0] += 1
                progress.update(step, {"loss": 1.5, "loss_box": 0.5, "grad_norm": 9}, images=(step - 40) * 16)
        assert out.file.getvalue().splitlines() == [
            "train: 41/100 steps, loss 1.5, box 0.5",
            "train: 56/100 steps, 16 images/s, 44 s left, loss 1.5, box 0.5",
            "train: 71/100 steps, 16 images/s, 29 s left, loss 1.5, box 0.5",
            "train: 86/100 steps, 16 images/s, 14 s left, loss 1.5, box 0.5",
            "train: 100/100 steps, in 1 min 00 s"]

    def test_the_rate_leaves_the_compilation_out(self, clock):
        out = console(False)
        with Progress("evaluate", total=40, unit="images", every_seconds=0, console=out) as progress:
            for seconds in (300, 1, 1):
                clock[0] += seconds
                progress.advance(10)
            assert progress.done == 30
        assert out.file.getvalue().splitlines()[1:] == [
            "evaluate: 20/40 images, 10 images/s, 2 s left", "evaluate: 30/40 images, 10 images/s, 1 s left",
            "evaluate: 30/40 images, in 5 min 02 s"]

    def test_long_lines_are_not_broken(self, clock):
        out = Console(file=io.StringIO(), width=40, soft_wrap=True)
        with Progress("train", total=2, console=out) as progress:
            progress.update(1, {f"loss_of_some_kind_{n}": 1 for n in range(20)})
        assert len(out.file.getvalue().splitlines()) == 2

    def test_a_job_that_does_nothing_says_nothing(self):
        out = console(False)
        with Progress("evaluate", total=0, console=out):
            pass
        assert out.file.getvalue() == ""

    def test_other_processes_say_nothing(self, monkeypatch):
        monkeypatch.setattr(metrics.jax, "process_index", lambda: 1)
        out = console(True)
        with Progress("train", total=2, console=out) as progress:
            progress.update(1, {"loss": 1})
        assert out.file.getvalue() == ""


class TestProgressOnATerminal:
    def test_bars_of_nested_jobs_share_the_display(self):
        out = console(True)
        with Progress("train", total=10, console=out) as progress:
            progress.update(5, {"loss": 1.5})
            with Progress("evaluate", total=3, unit="images", console=out) as inner:
                inner.advance(3)
            progress.update(10, {"loss": 0.5})
        shown = out.file.getvalue()
        assert "10/10" in shown and "loss 0.5" in shown
        with Progress("again", total=1, console=out) as progress:      # a display can follow a display
            progress.update(1)
        assert "again" in out.file.getvalue()

    def test_log_lines_go_above_the_bars_once_and_back_after_an_error(self, capsys):
        own, before = logging.getLogger("glipv2_jax"), sys.stderr
        kept = own.handlers, own.level, own.propagate
        try:
            set_up_logging()
            set_up_logging()                                           # a second command in one process
            out = console(True)
            with pytest.raises(RuntimeError), Progress("train", total=10, console=out):
                assert sys.stderr is not before
                own.warning("something odd")
                raise RuntimeError
            assert sys.stderr is before and out.file.getvalue().count("something odd") == 1
            own.warning("afterwards")
            assert capsys.readouterr().err.count("afterwards") == 1
        finally:
            own.handlers, own.level, own.propagate = kept


@pytest.mark.parametrize("seconds, text", [
    (0.4, "0 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (3900, "1 h 05 min")])
def test_durations(seconds, text):
    assert metrics._duration(seconds) == text
