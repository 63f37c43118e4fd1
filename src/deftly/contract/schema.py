"""Records of a contract: checked when they are made, written as canonical JSON, and read back without trust.

Every record is a frozen dataclass. Its type hints are its schema: msgspec checks them, bounds included, both for values
that a program gives and for JSON from a file or a peer. What must hold between the fields, each record checks itself.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar, Self, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from deftly.errors import DeftlyError

LARGEST = 1e12
"""Largest number, either way: products of two stay finite in float32."""
SMALLEST = 1e-9
"""Smallest number that is divided by."""
MAX_TEXT = 1 << 20
"""Characters of the longest JSON that is read."""

Number = Annotated[float, Meta(ge=-LARGEST, le=LARGEST)]
NotNegative = Annotated[float, Meta(ge=0.0, le=LARGEST)]
Positive = Annotated[float, Meta(ge=SMALLEST, le=LARGEST)]
Name = Annotated[str, Meta(pattern=r"\A\w[\w .:/+-]{0,63}\Z")]
Text = Annotated[str, Meta(max_length=200)]
Vector = tuple[Number, Number, Number]
Quaternion = tuple[Number, Number, Number, Number]
Numbers = Annotated[tuple[Number, ...], Meta(max_length=4096)]
FewNames = Annotated[tuple[Name, ...], Meta(max_length=256)]


class ContractError(DeftlyError):
    """A robot interface or a contract that is malformed, or not the one that was expected."""


@dataclass(frozen=True)
class Record:
    """Base of the parts of a contract.

    Raises ContractError, one line that names the field, for a value that is not of the field's type or out of bounds.
    """

    LATER: ClassVar[frozenset[str]] = frozenset()
    """Fields that an older Deftly did not know: not written while they have their default, so that hashes stay."""

    def __post_init__(self) -> None:
        for name, hint in hints(type(self)).items():
            value = getattr(self, name)
            where = f"{type(self).__name__}.{name}"
            object.__setattr__(self, name, _checked(value, hint, where))
        self.check()

    def check(self) -> None:
        """Raise ContractError unless the fields fit together."""

    def _need(self, condition: bool, message: str) -> None:
        if not condition:
            what = f"{type(self).__name__} {getattr(self, 'name', '')}"
            raise ContractError(f"{what}: {message}".replace(" :", ":"))


class Document(Record):
    """A record that stands in a file of its own, with a schema and a hash."""

    SCHEMA = ""

    @property
    def robot_name(self) -> str:
        """Of the robot that it is about; empty if it is about none."""
        return ""

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces, numbers in their shortest exact form, no unset `LATER` fields."""
        tree = {"schema": self.SCHEMA, **_tree(self)}
        return msgspec.json.encode(tree, order="sorted").decode()

    @functools.cached_property
    def hash(self) -> str:
        """sha256 of the canonical JSON, in hex."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote.

        Raises ContractError, one line, for everything else: another schema, a field that is unknown or missing, a
        wrong type, a number out of bounds.
        """
        tree = _decoded(text, cls.__name__)
        _require_schema(tree.pop("schema", None), cls.SCHEMA)
        try:
            found = msgspec.convert(tree, cls)
        except msgspec.ValidationError as error:
            raise ContractError(f"{cls.__name__} cannot be read: {_lower(error)}") from None
        # A dataclass ignores fields that it does not know and fills in what is missing: both show up here.
        found._require_tree({"schema": cls.SCHEMA, **tree})
        if text != found.to_json():
            _require_unique_keys(text)
        return found

    def require(self, other: Self, what: str) -> None:
        """Raise ContractError naming the first difference unless `other`, which belongs to `what`, equals this."""
        if self.hash == other.hash:
            return
        kind = "contract" if "contract" in self.SCHEMA else "robot interface"
        difference = self.difference(other)
        raise ContractError(f"{what} was made under another {kind}: {difference}")

    def difference(self, other: Self) -> str:
        """How another record differs from this one first, in words; empty if it does not.

        Of another robot everything does, so that its name is said.
        """
        mine, theirs = self.robot_name, other.robot_name
        if mine != theirs:
            return f"its robot is {theirs}, not {mine}"
        return first_difference(json.loads(self.to_json()), json.loads(other.to_json()))

    def _require_tree(self, tree: dict[str, Any]) -> None:
        difference = first_difference(json.loads(self.to_json()), tree)
        if difference:
            raise ContractError(f"{type(self).__name__} is not as Deftly writes it: {difference}")


def _tree(value: Any) -> Any:
    """The record, and those within it, as mappings of the fields that are written."""
    if isinstance(value, tuple):
        return [_tree(part) for part in value]
    if not isinstance(value, Record):
        return value
    written = {}
    for field in fields(value):
        found = getattr(value, field.name)
        if field.name not in value.LATER or found != field.default:
            written[field.name] = _tree(found)
    return written


