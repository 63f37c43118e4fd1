"""An hour of a control loop, `python -m deftly_bench.hour [TASK]`: its ticks, those it misses, and its memory.

The loop is that of `deftly run`, with its session, safety kernel, log, the policy's thread, and a shipped policy.
The robot is MuJoCo's, in the same process: physics and what sensors measure are computed between two ticks, in the time
that the loop sleeps. An operator says another command each ten seconds; a robot that fell is put up again. All of it
runs on one core.

`--fast` lets simulated time pass as fast as it can: then memory is measured, and no times.
"""

from __future__ import annotations

import json
import os
import resource
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deftly.config import parse, split_task
from deftly.control.drivers import Driver, Reading
from deftly.control.log import LogBuffer
from deftly.control.loop import Runner, Tick
from deftly.control.operator.words import Words
from deftly.control.realtime import make_real_time
from deftly.control.safety import SAFE, Kernel, State
from deftly.control.session import Session
from deftly.errors import DeftlyError
from deftly.evaluate import handover
from deftly.policy import bundle
from deftly.twin.robot import SimRobot
from deftly_bench.entry import start

TASK = "wildrobot-walk"
TICK_MS = 1.0
"""Target: 99 % of the ticks take less."""
GROWTH_MB = 1.0
"""Target: resident memory grows by no more than this after the log is full."""
LOG_S = 120.0
"""How far back the log reaches: until it is full, memory grows by what it is made for."""
SAMPLE_S = 60.0
"""Time between two looks at the memory, s."""
COMMAND_S = 10.0
"""How long a command holds."""
FRACTION = 0.6
"""Of a command's range that is used: the fastest walk falls most."""


@dataclass(frozen=True)
class HourArgs:
    """Measure a control loop for an hour: `python -m deftly_bench.hour [TASK]`."""

    seconds: float = 3600.0
    """How long the robot is driven, s."""
    fast: bool = False
    """Let simulated time pass as fast as it can."""
    core: int = -1
    """Core to run on; -1: the last."""
    real_time: bool = False
    """Have the system prefer this process to all others and keep its memory, as `deftly run --real-time True` does."""
    out: Path | None = None
    """Write the results to this JSON file."""

    def __post_init__(self) -> None:
        if not 10 <= self.seconds <= 86_400:
            raise DeftlyError(f"seconds is {self.seconds:g}, but it must be within 10 .. 86400")
        if not -1 <= self.core < (os.cpu_count() or 1):
            raise DeftlyError(f"core is {self.core}, but there are {os.cpu_count()} cores, from 0")


class SimClock:
    """A clock that goes on when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """The time, s."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds


class Twin(Driver):
    """A simulated robot whose next measurement is ready when it is asked for; its time stands still between ticks."""

    def __init__(self, robot: SimRobot, clock: Any):
        self.robot = robot.robot
        self._sim = robot
        self._clock = clock
        self._episode = 0
        if isinstance(clock, SimClock):
            self.clock = clock
        self.falls = 0
        self._measure()

    def _measure(self) -> None:
        self._signals = self._sim.read().signals

    def read(self) -> Reading:
        """What is measured now."""
        return Reading(self._signals, self._clock())

    def write(self, targets: np.ndarray) -> None:
        """Send targets to the servos."""
        self._sim.write(targets)

    def damp(self) -> None:
        """Let the servos brake."""
        self._sim.damp()

    def stop(self) -> None:
        """Nothing is held."""

    def advance(self) -> None:
        """Let a control period pass."""
        self._sim.step(self._sim.substeps)
        self._measure()

    def put_up(self) -> None:
        """Put a robot that fell on its feet."""
        self.falls += 1
        self._episode += 1
        self._sim.reset(self._episode)
        self._measure()


class Walker:
    """An operator who says another command each ten seconds, puts the robot up, and starts it."""

    starts = True
    hint = ""

    def __init__(self, kernel: Kernel, twin: Twin, words: Words):
        self._kernel = kernel
        self._twin = twin
        self._words = words
        self._rng = np.random.default_rng(0)
        self._due = -np.inf
        self._said: dict[str, np.ndarray] = {}

    def hear(self, now: float, driving: bool) -> Mapping[str, Any]:
        """The command of now: another speed, straight ahead."""
        if now >= self._due:
            self._due = now + COMMAND_S
            values = [each.default for each in self._words.elements]
            values[0] += (
                FRACTION * self._rng.uniform() * (self._words.elements[0].upper - values[0])
            )
            self._said = self._words.values(values)
        return self._said

    def words(self) -> list[str]:
        """Start what is ready, resume what is not."""
        if self._kernel.state is State.READY:
            return ["s"]
        if self._kernel.state in SAFE:
            self._twin.put_up()
            return ["r"]
        return []

    def notes(self) -> list[str]:
        """None."""
        return []

    def close(self) -> None:
        """Nothing is held."""


