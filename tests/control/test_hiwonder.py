"""Hiwonder servos on an emulated bus: packets, what is mapped, how they are left, and what is made of faults."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import wild

from deftly.control.drivers import DriverError, hiwonder
from deftly.control.drivers.hiwonder import Servos, oldest_age
from deftly.control.drivers.hiwonder_bus import ID_READ, POS_READ, VIN_READ, Bus, packed, packets
from deftly.control.drivers.serial_port import NoAnswer
from deftly_bench import hiwonder_bus, servo_rate

pytestmark = pytest.mark.realtime  # a bus whose answers are waited for

bus, legs, wait = wild.bus, wild.legs, wild.wait
HOME = np.array(wild.contract().robot.home())
HALF = 0.5 * wild.UNIT + 1e-9


@pytest.fixture
def line(bus):
    made = Bus(bus.port)
    yield made
    made.close()


@pytest.fixture
def servos(bus, monkeypatch):
    """Makes drivers of the servos, and lets go of them; answers may take long on a busy machine."""
    monkeypatch.setattr(hiwonder, "TIMEOUT_S", 0.05)
    made = []

    def make(*ports, rate=wild.RATE, robot=None):
        where = wild.ports(*(ports or (bus,)))
        made.append(Servos(robot or wild.contract().robot, rate, where))
        return made[-1]

    yield make
    for driver in made:
        driver.stop()


# ----------------------------------------------------------------------- packets


def test_packets_are_those_of_the_protocol():
    """The examples of Hiwonder's document: move servo 1 to 500 in 1 s, and ask it where it is."""
    assert packed(1, 1, bytes([0xF4, 0x01, 0xE8, 0x03])).hex(" ") == "55 55 01 07 01 f4 01 e8 03 16"
    assert packed(1, POS_READ).hex(" ") == "55 55 01 03 1c df"
    assert hiwonder_bus.packet(1, 28).hex(" ") == "55 55 01 03 1c df"


def test_packets_are_found_between_whatever_else_is_there():
    wanted = packed(3, POS_READ, b"\x00\x01")
    broken = wanted[:5] + b"\xff" + wanted[6:]
    heard = b"\x55" + wanted + b"noise\x55\x55\x09" + broken + b"\x55\x55\x55" + wanted + wanted[:6]
    assert [tuple(packet) for packet in packets(heard)] == [(3, POS_READ, b"\x00\x01")] * 2


@pytest.mark.parametrize("garbage", [b"", b"\x55", b"\x55\x55", b"\x55\x55\x02", bytes(40)])
def test_a_servo_answers_whatever_comes_before(bus, line, garbage):
    bus.change(lambda b: setattr(b, "garbage", garbage))
    assert line.ask(3, ID_READ, 5.0) == (3,)


@pytest.mark.parametrize("position", [-7, 0, 500, 1000, 1250])
def test_positions_have_a_sign(bus, line, position):
    bus.servos[3].position = position
    assert line.ask(3, POS_READ, 5.0) == (position,)


def test_the_echo_of_an_adapter_is_no_answer(bus, line):
    bus.echo = True
    bus.servos[2].millivolts = 11_400
    assert line.ask(2, VIN_READ, 5.0) == (11_400,)
    bus.unplugged.add(2)
    with pytest.raises(NoAnswer, match="motor 2 does not answer"):
        line.ask(2, VIN_READ, 0.1)


@pytest.mark.parametrize("fault", ["corrupt", "cut", "twins"])
def test_what_is_damaged_is_no_answer(bus, line, fault):
    bus.change(lambda b: b.twins.add(4) if fault == "twins" else getattr(b, fault).update({4: 1}))
    with pytest.raises(NoAnswer, match="motor 4 gave a damaged answer"):
        line.ask(4, POS_READ, 0.1)


def test_what_another_servo_says_is_no_answer(bus, line):
    bus.change(lambda b: setattr(b.servos[4], "number", 5))
    with pytest.raises(NoAnswer):
        line.ask(4, POS_READ, 0.1)


# ----------------------------------------------------------------------- mapping


