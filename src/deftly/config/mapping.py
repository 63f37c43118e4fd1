"""Settings given in Python, as keywords and nested mappings, read as the command line reads its words.

    settings_from(TrainArgs, {"env": {"num_envs": 64}, "until_success": 0.95}, prog="deftly train my_task.py")

is `deftly train my_task.py --env.num-envs 64 --until-success 0.95`: the same names, checks and messages.
"""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, get_type_hints

from deftly.config import parse, suggest
from deftly.config.fields import flags
from deftly.errors import DeftlyError

T = TypeVar("T")


def settings_from(
    cls: type[T], given: Mapping[str, Any], *, prog: str, saved: Mapping[str, Any] = {}
) -> T:
    """Build the settings class `cls` from what a caller gives.

    Args:
        cls: A dataclass of settings, such as `TrainArgs` with a task's section.
        given: Values by name; those of a section are a mapping, or an instance of the section's dataclass.
        prog: What messages call the caller.
        saved: Settings that hold where nothing is given, as YAML gives them, such as those of a checkpoint.

    Raises:
        DeftlyError: One line that names an unknown setting, or a value of a wrong type or out of range.
    """
    require_names(cls, given)
    return parse(cls, words_of(given), prog=prog, filed=saved)


def differences(saved: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    """The saved settings that are not the usual ones; what cannot be typed, such as a table of a task, stays usual."""
    found: dict[str, Any] = {}
    for name, value in saved.items():
        if isinstance(value, dict):
            found[name] = differences(value, usual.get(name) or {})
        elif name not in usual or value != usual[name]:
            found[name] = value
    return found


def require_names(cls: type, given: Mapping[str, Any], section: str = "") -> None:
    """Raise DeftlyError that names the first setting that `cls` does not have, with the nearest one that it has."""
    kinds = get_type_hints(cls)
    for name, value in given.items():
        if name not in kinds:
            place = f"{section} has no setting" if section else "there is no setting"
            raise DeftlyError(
                f"{place} '{name}'{suggest(name, kinds)}: it is one of {sorted(kinds)}"
            )
        inner = f"{section}.{name}" if section else name
        is_section = is_dataclass(kinds[name])
        if is_section and isinstance(value, Mapping):
            require_names(kinds[name], value, inner)
        elif is_section and not is_dataclass(value):
            raise DeftlyError(
                f"{inner} is {value!r}, but it must be a mapping such as {{'name': value}}"
            )


def words_of(given: Mapping[str, Any], section: str = "") -> list[str]:
    """The words of the command line that say the same."""
    words: list[str] = []
    for name, value in given.items():
        key = f"{section}{name}".replace("_", "-")
        if is_dataclass(value) and not isinstance(value, type):
            value = {item.name: getattr(value, item.name) for item in fields(value)}
        if isinstance(value, Mapping):
            words += words_of(value, f"{key}.")
        else:
            words += _flag(key, [*_plain(value)])
    return words


def changed(settings: Any) -> list[str]:
    """The words of the command line for the settings that are not the usual ones of their class."""
    cls = type(settings)
    usual = {flag.name: flag.default for flag in flags(cls)}
    words: list[str] = []
    for flag in flags(cls, settings):
        is_usual = flag.name in usual and flag.default == usual[flag.name]
        if not is_usual:
            words += _flag(flag.name, [*_plain(flag.default)])
    return words


def _flag(key: str, values: list[str]) -> list[str]:
    if len(values) == 1 and values[0].startswith(
        "-"
    ):  # as a word of its own it would be taken for a flag
        return [f"--{key}={values[0]}"]
    return [f"--{key}", *values] if values else [f"--{key}=[]"]


def _plain(value: Any) -> Iterator[str]:
    """A value as words: several of a sequence, `null` for None."""
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _plain(item)
    else:
        yield "null" if value is None else str(value)
