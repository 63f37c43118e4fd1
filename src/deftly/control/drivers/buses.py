"""Facts of robots' motor buses that no policy needs to know, by the name of the robot."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MotorBus:
    """The bus of one kind of robot."""

    ids: tuple[int, ...]
    """Id of each motor on the bus, in the order of the interface's `motors`."""
    lead: float
    """How far a command may be ahead of its joint, rad: motors of limited torque are there to press."""
    current_ma: int
    """Largest current of each motor, mA."""


LEAP = MotorBus(ids=tuple(range(16)), lead=1.5, current_ma=550)
"""LEAP hand: 0.1 rad of lead is all of the torque, more presses no harder. 550 mA are 0.29 N m, what is simulated."""
BUSES: dict[str, MotorBus] = dict.fromkeys(("leap-right", "leap-left", "leap-left-custom"), LEAP)


def lead_of(robot: str) -> float | None:
    """How far a command of this robot may be ahead of its joints, rad; None if its bus is not known."""
    return BUSES[robot].lead if robot in BUSES else None
