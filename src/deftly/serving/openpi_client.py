"""A model of action chunks on a server that speaks openpi's websocket protocol: openpi's own, or `deftly serve`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deftly.console import printable
from deftly.contract import ContractError, PolicyContract
from deftly.errors import DeftlyError
from deftly.policy.chunks import MAX_HORIZON, Observed
from deftly.policy.layouts import PROMPT, Layout, LayoutName, OpenpiConfig, layout
from deftly.policy.protocol import PolicyError, checked_timeout
from deftly.serving.endpoint import read_websocket
from deftly.serving.keys import load_token
from deftly.serving.memory import keep_memory
from deftly.serving.openpi_wire import APPLIED, INSTALL, RESET, ROBOT, pack, unpack
from deftly.serving.wire import WireError

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection

MAX_REPLY = 2**20
"""Bytes of the longest reply that is read, and of the metadata: a contract, or a chunk."""
CONNECT_S = 5.0


class OpenpiModel:
    """A `ChunkModel` that asks a server: each robot after the other, since openpi's servers decide for one at a time.

    Args:
        endpoint: `ws://HOST:PORT` on this computer, or anywhere with keys; `wss://` by its certificate.
        contract: The robot's; None takes that of the server, which only one of Deftly tells.
        timeout: Longest wait for a chunk, s.
        keys: The robot's folder of `deftly serve --new-keys`, whose token is told to the server.
        cfg: How observations and actions stand for the contract's.
        untold: Called for the contract if there is none yet and the server, such as openpi's, tells none.

    Raises PolicyError if there is no server, or another contract there; the same object tries again at the next call.
    """

    deterministic = False
    """A server does not say whether it draws its actions: they may be drawn."""

    def __init__(
        self,
        endpoint: str,
        contract: PolicyContract | None = None,
        timeout: float = 10.0,
        keys: Path | None = None,
        cfg: OpenpiConfig | None = None,
        untold: Callable[[], PolicyContract] | None = None,
    ):
        self.endpoint = endpoint
        self.cfg = cfg or OpenpiConfig()
        self.timeout = checked_timeout(timeout)
        self._headers = _headers(endpoint, keys)
        self._connection: ClientConnection | None = None
        self.metadata = self._connect()
        """What the server says of itself."""
        try:
            self.contract = self._agreed(contract, untold)
            self._is_deftly = self.metadata.get("server") == "deftly"
            said = self.metadata.get("layout") if self._is_deftly else "droid"
            known: LayoutName = "deftly" if said == "deftly" else "droid"
            name = self.cfg.layout or known
            self.layout: Layout = layout(name, self.contract, self.cfg.gripper_open)
        except BaseException:
            self.close()
            raise
        if any(signal.is_image for signal in self.contract.signals):
            keep_memory()
        self.horizon = self._count("horizon")
        self.executed = self._count("executed")

    def predict(self, seen: Observed) -> np.ndarray:
        """The next actions of each robot, `(n, horizon, action_size)`; see `ChunkModel`."""
        chunks = [self._chunk(seen, place) for place in range(len(seen.ids))]
        lengths = {len(chunk) for chunk in chunks}
        if len(lengths) > 1:
            raise PolicyError(f"{self.endpoint} answers chunks of {sorted(lengths)} actions")
        return np.stack(chunks)

    def close(self) -> None:
        """End the conversation."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(Exception):
                connection.close()

    def _chunk(self, seen: Observed, place: int) -> np.ndarray:
        """The next actions of one robot, `(horizon, action_size)`."""
        signals = {name: value[place] for name, value in seen.signals.items()}
        inputs = {name: value[place] for name, value in seen.inputs.items()}
        told = self.layout.observation(signals, inputs)
        if self.cfg.prompt:
            told.setdefault(PROMPT, self.cfg.prompt)
        if self._is_deftly:
            told |= {ROBOT: seen.ids[place], RESET: seen.fresh[place], APPLIED: seen.command[place]}
        try:
            reply = self._ask(told)
            actions = reply.get("actions")
            if not isinstance(actions, np.ndarray) or actions.dtype.kind != "f":
                raise WireError("the reply has no array 'actions'")
            if actions.ndim != 2 or not 1 <= len(actions) <= MAX_HORIZON:
                raise WireError(f"'actions' has shape {actions.shape}, expected (horizon, size)")
            return self.layout.to_contract(actions.astype(np.float32))
        except PolicyError:
            raise
        except DeftlyError as error:
            raise self._error(str(error)) from None

    def _ask(self, told: Mapping[str, Any]) -> dict[str, Any]:
        """The reply to an observation. Raises PolicyError if there is none in time; the next call connects anew."""
        if self._connection is None:
            self._require_same(self._connect())
        connection = self._connection
        assert connection is not None
        try:
            connection.send(pack(told))
            reply = connection.recv(timeout=self.timeout)
        except TimeoutError:
            self.close()  # its answer may still come, and is not that of the next
            raise self._error(f"no answer within {self.timeout:g} s") from None
        except Exception as error:  # the library's, of a connection that broke
            self.close()
            raise self._error(f"the connection broke: {printable(error, 160)}") from None
        if isinstance(reply, str):
            self.close()
            lines = reply.strip().splitlines() or [""]  # openpi's server sends a whole traceback
            raise self._error(f"the server failed: {printable(lines[-1], 200)}")
        return unpack(reply, MAX_REPLY)

    def _error(self, what: str) -> PolicyError:
        """Why there is no answer, with whose it would be."""
        return PolicyError(f"{self.endpoint}: {what}")

    def _connect(self) -> dict[str, Any]:
        """Open the conversation; returns the server's metadata."""
        try:
            from websockets.sync.client import connect
        except ImportError:
            raise DeftlyError(f"a policy at {self.endpoint} {INSTALL}") from None
        settings: dict[str, Any] = {
            "compression": None,
            "max_size": MAX_REPLY,
            "open_timeout": CONNECT_S,
            "close_timeout": 1.0,
            "additional_headers": self._headers,
            "proxy": None,
        }
        try:
            self._connection = connect(self.endpoint, **settings)
            first = self._connection.recv(timeout=CONNECT_S)
        except Exception as error:  # OSError, TimeoutError, and a tree of the library's own
            self.close()
            why = printable(error, 160) or type(error).__name__
            raise PolicyError(f"no policy server at {self.endpoint}: {why}") from None
        try:
            if isinstance(first, str):
                raise WireError(f"it says '{printable(first, 100)}' first")
            return unpack(first, MAX_REPLY)
        except WireError as error:
            self.close()
            raise PolicyError(f"no policy server at {self.endpoint}: {error}") from None

    def _count(self, name: str) -> int | None:
        """A number of actions that a server of Deftly tells; None: it does not."""
        told = self.metadata.get(name) if self._is_deftly else None
        return told if type(told) is int and 1 <= told <= MAX_HORIZON else None

    def _require_same(self, metadata: dict[str, Any]) -> None:
        """Raise PolicyError if a server that was restarted has another policy now."""
        if metadata.get("contract") != self.metadata.get("contract"):
            self.close()
            raise self._error("the server has another policy now: connect anew")

    def _agreed(
        self, contract: PolicyContract | None, untold: Callable[[], PolicyContract] | None
    ) -> PolicyContract:
        """The contract of robot and server. Raises PolicyError if they differ, or none is known."""
        spec = self.metadata.get("spec")
        if not isinstance(spec, str):
            if contract is None and untold is not None:
                return untold()
            if contract is None:
                raise PolicyError(
                    f"{self.endpoint} does not say for which robot it decides: name the task, or give "
                    "--settings-from with a run or bundle"
                )
            return contract
        try:
            theirs = PolicyContract.from_json(spec)
        except ContractError as error:
            raise self._error(f"it tells no contract that this Deftly reads: {error}") from None
        try:
            (contract or theirs).require_policy_of(theirs, f"the policy at {self.endpoint}")
        except ContractError as error:
            raise PolicyError(str(error)) from None
        return theirs


def _headers(endpoint: str, keys: Path | None) -> dict[str, str]:
    """What opens the conversation. Raises PolicyError for an address at which anybody could answer."""
    try:
        where = read_websocket(endpoint)
        if not where.port:
            raise DeftlyError("it has no port: a server prints its own when it starts")
        if where.scheme == "ws" and keys is None and not where.is_local:
            raise DeftlyError(
                "anybody could answer there: give --keys FOLDER, write wss://, or bring its port here, as "
                f"'ssh -L {where.port}:localhost:{where.port} {printable(where.host, 60)}' does"
            )
        return {} if keys is None else {"Authorization": f"Api-Key {load_token(keys)}"}
    except DeftlyError as error:
        raise PolicyError(f"cannot connect to '{printable(endpoint, 100)}': {error}") from None
