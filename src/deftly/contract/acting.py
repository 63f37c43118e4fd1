"""Actions as joint targets: the constants of a contract's action terms as arrays, and what is computed with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from deftly.contract.arrays import Array, Like, Memory, clip, join, library, pick
from deftly.contract.robot import ACTION, COMMAND, Coupling, Joint, RobotInterface
from deftly.contract.terms import Act

START = "start"
"""Where the memory keeps the pose in which the episode began."""
INTEGRATED = ("delta", "velocity", "gripper")
"""Kinds that go on from the last command."""
PER_SECOND = ("velocity", "gripper")
"""Kinds whose scale is a speed, rad/s (m/s)."""


class _Element(NamedTuple):
    """One element of the action."""

    act: Act
    joint: Joint
    gain: float
    """By how much an action of 1 moves the target, rad (m); of a gripper, the most in one step."""


class Actions:
    """Action terms and couplings of a contract, for one library, dtype and device.

    target = bias + from_start * start + from_last * command + gain * filtered action, for each element of the action.
    A constant that would change nothing is None, and its operation is left out: a control step is many small ones.
    """

    def __init__(self, robot: RobotInterface, acts: Sequence[Act], rate: float, like: Like):
        joints = robot.joints
        elements = _elements(joints, acts, rate)
        columns = [robot.joint_names.index(element.joint.name) for element in elements]
        self._least_action = like.numbers([-1.0])
        self._most_action = like.numbers([1.0])
        self.lower = like.numbers([joint.lower for joint in joints])
        self.upper = like.numbers([joint.upper for joint in joints])
        self._columns = _order(columns, len(joints), like)
        self._driven = _sources(columns, len(joints), like)
        self._set_gains(elements, like)
        self._set_origins(elements, like)
        self._set_grippers(elements, like)
        self._couplings = None
        if robot.couplings:
            self._couplings = _Couplings(robot, like)

    def _set_gains(self, elements: Sequence[_Element], like: Like) -> None:
        gains = [element.gain for element in elements]
        inverse_gains = [_inverse_gain(element) for element in elements]
        lowpass = [element.act.lowpass for element in elements]
        self._gain = like.numbers(gains)
        self._negative_gain = -self._gain
        self._inverse_gain = like.numbers(inverse_gains)
        self._lowpass = like.unless(0.0, lowpass)
        self._of_new = None if self._lowpass is None else 1.0 - self._lowpass

    def _set_origins(self, elements: Sequence[_Element], like: Like) -> None:
        """From what each element counts: a fixed position, the start of the episode, the last command."""
        bias = [_bias(element) for element in elements]
        from_start = [float(element.act.origin == "start") for element in elements]
        from_last = [float(element.act.kind in INTEGRATED) for element in elements]
        self._bias = like.unless(0.0, bias)
        self._from_start = like.unless(0.0, from_start)
        self._from_last = like.unless(1.0, from_last)
        self._integrates = any(from_last)

    def _set_grippers(self, elements: Sequence[_Element], like: Like) -> None:
        is_gripper = [element.act.kind == "gripper" for element in elements]
        self._gripper = None
        if any(is_gripper):
            flags = like.numbers([float(grips) for grips in is_gripper])
            self._gripper = flags > 0.5
        self._closed = like.numbers([element.joint.lower for element in elements])
        self._open = like.numbers([element.joint.upper for element in elements])

    def reset(self, measured: Array) -> Memory:
        """Command and action of an episode that starts at the measured pose."""
        command = clip(measured, self.lower, self.upper)
        start = {}
        if self._from_start is not None:
            start[START] = command
        offset = pick(command, self._columns) - self._origin(start)
        action = clip(offset * self._inverse_gain, self._least_action, self._most_action)
        return {COMMAND: command, ACTION: action, **start}

    def act(self, action: Array, memory: Memory) -> tuple[Array, Memory]:
        """Targets within limits, and the memory that holds them."""
        command = memory[COMMAND]
        filtered = clip(action, self._least_action, self._most_action)
        if self._lowpass is not None:
            filtered = self._lowpass * memory[ACTION] + self._of_new * filtered
        targets = self._target(filtered, command, memory)
        if self._driven is not None:
            targets = pick(join((command, targets)), self._driven)
        targets = clip(targets, self.lower, self.upper)
        if self._couplings:
            targets = clip(self._couplings.follow(targets), self.lower, self.upper)
        return targets, {**memory, ACTION: filtered, COMMAND: targets}

    def action_for(self, targets: Array, memory: Memory) -> Array:
        """The action that leads to these targets."""
        goal = pick(targets, self._columns)
        last = pick(memory[COMMAND], self._columns)
        filtered = (goal - self._origin(memory) - self._kept(last)) / self._gain
        action = filtered
        if self._lowpass is not None:
            action = (filtered - self._lowpass * memory[ACTION]) / self._of_new
        if self._gripper is None:
            return action
        xp = library(targets)
        return xp.where(self._gripper, xp.sign(last - goal), action)

    def _target(self, filtered: Array, command: Array, memory: Memory) -> Array:
        """Target of each element of the action, not yet within limits."""
        moved = self._gain * filtered
        last = pick(command, self._columns) if self._integrates else None
        if last is not None:
            moved = self._kept(last) + moved
        if self._bias is not None or self._from_start is not None:
            moved = self._origin(memory) + moved
        if self._gripper is None or last is None:  # a gripper goes on from the last command
            return moved
        xp = library(filtered)
        goal = xp.where(filtered > 0.0, self._closed, self._open)
        step = clip(goal - last, self._negative_gain, self._gain)
        return xp.where(self._gripper, last + step, moved)

    def _kept(self, last: Array) -> Array | float:
        """What is kept of the last command."""
        if not self._integrates:
            return 0.0
        if self._from_last is None:
            return last
        return self._from_last * last

    def _origin(self, memory: Memory) -> Array | float:
        """What an action of zero means, less the last command."""
        bias = 0.0 if self._bias is None else self._bias
        if self._from_start is None:
            return bias
        return bias + self._from_start * pick(memory[START], self._columns)


class _Couplings:
    """Joints that follow others, as arrays."""

    def __init__(self, robot: RobotInterface, like: Like):
        couplings = robot.couplings
        index = {name: i for i, name in enumerate(robot.joint_names)}
        self._leaders = []
        for pairs in zip(*_padded(couplings)):
            columns = [index[joint] for joint, _ in pairs]
            ratios = [ratio for _, ratio in pairs]
            leaders = like.indices(columns)
            self._leaders.append((leaders, like.numbers(ratios)))
        followers = [index[coupling.joint] for coupling in couplings]
        self._offset = like.numbers([coupling.offset for coupling in couplings])
        self._sources = _sources(followers, len(index), like)

    def follow(self, targets: Array) -> Array:
        """The targets with those of the followers."""
        follower = self._offset
        for columns, ratio in self._leaders:
            follower = follower + ratio * pick(targets, columns)
        if self._sources is None:
            return follower
        return pick(join((targets, follower)), self._sources)


def _padded(couplings: Sequence[Coupling]) -> list[list[tuple[str, float]]]:
    """Each coupling's leading joints and their ratios, filled up with ratios of 0, so that all are summed at once.

    There is at least one, from which a follower of none has its batch axes.
    """
    longest = max(1, *(len(coupling.of) for coupling in couplings))
    padded = []
    for coupling in couplings:
        missing = longest - len(coupling.of)
        nothing = (coupling.joint, 0.0)
        padded.append([*coupling.of] + [nothing] * missing)
    return padded


def _elements(joints: Sequence[Joint], acts: Sequence[Act], rate: float) -> list[_Element]:
    """The action's elements in order."""
    named = {joint.name: joint for joint in joints}
    elements = []
    for act in acts:
        for i, name in enumerate(act.joints):
            joint = named[name]
            gain = _scale(act, i, joint)
            if act.kind in PER_SECOND:
                gain = gain / rate
            elements.append(_Element(act, joint, gain))
    return elements


