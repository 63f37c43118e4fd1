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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Annotated, Any, NamedTuple, Self

from msgspec import Meta

from deftly.contract.acting import Actions
from deftly.contract.arrays import (
    Array,
    Constants,
    Like,
    Memory,
    clip,
    dtype_name,
    join,
    library,
    require_float,
)
from deftly.contract.derive import (
    FUNCTIONS,
    Derive,
    angle_between,
    derived_sizes,
    yaw,
)
from deftly.contract.kinematics import Kinematics
from deftly.contract.robot import (
    ACTION,
    COMMAND,
    JOINT_POS,
    Joint,
    RobotInterface,
    Signal,
    Site,
)
from deftly.contract.schema import (
    ContractError,
    Document,
)
from deftly.contract.terms import (
    STATE,
    Act,
    Input,
    Inputs,
    Observe,
    spread,
)

MAX_OBSERVATION = 1 << 20
"""Elements of the largest group of numbers, and of all that the memory keeps of the past."""
PHASE = "phase"
"""Prefix of the memory's keys that hold the phases of clocks."""
LAST = "last"
"""Prefix of the memory's keys that hold what a rate was computed from in the step before."""
HEADING = "heading"
"""Prefix of the memory's keys that hold commanded headings."""
HISTORY = "history"
"""Prefix of the memory's keys that hold the past of terms."""


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

    @functools.cached_property
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
        size = sum(self.source_size(term.term) * term.frames for term in terms)
        return (size,)

    def obs_size(self, group: str = STATE) -> int:
        """Number of elements of a group of the observation."""
        return math.prod(self.group_shape(group))

    def is_image(self, group: str) -> bool:
        """Whether a group of the observation is an image."""
        images = {signal.name for signal in self.signals if signal.is_image}
        observed = {term.term for term in self.observe_terms if term.group == group}
        return bool(images & observed)

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
        memory = self._at_start(signals)
        if any(self._has_history.values()) or self._remembering:
            values = self._values(signals, memory, inputs)
            self._begin_derived(values, memory)
            self._fill_histories(values, memory)
        return memory

    def begin(
        self,
        signals: Mapping[str, Array],
        inputs: Inputs | None = None,
        command: Array | None = None,
    ) -> tuple[dict[str, Array], Memory]:
        """The first observation of an episode, and the memory after it: `reset` and `observe` with the work of one.

        With a `command`, (..., num_joints), the robot is already commanded that, as `follow` between the two would say.
        """
        memory = self._at_start(signals)
        values = self._values(signals, memory, inputs)
        self._begin_derived(values, memory)
        self._fill_histories(values, memory)
        if command is not None:
            memory[COMMAND] = values[COMMAND] = command
            if self.inputs:  # their batch axes are the command's
                values |= self._input_values(inputs or {}, command)
            for derived in self._of_command:
                values[derived.name] = self._derived(derived, values, memory)
        return self._observed(values, memory), memory

    def observe(
        self, signals: Mapping[str, Array], memory: Memory, inputs: Inputs | None = None
    ) -> tuple[dict[str, Array], Memory]:
        """The observation by group, `(..., size)` each, and the memory with the new step in its histories.

        A missing input takes its default, one out of range is clipped.
        """
        memory = dict(memory)
        values = self._values(signals, memory, inputs)
        return self._observed(values, memory), memory

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

    def is_history(self, name: str) -> bool:
        """Whether a part of the memory is a history, which only the memory holds: no observation is the same array."""
        return name.startswith(f"{HISTORY}.")

    # -------------------------------------------------------------- inside

    @functools.cached_property
    def _actions(self) -> Constants:
        return Constants(lambda like: Actions(self.robot, self.act_terms, self.rate, like))

    @functools.cached_property
    def _observations(self) -> Constants:
        return Constants(lambda like: _Observations(self, like))

    def _at_start(self, signals: Mapping[str, Array]) -> Memory:
        """Command, action and phases of clocks of an episode that starts where the robot is."""
        measured = self._signal(signals, JOINT_POS)
        memory = self._actions.like(measured).reset(measured)
        for clock in self._clocks:
            memory[_phase_key(clock)] = 0.0 * memory[COMMAND][..., :1]
        return memory

    def _signal(self, signals: Mapping[str, Array], name: str) -> Array:
        """A signal of the right shape. Raises ContractError naming it."""
        known = self._signals_by_name
        if name not in signals:
            has = f"{self.robot.name} has {sorted(known)}"
            raise ContractError(f"signal '{name}' is missing; {has}")
        value = signals[name]
        shape = known[name].shape
        if value.shape[-len(shape) :] != shape:
            expected = ", ".join(map(str, shape))
            got = f"has shape {tuple(value.shape)}"
            raise ContractError(f"signal '{name}' {got}, expected (..., {expected})")
        if not known[name].is_image:
            require_float(value)
        elif not _is_uint8(value):
            got = f"got an array of {value.dtype}"
            raise ContractError(f"signal '{name}' is an image of uint8, {got}")
        return value

    @functools.cached_property
    def _signals_by_name(self) -> dict[str, Signal]:
        return {signal.name: signal for signal in self.signals}

    @functools.cached_property
    def _used_signals(self) -> list[str]:
        """Names of the signals that are observed, directly or in a derived value."""
        names = {term.term for term in self.observe_terms}
        for derived in self.derive:
            names.update(derived.of)
        return [signal.name for signal in self.signals if signal.name in names]

    @functools.cached_property
    def _input_names(self) -> frozenset[str]:
        return frozenset(given.name for given in self.inputs)

    @functools.cached_property
    def _clocks(self) -> tuple[Derive, ...]:
        return tuple(derived for derived in self.derive if derived.kind == "phase_clock")

    @functools.cached_property
    def _site_derives(self) -> dict[bool, dict[str, Site]]:
        """The sites whose poses (True) or positions (False) are observed, by the name of the derived value."""
        found: dict[bool, dict[str, Site]] = {}
        for derived in self.derive:
            if derived.kind == "forward_kinematics":
                sites = found.setdefault(derived.pose, {})
                sites[derived.name] = self.robot.site(derived.site)
        return found

    @functools.cached_property
    def _of_command(self) -> tuple[Derive, ...]:
        """Derived values that depend on the last command or an input, directly or through others."""
        found: list[Derive] = []
        names = {COMMAND, *self._input_names}
        for derived in self.derive:
            if names & {*derived.of}:
                found.append(derived)
                names.add(derived.name)
        return tuple(found)

    @functools.cached_property
    def _remembering(self) -> tuple[Derive, ...]:
        """Derived values that depend on the steps before, clocks apart."""
        return tuple(each for each in self.derive if each.kind in ("rate", "heading_error"))

    def _values(
        self, signals: Mapping[str, Array], memory: Memory, inputs: Inputs | None
    ) -> dict[str, Array]:
        """Every value that is observed, by name, not yet scaled."""
        values = {name: self._signal(signals, name) for name in self._used_signals}
        values[COMMAND] = memory[COMMAND]
        values[ACTION] = memory[ACTION]
        if self.inputs:
            values |= self._input_values(inputs or {}, memory[COMMAND])
        elif inputs:
            raise ContractError(f"'{min(inputs)}' is no input of the policy, which has none")
        values |= self._site_values(values)
        for derived in self.derive:
            if derived.kind != "forward_kinematics":
                values[derived.name] = self._derived(derived, values, memory)
        return values

    def _site_values(self, values: Mapping[str, Array]) -> dict[str, Array]:
        """Where the interface's sites are, by the name of the derived value: all of them at once."""
        found: dict[str, Array] = {}
        if not self._site_derives:
            return found
        joint_pos = values[JOINT_POS]
        for pose, kinematics in self._observations.like(joint_pos).kinematics.items():
            places = kinematics.poses(joint_pos) if pose else kinematics.positions(joint_pos)
            found |= zip(self._site_derives[pose], places)
        return found

    def _input_values(self, inputs: Inputs, like: Array) -> dict[str, Array]:
        """The inputs of numbers, `(..., size)` each with the batch axes of `like`."""
        unknown = inputs.keys() - self._input_names
        if unknown:
            known = sorted(self._input_names)
            raise ContractError(f"'{min(unknown)}' is no input of the policy, which has {known}")
        bounds = self._observations.like(like).inputs
        each_robot = 0.0 * like[..., :1]
        found = {}
        for given in self.inputs:
            if given.is_text:
                continue
            lower, upper, default = bounds[given.name]
            value = inputs.get(given.name)
            if value is None:
                value = default
            else:
                value = clip(_as_input(given, value, like), lower, upper)
            found[given.name] = value + each_robot
        return found

    def _derived(self, derived: Derive, values: Mapping[str, Array], memory: Memory) -> Array:
        if derived.kind == "phase_clock":
            angle = (2.0 * math.pi) * memory[_phase_key(derived)]
            xp = library(angle)
            return join((xp.sin(angle), xp.cos(angle)))
        if derived.kind == "part":
            return values[derived.of[0]][..., derived.first : derived.first + derived.count]
        if derived.kind == "rate":
            value = values[derived.of[0]]
            return (value - memory.get(_last_key(derived), value)) * self.rate
        if derived.kind == "heading_error":
            heading = yaw(values[derived.of[0]])
            return angle_between(heading, memory.get(_heading_key(derived), heading))
        arguments = [values[name] for name in derived.of]
        return FUNCTIONS[derived.kind](*arguments)

    def _advance_clocks(self, memory: Memory) -> None:
        for clock in self._clocks:
            key = _phase_key(clock)
            turns = 1.0 / (self.rate * clock.period)
            memory[key] = (memory[key] + turns) % 1.0

    def _begin_derived(self, values: Mapping[str, Array], memory: Memory) -> None:
        """What derived values remember when an episode starts: nothing has changed, the heading is as commanded."""
        for derived in self._remembering:
            value = values[derived.of[0]]
            if derived.kind == "rate":
                memory[_last_key(derived)] = value
            else:
                memory[_heading_key(derived)] = yaw(value)

    def _advance_derived(self, values: Mapping[str, Array], memory: Memory) -> None:
        """What derived values remember for the next step."""
        for derived in self._remembering:
            if derived.kind == "rate":
                memory[_last_key(derived)] = values[derived.of[0]]
            else:
                key = _heading_key(derived)
                turn = values[derived.of[1]] / self.rate
                memory[key] = (memory[key] + turn) % (2.0 * math.pi)

    def _observed(self, values: Mapping[str, Array], memory: Memory) -> dict[str, Array]:
        """The observation by group; the memory moves on by a step."""
        obs = {}
        for group, image in self._image_groups.items():
            obs[group] = values[image] if image else self._seen(group, values, memory)
        self._advance_clocks(memory)
        self._advance_derived(values, memory)
        return obs

    def _seen(self, group: str, values: Mapping[str, Array], memory: Memory) -> Array:
        """A group of numbers as the policy sees it, `(..., size)`, a new array; the memory's histories move on."""
        scaled = self._scaled(group, values)
        if not self._has_history[group]:
            return scaled
        parts = []
        for each in self._terms[group]:
            value = scaled[..., each.columns]
            parts.append(_remember(memory, each.history, value) if each.history else value)
        return library(scaled).concatenate(parts, -1)

    def _scaled(self, group: str, values: Mapping[str, Array]) -> Array:
        """The terms of a group of numbers behind each other, of one step, as the policy sees them: a new array."""
        parts = [values[each.term.term] for each in self._terms[group]]
        value = library(parts[0]).concatenate(parts, -1)
        constants = self._observations.like(value).groups[group]
        if constants.offset is not None:
            value = value - constants.offset
        if constants.scale is not None:
            value = constants.scale * value
        if constants.lower is not None:
            value = clip(value, constants.lower, constants.upper)
        return value

    def _fill_histories(self, values: Mapping[str, Array], memory: Memory) -> None:
        """Before an episode, all is as in its first step."""
        for group, has_history in self._has_history.items():
            if not has_history:
                continue
            scaled = self._scaled(group, values)
            for each in self._terms[group]:
                for key in each.history:
                    value = [scaled[..., each.columns]] * each.term.frames
                    memory[key] = library(scaled).concatenate(value, -1)

    @functools.cached_property
    def _image_groups(self) -> dict[str, str]:
        """The image that each group of the observation is; empty for one of numbers."""
        images = {signal.name for signal in self.signals if signal.is_image}
        found = dict.fromkeys(self.groups, "")
        for term in self.observe_terms:
            if term.term in images:
                found[term.group] = term.term
        return found

    @functools.cached_property
    def _terms(self) -> dict[str, list[_Term]]:
        """The terms of each group of numbers, in order."""
        terms: dict[str, list[_Term]] = {
            group: [] for group, image in self._image_groups.items() if not image
        }
        for i, term in enumerate(self.observe_terms):
            if term.group in terms:
                group = terms[term.group]
                first = group[-1].columns.stop if group else 0
                columns = slice(first, first + self.source_size(term.term))
                group.append(_Term(term, columns, _history_keys(i, term)))
        return terms

    @functools.cached_property
    def _has_history(self) -> dict[str, bool]:
        """Whether a group of numbers shows the past."""
        return {group: any(each.history for each in terms) for group, terms in self._terms.items()}

    @property
    def robot_name(self) -> str:
        """Of the robot that the policy is for."""
        return self.robot.name

    def require_policy_of(self, trained: Self, what: str) -> None:
        """Raise ContractError naming the first difference unless a policy of `trained`, which is `what`, fits this.

        All must be the same, but that the robot may be guarded better: `RobotInterface.as_trained`.
        """
        like = replace(self, robot=self.robot.as_trained(trained.robot))
        like.require(trained, what)

    def check(self) -> None:
        """Everything that must hold between the parts."""
        _require_names(self)
        for term in self.observe_terms:
            _require_term(self, term)
        for group in self.groups:
            if not self.is_image(group):
                size = self.obs_size(group)
                count = f"group '{group}' has {size} elements"
                self._need(size <= MAX_OBSERVATION, f"{count}, at most {MAX_OBSERVATION}")
        kept = self._history_size()
        count = f"histories keep {kept} elements"
        self._need(kept <= MAX_OBSERVATION, f"{count}, at most {MAX_OBSERVATION}")
        _require_actions(self)

    def _history_size(self) -> int:
        """Number of elements that the memory keeps of the past."""
        size = 0
        for term in self.observe_terms:
            if term.frames > 1:
                size += self.source_size(term.term) * term.frames * term.stride
        return size


