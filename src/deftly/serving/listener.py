"""Connections of many peers in one thread, with memory and work bounded for each: what a policy server reads from.

libzmq bounds neither the number of frames in a message nor the memory of many peers that flood, and serves all of them
alike (docs/decisions.md). Here a peer is read only while it takes its replies, and peers are served by rank: first the
robots, those whose requests a policy answered, then the others, by how long each was served so far. Peers with the same
key are one in this.
"""

from __future__ import annotations

import errno
import itertools
import os
import selectors
import socket
import stat
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from deftly.serving.endpoint import LOCALHOST, Endpoint
from deftly.serving.zmtp import Body, Engine, Mechanism, ProtocolError

MAX_PEERS = 2048
"""Connections; the oldest that is no robot's makes room for the next."""
MAX_HELD = 32 * 2**20
"""Bytes of incomplete frames that are kept for all peers together."""
BUFFER = 256 * 2**10
"""Bytes that the system keeps for each connection and direction, at least."""
HANDSHAKE_S, STALL_S = 5.0, 10.0
"""Time for the handshake; time to send a message that was begun, or to take a reply."""
SWEEP_S = 1.0
"""Between two looks for peers whose time is over."""
CREDIT, CREDIT_PER_DECISION = 64, 2
"""Messages of a robot that are served first: at most, and by how many each decision adds to them."""
BACKLOG, ACCEPTS = 1024, 64
"""Connections that the system keeps until they are accepted, and that are accepted at one time."""
CHUNK = 16 * 2**10
"""Bytes that are read at one time."""
RANKS, RANK_S, HALF_LIFE_S = 8, 0.0002, 30.0
"""A robot has rank 0, another peer 1 until it was served for `RANK_S` s, then 2, and one more whenever that doubles.

What it was served is forgotten by half in `HALF_LIFE_S`.
"""


class Share(NamedTuple):
    """How much of a round some peers get."""

    messages: int
    """Of one peer."""
    reads: int
    """Of one peer, each of at most `CHUNK` bytes; those of a robot's images are read at once."""
    seconds: float
    """Of all together."""


ROBOTS, OTHERS = Share(64, 16, 0.010), Share(1, 1, 0.003)
MIN_PAUSE_S, MAX_PAUSE_S = 0.001, 0.005
"""Others wait as long as they were served, within these bounds: half of the time stays the robots'."""


class Account:
    """What peers without a robot's rank were served, in processor time: one, or all of one key."""

    def __init__(self):
        self.served = 0.0
        """s"""

    @property
    def rank(self) -> int:
        """Which queue these peers wait in."""
        return min(1 + int(self.served / RANK_S).bit_length(), RANKS - 1)


class Peer:
    """A connection."""

    def __init__(self, connection: socket.socket, engine: Engine, now: float):
        self.socket = connection
        self.engine = engine
        self.outbox = bytearray()
        """What the system did not take yet; until it does, nothing more is read."""
        self.held = 0
        """Bytes in the engine when they were counted."""
        self.began = now
        """Since when it is in its handshake, or its message, or does not read."""
        self.watched = 0
        """Events that the selector waits for."""
        self.awaited = 1
        """Bytes that have to be there before the selector says so."""
        self.may_have_data = False
        """Whether there may be something to read, from the system or in the inbox."""
        self.queued: int | None = None
        """The rank in whose queue it waits for its turn."""
        self.is_closed = False
        self.account = Account()
        self.credit = 0
        """Messages that are served first."""

    @property
    def rank(self) -> int:
        """Which queue it waits in."""
        return 0 if self.credit > 0 else self.account.rank


