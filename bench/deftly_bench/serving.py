"""How a policy server answers: one robot, eight robots, and one among a flood: `python -m deftly_bench.serving`.

Server, plain ZeroMQ echo, flood and robots each run in a process of their own. What counts beside the targets is the
ratio to the echo: the same bytes to a REP socket that does nothing, in the same run.
"""

from __future__ import annotations

import gc
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zmq

from deftly.config import parse, split_task
from deftly.contract import PolicyContract
from deftly.errors import DeftlyError
from deftly.policy.protocol import OneRobot, PolicyError
from deftly.serving.client import Client
from deftly.serving.link import Connection
from deftly.serving.wire import pack
from deftly_bench.entry import start

TASK = "jaka-pick-cube"
ANY_PORT = "tcp://127.0.0.1:*"
ONE_MS, MANY_MS = 2.0, 50.0
"""Targets: 99 % of one robot's waits, and every wait of eight robots and of one among a flood."""
HERTZ, ROBOTS = 20.0, 8
Signals = dict[str, np.ndarray]


@dataclass(frozen=True)
class ServingArgs:
    """Measure a policy server: `python -m deftly_bench.serving [TASK]`."""

    bundle: Path | None = None
    """Bundle to serve; unset: the task's policy, as `deftly serve TASK` finds it."""
    requests: int = 2000
    """Requests of the one robot."""
    seconds: float = 5.0
    """How long eight robots ask 20 times a second; the target is for 60."""
    messages: int = 5000
    """Random messages of the flood; the target is for 100000."""
    vanished: int = 50
    """Clients of the flood that connect, send and disappear; the target is for 1000."""
    out: Path | None = None
    """Write the results to this JSON file."""


def main(argv: list[str]) -> int:
    """Run the benchmark. The exit status is 1 if a target is missed."""
    task, rest = split_task(argv)
    args = parse(ServingArgs, rest, prog="deftly_bench.serving")
    what = ["--bundle", str(args.bundle)] if args.bundle else [task or TASK]
    with process([sys.executable, "-m", "deftly", "serve", *what, "--bind", ANY_PORT]) as (
        server,
        line,
    ):
        gc.collect()
        gc.freeze()  # as the loop of a robot does, `deftly run`
        endpoint = next(word.rstrip(",") for word in line.split() if word.startswith("tcp://"))
        result = measure(endpoint, server.pid, args)
        server.send_signal(signal.SIGTERM)
        result["server_exit"] = server.wait(10)
    show(result)
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))
    return 0 if all(result["targets"].values()) else 1


def measure(endpoint: str, pid: int, args: ServingArgs) -> dict[str, Any]:
    """All cases against a running server."""
    contract = Client(endpoint).contract
    run_robot(endpoint, contract, 0.0, count=200)  # warm
    memory = {"start": resident(pid)}
    one = figures(run_robot(endpoint, contract, 0.0, count=args.requests))
    payload = pack(
        {"v": 1, "type": "infer", "seq": 1, "time": 1.0, "signals": some_signals(contract, 0)}
    )
    with process([sys.executable, __file__, "echo"]) as (_, line):
        echo = figures(run_echo(line, payload, args.requests))
    memory["after one robot"] = resident(pid)
    eight = figures(run_robots(endpoint, contract, args.seconds))
    memory["after eight robots"] = resident(pid)
    flood = run_flood(endpoint, contract, args)
    memory["after the flood"] = resident(pid)
    status = Connection(endpoint).ask("status", 3.0)
    crowd = f"flood of {args.messages} messages, {args.vanished} vanished"
    targets = {
        f"one robot: p99 < {ONE_MS:g} ms": one["p99_ms"] < ONE_MS,
        f"eight robots, {args.seconds:g} s: all < {MANY_MS:g} ms": eight["max_ms"] < MANY_MS
        and not eight["missed"],
        f"{crowd}: all < {MANY_MS:g} ms": flood["max_ms"] < MANY_MS and not flood["missed"],
        "memory: flood adds < 10 MB": memory["after the flood"] - memory["after eight robots"]
        < 10.0,
    }
    return {
        "schema": "deftly.bench.serving/1",
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()},
        "cores": os.cpu_count(),
        "robot": contract.robot.name,
        "cases": {
            "one robot": one,
            "plain echo": echo,
            "eight robots": eight,
            "among a flood": flood,
        },
        "ratio_to_echo": {name: one[name] / echo[name] for name in ("p50_ms", "p99_ms")},
        "server_ms": {name: status["latency_ms"][name] for name in ("p50", "p99", "max")},
        "batches": status["batches"],
        "memory_mb": memory,
        "targets": targets,
    }


