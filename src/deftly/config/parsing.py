"""From words and files to a configuration: every way of writing a setting becomes flags, which tyro alone parses.

What is typed counts before `--config` files, files before what a checkpoint has saved, later before earlier. Each
setting remembers where it comes from, so that a bad one is refused by its name and place.
"""

import contextlib
import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, field, fields, make_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast, get_args, get_origin

from deftly.config.constraints import MOST_SHOWN, check, kebab
from deftly.config.fields import Flag, built, flags
from deftly.config.help import help_text
from deftly.config.named import Setting, opened, settings_of, suggest
from deftly.config.older_names import instead, resolve, switched
from deftly.config.sections import ALGORITHMS, TaskConfig
from deftly.console import LogLevel, printable, set_log_level
from deftly.errors import DeftlyError

T = TypeVar("T")
ASSIGNMENT = re.compile(r"\+{0,2}([A-Za-z_][\w.-]*)=(?![<>])(.*)", re.DOTALL)
"""A setting typed as `key=value`; with Hydra's `+` or `++` before it, which say nothing here.

`success=>0.9` is none: it is a condition, misspelt.
"""
SHORT = re.compile(r"-[a-z]{1,2}(=.*)?", re.DOTALL)
"""A flag of one or two letters, such as Hydra's `-cn`."""
SPELLINGS = {
    "true": "True",
    "yes": "True",
    "on": "True",
    "false": "False",
    "no": "False",
    "off": "False",
}
LOG_LEVEL = Flag(
    "log-level",
    LogLevel,
    "Of every command: print also its settings, what it does, or only results and problems.",
    "info",
)

# ------------------------------------------------------------------ words