class _Term(NamedTuple):
    """A term of a group of numbers."""

    term: Observe
    columns: slice
    """Where it is among the group's terms of one step."""
    history: tuple[str, ...]
    """Where the memory keeps its past; empty if only the present is seen."""


class _Scaling:
    """What the terms of a group are scaled and clipped by, `(size,)` each; None where that would change nothing."""

    def __init__(self, contract: PolicyContract, terms: Sequence[_Term], like: Like):
        scale: list[float] = []
        offset: list[float] = []
        lower: list[float] = []
        upper: list[float] = []
        for term, _, _ in terms:
            size = contract.source_size(term.term)
            least, most = term.clip or (-math.inf, math.inf)
            scale += spread(term.scale, size)
            offset += spread(term.offset, size)
            lower += [least] * size
            upper += [most] * size
        self.scale = like.unless(1.0, scale)
        self.offset = like.unless(0.0, offset)
        self.lower = like.unless(-math.inf, lower)
        self.upper = like.numbers(upper)


class _Observations:
    """Scales, offsets, bounds of inputs and chains of a contract as arrays."""

    def __init__(self, contract: PolicyContract, like: Like):
        self.groups = {
            group: _Scaling(contract, terms, like) for group, terms in contract._terms.items()
        }
        self.inputs = {}
        for given in contract.inputs:
            lower = like.numbers(spread(given.lower, given.size))
            upper = like.numbers(spread(given.upper, given.size))
            default = like.numbers(spread(given.default, given.size))
            self.inputs[given.name] = (lower, upper, default)
        self.kinematics = {
            pose: Kinematics([*sites.values()], contract.robot, like)
            for pose, sites in contract._site_derives.items()
        }


