"""What one policy sees and what its actions mean: signals -> observation, action -> joint targets.

A `PolicyContract` is frozen data. Training calls it with torch tensors for many environments, the policy server and the
robot with numpy arrays for one; both run the code below, which imports neither library. Arrays may carry any leading
batch axes: `(size,)` for one robot, `(num_envs, size)` for a batch.

    memory = contract.reset(signals)
    obs, memory = contract.observe(signals, memory)
    targets, memory = contract.act(action, memory)

Nothing else in Deftly scales, clips, filters, stacks, derives or reorders an observation or an action.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, Literal

from msgspec import Meta

from deftly.contract.acting import Actions
from deftly.contract.arrays import (
    Array,
    Constants,
    Like,
    Memory,
    clip,
    join,
    library,
    require_float,
)
from deftly.contract.derive import FUNCTIONS, Derive, derived_sizes
from deftly.contract.kinematics import Kinematics
from deftly.contract.robot import ACTION, COMMAND, JOINT_POS, Joint, RobotInterface, Shape, Signal
from deftly.contract.schema import (
    ContractError,
    Document,
    FewNames,
    Name,
    Number,
    Numbers,
    Positive,
    Record,
    Text,
)

STATE = "state"
"""The group of the observation that holds numbers unless a term says otherwise."""
MAX_HISTORY = 10_000
MAX_OBSERVATION = 1 << 20
"""Elements of the largest group of numbers, and of all that the memory keeps of the past."""
MAX_PROMPT = 4096
"""Characters of the longest text of an input."""
PHASE, HISTORY, START = "phase", "history", "start"

ActKind = Literal["absolute", "relative", "delta", "velocity", "gripper"]
Inputs = Mapping[str, Any]
"""What an operator or planner says, by name: numbers `(..., size)`, or text."""


@dataclass(frozen=True)
class Input(Record):
    """What an operator or a planner says and no sensor measures: a velocity command, a goal pose, a prompt.

    `lower`, `upper` and `default` hold one number, or one for each element; what is out of range is clipped. A `text`
    has none of them but a default, and no observation sees it: the policy itself reads it.
    """

    name: Name
    shape: Shape = (1,)
    units: Text = ""
    frame: Text = ""
    lower: Numbers = (-1.0,)
    upper: Numbers = (1.0,)
    default: Numbers = (0.0,)
    dtype: Literal["float32", "text"] = "float32"
    text: Text = ""

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def is_text(self) -> bool:
        """Whether this is text, which no observation sees."""
        return self.dtype == "text"

    def check(self) -> None:
        """Bounds of the right count and in order, the default within them."""
        self._need(len(self.shape) == 1, f"has shape {self.shape}, expected (n,)")
        counts = {name: len(getattr(self, name)) for name in ("lower", "upper", "default")}
        for name, count in counts.items():
            self._need(
                count in (1, self.size), f"{name} has {count} values, expected 1 or {self.size}"
            )
        self._need(self.is_text or not self.text, "only a text input has a default text")
        lower, upper, default = (spread(getattr(self, name), self.size) for name in counts)
        ordered = all(a <= b <= c and a < c for a, b, c in zip(lower, default, upper))
        self._need(ordered, f"default {self.default} must be within {self.lower} .. {self.upper}")


@dataclass(frozen=True)
class Observe(Record):
    """How one value enters the observation: `clip(scale * (value - offset))`, the last `history` steps, oldest first.

    The `term` is a signal, an input, a derived value, `command` (the last joint targets) or `action` (the last filtered
    action). `scale` and `offset` hold one value, or one for each element. With a `stride`, the newest of the last
    `history` steps is seen, and every `stride`-th before it. Terms of one `group` stand behind each other in order; an
    image is alone in its group and passes unchanged.
    """

    term: Name
    scale: Numbers = (1.0,)
    offset: Numbers = (0.0,)
    clip: tuple[Number, Number] | None = None
    history: Annotated[int, Meta(ge=1, le=MAX_HISTORY)] = 1
    stride: Annotated[int, Meta(ge=1, le=MAX_HISTORY)] = 1
    group: Name = STATE

    @property
    def frames(self) -> int:
        """Number of steps that are seen."""
        return (self.history - 1) // self.stride + 1

    def check(self) -> None:
        """A stride within the history, bounds of the clip in order."""
        fits = self.stride <= self.history
        what = f"of '{self.term}'"
        self._need(
            fits, f"stride {self.stride} {what} is larger than its history of {self.history}"
        )
        self._need(self.clip is None or self.clip[0] < self.clip[1], f"clip {what} is {self.clip}")


@dataclass(frozen=True)
class Act(Record):
    """How some elements of the action, each in [-1, 1], become targets of `joints`, in this order.

    absolute   middle of the joint's range + scale * a; scale defaults to half the range.
    relative   origin + scale * a; the `origin` is `home`, or the pose at the `start` of the episode.
    delta      last command + scale * a. The command, not the measured position: that sags under load.
    velocity   last command + scale * a / rate, scale in rad/s; defaults to the joint's top speed.
    gripper    a > 0 moves towards the lower limit (closed), else towards the upper (open), at `scale` per second.

    `lowpass` is the weight of the previous action: filtered = lowpass * previous + (1 - lowpass) * action.
    """

    joints: FewNames
    kind: ActKind
    scale: Annotated[tuple[Positive, ...], Meta(max_length=256)] = ()
    lowpass: Annotated[float, Meta(ge=0.0, lt=1.0)] = 0.0
    origin: Literal["home", "start"] = "home"

    def check(self) -> None:
        """A scale of the right count where one is needed; an origin other than home for `relative` alone."""
        self._need(bool(self.joints), "drives no joint")
        fits = len(self.scale) in {0, 1, len(self.joints)}
        self._need(fits, f"has {len(self.scale)} scales for the joints {self.joints}")
        needs = self.kind in ("relative", "delta")
        self._need(bool(self.scale) or not needs, f"of kind {self.kind} needs a scale")
        self._need(
            self.origin == "home" or self.kind == "relative", f"of kind {self.kind} has no origin"
        )


@dataclass(frozen=True)
class PolicyContract(Document):
    """What a policy sees and what its actions mean, for one robot at one control rate (Hz).

    Raises ContractError, one line, for a contract that contradicts itself.
    """

    SCHEMA = "deftly.contract/2"

    robot: RobotInterface
    rate: Annotated[float, Meta(ge=1e-6, le=1e6)]
    observe_terms: Annotated[tuple[Observe, ...], Meta(min_length=1, max_length=256)]
    act_terms: Annotated[tuple[Act, ...], Meta(min_length=1, max_length=256)]
    inputs: Annotated[tuple[Input, ...], Meta(max_length=64)] = ()
    derive: Annotated[tuple[Derive, ...], Meta(max_length=256)] = ()

    # ----------------------------------------------------------- what there is

    @property
    def joints(self) -> tuple[Joint, ...]:
        """The robot's joints."""
        return self.robot.joints

    @property
    def joint_names(self) -> tuple[str, ...]:
        """Joint names in the order of `joint_pos` and of the targets."""
        return self.robot.joint_names

    @property
    def signals(self) -> tuple[Signal, ...]:
        """What the robot measures."""
        return self.robot.signals

    def home(self) -> tuple[float, ...]:
        """Home position of every joint, in order."""
        return self.robot.home()

    @property
    def action_size(self) -> int:
        """Number of elements of the action."""
        return sum(len(act.joints) for act in self.act_terms)

    @functools.cached_property
    def groups(self) -> tuple[str, ...]:
        """Groups of the observation, in the order in which terms name them."""
        return tuple(dict.fromkeys(term.group for term in self.observe_terms))

    def group_shape(self, group: str = STATE) -> tuple[int, ...]:
        """Shape of a group: `(size,)`, or `(height, width, 3)` of an image. Raises ContractError if there is none."""
        terms = [term for term in self.observe_terms if term.group == group]
        if not terms:
            raise ContractError(f"the policy sees no group '{group}', but {list(self.groups)}")
        if self.is_image(group):
            return self.robot.signal(terms[0].term).shape
        return (sum(self.source_size(term.term) * term.frames for term in terms),)

    def obs_size(self, group: str = STATE) -> int:
        """Number of elements of a group of the observation."""
        return math.prod(self.group_shape(group))

    def is_image(self, group: str) -> bool:
        """Whether a group of the observation is an image."""
        images = {signal.name for signal in self.signals if signal.is_image}
        return any(term.term in images for term in self.observe_terms if term.group == group)

    def source_size(self, name: str) -> int:
        """Number of elements of a signal, an input, a derived value, of `command` or of `action`."""
        if name not in self._sizes:
            raise ContractError(
                f"'{name}' is no signal, input or derived value of {self.robot.name}"
            )
        return self._sizes[name]

    @functools.cached_property
    def _sizes(self) -> dict[str, int]:
        return _sizes(self)

    # ---------------------------------------------------------------- use

    def reset(self, signals: Mapping[str, Array], inputs: Inputs | None = None) -> Memory:
        """Memory of an episode that starts where the robot is: the command is the measured pose, within limits."""
        measured = self._signal(signals, JOINT_POS)
        require_float(measured)
        memory = self._actions.like(measured).reset(measured)
        for d in self.derive:
            if d.kind == "phase_clock":
                memory[f"{PHASE}.{d.name}"] = 0.0 * memory[COMMAND][..., :1]
        if any(term.frames > 1 for term in self.observe_terms):
            self._fill_histories(self._values(signals, memory, inputs), memory)
        return memory

    def observe(
        self, signals: Mapping[str, Array], memory: Memory, inputs: Inputs | None = None
    ) -> tuple[dict[str, Array], Memory]:
        """The observation by group, `(..., size)` each, and the memory with the new step in its histories.

        A missing input takes its default, one out of range is clipped.
        """
        memory = dict(memory)
        values = self._values(signals, memory, inputs)
        parts: dict[str, list[Array]] = {group: [] for group in self.groups}
        for i, term in enumerate(self.observe_terms):
            value = self._scaled(i, values[term.term])
            if term.frames > 1:
                value = _remember(memory, i, term, value)
            parts[term.group].append(value)
        self._advance_clocks(memory)
        return {group: self._joined(group, found) for group, found in parts.items()}, memory

    def act(self, action: Array, memory: Memory) -> tuple[Array, Memory]:
        """Joint targets `(..., num_joints)` within limits, and the memory that holds them as the last command.

        Infinite actions are clipped like any other; a NaN stays NaN in every target it decides: the caller refuses it.
        """
        if action.shape[-1] != self.action_size:
            takes = f"{self.robot.name} takes {self.action_size}"
            raise ContractError(f"action has {action.shape[-1]} elements, {takes}")
        require_float(action)
        return self._actions.like(action).act(action, memory)

    def action_for(self, targets: Array, memory: Memory) -> Array:
        """The action `(..., action_size)`, not clipped, which `act` turns into these targets of the driven joints.

        A gripper knows only to open and to close: its action is the sign of the way left, 0 where it has arrived.
        """
        return self._actions.like(targets).action_for(targets, memory)

    def follow(self, command: Array, memory: Memory) -> Memory:
        """The memory after the robot was commanded something else than `act` gave, such as what a safety limit left."""
        return {**memory, COMMAND: command}

    # -------------------------------------------------------------- inside

    @functools.cached_property
    def _actions(self) -> Constants:
        return Constants(lambda like: Actions(self, like))

    @functools.cached_property
    def _observations(self) -> Constants:
        return Constants(lambda like: _Observations(self, like))

    def _signal(self, signals: Mapping[str, Array], name: str) -> Array:
        """A signal of the right shape. Raises ContractError naming it."""
        known = self._signals_by_name
        if name not in signals:
            raise ContractError(
                f"signal '{name}' is missing; {self.robot.name} has {sorted(known)}"
            )
        value, shape = signals[name], known[name].shape
        if tuple(value.shape[-len(shape) :]) != shape:
            wanted = ", ".join(map(str, shape))
            raise ContractError(
                f"signal '{name}' has shape {tuple(value.shape)}, expected (..., {wanted})"
            )
        if known[name].is_image and "uint8" not in str(value.dtype):
            raise ContractError(
                f"signal '{name}' is an image of uint8, got an array of {value.dtype}"
            )
        return value

    @functools.cached_property
    def _signals_by_name(self) -> dict[str, Signal]:
        return {signal.name: signal for signal in self.signals}

    @functools.cached_property
    def _used(self) -> set[str]:
        """Names of what is observed, directly or in a derived value."""
        return {term.term for term in self.observe_terms} | {
            name for d in self.derive for name in d.of
        }

    def _values(
        self, signals: Mapping[str, Array], memory: Memory, inputs: Inputs | None
    ) -> dict[str, Array]:
        """Every value that is observed, by name, not yet scaled."""
        values = {
            name: self._signal(signals, name)
            for name in self._signals_by_name
            if name in self._used
        }
        values |= {COMMAND: memory[COMMAND], ACTION: memory[ACTION]}
        if self.inputs:
            values |= self._input_values(inputs or {}, memory[COMMAND])
        elif inputs:
            raise ContractError(f"'{min(inputs)}' is no input of the policy, which has none")
        for d in self.derive:
            values[d.name] = self._derived(d, values, memory)
        return values

    def _input_values(self, inputs: Inputs, like: Array) -> dict[str, Array]:
        """The inputs of numbers, `(..., size)` each with the batch axes of `like`."""
        unknown = set(inputs) - {given.name for given in self.inputs}
        if unknown:
            known = sorted(given.name for given in self.inputs)
            raise ContractError(f"'{min(unknown)}' is no input of the policy, which has {known}")
        found = {}
        for given in self.inputs:
            if not given.is_text:
                lower, upper, default = self._observations.like(like).inputs[given.name]
                value = inputs.get(given.name)
                value = (
                    default if value is None else clip(_as_input(given, value, like), lower, upper)
                )
                found[given.name] = value + 0.0 * like[..., :1]
        return found

    def _derived(self, d: Derive, values: Mapping[str, Array], memory: Memory) -> Array:
        if d.kind == "phase_clock":
            angle = (2.0 * math.pi) * memory[f"{PHASE}.{d.name}"]
            xp = library(angle)
            return join((xp.sin(angle), xp.cos(angle)))
        if d.kind == "forward_kinematics":
            joint_pos = values[JOINT_POS]
            kinematics = self._observations.like(joint_pos).kinematics[d.site]
            return kinematics.pose(joint_pos) if d.pose else kinematics.position(joint_pos)
        return FUNCTIONS[d.kind](*(values[name] for name in d.of))

    def _advance_clocks(self, memory: Memory) -> None:
        for d in self.derive:
            if d.kind == "phase_clock":
                key = f"{PHASE}.{d.name}"
                memory[key] = (memory[key] + 1.0 / (self.rate * d.period)) % 1.0

    def _scaled(self, i: int, value: Array) -> Array:
        """The value of a term as the policy sees it, of one step."""
        term = self.observe_terms[i]
        if "uint8" in str(value.dtype):
            return value
        scale, offset = self._observations.like(value).terms[i]
        if offset is not None:
            value = value - offset
        if scale is not None:
            value = scale * value
        return value if term.clip is None else library(value).clip(value, *term.clip)

    def _joined(self, group: str, parts: list[Array]) -> Array:
        """One group of the observation: a new array of its terms, or the image as it came."""
        if group in self._image_groups:
            return parts[0]
        return library(parts[0]).concatenate(parts, -1)

    @functools.cached_property
    def _image_groups(self) -> set[str]:
        return {group for group in self.groups if self.is_image(group)}

    def _fill_histories(self, values: Mapping[str, Array], memory: Memory) -> None:
        """Before an episode, all is as in its first step."""
        for i, term in enumerate(self.observe_terms):
            if term.frames > 1:
                value = self._scaled(i, values[term.term])
                for place in range(term.stride):
                    memory[_history_key(i, place)] = library(value).concatenate(
                        [value] * term.frames, -1
                    )

    def check(self) -> None:
        """Everything that must hold between the parts."""
        _require_names(self)
        for term in self.observe_terms:
            _require_term(self, term)
        for group in self.groups:
            if not self.is_image(group):
                size = self.obs_size(group)
                self._need(
                    size <= MAX_OBSERVATION,
                    f"group '{group}' has {size} elements, at most {MAX_OBSERVATION}",
                )
        kept = sum(
            self.source_size(t.term) * t.frames * t.stride
            for t in self.observe_terms
            if t.frames > 1
        )
        self._need(
            kept <= MAX_OBSERVATION, f"histories keep {kept} elements, at most {MAX_OBSERVATION}"
        )
        _require_actions(self)


