"""Robots behind one small interface: what the control loop reads from and writes to."""

from deftly.control.drivers.fake import FAULTS, FakeDriver
from deftly.control.drivers.protocol import (
    Driver,
    DriverError,
    OtherWriterError,
    Reading,
    lacking,
    robot_of,
)

SIMULATED = ("fake", "sim")
"""What commands call the drivers of no real robot."""

__all__ = [
    "FAULTS",
    "SIMULATED",
    "Driver",
    "DriverError",
    "FakeDriver",
    "OtherWriterError",
    "Reading",
    "lacking",
    "robot_of",
]
