"""Motion that makes a log worth fitting: steps, chirps and pseudo-random steps, of each joint and of all together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
STEP_HOLD_S, PRBS_DWELL = 0.8, (3, 8)  # as the published collection of LEAP logs
TOGETHER = 0.2
"""Share of the time in which the joints move together, each by half its amplitude: at the start, and at the end."""
SLOW = 1.0
"""Speed at which joints go to where the motion starts, rad/s."""
SHRINK = 0.9


class Excitation(NamedTuple):
    """How to move."""

    seconds: float = 60.0  # of the motion of a finger, s
    amplitude: float = 0.8  # share of half of a joint's range
    chirp_hz: tuple[float, float] = (0.1, 3.0)
    speed: float = 0.6  # share of a joint's top speed
    seed: int = 0


class Motion(NamedTuple):
    """Commands to send."""

    cmd: np.ndarray  # (T, num_joints) rad
    amplitude: dict[
        str, float
    ]  # rad, of each joint that moves, after shapes that would touch were kept apart


def motion(
    robot: Robot, contract: PolicyContract, groups: list[tuple[str, ...]], how: Excitation
) -> Motion:
    """Commands at the contract's rate that excite groups of joints, one group after the other, the rest held.

    The joints of a group move about their middles, where gravity pulls at most of them, within their limits and speed;
    those of the other groups rest at zero, or what is nearest. Amplitudes shrink until no two shapes of the robot
    touch, but those that touch at rest.
    """
    lower, upper = np.array([(j.lower, j.upper) for j in contract.joints]).T
    rest, parts, used = np.clip(0.0, lower, upper), [], {}
    at = np.array(contract.home())
    touches = _touches(robot, contract)
    for group in groups:
        columns = [contract.joint_names.index(name) for name in group]
        limit = how.speed * np.array([contract.joints[c].velocity for c in columns]) / contract.rate
        share = np.full(len(columns), how.amplitude)
        while True:
            path = _group(columns, rest, (lower, upper), share, limit, contract.rate, how)
            culprit = touches(path, columns, rest)
            if culprit is None:
                break
            share[culprit] *= SHRINK
            if share[culprit] < 0.05:
                raise DeftlyError(
                    f"no room to move {group[culprit]}: shapes of {robot.name} touch wherever it goes"
                )
        parts += [_ramp(at, path[0], contract.rate), path]
        used |= {n: float(s * (upper - lower)[c] / 2) for n, s, c in zip(group, share, columns)}
        at = path[-1]
    return Motion(
        np.concatenate([*parts, np.repeat(at[None], round(0.5 * contract.rate), 0)]), used
    )


def _group(
    columns: list[int],
    rest: np.ndarray,
    limits: tuple[np.ndarray, np.ndarray],
    share: np.ndarray,
    most: np.ndarray,
    rate: float,
    how: Excitation,
) -> np.ndarray:
    """The motion of one group, (T, num_joints)."""
    rng = np.random.default_rng([how.seed, *columns])
    lower, upper = limits
    single = max(8, round((1 - 2 * TOGETHER) * how.seconds * rate / len(columns)))
    together = max(8, round(TOGETHER * how.seconds * rate))
    waves = np.zeros((2 * together + single * len(columns), len(columns)))
    for i in range(len(columns)):
        begin = together + i * single
        waves[begin : begin + single, i] = _wave(single, rate, how, rng)
        waves[:together, i], waves[-together:, i] = (0.5 * _prbs(together, rng) for _ in range(2))
    half, middle = (upper - lower)[columns] / 2, (upper + lower)[columns] / 2
    path = np.repeat(rest[None], len(waves), 0)
    path[:, columns] = _limited(middle + share * half * waves, middle, most)
    return path


def _wave(count: int, rate: float, how: Excitation, rng: np.random.Generator) -> np.ndarray:
    """Steps, a chirp and pseudo-random steps, a third of the samples each, in -1 .. 1."""
    third = count // 3
    hold = max(1, round(STEP_HOLD_S * rate))
    levels = np.tile([0.33, -0.33, 0.66, -0.66, 1.0, -1.0], 1 + third // (6 * hold))
    t = np.arange(third) / rate
    low, high = how.chirp_hz
    rising = low * (high / low) ** (t * rate / max(1, third))  # so that each octave takes as long
    chirp = np.sin(2 * np.pi * np.cumsum(rising) / rate)
    return np.concatenate((np.repeat(levels, hold)[:third], chirp, _prbs(count - 2 * third, rng)))


def _prbs(count: int, rng: np.random.Generator) -> np.ndarray:
    """Steps of random sign, size and length."""
    out: list[float] = []
    while len(out) < count:
        level = float(rng.choice((-1.0, 1.0)) * rng.uniform(0.3, 1.0))
        out += [level] * int(rng.integers(PRBS_DWELL[0], PRBS_DWELL[1] + 1))
    return np.array(out[:count])


def _limited(goal: np.ndarray, start: np.ndarray, most: np.ndarray) -> np.ndarray:
    """The goals, approached by at most `most` a sample."""
    out, at = np.empty_like(goal), start
    for i, wanted in enumerate(goal):
        out[i] = at = at + np.clip(wanted - at, -most, most)
    return out


def _ramp(start: np.ndarray, end: np.ndarray, rate: float) -> np.ndarray:
    count = max(2, round(np.abs(end - start).max() / SLOW * rate))
    return start + np.linspace(0.0, 1.0, count)[:, None] * (end - start)


def _touches(
    robot: Robot, contract: PolicyContract
) -> Callable[[np.ndarray, list[int], np.ndarray], int | None]:
    """A test of a path: the place in `columns` of the joint that is furthest out where shapes touch, or None."""
    model = robot.spec().compile()
    data, qpos = (
        mujoco.MjData(model),
        [int(model.joint(n).qposadr[0]) for n in contract.joint_names],
    )

    def pairs(q: np.ndarray) -> set[tuple[int, ...]]:
        data.qpos[qpos] = q
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        mujoco.mj_collision(model, data)
        return {tuple(pair) for pair in data.contact.geom.tolist()}

    def test(path: np.ndarray, columns: list[int], rest: np.ndarray) -> int | None:
        at_rest = pairs(rest)
        span = np.array([contract.joints[c].upper - contract.joints[c].lower for c in columns])
        for q in path:
            if pairs(q) - at_rest:
                return int((np.abs(q - rest)[columns] / span).argmax())
        return None

    return test


class Frames:
    """The motion as a `Policy` of one robot: one row for each decision, then the last."""

    deterministic = True

    def __init__(self, contract: PolicyContract, cmd: np.ndarray):
        self.contract, self._cmd, self._next = contract, cmd, 0

    @property
    def done(self) -> bool:
        """Whether all rows were sent."""
        return self._next >= len(self._cmd)

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
        row = self._cmd[min(self._next, len(self._cmd) - 1)]
        self._next += 1
        return Decision(
            np.zeros((1, self.contract.action_size), np.float32), row.astype(np.float32)[None]
        )

    def forget(self, ids: Sequence[int]) -> None:
        """Nothing is remembered."""

    def close(self) -> None:
        """Nothing is held."""


def on_simulated(frames: Frames, robot: LoneRobot, safety: SafetyConfig) -> LogBuffer:
    """Send the motion through the safety kernel to a simulated robot, in its own time; the log.

    Raises DeftlyError if the kernel held it.
    """
    contract = robot.contract
    buffer = LogBuffer(
        contract, len(frames._cmd) + round((safety.approach_s + 60.0) * contract.rate)
    )
    with Runner(frames, Kernel(contract.robot, contract.rate, safety), robot, buffer) as runner:
        while not frames.done:
            tick = runner.step(robot.now)
            if tick.command is None:
                robot.write(np.array(contract.home()))  # time passes all the same
            elif tick.state is State.READY:
                runner.start()
            if runner.kernel.fault is not Fault.NONE:
                raise DeftlyError(
                    f"the safety kernel held the robot: {runner.kernel.fault}: {runner.kernel.reason}"
                )
    return buffer


def groups(robot: Robot, finger: str) -> list[tuple[str, ...]]:
    """The joints to fit, a branch at a time. Raises DeftlyError if the robot has no such finger."""
    found = branches(robot)
    if finger != "all":
        found = [names for names in found if all(n.startswith(FINGERS[finger]) for n in names)]
    if not found:
        raise DeftlyError(f"{robot.name} has no {finger} finger: --finger all")
    return found


def write_motion(path: Path, contract: PolicyContract, made: Motion) -> None:
    """Write a motion as an .npz file of `deftly.excite/1`: times, commands and the names of the joints."""
    time = np.arange(len(made.cmd)) / contract.rate
    names = np.array(contract.joint_names)
    write_npz(
        path,
        {"schema": "deftly.excite/1", "time": time, "hand_cmd": made.cmd, "joint_names": names},
    )
