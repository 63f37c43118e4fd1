"""The listener of a policy server: every form of ZMTP, and peers that mean harm."""

import platform
import socket
import struct
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import zmq
from openpi_arm import ARM
from raw_peer import call, message, open_session, raw, wait_for
from toy_robot import CONTRACT, network, running, signals

from deftly.contract import Signal
from deftly.errors import DeftlyError
from deftly.policy.protocol import ContractPolicy, OneRobot
from deftly.serving import listener
from deftly.serving.client import Client
from deftly.serving.endpoint import Endpoint
from deftly.serving.server import Server
from deftly.serving.wire import MAX_FRAME, pack, unpack
from deftly.serving.zmtp import (
    COMMAND,
    LONG,
    MORE,
    ROUTER_METADATA,
    Engine,
    Null,
    ProtocolError,
    encode,
    greeting,
)

GREETING = greeting(b"NULL")
READY = encode(b"\x05READY\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER", COMMAND)
PING = encode(b"", MORE) + encode(pack(message()))


@pytest.fixture
def server():
    with running() as server:
        yield server


@contextmanager
def connected(server, *parts: bytes, buffer: int = 0):
    """A plain socket to the server, after some bytes."""
    host, _, port = server.endpoint.removeprefix("tcp://").rpartition(":")
    with socket.socket() as peer:
        if buffer:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
        peer.settimeout(5)
        peer.connect((host, int(port)))
        peer.sendall(b"".join(parts))
        yield peer


