"""`deftly check`: hold a bundle against its contract, its golden vectors, and the policy from which it was made."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from typing_extensions import Doc

from deftly import workspace
from deftly.config import parse, split_word
from deftly.console import printable, report
from deftly.errors import DeftlyError
from deftly.evaluate.check import CheckSettings, examine
from deftly.evaluate.source import of_task
from deftly.policy import bundle
from deftly.tasks import load

RENAMED = {"bundle": "policy", "checkpoint": "against"}
"""Older names of flags."""


@dataclass(frozen=True)
class CheckArgs(CheckSettings):
    """Check a bundle: `deftly check BUNDLE`. The exit status is 1 if anything fails."""

    policy: Annotated[
        str | None,
        Doc(
            "The bundle's folder, or shipped with a task; unset: what the task means in every command."
        ),
    ] = None


def main(argv: list[str]) -> int:
    """Run `deftly check`."""
    words = [_renamed(word) for word in argv]
    word, flags = split_word(words)
    args = parse(CheckArgs, flags, prog="deftly check [BUNDLE]")
    if word is None and args.policy is None:
        raise DeftlyError(
            "check needs one bundle: deftly check FOLDER; 'deftly export TASK' makes it"
        )
    folder = _folder(word, args)
    if word is not None and not _is_folder(word):
        args = replace(args, task=word)
    return show(folder, args)


def _renamed(word: str) -> str:
    """A word with an older name of a flag written as it is now."""
    key, equals, value = word.partition("=")
    now = RENAMED.get(key.removeprefix("--"))
    if now is None or not (equals or key.startswith("--")):
        return word
    return f"--{now}{equals}{value}"


def _folder(word: str | None, args: CheckArgs) -> Path:
    """The bundle that is meant. Raises DeftlyError for a policy that is none; damage is for `examine` to say."""
    is_folder = word is not None and _is_folder(word)
    if is_folder and args.policy is not None:
        raise DeftlyError("check needs one bundle: a folder, or --policy")
    given = word if is_folder else args.policy
    if given is not None and _may_be_bundle(Path(given)):
        print(f"policy: bundle {printable(given)}", flush=True)
        return Path(given)
    if args.policy is None and word is not None and not (is_folder or word.endswith(".py")):
        _require_task(word)
    source = of_task(args.policy, word, args.runs, "bundle")
    print(source.line, flush=True)
    if not isinstance(source.loaded, bundle.Bundle):
        raise DeftlyError(
            f"check needs a bundle, and {source.label} is none: deftly export {source.task or 'TASK'} makes one; "
            f"or --policy shipped"
        )
    return source.loaded.path


def _require_task(word: str) -> None:
    """Raise DeftlyError unless a word that is no folder names a task."""
    try:
        load(word)
    except DeftlyError as error:
        raise DeftlyError(f"no bundle '{printable(word)}' here, and {error}") from None


def _is_folder(word: str) -> bool:
    """Whether a word means a bundle rather than a task."""
    return Path(word).is_dir() or ("/" in word and not word.endswith(".py"))


def _may_be_bundle(path: Path) -> bool:
    """Whether a path is a bundle, be it damaged, or is missing where a bundle was meant."""
    if path.is_dir():
        return not (path / workspace.WEIGHTS).exists() and not (path / "checkpoints").is_dir()
    return "/" in str(path) and not path.exists()


def show(folder: Path, settings: CheckSettings) -> int:
    """Check a bundle and print what was found; 1 if anything failed."""
    failed = report(examine(folder, settings))
    print(f"{printable(folder)} {'fails' if failed else 'is fine'}")
    return failed
