"""`deftly gait TASK`: search for a periodic movement and clone it into a policy, to start a training from."""

import shlex
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console
from typing_extensions import Doc

from deftly import workspace
from deftly.config import RunsConfig, parse, split_task, to_yaml, with_task
from deftly.errors import DeftlyError
from deftly.evaluate.rollout import VALIDATE, run_episodes
from deftly.files import write_text
from deftly.learn import checkpoint
from deftly.learn.ppo import PPO
from deftly.recipes.in_hand.gait.clone import clone
from deftly.recipes.in_hand.gait.gaits import Gaits
from deftly.recipes.in_hand.gait.search import Ascent, GaitSettings, Search
from deftly.tasks import Task, load


@dataclass(frozen=True)
class GaitArgs(GaitSettings):
    """Search for a gait and clone it into a policy: `deftly gait TASK`."""

    runs: Annotated[RunsConfig, Doc("Where runs are kept.")] = field(default_factory=RunsConfig)
    name: Annotated[str | None, Doc("A word for the name of the run's folder.")] = "gait"


@dataclass
class Log:
    """Prints what generations come to, and keeps the gait found so far in the run's folder."""

    task: Task
    path: Path
    console: Console
    start: float = field(default_factory=time.perf_counter)
    steps: float = 0.0

    def generations(self, search: Search | Ascent, count: int, what: str) -> Gaits:
        """Run so many generations; returns the gait that they come to."""
        each = search.env.num_envs * (search.args.seconds + 1) * search.env.contract.rate
        for generation in range(1, count + 1):
            rewards = ", ".join(
                f"{name} {value:.3f}/s" for name, value in search.generation().items()
            )
            search.best.save(self.path, self.task)
            self.steps += each
            spent = (
                f"{(time.perf_counter() - self.start) / 60:.1f} min, {self.steps / 1e6:.2f} M steps"
            )
            self.console.print(
                f"{what} {generation}: reward {rewards}, {spent}", highlight=False, soft_wrap=True
            )
        return search.best


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
    task, console = cls(args.task), Console()
    task.require()
    begin = Gaits.load(args.gait, task).timed(args.frequency) if args.gait else Search(task, args)
    run = workspace.create(task.name, "train", args.runs, args.name)
    log = Log(task, run / "gait.npz", console)
    gait = (
        begin
        if isinstance(begin, Gaits)
        else log.generations(begin, args.generations, "generation")
    )
    if args.ascent:
        gait = log.generations(Ascent(task, args, gait), args.ascent, "ascent")
    gait.save(log.path, task)
    learner = clone(task, gait, args)
    save(run, task, learner, args)
    which: dict[str, Any] = {"seed": args.train.seed, "purpose": VALIDATE, "sim_cfg": args.sim}
    values = run_episodes(task, learner.policy(), 64, **which, what="evaluating").values
    selection = task.report.selection
    what = f", {selection} {values[selection].nanmean():.3f}" if selection else ""
    console.print(
        f"cloned: success {values['success'].mean():.1%} of 64 episodes{what}", highlight=False
    )
    command = shlex.join(["deftly", "train", name, "--init", str(run)])
    console.print(f"go on with: {command}", soft_wrap=True)
    return 0


def save(run: Path, task: Task, learner: PPO, args: GaitArgs) -> None:
    """A checkpoint of the cloned policy, from which training starts."""
    folder = run / "checkpoints" / "iter_000000"
    write_text(run / checkpoint.CONFIG, to_yaml(args))
    checkpoint.write(
        folder, task, learner.networks, contract=learner.env.contract, config=to_yaml(args)
    )
    for link in ("last", "best"):
        workspace.link(folder.with_name(link), folder)
