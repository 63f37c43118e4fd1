"""A policy behind openpi's websocket protocol: `openpi-client` asks it as it asks openpi's own server.

One thread holds the connections (asyncio), another one calls the policy, for all who wait at one time: slow inference
keeps nobody from connecting, nor from being told that he is wrong. A connection is one robot, unless its messages say
which. docs/wire.md has the conversation.
"""

from __future__ import annotations

import asyncio
import hmac
import http
import logging
import math
import queue
import socket
import threading
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from deftly.console import clean, printable
from deftly.contract import JOINT_POS
from deftly.errors import DeftlyError
from deftly.policy.chunks import ChunkPolicy, Observed, merged, said_by_all
from deftly.policy.layouts import Layout, LayoutError, OpenpiConfig, layout, read_numbers
from deftly.policy.protocol import Policy, PolicyError
from deftly.serving.counts import Counts
from deftly.serving.endpoint import read_websocket
from deftly.serving.keys import load_token
from deftly.serving.openpi_wire import APPLIED, INSTALL, RESET, ROBOT, max_message, pack, unpack
from deftly.serving.startup import require_keys, run_until_signal, unbound
from deftly.serving.wire import WireError

if TYPE_CHECKING:
    from websockets.asyncio.server import ServerConnection
    from websockets.http11 import Request, Response

HEALTH = "/healthz"
MAX_CLIENTS, IDLE_S = 64, 60.0
MAX_ROBOTS = 4096
"""Robots of all connections together; of a policy that answers chunks, no robot is remembered."""
MAX_BATCH = 64
"""Robots that are decided for by one call of the policy."""
HANDSHAKE_S, CLOSE_S = 5.0, 2.0
log = logging.getLogger("deftly.serve")


@dataclass(slots=True, eq=False)
class _Client:
    """A connection."""

    connection: ServerConnection
    robots: dict[int, int] = field(default_factory=dict)
    """The policy's number for each of its robots."""
    asked: float = field(default_factory=time.monotonic)
    """When it asked last; infinite while it waits for an answer."""


class _Asked(NamedTuple):
    """An observation on its way to its answer."""

    seen: Observed
    """Of one robot."""
    answer: asyncio.Future[np.ndarray]


