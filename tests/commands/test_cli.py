import os
import subprocess
import sys
import types

import pytest

from deftly import __version__
from deftly.commands import main as cli
from deftly.commands.completion import INTO
from deftly.commands.table import COMMANDS
from deftly.errors import DeftlyError


def python(*argv: str, **keywords) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *argv], capture_output=True, text=True, timeout=30, **keywords
    )


@pytest.fixture
def stage(monkeypatch):
    """Puts a function behind `deftly train`."""
    module = types.ModuleType("deftly.commands.train")
    monkeypatch.setitem(sys.modules, "deftly.commands.train", module)
    return lambda function: setattr(module, "main", function)


def fail(error: BaseException):
    def main(argv: list[str]) -> int:
        raise error

    return main


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from deftly.commands.main import main; main(['--help']); print(*sys.modules)"
    )
    result = python("-c", code)
    loaded = set(result.stdout.splitlines()[-1].split())
    assert not loaded & {"torch", "mujoco", "numpy", "tyro", "rich", "yaml", "deftly.config"}


def test_help_lists_every_command(capsys):
    assert cli.main([]) == 0
    plain = capsys.readouterr().out
    assert cli.main(["--help"]) == 0
    assert capsys.readouterr().out == plain
    assert all(f"\n  {name} " in plain for name in COMMANDS)
    assert plain.count("\n  deftly ") == 3


def test_module_and_version():
    assert python("-m", "deftly", "--version").stdout == f"deftly {__version__}\n"


def test_help_with_a_command_is_the_commands(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["help", "eval"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("usage: deftly eval")


def test_unknown_command_suggests_the_nearest(capsys):
    assert cli.main(["trian"]) == 2
    assert (
        capsys.readouterr().err == "error: deftly has no command 'trian', did you mean 'train'?\n"
    )
    assert cli.main(["xyzzy"]) == 2
    assert "deftly --help" in capsys.readouterr().err


def test_arguments_and_status_pass_through(stage):
    seen = []
    stage(lambda argv: seen.append(argv) or 7)
    assert cli.main(["train", "cube", "seed=1"]) == 7
    assert seen == [["cube", "seed=1"]]


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (DeftlyError("no such task"), 2, "error: no such task\n"),
        (KeyboardInterrupt(), 130, ""),
        (OSError(28, "No space left on device", "runs/x"), 1, "No space left on device 'runs/x'\n"),
        (
            ModuleNotFoundError("No module", name="mujoco"),
            1,
            "'train' needs mujoco: pip install \"deftly[train]\"\n",
        ),
        (
            ModuleNotFoundError("No module", name="viser.x"),
            1,
            'needs viser: pip install "deftly[viewer]"\n',
        ),
        (ImportError("libGL.so.1: cannot open"), 1, "libGL.so.1"),
        (MemoryError(), 1, "'train' needs more memory than there is: try fewer environments"),
        (RuntimeError("[enforce fail] can't allocate memory: you tried"), 1, "needs more memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate"), 1, "needs more memory"),
    ],
)
def test_failures_are_one_line(stage, capsys, error, status, text):
    stage(fail(error))
    assert cli.main(["train"]) == status
    message = capsys.readouterr().err
    assert message.endswith(text) or text in message
    assert message.count("\n") == (1 if text else 0)


def test_traceback_on_request(stage, monkeypatch):
    monkeypatch.setenv("DEFTLY_TRACEBACK", "1")
    stage(fail(DeftlyError("why")))
    with pytest.raises(DeftlyError, match="why"):
        cli.main(["train"])


def test_a_fault_of_ours_keeps_its_traceback(stage):
    for error in (ZeroDivisionError, RuntimeError):
        stage(fail(error()))
        with pytest.raises(error):
            cli.main(["train"])


def test_a_closed_pipe_is_quiet():
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "deftly", "--help"]
    result = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, timeout=30)
    os.close(write)
    assert result.stderr == b""
    assert result.returncode == 141


@pytest.mark.parametrize("shell", list(INTO))
def test_completion_names_every_command(shell, capsys):
    assert cli.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(name in script for name in COMMANDS)
    assert "deftly tasks --names" in script
    assert "{" not in script.replace("{COMP_WORDS", "").replace("() {", "")


def test_bash_completion_completes(capsys, tmp_path):
    cli.main(["completion", "bash"])
    script = tmp_path / "complete.bash"
    script.write_text(
        "deftly() { echo jaka-pick-cube leap-rotate; }\n"
        + capsys.readouterr().out
        + 'try() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _deftly; echo "${COMPREPLY[@]}"; }\n'
        + "try deftly qu; try deftly train ja; try deftly runs x; try deftly completion z\n"
    )
    result = subprocess.run(["bash", script], capture_output=True, text=True, timeout=10)
    assert result.stdout.splitlines() == ["quickstart", "jaka-pick-cube", "", "zsh"]
    assert result.stderr == ""


def test_completion_needs_a_shell(capsys):
    assert cli.main(["completion", "csh"]) == 2
    assert "bash, zsh, fish" in capsys.readouterr().err
    assert cli.main(["completion", "--help"]) == 0


def test_a_stage_with_a_wrong_flag_exits_2():
    result = python("-m", "deftly", "runs", "--colum", "x")
    assert result.returncode == 2
    assert "--column" in result.stderr
