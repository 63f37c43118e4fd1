"""A training resumed is the training uninterrupted, bit for bit; what cannot be resumed says why."""

import csv
import errno
import os
import shutil
from pathlib import Path

import pytest
import torch

from deftly import workspace
from deftly.commands.train import main
from deftly.config import ALGORITHMS
from deftly.errors import DeftlyError
from deftly.learn import checkpoint
from deftly.learn.learner import make_learner
from deftly.learn.trainer import Trainer

CURRICULUM = Path(__file__).parents[1] / "assets/curriculum.py"
NOISY = ("--env.latency-ms", "0", "50", "--task.noise.gaussian", "0.01")


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_resume_is_bit_identical(tiny_at, tmp_path):
    flags = ("--eval-every", "4", "--eval-episodes", "4", "--save-every", "5", *NOISY)
    whole, parts = (tiny_at(tmp_path / name, CURRICULUM) for name in ("whole", "parts"))
    assert whole.train(10, *flags) == 0
    assert parts.train(5, *flags) == 0
    assert not same(whole.weights(), parts.weights())
    assert parts.train(10, "--resume", "latest") == 0
    assert same(whole.weights(), parts.weights())
    assert same(whole.checkpoint().state(), parts.checkpoint().state())
    rows = list(csv.DictReader((parts.run / "metrics.csv").open()))
    assert [int(row["iteration"]) for row in rows] == list(range(1, 11))


def test_another_length_of_rollouts_counts_steps_on(tiny):
    tiny.train(2)
    assert tiny.train(3, "--resume", "latest", "--train.steps", "8") == 0
    rows = list(csv.DictReader((tiny.run / "metrics.csv").open()))
    assert [int(float(row["steps"])) for row in rows] == [32, 64, 128]
    assert tiny.checkpoint().steps == 128


def test_a_finished_training_says_so(tiny, capsys):
    tiny.train(2)
    before = (tiny.run / "metrics.csv").read_bytes()
    assert tiny.train(2, "--resume", "latest") == 0
    said = capsys.readouterr().out
    assert "is at iteration 2, and train.max-iterations is 2: nothing left to do" in said
    assert said.count("\n") == 1
    assert (tiny.run / "metrics.csv").read_bytes() == before


def test_two_resumes_of_one_run(tiny):
    tiny.train(1)
    with workspace.lock(tiny.run), pytest.raises(DeftlyError, match="is being written by"):
        tiny.train(2, "--resume", "latest")
    assert tiny.train(2, "--resume", "latest") == 0


def test_a_copy_with_its_links_followed(tiny):
    """`cp -rL`, or a zip: `last` and `best` are folders there."""
    tiny.train(2, "--eval-every", "1", "--eval-episodes", "2", "--save-every", "1")
    copy = tiny.root / "elsewhere"
    shutil.copytree(tiny.run, copy, symlinks=False)
    assert not (copy / "checkpoints/last").is_symlink()
    assert tiny.train(4, "--resume", str(copy)) == 0
    found = checkpoint.load(
        workspace.find_checkpoint(f"{copy}:last", None, workspace.RunsConfig(root=tiny.root))
    )
    assert found.iteration == 4
    assert found.path.parents[1] == copy


def test_where_links_are_forbidden(tiny, monkeypatch):
    def forbidden(*args, **kwargs):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "symlink", forbidden)
    flags = (
        "--eval-every",
        "1",
        "--eval-episodes",
        "2",
        "--save-every",
        "1",
        "--keep-checkpoints",
        "1",
    )
    assert tiny.train(3, *flags) == 0
    assert tiny.train(4, "--resume", "latest") == 0
    assert tiny.checkpoint().iteration == 4
    assert tiny.checkpoint("best").numbers["best_iteration"] == tiny.checkpoint("best").iteration
    assert not any(path.is_symlink() for path in tiny.root.rglob("*"))


def test_without_a_state_there_is_no_resume(tiny):
    tiny.train(1)
    (tiny.path() / "state.safetensors").unlink()
    with pytest.raises(DeftlyError, match="no training state"):
        tiny.train(2, "--resume", "latest")


