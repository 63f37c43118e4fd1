"""A policy server: answers every message of many robots, each with a memory of its own.

One thread reads what is waiting, answers it, and makes one network call for all the `infer` requests among it. What a
peer sends is checked before it meets another's: it can spoil nothing but its own answer. docs/wire.md has the messages.
"""

from __future__ import annotations

import logging
import math
import secrets
import threading
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from deftly.console import clean, printable
from deftly.contract import ContractError, PolicyContract
from deftly.contract.arrays import all_finite
from deftly.contract.terms import MAX_PROMPT, spread
from deftly.errors import DeftlyError
from deftly.policy.protocol import Policy
from deftly.serving.counts import Counts
from deftly.serving.endpoint import EXAMPLE, read_endpoint
from deftly.serving.keys import read_server_keys
from deftly.serving.listener import Listener, Peer
from deftly.serving.startup import require_keys, run_until_signal, unbound
from deftly.serving.wire import (
    MAX_FRAME,
    SPOKEN,
    VERSION,
    WireError,
    as_rows,
    max_frame,
    pack,
    read_array,
    read_inputs,
    read_signals,
    unpack,
)
from deftly.serving.zmtp import Body, Mechanism, Null

IDLE_S, MAX_SESSIONS = 60.0, 64
MAX_BATCH = 64
"""Steps that are decided by one call of the network."""
MAX_WAITING = 4096
"""Sessions without an episode; the oldest makes room for the next."""
PAUSE_S = 2.0
"""Time without a decision after which a session may lose its place to a new robot."""
WAIT_S = 0.1
"""How long the server sleeps before it looks for idle sessions and whether it shall stop."""
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
    robot: int | None = None
    """The policy's number for it, from its first episode on."""
    decided: float = -math.inf
    """When the policy decided for it last."""
    seq: int = -1
    reply: bytes = b""
    """Answer to the message `seq`, given again if it is repeated."""


