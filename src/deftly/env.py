"""The one batched loop that every task shares: act, simulate, judge, observe, reset.

`Env.step` returns torch tensors that lead with `num_envs`. An environment whose episode ends is reset in the same
step: `obs` is then the first of the new episode and `final_obs` the last of the old one. Truncation (time is up) is
told apart from termination (the task failed or succeeded).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from deftly.config import EnvConfig, SimConfig
from deftly.contract import JOINT_POS, Memory
from deftly.errors import DeftlyError
from deftly.sensing import Sensors
from deftly.sim import Sim
from deftly.sim.cpu import CpuSim
from deftly.sim.guard import Guard
from deftly.sim.randomize import PastCommands, Randomize, Randomizer, prepare
from deftly.sim.scene import compile_scene, substeps
from deftly.tasks import Push, Task

Obs = dict[str, Tensor]


class Step(NamedTuple):
    """One step of all environments."""

    obs: Obs
    """`policy` (num_envs, obs_size) and `critic`, float32; of the new episode where one ended."""
    reward: Tensor
    """(num_envs,) float32."""
    terminated: Tensor
    """(num_envs,) bool: the task failed, succeeded, or its physics broke."""
    truncated: Tensor
    """(num_envs,) bool: time is up; never together with `terminated`."""
    final_obs: Obs
    """The observation at the end of the step, before any reset."""
    success: Tensor
    """(num_envs,) bool: the task is done."""


class State:
    """What a task sees of the simulation. Views are live; positions and contacts are those of the newest state."""

    def __init__(self, sim: Sim, rate: float, seed: int, purpose: str):
        self.sim, self.num_envs, self.device = sim, sim.num_envs, sim.device
        self.dt = 1.0 / rate
        self.qpos, self.qvel, self.ctrl = sim.bind("qpos"), sim.bind("qvel"), sim.bind("ctrl")
        self.steps = torch.zeros(self.num_envs, dtype=torch.long)
        self.store: dict[str, Tensor] = {}
        self.scale: dict[str, float] = {}
        """Factors set by the task's curriculum; a reward term's scales its weight."""
        self.action = torch.zeros(0)
        self.last_action = torch.zeros(0)
        self.command = torch.zeros(0)
        self.generator = torch.Generator().manual_seed(_seed(seed, purpose))
        self._views: dict[tuple[str, str], Tensor] = {}

    def zeros(self, name: str, *size: int, dtype: torch.dtype = torch.float64) -> Tensor:
        """A tensor of the store, `(num_envs, *size)`, made of zeros the first time."""
        if name not in self.store:
            self.store[name] = torch.zeros(self.num_envs, *size, dtype=dtype)
        return self.store[name]

    def uniform(self, ids: Tensor, low: float, high: float, *size: int) -> Tensor:
        """Draws for the environments `ids`: `(len(ids), *size)`."""
        u = torch.rand(len(ids), *size, generator=self.generator, dtype=torch.float64)
        return low + (high - low) * u

    def joint(self, name: str) -> Tensor:
        """Position of a joint, `(num_envs, k)`: 1 number, or 7 of a free joint (m, quaternion w x y z)."""
        return self._slice("qpos", name)

    def joint_vel(self, name: str) -> Tensor:
        """Velocity of a joint, `(num_envs, k)`: 1 number, or 6 of a free joint (m/s world, rad/s local)."""
        return self._slice("qvel", name)

    def site(self, name: str) -> Tensor:
        """World position of a site, `(num_envs, 3)`, m."""
        return self._view("site_xpos", name, self.sim.model.site)

    def body(self, name: str) -> Tensor:
        """World position of a body's frame, `(num_envs, 3)`, m."""
        return self._view("xpos", name, self.sim.model.body)

    def sensor(self, name: str) -> Tensor:
        """Output of a sensor, `(num_envs, k)`; forces are those of the last substep."""
        key = ("sensor", name)
        if key not in self._views:
            sensor = self.sim.model.sensor(name)
            start = int(sensor.adr[0])
            self._views[key] = self.sim.bind("sensordata")[:, start : start + int(sensor.dim[0])]
        return self._views[key]

    def _view(self, field: str, name: str, named) -> Tensor:
        key = (field, name)
        if key not in self._views:
            self._views[key] = self.sim.bind(field)[:, named(name).id]
        return self._views[key]

    def _slice(self, field: str, name: str) -> Tensor:
        key = (field, name)
        if key not in self._views:
            joint = self.sim.model.joint(name)
            start = int((joint.qposadr if field == "qpos" else joint.dofadr)[0])
            size = {0: (7, 6), 1: (4, 3)}.get(int(joint.type[0]), (1, 1))[field == "qvel"]
            self._views[key] = getattr(self, field)[:, start : start + size]
        return self._views[key]