def _scale(act: Act, i: int, joint: Joint) -> float:
    """The scale of an action term's i-th joint: one is given for each or for all, or the kind has a default."""
    if act.scale:
        return act.scale[i % len(act.scale)]
    if act.kind == "absolute":
        return (joint.upper - joint.lower) / 2
    return joint.velocity


def _bias(element: _Element) -> float:
    """What a zero action means, rad (m), where that is a fixed position."""
    act = element.act
    joint = element.joint
    if act.kind == "absolute":
        return (joint.lower + joint.upper) / 2
    if act.kind == "relative" and act.origin == "home":
        return joint.home
    return 0.0


def _inverse_gain(element: _Element) -> float:
    """1 / gain; 0 for what goes on from the last command: there an action of 0 holds the pose."""
    if element.act.kind in INTEGRATED:
        return 0.0
    return 1.0 / element.gain


def _order(columns: Sequence[int], count: int, like: Like) -> Array | None:
    """Columns to pick; None if that is all of them in their order."""
    if list(columns) == list(range(count)):
        return None
    return like.indices(columns)


def _sources(columns: Sequence[int], count: int, like: Like) -> Array | None:
    """Where each of `count` values is taken from: itself, or behind those the value that replaces it.

    None if all of them are replaced, in their order.
    """
    if list(columns) == list(range(count)):
        return None
    sources = list(range(count))
    for i, column in enumerate(columns):
        sources[column] = count + i
    return like.indices(sources)
