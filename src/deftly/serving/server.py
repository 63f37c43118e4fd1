"""A policy server: a ZeroMQ ROUTER that answers every message of many robots, each with a memory of its own.

One thread reads what is waiting, answers it, and makes one network call for all the `infer` requests among it. What a
peer sends is checked before it meets another's: it can spoil nothing but its own answer. docs/wire.md has the messages.
"""

from __future__ import annotations

import logging
import secrets
import signal
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zmq

from deftly.console import printable
from deftly.contract import ContractError, PolicyContract
from deftly.contract.terms import MAX_PROMPT, spread
from deftly.errors import DeftlyError
from deftly.policy.protocol import Policy
from deftly.serving.counts import Counts
from deftly.serving.keys import is_local, lock
from deftly.serving.wire import (
    MAX_FRAME,
    VERSION,
    WireError,
    max_frame,
    pack,
    read_array,
    read_inputs,
    read_signals,
    unpack,
)

IDLE_S, MAX_SESSIONS = 60.0, 64
MAX_ROUND, ROUND_S = 64, 0.002
"""Messages and seconds after which reading stops and what was read is answered."""
WAIT_MS = 100
"""How long the server sleeps before it looks for idle sessions and whether it shall stop."""
QUEUE = 16
"""Messages kept for each peer and direction; more wait at the sender, or are dropped if it does not read."""
log = logging.getLogger("deftly.serve")


class Refusal(DeftlyError):
    """Why a message gets no answer but an error, with the code that the peer is told."""

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code = code


@dataclass(slots=True, eq=False)
class _Session:
    """What the server remembers of one robot."""

    seen: float
    robot: int
    """The policy's number for it."""
    driven: bool = False
    """Whether an episode was started."""
    seq: int = -1
    reply: bytes = b""
    """Answer to the message `seq`, given again if it is repeated."""


@dataclass(slots=True, eq=False)
class _Request:
    """A message on its way to its answer."""

    envelope: list[bytes]
    at: float
    echo: dict[str, Any] = field(
        default_factory=lambda: {"v": VERSION, "type": "error", "seq": None, "time": None}
    )
    body: dict[str, Any] = field(default_factory=dict)
    session: _Session | None = None
    signals: dict[str, np.ndarray] = field(default_factory=dict)
    inputs: dict[str, Any] = field(default_factory=dict)
    applied: np.ndarray | None = None
    """(num_joints,) float32: what the robot was commanded last, if not the last targets."""


