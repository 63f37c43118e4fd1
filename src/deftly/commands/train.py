"""`deftly train TASK`: from nothing to a trained policy, resumable at any time."""

from __future__ import annotations

import shlex

from deftly import api
from deftly.config import TrainArgs, parse, split_task, with_algorithm
from deftly.errors import DeftlyError


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
    args, source = api.training_settings(name, rest)
    finished = api.nothing_left(args, source)
    if finished:
        print(finished)
        return 0
    done = api.run_training(name, args, source)
    if done.is_first_rank and args.log_level != "warning":
        _say_what_follows(done, args)
    if done.stop_signal:
        return 128 + done.stop_signal
    return int(args.until_success is not None and not done.reached)


def _say_what_follows(done: api.Training, args: TrainArgs) -> None:
    run = str(done.run)
    if done.stop_signal:
        print(
            f"stopped and saved; go on with: deftly train {shlex.join([done.task, '--resume', run])}"
        )
    elif done.reached and done.success is not None:
        cost = f"{done.seconds / 60:.1f} minutes, {done.steps / 1e6:.2f} M steps"
        print(f"{100 * done.success:.1f} % success over {done.episodes} episodes after {cost}")
    elif args.until_success is not None:
        print(
            f"stopped at iteration {done.iteration} below the wanted success: raise train.max-iterations"
        )
    print(f"measure it: deftly eval {shlex.join([done.task, '--policy', run])}")
