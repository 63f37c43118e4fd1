"""A simulated robot alone, with servo parameters as one likes: to excite without hardware, and to test a fit."""

from __future__ import annotations

import mujoco
import numpy as np

from deftly.contract import JOINT_POS, PolicyContract
from deftly.control.drivers import Driver, DriverError, Reading
from deftly.robots import Robot
from deftly.sim import scene


class LoneRobot(Driver):
    """A `Driver` in lock-step: `write` lets one control period pass.

    Args:
        robot: which; all its joints, its base fixed, contacts and all.
        contract: its order of joints, and rate.
        parameters: by joint, those of its servo among `PARAMETERS` that differ from the robot's file.
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
        parameters: dict[str, dict[str, float]] | None = None,
        *,
        delay: float = 0.0,
        noise: float = 0.0,
        quantum: float = 0.0,
        jitter: float = 0.0,
        seed: int = 0,
        timestep: float = 0.0001,
    ):
        self.contract = contract
        self.timestep = timestep
        spec = robot.spec()
        scene.prepare(spec)
        spec.option.timestep = timestep
        self.model = spec.compile()
        for joint, values in (parameters or {}).items():
            _set_parameters(self.model, joint, values)

        self.data = mujoco.MjData(self.model)
        mujoco.mj_setConst(self.model, self.data)
        names = contract.joint_names
        actuators = [self.model.actuator(name) for name in names]
        joints = [self.model.joint(name) for name in names]
        self._act = [actuator.id for actuator in actuators]
        self._qpos = [int(joint.qposadr[0]) for joint in joints]
        self.robot = contract.robot
        home = np.array(contract.home())
        self.data.qpos[self._qpos] = home
        self.data.ctrl[self._act] = home
        mujoco.mj_forward(self.model, self.data)

        # steps; a step moves a joint as if its force had acted from the step's beginning
        self._delay = delay / timestep + 0.5
        self._noise = noise
        self._quantum = quantum
        self._jitter = jitter
        self._rng = np.random.default_rng(seed)
        self._steps = 0
        self._pending: list[tuple[float, np.ndarray]] = []
        self._held = home
        self.contact_steps = 0
        """Substeps in which geoms were in contact."""

    @property
    def now(self) -> float:
        """Simulated time, s."""
        return self._steps * self.timestep

    def read(self) -> Reading:
        """Joint positions as the encoders measure them."""
        noise = self._rng.normal(0.0, self._noise, len(self._qpos))
        position = self.data.qpos[self._qpos] + noise
        if self._quantum:
            position = self._quantum * np.round(position / self._quantum)
        return Reading({JOINT_POS: position}, self.now)

    def write(self, targets: np.ndarray) -> None:
        """Send the targets, and let a control period pass."""
        arrival = self._steps + self._delay
        self._pending.append((arrival, np.array(targets)))
        period = 1.0 / self.contract.rate
        most = 0.4 * period
        jitter = self._rng.normal(0.0, self._jitter)
        period += np.clip(jitter, -most, most)
        steps = round(period / self.timestep)
        for _ in range(max(1, steps)):
            self.data.ctrl[self._act] = self._arrived()
            mujoco.mj_step(self.model, self.data)
            self.contact_steps += bool(self.data.ncon)
            self._steps += 1

    def _arrived(self) -> np.ndarray:
        """Mean command of the servos in the next step: one that arrives within it counts in part."""
        while self._pending and self._pending[0][0] <= self._steps:
            self._held = self._pending.pop(0)[1]
        if not self._pending:
            return self._held
        arrival, command = self._pending[0]
        fraction = max(0.0, 1.0 - (arrival - self._steps))
        if not fraction:
            return self._held
        return self._held + fraction * (command - self._held)

    def damp(self) -> None:
        """Raises DriverError: its base is fixed, so it stands in for robots that hold."""
        raise DriverError("this simulated robot holds its pose: it cannot be damped")

    def stop(self) -> None:
        """Nothing is held."""


def _set_parameters(model: mujoco.MjModel, joint: str, parameters: dict[str, float]) -> None:
    """Set some parameters of a joint and its servo."""
    act = model.actuator(joint).id
    dof = int(model.joint(joint).dofadr[0])
    for name, value in parameters.items():
        if name == "kp":
            model.actuator_gainprm[act, 0] = value
            model.actuator_biasprm[act, 1] = -value
        elif name == "kd":
            model.actuator_biasprm[act, 2] = -value
        elif name == "torque":
            model.actuator_forcerange[act] = -value, value
        elif name == "damping":
            model.dof_damping.reshape(model.nv, -1)[dof, 0] = value
        else:
            getattr(model, f"dof_{name}")[dof] = value
