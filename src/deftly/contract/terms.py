"""The terms of a policy contract: what an operator says, what enters the observation, what an action moves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from msgspec import Meta

from deftly.contract.robot import Shape
from deftly.contract.schema import FewNames, Name, Number, Numbers, Positive, Record, Text

STATE = "state"
"""The group of the observation that holds numbers unless a term says otherwise."""
MAX_HISTORY = 10_000
MAX_PROMPT = 4096
"""Characters of the longest text of an input."""
ActKind = Literal["absolute", "relative", "delta", "velocity", "gripper"]
Inputs = Mapping[str, Any]
"""What an operator or planner says, by name: numbers `(..., size)`, or text."""


@dataclass(frozen=True)
class Input(Record):
    """What an operator or a planner says and no sensor measures: a velocity command, a goal pose, a prompt.

    `lower`, `upper` and `default` hold one number, or one for each element; what is out of range is clipped. A `text`
    has none of them but a default, and no observation sees it: the policy itself reads it.
    """

    name: Name
    shape: Shape = (1,)
    units: Text = ""
    frame: Text = ""
    lower: Numbers = (-1.0,)
    upper: Numbers = (1.0,)
    default: Numbers = (0.0,)
    dtype: Literal["float32", "text"] = "float32"
    text: Text = ""

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def is_text(self) -> bool:
        """Whether this is text, which no observation sees."""
        return self.dtype == "text"

    def check(self) -> None:
        """Bounds of the right count and in order, the default within them."""
        self._need(len(self.shape) == 1, f"has shape {self.shape}, expected (n,)")
        for name in ("lower", "upper", "default"):
            count = len(getattr(self, name))
            fits = count in (1, self.size)
            self._need(fits, f"{name} has {count} values, expected 1 or {self.size}")
        self._need(self.is_text or not self.text, "only a text input has a default text")
        within = f"default {self.default} must be within {self.lower} .. {self.upper}"
        self._need(self._in_order(), within)

    def _in_order(self) -> bool:
        """Whether each element's default is within its bounds, and those differ."""
        lower = spread(self.lower, self.size)
        upper = spread(self.upper, self.size)
        default = spread(self.default, self.size)
        bounds = zip(lower, default, upper)
        return all(low <= value <= high and low < high for low, value, high in bounds)


@dataclass(frozen=True)
class Observe(Record):
    """How one value enters the observation: `clip(scale * (value - offset))`, the last `history` steps, oldest first.

    The `term` is a signal, an input, a derived value, `command` (the last joint targets) or `action` (the last filtered
    action). `scale` and `offset` hold one value, or one for each element. With a `stride`, the newest of the last
    `history` steps is seen, and every `stride`-th before it. Terms of one `group` stand behind each other in order; an
    image is alone in its group and passes unchanged.
    """

    term: Name
    scale: Numbers = (1.0,)
    offset: Numbers = (0.0,)
    clip: tuple[Number, Number] | None = None
    history: Annotated[int, Meta(ge=1, le=MAX_HISTORY)] = 1
    stride: Annotated[int, Meta(ge=1, le=MAX_HISTORY)] = 1
    group: Name = STATE

    @property
    def frames(self) -> int:
        """Number of steps that are seen."""
        return (self.history - 1) // self.stride + 1

    def check(self) -> None:
        """A stride within the history, bounds of the clip in order."""
        stride = f"stride {self.stride} of '{self.term}'"
        fits = self.stride <= self.history
        self._need(fits, f"{stride} is larger than its history of {self.history}")
        if self.clip is not None:
            lower, upper = self.clip
            self._need(lower < upper, f"clip of '{self.term}' is {self.clip}")


@dataclass(frozen=True)
class Act(Record):
    """How some elements of the action, each in [-1, 1], become targets of `joints`, in this order.

    absolute   middle of the joint's range + scale * a; scale defaults to half the range.
    relative   origin + scale * a; the `origin` is `home`, or the pose at the `start` of the episode.
    delta      last command + scale * a. The command, not the measured position: that sags under load.
    velocity   last command + scale * a / rate, scale in rad/s; defaults to the joint's top speed.
    gripper    a > 0 moves towards the lower limit (closed), else towards the upper (open), at `scale` per second.

    `lowpass` is the weight of the previous action: filtered = lowpass * previous + (1 - lowpass) * action.
    """

    joints: FewNames
    kind: ActKind
    scale: Annotated[tuple[Positive, ...], Meta(max_length=256)] = ()
    lowpass: Annotated[float, Meta(ge=0.0, lt=1.0)] = 0.0
    origin: Literal["home", "start"] = "home"

    def check(self) -> None:
        """A scale of the right count where one is needed; an origin other than home for `relative` alone."""
        self._need(bool(self.joints), "drives no joint")
        fits = len(self.scale) in {0, 1, len(self.joints)}
        self._need(fits, f"has {len(self.scale)} scales for the joints {self.joints}")
        if self.kind in ("relative", "delta"):
            self._need(bool(self.scale), f"of kind {self.kind} needs a scale")
        if self.kind != "relative":
            self._need(self.origin == "home", f"of kind {self.kind} has no origin")


def spread(values: tuple[float, ...], size: int) -> tuple[float, ...]:
    """One value for each element, from one for all or from one for each."""
    if len(values) == 1:
        return values * size
    return values