def test_joints_map_to_servos_in_order_sign_and_units_both_ways(bus, servos):
    angles = HOME + np.random.default_rng(1).uniform(-0.05, 0.3, 8) * [1, 0, 1, 1, 1, 0, 1, 1]
    for i, (name, angle) in enumerate(zip(wild.JOINTS, angles), 1):
        bus.servos[i].position = wild.unit(name, angle)
    driver = servos()
    assert wild.contract().joint_names == wild.JOINTS
    np.testing.assert_allclose(driver.read()[0], angles, atol=HALF)
    driver.write(angles)
    expected = {
        i: wild.unit(name, angle) for i, (name, angle) in enumerate(zip(wild.JOINTS, angles), 1)
    }
    wait(lambda: all(abs(bus.servos[i].goal - unit) <= 0.5 for i, unit in expected.items()))


def test_a_servo_for_each_leg_may_have_a_port_of_its_own(legs, servos):
    left, right = legs
    driver = servos(right, left)  # in any order
    np.testing.assert_allclose(driver.read()[0], HOME, atol=HALF)
    driver.write(HOME)
    wait(lambda: left.loaded() == {1, 2, 3, 4} and right.loaded() == {5, 6, 7, 8})


def test_a_reading_is_as_old_as_its_oldest_position(bus, servos):
    driver = servos()
    before = time.monotonic()
    wait(lambda: driver.read()[1] > before)
    oldest = min(driver.lines[0].times.values())
    assert driver.read()[1] >= oldest > before


# -------------------------------------------------------------- start and safe state


def test_nothing_moves_before_the_first_command(bus, servos):
    driver = servos()
    driver.read()
    assert bus.loaded() == set()
    assert {servo.goal for servo in bus.servos.values()} == {
        wild.unit(name, home) for name, home in zip(wild.JOINTS, HOME)
    }
    driver.write(HOME)
    wait(lambda: len(bus.loaded()) == 8)


def test_damp_takes_the_torque_away_and_nothing_leaps_back(bus, servos):
    driver = servos()
    driver.write(HOME)
    wait(lambda: len(bus.loaded()) == 8)
    driver.damp()
    wait(lambda: not bus.loaded())
    heard = []

    def fall(b):
        b.servos[3].position = 300.0
        told = b.servos[3].told
        b.servos[3].told = lambda command, body: (
            heard.append((command, body)),
            told(command, body),
        )

    bus.change(fall)
    wait(lambda: driver.lines[0].units[3] == 300)
    driver.write(driver.read()[0])
    wait(lambda: len(bus.loaded()) == 8)
    assert abs(bus.positions()[3] - 300) <= 1, "it is taken up where it is"
    moved = next(n for n, (command, _) in enumerate(heard) if command == hiwonder_bus.MOVE)
    assert heard.index((hiwonder_bus.LOAD, b"\1")) > moved, "where to hold comes before the torque"


@pytest.mark.parametrize("last", ["write", "damp"])
def test_stop_carries_out_the_last_command(bus, servos, last):
    driver = servos()
    driver.write(HOME)
    wait(lambda: len(bus.loaded()) == 8)
    goal = HOME + 0.1
    for _ in range(50):
        driver.write(goal)
    getattr(driver, last)(*([goal] if last == "write" else []))
    driver.stop()
    driver.stop()
    wait(lambda: len(bus.loaded()) == (8 if last == "write" else 0))
    if last == "write":
        wait(lambda: abs(bus.servos[1].goal - wild.unit("left_hip_pitch", goal[0])) <= 0.5)


def test_servos_let_go_if_the_loop_says_nothing_and_are_taken_up_again(bus, servos, monkeypatch):
    monkeypatch.setattr(hiwonder, "SILENCE_S", 0.05)
    driver = servos()
    driver.write(HOME)
    wait(lambda: len(bus.loaded()) == 8)
    wait(lambda: not bus.loaded())
    with pytest.raises(DriverError, match="the servos let go: the control loop said nothing for"):
        wait(lambda: driver.read() is None)
    monkeypatch.setattr(hiwonder, "SILENCE_S", 60.0)
    driver.write(HOME)
    wait(lambda: len(bus.loaded()) == 8)
    driver.read()


