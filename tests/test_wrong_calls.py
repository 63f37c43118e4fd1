"""Wrong calls of every command, made from the table of commands: one clear line, no traceback, nothing left or lost.

A command or a setting that is added is tried here without a line of its own. Of the wrong calls that each command has,
a few of each kind are drawn with a fixed seed; `make test-slow` tries all. `SPECIAL` are those that no table tells.
"""

import contextlib
import functools
import importlib
import io
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple, get_args, get_origin

import psutil
import pytest
import wrong_files
from annotated_types import Ge, Gt, Le, Lt

import deftly_bench
from deftly.commands.main import main
from deftly.commands.table import COMMANDS, Command
from deftly.config.constraints import OnDisk, Suffix
from deftly.config.fields import Flag, flags

ASSETS = Path(__file__).parent / "assets"
TRIED = 4
"""Wrong calls of each kind and command that every run of the tests tries."""
PARTS = 100
"""Tests into which all are divided: one each would be thousands, which take long to collect where none is run."""
LONGEST_S = 20.0
"""Longest time of a wrong call, s, on a busy machine: what is refused is refused before any work."""
MOST_LINES = 3
"""Of a message."""
FIRST = {
    "TASK": "rail.py",
    "BUNDLE": "bundle",
    "FILE.npz": "log.npz",
    "LOG.npz": "log.npz",
    "FILE...": "rail.py",
    "ROBOT": "jaka-zu5",
    "SHELL": "bash",
}
"""A right first word, by how the table writes it."""
TASKS = {"grasps": "leap-right-cube-rotate", "calibrate": "wildrobot"}
NEEDED = {
    "replay": ("--task", "rail.py"),
    "grasps": ("--out", "new.npz"),
    "scan": ("--out", "new"),
    "record": ("--out", "new.npz"),
    "run": ("--driver", "fake"),
    "sysid": ("--log-file", "log.npz"),
    "play": ("--video", "new.mp4"),
    "calibrate": ("--driver", "wildrobot"),
    "distill": ("--teacher", "run"),
}
"""What a command needs besides, to be refused for nothing but the wrong word."""
ESC = "\x1b[31mred\x07"


class Call(NamedTuple):
    """A wrong call: words after `deftly`, and what its message must name."""

    id: str
    words: tuple[str, ...]
    names: str = ""


def settings_of(command: Command) -> type | None:
    """The dataclass of a command's settings."""
    if command.name == "bench":
        return deftly_bench.BenchArgs
    return getattr(importlib.import_module(command.module), command.args) if command.args else None


def first_word(command: Command) -> tuple[str, ...]:
    word = TASKS.get(command.name) or FIRST.get(command.positional.strip("[]"), "word")
    return (word,) if command.positional else ()


def right_call(command: Command) -> tuple[str, ...]:
    """A call to which one wrong word is added."""
    return (command.name, *first_word(command), *NEEDED.get(command.name, ()))


# ------------------------------------------------------------------ what is wrong


def wrong_words(command: Command, found: list[Flag]) -> Iterator[Call]:
    """Settings that there are not, and words that are none."""
    words = ["--xyzzy", "xyzzy=1", "--train.xyzzy=1", "-x", "--", "---", "=1", f"--{ESC}"]
    words += [f"{ESC}=1", "--config"]
    if found:
        name = max((flag.name for flag in found), key=len)
        words += [f"--{name[:-2]}{name[-1]}", f"--{name}s=1", f"{name[1:]}=1"]
    for word in words:
        yield Call("word", (*right_call(command), word))
    yield Call("word", (*right_call(command), "two", "words"))


def wrong_first_words(command: Command, _: list[Flag]) -> Iterator[Call]:
    """First words that name nothing, or no file of the kind."""
    if not command.positional:
        yield Call("first", (command.name, "word"), "word")
        return
    suffix = ".npz" if command.positional.endswith(".npz") else ".py"
    names = [f"bad/{kind}{suffix}" for kind in (*wrong_files.CONTENTS, *wrong_files.PLACES)]
    names += ["", " ", "nothing", f"nothing{suffix}", "~/nothing.py", "~nobody/x.py", "..", "/"]
    names += [".", "a\nb.py", f"{ESC}.py", "ß∂ 'q\".py", "x" * 5000, "tcp://x", "file\ud800.py"]
    names += ["bad/zero.py:x", "rail.py:xyzzy", "exits.py"]
    for name in names:
        yield Call("first", (command.name, name, *NEEDED.get(command.name, ())))


