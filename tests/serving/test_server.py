"""The policy server: every message answered, no robot spoils another's answer, keys, limits, a clean end."""

import dataclasses
import fcntl
import os
import secrets
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

import msgpack
import numpy as np
import pytest
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from raw_peer import ask, call, message, open_session, raw, wait_for
from toy_robot import CONTRACT, LOOPBACK, network, running, signals

from deftly.errors import DeftlyError
from deftly.policy.protocol import ContractPolicy, Decision, OneRobot, PolicyError
from deftly.serving import listener
from deftly.serving import server as server_module
from deftly.serving.client import Client
from deftly.serving.server import Server
from deftly.serving.wire import MAX_FRAME, pack, unpack

SCRIPT = Path(__file__).parents[1] / "assets/toy_robot.py"


@pytest.fixture(scope="module")
def server():
    with running() as server:
        yield server


@pytest.fixture
def peer(server):
    with raw(server.endpoint) as peer:
        yield peer


# ------------------------------------------------------------------ envelopes and garbage


def test_req_dealer_and_bare_dealer_are_answered_alike(server, peer):
    frame = pack(message())
    with raw(server.endpoint, zmq.REQ) as req:
        req.send(frame)
        from_req = req.recv_multipart()
    peer.send_multipart([b"", frame])
    empty, from_dealer = peer.recv_multipart()
    peer.send(frame)
    (from_bare,) = peer.recv_multipart()
    assert empty == b""
    assert from_req == [from_dealer] == [from_bare]
    assert unpack(from_bare) == {"v": 1, "type": "ping", "seq": 1, "time": 1.5, "ok": True}


@pytest.mark.parametrize(
    ("frames", "back"),
    [([b"", b""], 2), ([b""], 1), ([b"", b"x", b"y"], 2), ([b"x", b"y"], 1), ([b"a"] * 500, 1)],
)
def test_wrong_frames_are_answered_in_their_envelope(peer, frames, back):
    peer.send_multipart(frames)
    reply = peer.recv_multipart()
    assert len(reply) == back
    assert unpack(reply[-1])["code"] in ("bad-frames", "bad-message")
    assert call(peer, "ping")["ok"]


