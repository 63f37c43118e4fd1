"""The environment, training and evaluation on the Warp engine, for both families of tasks."""

import json

import pytest
import torch

from deftly import tasks
from deftly.commands.eval import main as evaluate
from deftly.commands.train import main as train
from deftly.config import EnvConfig, SimConfig
from deftly.env import Env

pytestmark = pytest.mark.warp
N = 8
FAMILIES = {"jaka-pick-cube": "default", "leap-right-cube-rotate": "coarse"}


@pytest.fixture(params=[*FAMILIES])
def family(request):
    return request.param


def make(name: str, **env) -> Env:
    cls = tasks.load(name)
    sim = SimConfig(preset=FAMILIES[name], engine="warp")
    return Env(cls(cls.Config()), EnvConfig(num_envs=N, **env), sim)


def actions(env: Env, steps: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.rand(steps, N, env.contract.action_size, generator=generator) - 1


def test_episodes_run_with_every_disturbance(family):
    env = make(family, episode_steps=6, latency_ms=(5.0, 30.0))
    assert env.state.dtype == torch.float32
    ended = 0
    for action in actions(env, 15):
        step = env.step(action)
        ended += len(env.ended.get("env", ()))
        for group in step.obs.values():
            assert group.dtype == torch.float32
            assert group.isfinite().all()
        assert step.reward.isfinite().all()
    assert ended >= 2 * N
    assert env.broken_count == 0
    assert not any(env.nan_counts.values())


def test_what_is_restored_continues_bit_for_bit(family):
    first, second = make(family), make(family)
    for action in actions(first, 5):
        first.step(action)
    saved = first.state_dict()
    second.load_state_dict(saved)
    for action in actions(first, 8, seed=1):
        ours, theirs = first.step(action), second.step(action)
        assert torch.equal(ours.obs["critic"], theirs.obs["critic"])
        assert torch.equal(ours.reward, theirs.reward)


def test_what_breaks_starts_anew_and_is_counted(family):
    env = make(family)
    env.sim.bind("qvel")[3, 0] = float("nan")
    step = env.step(torch.zeros(N, env.contract.action_size))
    assert step.terminated.tolist() == [i == 3 for i in range(N)]
    assert env.broken_count == 1
    assert step.obs["critic"].isfinite().all()
    assert step.reward.isfinite().all()
    assert env.state.steps.tolist() == [0 if i == 3 else 1 for i in range(N)]


def test_training_and_evaluation(family, tmp_path, capsys):
    where = ["--runs.root", str(tmp_path)]
    small = [
        "--env.num-envs",
        "16",
        "--train.max-iterations",
        "2",
        "--eval-every",
        "0",
        "--tensorboard",
        "False",
    ]
    assert train([family, "--sim.engine", "warp", *small, *where]) == 0
    flags = [
        "--sim.engine",
        "warp",
        "--checkpoint",
        "latest",
        "--episodes",
        "4",
        "--env.episode-steps",
        "10",
    ]
    out = tmp_path / "out"
    assert evaluate([family, *flags, "--out", str(out), "--video", "False", *where]) == 0
    said = json.loads((out / "eval.json").read_text())
    assert said["engine"] == "warp"
    assert said["episodes"] == 4
    assert said["broken_physics"] == 0
    assert "compiles" not in capsys.readouterr().out