def first_difference(here: Any, there: Any, path: str = "") -> str:
    """The first place at which two JSON values differ, in words; empty if nowhere."""
    for where, a, b in _pairs(here, there, path):
        if _same_shape(a, b):
            difference = first_difference(a, b, where)
        else:
            difference = _in_words(a, b, where)
        if difference:
            return difference
    return ""


def _pairs(here: Any, there: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    """The children of two JSON containers, with the path of each."""
    if not _same_shape(here, there):
        yield path, here, there
    elif isinstance(here, dict):
        for key in sorted({*here, *there}):
            yield f"{path}.{key}".lstrip("."), here.get(key, _MISSING), there.get(key, _MISSING)
    else:
        for i, (a, b) in enumerate(zip(here, there)):
            yield f"{path}[{i}]", a, b


def _same_shape(a: Any, b: Any) -> bool:
    """Whether two JSON values are containers whose children can be compared one by one."""
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b)
    return isinstance(a, dict) and isinstance(b, dict)


def _in_words(here: Any, there: Any, path: str) -> str:
    alike = type(here) is type(there) or {type(here), type(there)} == {int, float}  # True is no 1
    if alike and here == there:
        return ""
    return f"{path} is {_shown(there)} there, {_shown(here)} here"


_MISSING = object()


def _shown(value: Any) -> str:
    if value is _MISSING:
        return "absent"
    try:
        return json.dumps(value)[:80]
    except RecursionError:
        return "something nested deeply"


@functools.cache
def hints(cls: type) -> dict[str, Any]:
    """Type of each field of a record, with its bounds."""
    resolved = get_type_hints(cls, include_extras=True)
    return {field.name: resolved[field.name] for field in fields(cls)}


def _checked(value: Any, hint: Any, where: str) -> Any:
    """The value in the field's own type. Raises ContractError naming the field."""
    if isinstance(value, (int, float, str)) and _is_tuple(hint):
        value = (value,)  # one number, or one name, is a list of itself
    try:
        return msgspec.convert(_plain(value), hint)
    except (msgspec.ValidationError, ValueError) as error:
        raise ContractError(f"{where} is {_short(value)}: {_lower(error)}") from None


def _is_tuple(hint: Any) -> bool:
    """Whether a field holds a tuple of any length."""
    if get_origin(hint) is Annotated:
        hint = hint.__origin__
    return get_origin(hint) is tuple


def _plain(value: Any) -> Any:
    """Numbers of other libraries as Python's, no negative zero: equal contracts hash alike."""
    if isinstance(value, float):
        return float(value) + 0.0
    if isinstance(value, (list, tuple)):
        return tuple(_plain(part) for part in value)
    if isinstance(value, str) and not value.isprintable():
        raise ValueError("expected text on one line")
    return value


def _short(value: Any) -> str:
    """The value as an error shows it: one line, not long."""
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python prints
        text = "a huge number"
    if len(text) <= 80:
        return text
    return f"{text[:77]}..."


def _lower(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text[:1].lower() + text[1:300]


def _decoded(text: str, what: str) -> dict[str, Any]:
    """The mapping that some JSON holds. Raises ContractError; never takes more memory than the text's length allows."""
    if len(text) > MAX_TEXT:
        raise ContractError(f"{what} has {len(text)} characters, at most {MAX_TEXT} are read")
    try:
        tree = msgspec.json.decode(text)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ContractError(f"{what} is not JSON: {_lower(error)}") from None
    if not isinstance(tree, dict):
        kind = type(tree).__name__
        raise ContractError(f"{what} is JSON of a {kind}, expected a mapping with a schema")
    return tree


def _require_unique_keys(text: str) -> None:
    """Raise ContractError for a key that stands twice in one mapping: two programs might read different values."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:
                raise ContractError(f"the JSON has the key {_short(name)} twice in one mapping")
            found[name] = value
        return found

    try:
        json.loads(text, object_pairs_hook=unique)
    except RecursionError:
        raise ContractError("the JSON is nested too deeply") from None


def _require_schema(found: Any, wanted: str) -> None:
    """Raise ContractError unless the schema is this one; an older one of Deftly's is refused by name."""
    if found == wanted:
        return
    name = wanted.removeprefix("deftly.").partition("/")[0]
    if found == "deftly.contract/1":
        raise ContractError(
            "the JSON is of contract schema 1, made by an older Deftly: train or export it again"
        )
    raise ContractError(f"{name} schema is {_short(found)}, this Deftly reads {wanted!r}")
