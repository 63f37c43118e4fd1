"""`deftly quickstart`: check the machine, train from nothing, evaluate, record a video, and say what to try next."""

import time
from dataclasses import dataclass, field

from deftly.config import RunsConfig, parse

NEXT = {
    "deftly play {task}": "watch it, in a window or in the browser",
    "deftly eval {task} --seed 1": "measure it on other episodes",
    "deftly runs": "list your runs; compare and pin them",
    "deftly train {task} --train.seed 2": "train again",
    "deftly config {task}": "every setting, explained, as YAML to edit and feed back",
    "docs/tutorial.md, docs/add-a-task.md": "the tutorial; your own task in one file",
}


@dataclass(frozen=True)
class QuickstartArgs:
    """Train and measure a task from nothing, in minutes."""

    task: str = "jaka-pick-cube"  # The task.
    success: float = 0.95  # Train until this share of episodes succeeds.
    episodes: int = 200  # Episodes of the evaluation, on seeds that training never saw.
    seed: int = 1  # Seed of the training.
    runs: RunsConfig = field(default_factory=RunsConfig)  # Where the run is kept.


def main(argv: list[str]) -> int:
    """The command line of the stage. The exit code is that of the first step that fails."""
    from deftly.sim.render import choose_gl

    args = parse(QuickstartArgs, argv, prog="deftly quickstart")
    choose_gl()
    from deftly import doctor, evaluate, train

    start = time.perf_counter()
    shared = [args.task, f"--runs.root={args.runs.root}"]
    goal, seed = f"--until-success={args.success}", f"--train.seed={args.seed}"
    gate = ["--gate", f"success>={args.success}"]
    steps = (
        ("1 of 3: this machine", doctor.main, []),
        (f"2 of 3: train {args.task} from nothing", train.main, [*shared, goal, seed, "--name=quickstart"]),
        ("3 of 3: measure it on episodes it never saw", evaluate.main, [*shared, f"--episodes={args.episodes}", *gate]),
    )
    for title, step, words in steps:
        print(f"\n{title}\n{'-' * len(title)}", flush=True)
        if code := step(words):
            return code
    print("\nWhat to try next\n")
    for command, why in NEXT.items():
        print(f"  {command.format(task=args.task):44}{why}")
    print(f"\nAll of it took {(time.perf_counter() - start) / 60:.1f} minutes.")
    return 0
