"""The LEAP hand's driver on an emulated bus: what it maps, sets up and leaves behind, and what it makes of faults."""

import errno
import sys
import time
from dataclasses import replace

import fifty
import leap
import numpy as np
import pytest
from one_row import OneRow

from deftly.contract import Signal
from deftly.control.drivers import DriverError, OtherWriterError
from deftly.control.drivers.dynamixel import Dynamixel
from deftly.control.drivers.dynamixel_bus import Bus
from deftly.control.loop import Runner
from deftly.control.safety import Fault, Kernel, SafetyConfig, State
from deftly.policy.protocol import Decision

bus, registers = leap.bus, leap.registers
HOME = np.array(leap.contract().home())
PATIENT = SafetyConfig(misses=100, miss_periods=9, stall_periods=90)


@pytest.fixture
def hand(bus):
    """Makes drivers, and lets go of them."""
    made = []

    def make(side="right", **more):
        made.append(Dynamixel(leap.contract(side).robot, leap.RATE, bus.port, **more))
        return made[-1]

    yield make
    for driver in made:
        driver.stop()


class Still(OneRow):
    """A policy that stays at home."""

    contract = leap.contract()

    def decide(self, signals, applied, inputs):
        return Decision(np.zeros(16, np.float32), HOME.astype(np.float32))

    def close(self):
        pass


def wait(happened):
    """Nobody answers to what is written: give the motors the time to hear it."""
    end = time.monotonic() + 5
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.002)


# ----------------------------------------------------------------------- mapping


@pytest.mark.parametrize("side", leap.TURNED)
def test_joints_map_to_motors_in_order_sign_and_offset_both_ways(bus, hand, side):
    contract, angles = leap.contract(side), np.random.default_rng(1).uniform(-0.3, 0.9, 16)
    by_name = dict(zip(contract.joint_names, angles))
    expected = [leap.tick(side, name, by_name[name]) for name in leap.ORDER]
    driver = hand(side)
    for i, ticks in enumerate(expected):
        bus.motors[i].position = ticks
    np.testing.assert_allclose(driver.read().signals["joint_pos"], angles, atol=np.pi / 4096 + 1e-9)
    driver.write(angles)
    wait(lambda: registers(bus, 116, 4, True) == expected)


def test_zero_is_the_flat_hand_at_180_degrees(bus, hand):
    driver = hand()
    for motor in bus.motors.values():
        motor.position = 2048
    np.testing.assert_array_equal(driver.read().signals["joint_pos"], np.zeros(16))


def test_motors_that_are_turns_away_are_read_and_commanded_there(bus, hand):
    bus.motors[2].position += 4096
    bus.motors[9].position -= 3 * 4096
    driver = hand()
    np.testing.assert_allclose(driver.read().signals["joint_pos"], HOME, atol=1e-3)
    driver.write(HOME)
    there = [bus.motors[i].position for i in range(16)]
    wait(lambda: registers(bus, 116, 4, True) == there)


def test_what_else_a_contract_asks_for_is_measured(bus):
    signals = tuple(
        Signal(*s)
        for s in (("joint_pos", 16, "rad"), ("joint_vel", 16, "rad/s"), ("joint_current", 16, "A"))
    )
    driver = Dynamixel(leap.contract(signals=signals).robot, leap.RATE, bus.port)
    driver.write(HOME)
    bus.motors[
        12
    ].blocked = (
        True  # th_cmc, which is turned, wants to go up by a quarter of a radian: down for the motor
    )
    goal = HOME.copy()
    goal[12] += 0.25
    driver.write(goal)
    found = driver.read().signals
    assert found["joint_current"][12] == pytest.approx(0.326, abs=0.01)
    assert np.abs(np.delete(found["joint_current"], 12)).max() < 0.01
    bus.motors[12].blocked = False
    time.sleep(0.01)
    assert driver.read().signals["joint_vel"][12] > 0.5
    driver.stop()


# -------------------------------------------------------------- start and safe state


def test_nothing_moves_before_the_first_command(bus, hand):
    driver = hand()
    driver.read()
    assert registers(bus, 64, 1) == registers(bus, 116, 4) == registers(bus, 98, 1) == [0] * 16
    driver.write(HOME)
    wait(lambda: registers(bus, 64, 1) == [1] * 16)