def _is_uint8(value: Array) -> bool:
    return "uint8" in dtype_name(value.dtype)


def _phase_key(clock: Derive) -> str:
    """Where the memory keeps the phase of a clock, `(..., 1)` in turns."""
    return f"{PHASE}.{clock.name}"


def _last_key(derived: Derive) -> str:
    """Where the memory keeps the value of the step before, of which a rate is."""
    return f"{LAST}.{derived.name}"


def _heading_key(derived: Derive) -> str:
    """Where the memory keeps a commanded heading, `(..., 1)` in rad."""
    return f"{HEADING}.{derived.name}"


def _history_keys(i: int, term: Observe) -> tuple[str, ...]:
    """Where the memory keeps the past of the i-th term: of every `stride`-th step, each as long before its next use."""
    if term.frames == 1:
        return ()
    return tuple(f"{HISTORY}.{i}.{place}" for place in range(term.stride))


def _remember(memory: Memory, keys: Sequence[str], value: Array) -> Array:
    """What the policy sees of a term, `(..., frames * size)`, oldest first; the memory moves on by a step.

    The memory keeps one such array for each step of the stride. The one that is due has the steps that the policy is to
    see but the newest: so a step costs one copy of what is seen, however long the stride.
    """
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
    if not array.shape:
        array = array[None]
    if array.shape[-1] != given.size:
        got = f"has shape {tuple(array.shape)}"
        raise ContractError(f"input '{given.name}' {got}, expected (..., {given.size})")
    return array


