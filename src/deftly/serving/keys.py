"""Keys of policy server and robots (CURVE), and which addresses need them.

FOLDER/server/server.key_secret     stays on the server's computer: `deftly serve --keys FOLDER/server`
FOLDER/server/server.key
FOLDER/server/clients/robot.key     the robots that are answered: one file each, read when the server starts
FOLDER/robot/client.key_secret      goes to the robot: `Client(..., keys=Path("robot"))`
FOLDER/robot/server.key             whom the robot trusts
"""

from __future__ import annotations

import ipaddress
import logging
import shutil
from pathlib import Path

import zmq
import zmq.auth
from zmq.auth.thread import ThreadAuthenticator

from deftly.console import printable
from deftly.errors import DeftlyError
from deftly.files import KB, FileError, atomic_folder, require_plain

KEY_LENGTH = 40
"""Characters of a key of 32 bytes (Z85, ZeroMQ RFC 32)."""
MAX_BYTES = 64 * KB
"""Largest file of a key that is read."""


def is_local(endpoint: str) -> bool:
    """Whether only this computer can reach an endpoint. Raises DeftlyError for what is neither tcp nor ipc."""
    scheme, _, address = endpoint.partition("://")
    if scheme not in ("tcp", "ipc", "inproc") or not address:
        raise DeftlyError(f"cannot serve on '{endpoint}': write it as tcp://127.0.0.1:5555")
    host = address.rpartition(":")[0].strip("[]")
    try:
        return scheme != "tcp" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # `*`, or an interface's name


def new_keys(folder: Path) -> None:
    """Write keys for a server and one robot into `folder`, atomically; secret files are the owner's alone.

    Raises DeftlyError if the folder exists: nothing is overwritten.
    """
    folder = folder.absolute()
    if folder.exists():
        raise DeftlyError(
            f"--new-keys: '{folder}' exists, and keys are never overwritten; name another folder"
        )
    with atomic_folder(folder) as scratch:
        scratch.chmod(0o700)  # before there is a secret
        for part, name in (("server", "server"), ("robot", "client")):
            (scratch / part).mkdir(mode=0o700)
            for file in zmq.auth.create_certificates(scratch / part, name):
                Path(file).chmod(0o600)
        (scratch / "server/clients").mkdir()
        (scratch / "robot/client.key").rename(scratch / "server/clients/robot.key")
        shutil.copy(scratch / "server/server.key", scratch / "robot/server.key")


def load_key(path: Path) -> tuple[bytes, bytes | None]:
    """The public and the secret key (if it holds one) in a file. Raises FileError unless it is a small plain file."""
    require_plain(path, "a key", MAX_BYTES)
    try:
        public, secret = zmq.auth.load_certificate(path)
    except Exception as error:  # of a file that is cut off, or none of ZeroMQ's: several kinds
        raise FileError(f"cannot read '{path}' as a key: {printable(error, 160)}") from None
    if len(public) != KEY_LENGTH or len(secret or public) != KEY_LENGTH:
        raise FileError(f"cannot read '{path}' as a key: keys have {KEY_LENGTH} characters")
    return public, secret


def lock(socket: zmq.Socket, folder: Path) -> ThreadAuthenticator:
    """Let a server's socket, not yet bound, speak only with the robots whose keys are in `folder`/clients.

    Returns what checks them, to be stopped with the socket. Raises DeftlyError if a key cannot be read.
    """
    own, clients = folder / "server.key_secret", folder / "clients"
    try:
        public, secret = load_key(own)
        for file in clients.glob("*.key"):
            load_key(file)
        allowed = zmq.auth.load_certificates(clients)
        if secret is None or zmq.curve_public(secret) != public:
            raise ValueError(f"no pair of keys in {own}")
    except (OSError, ValueError, zmq.ZMQError, FileError) as error:
        raise DeftlyError(
            f"--keys: {printable(error)}; 'deftly serve --new-keys DIR' makes keys"
        ) from None
    if not allowed:
        raise DeftlyError(
            f"--keys: '{clients}' holds no robot's key (NAME.key), so none could be answered"
        )
    authenticator = ThreadAuthenticator(socket.context, log=logging.getLogger("deftly.serve.keys"))
    authenticator.start()
    authenticator.configure_curve("deftly", clients)
    socket.set(zmq.ZAP_DOMAIN, b"deftly")
    socket.set(zmq.ZAP_ENFORCE_DOMAIN, 1)  # were the authenticator gone, nobody is answered
    socket.curve_publickey, socket.curve_secretkey, socket.curve_server = public, secret, True
    return authenticator
