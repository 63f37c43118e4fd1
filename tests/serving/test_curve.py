"""Keys: a server's end of CURVE against a robot's, byte by byte. tests/serving/test_keys.py has libzmq's end of it."""

import socket
import sys
import time

import pytest
import zmq
from nacl.public import PrivateKey
from raw_peer import call, message, raw
from toy_robot import CONTRACT, network, running, signals

from deftly.errors import DeftlyError
from deftly.policy.protocol import ContractPolicy, OneRobot
from deftly.serving.client import Client
from deftly.serving.curve import COOKIE, MESSAGE, Curve
from deftly.serving.keys import ServerKeys, new_keys
from deftly.serving.server import Server
from deftly.serving.wire import MAX_FRAME, pack, unpack
from deftly.serving.zmtp import COMMAND, MORE, Engine, ProtocolError, encode, greeting
from deftly_bench.curve_client import METADATA, CurveClient

SERVER, ROBOT = PrivateKey.generate(), PrivateKey.generate()
KEYS = ServerKeys(bytes(SERVER), bytes(SERVER.public_key), frozenset([bytes(ROBOT.public_key)]))


@pytest.fixture
def robot():
    return CurveClient(bytes(SERVER.public_key), bytes(ROBOT))


def meet(robot, server, metadata=METADATA) -> bytes:
    return server.handshake(robot.initiate(server.handshake(robot.hello()), metadata))


def body(frame: bytes) -> bytes:
    return frame[2:] if frame[0] == 0 else frame[9:]


def test_a_robot_on_the_list_is_met_and_frames_go_both_ways(robot):
    server = Curve(KEYS)
    ready = meet(robot, server)
    assert ready.startswith(b"\x05READY")
    assert server.is_ready
    for flags in (0, MORE, COMMAND):
        assert server.open(0, body(robot.frame(b"hello", flags))) == (flags, b"hello")
    assert robot.read(body(server.seal(MORE, b"x" * 1000))) == (1, b"x" * 1000)
    assert robot.read(body(server.seal(COMMAND, b""))) == (2, b"")


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 :]


def test_a_changed_byte_anywhere_ends_it(robot):
    hello = robot.hello()
    ignored = range(8, 80)  # zeros that keep an answer from being longer than the question
    for at in set(range(len(hello))) - set(ignored):
        with pytest.raises(ProtocolError):
            Curve(KEYS).handshake(flipped(hello, at))
    server = Curve(KEYS)
    initiate = robot.initiate(server.handshake(hello))
    for at in range(len(initiate)):
        server._last_received = 1
        with pytest.raises(ProtocolError):
            server.handshake(flipped(initiate, at))
    server._last_received = 1
    server.handshake(initiate)
    sealed = body(robot.frame(b"hello"))
    for at in range(len(sealed)):
        server._last_received = 2
        with pytest.raises(ProtocolError):
            server.open(0, flipped(sealed, at))
    server._last_received = 2
    assert server.open(0, sealed) == (0, b"hello")


def test_nothing_is_taken_twice_or_from_another_connection(robot):
    server, other = Curve(KEYS), Curve(KEYS)
    hello = robot.hello()
    welcome = server.handshake(hello)
    other.handshake(hello)
    initiate = robot.initiate(welcome)
    with pytest.raises(ProtocolError):
        other.handshake(initiate)
    server.handshake(initiate)
    first, second = body(robot.frame(b"1")), body(robot.frame(b"2"))
    assert server.open(0, second) == (0, b"2")
    for old in (first, second):
        with pytest.raises(ProtocolError):
            server.open(0, old)


def test_only_the_owner_of_a_key_on_the_list_is_met(robot):
    stranger = CurveClient(bytes(SERVER.public_key), bytes(PrivateKey.generate()))
    with pytest.raises(ProtocolError):
        meet(stranger, Curve(KEYS))
    claims = CurveClient(bytes(SERVER.public_key), bytes(PrivateKey.generate()))
    claims.secret.public_key = ROBOT.public_key  # another's key, without its secret
    with pytest.raises(ProtocolError):
        meet(claims, Curve(KEYS))
    middle = PrivateKey.generate()  # a robot that trusts another server: its vouch is for that one
    fooled = CurveClient(bytes(middle.public_key), bytes(ROBOT))
    with pytest.raises(ProtocolError):
        meet(fooled, Curve(KEYS))
    thief = CurveClient(bytes(SERVER.public_key), bytes(ROBOT))
    thief.vouch = robot.vouch  # says that the short-term key of another connection is its own
    with pytest.raises(ProtocolError):
        meet(thief, Curve(KEYS))
    thief.vouch = CurveClient.vouch.__get__(thief)
    thief.short = PrivateKey.generate()
    meet(thief, Curve(KEYS))


@pytest.mark.parametrize(
    "wrong",
    [
        b"",
        b"\x05HELLO",
        b"\x05HELLO" + bytes(194),
        b"\x05HELLO\x01\x00" + bytes(192),
        b"\x05HELLO\x02\x00" + bytes(192),
        b"\x08INITIATE" + bytes(300),
        b"\x05READY" + METADATA,
        b"\x04PING\x00\x0a",
    ],
)
def test_other_commands_end_it(robot, wrong):
    with pytest.raises(ProtocolError):
        Curve(KEYS).handshake(wrong)
    server = Curve(KEYS)
    server.handshake(robot.hello())
    with pytest.raises(ProtocolError):
        server.handshake(wrong)
    with pytest.raises(ProtocolError):
        server.handshake(b"\x08INITIATE" + bytes(COOKIE + 8 + 144))


