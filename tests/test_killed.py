"""Kill -9 at any time: what is left of a training, a bundle or a recording is whole, or named as incomplete."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from deftly import files, workspace
from deftly.config import RunsConfig
from deftly.control import log
from deftly.errors import DeftlyError
from deftly.learn import checkpoint
from deftly.policy import bundle

ASSETS = Path(__file__).parent / "assets"
TASK = str(ASSETS / "rail.py")
TINY = (
    *("--env.num-envs", "4", "--env.episode-steps", "4", "--sim.threads", "1", "--eval-every", "2"),
    *("--train.steps", "4", "--train.hidden", "8", "--train.epochs", "1", "--eval-episodes", "2"),
    *("--train.minibatches", "1", "--tensorboard", "False", "--log-level", "warning"),
    *("--save-every", "1", "--keep-checkpoints", "2", "--train.max-iterations", "8"),
)


class Victims:
    """Commands that are killed."""

    def __init__(self, said):
        self.server = subprocess.Popen(
            [sys.executable, str(ASSETS / "killable.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
        )

    def run(self, words, seconds: float | None = None) -> tuple[int, float]:
        """The exit status of a command that is killed after so many seconds, and the time it took."""
        assert self.server.stdin
        assert self.server.stdout
        self.server.stdin.write(json.dumps([seconds, *map(str, words)]) + "\n")
        self.server.stdin.flush()
        status, took = json.loads(self.server.stdout.readline())
        return status, took

    def close(self):
        assert self.server.stdin
        self.server.stdin.close()
        self.server.wait(60)
        assert self.server.stdout
        self.server.stdout.close()


@pytest.fixture
def victims(tmp_path):
    with (tmp_path / "said").open("w") as said:
        found = Victims(said)
        yield found
        found.close()


def scratch(folder: Path) -> list[Path]:
    return [path for path in folder.rglob(".tmp-*") if files.SCRATCH.fullmatch(path.name)]


def require_whole(root: Path) -> None:
    """Every run that says that it has a checkpoint has one that loads and resumes."""
    cfg = RunsConfig(root=root)
    for run in workspace.list_runs(cfg):
        assert not run.damaged
        for path in workspace._checkpoints(run.path).values():
            found = checkpoint.load(path)
            found.policy()
            found.state()
    for name in ("latest", "latest:last", "latest:best"):
        try:
            assert checkpoint.load(workspace.find_checkpoint(name, "rail", cfg)).iteration > 0
        except DeftlyError as error:
            assert "\n" not in str(error)


def kill_often(victims, words, times: int, check, rng) -> int:
    """Run a command so many times and kill it at random; `check` looks after each. Returns how often it was ended."""
    killed = 0
    _, usual = victims.run(words)
    for _ in range(times):
        status, _ = victims.run(words, rng.uniform(0, usual))
        assert status in (0, -signal.SIGKILL)
        killed += status == -signal.SIGKILL
        check()
    return killed


@pytest.mark.slow
def test_a_training_that_is_killed_loads_and_goes_on(victims, tmp_path):
    rng, root = random.Random(0), tmp_path / "runs"
    train = ["train", TASK, *TINY, "--runs.root", root]
    assert kill_often(victims, train, 30, lambda: require_whole(root), rng) > 10
    for kept in range(20):  # resumed again and again, killed again and again
        more = [*train[:2], "--resume", "latest", "--train.max-iterations", 16 + kept]
        status, _ = victims.run([*more, "--runs.root", root], rng.uniform(0, 3))
        assert status in (0, -signal.SIGKILL)
        require_whole(root)
    for path in scratch(root):
        os.utime(path, (0, 0), follow_symlinks=False)
    assert victims.run(train)[0] == 0
    assert not scratch(root)


@pytest.mark.slow
def test_a_bundle_and_a_recording_are_there_or_not(victims, tmp_path):
    rng, root = random.Random(1), tmp_path / "runs"
    assert victims.run(["train", TASK, *TINY, "--runs.root", root])[0] == 0
    out, recording = tmp_path / "out/bundle", tmp_path / "recorded/a.npz"
    words = [TASK, "--policy", "latest", "--runs.root", root, "--episodes", 2]

    def bundle_is_whole():
        if out.exists():
            bundle.load(out)

    def recording_is_whole():
        if recording.exists():
            assert len(log.read(recording))

    export = ["export", *words, "--out", out]
    assert kill_often(victims, export, 25, bundle_is_whole, rng) > 8
    assert (
        kill_often(victims, ["record", *words, "--out", recording], 25, recording_is_whole, rng) > 8
    )
    for folder, again in ((out.parent, export), (recording.parent, None)):
        for path in scratch(folder):
            os.utime(path, (0, 0), follow_symlinks=False)
        again = again or ["record", *words, "--out", recording]
        assert victims.run(again)[0] == 0
        assert not scratch(folder)


def test_what_a_killed_training_left_is_swept_when_the_next_begins(tmp_path):
    cfg = RunsConfig(root=tmp_path)
    old = workspace.create("rail", "train", cfg)
    (old / "checkpoints").mkdir()
    places = (old, old / "checkpoints", tmp_path / "runs", tmp_path / "runs_all")
    for place in places:
        left = place / f".tmp-{'a' * 16}-x"
        left.mkdir()
        (left / "half").touch()
        os.utime(left, (0, 0))
    files.sweep.cache_clear()
    workspace.create("rail", "train", cfg)
    assert not scratch(tmp_path)
