"""Some joints of a robot on a fixed base, simulated for many candidates of their servos' figures at once.

A candidate is a row `theta`: for each parameter of `PARAMETERS`, in that order, the natural logarithm of each joint's
figure, and last the delay in units of `DELAY_UNIT`.
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
CHUNK = 2048
"""Simulations stepped at once: their commands and records stay within some 100 MB."""
NUMBERS = 16_000_000
"""Commands held at once."""
SLACK = 0.002
"""A delay may be so far beyond its bounds, where a slope is measured at one of them, s."""
FINE, FINEST = 8, 0.00006
"""Parts of a substep in which the integral of the commands is kept; but none need be shorter than so, s."""


def alone(robot: Robot, joints: tuple[str, ...], timestep: float) -> mujoco.MjModel:
    """These joints' branch of the robot, its base fixed as in its file, without shapes: nothing is touched.

    Raises DeftlyError unless each joint has a position servo of its name.
    """
    s = robot.spec()
    scene.prepare(s)
    keep = {b.name for name in joints for b in _line(s.joint(name).parent)}
    for body in [b for b in s.bodies if b.name not in keep and b.name != "world"]:
        if body.parent.name in keep or body.parent.name == "world":
            s.delete(body)
    for kind in (s.geoms, s.sites, s.lights):
        for thing in list(kind):
            s.delete(thing)
    s.option.timestep = timestep
    s.option.disableflags |= mujoco.mjtDisableBit.mjDSBL_CONTACT.value
    model = s.compile()
    for name in joints:
        servo = model.actuator(name)
        if (
            servo.biastype[0] != mujoco.mjtBias.mjBIAS_AFFINE
            or servo.gainprm[0] != -servo.biasprm[1]
        ):
            raise DeftlyError(f"sysid fits position servos, and the actuator of {name} is none")
    return model


def _line(body: mujoco.MjsBody) -> list[mujoco.MjsBody]:
    """A body and those it hangs on, up to the world."""
    line = []
    while body.name != "world":
        line.append(body)
        body = body.parent
    return line


class Window(NamedTuple):
    """Some samples of a log that are simulated from the state measured at the first."""

    first: int
    last: int  # the sample after the window's last
    burn: int  # samples in which the measured start is forgotten: they are simulated, and not compared


class Chain:
    """Candidates of some joints' figures, held against a log.

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
        self.joints, self.timestep, self.delays, self.log = joints, timestep, delays, log
        self._fine = max(1, min(FINE, round(timestep / FINEST)))
        model = alone(robot, joints, timestep)
        self.model, n = model, len(joints)
        self._act = np.array([model.actuator(name).id for name in joints])
        self._dof = np.array([int(model.joint(name).dofadr[0]) for name in joints])
        if model.nv != n or model.nu != n:
            raise DeftlyError(
                f"sysid wants a servo on each joint of a branch; {joints[0]}'s has {model.nv} joints"
            )
        columns = [robot.joints.index(j) for name in joints for j in robot.joints if j.name == name]
        self.state, self.cmd = log.state[:, columns], log.cmd[:, columns]
        low, high = model.actuator_ctrlrange[self._act].T
        self._cmd = np.clip(self.cmd, low, high) if model.actuator_ctrllimited.any() else self.cmd
        self._sim = CpuSim(model, CHUNK)
        names = ("actuator_gainprm", "actuator_biasprm", "actuator_forcerange")
        self._fields = {
            f: self._sim.expand(f).numpy()
            for f in (*names, "dof_frictionloss", "dof_damping", "dof_armature")
        }
        self._qpos, self._qvel = self._sim.bind("qpos").numpy(), self._sim.bind("qvel").numpy()
        self._start = self._sim.bind("qacc_warmstart").numpy()
        self.steps = 0
        """Simulation steps so far, over all candidates."""

    @property
    def size(self) -> int:
        """Numbers of a candidate."""
        return len(PARAMETERS) * len(self.joints) + 1

    def nominal(self) -> np.ndarray:
        """The candidate (size,) that the robot's file is, without delay (or with the least)."""
        m, act, dof = self.model, self._act, self._dof
        figures = [m.actuator_gainprm[act, 0], -m.actuator_biasprm[act, 2], m.dof_frictionloss[dof]]
        figures += [
            m.dof_damping.reshape(m.nv, -1)[dof, 0],
            m.dof_armature[dof],
            m.actuator_forcerange[act, 1],
        ]
        figures = [np.where(f > 0, f, 1e-4) for f in figures]  # what is zero has no logarithm
        return np.append(np.log(np.concatenate(figures)), max(0.0, self.delays[0]) / DELAY_UNIT)

    def simulate(self, theta: np.ndarray, windows: list[Window]) -> list[np.ndarray]:
        """Positions at the log's samples, for each window (candidates, samples, joints), rad."""
        spans = [self.log.time[w.first : w.last] - self.log.time[w.first] for w in windows]
        steps = max(int(np.ceil(span[-1] / self.timestep - 1e-9)) for span in spans)
        out = [np.empty((len(theta), len(span), len(self.joints))) for span in spans]
        integrals = np.stack([self._integral(w.first, steps) for w in windows])
        jobs = np.stack(
            np.meshgrid(range(len(windows)), range(len(theta)), indexing="ij"), -1
        ).reshape(-1, 2)
        chunk = max(1, min(CHUNK, NUMBERS // (steps * self.model.nu)))
        for first in range(0, len(jobs), chunk):
            place, who = jobs[first : first + chunk].T
            moved = self._run(theta[who], np.array(windows)[place, 0], integrals, place, steps)
            for i in np.unique(place):
                mine = place == i
                out[i][who[mine]] = _at(moved[mine], spans[i] / self.timestep)
        return out

    def _run(
        self,
        theta: np.ndarray,
        first: np.ndarray,
        integrals: np.ndarray,
        place: np.ndarray,
        steps: int,
    ) -> np.ndarray:
        """Positions after each step, (n, steps + 1, joints), of candidates that start at the samples `first`."""
        ids = np.arange(len(theta))
        self._apply(theta, ids)
        self._qpos[ids] = self._qvel[ids] = self._start[ids] = 0.0
        start = self.state[first]
        self._qpos[ids[:, None], self._dof] = start
        self._qvel[ids[:, None], self._dof] = np.stack([self._velocity(i) for i in first])
        control = np.zeros((len(theta), steps, self.model.nu))
        control[:, :, self._act] = self._commands(
            theta[:, -1] * DELAY_UNIT, integrals, place, steps
        )
        moved = self._sim.rollout(ids, control, "qpos")[:, :, self._dof]
        self.steps += len(theta) * steps
        return np.concatenate((start[:, None], moved), 1)

    def _apply(self, theta: np.ndarray, ids: np.ndarray) -> None:
        """Give the simulations `ids` the candidates' figures."""
        n, f = len(self.joints), self._fields
        kp, kd, friction, damping, armature, torque = (
            np.exp(theta[:, :-1]).reshape(-1, len(PARAMETERS), n).swapaxes(0, 1)
        )
        rows = ids[:, None]
        f["actuator_gainprm"][rows, self._act, 0] = kp
        f["actuator_biasprm"][rows, self._act, 1] = -kp
        f["actuator_biasprm"][rows, self._act, 2] = -kd
        (
            f["actuator_forcerange"][rows, self._act, 0],
            f["actuator_forcerange"][rows, self._act, 1],
        ) = -torque, torque
        f["dof_frictionloss"][rows, self._dof] = friction
        f["dof_damping"].reshape(CHUNK, self.model.nv, -1)[rows, self._dof, 0] = damping
        f["dof_armature"][rows, self._dof] = armature
        self._sim.batch.set_const(
            ids
        )  # friction is regularized by the inertia, to which the armature belongs

    def _velocity(self, i: int) -> np.ndarray:
        """Joint velocities at a sample, by central differences, rad/s."""
        a, b = max(i - 1, 0), min(i + 1, len(self.state) - 1)
        return (
            (self.state[b] - self.state[a]) / (self.log.time[b] - self.log.time[a])
            if i > 0
            else 0.0 * self.state[0]
        )

    def _integral(self, first: int, steps: int) -> np.ndarray:
        """Integral of the commands over time as sent, on a fine grid that starts the greatest delay before a window."""
        time, h = self.log.time - self.log.time[first], self.timestep / self._fine
        self._origin = int(np.ceil((self.delays[1] + self.timestep + SLACK) / h)) + 1
        after = 2 + int(np.ceil((max(0.0, -self.delays[0]) + SLACK) / h))
        grid = h * np.arange(-self._origin, steps * self._fine + after)
        stamps = np.concatenate(
            ([min(time[0], grid[0]) - 1.0], time[1:], [max(time[-1], grid[-1]) + 1.0])
        )
        total = np.cumsum(
            np.diff(stamps)[:, None] * self._cmd, axis=0
        )  # the first is taken to have been held before
        total = np.concatenate((np.zeros((1, total.shape[1])), total))
        return np.stack([np.interp(grid, stamps, column) for column in total.T], -1)

    def _commands(
        self, delay: np.ndarray, integrals: np.ndarray, place: np.ndarray, steps: int
    ) -> np.ndarray:
        """Mean command in each substep, (candidates, steps, joints), after its delay (s): smooth in the delay."""
        early = (
            self.timestep / 2
        )  # a step moves a joint as if its force had acted from the step's beginning
        begin = self._origin - (delay + early) * self._fine / self.timestep
        whole = np.floor(begin).astype(int)
        part = (begin - whole)[:, None, None]
        rows = whole[:, None] + self._fine * np.arange(steps + 1)
        at = (
            integrals[place[:, None], rows] * (1.0 - part)
            + integrals[place[:, None], rows + 1] * part
        )
        return np.diff(at, axis=1) / self.timestep


def _at(path: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Values of a path (n, steps + 1, joints) between its steps, at fractional `places` (samples,)."""
    whole = np.clip(np.floor(places + 1e-9).astype(int), 0, path.shape[1] - 2)
    part = (places - whole)[:, None]
    return path[:, whole] * (1.0 - part) + path[:, whole + 1] * part