def wrong_values(command: Command, found: list[Flag]) -> Iterator[Call]:
    """Values of a wrong type, out of range, not finite, empty."""
    for flag in found:
        for number, (kind, value) in enumerate(values_wrong_for(flag)):
            written = f"--{flag.name}={value}" if number % 2 else f"{flag.name}={value}"
            yield Call(kind, (*right_call(command), written), flag.name)
        if flag.kind is not bool:
            yield Call("empty", (*right_call(command), f"--{flag.name}"), flag.name)


def values_wrong_for(flag: Flag) -> Iterator[tuple[str, str]]:
    """Kind and value of what a setting cannot be."""
    kind = flag.kind
    if kind is bool:
        yield from (("type", "maybe"), ("type", "2"), ("empty", ""))
    elif get_origin(kind) is Literal:
        yield from (("choice", f"{get_args(kind)[0]}x"), ("choice", ESC), ("empty", ""))
    elif kind in (int, float):
        yield from (("type", "x"), ("type", "1 2"), ("type", "1,2"), ("type", "٣x"), ("empty", ""))
        yield from (("nan", "nan"), ("inf", "inf"), ("inf", "-inf"), ("huge", "9" * 5000))
        yield from (("range", value) for value in ("1" + "0" * 30, *out_of_range(flag)))
    elif get_origin(kind) is tuple and kind != tuple[str, ...]:
        yield from (("type", "x"), ("type", "[1,x]"), ("nan", "nan,nan"), ("empty", ""))
    elif flag.default != "":
        yield "empty", ""


def out_of_range(flag: Flag) -> Iterator[str]:
    """Values just beyond the bounds of a number."""
    step = 1 if flag.kind is int else 1e-9
    for bound in get_args(flag.hint)[1:]:
        match bound:
            case Ge(limit):
                yield str(limit - step)
            case Le(limit):
                yield str(limit + (step if flag.kind is int else max(step, 1e-6 * abs(limit))))
            case Gt(limit) | Lt(limit):
                yield str(limit)


def wrong_paths(command: Command, found: list[Flag]) -> Iterator[Call]:
    """Paths that can be neither read nor written."""
    for flag in filter(is_path, found):
        parts = get_args(flag.hint)[1:]
        suffix = next((part.suffix for part in parts if isinstance(part, Suffix)), ".npz")
        names = [f"bad/{kind}{suffix}" for kind in ("fifo", "zero", "loop")]
        for name in (*names, f"rail.py/x{suffix}"):
            words = (*without(right_call(command), flag), f"--{flag.name}", name)
            yield Call("path", words, flag.name)


def is_path(flag: Flag) -> bool:
    return flag.kind is Path


def without(words: tuple[str, ...], flag: Flag) -> tuple[str, ...]:
    """Words without a flag and its value."""
    name = f"--{flag.name}"
    at = words.index(name) if name in words else len(words)
    return words[:at] + words[at + 2 :]


def wrong_configs(command: Command, found: list[Flag]) -> Iterator[Call]:
    """Files of settings that cannot be read, or hold what no command has."""
    kinds = {*wrong_files.CONTENTS, *wrong_files.PLACES} - {"empty"}
    names = [*(f"bad/{kind}.yaml" for kind in sorted(kinds)), "twice.yaml", ""]
    for name in names if found else ():
        yield Call("config", (*right_call(command), "--config", name), Path(name).name)


KINDS = (wrong_words, wrong_first_words, wrong_values, wrong_paths, wrong_configs)


@functools.cache
def generated(most: int = 10**9) -> list[Call]:
    """The wrong calls of every command that its table and settings tell; at most so many of each kind and command."""
    calls: list[Call] = []
    for command in COMMANDS.values():
        found = list(flags(cls)) if (cls := settings_of(command)) else []
        for kind in KINDS:
            made = list(kind(command, found))
            rng = random.Random(f"{command.name} {kind.__name__}")
            calls += rng.sample(made, min(most, len(made)))
    return calls


