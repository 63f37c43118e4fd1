"""Addresses of policy servers, such as `tcp://127.0.0.1:5555`: what they mean, and who can reach them."""

from __future__ import annotations

import ipaddress
from typing import NamedTuple

from deftly.console import printable
from deftly.errors import DeftlyError

MAX_PORT = 65_535
EXAMPLE = "tcp://127.0.0.1:5555"
LOCALHOST = "localhost"


class Endpoint(NamedTuple):
    """An address, taken apart."""

    scheme: str
    """`tcp`, or `ipc`: a socket in the file system."""
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
    if port == "*":
        return Endpoint(scheme, host.strip("[]"), 0)
    if not (port.isascii() and port.isdecimal() and len(port) <= 5 and int(port) <= MAX_PORT):
        raise DeftlyError(
            f"'{printable(text, 100)}' has no port: it is a number up to {MAX_PORT}, as in {EXAMPLE}"
        )
    return Endpoint(scheme, host.strip("[]"), int(port))
