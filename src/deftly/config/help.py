"""The help of a command: usage, then its settings by section, one or two lines each."""

import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, replace
from typing import Any, Literal, get_args, get_origin

from deftly.config.constraints import kebab, show
from deftly.config.fields import Flag, flags, sections

LEFT = 30
"""Columns of flag and type; the text begins to the right of them, below if they are wider."""
WIDEST = 120
KEEP = "\N{NO-BREAK SPACE}"
"""Where a line is not broken."""


def help_text(
    cls: type, prog: str, common: Sequence[Flag] = (), filed: Mapping[str, Any] = {}
) -> str:
    """What `--help` prints of a command with the settings `cls`; `prog` is how it is called, as `deftly train TASK`.

    `common`: what every command takes, listed where `cls` has no setting of that name. `filed`: what holds in place of
    the defaults of `cls`, such as a task's own settings, as a mapping of sections.
    """
    columns, _ = shutil.get_terminal_size((100, 24))
    width = min(WIDEST, max(60, columns))
    usual = dict(_flat(filed))
    found = []
    for flag in flags(cls):
        default = usual.get(flag.name, flag.default)
        found.append(replace(flag, default=default))
    head = f"usage: {prog} [settings]" if found else f"usage: {prog}"
    doc = " ".join((cls.__doc__ or "").split())
    lines = [head, "", *textwrap.wrap(doc, width), ""]
    lines += [
        "settings, as --NAME VALUE or NAME=VALUE; --config FILE.yaml reads them from a file:",
        "",
    ]
    names = {flag.name for flag in found}
    others = [flag for flag in common if flag.name not in names]
    for flag in [*found, *others]:
        if not flag.section:
            lines += _lines(flag, width)
    for section, doc in sections(cls):
        mine = [flag for flag in found if flag.section == section]
        if mine:
            lines += ["", f"{section}: {doc}"]
            for flag in mine:
                lines += _lines(flag, width)
    return "\n".join(lines) + "\n"


def _flat(tree: Mapping[str, Any], section: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a mapping of sections by the names of their flags."""
    for name, value in tree.items():
        key = kebab(f"{section}.{name}" if section else name)
        if isinstance(value, Mapping):
            yield from _flat(value, key)
        else:
            yield key, value


def _lines(flag: Flag, width: int) -> list[str]:
    name = f"  --{flag.name} {_type(flag.kind)}"
    left = name.ljust(LEFT - 2) + "  "
    text = f"{flag.doc} {_remark(flag)}".strip()
    line = left.replace(" ", KEEP) + text
    lines = textwrap.wrap(line, width, subsequent_indent=" " * LEFT, break_on_hyphens=False)
    return [line.replace(KEEP, " ").rstrip() for line in lines]


def _remark(flag: Flag) -> str:
    """Range and default of a setting, in brackets."""
    parts = [flag.limits] if flag.limits else []
    if flag.default is MISSING:
        parts.append("required")
    elif flag.default is not None and flag.default != ():
        parts.append(f"default {show(flag.default)}")
    if not parts:
        return ""
    whole = [part.replace(" ", KEEP) for part in parts]
    return f"[{', '.join(whole)}]"


def _type(kind: Any) -> str:
    origin, inner = get_origin(kind), get_args(kind)
    if kind is bool:
        return "BOOL"
    if origin is Literal:
        return "{" + ",".join(map(str, inner)) + "}"
    if origin is tuple and inner[1:] == (...,):
        return f"{_type(_element(inner[0]))} ..."
    if origin is tuple:
        return " ".join(_type(_element(part)) for part in inner)
    names = {int: "INT", float: "NUMBER", str: "TEXT"}
    return names.get(kind, "PATH")


def _element(hint: Any) -> Any:
    return (
        get_args(hint)[0]
        if get_origin(hint) is not None and hasattr(hint, "__metadata__")
        else hint
    )
