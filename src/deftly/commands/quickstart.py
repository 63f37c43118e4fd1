"""`deftly quickstart`: from nothing to a policy that drives a simulated robot over a socket, and what to try."""

import re
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Gt, Le, Lt
from typing_extensions import Doc

from deftly.config import SEEDS, RunsConfig, Settings, parse
from deftly.errors import DeftlyError

NEXT = {
    "deftly play {task}": "watch it, in a window or in the browser",
    "deftly eval {task} --seed 1": "measure it on other episodes",
    "deftly run --policy {folder} --driver sim --start": "run it in real time, as on a robot",
    "deftly runs": "list your runs; compare and pin them",
    "deftly config {task}": "every setting, explained, as YAML to edit and feed back",
    "docs/tutorial.md, docs/add-a-task.md, docs/run.md": "the tutorial; your own task; your own robot",
}


@dataclass(frozen=True)
class QuickstartArgs(Settings):
    """Train, measure and hand over a task from nothing, in minutes."""

    task: Annotated[str, Doc("The task.")] = "jaka-pick-cube"
    success: Annotated[
        float, Gt(0), Le(1), Doc("Train until this fraction of episodes succeeds.")
    ] = 0.95
    episodes: Annotated[
        int, Ge(1), Doc("Episodes of each measurement, on seeds that training never saw.")
    ] = 200
    seed: Annotated[int, Ge(0), Lt(SEEDS), Doc("Seed of the training.")] = 1
    runs: Annotated[RunsConfig, Doc("Where the run and the bundle are kept.")] = field(
        default_factory=RunsConfig
    )


def main(argv: list[str]) -> int:
    """Run `deftly quickstart`. The exit code is that of the first step that fails."""
    from deftly.render import choose_gl

    args = parse(QuickstartArgs, argv, prog="deftly quickstart")
    choose_gl()
    from deftly.commands import doctor, export, train
    from deftly.commands import eval as evaluation

    start, folder = time.perf_counter(), args.runs.root / "bundles" / args.task
    shared, episodes = [args.task, f"--runs.root={args.runs.root}"], f"--episodes={args.episodes}"
    learn = [f"--until-success={args.success}", f"--train.seed={args.seed}", "--name=quickstart"]
    gate = ["--gate", f"success>={args.success}"]
    steps = (
        ("this machine", doctor.main, []),
        (f"train {args.task} from nothing", train.main, [*shared, *learn]),
        ("measure it on episodes it never saw", evaluation.main, [*shared, episodes, *gate]),
        (
            "export it as a bundle, and check that",
            export.main,
            [*shared, episodes, f"--out={folder}"],
        ),
        (
            "serve it to a simulated robot",
            lambda words: serve(folder, words),
            [*shared, episodes, *gate],
        ),
    )
    for number, (title, step, words) in enumerate(steps, 1):
        title = f"{number} of {len(steps)}: {title}"
        print(f"\n{title}\n{'-' * len(title)}", flush=True)
        if code := step(words):
            return code
    print("\nWhat to try next\n")
    for command, why in NEXT.items():
        print(
            f"  {command.format(task=shlex.quote(args.task), folder=shlex.quote(str(folder))):65}{why}"
        )
    print(f"\nAll of it took {(time.perf_counter() - start) / 60:.1f} minutes.")
    return 0


def serve(folder: Path, words: list[str]) -> int:
    """Sim2sim through a policy server in a process of its own, which ends with it."""
    from deftly.commands import sim2sim

    command = [
        sys.executable,
        "-m",
        "deftly",
        "serve",
        "--policy",
        str(folder),
        "--bind",
        "tcp://127.0.0.1:*",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            line = server.stdout.readline() if server.stdout else ""
            print(line, end="", flush=True)
            endpoint = re.search(r"tcp://[\d.]+:\d+", line)
            if endpoint is None:
                raise DeftlyError(
                    f"the policy server did not start; try it alone: deftly serve --policy {shlex.quote(str(folder))}"
                )
            return sim2sim.main([*words, "--policy", endpoint[0], "--settings-from", str(folder)])
        finally:
            server.terminate()
