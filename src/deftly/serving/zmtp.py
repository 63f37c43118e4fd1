"""A ZMTP 3.0 listener without keys, in one thread, whose memory and work per peer are bounded.

libzmq bounds neither the number of frames in a message nor the memory of many peers that flood, and serves all of them
alike. Here a peer is read only while it takes its replies, and peers are served by rank: first those whose last
requests a policy answered, then the others, and of these those first that were served least.

The protocol is RFC 23, https://rfc.zeromq.org/spec/23, with the NULL mechanism; PING is answered as in RFC 37.
"""

from __future__ import annotations

import errno
import os
import selectors
import socket
import stat
import struct
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from deftly.serving.endpoint import LOCALHOST, Endpoint

MORE, LONG, COMMAND = 1, 2, 4
"""Flags of a frame: another one follows, its size has eight bytes, it is a command."""
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
READY = b"\x05READY" + b"\x0bSocket-Type" + struct.pack(">I", 6) + b"ROUTER"
PEERS_WITH_ANSWERS = (b"DEALER", b"REQ", b"ROUTER")
"""Socket types that may speak with a ROUTER."""

MAX_PEERS = 2048
"""Connections; the oldest that is no robot's makes room for the next."""
MAX_FRAMES = 1000
"""Frames of the longest message that is answered, with an error; more close the connection."""
FRAMES_AT_ONCE = 64
"""Frames of one peer after which it is another's turn."""
MAX_HELD = 32 * 2**20
"""Bytes of incomplete frames that are kept for all peers together."""
BUFFER = 256 * 2**10
"""Bytes that the system keeps for each connection and direction."""
HANDSHAKE_S, STALL_S = 5.0, 10.0
"""Time for the greeting; time to send a message that was begun, or to take a reply."""
CREDIT = 64
"""Messages of a robot that are served first, from each decision on."""
BACKLOG, ACCEPTS = 1024, 16


class Share(NamedTuple):
    """How much of a round the peers of some ranks get."""

    ranks: tuple[int, ...]
    messages: int
    """Of one peer."""
    reads: int
    """Of one peer, each of at most `CHUNK` bytes."""
    seconds: float


RANKS = 8
"""A robot has rank 0, another peer 1 to 7: the more often it was served, the later it is its turn."""
SHARES = (
    Share((0,), 64, 16, 0.010),
    Share(tuple(range(1, RANKS - 1)), 1, 1, 0.002),
    Share((RANKS - 1,), 1, 1, 0.001),
)
CHUNK = 16 * 2**10
MIN_PAUSE_S, MAX_PAUSE_S = 0.001, 0.005
"""Shortest and longest pause after peers that are no robots were served."""


class ProtocolError(Exception):
    """What a peer sends is not ZMTP, or is beyond the bounds: its connection is closed."""


class Peer:
    """A connection."""

    def __init__(self, connection: socket.socket, now: float):
        self.socket: socket.socket = connection
        self.inbox = bytearray()
        """Received, and not yet taken apart."""
        self.outbox = bytearray()
        """What the system did not take yet; until it does, nothing more is read."""
        self.frames: list[bytes] = []
        """Of the message that is under way; no more than tell what to answer."""
        self.frame_count = 0
        self.greeted = False
        self.ready = False
        """Whether its READY came."""
        self.began = now
        """Since when it is in its greeting, or its message, or does not read."""
        self.watched = 0
        self.has_data = False
        self.queued = False
        self.closed = False
        self.visits = 0
        self.credit = 0

    @property
    def rank(self) -> int:
        """Which queue it waits in."""
        return 0 if self.credit > 0 else min(1 + self.visits.bit_length(), RANKS - 1)