def split_word(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """Take a command's first word, such as a file, off its arguments; None if they begin with a setting.

    Raises DeftlyError for an empty one.
    """
    if argv and not argv[0].strip():
        raise DeftlyError("the first word is empty: is a variable of the shell not set?")
    is_word = bool(argv) and not argv[0].startswith("-")
    if is_word and not ASSIGNMENT.fullmatch(argv[0]):
        word, *others = argv
        return os.path.expanduser(word), others
    return None, list(argv)


def split_task(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """Take the task's name off a command's arguments: the first word, or `task=NAME` or `--task NAME` anywhere."""
    for i, word in enumerate(argv):
        key, equals, name = word.partition("=")
        if key in ("task", "--task") and equals:
            others = [*argv[:i], *argv[i + 1 :]]
            return os.path.expanduser(name), others
        if word == "--task" and argv[i + 1 :]:
            others = [*argv[:i], *argv[i + 2 :]]
            return os.path.expanduser(argv[i + 1]), others
    return split_word(argv)


def with_task(args: type[T], task_config: type[TaskConfig]) -> type[T]:
    """`args` with the chosen task's own settings in its `task` section, which is known only at run time."""
    return _with_section(args, "task", task_config)


def with_algorithm(args: type[T], argv: Sequence[str], filed: Mapping[str, Any] = {}) -> type[T]:
    """`args` with the settings of the algorithm that `--train.algorithm` names in its `train` section.

    See `chosen_algorithm`, which raises DeftlyError for one that there is not.
    """
    return _with_section(args, "train", ALGORITHMS[chosen_algorithm(argv, filed)])


def chosen_algorithm(argv: Sequence[str], filed: Mapping[str, Any] = {}) -> str:
    """The algorithm that `--train.algorithm` names.

    The words of the command count before `filed`, what a checkpoint or the task has set; without either it is PPO.
    Raises DeftlyError for an algorithm that there is not.
    """
    flag = "train.algorithm"
    chosen = "ppo"
    for setting in [*settings_of(filed, ""), *typed_settings(argv)]:
        if resolve(setting.key.lstrip("-"), (flag,)) == flag:
            chosen = " ".join(setting.words)
    if chosen not in ALGORITHMS:
        known = ", ".join(ALGORITHMS)
        raise DeftlyError(
            f"{flag} is '{chosen}', but it must be one of {known}{suggest(chosen, ALGORITHMS)}"
        )
    return chosen


def defaults_under(algorithm: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """A task's default settings under an algorithm.

    Args:
        algorithm: The one that is used.
        defaults: Sections of settings, as `Task.defaults` has them: `train` is of the algorithm that it names (PPO, if
            it names none), and a section of another algorithm's name takes its place under that one.
    """
    own = defaults.get("train", {}).get("algorithm", "ppo")
    sections = {name: value for name, value in defaults.items() if name not in ALGORITHMS}
    if algorithm != own:
        sections["train"] = defaults.get(algorithm, {})
    return sections


@lru_cache(maxsize=64)
def _with_section(args: type[T], name: str, kind: type[Any]) -> type[T]:
    """`args` with a section of another type. The same class each time, since tyro keeps what it read of a class."""
    section = (name, kind, field(default_factory=kind))
    names = {"__doc__": args.__doc__, "__module__": args.__module__}
    return make_dataclass(args.__name__, [section], bases=(args,), namespace=names, frozen=True)


def with_setting(argv: Sequence[str], name: str, value: str) -> list[str]:
    """A command's arguments with one setting replaced, to be printed as the command that does the same again."""
    return [*without_setting(argv, name), f"--{name}", value]


def without_setting(argv: Sequence[str], name: str) -> list[str]:
    """A command's arguments without one setting, by any of its names."""
    words: list[str] = []
    leave_out = False
    for word in argv:
        found = ASSIGNMENT.fullmatch(word)
        if word.startswith("--") or found or SHORT.fullmatch(word):
            key = found[1] if found else word.lstrip("-").partition("=")[0]
            leave_out = resolve(key, (name,)) == name
        if not leave_out:
            words.append(word)
    return words


def switches(argv: Sequence[str], names: Sequence[str]) -> dict[str, bool]:
    """The last value of each of these switches, by any of their names, in the files of a command or typed.

    What is not given, or null, is left out.
    """
    found: dict[str, bool] = {}
    for setting in typed_settings(argv):
        name = resolve(setting.key.lstrip("-"), names)
        spelled = "true"
        if setting.words:
            spelled = " ".join(setting.words).lower()
        value = SPELLINGS.get(spelled)
        if name in names and value:
            found[name] = value == "True"
    return found


def typed_settings(argv: Sequence[str]) -> list[Setting]:
    """The settings of a command's words, those of the files that they name first."""
    typed: list[Setting] = []
    for word in argv:
        found = ASSIGNMENT.fullmatch(word)
        if word.startswith("--") or SHORT.fullmatch(word):
            key, equals, value = word.partition("=")
            typed.append(Setting(key, [value] if equals else []))
        elif found:
            typed.append(Setting(found[1], _split(found[2])))
        elif typed:
            typed[-1].words.append(word)
        else:
            raise DeftlyError(
                f"cannot read '{word}': settings are written --NAME VALUE or NAME=VALUE"
            )
    return opened(typed)


def _split(value: str) -> list[str]:
    """The words of a value typed after `key=`: `[a, b]` and `1,2` are several, anything else is one."""
    brackets = value[:1] + value[-1:]
    if brackets in ("[]", "()"):
        parts = [part for part in value[1:-1].split(",") if part.strip()]
        return [part.strip(" '\"") for part in parts]
    are_numbers = re.fullmatch(r"[-+.\deE]+(,[-+.\deE]+)+", value)
    return value.split(",") if are_numbers else [value]


# ------------------------------------------------------------------ parsing


def parse(
    cls: type[T], argv: Sequence[str], *, prog: str, filed: Mapping[str, Any] = {}, origin: str = ""
) -> T:
    """Build a `cls` from the command line; `--help` prints the help and ends the program.

    `argv` overrides `filed`, a mapping as YAML gives it, of which `origin` says where it was found. Raises DeftlyError,
    one line, for an unknown setting, a value of a wrong type or out of range, and a file that cannot be read.
    """
    if {"-h", "--help"} & set(argv):
        print(help_text(cls, prog, (LOG_LEVEL,), filed), end="")
        raise SystemExit(0)
    own = {flag.name: flag for flag in flags(cls)}
    known = {LOG_LEVEL.name: LOG_LEVEL} | own
    chosen: dict[str, Setting] = {}
    saved = settings_of(filed, origin or "the saved settings")
    for setting in [*saved, *typed_settings(argv)]:
        for name, found in _understood(setting, known, prog):
            again = known[name].repeats and name in chosen
            chosen[name] = _joined(chosen[name], found) if again else found
    required = [flag for flag in known.values() if flag.default is MISSING]
    missing = [flag for flag in required if flag.name not in chosen]
    if missing:
        first = missing[0]
        raise DeftlyError(f"{prog} needs --{first.name}: {first.doc}")
    level = None if LOG_LEVEL.name in own else _log_level(chosen.pop(LOG_LEVEL.name, None))
    try:
        config = built(cls, _read(chosen, known, prog))
        check(config)
        _require_on_disk(chosen, known)
    except DeftlyError as error:
        first_word, _, _ = str(error).partition(" ")
        placed = _placed(chosen.get(first_word), str(error))
        raise DeftlyError(placed) from None
    if level:
        set_log_level(level)
    return config


def _log_level(setting: Setting | None) -> LogLevel | None:
    """The level that was typed to a command that has no such setting of its own, if it was."""
    if setting is None:
        return None
    level = " ".join(setting.words)
    if level not in get_args(LogLevel):
        raise DeftlyError(_placed(setting, _misread(setting, LOG_LEVEL)))
    return cast(LogLevel, level)


def _understood(
    setting: Setting, known: Mapping[str, Flag], prog: str
) -> Iterator[tuple[str, Setting]]:
    """The flag that a setting means, with its value as tyro reads it; none if it means nothing here."""
    key = setting.key.lstrip("-")
    name, words = resolve(key, known), setting.words
    is_switch = name in known and known[name].kind is bool
    if not is_switch and (sets := switched(key, words, known)) is not None:
        yield from ((flag, Setting(flag, [word])) for flag, word in sets.items())
        return
    positive = re.sub(r"(^|\.)no-(?=[^.]*$)", r"\1", name)
    inverted = name not in known and positive in known and known[positive].kind is bool
    if inverted and not words:
        name, words = positive, ["False"]
    if name not in known:
        is_section = any(flag.startswith(f"{name}.") for flag in known)
        if is_section and words in ([], ["null"]):
            return
        raise DeftlyError(_unknown(setting, name, known, prog))
    flag = known[name]
    if not words and flag.kind is bool:
        words = ["True"]
    spelled = Setting(setting.key, _spell(words, flag), setting.place)
    fits = flag.takes(len(spelled.words))
    if not fits or _is_left_empty(setting, flag):
        raise DeftlyError(_placed(spelled, _misread(spelled, flag)))
    yield name, spelled


def _require_on_disk(chosen: Mapping[str, Setting], known: Mapping[str, Flag]) -> None:
    """Raise DeftlyError for a path that cannot be read or written: now, not after minutes of work."""
    for name, setting in chosen.items():
        path = " ".join(setting.words)
        if path == "None":
            continue
        problem = known[name].problem(Path(path))
        if problem:
            raise DeftlyError(f"{name} is {path}, but {problem}")


def _is_left_empty(setting: Setting, flag: Flag) -> bool:
    """Whether a value is missing where it was typed, as it is with a variable of the shell that is not set."""
    if setting.place or flag.kind is bool:
        return False
    alone = not setting.words and setting.key.startswith("--")
    is_nothing = setting.words == [""] and flag.default != ""
    return alone or is_nothing


def _joined(before: Setting, now: Setting) -> Setting:
    """A setting that may be given several times: what is typed replaces what a file says, and adds to what is typed."""
    return (
        now if before.place != now.place else Setting(now.key, before.words + now.words, now.place)
    )


def _unknown(setting: Setting, name: str, known: Mapping[str, Flag], prog: str) -> str:
    written = printable(setting.key, MOST_SHOWN)
    if kebab(setting.key.lstrip("-")) != name:
        written += f" (--{printable(name, MOST_SHOWN)})"
    dashes = "--" if setting.key.startswith("--") else ""
    flags_typed = [dashes + flag for flag in known]
    near = suggest(dashes + name, flags_typed)
    what = f"{setting.place}: there is no" if setting.place else f"{prog} has no"
    if advice := instead(name) or _of_another_algorithm(name, known):
        return f"{what} setting {written}: {advice}"
    if setting.place:
        return f"{what} setting {written}{near}"
    return f"{what} setting {written}{near or '; --help lists them'}"


def _of_another_algorithm(name: str, known: Mapping[str, Flag]) -> str:
    """What to type for a setting that other algorithms have than the one that was chosen; empty if none has it."""
    section, _, field_name = name.partition(".")
    if section != "train" or "train.algorithm" not in known:
        return ""
    having = [
        algorithm
        for algorithm, kind in ALGORITHMS.items()
        if field_name in {kebab(each.name) for each in fields(kind)}
    ]
    if not having:
        return ""
    verb = "has" if len(having) == 1 else "have"
    return f"{', '.join(having)} {verb} it, add --train.algorithm {having[0]}"


def _spell(words: list[str], flag: Flag) -> list[str]:
    """Words as tyro reads them: `True`, `None`, a list as one word each; `~` is the user's folder."""
    if get_origin(flag.kind) is tuple and len(words) == 1:
        words = _split(words[0])
    lowered = [word.lower() for word in words]
    if flag.optional and lowered in (["null"], ["none"]):
        return ["None"]
    if flag.kind is bool:
        return [SPELLINGS.get(word.lower(), word) for word in words]
    if get_origin(flag.kind) is Literal:
        return words
    return [os.path.expanduser(word) if word.startswith("~") else word for word in words]


def _read(chosen: Mapping[str, Setting], known: Mapping[str, Flag], prog: str) -> dict[str, Any]:
    """The values of the settings, as tyro reads their words. Raises DeftlyError that names the one that it cannot read.

    Tyro is shown these settings alone: to read hundreds more, of which nothing is said, takes it a tenth of a second.
    """
    empty = {
        name: () for name, setting in chosen.items() if not setting.words and known[name].is_open
    }
    chosen = {name: setting for name, setting in chosen.items() if name not in empty}
    if not chosen:
        return empty
    import tyro

    words, members = [], []
    for name, setting in chosen.items():
        is_dashed = len(setting.words) == 1 and setting.words[0].startswith("-")
        if is_dashed:  # alone it would be taken for a flag
            words += [f"--{name}={setting.words[0]}"]
        else:
            words += [f"--{name}", *setting.words]
        member = _member(f"setting_{len(members)}", known[name])
        members.append(member)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            found = tyro.cli(
                make_dataclass("Chosen", members, kw_only=True),
                args=words,
                prog=prog,
                config=(tyro.conf.FlagConversionOff, tyro.conf.AvoidSubcommands),
            )
    except SystemExit:
        raise DeftlyError(_unread(said.getvalue(), chosen, known)) from None
    return empty | {name: getattr(found, member[0]) for name, member in zip(chosen, members)}


def _member(attribute: str, flag: Flag) -> tuple[str, Any, Any]:
    """A field of a dataclass that is one setting, by the setting's name."""
    import tyro

    hint = Annotated[flag.hint, tyro.conf.arg(name=flag.name)]
    if flag.default is MISSING:
        return attribute, hint, field()
    return attribute, hint, field(default_factory=lambda: flag.default)


def _unread(said: str, chosen: Mapping[str, Setting], known: Mapping[str, Flag]) -> str:
    """One line for what tyro could not read."""
    flags_said = re.findall(r"--([\w.-]*\w)", said)
    named = [name for name in flags_said if name in chosen]
    if not named:
        return " ".join(said.replace("│", " ").split())
    return _misread(chosen[named[0]], known[named[0]])


def _misread(setting: Setting, flag: Flag) -> str:
    value = printable(" ".join(setting.words), MOST_SHOWN) or "empty"
    near = ""
    if get_origin(flag.kind) is Literal:
        choices = map(str, get_args(flag.kind))
        near = suggest(value, choices)
    return f"{flag.name} is {value}, but it must be {flag.wanted}{near}"


def _placed(setting: Setting | None, message: str) -> str:
    """A message about a setting, with the file that the setting comes from."""
    return f"{setting.place}: {message}" if setting and setting.place else message
