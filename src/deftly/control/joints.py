"""Whether each joint goes where it is sent: a small motion of one after the other, while the robot hangs freely.

It finds joints whose sign is flipped, that are swapped, or that do not move or are not measured to. Nothing of it is
known to the safety kernel, through which every command goes: the motion is a policy like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from deftly.contract import JOINT_POS, Inputs, PolicyContract
from deftly.contract.arrays import Array
from deftly.policy.protocol import NO_INPUTS, Decision, PolicyError, Signals

AMPLITUDE = 0.08
"""How far each joint is moved, rad, or as a fraction of its travel."""
MOVE_S, REST_S = 0.5, 0.4
"""How long it goes there, and back; and how long it stays at either end, s. The last sample of a rest is judged."""
FOLLOWS = 0.5
"""Least part of the way that a joint in order goes; less than this, either way, is none."""


class Move(NamedTuple):
    """What came of the motion of one joint."""

    joint: str
    sent: np.ndarray
    """How far each joint was sent, (num_joints,) rad (m)."""
    measured: np.ndarray
    """How far each joint was measured to go, (num_joints,)."""


class JointCheck:
    """A policy that moves one joint after the other there and back, from where the robot is."""

    deterministic = True

    def __init__(self, contract: PolicyContract):
        self.contract = contract
        robot = contract.robot
        self.followers = [coupling.joint for coupling in robot.couplings]
        """Joints that are not moved by themselves, since they are coupled to others."""
        self._joints = [
            i for i, joint in enumerate(robot.joints) if joint.name not in self.followers
        ]
        limits = np.array([(joint.lower, joint.upper) for joint in robot.joints])
        lower, upper = limits.T
        turns = np.array([joint.units == "rad" for joint in robot.joints])
        self._middle = 0.5 * (lower + upper)
        span = upper - lower
        of_turn = np.minimum(AMPLITUDE, 0.25 * span)
        self._amplitude = np.where(turns, of_turn, AMPLITUDE * span)
        self._move = round(MOVE_S * contract.rate)
        rest = round(REST_S * contract.rate)
        self._ticks = 2 * (self._move + rest)
        self.moves: list[Move] = []
        """What is known so far."""
        self._restart()

    def _restart(self) -> None:
        self._tick = 0
        self._base: np.ndarray | None = None
        self._before: np.ndarray | None = None
        self.moves.clear()

    @property
    def count(self) -> int:
        """How many joints are to be moved."""
        return len(self._joints)

    @property
    def seconds(self) -> float:
        """How long that takes, s."""
        return self.count * self._ticks / self.contract.rate

    @property
    def done(self) -> bool:
        """Whether all joints were moved."""
        return len(self.moves) == self.count

    def reset(self, ids: Sequence[int] | None = None) -> None:
        """Begin anew."""
        self._restart()

    def infer(
        self,
        signals: Signals,
        inputs: Inputs = NO_INPUTS,
        applied: Array | None = None,
        ids: Sequence[int] | None = None,
    ) -> Decision:
        """The next targets of the motion."""
        measured = np.asarray(signals[JOINT_POS], np.float64)[0]
        if applied is None:
            raise PolicyError("nobody says what was commanded")
        command = np.asarray(applied, np.float64)[0]
        base = command if self._base is None else self._base
        self._base = base
        place, phase = divmod(self._tick, self._ticks)
        if phase == 0:
            self._before = measured
        targets = base.copy()
        if place < len(self._joints):
            joint = self._joints[place]
            direction = 1.0 if base[joint] < self._middle[joint] else -1.0
            targets[joint] += direction * self._amplitude[joint] * self._there(phase)
            if phase == self._ticks // 2 - 1:
                self._judge(joint, command, measured)
        self._tick += 1
        action = np.zeros((1, self.contract.action_size), np.float32)
        return Decision(action, targets[None])

    def _judge(self, joint: int, command: np.ndarray, measured: np.ndarray) -> None:
        """Note where all joints are, at the end of the rest."""
        assert self._base is not None
        assert self._before is not None
        name = self.contract.joint_names[joint]
        sent = command - self._base
        move = Move(name, sent, measured - self._before)
        self.moves.append(move)

    def _there(self, phase: int) -> float:
        """How far the joint is on its way in a tick of its motion, 0 .. 1: there, a rest, back, a rest."""
        half = self._ticks // 2
        share = min(1.0, (phase % half) / self._move)
        smooth = share * share * (3.0 - 2.0 * share)
        return smooth if phase < half else 1.0 - smooth

    def forget(self, ids: Sequence[int]) -> None:
        """Nothing is kept of a robot."""

    def close(self) -> None:
        """Nothing is held."""

    def verdicts(self) -> list[str]:
        """What is wrong with the joints that were moved, a line each; empty if nothing is."""
        names = self.contract.joint_names
        lines = []
        for move in self.moves:
            sent = np.abs(move.sent) > FOLLOWS * self._amplitude
            lines += _verdicts(move, names, sent, FOLLOWS * self._amplitude)
        return list(dict.fromkeys(lines))


def _verdicts(move: Move, names: Sequence[str], sent: np.ndarray, least: np.ndarray) -> list[str]:
    """What is wrong after the motion of a joint, a line for each that was sent somewhere, and did not go there.

    Args:
        move: The motion.
        names: Of the joints.
        sent: Which joints were to move, (num_joints,) bool.
        least: What counts as moving, (num_joints,) rad (m).
    """
    lines = []
    along = move.measured * np.sign(move.sent)
    off_target = np.abs(move.measured - move.sent)
    strays = (off_target > least) & ~sent
    farthest = int((np.abs(move.measured) * strays).argmax())
    other = names[farthest]
    for i in np.flatnonzero(sent).tolist():
        where = f"{names[i]} was sent {move.sent[i]:+.3f}, and"
        if along[i] > least[i]:
            continue
        if along[i] < -least[i]:
            lines.append(f"{where} went {move.measured[i]:+.3f}: its sign is flipped")
        elif strays.any():
            lines.append(f"{where} {other} moved instead: the two are swapped")
        else:
            lines.append(
                f"{where} went {move.measured[i]:+.3f}: no power, stuck, or its encoder is"
            )
    if not lines and strays.any():
        way = move.sent[names.index(move.joint)]
        lines.append(f"{move.joint} was sent {way:+.3f}, and {other} moved too")
    return lines