class Listener:
    """Messages of many peers, and replies to them. Raises OSError if it cannot bind to the endpoint."""

    def __init__(self, endpoint: Endpoint, max_frame: int):
        self._max_frame = max_frame
        self._peers: dict[Peer, None] = {}
        self._queues: tuple[deque[Peer], ...] = tuple(deque() for _ in range(RANKS))
        self._held = 0
        self._spent = 0.0
        self._next_sweep = 0.0
        self._path: Path | None = None
        self._selector = selectors.DefaultSelector()
        try:
            self._socket = self._bind(endpoint)
        except BaseException:
            self._selector.close()
            raise
        self._selector.register(self._socket, selectors.EVENT_READ, None)
        self.endpoint = self._name(endpoint)
        """Where it listens, with the port that was free."""

    def _bind(self, endpoint: Endpoint) -> socket.socket:
        address: str | tuple[str, int]
        if endpoint.scheme == "ipc":
            family, address = socket.AF_UNIX, endpoint.host
            if address.startswith("@"):
                address = "\0" + address[1:]
            else:
                self._path = _free_path(address)
        else:
            host = "127.0.0.1" if endpoint.host.lower() == LOCALHOST else endpoint.host
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            address = (host, endpoint.port)
        listening = socket.socket(family, socket.SOCK_STREAM)
        try:
            listening.setblocking(False)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            for buffer in (socket.SO_RCVBUF, socket.SO_SNDBUF):
                listening.setsockopt(socket.SOL_SOCKET, buffer, BUFFER)
            listening.bind(address)
            listening.listen(BACKLOG)
        except BaseException:
            listening.close()
            raise
        return listening

    def _name(self, endpoint: Endpoint) -> str:
        if endpoint.scheme == "ipc":
            return f"ipc://{endpoint.host}"
        host, port = self._socket.getsockname()[:2]
        return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"

    # -------------------------------------------------------------------- for the server

    def wait(self, seconds: float) -> None:
        """Return when something may have come, or after `seconds`."""
        begin = time.monotonic()
        if any(self._queues):
            # A pause as long as what was spent on others than robots: half of the time stays theirs.
            seconds = self._spent if self._spent > MIN_PAUSE_S and not self._queues[0] else 0.0
        ready = self._selector.select(seconds)
        self._spent = max(0.0, self._spent - (time.monotonic() - begin))
        for key, events in ready:
            peer = key.data
            if peer is None:
                self._accept()
            elif peer.closed:
                continue
            elif events & selectors.EVENT_WRITE:
                self._flush(peer)
            elif peer.queued:
                self._watch(peer, 0)  # it waits for its turn: do not hear of it again
            else:
                peer.has_data = True
                self._queue(peer)
        now = time.monotonic()
        if now >= self._next_sweep:
            self._next_sweep = now + 1.0
            self._close_stalled(now)

    def messages(self) -> Iterator[tuple[Peer, list[bytes]]]:
        """One round: messages that came, each as its peer and its frames; of wrong ones, three frames."""
        for share in SHARES:
            begin = time.monotonic()
            end = begin + share.seconds
            for rank in share.ranks:
                queue = self._queues[rank]
                for _ in range(len(queue)):
                    if time.monotonic() > end:
                        break
                    yield from self._visit(queue.popleft(), share)
            if share is not SHARES[0]:
                self._spent = min(self._spent + time.monotonic() - begin, MAX_PAUSE_S)

    def send(self, peer: Peer, frame: bytes, delimited: bool) -> None:
        """Reply with one frame, after an empty one if `delimited`; a peer that has gone gets none."""
        self._write(peer, (b"\x01\x00" if delimited else b"") + encode(frame))

    def trust(self, peer: Peer) -> None:
        """The peer is a robot: a policy answered it."""
        peer.credit = CREDIT

    def doubt(self, peer: Peer) -> None:
        """The peer sent something wrong."""
        peer.credit //= 2

    def close(self) -> None:
        """Let go of all sockets."""
        for peer in [*self._peers]:
            self._close(peer)
        self._socket.close()
        self._selector.close()
        if self._path:
            self._path.unlink(missing_ok=True)
            self._path = None

    # -------------------------------------------------------------------- connections

    def _accept(self) -> None:
        for _ in range(ACCEPTS):
            if len(self._peers) >= MAX_PEERS:
                self._make_room()
            try:
                connection, _ = self._socket.accept()
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE) and self._peers:
                    self._make_room()
                    continue
                return
            connection.setblocking(False)
            with suppress(OSError):  # a connection that has gone already
                _detect_dead_peers(connection)
            peer = Peer(connection, time.monotonic())
            self._peers[peer] = None
            self._watch(peer, selectors.EVENT_READ)
            self._write(peer, GREETING)

    def _make_room(self) -> None:
        """Close the oldest connection that is no robot's, as far as is known."""
        oldest = next(iter(self._peers))
        self._close(next((peer for peer in self._peers if peer.rank), oldest))

    def _close(self, peer: Peer) -> None:
        if peer.closed:
            return
        self._watch(peer, 0)
        self._held -= len(peer.inbox)
        peer.closed = True
        peer.inbox, peer.outbox, peer.frames = bytearray(), bytearray(), []
        peer.socket.close()
        del self._peers[peer]

    def _close_stalled(self, now: float) -> None:
        for peer in [*self._peers]:
            busy = peer.outbox or peer.frames or peer.inbox
            allowed = STALL_S if peer.ready else HANDSHAKE_S
            if (busy or not peer.ready) and not peer.queued and now - peer.began > allowed:
                self._close(peer)

    def _watch(self, peer: Peer, events: int) -> None:
        """Hear of these events of a peer, if it is not so already."""
        if events == peer.watched:
            return
        if not events:
            self._selector.unregister(peer.socket)
        elif peer.watched:
            self._selector.modify(peer.socket, events, peer)
        else:
            self._selector.register(peer.socket, events, peer)
        peer.watched = events

    def _queue(self, peer: Peer) -> None:
        """Let a peer wait for its turn if there is something to read, else for the system to say so."""
        if peer.closed or peer.queued or peer.outbox:
            return
        if peer.has_data:
            peer.queued = True
            self._queues[peer.rank].append(peer)
        else:
            self._watch(peer, selectors.EVENT_READ)

    # -------------------------------------------------------------------- bytes

    def _visit(self, peer: Peer, share: Share) -> Iterator[tuple[Peer, list[bytes]]]:
        """Messages of one peer, up to its share."""
        peer.queued = False
        peer.visits += 1
        messages = reads = 0
        while messages < share.messages and not peer.closed and not peer.outbox:
            try:
                message = self._parse(peer)
            except ProtocolError:
                self._close(peer)
                break
            if message is not None:
                messages += 1
                peer.began = time.monotonic()
                if message:
                    peer.credit -= 1
                    yield peer, message
            elif reads < share.reads and peer.has_data:
                reads += 1
                self._read(peer)
            else:
                break
        else:
            peer.has_data = True  # as far as is known: there may be more in the inbox
        self._queue(peer)

    def _read(self, peer: Peer) -> None:
        try:
            data = peer.socket.recv(CHUNK)
        except BlockingIOError:
            peer.has_data = False
            return
        except OSError:
            data = b""
        if not data:
            self._close(peer)
            return
        peer.has_data = len(data) == CHUNK
        if not peer.inbox and not peer.frames and peer.ready:
            peer.began = time.monotonic()
        peer.inbox += data
        self._held += len(data)
        if self._held > MAX_HELD:
            holders = (p for p in self._peers if p.rank and len(p.inbox) >= CHUNK)
            self._close(next(holders, peer))  # the oldest connection

    def _write(self, peer: Peer, data: bytes) -> None:
        if peer.closed:
            return
        if peer.outbox:
            peer.outbox += data
            return
        try:
            sent = peer.socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._close(peer)
            return
        if sent < len(data):
            peer.outbox += data[sent:]
            peer.began = time.monotonic()
            self._watch(peer, selectors.EVENT_WRITE)

    def _flush(self, peer: Peer) -> None:
        try:
            sent = peer.socket.send(peer.outbox)
        except BlockingIOError:
            return
        except OSError:
            self._close(peer)
            return
        del peer.outbox[:sent]
        peer.began = time.monotonic()
        if not peer.outbox:
            peer.has_data = True  # as far as is known
            self._queue(peer)
            self._watch(peer, selectors.EVENT_READ)

    def _parse(self, peer: Peer) -> list[bytes] | None:
        """The next message in the inbox; [] after a command or many frames; None if there is no whole frame.

        Raises ProtocolError.
        """
        if not peer.greeted:
            if not _read_greeting(peer.inbox):
                return None
            self._held -= len(GREETING)
            peer.greeted = True
        for _ in range(FRAMES_AT_ONCE):
            frame = self._next_frame(peer.inbox)
            if frame is None:
                return None
            flags, body = frame
            if flags & COMMAND:
                self._command(peer, body)
                return []
            if not peer.ready:
                raise ProtocolError
            peer.frame_count += 1
            if peer.frame_count > MAX_FRAMES:
                raise ProtocolError
            peer.frames = _collect(peer.frames, body[:1] if flags & MORE else body)
            if not flags & MORE:
                message = peer.frames
                peer.frames = []
                peer.frame_count = 0
                return message
        return []

    def _next_frame(self, inbox: bytearray) -> tuple[int, bytes] | None:
        """Flags and body of a whole frame, which is taken out of the inbox."""
        if len(inbox) < 2:
            return None
        flags, size, head = inbox[0], inbox[1], 2
        if flags > MORE | LONG | COMMAND or (flags & COMMAND and flags & MORE):
            raise ProtocolError
        if flags & LONG:
            head = 9
            if len(inbox) < head:
                return None
            size = int.from_bytes(inbox[1:head], "big")
        if size > self._max_frame:
            raise ProtocolError
        if len(inbox) < head + size:
            return None
        body = bytes(inbox[head : head + size])
        del inbox[: head + size]
        self._held -= head + size
        return flags, body

    def _command(self, peer: Peer, body: bytes) -> None:
        if not peer.ready:
            _require_ready(body)
            peer.ready = True
            self._write(peer, encode(READY, COMMAND))
        elif body.startswith(b"\x04PING"):
            context = body[7:23]  # after the name and a time to live of two bytes
            self._write(peer, encode(b"\x04PONG" + context, COMMAND))