class _Observations:
    """Scales, offsets, bounds of inputs and chains of a contract as arrays."""

    def __init__(self, contract: PolicyContract, like: Like):
        self.terms = []
        for term in contract.observe_terms:
            scale = None if set(term.scale) == {1.0} else like.numbers(term.scale)
            offset = None if set(term.offset) == {0.0} else like.numbers(term.offset)
            self.terms.append((scale, offset))
        self.inputs = {}
        for given in contract.inputs:
            bounds = (given.lower, given.upper, given.default)
            self.inputs[given.name] = [
                like.numbers(spread(values, given.size)) for values in bounds
            ]
        sites = {d.site for d in contract.derive if d.kind == "forward_kinematics"}
        self.kinematics = {
            name: Kinematics(contract.robot.site(name), contract.robot, like) for name in sites
        }


def spread(values: tuple[float, ...], size: int) -> tuple[float, ...]:
    """One value for each element, from one for all or from one for each."""
    return values * size if len(values) == 1 else values


def _history_key(i: int, place: int) -> str:
    """Where the memory keeps the past of a term: of every `stride`-th step, `place` steps before its next use."""
    return f"{HISTORY}.{i}.{place}"


def _remember(memory: Memory, i: int, term: Observe, value: Array) -> Array:
    """What the policy sees of a term, `(..., frames * size)`, oldest first; the memory moves on by a step.

    The memory keeps one such array for each step of the stride. The one that is due has the steps that the policy is to
    see but the newest: so a step costs one copy of what is seen, however long the stride.
    """
    keys = [_history_key(i, place) for place in range(term.stride)]
    past = memory[keys[0]]
    seen = library(value).concatenate((past[..., value.shape[-1] :], value), -1)
    for key, following in pairwise(keys):
        memory[key] = memory[following]
    memory[keys[-1]] = seen
    return seen


