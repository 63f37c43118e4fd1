"""Whether the loop keeps 20 Hz through a bus of sixteen motors: `python -m deftly_bench.bus_loop --seconds 600`.

The loop is that of `deftly run --driver leap`: sync read, policy, safety kernel, sync write, log. The motors are
emulated (deftly_bench.dynamixel_bus) in a process of their own behind a pseudo-terminal, which has no baud rate: what
the wire itself takes, 1.1 ms at 4,000,000 baud, is not in the times.
"""

from __future__ import annotations

import gc
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from deftly.config import parse, split_task
from deftly.contract import PolicyContract
from deftly.control.drivers import Reading
from deftly.control.drivers.dynamixel import Dynamixel
from deftly.control.log import LogBuffer
from deftly.control.loop import Runner
from deftly.control.safety import Kernel, SafetyConfig
from deftly.control.session import Session
from deftly.errors import DeftlyError
from deftly.policy.protocol import ContractPolicy, OnnxNetwork
from deftly_bench.control import find, time_kept
from deftly_bench.entry import start

TASK = "leap-right-cube-rotate"


@dataclass(frozen=True)
class BusLoopArgs:
    """Measure the control loop through an emulated bus: `python -m deftly_bench.bus_loop [TASK]`."""

    seconds: float = 600.0
    """How long the loop runs; the target is for 600."""
    hertz: float = 20.0
    """Its rate."""
    bundle: Path | None = None
    """Bundle that drives; unset: the task's shipped one, else its contract and a network of random weights."""
    out: Path | None = None
    """Write the results to this JSON file."""

    def __post_init__(self) -> None:
        if not (0 < self.seconds <= 36_000 and 2 <= self.hertz <= 200):
            raise DeftlyError("seconds must be within 0 .. 36000, and hertz within 2 .. 200")


class Timed(Dynamixel):
    """The driver, its calls timed."""

    def __init__(self, contract: PolicyContract, port: str):
        super().__init__(contract.robot, contract.rate, port)
        self.read_ms: list[float] = []
        self.write_ms: list[float] = []

    def read(self) -> Reading:
        began = time.perf_counter()
        try:
            return super().read()
        finally:
            self.read_ms.append(1e3 * (time.perf_counter() - began))

    def write(self, targets: np.ndarray) -> None:
        began = time.perf_counter()
        super().write(targets)
        self.write_ms.append(1e3 * (time.perf_counter() - began))


def main(argv: list[str]) -> int:
    """Run the benchmark. The exit status is 1 if a deadline was missed, or the kernel held."""
    task, rest = split_task(argv)
    args = parse(BusLoopArgs, rest, prog="deftly_bench.bus_loop")
    contract, network, what = find(task or TASK, args.bundle)
    gc.collect()
    gc.freeze()  # as the command does
    with emulated(len(contract.robot.motors)) as port:
        loop = keep_time(replace(contract, rate=args.hertz), network, port, args.seconds)
    kept = not (loop["missed"] or loop["overruns"] or loop["fault"])
    targets = {f"{args.hertz:g} Hz for {args.seconds:g} s without a miss": kept}
    facts = {
        "policy": what,
        "robot": contract.robot.name,
        "motors": len(contract.robot.motors),
        "cores": os.cpu_count(),
    }
    result = {
        "schema": "deftly.bench.bus/1",
        **facts,
        "load": os.getloadavg()[0],
        "loop": loop,
        "targets": targets,
    }
    for name in ("loop", "targets"):
        print(
            f"{name}: "
            + ", ".join(
                f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}"
                for k, v in result[name].items()
            )
        )
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if kept else 1


def keep_time(
    contract: PolicyContract, network: OnnxNetwork, port: str, seconds: float
) -> dict[str, Any]:
    """Drive the motors for a while: how well the loop kept its rate, and what the bus took of it."""
    driver, bounds = Timed(contract, port), SafetyConfig(approach_s=Dynamixel.approach_s)
    buffer = LogBuffer(contract, math.ceil(1.1 * seconds * contract.rate) + 10)
    runner = Runner(
        ContractPolicy(contract, network),
        Kernel(contract.robot, contract.rate, bounds),
        driver,
        buffer,
    )
    session = Session(runner, buffer, {}, start=True, seconds=seconds)
    session.run()
    found = {**time_kept(session, contract.rate), "retries": driver.retries}
    for name, times in (("read", driver.read_ms), ("write", driver.write_ms)):
        found |= {f"{name}_p{p}_ms": float(np.percentile(times, p)) for p in (50, 99)} | {
            f"{name}_max_ms": max(times)
        }
    return found


@contextmanager
def emulated(motors: int) -> Iterator[str]:
    """The port of an emulated bus in a process of its own."""
    command = [sys.executable, "-m", "deftly_bench.dynamixel_bus", "--motors", str(motors)]
    path = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, sys.path)])
    pipes = {
        "stdin": subprocess.PIPE,
        "stdout": subprocess.PIPE,
        "env": {**os.environ, "PYTHONPATH": path},
    }
    with subprocess.Popen(command, text=True, **pipes) as process:
        try:
            assert process.stdout is not None
            port = process.stdout.readline().strip()
            if not port:
                raise DeftlyError(
                    "the emulated bus did not start: try python -m deftly_bench.dynamixel_bus"
                )
            yield port
        finally:
            process.kill()


if __name__ == "__main__":
    start(main)
