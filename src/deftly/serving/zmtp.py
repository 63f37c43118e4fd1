"""ZMTP 3, the protocol of ZeroMQ, as a ROUTER speaks it: bytes in, messages out; no sockets.

RFC 23 (https://rfc.zeromq.org/spec/23) with the mechanism NULL; PING of RFC 37. The mechanism CURVE is in curve.py.
"""

from __future__ import annotations

import struct
from typing import ClassVar, Protocol

import numpy as np

MORE, LONG, COMMAND = 1, 2, 4
"""Flags of a frame: another one follows, its size has eight bytes, it is a command."""
GREETING_SIZE = 64
MAX_FRAMES = 1000
"""Frames of the longest message that is answered, with an error; more close the connection."""
FRAMES_AT_ONCE = 16
"""Frames that are taken apart at one time."""
KEPT_FRAMES = 3
"""Frames that are kept of one message: they tell what to answer."""
OWN_BUFFER = 65_536
"""Bytes of the longest frame that is read through the inbox; a longer one, of images, is read into its own buffer."""
ROUTER_METADATA = b"\x0bSocket-Type" + struct.pack(">I", 6) + b"ROUTER"
PEER_TYPES = (b"DEALER", b"REQ", b"ROUTER")
"""Socket types that may speak with a ROUTER."""


Body = bytes | memoryview
"""Content of a frame."""


class ProtocolError(Exception):
    """What a peer sends is not ZMTP, or is beyond the bounds: its connection is closed."""


class Mechanism(Protocol):
    """How two peers agree to speak, and what their frames look like then."""

    name: ClassVar[bytes]
    is_server: ClassVar[bool]
    """What the greeting says of it, which is for mechanisms whose two ends differ."""
    overhead: ClassVar[int]
    """Bytes by which a frame is longer on the wire than its body."""
    is_ready: bool
    """Whether the handshake is over."""
    peer_key: bytes
    """The peer's public key; empty before the handshake is over, or if it has none."""

    def handshake(self, command: bytes) -> bytes:
        """The command that answers one of the peer's. Raises ProtocolError."""
        ...

    def open(self, flags: int, body: Body) -> tuple[int, Body]:
        """Flags and body of a frame that came. Raises ProtocolError."""
        ...

    def seal(self, flags: int, body: bytes) -> bytes:
        """A frame, as it goes out."""
        ...


class Null:
    """No keys: everybody is spoken with."""

    name: ClassVar[bytes] = b"NULL"
    is_server: ClassVar[bool] = False
    overhead: ClassVar[int] = 0

    def __init__(self):
        self.is_ready = False
        self.peer_key = b""

    def handshake(self, command: bytes) -> bytes:
        """READY is answered with READY."""
        require_peer_type(command, b"\x05READY")
        self.is_ready = True
        return b"\x05READY" + ROUTER_METADATA

    def open(self, flags: int, body: Body) -> tuple[int, Body]:
        """As it came."""
        return flags, body

    def seal(self, flags: int, body: bytes) -> bytes:
        """As it is."""
        return encode(body, flags)