@pytest.mark.parametrize("metadata", [b"", b"\x0bSocket-Type\x00\x00\x00\x03PUB", b"\xff", b"x"])
def test_only_peers_of_a_router_are_met(robot, metadata):
    with pytest.raises(ProtocolError):
        meet(robot, Curve(KEYS), metadata)


@pytest.mark.parametrize("plain", [b"hello", MESSAGE, MESSAGE + bytes(8), MESSAGE + bytes(40)])
def test_what_is_in_no_box_ends_it(robot, plain):
    server = Curve(KEYS)
    meet(robot, server)
    with pytest.raises(ProtocolError):
        server.open(0, plain)


def test_frames_of_the_largest_size_and_none_longer(robot):
    engine = Engine(Curve(KEYS), MAX_FRAME)
    engine.inbox += greeting(b"CURVE") + encode(robot.hello(), COMMAND)
    assert engine.next_message() == []
    welcome = body_of_command(bytes(engine.pending)[64:])
    engine.pending.clear()
    engine.inbox += encode(robot.initiate(welcome), COMMAND)
    assert engine.next_message() == []
    engine.inbox += robot.frame(bytes(MAX_FRAME))
    assert engine.next_message() == [bytes(MAX_FRAME)]
    engine.inbox += robot.frame(bytes(MAX_FRAME + 1))
    with pytest.raises(ProtocolError):
        engine.next_message()


def body_of_command(frame: bytes) -> bytes:
    return frame[9:] if frame[0] & 2 else frame[2:]


@pytest.mark.realtime
def test_heartbeats_of_libzmq_in_boxes_are_answered(tmp_path):
    new_keys(tmp_path / "keys")
    with running(keys=tmp_path / "keys/server") as server:
        link = Client(server.endpoint, CONTRACT, 5, tmp_path / "keys/robot")._link
        link._socket.close(0)
        link._open()
        with zmq.Context.instance().socket(zmq.DEALER) as peer:
            peer.linger, peer.rcvtimeo, peer.sndtimeo = 0, 5000, 5000
            peer.curve_serverkey, peer.curve_publickey, peer.curve_secretkey = link._keys
            peer.heartbeat_ivl, peer.heartbeat_timeout = 20, 200
            events = peer.get_monitor_socket(zmq.EVENT_DISCONNECTED)
            peer.connect(server.endpoint)
            assert call(peer, "ping")["ok"]
            time.sleep(0.5)
            assert call(peer, "ping", 2)["ok"]
            assert not events.poll(0)
            peer.disable_monitor()
        link.close()


def test_an_authorised_robot_that_floods_and_never_reads_harms_nobody(tmp_path):
    new_keys(tmp_path / "keys")
    robot = tmp_path / "keys/robot"
    with running(keys=tmp_path / "keys/server") as server:
        good = OneRobot(Client(server.endpoint, CONTRACT, 5, robot))
        good.infer(signals(0))
        floods = [pack(message("status")), b"", bytes(60_000)]
        peers = [
            flooding(server.endpoint, CurveClient(*CurveClient.keys_of(robot))) for _ in floods
        ]
        for step in range(20):
            for (peer, client), flood in zip(peers, floods):
                flags = 0 if flood.startswith(b"\x84") else MORE  # the others never end
                try:
                    peer.send(b"".join(client.frame(flood, flags) for _ in range(60)))
                except (BlockingIOError, ConnectionError):
                    continue
            good.infer(signals(step))
        for peer in server._link._peers:
            assert len(peer.outbox) < 100_000
            assert len(peer.engine.inbox) < 200_000
        for peer, _ in peers:
            peer.close()
        good.close()


def flooding(endpoint: str, client: CurveClient) -> tuple[socket.socket, CurveClient]:
    """A connection after its handshake, that does not wait."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    peer = socket.create_connection((host, int(port)), timeout=5)
    stream = peer.makefile("rb")
    peer.sendall(greeting(b"CURVE") + encode(client.hello(), COMMAND))
    assert stream.read(64)[12:17] == b"CURVE"
    peer.sendall(encode(client.initiate(read_command(stream)), COMMAND))
    assert read_command(stream).startswith(b"\x05READY")
    peer.setblocking(False)
    return peer, client


def read_command(stream) -> bytes:
    flags = stream.read(1)[0]
    return stream.read(int.from_bytes(stream.read(8 if flags & 2 else 1), "big"))


def test_without_keys_a_keyed_server_says_nothing_after_its_greeting(tmp_path):
    new_keys(tmp_path / "keys")
    with running(keys=tmp_path / "keys/server") as server:
        host, _, port = server.endpoint.removeprefix("tcp://").rpartition(":")
        with socket.create_connection((host, int(port)), timeout=5) as peer:
            peer.sendall(greeting(b"NULL") + encode(b"\x05READY" + METADATA, COMMAND))
            seen = b""
            while piece := peer.recv(1000):
                seen += piece
            assert len(seen) == 64
        with raw(server.endpoint) as peer:
            peer.rcvtimeo = peer.sndtimeo = 300
            with pytest.raises(zmq.Again):  # of the sending, where the handshake has failed by then
                peer.send_multipart([b"", pack(message())])
                unpack(peer.recv_multipart()[-1])


def test_without_the_library_it_says_what_to_install(tmp_path, monkeypatch):
    new_keys(tmp_path / "keys")
    monkeypatch.setitem(sys.modules, "nacl.public", None)
    monkeypatch.delitem(sys.modules, "deftly.serving.curve")
    with pytest.raises(DeftlyError, match=r'--keys needs PyNaCl: pip install "deftly\[keys\]"'):
        Server(
            ContractPolicy(CONTRACT, network), "tcp://127.0.0.1:*", keys=tmp_path / "keys/server"
        )
