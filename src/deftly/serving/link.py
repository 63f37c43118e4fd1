"""A robot's connection to a policy server: waits no longer than told, and never takes one answer for another's."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import zmq
import zmq.auth

from deftly.console import printable
from deftly.errors import DeftlyError
from deftly.policy.protocol import PolicyError
from deftly.serving.endpoint import EXAMPLE, read_endpoint
from deftly.serving.keys import load_key
from deftly.serving.wire import MAX_FRAME, VERSION, WireError, pack, unpack

OPTIONS = {zmq.LINGER: 0, zmq.IMMEDIATE: 1, zmq.SNDHWM: 1, zmq.RCVHWM: 4, zmq.MAXMSGSIZE: MAX_FRAME}
OPTIONS |= {
    zmq.RECONNECT_IVL: 50,
    zmq.CONNECT_TIMEOUT: 1000,
}  # ms; IMMEDIATE: nothing queues for a server that is away
OPTIONS[zmq.SNDBUF] = 2**20  # bytes: the images of a message are sent at once


WINDOW = 8
"""Requests that are on their way at one time."""


class Refused(PolicyError):
    """The server answered with an error; `code` is its short name (docs/wire.md)."""

    code: object = None


def _robot_keys(folder: Path) -> tuple[bytes, bytes, bytes]:
    """The server's public key, and the robot's public and secret one. Raises DeftlyError for other files."""
    server, servers_secret = load_key(folder / "server.key")
    if servers_secret is not None:
        raise DeftlyError(
            f"'{printable(folder / 'server.key')}' holds the server's secret, which is for the server alone: copy its "
            "server.key here, and make new keys if others could read it"
        )
    public, secret = load_key(folder / "client.key_secret")
    if secret is None:
        raise DeftlyError(
            f"'{printable(folder / 'client.key_secret')}' holds no secret: 'deftly serve --new-keys DIR' makes keys"
        )
    return server, public, secret


class Connection:
    """Requests to a policy server, and their answers. `keys` is the robot's folder of `deftly serve --new-keys`."""

    def __init__(self, endpoint: str, keys: Path | None = None):
        self.endpoint, self._seq, self._unanswered, self._keys = (
            endpoint,
            0,
            False,
            (None, None, None),
        )
        self._closed = False
        self.most = MAX_FRAME
        """Bytes of the longest message that the server reads; more once it is known which images a robot sends."""
        if not isinstance(endpoint, str):
            kind = type(endpoint).__name__
            raise PolicyError(f"endpoint is a {kind}, expected text such as {EXAMPLE}")
        try:
            where = read_endpoint(endpoint)
            if where.scheme == "tcp" and not where.port:
                raise ValueError("it has no port: a server prints its own when it starts")
            if keys is None and not where.is_local:  # who answers tells the robot its limits
                raise ValueError(
                    "anybody could answer there: give --keys FOLDER, which 'deftly serve --new-keys' makes"
                )
            if keys is not None:
                self._keys = _robot_keys(Path(keys))
            self._open()
        except (OSError, ValueError, TypeError, zmq.ZMQError, DeftlyError) as error:
            raise PolicyError(f"cannot connect to '{endpoint}': {printable(error)}") from None

    def _open(self) -> None:
        self._socket = zmq.Context.instance().socket(zmq.DEALER)
        for option, value in {**OPTIONS, zmq.IPV6: int("[" in self.endpoint)}.items():
            self._socket.set(option, value)
        if self._keys[0]:
            (
                self._socket.curve_serverkey,
                self._socket.curve_publickey,
                self._socket.curve_secretkey,
            ) = self._keys
        self._socket.connect(self.endpoint)
        self._poller = zmq.Poller()

    def ask(self, kind: str, timeout: float, **fields: Any) -> dict[str, Any]:
        """The answer to one message. Raises Refused if it is an error, PolicyError if there is none in `timeout` s."""
        return self.ask_all(kind, timeout, [fields])[0]

    def ask_all(
        self, kind: str, timeout: float, messages: Sequence[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """The answers to several messages of one kind, in their order; those of `WINDOW` are waited for together.

        Raises as `ask` does, for the first that is refused, when all of its window are answered.
        """
        replies: list[dict[str, Any]] = []
        for first in range(0, len(messages), WINDOW):
            replies += self._exchange(kind, timeout, messages[first : first + WINDOW])
        return replies

    def _exchange(
        self, kind: str, timeout: float, messages: Sequence[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        self.require_open()
        deadline = time.monotonic() + timeout
        if (
            self._unanswered
        ):  # its answer may still come; and to a server that is stopped, requests would pile up
            self._socket.close(0)
            self._open()
            self._unanswered = False
        asked = [self._send(kind, deadline, timeout, fields) for fields in messages]
        replies: dict[int, dict[str, Any]] = {}
        while len(replies) < len(asked) and self._ready(zmq.POLLIN, deadline):
            with suppress(WireError):
                reply = unpack(self._socket.recv_multipart()[-1])
                if reply.get("type") == kind and reply.get("seq") in asked:
                    replies[reply["seq"]] = reply
        if len(replies) < len(asked):
            raise PolicyError(f"no answer to '{kind}' from {self.endpoint} within {timeout:g} s")
        self._unanswered = False
        for reply in replies.values():
            if reply.get("ok") is not True:
                refused = Refused(
                    f"policy server refused '{kind}': {printable(reply.get('error'))}"
                )
                refused.code = reply.get("code")
                raise refused
        return [replies[seq] for seq in asked]

    def _send(self, kind: str, deadline: float, timeout: float, fields: dict[str, Any]) -> int:
        """Send a message; returns its number."""
        self._seq += 1
        envelope = {"v": VERSION, "type": kind, "seq": self._seq, "time": time.time()}
        try:
            frame = pack({**envelope, **fields})
        except (ValueError, TypeError, OverflowError) as error:  # such as text that is no UTF-8
            raise PolicyError(f"cannot send '{kind}': {printable(error, 160)}") from None
        if len(frame) > self.most:  # the server would close the connection without a word
            raise PolicyError(
                f"message of {len(frame)} bytes, {self.endpoint} reads at most {self.most}"
            )
        if not self._sent(frame):
            if not self._ready(zmq.POLLOUT, deadline):
                raise PolicyError(f"no policy server at {self.endpoint} (waited {timeout:g} s)")
            self._sent(frame)  # if the connection broke just now, no answer will come
        self._unanswered = True
        return self._seq

    def _sent(self, frame: bytes) -> bool:
        """Whether the connection took a message at once."""
        try:
            self._socket.send_multipart([b"", frame], zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def _ready(self, event: int, deadline: float) -> bool:
        left = deadline - time.monotonic()
        self._poller.register(self._socket, event)
        return left > 0 and bool(self._poller.poll(max(1, round(1000 * left))))

    def require_open(self) -> None:
        """Raise PolicyError after `close`."""
        if self._closed:
            raise PolicyError(f"the client of {self.endpoint} is closed: make a new one")

    def close(self) -> None:
        """Let go of the socket; nothing can be asked any more."""
        self._closed = True
        self._socket.close(0)
