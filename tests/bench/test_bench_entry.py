"""The programs of the benchmarks: what is typed wrongly is one line, as it is of the command."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import deftly_bench

FOLDER = Path(deftly_bench.__file__).parent
PROGRAMS = sorted(file.stem for file in FOLDER.glob("[!_]*.py") if file.stem != "entry")
PARTS = ("cases", "curve_client", "emulated_port", "peer", "presets", "table")
"""Modules that do nothing by themselves."""
pytestmark = pytest.mark.filterwarnings("ignore:.*found in sys.modules")


def start(monkeypatch, capsys, name: str, *words: str) -> tuple[int, str]:
    """Exit status and error of `python -m NAME WORDS`."""
    monkeypatch.setattr(sys, "argv", [f"{name.rpartition('.')[2]}.py", *words])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    status = ended.value.code
    assert isinstance(status, int)
    return status, capsys.readouterr().err


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_misspelt_flag_is_one_line(monkeypatch, capsys, name):
    status, error = start(monkeypatch, capsys, f"deftly_bench.{name}", "--bogus")
    assert status == 2
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    said = f"deftly_bench.{name} does nothing by itself" if name in PARTS else "bogus"
    assert said in error


def test_a_module_is_not_imported_before_it_is_run():
    """Else `python -m` would warn in two lines of its own. In a process of its own: here all are imported."""
    loaded = "import sys, deftly_bench; print(*(m for m in sys.modules if m.startswith('deftly_bench.')))"
    words = [sys.executable, "-c", loaded]
    environment = {**os.environ, "PYTHONPATH": str(FOLDER.parent)}
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, env=environment)
    assert done.stdout.split() == [], done.stderr


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("sysid", ["--trials", "0"], "trials is 0, but it must be 1 or more"),
        ("sysid", ["--trials", "-1"], "trials is -1"),
        ("sysid", ["--seconds", "0"], "seconds is 0"),
        ("sysid", ["--optimizer", "best"], "optimizer"),
        ("hiwonder_bus", ["--servos", "0"], "servos is 0 from id 1"),
        ("dynamixel_bus", ["--motors", "0"], "motors is 0, but it must be within 1 .. 253"),
        ("control", ["nosuch"], "nosuch"),
        ("images", ["nosuch"], "no task 'nosuch'"),
        ("algorithms", ["nosuch"], "no task 'nosuch'"),
    ],
)
def test_wrong_words_are_one_line(monkeypatch, capsys, name, words, said):
    status, error = start(monkeypatch, capsys, f"deftly_bench.{name}", *words)
    assert status == 2
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--bogus"],
        ["{}"],
        ["[]"],
        ['{"case": "x"}'],
        ['{"case": "x", "task": "y"}'],
        ['{"case": [], "task": "y"}'],
        ["[" * 100_000],
        ["{}", "{}"],
    ],
)
def test_what_is_no_job_is_one_line(monkeypatch, capsys, words):
    monkeypatch.setattr(sys, "argv", ["bench", *words])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(FOLDER.parent / "__main__.py"), run_name="__main__")
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert "python bench takes one job" in error
    assert error.count("\n") == 1


def test_control_c_has_the_status_of_the_command(monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("deftly.config.parse", interrupted)
    assert start(monkeypatch, capsys, "deftly_bench.control")[0] == 130
    assert start(monkeypatch, capsys, "deftly_bench.hiwonder_bus")[0] == 0
