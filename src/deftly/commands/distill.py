"""`deftly distill TASK --teacher RUN`: a student learns to do what a policy does that sees more."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from typing_extensions import Doc

from deftly.commands import train
from deftly.config import DistillConfig, TrainArgs, chosen_algorithm, parse, split_task
from deftly.errors import DeftlyError


@dataclass(frozen=True)
class DistillArgs(TrainArgs):
    """Train a student to do what a teacher does; `deftly train` with the algorithm `distill`."""

    train: Annotated[DistillConfig, Doc("The teacher, and how the student learns from it.")] = (  # type: ignore[assignment]
        field(default_factory=DistillConfig)
    )


def main(argv: list[str]) -> int:
    """The command line; the exit status is that of `deftly train`."""
    name, rest = split_task(argv)
    if name is None:
        parse(DistillArgs, rest, prog="deftly distill TASK")  # answers --help
        raise DeftlyError(
            "distill needs a task: deftly distill TASK --teacher RUN; 'deftly tasks' lists them"
        )
    own = DistillConfig.algorithm
    chosen = chosen_algorithm(rest, {"train": {"algorithm": own}})
    if chosen != own:
        raise DeftlyError(
            f"train.algorithm is {chosen}, but distill imitates a teacher: "
            f"deftly train {name} --train.algorithm {chosen}"
        )
    return train.main([*argv, "--train.algorithm", DistillConfig.algorithm])
