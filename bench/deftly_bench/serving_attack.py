"""How a policy server answers a good robot while peers attack it: `python -m deftly_bench.serving_attack`.

Server and attackers each run in a process of their own. An attack has `--peers` connections, none of which ever reads;
one that is closed is opened again.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deftly.config import parse, split_task
from deftly.contract import PolicyContract
from deftly.policy.protocol import PolicyError
from deftly.serving.client import Client
from deftly.serving.wire import pack
from deftly.serving.zmtp import COMMAND, GREETING, MORE, encode
from deftly_bench.serving import (
    ANY_PORT,
    MANY_MS,
    TASK,
    figures,
    process,
    resident,
    run_robot,
    some_signals,
)

READY = encode(b"\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER", COMMAND)
MAX_ADDED_MB = 105.0
"""Target: 100 MiB."""
PERIOD = 0.05
"""Of the good robot, s."""
BRIDGED = 32
"""Robots behind one connection."""


@dataclass(frozen=True)
class AttackArgs:
    """Measure a policy server under attack: `python -m deftly_bench.serving_attack [TASK]`."""

    bundle: Path | None = None
    """Bundle to serve; unset: the task's policy, as `deftly serve TASK` finds it."""
    peers: int = 1000
    """Connections of an attack."""
    seconds: float = 10.0
    """Duration of each attack."""
    only: str = ""
    """One attack alone."""
    out: Path | None = None
    """Write the results to this JSON file."""


def main(argv: list[str]) -> int:
    """Run the benchmark. The exit status is 1 if a target is missed."""
    task, rest = split_task(argv)
    args = parse(AttackArgs, rest, prog="deftly_bench.serving_attack")
    what = ["--bundle", str(args.bundle)] if args.bundle else [task or TASK]
    command = [sys.executable, "-m", "deftly", "serve", *what, "--bind", ANY_PORT]
    with process(command) as (server, line):
        endpoint = next(word.rstrip(",") for word in line.split() if word.startswith("tcp://"))
        result = measure(endpoint, server.pid, args)
        alive = server.poll() is None
        server.send_signal(signal.SIGTERM)
        result["server_exit"] = server.wait(10) if alive else server.returncode
    result["targets"]["the server lives"] = alive and result["server_exit"] == 0
    show(result)
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if all(result["targets"].values()) else 1


def measure(endpoint: str, pid: int, args: AttackArgs) -> dict[str, Any]:
    """All attacks against a running server, and 32 robots behind one connection."""
    contract = Client(endpoint).contract
    run_robot(endpoint, contract, 0.0, count=200)  # warm
    targets: dict[str, bool] = {}
    cases: dict[str, Any] = {}
    cases["no attack"] = figures(run_robot(endpoint, contract, PERIOD, count=100))
    base = resident(pid)
    for name in [args.only] if args.only else ATTACKS:
        case = cases[name] = run_attack(name, endpoint, pid, contract, args)
        case["added_mb"] = case.pop("peak_mb") - base
        what = f"{name}, {args.peers} peers, {args.seconds:g} s"
        targets[f"{what}: every wait < {MANY_MS:g} ms"] = (
            case["max_ms"] < MANY_MS and not case["missed"]
        )
        targets[f"{what}: a new robot starts"] = case["new_robot_ms"] is not None
        targets[f"{what}: adds < {MAX_ADDED_MB:g} MB"] = case["added_mb"] < MAX_ADDED_MB
    bridge = cases[f"{BRIDGED} robots, one connection"] = run_bridge(endpoint, contract)
    targets[f"{BRIDGED} robots through one connection: no reply lost"] = not bridge["missed"]
    return {
        "schema": "deftly.bench.serving_attack/1",
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()},
        "cores": os.cpu_count(),
        "robot": contract.robot.name,
        "memory_before_mb": base,
        "cases": cases,
        "targets": targets,
    }


