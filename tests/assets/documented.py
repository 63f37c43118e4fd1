"""Commands as the documentation writes them, parsed as far as that is possible without the reader's files."""

import importlib
from pathlib import Path

import deftly_bench
from deftly import robots, tasks
from deftly.commands.completion import INTO
from deftly.commands.table import COMMANDS
from deftly.config import parse, split_task, split_word, with_algorithm, with_task
from deftly.errors import DeftlyError
from deftly_bench import algorithms

ROOT = Path(__file__).resolve().parents[2]
READERS = {"panda.py"}
"""Files of a reader's own in the pages: `tests/robots/test_mjcf.py` runs their commands."""


def settings_of(name: str) -> type:
    """The dataclass of a command's settings."""
    if name == "bench":
        return deftly_bench.BenchArgs
    command = COMMANDS[name]
    return getattr(importlib.import_module(command.module), command.args)


def parse_command(words: list[str]) -> None:
    """Parse the words after `deftly`. Raises an error unless they are understood; files may be missing."""
    name, *words = words
    assert name in COMMANDS
    if name == "completion":
        assert words[0] in INTO
        return
    words = words[: words.index(">")] if ">" in words else words
    if "--config" in words:  # a file of the reader's
        del words[(at := words.index("--config")) : at + 2]
    words = [word for word in words if not word.startswith("train=")]  # another
    positional = COMMANDS[name].positional
    given, rest = split_task(words) if positional else (None, words)
    assert given or positional.startswith("[") or not positional, f"{name} needs {positional}"
    if name == "config":
        _, rest = split_word(rest)
    cls = settings_of(name)
    if given in READERS:
        given = None
    if given and given.endswith(".py"):
        given = str(ROOT / given)
    if given and name == "robots":
        robots.load(given)
    elif given and COMMANDS[name].takes_task:
        task = tasks.load(given)
        cls = with_task(cls, task.Config) if COMMANDS[name].task_settings else cls
    if name == "train":
        cls = with_algorithm(cls, rest)
    if name == "bench" and "--algorithms" in rest:
        cls = algorithms.AlgorithmsArgs
    try:
        parse(cls, rest, prog=name)
    except DeftlyError as error:  # a file of the reader's, which is looked at last
        assert "but there is no such" in str(error)
