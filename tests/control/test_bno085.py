"""The inertial sensor: frames and order of its quaternion, how it is mounted, and what is made of its faults."""

import builtins
import sys
import types

import numpy as np
import pytest
import wild

from deftly.contract.derive import projected_gravity, rotate
from deftly.control.drivers import DriverError, bno085
from deftly.control.drivers.bno085 import IDENTITY, Bno085, find_mount, mounts

S = float(np.sqrt(0.5))


@pytest.fixture
def imu(monkeypatch):
    """Makes sensors, and ends their threads."""
    monkeypatch.setattr(bno085, "NAP_S", 1e-4)
    made = []

    def make(sensor, mount=IDENTITY, **more):
        made.append(Bno085(mount, sensor, **more))
        return made[-1]

    yield make
    for sensor in made:
        sensor.close()


class Clock:
    """Goes on by a step whenever somebody looks."""

    def __init__(self, step=0.01):
        self.now, self.step = 0.0, step

    def __call__(self):
        self.now += self.step
        return self.now


def test_the_librarys_quaternion_is_x_y_z_w_and_the_contracts_w_x_y_z(imu):
    """The robot leans forward by 30 degrees, about its y axis: gravity is ahead of it."""
    half = np.radians(15)
    leaning = (0.0, np.sin(half), 0.0, np.cos(half))
    sensor = wild.FakeSensor(leaning, (0.1, 0.2, 0.3), (-9.81 * 0.5, 0.0, 9.81 * np.cos(np.pi / 6)))
    sample, _ = imu(sensor).read()
    np.testing.assert_allclose(sample.orientation, [np.cos(half), 0, np.sin(half), 0], atol=1e-9)
    np.testing.assert_allclose(projected_gravity(sample.orientation), [0.5, 0, -0.866], atol=1e-3)
    np.testing.assert_allclose(sample.angular_velocity, [0.1, 0.2, 0.3])
    assert sensor.features == {8: 10_000, 2: 10_000, 1: 10_000}


def test_the_reports_are_the_librarys():
    library = pytest.importorskip("adafruit_bno08x", reason="the extra wildrobot")
    names = ("GAME_ROTATION_VECTOR", "GYROSCOPE", "ACCELEROMETER")
    assert tuple(getattr(library, f"BNO_REPORT_{name}") for name in names) == bno085.REPORTS


@pytest.mark.parametrize("mount", range(24))
def test_however_it_is_mounted_the_body_is_upright_and_turns_the_same_way(imu, mount):
    """A body that stands and turns left, seen by a sensor whose axes lie in any of 24 ways, whose heading is 0."""
    turn = mounts()[mount]
    back = turn * [1, -1, -1, -1]  # of the body's vectors into the sensor's frame
    up = rotate(back, np.array([0.0, 0.0, 9.81]))
    w, x, y, z = turn  # the body is level in the world: the sensor is as it is mounted
    sensor = wild.FakeSensor((x, y, z, w), tuple(rotate(back, np.array([0, 0, 0.4]))), tuple(up))
    sample, _ = imu(sensor, turn).read()
    np.testing.assert_allclose(projected_gravity(sample.orientation), [0, 0, -1], atol=1e-9)
    np.testing.assert_allclose(sample.angular_velocity, [0, 0, 0.4], atol=1e-9)
    leaning = rotate(back, np.array([np.sin(0.5), 0.0, -np.cos(0.5)]))
    found = find_mount(rotate(back, np.array([0.0, 0.0, -1.0])), leaning)
    assert abs(found @ turn) > 0.99, "and it is found from an upright and a leaning pose"


def test_there_are_24_ways_to_mount_it():
    assert len(mounts()) == 24
    assert all(abs(np.linalg.norm(mount) - 1) < 1e-9 for mount in mounts())


def test_a_robot_that_does_not_lean_tells_nothing_of_the_mount():
    with pytest.raises(DriverError, match="lean it forward by 20 degrees or more"):
        find_mount(np.array([0, 0, -1.0]), np.array([0.05, 0, -0.99]))


@pytest.mark.parametrize(
    ("quat", "feels", "words"),
    [
        ((1.0, 0, 0, 0), (0, 0, -9.81), "the IMU is upside down: gravity is along [0.0, 0.0, 1.0]"),
        ((0, 1.0, 0, 0), (0, 0, -9.81), "the IMU is upside down"),
        ((0, 0, 0, 1.0), (0, 0, -9.81), "orientation and its accelerometer disagree by 3.1 rad"),
        ((0, 0, 0, 1.0), (9.81, 0, 0), "orientation and its accelerometer disagree by 1.6 rad"),
        ((0, 0, 0, 1.0), (0, 0, 2.0), "the IMU feels 2.0 m/s2, at rest it is 9.81: keep the robot"),
    ],
)
def test_a_sensor_that_is_upside_down_is_refused_at_the_start(imu, quat, feels, words):
    with pytest.raises(DriverError) as found:
        imu(wild.FakeSensor(quat, acceleration=feels))
    assert words in str(found.value)
    assert "\n" not in str(found.value)


def test_before_its_mount_is_known_it_may_be_any_way_up(imu):
    sample, _ = imu(wild.FakeSensor((1.0, 0, 0, 0), acceleration=(0, 0, -9.81)), None).read()
    np.testing.assert_allclose(projected_gravity(sample.orientation), [0, 0, 1], atol=1e-9)


def read_until_it_fails(imu):
    found = []

    def failed():
        try:
            imu.read()
        except DriverError as error:
            found.append(str(error))
        return found

    wild.wait(failed)
    return found[0]


def test_a_sensor_that_froze_or_does_not_answer_is_one_line(imu):
    sensor = wild.FakeSensor()
    driver = imu(sensor, clock=Clock())
    sensor.frozen = True
    assert read_until_it_fails(driver).startswith("the IMU gave the same numbers for 0.25 s")
    sensor = wild.FakeSensor()
    driver = imu(sensor, clock=Clock())
    sensor.broken = OSError(121, "Remote I/O error")
    words = "the IMU does not answer: OSError: [Errno 121] Remote I/O error"
    assert read_until_it_fails(driver) == words


def test_a_sensor_without_a_first_report_is_refused(imu):
    with pytest.raises(DriverError, match="the IMU measures nothing: check its wires"):
        imu(wild.FakeSensor((0.0, 0.0, 0.0, 0.0)), clock=Clock(0.5))
    with pytest.raises(DriverError, match="the IMU measures nothing"):
        imu(wild.FakeSensor((float("nan"), 0.0, 0.0, 1.0)), clock=Clock(0.5))


def test_a_library_or_sensor_that_is_missing_is_one_line(monkeypatch):
    real = builtins.__import__

    def without(name, *more, **kw):
        if name in ("board", "busio") or name.startswith("adafruit"):
            raise ImportError(name)
        return real(name, *more, **kw)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DriverError, match=r'pip install "deftly\[wildrobot\]"'):
        Bno085()
    monkeypatch.setattr(builtins, "__import__", real)

    def nobody(*_, address, **__):
        raise ValueError(f"No I2C device at address: {address:#x}")

    for name, more in (
        ("board", {"SCL": 1, "SDA": 2}),
        ("busio", {"I2C": lambda *_, **__: None}),
        ("adafruit_bno08x", {}),
        ("adafruit_bno08x.i2c", {"BNO08X_I2C": nobody}),
    ):
        module = types.ModuleType(name)
        vars(module).update(more)
        monkeypatch.setitem(sys.modules, name, module)
    with pytest.raises(DriverError, match="no BNO085 at 0x4a and 0x4b of I2C, check its wires"):
        Bno085()
