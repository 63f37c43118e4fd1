"""How a policy server answers a good robot while peers attack it: `python -m deftly_bench.serving_attack`.

Server and attackers each run in a process of their own. An attack has `--peers` connections, none of which ever reads
more than a handshake; one that is closed is opened again. With `--keys` the attackers are robots on the server's list.
"""

from __future__ import annotations

import json
import os
import random
import select
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zmq
import zmq.auth

from deftly.config import parse, split_task
from deftly.contract import PolicyContract
from deftly.policy.protocol import OneRobot, PolicyError
from deftly.serving.client import Client
from deftly.serving.keys import load_key, new_keys
from deftly.serving.wire import pack, unpack
from deftly.serving.zmtp import COMMAND, MORE, encode, greeting
from deftly_bench.curve_client import METADATA, CurveClient
from deftly_bench.entry import start
from deftly_bench.serving import (
    ANY_PORT,
    MANY_MS,
    TASK,
    drive,
    figures,
    process,
    resident,
    run_robot,
    some_signals,
)

READY = encode(b"\x05READY" + METADATA, COMMAND)
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
    keys: bool = False
    """Serve with keys."""
    out: Path | None = None
    """Write the results to this JSON file."""


def main(argv: list[str]) -> int:
    """Run the benchmark. The exit status is 1 if a target is missed."""
    task, rest = split_task(argv)
    args = parse(AttackArgs, rest, prog="deftly_bench.serving_attack")
    what = ["--bundle", str(args.bundle)] if args.bundle else [task or TASK]
    command = [sys.executable, "-m", "deftly", "serve", *what, "--bind", ANY_PORT]
    with tempfile.TemporaryDirectory() as scratch:
        keys = None
        if args.keys:
            keys = make_keys(Path(scratch))
            command += ["--keys", str(keys / "server")]
        with process(command) as (server, line):
            endpoint = next(word.rstrip(",") for word in line.split() if word.startswith("tcp://"))
            result = measure(endpoint, server.pid, args, keys)
            alive = server.poll() is None
            server.send_signal(signal.SIGTERM)
            result["server_exit"] = server.wait(10) if alive else server.returncode
    result["targets"]["the server lives"] = alive and result["server_exit"] == 0
    show(result)
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if all(result["targets"].values()) else 1


def make_keys(scratch: Path) -> Path:
    """Keys of a server and two robots on its list, the good one (`robot`) and the one that attacks (`attacker`)."""
    new_keys(scratch / "keys")
    attacker = scratch / "keys/attacker"
    shutil.copytree(scratch / "keys/robot", attacker)
    zmq.auth.create_certificates(attacker, "client")
    (attacker / "client.key_secret").chmod(0o600)
    shutil.move(attacker / "client.key", scratch / "keys/server/clients/attacker.key")
    return scratch / "keys"


def measure(endpoint: str, pid: int, args: AttackArgs, keys: Path | None) -> dict[str, Any]:
    """All attacks against a running server, and 32 robots behind one connection."""
    robot = keys and keys / "robot"
    contract = Client(endpoint, keys=robot).contract
    run_robot(endpoint, contract, 0.0, count=200, keys=robot)  # warm
    targets: dict[str, bool] = {}
    cases: dict[str, Any] = {}
    cases["no attack"] = figures(run_robot(endpoint, contract, PERIOD, count=100, keys=robot))
    base = resident(pid)
    for name in [args.only] if args.only else ATTACKS:
        case = cases[name] = run_attack(name, endpoint, pid, contract, args, keys)
        case["added_mb"] = case.pop("peak_mb") - base
        what = f"{name}, {args.peers} peers, {args.seconds:g} s"
        targets[f"{what}: every wait < {MANY_MS:g} ms"] = (
            case["max_ms"] < MANY_MS and not case["missed"]
        )
        targets[f"{what}: a new robot starts"] = case["new_robot_ms"] is not None
        targets[f"{what}: adds < {MAX_ADDED_MB:g} MB"] = case["added_mb"] < MAX_ADDED_MB
    bridge = cases[f"{BRIDGED} robots, one connection"] = run_bridge(endpoint, contract, robot)
    targets[f"{BRIDGED} robots through one connection: no reply lost"] = not bridge["missed"]
    return {
        "schema": "deftly.bench.serving_attack/1",
        "settings": {"peers": args.peers, "seconds": args.seconds, "keys": args.keys},
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "robot": contract.robot.name,
        "memory_before_mb": base,
        "cases": cases,
        "targets": targets,
    }


