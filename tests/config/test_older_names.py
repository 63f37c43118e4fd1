from dataclasses import dataclass

import pytest
from cube_settings import CubeArgs, Weights, read

from deftly.commands.distill import DistillArgs
from deftly.commands.play import PlayArgs
from deftly.commands.train import TrainArgs
from deftly.config import ALIASES, RunsConfig, TaskConfig, parse, split_task, with_task
from deftly.config.older_names import resolve
from deftly.errors import DeftlyError


@pytest.mark.parametrize(
    ("word", "section", "name", "value"),
    [
        ("training.seed=7", "train", "seed", 7),
        ("seed=-1", "train", "seed", -1),
        ("training.maxIterations=7", "train", "max_iterations", 7),
        ("training.max_iterations=7", "train", "max_iterations", 7),
        ("maxIter=7", "train", "max_iterations", 7),
        ("max_iterations=7", "train", "max_iterations", 7),
        ("train.maxIterations=7", "train", "max_iterations", 7),
        ("device=cuda:1", "env", "device", "cuda:1"),
        ("env.device=cuda:1", "env", "device", "cuda:1"),
        ("task.episodeLength=300", "env", "episode_steps", 300),
        ("experiment.maxRecentRuns=3", "runs", "max_train_runs", 3),
        ("experiment.maxTrainRuns=3", "runs", "max_train_runs", 3),
        ("experiment.maxTestRuns=3", "runs", "max_test_runs", 3),
        ("experiment.useCleanWorkspace=false", "runs", "workspace", False),
        ("training.checkpoint=latest", None, "policy", "latest"),
        ("checkpoint=latest", None, "policy", "latest"),
        ("checkpoint=null", None, "policy", None),
        ("training.test=true", None, "test", True),
        ("test=True", None, "test", True),
        ("env.render=false", None, "render", False),
        ("render=TRUE", None, "render", True),
        ("env.recordVideo=true", None, "video", True),
        ("testing.reloadInterval=30", None, "reload", 30.0),
        ("logLevel=debug", None, "log_level", "debug"),
        ("logging.logLevel=debug", None, "log_level", "debug"),
        ("logging.experiment_name=first", None, "name", "first"),
        ("sim.preset=fast", "sim", "preset", "fast"),
        ("task.ranges.cube_x=0.2", "task", "ranges", {"cube_x": 0.2, "yaw": 3.0}),
        ("task.rewardWeights.object_height=2", "task", "reward_weights", Weights(2.0)),
        ("train.hidden=[256, 128]", "train", "hidden", (256, 128)),
        ("train.hidden=256,128,64", "train", "hidden", (256, 128, 64)),
        ("train.hidden=[]", "train", "hidden", ()),
        ("env.latency_ms=10,20.5", "env", "latency_ms", (10.0, 20.5)),
    ],
)
def test_older_names_and_values(word, section, name, value):
    config = read(word)
    assert getattr(getattr(config, section) if section else config, name) == value


@pytest.mark.parametrize("old", ALIASES)
def test_every_alias_reaches_a_field(old):
    known = {flag: "" for flags in ALIASES.values() for flag in flags} | {"render": ""}
    assert resolve(old, known) in known
    values = {
        "env.device": "cpu",
        "log-level": "info",
        "name": "x",
        "policy": "x",
        "resume": "x",
    }
    booleans = ("test", "render", "video", "runs.workspace")
    flag = ALIASES[old][0]
    commands = {"resume": with_task(TrainArgs, TaskConfig), "train.teacher": DistillArgs}
    cls = commands.get(flag, CubeArgs)
    read(f"{old}={values.get(flag, 'true' if flag in booleans else '5')}", cls=cls)


def test_flags_of_the_neighbours():
    words = [
        "--task",
        "cube",
        "--num_envs",
        "64",
        "--seed",
        "3",
        "--max_iterations=7",
        "--headless",
    ]
    task, rest = split_task(words)
    args = read(*rest, cls=TrainArgs)
    assert task == "cube"
    assert (args.env.num_envs, args.train.seed, args.train.max_iterations) == (64, 3, 7)
    assert read("--load_run", "latest", "--run_name", "first", cls=TrainArgs).resume == "latest"


def test_headless_turns_off_what_is_shown():
    assert parse(PlayArgs, ["--headless"], prog="deftly play").viewer == "none"
    assert read("--headless").render is False


def test_an_older_name_of_an_older_name():
    assert read("training.checkpoint=latest", cls=TrainArgs).resume == "latest"
    assert read("checkpoint=latest", cls=TrainArgs).resume == "latest"


def test_a_real_field_wins_over_an_alias():
    @dataclass(frozen=True)
    class Evaluate:
        seed: int = 0
        """Seed of the episodes."""

    assert read("seed=9", cls=Evaluate).seed == 9


def test_an_alias_without_a_target_is_refused():
    with pytest.raises(DeftlyError, match=r"numEnvs \(--env.num-envs\)"):
        read("numEnvs=3", cls=RunsConfig)