@dataclass(slots=True, eq=False)
class _Request:
    """A message on its way to its answer."""

    peer: Peer
    """Who sent it."""
    delimited: bool
    """Whether an empty frame came before it, as a REQ socket sends it."""
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
        self._spec = self.contract.to_json()
        self._hash = self.contract.hash
        measured = sum(signal.size for signal in self.contract.signals if not signal.is_image)
        said = sum(given.size for given in self.contract.inputs)
        num_texts = sum(given.is_text for given in self.contract.inputs)
        texts = 4 * MAX_PROMPT * num_texts
        arrays = 8 * (measured + len(self.contract.joints) + said) + texts
        self._frame = max_frame(self.contract.robot)
        if max(len(self._spec.encode()), arrays) + 4096 > MAX_FRAME:
            name = self.contract.robot.name
            raise DeftlyError(
                f"the contract of {name} does not fit into messages of {MAX_FRAME} bytes"
            )
        self._sessions: OrderedDict[str, _Session] = OrderedDict()  # the longest idle first
        self._waiting: OrderedDict[str, _Session] = OrderedDict()  # those without an episode
        self._batch: list[_Request] = []
        self._stop, self.counts = threading.Event(), Counts()
        self._link = self._bind(endpoint, keys)
        self.endpoint = self._link.endpoint
        """Where it answers, with the port that was free if the port asked for was `*`."""

    def _bind(self, endpoint: str, keys: Path | None) -> Listener:
        try:
            where = read_endpoint(endpoint)
        except DeftlyError as error:
            raise DeftlyError(f"cannot serve: {error}") from None
        require_keys(endpoint, where, keys)
        mechanism = Null if keys is None else _with_keys(keys)
        try:
            return Listener(where, self._frame, mechanism)
        except OSError as error:
            raise unbound(endpoint, error, f", as in {EXAMPLE}") from None

    def run(self) -> None:
        """Answer until `stop` is called, then close."""
        try:
            # What a peer's numbers overflow is refused, not printed.
            with np.errstate(all="ignore"):
                while not self._stop.is_set():
                    self._link.wait(WAIT_S)
                    self._round()
                    self._drop_idle()
        finally:
            self.close()

    def run_until_signal(self) -> None:
        """Answer until SIGTERM or SIGINT; the main thread's."""
        run_until_signal(self.run, self.stop)

    def stop(self) -> None:
        """Let `run` return, within a tenth of a second; from any thread."""
        self._stop.set()

    def close(self) -> None:
        """Let go of the socket; for a server that never ran."""
        self._link.close()

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
        """Answer what is waiting, within bounds; robots need not wait for the others."""
        for messages in (self._link.robots(), self._link.others()):
            for peer, frames in messages:
                delimited = len(frames) > 1 and frames[0] == b""
                self._handle(_Request(peer, delimited, time.monotonic()), frames[delimited:])
            self._decide()

    def _handle(self, request: _Request, payload: list[Body]) -> None:
        try:
            self._read(request, payload)
            _HANDLERS[request.echo["type"]](self, request)
        except Exception as error:
            self._refuse(request, error)

    def _read(self, request: _Request, payload: list[Body]) -> None:
        """Check what every message has."""
        if len(payload) != 1:
            raise Refusal("bad-frames", "a message is one frame, or an empty one and one")
        body, echo = request.body, request.echo
        body |= unpack(payload[0], self._frame)
        seq, sent, kind = body.get("seq"), body.get("time"), body.get("type")
        is_spoken = type(body.get("v")) is int and body["v"] in SPOKEN
        if is_spoken:
            echo["v"] = body["v"]
        if type(seq) is int and 0 <= seq < 2**63:
            echo["seq"] = seq
        if isinstance(sent, int | float) and type(sent) is not bool and abs(sent) < 2**63:
            echo["time"] = sent
        if not isinstance(kind, str) or kind not in _HANDLERS:
            raise Refusal("unknown-type", f"'type' is none of {', '.join(_HANDLERS)}")
        echo["type"] = kind
        self.counts.types[kind] += 1
        if not is_spoken:
            spoken = " or ".join(map(str, SPOKEN))
            raise Refusal(
                "bad-version",
                f"'v' is not {spoken}, the versions of the messages that are spoken here",
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
                log.error("%s failed: %s", request.echo["type"], clean(_traceback(error)))
        self.counts.errors[code] += 1
        self._link.doubt(request.peer)
        self._send(request, {"ok": False, "code": code, "error": message})

    def _send(self, request: _Request, reply: dict[str, Any]) -> None:
        """Answer; if the peer has gone, the answer is dropped."""
        frame = pack({**request.echo, **reply})
        self.counts.answered += 1
        if request.session is not None:
            request.session.reply = frame
        self._reply(request, frame)

    def _reply(self, request: _Request, frame: bytes) -> None:
        self._link.send(request.peer, [b"", frame] if request.delimited else [frame])

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
                self._require_robot_of(PolicyContract.from_json(spec))
            except ContractError as error:
                raise Refusal("contract-mismatch", str(error)) from None
        elif theirs not in (None, self._hash):
            raise Refusal(
                "contract-mismatch",
                f"the policy has contract {self._hash[:12]}, the robot {theirs[:12]}",
            )
        self._require_place(request.at)
        if len(self._waiting) >= MAX_WAITING:
            self._waiting.popitem(last=False)
        token = secrets.token_hex(16)
        self._waiting[token] = _Session(request.at)
        facts = {
            "contract": self._hash,
            "spec": self._spec,
            "rate": self.contract.rate,
            "idle_s": self.idle_s,
            "ahead": bool(getattr(self.policy, "ahead", False)),
        }
        self._send(request, {"ok": True, "session": token, **facts})

    def _require_robot_of(self, theirs: PolicyContract) -> None:
        """Raise ContractError unless the policy may drive the robot of this contract, guarded better perhaps."""
        try:
            theirs.require_policy_of(self.contract, "the policy")
        except ContractError:
            self.contract.require(theirs, "the robot")

    def _enter(self, request: _Request) -> _Session | None:
        """The session of a message that it has not seen; None if the answer was given again."""
        token = str(request.body.get("session"))
        sessions = self._waiting if token in self._waiting else self._sessions
        session = sessions.get(token)
        if session is None:
            raise Refusal(
                "no-session",
                "no such session: the server was restarted, or it was idle; init again",
            )
        if any(waiting.session is session for waiting in self._batch):
            self._decide()
        seq, session.seen = request.echo["seq"], request.at
        sessions.move_to_end(token)
        if seq < session.seq:
            raise Refusal("old-seq", f"'seq' is {seq}, after {session.seq}: late, and not used")
        if seq == session.seq:
            self.counts.answered += 1
            self._reply(request, session.reply)
            return None
        session.seq, request.session = seq, session
        return session

    def _reset(self, request: _Request) -> None:
        if session := self._enter(request):
            read_inputs(
                request.body.get("inputs"), self.contract
            )  # what is wrong is said before the episode starts
            read_signals(request.body.get("signals"), self.contract.robot)
            robot = session.robot
            if robot is None:
                robot = self._seat(str(request.body["session"]), request.at)
            self.policy.reset([robot])
            self._send(request, {"ok": True})

    def _require_place(self, now: float) -> str | None:
        """The session that has to go before another robot can be driven; None if there is a free place.

        It is the one without a decision for the longest time. Raises Refusal if all robots are being driven.
        """
        if len(self._sessions) < self.max_sessions:
            return None
        token = min(self._sessions, key=lambda t: self._sessions[t].decided)
        if now - self._sessions[token].decided < PAUSE_S:
            raise Refusal(
                "too-many-sessions",
                f"{self.max_sessions} robots are served, which is the limit",
            )
        return token

    def _seat(self, token: str, now: float) -> int:
        """Give a session its place among those with episodes; returns the number of its robot."""
        leaving = self._require_place(now)
        if leaving is not None:
            self._drop(leaving)
        number = self._free_robot()
        session = self._sessions[token] = self._waiting.pop(token)
        session.robot = number
        return number

    def _infer(self, request: _Request) -> None:
        """Check a step, and let it wait for those that came with it."""
        if session := self._enter(request):
            if session.robot is None:
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
            if len(self._batch) == MAX_BATCH:
                self._decide()

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
        robots = [
            request.session.robot
            for request in batch
            if request.session and request.session.robot is not None
        ]
        signals = {
            s.name: as_rows([request.signals[s.name] for request in batch])
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
                found[given.name] = as_rows(
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
        """Send a decision; one that is not finite, which no policy remembers, or beyond the limits is refused."""
        for name, array in (("action", action), ("targets", targets)):
            if not all_finite(array):
                raise Refusal(
                    "no-answer", f"the policy gave no {name} of {len(array)} finite numbers"
                )
        beyond = self.contract.robot.beyond_limits(targets[None])
        if beyond:
            raise Refusal("no-answer", f"the policy's targets are beyond the limits: {beyond[1]}")
        if request.session:
            request.session.decided = time.monotonic()
        self._link.trust(request.peer)
        self._send(request, {"ok": True, "action": action, "targets": targets})
        self.counts.add_latency(time.monotonic() - request.at)

    def _drop_idle(self) -> None:
        oldest = time.monotonic() - self.idle_s
        for sessions in (self._sessions, self._waiting):
            while sessions and next(iter(sessions.values())).seen < oldest:
                self._drop(next(iter(sessions)))

    def _drop(self, token: str) -> None:
        """End a session; the policy forgets its robot."""
        session = self._waiting.pop(token, None) or self._sessions.pop(token)
        if session.robot is not None:
            self.policy.forget([session.robot])

    def _free_robot(self) -> int:
        """The lowest number that no session's robot has."""
        taken = {session.robot for session in self._sessions.values()}
        return next(number for number in range(len(taken) + 1) if number not in taken)


def _traceback(error: Exception) -> str:
    return "".join(traceback.format_exception(error))


def _with_keys(folder: Path) -> Callable[[], Mechanism]:
    """What makes the encrypted end of a new connection."""
    keys = read_server_keys(folder)
    try:
        from deftly.serving.curve import curve
    except ImportError:
        raise DeftlyError('--keys needs PyNaCl: pip install "deftly[keys]"') from None
    return curve(keys)


_HANDLERS: dict[str, Callable[[Server, _Request], None]] = {
    "ping": Server._ping,
    "init": Server._init,
    "reset": Server._reset,
    "infer": Server._infer,
    "status": Server._status,
    "close": Server._close,
}
