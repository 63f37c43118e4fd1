"""The mechanism CURVE of ZMTP, a server's end: peers are encrypted, and only those on a list are spoken with.

RFC 26 (https://rfc.zeromq.org/spec/26), after CurveCP. Its boxes are libsodium's, by PyNaCl (the extra `keys`). A
robot's end is libzmq's. Both ends have a long-term pair of keys and make a short-term one for each connection:

    HELLO     robot  -> server   the robot's short-term key, and a proof that it has the secret of it
    WELCOME   server -> robot    the server's short-term key, and a cookie
    INITIATE  robot  -> server   the cookie, its long-term key, and a proof that it has the secret of that: the vouch
    READY     server -> robot
    MESSAGE   either way         a frame, under the short-term keys
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable
from typing import ClassVar

from nacl.exceptions import CryptoError
from nacl.public import Box, PrivateKey, PublicKey

from deftly.serving.keys import KEY_BYTES, ServerKeys
from deftly.serving.zmtp import (
    COMMAND,
    MORE,
    ROUTER_METADATA,
    Body,
    ProtocolError,
    encode,
    require_peer_type,
)

COOKIE, SHORT_NONCE, LONG_NONCE = 96, 8, 16
"""Bytes of a cookie, and of the parts of a nonce that are sent."""
TAG = 16
"""Bytes by which a box is longer than what is in it."""
HELLO = b"\x05HELLO\x01\x00"
"""Name and version."""
HELLO_SIZE = 200
INITIATE = b"\x08INITIATE"
MESSAGE = b"\x07MESSAGE"
INNER_MORE, INNER_COMMAND = 1, 2
"""Flags of a frame that is in a box; the first byte in it."""


class Curve:
    """The handshake and the frames of one connection with a robot that is on the list."""

    name: ClassVar[bytes] = b"CURVE"
    is_server: ClassVar[bool] = True
    overhead: ClassVar[int] = len(MESSAGE) + SHORT_NONCE + TAG + 1

    def __init__(self, keys: ServerKeys, secret: PrivateKey | None = None):
        """Args: `secret` is that of the keys, if it was read before: a new connection shall cost little."""
        self.is_ready = False
        self.peer_key = b""
        self._keys = keys
        self._secret = secret or PrivateKey(keys.secret)
        self._robot_short = b""
        """The robot's short-term public key; empty until HELLO came."""
        self._short_secret: PrivateKey | None = None
        self._cookie = b""
        self._box: Box | None = None
        """Between the short-term keys."""
        self._last_received = 0
        self._last_sent = 0

    def handshake(self, command: bytes) -> bytes:
        """WELCOME for the first command, which is HELLO; READY for the second, INITIATE.

        Raises ProtocolError for any other, and for a robot that is not on the list.
        """
        return self._ready(command) if self._robot_short else self._welcome(command)

    def open(self, flags: int, body: Body) -> tuple[int, Body]:
        """Flags and body that are in the box of a MESSAGE."""
        del flags  # not authenticated
        body = bytes(body)
        if not body.startswith(MESSAGE):
            raise ProtocolError
        nonce, box = _split(body[len(MESSAGE) :], SHORT_NONCE)
        plain = self._open_short(b"CurveZMQMESSAGEC", nonce, box)
        if not plain:
            raise ProtocolError
        inner, body = plain[0], plain[1:]
        if inner == INNER_COMMAND:
            return COMMAND, body
        return (MORE if inner & INNER_MORE else 0), body

    def seal(self, flags: int, body: bytes) -> bytes:
        """A MESSAGE, as a whole frame."""
        inner = INNER_COMMAND if flags & COMMAND else flags & MORE
        return encode(MESSAGE + self._seal_short(b"CurveZMQMESSAGES", bytes((inner,)) + body))

    def _welcome(self, hello: bytes) -> bytes:
        if not hello.startswith(HELLO) or len(hello) != HELLO_SIZE:
            raise ProtocolError
        robot_short, nonce, box = _split(hello[HELLO_SIZE - 120 :], KEY_BYTES, SHORT_NONCE)
        self._receive(nonce)
        long_box = _box(self._secret, robot_short)
        plain = _open(long_box, b"CurveZMQHELLO---" + nonce, box)
        if plain != bytes(64):
            raise ProtocolError
        short = PrivateKey.generate()
        self._robot_short = robot_short
        self._short_secret = short
        self._box = _box(short, robot_short)
        self._cookie = secrets.token_bytes(COOKIE)  # this connection remembers, so it may be opaque
        nonce = secrets.token_bytes(LONG_NONCE)
        plain = bytes(short.public_key) + self._cookie
        return b"\x07WELCOME" + nonce + _seal(long_box, b"WELCOME-" + nonce, plain)

    def _ready(self, initiate: bytes) -> bytes:
        if not initiate.startswith(INITIATE):
            raise ProtocolError
        cookie, nonce, box = _split(initiate[len(INITIATE) :], COOKIE, SHORT_NONCE)
        if not hmac.compare_digest(cookie, self._cookie):
            raise ProtocolError
        plain = self._open_short(b"CurveZMQINITIATE", nonce, box)
        robot, vouch_nonce, vouch, metadata = _split(
            plain, KEY_BYTES, LONG_NONCE, 2 * KEY_BYTES + TAG
        )
        if robot not in self._keys.robots:
            raise ProtocolError
        assert self._short_secret
        vouched = _open(_box(self._short_secret, robot), b"VOUCH---" + vouch_nonce, vouch)
        if vouched != self._robot_short + self._keys.public:
            raise ProtocolError
        require_peer_type(metadata, b"")
        self.is_ready = True
        self.peer_key = robot
        return b"\x05READY" + self._seal_short(b"CurveZMQREADY---", ROUTER_METADATA)

    def _open_short(self, prefix: bytes, nonce: bytes, box: bytes) -> bytes:
        self._receive(nonce)
        assert self._box
        return _open(self._box, prefix + nonce, box)

    def _seal_short(self, prefix: bytes, plain: bytes) -> bytes:
        """Nonce and box."""
        self._last_sent += 1
        nonce = self._last_sent.to_bytes(SHORT_NONCE, "big")
        assert self._box
        return nonce + _seal(self._box, prefix + nonce, plain)

    def _receive(self, nonce: bytes) -> None:
        """Raise ProtocolError unless the nonce is later than the one before: nothing is taken twice."""
        number = int.from_bytes(nonce, "big")
        if number <= self._last_received:
            raise ProtocolError
        self._last_received = number


def curve(keys: ServerKeys) -> Callable[[], Curve]:
    """What makes a server's end of a new connection."""
    secret = PrivateKey(keys.secret)
    return lambda: Curve(keys, secret)


def _box(secret: PrivateKey, public: bytes) -> Box:
    """The box between two keys. Raises ProtocolError for a public key that is none."""
    try:
        return Box(secret, PublicKey(public))
    except CryptoError:  # too short, or of low order
        raise ProtocolError from None


def _open(box: Box, nonce: bytes, sealed: bytes) -> bytes:
    try:
        return box.decrypt(sealed, nonce)
    except CryptoError:
        raise ProtocolError from None


def _seal(box: Box, nonce: bytes, plain: bytes) -> bytes:
    return box.encrypt(plain, nonce).ciphertext


def _split(data: bytes, *sizes: int) -> list[bytes]:
    """Parts of these sizes, and the rest. Raises ProtocolError if there is not enough."""
    parts = []
    for size in sizes:
        if len(data) < size:
            raise ProtocolError
        parts.append(data[:size])
        data = data[size:]
    return [*parts, data]
