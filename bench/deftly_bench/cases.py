"""What `deftly bench` measures, one case to a process.

The raw cases replay what an environment did: the states in which its episodes started and every command of its
actuators, recorded once on a tape, stepped with nothing but `mj_step`. So both sides simulate the same motions with
the same contacts, and the raw side carries no observation, reward or reset.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import mujoco
import numpy as np
import torch
from torch import Tensor

from deftly import stats
from deftly.api import training_settings
from deftly.commands.doctor import cores
from deftly.config import EnvConfig, PPOConfig, SimConfig
from deftly.config.presets import Preset
from deftly.env import Env
from deftly.learn import checkpoint
from deftly.learn.ppo import PPO
from deftly.sim.scene import compile_scene, let_sleep, sleeps
from deftly.tasks import Task, load
from deftly_bench.entry import no_program

Engine = Literal["cpu", "warp"]
FULL = mujoco.mjtState.mjSTATE_INTEGRATION.value
SNAP = "snap/"


@dataclass(frozen=True)
class Job:
    """One measurement in a process of its own."""

    case: str
    task: str
    tape: str = ""
    """File of the recorded motions."""
    num_envs: int = 1024
    seconds: float = 10.0
    preset: Preset = "default"
    engine: Engine = "cpu"
    threads: int = 0
    """Threads of the CPU engine; 0 takes all cores."""
    checkpoint: str | None = None
    tape_envs: int = 64
    tape_steps: int = 0
    """Control steps on the tape; 0 takes an episode's length."""
    peer_envs: int = 8
    peer_steps: int = 256
    """Control steps of each environment in a rollout of the peer."""
    train_envs: int = 0
    """Environments of the training; 0 takes what `deftly train TASK` takes."""
    episodes: int = 200

    def new_task(self) -> Task:
        """The task under its own configuration."""
        cls = load(self.task)
        return cls(cls.Config())

    def env(self, num_envs: int, randomize: bool = True) -> Env:
        """A batch of the task's environments at the preset."""
        cfg = EnvConfig(num_envs=num_envs, randomize=randomize, pushes=randomize)
        sim = SimConfig(preset=self.preset, threads=self.threads, engine=self.engine)
        return Env(self.new_task(), cfg, sim, purpose="train")

    def policy(self) -> Callable[[Tensor], Tensor] | None:
        """The policy of the checkpoint, or None."""
        return checkpoint.load(Path(self.checkpoint)).policy() if self.checkpoint else None


def random_action(env: Env) -> Tensor:
    """An action of each environment, uniform in [-1, 1]."""
    return 2 * torch.rand(env.num_envs, env.contract.action_size) - 1


# ------------------------------------------------------------------------- tape


