"""WildRobot behind the driver interface: its signals, its safe states, and its foot switches."""

import dataclasses
import sys
import time

import numpy as np
import pytest
import wild

from deftly.contract import FAULTS, Fault, Limit, Signal
from deftly.control.drivers import DriverError, hiwonder
from deftly.control.drivers.bno085 import IDENTITY, Bno085
from deftly.control.drivers.foot_switches import FootSwitches
from deftly.control.drivers.wildrobot import WildRobot
from deftly.control.loop import Runner
from deftly.control.safety import Kernel, SafetyConfig, State

pytestmark = pytest.mark.realtime  # a bus whose answers are waited for

bus, wait = wild.bus, wild.wait
PATIENT = SafetyConfig(misses=100, miss_periods=9, stall_periods=90, signal_periods=9)
HOME = np.array(wild.contract().robot.home())


@pytest.fixture
def parts(bus, monkeypatch):
    """A robot with an emulated bus, a sensor and switches that are none."""
    monkeypatch.setattr(hiwonder, "TIMEOUT_S", 0.05)
    monkeypatch.setattr(hiwonder, "SILENCE_S", 60.0)
    sensor, switches = wild.FakeSensor(), wild.FakeSwitches()
    robot = wild.contract().robot
    imu = Bno085(IDENTITY, sensor)
    driver = WildRobot(robot, wild.RATE, bus.port, IDENTITY, imu, switches)
    yield driver, sensor, switches
    driver.stop()


@pytest.fixture
def active(parts):
    """Its control loop, in which a policy stands."""
    driver = parts[0]
    runner = Runner(wild.Still(), Kernel(driver.robot, wild.RATE, PATIENT), driver)
    for _ in range(3):
        time.sleep(0.02)
        runner.step(time.monotonic())
    assert runner.kernel.state is State.READY, runner.kernel.reason
    runner.start()
    runner.step(time.monotonic())
    assert runner.kernel.state is State.ACTIVE
    yield runner
    runner.close()


def test_it_measures_what_its_interface_says_and_no_policy_knows_its_units(parts):
    driver, sensor, switches = parts
    switches.down = np.array([1.0, 0.0, 0.0, 1.0])
    sensor.rates = (0.1, 0.2, 0.3)
    wait(lambda: driver.read().signals["angular_velocity"][0] == 0.1)
    signals, at = driver.read()
    assert list(signals) == [signal.name for signal in wild.contract().robot.signals]
    np.testing.assert_allclose(signals["joint_pos"], HOME, atol=wild.UNIT)
    np.testing.assert_allclose(signals["orientation"], [1, 0, 0, 0])
    np.testing.assert_array_equal(signals["foot_switches"], [1, 0, 0, 1])
    assert time.monotonic() - 2.0 < at <= time.monotonic()


def test_its_driver_adds_what_guards_it_and_the_policys_robot_is_the_same_but_for_that(parts):
    robot = parts[0].robot
    assert robot.damps == tuple(fault for fault in FAULTS if fault is not Fault.OPERATOR)
    assert robot.limits == (Limit("orientation", 0.0, 0.8, of="tilt"),)
    trained = wild.contract().robot
    assert dataclasses.replace(robot, limits=trained.limits, damps=trained.damps) == trained
    kernel = Kernel(robot, wild.RATE)
    kernel.require(wild.contract())
    assert kernel.state is State.INIT
    looser = Kernel(trained, wild.RATE)
    looser.require(dataclasses.replace(wild.contract(), robot=robot))
    assert (looser.state, looser.fault) == (State.STOP, Fault.CONTRACT), (
        "nothing that guards is lost"
    )


def fall(b, sensor):
    sensor.quat = (np.sin(0.5), 0.0, 0.0, np.cos(0.5))


FAULTS_OF_IT = {
    "falls": (fall, Fault.LIMIT, "the tilt of orientation is 1, its limits are 0 .. 0.8 rad"),
    "servo": (lambda b, _: b.unplugged.add(3), Fault.DRIVER, "servo 3 (left_knee) does not answer"),
    "imu": (
        lambda _, sensor: setattr(sensor, "broken", OSError("bus error")),
        Fault.DRIVER,
        "the IMU does not answer: OSError: bus error",
    ),
    "voltage": (
        lambda b, _: [setattr(servo, "millivolts", 9000) for servo in b.servos.values()],
        Fault.DRIVER,
        "measures 9.0 V, at least 9.6",
    ),
    "hot": (
        lambda b, _: setattr(b.servos[1], "celsius", 80),
        Fault.DRIVER,
        "servo 1 (left_hip_pitch) has 80 degrees Celsius",
    ),
}


@pytest.mark.parametrize("fault", FAULTS_OF_IT)
def test_each_fault_takes_the_servos_torque_away(bus, parts, active, fault):
    change, expected, words = FAULTS_OF_IT[fault]
    wait(lambda: len(bus.loaded()) == 8)
    bus.change(lambda b: change(b, parts[1]))

    def damped():
        active.step(time.monotonic())
        return active.kernel.state is State.DAMP

    wait(damped)
    assert active.kernel.fault is expected
    assert words in f"{active.kernel.reason} {active.problem}"
    wait(lambda: not bus.loaded() - bus.unplugged)


def test_a_hold_of_the_operators_keeps_it_standing(bus, active):
    wait(lambda: len(bus.loaded()) == 8)
    active.hold()
    for _ in range(5):
        active.step(time.monotonic())
    assert active.kernel.state is State.HOLD
    assert len(bus.loaded()) == 8


def test_what_the_robot_cannot_be_is_refused_before_a_port_is_opened():
    robot = wild.contract().robot
    cases = (
        (dataclasses.replace(robot, name="wilderobot"), "--driver wildrobot drives wildrobot, not"),
        (
            dataclasses.replace(robot, signals=(*robot.signals, Signal("cube", 3))),
            "the robot does not measure 'cube', but joint_pos, orientation",
        ),
    )
    cases += (
        (
            dataclasses.replace(robot, motors=()),
            "the interface of wildrobot has 0 motors, the robot 8 servos: is it of another variant",
        ),
    )
    for wrong, words in cases:
        with pytest.raises(DriverError, match=words):
            WildRobot(
                wrong, wild.RATE, "/dev/ttyNONE", None, wild.FakeSwitches(), wild.FakeSwitches()
            )


# ------------------------------------------------------------------ foot switches


def test_switches_are_down_when_their_pin_is_at_ground():
    pytest.importorskip("gpiozero", reason="the extra wildrobot")
    from gpiozero.pins.mock import MockFactory

    factory = MockFactory()
    switches = FootSwitches(factory=factory)
    np.testing.assert_array_equal(switches.read(), [0, 0, 0, 0])
    for pin in (5, 19):  # left toe, right heel
        factory.pin(pin).drive_low()
    np.testing.assert_array_equal(switches.read(), [1, 0, 0, 1])
    with pytest.raises(DriverError, match="GPIOPinInUse"):
        FootSwitches(factory=factory)
    switches.close()
    FootSwitches(factory=factory).close()


def test_a_computer_without_pins_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "gpiozero", None)
    with pytest.raises(DriverError, match=r'gpiozero: pip install "deftly\[wildrobot\]"'):
        FootSwitches()
