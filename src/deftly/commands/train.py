"""`deftly train TASK`: from nothing to a trained policy, resumable at any time."""

from dataclasses import replace

from deftly.config import TrainArgs, parse, split_task, with_task
from deftly.errors import DeftlyError


def main(argv: list[str]) -> int:
    """The command line of the stage."""
    name, rest = split_task(argv)
    if "test=true" in (low := [w.lower().removeprefix("training.") for w in rest]):
        from deftly.commands import play  # the older systems' way to test: `train task=... test=true`

        return play.main([*([name] if name else []), *(word for word, key in zip(rest, low) if key != "test=true")])
    if name is None:
        parse(TrainArgs, rest, prog="deftly train TASK")  # answers --help
        raise DeftlyError("which task? `deftly train TASK`; `deftly tasks` lists them")
    from deftly import workspace
    from deftly.learn import checkpoint
    from deftly.learn.train import train
    from deftly.tasks import load

    task, prog, source = load(name), f"deftly train {name}", None
    args_type = with_task(TrainArgs, task.Config)
    args = parse(args_type, rest, prog=prog, filed=task.defaults)
    if args.init:
        args = replace(args, train=replace(args.train, keep_normalizer=True))
    if args.resume:
        source = checkpoint.load(workspace.find_checkpoint(args.resume, task.name, args.runs, "last"))
        args = parse(args_type, ["--config", str(source.path / checkpoint.CONFIG), *rest], prog=prog)
    return train(name, args, source).exit_code
