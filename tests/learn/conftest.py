"""A tiny training of the toy task, which takes a fraction of a second."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

from deftly import workspace
from deftly.commands.train import main
from deftly.config import RunsConfig
from deftly.learn import checkpoint

SLIDER = Path(__file__).parents[1] / "assets/slider.py"
TINY = (
    *("--env.num-envs", "8", "--env.episode-steps", "6", "--sim.threads", "1", "--eval-every", "0"),
    *(
        "--train.steps",
        "4",
        "--train.hidden",
        "8",
        "--train.epochs",
        "2",
        "--train.minibatches",
        "2",
    ),
    *("--tensorboard", "False", "--log-level", "warning"),
)


class Tiny:
    """Trains in a folder of its own."""

    def __init__(self, root: Path, task: Path = SLIDER):
        self.root, self.task = root, task

    @property
    def words(self) -> list[str]:
        return [str(self.task), *TINY, "--runs.root", str(self.root)]

    def train(self, iterations: int, *more: str) -> int:
        """Run `deftly train`; returns its exit status."""
        return main([*self.words, "--train.max-iterations", str(iterations), *more])

    def path(self, name: str = "last") -> Path:
        """The folder of a checkpoint of the newest run."""
        return workspace.find_checkpoint(f"latest:{name}", "slider", RunsConfig(root=self.root))

    def checkpoint(self, name: str = "last") -> checkpoint.Checkpoint:
        return checkpoint.load(self.path(name))

    def weights(self, name: str = "last"):
        return load_file(self.path(name) / "weights.safetensors")

    @property
    def run(self) -> Path:
        return self.path().parents[1]


@pytest.fixture
def tiny(tmp_path):
    return Tiny(tmp_path)


@pytest.fixture
def tiny_at():
    return Tiny


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A training of two iterations that tests read but do not change."""
    tiny = Tiny(tmp_path_factory.mktemp("trained"))
    assert tiny.train(2) == 0
    return tiny
