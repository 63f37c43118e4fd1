"""Several processes that train one policy."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from deftly.errors import DeftlyError
from deftly.learn.ranks import Ranks

ASSETS = Path(__file__).parents[1] / "assets"
SCRIPT, CURRICULUM = ASSETS / "two_ranks.py", ASSETS / "curriculum.py"


def two_ranks(*trainings: tuple[Path, list[str]]) -> list[list[dict[str, torch.Tensor]]]:
    """What each of two ranks came to, in each of the trainings, one after the other."""
    command = [sys.executable, str(SCRIPT)]
    for out, words in trainings:
        command += [str(out), *words, "--"]
    done = subprocess.run(
        command[:-1],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [
        [load_file(f"{out}-{rank}.safetensors") for rank in (0, 1)] for out, _words in trainings
    ]


def test_alone_everything_is_the_identity():
    ranks = Ranks()
    assert ranks.first
    assert ranks.any([True, False]) == [True, False]
    assert ranks.share_text("a path") == "a path"
    assert ranks.gather_bytes(b"abc") == [b"abc"]
    assert ranks.sum({"a": torch.tensor(2.0)}) == {"a": torch.tensor(2.0)}


def test_two_processes_train_one_policy_and_resume_it(tiny_at, tmp_path):
    """With a curriculum that follows the reward. Both ranks come to the same weights, normalizer, and scales.

    A training of four iterations is bit for bit the one that is resumed from its second.
    """
    tiny = tiny_at(tmp_path, CURRICULUM)
    flags = ["--train.max-iterations", "4", "--save-every", "2"]
    resume = ["--resume", "latest:iter_000002"]
    whole, resumed = two_ranks(
        (tmp_path / "whole", [*tiny.words, *flags]),
        (tmp_path / "resumed", [*tiny.words, *flags, *resume]),
    )
    first, second = whole
    shared = [name for name in first if name != "obs"]
    assert "scale/near" in shared
    assert all(torch.equal(first[name], second[name]) for name in shared)
    assert not torch.equal(first["obs"], second["obs"])
    assert int(first["actor/normalizer.count"]) == int(first["steps"]) == 4 * 2 * 4 * 8
    for got, wanted in zip(resumed, whole, strict=True):
        assert got.keys() == wanted.keys()
        assert all(torch.equal(got[name], wanted[name]) for name in got)

    assert len(list((tiny.root / "runs_all").iterdir())) == 1
    assert (tiny.path() / "state.rank_1.safetensors").is_file()
    assert tiny.checkpoint().ranks == 2
    with pytest.raises(
        DeftlyError, match=r"is of a training in 2 processes, this one has 1: .*--nproc-per-node=2"
    ):
        tiny.train(4, *resume)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torch.distributed.launch", "torch.distributed.run"])
def test_launchers_start_the_command(launcher, tiny_at, tmp_path):
    """As in the documents of other systems: `python -m torch.distributed.launch --nproc_per_node=2 ...`."""
    tiny = tiny_at(tmp_path)
    task, *flags = tiny.words
    command = [sys.executable, "-m", launcher, "--standalone", "--nproc_per_node=2", "-m", "deftly"]
    words = ["train", f"task={task}", *flags, "maxIter=2", "env.render=false"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *words], env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    assert tiny.checkpoint().ranks == 2
    assert tiny.checkpoint().iteration == 2
