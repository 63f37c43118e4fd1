"""Parameters of a robot's servos that were identified: what `deftly sysid --write` makes and tasks read.

    {"schema": "deftly.actuators/1", "robot": "leap-right",
     "joints": {"if_mcp": {"kp": {"value": 3.1, "low": 3.0, "high": 3.2}, ...}, ...},
     "delay": {"value": 0.031, "low": 0.030, "high": 0.032}}

Only what a log told is in it: other joints and parameters stay as the robot's file and the task have them.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from deftly.config import suggest
from deftly.console import printable
from deftly.errors import DeftlyError
from deftly.files import read_json, write_json

if TYPE_CHECKING:
    import mujoco

    from deftly.sim.randomize import Randomize

SCHEMA = "deftly.actuators/1"
PARAMETERS = ("kp", "kd", "frictionloss", "damping", "armature", "torque")
LEAST_FRACTION = 0.05
"""Least half width of a parameter's range for training, a fraction of its value. An interval tells how well one log
fits, not how servos differ from day to day."""
LEAST_DELAY = 0.005
"""Likewise of the delay, s."""


class Identified(NamedTuple):
    """An identified parameter and its interval, in SI units."""

    value: float
    low: float
    high: float


class Actuators(NamedTuple):
    """What is known of a robot's servos."""

    joints: dict[str, dict[str, Identified]]
    delay: Identified | None = None
    """From a command until the servos get it, and back to its measurement, s."""


def load(path: Path | None, robot: str, joints: tuple[str, ...]) -> Actuators:
    """The parameters of a file; none without a file. Raises DeftlyError, one line, if it is not of this robot."""
    if path is None:
        return Actuators({})
    data = read_json(path, "identified actuators", advice=f"'deftly sysid --write {path}' makes it")
    _require_schema(path, data)
    if data.get("robot") != robot:
        other = printable(data.get("robot"), 40)
        raise DeftlyError(f"{path} was identified on {other}, not on {robot}")
    identified: dict[str, dict[str, Identified]] = {}
    for joint, values in _mapping(path, "joints", data.get("joints")).items():
        if joint not in joints:
            raise DeftlyError(f"{path}: {robot} has no joint '{joint}'{suggest(joint, joints)}")
        parameters = _parameters(path, joint, values)
        if parameters:
            identified[joint] = parameters
    delay = None
    if data.get("delay"):
        delay = _identified(path, "delay", data["delay"], 0.0)
    return Actuators(identified, delay)


def _require_schema(path: Path, data: Any) -> None:
    schema = data.get("schema") if isinstance(data, dict) else None
    if schema == SCHEMA:
        return
    hint = ": give the file of --write, not the report" if schema == "deftly.sysid/1" else ""
    got = f"{path} has the schema {str(schema)[:40]!r}"
    raise DeftlyError(f"{got}, this Deftly reads {SCHEMA!r}{hint}")


def _parameters(path: Path, joint: str, values: Any) -> dict[str, Identified]:
    """The parameters of one joint, by name."""
    parameters = {}
    for name, value in _mapping(path, joint, values).items():
        if name not in PARAMETERS:
            hint = f"{suggest(name, PARAMETERS)}, known are {PARAMETERS}"
            raise DeftlyError(f"{path}: {joint} has '{name}'{hint}")
        parameters[name] = _identified(path, f"{joint}.{name}", value, 1e-9)
    return parameters


def _mapping(path: Path, what: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DeftlyError(f"{path}: '{what}' must be a mapping, it is {str(value)[:40]!r}")
    return value


def _identified(path: Path, what: str, given: Any, least: float) -> Identified:
    """A value and its interval, at least `least`."""
    try:
        value, low, high = (float(given[key]) for key in Identified._fields)
    except (TypeError, KeyError, ValueError, OverflowError):
        raise DeftlyError(f"{path}: {what} must have the numbers value, low and high") from None
    identified = Identified(value, low, high)
    finite = all(map(math.isfinite, identified))
    if not (finite and least <= low <= value <= high):
        got = f"{path}: {what} is {tuple(identified)}"
        raise DeftlyError(f"{got}, but it must be {least:g} <= low <= value <= high")
    return identified


def save(path: Path, robot: str, joints: tuple[str, ...], new: Actuators) -> Actuators:
    """Write the parameters; joints that the file had and that are not new are kept. Returns what it now holds."""
    old = load(path, robot, joints) if path.exists() else Actuators({})
    joints_now = {**old.joints, **new.joints}
    merged = Actuators(joints_now, new.delay or old.delay)
    written = {}
    for joint in joints:
        if joint in merged.joints:
            parameters = merged.joints[joint]
            written[joint] = {name: value._asdict() for name, value in parameters.items()}
    data = {
        "schema": SCHEMA,
        "robot": robot,
        "joints": written,
        "delay": merged.delay and merged.delay._asdict(),
    }
    write_json(path, data, indent=1)
    return merged


def apply(s: mujoco.MjSpec, fitted: Actuators) -> None:
    """Give a robot's position servos and joints the parameters that were identified."""
    for name, parameters in fitted.joints.items():
        servo = s.actuator(name)
        joint = s.joint(name)
        for quantity, identified in parameters.items():
            _set_parameter(servo, joint, quantity, identified.value)


def _set_parameter(
    servo: mujoco.MjsActuator, joint: mujoco.MjsJoint, quantity: str, value: float
) -> None:
    if quantity == "kp":
        servo.gainprm[0] = value
        servo.biasprm[1] = -value
    elif quantity == "kd":
        servo.biasprm[2] = -value
    elif quantity == "torque":
        servo.forcerange = (-value, value)
    elif quantity == "damping":
        joint.damping[0] = value
    else:
        setattr(joint, quantity, value)


def ranges(entries: tuple[Randomize, ...], fitted: Actuators) -> tuple[Randomize, ...]:
    """A task's randomization, with the identified ranges in place of its own for what was identified."""
    replaced: list[Randomize] = []
    for entry in entries:
        if entry.quantity == "latency" and fitted.delay:
            entry = _latency_entry(entry, fitted.delay)
        known = [j for j in entry.names if entry.quantity in fitted.joints.get(j, {})]
        left = tuple(joint for joint in entry.names if joint not in known)
        if not known:
            replaced.append(entry)
        elif left:  # no names would mean all
            replaced.append(replace(entry, names=left))
        for joint in known:
            identified = fitted.joints[joint][entry.quantity]
            replaced.append(_joint_entry(entry, joint, identified))
    return tuple(replaced)


def _latency_entry(entry: Randomize, delay: Identified) -> Randomize:
    """A latency drawn from the interval of the identified delay, or wider."""
    low = max(0.0, min(delay.low, delay.value - LEAST_DELAY))
    high = max(delay.high, delay.value + LEAST_DELAY)
    return replace(entry, low=low, high=max(high, 0.0))


def _joint_entry(entry: Randomize, joint: str, identified: Identified) -> Randomize:
    """One joint's parameter drawn from its interval, or wider, as a scale of the identified value."""
    value, low, high = identified
    lowest = min(low / value, 1 - LEAST_FRACTION)
    highest = max(high / value, 1 + LEAST_FRACTION)
    return replace(entry, low=lowest, high=highest, names=(joint,), op="scale", shared=False)
