import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
from cube_settings import CubeArgs, read
from typing_extensions import Doc

from deftly.config import (
    INPUT_FILE,
    INPUT_FOLDER,
    OUTPUT_FILE,
    OUTPUT_FOLDER,
    Settings,
    parse,
    split_task,
    split_word,
    suggest,
    with_setting,
    without_setting,
)
from deftly.config.mapping import changed, words_of
from deftly.errors import DeftlyError


@pytest.mark.parametrize(
    "argv",
    [
        ["--env.num-envs", "64"],
        ["--env.num_envs=64"],
        ["env.num_envs=64"],
        ["env.numEnvs=64"],
        ["numEnvs=64"],
        ["num_envs=64"],
        ["numEnvs=3", "--env.num-envs", "64"],
    ],
)
def test_every_spelling_of_a_key_is_the_same_setting(argv):
    assert read(*argv).env.num_envs == 64


@pytest.mark.parametrize(
    ("argv", "value"),
    [
        (["--env.noise", "False"], False),
        (["--env.noise", "false"], False),
        (["--env.noise=false"], False),
        (["--env.no-noise"], False),
        (["--env.no-noise", "--env.noise"], True),
        (["--env.no-noise", "--env.noise", "--test"], True),
        (["env.noise=FALSE"], False),
    ],
)
def test_every_spelling_of_a_boolean(argv, value):
    assert read(*argv).env.noise is value


def test_split_task():
    assert split_task(["cube", "seed=1"]) == ("cube", ["seed=1"])
    assert split_task(["seed=1", "task=cube"]) == ("cube", ["seed=1"])
    assert split_task(["--help"]) == (None, ["--help"])
    assert split_task(["task.rate=3"]) == (None, ["task.rate=3"])
    assert split_task([]) == (None, [])
    assert split_task(["--seed", "1", "--task", "cube", "--headless"]) == (
        "cube",
        ["--seed", "1", "--headless"],
    )
    assert split_task(["--task=cube"]) == ("cube", [])
    assert split_word(["a.npz", "--task", "b.py"]) == ("a.npz", ["--task", "b.py"])
    assert split_word(["--task", "b.py"]) == (None, ["--task", "b.py"])


def test_suggest():
    assert suggest("jaka-pick", ["jaka-pick-cube", "leap"]) == ", did you mean 'jaka-pick-cube'?"
    assert suggest("zzz", ["leap"]) == ""


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["env.num_env=3"],
            "deftly train has no setting env.num_env, did you mean 'env.num-envs'?",
        ),
        (
            ["--env.num-env", "3"],
            "deftly train has no setting --env.num-env, did you mean '--env.num-envs'?",
        ),
        (
            ["task.ranges.cube_z=1"],
            "deftly train has no setting task.ranges.cube_z, did you mean 'task.ranges.cube-x'?",
        ),
        (
            ["training.torch_determinist=true"],
            "(--train.torch-determinist), did you mean 'train.torch-deterministic'?",
        ),
        (
            ["--train.augment-shift", "2"],
            "setting --train.augment-shift: distill has it, add --train.algorithm distill",
        ),
        (["train.tau=0.01"], "sac, ddpg, td3 have it, add --train.algorithm sac"),
        (["env.num_envs=many"], "env.num-envs is many, but it must be a whole number"),
        (["--sim.preset", "fats"], "one of coarse, fast, default, accurate, did you mean 'fast'?"),
        (["stray"], "cannot read 'stray'"),
        (["--env.noise", "maybe"], "env.noise is maybe, but it must be true or false"),
        (["--env.num-envs"], "env.num-envs is empty, but it must be a whole number"),
        (["--env.latency-ms", "1", "2", "3"], "env.latency-ms is 1 2 3, but it must be 2 values"),
        (["--reload", "soon"], "reload is soon, but it must be a number"),
    ],
)
def test_a_wrong_key_or_value_is_one_line(argv, message):
    with pytest.raises(DeftlyError) as error:
        read(*argv)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_missing_is_named_with_its_text():
    from deftly.commands.run import RunArgs

    with pytest.raises(DeftlyError, match=r"deftly run needs --driver: The robot"):
        parse(RunArgs, [], prog="deftly run")


@pytest.mark.parametrize(
    ("argv", "gates"),
    [
        (["--gate", "a>1", "b<2"], ("a>1", "b<2")),
        (["--gate", "a>1", "--gate", "b<2"], ("a>1", "b<2")),
        (["gate=a>1", "--seed", "1", "--gate=b<2"], ("a>1", "b<2")),
    ],
)
def test_a_repeatable_setting_adds_up(argv, gates):
    assert read(*argv).gate == gates


def test_the_home_folder_of_nobody_is_one_line():
    with pytest.raises(DeftlyError, match=r"cannot read .~nobody-at-all/c\.yaml. as a config"):
        read("--config", "~nobody-at-all/c.yaml")


def test_the_home_folder_is_expanded():
    home = Path.home()
    found = read("runs.root=~/x", "--task.grasps", "~/g.npz", "name=~")
    assert found.runs.root == home / "x"
    assert found.task.grasps == str(home / "g.npz")
    assert split_word(["~/a.npz"]) == (str(home / "a.npz"), [])
    assert split_task(["task=~/t.py"]) == (str(home / "t.py"), [])


def test_a_config_file_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "c.yaml").write_text("env: {num_envs: 7}")
    assert read("--config", "~/c.yaml").env.num_envs == 7


