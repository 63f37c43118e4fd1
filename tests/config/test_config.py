from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deftly.config import (
    ALIASES,
    EnvConfig,
    PPOConfig,
    RunsConfig,
    SimConfig,
    TaskConfig,
    field_docs,
    parse,
    rewrite,
    split_task,
    suggest,
    to_yaml,
    with_task,
)
from deftly.errors import DeftlyError


@dataclass(frozen=True)
class Weights:
    """How much each reward term counts."""

    object_height: float = 1.0
    """Reward per metre of lift."""


@dataclass(frozen=True)
class CubeConfig(TaskConfig):
    """Settings of a made-up task."""

    rate: float = 50.0
    reward_weights: Weights = Weights()
    """Reward weights."""
    ranges: dict[str, float] = field(default_factory=lambda: {"cube_x": 0.1, "yaw": 3.0})
    """Half width of each reset range, m or rad."""


@dataclass(frozen=True)
class Args:
    """A stage with every section."""

    sim: SimConfig = field(default_factory=SimConfig)
    """Physics."""
    env: EnvConfig = field(default_factory=EnvConfig)
    """Environments."""
    task: TaskConfig = field(default_factory=TaskConfig)
    """The task's own settings."""
    train: PPOConfig = field(default_factory=PPOConfig)
    """Learning."""
    runs: RunsConfig = field(default_factory=RunsConfig)
    """Run folders."""
    checkpoint: str | None = None
    """Where to start from."""
    render: bool | None = None
    """Open a viewer; unset: only in test mode."""
    test: bool = False
    """Evaluate instead of training."""
    reload: float = 0.0
    """Seconds between reloads."""
    video: bool = False
    """Record a video."""
    log_level: str = "info"
    """How much to print."""
    name: str | None = None
    """Name of the run."""


CubeArgs = with_task(Args, CubeConfig)


def read(*argv: str, cls: type = CubeArgs):
    return parse(cls, argv, prog="deftly train")


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
        ("training.checkpoint=latest", None, "checkpoint", "latest"),
        ("checkpoint=latest", None, "checkpoint", "latest"),
        ("checkpoint=null", None, "checkpoint", None),
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


def test_every_alias_reaches_a_field():
    values = {"device": "cpu", "env.latency-ms": "1,2", "log-level": "info", "name": "x", "checkpoint": "x"}
    for old, new in ALIASES.items():
        boolean = new in ("test", "render", "video", "runs.workspace")
        read(f"{old}={values.get(new, 'cpu' if 'device' in new else 'true' if boolean else '5')}")


def test_a_real_field_wins_over_an_alias():
    @dataclass(frozen=True)
    class Evaluate:
        seed: int = 0
        """Seed of the episodes."""

    assert read("seed=9", cls=Evaluate).seed == 9


def test_rewrite_leaves_real_flags_alone():
    words = ["--env.num-envs", "4", "--name=a=b", "-h"]
    assert rewrite(words, {}) == words
    assert rewrite(["name=--odd", "a.b=1"], {}) == ["--name=--odd", "--a.b", "1"]


@pytest.mark.parametrize(
    ("argv", "texts"),
    [
        (["env.num_env=3"], ["--env.num-env", "--env.num-envs"]),
        (["--env.num-env", "3"], ["--env.num-envs"]),
        (["task.ranges.cube_z=1"], ["task.ranges.cube"]),
        (["training.torch_deterministic=true"], ["torch-deterministic"]),
        (["env.num_envs=many"], ["env.num-envs", "many"]),
        (["sim.preset=quick"], ["sim.preset", "fast"]),
        (["stray"], ["stray"]),
    ],
)
def test_a_wrong_key_or_type_exits_2_and_names_it(argv, texts, capsys):
    with pytest.raises(SystemExit) as stop:
        read(*argv)
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert all(text in message for text in texts)


def test_an_alias_without_a_target_is_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        read("numEnvs=3", cls=RunsConfig)
    assert stop.value.code == 2
    assert "--env.num-envs" in capsys.readouterr().err


@pytest.mark.parametrize(
    "word",
    [
        "env.num_envs=0",
        "env.episode_steps=-1",
        "env.latency_ms=5,1",
        "env.device=tpu",
        "sim.threads=-1",
        "train.gamma=0",
        "train.gamma=1.01",
        "train.gamma=nan",
        "train.lam=-0.1",
        "train.seed=-2",
        "train.epochs=0",
        "train.hidden=[0]",
        "train.learning_rate=0",
        "train.entropy=-1",
        "task.rate=0",
        "task.rate=inf",
        "task.episode_steps=0",
        "runs.max_train_runs=0",
        "runs.max_test_runs=0",
    ],
)
def test_values_out_of_range_are_one_line_that_names_the_flag(word):
    with pytest.raises(DeftlyError) as error:
        read(word)
    assert word.partition("=")[0].replace("_", "-") in str(error.value)
    assert "must be" in str(error.value)
    assert "\n" not in str(error.value)


