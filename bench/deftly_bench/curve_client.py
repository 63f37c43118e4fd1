"""A robot's end of the mechanism CURVE, to attack a policy server with; robots themselves use libzmq's."""

from __future__ import annotations

import secrets
from pathlib import Path

from nacl.public import Box, PrivateKey, PublicKey
from zmq.utils import z85

from deftly.serving.curve import HELLO, INITIATE, MESSAGE
from deftly.serving.keys import load_key
from deftly.serving.zmtp import COMMAND, MORE, encode
from deftly_bench.entry import no_program

METADATA = b"\x0bSocket-Type\x00\x00\x00\x06DEALER"


class CurveClient:
    """Makes what a robot sends, as bodies of commands and as whole frames."""

    def __init__(self, server: bytes, secret: bytes):
        self.server = PublicKey(server)
        self.secret = PrivateKey(secret)
        self.short = PrivateKey.generate()
        self.sent = 0
        self.box: Box | None = None
        """Between the short-term keys, once WELCOME came."""

    @staticmethod
    def keys_of(folder: Path) -> tuple[bytes, bytes]:
        """The server's public and the robot's secret key, from the robot's folder of `deftly serve --new-keys`."""
        server, _ = load_key(folder / "server.key")
        _, secret = load_key(folder / "client.key_secret")
        assert secret
        return z85.decode(server), z85.decode(secret)

    def hello(self) -> bytes:
        """The first command."""
        nonce = self.next_nonce()
        box = Box(self.short, self.server).encrypt(bytes(64), b"CurveZMQHELLO---" + nonce)
        return HELLO + bytes(72) + bytes(self.short.public_key) + nonce + box.ciphertext

    def initiate(self, welcome: bytes, metadata: bytes = METADATA) -> bytes:
        """The command that answers WELCOME."""
        nonce, box = welcome[8:24], welcome[24:]
        plain = Box(self.short, self.server).decrypt(box, b"WELCOME-" + nonce)
        server_short, cookie = PublicKey(plain[:32]), plain[32:]
        self.box = Box(self.short, server_short)
        plain = bytes(self.secret.public_key) + self.vouch(server_short) + metadata
        return INITIATE + cookie + self.seal_short(b"CurveZMQINITIATE", plain)

    def vouch(self, server_short: PublicKey) -> bytes:
        """Nonce and box in which the robot says that the short-term key is its own."""
        nonce = secrets.token_bytes(16)
        vouched = bytes(self.short.public_key) + bytes(self.server)
        return (
            nonce + Box(self.secret, server_short).encrypt(vouched, b"VOUCH---" + nonce).ciphertext
        )

    def frame(self, body: bytes, flags: int = 0) -> bytes:
        """A frame in its box, as it goes out."""
        inner = 2 if flags & COMMAND else flags & MORE
        return encode(MESSAGE + self.seal_short(b"CurveZMQMESSAGEC", bytes((inner,)) + body))

    def read(self, body: bytes) -> tuple[int, bytes]:
        """Inner flags and body of a frame of the server's."""
        assert self.box
        plain = self.box.decrypt(body[16:], b"CurveZMQMESSAGES" + body[8:16])
        return plain[0], plain[1:]

    def seal_short(self, prefix: bytes, plain: bytes) -> bytes:
        """Nonce and box."""
        assert self.box
        nonce = self.next_nonce()
        return nonce + self.box.encrypt(plain, prefix + nonce).ciphertext

    def next_nonce(self) -> bytes:
        """Each is used once."""
        self.sent += 1
        return self.sent.to_bytes(8, "big")


if __name__ == "__main__":
    no_program()