def run_attack(
    name: str,
    endpoint: str,
    pid: int,
    contract: PolicyContract,
    args: AttackArgs,
    keys: Path | None,
) -> dict[str, Any]:
    """Waits of a robot that was there before the attack, the first decision of one that comes then, peak memory."""
    script = [sys.executable, "-m", "deftly_bench.serving_attack", "attack", name, endpoint]
    script += [str(args.peers), str(args.seconds), *([str(keys / "attacker")] if keys else [])]
    own_keys = keys and keys / "robot"
    case: dict[str, Any] = {}
    robot = begin_robot(endpoint, contract, own_keys)
    with (
        sampled_memory(pid) as peak,
        process(script) as (attack, _),
    ):
        newcomer = threading.Timer(
            args.seconds / 2,
            lambda: case.update(new_robot_ms=start_robot(endpoint, contract, own_keys)),
        )
        newcomer.start()
        waits = drive(robot, contract, PERIOD, until=lambda: attack.poll() is not None)
        newcomer.join()
        assert attack.stdout
        case["attack"] = json.loads(attack.stdout.read() or "{}")
    return {**figures(waits), **case, "peak_mb": peak()}


def begin_robot(endpoint: str, contract: PolicyContract, keys: Path | None) -> OneRobot:
    """A robot in its first episode; it has time, since the attack before may still fill the queues."""
    end = time.monotonic() + 30.0
    while True:
        try:
            robot = OneRobot(Client(endpoint, contract, timeout=1.0, keys=keys))
            robot.infer(some_signals(contract, 0))
            return robot
        except PolicyError:
            if time.monotonic() > end:
                raise


def start_robot(endpoint: str, contract: PolicyContract, keys: Path | None) -> float | None:
    """Time from nothing to the first decision of a new robot, ms; None if there was none."""
    begin = time.perf_counter()
    try:
        client = Client(endpoint, contract, timeout=1.0, keys=keys)
        seen = {name: value[None] for name, value in some_signals(contract, 1).items()}
        client.infer(seen)
        client.close()
        return 1000 * (time.perf_counter() - begin)
    except PolicyError as error:
        print(f"a new robot: {error}", file=sys.stderr)
    return None


def run_bridge(
    endpoint: str, contract: PolicyContract, keys: Path | None, steps: int = 100
) -> dict[str, Any]:
    """Steps of many robots that ask at once through one connection."""
    seen = some_signals(contract, 0)
    with zmq.Context.instance().socket(zmq.DEALER) as peer:
        peer.linger, peer.rcvtimeo = 0, 3000
        if keys:
            peer.curve_serverkey, _ = load_key(keys / "server.key")
            peer.curve_publickey, peer.curve_secretkey = load_key(keys / "client.key_secret")
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

Frames = list[tuple[int, bytes]]
"""Flags and body of each."""
Burst = bytes | tuple[Frames, int]
"""What goes out as it is, or frames and how often they are sent."""


def flood(rng: random.Random) -> Iterator[Burst]:
    """Messages of all kinds, whose replies are never read."""
    made = [message(kind, rng) for kind in ("ping", "status", "init", "infer", "reset")]
    made += [[(0, rng.randbytes(100))], [(0, bytes(60_000))], message("x", rng)]
    while True:
        chosen = rng.choices(made, [8, 8, 8, 4, 4, 4, 1, 1], k=20)
        yield [frame for frames in chosen for frame in frames], 1


def many_frames(rng: random.Random) -> Iterator[Burst]:
    """Messages of a million frames, and such as never end."""
    endless = rng.random() < 0.5
    frames = [(MORE, rng.randbytes(rng.choice([0, 0, 200])))]
    while True:
        for _ in range(100):
            yield frames, 1_000_000 // 100
        if not endless:
            yield [(0, b"")], 1


def half_frames(rng: random.Random) -> Iterator[Burst]:
    """The largest frame that is allowed, all but its last byte."""
    yield (encode(bytes(65_536), rng.choice([0, MORE])))[:-1]
    while True:
        yield b""


def sessions(rng: random.Random) -> Iterator[Burst]:
    """New sessions, as fast as they can be had."""
    while True:
        yield message("init", rng), 20


def reconnections(rng: random.Random) -> Iterator[Burst]:
    """Connections that come, ask and go."""
    yield message("status", rng), 1
    raise ConnectionError


def handshakes(rng: random.Random) -> Iterator[Burst]:
    """Connections that go after their first command, which with keys costs the server the most."""
    del rng
    raise ConnectionError
    yield b""