def _as_input(given: Input, value: Any, like: Array) -> Array:
    """An input of a program, `(..., size)`. Raises ContractError, naming it, if it is no such array."""
    try:
        array = library(like).asarray(value, dtype=like.dtype, device=like.device)
    except (TypeError, ValueError, RuntimeError):
        raise ContractError(f"input '{given.name}' is no array of numbers") from None
    array = array if array.shape else array[None]
    if array.shape[-1] != given.size:
        raise ContractError(
            f"input '{given.name}' has shape {tuple(array.shape)}, expected (..., {given.size})"
        )
    return array


def _sizes(c: PolicyContract) -> dict[str, int]:
    """Number of elements of everything that can be observed."""
    known = {signal.name: signal.size for signal in c.signals if not signal.is_image}
    known |= {given.name: given.size for given in c.inputs if not given.is_text}
    known |= {COMMAND: len(c.joints), ACTION: c.action_size}
    known |= derived_sizes(c.derive, known, c.robot)
    return known | {signal.name: signal.size for signal in c.signals if signal.is_image}


def _require_names(c: PolicyContract) -> None:
    """Each name means one thing."""
    names = [s.name for s in c.signals] + [i.name for i in c.inputs] + [d.name for d in c.derive]
    names += [COMMAND, ACTION]
    doubled = sorted({name for name in names if names.count(name) > 1})
    c._need(
        not doubled,
        f"'{doubled[0] if doubled else ''}' names two things among signals, inputs and derived values",
    )


