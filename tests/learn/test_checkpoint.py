"""Checkpoints: what they hold, what is refused in one line, what survives a crash."""

import json
import os
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from deftly.config import EnvConfig, TaskConfig
from deftly.env import Env
from deftly.errors import DeftlyError
from deftly.learn import checkpoint, trainer
from deftly.tasks import load


@pytest.fixture
def copy(trained, tmp_path):
    """A checkpoint that a test may damage."""
    return Path(shutil.copytree(trained.path(), tmp_path / "copy"))


def refused(folder: Path) -> str:
    with pytest.raises(DeftlyError) as error:
        checkpoint.load(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def edit(folder: Path, name: str, text: str) -> None:
    """Change a text of a checkpoint as somebody would who binds it to the weights again."""
    (folder / name).write_text(text)
    with safe_open(folder / "weights.safetensors", "pt") as file:
        metadata = file.metadata()
    metadata[name] = checkpoint._digest(text)
    save_file(
        load_file(folder / "weights.safetensors"), folder / "weights.safetensors", metadata=metadata
    )


def test_nothing_in_it_is_pickled(trained):
    names = sorted(path.name for path in trained.path().iterdir())
    assert names == [
        "checkpoint.json",
        "config.yaml",
        "contract.json",
        "state.safetensors",
        "weights.safetensors",
    ]


def test_it_says_what_it_is(trained):
    about = json.loads((trained.path() / "checkpoint.json").read_text())
    assert about["schema"] == "deftly.checkpoint/2"
    assert about["task"] == {"name": "slider", "source": "slider.py"}
    assert about["algorithm"] == "ppo"
    assert about["networks"]["actor"]["hidden"] == [8]
    assert (about["iteration"], about["steps"], about["ranks"]) == (2, 64, 1)
    assert about["numbers"]["learning_rate"] > 0


def test_a_policy_is_rebuilt_without_the_settings(trained, copy):
    """The training's configuration may say anything: the networks are described in the checkpoint."""
    policy = checkpoint.load(copy).policy()
    edit(copy, "config.yaml", "train: {hidden: [3], activation: foo}\n")
    again = checkpoint.load(copy).policy()
    x = torch.randn(5, policy.actor.spec.input_size)
    assert torch.equal(policy(x), again(x))


def test_the_policy_acts_in_the_environment(trained):
    found = trained.checkpoint()
    cls = load(str(trained.task))
    env = Env(cls(cls.Config()), EnvConfig(num_envs=3))
    obs = {name: value for name, value in env.obs.items() if name != "critic"}
    assert found.policy()(obs).shape == (3, env.contract.action_size)


@pytest.mark.parametrize(
    "part", ["weights.safetensors", "checkpoint.json", "contract.json", "config.yaml"]
)
@pytest.mark.parametrize(
    "damage", ["half", "empty", "missing", "folder", "fifo", "endless", "binary"]
)
def test_a_damaged_checkpoint_is_refused_in_one_line(copy, part, damage):
    file = copy / part
    content = file.read_bytes()
    file.unlink()
    if damage == "half":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "folder":
        file.mkdir()
    elif damage == "fifo":
        os.mkfifo(file)
    elif damage == "endless":
        file.symlink_to("/dev/zero")
    elif damage == "binary":
        file.write_bytes(bytes(range(256)) * 10)
    assert str(copy) in refused(copy)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("checkpoint.json", "[" * 100_000),
        ("checkpoint.json", "[]"),
        ("checkpoint.json", '"checkpoint"'),
        ("checkpoint.json", '{"networks": 3}'),
        ("config.yaml", "[" * 5_000),
        ("config.yaml", "3\n"),
        ("config.yaml", "!!python/object/apply:os.system [id]\n"),
        ("contract.json", "{}"),
        ("contract.json", "[" * 100_000),
    ],
)
def test_hostile_texts_are_refused_in_one_line(copy, name, text):
    edit(copy, name, text)
    refused(copy)


@pytest.mark.parametrize(
    "change",
    [
        {"iteration": -1},
        {"iteration": 1.5},
        {"steps": 10**30},
        {"ranks": True},
        {"numbers": {"success": "high"}},
        {"numbers": []},
        {"task": None},
        {"task": {"name": 5, "source": "x"}},
        {"task": {"name": "x" * 1000, "source": "x"}},
        {"networks": {"actor": {"kind": "mlp"}}},
        {"networks": {str(i): {} for i in range(1000)}},
    ],
)
def test_a_description_that_is_none_is_refused_in_one_line(copy, change):
    about = json.loads((copy / "checkpoint.json").read_text())
    edit(copy, "checkpoint.json", json.dumps({**about, **change}))
    refused(copy)


def test_a_huge_network_is_described_but_not_built(copy):
    about = json.loads((copy / "checkpoint.json").read_text())
    about["networks"]["actor"]["hidden"] = [60_000] * 20
    edit(copy, "checkpoint.json", json.dumps(about))
    with pytest.raises(DeftlyError, match="do not fit its description"):
        checkpoint.load(copy).policy()