def _sizes(contract: PolicyContract) -> dict[str, int]:
    """Number of elements of everything that can be observed."""
    images = {signal.name: signal.size for signal in contract.signals if signal.is_image}
    sizes = {signal.name: signal.size for signal in contract.signals if not signal.is_image}
    for given in contract.inputs:
        if not given.is_text:
            sizes[given.name] = given.size
    sizes[COMMAND] = len(contract.joints)
    sizes[ACTION] = contract.action_size
    sizes |= derived_sizes(contract.derive, sizes, contract.robot)
    return sizes | images


def _require_names(contract: PolicyContract) -> None:
    """Each name means one thing."""
    names = [signal.name for signal in contract.signals]
    names += [given.name for given in contract.inputs]
    names += [derived.name for derived in contract.derive]
    names += [COMMAND, ACTION]
    for name in sorted(names):
        unique = names.count(name) == 1
        where = "among signals, inputs and derived values"
        contract._need(unique, f"'{name}' names two things {where}")


def _require_term(contract: PolicyContract, term: Observe) -> None:
    size = contract.source_size(term.term)
    if any(signal.is_image for signal in contract.signals if signal.name == term.term):
        _require_image_term(contract, term)
        return
    for name in ("scale", "offset"):
        count = len(getattr(term, name))
        values = f"{name} of '{term.term}' has {count} values"
        contract._need(count in (1, size), f"{values}, expected 1 or {size}")


