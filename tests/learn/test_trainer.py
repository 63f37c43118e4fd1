"""The trainer: callbacks, writers, signals, what a refused training leaves behind."""

import csv
import os
import signal
import sys
import time
from contextlib import ExitStack

import pytest
import torch
from forks import TRAINING, Command, Forks

from deftly.config import PPOConfig
from deftly.errors import DeftlyError
from deftly.learn import checkpoint, log
from deftly.learn.ppo import PPO
from deftly.learn.trainer import Trainer


@pytest.fixture
def trainer(slider, tmp_path):
    """A trainer of the toy task, as a user's own code makes one."""
    learner = PPO(
        slider(4, env={"episode_steps": 3}),
        PPOConfig(steps=4, hidden=(8,), epochs=1, minibatches=1),
    )
    return Trainer(learner.env, learner, tmp_path, "{}\n", max_iterations=6, save_every=100)


def test_callbacks_judge_and_stop(trainer, tmp_path):
    seen = []

    def judge(trainer, metrics):
        seen.append(trainer.iteration)
        metrics["my_metric"] = float(trainer.iteration)
        trainer.keep_best((-abs(trainer.iteration - 2), 0.0))
        if trainer.iteration == 4:
            trainer.stop()

    reported = []
    trainer.callbacks = [judge]
    trainer.writers = [log.Writer(reported.append)]
    trainer.train()
    assert seen == [1, 2, 3, 4] == [row["iteration"] for row in reported]
    assert [row["my_metric"] for row in reported] == [1, 2, 3, 4]
    assert [row["steps"] for row in reported] == [16, 32, 48, 64]
    assert checkpoint.load(tmp_path / "checkpoints/best").iteration == 2
    assert checkpoint.load(tmp_path / "checkpoints/last").iteration == 4


def test_a_quality_that_is_not_a_number_is_never_the_best(trainer):
    assert not trainer.keep_best((float("nan"), 1.0))
    assert trainer.keep_best((0.0, 1.0))
    assert not trainer.keep_best((0.0, 1.0))
    assert trainer.keep_best((0.0, 2.0))


def test_metrics_are_known_by_their_columns(trainer):
    rows = []
    trainer.writers = [log.Writer(rows.append)]
    trainer.train()
    assert set(rows[-1]) <= set(trainer.columns)
    assert {"loss/value", "success", "episode_steps", "reward/near", "broken"} <= set(rows[-1])
    assert all(row["seconds_left"] >= 0 for row in rows)


def test_what_is_not_finite_ends_the_training(trainer):
    trainer.learner.iterate = lambda: {"loss/value": float("inf")}
    with pytest.raises(
        DeftlyError, match=r"loss/value is not finite in iteration 1: lower train\.learning-rate"
    ):
        trainer.train()


def test_where_no_episode_ended_the_last_means_stay(trainer):
    rows = []
    trainer.writers = [log.Writer(rows.append)]
    trainer.train()
    trainer.max_iterations += 1
    trainer.env.episode_steps = 100
    trainer.train()
    assert rows[-1]["return"] == rows[-2]["return"]


def test_the_log_has_a_row_for_each_iteration(trained):
    rows = list(csv.DictReader((trained.run / "metrics.csv").open()))
    assert [row["iteration"] for row in rows] == ["1", "2"]
    assert all(float(row["steps_per_second"]) > 0 for row in rows)


# -------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--env.device", "cuda"), "runs on the CPU"),
        (("--resume", "a", "--init", "b"), "give one of them"),
        (("--until-success", "2"), "at most 1"),
        (("--init", "nowhere"), "nowhere"),
        (("--train.minibatches", "1000"), "has only 32 samples"),
        (("--train.activation", "foo"), "foo"),
        (
            ("--train.algorithm", "pop"),
            r"one of ppo, sac, ddpg, td3, distill, did you mean 'ppo'\?",
        ),
    ],
)
def test_a_refused_training_leaves_no_run(tiny, flags, message):
    with pytest.raises(DeftlyError, match=message):
        tiny.train(1, *flags)
    assert not list(tiny.root.glob("runs*"))