def test_with_setting():
    words = ["--seed", "1", "--checkpoint", "old", "x=2", "checkpoint=older", "--gate", "steps<5"]
    expected = ["--seed", "1", "x=2", "--gate", "steps<5", "--checkpoint", "runs/a b"]
    assert with_setting(words, "checkpoint", "runs/a b") == expected


def test_changed_is_what_to_type_for_the_same_settings():
    words = ["--sim.preset", "fast", "--task.ranges.cube-x", "0.2", "--train.hidden", "8", "8"]
    args = read("physics=fast", "task.ranges.cube_x=0.2", "train.hidden=8,8")
    assert changed(args) == words
    assert read(*words) == args
    assert changed(CubeArgs()) == []


def test_without_setting_ends_at_the_next_flag_of_one_dash():
    words = ["--checkpoint", "old", "-cn", "debug", "checkpoint=older"]
    assert without_setting(words, "checkpoint") == ["-cn", "debug"]


def test_negative_values_are_not_flags():
    assert read("train.seed=-1").train.seed == -1
    assert read("--train.seed", "-1").train.seed == -1
    assert read("--name=--odd").name == "--odd"


def test_a_class_without_a_task_section_parses():
    assert parse(CubeArgs, [], prog="x") == CubeArgs()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--name", ""], "name is empty, but it must be text, or none"),
        (["name="], "name is empty"),
        (["--runs.root="], "runs.root is empty, but it must be a path"),
        (["--train.hidden"], "train.hidden is empty, but it must be a list, as 64,64"),
    ],
)
def test_a_value_that_is_left_empty_is_refused(words, says):
    with pytest.raises(DeftlyError, match=f"^{re.escape(says)}"):
        read(*words)


def test_an_empty_list_is_written_in_brackets():
    assert read("--train.hidden", "[]").train.hidden == ()
    assert read("train.hidden=[]").train.hidden == ()
    assert words_of({"train": {"hidden": ()}}) == ["--train.hidden=[]"]


def test_an_empty_first_word_is_refused():
    for word in ("", " "):
        with pytest.raises(DeftlyError, match="the first word is empty"):
            split_word([word])


@dataclass(frozen=True)
class Places(Settings):
    file: Annotated[Path | None, INPUT_FILE] = None
    folder: Annotated[Path | None, INPUT_FOLDER] = None
    out: Annotated[Path, OUTPUT_FILE] = Path("/proc/none/x")
    place: Annotated[Path | None, OUTPUT_FOLDER] = None


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("file=gone", "file is gone, but there is no such file"),
        ("file=here", "file is here, but that is a folder: give a file"),
        ("file=pipe", "file is pipe, but that is a pipe: give a file"),
        ("file=loop", "file is loop, but too many levels of symbolic links"),
        ("folder=a.txt", "folder is a.txt, but that is a file: give a folder"),
        ("folder=gone", "folder is gone, but there is no such folder"),
        ("out=here", "out is here, but that is a folder: name another file"),
        ("out=pipe", "out is pipe, but that is a pipe: name another file"),
        ("out=zero", "out is zero, but that is a device: name another file"),
        ("out=a.txt/b", "out is a.txt/b, but not a directory: name another file"),
        ("out=/proc/x", "out is /proc/x, but nothing can be written in '/proc'"),
        ("place=a.txt", "place is a.txt, but that is a file: name another folder"),
        ("place=dangling", "place is dangling, but that is a link to nowhere"),
    ],
)
def test_paths_are_looked_at_before_any_work(word, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("here").mkdir()
    Path("a.txt").write_text("kept")
    os.mkfifo("pipe")
    for name, target in (("loop", "loop"), ("zero", "/dev/zero"), ("dangling", "gone")):
        Path(name).symlink_to(target)
    before = sorted(os.listdir())
    with pytest.raises(DeftlyError, match=f"^{re.escape(says)}"):
        parse(Places, [word], prog="x")
    assert sorted(os.listdir()) == before
    assert parse(Places, ["out=new/a", "file=a.txt", "place=new/b", "folder=here"], prog="x")
    assert parse(Places, ["out=a.txt", "place=here"], prog="x")
    assert sorted(os.listdir()) == before


def test_a_path_of_a_file_of_settings_is_named_with_it(tmp_path):
    (tmp_path / "c.yaml").write_text("file: gone\n")
    with pytest.raises(DeftlyError, match=rf"^{tmp_path}/c.yaml: file is gone, but there is no"):
        parse(Places, ["--config", str(tmp_path / "c.yaml")], prog="x")


@dataclass(frozen=True)
class Record:
    """An entry of a table, which nobody types."""

    name: str
    size: float = 1.0


@dataclass(frozen=True)
class WithTable(Settings):
    table: Annotated[tuple[Record, ...], Doc("A table.")] = (Record("a"),)
    words: Annotated[tuple[str, ...], Doc("Words.")] = ("b",)


def test_an_empty_list_is_read_as_one():
    """As a run's file has it: of records, which cannot be typed, and of words."""
    found = parse(WithTable, [], prog="x", filed={"table": [], "words": []})
    assert (found.table, found.words) == ((), ())
    assert parse(WithTable, ["words=[]"], prog="x").table == (Record("a"),)
    with pytest.raises(DeftlyError, match="table is empty"):
        parse(WithTable, ["--table"], prog="x")