def test_the_servos_are_set_up_as_they_are_simulated(bus, hand):
    bus.motors[3].put(108, 4, 100)
    hand(current_ma=400).write(HOME)
    wait(lambda: registers(bus, 98, 1) == [50] * 16)  # five periods of 0.2 s, in 20 ms
    for address, size, value in (
        (11, 1, 5),
        (9, 1, 0),
        (84, 2, 1139),
        (82, 2, 0),
        (80, 2, 148),
        (102, 2, 400),
        (36, 2, 885),
        (100, 2, 885),
    ):
        assert registers(bus, address, size) == [value] * 16
    assert registers(bus, 108, 4) == registers(bus, 112, 4) == [0] * 16


def test_the_hand_holds_its_last_target_and_is_not_watched_after_stop(bus, hand):
    driver = hand()
    driver.write(HOME)
    wait(lambda: registers(bus, 98, 1) == [50] * 16)
    goals = registers(bus, 116, 4)
    driver.stop()
    driver.stop()
    wait(lambda: registers(bus, 98, 1) == [0] * 16)
    assert (registers(bus, 116, 4), registers(bus, 64, 1)) == (goals, [1] * 16)
    with pytest.raises(DriverError, match="is gone"):
        driver.read()
    hand().read()
    assert registers(bus, 64, 1) == [1] * 16, (
        "the next run takes the hand over without letting it sag"
    )


def test_motors_that_hear_nothing_stop_and_are_taken_up_again(bus, hand):
    driver = hand()
    driver._watchdog = bytes([2])
    driver.write(HOME)
    wait(lambda: registers(bus, 98, 1) == [2] * 16)
    wait(lambda: bus.positions() and registers(bus, 98, 1) == [255] * 16)
    heard = bus.packets
    driver._bus.write(driver._ids, 116, [bytes(4)] * 16)
    wait(lambda: bus.packets > heard)
    assert min(registers(bus, 116, 4)) > 0, "a motor that stopped takes no goal"
    with pytest.raises(
        DriverError, match=r"the motors stopped by themselves: no packet for 0\.04 s"
    ):
        driver.read()
    driver._watchdog = bytes([50])
    driver.write(HOME)
    driver.read()
    wait(lambda: registers(bus, 98, 1) == [50] * 16)


def test_a_hand_that_a_crashed_run_left_is_taken_over(bus, hand):
    for motor in bus.motors.values():
        motor.put(116, 4, round(motor.position))
        motor.put(64, 1, 1)
        motor.put(98, 1, 255)
    driver = hand()
    driver.write(HOME)
    np.testing.assert_allclose(driver.read().signals["joint_pos"], HOME, atol=1e-3)


# ------------------------------------------------------------------- faults in the loop


def unplug(*motors):
    return lambda bus: bus.unplugged.update(motors)


FAULTS = {
    "unplugged": (unplug(5), "motor 5 (mf_mcp) does not answer on "),
    "first unplugged": (unplug(0), "motor 0 (if_rot) does not answer on "),
    "silent": (lambda bus: setattr(bus, "silent", True), "no motor answers on "),
    "slow": (lambda bus: setattr(bus, "delay", 0.15), "no motor answers on "),
    "corrupt": (lambda bus: bus.corrupt.update({3: 9}), "the answer of motor 3 (if_dip) on "),
    "voltage": (
        lambda bus: bus.motors[1].fail(1),
        "motor 1 (if_mcp) reports input voltage: end the run, let it cool, start it again",
    ),
    "hot": (lambda bus: bus.motors[1].fail(4), "motor 1 (if_mcp) reports overheating"),
    "encoder": (
        lambda bus: bus.motors[1].fail(8),
        "motor 1 (if_mcp) reports encoder: switch its power off and on, and see docs/leap.md",
    ),
    "shock": (lambda bus: bus.motors[1].fail(16), "motor 1 (if_mcp) reports electrical shock"),
    "overload": (
        lambda bus: bus.motors[15].fail(36),
        "motor 15 (th_ipl) reports overheating and overload",
    ),
    "restarted": (lambda bus: bus.motors[8].restart(), "motor 8 (rf_rot) has restarted and let go"),
}


