"""Checkpoints of fine-tuned models, as far as they need no LeRobot: read, bound by hashes, refused in a line."""

import json

import numpy as np
import pytest
import torch

from deftly.errors import DeftlyError
from deftly.evaluate import source
from deftly.tasks import load
from deftly.vla import checkpoint, statistics
from deftly.vla.features import ACTION, IMAGES, OBS_STATE, seen_contract
from deftly.vla.models import Model

ABOUT = {
    "task": "jaka-pick-cube",
    "model": "act",
    "base": "",
    "lora": 0,
    "layout": "contract",
    "executed": 2,
    "settings": {},
    "step": 7,
}


class Settings:
    def save_pretrained(self, folder):
        (folder / "config.json").write_text("{}")


@pytest.fixture(scope="module")
def contract():
    cls = load("jaka-pick-cube")
    own = cls(cls.Config()).contract()
    return seen_contract(own, ("front", "wrist"), 32, "lift it")


@pytest.fixture
def folder(contract, tmp_path):
    rows = torch.linspace(-1, 1, 70).reshape(10, 7).numpy()
    looks = statistics.of_images(np.zeros((2, 4, 4, 3), np.uint8))
    known = {
        OBS_STATE: statistics.of_numbers(rows, rows[0] * 0 + 1),
        ACTION: statistics.of_numbers(rows[:, :4], rows[0, :4] * 0 + 1),
        **{IMAGES + name: looks for name in ("front", "wrist")},
    }
    model = Model("act", Settings(), torch.nn.Linear(2, 3), None, None)
    about = {**ABOUT, "statistics_sha256": statistics.digest(known)}
    checkpoint.write(
        tmp_path / "c", model, contract, known, about, {"optimizer/0/step": torch.ones(1)}
    )
    return tmp_path / "c"


def test_what_was_written_is_read(folder, contract):
    found = checkpoint.load(folder)
    assert (found.task, found.iteration, found.contract) == ("jaka-pick-cube", 7, contract)
    assert found.statistics[ACTION]["max"] == pytest.approx([0.912, 0.941, 0.971, 1.0], abs=0.1)
    model = Model("act", None, torch.nn.Linear(2, 3), None, None)
    found.load_into(model)
    assert torch.equal(
        model.network.weight, checkpoint.read_tensors(folder / checkpoint.WEIGHTS)["weight"]
    )
    with pytest.raises(DeftlyError, match=r"the weights are not those of its config.json"):
        found.load_into(Model("act", None, torch.nn.Linear(3, 3), None, None))


@pytest.mark.parametrize("name", checkpoint.BOUND)
def test_a_file_that_was_changed_or_is_gone_is_refused(folder, name):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content + b" ")
    with pytest.raises(DeftlyError, match=rf"{name} is not the file that vla.json names"):
        checkpoint.load(folder)
    (folder / name).unlink()
    what = "normalization statistics" if name == checkpoint.STATISTICS else name
    with pytest.raises(DeftlyError, match=f"has no {what}"):
        checkpoint.load(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"schema": "deftly.vla/9"},
        {"executed": 0},
        {"executed": "2"},
        {"files": {}},
        {"layout": "other"},
        {"task": None},
        {"prompts": [1]},
    ],
)
def test_a_description_of_something_else_is_refused(folder, change):
    about = json.loads((folder / "vla.json").read_text())
    (folder / "vla.json").write_text(json.dumps({**about, **change}))
    with pytest.raises(DeftlyError, match=r"vla.json is (not of the schema|damaged)"):
        checkpoint.load(folder)


def renamed(folder, file, tree):
    """Write a file of a checkpoint anew, and its hash, as somebody does who mixes two checkpoints."""
    (folder / file).write_text(json.dumps(tree))
    about = json.loads((folder / "vla.json").read_text())
    about["files"][file] = checkpoint.sha256(folder / file, "a file")
    (folder / "vla.json").write_text(json.dumps(about))