def record(job: Job) -> dict[str, Any]:
    """Record an episode's length of motion, under random actions or the checkpoint's policy, to the job's tape."""
    env, policy = job.env(job.tape_envs, randomize=False), job.policy()
    steps = job.tape_steps or env.episode_steps
    every = max(1, steps // max(8, -(-job.num_envs // job.tape_envs)))
    commands, resets, snaps = _tap(env), [], []
    start = env.sim.get_state().numpy()
    for t in range(steps):
        if t % every == 0:
            snaps.append(env.state_dict())
        env.step(policy(env.obs["policy"]) if policy else random_action(env))
        resets += [(t + 1, int(i), env.sim.state_of(int(i))) for i in env.ended.get("env", ())]
    rows = {k: torch.cat([s[k] for s in snaps]) for k, v in snaps[0].items() if _is_row(v, env)}
    np.savez(
        job.tape,
        start=start,
        commands=np.stack(commands),
        reset_step=np.array([t for t, _, _ in resets], int),
        reset_env=np.array([i for _, i, _ in resets], int),
        reset_state=np.array([state for _, _, state in resets]),
        end=env.sim.get_state().numpy(),
        substeps=env.substeps,
        **{f"{SNAP}{k}": v.numpy() for k, v in rows.items()},  # type: ignore[arg-type]
    )
    return {"steps": steps, "resets": len(resets)}


def _tap(env: Env) -> list[np.ndarray]:
    """A list to which each of the environment's coming steps adds its actuator commands, `(num_envs, nu)`."""
    commands: list[np.ndarray] = []
    step = env.sim.step

    def tapped(substeps: int, mask: Tensor | None = None) -> Tensor:
        if (
            mask is None
        ):  # else some robots stand ready: the tape has where that led as the start of an episode
            commands.append(env.sim.bind("ctrl").numpy().copy())
        return step(substeps, mask)

    env.sim.step = tapped  # type: ignore[method-assign]
    return commands


def _is_row(value: Tensor, env: Env) -> bool:
    """Whether a tensor of an environment's state holds one row for each environment."""
    return value.ndim > 0 and value.dtype != torch.uint8 and len(value) == env.num_envs


def spread(env: Env, tape: str) -> None:
    """Put the environments where the tape's were at all times of an episode, as in the midst of a training."""
    with np.load(tape, allow_pickle=False) as file:
        rows = {
            k.removeprefix(SNAP): torch.from_numpy(file[k])
            for k in file.files
            if k.startswith(SNAP)
        }
    count = len(rows["sim"])
    pick = (
        torch.randperm(max(count, env.num_envs), generator=torch.Generator().manual_seed(0)) % count
    )
    now = env.state_dict()
    with_delays = (
        rows["sim"].shape[1:] != now["sim"].shape[1:]
    )  # they keep commands in the state; the tape has none
    if with_delays or rows["sim"].dtype != now["sim"].dtype:
        env.stagger()
        for _ in range(env.episode_steps // 4):
            env.step(random_action(env))
        return
    env.load_state_dict(
        {k: rows[k][pick[: env.num_envs]] if k in rows else v for k, v in now.items()}
    )


# -------------------------------------------------------------------------- raw


class Replay:
    """Plays a tape with plain `mj_step`, in the scene that environments step: without what is only drawn."""

    def __init__(self, job: Job):
        task = job.new_task()
        spec = task.scene()
        let_sleep(spec)
        sim = SimConfig(preset=job.preset)
        self.model = compile_scene(spec, task.contract().rate, sim, with_looks=False)
        with np.load(job.tape, allow_pickle=False) as file:
            tape = {k: file[k] for k in file.files if not k.startswith(SNAP)}
        self.start, self.commands, self.substeps = (
            tape["start"],
            tape["commands"],
            int(tape["substeps"]),
        )
        self.end = tape["end"]
        self.resets: dict[int, list[tuple[int, np.ndarray]]] = {}
        for t, i, state in zip(tape["reset_step"], tape["reset_env"], tape["reset_state"]):
            self.resets.setdefault(int(t), []).append((int(i), state))
        self.data = [mujoco.MjData(self.model) for _ in self.start]

    def play(self, members: range) -> int:
        """Play the tape once for some of its environments; returns control steps."""
        model, data, substeps, step = self.model, self.data, self.substeps, mujoco.mj_step
        for i in members:
            self._put(i, self.start[i])
        for t, row in enumerate(self.commands):
            self._reset(t, members)
            for i in members:
                data[i].ctrl[:] = row[i]
                step(model, data[i], substeps)
        self._reset(len(self.commands), members)
        return len(self.commands) * len(members)

    def _reset(self, t: int, members: range) -> None:
        for i, state in self.resets.get(t, ()):
            if i in members:
                self._put(i, state)

    def _put(self, i: int, state: np.ndarray) -> None:
        """Start from a state; which bodies sleep follows from it."""
        if sleeps(self.model):
            mujoco.mj_resetData(self.model, self.data[i])
        mujoco.mj_setState(self.model, self.data[i], state, FULL)

    def exact(self) -> bool:
        """Whether the replay ended bit for bit where the environments did."""
        state = np.empty(self.end.shape[1])
        for i, data in enumerate(self.data):
            mujoco.mj_getState(self.model, data, state, FULL)
            if not np.array_equal(state, self.end[i]):
                return False
        return True


def raw(job: Job) -> dict[str, Any]:
    """Control steps a second of `mj_step` in one thread, round robin over the tape's environments."""
    replay = Replay(job)
    rate = _rate(_whole(job, lambda: replay.play(range(len(replay.data)))))
    return {"rate": rate, "exact": replay.exact()}


def raw_cores(job: Job) -> dict[str, Any]:
    """The same on all cores at once, a thread to each, which share out the tape's environments."""
    replay, count = Replay(job), cores()
    shares = [range(i, len(replay.data), count) for i in range(count)]
    with ThreadPoolExecutor(count) as pool:
        rate = _rate(_whole(job, lambda: sum(pool.map(replay.play, shares))))
    return {"rate": rate, "exact": replay.exact()}


def _whole(job: Job, part: Callable[[], int]) -> Iterator[int]:
    """Run parts of the work, each whole, until the job's seconds are over; yields the steps of each."""
    end = time.perf_counter() + job.seconds
    while True:
        yield part()
        if time.perf_counter() >= end:
            return


def _rate(parts: Iterator[int]) -> float:
    start = time.perf_counter()
    return sum(parts) / (time.perf_counter() - start)


# -------------------------------------------------------------------- ours, peer


def env(job: Job) -> dict[str, Any]:
    """Control steps a second of `Env.step` under random actions: observation, reward and resets included."""
    batch = job.env(job.num_envs)
    spread(batch, job.tape)
    batch.step(random_action(batch))

    def part() -> int:
        batch.step(random_action(batch))
        return batch.num_envs

    return {"rate": _rate(_whole(job, part)), "memory_mb": peak_memory(), "num_envs": job.num_envs}


def train(job: Job) -> dict[str, Any]:
    """Control steps a second of training: rollouts and updates of PPO as `deftly train TASK` has them."""
    num_envs, cfg = train_defaults(job.task)
    learner = PPO(job.env(job.train_envs or num_envs), cfg)
    spread(learner.env, job.tape)
    learner.iterate()
    size = learner.env.num_envs * cfg.steps
    rate = _rate(_whole(job, lambda: size if learner.iterate() else 0))
    threads = torch.get_num_threads()
    return {
        "rate": rate,
        "memory_mb": peak_memory(),
        "num_envs": learner.env.num_envs,
        "torch_threads": threads,
    }


def train_defaults(task: str) -> tuple[int, PPOConfig]:
    """Number of environments and settings of PPO with which `deftly train TASK` begins."""
    args, _ = training_settings(task, ["--train.algorithm", "ppo"])
    assert isinstance(args.train, PPOConfig)
    return args.env.num_envs, args.train


def sb3(job: Job) -> dict[str, Any]:
    """Control steps a second of the JAKA project's way: Stable-Baselines3's PPO, a process for each environment."""
    from deftly_bench import peer

    rate = peer.learn(job.task, job.preset, job.peer_envs, job.peer_steps, job.seconds)
    return {"rate": rate, "torch_threads": torch.get_num_threads()}


def first_step(job: Job) -> dict[str, Any]:
    """Nothing but a first step; the caller takes the time of the whole process."""
    batch = job.env(job.num_envs)
    batch.step(random_action(batch))
    return {}


def grip(job: Job) -> dict[str, Any]:
    """How well a preset's contacts hold the cube."""
    from deftly_bench import presets

    return presets.grip(job.preset)


def success(job: Job) -> dict[str, Any]:
    """Success of the checkpoint's policy on held out episodes under the preset."""
    from deftly.evaluate.rollout import EVALUATE, run_episodes

    policy = job.policy()
    assert policy is not None
    sim = SimConfig(job.preset)
    episodes = run_episodes(
        job.new_task(), policy, job.episodes, seed=0, purpose=EVALUATE, sim_cfg=sim
    )
    found = stats.proportion(episodes.values["success"].numpy())
    return {"success": found["rate"], "wilson95": found["wilson95"], "episodes": job.episodes}


def peak_memory() -> float:
    """Largest resident memory of this process so far, MB."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:  # no Linux
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith("VmHWM"))


CASES: dict[str, Callable[[Job], dict[str, Any]]] = {
    case.__name__: case
    for case in (record, raw, raw_cores, env, train, sb3, first_step, grip, success)
}


def command(job: Job) -> list[str]:
    """What to run for a job; the last line it prints is its result as JSON."""
    return [sys.executable, str(Path(__file__).parents[1]), json.dumps(asdict(job))]


if __name__ == "__main__":
    no_program()
