"""Contracts of the LEAP tasks at a leisurely rate, their motors in the hardware's order, an emulated hand, bundles."""

from dataclasses import replace
from functools import cache

import fifty
import pytest

from deftly.tasks import load
from deftly_bench.dynamixel_bus import EmulatedBus

RATE = 5.0
"""Hz: busy machines are late, which is no fault of the driver's."""
ORDER = (
    *("if_rot", "if_mcp", "if_pip", "if_dip", "mf_rot", "mf_mcp", "mf_pip", "mf_dip"),
    *("rf_rot", "rf_mcp", "rf_pip", "rf_dip", "th_cmc", "th_axl", "th_mcp", "th_ipl"),
)
"""Joints of motors 0, 1, 2, ... Written down once more: the driver has them from the contract."""
TURNED = {"right": {"th_cmc"}, "left": {"th_cmc", "th_axl", "if_rot", "mf_rot", "rf_rot"}}
TURNED["left-custom"] = TURNED["left"]


@cache
def contract(side="right", rate=RATE, **more):
    cls = load(f"leap-{side}-cube-rotate")
    made = cls(cls.Config(start="sample")).contract()
    return replace(made, robot=replace(made.robot, **more), rate=rate)


def tick(side, joint, angle):
    """Where the motor of a joint stands, in ticks."""
    return round(2048 + (-1 if joint in TURNED[side] else 1) * angle * 4096 / 6.283185307179586)


def go_home(bus, side="right"):
    """Put an emulated hand into its home."""
    home = {j.name: j.home for j in contract(side).joints}
    for i, name in enumerate(ORDER):
        bus.motors[i].position = tick(side, name, home[name])


@pytest.fixture
def bus():
    """An emulated hand at home; a module has the fixture by `bus = leap.bus`."""
    with EmulatedBus() as found:
        go_home(found)
        yield found


def registers(bus, address, size=1, signed=False):
    """A register of each motor of an emulated hand."""
    return [bus.motors[i].get(address, size, signed) for i in range(16)]


def write_bundle(folder, rate=RATE):
    return fifty.write_bundle(folder, contract("right", rate), "leap-right-cube-rotate", 0.2)
