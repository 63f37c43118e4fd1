"""Where metrics go: files, lines, and a disk that is full."""

import csv
import io

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from deftly.learn import log

ROW = {
    "iteration": 10,
    "steps": 640,
    "seconds": 3700.0,
    "seconds_left": 60.0,
    "steps_per_second": 9.0,
    "success": 0.5,
}


def test_a_resumed_table_keeps_the_rows_up_to_its_checkpoint(tmp_path):
    path = tmp_path / "metrics.csv"
    first = log.metrics(path, ["iteration", "steps"], 0)
    for iteration in (1, 2, 3):
        first.write({"iteration": iteration, "steps": 10 * iteration, "unknown": 1})
    first.close()
    second = log.metrics(path, ["iteration", "steps", "more"], 2)
    second.write({"iteration": 3, "steps": 99, "more": 0.5})
    second.close()
    rows = list(csv.reader(path.open()))
    assert rows == [
        ["iteration", "steps", "more"],
        ["1", "10", ""],
        ["2", "20", ""],
        ["3", "99", "0.5"],
    ]


def test_tensorboard_reads_what_is_written_and_hides_what_was_lost(tmp_path):
    first = log.tensorboard(tmp_path, 0)
    for steps in (10, 20, 30):
        first.write({"steps": steps, "loss/value": steps / 10})
    first.close()
    second = log.tensorboard(tmp_path, 20)
    second.write({"steps": 40, "loss/value": 7.0})
    second.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("loss/value")]
    assert found == [(10, 1.0), (20, 2.0), (40, 7.0)]


def test_a_full_disk_is_said_once_and_ends_nothing(capsys):
    written = []

    def full(row):
        written.append(row)
        raise OSError(28, "No space left on device")

    writer = log.sturdy(log.Writer(full, lambda: full({})), "TensorBoard")
    for _ in range(3):
        writer.write({})
    writer.close()
    assert len(written) == 1
    assert (
        capsys.readouterr().err
        == "warning: TensorBoard is not written any more: No space left on device\n"
    )


@pytest.mark.parametrize(
    ("level", "every", "count"), [("info", 10, 1), ("info", 2, 2), ("debug", 10, 3)]
)
def test_lines_without_a_terminal(level, every, count):
    out = io.StringIO()
    writer = log.progress(Console(file=out), "task", 100, level, every)
    for iteration in (8, 9, 10):
        writer.write({**ROW, "iteration": iteration})
    writer.close()
    lines = out.getvalue().splitlines()
    assert len(lines) == count
    assert lines[-1].startswith(
        "iteration 10  0.00 M steps  1:01:40  9 steps/s  success 50.0 %  evaluated -  return -"
    )


def test_an_evaluation_is_printed_and_remembered():
    out = io.StringIO()
    writer = log.progress(Console(file=out), "task", 100, "info")
    writer.write({**ROW, "iteration": 3, "eval_success": 0.25})
    writer.write({**ROW, "broken": 2.0})
    first, second = out.getvalue().splitlines()
    assert "evaluated 25.0 %" in first
    assert "evaluated 25.0 %" in second
    assert second.endswith("2 environments broken")


def test_the_live_table_has_all_that_is_known():
    out = io.StringIO()
    writer = log.progress(Console(file=out, force_terminal=True, width=120), "task", 100, "info")
    writer.write({**ROW, "reward/near": 0.125, "nan": 3.0})
    writer.close()
    text = out.getvalue()
    assert all(
        word in text
        for word in ("reward near", "+0.125", "3 values not finite", "success in training")
    )
