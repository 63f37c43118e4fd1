"""Some joints of a robot on a fixed base, simulated for many candidate sets of servo parameters at once.

A candidate is a row `theta`: for each parameter of `PARAMETERS`, in that order, the natural logarithm of each joint's
value, and last the delay in units of `DELAY_UNIT`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import mujoco
import numpy as np

from deftly.errors import DeftlyError
from deftly.robots import Robot
from deftly.robots.actuators import PARAMETERS
from deftly.sim import scene
from deftly.sim.cpu import CpuSim

if TYPE_CHECKING:
    from deftly.sysid.logs import HandLog

UNITS: dict[str, str] = dict(
    zip(PARAMETERS, ("N m/rad", "N m s/rad", "N m", "N m s/rad", "kg m2", "N m"))
)
DELAY_UNIT = 0.01
"""s; so that a step of 1 in the delay weighs like one in a logarithm."""
MAX_ENVS = 2048
"""Environments stepped at once: their commands and records stay within some 100 MB."""
MAX_COMMANDS = 16_000_000
"""Commands held at once."""
DELAY_SLACK = 0.002
"""A delay may be so far beyond its bounds, where a slope is measured at one of them, s."""
MAX_DIVISIONS = 8
"""Parts of a substep in which the integral of the commands is kept, at most."""
MIN_PART = 0.00006
"""No part need be shorter, s."""
MIN_VALUE = 1e-4
"""What a parameter that is zero in the robot's file counts as: zero has no logarithm."""


def branch_model(robot: Robot, joints: tuple[str, ...], timestep: float) -> mujoco.MjModel:
    """These joints' branch of the robot, its base fixed as in its file, without geoms: nothing is touched.

    Raises DeftlyError unless each joint has a position servo of its name.
    """
    spec = robot.spec()
    scene.prepare(spec)
    _delete_other_bodies(spec, joints)
    for elements in (spec.geoms, spec.sites, spec.lights):
        for element in list(elements):
            spec.delete(element)
    spec.option.timestep = timestep
    spec.option.disableflags |= mujoco.mjtDisableBit.mjDSBL_CONTACT.value
    model = spec.compile()
    for name in joints:
        _require_position_servo(model, name)
    return model


def _delete_other_bodies(spec: mujoco.MjSpec, joints: tuple[str, ...]) -> None:
    """Delete the subtrees that no joint of these moves in or hangs on."""
    keep = {"world"}
    for name in joints:
        keep |= _ancestors(spec.joint(name).parent)
    others = [body for body in spec.bodies if body.name not in keep]
    for body in others:
        if body.parent.name in keep:  # others go with their subtree
            spec.delete(body)


def _ancestors(body: mujoco.MjsBody) -> set[str]:
    """Names of a body and of those it hangs on, without the world."""
    names = set()
    while body.name != "world":
        names.add(body.name)
        body = body.parent
    return names


def _require_position_servo(model: mujoco.MjModel, name: str) -> None:
    servo = model.actuator(name)
    affine = servo.biastype[0] == mujoco.mjtBias.mjBIAS_AFFINE
    if not affine or servo.gainprm[0] != -servo.biasprm[1]:
        raise DeftlyError(f"sysid fits position servos, and the actuator of {name} is none")


class Window(NamedTuple):
    """Some samples of a log that are simulated from the state measured at the first."""

    first: int
    last: int  # the sample after the window's last
    burn_in: int  # samples that are simulated and not compared: the measured start is forgotten

    @property
    def samples(self) -> slice:
        """The samples simulated."""
        return slice(self.first, self.last)

    @property
    def compared(self) -> slice:
        """The samples compared."""
        return slice(self.first + self.burn_in, self.last)