def encode(body: bytes, flags: int = 0) -> bytes:
    """A frame on the wire."""
    if len(body) < 256:
        return bytes((flags, len(body))) + body
    return bytes((flags | LONG,)) + len(body).to_bytes(8, "big") + body


def _collect(frames: list[bytes], body: bytes) -> list[bytes]:
    """The frames of a message with one more; all that a message of a wrong number of frames tells is its first."""
    if not frames or frames == [b""]:
        return [*frames, body]
    return [frames[0][:1], b"", b""]


def _read_greeting(inbox: bytearray) -> bool:
    """Take a greeting out of the inbox, if it is whole. Raises ProtocolError unless it is ZMTP 3 without keys."""
    for place, byte in ((0, 0xFF), (9, 0x7F)):
        if len(inbox) > place and inbox[place] != byte:
            raise ProtocolError
    if len(inbox) > 10 and inbox[10] < 3:
        raise ProtocolError
    if len(inbox) < len(GREETING):
        return False
    if inbox[12:32] != GREETING[12:32]:
        raise ProtocolError
    del inbox[: len(GREETING)]
    return True


def _require_ready(body: bytes) -> None:
    """Raise ProtocolError unless a command is the READY of a socket that may speak with a ROUTER."""
    if not body.startswith(READY[:6]):
        raise ProtocolError
    at, found = 6, {}
    while at < len(body):
        name_end = at + 1 + body[at]
        value = name_end + 4
        end = value + int.from_bytes(body[name_end:value], "big")
        if end > len(body) or value > len(body):
            raise ProtocolError
        found[body[at + 1 : name_end].lower()] = body[value:end]
        at = end
    if found.get(b"socket-type") not in PEERS_WITH_ANSWERS:
        raise ProtocolError


def _detect_dead_peers(connection: socket.socket) -> None:
    """Let the system notice within some seconds that the computer at the other end has gone."""
    if connection.family == socket.AF_UNIX:
        return
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 3), ("TCP_KEEPINTVL", 1), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _free_path(name: str) -> Path:
    """The path of a socket, after that of a server that has gone was removed. Raises OSError if one listens there."""
    path = Path(name)
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(name)
            except ConnectionRefusedError:
                path.unlink()
            else:
                raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    return path