LEAP, RUN = "leap-right-cube-rotate", ("run", "--policy", "bundle", "--driver")
SPECIAL = [
    # another robot's, another task's
    Call("other", ("eval", "jaka-pick-cube", "--policy", "bundle"), "name the task rail"),
    Call("other", ("play", LEAP, "--policy", "bundle", "--video", "x.mp4"), "policy of rail"),
    Call("other", ("record", "slider.py", "--policy", "bundle", "--out", "x.npz"), "of rail"),
    Call("other", ("sim2sim", "slider.py", "--policy", "bundle"), "name the task rail"),
    Call("other", ("run", LEAP, "--policy", "bundle", "--driver", "fake"), "policy of rail"),
    Call("other", ("serve", "jaka-pick-cube", "--policy", "bundle"), "policy of rail"),
    Call("other", ("export", "rail.py", "--policy", "bundle"), "needs a checkpoint"),
    Call("other", ("check", "bundle", "--task", "slider.py"), "made for the task 'rail'"),
    Call("other", ("check", "bundle", "--task", "nothing.py"), "no task file nothing.py"),
    Call("other", ("check", "slider.py", "--policy", "bundle"), "made for the task 'rail'"),
    Call(
        "other", ("train", "jaka-pick-cube", "--resume", "rail_train"), "is a run of rail, not of"
    ),
    Call("other", ("check", "bundle", "--against", "nothing"), "nothing"),
    Call("other", ("sysid", LEAP, "--log-file", "log.npz"), "log.npz is of another robot"),
    Call("other", ("replay", "log.npz", "--task", "jaka-pick-cube"), "jaka-pick-cube"),
    Call("other", ("inspect", "log.npz", "--bundle", "bad"), "bad"),
    Call("other", ("train", "rail.py", "--init", "bundle"), "neither a run nor a checkpoint"),
    Call("other", ("eval", "rail.py", "--policy", "bundle", "--out", "bundle"), "is a bundle, of"),
    Call("other", ("sim2sim", "rail.py", "--policy", "bundle", "--out", "bundle"), "is a bundle"),
    # words that are nearly right
    Call("near", ("train", "JAKA-PICK-CUBE"), "did you mean 'jaka-pick-cube'?"),
    Call(
        "near",
        ("train", "jaka-pick-cube", "--task.cube-mass", "1e-300"),
        "MuJoCo cannot build the scene: mass and inertia of moving bodies must be larger",
    ),
    Call("near", ("eval", "rail.py", "--policy", "SHIPPED"), "did you mean 'shipped'?"),
    Call("near", ("eval", "rail.py", "--policy", "bundle", "--gate", "success=>0.9"), "METRIC>="),
    Call("near", ("distill",), "distill needs a task"),
    Call("both", ("distill", "rail.py", "train.algorithm=sac"), "train.algorithm is sac, but"),
    Call("both", ("distill", "rail.py", "train.algorithm=x"), "must be one of ppo"),
    # settings that do not go together
    Call("both", ("train", "rail.py", "--resume", "latest", "--init", "latest"), "--init"),
    Call("both", ("train", "rail.py", "sim.dt=0.01", "sim.substeps=9999"), "sim.substeps"),
    Call("both", ("train", "rail.py", "--sim.dt", "0.03"), "sim.dt is 0.03"),
    Call("both", ("train", "rail.py", "--env.device", "cuda"), "--sim.engine warp"),
    Call("both", ("train", "rail.py", "train.minibatches=99", "num_envs=2"), "minibatches"),
    Call("both", ("train", "rail.py", "--resume", "shipped"), "--init shipped"),
    Call("both", ("runs", "--pin", "latest", "--unpin", "x"), "one at a time"),
    Call("both", ("runs", "--compare", "latest", "--pin", "x"), "one at a time"),
    Call("both", ("runs", "--name", "x"), "--pin RUN"),
    Call("both", ("robots", "--xml"), "--xml"),
    Call("both", ("replay", "log.npz", "--loop"), "--serve"),
    Call("both", ("replay", "log.npz", "--serve", "tcp://127.0.0.1:1", "--png", "x.png"), "--png"),
    Call("both", ("run", LEAP, "--driver", "leap", "--fault", "nan"), "--fault"),
    Call("both", ("run", LEAP, "--driver", "fake", "--port", "/dev/x"), "--port"),
    Call("both", ("sysid", LEAP, "--excite", "True", "--log-file", "log.npz"), "--log-file"),
    Call("both", ("sysid", LEAP, "--excite", "True"), "--out LOG.npz"),
    Call("both", ("eval", "rail.py", "--policy", "bundle", "--stochastic"), "--stochastic"),
    # names of runs
    *(Call("run", ("train", "rail.py", "--name", name), "name") for name in ("a/b", "..", "a b")),
    Call("run", ("runs", "--pin", "latest", "--name", "../../evil"), "cannot name a run"),
    Call("run", ("runs", "--pin", "latest", "--name", "latest"), "newest run"),
    Call("run", ("runs", "--unpin", "../latest"), "cannot name a run"),
    Call("run", ("runs", "--pin", "nothing"), "nothing"),
    Call("run", ("runs", "--compare", "latest", "--column", "nothing"), "nothing"),
    Call("run", ("eval", "rail.py", "--policy", "latest:nothing"), "nothing"),
    # gates, cameras
    *(
        Call("gate", (command, "rail.py", "--gate", gate), "gate")
        for command in ("eval", "sim2sim")
        for gate in ("success", "success>=nan", "success>=2", "steps<<3", "sucess>1", "")
    ),
    Call("camera", ("play", "rail.py", "--video", "x.mp4", "--camera", "nope"), "nope"),
    Call("camera", ("eval", "rail.py", "--video", "True", "--camera", "nope"), "nope"),
    # addresses
    *(
        Call("address", words, address)
        for address in ("localhost:5555", "tcp://", "http://127.0.0.1:1", "tcp://8.8.8.8:5555")
        for words in (
            ("serve", "--policy", "bundle", "--bind", address),
            ("replay", "log.npz", "--serve", address),
            ("serve", "--status", address),
        )
    ),
    Call("address", ("serve", "--policy", "bundle", "--bind", "tcp://127.0.0.1:PORT"), "in use"),
    Call("address", ("play", "rail.py", "--viewer", "web", "--port", "PORT"), "another --port"),
    Call("address", ("eval", "rail.py", "--policy", "ws://127.0.0.1:1"), "no policy server at ws"),
    Call("keys", ("serve", "--policy", "bundle", "--keys", "bad"), "--new-keys"),
    Call("keys", ("serve", "--new-keys", "bad"), "never overwritten"),
    # drivers
    *(
        Call("driver", (*RUN, driver), driver)
        for driver in ("nothing", "nothing:X", "exits:X", "os:path", ":", "fakee", "rail:Nothing")
    ),
    Call("driver", (*RUN, "fake", "--fault", "odd"), "odd"),
    Call("driver", (*RUN, "leap"), "motors"),
    *(
        Call("driver", ("run", LEAP, "--driver", "leap", "--port", port), port)
        for port in ("/dev/null", "/dev/ttyNOPE", "bad/fifo.npz", "home", "rail.py")
    ),
    # what files hold
    *(
        Call("file", (*words, f"bad/{kind}{suffix}"), f"{kind}{suffix}")
        for kind in wrong_files.CONTENTS
        for suffix, words in (
            (".npz", ("gait", LEAP, "--gait")),
            (".npz", ("sysid", LEAP, "--log-file")),
            (".csv", ("sysid", LEAP, "--log-file")),
            (".json", ("eval", "rail.py", "--video", "False", "--compare")),
        )
    ),
    # too much
    Call("huge", ("train", "rail.py", "--env.latency-ms", "0", "1e300"), "env.latency-ms"),
    Call("huge", ("train", "rail.py", "--task.ready-s", "0", "1e300"), "task.ready-s"),
    Call("huge", ("train", "rail.py", "--task.rate", "1e9"), "rate"),
    Call("noise", ("train", "rail.py", "--task.noise.gaussian", "-1"), "task.noise.gaussian"),
]
"""Wrong calls that no table tells; PORT is one that is taken."""


