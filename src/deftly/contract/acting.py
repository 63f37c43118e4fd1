"""Actions as joint targets: the constants of a contract's action terms as arrays, and what is computed with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from deftly.contract.arrays import Array, Like, Memory, clip, join, library, pick
from deftly.contract.robot import ACTION, COMMAND, Joint

if TYPE_CHECKING:
    from deftly.contract.policy import Act, PolicyContract

START = "start"
"""Where the memory keeps the pose in which the episode began."""
INTEGRATED = ("delta", "velocity", "gripper")
"""Kinds that go on from the last command."""


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

    def __init__(self, contract: PolicyContract, like: Like):
        joints = contract.joints
        elements = _elements(contract)
        place = {joint.name: i for i, joint in enumerate(joints)}
        columns = [place[element.joint.name] for element in elements]
        self.lower = like.numbers([joint.lower for joint in joints])
        self.upper = like.numbers([joint.upper for joint in joints])
        self._columns = _order(columns, len(joints), like)
        self._lowpass = _unless([e.act.lowpass for e in elements], 0.0, like)
        self._gain = like.numbers([element.gain for element in elements])
        self._inverse_gain = like.numbers([_inverse(element) for element in elements])
        self._bias = _unless([_bias(element) for element in elements], 0.0, like)
        self._from_start = _unless([float(e.act.origin == "start") for e in elements], 0.0, like)
        last = [float(element.act.kind in INTEGRATED) for element in elements]
        self._goes_on = any(last)
        self._from_last = _unless(last, 1.0, like)
        self._driven = _sources(columns, len(joints), like)
        self._gripper = None
        if any(element.act.kind == "gripper" for element in elements):
            self._gripper = like.numbers([float(e.act.kind == "gripper") for e in elements]) > 0.5
        self._closed = like.numbers([element.joint.lower for element in elements])
        self._open = like.numbers([element.joint.upper for element in elements])
        self._couplings = _Couplings(contract, like) if contract.robot.couplings else None

    def reset(self, measured: Array) -> Memory:
        """Command and action of an episode that starts at the measured pose."""
        command = clip(measured, self.lower, self.upper)
        start = {} if self._from_start is None else {START: command}
        rest = pick(command, self._columns) - self._origin(start)
        action = clip(rest * self._inverse_gain, -1.0 + 0.0 * rest, 1.0 + 0.0 * rest)
        return {COMMAND: command, ACTION: action, **start}

    def act(self, action: Array, memory: Memory) -> tuple[Array, Memory]:
        """Targets within limits, and the memory that holds them."""
        command = memory[COMMAND]
        filtered = library(action).clip(action, -1.0, 1.0)
        if self._lowpass is not None:
            filtered = self._lowpass * memory[ACTION] + (1.0 - self._lowpass) * filtered
        target = self._target(filtered, command, memory)
        if self._driven is None:
            targets = target
        else:
            targets = pick(join((command, target)), self._driven)
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
            action = (filtered - self._lowpass * memory[ACTION]) / (1.0 - self._lowpass)
        if self._gripper is None:
            return action
        xp = library(targets)
        return xp.where(self._gripper, xp.sign(last - goal), action)

    def _target(self, filtered: Array, command: Array, memory: Memory) -> Array:
        """Target of each element of the action, not yet within limits."""
        moved = self._gain * filtered
        if self._goes_on:
            last = pick(command, self._columns)
            moved = self._kept(last) + moved
        if self._bias is not None or self._from_start is not None:
            moved = self._origin(memory) + moved
        if self._gripper is None:
            return moved
        xp = library(filtered)
        last = pick(command, self._columns)
        goal = xp.where(filtered > 0.0, self._closed, self._open)
        return xp.where(self._gripper, last + clip(goal - last, -self._gain, self._gain), moved)

    def _kept(self, last: Array) -> Array | float:
        """What is kept of the last command."""
        if not self._goes_on:
            return 0.0
        return last if self._from_last is None else self._from_last * last

    def _origin(self, memory: Memory) -> Array | float:
        """What an action of zero means, less the last command."""
        bias = 0.0 if self._bias is None else self._bias
        if self._from_start is None:
            return bias
        return bias + self._from_start * pick(memory[START], self._columns)


class _Couplings:
    """Joints that follow others, as arrays."""

    def __init__(self, contract: PolicyContract, like: Like):
        couplings = contract.robot.couplings
        place = {name: i for i, name in enumerate(contract.joint_names)}
        depth = max(len(coupling.of) for coupling in couplings)
        # Couplings of fewer joints are filled up with ratios of 0, so that all are summed at once.
        padded = [[*c.of, *[(c.joint, 0.0)] * (depth - len(c.of))] for c in couplings]
        self._leads = []
        for pairs in zip(*padded):
            columns = like.indices([place[joint] for joint, _ in pairs])
            self._leads.append((columns, like.numbers([ratio for _, ratio in pairs])))
        self._followers = like.indices([place[coupling.joint] for coupling in couplings])
        self._offset = like.numbers([coupling.offset for coupling in couplings])
        self._sources = _sources([place[c.joint] for c in couplings], len(place), like)

    def follow(self, targets: Array) -> Array:
        """The targets with those of the followers."""
        follower = self._offset + 0.0 * pick(targets, self._followers)
        for columns, ratio in self._leads:
            follower = follower + ratio * pick(targets, columns)
        return follower if self._sources is None else pick(join((targets, follower)), self._sources)


def _elements(contract: PolicyContract) -> list[_Element]:
    """The action's elements in order."""
    joints = {joint.name: joint for joint in contract.joints}
    found = []
    for act in contract.act_terms:
        scales = act.scale * (len(act.joints) // len(act.scale)) if act.scale else ()
        for i, name in enumerate(act.joints):
            joint = joints[name]
            default = (joint.upper - joint.lower) / 2 if act.kind == "absolute" else joint.velocity
            scale = scales[i] if scales else default
            gain = scale / contract.rate if act.kind in ("velocity", "gripper") else scale
            found.append(_Element(act, joint, gain))
    return found


def _bias(element: _Element) -> float:
    """What a zero action means, rad (m), where that is a fixed place."""
    joint = element.joint
    if element.act.kind == "absolute":
        return (joint.lower + joint.upper) / 2
    at_home = element.act.kind == "relative" and element.act.origin == "home"
    return joint.home if at_home else 0.0


def _inverse(element: _Element) -> float:
    """1 / gain; 0 for what goes on from the last command: there an action of 0 holds the pose."""
    return 0.0 if element.act.kind in INTEGRATED else 1.0 / element.gain


def _unless(values: Sequence[float], idle: float, like: Like) -> Array | None:
    """The values as an array; None if all are `idle`, which changes nothing."""
    return None if set(values) == {idle} else like.numbers(values)


def _order(columns: Sequence[int], count: int, like: Like) -> Array | None:
    """Columns to pick; None if that is all of them in their order."""
    return None if list(columns) == list(range(count)) else like.indices(columns)


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