class Engine:
    """One connection: what its peer sent, taken apart, and what there is to send.

    Raises ProtocolError from `next_message` for whatever is not ZMTP, not allowed by the mechanism, or too long.
    """

    def __init__(self, mechanism: Mechanism, max_frame: int):
        self.inbox = bytearray()
        """Received, and not yet taken apart."""
        self.pending = bytearray(greeting(mechanism.name, mechanism.is_server))
        """To be sent: greeting, handshake and answers to heartbeats."""
        self._mechanism = mechanism
        self._max_frame = max_frame
        self._is_greeted = False
        self._frames: list[Body] = []
        self._frame_count = 0
        self._long: memoryview | None = None
        """The body of a long frame that has begun."""
        self._long_flags = self._filled = 0

    @property
    def is_ready(self) -> bool:
        """Whether greeting and handshake are over."""
        return self._mechanism.is_ready

    @property
    def peer_key(self) -> bytes:
        """The peer's public key; empty before the handshake is over, or if it has none."""
        return self._mechanism.peer_key

    @property
    def is_amid_message(self) -> bool:
        """Whether a part of a message, or of the handshake, has come."""
        return bool(self.inbox or self._frames or self._long is not None)

    @property
    def held(self) -> int:
        """Bytes that came, and were not yet taken apart."""
        return len(self.inbox) + self._filled

    @property
    def missing(self) -> int:
        """Bytes of the long frame that has begun which have not come yet; 0 if there is none."""
        return 0 if self._long is None else len(self._long) - self._filled

    def room(self, scratch: memoryview, most: int) -> memoryview:
        """Where the next bytes are to be read: `scratch`, or at most so many into the long frame that has begun."""
        if self._long is None:
            return scratch
        return self._long[self._filled : self._filled + most]

    def add(self, data: memoryview) -> None:
        """Take what was read into `room`."""
        if self._long is None:
            self.inbox += data
        else:
            self._filled += len(data)

    def clear(self) -> None:
        """Let go of what came."""
        self.inbox.clear()
        self._long = None
        self._filled = 0

    def next_message(self) -> list[Body] | None:
        """The frames of the next message, of which three are kept; None if more has to come.

        Empty after a command, and after many frames of a message that has still more: there may be a message behind.
        """
        if not self._is_greeted:
            self._is_greeted = self._read_greeting()
            if not self._is_greeted:
                return None
        for _ in range(FRAMES_AT_ONCE):
            frame = self._next_frame()
            if frame is None:
                return None
            flags, body = frame
            if flags & COMMAND:
                self._answer(bytes(body))
                return []
            self._collect(body)
            if not flags & MORE:
                message = self._frames
                self._frames = []
                self._frame_count = 0
                return message
        return []

    def encode_message(self, frames: list[bytes]) -> bytes:
        """A message, as it goes out."""
        *first, last = frames
        seal = self._mechanism.seal
        return b"".join([*(seal(MORE, frame) for frame in first), seal(0, last)])

    def _read_greeting(self) -> bool:
        """Take the greeting out of the inbox, if it is whole."""
        inbox = self.inbox
        for place, byte in ((0, 0xFF), (9, 0x7F)):
            if len(inbox) > place and inbox[place] != byte:
                raise ProtocolError
        if len(inbox) > 10 and inbox[10] < 3:
            raise ProtocolError
        if len(inbox) < GREETING_SIZE:
            return False
        if inbox[12:32] != self._mechanism.name.ljust(20, b"\0"):
            raise ProtocolError
        del inbox[:GREETING_SIZE]
        return True

    def _next_frame(self) -> tuple[int, Body] | None:
        """Flags and body of the next frame, opened; None if it is not whole."""
        frame = self._take_frame()
        if frame is None:
            return None
        flags, body = frame
        if self.is_ready:
            flags, body = self._mechanism.open(flags, body)
        elif not flags & COMMAND:
            raise ProtocolError
        if len(body) > self._max_frame:
            raise ProtocolError
        return flags, body

    def _take_frame(self) -> tuple[int, Body] | None:
        """Take a whole frame out of the inbox, or the long one that has begun."""
        if self._long is not None:
            return self._take_long(self._long)
        inbox = self.inbox
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
        if size > self._max_frame + self._mechanism.overhead:
            raise ProtocolError
        if len(inbox) < head + size:
            if size > OWN_BUFFER:
                self._begin_long(flags & ~LONG, head, size)
            return None
        with memoryview(inbox) as view:
            body = bytes(view[head : head + size])
        del inbox[: head + size]
        return flags & ~LONG, body

    def _begin_long(self, flags: int, head: int, size: int) -> None:
        """Give a frame of which a part has come its own buffer.

        Its memory is taken as it is written to: who only announces a frame holds none.
        """
        body = np.empty(size, np.uint8).data
        self._filled = len(self.inbox) - head
        body[: self._filled] = self.inbox[head:]
        self.inbox.clear()
        self._long = body
        self._long_flags = flags

    def _take_long(self, body: memoryview) -> tuple[int, Body] | None:
        """The long frame that has begun, if it is whole."""
        if self._filled < len(body):
            return None
        self._long = None
        self._filled = 0
        return self._long_flags, body

    def _collect(self, body: Body) -> None:
        self._frame_count += 1
        if self._frame_count > MAX_FRAMES:
            raise ProtocolError
        if self._frame_count < KEPT_FRAMES:
            self._frames.append(body)
        elif self._frame_count == KEPT_FRAMES:  # too many: all that counts is if the first is empty
            self._frames = [bytes(self._frames[0][:1]), b"", b""]

    def _answer(self, command: bytes) -> None:
        if not self.is_ready:
            self.pending += encode(self._mechanism.handshake(command), COMMAND)
        elif command.startswith(b"\x04PING"):
            context = command[7:23]  # after the name and a time to live of two bytes
            self.pending += self._mechanism.seal(COMMAND, b"\x04PONG" + context)


def greeting(mechanism: bytes, is_server: bool = False) -> bytes:
    """The first 64 bytes of a connection: signature, version 3.0, mechanism, and which end of it this is."""
    signature = b"\xff" + bytes(8) + b"\x7f"
    return signature + b"\x03\x00" + mechanism.ljust(20, b"\0") + bytes((is_server,)) + bytes(31)


def encode(body: bytes, flags: int = 0) -> bytes:
    """A frame on the wire."""
    if len(body) < 256:
        return bytes((flags, len(body))) + body
    return bytes((flags | LONG,)) + len(body).to_bytes(8, "big") + body


def require_peer_type(command: bytes, prefix: bytes) -> None:
    """Raise ProtocolError unless a command is this prefix and the properties of a peer that a ROUTER may speak with."""
    if not command.startswith(prefix):
        raise ProtocolError
    properties = _read_properties(command[len(prefix) :])
    if properties.get(b"socket-type") not in PEER_TYPES:
        raise ProtocolError


def _read_properties(data: bytes) -> dict[bytes, bytes]:
    """Properties by name in lower case: each is a size (1), a name, a size (4) and a value."""
    found = {}
    start = 0
    while start < len(data):
        name_end = start + 1 + data[start]
        value_start = name_end + 4
        value_end = value_start + int.from_bytes(data[name_end:value_start], "big")
        if value_start > len(data) or value_end > len(data):
            raise ProtocolError
        found[data[start + 1 : name_end].lower()] = data[value_start:value_end]
        start = value_end
    return found
