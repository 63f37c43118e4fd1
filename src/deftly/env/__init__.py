"""The one batched loop that every task shares: act, simulate, judge, observe, and reset in the step that ends."""

import hashlib
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from deftly.config import EnvConfig, SimConfig
from deftly.contract import JOINT_POS, STATE, Memory, PolicyContract
from deftly.errors import DeftlyError
from deftly.sim.cpu import CpuSim
from deftly.sim.randomize import Randomize, Randomizer, hold_commands, prepare
from deftly.sim.scene import compile_scene
from deftly.sim.sensors import Sensors
from deftly.tasks import Push, Task

Obs = dict[str, Tensor]
Figures = dict[str, Tensor]  # of the episodes that ended, by name
_SAVED = ("steps", "action", "last_action", "command")


class Step(NamedTuple):
    """One step of all environments, as torch tensors."""

    obs: Obs  # `policy` (num_envs, obs_size) and `critic`, float32; of the new episode where one ended
    reward: Tensor  # (num_envs,) float32
    terminated: Tensor  # (num_envs,) bool: the task failed, succeeded, or its physics broke
    truncated: Tensor  # (num_envs,) bool: time is up; never together with `terminated`
    final_obs: Obs  # the observation at the end of the step, before any reset
    success: Tensor  # (num_envs,) bool: the task is done


class State:
    """What a task sees of the simulation. Views are live; positions and contacts are those of the newest state."""

    def __init__(self, sim: CpuSim, contract: PolicyContract, episode_steps: int):
        self.sim, self.num_envs, self.dt = sim, sim.num_envs, 1.0 / contract.rate
        self.episode_steps = episode_steps  # control steps of a full episode
        self.qpos, self.qvel, self.ctrl = sim.bind("qpos"), sim.bind("qvel"), sim.bind("ctrl")
        self.steps = torch.zeros(self.num_envs, dtype=torch.long)
        self.store: dict[str, Tensor] = {}
        self.scale: dict[str, float] = {}  # factors set by the task's curriculum; a reward term's scales its weight
        self.action = self.last_action = torch.zeros(self.num_envs, contract.action_size)
        self.command = torch.zeros(self.num_envs, len(contract.joints))
        self.generator = torch.Generator()
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
        return self._view("qpos", "joint", name)

    def joint_vel(self, name: str) -> Tensor:
        """Velocity of a joint, `(num_envs, k)`: 1 number, or 6 of a free joint (m/s world, rad/s local)."""
        return self._view("qvel", "joint", name)

    def site(self, name: str) -> Tensor:
        """World position of a site, `(num_envs, 3)`, m."""
        return self._view("site_xpos", "site", name)

    def body(self, name: str) -> Tensor:
        """World position of a body's frame, `(num_envs, 3)`, m."""
        return self._view("xpos", "body", name)

    def sensor(self, name: str) -> Tensor:
        """Output of a sensor, `(num_envs, k)`; forces are those of the last substep."""
        return self._view("sensordata", "sensor", name)

    def _view(self, field: str, kind: str, name: str) -> Tensor:
        if (field, name) not in self._views:
            named = getattr(self.sim.model, kind)(name)
            columns: int | slice = named.id
            if kind == "sensor":
                columns = slice(named.adr[0], named.adr[0] + named.dim[0])
            elif kind == "joint":
                start, like = (named.qposadr, named.qpos0) if field == "qpos" else (named.dofadr, named.armature)
                columns = slice(start[0], start[0] + len(like))
            self._views[field, name] = self.sim.bind(field)[:, columns]
        return self._views[field, name]