class Listener:
    """Messages of many peers, and replies to them. Raises OSError if it cannot bind to the endpoint.

    `mechanism` makes what a new connection begins with; no frame may be longer than `max_frame` bytes.
    """

    def __init__(self, endpoint: Endpoint, max_frame: int, mechanism: Callable[[], Mechanism]):
        self._max_frame = max_frame
        self._buffer = max(BUFFER, max_frame)
        """Bytes that the system keeps for each connection and direction: no robot waits amid its images."""
        self._scratch = memoryview(bytearray(CHUNK))
        """Where bytes are read that belong into no long frame."""
        self._mechanism = mechanism
        self._peers: dict[Peer, None] = {}  # the oldest first
        self._accounts: dict[bytes, Account] = {}
        """By key."""
        self._queues: tuple[deque[Peer], ...] = tuple(deque() for _ in range(RANKS))
        self._held = 0
        self._spent = 0.0
        """Processor time for others since the last pause, s: what other programs take is not held against them."""
        self._others_at = 0.0
        """When the pause ends."""
        self._next_sweep = 0.0
        self._is_called = False
        """Whether there are connections to accept; the selector does not wait for more until then."""
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
            host = _numeric(endpoint.host)
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            address = (host, endpoint.port)
        listening = socket.socket(family, socket.SOCK_STREAM)
        try:
            listening.setblocking(False)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            for buffer in (socket.SO_RCVBUF, socket.SO_SNDBUF):
                listening.setsockopt(socket.SOL_SOCKET, buffer, self._buffer)
            _detect_dead_peers(listening)
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
        if self._queues[0]:
            seconds = 0.0
        elif self._is_called or any(self._queues):
            seconds = max(0.0, self._others_at - time.monotonic())
        for key, events in self._selector.select(seconds):
            peer = key.data
            if peer is None:
                self._is_called = True
                self._selector.unregister(self._socket)
            elif not peer.is_closed:
                self._on_event(peer, events)
        now = time.monotonic()
        if now >= self._next_sweep:
            self._next_sweep = now + SWEEP_S
            self._close_stalled(now)
            self._forget()

    def robots(self) -> Iterator[tuple[Peer, list[Body]]]:
        """Messages that came from robots, each as its peer and its frames; of wrong ones, three frames."""
        end = time.monotonic() + ROBOTS.seconds
        for _ in range(len(self._queues[0])):
            if time.monotonic() > end:
                return
            yield from self._visit_next(0, ROBOTS)

    def others(self) -> Iterator[tuple[Peer, list[Body]]]:
        """Messages of the other peers, unless it is time for a pause.

        Half of the turns are of the lowest rank, so that who was served least comes first; the others are of each rank
        in turn, so that new connections without end do not keep the next step from those that came before.
        """
        begin = time.monotonic()
        if begin < self._others_at or not (self._is_called or any(self._queues[1:])):
            return
        processor = time.thread_time()
        if self._is_called:
            self._accept()
        end = begin + OTHERS.seconds
        for rank in itertools.cycle(range(1, RANKS)):
            if time.monotonic() > end or not any(self._queues[1:]):
                break
            lowest = next(r for r in range(1, RANKS) if self._queues[r])
            yield from self._visit_next(lowest, OTHERS)
            if rank > lowest:
                yield from self._visit_next(rank, OTHERS)
        self._spent += time.thread_time() - processor
        if self._spent > MIN_PAUSE_S:
            self._others_at = time.monotonic() + min(self._spent, MAX_PAUSE_S)
            self._spent = 0.0

    def send(self, peer: Peer, frames: list[bytes]) -> None:
        """Reply with a message; a peer that has gone gets none."""
        if not peer.is_closed:
            self._write(peer, peer.engine.encode_message(frames))

    def trust(self, peer: Peer) -> None:
        """The peer is a robot: a policy answered it."""
        peer.credit = min(peer.credit + CREDIT_PER_DECISION, CREDIT)
        if peer.queued:  # among others
            self._put(peer)

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
        """Accept some of those that call."""
        for _ in range(ACCEPTS):
            if len(self._peers) >= MAX_PEERS:
                self._make_room()
            try:
                connection, _ = self._socket.accept()
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE) or not self._peers:
                    break
                self._make_room()
                continue
            connection.setblocking(False)
            engine = Engine(self._mechanism(), self._max_frame)
            peer = Peer(connection, engine, time.monotonic())
            self._peers[peer] = None
            self._watch(peer, selectors.EVENT_READ)
            self._send_pending(peer)
        self._is_called = False
        self._selector.register(self._socket, selectors.EVENT_READ, None)

    def _make_room(self) -> None:
        """Close the oldest connection that is no robot's, as far as is known."""
        oldest = next(iter(self._peers))
        self._close(next((peer for peer in self._peers if peer.rank), oldest))

    def _close(self, peer: Peer) -> None:
        if peer.is_closed:
            return
        self._watch(peer, 0)
        peer.is_closed = True
        peer.engine.clear()
        peer.outbox.clear()
        self._count_held(peer)
        peer.socket.close()
        del self._peers[peer]

    def _close_stalled(self, now: float) -> None:
        for peer in [*self._peers]:
            is_ready = peer.engine.is_ready
            allowed = STALL_S if is_ready else HANDSHAKE_S
            is_due = peer.outbox or peer.engine.is_amid_message or not is_ready
            if is_due and peer.queued is None and now - peer.began > allowed:
                self._close(peer)

    def _forget(self) -> None:
        """Let time pass for all accounts."""
        for account in {*self._accounts.values(), *(peer.account for peer in self._peers)}:
            account.served *= 0.5 ** (SWEEP_S / HALF_LIFE_S)

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

    def _on_event(self, peer: Peer, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            self._flush(peer)
        elif peer.queued is not None:
            self._watch(peer, 0)  # it waits for its turn: do not hear of it again
        else:
            peer.may_have_data = True
            self._queue(peer)

    def _await_whole(self, peer: Peer) -> None:
        """Hear of a robot again when all of its long frame is there, not for each piece of it."""
        wanted = 1 if peer.rank else max(1, peer.engine.missing)
        if wanted != peer.awaited:
            peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, wanted)
            peer.awaited = wanted

    def _queue(self, peer: Peer) -> None:
        """Let a peer wait for its turn if there is something to read, else for the system to say so."""
        if peer.is_closed or peer.queued is not None or peer.outbox:
            return
        if peer.may_have_data:
            self._put(peer)
        else:
            self._await_whole(peer)
            self._watch(peer, selectors.EVENT_READ)

    def _put(self, peer: Peer) -> None:
        peer.queued = peer.rank
        self._queues[peer.rank].append(peer)

    # -------------------------------------------------------------------- bytes

    def _visit_next(self, rank: int, share: Share) -> Iterator[tuple[Peer, list[Body]]]:
        """Messages of the peer that waits the longest, unless it has changed its rank meanwhile."""
        queue = self._queues[rank]
        peer = queue.popleft() if queue else None
        if peer is None or peer.queued != rank or peer.is_closed:
            return
        if not rank:  # no robot is charged, and to ask for the processor's time takes some
            yield from self._visit(peer, share)
            return
        begin = time.thread_time()
        yield from self._visit(peer, share)
        self._charge(peer, time.thread_time() - begin)

    def _visit(self, peer: Peer, share: Share) -> Iterator[tuple[Peer, list[Body]]]:
        """Messages of one peer, up to its share."""
        peer.queued = None
        messages = reads = 0
        most = min(share.messages, max(1, peer.credit))
        if peer.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._close(peer)  # it has gone, and what it sent before is not worth reading
        while messages < most and not peer.is_closed and not peer.outbox:
            try:
                message = peer.engine.next_message()
            except ProtocolError:
                self._close(peer)
                return
            self._count_held(peer)
            if message is not None:
                messages += 1
                peer.began = time.monotonic()
                self._send_pending(peer)
                if message:
                    peer.credit = max(0, peer.credit - 1)
                    yield peer, message
            elif reads < share.reads and peer.may_have_data:
                reads += 1
                self._read(peer)
            else:
                break
        else:
            peer.may_have_data |= bool(peer.held)  # there may be another message in the inbox
        self._queue(peer)

    def _charge(self, peer: Peer, seconds: float) -> None:
        key = peer.engine.peer_key
        if key and peer.account is not self._accounts.get(key):
            peer.account = self._accounts.setdefault(key, peer.account)
        peer.account.served += seconds

    def _read(self, peer: Peer) -> None:
        room = peer.engine.room(self._scratch, CHUNK if peer.rank else self._max_frame)
        try:
            count = peer.socket.recv_into(room)
        except BlockingIOError:
            peer.may_have_data = False
            return
        except OSError:
            count = 0
        if not count:
            self._close(peer)
            return
        if peer.engine.is_ready and not peer.engine.is_amid_message:
            peer.began = time.monotonic()
        peer.engine.add(room[:count])
        # of a long frame, the selector says when all of it is there
        peer.may_have_data = count == len(room) and room is self._scratch
        self._count_held(peer)
        if self._held > MAX_HELD:
            holders = (other for other in self._peers if other.rank and other.held >= CHUNK)
            self._close(next(holders, peer))  # the oldest connection

    def _count_held(self, peer: Peer) -> None:
        held = peer.engine.held
        self._held += held - peer.held
        peer.held = held

    def _send_pending(self, peer: Peer) -> None:
        if peer.engine.pending:
            self._write(peer, bytes(peer.engine.pending))
            peer.engine.pending.clear()

    def _write(self, peer: Peer, data: bytes) -> None:
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
            peer.may_have_data = True  # as far as is known
            self._watch(peer, selectors.EVENT_READ)
            self._queue(peer)


def _numeric(host: str) -> str:
    """An address; that of `localhost` is not looked up."""
    return "127.0.0.1" if host.lower() == LOCALHOST else "0.0.0.0" if host == "*" else host


def _detect_dead_peers(listening: socket.socket) -> None:
    """Let the system notice within some seconds that the computer at the other end of a connection has gone.

    Connections inherit these options, and that replies are sent at once.
    """
    if listening.family == socket.AF_UNIX:
        return
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 3), ("TCP_KEEPINTVL", 1), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            listening.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _free_path(name: str) -> Path:
    """The path of a socket, after that of a server that has gone was removed. Raises OSError if one listens there."""
    path = Path(name)
    in_use = OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise in_use
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(name)
            except ConnectionRefusedError:
                path.unlink()
            else:
                raise in_use
    return path