def test_help_shows_inherited_and_task_fields(capsys):
    with pytest.raises(SystemExit) as stop:
        read("--help")
    assert stop.value.code in (0, None)
    text = capsys.readouterr().out
    for part in (
        "--task.rate",
        "Control frequency, Hz.",
        "50.0",
        "Reward per metre of lift.",
        "Environments stepped",
    ):
        assert part in text


def test_yaml_file_comes_before_flags_wherever_it_stands(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("numEnvs: 8\nenv: {noise: no, latency_ms: [1, 2]}\nseed: -1\ncheckpoint: null\nrender: True\n")
    for argv in (
        ["--config", str(file), "seed=5"],
        ["seed=5", f"--config={file}"],
        ["seed=5", f"config={file}"],
    ):
        config = read(*argv)
        assert (config.env.num_envs, config.train.seed, config.render) == (8, 5, True)
        assert config.env.latency_ms == (1.0, 2.0)
        assert config.env.noise is False
        assert config.checkpoint is None


@pytest.mark.parametrize(
    "text",
    [
        "- a",
        "a: [",
        "3",
        "a: [{b: 1}]",
        "!!python/object/apply:os.getcwd []",
        "[" * 5000,
    ],
)
def test_bad_yaml_is_one_line(text, tmp_path):
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(DeftlyError) as error:
        read("--config", str(file))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("argv", [["--config"], ["--config", "absent.yaml"], ["--config", "."]])
def test_a_missing_yaml_file_is_one_line(argv):
    with pytest.raises(DeftlyError, match=r"--config needs a YAML file"):
        read(*argv)


def test_an_unknown_key_in_yaml_exits_2(tmp_path, capsys):
    file = tmp_path / "c.yaml"
    file.write_text("env: {num_env: 3}\n")
    with pytest.raises(SystemExit) as stop:
        read("--config", str(file))
    assert stop.value.code == 2
    assert "--env.num-envs" in capsys.readouterr().err


positive = st.floats(1e-9, 1e9)
texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
free_text = texts.filter(lambda text: text.lower() not in ("none", "null"))
configs = st.builds(
    CubeArgs,
    env=st.builds(
        EnvConfig,
        num_envs=st.integers(1, 10**6),
        noise=st.booleans(),
        latency_ms=st.tuples(st.floats(0, 10), st.floats(10, 1e4)),
    ),
    task=st.builds(
        CubeConfig,
        rate=positive,
        reward_weights=st.builds(Weights, st.floats(allow_nan=False)),
        ranges=st.fixed_dictionaries({"cube_x": positive, "yaw": positive}),
    ),
    train=st.builds(PPOConfig, seed=st.integers(-1), hidden=st.lists(st.integers(1, 999)).map(tuple)),
    runs=st.builds(RunsConfig, root=texts.filter(lambda text: Path(text) != Path("")).map(Path)),
    checkpoint=st.none() | free_text,
    render=st.sampled_from([None, True, False]),
    log_level=texts,
)


@given(config=configs)
@settings(max_examples=40, deadline=None)
def test_yaml_reads_back_into_an_equal_configuration(config, tmp_path_factory):
    file = tmp_path_factory.mktemp("yaml") / "config.yaml"
    file.write_text(to_yaml(config))
    assert read("--config", str(file)) == config


def test_yaml_carries_the_documentation():
    text = to_yaml(CubeArgs())
    assert "  # Control frequency, Hz.\n  rate: 50.0\n" in text
    assert "  hidden: [128, 128]\n" in text
    assert field_docs(CubeConfig)["rate"] == "Control frequency, Hz."


def test_every_field_is_documented():
    for cls in (SimConfig, EnvConfig, TaskConfig, PPOConfig, RunsConfig):
        assert set(cls.__dataclass_fields__) == set(field_docs(cls))


def test_split_task():
    assert split_task(["cube", "seed=1"]) == ("cube", ["seed=1"])
    assert split_task(["seed=1", "task=cube"]) == ("cube", ["seed=1"])
    assert split_task(["--help"]) == (None, ["--help"])
    assert split_task(["task.rate=3"]) == (None, ["task.rate=3"])
    assert split_task([]) == (None, [])


def test_suggest():
    assert suggest("jaka-pick", ["jaka-pick-cube", "leap"]) == ", did you mean 'jaka-pick-cube'?"
    assert suggest("zzz", ["leap"]) == ""
