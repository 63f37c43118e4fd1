"""`deftly train TASK`: from nothing to a trained policy, resumable at any time."""

from __future__ import annotations

import shlex

from deftly import api
from deftly.config import (
    TrainArgs,
    parse,
    split_task,
    switches,
    with_algorithm,
    without_setting,
)
from deftly.config.mapping import changed
from deftly.console import debug, set_log_level
from deftly.errors import DeftlyError


def main(argv: list[str]) -> int:
    """The command line: the exit status is 1 if the wanted success was not reached, 128 + N after signal N."""
    name, rest = split_task(argv)
    on = switches(rest, ("test", "render", "video"))
    if on.pop("test", False):
        return _test([*([name] if name else []), *without_setting(rest, "test")], **on)
    if name is None:
        parse(with_algorithm(TrainArgs, []), rest, prog="deftly train TASK")  # answers --help
        raise DeftlyError("which task? `deftly train TASK`; `deftly tasks` lists them")
    args, source = api.training_settings(name, rest)
    set_log_level(args.log_level)
    finished = api.nothing_left(args, source)
    if finished:
        print(finished)
        return 0
    debug(lambda: shlex.join(["deftly", "train", name, *changed(args)]))
    done = api.run_training(name, args, source)
    if done.is_first_rank and args.log_level != "warning":
        _say_what_follows(done, args)
    if done.stop_signal:
        return 128 + done.stop_signal
    return int(args.until_success is not None and not done.reached)


def _test(argv: list[str], render: bool | None = None, video: bool = False) -> int:
    """The older systems' way to test, `train test=true`: in a viewer, unless that is off or a video is wanted.

    Without a viewer the policy is measured; the video is in the folder of the test run.
    """
    from deftly.commands import eval as evaluation
    from deftly.commands import play

    watch = render if render is not None else not video
    if video or not watch:
        status = evaluation.main(without_setting(argv, "render"))
        if status or not watch:
            return status
    return play.main(without_setting(argv, "video"))


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
