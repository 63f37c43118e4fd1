"""The one contract between a policy and a robot: signals -> observation, action -> joint targets.

A `Contract` is frozen data. Training calls it with torch tensors for many environments, the policy server and the
robot with numpy arrays for one; both run the code below, which imports neither library. Arrays may carry any leading
batch axes: `(size,)` for one robot, `(num_envs, size)` for a batch.

    memory = contract.reset(signals)
    obs, memory = contract.observe(signals, memory)
    targets, memory = contract.act(action, memory)

Nothing else in Deftly scales, clips, filters, stacks or reorders an observation or an action.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, get_args

from deftly.errors import DeftlyError

SCHEMA = "deftly.contract/1"
LEFT_OUT = {"motors": (), "stride": 1, "slack": 0.0}  # of the JSON, so that hashes are as before there were any
LARGEST, SMALLEST = 1e12, 1e-9  # of the figures, and of those divided by: products stay finite in float32

Kind = Literal["absolute", "relative", "delta", "velocity", "gripper"]
Id = int  # of a motor on its bus
Array = Any  # numpy.ndarray or torch.Tensor, float
Memory = dict[str, Array]
Reader = Callable[[Any, str], Any]  # of a value and where it stands: its canonical form, or a ContractError

COMMAND, ACTION, JOINT_POS = "command", "action", "joint_pos"


class ContractError(DeftlyError):
    """A contract that is malformed, or not the one that was expected."""


@dataclass(frozen=True)
class Joint:
    """One commanded joint: limits, home and top speed, in rad and rad/s (m and m/s for a slide).

    `slack` is how far beyond the limits of its commands the joint can be, as a hand's that something pushes; 0 if those
    are its mechanical stops.
    """

    name: str
    lower: float
    upper: float
    home: float
    velocity: float
    units: str = "rad"
    slack: float = 0.0


@dataclass(frozen=True)
class Signal:
    """Something the robot measures. Every contract has `joint_pos`, a value for each of its joints in their order."""

    name: str
    size: int
    units: str = ""
    frame: str = ""


@dataclass(frozen=True)
class Observe:
    """How one source enters the observation: `clip(scale * (value - offset))`, the last `history` steps, oldest first.

    The source is a signal, or `command` (the last joint targets) or `action` (the last filtered action).
    `scale` and `offset` hold one value, or one for each element. With a `stride`, the newest of the last `history`
    steps is seen, and every `stride`-th before it.
    """

    signal: str
    scale: tuple[float, ...] = (1.0,)
    offset: tuple[float, ...] = (0.0,)
    clip: tuple[float, float] | None = None
    history: int = 1
    stride: int = 1

    @property
    def frames(self) -> int:
        """Number of steps that are seen."""
        return (self.history - 1) // self.stride + 1

    @property
    def kept(self) -> int:
        """Number of steps that the memory holds: as far back as the oldest that is seen."""
        return (self.frames - 1) * self.stride + 1


@dataclass(frozen=True)
class Act:
    """How some elements of the action, each in [-1, 1], become targets of `joints`, in this order.

    absolute   middle of the joint's range + scale * a; scale defaults to half the range.
    relative   home + scale * a.
    delta      last command + scale * a. The command, not the measured position: that sags under load.
    velocity   last command + scale * a / rate, scale in rad/s; defaults to the joint's top speed.
    gripper    a > 0 moves towards the lower limit (closed), else towards the upper (open), at `scale` per second.

    `lowpass` is the weight of the previous action: filtered = lowpass * previous + (1 - lowpass) * action.
    """

    joints: tuple[str, ...]
    kind: Kind
    scale: tuple[float, ...] = ()
    lowpass: float = 0.0


@dataclass(frozen=True)
class Couple:
    """A joint that follows others: offset + sum of ratio * target, over the `(joint, ratio)` pairs of `of`."""

    joint: str
    of: tuple[tuple[str, float], ...] = ()
    offset: float = 0.0


@dataclass(frozen=True)
class Motor:
    """A motor of the hardware: its position is sign * joint + offset. The order of motors is the hardware's.

    `lead` is how far (rad) a command may be ahead of the measured joint, where a motor of limited torque is there to
    press; 0 leaves that to the safety kernel, to which a joint that lags behind is blocked.
    """

    joint: str
    id: Id
    sign: float = 1.0
    offset: float = 0.0
    lead: float = 0.0


@dataclass(frozen=True)
class Contract:
    """What a policy sees and what its actions mean, for one robot at one control rate (Hz)."""

    robot: str
    rate: float
    joints: tuple[Joint, ...]
    signals: tuple[Signal, ...]
    observe_terms: tuple[Observe, ...]
    act_terms: tuple[Act, ...]
    couplings: tuple[Couple, ...] = ()
    motors: tuple[Motor, ...] = ()
    _constants: dict = field(default_factory=dict, init=False, compare=False, repr=False)

    def __post_init__(self):
        for f in dataclasses.fields(self):
            if f.init:
                object.__setattr__(self, f.name, _READERS[str(f.type)](getattr(self, f.name), f.name))
        _check(self)

    @property
    def joint_names(self) -> tuple[str, ...]:
        """Joint names in the order of `joint_pos` and of the targets."""
        return tuple(j.name for j in self.joints)

    @property
    def action_size(self) -> int:
        """Number of elements of the action."""
        return sum(len(a.joints) for a in self.act_terms)

    @property
    def obs_size(self) -> int:
        """Number of elements of the observation."""
        return sum(self.source_size(o.signal) * o.frames for o in self.observe_terms)

    def source_size(self, name: str) -> int:
        """Number of elements of a signal, of `command` or of `action`."""
        fixed = {COMMAND: len(self.joints), ACTION: self.action_size}
        return fixed[name] if name in fixed else next(s.size for s in self.signals if s.name == name)

    def home(self) -> tuple[float, ...]:
        """Home position of every joint, in order."""
        return tuple(j.home for j in self.joints)

    def reset(self, signals: Mapping[str, Array]) -> Memory:
        """Memory of an episode that starts where the robot is: the command is the measured pose, within limits."""
        measured = self._signal(signals, JOINT_POS)
        k = self._constant_arrays(measured)
        command = _xp(measured).clip(measured, k["lower"], k["upper"])
        rest = (_pick(command, k["action_joint"]) - k["bias"]) * k["inverse_gain"]
        memory = {COMMAND: command, ACTION: _xp(measured).clip(rest, -1.0, 1.0)}
        for i, term in enumerate(self.observe_terms):
            if term.frames > 1:
                value = self._term(i, signals, memory)
                memory[f"history.{i}"] = _xp(value).stack([value] * term.kept, -2)
        return memory

    def observe(self, signals: Mapping[str, Array], memory: Memory) -> tuple[Array, Memory]:
        """Observation `(..., obs_size)` of the policy, and the memory with the new step in its history."""
        memory, parts = dict(memory), []
        for i, term in enumerate(self.observe_terms):
            value = self._term(i, signals, memory)
            if term.frames > 1:
                xp, key = _xp(value), f"history.{i}"
                memory[key] = xp.concatenate((memory[key][..., 1:, :], value[..., None, :]), -2)
                value = memory[key][..., :: term.stride, :].reshape(*value.shape[:-1], -1)
            parts.append(value)
        return _xp(parts[0]).concatenate(parts, -1), memory

    def act(self, action: Array, memory: Memory) -> tuple[Array, Memory]:
        """Joint targets `(..., num_joints)` within limits, and the memory that holds them as the last command.

        Infinite actions are clipped like any other; a NaN stays NaN in every target it decides: the caller refuses it.
        """
        if action.shape[-1] != self.action_size:
            raise ContractError(f"action has {action.shape[-1]} elements, {self.robot} takes {self.action_size}")
        xp, k = _xp(action), self._constant_arrays(action)
        command = memory[COMMAND]
        filtered = k["lowpass"] * memory[ACTION] + (1.0 - k["lowpass"]) * xp.clip(action, -1.0, 1.0)
        last = _pick(command, k["action_joint"])
        target = k["bias"] + k["from_last"] * last + k["gain"] * filtered
        if k["grips"]:
            goal = xp.where(filtered > 0.0, k["closed"], k["open"])
            target = xp.where(k["is_gripper"], last + _clip(xp, goal - last, -k["gain"], k["gain"]), target)
        targets = _clip(xp, _pick(xp.concatenate((command, target), -1), k["driven_by"]), k["lower"], k["upper"])
        if self.couplings:
            follower = k["couple_offset"] + 0.0 * _pick(targets, k["follower"])
            for lead, ratio in k["leads"]:
                follower = follower + ratio * _pick(targets, lead)
            targets = _pick(xp.concatenate((targets, follower), -1), k["coupled_by"])
            targets = _clip(xp, targets, k["lower"], k["upper"])
        return targets, {**memory, ACTION: filtered, COMMAND: targets}

    def action_for(self, targets: Array, memory: Memory) -> Array:
        """The action `(..., action_size)`, not clipped, which `act` turns into these targets of the driven joints.

        A gripper knows only to open and to close: its action is the sign of the way left, 0 where it has arrived.
        """
        xp, k = _xp(targets), self._constant_arrays(targets)
        goal, last = _pick(targets, k["action_joint"]), _pick(memory[COMMAND], k["action_joint"])
        filtered = (goal - k["bias"] - k["from_last"] * last) / k["gain"]
        action = (filtered - k["lowpass"] * memory[ACTION]) / (1.0 - k["lowpass"])
        return xp.where(k["is_gripper"], xp.sign(last - goal), action)

    def follow(self, command: Array, memory: Memory) -> Memory:
        """The memory after the robot was commanded something else than `act` gave, such as what a safety limit left."""
        return {**memory, COMMAND: command}

    def to_motors(self, joints: Array) -> Array:
        """Joint positions `(..., num_joints)` as motor positions `(..., num_joints)`, in the order of `motors`."""
        k = self._constant_arrays(joints)
        return _pick(joints, k["motor_joint"]) * k["motor_sign"] + k["motor_offset"]

    def from_motors(self, positions: Array) -> Array:
        """The inverse of `to_motors`."""
        k = self._constant_arrays(positions)
        return _pick((positions - k["motor_offset"]) * k["motor_sign"], k["joint_motor"])

    def _signal(self, signals: Mapping[str, Array], name: str) -> Array:
        if name not in signals:
            raise ContractError(f"signal '{name}' is missing; {self.robot} has {sorted(s.name for s in self.signals)}")
        value, size = signals[name], self.source_size(name)
        if not value.shape or value.shape[-1] != size:
            raise ContractError(f"signal '{name}' has shape {tuple(value.shape)}, expected (..., {size})")
        return value

    def _term(self, i: int, signals: Mapping[str, Array], memory: Memory) -> Array:
        term = self.observe_terms[i]
        source = memory if term.signal in (COMMAND, ACTION) else signals
        value = self._signal(source, term.signal)
        scale, offset = self._constant_arrays(value)[f"observe.{i}"]
        value = scale * (value - offset)
        return value if term.clip is None else _xp(value).clip(value, *term.clip)

    def _action_joints(self) -> tuple[str, ...]:
        return tuple(j for a in self.act_terms for j in a.joints)

    def _constant_arrays(self, like: Array) -> dict[str, Any]:
        """The contract's figures as arrays of the library, dtype and device of `like`."""
        key = (type(like), like.dtype, like.device)
        if key not in self._constants:
            self._constants[key] = _constant_arrays(self, like)
        return self._constants[key]

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces, floats in their shortest exact form."""
        data = {"schema": SCHEMA, **{f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.init}}
        compact: dict[str, Any] = {"sort_keys": True, "separators": (",", ":"), "allow_nan": False}
        return json.dumps(_written(data), **compact, default=lambda part: _written(vars(part)))

    @property
    def hash(self) -> str:
        """sha256 of the canonical JSON, in hex."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @classmethod
    def from_json(cls, text: str) -> Contract:
        """Read what `to_json` wrote. Raises ContractError for anything else: other schema, unknown or missing field."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ContractError(f"contract is not JSON: {error}") from None
        found = data.pop("schema", None) if isinstance(data, dict) else type(data).__name__
        if found != SCHEMA:
            raise ContractError(f"contract schema is {found!r}, this Deftly reads {SCHEMA!r}")
        return _canonical(cls, data)

    def require(self, other: Contract, what: str) -> None:
        """Raise ContractError naming the first figure in which `other` (of `what`) differs from this contract."""
        difference = _difference(json.loads(self.to_json()), json.loads(other.to_json()))
        if difference:
            raise ContractError(f"{what} was made under another contract: {difference}")


def _xp(array: Array) -> Any:
    """The library an array belongs to, numpy or torch, without importing it."""
    return sys.modules[type(array).__module__.partition(".")[0]]


def _pick(values: Array, columns: Array) -> Array:
    """These columns of the last axis, by the fast way of either library."""
    return values.index_select(-1, columns) if hasattr(values, "index_select") else values.take(columns, -1)


def _clip(xp: Any, value: Array, lower: Array, upper: Array) -> Array:
    """Each element within its limits; NaN stays NaN. Three times as fast as numpy's `clip` on a robot's few joints."""
    return xp.minimum(xp.maximum(value, lower), upper)


def _written(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that stand in the JSON: all but those at a default of `LEFT_OUT`."""
    return {name: value for name, value in fields.items() if (name, value) not in LEFT_OUT.items()}


