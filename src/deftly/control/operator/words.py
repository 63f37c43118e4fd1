"""What an operator may say: the inputs of a policy's contract, element by element, and what is made of his words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from deftly.contract import Input, PolicyContract
from deftly.contract.terms import MAX_PROMPT, spread
from deftly.errors import DeftlyError


class OperatorError(DeftlyError):
    """What an operator says is no input of the policy, or he cannot be listened to."""


class Element(NamedTuple):
    """One number of an input."""

    name: str
    """Of the input."""
    place: int
    label: str
    """`speed`; of an input of several numbers `goal[1]`."""
    units: str
    lower: float
    upper: float
    default: float

    @property
    def is_rate(self) -> bool:
        """Whether it makes the robot move for as long as it is said (m/s, rad/s), and is not a place to be in."""
        return self.units.endswith("/s")

    @property
    def range(self) -> float:
        """From its lower to its upper bound."""
        return self.upper - self.lower

    def clip(self, value: float) -> float:
        """The value within the bounds."""
        return min(max(value, self.lower), self.upper)

    def at(self, stick: float) -> float:
        """The value for a stick from -1 to 1, whose middle is the default."""
        end = self.upper if stick > 0 else self.lower
        return self.default + abs(stick) * (end - self.default)


class Words:
    """The words that a contract knows.

    Args:
        contract: Of the policy that is spoken to.
    """

    def __init__(self, contract: PolicyContract):
        self.inputs = {given.name: given for given in contract.inputs}
        self.elements = [each for given in contract.inputs for each in _elements(given)]
        """Of the inputs of numbers, in the contract's order."""
        self._bounds = {given.name: _bounds(given) for given in contract.inputs}
        self._said_beyond: set[str] = set()
        self.notes: list[str] = []
        """Lines for people that nobody has taken yet."""

    def defaults(self) -> dict[str, np.ndarray]:
        """The default of each input of numbers, (size,) float64 by name."""
        return self.values([element.default for element in self.elements])

    def values(self, elements: list[float]) -> dict[str, np.ndarray]:
        """Inputs of numbers by name, (size,) float64, from the numbers of all elements."""
        found: dict[str, list[float]] = {}
        for element, value in zip(self.elements, elements):
            found.setdefault(element.name, []).append(value)
        return {name: np.array(values) for name, values in found.items()}

    def checked(self, said: Mapping[str, Any]) -> dict[str, Any]:
        """What is said as inputs: text, or (size,) float64 within the trained range; `notes` says once what was not.

        Raises OperatorError, one line, for an unknown name, a wrong size, and what is not finite.
        """
        return {name: self._checked(name, value) for name, value in said.items()}

    def _checked(self, name: str, value: Any) -> Any:
        given = self.inputs.get(name)
        if given is None:
            raise OperatorError(f"'{name!s:.60}' is no input of the policy, {self._known()}")
        if given.is_text:
            return _text(given, value)
        try:
            numbers = np.array(value, np.float64).reshape(-1)  # a copy: it is the caller's
        except (TypeError, ValueError):
            numbers = np.full(given.size, np.nan)
        if len(numbers) != given.size or not np.isfinite(numbers).all():
            wanted = f"{given.size} finite numbers" if given.size > 1 else "a finite number"
            raise OperatorError(f"input '{name}' is {value!s:.60}, expected {wanted}")
        return self._clipped(given, numbers)

    def _known(self) -> str:
        return f"which has {', '.join(self.inputs)}" if self.inputs else "which has none"

    def _clipped(self, given: Input, numbers: np.ndarray) -> np.ndarray:
        lower, upper = self._bounds[given.name]
        beyond = (numbers < lower) | (numbers > upper)
        if not beyond.any():
            return numbers
        self._note_beyond(given, int(beyond.argmax()), numbers)
        return np.clip(numbers, lower, upper)

    def _note_beyond(self, given: Input, index: int, numbers: np.ndarray) -> None:
        """Say once for each input that it was beyond its range."""
        if given.name in self._said_beyond:
            return
        self._said_beyond.add(given.name)
        element = _elements(given)[index]
        units = f" {element.units}" if element.units else ""
        trained = f"{element.lower:g} to {element.upper:g}{units}"
        self.notes.append(
            f"{element.label} is {numbers[index]:g}{units}, but the policy was trained for {trained}: clipped"
        )

    def take_notes(self) -> list[str]:
        """Lines for people since the last call."""
        notes = self.notes
        self.notes = []
        return notes


def show(values: Mapping[str, Any]) -> str:
    """Inputs in a few characters: `speed 0.30, turn -0.10`."""
    parts = []
    for name, value in values.items():
        shown = value
        if not isinstance(value, str):
            numbers = [f"{number:.2f}" for number in np.ravel(value)]
            shown = " ".join(numbers)
        parts.append(f"{name} {shown}")
    return ", ".join(parts)


def _bounds(given: Input) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper bound of each number of an input, (size,)."""
    lower = spread(given.lower, given.size)
    upper = spread(given.upper, given.size)
    return np.array(lower), np.array(upper)


def _elements(given: Input) -> list[Element]:
    """The numbers of an input; none of a text."""
    if given.is_text:
        return []
    lower = spread(given.lower, given.size)
    upper = spread(given.upper, given.size)
    default = spread(given.default, given.size)
    labels = [given.name]
    if given.size > 1:
        labels = [f"{given.name}[{index}]" for index in range(given.size)]
    return [
        Element(given.name, i, labels[i], given.units, lower[i], upper[i], default[i])
        for i in range(given.size)
    ]


def _text(given: Input, value: Any) -> str:
    if not isinstance(value, str):
        raise OperatorError(f"input '{given.name}' is {value!s:.60}, expected a text")
    if len(value) > MAX_PROMPT:
        raise OperatorError(
            f"input '{given.name}' has {len(value)} characters, at most {MAX_PROMPT} are allowed"
        )
    return value