def test_a_truncated_state_is_one_line(tiny):
    tiny.train(1)
    file = tiny.path() / "state.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(DeftlyError, match="truncated or no safetensors") as error:
        tiny.train(2, "--resume", "latest")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--task.rate", "10"), r"rate is 20\.0 there, 10\.0 here|rate is 10\.0 there, 20\.0 here"),
        (("--env.num-envs", "4"), "use the saved configuration"),
        (("--train.hidden", "9"), "has hidden 8, this training 9: leave out --train.hidden"),
        (("--train.activation", "relu"), "has activation elu, this training relu"),
    ],
)
def test_other_settings_that_are_another_training(tiny, flags, message):
    tiny.train(1)
    before = (tiny.run / "metrics.csv").read_bytes(), (tiny.run / "config.yaml").read_bytes()
    with pytest.raises(DeftlyError, match=message):
        tiny.train(2, "--resume", "latest", *flags)
    assert (
        (tiny.run / "metrics.csv").read_bytes(),
        (tiny.run / "config.yaml").read_bytes(),
    ) == before


def test_a_renamed_field_of_the_task_is_named(tiny_at, tmp_path):
    task = tmp_path / "mine.py"
    text = tiny_at(tmp_path).task.read_text()
    task.write_text(text)
    first = tiny_at(tmp_path, task)
    first.train(1)
    renamed = tmp_path / "later" / "mine.py"
    renamed.parent.mkdir()
    renamed.write_text(text.replace("goal", "tolerance"))
    with pytest.raises(
        DeftlyError, match=r"config\.yaml sets task\.goal, which SliderConfig does not have"
    ):
        tiny_at(tmp_path, renamed).train(2, "--resume", "latest")


def test_typed_settings_are_judged_beside_those_of_the_run(tiny):
    """And not beside the task's: 64 environments need a buffer of more than 64."""
    always = (str(tiny.task), "--train.algorithm", "sac", "--runs.root", str(tiny.root))
    small = ("--env.num-envs", "4", "--train.batch", "8", "--train.learning-starts", "10")
    quiet = ("--eval-every", "0", "--tensorboard", "False", "--sim.threads", "1")
    first = ("--train.hidden", "8", "--train.buffer", "64", "--train.max-iterations", "1")
    assert main([*always, *small, *quiet, *first]) == 0
    again = (*always, "--resume", str(tiny.run), "--train.max-iterations", "2")
    assert main([*again, "--train.buffer", "64", "--train.n-step", "2"]) == 0
    with pytest.raises(DeftlyError, match=r"train\.buffer is 64, but must hold at least 400"):
        main([*again, "--train.max-iterations", "3", "--train.n-step", "99"])


class Saved:
    """As much of a checkpoint as a trainer resumes from, with a state that anybody may have written."""

    path, iteration, steps, numbers = Path("saved"), 1, 64, {}

    def __init__(self, state):
        self._state = state

    def state(self, rank, size):
        return self._state

    def load_into(self, networks):
        pass


@pytest.mark.parametrize("algorithm", ["ppo", "sac", "td3"])
def test_a_state_of_other_shapes_or_types_is_refused_whatever_of_it_is_changed(
    slider, algorithm, tmp_path
):
    small = {"steps": 4, "hidden": (8,)}
    if algorithm != "ppo":
        small |= {"batch": 8, "buffer": 64, "learning_starts": 8}

    def trainer():
        env = slider(4, env={"latency_ms": (0.0, 50.0)})
        return Trainer(env, make_learner(env, ALGORITHMS[algorithm](**small)), tmp_path, "")

    first = trainer()
    first.env.state.remember("late", torch.ones(4, dtype=torch.bool), 1.0)
    first.learner.iterate()
    first.learner.iterate()
    state = {name: value.clone() for name, value in first._state().items()}
    trainer().resume(Saved(state))
    other = trainer()
    own = other._state().keys()
    for name, value in state.items():
        wrong = [torch.zeros((3, 5, *value.shape), dtype=value.dtype)]
        if name in own:
            wrong.append(value.to(torch.float16))
        for changed in wrong:
            with pytest.raises(DeftlyError) as error:
                other.resume(Saved({**state, name: changed}))
            assert "\n" not in str(error.value), name