class Chain:
    """Candidate parameters of a kinematic chain, simulated along a log.

    Args:
        robot: whose joints.
        joints: of one branch; the others are left out, as nothing of them reaches these but through a fixed base.
        log: what was commanded and measured.
        timestep: of the simulation, s.
        delays: least and greatest delay that a candidate may have, s.
    """

    def __init__(
        self,
        robot: Robot,
        joints: tuple[str, ...],
        log: HandLog,
        timestep: float,
        delays: tuple[float, float],
    ):
        self.joints = joints
        self.timestep = timestep
        self.delays = delays
        self.log = log
        self.steps = 0
        """Simulation steps so far, over all candidates."""
        self.model = branch_model(robot, joints, timestep)
        if self.model.nv != len(joints) or self.model.nu != len(joints):
            raise DeftlyError(
                f"sysid wants a servo on each joint of a branch; {joints[0]}'s has {self.model.nv} joints"
            )
        self._act = np.array([self.model.actuator(name).id for name in joints])
        self._dof = np.array([int(self.model.joint(name).dofadr[0]) for name in joints])

        names = [joint.name for joint in robot.joints]
        columns = [names.index(name) for name in joints]
        self.state = log.state[:, columns]
        self.cmd = log.cmd[:, columns]
        self._ctrl = self._clipped(self.cmd)

        divisions = round(timestep / MIN_PART)
        self._divisions = max(1, min(MAX_DIVISIONS, divisions))
        self._part = timestep / self._divisions  # s
        longest = delays[1] + timestep + DELAY_SLACK
        self._origin = int(np.ceil(longest / self._part)) + 1
        """Index of a window's first sample on the grid of the integral of the commands."""

        self._sim = CpuSim(self.model, MAX_ENVS)
        self._gain = self._sim.expand("actuator_gainprm").numpy()
        self._bias = self._sim.expand("actuator_biasprm").numpy()
        self._force_range = self._sim.expand("actuator_forcerange").numpy()
        self._friction = self._sim.expand("dof_frictionloss").numpy()
        damping = self._sim.expand("dof_damping").numpy()
        self._damping = damping.reshape(MAX_ENVS, self.model.nv, -1)
        self._armature = self._sim.expand("dof_armature").numpy()
        self._qpos = self._sim.bind("qpos").numpy()
        self._qvel = self._sim.bind("qvel").numpy()
        self._warmstart = self._sim.bind("qacc_warmstart").numpy()

    def _clipped(self, cmd: np.ndarray) -> np.ndarray:
        """Commands within the range of the actuators, rad."""
        if not self.model.actuator_ctrllimited.any():
            return cmd
        low, high = self.model.actuator_ctrlrange[self._act].T
        return np.clip(cmd, low, high)

    @property
    def size(self) -> int:
        """Numbers of a candidate."""
        return len(PARAMETERS) * len(self.joints) + 1

    def nominal(self) -> np.ndarray:
        """The candidate (size,) that the robot's file is, without delay (or with the least)."""
        m = self.model
        damping = m.dof_damping.reshape(m.nv, -1)
        values = np.concatenate(
            (
                m.actuator_gainprm[self._act, 0],
                -m.actuator_biasprm[self._act, 2],
                m.dof_frictionloss[self._dof],
                damping[self._dof, 0],
                m.dof_armature[self._dof],
                m.actuator_forcerange[self._act, 1],
            )
        )
        values = np.where(values > 0, values, MIN_VALUE)
        delay = max(0.0, self.delays[0])
        return np.append(np.log(values), delay / DELAY_UNIT)

    def simulate(self, theta: np.ndarray, windows: list[Window]) -> list[np.ndarray]:
        """Positions at the log's samples, for each window (candidates, samples, joints), rad."""
        times = [self.log.time[w.samples] - self.log.time[w.first] for w in windows]
        longest = max(time[-1] for time in times)
        steps = int(np.ceil(longest / self.timestep - 1e-9))
        integrals = np.stack([self._command_integral(w.first, steps) for w in windows])
        first = np.array([w.first for w in windows])

        out = [np.empty((len(theta), len(time), len(self.joints))) for time in times]
        count = max(1, min(MAX_ENVS, MAX_COMMANDS // (steps * self.model.nu)))
        runs = np.arange(len(windows) * len(theta))
        for begin in range(0, len(runs), count):
            window, candidate = np.divmod(runs[begin : begin + count], len(theta))
            ctrl = self._mean_commands(theta[candidate], integrals, window, steps)
            paths = self._rollout(theta[candidate], first[window], ctrl)
            for i in np.unique(window):
                own = window == i
                places = times[i] / self.timestep
                out[i][candidate[own]] = _interpolate(paths[own], places)
        return out

    def _rollout(self, theta: np.ndarray, first: np.ndarray, ctrl: np.ndarray) -> np.ndarray:
        """Positions after each step, (n, steps + 1, joints), rad, of candidates that start at the samples `first`.

        `ctrl` are their commands, (n, steps, joints), rad.
        """
        ids = np.arange(len(theta))
        self._set_parameters(theta, ids)
        for field in (self._qpos, self._qvel, self._warmstart):
            field[ids] = 0.0
        rows = ids[:, None]
        start = self.state[first]
        self._qpos[rows, self._dof] = start
        self._qvel[rows, self._dof] = self._velocity(first)
        control = np.zeros((*ctrl.shape[:2], self.model.nu))
        control[:, :, self._act] = ctrl
        paths = self._sim.rollout(ids, control, "qpos")[:, :, self._dof]
        self.steps += ctrl.shape[0] * ctrl.shape[1]
        return np.concatenate((start[:, None], paths), 1)

    def _set_parameters(self, theta: np.ndarray, ids: np.ndarray) -> None:
        """Give the environments `ids` the parameters of the candidates."""
        values = np.exp(theta[:, :-1]).reshape(-1, len(PARAMETERS), len(self.joints))
        kp, kd, friction, damping, armature, torque = values.swapaxes(0, 1)
        rows = ids[:, None]
        self._gain[rows, self._act, 0] = kp
        self._bias[rows, self._act, 1] = -kp
        self._bias[rows, self._act, 2] = -kd
        self._force_range[rows, self._act, 0] = -torque
        self._force_range[rows, self._act, 1] = torque
        self._friction[rows, self._dof] = friction
        self._damping[rows, self._dof, 0] = damping
        self._armature[rows, self._dof] = armature
        # friction is regularized by the inertia, to which the armature belongs
        self._sim.batch.set_const(ids)

    def _velocity(self, samples: np.ndarray) -> np.ndarray:
        """Joint velocities at samples of the log, (n, joints), by central differences, rad/s; none at the first."""
        before = np.maximum(samples - 1, 0)
        after = np.minimum(samples + 1, len(self.state) - 1)
        moved = self.state[after] - self.state[before]
        elapsed = self.log.time[after] - self.log.time[before]
        velocity = moved / elapsed[:, None]
        velocity[samples == 0] = 0.0
        return velocity

    def _command_integral(self, first: int, steps: int) -> np.ndarray:
        """Integral of the commands as sent over time, (grid, joints), rad s.

        The grid is fine, and starts the greatest delay before the window's first sample, which is at `_origin`.
        """
        time = self.log.time - self.log.time[first]
        ahead = max(0.0, -self.delays[0]) + DELAY_SLACK
        after = 2 + int(np.ceil(ahead / self._part))
        grid = self._part * np.arange(-self._origin, steps * self._divisions + after)
        # the first command is taken to have been held before, the last after
        begin = min(time[0], grid[0]) - 1.0
        end = max(time[-1], grid[-1]) + 1.0
        changes = np.concatenate(([begin], time[1:], [end]))
        parts = np.diff(changes)[:, None] * self._ctrl
        total = np.cumsum(parts, axis=0)
        total = np.concatenate((np.zeros((1, total.shape[1])), total))
        columns = [np.interp(grid, changes, column) for column in total.T]
        return np.stack(columns, -1)

    def _mean_commands(
        self, theta: np.ndarray, integrals: np.ndarray, window: np.ndarray, steps: int
    ) -> np.ndarray:
        """Mean command of candidates in each step, (n, steps, joints), rad, delayed: smooth in the delay.

        `integrals` are those of all windows, (windows, grid, joints); `window` (n,) says which is each candidate's.
        """
        delay = theta[:, -1] * DELAY_UNIT  # s
        # a step moves a joint as if its force had acted from the step's beginning
        shift = delay + self.timestep / 2
        begin = self._origin - shift * self._divisions / self.timestep
        whole = np.floor(begin).astype(int)
        fraction = (begin - whole)[:, None, None]
        rows = whole[:, None] + self._divisions * np.arange(steps + 1)
        below = integrals[window[:, None], rows]
        above = integrals[window[:, None], rows + 1]
        integral = below * (1.0 - fraction) + above * fraction
        return np.diff(integral, axis=1) / self.timestep


def _interpolate(path: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Values of a path (n, steps + 1, joints) between its steps, at fractional `places` (samples,)."""
    whole = np.floor(places + 1e-9).astype(int)
    whole = np.clip(whole, 0, path.shape[1] - 2)
    fraction = (places - whole)[:, None]
    return path[:, whole] * (1.0 - fraction) + path[:, whole + 1] * fraction
