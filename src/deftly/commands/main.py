"""The `deftly` command: find the command, import it, run it, and turn what goes wrong into one line.

Nothing heavy is imported here, so that `deftly --help` answers at once.
"""

import importlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from itertools import groupby

from deftly import __version__
from deftly.commands.table import COMMANDS
from deftly.errors import DeftlyError

LEARNING = "mujoco torch gymnasium safetensors tensorboard matplotlib PIL av"
SCANNING = "scipy trimesh skimage coacd fast_simplification"
EXTRAS = (
    {"mjviser": "viewer", "viser": "viewer"}
    | dict.fromkeys(SCANNING.split(), "scan")
    | dict.fromkeys(LEARNING.split(), "train")
)
"""Module to the extra that installs it."""


LAUNCHER = ("--local-rank=", "--local_rank=")
"""What `python -m torch.distributed.launch` puts before the command; variables say the same."""
LONGEST = 2000
"""Most characters of an error that is printed; it may quote a file or a peer."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 2 for what the user can mend, 130 for Ctrl-C."""
    if argv is None:
        _open_streams()
        argv = sys.argv[1:]
    words = [word for word in argv or () if not word.startswith(LAUNCHER)]
    name, *rest = words or ["--help"]
    return guarded(name, lambda: _dispatch(name, rest))


def guarded(name: str, command: Callable[[], int]) -> int:
    """The exit status of a command; what goes wrong in it, and is no fault of ours, becomes one line."""
    try:
        _require_folder()
        status = command()
        sys.stdout.flush()  # here, so that a closed pipe is met here and not at exit
        return status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (DeftlyError, OSError, ImportError, MemoryError, RuntimeError) as error:
        is_fault_of_ours = isinstance(error, RuntimeError) and not _lacks_memory(error)
        if is_fault_of_ours or os.environ.get("DEFTLY_TRACEBACK"):
            raise
        from deftly.console import printable
        from deftly.files import WriteError

        print(f"error: {printable(_explain(error, name), LONGEST)}", file=sys.stderr)
        return 2 if isinstance(error, DeftlyError) and not isinstance(error, WriteError) else 1


def _open_streams() -> None:
    """Stand in for streams that were closed (`>&-`), and print what their encoding lacks as escapes."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # its number is free, and no file shall get it
            handle = os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, os.fdopen(handle, "r" if name == "stdin" else "w", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _require_folder() -> None:
    """Raise DeftlyError in a folder that was deleted: libraries do not even load there."""
    try:
        os.getcwd()
    except OSError:
        raise DeftlyError("the current folder is gone: change to another with cd") from None


def _dispatch(name: str, rest: list[str]) -> int:
    if name in COMMANDS:
        from deftly.console import set_log_level

        set_log_level("info")  # what a command before this one was told
        return importlib.import_module(COMMANDS[name].module).main(rest)
    if name in ("-V", "--version"):
        print(f"deftly {__version__}")
    elif name == "help" and rest and rest[0] in COMMANDS:
        return _dispatch(rest[0], ["--help"])
    elif name in ("-h", "--help", "help"):
        print(help_text(), end="")
    else:
        from deftly.config import suggest

        near = suggest(name, COMMANDS) or "; 'deftly --help' lists them"
        raise DeftlyError(f"deftly has no command '{name}'{near}")
    return 0


def help_text() -> str:
    """The grouped list of commands, made from `COMMANDS` alone."""
    lines = [
        f"deftly {__version__}: robot skills from simulation to hardware",
        "",
        "usage: deftly COMMAND ...",
    ]
    for group, commands in groupby(COMMANDS.values(), key=lambda command: command.group):
        lines += [
            "",
            f"{group}:",
            *(f"  {command.name:<12} {command.summary}" for command in commands),
        ]
    lines += [
        "",
        "'deftly COMMAND --help' shows a command's settings.",
        "",
        "examples:",
        "  deftly quickstart",
    ]
    lines += [
        "  deftly train jaka-pick-cube env.num_envs=256",
        "  deftly eval jaka-pick-cube policy=latest",
        "",
    ]
    return "\n".join(lines)


def _lacks_memory(error: Exception) -> bool:
    """Whether there was too little memory, as Python, numpy, torch and CUDA say it."""
    said = str(error)
    is_said = "allocate memory" in said or "out of memory" in said
    return isinstance(error, MemoryError) or (is_said and not isinstance(error, DeftlyError))


def _explain(error: Exception, command: str) -> str:
    if _lacks_memory(error):
        return f"'{command}' needs more memory than there is: try fewer environments or episodes, a smaller buffer"
    if isinstance(error, ImportError):
        missing = (error.name or "").partition(".")[0]
        if isinstance(error, ModuleNotFoundError) and missing in EXTRAS:
            return f"'{command}' needs {missing}: pip install \"deftly[{EXTRAS[missing]}]\""
        return f"'{command}' cannot import what it needs: {error}; 'deftly doctor' checks the installation"
    if isinstance(error, OSError):
        where = f" '{error.filename}'" if error.filename else ""
        return f"'{command}' failed: {error.strerror or error}{where}"
    return str(error)