LOST = ("unplugged", "first unplugged", "silent", "slow", "corrupt")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_bus_is_a_hold_and_one_line(bus, hand, fault):
    """At once, or if an answer is lost, with the second one in a row: two periods."""
    change, words = FAULTS[fault]
    runner = Runner(Still(), Kernel(leap.contract().robot, leap.contract().rate, PATIENT), hand())
    for _ in range(3):
        runner.step(time.monotonic())
        if runner.kernel.state is State.READY:
            runner.start()
    assert runner.kernel.state is State.ACTIVE
    bus.change(change)
    if fault in LOST:
        runner.step(time.monotonic())
        assert runner.kernel.state is State.ACTIVE
    began = time.monotonic()
    runner.step(began)
    assert time.monotonic() - began < 0.9 / leap.RATE, "within the period"
    assert (runner.kernel.state, runner.kernel.fault) == (State.HOLD, Fault.DRIVER)
    assert words in runner.problem
    assert "\n" not in runner.problem
    heard = bus.packets
    runner.step(time.monotonic())
    if fault != "silent":
        wait(lambda: bus.packets > heard)  # the others are still commanded to hold
    runner.close()


def test_what_is_lost_or_damaged_once_is_asked_for_again(bus, hand):
    driver = hand()
    bus.change(lambda b: b.corrupt.update({3: 1}))
    np.testing.assert_allclose(driver.read().signals["joint_pos"], HOME, atol=1e-3)
    assert bus.corrupt == {3: 0}


@pytest.mark.parametrize(
    "garbage",
    [b"\x00", b"\xff\xff\xfd", b"\xff\xff\xfd\x00\x01", b"\xff\xff\xfd\x00\xfd\x04\x00\x55"],
)
def test_bytes_that_are_no_packet_do_no_harm(bus, hand, garbage):
    driver = hand(timeout=0.1)
    bus.change(lambda b: setattr(b, "garbage", garbage))
    np.testing.assert_allclose(driver.read().signals["joint_pos"], HOME, atol=1e-3)


def test_the_last_reading_stands_in_for_one_that_is_lost_at_its_own_time(bus, hand):
    driver = hand()
    bus.motors[1].position = leap.tick("right", "if_mcp", 1.1)
    seen = driver.read()
    bus.change(unplug(5))
    assert driver.read() is seen
    assert (driver.lost, driver.retries) == (1, 1)
    with pytest.raises(DriverError, match="motor 5"):
        driver.read()
    bus.change(lambda b: b.unplugged.clear())
    again = driver.read()
    assert again.at > seen.at
    bus.change(unplug(5))
    assert driver.read() is again, "and again after one that was heard"


def test_bytes_that_look_like_a_packet_are_a_fault_and_no_measurement(bus, hand):
    driver = hand()
    bus.change(lambda b: setattr(b, "garbage", b"\xff\xff\xfd\x00\x03\x04\x00\x55"))
    with pytest.raises(DriverError, match="is damaged"):
        driver.read()


def test_a_motor_that_is_held_fast_is_a_fault_of_following(bus, hand):
    driver, kernel = (
        hand(),
        Kernel(
            leap.contract().robot,
            leap.contract().rate,
            replace(PATIENT, approach_s=1e-3, lead=0.06),
        ),
    )
    bus.motors[1].position = leap.tick("right", "if_mcp", 1.1)
    runner = Runner(Still(), kernel, driver)
    runner.step(time.monotonic())
    runner.step(time.monotonic())
    runner.start()
    bus.motors[1].blocked = True
    for _ in range(100):
        runner.step(time.monotonic())
        time.sleep(0.005)
    assert (kernel.state, kernel.fault) == (State.HOLD, Fault.FOLLOWING)
    assert "if_mcp is at 1.1" in kernel.reason
    runner.close()


def test_an_adapter_that_is_pulled_is_a_hold_and_the_end_says_so(bus, hand):
    runner = Runner(Still(), Kernel(leap.contract().robot, leap.contract().rate, PATIENT), hand())
    runner.step(time.monotonic())
    runner.step(time.monotonic())
    bus.close()
    runner.step(time.monotonic())
    assert (runner.kernel.state, runner.kernel.fault) == (State.HOLD, Fault.DRIVER)
    assert "is gone: is the adapter unplugged?" in runner.problem
    runner.close()
    assert runner.refused.startswith("write: ")