class Env:
    """`num_envs` environments of one task; `cfg` says which disturbances act, `sim` how fine the physics is.

    `seed` with `purpose` (`train`, `validate` or `evaluate`) seeds every draw: purposes never share a stream.
    Environments whose physics breaks are written to `dump_dir` for `deftly.sim.guard.replay`; None only counts them.
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
        self.substeps = sim.substeps_at(self.contract.rate)
        low, high = (1e-3 * ms for ms in cfg.latency_ms)
        latency = Randomize("latency", low, high, self.contract.joint_names, op="add", shared=True)
        own = task.randomize() if cfg.randomize else ()
        entries = (*own, latency) if high > 0 else own
        spec = task.scene()
        prepare(spec, entries, 1 / (self.contract.rate * self.substeps))
        self.model = compile_scene(spec, self.contract.rate, sim)
        self.sim = CpuSim(self.model, cfg.num_envs, sim.threads, dump_dir)
        self.state = State(self.sim, self.contract, self.episode_steps)
        self.seed(seed)
        actuators = {self.model.actuator(i).name: i for i in range(self.model.nu)}
        if missing := [name for name in self.contract.joint_names if name not in actuators]:
            raise DeftlyError(f"the scene has no actuator '{missing[0]}', which the contract commands")
        self._ctrl = torch.tensor([actuators[name] for name in self.contract.joint_names])
        self._randomizer = Randomizer(self.sim, entries)
        self._sensors = Sensors(task.noise() if cfg.noise else {}, self.contract, self.num_envs, self.state.generator)
        self._pushes = Pushes(self.state, task.pushes() if cfg.pushes else (), self.contract.rate)
        self._weights = {name: float(w) for name, w in vars(task.cfg.weights).items()}
        self._sums = {name: torch.zeros(self.num_envs) for name in (*self._weights, "return", "action_change")}
        self._totals: dict[str, float] = defaultdict(float)  # over the episodes that ended since the last `progress`
        self.ended: Figures = {}
        self.auto_reset = True  # start the next episode in the step that ends one; without it the caller resets
        self.reset()

    def seed(self, seed: int) -> None:
        """Restart the stream of draws: the episodes after the next `reset` are those of a new `Env` of this seed."""
        digest = hashlib.sha256(f"{self.purpose}/{seed}".encode()).digest()  # training sees no episode that judges it
        self.state.generator.manual_seed(int.from_bytes(digest[:7], "big"))

    def reset(self) -> Obs:
        """Start a new episode everywhere; returns the first observation."""
        self.obs: Obs = {}
        self._memory: Memory = {}
        self._reset(torch.arange(self.num_envs))
        return self.obs

    @torch.no_grad()
    def step(self, action: Tensor) -> Step:
        """Apply one action, `(num_envs, action_size)` in [-1, 1]; larger values are clipped, NaN counts as 0."""
        s, task = self.state, self.task
        s.last_action, s.action = s.action, action.float().nan_to_num(0.0).clip(-1.0, 1.0)
        s.command, self._memory = self.contract.act(s.action, self._memory)
        s.ctrl[:, self._ctrl] = s.command.double()
        self._pushes.apply()
        broken = torch.from_numpy(self.sim.step(self.substeps))
        s.steps += 1
        task.update(s)
        reward = self._reward(broken)
        failures = {**task.failed(s), "physics": broken}
        success = task.success(s) & ~broken
        terminated = torch.stack([*failures.values()]).any(0) | (success & task.cfg.stop_on_success)
        truncated = (s.steps >= self.episode_steps) & ~terminated
        observed, self._memory = self.contract.observe(self._sensors.read(self._signals()), self._memory)
        self.obs = final_obs = self._groups(observed[STATE])
        done = (terminated | truncated).nonzero().squeeze(-1)
        self.ended = self._end(done, success, failures, truncated) if len(done) else {}
        if self.ended and self.auto_reset:
            self._reset(done)
        return Step(self.obs, reward, terminated, truncated, final_obs, success)

    def _reward(self, broken: Tensor) -> Tensor:
        s, total = self.state, torch.zeros(self.num_envs)
        for name, term in self.task.rewards(s).items():
            weighted = self._weights[name] * s.scale.get(name, 1.0) * term.float().nan_to_num(0.0) * ~broken
            self._sums[name] += weighted
            total += weighted
        self._sums["return"] += total
        self._sums["action_change"] += (s.action - s.last_action).abs().mean(-1)
        return total

    def _signals(self) -> dict[str, Tensor]:
        return {name: value.float().nan_to_num(0.0) for name, value in self.task.signals(self.state).items()}

    def _groups(self, policy: Tensor) -> Obs:
        privileged = self.task.privileged(self.state)
        extra = () if privileged is None else (privileged.float().nan_to_num(0.0),)
        return {"policy": policy, "critic": torch.cat((policy, *extra), -1)}

    def _end(self, done: Tensor, success: Tensor, failures: Figures, truncated: Tensor) -> Figures:
        """The figures of the episodes that end, before their environments are reset."""
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
        self._totals["episodes"] += len(done)
        for name, value in figures.items():
            self._totals[name] += float(value.double().sum())
        return {"env": done, **figures, **{k: v[done] for k, v in self.task.metrics(self.state).items()}}

    def _reset(self, ids: Tensor) -> None:
        s = self.state
        self._randomizer.draw(ids, s.generator)
        self.sim.reset(ids)
        carried = ({name: getattr(s, name) for name in _SAVED}, s.store, self._sums, self._pushes.state)
        for value in (tensor for part in carried for tensor in part.values()):
            value[ids] = 0
        self.task.reset(s, ids)
        held = self.task.signals(s)[JOINT_POS].double()[ids]
        s.ctrl[ids[:, None], self._ctrl] = held
        hold_commands(self.sim, ids)
        self.sim.forward(ids)
        ready = self._stand_ready(ids)
        self.task.start(s, ids)
        signals = self._sensors.reset({k: v[ids] for k, v in self._signals().items()}, ids)
        memory = self.contract.reset(signals)
        if ready:
            memory = self.contract.follow(held.float(), memory)
        observed, memory = self.contract.observe(signals, memory)
        policy = observed[STATE]
        self._memory = {k: _scatter(self._memory.get(k), v, ids) for k, v in memory.items()}
        s.command = self._memory["command"]
        groups = self._groups(_scatter(self.obs.get("policy"), policy, ids))
        self.obs = {k: _scatter(self.obs.get(k), v[ids], ids) for k, v in groups.items()}

    def _stand_ready(self, ids: Tensor) -> bool:
        """Let robots stand as in a control loop before its start, held by their servos; returns whether they may sag.

        A hand that holds something gives way until its servos carry it. So a policy never starts where they carry none.
        """
        least, most = (round(seconds * self.contract.rate) for seconds in self.task.cfg.ready_s)
        if most:
            periods = torch.randint(least, most + 1, (len(ids),), generator=self.state.generator)
            for count in periods[periods > 0].unique().tolist():
                self.sim.step(count * self.substeps, ids[periods == count])
        return most > 0

    def progress(self) -> dict[str, float]:
        """Means over the episodes that ended since the last call, by which the task's curriculum then adapts."""
        count = self._totals.pop("episodes", 0)
        means = {name: total / count for name, total in self._totals.items()}
        self._totals.clear()
        if means:
            self.task.curriculum(self.state, means)
        return means

    def stagger(self) -> None:
        """Spread the environments over the length of an episode, so that they do not all run out of time at once."""
        s = self.state
        s.steps[:] = torch.randint(self.episode_steps, (self.num_envs,), generator=s.generator)

    @property
    def figures(self) -> list[str]:
        """Names of the episode statistics that `progress` gives; `steps` is called `episode_steps` in training logs."""
        failures = [f"failed/{name}" for name in (*self.task.failed(self.state), "physics")]
        own = ["success", "episode_steps", "time_out", "return", "reward_per_step", "action_change"]
        return [*own, *failures, *(f"reward/{name}" for name in self._weights)]

    @property
    def broken_count(self) -> int:
        """How many environments were reset since the start because their physics broke."""
        return self.sim.broken_count

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that decides the future of the environment, as a flat mapping of tensors."""
        saved = {"sim": self.sim.state, "generator": self.state.generator.get_state()}
        saved |= {name: getattr(self.state, name) for name in _SAVED}
        parts = {"model": self._randomizer.fields, **self._parts()}
        saved |= {f"{part}/{k}": v for part, tensors in parts.items() for k, v in tensors.items()}
        saved |= {f"scale/{k}": torch.tensor(v, dtype=torch.float64) for k, v in self.state.scale.items()}
        return {k: v.clone() for k, v in saved.items()}

    def load_state_dict(self, saved: dict[str, Tensor]) -> None:
        """Restore what `state_dict` gave; the environment then continues bit for bit."""
        s, everyone = self.state, torch.arange(self.num_envs)
        found, own = tuple(saved["sim"].shape), tuple(self.sim.state.shape)
        if found != own:
            differ = f"saved state is of {found} environments x numbers, this environment has {own}"
            raise DeftlyError(f"{differ}: use the saved configuration")
        self.sim.state[:] = saved["sim"]
        s.generator.set_state(saved["generator"])
        for name in _SAVED:
            setattr(s, name, saved[name].clone())
        for name, live in self._randomizer.fields.items():
            live[:] = saved[f"model/{name}"]
        if self._randomizer.constants:
            self.sim.set_const(everyone)
        for part, tensors in self._parts().items():
            tensors.update({k[len(part) + 1 :]: v.clone() for k, v in saved.items() if k.startswith(f"{part}/")})
        s.scale = {k.removeprefix("scale/"): float(v) for k, v in saved.items() if k.startswith("scale/")}
        self.sim.forward(everyone)

    def _parts(self) -> dict[str, dict[str, Tensor]]:
        parts = {"store": self.state.store, "memory": self._memory, "sums": self._sums, "obs": self.obs}
        return {**parts, "sensors": self._sensors.state, "pushes": self._pushes.state}


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


def _scatter(old: Tensor | None, new: Tensor, ids: Tensor) -> Tensor:
    """`old` with the rows `ids` replaced by `new`; all rows are new where there is no old."""
    return new if old is None else old.index_copy(0, ids, new)