# ------------------------------------------------------------------------ robots


def run_robot(
    endpoint: str,
    contract: PolicyContract,
    period: float,
    count: int = 0,
    until: Callable[[], bool] = lambda: False,
    keys: Path | None = None,
) -> list[float]:
    """Waits of one robot in s, infinite where no answer came; `count` requests, or as many until `until()`."""
    client = OneRobot(Client(endpoint, contract, timeout=1.0, keys=keys))
    client.reset()
    client.infer(some_signals(contract, count))  # the session and the episode are opened with it
    return drive(client, contract, period, count, until)


def drive(
    client: OneRobot,
    contract: PolicyContract,
    period: float,
    count: int = 0,
    until: Callable[[], bool] = lambda: False,
) -> list[float]:
    """Waits of a robot that has begun, as `run_robot`; then it leaves."""
    waits: list[float] = []
    seen = some_signals(contract, count)
    due = time.perf_counter()
    while len(waits) < count or (not count and not until()):
        start = time.perf_counter()
        try:
            client.infer(seen)
            waits.append(time.perf_counter() - start)
        except PolicyError:
            waits.append(float("inf"))
        due = max(due + period, time.perf_counter())
        time.sleep(max(0.0, due - time.perf_counter()))
    client.close()
    return waits


def run_robots(endpoint: str, contract: PolicyContract, seconds: float) -> list[float]:
    """Waits of eight robots, 20 times a second each; infinite ones for a robot that broke off."""
    waits: list[float] = []
    count = max(1, round(seconds * HERTZ))
    threads = [
        threading.Thread(
            target=lambda: waits.extend(run_robot(endpoint, contract, 1 / HERTZ, count))
        )
        for _ in range(ROBOTS)
    ]
    for thread in threads:
        thread.start()
        time.sleep(0.01)
    for thread in threads:
        thread.join()
    return waits + [float("inf")] * (ROBOTS * count - len(waits))


def run_flood(endpoint: str, contract: PolicyContract, args: ServingArgs) -> dict[str, Any]:
    """Waits of a good robot while others send random messages, or connect, send and disappear."""
    start = time.perf_counter()
    script = [sys.executable, __file__, "flood", endpoint, str(args.messages), str(args.vanished)]
    with process(script) as (flood, _):
        waits = run_robot(endpoint, contract, 0.005, until=lambda: flood.poll() is not None)
        if flood.returncode:
            raise DeftlyError("the flood of random messages did not end well")
    rates = {
        "messages": args.messages,
        "vanished": args.vanished,
        "seconds": time.perf_counter() - start,
    }
    return {**figures(waits), **rates}


def run_echo(endpoint: str, payload: bytes, count: int) -> list[float]:
    """Waits of a REQ socket for the same bytes back."""
    waits = []
    with zmq.Context.instance().socket(zmq.REQ) as socket:
        socket.connect(endpoint)
        for i in range(count + 200):
            start = time.perf_counter()
            socket.send(payload)
            socket.recv()
            if i >= 200:
                waits.append(time.perf_counter() - start)
    return waits


def figures(waits: list[float]) -> dict[str, Any]:
    """Percentiles of answered waits, and how many were not answered."""
    answered = 1000 * np.array([wait for wait in waits if np.isfinite(wait)] or [np.inf])
    p50, p99 = np.percentile(answered, [50, 99])
    found = {"p50_ms": float(p50), "p99_ms": float(p99), "max_ms": float(answered.max())}
    return {"requests": len(waits), "missed": sum(not np.isfinite(wait) for wait in waits), **found}


