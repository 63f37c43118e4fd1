"""The settings of a dataclass as flags: name, type, constraints, documentation and default of each."""

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from typing_extensions import Doc

from deftly.config.constraints import OnDisk, hints_of, kebab, limits

T = TypeVar("T")


@dataclass(frozen=True)
class Repeatable:
    """Marks a list that may be given piece by piece: `--gate A --gate B`."""


@dataclass(frozen=True)
class Flag:
    """One setting."""

    name: str
    """As a flag writes it, without the dashes: `env.num-envs`."""
    hint: Any
    """Its type, `Annotated` included."""
    doc: str
    default: Any
    """`dataclasses.MISSING` if it must be given."""

    @property
    def section(self) -> str:
        """The dotted section that it is in; empty for the command's own."""
        return self.name.rpartition(".")[0]

    @property
    def kind(self) -> Any:
        """Its type without `Annotated` and `None`."""
        return _plain(self.hint)

    @property
    def optional(self) -> bool:
        """Whether it may be None."""
        hint = self.hint
        if get_origin(hint) is Annotated:
            hint = get_args(hint)[0]
        return NoneType in get_args(hint)

    def takes(self, count: int) -> bool:
        """Whether so many words can be its value."""
        if get_origin(self.kind) is not tuple:
            return count <= 1
        return self.is_open or count in (len(get_args(self.kind)), 0)

    @property
    def is_open(self) -> bool:
        """Whether it is a list of any length."""
        return get_origin(self.kind) is tuple and get_args(self.kind)[1:] == (...,)

    @property
    def repeats(self) -> bool:
        """Whether values given one after the other add up."""
        annotations = get_args(self.hint)[1:]
        return any(isinstance(part, Repeatable) for part in annotations)

    def problem(self, path: Path) -> str:
        """Why a path cannot be its value, by what is on the disk; empty if it can."""
        for part in get_args(self.hint)[1:]:
            if isinstance(part, OnDisk) and (problem := part.problem(path)):
                return f"{problem}; {part.advice}" if part.advice else problem
        return ""

    @property
    def wanted(self) -> str:
        """What a value must be: its type in words."""
        return _in_words(self.kind) + (", or none" if self.optional else "")

    @property
    def limits(self) -> str:
        """The bounds of its value, as `>= 1, <= 10`; empty if it has none."""
        return limits(get_args(self.hint)[1:])


def flags(cls: type, default: Any = MISSING, section: str = "") -> Iterator[Flag]:
    """Every setting of a dataclass in its order, with those of dataclasses inside; defaults are those of `default`."""
    hints, docs = hints_of(cls), field_docs(cls)
    for item in fields(cls):
        name = kebab(f"{section}.{item.name}" if section else item.name)
        value = getattr(default, item.name) if is_dataclass(default) else _default(item)
        inner = _section_type(hints[item.name], value)
        if inner is not None:
            yield from flags(inner, value, name)
        elif isinstance(value, dict) and value:
            entry = get_args(_plain(hints[item.name]))[1:] or (Any,)
            yield from (
                Flag(kebab(f"{name}.{key}"), entry[0], "", one) for key, one in value.items()
            )
        else:
            yield Flag(name, hints[item.name], docs.get(item.name, ""), value)


def built(cls: type[T], values: Mapping[str, Any], default: Any = MISSING, section: str = "") -> T:
    """A `cls` with the values of some of its flags, by name; the others are those of `default`."""
    kind: Any = cls  # a dataclass, which its type does not say
    base: Any = default if is_dataclass(default) else None
    hints, given = hints_of(cls), {}
    for item in fields(kind):
        name = kebab(f"{section}.{item.name}" if section else item.name)
        value = _default(item) if base is None else getattr(base, item.name)
        inner = _section_type(hints[item.name], value)
        if name in values:
            given[item.name] = values[name]
        elif not any(flag.startswith(f"{name}.") for flag in values):
            continue
        elif inner is not None:
            given[item.name] = built(inner, values, value, name)
        elif isinstance(value, dict):
            given[item.name] = {
                key: values.get(kebab(f"{name}.{key}"), one) for key, one in value.items()
            }
    return cls(**given) if base is None else replace(base, **given)


def sections(cls: type, default: Any = MISSING, section: str = "") -> Iterator[tuple[str, str]]:
    """Dotted name and documentation of every section of a dataclass, in the order of the class."""
    hints, docs = hints_of(cls), field_docs(cls)
    for item in fields(cls):
        name = kebab(f"{section}.{item.name}" if section else item.name)
        value = getattr(default, item.name) if is_dataclass(default) else _default(item)
        inner = _section_type(hints[item.name], value)
        if inner is not None or isinstance(value, dict):
            yield name, docs.get(item.name) or (inner.__doc__ or "" if inner else "")
        if inner is not None:
            yield from sections(inner, value, name)


@lru_cache(maxsize=256)
def field_docs(cls: type) -> Mapping[str, str]:
    """The documentation of each field: its `Doc`; else, of a plain field, the comment or text beside it, if known."""
    return {name: text for name in hints_of(cls) if (text := _doc(cls, name))}


def _doc(cls: type, name: str) -> str:
    hint = hints_of(cls)[name]
    annotations = get_args(hint)[1:]
    found = [part.documentation for part in annotations if isinstance(part, Doc)]
    if get_origin(hint) is Annotated and found:
        return " ".join(found[0].split())
    try:
        from tyro._docstrings import get_field_docstring

        return " ".join((get_field_docstring(cls, name, ()) or "").split())
    except (ImportError, TypeError, OSError):
        return ""


def _default(item: Any) -> Any:
    return item.default_factory() if item.default_factory is not MISSING else item.default


def _section_type(hint: Any, value: Any) -> type | None:
    """The dataclass of a field that is a section; of a union, the one of its default."""
    kind = _plain(hint)
    if isinstance(kind, type) and is_dataclass(kind):
        return kind
    return type(value) if is_dataclass(value) and not isinstance(value, type) else None


def _plain(hint: Any) -> Any:
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _plain(inner[0])
    if origin in (Union, UnionType):
        kinds = [kind for kind in inner if kind is not NoneType]
        return _plain(kinds[0]) if len(kinds) == 1 else hint
    return hint


_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def _in_words(kind: Any) -> str:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if origin is tuple and inner[1:] == (...,):
        is_number = _plain(inner[0]) in (int, float)
        return f"a list, as {'64,64' if is_number else 'one two'}"
    if origin is tuple:
        example = ",".join("12"[: len(inner)])
        return f"{len(inner)} values, as {example}"
    module = getattr(kind, "__module__", "")
    otherwise = "a path" if module.startswith("pathlib") else "a value"
    return _WORDS.get(kind, otherwise)
