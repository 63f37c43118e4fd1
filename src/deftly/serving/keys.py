"""Keys of policy server and robots (CURVE), and which addresses need them.

FOLDER/server/server.key_secret     stays on the server's computer: `deftly serve --keys FOLDER/server`
FOLDER/server/server.key
FOLDER/server/clients/robot.key     the robots that are answered: one file each, read when the server starts
FOLDER/robot/client.key_secret      goes to the robot: `Client(..., keys=Path("robot"))`
FOLDER/robot/server.key             whom the robot trusts
FOLDER/{server,robot}/openpi.token  what a client of openpi's protocol says to be answered: its api_key
"""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
import stat
from pathlib import Path
from typing import NamedTuple

import zmq
import zmq.auth
from zmq.utils import z85

from deftly.console import printable
from deftly.errors import DeftlyError
from deftly.files import KB, FileError, atomic_folder, read_text, require_plain

KEY_LENGTH = 40
"""Characters of a key of 32 bytes (Z85, ZeroMQ RFC 32)."""
MAX_BYTES = 64 * KB
"""Largest file of a key that is read."""
KEY_BYTES = 32
TOKEN = "openpi.token"
"""File of the token in a folder of keys."""
MIN_TOKEN, MAX_TOKEN = 32, 256
"""Characters of a token."""


class ServerKeys(NamedTuple):
    """The long-term keys that a server needs, of `KEY_BYTES` each (Curve25519)."""

    secret: bytes
    public: bytes
    robots: frozenset[bytes]
    """Public keys of the robots that are answered."""


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
        token = secrets.token_hex(KEY_BYTES)
        for part in ("server", "robot"):
            (scratch / part / TOKEN).touch(mode=0o600)
            (scratch / part / TOKEN).write_text(token + "\n")


def load_key(path: Path) -> tuple[bytes, bytes | None]:
    """The public and the secret key (if it holds one) in a file.

    Raises FileError unless it is a small plain file of keys, DeftlyError if it holds a secret that others can read.
    """
    public, secret = _read_key(path)
    if secret is not None and _mode(path) & 0o077:
        raise DeftlyError(
            f"'{printable(path)}' is a secret that other users can read: make new keys, or if nobody did, "
            f"chmod 600 {shlex.quote(str(path))}"
        )
    return public, secret


def _read_key(path: Path) -> tuple[bytes, bytes | None]:
    """As `load_key`, whoever can read it."""
    require_plain(path, "a key", MAX_BYTES)
    try:
        public, secret = zmq.auth.load_certificate(path)
    except Exception as error:  # of a file that is cut off, or none of ZeroMQ's: several kinds
        raise FileError(
            f"cannot read '{printable(path)}' as a key: {printable(error, 160)}"
        ) from None
    if len(public) != KEY_LENGTH or len(secret or public) != KEY_LENGTH:
        raise FileError(
            f"cannot read '{printable(path)}' as a key: keys have {KEY_LENGTH} characters"
        )
    return public, secret


def load_token(folder: Path) -> str:
    """The token of a folder of keys. Raises DeftlyError if it has none, or one that others can read."""
    path = folder / TOKEN
    if not path.exists():
        raise DeftlyError(
            f"'{printable(folder)}' has no {TOKEN}, which openpi's protocol needs: 'deftly serve --new-keys DIR' makes "
            "one for the server and one for the robot"
        )
    token = read_text(path, "a token", MAX_BYTES).strip()
    if _mode(path) & 0o077:
        raise DeftlyError(
            f"'{printable(path)}' is a secret that other users can read: chmod 600 {shlex.quote(str(path))}, if "
            "nobody did"
        )
    if not MIN_TOKEN <= len(token) <= MAX_TOKEN or not token.isascii() or not token.isalnum():
        raise FileError(
            f"cannot read '{printable(path)}' as a token: it is {MIN_TOKEN} to {MAX_TOKEN} letters and digits"
        )
    return token


def _mode(path: Path) -> int:
    """Permissions of a file or folder; where the system has none, those of a secret."""
    return stat.S_IMODE(path.stat().st_mode) if os.name == "posix" else 0o600


def read_server_keys(folder: Path) -> ServerKeys:
    """The keys of a server and of the robots in `folder`/clients. Raises DeftlyError if one is wrong or not safe."""
    clients = folder / "clients"
    try:
        secret, public = _server_pair(folder / "server.key_secret")
        _require_clients(clients)
        robots = [_robot_key(file) for file in sorted(clients.glob("*.key"))]
    except OSError as error:
        why = (error.strerror or "it cannot be read").lower()
        raise DeftlyError(f"--keys: '{printable(error.filename)}': {why}") from None
    except (ValueError, zmq.ZMQError, FileError) as error:
        raise DeftlyError(
            f"--keys: {printable(error)}; 'deftly serve --new-keys DIR' makes keys"
        ) from None
    except DeftlyError as error:
        raise DeftlyError(f"--keys: {error}") from None
    if not robots:
        raise DeftlyError(
            f"--keys: '{clients}' holds no robot's key (NAME.key), so none could be answered"
        )
    return ServerKeys(secret, public, frozenset(robots))


def _server_pair(file: Path) -> tuple[bytes, bytes]:
    """Secret and public key of a server, 32 bytes each."""
    public, secret = load_key(file)
    if secret is None or zmq.curve_public(secret) != public:
        raise ValueError(f"no pair of keys in {file}")
    return z85.decode(secret), z85.decode(public)


def _require_clients(clients: Path) -> None:
    """Raise DeftlyError unless there is a folder of the robots' keys, without the secret of one."""
    if not clients.is_dir():
        raise DeftlyError(
            f"'{printable(clients)}' is no folder: make it, and put the client.key of each robot there as NAME.key"
        )
    _require_safe(clients)
    for file in sorted(clients.glob("*.key_secret")):
        raise _secret(file)


def _secret(file: Path) -> DeftlyError:
    return DeftlyError(
        f"'{printable(file)}' holds a robot's secret, and whoever has it is that robot: take it there, leave its "
        "client.key here as NAME.key, and make new keys if others could read it"
    )


def _robot_key(file: Path) -> bytes:
    """The public key of a robot, 32 bytes. Raises DeftlyError if its secret is there too."""
    _require_safe(file)
    public, secret = _read_key(file)
    if secret is not None:
        raise _secret(file)
    key = z85.decode(public)
    if len(key) != KEY_BYTES:
        raise ValueError(f"no key in {file}")
    return key


def _require_safe(path: Path) -> None:
    """Raise DeftlyError if everybody could allow robots there."""
    if _mode(path) & 0o002:
        raise DeftlyError(
            f"everybody may write to '{printable(path)}', and thus allow robots: "
            f"chmod o-w {shlex.quote(str(path))}"
        )