def _require_term(c: PolicyContract, term: Observe) -> None:
    size = c.source_size(term.term)
    if any(signal.is_image for signal in c.signals if signal.name == term.term):
        beside = [other.term for other in c.observe_terms if other.group == term.group]
        c._need(
            beside == [term.term],
            f"the image '{term.term}' shares its group '{term.group}': give it its own",
        )
        plain = Observe(term.term, group=term.group)
        c._need(
            term == plain,
            f"the image '{term.term}' passes unchanged: no scale, offset, clip or history",
        )
        return
    for name in ("scale", "offset"):
        count = len(getattr(term, name))
        c._need(
            count in (1, size), f"{name} of '{term.term}' has {count} values, expected 1 or {size}"
        )


def _require_actions(c: PolicyContract) -> None:
    """Each driven joint exists, and is driven once."""
    driven = [joint for act in c.act_terms for joint in act.joints]
    driven += [coupling.joint for coupling in c.robot.couplings]
    c._need(len(set(driven)) == len(driven), f"a joint is driven twice: {driven}")
    grips = {joint.name for joint in c.joints if joint.grips}
    for act in c.act_terms:
        for name in act.joints:
            c._need(name in c.joint_names, f"acts on '{name}', which is no joint")
            gripper = act.kind != "gripper" or name in grips
            c._need(
                gripper,
                f"a gripper action drives {name}: set grips=True in the robot's table of joints",
            )
