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
LIKE_LENGTH = 0.7
"""Windows are simulated together where the shortest is at least this fraction of the longest."""
MAX_GROUP_S = 150.0
"""Windows that are simulated together have this length in all, or little more, s."""
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
    for element in [*spec.geoms, *spec.sites, *spec.lights]:
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
    kp = servo.gainprm[0]
    if not affine or servo.biasprm[1] != -kp:
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
        model = branch_model(robot, joints, timestep)
        num_joints = len(joints)
        if model.nv != num_joints or model.nu != num_joints:
            raise DeftlyError(
                f"sysid wants a servo on each joint of a branch; {joints[0]}'s has {model.nv} joints"
            )
        self.model = model
        self.joints = joints
        self.timestep = timestep
        self.delays = delays
        self.log = log
        self.steps = 0
        """Simulation steps so far, over all candidates."""

        names = [joint.name for joint in robot.joints]
        columns = [names.index(name) for name in joints]
        self.state = log.state[:, columns]
        self.cmd = log.cmd[:, columns]
        actuators = [model.actuator(name) for name in joints]
        self._act = np.array([actuator.id for actuator in actuators])
        dofs = [model.joint(name).dofadr[0] for name in joints]
        self._dof = np.array(dofs, int)
        self._ctrl = self._clipped(self.cmd)

        divisions = round(timestep / MIN_PART)
        self._divisions = max(1, min(MAX_DIVISIONS, divisions))
        self._part = timestep / self._divisions  # s
        longest = delays[1] + timestep + DELAY_SLACK
        self._origin = _ceil(longest / self._part) + 1
        """Index of a window's first sample on the grid of the integral of the commands."""

        sim = CpuSim(model, MAX_ENVS)
        self._sim = sim
        self._gain = sim.expand("actuator_gainprm").numpy()
        self._bias = sim.expand("actuator_biasprm").numpy()
        self._force_range = sim.expand("actuator_forcerange").numpy()
        self._friction = sim.expand("dof_frictionloss").numpy()
        damping = sim.expand("dof_damping").numpy()
        self._damping = damping.reshape(MAX_ENVS, num_joints, -1)
        self._armature = sim.expand("dof_armature").numpy()
        self._qpos = sim.bind("qpos").numpy()
        self._qvel = sim.bind("qvel").numpy()
        self._warmstart = sim.bind("qacc_warmstart").numpy()

    def _clipped(self, cmd: np.ndarray) -> np.ndarray:
        """Commands within the range of the actuators, rad."""
        limited = self.model.actuator_ctrllimited
        if not limited.any():
            return cmd
        ranges = self.model.actuator_ctrlrange[self._act]
        low, high = ranges.T
        return np.clip(cmd, low, high)

    @property
    def size(self) -> int:
        """Numbers of a candidate."""
        return len(PARAMETERS) * len(self.joints) + 1

    def nominal(self) -> np.ndarray:
        """The candidate (size,) that the robot's file is, without delay (or with the least)."""
        act = self._act
        dof = self._dof
        kp = self.model.actuator_gainprm[act, 0]
        kd = -self.model.actuator_biasprm[act, 2]
        friction = self.model.dof_frictionloss[dof]
        damping = self.model.dof_damping.reshape(len(dof), -1)[dof, 0]
        armature = self.model.dof_armature[dof]
        torque = self.model.actuator_forcerange[act, 1]
        values = np.concatenate((kp, kd, friction, damping, armature, torque))
        values = np.where(values > 0, values, MIN_VALUE)
        delay = max(0.0, self.delays[0])
        return np.append(np.log(values), delay / DELAY_UNIT)

    def simulate(self, theta: np.ndarray, windows: list[Window]) -> list[np.ndarray]:
        """Positions at the log's samples, for each window (candidates, samples, joints), rad."""
        paths: dict[int, np.ndarray] = {}
        for group in self._of_like_length(windows):
            found = self._simulate(theta, [windows[i] for i in group])
            paths |= zip(group, found)
        return [paths[i] for i in range(len(windows))]

    def _of_like_length(self, windows: list[Window]) -> list[list[int]]:
        """Indices of windows that are simulated together, as far as the longest of them."""
        seconds = [float(self._times(window)[-1]) for window in windows]
        order = sorted(range(len(windows)), key=lambda i: -seconds[i])
        groups: list[list[int]] = []
        longest = room = 0.0
        for i in order:
            if not groups or seconds[i] < LIKE_LENGTH * longest or room < longest:
                groups.append([])
                longest = seconds[i]
                room = MAX_GROUP_S
            groups[-1].append(i)
            room -= longest
        return groups

    def _simulate(self, theta: np.ndarray, windows: list[Window]) -> list[np.ndarray]:
        """As `simulate`, all windows for as long as the longest."""
        times = [self._times(window) for window in windows]
        longest = max(time[-1] for time in times)
        steps = _ceil(longest / self.timestep - 1e-9)
        first = np.array([window.first for window in windows])
        integrals = np.stack([self._command_integral(sample, steps) for sample in first])
        paths = []
        for time in times:
            shape = (len(theta), len(time), len(self.joints))
            paths.append(np.empty(shape))

        runs = len(windows) * len(theta)  # each window with each candidate
        count = MAX_COMMANDS // (steps * len(self.joints))
        count = max(1, min(MAX_ENVS, count))
        for begin in range(0, runs, count):
            run = np.arange(begin, min(begin + count, runs))
            window, candidate = np.divmod(run, len(theta))
            rows = theta[candidate]
            ctrl = self._mean_commands(rows, integrals, window, steps)
            qpos = self._rollout(rows, first[window], ctrl)
            for i in np.unique(window):
                own = window == i
                places = times[i] / self.timestep
                paths[i][candidate[own]] = _interpolate(qpos[own], places)
        return paths

    def _times(self, window: Window) -> np.ndarray:
        """Times of a window's samples, (samples,), s from its first."""
        time = self.log.time
        return time[window.samples] - time[window.first]

    def _rollout(self, theta: np.ndarray, first: np.ndarray, ctrl: np.ndarray) -> np.ndarray:
        """Positions after each step, (n, steps + 1, joints), rad, of candidates that start at the samples `first`.

        `ctrl` are their commands, (n, steps, joints), rad.
        """
        count, steps, num_joints = ctrl.shape
        ids = np.arange(count)
        rows = ids[:, None]
        start = self.state[first]
        self._set_parameters(theta, ids)
        self._qpos[ids] = 0.0
        self._qvel[ids] = 0.0
        self._warmstart[ids] = 0.0
        self._qpos[rows, self._dof] = start
        self._qvel[rows, self._dof] = self._velocity(first)
        control = np.zeros((count, steps, num_joints))
        control[:, :, self._act] = ctrl
        qpos = self._sim.rollout(ids, control, "qpos")
        self.steps += count * steps
        moved = qpos[:, :, self._dof]
        return np.concatenate((start[:, None], moved), 1)

    def _set_parameters(self, theta: np.ndarray, ids: np.ndarray) -> None:
        """Give the environments `ids` the parameters of the candidates."""
        num_joints = len(self.joints)
        values = np.exp(theta[:, :-1])
        values = values.reshape(-1, len(PARAMETERS), num_joints)
        kp, kd, friction, damping, armature, torque = values.swapaxes(0, 1)
        rows = ids[:, None]
        act = self._act
        dof = self._dof
        self._gain[rows, act, 0] = kp
        self._bias[rows, act, 1] = -kp
        self._bias[rows, act, 2] = -kd
        self._force_range[rows, act, 0] = -torque
        self._force_range[rows, act, 1] = torque
        self._friction[rows, dof] = friction
        self._damping[rows, dof, 0] = damping
        self._armature[rows, dof] = armature
        # friction is regularized by the inertia, to which the armature belongs
        self._sim.batch.set_const(ids)

    def _velocity(self, samples: np.ndarray) -> np.ndarray:
        """Joint velocities at samples of the log, (n, joints), by central differences, rad/s; none at the first."""
        last = len(self.state) - 1
        before = np.maximum(samples - 1, 0)
        after = np.minimum(samples + 1, last)
        time = self.log.time
        elapsed = time[after] - time[before]
        moved = self.state[after] - self.state[before]
        velocity = moved / elapsed[:, None]
        velocity[samples == 0] = 0.0
        return velocity

    def _command_integral(self, first: int, steps: int) -> np.ndarray:
        """Integral of the commands as sent over time, (grid, joints), rad s.

        The grid is fine, and starts the greatest delay before the window's first sample, which is at `_origin`.
        """
        time = self.log.time - self.log.time[first]
        ahead = max(0.0, -self.delays[0]) + DELAY_SLACK
        after = 2 + _ceil(ahead / self._part)
        end = steps * self._divisions + after
        grid = self._part * np.arange(-self._origin, end)
        # the first command is taken to have been held before, the last after
        before_all = min(time[0], grid[0]) - 1.0
        after_all = max(time[-1], grid[-1]) + 1.0
        changes = np.concatenate(([before_all], time[1:], [after_all]))
        held = np.diff(changes)[:, None]  # s, for which each command held
        total = np.cumsum(held * self._ctrl, axis=0)
        zero = np.zeros((1, len(self.joints)))
        total = np.concatenate((zero, total))
        columns = [np.interp(grid, changes, column) for column in total.T]
        return np.stack(columns, -1)

    def _mean_commands(
        self,
        theta: np.ndarray,
        integrals: np.ndarray,
        window: np.ndarray,
        steps: int,
    ) -> np.ndarray:
        """Mean command of candidates in each step, (n, steps, joints), rad, delayed: smooth in the delay.

        `integrals` are those of all windows, (windows, grid, joints); `window` (n,) is that of each candidate.
        """
        delay = theta[:, -1] * DELAY_UNIT  # s
        # a step moves a joint as if its force had acted from the step's beginning
        shift = delay + self.timestep / 2
        begin = self._origin - shift * self._divisions / self.timestep
        whole = np.floor(begin).astype(int)
        fraction = begin - whole
        steps_on_grid = self._divisions * np.arange(steps + 1)
        place = whole[:, None] + steps_on_grid
        window = window[:, None]
        below = integrals[window, place]
        above = integrals[window, place + 1]
        integral = _lerp(below, above, fraction[:, None, None])
        return np.diff(integral, axis=1) / self.timestep


def _interpolate(path: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Values of a path (n, steps + 1, joints) between its steps, at fractional `places` (samples,)."""
    last = path.shape[1] - 2
    whole = np.floor(places + 1e-9).astype(int)
    whole = np.clip(whole, 0, last)
    fraction = places - whole
    below = path[:, whole]
    above = path[:, whole + 1]
    return _lerp(below, above, fraction[:, None])


def _lerp(below: np.ndarray, above: np.ndarray, fraction: np.ndarray) -> np.ndarray:
    return below * (1.0 - fraction) + above * fraction


def _ceil(number: float) -> int:
    return int(np.ceil(number))
