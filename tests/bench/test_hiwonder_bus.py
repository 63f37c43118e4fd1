"""The emulated servo bus: its lines, the time of its bytes, and that nobody else's answers are heard."""

import time

import pytest
import wild

from deftly.control.drivers.hiwonder_bus import POS_READ, VIN_READ, Bus
from deftly.errors import DeftlyError
from deftly_bench import hiwonder_bus
from deftly_bench.hiwonder_bus import EmulatedServos, obey

pytestmark = pytest.mark.realtime  # a bus whose answers are waited for

bus = wild.bus


def test_lines_do_what_they_say(bus, capsys):
    for line in ("turn 3 440", "voltage 9000", "temperature 2 60", "unplug 4", "corrupt 1 2"):
        assert obey(bus, line)
    assert (bus.servos[3].position, bus.servos[1].millivolts) == (440, 9000)
    assert (bus.servos[2].celsius, bus.unplugged, bus.corrupt) == (60, {4}, {1: 2})
    obey(bus, "where")
    assert "3: 440" in capsys.readouterr().out
    obey(bus, "what")
    assert "unplug ID: this servo does not answer" in capsys.readouterr().out
    assert not obey(bus, "quit")
    for wrong in ("turn three 4", "turn 3", "turn 99 4"):
        with pytest.raises((ValueError, IndexError, KeyError)):
            obey(bus, wrong)


def test_bytes_take_their_time_on_the_wire():
    """14 bytes at 9,600 baud, and half a second of thought: no sooner than that."""
    with EmulatedServos((1,), 9600, 0.5) as slow:
        line = Bus(slow.port)
        began = time.monotonic()
        assert line.ask(1, POS_READ, 20.0) == (500,)
        assert time.monotonic() - began >= 0.5 + 140 / 9600
        line.close()


def test_a_servo_does_what_it_is_told_only_while_it_is_loaded(bus):
    servo = bus.servos[1]
    before = servo.position
    servo.told(hiwonder_bus.MOVE, (900).to_bytes(2, "little") + bytes(2))
    servo.advance(servo.now + 10.0)
    assert servo.position == before
    servo.told(hiwonder_bus.LOAD, b"\1")
    servo.advance(servo.now + 10.0)
    assert servo.position == 900


def test_a_number_of_servos_that_cannot_be_is_one_line():
    for words in (["--servos", "0"], ["--first", "250"], ["--first", "-1"]):
        with pytest.raises(DeftlyError, match=r"but ids are 0 \.\. 253"):
            hiwonder_bus.main(words)


def test_answers_of_two_lines_do_not_mix():
    with EmulatedServos((1,)) as left, EmulatedServos((1,)) as right:
        right.servos[1].millivolts = 12_000
        lines = [Bus(left.port), Bus(right.port)]
        assert [line.ask(1, VIN_READ, 20.0) for line in lines] == [(11_100,), (12_000,)]
        for line in lines:
            line.close()
