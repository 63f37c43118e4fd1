"""A robot made of one plain MuJoCo simulation, driven as hardware is: read, write, and time that passes.

It is there to check the environment of training, so it shares as little with it as it can. Its own: stepping with
`mj_step` on one MjData, commands by the actuators' names, latency, sensor noise, its random streams, and that the
contract runs on numpy for one robot. Shared with training: the task's scene and its compilation (timestep and solver
of the preset), where an episode starts, which signals there are, and how it is judged; and `sim.state.State`, the view
through which a task looks at all that. Nothing is randomized: it is the nominal model.
"""

from __future__ import annotations

import hashlib
import weakref
from collections import deque
from collections.abc import Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import torch
from torch import Tensor

from deftly.config import SimConfig
from deftly.contract import Signal
from deftly.control.drivers import Driver, DriverError, Reading
from deftly.errors import DeftlyError
from deftly.render.cameras import Cameras, image_signals
from deftly.sim.scene import compile_scene
from deftly.sim.sensors import Noise
from deftly.sim.state import State
from deftly.tasks import Task

INTEGRATION = mujoco.mjtState.mjSTATE_INTEGRATION.value
BROKEN = [
    getattr(mujoco.mjtWarning, f"mjWARN_{name}").value
    for name in ("BADQPOS", "BADQVEL", "BADQACC", "BADCTRL")
]
SUCCESS, TIME_OUT, FAILED = "success", "time_out", "failed/"
ONE = torch.ones(1, dtype=torch.bool)


class OneSim:
    """The `Sim` protocol over one MjData: what a task's `State` looks at."""

    num_envs = 1
    device = torch.device("cpu")
    dtype = torch.float64
    overflow_count = 0
    dump_dir: Path | None = None

    def __init__(self, model: mujoco.MjModel):
        self.model = model
        self.data = mujoco.MjData(model)
        self._views: dict[tuple[object, str], Tensor] = {}

    @property
    def broken(self) -> bool:
        """Whether MuJoCo met a number that is not finite, or huge, since the reset."""
        data = self.data
        positions_finite = np.isfinite(data.qpos).all()
        finite = positions_finite and np.isfinite(data.qvel).all()
        return not finite or any(data.warning[i].number > 0 for i in BROKEN)

    @property
    def broken_count(self) -> int:
        """1 if the physics failed since the reset."""
        return int(self.broken)

    def bind(self, field: str) -> Tensor:
        """Live view of an MjData field, `(1, ...)`."""
        return self._view(self.data, field)

    def expand(self, field: str) -> Tensor:
        """Live view of an MjModel field, `(1, ...)`."""
        return self._view(self.model, field)

    def _view(self, owner: object, field: str) -> Tensor:
        key = (type(owner), field)
        if key not in self._views:
            values = attrgetter(field)(owner)
            self._views[key] = torch.from_numpy(values)[None]
        return self._views[key]

    def step(self, substeps: int, mask: Tensor | None = None) -> Tensor:
        """Advance; returns whether the physics failed, `(1,)` bool."""
        try:
            for _ in range(substeps):
                mujoco.mj_step(self.model, self.data)
            self.forward()
        except mujoco.FatalError:
            return torch.ones(1, dtype=torch.bool)
        return torch.tensor([self.broken])

    def forward(self, mask: Tensor | None = None) -> None:
        """Bring positions, contacts and their sensors up to date; forces stay those of the last substep."""
        mujoco.mj_fwdPosition(self.model, self.data)
        mujoco.mj_sensorPos(self.model, self.data)

    def reset(self, mask: Tensor | None = None) -> None:
        """Put the simulation at the home keyframe."""
        if self.model.nkey:
            mujoco.mj_resetDataKeyframe(self.model, self.data, 0)
        else:
            mujoco.mj_resetData(self.model, self.data)

    def set_const(self, mask: Tensor | None = None) -> None:
        """Recompute the model's constants."""
        mujoco.mj_setConst(self.model, self.data)

    def hold_commands(self, mask: Tensor | None = None) -> None:
        """Nothing: the twin delays commands itself."""

    def get_state(self) -> Tensor:
        """Copy of the integration state, `(1, n)`."""
        return torch.from_numpy(self.state_of(0))[None]

    def set_state(self, state: Tensor) -> None:
        """Restore what `get_state` gave."""
        mujoco.mj_setState(self.model, self.data, state[0].numpy(), INTEGRATION)

    def state_of(self, index: int) -> np.ndarray:
        """Copy of the integration state, `(n,)`."""
        out = np.empty(mujoco.mj_stateSize(self.model, INTEGRATION))
        mujoco.mj_getState(self.model, self.data, out, INTEGRATION)
        return out

    def model_of(self, index: int) -> mujoco.MjModel:
        """The model."""
        return self.model


