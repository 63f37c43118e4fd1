"""A BNO085 inertial sensor on I2C, by adafruit-circuitpython-bno08x: orientation and angular velocity of the body.

The sensor's game rotation vector, which needs no magnetometer: motors would turn that. Its heading is 0 where it was
switched on. The library gives a quaternion x y z w, from the sensor's frame to a world with z up; here it is w x y z,
and from the body's frame, x forward, y left, z up. Angular velocities are in the body's frame too.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from deftly.contract.derive import multiply, projected_gravity, rotate
from deftly.control.drivers.poller import Poller
from deftly.control.drivers.protocol import DriverError

ADDRESSES = (0x4A, 0x4B)
"""Of the sensor, by how its pin DI is tied."""
I2C_HZ = 400_000
INTERVAL_US = 10_000
"""Between two reports of a kind: twice the rate of the control loop."""
REPORTS = (0x08, 0x02, 0x01)
"""Game rotation vector, calibrated gyroscope, accelerometer: BNO08X data sheet, 1.3.2."""
NAP_S = 0.002
"""Between two looks at what came."""
FROZEN_S = 0.25
"""Numbers that are all the same for so long are no measurements: the accelerometer's last bit never rests."""
GRAVITY = 9.81  # m/s2
REST = 2.5  # m/s2: how far a sensor at rest may be off, which somebody holds
AGREE = 0.5  # rad: between the vertical of the orientation and that of the accelerometer
STARTS_S = 3.0
"""Longest wait for the first reports."""
IDENTITY = np.array([1.0, 0.0, 0.0, 0.0])
UPRIGHT = np.array([0.0, 0.0, -1.0])
"""Gravity in the frame of a body that stands."""


class Sample(NamedTuple):
    """What the sensor measured, in the frame of the body."""

    orientation: np.ndarray
    """w x y z, from the body's frame to the world's."""
    angular_velocity: np.ndarray
    """rad/s."""
    acceleration: np.ndarray
    """m/s2, gravity among it: up, at rest."""


