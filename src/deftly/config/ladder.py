"""Conditions of a robustness evaluation, as data: the rungs of a task's ladder."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal, TypeVar

from deftly.config.named import suggest
from deftly.errors import DeftlyError

T = TypeVar("T")
Widened = Literal["all", "physics", "visual"]
"""Which ranges of a randomization are meant: all, those of the physics, or those of what images show."""
Sections = Mapping[str, Any]
"""Settings by section: `{"task": {"push_force": (4.0, 4.0)}, "env": {"noise": False}}`."""


@dataclass(frozen=True)
class Rung:
    """One condition under which `deftly eval TASK --ladder` measures a policy, or the same at several levels."""

    name: str
    """By which it is chosen (`--rungs`), and by which gates name it."""
    what: str
    """The condition in words, for the report."""
    settings: Sections = field(default_factory=dict)
    """What differs from `deftly eval TASK`, in the sections `task` and `env`."""
    seconds: float = 0.0
    """Length of an episode, s; 0: the task's own."""
    stochastic: bool = False
    """Draw actions from the policy's distribution."""
    wider: float = 1.0
    """How many times as wide the ranges of the randomization are."""
    only_outside: bool = False
    """With `wider`: nothing is drawn that lies in the task's own ranges."""
    widened: Widened = "all"
    """With `wider`: which ranges."""
    most_episodes: int = 0
    """Episodes at most, for a rung whose episodes are long; 0: as many as asked for."""
    levels: Mapping[float, Sections] = field(default_factory=dict)
    """Settings by level of a stress, from mild to severe; the report has the level at which half succeed."""
    unit: str = ""
    """Of the level."""


def with_changes(config: T, given: Sections, section: str) -> T:
    """A configuration with other values in some fields; a mapping changes fields of a section inside.

    Raises DeftlyError, one line, for a name that it does not have, and what its constraints refuse.
    """
    known = {item.name for item in fields(config)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name not in known:
            raise DeftlyError(f"{section} has no setting '{name}'{suggest(name, known)}")
        current = getattr(config, name)
        is_section = is_dataclass(current) and isinstance(value, Mapping)
        values[name] = with_changes(current, value, f"{section}.{name}") if is_section else value
    return replace(config, **values)  # type: ignore[type-var]


LATENCIES = (20.0, 40.0, 60.0, 80.0, 120.0, 160.0)  # ms
LADDER = (
    Rung("nominal", "as trained: the task's randomization, noise and pushes"),
    Rung("stochastic", "actions drawn from the policy's distribution", stochastic=True),
    Rung(
        "quiet",
        "no randomization, noise or pushes",
        {"env": {"randomize": False, "noise": False, "pushes": False}},
    ),
    Rung("wider", "randomization 1.5 times as wide as in training", wider=1.5),
    Rung(
        "latency",
        "commands that reach the servos so much later",
        levels={ms: {"env": {"latency_ms": (ms, ms)}} for ms in LATENCIES},
        unit="ms",
    ),
)
"""The ladder of a task that brings none of its own."""
VISUAL_LADDER = (
    *LADDER,
    Rung(
        "visual",
        "lights, colours and cameras outside of the ranges of the training, up to 1.5 times as wide",
        wider=1.5,
        only_outside=True,
        widened="visual",
    ),
)
"""The same for a policy that sees images."""
