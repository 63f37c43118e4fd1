"""Messages of robots with keys: a ZeroMQ ROUTER, whose peers are encrypted and on a list (CURVE).

Its interface is that of `zmtp.Listener`. libzmq 4.3.5 aborts the process when a ROUTER with heartbeats stops reading a
peer that floods, so dead peers are left to the system's keep-alive.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import zmq

from deftly.serving.keys import lock
from deftly.serving.zmtp import HANDSHAKE_S

MAX_ROUND, ROUND_S = 64, 0.002
"""Messages and seconds after which reading stops and what was read is answered."""
MAX_WAITING = 16
"""Messages of a peer that are read before they are due."""


class Router:
    """Messages of robots whose keys are in `keys`/clients. Raises ZMQError if it cannot bind, DeftlyError for bad keys.

    At most `max_replies` wait for each peer; more are dropped.
    """

    def __init__(self, endpoint: str, max_frame: int, keys: Path, max_replies: int):
        self._context = zmq.Context()
        self._auth = None
        try:
            self._socket = self._context.socket(zmq.ROUTER)
            options = {
                zmq.LINGER: 0,
                zmq.MAXMSGSIZE: max_frame,
                zmq.RCVHWM: MAX_WAITING,
                zmq.SNDHWM: max_replies,
                zmq.HANDSHAKE_IVL: round(1000 * HANDSHAKE_S),
                zmq.TCP_KEEPALIVE: 1,
                zmq.TCP_KEEPALIVE_IDLE: 3,
                zmq.TCP_KEEPALIVE_INTVL: 1,
                zmq.TCP_KEEPALIVE_CNT: 3,
                zmq.IPV6: int("[" in endpoint),
            }
            for option, value in options.items():
                self._socket.set(option, value)
            self._auth = lock(self._socket, keys)
            self._socket.bind(endpoint)
            self.endpoint = self._socket.get_string(zmq.LAST_ENDPOINT)
        except BaseException:
            self.close()
            raise

    def wait(self, seconds: float) -> None:
        """Return when something may have come, or after `seconds`."""
        self._socket.poll(round(1000 * seconds))

    def messages(self) -> Iterator[tuple[bytes, list[bytes]]]:
        """One round: messages that came, each as its peer's routing id and its frames, of which three are kept."""
        end = time.monotonic() + ROUND_S
        for _ in range(MAX_ROUND):
            try:
                peer = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            frames: list[bytes] = []
            while self._socket.rcvmore:
                frame = self._socket.recv()
                if len(frames) < 3:
                    frames.append(frame)
            yield peer, frames
            if time.monotonic() > end:
                return

    def send(self, peer: bytes, frame: bytes, delimited: bool) -> None:
        """Reply with one frame, after an empty one if `delimited`.

        It is lost if the peer has gone, or does not read.
        """
        frames = [peer, b"", frame] if delimited else [peer, frame]
        with suppress(zmq.ZMQError):
            self._socket.send_multipart(frames, zmq.NOBLOCK)

    def trust(self, peer: bytes) -> None:
        """Nothing: all are on the list."""

    def doubt(self, peer: bytes) -> None:
        """Nothing: all are on the list."""

    def close(self) -> None:
        """Let go of the socket."""
        if self._auth:
            self._auth.stop()
            self._auth = None
        self._context.destroy(linger=0)
