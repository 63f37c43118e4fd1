"""Robots behind one small interface: what the control loop reads from and writes to."""

from deftly.control.drivers.fake import FAULTS, FakeDriver
from deftly.control.drivers.protocol import (
    Driver,
    DriverError,
    OtherWriterError,
    Reading,
    lacking,
)

__all__ = [
    "FAULTS",
    "Driver",
    "DriverError",
    "FakeDriver",
    "OtherWriterError",
    "Reading",
    "lacking",
]
