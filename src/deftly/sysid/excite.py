"""Motion that makes a log worth fitting: steps, chirps and pseudo-random steps, of each joint and of all together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import mujoco
import numpy as np

from deftly.contract import Inputs, PolicyContract
from deftly.control.log import LogBuffer
from deftly.control.loop import Runner
from deftly.control.safety import Fault, Kernel, SafetyConfig, State
from deftly.errors import DeftlyError
from deftly.files import write_npz
from deftly.policy.protocol import NO_INPUTS, Decision, Signals
from deftly.robots import Robot, branches
from deftly.sysid.driver import LoneRobot

FINGERS = {"index": "if_", "middle": "mf_", "ring": "rf_", "thumb": "th_"}
"""How the joints of a finger begin."""
STEP_HOLD_S = 0.8  # as the published collection of LEAP logs
STEP_LEVELS = (0.33, -0.33, 0.66, -0.66, 1.0, -1.0)
PRBS_DWELL = (3, 8)
"""Least and most samples of a pseudo-random step."""
TOGETHER = 0.2
"""Fraction of the time in which the joints move together, each by half its amplitude: at the start, and at the end."""
APPROACH_SPEED = 1.0
"""Speed at which joints go to where the motion starts, rad/s."""
HOLD_S = 0.5
"""Time for which the last command is held, s."""
SHRINK = 0.9
"""Factor by which an amplitude shrinks where geoms touch."""
MIN_AMPLITUDE = 0.05


class Excitation(NamedTuple):
    """Settings of a motion."""

    seconds: float = 60.0  # of the motion of a finger, s
    amplitude: float = 0.8  # fraction of half of a joint's range
    chirp_hz: tuple[float, float] = (0.1, 3.0)
    speed: float = 0.6  # fraction of a joint's top speed
    seed: int = 0


class Motion(NamedTuple):
    """Commands to send."""

    cmd: np.ndarray
    """(T, num_joints) rad."""
    amplitude: dict[str, float]
    """Of each joint that moves, rad; shrunk where geoms would touch."""


def motion(
    robot: Robot, contract: PolicyContract, groups: list[tuple[str, ...]], excitation: Excitation
) -> Motion:
    """Commands at the contract's rate that excite groups of joints, one group after the other, the rest held.

    The joints of a group move about their middles, where gravity pulls at most of them, within their limits and speed;
    those of the other groups rest at zero, or what is nearest. Amplitudes shrink until no two geoms of the robot
    touch, but those that touch at rest.
    """
    contacts = _Contacts(robot, contract)
    position = np.array(contract.home())
    parts: list[np.ndarray] = []
    amplitude: dict[str, float] = {}
    for joints in groups:
        group = _Group(contract, joints, excitation)
        fractions, path = _without_contacts(group, contacts, robot.name, excitation.amplitude)
        parts.append(_ramp(position, path[0], contract.rate))
        parts.append(path)
        for name, fraction, half_range in zip(joints, fractions, group.half_range):
            amplitude[name] = float(fraction * half_range)
        position = path[-1]
    hold_samples = round(HOLD_S * contract.rate)
    parts.append(np.repeat(position[None], hold_samples, 0))
    return Motion(np.concatenate(parts), amplitude)


class _Group:
    """Joints that are excited together, and the signals (T, joints) in -1 .. 1 that they follow."""

    def __init__(self, contract: PolicyContract, joints: tuple[str, ...], excitation: Excitation):
        lower = np.array([joint.lower for joint in contract.joints])
        upper = np.array([joint.upper for joint in contract.joints])
        speed = np.array([joint.velocity for joint in contract.joints])
        self.joints = joints
        self.columns = [contract.joint_names.index(name) for name in joints]
        self.rest = np.clip(0.0, lower, upper)  # (num_joints,) rad
        self.half_range = (upper - lower)[self.columns] / 2  # (joints,) rad
        self.middle = (upper + lower)[self.columns] / 2  # (joints,) rad
        max_speed = excitation.speed * speed[self.columns]  # (joints,) rad/s
        self.max_step = max_speed / contract.rate
        self.signals = self._signals(excitation, contract.rate)

    def path(self, fractions: np.ndarray) -> np.ndarray:
        """Commands (T, num_joints), rad, of amplitudes that are these fractions of half of the joints' ranges."""
        amplitude = fractions * self.half_range
        goal = self.middle + amplitude * self.signals
        moved = _rate_limited(goal, self.middle, self.max_step)
        path = np.repeat(self.rest[None], len(goal), 0)
        path[:, self.columns] = moved
        return path

    def _signals(self, excitation: Excitation, rate: float) -> np.ndarray:
        """All joints together, then each joint alone, then all together."""
        rng = np.random.default_rng([excitation.seed, *self.columns])
        count = len(self.columns)
        seconds_together = TOGETHER * excitation.seconds
        seconds_alone = (1 - 2 * TOGETHER) * excitation.seconds
        together = max(8, round(seconds_together * rate))
        alone = max(8, round(seconds_alone * rate / count))
        samples = 2 * together + alone * count
        signals = np.zeros((samples, count))
        for i in range(count):
            signal = signals[:, i]
            begin = together + i * alone
            end = begin + alone
            signal[begin:end] = _signal(alone, rate, excitation.chirp_hz, rng)
            signal[:together] = 0.5 * _prbs(together, rng)
            signal[-together:] = 0.5 * _prbs(together, rng)
        return signals