class Bno085:
    """The sensor, and the thread that reads it.

    Args:
        mount: quaternion w x y z, (4,), that turns the sensor's frame into the body's; None: not known yet, they are
            taken for the same, and the sensor may be any way up.
        sensor: what has the properties of the library's `BNO08X`; unset: the one on this computer's I2C.
        clock: the monotonic clock, s.

    Raises DriverError, one line, if it is not there, says nothing, or is upside down.
    """

    def __init__(
        self,
        mount: np.ndarray | None = None,
        sensor: Any = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._sensor = sensor or _open()
        self._clock = clock
        self._mount = IDENTITY if mount is None else np.asarray(mount, np.float64)
        self._sample: Sample | None = None
        self._heard_at = clock()  # of the last sample, s
        self._changed_at = self._heard_at  # of the last that was another than the one before
        self._poller = Poller("the IMU", self._turn)
        self._start()
        if mount is not None:
            self.require_upright()
        self._poller.start()

    def read(self) -> tuple[Sample, float]:
        """The newest sample, and when it was read, s on the monotonic clock. Raises DriverError for one that froze."""
        self._poller.require()
        assert self._sample is not None
        return self._sample, self._heard_at

    def require_upright(self) -> None:
        """Raise DriverError unless gravity is where it is in a robot that hangs or stands at rest."""
        assert self._sample is not None
        up = self._sample.acceleration
        length = float(np.linalg.norm(up))
        if abs(length - GRAVITY) > REST:
            raise DriverError(
                f"the IMU feels {length:.1f} m/s2, at rest it is {GRAVITY}: keep the robot still"
            )
        gravity = projected_gravity(self._sample.orientation)
        apart = math.acos(float(np.clip(-(up / length) @ gravity, -1.0, 1.0)))
        if apart > AGREE:
            raise DriverError(
                f"the IMU's orientation and its accelerometer disagree by {apart:.1f} rad: keep "
                "the robot still, start again"
            )
        if gravity @ UPRIGHT < 0:
            along = (np.round(gravity, 1) + 0.0).tolist()
            raise DriverError(
                f"the IMU is upside down: gravity is along {along} of the robot, expected [0, 0, -1]; "
                "put the robot upright, or tell how the sensor is mounted: deftly calibrate"
            )

    def close(self) -> None:
        """End the thread."""
        self._poller.close()

    def _start(self) -> None:
        """Switch the reports on, and wait for the first of each kind."""
        try:
            for report in REPORTS:
                self._sensor.enable_feature(report, INTERVAL_US)
        except Exception as error:  # of the library, of Blinka, of the system
            raise DriverError(f"the IMU does not start: {_words(error)}") from None
        end = self._clock() + STARTS_S
        while self._sample is None:
            if self._clock() > end:
                raise DriverError("the IMU measures nothing: check its wires")
            self._turn()

    def _turn(self) -> None:
        """Look at what came."""
        try:
            sample = self._measure()
        except Exception as error:  # one packet in some thousands is damaged
            sample = None
            if self._clock() - self._heard_at > FROZEN_S:
                raise DriverError(f"the IMU does not answer: {_words(error)}") from None
        if sample is not None:
            self._take(sample)
        time.sleep(NAP_S)

    def _take(self, sample: Sample) -> None:
        now = self._clock()
        before = self._sample
        if before is None or any((new != old).any() for new, old in zip(sample, before)):
            self._changed_at = now
        if now - self._changed_at > FROZEN_S:
            raise DriverError(
                f"the IMU gave the same numbers for {FROZEN_S:g} s: it stopped, check its wires"
            )
        self._sample = sample
        self._heard_at = now

    def _measure(self) -> Sample | None:
        """The newest reports in the frame of the body; None until there is one of each kind."""
        x, y, z, w = self._sensor.game_quaternion
        quat = np.array([w, x, y, z], np.float64)
        length = float(np.linalg.norm(quat))
        acceleration = np.array(self._sensor.acceleration, np.float64)
        rates = np.array(self._sensor.gyro, np.float64)
        measured = 0.9 < length < 1.1 and acceleration.any()
        if not measured or not (np.isfinite(rates).all() and np.isfinite(acceleration).all()):
            return None
        inverse = self._mount * np.array([1.0, -1.0, -1.0, -1.0])
        orientation = multiply(quat / length, inverse)
        return Sample(orientation, rotate(self._mount, rates), rotate(self._mount, acceleration))


def mounts() -> list[np.ndarray]:
    """The 24 ways in which a sensor's axes can lie along a body's: quaternions w x y z, (4,), sensor to body."""
    half = math.sqrt(0.5)
    turns = (np.array([half, half, 0.0, 0.0]), np.array([half, 0.0, half, 0.0]))
    found = [IDENTITY]
    for known in found:  # which grows
        for turn in turns:
            made = multiply(turn, known)
            if all(abs(made @ other) < 0.99 for other in found):
                found.append(made)
    return found


def find_mount(upright: np.ndarray, leaning: np.ndarray) -> np.ndarray:
    """How a sensor is mounted: w x y z, (4,), of the `mounts` the one that fits best.

    Args:
        upright: gravity in the sensor's frame, (3,), while the robot stands upright.
        leaning: the same while it leans forward: then gravity turns towards the body's x.

    Raises DriverError if it did not lean far enough to tell.
    """
    towards = leaning - upright
    if np.linalg.norm(towards) < 0.2:
        raise DriverError("the robot did not lean: lean it forward by 20 degrees or more")
    towards /= np.linalg.norm(towards)

    def fit(mount: np.ndarray) -> float:
        return float(rotate(mount, upright) @ UPRIGHT + rotate(mount, towards)[0])

    return max(mounts(), key=fit)


def _open() -> Any:
    """The sensor on this computer's I2C. Raises DriverError that says what to do."""
    try:
        import board  # pyright: ignore[reportMissingImports]
        import busio  # pyright: ignore[reportMissingImports]
        from adafruit_bno08x.i2c import BNO08X_I2C  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise DriverError(
            'the IMU needs adafruit-circuitpython-bno08x: pip install "deftly[wildrobot]"'
        ) from None
    except Exception as error:  # Blinka, on a computer that it does not know
        raise DriverError(f"no I2C here, is this the robot's computer? {_words(error)}") from None
    problem = ""
    for address in ADDRESSES:
        try:
            i2c = busio.I2C(board.SCL, board.SDA, frequency=I2C_HZ)
            return BNO08X_I2C(i2c, address=address)
        except Exception as error:  # ValueError, OSError, RuntimeError
            problem = _words(error)
    places = " and ".join(f"{address:#x}" for address in ADDRESSES)
    raise DriverError(f"no BNO085 at {places} of I2C, check its wires: {problem}")


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
