"""Figures of a robot's servos that were identified: what `deftly sysid --write` makes and tasks read.

    {"schema": "deftly.actuators/1", "robot": "leap-right",
     "joints": {"if_mcp": {"kp": {"value": 3.1, "low": 3.0, "high": 3.2}, ...}, ...},
     "delay": {"value": 0.031, "low": 0.030, "high": 0.032}}

Only what a log told is in it: other joints and figures stay as the robot's file and the task have them.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from deftly.config import suggest
from deftly.errors import DeftlyError
from deftly.files import read_json, write_json

if TYPE_CHECKING:
    import mujoco

    from deftly.sim.randomize import Randomize

SCHEMA = "deftly.actuators/1"
PARAMETERS = ("kp", "kd", "frictionloss", "damping", "armature", "torque")
LEAST_SHARE, LEAST_DELAY = 0.05, 0.005
"""Least half width of a range for training: 5 %, and 5 ms. An interval tells how well one log fits, not how servos
differ from day to day."""


class Figure(NamedTuple):
    """A figure and its interval, in SI units."""

    value: float
    low: float
    high: float


class Actuators(NamedTuple):
    """What is known of a robot's servos."""

    joints: dict[str, dict[str, Figure]]
    delay: Figure | None = (
        None  # from a command until the servos get it, and back to its measurement, s
    )


def load(path: Path | None, robot: str, joints: tuple[str, ...]) -> Actuators:
    """The figures of a file; none without a file. Raises DeftlyError, one line, if it is not of this robot."""
    if path is None:
        return Actuators({})
    data = read_json(path, "identified actuators", advice=f"'deftly sysid --write {path}' makes it")
    schema = data.get("schema") if isinstance(data, dict) else None
    if schema != SCHEMA:
        hint = ": give the file of --write, not the report" if schema == "deftly.sysid/1" else ""
        raise DeftlyError(
            f"{path} has the schema {str(schema)[:40]!r}, this Deftly reads {SCHEMA!r}{hint}"
        )
    if data.get("robot") != robot:
        raise DeftlyError(f"{path} was identified on {str(data.get('robot'))[:40]}, not on {robot}")
    found: dict[str, dict[str, Figure]] = {}
    for joint, figures in _mapping(path, "joints", data.get("joints")).items():
        if joint not in joints:
            raise DeftlyError(f"{path}: {robot} has no joint '{joint}'{suggest(joint, joints)}")
        for name, figure in _mapping(path, joint, figures).items():
            if name not in PARAMETERS:
                raise DeftlyError(
                    f"{path}: {joint} has '{name}'{suggest(name, PARAMETERS)}, known are {PARAMETERS}"
                )
            found.setdefault(joint, {})[name] = _figure(path, f"{joint}.{name}", figure, 1e-9)
    return Actuators(
        found, _figure(path, "delay", data["delay"], 0.0) if data.get("delay") else None
    )


def _mapping(path: Path, what: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DeftlyError(f"{path}: '{what}' must be a mapping, it is {str(value)[:40]!r}")
    return value


def _figure(path: Path, what: str, value: Any, least: float) -> Figure:
    try:
        figure = Figure(*(float(value[key]) for key in Figure._fields))
    except (TypeError, KeyError, ValueError):
        raise DeftlyError(f"{path}: {what} must have the numbers value, low and high") from None
    if not (all(map(math.isfinite, figure)) and least <= figure.low <= figure.value <= figure.high):
        raise DeftlyError(
            f"{path}: {what} is {tuple(figure)}, but it must be {least:g} <= low <= value <= high"
        )
    return figure


def save(path: Path, robot: str, joints: tuple[str, ...], new: Actuators) -> Actuators:
    """Write the figures; joints that the file already had and that are not new are kept. Returns what it now holds."""
    old = load(path, robot, joints) if path.exists() else Actuators({})
    both = Actuators({**old.joints, **new.joints}, new.delay or old.delay)
    data = {
        "schema": SCHEMA,
        "robot": robot,
        "joints": {
            j: {n: f._asdict() for n, f in both.joints[j].items()}
            for j in joints
            if j in both.joints
        },
        "delay": both.delay and both.delay._asdict(),
    }
    write_json(path, data, indent=1)
    return both


def apply(s: mujoco.MjSpec, fitted: Actuators) -> None:
    """Give a robot's position servos and joints the figures that were identified."""
    for name, figures in fitted.joints.items():
        servo, joint = s.actuator(name), s.joint(name)
        for quantity, figure in figures.items():
            if quantity == "kp":
                servo.gainprm[0], servo.biasprm[1] = figure.value, -figure.value
            elif quantity == "kd":
                servo.biasprm[2] = -figure.value
            elif quantity == "torque":
                servo.forcerange = (-figure.value, figure.value)
            elif quantity == "damping":
                joint.damping[0] = figure.value
            else:
                setattr(joint, quantity, figure.value)


def ranges(entries: tuple[Randomize, ...], fitted: Actuators) -> tuple[Randomize, ...]:
    """A task's randomization, with the identified ranges in place of its own for what was identified."""
    out: list[Randomize] = []
    for entry in entries:
        if entry.quantity == "latency" and fitted.delay:
            value, low, high = fitted.delay
            low, high = max(0.0, min(low, value - LEAST_DELAY)), max(high, value + LEAST_DELAY)
            entry = replace(entry, low=low, high=max(high, 0.0))
        known = [j for j in entry.names if entry.quantity in fitted.joints.get(j, {})]
        left = tuple(j for j in entry.names if j not in known)
        if left or not known:  # no names would mean all
            out.append(replace(entry, names=left) if known else entry)
        for joint in known:
            value, low, high = fitted.joints[joint][entry.quantity]
            share = (min(low / value, 1 - LEAST_SHARE), max(high / value, 1 + LEAST_SHARE))
            out.append(
                replace(
                    entry, low=share[0], high=share[1], names=(joint,), op="scale", shared=False
                )
            )
    return tuple(out)
