"""A stand-in for openpi's own policy server, of another hand than ours: fixed chunks in DROID's layout, no checks."""

import threading
import traceback
from contextlib import contextmanager

import msgpack
import numpy as np


def _pack(value):
    if isinstance(value, np.ndarray):
        return {
            b"__ndarray__": True,
            b"data": value.tobytes(),
            b"dtype": value.dtype.str,
            b"shape": value.shape,
        }
    raise TypeError(type(value))


def _unpack(entries):
    if b"__ndarray__" in entries:
        return np.ndarray(entries[b"shape"], np.dtype(entries[b"dtype"]), entries[b"data"])
    return entries


@contextmanager
def openpi_server(infer, metadata=None):
    """A server in threads of this process; `infer` turns an observation into a reply, or raises. Yields its address."""
    from websockets.sync.server import serve

    def converse(connection):
        connection.send(msgpack.packb(metadata or {}))
        for message in connection:
            try:
                reply = infer(msgpack.unpackb(message, object_hook=_unpack))
                connection.send(
                    reply if isinstance(reply, bytes) else msgpack.packb(reply, default=_pack)
                )
            except Exception:
                connection.send(traceback.format_exc())
                connection.close(
                    1011, "Internal server error. Traceback included in previous frame."
                )
                return

    with serve(converse, "127.0.0.1", 0, compression=None, max_size=None) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        finally:
            server.shutdown()
            thread.join(10)
