"""What the value of a field must be: constraints that stand beside the field, in `Annotated`.

    num_envs: Annotated[int, Ge(1), Doc("Environments stepped side by side.")] = 1024

`Ge`, `Gt`, `Le`, `Lt` are those of `annotated-types`; `Must` says in words what they cannot. They hold for the value,
for each element of a tuple whose elements carry them, and not for None. Numbers must be finite, and at most 1e12 in
size, everywhere. The text of a field is its `Doc`, from which the help and the comments of YAML files are made.
"""

import inspect
import math
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt

from deftly.console import printable
from deftly.errors import DeftlyError
from deftly.files import why_unreadable, why_unwritable


@dataclass(frozen=True)
class Must:
    """A constraint in words, with its test."""

    be: str
    """What the value must be: completes "it must be ..."."""
    test: Callable[[Any], object]


@dataclass(frozen=True)
class Suffix:
    """The name of a file ends in this."""

    suffix: str


@dataclass(frozen=True)
class OnDisk:
    """What must be at a path. It is tested of paths that are given, before any work; not of defaults."""

    problem: Callable[[Path], str]
    """Why the path cannot be used; empty if it can."""
    advice: str = ""
    """What makes a right one, to be put at the end of the message."""


INPUT = OnDisk(partial(why_unreadable, folder=True))
INPUT_FILE = OnDisk(why_unreadable)
INPUT_FOLDER = OnDisk(partial(why_unreadable, file=False, folder=True))
KEYS = replace(INPUT_FOLDER, advice="'deftly serve --new-keys DIR' makes one")
OUTPUT_FILE = OnDisk(why_unwritable)
OUTPUT_FOLDER = OnDisk(partial(why_unwritable, folder=True))


class Bound(NamedTuple):
    """How a constraint of `annotated-types` is tested and told."""

    attribute: str
    test: Callable[[Any, Any], bool]
    words: str
    sign: str


BOUNDS: dict[type, Bound] = {
    Ge: Bound("ge", operator.ge, "{} or more", ">="),
    Gt: Bound("gt", operator.gt, "above {}", ">"),
    Le: Bound("le", operator.le, "at most {}", "<="),
    Lt: Bound("lt", operator.lt, "below {}", "<"),
}
MOST_SHOWN = 200
"""Most characters of a value that a message shows."""
HUGE = 100_000
"""Bounds from here on guard against typing errors, and are not worth a line of the help."""
LARGEST = 1e12
"""Largest size of any number: beyond it a typing error is likelier than a wish, and float32 and int64 overflow."""
RISING = Must("'LOW HIGH' with 0 <= LOW <= HIGH", lambda pair: 0 <= pair[0] <= pair[1])
"""A range of numbers that are not negative."""
POSITIVE_RANGE = Must("'LOW HIGH' with 0 < LOW <= HIGH", lambda pair: 0 < pair[0] <= pair[1])


ANGLE, LENGTH, SPEED, MASS, FORCE = Le(3.15), Le(2.0), Le(20.0), Le(100.0), Le(10_000.0)
"""Bounds of what a task's settings say in rad, m, m/s or rad/s, kg and N: beyond them a typing error is likelier than
a wish."""
PLACE = Must("'LOW HIGH' with -1 <= LOW <= HIGH <= 1", lambda pair: -1 <= pair[0] <= pair[1] <= 1)
"""A range of positions in the workspace of an arm, m."""


