"""Facts of robots' motor buses that no policy needs to know, by the name of the robot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from deftly.contract import FAULTS, Fault, Limit, RobotInterface


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


@dataclass(frozen=True)
class ServoBus:
    """Hiwonder servos of one kind of robot, and what its driver guards it with."""

    ids: tuple[int, ...]
    """Id of each servo, in the order of the interface's `motors`."""
    direction: int
    """1 if the servos' units grow with the motors' positions, -1 if they shrink."""
    volts: tuple[float, float]
    """Lowest and highest supply, V."""
    celsius: float
    """Hottest that a servo may be, degrees Celsius."""
    limits: tuple[Limit, ...] = ()
    """Of the robot's signals, beyond which no policy drives it."""
    damps: tuple[Fault, ...] = ()
    """Faults on which its motors let go."""
    positive: Mapping[str, str] = field(default_factory=dict)
    """What a joint does that turns the positive way, by the end of its name."""

    def guarded(self, robot: RobotInterface) -> RobotInterface:
        """The robot with these limits and damps beside its own."""
        limits = (*robot.limits, *(limit for limit in self.limits if limit not in robot.limits))
        damps = (*robot.damps, *(fault for fault in self.damps if fault not in robot.damps))
        return replace(robot, limits=limits, damps=damps)


WILDROBOT = ServoBus(
    ids=(1, 2, 3, 4, 5, 6, 7, 8),
    direction=-1,
    volts=(9.6, 12.9),
    celsius=70.0,
    limits=(Limit("orientation", 0.0, 0.8, of="tilt"),),
    damps=tuple(fault for fault in FAULTS if fault is not Fault.OPERATOR),
    positive={
        "hip_pitch": "swing the leg forward",
        "hip_roll": "swing the leg inward",
        "knee": "bend the knee",
        "ankle_pitch": "point the toe down",
    },
)
"""WildRobot: ids and direction are those of its makers (leeygang/wildrobot, runtime/configs/hardware_config.json).

Three lithium cells: 3.2 V each under load, below which they suffer, to 4.3 V. The servo's own limit of 85 degrees is
of its electronics; its gears are warm long before. The tilt is that at which an episode of its tasks is over.
"""
SERVOS: dict[str, ServoBus] = {"wildrobot": WILDROBOT}


def lead_of(robot: str) -> float | None:
    """How far a command of this robot may be ahead of its joints, rad; None if its bus is not known."""
    return BUSES[robot].lead if robot in BUSES else None