class Hour(Session):
    """A session that notes each tick, and the memory of each minute."""

    twin: Twin

    def prepare(self, seconds: float) -> None:
        """Make room for what is noted: it must not look like a leak."""
        ticks = int(1.01 * seconds * self.runner.kernel.rate) + 100
        self.took = np.ones(ticks)  # ms
        self.began = np.ones(ticks)  # s
        self.memory: list[tuple[float, float]] = []  # s, MB

    def each(self, _: Tick) -> bool:
        """As a session does; then physics goes on."""
        more = super().each(_)
        at = (self.ticker.count - 1) % len(self.took)
        self.took[at] = self.ticker.times()[(self.ticker.count - 1) % 1000]
        self.began[at] = now = self.ticker._now
        elapsed = now - self.began[0]
        if not self.memory or elapsed >= self.memory[-1][0] + SAMPLE_S:
            self.memory.append((elapsed, resident_mb()))
        self.twin.advance()
        return more


def resident_mb() -> float:
    """Resident memory of this process, MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def main(argv: list[str]) -> int:
    """Run the benchmark. The exit status is 1 if a target is missed."""
    task, rest = split_task(argv)
    args = parse(HourArgs, rest, prog="deftly_bench.hour")
    core = args.core if args.core >= 0 else (os.cpu_count() or 1) - 1
    with suppress(AttributeError, OSError):
        os.sched_setaffinity(0, {core})
    if args.real_time:
        make_real_time()
    result = measure(task or TASK, args)
    print(json.dumps(result, indent=2))
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if all(result["targets"].values()) else 1


def measure(name: str, args: HourArgs) -> dict[str, Any]:
    """Drive, and say what was noted."""
    found = bundle.load(bundle.find(name))
    task, sim = handover.rebuild(None, found.manifest["settings"], found.task)
    twin = Twin(SimRobot(task, sim), SimClock() if args.fast else time.monotonic)
    contract = found.contract
    kernel = Kernel(contract.robot, contract.rate)
    buffer = LogBuffer(contract, round(LOG_S * contract.rate))
    runner = Runner(found.policy(), kernel, twin, buffer)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "hour.npz"
        walker = Walker(kernel, twin, Words(contract))
        session = Hour(runner, buffer, {}, seconds=args.seconds, log=log, operator=walker)
        session.twin = twin
        session.prepare(args.seconds)
        processor = time.process_time()
        status = session.run()
        processor = time.process_time() - processor
    facts = {
        "schema": "deftly.bench.hour/1",
        "policy": f"{name}, shipped (iteration {found.manifest['checkpoint']['iteration']})",
        "rate": contract.rate,
        "seconds": args.seconds,
        "simulated": args.fast,
        "status": status,
        "falls": twin.falls,
        "processor_s": round(processor, 1),
        "real_time_priority": args.real_time,
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
    }
    return facts | judged(session, args)


def judged(session: Hour, args: HourArgs) -> dict[str, Any]:
    """Times, misses, memory, and whether they are what they should be."""
    count = min(session.ticker.count, len(session.took))
    took = session.took[:count]
    gaps = np.diff(session.began[:count]) * session.runner.kernel.rate
    late = session.runner.kernel.cfg.miss_periods
    memory = [mb for _, mb in session.memory]
    full = [mb for at, mb in session.memory if at > LOG_S] or memory[-1:]
    growth = full[-1] - full[0]
    found: dict[str, Any] = {
        "ticks": session.ticker.count,
        "faults": [fault for _, fault, _ in session._faults],
        "memory_mb_each_minute": [round(mb, 1) for mb in memory],
        "memory_mb": {"first": memory[0], "log full": full[0], "last": full[-1]},
        "growth_mb": growth,
    }
    targets = {f"memory grows by < {GROWTH_MB:g} MB": growth < GROWTH_MB}
    if not args.fast:
        p50, p99 = np.percentile(took, (50, 99))
        misses = int((gaps > late).sum())
        found |= {"tick_ms": {"p50": p50, "p99": p99, "max": took.max()}, "missed": misses}
        found["overruns"] = session.ticker.overruns
        targets |= {f"tick: p99 < {TICK_MS:g} ms": p99 < TICK_MS, "no tick is missed": not misses}
    return found | {"targets": {name: bool(holds) for name, holds in targets.items()}}


if __name__ == "__main__":
    start(main)