@settings(
    max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(st.binary(max_size=300))
def test_random_bytes_get_an_error(peer, frame):
    reply = ask(peer, frame)
    assert reply["ok"] is False
    assert reply["error"].isprintable()


FIELDS = ("v", "type", "seq", "time", "session", "contract", "spec", "signals", "applied")
WRONG = [
    None,
    True,
    -1,
    2**64 - 1,
    1e300,
    float("nan"),
    "x\n\x1b[2J",
    b"\xff",
    [],
    [[]],
    {},
    {"a": {}},
    "y" * 40_000,
]


@pytest.mark.parametrize("kind", ["ping", "init", "reset", "infer", "status", "close"])
@pytest.mark.parametrize("field", FIELDS)
def test_wrong_types_in_every_field_are_answered_and_change_nothing(peer, kind, field):
    mine = open_session(peer)
    right = {"session": mine, "signals": signals(0), "applied": np.zeros(3)}
    assert call(peer, "reset", 1, **right)["ok"]
    good = call(peer, "infer", 2, **right)
    for seq, value in enumerate(WRONG, 3):
        reply = ask(peer, b"", pack({**message(kind, seq), **right, field: value}))
        if not reply["ok"]:
            assert reply["error"].isprintable()
            assert reply["code"] != "internal"
            assert len(reply["error"]) <= 300
    if kind in ("ping", "status", "init"):
        assert call(peer, "infer", 2, **right) == good


def test_codes(peer):
    session = open_session(peer)
    for changed, code in {
        ("v", 3): "bad-version",
        ("type", "eval"): "unknown-type",
        ("seq", -1): "bad-field",
        ("time", "now"): "bad-field",
    }.items():
        assert ask(peer, pack({**message(), changed[0]: changed[1]}))["code"] == code
    assert ask(peer, b"junk")["code"] == "bad-message"
    assert call(peer, "infer", signals=signals(0))["code"] == "no-session"
    assert call(peer, "infer", session=secrets.token_hex(16))["code"] == "no-session"
    assert call(peer, "infer", session=session, signals=signals(0))["code"] == "needs-reset"
    bad = call(peer, "reset", 2, session=session, signals={**signals(0), "cube": [1.0]})
    assert (bad["code"], bad["error"]) == ("bad-signals", "'cube' is no array of 3 numbers")


def test_a_frame_that_is_too_long_costs_the_sender_its_connection(server, peer):
    with raw(server.endpoint) as rude:
        assert call(rude, "ping")["ok"]
        rude.rcvtimeo = 300
        rude.send(bytes(MAX_FRAME + 1))
        with pytest.raises(zmq.Again):
            rude.recv()
        rude.rcvtimeo = 5000
        assert call(rude, "ping")["ok"]  # connected anew
    assert call(peer, "ping")["ok"]


def test_half_open_peers_and_half_a_greeting_disturb_nobody(server, peer):
    port = int(server.endpoint.rpartition(":")[2])
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL"
    rest = bytes(16) + b"\x00" + bytes(31)
    ready = b"\x04\x19\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"
    endless = b"\x03" + (1 << 62).to_bytes(8, "big")  # a frame of 2^62 bytes, with more to follow
    parts = [
        b"",
        greeting[:5],
        greeting + rest,
        greeting + rest + ready,
        greeting + rest + ready + endless,
        os.urandom(99),
    ]
    sockets = []
    try:
        for part in parts:
            sockets.append(socket.create_connection(("127.0.0.1", port), 5))
            sockets[-1].sendall(part)
        for seq in range(20):
            start = time.monotonic()
            assert call(peer, "ping", seq)["ok"]
            assert time.monotonic() - start < 1
    finally:
        for s in sockets:
            s.close()


# ------------------------------------------------------------------ sessions


def test_two_robots_have_memories_of_their_own_bit_for_bit(server):
    robots = []
    for _ in range(2):
        client = OneRobot(Client(server.endpoint, CONTRACT, timeout=5))
        robots.append((client, OneRobot(ContractPolicy(CONTRACT, network))))
    for pair in robots:
        for policy in pair:
            policy.reset()
    for step in range(20):
        for i, (remote, local) in enumerate(robots):
            now, applied = (
                signals(10 * step + i),
                np.full(3, 0.01 * step) if step % 3 == i else None,
            )
            there, here = remote.infer(now, applied), local.infer(now, applied)
            assert np.array_equal(there.action, here.action)
            assert np.array_equal(there.targets, here.targets)
        if step == 9:
            for policy in robots[1]:
                policy.reset()
    for remote, _ in robots:
        remote.close()


def test_the_session_is_the_token_not_the_connection(server):
    local = OneRobot(ContractPolicy(CONTRACT, network))
    local.reset()
    with raw(server.endpoint) as peer:
        session = open_session(peer)
        call(peer, "reset", 1, session=session, signals=signals(0))
    for seq in range(2, 5):
        with raw(server.endpoint, zmq.REQ) as peer:
            peer.send(pack(message("infer", seq, session=session, signals=signals(seq))))
            reply = unpack(peer.recv())
        assert (
            np.frombuffer(reply["targets"]["data"], "<f4").tolist()
            == local.infer(signals(seq)).targets.tolist()
        )


def test_a_repeated_seq_steps_the_memory_once_and_an_older_one_is_refused(peer):
    session, local = open_session(peer), OneRobot(ContractPolicy(CONTRACT, network))
    call(peer, "reset", 5, session=session, signals=signals(0))
    local.reset()
    first = call(peer, "infer", 6, session=session, signals=signals(1))
    for _ in range(3):
        assert call(peer, "infer", 6, session=session, signals=signals(2)) == first
    local.infer(signals(1))
    assert call(peer, "infer", 4, session=session, signals=signals(1))["code"] == "old-seq"
    then = call(peer, "infer", 7, session=session, signals=signals(3))
    assert (
        np.frombuffer(then["targets"]["data"], "<f4").tolist()
        == local.infer(signals(3)).targets.tolist()
    )


def test_closed_sessions_are_gone(peer):
    session = open_session(peer)
    assert call(peer, "close", 1, session=session)["ok"]
    assert call(peer, "close", 2, session=session)["code"] == "no-session"


@pytest.mark.realtime
def test_idle_sessions_are_dropped():
    with running(idle_s=0.2) as server, raw(server.endpoint) as peer:
        session, busy = open_session(peer), open_session(peer)
        assert call(peer, "reset", 1, session=session, signals=signals(0))["ok"]
        for seq in range(1, 6):
            time.sleep(0.1)
            assert call(peer, "reset", seq, session=busy, signals=signals(0))["ok"]
        assert call(peer, "infer", 2, session=session, signals=signals(0))["code"] == "no-session"
        assert call(peer, "status")["sessions"] == 1


def infer(peer, session, seq):
    """The answer to a step, after a reset."""
    call(peer, "reset", seq, session=session, signals=signals(0))
    return call(peer, "infer", seq + 1, session=session, signals=signals(0))


def test_the_limit_refuses_a_robot_while_all_others_are_driven():
    with running(max_sessions=2) as server, raw(server.endpoint) as peer:
        one, two, three = (open_session(peer) for _ in range(3))
        assert infer(peer, one, 1)["ok"]
        assert infer(peer, two, 1)["ok"]
        assert call(peer, "reset", 1, session=three, signals=signals(0))["code"] == (
            "too-many-sessions"
        )
        assert call(peer, "init")["code"] == "too-many-sessions"
        assert call(peer, "infer", 3, session=one, signals=signals(0))["ok"]
        assert call(peer, "status")["sessions"] == 2


@pytest.mark.realtime
@pytest.mark.parametrize("kept_by", ["reset", "repeated infer", "old seq", "bad signals"])
def test_sessions_that_are_not_driven_lock_no_robot_out(monkeypatch, kept_by):
    monkeypatch.setattr(server_module, "PAUSE_S", 0.2)
    with running(max_sessions=4) as server, raw(server.endpoint) as peer:
        robot = open_session(peer)
        assert infer(peer, robot, 1)["ok"]
        taken = [open_session(peer) for _ in range(3)]
        for session in taken:
            call(peer, "reset", 5, session=session, signals=signals(0))
            if kept_by != "reset":
                call(peer, "infer", 6, session=session, signals=signals(0))
        for seq in range(3, 9):  # one robot goes on, the others only keep their sessions alive
            time.sleep(0.05)
            assert call(peer, "infer", seq, session=robot, signals=signals(0))["ok"]
            for session in taken:
                if kept_by == "reset":
                    call(peer, "reset", 6 + seq, session=session, signals=signals(0))
                elif kept_by == "repeated infer":
                    call(peer, "infer", 6, session=session, signals=signals(0))
                elif kept_by == "old seq":
                    call(peer, "infer", 1, session=session, signals=signals(0))
                else:
                    call(peer, "infer", 6 + seq, session=session, signals={})
        new = OneRobot(Client(server.endpoint, CONTRACT, timeout=2))
        new.infer(signals(0))
        new.close()
        assert call(peer, "infer", 20, session=robot, signals=signals(0))["ok"]


def test_sessions_without_an_episode_are_bounded_and_take_no_place(monkeypatch):
    monkeypatch.setattr(server_module, "MAX_WAITING", 3)
    with running(max_sessions=1) as server, raw(server.endpoint) as peer:
        sessions = [open_session(peer) for _ in range(5)]
        assert call(peer, "status")["sessions"] == 0
        assert infer(peer, sessions[0], 1)["code"] == "no-session"
        assert infer(peer, sessions[-1], 1)["ok"]


def test_another_contract_is_refused_by_name(server, peer):
    other = dataclasses.replace(CONTRACT, rate=10)
    assert call(peer, "init", contract=CONTRACT.hash, spec=CONTRACT.to_json())["ok"]
    assert call(peer, "init", contract=other.hash)["code"] == "contract-mismatch"
    reply = call(peer, "init", contract=CONTRACT.hash, spec=other.to_json())
    assert (
        reply["error"] == "the robot was made under another contract: rate is 10.0 there, 20.0 here"
    )
    for spec in ("{}", "[" * 5000, "z" * 20_000):
        assert call(peer, "init", spec=spec)["code"] == "contract-mismatch"
    spaced = CONTRACT.to_json().replace(",", ", ")
    assert call(peer, "init", spec=spaced)["ok"]
    with pytest.raises(PolicyError, match=r"rate is 10\.0 there"):
        OneRobot(Client(server.endpoint, other))


# ------------------------------------------------------------------ batches


class Gate:
    """A network that waits until it is let go, counts its calls, and may fail."""

    def __init__(self):
        self.open, self.sizes, self.fails = threading.Event(), [], lambda obs: False
        self.entered = threading.Event()
        self.open.set()

    def __call__(self, obs):
        self.entered.set()
        self.open.wait(30)
        self.sizes.append(len(obs))
        if self.fails(obs):
            raise ZeroDivisionError("secret detail")
        return network(obs)


def arrived(server) -> int:
    """Bytes that the system holds for the server, which is busy: those of messages and what frames them."""
    counts = [bytearray(4) for _ in server._link._peers]
    for peer, count in zip(server._link._peers, counts):
        fcntl.ioctl(peer.socket, termios.FIONREAD, count)
    return sum(int.from_bytes(count, sys.byteorder) for count in counts)


def coincide(server, gate, peers, requests):
    """Send each peer's request while the server is busy, so that they are answered together; the answers."""
    gate.open.clear()
    with raw(server.endpoint) as other:
        session = open_session(other)
        assert call(other, "reset", 1, session=session, signals=signals(0))["ok"]
        gate.sizes.clear()
        gate.entered.clear()
        other.send(pack(message("infer", 2, session=session, signals=signals(0))))
        assert gate.entered.wait(30)
        for peer, frames in zip(peers, requests):
            for frame in frames:
                peer.send(frame)
        size = sum(len(frame) for frames in requests for frame in frames)
        wait_for(lambda: arrived(server) > size, seconds=30)
        gate.open.set()
        other.recv()
    return [[unpack(peer.recv()) for _ in frames] for peer, frames in zip(peers, requests)]


@pytest.fixture
def gated(monkeypatch):
    # What arrives together is read in one round, however slow the machine.
    monkeypatch.setattr(listener, "OTHERS", listener.OTHERS._replace(seconds=60.0))
    monkeypatch.setattr(listener, "MIN_PAUSE_S", 60.0)
    gate = Gate()
    with running(ContractPolicy(CONTRACT, gate)) as server:
        peers = [zmq.Context.instance().socket(zmq.DEALER) for _ in range(5)]
        sessions = []
        for peer in peers:
            peer.linger, peer.rcvtimeo, peer.sndtimeo = 0, 30000, 30000
            peer.connect(server.endpoint)
            sessions.append(ask(peer, pack(message("init")))["session"])
            ask(
                peer,
                pack(message("reset", 1, session=sessions[-1], signals=signals(len(sessions)))),
            )
        yield server, gate, peers, sessions
        gate.open.set()
        for peer in peers:
            peer.close()


def targets_of(i: int, *steps: int):
    local = OneRobot(ContractPolicy(CONTRACT, network))
    local.reset()
    return [local.infer(signals(step)).targets.tolist() for step in steps][-1]


def targets(reply):
    return np.frombuffer(reply["targets"]["data"], "<f4").tolist()


def test_requests_that_coincide_are_one_call_and_equal_single_ones(gated):
    server, gate, peers, sessions = gated
    requests = [
        [pack(message("infer", 2, session=s, signals=signals(i)))] for i, s in enumerate(sessions)
    ]
    replies = coincide(server, gate, peers, requests)
    assert gate.sizes == [1, 5]
    assert [targets(r) for (r,) in replies] == [targets_of(i, i) for i in range(5)]
    assert [5, 1] in server.counts.report()["batches"]


def test_one_robots_bad_data_does_not_spoil_the_others(gated):
    server, gate, peers, sessions = gated
    wrong = {**signals(0), "cube": [1.0, float("nan"), 0.0]}
    huge = {**signals(0), "cube": [3e38, 3e38, 3e38]}
    requests = [
        [pack(message("infer", 2, session=s, signals=signals(i)))] for i, s in enumerate(sessions)
    ]
    requests[1] = [pack(message("infer", 2, session=sessions[1], signals=wrong))]
    requests[2] = [pack(message("infer", 2, session=sessions[2], signals=huge))]
    requests[3] = [b"junk"]
    replies = coincide(server, gate, peers, requests)
    assert replies[1][0]["code"] == "bad-signals"
    assert replies[3][0]["code"] == "bad-message"
    for i in (0, 4):
        assert targets(replies[i][0]) == targets_of(i, i)


def test_a_batch_that_fails_is_answered_one_by_one(gated, caplog):
    server, gate, peers, sessions = gated
    bad = signals(0)["cube"]
    gate.fails = lambda obs: (obs[:, 9:12] == bad).all(1).any() and len(gate.sizes) > 1
    requests = [
        [pack(message("infer", 2, session=s, signals=signals(i)))] for i, s in enumerate(sessions)
    ]
    replies = coincide(server, gate, peers, requests)
    assert gate.sizes == [1, 5, 1, 1, 1, 1, 1]
    assert replies[0][0]["code"] == "internal"
    assert "secret" not in replies[0][0]["error"]
    assert [targets(r) for (r,) in replies[1:]] == [targets_of(i, i) for i in range(1, 5)]


def test_the_log_of_a_fault_does_nothing_to_the_terminal(caplog):
    def fails(obs):
        raise RuntimeError("a\x1b[2Jb\x07\u202e")

    with running(ContractPolicy(CONTRACT, fails)) as server, raw(server.endpoint) as peer:
        session = open_session(peer)
        assert call(peer, "reset", 1, session=session, signals=signals(0))["ok"]
        reply = call(peer, "infer", 2, session=session, signals=signals(0))
    assert reply["code"] == "internal"
    assert "RuntimeError: a?[2Jb??" in caplog.text
    assert all(c.isprintable() or c == "\n" for c in caplog.text)


def test_steps_of_one_robot_that_come_together_are_taken_in_order(gated):
    server, gate, peers, sessions = gated
    frames = [
        pack(message("infer", seq, session=sessions[0], signals=signals(seq)))
        for seq in (2, 2, 3, 4)
    ]
    (replies,) = coincide(server, gate, peers[:1], [frames])
    expected = [targets_of(0, *range(2, last + 1)) for last in (2, 2, 3, 4)]
    assert [targets(r) for r in replies] == expected


def test_a_decision_that_is_not_finite_is_refused_and_not_remembered():
    poisoned = lambda obs: np.where(obs[:, 9:10] > 100, np.nan, network(obs))  # noqa: E731
    with running(ContractPolicy(CONTRACT, poisoned)) as server, raw(server.endpoint) as peer:
        session, local = open_session(peer), OneRobot(ContractPolicy(CONTRACT, network))
        call(peer, "reset", 1, session=session, signals=signals(0))
        local.reset()
        bad = call(
            peer, "infer", 2, session=session, signals={**signals(0), "cube": [101.0, 0.0, 0.0]}
        )
        assert bad["code"] == "no-answer"
        good = call(peer, "infer", 3, session=session, signals=signals(1))
        assert targets(good) == local.infer(signals(1)).targets.tolist()


def test_targets_beyond_the_limits_are_no_answer():
    """The contract's own are clipped; a policy of somebody's program may decide otherwise."""

    class Wild(ContractPolicy):
        def infer(self, *args, **words):
            action, targets = super().infer(*args, **words)
            return Decision(action, targets + np.array([0.0, 10.0, 0.0]))

    with running(Wild(CONTRACT, network)) as serving, raw(serving.endpoint) as peer:
        session = open_session(peer)
        call(peer, "reset", 1, session=session, signals=signals(0))
        bad = call(peer, "infer", 2, session=session, signals=signals(0))
        assert bad["code"] == "no-answer"
        assert bad["error"].startswith("the policy's targets are beyond the limits: b would be")


def test_a_network_of_another_size_is_refused_before_it_serves():
    with pytest.raises(DeftlyError, match=r"the contract wants \(2, 3\)"):
        ContractPolicy(CONTRACT, lambda obs: obs).require_network()


# ------------------------------------------------------------------ status, load


def test_status_counts(peer):
    before = call(peer, "status")
    session = open_session(peer)
    call(peer, "reset", 1, session=session, signals=signals(0))
    for seq in range(2, 12):
        call(peer, "infer", seq, session=session, signals=signals(0))
    ask(peer, b"junk")
    after = call(peer, "status")
    assert after["types"]["infer"] - before["types"].get("infer", 0) == 10
    assert after["errors"]["bad-message"] - before["errors"].get("bad-message", 0) == 1
    assert after["answered"] - before["answered"] == 14
    latency = after["latency_ms"]
    assert sum(latency["count"]) - sum(before["latency_ms"]["count"]) == 10
    assert len(latency["count"]) == len(latency["le"]) + 1
    assert 0 < latency["p50"] <= latency["p99"] <= latency["max"]
    assert session not in str(after)


def test_vanished_robots_leave_nothing_and_the_good_one_goes_on(server):
    good = OneRobot(Client(server.endpoint, CONTRACT, timeout=2))
    good.reset()
    for i in range(50):
        with raw(server.endpoint) as peer:
            peer.send(pack(message("init")) if i % 2 else os.urandom(50))
            if i % 10 == 0:
                good.infer(signals(i))
    good.infer(signals(0))
    assert good.policy.status()["sessions"] <= 64
    good.close()


# ------------------------------------------------------------------ the end


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(number):
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), LOOPBACK], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout
        endpoint = process.stdout.readline().strip()
        with raw(endpoint) as peer:
            assert call(peer, "ping")["ok"]
        process.send_signal(number)
        out, _ = process.communicate(timeout=10)
    finally:
        process.kill()
        process.wait()
    assert out == "answered 1\n"
    assert process.returncode == 0
    server = Server(ContractPolicy(CONTRACT, network), endpoint)  # the port is free again
    server.close()


def test_msgpack_extensions_are_refused(peer):
    frame = msgpack.packb({**message(), "x": msgpack.ExtType(1, b"abc")})
    assert ask(peer, frame)["code"] == "bad-message"


def test_a_robot_that_is_guarded_better_than_the_policys_is_served():
    joints = tuple(dataclasses.replace(joint, frozen=0.1) for joint in CONTRACT.robot.joints)
    robot = dataclasses.replace(CONTRACT.robot, joints=joints)
    better = dataclasses.replace(CONTRACT, robot=robot)
    with running() as serving:
        Client(serving.endpoint, better).close()
    with (
        running(ContractPolicy(better, network)) as serving,
        pytest.raises(DeftlyError, match=r"the robot was made under another contract: .*frozen"),
    ):
        Client(serving.endpoint, CONTRACT)
