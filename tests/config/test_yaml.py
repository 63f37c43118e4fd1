import os
from pathlib import Path

import pytest
from cube_settings import CubeArgs, CubeConfig, Weights, read
from hypothesis import given, settings
from hypothesis import strategies as st

from deftly.config import (
    EnvConfig,
    PPOConfig,
    RunsConfig,
    SimConfig,
    TaskConfig,
    TrainArgs,
    field_docs,
    parse,
    to_yaml,
)
from deftly.config.constraints import LARGEST
from deftly.config.yaml import MAX_BYTES
from deftly.errors import DeftlyError


def test_yaml_file_comes_before_flags_wherever_it_stands(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(
        "numEnvs: 8\nenv: {noise: no, latency_ms: [1, 2]}\nseed: -1\ncheckpoint: null\nrender: True\n"
    )
    for argv in (
        ["--config", str(file), "seed=5"],
        ["seed=5", f"--config={file}"],
        ["seed=5", f"config={file}"],
    ):
        config = read(*argv)
        assert (config.env.num_envs, config.train.seed, config.render) == (8, 5, True)
        assert config.env.latency_ms == (1.0, 2.0)
        assert config.env.noise is False
        assert config.policy is None


@pytest.mark.parametrize(
    "text",
    [
        "- a",
        "a: [",
        "3",
        "a: [{b: 1}]",
        "!!python/object/apply:os.getcwd []",
        "[" * 5000,
        "a: " + "[" * 30 + "]" * 30,
        "name: x\nname: y",
        "env: {noise: true}\nenv: {pushes: false}",
        "env: {noise: true, noise: false}",
        "a: &x [1, 2]\nb: *x",
        "a: &x {b: 1}\nc: {<<: *x}",
        "3: 4",
        "train: {hidden: 64,64}",
        "? [1]\n: 2",
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


def test_an_unknown_key_in_yaml_is_named_with_its_file(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("env: {num_env: 3}\n")
    with pytest.raises(
        DeftlyError, match=r"c.yaml: there is no setting env.num_env, did you mean 'env.num-envs'"
    ):
        read("--config", str(file))


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
        reward_weights=st.builds(Weights, st.floats(-LARGEST, LARGEST)),
        ranges=st.fixed_dictionaries({"cube_x": positive, "yaw": positive}),
    ),
    train=st.builds(
        PPOConfig, seed=st.integers(-1, 2**31 - 1), hidden=st.lists(st.integers(1, 999)).map(tuple)
    ),
    runs=st.builds(RunsConfig, root=texts.filter(lambda text: Path(text) != Path("")).map(Path)),
    policy=st.none() | free_text,
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
    assert "  # Control rate, Hz.\n  rate: 50.0\n" in text
    assert "  hidden: [128, 128]\n" in text
    assert field_docs(CubeConfig)["rate"] == "Control rate, Hz."


def test_every_field_is_documented():
    for cls in (SimConfig, EnvConfig, TaskConfig, PPOConfig, RunsConfig, TrainArgs):
        assert set(cls.__dataclass_fields__) == set(field_docs(cls))


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("train:\n  hidden: 64,64\n", "hidden", (64, 64)),
        ("train: {hidden: [64, 32]}", "hidden", (64, 32)),
        ("train: {hidden: 64}", "hidden", (64,)),
        ("train: {hidden: []}", "hidden", ()),
        ("train:\n  # hidden: 64\n", "hidden", (128, 128)),
        ("", "hidden", (128, 128)),
    ],
)
def test_lists_and_empty_sections(text, name, value, tmp_path):
    (tmp_path / "c.yaml").write_text(text)
    assert getattr(read("--config", str(tmp_path / "c.yaml")).train, name) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {gamma: 2}", "train.gamma is 2.0, but it must be above 0 and at most 1"),
        ("train: {epochs: many}", "train.epochs is many, but it must be a whole number"),
        ("env: {latency_ms: 3}", "env.latency-ms is 3, but it must be 2 values, as 1,2"),
        ("train: {gama: 2}", "there is no setting train.gama, did you mean 'train.gamma'?"),
        ("sim: 3", "there is no setting sim, did you mean"),
        ("train: {epochs: null}", "train.epochs is null, but it must be a whole number"),
    ],
)
def test_a_bad_setting_of_a_file_is_told_with_the_file(text, message, tmp_path):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(DeftlyError) as error:
        read("--config", str(tmp_path / "c.yaml"))
    assert str(error.value).startswith(f"{tmp_path / 'c.yaml'}: {message}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("env:\n  noise: true\n  noise: false\n", "'noise' twice, again in line 3"),
        ("[1, 2]", "must be a YAML mapping"),
        ("env: {1: true}", "the key 1 is no word"),
        ("env: [", "line 1"),
        ("x: " + "[" * 3000, "nested too deeply"),
        ("# " + "x" * MAX_BYTES, "at most 1000000 bytes"),
    ],
)
def test_a_file_that_is_no_configuration_is_one_line(text, message, tmp_path):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(DeftlyError, match=message) as error:
        read("--config", str(tmp_path / "c.yaml"))
    assert "c.yaml" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_configuration_is_a_plain_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # which would never end
    with pytest.raises(DeftlyError, match="a pipe"):
        read("--config", str(tmp_path / "pipe"))


def test_saved_settings_are_data():
    saved = {"task": {"tolerance": 0.5, "tolerence": 0.1}}
    with pytest.raises(
        DeftlyError, match=r"^runs/x/config.yaml: there is no setting task.tolerence, did you mean"
    ):
        parse(CubeArgs, [], prog="deftly eval", filed=saved, origin="runs/x/config.yaml")