def _without_contacts(
    group: _Group, contacts: _Contacts, robot: str, amplitude: float
) -> tuple[np.ndarray, np.ndarray]:
    """Fractions of half of the joints' ranges, (joints,), at which no geoms touch, and the path.

    Raises DeftlyError if there are none.
    """
    fractions = np.full(len(group.columns), amplitude)
    while True:
        path = group.path(fractions)
        touching = contacts.first(path, group.rest)
        if touching is None:
            return fractions, path
        away = np.abs(touching - group.rest)[group.columns]
        relative = away / (2 * group.half_range)
        furthest = int(relative.argmax())
        fractions[furthest] *= SHRINK
        if fractions[furthest] < MIN_AMPLITUDE:
            joint = group.joints[furthest]
            raise DeftlyError(f"no room to move {joint}: geoms of {robot} touch wherever it goes")


def _signal(
    count: int, rate: float, chirp_hz: tuple[float, float], rng: np.random.Generator
) -> np.ndarray:
    """Steps, a chirp and pseudo-random steps, a third of the samples each, in -1 .. 1."""
    third = count // 3
    steps = _steps(third, rate)
    chirp = _chirp(third, rate, chirp_hz)
    prbs = _prbs(count - 2 * third, rng)
    return np.concatenate((steps, chirp, prbs))


def _steps(count: int, rate: float) -> np.ndarray:
    """Steps of growing size, up and down."""
    hold = max(1, round(STEP_HOLD_S * rate))
    repeats = 1 + count // (len(STEP_LEVELS) * hold)
    levels = np.tile(STEP_LEVELS, repeats)
    return np.repeat(levels, hold)[:count]


def _chirp(count: int, rate: float, chirp_hz: tuple[float, float]) -> np.ndarray:
    """A sine of rising frequency; each octave takes as long."""
    low, high = chirp_hz
    time = np.arange(count) / rate
    progress = time * rate / max(1, count)
    frequency = low * (high / low) ** progress  # Hz
    phase = 2 * np.pi * np.cumsum(frequency) / rate
    return np.sin(phase)


def _prbs(count: int, rng: np.random.Generator) -> np.ndarray:
    """Steps of random sign, size and length."""
    signal: list[float] = []
    least, most = PRBS_DWELL
    while len(signal) < count:
        sign = rng.choice((-1.0, 1.0))
        level = float(sign * rng.uniform(0.3, 1.0))
        dwell = int(rng.integers(least, most + 1))
        signal += [level] * dwell
    return np.array(signal[:count])


def _rate_limited(goal: np.ndarray, start: np.ndarray, max_step: np.ndarray) -> np.ndarray:
    """The goals (T, joints), approached by at most `max_step` a sample."""
    path = np.empty_like(goal)
    position = start
    for i, wanted in enumerate(goal):
        step = np.clip(wanted - position, -max_step, max_step)
        position = position + step
        path[i] = position
    return path


def _ramp(start: np.ndarray, end: np.ndarray, rate: float) -> np.ndarray:
    """A straight line from one pose to another."""
    seconds = np.abs(end - start).max() / APPROACH_SPEED
    count = max(2, round(seconds * rate))
    progress = np.linspace(0.0, 1.0, count)[:, None]
    return start + progress * (end - start)


