"""`deftly gait TASK`: search for a periodic movement, and train a student on it by behavioural cloning with DAgger."""

import shlex
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console
from typing_extensions import Doc

from deftly import workspace
from deftly.config import RUN_NAME, RunsConfig, parse, split_task, to_yaml, with_task
from deftly.console import duration
from deftly.errors import DeftlyError
from deftly.evaluate.rollout import VALIDATE, run_episodes
from deftly.files import write_text
from deftly.learn import checkpoint
from deftly.learn.ppo import PPO
from deftly.recipes.in_hand.gait.dagger import clone
from deftly.recipes.in_hand.gait.gaits import Gaits
from deftly.recipes.in_hand.gait.search import (
    SETTLE_S,
    CMASearch,
    EvolutionStrategy,
    GaitSettings,
)
from deftly.tasks import Task, load

EPISODES = 64
"""Of the evaluation of the student."""


@dataclass(frozen=True)
class GaitArgs(GaitSettings):
    """Search for a gait, and train a policy on it (behavioural cloning with DAgger): `deftly gait TASK`."""

    runs: Annotated[RunsConfig, Doc("Where runs are kept.")] = field(default_factory=RunsConfig)
    name: Annotated[str | None, RUN_NAME, Doc("A word for the name of the run's folder.")] = "gait"
    init: Annotated[
        str | None,
        Doc(
            "Train the student on from the weights of this checkpoint: shipped, or a run; also of a mirrored hand's."
        ),
    ] = None


@dataclass
class Progress:
    """Prints the rewards of generations, and keeps the gait found so far in the run's folder."""

    task: Task
    path: Path
    console: Console
    start: float = field(default_factory=time.perf_counter)
    steps: float = 0.0

    def generations(self, search: CMASearch | EvolutionStrategy, count: int, what: str) -> Gaits:
        """Run so many generations; returns the gait found."""
        seconds = search.args.seconds + SETTLE_S
        steps = search.env.num_envs * seconds * search.env.contract.rate
        began = time.perf_counter()
        for generation in range(1, count + 1):
            rewards = search.generation()
            search.best.save(self.path, self.task)
            self.steps += steps
            left = (time.perf_counter() - began) * (count - generation) / generation
            self._print(f"{what} {generation} of {count}", rewards, left)
        return search.best

    def _print(self, what: str, rewards: dict[str, float], left: float) -> None:
        minutes = (time.perf_counter() - self.start) / 60
        cells = ", ".join(f"{name} {value:.3f}/s" for name, value in rewards.items())
        spent = f"{minutes:.1f} min, {self.steps / 1e6:.2f} M steps, {duration(left)} left"
        self.console.print(
            f"{what}: reward {cells}, {spent}",
            highlight=False,
            soft_wrap=True,
        )


def main(argv: list[str]) -> int:
    """Run `deftly gait`."""
    name, rest = split_task(argv)
    if name is None:
        parse(GaitArgs, rest, prog="deftly gait TASK")
        raise DeftlyError("a gait for which task? deftly gait TASK; 'deftly tasks' lists them")
    cls: Any = load(name)
    defaults = {
        section: cls.defaults[section] for section in ("sim", "train") if section in cls.defaults
    }
    args = parse(with_task(GaitArgs, cls.Config), rest, prog=f"deftly gait {name}", filed=defaults)
    task = cls(args.task)
    console = Console()
    task.require()
    # what is refused is refused before there is a run
    given = Gaits.load(args.gait, task).timed(args.frequency) if args.gait else None
    start = _student(task, args)
    search = None if given else CMASearch(task, args)
    run = workspace.create(task.name, "train", args.runs, args.name)
    path = run / "gait.npz"
    progress = Progress(task, path, console)
    gait = progress.generations(search, args.generations, "generation") if search else given
    assert gait is not None
    if args.ascent:
        strategy = EvolutionStrategy(task, args, gait)
        gait = progress.generations(strategy, args.ascent, "ascent")
    gait.save(path, task)
    learner = clone(task, gait, args, start)
    save(run, task, learner, args)
    evaluate(task, learner, args, console)
    command = shlex.join(["deftly", "train", name, "--init", str(run)])
    console.print(f"go on with: {command}", soft_wrap=True)
    return 0


def _student(task: Task, args: GaitArgs) -> checkpoint.Checkpoint | None:
    """The checkpoint from which the student starts, if one is asked for; raises DeftlyError if it does not fit."""
    if args.init is None:
        return None
    found = checkpoint.load(checkpoint.find(args.init, task.name, args.runs))
    found.require(task, any_robot=True)
    return found


def evaluate(task: Task, learner: PPO, args: GaitArgs, console: Console) -> None:
    """Print the success rate and the selection metric of the student on the validation split."""
    values = run_episodes(
        task,
        learner.policy(),
        EPISODES,
        seed=args.train.seed,
        purpose=VALIDATE,
        sim_cfg=args.sim,
        what="evaluating",
    ).values
    text = f"student: success {values['success'].mean():.1%} of {EPISODES} episodes"
    selection = task.report.selection
    if selection:
        text += f", {selection} {values[selection].nanmean():.3f}"
    console.print(text, highlight=False)


def save(run: Path, task: Task, learner: PPO, args: GaitArgs) -> None:
    """A checkpoint of the student, from which training starts."""
    folder = run / "checkpoints" / "iter_000000"
    write_text(run / checkpoint.CONFIG, to_yaml(args))
    checkpoint.write(
        folder, task, learner.networks, contract=learner.env.contract, config=to_yaml(args)
    )
    for link in ("last", "best"):
        workspace.link(folder.with_name(link), folder)