def read(peer, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = peer.recv(size - len(data))
        assert piece, "closed"
        data += piece
    return data


def read_frame(peer) -> tuple[int, bytes]:
    flags = read(peer, 1)[0]
    size = int.from_bytes(read(peer, 8 if flags & LONG else 1), "big")
    return flags, read(peer, size)


def is_closed(peer) -> bool:
    """Whether the server closes a connection, within the socket's time."""
    try:
        while peer.recv(65_536):
            pass
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    return True


# ------------------------------------------------------------------ the protocol


def test_greeting_handshake_and_reply_byte_for_byte(server):
    with connected(server) as peer:
        assert read(peer, 64) == GREETING
        for byte in GREETING + READY + PING:  # however it is cut
            peer.sendall(bytes((byte,)))
        flags, body = read_frame(peer)
        assert (flags, body) == (COMMAND, b"\x05READY" + ROUTER_METADATA)
        assert read_frame(peer) == (MORE, b"")
        flags, body = read_frame(peer)
        assert flags == 0
        assert unpack(body) == {**message(), "ok": True}


@pytest.mark.realtime
def test_a_heartbeat_is_answered(server):
    with connected(server, GREETING, READY, encode(b"\x04PING\x00\x0aabc", COMMAND)) as peer:
        read(peer, 64)
        read_frame(peer)
        assert read_frame(peer) == (COMMAND, b"\x04PONGabc")
    with zmq.Context.instance().socket(zmq.DEALER) as peer:
        peer.linger, peer.rcvtimeo, peer.sndtimeo = 0, 5000, 5000
        peer.heartbeat_ivl, peer.heartbeat_timeout = 20, 200
        events = peer.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        peer.connect(server.endpoint)
        assert call(peer, "ping")["ok"]
        time.sleep(0.5)
        assert call(peer, "ping", 2)["ok"]
        assert not events.poll(0)
        peer.disable_monitor()


@pytest.mark.parametrize(
    "wrong",
    {
        "http": b"GET / HTTP/1.1\r\n\r\n",
        "zmtp 1": b"\x01\x00",
        "zmtp 2": GREETING[:10] + b"\x01\x05" + bytes(52),
        "keys": GREETING[:12] + b"CURVE".ljust(20, b"\0") + bytes(32),
        "message first": GREETING + PING,
        "another command": GREETING + encode(b"\x05HELLO", COMMAND),
        "a publisher": GREETING
        + encode(b"\x05READY\x0bSocket-Type" + struct.pack(">I", 3) + b"PUB", COMMAND),
        "no type": GREETING + encode(b"\x05READY", COMMAND),
        "endless property": GREETING + encode(b"\x05READY\x01x\xff\xff\xff\xff", COMMAND),
        "cut property": GREETING + encode(b"\x05READY\xff", COMMAND),
        "unknown flags": GREETING + READY + b"\xff\x00",
        "a command with more": GREETING + READY + b"\x05\x00",
        "too long": GREETING + READY + b"\x02" + (MAX_FRAME + 1).to_bytes(8, "big"),
        "far too long": GREETING + READY + b"\x03" + (2**64 - 1).to_bytes(8, "big"),
        "too many frames": GREETING + READY + encode(b"x", MORE) * 1001,
    }.items(),
    ids=lambda item: item[0],
)
def test_what_is_not_the_protocol_is_closed_and_disturbs_nobody(server, wrong):
    with raw(server.endpoint) as good, connected(server, wrong[1]) as peer:
        assert is_closed(peer)
        assert call(good, "ping")["ok"]


def test_a_message_of_1000_frames_is_answered_and_the_next_too(server):
    frames = encode(b"x", MORE) * 999 + encode(b"y")
    with connected(server, GREETING, READY, frames, PING) as peer:
        read(peer, 64)
        read_frame(peer)
        flags, body = read_frame(peer)
        assert flags == 0
        assert unpack(body)["code"] == "bad-frames"
        assert read_frame(peer) == (MORE, b"")
        assert unpack(read_frame(peer)[1])["ok"]


def test_a_greeting_and_a_message_have_their_time(monkeypatch):
    monkeypatch.setattr(listener, "HANDSHAKE_S", 0.2)
    monkeypatch.setattr(listener, "STALL_S", 0.2)
    halves = (
        b"",
        GREETING[:30],
        GREETING,
        GREETING + READY + PING[:-1],
        GREETING + READY + PING[:2],
    )
    with running() as server, ExitStack() as stack:
        idle = stack.enter_context(raw(server.endpoint))
        assert call(idle, "ping")["ok"]
        peers = [stack.enter_context(connected(server, half)) for half in halves]
        assert all(is_closed(peer) for peer in peers)
        assert call(idle, "ping", 2)["ok"]  # who is silent between messages stays


@pytest.mark.parametrize("host", ["localhost", "[::1]", "LOCALHOST"])
def test_names_and_addresses_of_this_computer(host):
    try:
        with running(endpoint=f"tcp://{host}:*") as server, raw_at(server.endpoint) as peer:
            assert call(peer, "ping")["ok"]
    except DeftlyError as error:
        if "[::1]" in host and "Address" in str(error):
            pytest.skip("no IPv6 here")
        raise


@contextmanager
def raw_at(endpoint):
    with zmq.Context.instance().socket(zmq.DEALER) as peer:
        peer.linger, peer.rcvtimeo, peer.sndtimeo, peer.ipv6 = 0, 5000, 5000, True
        peer.connect(endpoint)
        yield peer


def test_a_socket_in_the_file_system(tmp_path):
    path = tmp_path / "policy"
    endpoint = f"ipc://{path}"
    with running(endpoint=endpoint) as server:
        policy = OneRobot(Client(endpoint, CONTRACT, timeout=5))
        policy.infer(signals(0))
        policy.close()
        assert server.endpoint == endpoint
        with pytest.raises(DeftlyError, match="in use"):
            Server(ContractPolicy(CONTRACT, network), endpoint)
    assert not path.exists()
    left = socket.socket(socket.AF_UNIX)  # as a server that was killed leaves it
    left.bind(str(path))
    left.close()
    with running(endpoint=endpoint), raw(endpoint) as peer:
        assert call(peer, "ping")["ok"]
    path.write_text("mine")
    with pytest.raises(DeftlyError, match="in use"):
        Server(ContractPolicy(CONTRACT, network), endpoint)
    assert path.read_text() == "mine"


# ------------------------------------------------------------------ replies and floods


@pytest.mark.parametrize("robots", [32, 64])
def test_many_robots_through_one_connection_lose_no_reply(server, robots):
    with raw(server.endpoint) as peer:
        sessions = [open_session(peer) for _ in range(robots)]
        for kind, seq in (("reset", 1), *(("infer", seq) for seq in range(2, 12))):
            for session in sessions:
                fields = {"session": session, "signals": signals(0)}
                peer.send_multipart([b"", pack(message(kind, seq, **fields))])
            replies = [unpack(peer.recv_multipart()[-1]) for _ in sessions]
            assert all(reply["ok"] and reply["seq"] == seq for reply in replies)


def test_a_peer_that_reads_late_gets_every_reply(server):
    count = 1500
    with raw(server.endpoint) as good, connected(server, GREETING, READY, buffer=4096) as peer:
        read(peer, 64)
        read_frame(peer)
        peer.settimeout(0.5)
        sent = 0
        data = b"".join(
            encode(pack(message("status", seq, more="x" * 1000))) for seq in range(count)
        )
        with pytest.raises(TimeoutError):  # it is not read while it does not read
            while sent < len(data):
                sent += peer.send(data[sent : sent + 10_000])
        assert call(good, "ping")["ok"]
        peer.setblocking(False)
        got, end = bytearray(), time.monotonic() + 20
        seen = 0
        while seen < count:
            assert time.monotonic() < end
            with suppress(BlockingIOError):
                sent += peer.send(data[sent:])
            with suppress(BlockingIOError):
                got += peer.recv(65_536)
            while len(got) > 9:
                head = 9 if got[0] & LONG else 2
                size = head + int.from_bytes(got[1:head], "big")
                if len(got) < size:
                    break
                assert unpack(bytes(got[head:size]))["seq"] == seen
                del got[:size]
                seen += 1


FLOODS = {
    "messages": PING * 100,
    "statuses": encode(pack(message("status"))) * 100,
    "heartbeats": encode(b"\x04PING\x00\x0aabc", COMMAND) * 100,
    "garbage": encode(bytes(60_000)),
    "frames without end": encode(b"", MORE) * 30_000,
    "long frames without end": encode(bytes(60_000), MORE),
    "sessions": encode(pack(message("init"))) * 100,
}


@pytest.mark.parametrize("flood", FLOODS)
def test_a_good_robot_and_a_new_one_among_peers_that_flood_and_never_read(flood):
    with running() as server, ExitStack() as stack:
        good = OneRobot(Client(server.endpoint, CONTRACT, timeout=5))
        good.infer(signals(0))
        peers = []
        for _ in range(20):
            peer = stack.enter_context(connected(server, GREETING, READY, buffer=4096))
            peer.setblocking(False)
            peers.append(peer)
        for step in range(60):
            for peer in peers:
                with suppress(BlockingIOError, ConnectionError):
                    peer.send(FLOODS[flood])
            good.infer(signals(step))
        new = OneRobot(Client(server.endpoint, CONTRACT, timeout=5))
        new.infer(signals(0))
        for peer in server._link._peers:
            assert len(peer.engine.inbox) <= MAX_FRAME + listener.CHUNK
            assert len(peer.outbox) < 100_000
        good.close()
        new.close()


def test_incomplete_frames_of_all_peers_together_are_bounded(monkeypatch):
    monkeypatch.setattr(listener, "MAX_HELD", 500_000)
    half = encode(bytes(MAX_FRAME))[:-1]
    with running() as server, ExitStack() as stack:
        good = OneRobot(Client(server.endpoint, CONTRACT, timeout=5))
        good.infer(signals(0))
        peers = [stack.enter_context(connected(server, GREETING, READY, half)) for _ in range(20)]
        assert is_closed(peers[0])  # the oldest
        wait_for(lambda: server._link._held > 400_000)
        held = sum(len(peer.engine.inbox) for peer in server._link._peers)
        assert held == server._link._held <= 500_000
        good.infer(signals(1))
        OneRobot(Client(server.endpoint, CONTRACT, timeout=5)).infer(signals(0))


def test_a_full_table_of_connections_takes_new_ones_and_keeps_robots(monkeypatch):
    monkeypatch.setattr(listener, "MAX_PEERS", 10)
    with running() as server, ExitStack() as stack:
        good = OneRobot(Client(server.endpoint, CONTRACT, timeout=5))
        good.infer(signals(0))
        others = [stack.enter_context(connected(server, GREETING, READY)) for _ in range(30)]
        assert is_closed(others[0])
        new = OneRobot(Client(server.endpoint, CONTRACT, timeout=5))
        for step in range(5):
            good.infer(signals(step))
            new.infer(signals(step))
        assert len(server._link._peers) <= 10


@contextmanager
def listening(mechanism=Null):
    """A listener, and a function that reads what came until there are so many messages: of robots, of others."""
    link = listener.Listener(Endpoint("tcp", "127.0.0.1", 0), MAX_FRAME, mechanism)

    def collect(count: int):
        robots, others, end = [], [], time.monotonic() + 5
        while len(robots) + len(others) < count:
            assert time.monotonic() < end
            link.wait(0.1)
            robots += [peer for peer, _ in link.robots()]
            others += [peer for peer, _ in link.others()]
        return robots, others

    try:
        yield link, collect
    finally:
        link.close()


def test_robots_come_before_others_as_long_as_decisions_are_made():
    with listening() as (link, collect), ExitStack() as stack:
        peers = [stack.enter_context(connected(link, GREETING, READY, PING)) for _ in range(4)]
        _, answered = collect(4)
        robot = answered[2]
        link.trust(robot)
        for peer in peers:
            peer.sendall(PING * 3)
        robots, others = collect(12)
        assert robots == [robot] * listener.CREDIT_PER_DECISION  # the third was not earned
        assert sorted(map(id, others)) == sorted(
            map(id, [robot] + 3 * [*answered[:2], answered[3]])
        )


def test_a_robot_that_waits_among_others_comes_first_once_a_decision_is_made():
    with listening() as (link, collect), connected(link, GREETING, READY, PING) as peer:
        _, (robot,) = collect(1)
        peer.sendall(PING)
        end = time.monotonic() + 5
        while not robot.queued:
            assert time.monotonic() < end
            link.wait(0.1)
        link.trust(robot)  # as when a decision comes after its next message
        assert robot.queued == 0
        assert [who for who, _ in link.robots()] == [robot]
        assert [*link.others()] == []


def test_what_one_key_was_served_counts_for_all_its_connections():
    class Keyed(Null):
        peer_key = b""

        def handshake(self, command):
            self.peer_key = b"attacker" if b"attacker" in command else b"robot"
            return super().handshake(command)

        def __init__(self):
            self.is_ready = False

    property_of = b"\x04Name" + struct.pack(">I", 8) + b"attacker"
    attacker = encode(
        b"\x05READY\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER" + property_of, COMMAND
    )
    with listening(Keyed) as (link, collect), ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(connected(link, GREETING, attacker, PING))
        stack.enter_context(connected(link, GREETING, READY, PING))
        _, found = collect(4)
        accounts = {peer.engine.peer_key: peer.account for peer in found}
        assert all(peer.account is accounts[peer.engine.peer_key] for peer in found)
        assert accounts[b"robot"] is not accounts[b"attacker"]
        before = accounts[b"attacker"].served
        for _ in range(round(listener.HALF_LIFE_S)):
            link._forget()
        assert accounts[b"attacker"].served == pytest.approx(before / 2)


# ------------------------------------------------------------------------- images

LONG_BODY = bytes(range(256)) * 1200


@pytest.mark.parametrize("piece", [100_000, 70_000, 16_384, 4_999, 313_000])
def test_a_long_frame_is_the_same_however_it_is_cut(piece):
    engine = Engine(Null(), len(LONG_BODY))
    stream = GREETING + READY + 2 * (encode(b"", MORE) + encode(LONG_BODY)) + PING
    scratch = memoryview(bytearray(16_384))
    messages, sent = [], 0
    while len(messages) < 3:
        frames = engine.next_message()
        if frames:
            messages.append([bytes(frame) for frame in frames])
        if frames is not None:
            continue
        room = engine.room(scratch, piece)
        data = stream[sent : sent + min(piece, len(room))]
        assert data
        room[: len(data)] = data
        sent += len(data)
        engine.add(room[: len(data)])
    assert engine.missing == 0
    assert messages == [[b"", LONG_BODY], [b"", LONG_BODY], [b"", pack(message())]]
    assert (engine.held, engine.is_amid_message) == (0, False)


def test_who_announces_a_long_frame_holds_what_he_sent():
    engine = Engine(Null(), 10**9)
    head = GREETING + READY + bytes((LONG,)) + (10**9).to_bytes(8, "big") + b"abc"
    engine.add(memoryview(head))
    while engine.next_message() is not None:
        pass
    assert engine.is_amid_message
    assert (engine.held, engine.missing) == (3, 10**9 - 3)
    assert len(engine.room(memoryview(bytearray(10)), 4096)) == 4096
    engine.clear()
    assert not engine.is_amid_message
    with pytest.raises(ProtocolError):
        engine = Engine(Null(), 10**9 - 1)
        engine.add(memoryview(head))
        while engine.next_message() is not None:
            pass


KEEPS = """
import resource
from deftly.serving.memory import keep_memory
keep_memory()
def message():
    parts = [bytes(300_000) + b"x" for _ in range(4)]
for _ in range(10):
    message()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    message()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_a_server_keeps_the_memory_of_a_message_for_the_next():
    ran = subprocess.run(
        [sys.executable, "-c", KEEPS], capture_output=True, text=True, timeout=120, check=True
    )
    assert int(ran.stdout) < 20  # pages; without it, some hundred for each message


def seeing_arm():
    """The arm with a large image, so that a message of it is a long frame."""
    wrist, front = (
        Signal("wrist", (4, 4, 3), dtype="uint8"),
        Signal("front", (160, 224, 3), dtype="uint8"),
    )
    joints = ARM.signals[0]
    return replace(ARM, robot=replace(ARM.robot, signals=(joints, front, wrist)))


@pytest.mark.parametrize("cuts", [(), (1,), (30,), (16_386,), (40_000, 70_000), (107_000, 107_500)])
def test_images_that_come_in_pieces_are_read_when_all_are_there(cuts):
    arm = seeing_arm()
    policy = ContractPolicy(arm, lambda obs: np.zeros((len(obs["state"]), 4), np.float32))
    shapes = {s.name: np.full(s.shape, 7, "uint8" if s.is_image else "f4") for s in arm.signals}
    with running(policy) as server, connected(server, GREETING, READY) as peer:
        read(peer, 64)
        read_frame(peer)
        peer.sendall(encode(pack(message("init"))))
        session = {"session": unpack(read_frame(peer)[1])["session"], "signals": shapes}
        for seq in range(2, 8):
            kind = "reset" if seq == 2 else "infer"
            data = encode(pack({**message(kind, seq), **session}))
            assert len(data) > 107_520
            for begin, end in pairwise((0, *cuts, len(data))):
                peer.sendall(data[begin:end])
            assert unpack(read_frame(peer)[1])["ok"]
            peer.sendall(encode(pack(message("ping", seq))))  # a short one is heard at once
            assert unpack(read_frame(peer)[1])["ok"]
