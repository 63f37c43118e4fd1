"""Operators: who says what a policy's inputs are, by keyboard, gamepad or a file of commands.

A control loop looks at its operator once in each period, and never waits for him. Whoever stops being heard is a fault
of the safety kernel (`input-stale`), within `safety.input_s`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from deftly.contract import PolicyContract
from deftly.control.operator.words import OperatorError, Words

KEYBOARD, GAMEPAD = "keyboard", "gamepad"
SUFFIXES = (".csv", ".yaml", ".yml")
OPERATOR = (
    "Who says the policy's inputs: keyboard, gamepad (or gamepad:/dev/input/eventN), or a file of commands, "
    "FILE.csv or FILE.yaml."
)
"""What a command's help says."""


class Operator(Protocol):
    """Who says what the inputs of a policy are. Nothing here waits."""

    starts: bool
    """Whether he can start, hold and resume the robot."""
    hint: str
    """What he can do, in a line; empty if that needs no words."""

    def hear(self, now: float, driving: bool) -> Mapping[str, Any] | None:
        """What he says now, by name of an input: numbers (size,) or text; None: he is not heard.

        Args:
            now: Of the control loop, s.
            driving: Whether the policy drives.
        """
        ...

    def words(self) -> list[str]:
        """Keys of the session that he pressed since the last call: s, h, r or q."""
        ...

    def notes(self) -> list[str]:
        """Lines for people since the last call."""
        ...

    def close(self) -> None:
        """Let go of his device."""
        ...


def require_spec(spec: str) -> None:
    """Raise OperatorError unless this may name an operator."""
    kind = spec.partition(":")[0]
    if kind not in (KEYBOARD, GAMEPAD) and Path(spec).suffix.lower() not in SUFFIXES:
        raise OperatorError(
            f"--operator is '{spec:.80}', but it must be keyboard, gamepad, or a file of commands, "
            "FILE.csv or FILE.yaml"
        )


def is_live(spec: str) -> bool:
    """Whether this names somebody who has to see the robot."""
    return Path(spec).suffix.lower() not in SUFFIXES


@contextmanager
def listening(spec: str, contract: PolicyContract) -> Iterator[Operator]:
    """The operator that `--operator` names, for a while; what he can do, and what of a file is clipped, is printed.

    Raises OperatorError as `open_operator` does.
    """
    operator = open_operator(spec, contract)
    try:
        for line in filter(None, (operator.hint, *operator.notes())):
            print(line, flush=True)
        yield operator
    finally:
        operator.close()


def open_operator(spec: str, contract: PolicyContract) -> Operator:
    """The operator that `--operator` names. Raises OperatorError, one line, if he cannot be listened to."""
    require_spec(spec)
    if not Words(contract).inputs:
        raise OperatorError(
            "the policy has no inputs, nobody can tell it anything: leave out --operator"
        )
    if not is_live(spec):
        from deftly.control.operator.timetable import Timetable

        return Timetable(Path(spec), contract)
    kind, _, device = spec.partition(":")
    if kind == GAMEPAD:
        from deftly.control.operator.gamepad import Gamepad

        return Gamepad(contract, device)
    from deftly.control.operator.keyboard import Keyboard

    return Keyboard(contract)
