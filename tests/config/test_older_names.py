import re
from dataclasses import dataclass

import pytest
from cube_settings import CubeArgs, Weights, read

from deftly.commands.distill import DistillArgs
from deftly.commands.play import PlayArgs
from deftly.commands.train import TrainArgs
from deftly.config import (
    ALIASES,
    RunsConfig,
    TaskConfig,
    parse,
    split_task,
    switches,
    with_task,
)
from deftly.config.older_names import resolve
from deftly.console import debug, say, set_log_level
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
        ("logging.log_interval=3", None, "log_every", 3),
        ("training.torch_deterministic=true", "train", "torch_deterministic", True),
        ("training.learning_rate=3e-4", "train", "learning_rate", 3e-4),
        ("testGamesNum=7", None, "episodes", 7),
        ("physics=fast", "sim", "preset", "fast"),
        ("+physics=fast", "sim", "preset", "fast"),
        ("++env.numEnvs=7", "env", "num_envs", 7),
        ("+defaults=[config,/physics/fast]", "sim", "preset", "fast"),
        ("env.scene.num_envs=7", "env", "num_envs", 7),
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
        "sim.preset": "fast",
        "viewer": "web",
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


@pytest.mark.parametrize(
    ("word", "viewer"),
    [
        ("render=true", "auto"),
        ("env.render=false", "none"),
        ("viewer=true", "auto"),
        ("viewer=False", "none"),
        ("env.viewer=web", "web"),
        ("render=null", "web"),
        ("test=true", "web"),
    ],
)
def test_switches_of_other_systems_in_play(word, viewer):
    assert parse(PlayArgs, ["viewer=web", word], prog="deftly play").viewer == viewer


def test_a_video_that_is_switched_on_and_off():
    assert str(parse(PlayArgs, ["env.recordVideo=true"], prog="deftly play").video) == "video.mp4"
    words = ["env.recordVideo=true", "recordVideo=false"]
    assert parse(PlayArgs, words, prog="deftly play").video is None


@pytest.mark.parametrize("word", ["--viewer", "viewer=", "--video", "video="])
def test_a_setting_of_the_commands_own_is_not_switched_by_nothing(word):
    with pytest.raises(DeftlyError, match="is empty, but it must be"):
        parse(PlayArgs, [word], prog="deftly play")


@pytest.mark.parametrize("word", ["test=", "render="])
def test_a_switch_that_is_left_empty_is_refused(word):
    with pytest.raises(DeftlyError, match=f"has no setting {word[:-1]}"):
        parse(PlayArgs, [word], prog="deftly play")
    assert switches([word], ("test", "render")) == {}


def test_what_a_command_does_not_have_is_off_anyway():
    off = ["render=false", "env.recordVideo=false", "test=false", "headless=true"]
    assert parse(RunsConfig, off, prog="deftly runs") == RunsConfig()


@pytest.mark.parametrize(
    ("cls", "words", "says"),
    [
        (RunsConfig, ["render=true"], "has no setting render: deftly play TASK shows a policy"),
        (TrainArgs, ["env.recordVideo=true"], "--video): deftly play TASK --video FILE.mp4, or"),
        (TrainArgs, ["env.graphicsDeviceId=0"], "the variable MUJOCO_EGL_DEVICE_ID chooses"),
        (TrainArgs, ["sim.physx.num_threads=4"], "MuJoCo has no PhysX; --sim.preset"),
        (TrainArgs, ["hydra.run.dir=x"], "--runs.root and --name say where a run is written"),
        (TrainArgs, ["numEnvs=3", "-m"], "has no setting -m: one command for each value"),
        (TrainArgs, ["--gpu-ids", "all"], "torchrun --nproc-per-node 2 -m deftly train TASK"),
        (PlayArgs, ["maxIter=3"], "training alone has it: deftly train TASK"),
        (RunsConfig, ["testing.reloadInterval=30"], "deftly play TASK --reload 30"),
    ],
)
def test_what_deftly_does_in_another_way_is_said(cls, words, says):
    with pytest.raises(DeftlyError, match=re.escape(says)) as error:
        parse(cls, words, prog="deftly x")
    assert "\n" not in str(error.value)


def test_an_unknown_setting_of_a_section_that_has_advice_gets_the_nearest_name():
    with pytest.raises(DeftlyError, match=r"did you mean 'task.episode-steps'"):
        read("task.episode_step=3", cls=TrainArgs)


def test_reward_weights_are_those_of_the_task():
    assert resolve("task.rewardWeights.lift", ("task.weights.lift",)) == "task.weights.lift"
    assert resolve("task.reward.lift", ("task.weights.lift",)) == "task.weights.lift"
    own = ("task.reward-weights.lift", "task.weights.lift")
    assert resolve("task.rewardWeights.lift", own) == "task.reward-weights.lift"


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


def test_every_command_has_a_log_level(capsys):
    assert parse(RunsConfig, ["logLevel=warning"], prog="deftly runs") == RunsConfig()
    say("unheard")
    parse(RunsConfig, ["logging.logLevel=debug"], prog="deftly runs")
    parse(RunsConfig, [], prog="deftly runs")
    debug(lambda: "heard")
    set_log_level("info")
    debug(lambda: "unheard")
    say("heard")
    assert capsys.readouterr() == ("heard\n", "heard\n")
    for cls in (RunsConfig, TrainArgs):
        with pytest.raises(
            DeftlyError, match="log-level is loud, but it must be one of debug, info"
        ):
            parse(cls, ["logLevel=loud"], prog="deftly x")
    with pytest.raises(SystemExit):
        parse(RunsConfig, ["--help"], prog="deftly runs")
    assert "--log-level {debug,info,warning}" in capsys.readouterr().out
