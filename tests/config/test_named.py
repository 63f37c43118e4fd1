"""Configurations by name: `config=NAME`, `train=NAME`, lists of defaults."""

import pytest
from cube_settings import read

from deftly.commands.eval import EvalArgs
from deftly.commands.play import PlayArgs
from deftly.config import TrainArgs, parse, switches
from deftly.config.named import MOST_FILES, shipped
from deftly.errors import DeftlyError


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "words",
    [
        ["config=debug"],
        ["-cn", "debug"],
        ["-cn=debug"],
        ["--config-name", "debug"],
        ["--config-name=debug"],
        ["--config", "debug"],
        ["+defaults=[debug]"],
        ["defaults=[config,debug]"],
    ],
)
def test_every_way_to_name_a_configuration(words):
    args = read(*words, cls=TrainArgs)
    assert (args.env.num_envs, args.train.max_iterations) == (4, 3)
    assert read("numEnvs=9", *words, cls=TrainArgs).env.num_envs == 9


def test_the_configurations_that_come_with_deftly():
    assert shipped() == ["debug", "test_record", "test_render", "train_headless"]
    assert read("config=train_headless", cls=TrainArgs) == TrainArgs(render=False)
    watched = parse(PlayArgs, ["config=test_render"], prog="deftly play")
    assert (watched.viewer, watched.sim.preset) == ("auto", "fast")
    assert parse(EvalArgs, ["config=test_record"], prog="deftly eval").video is True


def test_switches_are_found_in_files_too(here):
    (here / "mine.yaml").write_text("training: {test: yes}\nenv: {render: null}\n")
    names = ("test", "render", "video")
    assert switches(["config=mine"], names) == {"test": True}
    assert switches(["config=mine", "test=false", "--render"], names) == {
        "test": False,
        "render": True,
    }


def test_what_is_the_users_own_counts_first(here):
    (here / "configs").mkdir()
    (here / "configs/debug.yaml").write_text("env: {num_envs: 5}")
    assert read("config=debug").env.num_envs == 5
    (here / "debug.yaml").write_text("env: {num_envs: 6}")
    assert read("config=debug").env.num_envs == 6
    assert read("config=configs/debug.yaml").env.num_envs == 5


@pytest.mark.parametrize("place", ["", "train", "configs", "configs/train"])
def test_a_training_configuration_is_a_file_of_the_users(here, place):
    (here / place).mkdir(parents=True, exist_ok=True)
    file = here / place / "MyTaskPPO.yaml"
    file.write_text("learning_rate: 3e-4\nhidden: [64]\n")
    args = read("train=MyTaskPPO", "train.seed=7")
    assert (args.train.learning_rate, args.train.hidden, args.train.seed) == (3e-4, (64,), 7)
    file.write_text("train: {learning_rate: 3e-4}\nenv: {num_envs: 5}\n")
    args = read("train=MyTaskPPO")
    assert (args.train.learning_rate, args.env.num_envs) == (3e-4, 5)


def test_a_file_may_list_defaults(here):
    (here / "mine.yaml").write_text(
        "defaults: [config, {train: fine}, /physics/fast, _self_]\nenv: {num_envs: 5}\n"
    )
    (here / "fine.yaml").write_text("steps: 3\n")
    args = read("config=mine")
    assert (args.sim.preset, args.env.num_envs, args.train.steps) == ("fast", 5, 3)


def test_files_that_name_each_other_in_a_circle(here):
    (here / "a.yaml").write_text("config: b")
    (here / "b.yaml").write_text("defaults: a")
    with pytest.raises(DeftlyError, match=f"more than {MOST_FILES} files name each other"):
        read("config=a")


def test_files_that_name_many(here):
    for name, named in zip("abcdefgh", "bcdefgh", strict=False):
        (here / f"{name}.yaml").write_text(f"defaults: [{', '.join(named * 9)}]")
    (here / "h.yaml").touch()
    with pytest.raises(DeftlyError, match=f"more than {MOST_FILES} files name each other"):
        read("config=a")
    with pytest.raises(DeftlyError, match=r"^the command: more than"):
        read(*(["config=debug"] * (MOST_FILES + 1)))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([f"config={'x' * 5000}"], "there is no x+"),
        (["config=tran_headless"], "config=tran_headless: .* did you mean 'train_headless'"),
        (["config=zzz"], "come with Deftly are debug, test_record, test_render, train_headless"),
        (["train=NoSuch"], "make one: deftly config TASK train > NoSuch.yaml"),
        (["config="], "--config needs a YAML file: it is empty"),
        (["+defaults=[/physics/fats]"], "sim.preset is fats, .* did you mean 'fast'"),
        (["config=no/such.yaml"], "no such file"),
    ],
)
def test_a_name_of_nothing_is_one_line(words, says):
    with pytest.raises(DeftlyError, match=says) as error:
        read(*words)
    assert "\n" not in str(error.value)


def test_a_bad_key_in_a_named_file_is_refused_with_the_file(here):
    (here / "mine.yaml").write_text("learning_rat: 3e-4")
    with pytest.raises(DeftlyError, match=r"mine.yaml: .* did you mean 'train.learning-rate'"):
        read("train=mine")
    (here / "theirs.yaml").write_text("params: {config: {learning_rate: 3e-4}}")
    with pytest.raises(DeftlyError, match=r"rl_games' form; 'deftly config TASK train' prints"):
        read("train=theirs")