def test_wandb_missing_leaves_no_run(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr(log.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DeftlyError, match="pip install wandb"):
        tiny.train(1, "--wandb", "True")
    assert not list(tiny.root.glob("runs*"))


def test_the_weights_of_another_contract_leave_no_run(tiny, tiny_at, tmp_path):
    other = tiny_at(tmp_path / "other")
    other.train(1, "--task.rate", "10")
    with pytest.raises(DeftlyError, match="rate is"):
        tiny.train(1, "--init", str(other.path()))
    assert not list(tiny.root.glob("runs*"))


# ------------------------------------------------------------- starts and ends


def test_another_seed_gives_other_weights(tiny_at, tmp_path):
    first, second, again = (tiny_at(tmp_path / name) for name in "abc")
    for runner, seed in ((first, "1"), (second, "2"), (again, "1")):
        runner.train(1, "--train.seed", seed)
    name = "actor/layers.0.weight"
    assert torch.equal(first.weights()[name], again.weights()[name])
    assert not torch.equal(first.weights()[name], second.weights()[name])


def test_a_random_seed_is_saved(tiny):
    tiny.train(1, "train.seed=-1")
    assert tiny.checkpoint().config["train"]["seed"] >= 0


def test_init_starts_a_new_run_from_weights(tiny):
    tiny.train(2)
    first = tiny.path()
    tiny.train(1, "--init", str(first), "--train.critic-warmup", "1")
    second = tiny.checkpoint()
    assert first.parent != second.path.parent
    assert second.iteration == 1
    before = checkpoint.load(first).weights
    changed = {
        name.split("/")[0] for name in before if not torch.equal(before[name], second.weights[name])
    }
    assert changed == {"critic"}


def test_missing_the_wanted_success_is_an_exit_code(tiny):
    flags = (
        "--until-success",
        "0.9",
        "--eval-every",
        "1",
        "--eval-episodes",
        "2",
        "--task.goal",
        "0",
    )
    assert tiny.train(1, *flags) == 1


def test_reaching_the_wanted_success_ends_the_training(tiny):
    flags = (
        "--until-success",
        "0.5",
        "--eval-every",
        "1",
        "--eval-episodes",
        "8",
        "--task.goal",
        "9",
    )
    assert tiny.train(50, *flags) == 0
    assert tiny.checkpoint().iteration == 1
    assert tiny.checkpoint("best").numbers["success"] == 1.0


def test_what_came_after_an_older_checkpoint_is_kept(tiny, capsys):
    """A run goes on from an older checkpoint: its newer ones are set aside, and the new ones stay."""
    keep = ("--save-every", "1", "--keep-checkpoints", "3")
    assert tiny.train(4, *keep) == 0
    run = tiny.run
    old = (run / "metrics.csv").read_text()
    weights = (run / "checkpoints/iter_000004/weights.safetensors").read_bytes()
    again = ("--resume", str(run / "checkpoints/iter_000002"), "--train.seed", "1")
    capsys.readouterr()
    assert tiny.train(3, *keep, *again) == 0
    said = capsys.readouterr().err
    aside = run / "until_000004"
    assert "had gone on to iteration 4: its checkpoints after iteration 2" in said
    assert str(aside) in said
    assert (aside / "metrics.csv").read_text() == old
    kept = aside / "checkpoints/iter_000004/weights.safetensors"
    assert kept.read_bytes() == weights
    found = sorted(folder.name for folder in (run / "checkpoints").glob("iter_*"))
    assert found[-1] == "iter_000003"
    assert tiny.checkpoint().iteration == 3
    assert len((run / "metrics.csv").read_text().splitlines()) == 1 + 3
    capsys.readouterr()
    assert tiny.train(4, *keep, "--resume", str(run)) == 0
    assert "had gone on" not in capsys.readouterr().err


@pytest.mark.parametrize("word", ["checkpoint", "training.checkpoint"])
def test_the_older_names_of_resume(tiny, word):
    tiny.train(1)
    assert tiny.train(2, f"{word}=latest") == 0
    assert tiny.checkpoint().iteration == 2


# --------------------------------------------------------------------- signals


@pytest.fixture(scope="module")
def forks():
    forks = Forks(TRAINING)
    yield forks
    forks.close()


@pytest.fixture
def start(forks, tiny):
    """Starts a training that goes on until it is told to end."""
    with ExitStack() as stack:
        nothing = os.open(os.devnull, os.O_RDWR)
        stack.callback(os.close, nothing)

        def begin(*more: str, output: int = nothing) -> Command:
            words = ["train", *tiny.words, "--train.max-iterations", "1000000", *more]
            command = Command(forks, words, tiny.root, (nothing, output, output))
            stack.callback(command.wait)
            stack.callback(command.kill)
            return command

        yield begin


def wait_for(condition, command: Command, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert command.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)


def rows_of(tiny) -> int:
    return sum(file.read_text().count("\n") for file in tiny.root.glob("runs_all/*/metrics.csv"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_training_saved(start, tiny, number):
    command = start("--save-every", "1000000")
    wait_for(lambda: rows_of(tiny) > 2, command)
    command.send_signal(number)
    assert command.wait() == 128 + number
    assert tiny.checkpoint().iteration >= 2


@pytest.mark.parametrize("level", ["info", "debug"])
def test_a_terminal_that_is_closed_does_not_lose_the_training(start, tiny, level):
    """What is printed then fails (EIO), and the training goes on; the hang-up ends it, saved."""
    ours, theirs = os.openpty()
    words = ("--log-level", level, "--save-every", "1000000")
    command = start(*words, output=theirs)
    os.close(theirs)
    wait_for(lambda: rows_of(tiny) > 2, command)
    os.close(ours)
    seen = rows_of(tiny)
    wait_for(lambda: rows_of(tiny) > seen + 2, command)
    command.send_signal(signal.SIGHUP)
    command.wait()
    assert tiny.checkpoint().iteration > seen


def test_kill_9_while_checkpoints_are_written(start, tiny):
    """Wherever the kill falls, the newest checkpoint that is found loads and resumes, and no scratch counts."""
    command = start("--save-every", "1", "--keep-checkpoints", "1")
    wait_for(lambda: rows_of(tiny) > 3, command)
    command.kill()
    assert command.wait() == -signal.SIGKILL
    found = tiny.checkpoint()
    assert tiny.train(found.iteration + 1, "--resume", "latest") == 0
    assert tiny.checkpoint().iteration == found.iteration + 1


def test_deterministic_algorithms_are_asked_for(tiny, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        assert tiny.train(1, "training.torch_deterministic=true") == 0
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