def some_signals(contract: PolicyContract, seed: int) -> Signals:
    """Signals of the contract's sizes, the joints at home."""
    rng = np.random.default_rng(seed)
    found = {s.name: rng.uniform(-0.5, 0.5, s.size).astype(np.float32) for s in contract.signals}
    return {**found, "joint_pos": np.array(contract.home(), np.float32)}


# --------------------------------------------------------------- other processes


@contextmanager
def process(command: list[str]) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process and the first line that it printed; it ends with the block."""
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout
        line = child.stdout.readline().strip()
        if not line:
            raise DeftlyError(f"'{' '.join(command[1:4])}' did not start")
        yield child, line
    finally:
        child.kill()
        child.wait()


def resident(pid: int) -> float:
    """Resident memory of a process, MB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith("VmRSS"))


def echo() -> None:
    """Give back what comes."""
    socket = zmq.Context.instance().socket(zmq.REP)
    socket.bind(ANY_PORT)
    print(socket.get_string(zmq.LAST_ENDPOINT), flush=True)
    while True:
        socket.send(socket.recv())


def flood(endpoint: str, messages: int, vanished: int) -> None:
    """Send random messages, and let clients vanish among them, half of them in the midst of a message."""
    rng, every = random.Random(0), max(1, messages // max(vanished, 1))
    print("flooding", flush=True)
    peer = zmq.Context.instance().socket(zmq.DEALER)
    peer.linger = 10_000
    peer.connect(endpoint)
    for i in range(messages):
        peer.send_multipart(nonsense(rng))
        while peer.poll(0):
            peer.recv_multipart()
        if i % every == 0 and i // every < vanished:
            vanish(endpoint, rng)
    while peer.poll(500):
        peer.recv_multipart()
    peer.close()


def nonsense(rng: random.Random) -> list[bytes]:
    """Frames of a message that is none, or nearly one."""
    kind = rng.choice(["ping", "init", "reset", "infer", "status", "close", "x"])
    fields = {
        "session": rng.randbytes(16).hex(),
        "signals": {"joint_pos": [rng.random()] * rng.randrange(9)},
    }
    frame = bytearray(pack({"v": 1, "type": kind, "seq": rng.randrange(99), "time": 1.0, **fields}))
    for _ in range(rng.randrange(4)):
        frame[rng.randrange(len(frame))] = rng.randrange(256)
    choices = [
        bytes(frame),
        rng.randbytes(rng.randrange(200)),
        b"\xdd\x00\x00\x02\x00" * 300,
        bytes(60_000),
    ]
    (payload,) = rng.choices(choices, [10, 10, 1, 0.1])
    return rng.choice([[b"", payload], [payload], [payload] * 3, [b""]])


def vanish(endpoint: str, rng: random.Random) -> None:
    """Connect, send, disappear."""
    import socket

    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    if rng.random() < 0.5:
        with socket.create_connection((host, int(port))) as raw:
            raw.sendall(b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\0NULL"[: rng.randrange(18)])
        return
    with zmq.Context.instance().socket(zmq.DEALER) as peer:
        peer.linger = 50
        peer.connect(endpoint)
        peer.send(
            pack({"v": 1, "type": rng.choice(["init", "status", "ping"]), "seq": 1, "time": 1.0})
        )


def show(result: dict[str, Any]) -> None:
    """The tables of a result."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 200, markup=False, highlight=False)
    table = Table("case", "requests", "p50 ms", "p99 ms", "max ms", "missed", box=None)
    for name, case in result["cases"].items():
        times = (f"{case[key]:.2f}" for key in ("p50_ms", "p99_ms", "max_ms"))
        table.add_row(name, str(case["requests"]), *times, str(case["missed"]))
    ratio = result["ratio_to_echo"]
    console.print(
        table,
        f"one robot / plain echo: p50 {ratio['p50_ms']:.1f}, p99 {ratio['p99_ms']:.1f}",
        sep="\n",
    )
    memory = ", ".join(f"{name} {value:.1f} MB" for name, value in result["memory_mb"].items())
    console.print(f"the server's memory: {memory}")
    for name, holds in result["targets"].items():
        console.print(f"{'ok    ' if holds else 'MISSED'} {name}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["echo"]:
        echo()
    elif sys.argv[1:2] == ["flood"]:
        flood(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        start(main)
