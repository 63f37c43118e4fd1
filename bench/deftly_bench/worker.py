"""What it costs that the policy decides in a thread of its own: `python -m deftly_bench.worker`.

In real time a control loop gives each decision to a worker thread, so that one that hangs is left alone: two
hand-overs between threads in each control period. They are timed for a call that does nothing and for a network of the
shipped policies' shape, in turns with the same calls made directly. Then a call hangs: how late is it given up?
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deftly.config import parse, split_task
from deftly.control.session import SWITCH_S
from deftly.control.worker import Worker
from deftly.errors import DeftlyError
from deftly.policy.protocol import PolicyError, blank
from deftly_bench.control import TASK, find
from deftly_bench.entry import start

HAND_OVER_MS = 0.25
"""Target: what the hand-over adds to 99 % of the calls, on a machine with a core to spare."""
GIVEN_UP_MS = 5.0
"""Target: how late a call that hangs is given up, 99 %."""
WAIT_S = 0.02
"""How long a call that hangs is waited for."""


@dataclass(frozen=True)
class WorkerArgs:
    """Measure the worker thread of the control loop: `python -m deftly_bench.worker [TASK]`."""

    calls: int = 20_000
    """Calls of each kind that are timed."""
    hangs: int = 200
    """Calls that hang."""
    hertz: float = 0.0
    """Rate of the calls, as of a control loop; 0: as fast as they go."""
    out: Path | None = None
    """Write the results to this JSON file."""

    def __post_init__(self) -> None:
        if self.calls < 100 or self.hangs < 10 or not 0 <= self.hertz <= 1000:
            raise DeftlyError("calls must be 100 or more, hangs 10 or more, hertz within 0 .. 1000")


def main(argv: list[str]) -> int:
    """Run the benchmark. The exit status is 1 if a target is missed."""
    task, rest = split_task(argv)
    args = parse(WorkerArgs, rest, prog="deftly_bench.worker")
    contract, network, what = find(task or TASK, None)
    obs = blank(contract, 1)
    sys.setswitchinterval(SWITCH_S)  # as `deftly run` does
    worker = Worker()
    result: dict[str, Any] = {"schema": "deftly.bench.worker/1", "policy": what}
    kinds: dict[str, Callable[[], Any]] = {"nothing": int, "network": lambda: network(obs)}
    for name, call in kinds.items():
        direct, handed = measure(worker, call, args.calls, args.hertz)
        added = {key: handed[key] - direct[key] for key in ("p50_ms", "p99_ms")}
        result[name] = {"direct": direct, "worker": handed, "added": added}
    worker.close()
    result["given up late"] = given_up(args.hangs)
    result |= {"hertz": args.hertz, "cores": os.cpu_count(), "load": os.getloadavg()[0]}
    late = result["given up late"]["p99_ms"]
    result["targets"] = {
        f"hand-over: p99 < {HAND_OVER_MS:g} ms": result["nothing"]["added"]["p99_ms"]
        < HAND_OVER_MS,
        f"given up: p99 < {GIVEN_UP_MS:g} ms late": late < GIVEN_UP_MS,
    }
    print(json.dumps(result, indent=2))
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if all(result["targets"].values()) else 1


def measure(
    worker: Worker, call: Callable[[], Any], calls: int, hertz: float
) -> tuple[dict[str, float], dict[str, float]]:
    """Times of a call made directly and by the worker, in turns."""
    times: tuple[list[float], list[float]] = ([], [])
    due = time.perf_counter()
    for _ in range(calls):
        began = time.perf_counter()
        call()
        middle = time.perf_counter()
        worker.call(call, lambda: 1.0)
        times[0].append(middle - began)
        times[1].append(time.perf_counter() - middle)
        if hertz:
            due += 1.0 / hertz
            time.sleep(max(0.0, due - time.perf_counter()))
    return statistics(times[0]), statistics(times[1])


def given_up(hangs: int) -> dict[str, float]:
    """How long after its time was over a call that hangs was given up."""
    late = []
    for _ in range(hangs):
        worker = Worker()
        released = threading.Event()
        began = time.perf_counter()
        with suppress(PolicyError):
            worker.call(released.wait, lambda began=began: began + WAIT_S - time.perf_counter())
        late.append(time.perf_counter() - began - WAIT_S)
        released.set()
        worker.close()
        worker.wait(1.0)
    return statistics(late)


def statistics(seconds: list[float]) -> dict[str, float]:
    """Percentiles, ms."""
    ms = 1e3 * np.array(seconds)
    p50, p99 = np.percentile(ms, (50, 99))
    return {"p50_ms": float(p50), "p99_ms": float(p99), "max_ms": float(ms.max()), "calls": len(ms)}


if __name__ == "__main__":
    start(main)
