"""A simulated robot alone, with servos as one likes: to excite without hardware, and to test what is fitted."""

from __future__ import annotations

import mujoco
import numpy as np

from deftly.contract import JOINT_POS, PolicyContract
from deftly.control.drivers import Reading
from deftly.robots import Robot
from deftly.sim import scene


class LoneRobot:
    """A `Driver` in lock-step: `write` lets one control period pass.

    Args:
        robot: which; all its joints, its base fixed, contacts and all.
        contract: its order of joints, and rate.
        figures: joint to its servo's figures, of those of `PARAMETERS` that differ from the robot's file.
        delay: from a command until its servo gets it, s.
        noise: standard deviation of what is measured, rad.
        quantum: step of the encoders, rad; 0 for none.
        jitter: standard deviation of the control periods, s; the readings' times are true.
        seed: of noise and jitter.
        timestep: s; finer than what candidates are simulated with, as the truth should not share their errors.
    """

    def __init__(
        self,
        robot: Robot,
        contract: PolicyContract,
        figures: dict[str, dict[str, float]] | None = None,
        *,
        delay: float = 0.0,
        noise: float = 0.0,
        quantum: float = 0.0,
        jitter: float = 0.0,
        seed: int = 0,
        timestep: float = 0.0001,
    ):
        self.contract, self.timestep = contract, timestep
        s = robot.spec()
        scene.prepare(s)
        s.option.timestep = timestep
        self.model = model = s.compile()
        self._act = [model.actuator(name).id for name in contract.joint_names]
        joints = [model.joint(name) for name in contract.joint_names]
        self._qpos, dof = [int(j.qposadr[0]) for j in joints], [int(j.dofadr[0]) for j in joints]
        for i, name in enumerate(contract.joint_names):
            _set(model, self._act[i], dof[i], (figures or {}).get(name, {}))
        self.data = mujoco.MjData(model)
        mujoco.mj_setConst(model, self.data)
        self.data.qpos[self._qpos] = self.data.ctrl[self._act] = contract.home()
        mujoco.mj_forward(model, self.data)
        self._delay = (
            delay / timestep + 0.5
        )  # steps; a step moves a joint as if its force had acted from its beginning
        self._noise, self._quantum, self._jitter = noise, quantum, jitter
        self._rng, self._steps = np.random.default_rng(seed), 0
        self._pending: list[tuple[float, np.ndarray]] = []
        self._held = np.array(contract.home())
        self.touched = 0
        """Substeps in which shapes were in contact."""

    @property
    def now(self) -> float:
        """Simulated time, s."""
        return self._steps * self.timestep

    def read(self) -> Reading:
        """Joint positions as the encoders tell them."""
        position = self.data.qpos[self._qpos] + self._rng.normal(0.0, self._noise, len(self._qpos))
        if self._quantum:
            position = self._quantum * np.round(position / self._quantum)
        return Reading({JOINT_POS: position}, self.now)

    def write(self, targets: np.ndarray) -> None:
        """Send the targets, and let a control period pass."""
        self._pending.append((self._steps + self._delay, np.array(targets)))
        period = 1.0 / self.contract.rate
        off = np.clip(self._rng.normal(0.0, self._jitter), -0.4 * period, 0.4 * period)
        for _ in range(max(1, round((period + off) / self.timestep))):
            self.data.ctrl[self._act] = self._arrived()
            mujoco.mj_step(self.model, self.data)
            self.touched += bool(self.data.ncon)
            self._steps += 1

    def _arrived(self) -> np.ndarray:
        """What the servos are told in the next step: a command that arrives within it counts in part."""
        while self._pending and self._pending[0][0] <= self._steps:
            self._held = self._pending.pop(0)[1]
        part = max(0.0, 1.0 - (self._pending[0][0] - self._steps)) if self._pending else 0.0
        return self._held + part * (self._pending[0][1] - self._held) if part else self._held

    def stop(self) -> None:
        """Nothing is held."""


def _set(model: mujoco.MjModel, act: int, dof: int, figures: dict[str, float]) -> None:
    """Give a joint and its servo some figures."""
    for name, value in figures.items():
        if name == "kp":
            model.actuator_gainprm[act, 0], model.actuator_biasprm[act, 1] = value, -value
        elif name == "kd":
            model.actuator_biasprm[act, 2] = -value
        elif name == "torque":
            model.actuator_forcerange[act] = -value, value
        elif name == "damping":
            model.dof_damping.reshape(model.nv, -1)[dof, 0] = value
        else:
            getattr(model, f"dof_{name}")[dof] = value