def test_a_target_that_is_no_number_is_not_sent(bus, servos):
    driver = servos()
    with pytest.raises(DriverError, match="a target is no number"):
        driver.write(np.full(8, np.nan))
    assert bus.loaded() == set()


# ------------------------------------------------------------------------- faults


def all_of(name, value):
    return lambda bus: [setattr(servo, name, value) for servo in bus.servos.values()]


FAULTS = {
    "unplugged": (lambda b: b.unplugged.add(3), "servo 3 (left_knee) does not answer on /dev/"),
    "silent": (lambda b: setattr(b, "silent", True), "no servo answers on /dev/"),
    "corrupt": (
        lambda b: b.corrupt.update({3: 10**6}),
        "the answer of servo 3 (left_knee) on /dev/",
    ),
    "cut": (lambda b: b.cut.update({3: 10**6}), "the answer of servo 3 (left_knee) on /dev/"),
    "twins": (lambda b: b.twins.add(3), "is damaged: cable, or two servos with one id?"),
    "low": (all_of("millivolts", 9300), "measures 9.3 V, at least 9.6: charge the battery"),
    "high": (all_of("millivolts", 14_000), "measures 14.0 V, at most 12.9: another supply"),
    "hot": (
        lambda b: setattr(b.servos[6], "celsius", 75),
        "servo 6 (right_hip_roll) has 75 degrees Celsius, at most 70: end the run, let it cool",
    ),
    "unloaded": (
        lambda b: setattr(b.servos[2], "loaded", False),
        "servo 2 (left_hip_roll) has let go by itself",
    ),
    "pulled": (None, "is gone: is the adapter unplugged?"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_bus_is_one_line(bus, servos, fault, monkeypatch):
    monkeypatch.setattr(hiwonder, "SILENCE_S", 60.0)
    change, words = FAULTS[fault]
    driver = servos()
    driver.write(HOME)
    wait(lambda: len(bus.loaded()) == 8)
    bus.change(change) if fault != "pulled" else bus.close()
    found = []

    def failed():
        """The first to be missed may be named before all are known to be."""
        try:
            driver.read()
        except DriverError as error:
            found.append(str(error))
        return any(words in line for line in found)

    wait(failed)
    assert not any("\n" in line for line in found)
    if fault != "pulled":
        driver.damp()
        wait(lambda: not bus.loaded() - bus.unplugged)


def test_what_is_lost_or_damaged_once_is_asked_for_again(bus, servos, monkeypatch):
    driver = servos()
    line = driver.lines[0]
    line._poller.close()
    monkeypatch.setattr(hiwonder, "TIMEOUT_S", 1.0)
    (before,) = line.ask(3, POS_READ)  # answered, so nothing that was asked before is still to come
    retries = driver.retries
    bus.change(lambda b: b.corrupt.update({3: 1}))
    assert line.ask(3, POS_READ) == (before,)
    assert bus.corrupt == {3: 0}
    assert driver.retries == retries + 1
    assert 3 not in line.lost


def test_one_low_reading_of_the_supply_is_a_step(bus, servos):
    driver = servos()
    line = driver.lines[0]
    line.close()
    line._judge_supply("servo 1", 8.0)
    line._judge_supply("servo 2", 11.0)
    assert line.ill == ""
    line._judge_supply("servo 3", 9.5)
    line._judge_supply("servo 3", 9.4)
    assert "measures 9.4 V" in line.ill


# --------------------------------------------------------------- refused at the start


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda b: b.unplugged.add(3), "servo 3 (left_knee) does not answer on /dev/"),
        (
            lambda b: b.unplugged.update((3, 8)),
            "servo 3 (left_knee), servo 8 (right_ankle_pitch) do not answer on /dev/",
        ),
        (lambda b: setattr(b, "silent", True), "no servo answers on /dev/"),
        (lambda b: b.twins.add(3), "is damaged: cable, or two servos with one id?"),
        (lambda b: setattr(b.servos[3], "number", 33), "is damaged: cable, or two servos"),
        (lambda b: setattr(b.servos[3], "mode", 1), "servo 3 (left_knee) is set to turn for ever"),
        (
            lambda b: setattr(b.servos[3], "angles", (200, 400)),
            "servo 3 (left_knee) may turn 200 .. 400 only, its joint needs 167 .. 500",
        ),
        (lambda b: all_of("millivolts", 8800)(b), "measures 8.8 V, at least 9.6"),
        (lambda b: setattr(b.servos[3], "celsius", 90), "servo 3 (left_knee) has 90 degrees"),
    ],
)
def test_servos_that_are_not_as_they_should_be_are_refused_and_the_port_let_go_of(
    bus, servos, change, words
):
    bus.change(change)
    with pytest.raises(DriverError) as found:
        servos()
    assert words in str(found.value)
    assert "\n" not in str(found.value)
    assert bus.loaded() == set()
    Bus(bus.port).close()