def run_attack(
    name: str, endpoint: str, pid: int, contract: PolicyContract, args: AttackArgs
) -> dict[str, Any]:
    """Waits of a robot that was there before the attack, the first decision of one that comes then, peak memory."""
    script = [sys.executable, "-m", __spec__.name if __spec__ else __file__, "attack"]
    case: dict[str, Any] = {}
    with (
        sampled_memory(pid) as peak,
        process([*script, name, endpoint, str(args.peers), str(args.seconds)]) as (attack, _),
    ):
        newcomer = threading.Timer(
            args.seconds / 2, lambda: case.update(new_robot_ms=start_robot(endpoint, contract))
        )
        newcomer.start()
        waits = run_robot(endpoint, contract, PERIOD, until=lambda: attack.poll() is not None)
        newcomer.join()
        assert attack.stdout
        case["attack"] = json.loads(attack.stdout.read() or "{}")
    return {**figures(waits), **case, "peak_mb": peak()}


def start_robot(endpoint: str, contract: PolicyContract) -> float | None:
    """Time from nothing to the first decision of a new robot, ms; None if there was none."""
    begin = time.perf_counter()
    try:
        client = Client(endpoint, contract, timeout=1.0)
        seen = {name: value[None] for name, value in some_signals(contract, 1).items()}
        client.infer(seen)
        client.close()
        return 1000 * (time.perf_counter() - begin)
    except PolicyError as error:
        print(f"a new robot: {error}", file=sys.stderr)
    return None


def run_bridge(endpoint: str, contract: PolicyContract, steps: int = 100) -> dict[str, Any]:
    """Steps of many robots that ask at once through one connection."""
    import zmq

    from deftly.serving.wire import unpack

    seen = some_signals(contract, 0)
    with zmq.Context.instance().socket(zmq.DEALER) as peer:
        peer.linger, peer.rcvtimeo = 0, 3000
        peer.connect(endpoint)
        sessions: list[str] = []
        waits: list[float] = []

        def ask_all(kind: str, seq: int, fields: list[dict[str, Any]]) -> list[dict[str, Any]]:
            begin = time.perf_counter()
            for each in fields:
                message = {"v": 1, "type": kind, "seq": seq, "time": 1.0, **each}
                peer.send_multipart([b"", pack(message)])
            replies = []
            for _ in fields:
                try:
                    replies.append(unpack(peer.recv_multipart()[-1]))
                    waits.append(time.perf_counter() - begin)
                except zmq.Again:
                    waits.append(float("inf"))
            return replies

        sessions = [reply["session"] for reply in ask_all("init", 1, [{}] * BRIDGED)]
        rows = [{"session": session, "signals": seen} for session in sessions]
        ask_all("reset", 2, rows)
        waits.clear()
        for step in range(steps):
            ask_all("infer", 3 + step, rows)
        ask_all("close", 3 + steps, [{"session": session} for session in sessions])
    return figures(waits)


@contextmanager
def sampled_memory(pid: int) -> Iterator[Callable[[], float]]:
    """The highest resident memory of a process during the block, MB."""
    done, seen = threading.Event(), [resident(pid)]

    def sample() -> None:
        while not done.wait(0.05):
            with suppress(OSError, StopIteration):
                seen.append(resident(pid))

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    try:
        yield lambda: max(seen)
    finally:
        done.set()
        sampler.join()


# ----------------------------------------------------------------------- attacks


def flood(rng: random.Random) -> Iterator[bytes]:
    """Messages of all kinds, whose replies are never read."""
    made = [message(kind, rng) for kind in ("ping", "status", "init", "infer", "reset")]
    made += [encode(rng.randbytes(100)), encode(bytes(60_000)), message("x", rng)]
    while True:
        yield b"".join(rng.choices(made, [8, 8, 8, 4, 4, 4, 1, 1], k=20))