class _Contacts:
    """Contacts between geoms of a robot, by pose."""

    def __init__(self, robot: Robot, contract: PolicyContract):
        self._model = robot.spec().compile()
        self._data = mujoco.MjData(self._model)
        joints = [self._model.joint(name) for name in contract.joint_names]
        self._qpos = [int(joint.qposadr[0]) for joint in joints]

    def first(self, path: np.ndarray, rest: np.ndarray) -> np.ndarray | None:
        """The first pose (num_joints,) of a path in which geoms touch that do not touch at rest, or None."""
        at_rest = self._pairs(rest)
        for pose in path:
            if self._pairs(pose) - at_rest:
                return pose
        return None

    def _pairs(self, pose: np.ndarray) -> set[tuple[int, ...]]:
        """Pairs of geoms that touch."""
        self._data.qpos[self._qpos] = pose
        mujoco.mj_kinematics(self._model, self._data)
        mujoco.mj_comPos(self._model, self._data)
        mujoco.mj_collision(self._model, self._data)
        return {tuple(pair) for pair in self._data.contact.geom.tolist()}


class MotionPolicy:
    """The motion as a `Policy` of one robot: one row for each decision, then the last."""

    deterministic = True

    def __init__(self, contract: PolicyContract, cmd: np.ndarray):
        self.contract = contract
        self.cmd = cmd
        self._next = 0

    @property
    def done(self) -> bool:
        """Whether all rows were sent."""
        return self._next >= len(self.cmd)

    def reset(self, ids: Sequence[int] | None = None) -> None:
        """From the first row."""
        self._next = 0

    def infer(
        self,
        signals: Signals,
        inputs: Inputs = NO_INPUTS,
        applied: np.ndarray | None = None,
        ids: Sequence[int] | None = None,
    ) -> Decision:
        """The next row."""
        last = len(self.cmd) - 1
        row = self.cmd[min(self._next, last)]
        self._next += 1
        action = np.zeros((1, self.contract.action_size), np.float32)
        target = row.astype(np.float32)[None]
        return Decision(action, target)

    def forget(self, ids: Sequence[int]) -> None:
        """Nothing is remembered."""

    def close(self) -> None:
        """Nothing is held."""


def on_simulated(policy: MotionPolicy, robot: LoneRobot, safety: SafetyConfig) -> LogBuffer:
    """Send the motion through the safety kernel to a simulated robot, in its own time; the log.

    Raises DeftlyError if the kernel held it.
    """
    contract = robot.contract
    spare = round((safety.approach_s + 60.0) * contract.rate)
    buffer = LogBuffer(contract, len(policy.cmd) + spare)
    kernel = Kernel(contract.robot, contract.rate, safety)
    with Runner(policy, kernel, robot, buffer) as runner:
        while not policy.done:
            tick = runner.step(robot.now)
            if tick.command is None:
                robot.write(np.array(contract.home()))  # time passes all the same
            elif tick.state is State.READY:
                runner.start()
            if kernel.fault is not Fault.NONE:
                raise DeftlyError(
                    f"the safety kernel held the robot: {kernel.fault}: {kernel.reason}"
                )
    return buffer


def groups(robot: Robot, finger: str) -> list[tuple[str, ...]]:
    """The joints to fit, a branch at a time. Raises DeftlyError if the robot has no such finger."""
    found = branches(robot)
    if finger != "all":
        prefix = FINGERS[finger]
        found = [names for names in found if _all_start_with(names, prefix)]
    if not found:
        raise DeftlyError(f"{robot.name} has no {finger} finger: --finger all")
    return found


def _all_start_with(names: tuple[str, ...], prefix: str) -> bool:
    return all(name.startswith(prefix) for name in names)


def write_motion(path: Path, contract: PolicyContract, made: Motion) -> None:
    """Write a motion as an .npz file of `deftly.excite/1`: times, commands and the names of the joints."""
    arrays = {
        "schema": "deftly.excite/1",
        "time": np.arange(len(made.cmd)) / contract.rate,
        "hand_cmd": made.cmd,
        "joint_names": np.array(contract.joint_names),
    }
    write_npz(path, arrays)
