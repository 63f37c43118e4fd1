"""Where a finger touches palm or neighbours in a log, by the measured poses and the geometry of the robot.

What a finger pushes against is in no parameter of its servos, so what touches is left out of a fit: see `fit`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import mujoco
import numpy as np

from deftly.robots import Robot
from deftly.sysid.logs import HandLog

CLEARANCE = 0.003
"""Links that come nearer than this are taken to touch, m: for play, errors of poses, and links as they were built."""
POSE_DT = 0.005
"""Poses are looked at so often, s: between samples, a fast finger goes through another."""
NAMED_PAIRS = 4
"""Pairs of links that are named, at most."""
MAX_POSES = 40
"""Poses looked at between two samples, at most."""


class Touch(NamedTuple):
    """Which links touch in a log, and when."""

    intervals: np.ndarray
    """(T - 1,) bool: whether anything touches between a sample and the next."""
    pairs: dict[tuple[str, str], float]
    """Fraction of the intervals in which two links touch, the most frequent pair first."""

    @property
    def fraction(self) -> float:
        """Fraction of the intervals in which anything touches."""
        return float(self.intervals.mean())

    def __str__(self) -> str:
        pairs = [f"{a} and {b} ({value:.0%})" for (a, b), value in self.pairs.items()]
        named = ", ".join(pairs[:NAMED_PAIRS])
        more = f" and {len(pairs) - NAMED_PAIRS} more pairs" if len(pairs) > NAMED_PAIRS else ""
        return f"links touch in {self.fraction:.0%} of the time: {named}{more}"


def find_touch(robot: Robot, joints: tuple[str, ...], log: HandLog) -> Touch:
    """Where the links that these joints move touch others, of their own finger or not."""
    proximity = _Proximity(robot, joints)
    count = len(log.time) - 1
    found: dict[tuple[str, str], np.ndarray] = {}
    for interval, pose in _poses(log):
        for pair in proximity.pairs(pose):
            if pair not in found:
                found[pair] = np.zeros(count, bool)
            found[pair][interval] = True

    intervals = np.zeros(count, bool)
    for touching in found.values():
        intervals |= touching
    order = sorted(found, key=lambda pair: -found[pair].sum())
    pairs = {pair: float(found[pair].mean()) for pair in order}
    return Touch(intervals, pairs)


class _Proximity:
    """Links near each other, by pose."""

    def __init__(self, robot: Robot, joints: tuple[str, ...]):
        model = robot.spec().compile()
        model.geom_margin[:] = CLEARANCE
        self._model = model
        self._data = mujoco.MjData(model)
        addresses = [model.joint(joint.name).qposadr[0] for joint in robot.joints]
        self._qpos = np.array(addresses, int)
        self._moved = _moved_bodies(model, joints)
        home = np.array([joint.home for joint in robot.joints])
        self._by_design = self._distances(home)
        """Distances of links that are near each other where the robot is at home, m."""

    def pairs(self, pose: np.ndarray) -> set[tuple[str, str]]:
        """Names of links that touch, at least one of which the joints move."""
        touching = set()
        for pair, distance in self._distances(pose).items():
            if distance < self._clearance(pair):
                first, second = pair
                touching.add((self._name(first), self._name(second)))
        return touching

    def _name(self, body: int) -> str:
        return self._model.body(body).name or f"body {body}"

    def _clearance(self, pair: tuple[int, int]) -> float:
        """Distance of two bodies, m, below which they touch."""
        if pair not in self._by_design:
            return CLEARANCE
        half = self._by_design[pair] / 2
        return max(0.0, min(CLEARANCE, half))

    def _distances(self, pose: np.ndarray) -> dict[tuple[int, int], float]:
        """Least distance of links within the clearance, m, by their bodies."""
        model = self._model
        data = self._data
        data.qpos[self._qpos] = pose
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        mujoco.mj_collision(model, data)
        distances: dict[tuple[int, int], float] = {}
        for geoms, distance in zip(data.contact.geom, data.contact.dist):
            bodies = model.geom_bodyid[geoms]
            if not self._moved[bodies].any():
                continue
            first, second = sorted(bodies.tolist())
            pair = (first, second)
            least = distances.get(pair, np.inf)
            distances[pair] = min(least, float(distance))
        return distances


def _moved_bodies(model: mujoco.MjModel, joints: tuple[str, ...]) -> np.ndarray:
    """(bodies,) bool: whether one of these joints moves a body."""
    moved = np.zeros(model.nbody, bool)
    for name in joints:
        moved[model.joint(name).bodyid[0]] = True
    for body in range(1, model.nbody):  # a parent comes before its children
        moved[body] |= moved[model.body_parentid[body]]
    return moved


def _poses(log: HandLog) -> Iterator[tuple[int, np.ndarray]]:
    """Measured poses and those between, (num_joints,) rad, each with its interval."""
    velocity = np.gradient(log.state, log.time, axis=0)
    steps = np.diff(log.time)
    for i, step in enumerate(steps):
        poses = math.ceil(step / POSE_DT)
        poses = min(max(poses, 1), MAX_POSES)
        for fraction in np.linspace(0.0, 1.0, poses + 1):
            pose = _hermite(
                fraction,
                log.state[i],
                log.state[i + 1],
                step * velocity[i],
                step * velocity[i + 1],
            )
            yield i, pose


def _hermite(
    u: float, start: np.ndarray, end: np.ndarray, start_slope: np.ndarray, end_slope: np.ndarray
) -> np.ndarray:
    """Cubic Hermite interpolation at a fraction `u` of the way from one value to another."""
    blend = u * u * (3 - 2 * u)
    straight = start + blend * (end - start)
    away = (1 - u) * start_slope
    towards = u * end_slope
    return straight + u * (1 - u) * (away - towards)
