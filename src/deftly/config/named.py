"""Configurations by name, as users of Hydra know them: `config=NAME`, `train=NAME`, `+defaults=[config,/physics/fast]`.

A name is a YAML file: the path that is given, else NAME.yaml in the current folder, in `configs/`, or among those that
come with Deftly, in this order. Names of the group `train` are looked for in the folders `train` of these places too.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from deftly.config import yaml
from deftly.config.constraints import MOST_SHOWN, kebab
from deftly.console import printable
from deftly.errors import DeftlyError

Group = Literal["config", "train"]
SHIPPED = Path(__file__).resolve().parents[1] / "shipped/configs"
PLACES = (Path(), Path("configs"), SHIPPED)
"""Where a name is looked for; what is the user's own counts first."""
SUFFIXES = (".yaml", ".yml")
GROUPS: dict[str, Group] = {
    "config": "config",
    "config-name": "config",
    "cn": "config",
    "train": "train",
}
"""Key to the group of files that its value names."""
ITSELF = ("config", "_self_")
"""Names in a list of defaults that mean what holds anyway: the task's own settings, and the file itself."""
MOST_FILES = 32
"""Files that a command may name, and these, and so on."""


@dataclass(frozen=True)
class Setting:
    """A setting as it was written."""

    key: str
    """As it was written: `--env.num-envs`, `env.num_envs`, `numEnvs`."""
    words: list[str]
    """Its value; none if a flag stands alone."""
    place: str = ""
    """The file that it comes from; empty if it was typed."""


class Named(NamedTuple):
    """A configuration by name."""

    group: Group
    name: str


def suggest(name: str, known: Iterable[str]) -> str:
    """`, did you mean 'x'?` for the nearest known name, or an empty string; goes at the end of an error."""
    small = {each.lower(): each for each in known}
    near = difflib.get_close_matches(name.lower(), list(small), n=1, cutoff=0.6)
    return f", did you mean '{small[near[0]]}'?" if near else ""


def opened(settings: list[Setting], allowance: Iterator[int] | None = None) -> list[Setting]:
    """Settings with what the files among them say, which counts before what stands beside the name of the file.

    Raises DeftlyError for a file that there is not, and for too many, as of files that name each other in a circle.
    """
    left = iter(range(MOST_FILES)) if allowance is None else allowance
    files: list[Setting] = []
    own: list[Setting] = []
    for setting in settings:
        for part in _parts(setting):
            if isinstance(part, Setting):
                own.append(part)
            elif next(left, None) is None:
                place = setting.place or "the command"
                raise DeftlyError(f"{place}: more than {MOST_FILES} files name each other")
            else:
                files += opened(_read(part), left)
    return files + own


def _parts(setting: Setting) -> Iterator[Setting | Named]:
    """The files that a setting names, and the settings that it means."""
    key = kebab(setting.key.lstrip("-"))
    value = " ".join(setting.words)
    is_section = key == "train" and value in ("", "null")
    if key in GROUPS and not is_section:
        yield Named(GROUPS[key], value)
    elif key == "defaults":
        for entry in setting.words:
            yield from _default(entry, setting.place)
    else:
        yield setting


def _default(entry: str, place: str) -> Iterator[Setting | Named]:
    """An entry of a list of defaults: `config`, `/physics/fast`, `train/NAME`, `debug`."""
    group, _, name = entry.removeprefix("override ").strip("/").rpartition("/")
    if group:
        yield from _parts(Setting(group, [name], place))
    elif name not in ITSELF:
        yield Named("config", name)


def _read(named: Named) -> list[Setting]:
    """The settings of a named file. One of `train` may hold what stands in the section `train` alone."""
    path = find(named)
    tree = yaml.read_mapping(path)
    section = "train" if named.group == "train" and "train" not in tree else ""
    return list(settings_of(tree, str(path), section))


def find(named: Named) -> Path:
    """The file of a named configuration. Raises DeftlyError, one line, for a name of none."""
    if not named.name:
        example = f"{named.group}=my.yaml"
        raise DeftlyError(
            f"--{named.group} needs a YAML file: it is empty, name one as in {example}"
        )
    given = Path(os.path.expanduser(named.name))
    if given.suffix in SUFFIXES:
        return given
    places = [
        folder / f"{named.name}{suffix}" for folder in _folders(named.group) for suffix in SUFFIXES
    ]
    with suppress(OSError):  # a name that is too long
        for path in (given, *places):
            if path.is_file():
                return path
        if given.exists():
            return given  # a folder or a pipe, which reading it says
    raise DeftlyError(_missing(named))


def _folders(group: Group) -> list[Path]:
    return [*(place / group for place in PLACES if group == "train"), *PLACES]


def _missing(named: Named) -> str:
    known = sorted({path.stem for folder in _folders(named.group) for path in _files(folder)})
    name = printable(named.name, MOST_SHOWN)
    what = f"{named.group}={name}: there is no {name}.yaml here or in 'configs'"
    if near := suggest(named.name, known):
        return what + near
    if named.group == "train":
        return f"{what}; make one: deftly config TASK train > {name}.yaml"
    return f"{what}; those that come with Deftly are {', '.join(shipped())}"


def shipped() -> list[str]:
    """Names of the configurations that come with Deftly."""
    return sorted(path.stem for path in _files(SHIPPED))


def _files(folder: Path) -> list[Path]:
    return [path for suffix in SUFFIXES for path in folder.glob(f"*{suffix}")]


def settings_of(tree: Mapping[str, Any], place: str, section: str = "") -> Iterator[Setting]:
    """The settings of a mapping as YAML gives it; a section without any lines holds none."""
    for name, value in tree.items():
        key = f"{section}.{name}" if section else str(name)
        if key == "defaults":
            entries = value if isinstance(value, list) else [value]
            yield Setting(key, [_entry(item) for item in entries], place)
        elif isinstance(value, Mapping):
            yield from settings_of(value, place, key)
        else:
            yield Setting(key, list(_words(value, key, place)), place)


def _entry(item: object) -> str:
    """An entry of a list of defaults as a word: `{train: NAME}` is `train/NAME`."""
    if isinstance(item, Mapping):
        return "/".join(f"{group}/{name}" for group, name in item.items())
    return str(item)


def _words(value: object, key: str, place: str) -> Iterator[str]:
    if isinstance(value, Mapping):
        raise DeftlyError(
            f"{place}: {key} holds a mapping in a list: give plain values or lists of them"
        )
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _words(item, key, place)
    else:
        yield "null" if value is None else str(value)