class OpenpiServer:
    """Serves a policy on `endpoint`, in the thread that calls `run`, until `stop` is called from any.

    Args:
        policy: One that answers chunks gives them whole, any other one action at a time.
        endpoint: `ws://HOST:PORT`; port 0 takes a free one.
        keys: The server's folder of `new_keys`: who has not its token is not answered. Without it only loopback is
            bound.
        cfg: How observations and actions stand for the contract's; `deftly` unless it says otherwise.
        max_clients: Connections.
        idle_s: Time without a question after which a connection may lose its place to a new one.

    Raises DeftlyError if it cannot bind, there are no websockets here, or the contract has no place in the layout.
    """

    def __init__(
        self,
        policy: Policy,
        endpoint: str,
        *,
        keys: Path | None = None,
        cfg: OpenpiConfig | None = None,
        max_clients: int = MAX_CLIENTS,
        idle_s: float = IDLE_S,
    ):
        self.policy = policy
        self.contract = policy.contract
        spoken = cfg or OpenpiConfig()
        self.layout: Layout = layout(
            spoken.layout or "deftly", policy.contract, spoken.gripper_open
        )
        self.max_clients = max_clients
        self.idle_s = idle_s
        self.counts = Counts()
        where = read_websocket(endpoint)
        if where.scheme != "ws":
            raise DeftlyError(f"cannot serve on '{endpoint}': serve ws://, and wss:// with a proxy")
        require_keys(endpoint, where, keys)
        self._token = None if keys is None else load_token(keys)
        _require_websockets()
        self._socket = _bound(endpoint, where.host, where.port)
        host = f"[{where.host}]" if ":" in where.host else where.host
        self.endpoint = f"ws://{host}:{self._socket.getsockname()[1]}"
        """Where it answers."""
        self._clients: set[_Client] = set()
        self._closing: set[asyncio.Future[None]] = set()
        self._waiting = queue.SimpleQueue[_Asked | None]()
        """Those who wait for a decision; None: the server has ended."""
        self._stop = threading.Event()
        self._taken: set[int] = set()  # numbers of robots

    @property
    def metadata(self) -> dict[str, Any]:
        """What a client is told first."""
        policy = self.policy
        chunks = isinstance(policy, ChunkPolicy)
        return {
            "server": "deftly",
            "robot": self.contract.robot.name,
            "rate": self.contract.rate,
            "layout": self.layout.name,
            "horizon": policy.model.horizon if chunks else 1,
            "executed": policy.executed if chunks else 1,
            "action_size": self.layout.action_size,
            "contract": self.contract.hash,
            "spec": self.contract.to_json(),
        }

    def run(self) -> None:
        """Answer until `stop` is called, then close."""
        with np.errstate(all="ignore"):
            asyncio.run(self._run())

    def run_until_signal(self) -> None:
        """Answer until SIGTERM or SIGINT; the main thread's."""
        run_until_signal(self.run, self.stop)

    def stop(self) -> None:
        """Let `run` return; from any thread."""
        self._stop.set()

    def close(self) -> None:
        """Let go of the socket; for a server that never ran."""
        self._socket.close()

    async def _run(self) -> None:
        from websockets.asyncio.server import serve

        settings: dict[str, Any] = {
            "process_request": self._admit,
            "origins": [None],  # pages in a browser have one, and may connect to any port here
            "compression": None,
            "max_size": max_message(self.contract.robot),
            "max_queue": 1,
            "open_timeout": HANDSHAKE_S,
            "close_timeout": CLOSE_S,
            "server_header": "deftly",
            "logger": _quiet(),
        }
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._work, args=(loop,), name="policy", daemon=True).start()
        try:
            async with serve(self._converse, sock=self._socket, **settings):
                while not self._stop.is_set():
                    await asyncio.sleep(0.05)
        finally:
            self._waiting.put(None)

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        """Answer a request that is not to become a conversation; None: it is."""
        if request.path == HEALTH:
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        if self._token is not None:
            said = ",".join(request.headers.get_all("Authorization"))
            wanted = f"Api-Key {self._token}"
            if not hmac.compare_digest(said.encode(), wanted.encode()):
                self.counts.errors["no-key"] += 1
                return connection.respond(http.HTTPStatus.UNAUTHORIZED, "needs the server's key\n")
        if len(self._clients) >= self.max_clients and not self._make_room():
            self.counts.errors["too-many-sessions"] += 1
            full = f"{self.max_clients} clients are served, which is the limit\n"
            return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, full)
        return None

    def _make_room(self) -> bool:
        """Whether the client that has asked nothing for the longest time makes room for a new one; it is told."""
        idle = min(self._clients, key=lambda client: client.asked)
        if time.monotonic() - idle.asked < self.idle_s:
            return False
        self._clients.discard(idle)
        task = asyncio.ensure_future(idle.connection.close(1001, "idle: connect anew"))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
        return True

    async def _converse(self, connection: ServerConnection) -> None:
        """One client from its metadata to its end."""
        from websockets.exceptions import ConnectionClosed

        client = _Client(connection)
        self._clients.add(client)
        took: float | None = None
        try:
            await connection.send(pack(self.metadata))
            async for message in connection:
                began = time.monotonic()
                client.asked = math.inf
                try:
                    reply = await self._answer(client, message, took)
                except Exception as error:
                    await self._fail(connection, error)
                    return
                await connection.send(reply)
                client.asked = time.monotonic()
                took = client.asked - began
                self.counts.answered += 1
                self.counts.add_latency(took)
        except ConnectionClosed:
            pass
        finally:
            self._clients.discard(client)
            self._forget(client)

    async def _answer(self, client: _Client, message: str | bytes, took: float | None) -> bytes:
        """The reply to an observation. Raises what is wrong with it, or with the policy."""
        if isinstance(message, str):
            raise WireError("the message is text, expected msgpack in a binary one")
        observation = unpack(message, max_message(self.contract.robot))
        seen = self._observed(client, observation)
        began = time.monotonic()
        actions = await self._decided(seen)
        timing = {"infer_ms": 1e3 * (time.monotonic() - began)}
        if took is not None:
            timing["prev_total_ms"] = 1e3 * took
        told = self.layout.from_contract(actions)
        return pack({"actions": told, "server_timing": timing})

    def _observed(self, client: _Client, observation: dict[str, Any]) -> Observed:
        """What an observation says of one robot."""
        signals, inputs = self.layout.read(observation)
        rows = {name: value[None] for name, value in signals.items()}
        said = {k: [v] if isinstance(v, str) else v[None] for k, v in inputs.items()}
        number = observation.get(ROBOT, 0)
        if type(number) is not int or not 0 <= number < MAX_ROBOTS:
            raise WireError(f"'{ROBOT}' is no number from 0 to {MAX_ROBOTS - 1}")
        fresh = bool(observation.get(RESET, False)) or number not in client.robots
        command = rows[JOINT_POS].astype(np.float32)
        if APPLIED in observation:
            command = read_numbers(observation, APPLIED, len(self.contract.joints))[None]
        elif not fresh and not isinstance(self.policy, ChunkPolicy):
            command = np.full_like(command, np.nan)  # the policy knows what it decided
        robot = self._robot(client, number)
        all_said = said_by_all(self.contract, said, 1)
        return Observed(rows, all_said, command, [robot], [fresh])

    def _robot(self, client: _Client, number: int) -> int:
        """The policy's number of one of a client's robots."""
        if number not in client.robots:
            if len(self._taken) >= MAX_ROBOTS:
                raise PolicyError(f"{MAX_ROBOTS} robots are served, which is the limit")
            free = next(row for row in range(len(self._taken) + 1) if row not in self._taken)
            self._taken.add(free)
            client.robots[number] = free
        return client.robots[number]

    def _forget(self, client: _Client) -> None:
        """The robots of a client are gone."""
        gone = list(client.robots.values())
        self._taken.difference_update(gone)

    async def _decided(self, seen: Observed) -> np.ndarray:
        """The actions of one robot under the contract, (horizon, action_size)."""
        answer: asyncio.Future[np.ndarray] = asyncio.get_running_loop().create_future()
        self._waiting.put(_Asked(seen, answer))
        return await answer

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        """Decide for those who wait, in a thread of its own, which a policy that hangs does not keep from ending."""
        while batch := self._batch():
            self.counts.batches[len(batch)] += 1
            found = self._infer_all(batch)
            with suppress(RuntimeError):  # the server has ended meanwhile
                loop.call_soon_threadsafe(_tell, batch, found)

    def _batch(self) -> list[_Asked]:
        """Those who wait at one time, as soon as somebody does; nobody when the server has ended."""
        batch = []
        while not batch or (len(batch) < MAX_BATCH and not self._waiting.empty()):
            asked = self._waiting.get()
            if asked is None:
                return []
            batch.append(asked)
        return batch

    def _infer_all(self, batch: list[_Asked]) -> list[np.ndarray | Exception]:
        """Actions of each; if the call fails, each is asked for alone, so that only the guilty one fails."""
        try:
            return list(self._infer(merged([asked.seen for asked in batch])))
        except Exception as error:
            if len(batch) == 1:
                return [error]
            return [self._infer_all([asked])[0] for asked in batch]

    def _infer(self, seen: Observed) -> np.ndarray:
        """Actions (n, horizon, action_size). Raises PolicyError for one that is not finite."""
        if isinstance(self.policy, ChunkPolicy):
            return self.policy.predict(seen)
        fresh = [row for row, is_fresh in zip(seen.ids, seen.fresh) if is_fresh]
        self.policy.reset(fresh)
        # torch wants arrays that may be written to, and those of a message may not
        signals = {name: np.require(value, None, "W") for name, value in seen.signals.items()}
        action = np.asarray(self.policy.infer(signals, seen.inputs, seen.command, seen.ids).action)
        if not np.isfinite(action).all():
            raise PolicyError("the policy gave no action of finite numbers")
        return action[:, None].astype(np.float32)

    async def _fail(self, connection: ServerConnection, error: Exception) -> None:
        """Tell a client in one line what is wrong, and end the conversation, as openpi's server does."""
        known = isinstance(error, DeftlyError)
        code = "bad-message" if isinstance(error, WireError | LayoutError) else "no-answer"
        message = (
            printable(error) if known else "the server failed at this message; its log says why"
        )
        if not known:
            code = "internal"
            if self.counts.errors[code] < 10:  # a log must not grow with what peers send
                log.error("infer failed: %s", clean("".join(traceback.format_exception(error))))
        self.counts.errors[code] += 1
        await connection.send(message)
        await connection.close(1011, "see the message before")


def _tell(batch: list[_Asked], found: list[np.ndarray | Exception]) -> None:
    """Give those who wait their answers, unless they have gone."""
    for asked, actions in zip(batch, found):
        if asked.answer.done():
            continue
        if isinstance(actions, Exception):
            asked.answer.set_exception(actions)
        else:
            asked.answer.set_result(actions)


def _require_websockets() -> None:
    """Raise DeftlyError, one line, where the library is missing."""
    try:
        import websockets.asyncio.server  # noqa: F401
    except ImportError:
        raise DeftlyError(f"a policy behind ws:// {INSTALL}") from None


def _bound(endpoint: str, host: str, port: int) -> socket.socket:
    """A socket that listens. Raises DeftlyError, one line, if there is none to be had."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=128)
    except OSError as error:
        raise unbound(endpoint, error) from None


def _quiet() -> logging.Logger:
    """The library's log, without what any peer can write into it."""
    logger = logging.getLogger("deftly.serve.websockets")
    logger.setLevel(logging.CRITICAL)
    return logger
