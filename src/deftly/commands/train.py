"""`deftly train TASK`: from nothing to a trained policy, resumable at any time."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, get_type_hints

from deftly.config import TrainArgs, parse, split_task, to_yaml, with_algorithm, with_task
from deftly.errors import DeftlyError
from deftly.files import parse_yaml

if TYPE_CHECKING:
    from deftly.evaluate.validation import Validation
    from deftly.learn.checkpoint import Checkpoint
    from deftly.learn.trainer import Trainer


def main(argv: list[str]) -> int:
    """The command line: the exit status is 1 if the wanted success was not reached, 128 + N after signal N."""
    name, rest = split_task(argv)
    lowered = [word.lower().removeprefix("training.") for word in rest]
    if "test=true" in lowered:  # the older systems' way to test: `train task=... test=true`
        from deftly.commands import play

        others = [word for word, key in zip(rest, lowered, strict=True) if key != "test=true"]
        return play.main([*([name] if name else []), *others])
    if name is None:
        parse(with_algorithm(TrainArgs, []), rest, prog="deftly train TASK")  # answers --help
        raise DeftlyError("which task? `deftly train TASK`; `deftly tasks` lists them")
    from deftly.evaluate.validation import Validation
    from deftly.learn.train import train

    args, source = _settings(name, rest)
    if source is not None and source.iteration >= args.train.max_iterations:
        done = f"{source.path} is at iteration {source.iteration}, and train.max-iterations is"
        print(f"{done} {args.train.max_iterations}: nothing left to do; go on with a larger one")
        return 0
    validation = Validation.of(name, args)
    trainer = train(name, args, source, callbacks=[validation])
    if trainer.ranks.first and args.log_level != "warning":
        _say_what_follows(name, trainer, validation)
    if trainer.stop_signal:
        return 128 + trainer.stop_signal
    return int(args.until_success is not None and not validation.reached)


def _settings(name: str, words: list[str]) -> tuple[TrainArgs, Checkpoint | None]:
    """The settings, and the checkpoint that is continued, whose settings hold where none is typed."""
    from deftly import workspace
    from deftly.learn import checkpoint
    from deftly.tasks import load

    task = load(name)
    args_type = with_task(TrainArgs, task.Config)
    prog = f"deftly train {name}"
    args = parse(with_algorithm(args_type, words, task.defaults), words, prog=prog, filed=task.defaults)
    if not args.resume:
        return args, None
    source = checkpoint.load(workspace.find_checkpoint(args.resume, task.name, args.runs, "last"))
    args_type = with_algorithm(args_type, words, source.config)
    kinds = get_type_hints(args_type)
    for section in fields(args_type):
        source.require_settings(section.name, kinds[section.name])
    usual = parse_yaml(to_yaml(args_type()), "the default settings")
    saved = _differences(source.config, usual)
    return parse(args_type, words, prog=prog, filed=saved, origin=str(source.path / checkpoint.CONFIG)), source


def _differences(saved: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    """The saved settings that are not the usual ones; what cannot be typed, such as a table of a task, stays usual."""
    found: dict[str, Any] = {}
    for name, value in saved.items():
        if isinstance(value, dict):
            found[name] = _differences(value, usual.get(name) or {})
        elif name not in usual or value != usual[name]:
            found[name] = value
    return found


def _say_what_follows(name: str, trainer: Trainer, validation: Validation) -> None:
    run = str(trainer.run)
    if trainer.stop_signal:
        print(f"stopped and saved; go on with: deftly train {shlex.join([name, '--resume', run])}")
    elif validation.reached:
        cost = f"{trainer.seconds / 60:.1f} minutes, {trainer.steps / 1e6:.2f} M steps"
        print(f"{100 * validation.success:.1f} % success over {validation.episodes} episodes after {cost}")
    elif validation.until_success is not None:
        print(f"stopped at iteration {trainer.iteration} below the wanted success: raise train.max-iterations")
    print(f"measure it: deftly eval {shlex.join([name, '--checkpoint', run])}")