@dataclass
class EpisodeStats:
    """Sums over the episodes that ended since the statistics were last taken."""

    sums: dict[str, float]
    count: int = 0

    def add(self, values: dict[str, Tensor]) -> None:
        """Add the figures of episodes that ended, one value an episode."""
        self.count += len(next(iter(values.values())))
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value.double().sum())

    def take(self) -> dict[str, float]:
        """Means over those episodes, empty if none ended; starts anew."""
        means = {name: total / self.count for name, total in self.sums.items()} if self.count else {}
        self.sums, self.count = {}, 0
        return means


class Env:
    """`num_envs` environments of one task.

    Args:
        task: what to do.
        cfg: number of environments and which disturbances act.
        sim: physics preset and threads.
        seed: with `purpose`, seeds every draw; different purposes never share a stream.
        purpose: `train`, `validate` or `evaluate`.
        dump_dir: where environments whose physics breaks are written for `deftly.sim.guard.replay`; None only counts.
    """

    def __init__(
        self,
        task: Task,
        cfg: EnvConfig,
        sim: SimConfig | None = None,
        seed: int = 0,
        purpose: str = "train",
        dump_dir: Path | None = None,
    ):
        sim = sim or SimConfig()
        self.task, self.cfg, self.contract, self.purpose = task, cfg, task.contract(), purpose
        self.num_envs = cfg.num_envs
        self.episode_steps = cfg.episode_steps or task.cfg.episode_steps
        self.substeps = substeps(self.contract.rate, sim.preset)
        spec, entries = task.scene(), self._entries()
        prepare(spec, entries, 1 / (self.contract.rate * self.substeps))
        self.model = compile_scene(spec, self.contract.rate, sim.preset)
        self.sim: Sim = CpuSim(self.model, cfg.num_envs, sim.threads)
        self.state = State(self.sim, self.contract.rate, seed, purpose)
        self._ctrl = torch.tensor([_actuator(self.model, name) for name in self.contract.joint_names])
        self._randomizer = Randomizer(self.sim, entries)
        self._past = PastCommands(self.sim)
        self._sensors = Sensors(task.noise() if cfg.noise else {}, self.contract, self.num_envs, self.state.generator)
        self._pushes = Pushes(self.state, task.pushes() if cfg.pushes else (), self.contract.rate)
        self._guard = Guard(self.sim, self.substeps, dump_dir)
        self._memory: Memory = {}
        self._weights = {name: float(w) for name, w in vars(task.cfg.weights).items()}
        self._sums = {name: torch.zeros(self.num_envs) for name in (*self._weights, "return", "action_change")}
        self.stats = EpisodeStats({})
        self.ended: dict[str, Tensor] = {}
        self.auto_reset = True
        """Start the next episode in the step that ends one; without it the caller resets."""
        self.obs: Obs = self.reset()

    # ------------------------------------------------------------------- loop

    def seed(self, seed: int) -> None:
        """Restart the stream of draws: the episodes after the next `reset` are those of a new `Env` of this seed."""
        self.state.generator.manual_seed(_seed(seed, self.purpose))

    def reset(self) -> Obs:
        """Start a new episode everywhere; returns the first observation."""
        everyone = torch.arange(self.num_envs)
        self.state.action = torch.zeros(self.num_envs, self.contract.action_size)
        self.state.last_action = torch.zeros_like(self.state.action)
        self.state.command = torch.zeros(self.num_envs, len(self.contract.joints))
        self._memory = {}
        self.obs = self._reset(everyone, {})
        return self.obs

    @torch.no_grad()
    def step(self, action: Tensor) -> Step:
        """Apply one action, `(num_envs, action_size)` in [-1, 1]; larger values are clipped, NaN counts as 0."""
        s, task = self.state, self.task
        self._apply(action)
        broken = self._guard.step()
        s.steps += 1
        task.update(s)
        reward = self._reward(broken)
        failures = {**task.failed(s), "physics": broken}
        success = task.success(s) & ~broken
        terminated = torch.stack([*failures.values()]).any(0)
        if task.cfg.stop_on_success:
            terminated = terminated | success
        truncated = (s.steps >= self.episode_steps) & ~terminated
        final_obs = self._observe()
        done = (terminated | truncated).nonzero().squeeze(-1)
        self.obs, self.ended = final_obs, {}
        if len(done):
            self._end(done, success, failures, truncated)
            self.obs = self._reset(done, final_obs) if self.auto_reset else final_obs
        return Step(self.obs, reward, terminated, truncated, final_obs, success)

    def _apply(self, action: Tensor) -> None:
        s = self.state
        s.last_action = s.action
        s.action = action.float().nan_to_num(0.0).clip(-1.0, 1.0)
        targets, self._memory = self.contract.act(s.action, self._memory)
        s.command = targets
        s.ctrl[:, self._ctrl] = targets.double()
        self._pushes.apply()

    def _reward(self, broken: Tensor) -> Tensor:
        s, total = self.state, torch.zeros(self.num_envs)
        for name, term in self.task.rewards(s).items():
            weight = self._weights[name] * s.scale.get(name, 1.0)
            weighted = weight * term.float().nan_to_num(0.0) * ~broken
            self._sums[name] += weighted
            total += weighted
        self._sums["return"] += total
        self._sums["action_change"] += (s.action - s.last_action).abs().mean(-1)
        return total

    def _observe(self) -> Obs:
        signals = self._sensors.read(self._signals())
        policy, self._memory = self.contract.observe(signals, self._memory)
        return self._groups(policy)

    def _signals(self) -> dict[str, Tensor]:
        return {name: value.float().nan_to_num(0.0) for name, value in self.task.signals(self.state).items()}

    def _groups(self, policy: Tensor) -> Obs:
        privileged = self.task.privileged(self.state)
        extra = () if privileged is None else (privileged.float().nan_to_num(0.0),)
        return {"policy": policy, "critic": torch.cat((policy, *extra), -1)}

    def _end(self, done: Tensor, success: Tensor, failures: dict[str, Tensor], truncated: Tensor) -> None:
        """Take the figures of the episodes that end, before their environments are reset."""
        steps = self.state.steps[done].float()
        figures = {
            "success": success[done].float(),
            "steps": steps,
            "time_out": truncated[done].float(),
            **{f"failed/{name}": f[done].float() for name, f in failures.items()},
            **{f"reward/{name}": self._sums[name][done] for name in self._weights},
            "return": self._sums["return"][done],
            "reward_per_step": self._sums["return"][done] / steps,
            "action_change": self._sums["action_change"][done] / steps,
        }
        own = {name: value[done] for name, value in self.task.metrics(self.state).items()}
        self.stats.add(figures)
        self.ended = {"env": done, **figures, **own}

    def _reset(self, ids: Tensor, obs: Obs) -> Obs:
        s = self.state
        self._randomizer.draw(ids, s.generator)
        self.sim.reset(ids)
        self._pushes.reset(ids)
        for value in (*s.store.values(), *self._sums.values(), s.steps, s.action, s.last_action):
            value[ids] = 0
        self.task.reset(s, ids)
        s.ctrl[ids[:, None], self._ctrl] = self._joint_qpos()[ids]
        self._past.reset(ids)
        self.sim.forward(ids)
        self.task.start(s, ids)
        signals = self._sensors.reset({k: v[ids] for k, v in self._signals().items()}, ids)
        memory = self.contract.reset(signals)
        policy, memory = self.contract.observe(signals, memory)
        self._memory = {k: _scatter(self._memory.get(k), v, ids, self.num_envs) for k, v in memory.items()}
        s.command = self._memory["command"]
        groups = self._groups(_scatter(obs.get("policy"), policy, ids, self.num_envs))
        return {k: _scatter(obs.get(k), v[ids], ids, self.num_envs) for k, v in groups.items()}

    def _joint_qpos(self) -> Tensor:
        return self.task.signals(self.state)[JOINT_POS].double()

    def _entries(self) -> tuple[Randomize, ...]:
        low, high = (1e-3 * ms for ms in self.cfg.latency_ms)
        own = self.task.randomize() if self.cfg.randomize else ()
        latency = Randomize("latency", low, high, self.contract.joint_names, op="add", shared=True)
        return (*own, latency) if high > 0 else own

    def progress(self) -> dict[str, float]:
        """Means over the episodes that ended since the last call, by which the task's curriculum then adapts."""
        means = self.stats.take()
        if means:
            self.task.curriculum(self.state, means)
        return means

    def stagger(self) -> None:
        """Spread the environments over the length of an episode, so that they do not all run out of time at once."""
        s = self.state
        s.steps[:] = torch.randint(self.episode_steps, (self.num_envs,), generator=s.generator)

    # -------------------------------------------------------- save and restore

    @property
    def figures(self) -> list[str]:
        """Names of the episode statistics that `stats` gathers; `steps` is called `episode_steps` in training logs."""
        failures = [f"failed/{name}" for name in (*self.task.failed(self.state), "physics")]
        rewards = [f"reward/{name}" for name in self._weights]
        own = ["success", "episode_steps", "time_out", "return", "reward_per_step", "action_change"]
        return [*own, *failures, *rewards]

    @property
    def broken_count(self) -> int:
        """How many environments were reset since the start because their physics broke."""
        return self._guard.count

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that decides the future of the environment, as a flat mapping of tensors."""
        s = self.state
        return {
            "sim": self.sim.state.clone(),
            "generator": s.generator.get_state(),
            "steps": s.steps.clone(),
            "action": s.action.clone(),
            "last_action": s.last_action.clone(),
            "command": s.command.clone(),
            **{f"model/{k}": v.clone() for k, v in self._randomizer.fields.items()},
            **{f"store/{k}": v.clone() for k, v in s.store.items()},
            **{f"memory/{k}": v.clone() for k, v in self._memory.items()},
            **{f"sums/{k}": v.clone() for k, v in self._sums.items()},
            **{f"obs/{k}": v.clone() for k, v in self.obs.items()},
            **{f"sensors/{k}": v.clone() for k, v in self._sensors.state.items()},
            **{f"pushes/{k}": v.clone() for k, v in self._pushes.state.items()},
            **{f"scale/{k}": torch.tensor(v, dtype=torch.float64) for k, v in s.scale.items()},
        }

    def load_state_dict(self, saved: dict[str, Tensor]) -> None:
        """Restore what `state_dict` gave; the environment then continues bit for bit."""
        s = self.state
        if saved["sim"].shape != self.sim.state.shape:
            raise DeftlyError(
                f"saved state is of {tuple(saved['sim'].shape)} environments x numbers, "
                f"this environment has {tuple(self.sim.state.shape)}: use the saved configuration"
            )
        self.sim.state[:] = saved["sim"]
        s.generator.set_state(saved["generator"])
        s.steps, s.action = saved["steps"].clone(), saved["action"].clone()
        s.last_action, s.command = saved["last_action"].clone(), saved["command"].clone()
        for name, live in self._randomizer.fields.items():
            live[:] = saved[f"model/{name}"]
        everyone = torch.arange(self.num_envs)
        if self._randomizer.constants:
            self.sim.set_const(everyone)
        groups: dict[str, dict[str, Tensor]] = {
            "store": s.store,
            "memory": self._memory,
            "sums": self._sums,
            "obs": self.obs,
            "sensors": self._sensors.state,
            "pushes": self._pushes.state,
        }
        for group, target in groups.items():
            target.update(
                {k.removeprefix(f"{group}/"): v.clone() for k, v in saved.items() if k.startswith(f"{group}/")}
            )
        s.scale = {k.split("/")[1]: float(v) for k, v in saved.items() if k.startswith("scale/")}
        self.sim.forward(everyone)


class Pushes:
    """Horizontal forces on bodies at random times."""

    def __init__(self, s: State, pushes: tuple[Push, ...], rate: float):
        self._s, self._pushes, self._rate = s, pushes, rate
        self._bodies = [s.sim.model.body(p.body).id for p in pushes]
        self._force = s.sim.bind("xfrc_applied") if pushes else torch.zeros(0)
        self.state = {"left": torch.zeros(s.num_envs, len(pushes)), "force": torch.zeros(s.num_envs, len(pushes), 2)}

    def apply(self) -> None:
        """Start, continue or end each push for one step."""
        s = self._s
        for i, (push, body) in enumerate(zip(self._pushes, self._bodies)):
            left, force = self.state["left"][:, i], self.state["force"][:, i]
            u = torch.rand(s.num_envs, 3, generator=s.generator)
            start = (left <= 0) & (u[:, 0] < 1 / (push.interval * self._rate))
            size = push.force[0] + (push.force[1] - push.force[0]) * u[:, 1]
            angle = 2 * torch.pi * u[:, 2]
            drawn = size[:, None] * torch.stack((angle.cos(), angle.sin()), -1)
            force[:] = torch.where(start[:, None], drawn, force)
            left[:] = torch.where(start, torch.tensor(max(1.0, round(push.duration * self._rate))), left - 1)
            self._force[:, body, :2] = (force * (left > 0)[:, None]).double()

    def reset(self, ids: Tensor) -> None:
        """End the pushes of some environments."""
        for value in self.state.values():
            value[ids] = 0


def _seed(seed: int, purpose: str) -> int:
    """A seed of its own for each purpose, so that training never sees an episode that judges it."""
    return int.from_bytes(hashlib.sha256(f"{purpose}/{seed}".encode()).digest()[:7], "big")


def _scatter(old: Tensor | None, new: Tensor, ids: Tensor, count: int) -> Tensor:
    """`old` with the rows `ids` replaced by `new`; all rows are new where there is no old."""
    if old is None or len(ids) == count:
        return new
    out = old.clone()
    out[ids] = new
    return out


def _actuator(model, name: str) -> int:
    try:
        return model.actuator(name).id
    except KeyError:
        raise DeftlyError(f"the scene has no actuator '{name}', which the contract commands") from None
