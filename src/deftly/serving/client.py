"""The robot's side of a policy server: a policy that decides somewhere else, within a time, or raises PolicyError.

Another project installs the base package: it is light.
"""

import operator
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deftly.console import printable
from deftly.contract import COMMAND, ContractError, Inputs, PolicyContract
from deftly.policy.protocol import (
    NO_INPUTS,
    Decision,
    PolicyError,
    Signals,
    as_numbers,
    as_seen,
    checked_timeout,
    require_mapping,
)
from deftly.serving.link import Connection, Refused
from deftly.serving.memory import keep_memory
from deftly.serving.wire import WireError, as_rows, jpeg, max_frame, read_array

MAX_QUALITY = 95
"""Of a JPEG: more makes it larger, and no better."""


@dataclass(slots=True, eq=False)
class _Robot:
    """What the client knows of one robot, which has a session of its own."""

    session: str | None = None
    fresh: bool = True
    """It starts an episode with its next signals."""
    last: np.ndarray | None = None
    """Targets that it has; None outside of an episode."""
    doubt: bool = False
    """The server may have decided what never came."""


class Client:
    """A `Policy` that decides on a server: `infer` waits at most `timeout` s, every other message `patience` s.

    Each robot has a session of its own; all share one connection. For one robot, `OneRobot(Client(...))` needs no axis
    of robots.

    Args:
        endpoint: Where the server is, such as `tcp://127.0.0.1:5555`.
        contract: The robot's; None takes the server's.
        timeout: Longest wait for the decisions of up to eight robots, s, at most an hour.
        keys: The robot's folder of `deftly serve --new-keys`.
        quality: Send images as JPEG of this quality, 1 to 95, for a network that is slow; 0: as they are.
        real_time: These robots are driven in real time; a simulation's, which wait for no chunk, are not.

    Raises PolicyError if there is no server, another contract there, a model that asks for chunks in real time for a
    robot that is not in it, or for arguments that make no sense, by name; the same object tries again at the next call.
    """

    patience = 3.0
    deterministic = True

    def __init__(
        self,
        endpoint: str,
        contract: PolicyContract | None = None,
        timeout: float = 0.25,
        keys: Path | None = None,
        quality: int = 0,
        real_time: bool = True,
    ):
        if contract is not None and not isinstance(contract, PolicyContract):
            kind = type(contract).__name__
            raise PolicyError(f"contract is a {kind}, expected a PolicyContract, or None")
        self.timeout = timeout
        self._real_time = real_time
        self._quality = _checked_quality(quality)
        self._link = Connection(endpoint, keys)
        self._robots: dict[int, _Robot] = {0: _Robot()}
        try:
            self.contract = self._init([self._robots[0]], contract)
        except BaseException:
            self._link.close()
            raise
        if any(signal.is_image for signal in self.contract.signals):
            keep_memory()

    @property
    def timeout(self) -> float:
        """Longest wait for a decision, s. Setting it raises PolicyError for what is no such time."""
        return self._timeout

    @timeout.setter
    def timeout(self, seconds: float) -> None:
        self._timeout = checked_timeout(seconds)

    def ping(self) -> None:
        """Raise PolicyError unless the server answers."""
        self._link.ask("ping", self.patience)

    def status(self) -> dict[str, Any]:
        """What the server has counted."""
        return self._link.ask("status", self.patience)

    def reset(self, ids: Sequence[int] | None = None) -> None:
        """These robots start an episode with their next signals; a server that was restarted is then met anew."""
        for row in list(self._robots) if ids is None else _rows(ids):
            robot = self._robots.setdefault(row, _Robot())
            robot.fresh = True
            robot.last = None

    def infer(
        self,
        signals: Signals,
        inputs: Inputs = NO_INPUTS,
        applied: np.ndarray | None = None,
        ids: Sequence[int] | None = None,
    ) -> Decision:
        """Decide one control step of n robots; see `Policy`. Raises PolicyError also for what is not of n robots."""
        self._link.require_open()
        seen = as_seen(signals)
        count = _count(seen)
        said = _said(inputs, count)
        commands = None if applied is None else self._commands(applied, count)
        rows = [_row(seen, said, place) for place in range(count)]
        numbers = range(count) if ids is None else _rows(ids)
        if len(numbers) != count:
            raise PolicyError(f"ids are {len(numbers)}, and the signals are of {count} robots")
        robots = [self._robots.setdefault(row, _Robot()) for row in numbers]
        sent = [self._compressed(row) for row in rows] if self._quality else rows
        fresh = [place for place, robot in enumerate(robots) if robot.fresh]
        if fresh:
            begun = [robots[place] for place in fresh]
            self._start(begun, [rows[place] for place in fresh], [sent[place] for place in fresh])
        for place, robot in enumerate(robots):
            self._add_command(sent[place], robot, None if commands is None else commands[place])
            robot.doubt = True
        replies = self._in_session("infer", self.timeout, robots, sent)
        return self._read(replies, robots)

    def forget(self, ids: Sequence[int]) -> None:
        """These robots are gone: their sessions end."""
        gone = [self._robots.pop(row) for row in _rows(ids) if row in self._robots]
        self._leave(gone)

    def close(self) -> None:
        """Leave, so that the server need not wait until the sessions are idle. It decides nothing any more."""
        self._leave([*self._robots.values()])
        self._link.close()

    def _compressed(self, row: dict[str, Any]) -> dict[str, Any]:
        """A message whose images are JPEG."""
        told = dict(row["signals"])
        for name, value in told.items():
            if value.dtype == np.uint8 and value.ndim == 3:  # what is no image, the server refuses
                try:
                    told[name] = jpeg(value, self._quality)
                except (WireError, ValueError, TypeError, OSError) as error:
                    raise PolicyError(f"'{printable(name, 60)}': {printable(error, 160)}") from None
        return {**row, "signals": told}

    def _commands(self, applied: Any, count: int) -> np.ndarray:
        """What the robots were commanded last, `(n, num_joints)` float32. Raises PolicyError for anything else."""
        commands = as_numbers(applied, "applied").astype(np.float32)
        wanted = (count, len(self.contract.joints))
        if commands.shape != wanted:
            raise PolicyError(f"'applied' has the shape {commands.shape}, expected {wanted}")
        return commands

    def _start(
        self, robots: list[_Robot], rows: list[dict[str, Any]], sent: list[dict[str, Any]]
    ) -> None:
        """Episodes begin where these robots are; sessions are opened where there is none."""
        new = [robot for robot in robots if robot.session is None]
        if new:
            self._init(new, self.contract)
        try:
            self._in_session("reset", self.patience, robots, sent)
        except PolicyError:
            lost = [robot for robot in robots if robot.session is None]
            if not lost:
                raise
            self._init(lost, self.contract)
            self._in_session("reset", self.patience, robots, sent)
        for robot, row in zip(robots, rows):
            try:
                begun = self.contract.reset(row["signals"], row.get("inputs"))
            except ContractError as error:  # the server took what the contract does not
                raise PolicyError(str(error)) from None
            robot.last = begun[COMMAND]
            robot.fresh = robot.doubt = False

    def _add_command(self, row: dict[str, Any], robot: _Robot, applied: np.ndarray | None) -> None:
        """Tell the server what the robot was commanded last, where it may not know."""
        if robot.last is None:
            raise PolicyError("the policy decides only in an episode: call reset first")
        if applied is not None and not np.isnan(applied).all():
            row["applied"] = applied
        elif robot.doubt:
            row["applied"] = robot.last

    def _read(self, replies: Sequence[dict[str, Any]], robots: Sequence[_Robot]) -> Decision:
        """The decisions of some replies. Raises PolicyError for one that no robot may follow."""
        actions, targets = [], []
        try:
            for reply in replies:
                actions.append(read_array(reply.get("action"), self.contract.action_size, "action"))
                targets.append(
                    read_array(reply.get("targets"), len(self.contract.joints), "targets")
                )
        except WireError as error:
            raise PolicyError(f"{self._link.endpoint}: {error}") from None
        decided = as_rows(targets)
        beyond = self.contract.robot.beyond_limits(decided)
        if beyond:
            raise PolicyError(f"{self._link.endpoint}: {beyond[1]}")
        for robot, target in zip(robots, targets):
            robot.last = target
            robot.doubt = False
        return Decision(as_rows(actions), decided)

    def _init(self, robots: Sequence[_Robot], contract: PolicyContract | None) -> PolicyContract:
        """Open a session for each of the robots; returns the server's contract."""
        ours = {} if contract is None else {"contract": contract.hash, "spec": contract.to_json()}
        replies = self._link.ask_all("init", self.patience, [ours] * len(robots))
        try:
            theirs = PolicyContract.from_json(_text(replies[0], "spec"))
        except ContractError as error:
            raise PolicyError(
                f"{self._link.endpoint} answers with no contract that this Deftly reads: {error}"
            ) from None
        try:
            (contract or theirs).require_policy_of(theirs, f"the policy at {self._link.endpoint}")
        except ContractError as error:
            raise PolicyError(str(error)) from None
        if replies[0].get("ahead") is True and not self._real_time:
            raise PolicyError(
                f"the model at {self._link.endpoint} predicts its chunks in real time, and a simulation is faster: "
                "serve it with --bind ws://HOST:PORT, or give --policy the model itself"
            )
        for robot, reply in zip(robots, replies):
            robot.session = _text(reply, "session")
        self._link.most = max_frame(theirs.robot)
        return theirs

    def _in_session(
        self, kind: str, timeout: float, robots: Sequence[_Robot], rows: Sequence[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        if any(robot.session is None for robot in robots):
            raise PolicyError(
                f"{self._link.endpoint} does not know this robot any more: call reset"
            )
        messages = [{"session": robot.session, **row} for robot, row in zip(robots, rows)]
        try:
            return self._link.ask_all(kind, timeout, messages)
        except Refused as error:
            if error.code == "no-session":
                for robot in robots:
                    robot.session = robot.last = None
                raise PolicyError(
                    f"{self._link.endpoint} was restarted, or the robot was idle: call reset"
                ) from None
            raise

    def _leave(self, robots: Sequence[_Robot]) -> None:
        there = [robot for robot in robots if robot.session is not None]
        with suppress(PolicyError):
            self._in_session("close", self.timeout, there, [{}] * len(there))
        for robot in there:
            robot.session = None


def _text(reply: Mapping[str, Any], name: str) -> str:
    """A text of a reply; empty if it is none: whoever listens there may answer anything."""
    said = reply.get(name)
    return said if isinstance(said, str) else ""


def _checked_quality(quality: Any) -> int:
    """The quality of a JPEG; 0: none. Raises PolicyError for anything else."""
    with suppress(TypeError):
        if 0 <= operator.index(quality) <= MAX_QUALITY:
            return operator.index(quality)
    raise PolicyError(
        f"quality is {printable(quality, 40)}, expected 1 to {MAX_QUALITY}, or 0 for images as they are"
    )


def _rows(ids: Iterable[Any]) -> list[int]:
    """The numbers of some robots. Raises PolicyError unless they are whole, and each is there once."""
    try:
        rows = [operator.index(row) for row in ids]
    except TypeError:
        raise PolicyError(f"ids is {printable(ids, 60)}, expected the numbers of robots") from None
    if len(set(rows)) != len(rows):
        raise PolicyError(f"ids is {printable(rows, 60)}: a robot is named twice")
    return rows


def _count(signals: Mapping[str, np.ndarray]) -> int:
    """How many robots these are the signals of. Raises PolicyError, naming it, for one that is not of as many."""
    count = len(next(iter(signals.values())))
    for name, value in signals.items():
        if value.ndim < 2 or not count or len(value) != count:
            wanted = f"expected ({count or 'robots'}, size): a row for each robot"
            raise PolicyError(f"'{printable(name, 60)}' has the shape {value.shape}, {wanted}")
    return count


def _said(inputs: Inputs, count: int) -> dict[str, list[Any]]:
    """What is said to each of the robots: text, or numbers `(size,)` float32. Raises PolicyError naming the input."""
    require_mapping(inputs, "inputs")
    said = {}
    for name, value in inputs.items():
        rows = []
        with suppress(TypeError):  # of a single number
            rows = [] if isinstance(value, str) else [*value]
        if len(rows) != count:
            raise PolicyError(
                f"'{printable(name, 60)}' is not one input for each robot: expected {count} of them in a list or array"
            )
        said[name] = [
            row if isinstance(row, str) else np.ravel(as_numbers(row, name)).astype(np.float32)
            for row in rows
        ]
    return said


def _row(
    signals: Mapping[str, np.ndarray], inputs: Mapping[str, list[Any]], place: int
) -> dict[str, Any]:
    """The fields of the message of one robot."""
    row: dict[str, Any] = {"signals": {name: value[place] for name, value in signals.items()}}
    if inputs:
        row["inputs"] = {name: value[place] for name, value in inputs.items()}
    return row