def message(kind: str, rng: random.Random) -> Frames:
    """The frames of a request."""
    fields = {"session": rng.randbytes(16).hex(), "signals": {"joint_pos": [0.0] * 8}}
    return [(MORE, b""), (0, pack({"v": 1, "type": kind, "seq": 1, "time": 1.0, **fields}))]


ATTACKS = {
    "flood": flood,
    "many frames": many_frames,
    "half frames": half_frames,
    "sessions": sessions,
    "reconnections": reconnections,
    "handshakes": handshakes,
}
SEALED_AT_ONCE = 200
"""Frames that an attacker with keys makes at one time: each costs some 10 us."""


class Attacker:
    """A connection that sends what an attack makes, and reads no more than a handshake."""

    def __init__(
        self, address: tuple[str, int], attack: str, seed: int, keys: tuple[bytes, bytes] | None
    ):
        self.address = address
        self.attack = attack
        self.seed = seed
        self.keys = keys
        self.opened = 0
        self.sent = 0
        self.open()

    def open(self) -> None:
        """Connect, and begin anew."""
        rng = random.Random(1000 * self.seed + self.opened)
        self.source = ATTACKS[self.attack](rng)
        self.curve = CurveClient(*self.keys) if self.keys else None
        self.left = greeting(b"NULL") + READY
        self.inbox = b""
        self.is_met = self.curve is None or self.attack == "handshakes"
        """Whether there is nothing more to read."""
        if self.curve:
            self.left = greeting(b"CURVE") + encode(self.curve.hello(), COMMAND)
        self.opened += 1
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.setblocking(False)
        self.socket.connect_ex(self.address)

    @property
    def events(self) -> int:
        """What it waits for."""
        return select.EPOLLOUT if self.left or self.is_met else select.EPOLLIN

    def step(self) -> None:
        """Go on, until the system takes no more. Raises OSError if the connection is gone."""
        if self.events == select.EPOLLIN:
            self.meet()
        for _ in range(4):
            if not self.left and self.is_met:
                self.left = self.encode(next(self.source))
            if not self.left:
                return
            count = self.socket.send(self.left)
            self.sent += count
            self.left = self.left[count:]

    def meet(self) -> None:
        """Answer WELCOME, the command of 168 bytes after the greeting."""
        data = self.socket.recv(64 + 170 - len(self.inbox))
        if not data:
            raise ConnectionError
        self.inbox += data
        if len(self.inbox) == 64 + 170:
            assert self.curve
            self.left = encode(self.curve.initiate(self.inbox[66:]), COMMAND)
            self.is_met = True

    def encode(self, burst: Burst) -> bytes:
        """The bytes of what an attack makes."""
        if isinstance(burst, bytes):
            return burst
        frames, count = burst
        if self.curve is None:
            return b"".join(encode(body, flags) for flags, body in frames) * count
        seal = self.curve.frame
        count = min(count, SEALED_AT_ONCE)
        return b"".join(seal(body, flags) for _ in range(count) for flags, body in frames)


def attack(
    name: str,
    address: tuple[str, int],
    peers: int,
    seconds: float,
    keys: tuple[bytes, bytes] | None,
) -> dict[str, Any]:
    """Attack a server; how much was sent, and how many connections were made."""
    poller, end = select.epoll(), time.monotonic() + seconds
    by_number: dict[int, Attacker] = {}

    def add(attacker: Attacker) -> None:
        by_number[attacker.socket.fileno()] = attacker
        poller.register(attacker.socket, attacker.events)

    attackers = []
    for seed in range(peers):
        attackers.append(Attacker(address, name, seed, keys))
        add(attackers[-1])
    while time.monotonic() < end:
        for number, _ in poller.poll(0.05, 100):
            attacker = by_number[number]
            try:
                before = attacker.events
                attacker.step()
                if attacker.events != before:
                    poller.modify(number, attacker.events)
                elif not attacker.left and attacker.is_met:  # it has nothing more to send
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


def attack_by_words(name: str, endpoint: str, peers: str, seconds: str, keys: str = "") -> None:
    """Attack as the arguments of this process say."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    pair = CurveClient.keys_of(Path(keys)) if keys else None
    print("attacking", flush=True)
    found = attack(name, (host, int(port)), int(peers), float(seconds), pair)
    print(json.dumps(found))


if __name__ == "__main__":
    if sys.argv[1:2] == ["attack"]:
        attack_by_words(*sys.argv[2:])
    else:
        start(main)
