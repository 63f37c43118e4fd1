"""The batched loop: act, simulate, judge, observe, and reset in the step that ends an episode."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from deftly.config import EnvConfig, SimConfig
from deftly.contract import STATE, Memory, PolicyContract, Signal
from deftly.control.operator.words import Words
from deftly.env.metrics import (
    EpisodeMetrics,
    NanCounter,
    check_flags,
    check_metrics,
    check_rewards,
    check_vector,
    means,
)
from deftly.errors import DeftlyError
from deftly.render.cameras import Cameras, image_signals
from deftly.sim import backlash, looks, make_sim
from deftly.sim.backlash import Backlash
from deftly.sim.pushes import Pushes
from deftly.sim.randomize import Randomize, Randomizer, prepare
from deftly.sim.rows import Rows
from deftly.sim.scene import compile_scene, let_sleep
from deftly.sim.sensors import Sensors
from deftly.sim.state import EPISODE, State
from deftly.tasks import Task

if TYPE_CHECKING:
    import mujoco

Obs = dict[str, Tensor]


class Step(NamedTuple):
    """One step of all environments, as torch tensors."""

    obs: Obs  # `policy` (num_envs, obs_size) and `critic`, float32; of the new episode where one ended
    reward: Tensor  # (num_envs,) float32
    terminated: Tensor  # (num_envs,) bool: the task failed, succeeded, or its physics broke
    truncated: Tensor  # (num_envs,) bool: time is up; never together with `terminated`
    final_obs: Obs  # the observation at the end of the step, before any reset
    success: Tensor  # (num_envs,) bool: the task is done
    signals: dict[str, Tensor]  # the readings that `obs` was made of, by signal name


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """Torch computes on the calling thread alone; the simulation keeps its own.

    To wake a second thread takes longer than most operations on the numbers of a thousand environments.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Env:
    """`num_envs` environments of one task.

    Args:
        task: scene, contract and Markov decision process.
        cfg: how many environments, and which disturbances act.
        sim: the physics engine and how fine it is.
        seed: with `purpose` it seeds every draw.
        purpose: `train`, `validate`, `evaluate`, ...: purposes never share a stream of draws.
        dump_dir: environments whose physics breaks are written there for `deftly.sim.guard.replay`; None only
            counts them.

    Attributes:
        obs: the newest observation.
        signals: the sensor readings that it was made of.
        inputs: what the task's operator says with them, by name; empty if the contract has none.
        auto_reset: start the next episode in the step that ends one; without it the caller resets.
        on_step: called after each step, by who wants to watch; None: nobody.
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
        self._sim_cfg = sim = sim or SimConfig()
        self.task = task
        self.cfg = cfg
        self.contract: PolicyContract = task.contract()
        self.purpose = purpose
        self.num_envs = cfg.num_envs
        self.episode_steps = cfg.episode_steps or task.cfg.episode_steps
        self.substeps = sim.substeps_at(self.contract.rate)
        entries = self._randomization()
        self.model = self._compile(entries, with_looks=False)
        self.sim = make_sim(
            sim.engine, self.model, cfg.num_envs, sim.threads, cfg.device, dump_dir, sim.contacts
        )
        self.device = self.sim.device
        self.state = State(self.sim, self.contract, self.episode_steps)
        self.seed(seed)
        of_model, of_gears = backlash.split(entries)
        self._randomizer = Randomizer(self.sim, of_model)
        self._backlash = Backlash(self.state, of_gears, self.contract.joint_names)
        self._signal_shapes = {s.name: s.shape for s in self.contract.signals}
        noise = task.noise() if cfg.noise else {}
        sizes = {s.name: s.size for s in self.contract.signals if not s.is_image}
        self._sensors = Sensors(noise, sizes, self.num_envs, self.state.generator)
        self._pushes = Pushes(self.state, task.pushes() if cfg.pushes else (), self.contract.rate)
        self._weights = {name: float(w) for name, w in vars(task.cfg.weights).items()}
        self._scales: tuple[tuple[float, ...], Tensor] | None = None
        self._nan = NanCounter(self.device)
        self._everyone = torch.ones(self.num_envs, dtype=torch.bool, device=self.device)
        self._episode = {
            "unsettled": torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)
        }
        self._metrics = EpisodeMetrics(self.num_envs, self._weights, self.device)
        self._checked = False
        self._cameras: Cameras | None = None
        self._final: tuple[Rows, Tensor, dict[str, Tensor]] | None = None
        self._ended: dict[str, Tensor] | None = None
        self.auto_reset = True
        self.on_step: Callable[[], None] | None = None
        self.reset()

    def _compile(self, entries: tuple[Randomize, ...], with_looks: bool) -> mujoco.MjModel:
        """The task's scene, prepared for what differs between episodes."""
        spec = self.task.scene()
        prepare(spec, entries, 1 / (self.contract.rate * self.substeps))
        if not with_looks:  # images are drawn of any state: there is nothing to be asleep
            let_sleep(spec, self._sim_cfg.engine)
        return compile_scene(spec, self.contract.rate, self._sim_cfg, with_looks)

    @cached_property
    def drawn(self) -> mujoco.MjModel:
        """The scene for images: `model` is without geoms that are only drawn. States fit both."""
        return self._compile(self._randomization(), with_looks=True)

    def drawn_of(self, index: int) -> mujoco.MjModel:
        """`drawn`, with one environment's own values of what differs between them."""
        return looks.restored(self.drawn, self.sim.model_of(index))

    def _randomization(self) -> tuple[Randomize, ...]:
        """What differs between episodes: the task's entries and the latency of commands, as `cfg` has them."""
        low, high = (1e-3 * ms for ms in self.cfg.latency_ms)
        own = self.task.randomize() if self.cfg.randomize else ()
        if high <= 0:
            return own
        return (
            *own,
            Randomize("latency", low, high, self.contract.joint_names, op="add", shared=True),
        )

    def seed(self, seed: int) -> None:
        """Restart the stream of draws: the episodes after the next `reset` are those of a new `Env` of this seed."""
        digest = hashlib.sha256(
            f"{self.purpose}/{seed}".encode()
        ).digest()  # training sees no episode that judges it
        self.state.generator.manual_seed(int.from_bytes(digest[:7], "big"))

    # ------------------------------------------------------------------------------- the loop

    @_one_torch_thread()
    def reset(self, mask: Tensor | None = None) -> Obs:
        """Start new episodes and return the observation.

        Args:
            mask: Which environments, `(num_envs,)` bool, where `auto_reset` is off; None: all, as the first reset must.
        """
        if mask is not None:
            self._start(Rows(mask))
            return self.obs
        self.obs: Obs = {}
        self.signals: dict[str, Tensor] = {}
        self.inputs: dict[str, Tensor] = {}
        self._heard: dict[str, Tensor] = {}
        self._memory: Memory = {}
        self._start(Rows(self._everyone))
        if not self._metrics.names:
            self._metrics.name_failures(self.task.failed(self.state))
        return self.obs

    @_one_torch_thread()
    @torch.no_grad()
    def step(self, action: Tensor) -> Step:
        """Apply one action, `(num_envs, action_size)` in [-1, 1]; larger values are clipped, NaN counts as 0."""
        s, task = self.state, self.task
        self._act(action)
        self._pushes.apply()
        broken = self.sim.step(self.substeps) | self._episode["unsettled"]
        s.steps += 1
        task.update(s)

        reward = self._reward(broken)
        failures = self._failures(broken)
        success = self._success(broken)
        failed = torch.stack([*failures.values()]).any(0)
        terminated = failed | (success & task.cfg.stop_on_success)
        truncated = (s.steps >= self.episode_steps) & ~terminated

        self.signals = self._sensors.read(self._true_signals(self.state, broken))
        self.obs = final_obs = self._observe(broken)
        ended = Rows(terminated | truncated)
        self._end(ended, success, failures, truncated)
        if self.auto_reset:
            self._start(ended)
        if self.on_step:
            self.on_step()
        return Step(self.obs, reward, terminated, truncated, final_obs, success, self.signals)

    def _act(self, action: Tensor) -> None:
        """Turn the action into joint commands, and hand them to the actuators."""
        s = self.state
        if tuple(action.shape) != tuple(s.action.shape):
            expected = tuple(s.action.shape)
            robot = self.contract.robot.name
            raise DeftlyError(
                f"action has shape {tuple(action.shape)}, but {robot} takes {expected}"
            )
        s.last_action = s.action
        s.action = action.to(self.device, torch.float32).nan_to_num(0.0).clip(-1.0, 1.0)
        s.command, self._memory = self.contract.act(s.action, self._memory)
        s.set_targets(self._backlash(s.command))

    def _reward(self, broken: Tensor) -> Tensor:
        """The weighted sum of the task's terms, `(num_envs,)`; nothing of environments whose physics broke."""
        s = self.state
        terms = self.task.rewards(s)
        check_rewards(terms, self._weights, self.num_envs)
        values = torch.stack([terms[name] for name in self._weights]).float()
        scales = tuple(w * s.scale.get(name, 1.0) for name, w in self._weights.items())
        values = self._nan.clean_rewards(self._weights, values, broken)
        weighted = self._reward_scales(scales)[:, None] * values
        self._metrics.add(weighted, (s.action - s.last_action).abs().mean(-1))
        return weighted.sum(0)

    def _reward_scales(self, scales: tuple[float, ...]) -> Tensor:
        """Weights of the reward terms, `(terms,)`; a curriculum changes them now and then."""
        if self._scales is None or self._scales[0] != scales:
            self._scales = scales, torch.tensor(scales, device=self.device)
        return self._scales[1]

    def _success(self, broken: Tensor) -> Tensor:
        """Which tasks are done, `(num_envs,)` bool; none whose physics broke."""
        success = self.task.success(self.state)
        check_vector("`success`", success, self.num_envs)
        return success & ~broken

    def _failures(self, broken: Tensor) -> dict[str, Tensor]:
        """Conditions that end an episode as a failure, by name; `physics` is one."""
        failures = self.task.failed(self.state)
        if "physics" in failures:
            raise DeftlyError(
                "failure 'physics' is the environment's own: call the task's another name"
            )
        check_flags("failure", failures, self.num_envs)
        return {**failures, "physics": broken}

    def _end(
        self, rows: Rows, success: Tensor, failures: dict[str, Tensor], truncated: Tensor
    ) -> None:
        """Note how some episodes ended, before their environments are reset."""
        self._final = self._ended = None
        if not self._checked:
            check_metrics(self.task.metrics(self.state), self.num_envs)
            self._checked = True
        if rows.empty:
            return
        part, _ = self.state.part(rows)
        table = self._metrics.end(rows, self.state.steps, success, failures, truncated)
        own = {name: value.clone() for name, value in self.task.metrics(part).items()}
        self._final = rows, table, own

    @property
    def ended(self) -> dict[str, Tensor]:
        """The episodes that ended in the last step: `env`, their environments (n,), and each metric (n,)."""
        if self._ended is None:
            self._ended = self._rows_that_ended()
        return self._ended

    def _rows_that_ended(self) -> dict[str, Tensor]:
        if self._final is None:
            return {}
        rows, table, own = self._final
        ids = rows.mask.nonzero().squeeze(-1)
        if not len(ids):
            return {}
        found = {**dict(zip(self._metrics.names, table)), **own}
        if rows.count > len(ids):  # on a GPU they are of all environments
            found = {name: value[ids] for name, value in found.items()}
        return {"env": ids, **found}

    # ------------------------------------------------------------------------------- the start of episodes

    def _start(self, rows: Rows) -> None:
        """Start new episodes in some environments."""
        if rows.empty:
            return
        s = self.state
        self._randomizer.draw(rows, s.generator)
        self.sim.reset(rows.mask)
        for value in self._episode_tensors():
            rows.put(value, 0)
        part, mask = s.part(rows)
        self.task.reset(part, mask)
        held = part.joint_pos.float()
        part.set_targets(held, mask)
        part.write_back()
        self._backlash.start(rows, held)
        self.sim.hold_commands(rows.mask)
        self.sim.forward(rows.mask)
        settled = self._settle(rows)
        part, mask = s.part(rows)
        self.task.start(part, mask)
        part.write_back()
        self._first_observation(rows, part, held if settled else None)

    def _episode_tensors(self) -> list[Tensor]:
        """What starts with zeros in each episode."""
        own = [getattr(self.state, name) for name in EPISODE]
        parts = (self.state.store, self._metrics.state, self._pushes.state, self._episode)
        return own + [value for part in parts for value in part.values()]

    def _settle(self, rows: Rows) -> bool:
        """Let robots stand as in a control loop before its start, held by their servos; returns whether they may sag.

        A hand that holds something gives way until its servos carry it. So a policy never starts where they carry none.
        How long differs by environment: those that are done wait while the others go on.
        """
        least, most = (round(seconds * self.contract.rate) for seconds in self.task.cfg.ready_s)
        if not most:
            return False
        drawn = least + (most + 1 - least) * rows.draw(self.state.generator, dtype=torch.float64)
        periods = torch.zeros(self.num_envs, dtype=torch.long, device=self.device)
        rows.put(periods, drawn.long().clip(max=most))
        ends = range(1, most + 1) if rows.ids is None else rows.take(periods).unique().tolist()
        begin = 0
        for end in ends:
            if end > begin:
                self._episode["unsettled"] |= self.sim.step(
                    (end - begin) * self.substeps, periods >= end
                )
            begin = end
        return True

    def _first_observation(self, rows: Rows, part: State, held: Tensor | None) -> None:
        """Signals and observation of new episodes; `held (rows.count, num_joints)` is what servos held in settling."""
        broken = rows.take(self._episode["unsettled"])
        signals = self._sensors.reset(self._true_signals(part, broken, rows), rows)
        self.signals = rows.merge_all(self.signals, signals)
        said = self._said(part, rows)
        self.inputs = rows.merge_all(self.inputs, said)
        observed, memory = self.contract.begin(signals, said, command=held)
        self._memory = rows.merge_all(self._memory, memory, self.contract.is_history)
        self.state.command = self._memory["command"]
        self.obs = rows.merge_all(self.obs, self._groups(part, observed, broken))

    # ------------------------------------------------------------------------------- signals and observations

    def _true_signals(
        self, s: State, broken: Tensor, rows: Rows | None = None
    ) -> dict[str, Tensor]:
        """What a perfect robot would measure now, by name, in the environments of `s`: float32, images as they are."""
        found = self.task.signals(s)
        images = self._seen(image_signals(self.contract, found), rows)
        names = found.keys() | images.keys()
        if names != self._signal_shapes.keys():
            raise DeftlyError(
                f"`signals` gives {[*found]}, but the contract names {[*self._signal_shapes]}"
            )
        true = {name: self._true_signal(name, value, broken) for name, value in found.items()}
        return true | images

    def _seen(self, signals: tuple[Signal, ...], rows: Rows | None) -> dict[str, Tensor]:
        """What the scene's cameras see in all or some environments, `(n, height, width, 3)` uint8 by signal."""
        if not signals:
            return {}
        if self._cameras is None:
            self._cameras = Cameras(self.drawn, signals)
            weakref.finalize(self, self._cameras.close)
        ids = range(self.num_envs) if rows is None or rows.ids is None else rows.ids.tolist()
        images = self._cameras.images(self.sim, ids, self._randomizer.fields)
        return {name: torch.from_numpy(v).to(self.device) for name, v in images.items()}

    def _true_signal(self, name: str, value: Tensor, broken: Tensor) -> Tensor:
        shape = (len(broken), *self._signal_shapes[name])
        if tuple(value.shape) != shape:
            raise DeftlyError(
                f"signal '{name}' has shape {tuple(value.shape)}, but the contract says {shape}"
            )
        if value.dtype == torch.uint8:
            return value
        return self._nan.clean(f"signal/{name}", value.float(), broken)

    def hear(self, inputs: Mapping[str, Any] | None) -> None:
        """From now on, an operator says this instead of the task: numbers `(size,)`, by name of an input.

        What is beyond an input's range is clipped. None: the task again. Raises DeftlyError for what is no input.
        """
        self._heard = {}
        for name, value in Words(self.contract).checked(inputs or {}).items():
            if not isinstance(value, str):  # no observation sees a text
                words = torch.as_tensor(value, dtype=self.state.dtype, device=self.device)
                self._heard[name] = words.expand(self.num_envs, -1)
        self.inputs = self._said(self.state)

    def _said(self, s: State, rows: Rows | None = None) -> dict[str, Tensor]:
        """What the operator says now in the environments of `s`, which are `rows` (None: all), by name: float32."""
        heard = self._heard
        if heard:
            if rows is not None and s is not self.state:
                heard = {name: rows.take(value) for name, value in heard.items()}
            self.task.hear(s, heard)
            s.write_back()
        said = {**self.task.inputs(s), **heard}
        return {name: value.float() for name, value in said.items()}

    def _observe(self, broken: Tensor) -> Obs:
        """Observations of the newest signals."""
        self.inputs = self._said(self.state)
        observed, self._memory = self.contract.observe(self.signals, self._memory, self.inputs)
        return self._groups(self.state, observed, broken)

    def _groups(self, s: State, observed: Mapping[str, Tensor], broken: Tensor) -> Obs:
        """Observations by group in the environments of `s`: what the policy sees, and what the critic does."""
        groups = {group_of(name): value for name, value in observed.items()}
        return {**groups, "critic": self._critic(s, groups, broken)}

    def _critic(self, s: State, seen: Obs, broken: Tensor) -> Tensor:
        """What the critic sees: the numbers that the policy sees, if there are any, and what the task adds."""
        policy = seen.get("policy", torch.zeros(s.num_envs, 0, device=self.device))
        privileged = self.task.privileged(s)
        if privileged is None:
            return policy
        if privileged.ndim != 2 or len(privileged) != s.num_envs:
            raise DeftlyError(
                f"`privileged` has shape {tuple(privileged.shape)}, but is to have ({s.num_envs}, k)"
            )
        extra = self._nan.clean("privileged", privileged.float(), broken)
        return torch.cat((policy, extra), -1)

    # ------------------------------------------------------------------------------- statistics

    def statistics(self) -> dict[str, Tensor]:
        """Sums over the episodes that ended since the last call, their count, and the count of NaN: float64 numbers.

        The names and their order are the same in every process, so that several may add theirs up before `means`.
        """
        taken = self._metrics.take()
        return {"episodes": taken.pop("episodes"), "nan": self._nan.take(), **taken}

    def adapt(self, progress: dict[str, float]) -> None:
        """Let the task's curriculum adapt to the means over episodes that ended."""
        if "success" in progress:
            self.task.curriculum(self.state, progress)

    def progress(self) -> dict[str, float]:
        """Means over the episodes that ended since the last call, by which the task's curriculum then adapts."""
        found = means(self.statistics())
        self.adapt(found)
        return found

    @property
    def metric_names(self) -> list[str]:
        """Names of what `progress` gives; `steps` is called `episode_steps` in training logs."""
        names = ["episode_steps" if name == "steps" else name for name in self._metrics.names]
        return [*names, "nan"]

    @property
    def episode_rewards(self) -> dict[str, Tensor]:
        """Weighted sums of each reward term over the running episodes, `(num_envs,)` by name."""
        return dict(zip(self._weights, self._metrics.state["terms"].unbind(-1)))

    @property
    def nan_counts(self) -> dict[str, int]:
        """Numbers that were not finite and counted as 0, by `reward/NAME`, `signal/NAME` or `privileged`."""
        return self._nan.counts

    @property
    def broken_count(self) -> int:
        """How many environments were reset since the start because their physics broke."""
        return self.sim.broken_count

    def stagger(self) -> None:
        """Spread the environments over the length of an episode, so that they do not all run out of time at once."""
        s = self.state
        s.steps[:] = torch.randint(
            self.episode_steps, (self.num_envs,), generator=s.generator, device=self.device
        )

    # ------------------------------------------------------------------------------- save and restore

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that decides the future of the environment, as a flat mapping of tensors."""
        saved = {"sim": self.sim.get_state(), "generator": self.state.generator.get_state()}
        saved |= {name: getattr(self.state, name) for name in EPISODE}
        parts = {"model": self._randomizer.fields, **self._parts()}
        saved |= {f"{part}/{k}": v for part, tensors in parts.items() for k, v in tensors.items()}
        saved |= {
            f"scale/{k}": torch.tensor(v, dtype=torch.float64) for k, v in self.state.scale.items()
        }
        return {k: v.clone() for k, v in saved.items()}

    def load_state_dict(self, saved: dict[str, Tensor]) -> None:
        """Restore what `state_dict` gave; the environment then continues bit for bit."""
        s = self.state
        found, own = tuple(saved["sim"].shape), tuple(self.sim.get_state().shape)
        if found != own:
            differ = f"saved state is of {found} environments x numbers, this environment has {own}"
            raise DeftlyError(f"{differ}: use the saved configuration")
        self.sim.set_state(saved["sim"].to(self.device))
        s.generator.set_state(saved["generator"].cpu())
        for name in EPISODE:
            setattr(s, name, saved[name].to(self.device, copy=True))
        for name, live in self._randomizer.fields.items():
            live.copy_(saved[f"model/{name}"])
        if self._randomizer.constants:
            self.sim.set_const()
        for part, tensors in self._parts().items():
            own_part = {k[len(part) + 1 :]: v for k, v in saved.items() if k.startswith(f"{part}/")}
            for name, value in own_part.items():
                if part == "store" and value.shape[:1] != (self.num_envs,):
                    what = f"saved {part}/{name} is of shape {tuple(value.shape)}"
                    raise DeftlyError(f"{what}, not of {self.num_envs} environments")
                tensors[name] = value.to(self.device, copy=True)
        s.scale = {
            k.removeprefix("scale/"): float(v) for k, v in saved.items() if k.startswith("scale/")
        }
        self.sim.forward()

    def _parts(self) -> dict[str, dict[str, Tensor]]:
        """Mappings of tensors that are saved, by a name for each."""
        return {
            "store": self.state.store,
            "memory": self._memory,
            "sums": self._metrics.state,
            "obs": self.obs,
            "signals": self.signals,
            "sensors": self._sensors.state,
            "pushes": self._pushes.state,
            "backlash": self._backlash.state,
            "episode": self._episode,
        }


def group_of(name: str) -> str:
    """How learners call a group of the contract's observation: the numbers are `policy`, images keep their name."""
    return "policy" if name == STATE else name
