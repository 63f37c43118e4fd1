"""Addresses of policy servers, such as `tcp://127.0.0.1:5555`: what they mean, and who can reach them."""

from __future__ import annotations

import ipaddress
from typing import NamedTuple

from deftly.console import printable
from deftly.errors import DeftlyError

MAX_PORT = 65_535
EXAMPLE = "tcp://127.0.0.1:5555"
LOCALHOST = "localhost"
WEBSOCKET_EXAMPLE = "ws://127.0.0.1:8000"
WEBSOCKETS = ("ws", "wss")
"""Schemes of openpi's protocol; `wss` is encrypted, and its server is known by its certificate."""


class Endpoint(NamedTuple):
    """An address, taken apart."""

    scheme: str
    """`tcp`, or `ipc`: a socket in the file system; of openpi's protocol `ws` or `wss`."""
    host: str
    """Address, name or interface, without brackets; the path of `ipc`."""
    port: int
    """0: a free one, or none at all (`ipc`)."""

    @property
    def is_local(self) -> bool:
        """Whether only this computer can reach it."""
        if self.scheme == "ipc" or self.host.lower() == LOCALHOST:
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False  # `*`, a name, or an interface's


def read_endpoint(text: str) -> Endpoint:
    """The parts of an endpoint. Raises DeftlyError unless it is `tcp://HOST:PORT` or `ipc://PATH`."""
    scheme, _, address = text.partition("://")
    if scheme == "ipc" and address:
        return Endpoint(scheme, address, 0)
    host, _, port = address.rpartition(":")
    if scheme != "tcp" or not host or not port:
        raise DeftlyError(f"'{printable(text, 100)}' is no endpoint: write it as {EXAMPLE}")
    return Endpoint(scheme, host.strip("[]"), _port(text, port, EXAMPLE))


def read_websocket(text: str) -> Endpoint:
    """The parts of an endpoint of openpi's protocol. Raises DeftlyError unless it is `ws://HOST:PORT` or `wss://`."""
    scheme, _, address = text.partition("://")
    host, _, port = address.removesuffix("/").rpartition(":")
    if scheme not in WEBSOCKETS or not host or not port or set(address[:-1]) & set("/?#@"):
        raise DeftlyError(
            f"'{printable(text, 100)}' is no endpoint: write it as {WEBSOCKET_EXAMPLE}"
        )
    return Endpoint(scheme, host.strip("[]"), _port(text, port, WEBSOCKET_EXAMPLE))


def is_websocket(text: str) -> bool:
    """Whether this is meant as an endpoint of openpi's protocol."""
    return text.partition("://")[0] in WEBSOCKETS


def _port(text: str, port: str, example: str) -> int:
    """A port; 0 is a free one, which `*` is too. Raises DeftlyError for none."""
    if port == "*":
        return 0
    if not (port.isascii() and port.isdecimal() and len(port) <= 5 and int(port) <= MAX_PORT):
        raise DeftlyError(
            f"'{printable(text, 100)}' has no port: it is a number up to {MAX_PORT}, as in {example}"
        )
    return int(port)
