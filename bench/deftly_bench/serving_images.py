"""Round trips of two 224 x 224 images without inference, over both protocols: `python -m deftly_bench.serving_images`.

The server is a process of its own whose policy looks at nothing. A plain echo of as many bytes over a loopback socket,
in the same run, says what this computer can do at most. `processor_ms` is what client and server together used of the
processor for a round trip: on a computer that does other things, it says more than the time that passed.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deftly.config import parse
from deftly.contract import Act, Input, Joint, Observe, PolicyContract, RobotInterface, Signal
from deftly.policy.chunks import ChunkPolicy, Observed
from deftly.policy.protocol import ContractPolicy, OneRobot
from deftly.serving.client import Client
from deftly.serving.openpi_client import OpenpiModel
from deftly.serving.openpi_server import OpenpiServer
from deftly.serving.server import Server
from deftly_bench.entry import start
from deftly_bench.serving import figures, process

P50_MS = 2.0
"""Target: half of the round trips are shorter, ms."""
SIDE, HORIZON = 224, 10
IMAGES = ("exterior", "wrist")
WARM_UP = 50
CONTRACT = PolicyContract(
    RobotInterface(
        "two-cameras",
        joints=(
            *(Joint(f"joint_{i}", -3.0, 3.0, 0.0, 2.0) for i in range(1, 7)),
            Joint("gripper", 0.0, 0.04, 0.04, 0.15, "m", grips=True),
        ),
        signals=(
            Signal("joint_pos", 7, "rad"),
            *(Signal(name, (SIDE, SIDE, 3), dtype="uint8") for name in IMAGES),
        ),
    ),
    rate=15,
    observe_terms=(Observe("joint_pos"), *(Observe(name, group=name) for name in IMAGES)),
    act_terms=(
        Act(tuple(f"joint_{i}" for i in range(1, 7)), "velocity"),
        Act(("gripper",), "gripper"),
    ),
    inputs=(Input("prompt", dtype="text", text="pick up the red cube"),),
)


@dataclass(frozen=True)
class ImagesArgs:
    """Measure round trips of images: `python -m deftly_bench.serving_images`."""

    requests: int = 500
    """Round trips of each protocol in a round."""
    rounds: int = 3
    """Rounds; the median of their percentiles counts."""
    out: Path | None = None
    """Write the results to this JSON file."""


class Blind:
    """A model of chunks that looks at nothing."""

    contract = CONTRACT
    deterministic = True
    horizon: int | None = HORIZON
    executed: int | None = None

    def predict(self, seen: Observed) -> np.ndarray:
        return np.zeros((len(seen.ids), HORIZON, CONTRACT.action_size), np.float32)

    def close(self) -> None:
        pass


def main(argv: list[str]) -> int:
    """Run the benchmark. The exit status is 1 if a target is missed."""
    args = parse(ImagesArgs, argv, prog="deftly_bench.serving_images")
    rounds = [one_round(args.requests) for _ in range(args.rounds)]
    cases = {name: median([each[name] for each in rounds]) for name in rounds[0]}
    targets = {
        f"{name}: p50 < {P50_MS:g} ms": cases[name]["p50_ms"] < P50_MS for name in ("tcp", "ws")
    }
    result = {
        "schema": "deftly.bench.images/1",
        "settings": {**asdict(args), "out": None},
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "image_bytes": len(IMAGES) * SIDE * SIDE * 3,
        "cases": cases,
        "targets": targets,
    }
    for name, found in cases.items():
        times = f"p50 {found['p50_ms']:.2f} ms, p99 {found['p99_ms']:.2f} ms"
        used = f", processor {found['processor_ms']:.2f} ms" if "processor_ms" in found else ""
        print(f"{name}: {times}{used}, {found['requests']:g} requests, {found['missed']:g} missed")
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))
    return 0 if all(targets.values()) else 1


def one_round(count: int) -> dict[str, dict[str, Any]]:
    """Percentiles of the round trips of each protocol, and of the echo, ms."""
    found = {"echo": figures(timed(echo(), count))}
    for name in ("tcp", "ws"):
        with process([sys.executable, __file__, name]) as (server, line):
            client = over_tcp(line) if name == "tcp" else over_websocket(line)
            timed(client, 0)
            before = sum(map(processor_time, (os.getpid(), server.pid)))
            found[name] = figures(timed(client, count))
            used = sum(map(processor_time, (os.getpid(), server.pid))) - before
            found[name]["processor_ms"] = 1e3 * used / (count + WARM_UP)
    return found


def processor_time(pid: int) -> float:
    """What the threads of a process, none of which has ended, used of the processor so far, s; Linux."""
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return 1e-9 * sum(int(thread.read_text().split()[0]) for thread in threads)


def median(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """The median over rounds of each percentile."""
    return {name: float(np.median([each[name] for each in rounds])) for name in rounds[0]}


def timed(call: Callable[[], object], count: int) -> list[float]:
    """How long a call takes each time, s."""
    waits = []
    for i in range(count + WARM_UP):
        start = time.perf_counter()
        call()
        if i >= WARM_UP:
            waits.append(time.perf_counter() - start)
    return waits


def signals() -> dict[str, np.ndarray]:
    """What the robot measures: noise, which nothing can make smaller."""
    rng = np.random.default_rng(0)
    images = {name: rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8) for name in IMAGES}
    return {"joint_pos": np.zeros(7, np.float32), **images}


def over_tcp(endpoint: str) -> Callable[[], object]:
    """Our own messages."""
    client = OneRobot(Client(endpoint, CONTRACT, timeout=10.0))
    seen = signals()
    client.reset()
    return lambda: client.infer(seen)


def over_websocket(endpoint: str) -> Callable[[], object]:
    """openpi's."""
    model = OpenpiModel(endpoint, CONTRACT)
    rows = {name: value[None] for name, value in signals().items()}
    command = np.zeros((1, 7), np.float32)
    seen = Observed(rows, {"prompt": ["pick up the red cube"]}, command, [0], [False])
    return lambda: model.predict(seen)


def echo() -> Callable[[], object]:
    """As many bytes to a thread of this process, and an answer of a few."""
    size = len(IMAGES) * SIDE * SIDE * 3
    here, there = socket.socketpair()
    message = bytes(size)

    def answer() -> None:
        buffer = memoryview(bytearray(size))
        while True:
            got = 0
            while got < size:
                got += there.recv_into(buffer[got:])
            there.sendall(b"x")

    threading.Thread(target=answer, daemon=True).start()

    def ask() -> None:
        here.sendall(message)
        here.recv(1)

    return ask


def serve(name: str) -> None:
    """A server of one protocol, until it is ended."""
    if name == "ws":
        server: Any = OpenpiServer(ChunkPolicy(Blind()), "ws://127.0.0.1:0")
    else:
        policy = ContractPolicy(CONTRACT, lambda obs: np.zeros((len(obs["state"]), 7), np.float32))
        server = Server(policy, "tcp://127.0.0.1:*")
    print(server.endpoint, flush=True)
    server.run_until_signal()


if __name__ == "__main__":
    if sys.argv[1:] in (["tcp"], ["ws"]):
        serve(sys.argv[1])
    else:
        start(main)