class Server:
    """Serves a policy on `endpoint`, in the thread that calls `run`, until `stop` is called from any.

    `keys` is the server's folder of `new_keys`: only robots whose public key lies in its `clients` are answered, and
    without it only loopback is bound. Sessions idle for `idle_s` are dropped. Raises DeftlyError if it cannot bind.
    """

    def __init__(
        self,
        policy: Policy,
        endpoint: str,
        *,
        keys: Path | None = None,
        idle_s: float = IDLE_S,
        max_sessions: int = MAX_SESSIONS,
    ):
        self.policy = policy
        self.contract = policy.contract
        self.idle_s = idle_s
        self.max_sessions = max_sessions
        self._spec, self._hash = self.contract.to_json(), self.contract.hash
        numbers = sum(s.size for s in self.contract.signals if not s.is_image) + len(
            self.contract.joints
        )
        texts = 4 * MAX_PROMPT * sum(given.is_text for given in self.contract.inputs)
        arrays = 8 * (numbers + sum(given.size for given in self.contract.inputs)) + texts
        self._frame = max_frame(self.contract.robot)
        if max(len(self._spec.encode()), arrays) + 4096 > MAX_FRAME:
            name = self.contract.robot.name
            raise DeftlyError(
                f"the contract of {name} does not fit into messages of {MAX_FRAME} bytes"
            )
        self._sessions: OrderedDict[str, _Session] = OrderedDict()  # the longest idle first
        self._batch: list[_Request] = []
        self._stop, self.counts = threading.Event(), Counts()
        self._context, self._auth = zmq.Context(), None
        try:
            self._bind(endpoint, keys)
        except BaseException:
            self.close()
            raise
        self.endpoint = self._socket.get_string(zmq.LAST_ENDPOINT)
        """Where it answers, with the port that was free if the port asked for was `*`."""

    def _bind(self, endpoint: str, keys: Path | None) -> None:
        if not is_local(endpoint) and keys is None:
            raise DeftlyError(
                f"'{endpoint}' may be reached from other machines: give --keys DIR, or bind to 127.0.0.1"
            )
        self._socket = self._context.socket(zmq.ROUTER)
        options = {
            zmq.LINGER: 0,
            zmq.MAXMSGSIZE: self._frame,
            zmq.RCVHWM: QUEUE,
            zmq.SNDHWM: QUEUE,
            zmq.HEARTBEAT_IVL: 2000,
            zmq.HEARTBEAT_TIMEOUT: 6000,
            zmq.HANDSHAKE_IVL: 5000,
            zmq.IPV6: int("[" in endpoint),
        }
        for option, value in options.items():
            self._socket.set(option, value)
        if keys is not None:
            self._auth = lock(self._socket, keys)
        try:
            self._socket.bind(endpoint)
        except zmq.ZMQError as error:
            hint = (
                "; choose another port"
                if error.errno == zmq.EADDRINUSE
                else ", as in tcp://127.0.0.1:5555"
            )
            raise DeftlyError(
                f"cannot serve on '{endpoint}': {zmq.strerror(error.errno or 0)}{hint}"
            ) from None

    def run(self) -> None:
        """Answer until `stop` is called, then close."""
        try:
            poller = zmq.Poller()
            poller.register(self._socket, zmq.POLLIN)
            with np.errstate(
                all="ignore"
            ):  # what a peer's numbers overflow is refused, not printed
                while not self._stop.is_set():
                    if poller.poll(WAIT_MS):
                        self._round()
                    self._drop_idle()
        finally:
            self.close()

    def run_until_signal(self) -> None:
        """Answer until SIGTERM or SIGINT; the main thread's."""
        before = {
            s: signal.signal(s, lambda *_: self.stop()) for s in (signal.SIGTERM, signal.SIGINT)
        }
        try:
            self.run()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def stop(self) -> None:
        """Let `run` return, within a tenth of a second; from any thread."""
        self._stop.set()

    def close(self) -> None:
        """Let go of the socket; for a server that never ran."""
        if self._auth:
            self._auth.stop()
            self._auth = None
        self._context.destroy(linger=0)

    def status(self) -> dict[str, Any]:
        """What `deftly serve --status` shows."""
        who = {"robot": self.contract.robot.name, "contract": self._hash}
        return {
            **who,
            "sessions": len(self._sessions),
            "max_sessions": self.max_sessions,
            **self.counts.report(),
        }

    def _round(self) -> None:
        """Answer what is waiting, within bounds."""
        end = time.monotonic() + ROUND_S
        for _ in range(MAX_ROUND):
            try:
                frames = self._receive()
            except zmq.Again:
                break
            now = time.monotonic()
            extra = len(frames) > 2 and frames[1] == b""
            self._handle(_Request(frames[: 2 if extra else 1], now), frames)
            if now > end:
                break
        self._decide()

    def _receive(self) -> list[bytes]:
        """The frames of one message; of those beyond four, none is kept."""
        frames = [self._socket.recv(zmq.NOBLOCK)]
        while self._socket.rcvmore:
            frame = self._socket.recv()
            if len(frames) < 4:
                frames.append(frame)
        return frames

    def _handle(self, request: _Request, frames: list[bytes]) -> None:
        try:
            self._read(request, frames[len(request.envelope) :])
            _HANDLERS[request.echo["type"]](self, request)
        except Exception as error:
            self._refuse(request, error)

    def _read(self, request: _Request, payload: list[bytes]) -> None:
        """Check what every message has."""
        if len(payload) != 1:
            raise Refusal("bad-frames", "a message is one frame, or an empty one and one")
        body, echo = request.body, request.echo
        body |= unpack(payload[0], self._frame)
        seq, sent, kind = body.get("seq"), body.get("time"), body.get("type")
        if type(seq) is int and 0 <= seq < 2**63:
            echo["seq"] = seq
        if isinstance(sent, int | float) and type(sent) is not bool and abs(sent) < 2**63:
            echo["time"] = sent
        if not isinstance(kind, str) or kind not in _HANDLERS:
            raise Refusal("unknown-type", f"'type' is none of {', '.join(_HANDLERS)}")
        echo["type"] = kind
        self.counts.types[kind] += 1
        if type(body.get("v")) is not int or body["v"] != VERSION:
            raise Refusal(
                "bad-version",
                f"'v' is not {VERSION}, the version of the messages that is spoken here",
            )
        if echo["seq"] is None or echo["time"] is None:
            raise Refusal(
                "bad-field",
                f"'{'seq' if echo['seq'] is None else 'time'}' is no number, or none in range",
            )

    def _refuse(self, request: _Request, error: Exception) -> None:
        if isinstance(error, WireError):
            code, message = "bad-signals" if request.session else "bad-message", printable(error)
        elif isinstance(error, DeftlyError):
            code, message = (
                error.code if isinstance(error, Refusal) else "no-answer",
                printable(error),
            )
        else:
            code, message = "internal", "the server failed at this message; its log says why"
            if self.counts.errors[code] < 10:  # a log must not grow with what peers send
                log.error("%s failed", request.echo["type"], exc_info=error)
        self.counts.errors[code] += 1
        self._send(request, {"ok": False, "code": code, "error": message})

    def _send(self, request: _Request, reply: dict[str, Any]) -> None:
        """Answer; if the peer has gone, or does not read, the answer is dropped."""
        frame = pack({**request.echo, **reply})
        self.counts.answered += 1
        if request.session is not None:
            request.session.reply = frame
        with suppress(zmq.ZMQError):
            self._socket.send_multipart([*request.envelope, frame], zmq.NOBLOCK)

    def _ping(self, request: _Request) -> None:
        self._send(request, {"ok": True})

    def _status(self, request: _Request) -> None:
        self._send(request, {"ok": True, **self.status()})

    def _init(self, request: _Request) -> None:
        """Open a session, if the robot's contract is the policy's."""
        theirs, spec = request.body.get("contract"), request.body.get("spec")
        if not all(isinstance(x, str | None) for x in (theirs, spec)):
            raise Refusal(
                "bad-field", "'contract' and 'spec' are text, the contract's hash and JSON"
            )
        if spec is not None and spec != self._spec:
            if (
                len(spec) > 2 * len(self._spec) + 4096
            ):  # reading it would cost more than it can tell
                raise Refusal(
                    "contract-mismatch", "the contract of the robot is far larger than the policy's"
                )
            try:
                self.contract.require(PolicyContract.from_json(spec), "the robot")
            except ContractError as error:
                raise Refusal("contract-mismatch", str(error)) from None
        elif theirs not in (None, self._hash):
            raise Refusal(
                "contract-mismatch",
                f"the policy has contract {self._hash[:12]}, the robot {theirs[:12]}",
            )
        if len(self._sessions) >= self.max_sessions:
            unused = next((t for t, s in self._sessions.items() if not s.driven), None)
            if unused is None:
                raise Refusal(
                    "too-many-sessions",
                    f"{self.max_sessions} robots are served, which is the limit",
                )
            self._drop(unused)
        token = secrets.token_hex(16)
        self._sessions[token] = _Session(request.at, self._free_robot())
        facts = {
            "contract": self._hash,
            "spec": self._spec,
            "rate": self.contract.rate,
            "idle_s": self.idle_s,
        }
        self._send(request, {"ok": True, "session": token, **facts})

    def _enter(self, request: _Request) -> _Session | None:
        """The session of a message that it has not seen; None if the answer was given again."""
        token = request.body.get("session")
        session = self._sessions.get(token) if isinstance(token, str) else None
        if session is None:
            raise Refusal(
                "no-session",
                "no such session: the server was restarted, or it was idle; init again",
            )
        if any(waiting.session is session for waiting in self._batch):
            self._decide()
        seq, session.seen = request.echo["seq"], request.at
        self._sessions.move_to_end(str(token))
        if seq < session.seq:
            raise Refusal("old-seq", f"'seq' is {seq}, after {session.seq}: late, and not used")
        if seq == session.seq:
            self.counts.answered += 1
            with suppress(zmq.ZMQError):
                self._socket.send_multipart([*request.envelope, session.reply], zmq.NOBLOCK)
            return None
        session.seq, request.session = seq, session
        return session

    def _reset(self, request: _Request) -> None:
        if session := self._enter(request):
            read_inputs(
                request.body.get("inputs"), self.contract
            )  # what is wrong is said before the episode starts
            read_signals(request.body.get("signals"), self.contract.robot)
            self.policy.reset([session.robot])
            session.driven = True
            self._send(request, {"ok": True})

    def _infer(self, request: _Request) -> None:
        """Check a step, and let it wait for those that came with it."""
        if session := self._enter(request):
            if not session.driven:
                raise Refusal("needs-reset", "the policy decides only in an episode: reset first")
            signals = read_signals(request.body.get("signals"), self.contract.robot)
            applied = request.body.get("applied")
            inputs = read_inputs(request.body.get("inputs"), self.contract)
            if applied is not None:
                applied = read_array(applied, len(self.contract.joints), "applied")
            request.signals = signals
            request.inputs = inputs
            request.applied = applied
            self._batch.append(request)

    def _close(self, request: _Request) -> None:
        if self._enter(request):
            self._drop(request.body["session"])
            self._send(request, {"ok": True})

    def _decide(self) -> None:
        """Answer the waiting steps with one call; if it fails, each by itself, so that only the guilty one fails."""
        batch, self._batch = self._batch, []
        if not batch:
            return
        self.counts.batches[len(batch)] += 1
        try:
            decided: list[Any] = self._infer_all(batch)
        except Exception as error:
            decided = [error] if len(batch) == 1 else [self._alone(request) for request in batch]
        for request, decision in zip(batch, decided):
            try:
                if isinstance(decision, Exception):
                    raise decision
                self._answer(request, *decision)
            except Exception as error:
                self._refuse(request, error)

    def _infer_all(self, batch: list[_Request]) -> list[Any]:
        """Action and targets of each. Raises if the policy fails, or decides for others."""
        robots = [request.session.robot for request in batch if request.session]
        signals = {
            s.name: np.stack([request.signals[s.name] for request in batch])
            for s in self.contract.signals
        }
        action, targets = self.policy.infer(
            signals, self._inputs(batch), self._applied(batch), robots
        )
        wanted = {"action": self.contract.action_size, "targets": len(self.contract.joints)}
        for (name, size), array in zip(wanted.items(), (action, targets)):
            if np.shape(array) != (len(batch), size):
                raise Refusal("no-answer", f"the policy gave no {name} of {size} finite numbers")
        return list(zip(np.asarray(action, np.float32), np.asarray(targets, np.float32)))

    def _inputs(self, batch: list[_Request]) -> dict[str, Any]:
        """What the robots' operators said, by name; the default where one said nothing."""
        found: dict[str, Any] = {}
        for given in self.contract.inputs:
            if given.is_text:
                found[given.name] = [
                    request.inputs.get(given.name, given.text) for request in batch
                ]
            else:
                default = np.array(spread(given.default, given.size), np.float32)
                found[given.name] = np.stack(
                    [request.inputs.get(given.name, default) for request in batch]
                )
        return found

    def _applied(self, batch: list[_Request]) -> np.ndarray | None:
        """What the robots were commanded last; NaN where it is the last targets."""
        if all(request.applied is None for request in batch):
            return None
        unsaid = np.full(len(self.contract.joints), np.nan, np.float32)
        return np.stack(
            [unsaid if request.applied is None else request.applied for request in batch]
        )

    def _alone(self, request: _Request) -> Any:
        try:
            return self._infer_all([request])[0]
        except Exception as error:
            return error

    def _answer(self, request: _Request, action: np.ndarray, targets: np.ndarray) -> None:
        """Send a decision; one that is not finite is refused, and the policy has not remembered it."""
        for name, array in (("action", action), ("targets", targets)):
            if not np.isfinite(array).all():
                raise Refusal(
                    "no-answer", f"the policy gave no {name} of {len(array)} finite numbers"
                )
        self._send(request, {"ok": True, "action": action, "targets": targets})
        self.counts.add_latency(time.monotonic() - request.at)

    def _drop_idle(self) -> None:
        oldest = time.monotonic() - self.idle_s
        while self._sessions and next(iter(self._sessions.values())).seen < oldest:
            self._drop(next(iter(self._sessions)))

    def _drop(self, token: str) -> None:
        """End a session; the policy forgets its robot."""
        session = self._sessions.pop(token)
        self.policy.forget([session.robot])

    def _free_robot(self) -> int:
        """The lowest number that no session's robot has."""
        taken = {session.robot for session in self._sessions.values()}
        return next(number for number in range(len(taken) + 1) if number not in taken)


_HANDLERS: dict[str, Callable[[Server, _Request], None]] = {
    "ping": Server._ping,
    "init": Server._init,
    "reset": Server._reset,
    "infer": Server._infer,
    "status": Server._status,
    "close": Server._close,
}