class Sensor:
    """What a sensor does to one signal in one episode: bias, white noise, delay (in readings) and dropout."""

    def __init__(self, noise: Noise, size: int, rng: np.random.Generator):
        self._noise = noise
        self._size = size
        self._rng = rng
        self._bias = rng.uniform(-noise.bias, noise.bias, size)
        delay = int(rng.integers(noise.delay + 1))
        self._recent: deque[np.ndarray] = deque(maxlen=1 + delay)
        self._last: np.ndarray | None = None

    def read(self, value: np.ndarray) -> np.ndarray:
        """The reading, (size,), of a true value."""
        n, rng = self._noise, self._rng
        white = rng.uniform(-n.uniform, n.uniform, self._size) + rng.normal(
            0.0, n.gaussian, self._size
        )
        self._recent.append(value + self._bias + white)
        if self._last is None or rng.random() >= n.dropout:
            self._last = self._recent[0]
        return self._last


class SimRobot(Driver):
    """A `Driver` in lock-step: time stands still between `advance` calls.

    Args:
        task: whose scene, start, signals and judgement.
        sim: timestep and solver, as in training.
        seed: with the number of an episode, decides how it starts and what its sensors do, whatever came before.
        noise: let the task's sensor noise act; without it, readings are the truth.
        latency_ms: simulated time from `write` until the targets reach the servos, rounded up to whole substeps.

    A task that looks at the last action (`State.action`) in its judgement finds zeros: a robot is told targets alone.
    """

    def __init__(
        self,
        task: Task,
        sim: SimConfig | None = None,
        seed: int = 0,
        noise: bool = False,
        latency_ms: float = 0.0,
    ):
        if seed < 0 or not 0 <= latency_ms < 10_000:
            raise DeftlyError(
                f"seed is {seed}, latency-ms {latency_ms}, but they must be 0 or more (and 10 s at most)"
            )
        sim = sim or SimConfig()
        self.task = task
        self.contract = task.contract()
        self.seed = seed
        self.robot = self.contract.robot
        self.substeps = sim.substeps_at(self.contract.rate)
        self.model = compile_scene(task.scene(), self.contract.rate, sim)
        self.sim = OneSim(self.model)
        self.data = self.sim.data
        self.latency = 1e-3 * latency_ms
        self._noise = task.noise() if noise else {}
        self._cameras: Cameras | None = None
        State(self.sim, self.contract, 0)  # says which joint of the contract the scene lacks
        names = self.contract.joint_names
        self._ctrl = [self.model.actuator(name).id for name in names]
        self.reset(0)

    def reset(self, episode: int, state: np.ndarray | None = None) -> None:
        """Start an episode; `state`, as `state` gave it, replaces the one in which the task starts it.

        Raises DeftlyError if the state is another scene's.
        """
        sequence = np.random.SeedSequence([self.seed, episode])
        seeds = sequence.spawn(len(self._noise))
        self.view = s = State(self.sim, self.contract, self.task.cfg.episode_steps)
        label = f"sim2sim/{self.seed}/{episode}"
        digest = hashlib.sha256(label.encode()).digest()
        s.generator.manual_seed(int.from_bytes(digest[:7], "big"))
        self._sensors = {}
        for (name, noise), seed in zip(self._noise.items(), seeds):
            size = self.contract.source_size(name)
            self._sensors[name] = Sensor(noise, size, np.random.default_rng(seed))
        self._pending: deque[tuple[float, np.ndarray | None]] = deque()
        self._damped = False
        self._reading: Reading | None = None
        self._done = 0
        self._broken = False
        self.sim.reset()
        self.task.reset(s, ONE)
        s.set_targets(s.joint_pos)
        if state is not None:
            size = mujoco.mj_stateSize(self.model, INTEGRATION)
            if state.shape != (size,):
                raise DeftlyError(
                    f"the state has shape {state.shape}, this scene's are {size} numbers"
                )
            mujoco.mj_setState(self.model, self.data, state, INTEGRATION)
        self.sim.forward()
        self.task.start(s, ONE)
        rate = self.contract.rate
        least, most = (round(seconds * rate) for seconds in self.task.cfg.ready_s)
        drawn = torch.randint(least, most + 1, (1,), generator=s.generator)
        self.ready = max(1, int(drawn))
        """For how many control periods the robot is to stand ready before an operator starts the policy."""

    @property
    def now(self) -> float:
        """Simulated time since the episode was set up, s; it outlives a reset of MuJoCo's own after bad physics."""
        return self._done * self.model.opt.timestep

    @property
    def state(self) -> np.ndarray:
        """The integration state, (n,); commands that are still on their way are not in it."""
        return self.sim.state_of(0)

    def read(self) -> Reading:
        """The signals now; asking again at the same time gives the same reading."""
        if self._reading is None or self._reading.at != self.now:
            true = self._signals()
            noisy = {name: sensor.read(true[name]) for name, sensor in self._sensors.items()}
            self._reading = Reading({**true, **noisy}, self.now)
        return self._reading

    def write(self, targets: np.ndarray) -> None:
        """Send joint targets, (num_joints,), which the servos get `latency` later, and keep until the next."""
        targets = np.array(targets, np.float64)
        if targets.shape != (len(self._ctrl),):
            raise DriverError(
                f"targets have shape {targets.shape}, the robot has {len(self._ctrl)} joints"
            )
        self._pending.append((self.now + self.latency, targets))

    def damp(self) -> None:
        """Let the servos brake, until the next targets: each is sent where its joint is, and only damping is left."""
        self._pending.append((self.now + self.latency, None))

    def stop(self) -> None:
        """Nothing is held."""

    def step(self, substeps: int) -> None:
        """Let physics alone go on for some substeps."""
        for _ in range(substeps):
            self._command()
            if not self._broken:  # MuJoCo would go on from its reset
                self._broken = bool(self.sim.step(1)[0])
            self._done += 1

    def _command(self) -> None:
        """Let the servos have what has arrived by now."""
        while self._pending and self._pending[0][0] <= self.now + 1e-9:
            _, targets = self._pending.popleft()
            self._damped = targets is None
            if targets is not None:
                self.data.ctrl[self._ctrl] = targets
        if self._damped:
            self.data.ctrl[self._ctrl] = self.view.joint_pos[0].numpy()

    def advance(self, judge: bool = True) -> None:
        """One control period; the episode's clock runs, and the task looks on, only if `judge`."""
        self.step(self.substeps)
        if judge:
            self.judge()

    def judge(self) -> None:
        """Count a control period on the episode's clock, and let the task look at where it led."""
        self.view.steps += 1
        self.task.update(self.view)

    def said(self) -> dict[str, np.ndarray]:
        """What the task's operator says now, (size,) by name of an input of the contract."""
        said = self.task.inputs(self.view)
        return {name: value[0].double().numpy().copy() for name, value in said.items()}

    def hear(self, inputs: Mapping[str, Any]) -> None:
        """Judge by what another operator says now, numbers (size,) by name."""
        numbers = {}
        for name, value in inputs.items():
            if not isinstance(value, str):
                numbers[name] = torch.as_tensor(value)[None]
        self.task.hear(self.view, numbers)

    @property
    def broken(self) -> bool:
        """Whether the physics failed in this episode."""
        return self._broken or self.sim.broken

    @property
    def steps(self) -> int:
        """Control periods on the episode's clock."""
        return int(self.view.steps)

    @property
    def success(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the task is done."""
        return not self.broken and bool(self.task.success(self.view))

    @property
    def failed(self) -> str:
        """`physics`, or the task's name of what failed; empty if nothing did."""
        failed = self.task.failed(self.view)
        found = [name for name, value in failed.items() if value]
        return "physics" if self.broken else next(iter(found), "")

    @property
    def failures(self) -> list[str]:
        """Names of all that the task, or the physics, can fail by."""
        return [*self.task.failed(self.view), "physics"]

    @property
    def end(self) -> str:
        """Why the episode is over: `success`, `failed/NAME` or `time_out`; empty while it is not."""
        if self.failed:
            return FAILED + self.failed
        if self.success and self.task.cfg.stop_on_success:
            return SUCCESS
        out_of_time = self.steps >= self.view.episode_steps
        return (SUCCESS if self.success else TIME_OUT) if out_of_time else ""

    @property
    def metrics(self) -> dict[str, float]:
        """The task's own metrics of the episode so far."""
        metrics = self.task.metrics(self.view)
        return {name: float(value) for name, value in metrics.items()}

    def _signals(self) -> dict[str, np.ndarray]:
        """What the robot measures, (size,) float64 each; an image as it is."""
        signals = {name: value[0] for name, value in self.task.signals(self.view).items()}
        numbers = {}
        for name, value in signals.items():
            exact = value if value.dtype == torch.uint8 else value.double()
            numbers[name] = exact.numpy().copy()
        return numbers | self._images(image_signals(self.contract, signals))

    def _images(self, signals: tuple[Signal, ...]) -> dict[str, np.ndarray]:
        """What the scene's cameras see, (height, width, 3) uint8 by signal."""
        if not signals:
            return {}
        if self._cameras is None:
            self._cameras = Cameras(self.model, signals)
            weakref.finalize(self, self._cameras.close)
        images = self._cameras.images(self.sim, [0])
        return {name: rows[0] for name, rows in images.items()}