def test_an_answer_that_comes_too_late_is_not_taken_for_the_next(bus):
    line = Bus(bus.port, 4_000_000)
    bus.delay = 0.08
    with pytest.raises(DriverError, match="motor 4 does not answer"):
        line.read([4], 132, 4, 0.04)
    bus.delay, bus.motors[4].position = 0.0, 1000
    (found,) = line.read([4], 132, 5, 1.0)
    assert int.from_bytes(found[:4], "little") == 1000
    line.close()


def test_a_target_that_is_no_number_is_not_written(bus, hand):
    driver = hand()
    with pytest.raises(DriverError, match="a target is no number"):
        driver.write(np.full(16, np.nan))
    assert registers(bus, 64, 1) == [0] * 16


def ill(motor, bits):
    """A hardware error that a reboot does not mend."""
    motor.lasting = bits
    motor.fail(bits)


@pytest.mark.parametrize("bits", [1, 4, 32, 36])
def test_motors_that_let_go_are_rebooted_at_the_start(bus, hand, bits):
    for i in (3, 12):
        bus.motors[i].fail(bits)
    driver = hand()
    assert registers(bus, 70) == [0] * 16
    np.testing.assert_allclose(driver.read().signals["joint_pos"], HOME, atol=1e-3)
    driver.write(HOME)
    wait(lambda: registers(bus, 64, 1) == [1] * 16)


@pytest.mark.parametrize(("limit", "goal"), [(200, 200), (885, 100), (0, 0), (500, 300)])
def test_a_hand_that_another_program_left_weak_has_all_of_its_voltage(bus, hand, limit, goal):
    for motor in bus.motors.values():
        motor.put(36, 2, limit)
        motor.put(100, 2, goal)
    driver = hand()
    driver.write(HOME)
    wait(lambda: registers(bus, 98, 1) == [50] * 16)
    assert registers(bus, 36, 2) == registers(bus, 100, 2) == [885] * 16
    for motor in bus.motors.values():
        motor.blocked = True
    driver.write(HOME + 0.5)
    wait(lambda: bus.positions() and np.abs(registers(bus, 126, 2, True)).min() > 500)


def test_the_emulated_motor_is_weak_and_slow_with_little_voltage(bus, hand):
    driver = hand()
    driver.write(HOME)
    wait(lambda: registers(bus, 98, 1) == [50] * 16)
    motor, now = bus.motors[1], time.monotonic() + 100
    motor.put(98, 1, 0)  # no watchdog
    found = {}
    for pwm in (885, 100):
        motor.put(100, 2, pwm)
        motor.advance(now)
        before = motor.position
        motor.put(116, 4, round(before) + 1000)
        motor.advance(now + 0.01)
        found[pwm] = motor.position - before, motor.current
        now += 0.01
    assert found[100][0] < 0.15 * found[885][0]
    assert found[100][1] < 210 < 549 < found[885][1]
    assert motor.write(100, (900).to_bytes(2, "little")) == 6


# ------------------------------------------------------------------- refused at the start


def put(address, size, value, motor=3):
    return lambda bus: bus.motors[motor].put(address, size, value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (unplug(3), "motor 3 does not answer on "),
        (unplug(3, 7), "motors 3, 7 do not answer on "),
        (lambda bus: setattr(bus, "silent", True), "no motor answers on "),
        (
            lambda bus: setattr(bus, "baud", 1_000_000),
            "speaks 1000000 baud, not 4000000: give --baud 1000000",
        ),
        (
            lambda bus: setattr(bus.motors[3], "model", 1200),
            "motor 3 is model 1200 (XL330-M288), but the hand has XC330",
        ),
        (lambda bus: setattr(bus.motors[3], "model", 7), "motor 3 is model 7 (unknown)"),
        (
            lambda bus: ill(bus.motors[3], 32),
            "motor 3 (if_dip) reports overload, after a reboot too: let it cool",
        ),
        (
            lambda bus: bus.motors[3].fail(40),
            "motor 3 (if_dip) reports encoder and overload: switch its power off and on",
        ),
        (lambda bus: bus.motors[3].fail(16), "motor 3 (if_dip) reports electrical shock: switch"),
        (put(10, 1, 1), "motor 3 is set to reverse: give it Drive Mode 0"),
        (put(38, 2, 300), "motor 3 (if_dip) does not take 2602 at 102: it has 3009"),
    ],
)
def test_a_hand_that_is_not_as_it_should_be_is_refused_and_the_port_let_go_of(
    bus, hand, change, words
):
    bus.change(change)
    with pytest.raises(DriverError) as found:
        hand()
    assert words in str(found.value)
    assert "\n" not in str(found.value)
    assert registers(bus, 64, 1) == [0] * 16
    Bus(bus.port, 4_000_000).close()


