"""How long each learning algorithm takes to solve a task: `deftly bench [TASK] --algorithms [ppo sac ...]`.

Each training is a `deftly train` of its own that ends when an evaluation on held out episodes shows the wanted success
with 95 % confidence. Algorithms take turns seed by seed, so that a machine that slows down slows all of them. Seconds
depend on what else the machine does; processor seconds and environment steps do not.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le
from typing_extensions import Doc

from deftly.config import OUTPUT_FILE, Settings, Suffix, parse, split_task
from deftly.errors import DeftlyError
from deftly.tasks import load
from deftly_bench.entry import start

TASK = "jaka-pick-cube"
Algorithm = Literal["ppo", "sac", "ddpg", "td3"]


@dataclass(frozen=True)
class AlgorithmsArgs(Settings):
    """Compare learning algorithms on a task: `deftly bench [TASK] --algorithms [ppo sac ...]`."""

    algorithms: Annotated[tuple[Algorithm, ...], Doc("Which ones.")] = ("ppo", "sac", "ddpg", "td3")
    seeds: Annotated[int, Ge(1), Le(100), Doc("Trainings of each.")] = 3
    success: Annotated[float, Gt(0), Le(1), Doc("Success at which a training ends.")] = 0.95
    minutes: Annotated[float, Gt(0), Doc("Minutes after which a training is given up.")] = 40.0
    num_envs: Annotated[int, Ge(0), Doc("Environments of a training; 0: the task's own.")] = 0
    eval_episodes: Annotated[int, Ge(1), Doc("Episodes of an evaluation.")] = 200
    out: Annotated[
        Path | None,
        Suffix(".json"),
        OUTPUT_FILE,
        Doc("Write results here, and a plot of success beside it (.png)."),
    ] = None


def main(argv: list[str]) -> int:
    """Train, print a table, and write what was asked for."""
    name, rest = split_task(argv)
    args = parse(AlgorithmsArgs, rest, prog="deftly bench --algorithms")
    task = name or TASK
    load(task)
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as root:
        for seed in range(1, args.seeds + 1):
            for algorithm in args.algorithms:
                runs.append(training(task, algorithm, seed, args, Path(root)))
                print(line(runs[-1]), flush=True)
    result = {"task": task, "success": args.success, "runs": runs, "summary": summary(runs)}
    for algorithm, numbers in result["summary"].items():
        print(f"{algorithm}: {numbers}")
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")
        draw(result, args.out.with_suffix(".png"))
    return 0


def without_bare_flag(argv: Sequence[str]) -> list[str]:
    """A command's words without an `--algorithms` that names none: all of them are meant."""
    following = [*argv[1:], "--"]
    return [
        word
        for word, next_word in zip(argv, following, strict=True)
        if word != "--algorithms" or not next_word.startswith("--")
    ]


def training(
    task: str, algorithm: str, seed: int, args: AlgorithmsArgs, root: Path
) -> dict[str, Any]:
    """One training to the wanted success: what it took, and its evaluations."""
    folder = root / f"{algorithm}-{seed}"
    words = [
        *(sys.executable, "-m", "deftly", "train", task, "--train.algorithm", algorithm),
        *("--train.seed", str(seed), "--until-success", str(args.success)),
        *("--eval-episodes", str(args.eval_episodes), "--train.max-iterations", "1000000"),
        *("--runs.root", str(folder), "--tensorboard", "False", "--log-level", "warning"),
        *(("--env.num-envs", str(args.num_envs)) if args.num_envs else ()),
    ]
    child = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    try:
        _, said = child.communicate(timeout=60 * args.minutes)
    except subprocess.TimeoutExpired:
        child.terminate()  # it saves, and ends by itself
        _, said = child.communicate(timeout=120)
    reached = child.returncode == 0
    files = sorted(folder.glob("runs_all/*/metrics.csv"))
    if not files:
        raise DeftlyError(f"{algorithm} did not train: {said.strip()[-300:]}")
    rows = [*evaluations(files[0])]
    return {
        "algorithm": algorithm,
        "seed": seed,
        "reached": reached,
        "seconds": last(files[0], "seconds"),
        "steps": last(files[0], "steps"),
        "evaluations": rows,
    }


def evaluations(table: Path) -> Iterator[tuple[float, float, float]]:
    """Seconds, steps and success of each evaluation in a training's table."""
    with table.open(newline="") as file:
        for row in csv.DictReader(file):
            if row["eval_success"]:
                yield float(row["seconds"]), float(row["steps"]), float(row["eval_success"])


def last(table: Path, column: str) -> float:
    """A column's last value."""
    with table.open(newline="") as file:
        return float([row[column] for row in csv.DictReader(file)][-1])


def summary(runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """By algorithm: trainings that reached the success, and the medians of those."""
    found: dict[str, dict[str, Any]] = {}
    for algorithm in dict.fromkeys(run["algorithm"] for run in runs):
        own = [run for run in runs if run["algorithm"] == algorithm]
        done = [run for run in own if run["reached"]]
        found[algorithm] = {"reached": len(done), "of": len(own)}
        if done:
            found[algorithm] |= {
                name: round(median(run[name] for run in done), 1) for name in ("seconds", "steps")
            }
    return found


def line(run: Mapping[str, Any]) -> str:
    """One training as a line of text."""
    end = "reached the success" if run["reached"] else "did not"
    cost = f"{run['seconds'] / 60:.1f} minutes, {run['steps'] / 1e6:.2f} M steps"
    return f"{run['algorithm']} seed {run['seed']}: {end} after {cost}"


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Success against minutes and against steps, a line for each training."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    names = [*dict.fromkeys(run["algorithm"] for run in result["runs"])]
    for run in result["runs"]:
        seconds, steps, success = zip(*(run["evaluations"] or [(0, 0, 0)]))
        colour = f"C{names.index(run['algorithm'])}"
        label = run["algorithm"] if run["seed"] == 1 else None
        axes[0].plot([s / 60 for s in seconds], success, colour, marker=".", label=label)
        axes[1].plot([s / 1e6 for s in steps], success, colour, marker=".")
    for one, title in zip(axes, ("minutes", "million environment steps")):
        one.set(xlabel=title, ylim=(-0.03, 1.03))
        one.grid(alpha=0.3)
        one.axhline(result["success"], color="grey", linestyle=":")
    axes[0].set_ylabel(f"success, {result['task']}")
    axes[0].legend()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    start(main)