def test_a_servo_that_two_ports_have_and_a_port_that_has_none_are_refused(legs, servos):
    left, right = legs
    right.servos[4] = hiwonder_bus.Servo(4)
    with pytest.raises(DriverError, match=r"servo 4 \(left_ankle_pitch\) is at two ports"):
        servos(left, right)
    del right.servos[4]
    words = r"there is no servo of the robot on .* leave it out"
    with hiwonder_bus.EmulatedServos((40,)) as other, pytest.raises(DriverError, match=words):
        servos(left, right, other)


def test_ports_that_cannot_be_opened_are_one_line(bus, servos):
    for port, words in ((None, "needs --port"), ("/dev/ttyNONE", "there is no port /dev/ttyNONE")):
        with pytest.raises(DriverError, match=words):
            Servos(wild.contract().robot, wild.RATE, port)
    servos()
    with pytest.raises(DriverError, match="is used by another program"):
        servos()


def test_a_bus_that_is_too_slow_for_the_rate_is_refused_with_the_cure(bus, servos, monkeypatch):
    monkeypatch.setattr(Servos, "_question_s", lambda *_: 3.64e-3)
    with pytest.raises(DriverError) as found:
        servos(rate=50.0)
    assert "is too slow for 8 servos at 50 Hz: its positions would be 50 ms old" in str(found.value)
    assert "at most 30; give half of them a port of their own" in str(found.value)


def test_the_oldest_position_follows_from_the_times_of_bytes_and_answers():
    """A question is 6 bytes, an answer 8, a command 10, a byte 10 bits at 115,200 baud."""
    byte = 10 / 115_200
    assert oldest_age(8, 14 * byte, 50.0) == pytest.approx(140 * byte), "commands come after it"
    assert oldest_age(4, 3.64e-3, 50.0) == pytest.approx(6 * 3.64e-3 + 40 * byte)
    assert oldest_age(8, 3.64e-3, 50.0) == pytest.approx(10 * 3.64e-3 + 2 * 80 * byte)
    assert oldest_age(8, 3.64e-3, 200.0) == np.inf, "commands alone take more than there is"


@pytest.mark.parametrize("servos", [1, 4, 8])
@pytest.mark.parametrize("hertz", [20.0, 50.0])
def test_no_position_is_older_than_that_in_the_drivers_own_schedule(servos, hertz):
    for turnaround in servo_rate.TURNAROUNDS.values():
        ages = servo_rate.simulated_ages(servos, turnaround, hertz, 200)
        bound = oldest_age(servos, turnaround + 140 / 115_200, hertz)
        assert ages.max() <= bound
        assert ages.max() > 0.75 * bound, "and it is no idle bound"


def test_the_page_has_the_measured_rates(monkeypatch, tmp_path):
    """docs/wildrobot-hardware.md quotes what the benchmark gives, to the millisecond."""
    assert servo_rate.main(["--out", str(tmp_path / "out.json")]) == 0
    page = (Path(__file__).parents[2] / "docs" / "wildrobot-hardware.md").read_text()
    for case in json.loads((tmp_path / "out.json").read_text())["cases"]:
        row = (
            f"| {case['ports']} | {case['question_ms']:.1f} ms | {case['all_positions_ms']:.1f} ms "
        )
        row += f"| {case['all_commands_ms']:.1f} ms | {case['mean_ms']:.0f} ms "
        row += f"| {case['oldest_max_ms']:.0f} ms | {case['highest_hz']} Hz |"
        assert row in page
