"""The emulated bus against the SDK's own packets, and what it says to bad requests; its benchmark."""

import struct

import leap
import numpy as np
import pytest
from dynamixel_sdk import PacketHandler

from deftly.control.drivers.dynamixel_bus import Bus
from deftly_bench import bus_loop
from deftly_bench.dynamixel_bus import EmulatedBus, Motor, Parser, crc16, packet


def test_packets_are_those_of_the_e_manual():
    assert packet(1, 0x01).hex(" ") == "ff ff fd 00 01 03 00 01 19 4e"
    assert (
        packet(1, 0x02, struct.pack("<HH", 132, 4)).hex(" ")
        == "ff ff fd 00 01 07 00 02 84 00 04 00 1d 15"
    )


def test_the_check_is_the_sdks():
    handler, rng = PacketHandler(2.0), np.random.default_rng(3)
    for length in (1, 7, 40):
        data = rng.integers(0, 256, length).astype(np.uint8).tobytes()
        assert crc16(data) == handler.updateCRC(0, data, length)


def test_stuffed_bytes_come_through():
    body = b"\xff\xff\xfd" * 3 + b"\xff\xff\xfd\xfd"
    stream = b"noise\xff\xff" + packet(3, 0x03, body) + packet(4, 0x01)
    parser, found = Parser(), []
    for byte in stream:
        found += parser.feed(bytes([byte]))
    assert found == [(3, 0x03, body), (4, 0x01, b"")]
    broken = bytearray(packet(3, 0x03, body))
    broken[9] ^= 1
    assert list(Parser().feed(bytes(broken))) == []


def test_a_value_that_must_be_stuffed_is_written_and_read_by_the_driver():
    with EmulatedBus(range(2)) as bus:
        line, value = Bus(bus.port, 4_000_000), struct.pack("<i", 0x00FDFFFF)
        line.write([0, 1], 116, [value, value])
        assert line.read([0, 1], 116, 4, 2.0) == [value, value]
        line.close()


@pytest.mark.parametrize(
    ("address", "value", "error"),
    [
        (132, bytes(4), 7),
        (11, b"\x05", 7),
        (102, struct.pack("<h", 2400), 6),
        (226, bytes(4), 5),
        (116, bytes(4), 0),
    ],
)
def test_motors_take_what_the_e_manual_allows(address, value, error):
    motor = Motor(1, 2048)
    motor.put(64, 1, 1)
    assert motor.write(address, value) == error


def test_a_motor_goes_to_its_goal_no_faster_than_it_can_and_stops_when_it_hears_nothing():
    motor = Motor(1, 2048.0)
    for address, value in (
        (102, struct.pack("<h", 550)),
        (116, struct.pack("<i", 3048)),
        (64, b"\x01"),
        (98, b"\x05"),
    ):
        assert motor.write(address, value) == 0
    motor.advance(0.05)
    assert 2048 + 200 < motor.position < 2048 + 0.05 * 5530
    motor.advance(5.0)
    assert motor.table[98] == 255
    assert motor.get(116, 4) == round(motor.position) <= 2048 + 0.1 * 5530
    assert motor.write(116, bytes(4)) == 4
    assert motor.write(98, b"\x00") == motor.write(116, bytes(4)) == 0


def test_the_loop_is_measured_through_the_bus(monkeypatch, tmp_path):
    contract = leap.contract()
    network = bus_loop.OnnxNetwork(leap.fifty.model(contract, 0.2), contract)
    monkeypatch.setattr(bus_loop, "find", lambda task, bundle: (contract, network, "a stand-in"))
    status = bus_loop.main(
        ["--seconds", "1.5", "--hertz", "4", "--out", str(tmp_path / "out.json")]
    )
    found = bus_loop.json.loads((tmp_path / "out.json").read_text())
    assert status == int(not found["targets"]["4 Hz for 1.5 s without a miss"])
    assert found["loop"]["ticks"] >= 5
    assert found["loop"]["read_p99_ms"] > 0
