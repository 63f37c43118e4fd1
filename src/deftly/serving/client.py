"""The robot's side of a policy server: a policy that decides somewhere else, within a time, or raises PolicyError.

Another project installs the base package: it is light.
"""

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from deftly.contract import COMMAND, ContractError, Inputs, PolicyContract
from deftly.policy.protocol import Decision, PolicyError, Signals, as_seen
from deftly.serving.link import Connection, Refused
from deftly.serving.wire import WireError, max_frame, read_array


class Client:
    """A `Policy` that decides on a server: `infer` waits at most `timeout` s, every other message `patience` s.

    Without a contract the server's is taken; `keys` is the robot's folder of `deftly serve --new-keys`. Raises
    PolicyError if there is no server, or another contract there; the same object tries again at the next call."""

    patience = 3.0

    def __init__(
        self, endpoint: str, contract: PolicyContract | None = None, timeout: float = 0.25, keys: Path | None = None
    ):
        self.timeout, self._link, self._doubt = timeout, Connection(endpoint, keys), False
        self._session = self._last = None  # `_last`: targets that the robot has; None outside of an episode
        try:
            self.contract = self._init(contract)
        except BaseException:
            self._link.close()
            raise

    def ping(self) -> None:
        """Raise PolicyError unless the server answers."""
        self._link.ask("ping", self.patience)

    def status(self) -> dict[str, Any]:
        """What the server has counted."""
        return self._link.ask("status", self.patience)

    def reset(self, signals: Signals, inputs: Inputs | None = None) -> None:
        """Start an episode where the robot is; a server that was restarted is met anew."""
        self._last, signals = None, as_seen(signals)
        start = self.contract.reset(signals, inputs)[COMMAND]
        said = _packed(inputs)
        try:
            self._in_session("reset", self.patience, signals=signals, **said)
        except PolicyError:
            if self._session is not None:
                raise
            self._init(self.contract)
            self._in_session("reset", self.patience, signals=signals, **said)
        self._last, self._doubt = start, False

    def infer(self, signals: Signals, applied: np.ndarray | None = None, inputs: Inputs | None = None) -> Decision:
        """Decide one control step; `applied` is what the robot was commanded last, if not the last targets."""
        if self._last is None:
            raise PolicyError("the policy decides only in an episode: call reset first")
        applied = self._last if applied is None and self._doubt else applied  # it may have decided what never came
        self._doubt, more = True, {} if applied is None else {"applied": np.asarray(applied, np.float32)}
        reply = self._in_session("infer", self.timeout, signals=as_seen(signals), **more, **_packed(inputs))
        try:
            action = read_array(reply.get("action"), self.contract.action_size, "action")
            self._last = read_array(reply.get("targets"), len(self.contract.joints), "targets")
        except WireError as error:
            raise PolicyError(f"{self._link.endpoint}: {error}") from None
        self._doubt = False
        return Decision(action, self._last)

    def close(self) -> None:
        """Leave, so that the server need not wait until the session is idle."""
        with suppress(PolicyError):
            self._in_session("close", self.timeout)
        self._session = None
        self._link.close()

    def _init(self, contract: PolicyContract | None) -> PolicyContract:
        ours = {} if contract is None else {"contract": contract.hash, "spec": contract.to_json()}
        reply = self._link.ask("init", self.patience, **ours)
        try:
            theirs = PolicyContract.from_json(str(reply.get("spec")))
            (contract or theirs).require(theirs, f"the policy at {self._link.endpoint}")
        except ContractError as error:
            raise PolicyError(str(error)) from None
        self._session = str(reply.get("session"))
        self._link.most = max_frame(theirs.robot)
        return theirs

    def _in_session(self, kind: str, timeout: float, **fields: Any) -> dict[str, Any]:
        if self._session is None:
            raise PolicyError(f"{self._link.endpoint} does not know this robot any more: call reset")
        try:
            return self._link.ask(kind, timeout, session=self._session, **fields)
        except Refused as error:
            if error.code == "no-session":
                self._session = self._last = None
                raise PolicyError(f"{self._link.endpoint} was restarted, or the robot was idle: call reset") from None
            raise


def _packed(inputs: Inputs | None) -> dict[str, Any]:
    """The field of a message that carries inputs; none without any."""
    if not inputs:
        return {}
    said = {n: value if isinstance(value, str) else np.ravel(value).astype(np.float32) for n, value in inputs.items()}
    return {"inputs": said}