# ------------------------------------------------------------------ where


@pytest.fixture(scope="module")
def place(tmp_path_factory, exported):
    """A folder with a task, a run, a bundle and a log that are right, and `bad/` with files that are not."""
    place = tmp_path_factory.mktemp("wrong calls")
    for name in ("rail.py", "slider.py"):
        shutil.copy(ASSETS / name, place)
    shutil.copytree(exported.root, place, symlinks=True, dirs_exist_ok=True)
    wrong_files.make(place / "bad")
    (place / "twice.yaml").write_text("seed: 1\nseed: 2\n")
    (place / "exits.py").write_text("raise SystemExit(0)\n")
    (place / "home").mkdir()
    with contextlib.chdir(place), contextlib.redirect_stdout(io.StringIO()):
        assert main(["record", "rail.py", "--policy", "bundle", "--out", "log.npz"]) == 0
    yield place
    assert psutil.Process().children(recursive=True) == []


@pytest.fixture(scope="module")
def port():
    """A port that is taken."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield str(taken.getsockname()[1])


def tree(place: Path) -> dict[str, tuple[int, int, int]]:
    """What is in a folder: mode, size and inode by path. What other libraries cache is no matter."""
    passed_over = {"__pycache__", ".cache", ".config"}
    return {
        str(path): (info.st_mode, info.st_size, info.st_ino)
        for path in place.rglob("*")
        if not passed_over & set(path.parts) and (info := path.lstat())
    }


class TooLateError(BaseException):
    """A call was not refused in time."""


@contextlib.contextmanager
def in_time(seconds: float):
    """Raises TooLateError in a block that lasts longer."""

    def late(*_):
        raise TooLateError

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def call(words) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of `deftly WORDS`, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), in_time(LONGEST_S):
        try:
            status = main(words)
        except SystemExit as end:
            status = end.code
    return status, out.getvalue(), err.getvalue()


def check(wrong: Call, place: Path, port: str, monkeypatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("HOME", str(place / "home"))
    before = tree(place)
    status, out, err = call([word.replace("PORT", port) for word in wrong.words])
    said = f"{wrong.words}: {status}\n{out[-1500:]}\n{err[-1500:]}"
    assert status in (1, 2), said
    assert tree(place) == before, said
    assert 1 <= err.count("\n") <= MOST_LINES or (status == 1 and " fail " in out), said
    assert all(c.isprintable() or c == "\n" for c in out + err), said
    assert wrong.names in " ".join((out + err).split()), said


def ids(wrong: Call) -> str:
    return f"{wrong.words[0]}-{wrong.id}"


CALLS = [*generated(TRIED), *SPECIAL]


@pytest.mark.parametrize("wrong", CALLS, ids=ids)
def test_a_wrong_call_is_refused_in_a_line(wrong, place, port, monkeypatch):
    check(wrong, place, port, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_every_wrong_call(part, place, port, monkeypatch):
    failures = []
    for wrong in generated()[part::PARTS]:
        try:
            check(wrong, place, port, monkeypatch)
        except AssertionError as failure:
            failures.append(str(failure))
    assert not failures, "\n\n".join(failures)


def test_there_are_many_and_of_every_command():
    assert len(CALLS) >= 500
    for command in COMMANDS:
        assert sum(wrong.words[0] == command for wrong in CALLS) >= TRIED


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "completion"])
def test_every_path_says_what_must_be_there(name):
    cls = settings_of(COMMANDS[name])
    assert cls is not None
    for flag in filter(is_path, flags(cls)):
        assert any(isinstance(part, OnDisk) for part in get_args(flag.hint)), flag.name


# ------------------------------------------------------------------ around a process


@pytest.mark.parametrize(
    ("shell", "status", "says"),
    [
        ("deftly runs --xyzzy", 2, "--xyzzy"),
        ("deftly check x 2>&1 >/dev/full", 2, "x"),
        ("deftly tasks --names >/dev/full", 1, "No space left on device"),
        ("deftly nothing >&- 2>&-", 2, ""),
        ("deftly --help >&-", 0, ""),
        ("mkdir gone; cd gone; rmdir ../gone; deftly runs", 2, "the current folder is gone"),
        ("unset HOME; deftly train '~no-such-user/x.py'", 2, "no task file ~no-such-user/x.py"),
        ("PYTHONIOENCODING=ascii deftly runs --runs.root ß 2>&1", 0, "no runs in '\\xdf'"),
        ("deftly train jaka-pick-cube --config <(echo 'env: [')", 2, "it is a pipe, not a file"),
    ],
)
def test_around_a_process(shell, status, says, tmp_path):
    script = f'deftly() {{ "{sys.executable}" -m deftly "$@"; }}; {shell}'
    environment = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, timeout=120
    )
    said = (done.stdout + done.stderr).decode()
    assert done.returncode == status, said
    assert says in said
    assert said.count("\n") <= MOST_LINES, said
    assert list(tmp_path.iterdir()) == []