def test_statistics_of_others_or_without_an_image_are_refused(folder):
    """What lacks some, LeRobot does not normalize, without a word."""
    tree = json.loads((folder / checkpoint.STATISTICS).read_text())
    tree[ACTION]["mean"][0] += 1.0
    renamed(folder, checkpoint.STATISTICS, tree)
    with pytest.raises(DeftlyError, match=r"statistics.json are not the ones that vla.json names"):
        checkpoint.load(folder)
    del tree[IMAGES + "wrist"]
    renamed(folder, checkpoint.STATISTICS, tree)
    with pytest.raises(DeftlyError, match=r"'observation.images.wrist' is missing"):
        checkpoint.load(folder)


def test_the_state_of_an_optimizer_is_the_checkpoints_own(folder):
    found = checkpoint.load(folder)
    assert found.optimizer_state().keys() == {"optimizer/0/step"}
    content = (folder / checkpoint.STATE).read_bytes()
    (folder / checkpoint.STATE).write_bytes(content[:-1] + b"x")
    with pytest.raises(DeftlyError, match=r"state.safetensors is not the file that vla.json names"):
        found.optimizer_state()


def test_what_a_server_has_is_seen_as_by_the_model_whose_settings_are_used(folder, contract):
    like = source.resolve(str(folder), None, source.RunsConfig())
    served = source.PolicySource("endpoint", "ws://127.0.0.1:8000", None, like=like)
    cls = load("jaka-pick-cube")
    assert served.seen_by(cls(cls.Config())).contract() == contract


def test_a_safetensors_file_that_is_cut_off_is_refused(folder):
    file = folder / checkpoint.WEIGHTS
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(DeftlyError, match="truncated or no safetensors file"):
        checkpoint.read_tensors(file)


def test_the_words_after_policy_find_it_and_say_what_it_is(folder, tmp_path, monkeypatch):
    found = source.resolve(str(folder), None, source.RunsConfig())
    assert found.line == f"policy: model {folder} (iteration 7)"
    assert found.kind == "model"
    assert len(found.sha256) == 64
    (tmp_path / "run").mkdir()
    folder.rename(tmp_path / "run" / "checkpoint")
    assert source.resolve(str(tmp_path / "run"), None, source.RunsConfig()).kind == "model"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    moved = source.resolve(str(tmp_path / "run"), None, source.RunsConfig())
    with pytest.raises(DeftlyError, match="make vla"):
        moved.open()
    with pytest.raises(DeftlyError, match=r"train needs a checkpoint, and .* is a model"):
        moved.checkpoint("train")
    with pytest.raises(DeftlyError, match="leave out --stochastic"):
        moved.open(stochastic=True)


def test_a_model_of_another_task_is_refused(folder):
    found = source.resolve(str(folder), None, source.RunsConfig())
    cls = load("panda-pick-place")
    task = found.seen_by(cls(cls.Config()))
    with pytest.raises(
        DeftlyError, match=r"is a policy of jaka-pick-cube .* not of panda-pick-place"
    ):
        found.require(task.contract(), task.name)


def test_settings_of_another_task_are_not_taken_for_this_ones(folder):
    """So that what is wrong is said: the task, not a setting that it does not have."""
    about = json.loads((folder / "vla.json").read_text())
    settings = {"task": {"cube_half": 0.02}, "sim": {"preset": "fine"}}
    (folder / "vla.json").write_text(json.dumps({**about, "settings": settings}))
    found = source.resolve(str(folder), None, source.RunsConfig())
    assert found.settings(load("jaka-pick-cube")) == settings
    assert found.settings(load("panda-pick-place")) == {"sim": {"preset": "fine"}}


def test_its_task_is_seen_through_its_cameras(folder, contract):
    found = source.resolve(str(folder), None, source.RunsConfig())
    cls = load("jaka-pick-cube")
    task = found.seen_by(cls(cls.Config()))
    found.require(task.contract(), task.name)
    assert task.contract() == contract
    assert isinstance(task, cls)
    other = found.seen_by
    with pytest.raises(DeftlyError, match="made under another contract"):
        other(cls(cls.Config(speed=0.5)))