def many_frames(rng: random.Random) -> Iterator[bytes]:
    """Messages of a million frames, and such as never end."""
    endless = rng.random() < 0.5
    body = encode(rng.randbytes(rng.choice([0, 0, 200])), MORE)
    while True:
        for _ in range(100):
            yield body * (1_000_000 // 100)
        if not endless:
            yield encode(b"")


def half_frames(rng: random.Random) -> Iterator[bytes]:
    """The largest frame that is allowed, all but its last byte."""
    yield (encode(bytes(65_536), rng.choice([0, MORE])))[:-1]
    while True:
        yield b""


def sessions(rng: random.Random) -> Iterator[bytes]:
    """New sessions, as fast as they can be had."""
    while True:
        yield message("init", rng) * 20


def reconnections(rng: random.Random) -> Iterator[bytes]:
    """Connections that come, ask and go."""
    yield message("status", rng)
    raise ConnectionError


def message(kind: str, rng: random.Random) -> bytes:
    """The bytes of a request."""
    fields = {"session": rng.randbytes(16).hex(), "signals": {"joint_pos": [0.0] * 8}}
    return encode(b"", MORE) + encode(pack({"v": 1, "type": kind, "seq": 1, "time": 1.0, **fields}))


ATTACKS = {
    "flood": flood,
    "many frames": many_frames,
    "half frames": half_frames,
    "sessions": sessions,
    "reconnections": reconnections,
}


class Attacker:
    """A connection that sends what an attack makes, and never reads."""

    def __init__(self, address: tuple[str, int], attack: str, seed: int):
        self.address = address
        self.attack = attack
        self.seed = seed
        self.opened = 0
        self.sent = 0
        self.open()

    def open(self) -> None:
        """Connect, and begin anew."""
        rng = random.Random(1000 * self.seed + self.opened)
        self.source = ATTACKS[self.attack](rng)
        self.left = GREETING + READY
        self.opened += 1
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.setblocking(False)
        self.socket.connect_ex(self.address)

    def push(self) -> None:
        """Send until the system takes no more. Raises OSError if the connection is gone."""
        for _ in range(4):
            if not self.left:
                self.left = next(self.source)
            if not self.left:
                return
            count = self.socket.send(self.left)
            self.sent += count
            self.left = self.left[count:]


def attack(name: str, host: str, port: int, peers: int, seconds: float) -> dict[str, Any]:
    """Attack a server; how much was sent, and how many connections were made."""
    poller, end = select.epoll(), time.monotonic() + seconds
    by_number: dict[int, Attacker] = {}

    def add(attacker: Attacker) -> None:
        by_number[attacker.socket.fileno()] = attacker
        poller.register(attacker.socket, select.EPOLLOUT)

    attackers = []
    for seed in range(peers):
        attackers.append(Attacker((host, port), name, seed))
        add(attackers[-1])
    while time.monotonic() < end:
        for number, _ in poller.poll(0.05, 100):
            attacker = by_number[number]
            try:
                attacker.push()
                if not attacker.left and name == "half frames":
                    poller.unregister(number)
            except BlockingIOError:
                continue
            except OSError:
                del by_number[number]
                attacker.socket.close()
                attacker.open()
                add(attacker)
    sent = sum(attacker.sent for attacker in attackers)
    return {"sent_mb": sent / 1e6, "connections": sum(a.opened for a in attackers)}


def show(result: dict[str, Any]) -> None:
    """The tables of a result."""
    from deftly.console import show as say
    from deftly.console import table

    lines = []
    for name, case in result["cases"].items():
        times = [f"{case[key]:.2f}" for key in ("p50_ms", "p99_ms", "max_ms")]
        new = case.get("new_robot_ms", np.nan)
        lines.append(
            [
                name,
                str(case["requests"]),
                *times,
                str(case["missed"]),
                "none" if new is None else f"{new:.0f}",
                f"{case.get('added_mb', np.nan):.1f}",
                str(case.get("attack", "")),
            ]
        )
    columns = [
        "case",
        "requests",
        "p50_ms",
        "p99_ms",
        "max_ms",
        "missed",
        "new_robot_ms",
        "added_mb",
        "attack",
    ]
    say(table(columns, lines))
    for name, holds in result["targets"].items():
        say(f"{'ok    ' if holds else 'MISSED'} {name}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["attack"]:
        where, _, number = sys.argv[3].removeprefix("tcp://").rpartition(":")
        print("attacking", flush=True)
        found = attack(sys.argv[2], where, int(number), int(sys.argv[4]), float(sys.argv[5]))
        print(json.dumps(found))
    else:
        sys.exit(main(sys.argv[1:]))