def test_a_slow_adapter_is_refused_with_the_cure(bus, hand):
    bus.delay = 0.016
    with pytest.raises(
        DriverError, match=r"ms, at 5 Hz at most 10\.0 are left: set its latency timer to 1 ms"
    ):
        hand(timeout=0.01)


def test_a_port_that_cannot_be_opened_is_one_line(bus, hand, monkeypatch, tmp_path):
    def refused(words, port=bus.port, **more):
        with pytest.raises(DriverError) as found:
            Dynamixel(leap.contract().robot, leap.RATE, port, **more)
        assert words in str(found.value)
        assert "\n" not in str(found.value)

    refused("needs --port, such as /dev/ttyUSB0", port=None)
    refused("there is no port /dev/ttyNONE: is the adapter plugged in?", port="/dev/ttyNONE")
    (tmp_path / "file").touch()
    refused("is it a serial port?", port=str(tmp_path / "file"))
    refused("--baud is 12345, but the motors know 4000000, ", baud=12345)
    hand()
    refused("is used by another program")
    import serial

    def deny(*_, **__):
        raise serial.SerialException(errno.EACCES, "Permission denied")

    monkeypatch.setattr(serial, "Serial", deny)
    refused("sudo usermod -aG dialout $USER")
    monkeypatch.setitem(sys.modules, "dynamixel_sdk", None)
    refused('--driver leap needs dynamixel-sdk: pip install "deftly[leap]"')


@pytest.mark.parametrize(
    ("contract", "more", "words"),
    [
        (fifty.CONTRACT, {}, "the interface of fifty names no motors"),
        (
            leap.contract(),
            {"current_ma": 5000},
            "--current-ma is 5000, but it must be within 1 .. 1200",
        ),
        (leap.contract(), {"current_ma": 0}, "--current-ma is 0"),
        (leap.contract(rate=1.0), {}, "runs at 1 Hz: too slow for the motors' watchdog"),
        (
            leap.contract(signals=(Signal("joint_pos", 16, "rad"), Signal("cube", 3, "m"))),
            {},
            "the hand does not measure 'cube' (m), but joint_pos (rad), joint_vel (rad/s), joint_current (A)",
        ),
    ],
)
def test_what_the_motors_cannot_be_is_refused_before_the_port_is_opened(contract, more, words):
    with pytest.raises(DriverError) as found:
        Dynamixel(contract.robot, contract.rate, "/dev/ttyNONE", **more)
    assert words in str(found.value)


# ----------------------------------------------------------------------- another program


def test_another_program_that_commands_a_motor_is_found_by_its_goal(bus, hand):
    driver = hand()
    for i in range(4):
        driver.write(HOME + 0.01 * i)
        driver.read()
    expected = registers(bus, 116, 4, True)
    bus.change(lambda b: b.motors[5].put(116, 4, b.motors[5].get(116, 4, True) + 300))
    with pytest.raises(OtherWriterError, match=r"^motor 5 \(mf_mcp\) has a goal that is not ours"):
        driver.read()
    driver.write(HOME)
    driver.write(HOME + 0.01)
    wait(lambda: registers(bus, 116, 4, True) != expected)
    driver.read()


def test_a_command_that_got_lost_is_no_other_program(bus, hand):
    driver = hand()
    for i in range(4):
        driver.write(HOME + 0.01 * i)
        driver.read()
    before = {i: bus.motors[i].get(116, 4, True) for i in range(16)}
    driver.write(HOME + 0.3)
    bus.change(lambda b: [b.motors[i].put(116, 4, goal) for i, goal in before.items()])
    driver.read()