def _require_image_term(contract: PolicyContract, term: Observe) -> None:
    """An image is alone in its group and passes unchanged."""
    group = [other.term for other in contract.observe_terms if other.group == term.group]
    shares = f"the image '{term.term}' shares its group '{term.group}'"
    contract._need(group == [term.term], f"{shares}: give it its own")
    unchanged = Observe(term.term, group=term.group)
    passes = f"the image '{term.term}' passes unchanged"
    contract._need(term == unchanged, f"{passes}: no scale, offset, clip or history")


def _require_actions(contract: PolicyContract) -> None:
    """Each driven joint exists, and is driven once."""
    driven = [joint for act in contract.act_terms for joint in act.joints]
    driven += [coupling.joint for coupling in contract.robot.couplings]
    once = len(set(driven)) == len(driven)
    contract._need(once, f"a joint is driven twice: {driven}")
    for act in contract.act_terms:
        for name in act.joints:
            contract._need(name in contract.joint_names, f"acts on '{name}', which is no joint")
            if act.kind == "gripper":
                _require_gripper(contract, name)


def _require_gripper(contract: PolicyContract, name: str) -> None:
    grips = {joint.name for joint in contract.joints if joint.grips}
    advice = "set grips=True in the robot's table of joints"
    contract._need(name in grips, f"a gripper action drives {name}: {advice}")
