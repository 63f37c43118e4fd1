"""Which control rate a bus of Hiwonder servos allows: `python -m deftly_bench.servo_rate --out servo-rate.json`.

The driver's own schedule (commands first, then one question after another) is run against a bus whose time is
simulated: each byte takes ten bits at 115,200 baud, each answer what a servo and its adapter take to begin it. So the
result is the same on every computer. With `--seconds`, the driver itself is measured too, on the emulated bus behind a
pseudo-terminal, in real time; that is what this computer adds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from deftly.config import parse
from deftly.control.drivers import DriverError
from deftly.control.drivers.buses import WILDROBOT
from deftly.control.drivers.hiwonder import STALE_PERIODS, Line, Servos, oldest_age
from deftly.control.drivers.hiwonder_bus import BAUD, BROADCAST, FORMATS, Bus, packed, wire_s
from deftly.policy import bundle
from deftly_bench.entry import start

HERTZ = 50.0
"""WildRobot's control rate."""
TURNAROUNDS = {"bytes alone": 0.0, "as measured": 3.640e-3 - wire_s(14, BAUD)}
"""From a question to its answer, s: nothing; and what makes a question take the 3.640 ms that WildRobot's makers
measured with a USB adapter (leeygang/wildrobot, runtime/docs/servo_api.md)."""
PORTS = {1: 8, 2: 4}
"""Ports, and servos at each."""
VALUES = {26: 35, 27: 11_100, 32: 1}  # temperature, supply, loaded: of a servo that is well


@dataclass(frozen=True)
class ServoRateArgs:
    """Measure the rate that a servo bus allows: `python -m deftly_bench.servo_rate`."""

    seconds: float = 0.0
    """How long the driver is measured on the emulated bus, in each case; 0: it is not."""
    out: Path | None = None
    """Write the results to this JSON file."""


class SimulatedBus:
    """A bus whose time is `now`, s: what is asked and told takes its time there, and none here."""

    path = "simulated"
    baud = BAUD

    def __init__(self, turnaround: float):
        self.turnaround = turnaround
        self.now = self.asked_at = 0.0

    def ask(self, motor: int, command: int, timeout: float) -> tuple[int, ...]:
        """An answer, when it is there."""
        self.tell(motor, command, b"")
        size = len(FORMATS[command].replace("<", "").replace("h", "BB").replace("H", "BB"))
        self.now += self.turnaround + wire_s(len(packed(motor, command, bytes(size))), BAUD)
        return (VALUES.get(command, 500),) * len(FORMATS[command][1:])

    def tell(self, motor: int, command: int, body: bytes) -> None:
        """Send a packet."""
        assert motor <= BROADCAST
        self.now += wire_s(len(packed(motor, command, body)), BAUD)
        self.asked_at = self.now


def simulated_ages(servos: int, turnaround: float, hertz: float, ticks: int = 500) -> np.ndarray:
    """How old each position is in each control period, s, (ticks, servos)."""
    bus = SimulatedBus(turnaround)
    line = Line(cast(Bus, bus), {i: f"servo {i}" for i in range(1, servos + 1)}, WILDROBOT)
    goals = dict.fromkeys(line.names, 500)
    while len(line.times) < servos:
        line.turn()
    ages = []
    start = bus.now
    for tick in range(1, ticks + 1):
        due = start + tick / hertz
        line.order(goals)
        known = dict(line.times)
        while bus.now < due:  # what is asked when the period ends is not known yet
            known = dict(line.times)
            line.turn()
        ages.append([due - at for at in known.values()])
    assert not line.ill
    return np.array(ages[10:])


def highest_rate(servos: int, question_s: float) -> int:
    """The highest control rate, Hz, that the driver does not refuse."""
    rates = range(200, 0, -1)
    return next(hz for hz in rates if oldest_age(servos, question_s, hz) <= STALE_PERIODS / hz)


def simulate(ports: int, turnaround: float) -> dict[str, Any]:
    """What the schedule gives with so many ports."""
    servos = PORTS[ports]
    ages = 1e3 * simulated_ages(servos, turnaround, HERTZ)
    question_s = turnaround + wire_s(14, BAUD)
    return {
        "ports": ports,
        "question_ms": 1e3 * question_s,
        "all_positions_ms": 1e3 * servos * question_s,
        "all_commands_ms": 1e3 * servos * wire_s(10, BAUD),
        "mean_ms": float(ages.mean()),
        "oldest_p50_ms": float(np.median(ages.max(1))),
        "oldest_max_ms": float(ages.max()),
        "bound_ms": 1e3 * oldest_age(servos, question_s, HERTZ),
        "highest_hz": highest_rate(servos, question_s),
    }


def measure(ports: int, turnaround: float, seconds: float) -> dict[str, Any]:
    """The driver on the emulated bus, in real time, at WildRobot's rate."""
    robot = bundle.load(bundle.SHIPPED / "wildrobot-stand", verify_golden=False).contract.robot
    home = np.array(robot.home())
    ages = []
    faults = 0
    with ExitStack() as stack:
        paths = [
            stack.enter_context(emulated(1 + i * PORTS[ports], PORTS[ports], turnaround))
            for i in range(ports)
        ]
        servos = Servos(robot, 5.0, ",".join(paths))  # refused at a higher rate, if it is too slow
        stack.callback(servos.stop)
        end = time.monotonic() + seconds
        due = time.monotonic()
        while due < end:
            due += 1 / HERTZ
            time.sleep(max(0.0, due - time.monotonic()))
            try:
                _, at = servos.read()
                servos.write(home)
            except DriverError:  # a busy computer answers for its emulated servos too late
                faults += 1
            else:
                ages.append(1e3 * (time.monotonic() - at))
        return {
            "oldest_p50_ms": float(np.median(ages)),
            "oldest_p99_ms": float(np.percentile(ages, 99)),
            "oldest_max_ms": max(ages),
            "retries": servos.retries,
            "faults": faults,
        }


@contextmanager
def emulated(first: int, servos: int, turnaround: float) -> Iterator[str]:
    """The port of an emulated bus in a process of its own, whose bytes take their time."""
    command = [sys.executable, "-m", "deftly_bench.hiwonder_bus", "--first", str(first)]
    command += ["--servos", str(servos), "--baud", str(BAUD)]
    command += ["--turnaround-ms", str(1e3 * turnaround)]
    path = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, sys.path)])
    env = {**os.environ, "PYTHONPATH": path}
    with subprocess.Popen(
        command, text=True, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.kill()


def main(argv: list[str]) -> int:
    """Run the benchmark. Exit status 0."""
    args = parse(ServoRateArgs, argv, prog="deftly_bench.servo_rate")
    cases = []
    for what, turnaround in TURNAROUNDS.items():
        for ports in PORTS:
            case = {"answers": what, **simulate(ports, turnaround)}
            if args.seconds:
                case["measured"] = measure(ports, turnaround, args.seconds)
            cases.append(case)
            print(", ".join(_words(key, value) for key, value in case.items()), flush=True)
    result = {"schema": "deftly.bench.servo-rate/1", "hertz": HERTZ, "baud": BAUD}
    result |= {"cores": os.cpu_count(), "load": os.getloadavg()[0], "cases": cases}
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n")
    return 0


def _words(key: str, value: object) -> str:
    return f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"


if __name__ == "__main__":
    start(main)