def _constant_arrays(c: Contract, like: Array) -> dict[str, Any]:
    if "float" not in str(like.dtype):
        raise ContractError(f"signals and actions are floating point, got an array of {like.dtype}")
    array = partial(_xp(like).asarray, dtype=like.dtype, device=like.device)
    indices = partial(_xp(like).asarray, device=like.device)
    index, rows = {j.name: i for i, j in enumerate(c.joints)}, []
    for act in c.act_terms:
        joints = [c.joints[index[name]] for name in act.joints]
        default = [(j.upper - j.lower) / 2 if act.kind == "absolute" else j.velocity for j in joints]
        scales = act.scale * (len(joints) // len(act.scale)) if act.scale else default
        per = c.rate if act.kind in ("velocity", "gripper") else 1.0
        last = float(act.kind in ("delta", "velocity", "gripper"))
        rows += [(act, j, s / per, last) for j, s in zip(joints, scales)]
    centre = {"absolute": lambda j: (j.lower + j.upper) / 2, "relative": lambda j: j.home}
    driven = index | {joint.name: source for source, (_, joint, _, _) in enumerate(rows, len(index))}
    coupled = index | {couple.joint: source for source, couple in enumerate(c.couplings, len(index))}
    depth = max((len(couple.of) for couple in c.couplings), default=0)
    leads = [[*couple.of, *[(couple.joint, 0.0)] * (depth - len(couple.of))] for couple in c.couplings]
    constants = {
        "lower": array([j.lower for j in c.joints]),
        "upper": array([j.upper for j in c.joints]),
        "driven_by": indices([*driven.values()]),
        "coupled_by": indices([*coupled.values()]),
        "follower": indices([index[couple.joint] for couple in c.couplings]),
        "couple_offset": array([couple.offset for couple in c.couplings]),
        "leads": [(indices([index[joint] for joint, _ in k]), array([ratio for _, ratio in k])) for k in zip(*leads)],
        "grips": any(act.kind == "gripper" for act in c.act_terms),
        "action_joint": indices([index[j.name] for _, j, _, _ in rows]),
        "motor_joint": indices([index[m.joint] for m in c.motors]),
        "joint_motor": indices([{m.joint: i for i, m in enumerate(c.motors)}.get(j) for j in index if c.motors]),
        "motor_sign": array([m.sign for m in c.motors]),
        "motor_offset": array([m.offset for m in c.motors]),
        "gain": array([gain for _, _, gain, _ in rows]),
        "inverse_gain": array([0.0 if last or not gain else 1 / gain for _, _, gain, last in rows]),
        "bias": array([centre[act.kind](j) if act.kind in centre else 0.0 for act, j, _, _ in rows]),
        "from_last": array([last for _, _, _, last in rows]),
        "lowpass": array([act.lowpass for act, _, _, _ in rows]),
        "is_gripper": array([float(act.kind == "gripper") for act, _, _, _ in rows]) > 0,
        "closed": array([j.lower for _, j, _, _ in rows]),
        "open": array([j.upper for _, j, _, _ in rows]),
    }
    return constants | {f"observe.{i}": (array(o.scale), array(o.offset)) for i, o in enumerate(c.observe_terms)}


def _canonical(cls: type, part: Any, _where: str = "") -> Any:
    """A `cls` with every field checked and in canonical form, from an instance or from its JSON mapping."""
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    part = {name: getattr(part, name) for name in fields} if isinstance(part, cls) else part
    if not isinstance(part, dict):
        raise ContractError(f"contract: expected the fields of a {cls.__name__}, got {part!r}")
    problems = [f"has no field {name!r}" for name in sorted(set(part) - set(fields))]
    problems += [f"lacks {n!r}" for n, f in fields.items() if f.default is dataclasses.MISSING and n not in part]
    if problems:
        raise ContractError(f"contract: {cls.__name__} {problems[0]}")
    return cls(**{n: _READERS[str(fields[n].type)](value, f"{cls.__name__}.{n}") for n, value in part.items()})


def _reader(ok: Callable[[Any], bool], want: str, read: Reader = lambda v, _: v, shown: Callable = repr) -> Reader:
    """A reader of the values that are `ok`; `read` gives their canonical form, `shown` the text of the others."""

    def checked(value: Any, where: str) -> Any:
        if not ok(value):
            raise ContractError(f"contract: {where} is {shown(value)}, expected {want}")
        return read(value, where)

    return checked


def _several(read: Reader, bare: tuple[type, ...] = ()) -> Reader:
    """A reader of lists of what `read` reads; a bare value of the types `bare` is a list of itself."""
    read_all = _reader(
        lambda v: isinstance(v, (tuple, list)),
        "a list",
        lambda values, where: tuple(read(v, where) for v in values),
        lambda v: repr(str(v)[:80]),
    )
    return lambda value, where: read_all((value,) if isinstance(value, bare) else value, where)


_text = _reader(lambda v: isinstance(v, str) and v.isprintable(), "text on one line")
_count = _reader(lambda v: isinstance(v, int) and v is not True and v >= 1, "a whole number of at least 1")
_number = _reader(
    lambda v: isinstance(v, (int, float)) and not isinstance(v, bool) and abs(v) <= LARGEST,
    f"a number within +-{LARGEST:g}",
    lambda v, _: float(v) + 0.0,  # no negative zero: equal contracts hash alike
    lambda v: str(v)[:80],
)
_numbers = _several(_number, (int, float))
_pair = _reader(
    lambda v: isinstance(v, (tuple, list)) and len(v) == 2,
    "(joint, ratio) pairs",
    lambda v, where: (_text(v[0], where), _number(v[1], where)),
)
_READERS: dict[str, Reader] = {  # of a field, by its annotation
    "str": _text,
    "Kind": _text,
    "float": _number,
    "int": _count,
    "Id": _reader(lambda v: isinstance(v, int) and v is not True and 0 <= v <= 252, "a bus id of 0 to 252"),
    "tuple[float, ...]": _numbers,
    "tuple[float, float] | None": lambda value, where: None if value is None else _numbers(value, where),
    "tuple[str, ...]": _several(_text, (str,)),
    "tuple[tuple[str, float], ...]": _several(_pair),
    **{
        f"tuple[{c.__name__}, ...]": _several(partial(_canonical, c))
        for c in (Joint, Signal, Observe, Act, Couple, Motor)
    },
}


def _check(c: Contract) -> None:
    """Everything that must hold between the parts of a contract."""

    def need(condition: bool, message: str) -> None:
        if not condition:
            raise ContractError(f"contract of {c.robot}: {message}")

    need(c.rate >= SMALLEST, f"rate is {c.rate}, expected a positive number of Hz")
    for kind, names in (("joint", c.joint_names), ("signal", tuple(s.name for s in c.signals))):
        need(len(set(names)) == len(names), f"a {kind} is named twice in {names}")
    for j in c.joints:
        need(j.upper - j.lower >= SMALLEST, f"joint {j.name} has limits {j.lower} .. {j.upper}")
        need(j.lower <= j.home <= j.upper, f"home {j.home} of joint {j.name} is outside {j.lower} .. {j.upper}")
        need(j.velocity > 0, f"top speed of joint {j.name} is {j.velocity}")
        need(j.slack >= 0, f"slack of joint {j.name} is {j.slack}")
    sizes = {s.name: s.size for s in c.signals}
    need(not {COMMAND, ACTION} & set(sizes), f"'{COMMAND}' and '{ACTION}' are no signals: choose another name")
    need(sizes.get(JOINT_POS) == len(c.joints), f"needs a signal '{JOINT_POS}' of size {len(c.joints)}")
    need(bool(c.observe_terms) and bool(c.act_terms), "needs an observation and an action")
    for o in c.observe_terms:
        need(o.signal in (*sizes, COMMAND, ACTION), f"observes '{o.signal}', which is no signal")
        for name in ("scale", "offset"):
            count, size = len(getattr(o, name)), c.source_size(o.signal)
            need(count in (1, size), f"{name} of '{o.signal}' has {count} values, expected 1 or {size}")
        need(o.stride <= o.history, f"stride {o.stride} of '{o.signal}' is larger than its history of {o.history}")
        need(o.clip is None or (len(o.clip) == 2 and o.clip[0] < o.clip[1]), f"clip of '{o.signal}' is {o.clip}")
    turned = [m.joint for m in c.motors]
    need(sorted(turned) in ([], sorted(c.joint_names)), f"the motors turn {turned}, expected each joint once")
    need(len({m.id for m in c.motors}) == len(turned), "two motors have the same id")
    need(all(abs(m.sign) == 1 for m in c.motors), "the sign of a motor is 1 or -1")
    need(all(m.lead >= 0 for m in c.motors), "the lead of a motor is negative")
    driven = [*c._action_joints(), *(k.joint for k in c.couplings)]
    need(len(set(driven)) == len(driven), f"a joint is driven twice: {driven}")
    for name in (*driven, *(lead for k in c.couplings for lead, _ in k.of)):
        need(name in c.joint_names, f"no joint '{name}'")
    for k in c.couplings:
        need(not {lead for lead, _ in k.of} & {o.joint for o in c.couplings}, f"{k.joint} follows a follower")
    for a in c.act_terms:
        need(a.kind in get_args(Kind), f"unknown kind of action '{a.kind}'")
        need(len(a.scale) in {0, 1, len(a.joints)}, f"{len(a.scale)} scales for the joints {a.joints}")
        need(bool(a.scale) or a.kind in ("absolute", "velocity", "gripper"), f"a {a.kind} action needs a scale")
        need(all(s >= SMALLEST for s in a.scale), f"scale of {a.joints} is {a.scale}, expected positive numbers")
        need(0 <= a.lowpass < 1, f"lowpass of {a.joints} is {a.lowpass}, expected 0 <= lowpass < 1")


def _difference(a: Any, b: Any, path: str = "") -> str:
    """The first place at which two JSON values differ, in words; empty if nowhere."""
    if type(a) is type(b) and isinstance(a, dict):
        a, b = LEFT_OUT | a, LEFT_OUT | b
        pairs = [(f"{path}.{key}".lstrip("."), a.get(key), b.get(key)) for key in sorted({*a, *b})]
    elif type(a) is type(b) and isinstance(a, list) and len(a) == len(b):
        pairs = [(f"{path}[{i}]", x, y) for i, (x, y) in enumerate(zip(a, b))]
    else:
        return "" if a == b else f"{path} is {json.dumps(b)[:80]} there, {json.dumps(a)[:80]} here"
    return next((found for p, x, y in pairs if (found := _difference(x, y, p))), "")
