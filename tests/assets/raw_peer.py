"""Peers of a policy server that speak its messages by themselves."""

import time
from contextlib import contextmanager

import zmq

from deftly.serving.wire import pack, unpack


@contextmanager
def raw(endpoint: str, kind: int = zmq.DEALER):
    with zmq.Context.instance().socket(kind) as peer:
        peer.linger, peer.rcvtimeo, peer.sndtimeo = 0, 5000, 5000
        peer.connect(endpoint)
        yield peer


def message(kind="ping", seq=1, **fields):
    return {"v": 1, "type": kind, "seq": seq, "time": 1.5, **fields}


def ask(peer, *frames):
    """Send frames, and return the answer, without the empty frame."""
    peer.send_multipart(frames)
    return unpack(peer.recv_multipart()[-1])


def call(peer, kind, seq=1, **fields):
    return ask(peer, b"", pack(message(kind, seq, **fields)))


def open_session(peer) -> str:
    reply = call(peer, "init")
    assert reply["ok"]
    return reply["session"]


def wait_for(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.01)