def test_text_from_a_checkpoint_brings_no_escapes(copy):
    about = json.loads((copy / "checkpoint.json").read_text())
    about["task"]["name"] = "slider\x1b[2J\nrm"
    edit(copy, "checkpoint.json", json.dumps(about))
    assert "\x1b" not in checkpoint.load(copy).task
    assert "\n" not in checkpoint.load(copy).task


def test_what_was_changed_after_the_training_is_refused(copy):
    (copy / "config.yaml").write_text("task: {}\n")
    assert "is not what was saved with the weights" in refused(copy)


def test_a_checkpoint_of_an_older_deftly_is_refused_by_name(copy):
    weights = load_file(copy / "weights.safetensors")
    save_file(weights, copy / "weights.safetensors", metadata={"schema": "deftly.checkpoint/1"})
    assert "an older Deftly made it: train again" in refused(copy)


def header(tensors) -> bytes:
    text = json.dumps(tensors).encode()
    return len(text).to_bytes(8, "little") + text


EMPTY = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
HEADERS = {
    "strides beyond all numbers": ({"a": {**EMPTY, "shape": [0, 2**63 - 1, 8]}}, "overflowed"),
    "tensors without end": ({f"a{i}": EMPTY for i in range(20_000)}, "at most 1048576 are read"),
    "another type": ({"a": {**EMPTY, "dtype": "C64"}}, "safetensors"),
    "a list": ([1], "invalid"),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_a_hostile_header_of_weights_is_refused_in_one_line(copy, kind):
    tensors, reason = HEADERS[kind]
    (copy / "weights.safetensors").write_bytes(header(tensors))
    assert reason in refused(copy)


def test_a_foreign_file_is_no_checkpoint(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "weights.safetensors")
    assert "truncated or no safetensors" in refused(tmp_path)
    assert "deftly runs" in refused(tmp_path / "nothing")


def test_the_shipped_checkpoints_are_read():
    for name in ("jaka-pick-cube", "leap-right-cube-rotate"):
        path = checkpoint.shipped(name)
        assert path is not None
        found = checkpoint.load(path)
        assert found.is_of(load(name))
        assert found.label == "shipped"
        size, actions = found.networks["actor"].input_size, found.contract.action_size
        assert found.policy()(torch.zeros(2, size)).shape == (2, actions)


# -------------------------------------------------------------------- settings


@dataclass(frozen=True)
class Weights:
    near: float = 1.0


@dataclass(frozen=True)
class Renamed(TaskConfig):
    """The settings of the toy task, of which some were renamed since."""

    goal_size: float = 0.05
    weights: Weights = field(default_factory=Weights)


def test_a_renamed_setting_is_named_with_its_file(trained):
    found = trained.checkpoint()
    unknown = found.unknown_settings("task", Renamed)
    assert {"task.goal", "task.weights.moved"} <= set(unknown)
    with pytest.raises(
        DeftlyError,
        match=r"config\.yaml sets task\.goal, which Renamed does not have .*'goal_size'",
    ):
        replace(found, config={"task": {"goal": 1}}).require_settings("task", Renamed)
    known = found.known_settings("task", Renamed)
    assert "goal" not in known
    assert known["weights"] == {"near": 1.0}


def test_a_task_of_the_same_name_elsewhere_is_another_task(trained, tmp_path):
    found = trained.checkpoint()
    assert found.is_of(load(str(trained.task)))
    other = tmp_path / "other.py"
    other.write_text(trained.task.read_text())
    assert not found.is_of(load(str(other)))


# ---------------------------------------------------------------------- writing


def test_a_full_disk_keeps_what_was_there(tiny, monkeypatch):
    tiny.train(1)
    good = tiny.weights()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(DeftlyError, match="No space left on device; what was there is kept"):
        tiny.train(2, "--resume", "latest")
    monkeypatch.undo()
    assert all(torch.equal(value, good[name]) for name, value in tiny.weights().items())
    assert not list(tiny.run.glob("checkpoints/.tmp*"))


def test_only_the_wanted_checkpoints_are_kept(tiny):
    tiny.train(
        8,
        "--save-every",
        "1",
        "--keep-checkpoints",
        "2",
        "--eval-every",
        "3",
        "--eval-episodes",
        "2",
    )
    names = {path.name for path in tiny.run.glob("checkpoints/iter_*")}
    best = tiny.path("best").resolve().name
    assert names == {"iter_000006", "iter_000007", "iter_000008", best}
    assert tiny.path("last").resolve().name == "iter_000008"


def test_a_large_training_state_stays_in_the_newest_checkpoint_alone(tiny, monkeypatch):
    monkeypatch.setattr(trainer, "LARGE_STATE", 1)
    tiny.train(3, "--save-every", "1")
    with_state = {
        path.parent.name for path in tiny.run.glob("checkpoints/iter_*/state.safetensors")
    }
    assert with_state == {"iter_000003"}
    policies = {
        path.parent.name for path in tiny.run.glob("checkpoints/iter_*/weights.safetensors")
    }
    assert policies == {"iter_000001", "iter_000002", "iter_000003"}
    with pytest.raises(DeftlyError, match=r"no training state: resume the run's newest checkpoint"):
        tiny.train(4, "--resume", str(tiny.run / "checkpoints/iter_000002"))
    assert tiny.train(4, "--resume", str(tiny.run)) == 0
