"""Training: exact resume, signals, what is on disk after a crash, two processes."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from deftly import workspace
from deftly.commands.train import main as train_main
from deftly.config import RunsConfig
from deftly.errors import DeftlyError
from deftly.learn import checkpoint

TASK = "jaka-pick-cube"
TINY = [
    TASK,
    *("--env.num-envs", "16", "--train.steps", "4", "--train.hidden", "16", "--train.epochs", "2"),
    *("--train.minibatches", "2", "--env.episode-steps", "12", "--tensorboard", "False", "--log-level", "warning"),
]


def run(root: Path, *more: str) -> int:
    return train_main([*TINY, "--runs.root", str(root), *more])


def weights(root: Path, name: str = "last") -> dict[str, torch.Tensor]:
    found = workspace.find_checkpoint(f"latest:{name}", TASK, RunsConfig(root=root))
    return load_file(found / "weights.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_resume_is_bit_identical(tmp_path):
    flags = ("--eval-every", "4", "--eval-episodes", "4", "--save-every", "5")
    assert run(tmp_path / "whole", *flags, "--train.max-iterations", "10") == 0
    assert run(tmp_path / "parts", *flags, "--train.max-iterations", "5") == 0
    assert not same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    assert run(tmp_path / "parts", "--resume", "latest", "--train.max-iterations", "10") == 0
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    rows = list(csv.DictReader((tmp_path / "parts/runs/latest/metrics.csv").open()))
    assert [int(r["iteration"]) for r in rows] == list(range(1, 11))


def test_another_seed_gives_other_weights(tmp_path):
    for seed in ("1", "2"):
        run(tmp_path / seed, "--eval-every", "0", "--train.max-iterations", "1", "--train.seed", seed)
    assert not same(weights(tmp_path / "1"), weights(tmp_path / "2"))


def test_a_random_seed_is_saved(tmp_path):
    run(tmp_path, "--eval-every", "0", "--train.max-iterations", "1", "train.seed=-1")
    found = checkpoint.load(workspace.find_checkpoint("latest", TASK, RunsConfig(root=tmp_path)))
    assert found.config["train"]["seed"] >= 0


def test_init_starts_a_new_run_from_weights(tmp_path):
    run(tmp_path, "--eval-every", "0", "--train.max-iterations", "2")
    first = workspace.find_checkpoint("latest", TASK, RunsConfig(root=tmp_path))
    run(tmp_path, "--eval-every", "0", "--train.max-iterations", "1", "--init", str(first))
    second = workspace.find_checkpoint("latest", TASK, RunsConfig(root=tmp_path))
    assert first.parent != second.parent
    assert checkpoint.load(second).iteration == 1


def test_missing_the_wanted_success_is_an_exit_code(tmp_path):
    flags = ("--until-success", "0.9", "--eval-every", "1", "--eval-episodes", "2")
    assert run(tmp_path, *flags, "--train.max-iterations", "1") == 1


def test_resume_refuses_another_contract(tmp_path):
    run(tmp_path, "--eval-every", "0", "--train.max-iterations", "1")
    with pytest.raises(DeftlyError, match=r"rate is 15\.0 there, 20\.0 here|rate is 20\.0 there, 15\.0 here"):
        run(tmp_path, "--resume", "latest", "--task.rate", "20")


def test_resume_needs_the_training_state(tmp_path):
    run(tmp_path, "--eval-every", "0", "--train.max-iterations", "1")
    found = workspace.find_checkpoint("latest", TASK, RunsConfig(root=tmp_path))
    (found / "state.safetensors").unlink()
    with pytest.raises(DeftlyError, match="no training state"):
        run(tmp_path, "--resume", "latest")


@pytest.mark.parametrize("part", ["weights.safetensors", "state.safetensors", "contract.json", "config.yaml"])
def test_a_truncated_checkpoint_is_refused_in_one_line(tmp_path, part):
    run(tmp_path, "--eval-every", "0", "--train.max-iterations", "1")
    found = workspace.find_checkpoint("latest", TASK, RunsConfig(root=tmp_path))
    file = found / part
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(DeftlyError) as error:
        run(tmp_path, "--resume", str(found))
    assert "\n" not in str(error.value)


def test_a_foreign_file_is_no_checkpoint(tmp_path):
    folder = tmp_path / "foreign"
    folder.mkdir()
    torch.save({"a": torch.zeros(1)}, folder / "weights.safetensors")
    with pytest.raises(DeftlyError, match=r"truncated or no safetensors"):
        checkpoint.load(folder)


def test_a_full_disk_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    run(tmp_path, "--eval-every", "0", "--train.max-iterations", "1")
    good = weights(tmp_path)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(DeftlyError, match="No space left on device; what was there is kept"):
        run(tmp_path, "--resume", "latest", "--train.max-iterations", "2")
    monkeypatch.undo()
    assert same(weights(tmp_path), good)
    assert not list((tmp_path / "runs/latest/checkpoints").glob(".tmp*"))


def start(root: Path, *more: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "deftly", "train", *TINY, "--eval-every", "0", "--runs.root", str(root), *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition, process: subprocess.Popen, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_ctrl_c_saves(tmp_path):
    process = start(tmp_path, "--save-every", "1000", "--train.max-iterations", "1000000")
    try:
        wait_for(lambda: (tmp_path / "runs/latest/metrics.csv").is_file(), process)
        wait_for(lambda: (tmp_path / "runs/latest/metrics.csv").read_text().count("\n") > 2, process)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 128 + signal.SIGINT
    finally:
        process.kill()
        process.communicate()
    found = checkpoint.load(workspace.find_checkpoint("latest", TASK, RunsConfig(root=tmp_path)))
    assert found.iteration >= 2


def test_kill_9_while_checkpoints_are_written(tmp_path):
    """Wherever the kill falls, the newest checkpoint that is found loads and resumes."""
    for delay in (0.0, 0.013, 0.029):
        root = tmp_path / str(delay)
        process = start(root, "--save-every", "1", "--keep-checkpoints", "1", "--train.max-iterations", "1000000")
        try:
            wait_for(lambda r=root: (r / "runs/latest/checkpoints/last").exists(), process)
            time.sleep(delay)
        finally:
            process.kill()
            process.communicate()
        found = checkpoint.load(workspace.find_checkpoint("latest", TASK, RunsConfig(root=root)))
        more = str(found.iteration + 1)
        assert run(root, "--eval-every", "0", "--resume", "latest", "--train.max-iterations", more) == 0


def test_two_processes_train_one_policy(tmp_path):
    """Under torchrun both ranks end with the same weights and normalizer, from twice the data."""
    script = Path(__file__).parents[1] / "assets" / "two_ranks.py"
    out = tmp_path / "weights"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1"]
    port = ["--master-port=0", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    argv = [*TINY, "--runs.root", str(tmp_path), "--eval-every", "0", "--train.max-iterations", "3"]
    done = subprocess.run([*torchrun, *port, str(script), str(out), *argv], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (load_file(f"{out}-{rank}.safetensors") for rank in (0, 1))
    assert same(first, second)
    assert int(first["actor/obs_normalizer.count"]) == 3 * 2 * 16 * 4
    assert len(list((tmp_path / "runs_all").iterdir())) == 1


def test_wandb_missing_is_one_line(tmp_path):
    if shutil.which("wandb"):
        pytest.skip("wandb is installed")
    with pytest.raises(DeftlyError, match="pip install wandb"):
        run(tmp_path, "--wandb", "True", "--train.max-iterations", "1")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--env.device", "cuda"), "simulates on the CPU"),
        (("--resume", "a", "--init", "b"), "give one of them"),
        (("--until-success", "2"), "at most 1"),
    ],
)
def test_settings_that_make_no_sense(tmp_path, flags, message):
    with pytest.raises(DeftlyError, match=message):
        run(tmp_path, *flags)
    assert not (tmp_path / "runs_all").exists()


def test_nothing_in_a_checkpoint_is_pickled(tmp_path):
    run(tmp_path, "--eval-every", "0", "--train.max-iterations", "1")
    found = workspace.find_checkpoint("latest", TASK, RunsConfig(root=tmp_path))
    assert sorted(p.name for p in found.iterdir()) == [
        "config.yaml",
        "contract.json",
        "state.safetensors",
        "weights.safetensors",
    ]
    assert json.loads((found / "contract.json").read_text())["robot"] == "jaka-zu5"


@pytest.mark.parametrize("word", ["checkpoint", "training.checkpoint"])
def test_the_older_names_of_resume(tmp_path, word):
    run(tmp_path, "--eval-every", "0", "--train.max-iterations", "1")
    assert run(tmp_path, "--eval-every", "0", f"{word}=latest", "maxIterations=2") == 0
    assert checkpoint.load(workspace.find_checkpoint("latest", TASK, RunsConfig(root=tmp_path))).iteration == 2


def hand(root: Path, side: str, *more: str) -> int:
    words = f"leap-{side}-cube-rotate --runs.root {root} --env.num-envs 4 --eval-every 0 --train.max-iterations 1"
    return train_main([*words.split(), "--no-tensorboard", "--log-level", "warning", *more])


def test_a_policy_of_one_hand_starts_the_training_of_its_mirror_image(tmp_path):
    """The critic learns alone at first, and the actor's normalizer stays: what was given is given on unchanged."""
    assert hand(tmp_path / "right", "right") == 0
    first = str(next((tmp_path / "right").glob("runs_all/*/checkpoints/last")))

    def weights(root: Path) -> dict[str, torch.Tensor]:
        return load_file(next(root.glob("runs_all/*/checkpoints/last")) / "weights.safetensors")

    assert hand(tmp_path / "left", "left", "--init", first, "--train.critic-warmup", "1") == 0
    before, after = weights(tmp_path / "right"), weights(tmp_path / "left")
    changed = {name.split("/")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"critic"}
    assert hand(tmp_path / "other", "left", "--init", first) == 0
    after = weights(tmp_path / "other")
    changed = {name for name in before if name.startswith("actor/") and not torch.equal(before[name], after[name])}
    assert changed
    assert not [name for name in changed if "normalizer" in name]