class Settings:
    """A group of settings, a frozen dataclass whose values are checked however it is built.

    Subclasses of one `section` are known by it in messages: `env.num-envs`. Conditions on several fields go into a
    `__post_init__` of the subclass, which calls this one first.
    """

    _section = ""

    def __init_subclass__(cls, section: str = "", **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        cls._section = section or cls._section

    def __post_init__(self) -> None:
        """Raise DeftlyError, one line with the flag and its value, if a field is not what it must be."""
        check(self, self._section)


def check(settings: Any, section: str = "") -> None:
    """Raise DeftlyError if a field of a dataclass, or of a dataclass inside it, is not what it must be."""
    for flag, hint, value in _leaves(settings, section):
        if wanted := violated(hint, value):
            shown = printable(show(value), MOST_SHOWN) or "empty"
            raise DeftlyError(f"{flag} is {shown}, but it must be {wanted}")


def _leaves(settings: Any, section: str) -> Iterator[tuple[str, Any, Any]]:
    hints = hints_of(type(settings))
    for item in fields(settings):
        flag = kebab(f"{section}.{item.name}" if section else item.name)
        value = getattr(settings, item.name)
        if is_dataclass(value):
            yield from _leaves(value, flag)
        elif isinstance(value, dict):
            kind = get_args(_unwrapped(hints[item.name]))[1:] or (Any,)
            yield from (
                (f"{flag}.{kebab(str(key))}", kind[0], entry) for key, entry in value.items()
            )
        else:
            yield flag, hints[item.name], value


@lru_cache
def hints_of(cls: type) -> dict[str, Any]:
    """The type of each field of a dataclass, with what is annotated.

    A subclass that sets another default, `rate: float = 15.0`, keeps the constraints of the field; and its
    documentation, unless it brings its own.
    """
    hints: dict[str, Any] = {}
    names = {item.name for item in fields(cls)}
    for base in reversed([base for base in cls.__mro__ if is_dataclass(base)]):
        own = names & inspect.get_annotations(base).keys()
        types = get_type_hints(base, include_extras=True)
        for name in own:
            hints[name] = _inherit(types[name], hints.get(name))
    return hints


def _inherit(hint: Any, inherited: Any) -> Any:
    """A field's type with what its base class says of it; own documentation, which comes first, counts."""
    if get_origin(inherited) is not Annotated:
        return hint
    return Annotated[(hint, *get_args(inherited)[1:])]


def _unwrapped(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def violated(hint: Any, value: Any) -> str:
    """What a value must be and is not; empty if it is what its type and constraints want."""
    if value is None:
        return ""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return violated(inner[0], value) or _violated_by(inner[1:], value)
    if origin in (Union, UnionType):
        kinds = [kind for kind in inner if kind is not NoneType]
        return violated(kinds[0], value) if len(kinds) == 1 else ""
    if origin is tuple and isinstance(value, tuple):
        of_any_length = inner[1:] == (...,)
        kinds = inner[:1] * len(value) if of_any_length else inner
        return next(filter(None, map(violated, kinds, value)), "")
    if isinstance(value, float) and not math.isfinite(value):
        return "a finite number"
    is_huge = isinstance(value, (int, float)) and abs(value) > LARGEST
    return f"at most {LARGEST:g} in size" if is_huge else ""


def _violated_by(constraints: tuple[Any, ...], value: Any) -> str:
    for constraint in constraints:
        is_suffix = isinstance(constraint, Suffix)
        if is_suffix and Path(value).suffix.lower() != constraint.suffix:
            name = f"{Path(value).stem or 'file'}{constraint.suffix}"
            return f"a {constraint.suffix} file, such as {Path(value).parent / name}"
        if not _holds(constraint, value):
            return in_words(constraints)
    return ""


def _holds(constraint: Any, value: Any) -> bool:
    if isinstance(constraint, Must):
        return bool(constraint.test(value))
    bound = BOUNDS.get(type(constraint))
    if bound is None:
        return True
    limit = getattr(constraint, bound.attribute)
    return bound.test(value, limit)


def in_words(constraints: tuple[Any, ...]) -> str:
    """What constraints want, as in `1 or more`; empty if they want nothing."""
    words = [
        constraint.be if isinstance(constraint, Must) else BOUNDS[kind].words.format(bound)
        for constraint, kind, bound in _told(constraints)
    ]
    return " and ".join(words)


def limits(constraints: tuple[Any, ...]) -> str:
    """The bounds among constraints, as `>= 1, <= 10`; empty if there are none. Huge upper ones are left out."""
    return ", ".join(
        f"{BOUNDS[kind].sign} {bound}"
        for _, kind, bound in _told(constraints)
        if kind in BOUNDS and (kind in (Ge, Gt) or abs(bound) < HUGE)
    )


def _told(constraints: tuple[Any, ...]) -> Iterator[tuple[Any, type, Any]]:
    """The constraints of these kinds, each once, with its kind and its bound."""
    for constraint in dict.fromkeys(constraints):  # a field that is declared again has them twice
        kind = type(constraint)
        if kind in BOUNDS:
            yield constraint, kind, getattr(constraint, BOUNDS[kind].attribute)
        elif kind is Must:
            yield constraint, kind, None


def show(value: Any) -> str:
    """A value as it is typed: `1 2`, not `(1, 2)`."""
    if isinstance(value, (tuple, list)):
        return " ".join(map(show, value)) or "empty"
    return str(value)


def kebab(key: str) -> str:
    """A key as a flag writes it: `env.num_envs` and `env.numEnvs` are `env.num-envs`."""
    letters = [
        "-" + b.lower() if b.isupper() and (a.islower() or a.isdigit()) else b
        for a, b in zip(" " + key, key)
    ]
    return "".join(letters).replace("_", "-")
