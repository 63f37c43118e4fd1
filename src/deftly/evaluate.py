"""`deftly eval`: measure a policy on held out episodes, with confidence intervals, gates and a report.

The report is `eval.json` (schema `deftly.eval/1`, no NaN in it), `episodes.csv` with the figures of each
episode, `report.html` to look at, and `video.mp4` if asked.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import operator
import os
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deftly import __version__, report, runs
from deftly.config import EnvConfig, RunsConfig, SimConfig, parse, split_task, suggest, with_task
from deftly.errors import DeftlyError

if TYPE_CHECKING:
    from deftly.learn.checkpoint import Checkpoint
    from deftly.rollout import Episodes, OnStep
    from deftly.sim.render import Recorder
    from deftly.tasks import Task

OPERATORS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
GATE = re.compile(r"\s*([\w./-]+?)\s*(>=|<=|>|<)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)(%?)\s*")


@dataclass(frozen=True)
class EvalArgs:
    """Measure a policy on episodes that no training has seen."""

    checkpoint: str | None = None
    """Policy to measure: latest, a run, a checkpoint folder or shipped; unset: latest, else shipped."""
    episodes: int = 200
    """Episodes to run, one in each environment, so env.num-envs is not used."""
    seed: int = 0
    """Decides which episodes; the same seed gives the same report, bit for bit."""
    stochastic: bool = False
    """Draw actions from the policy's distribution instead of taking its mean."""
    gate: tuple[str, ...] = ()
    """Conditions such as 'success>=0.9' 'steps<80'; the exit status is 1 unless all hold."""
    compare: Path | None = None
    """Earlier report (eval.json) to compare with."""
    out: Path | None = None
    """Folder for the report; unset: a new test run in runs/."""
    video: bool = False
    """Render the first episodes to video.mp4."""
    video_episodes: int = 4
    """How many episodes the video shows."""
    camera: str | None = None
    """Camera of the video; unset: the scene's first."""
    sim: SimConfig = field(default_factory=SimConfig)
    """The physics engine; as in the training unless set."""
    env: EnvConfig = field(default_factory=EnvConfig)
    """What disturbs the episodes."""
    runs: RunsConfig = field(default_factory=RunsConfig)
    """Where runs are kept."""

    def __post_init__(self) -> None:
        for name in ("episodes", "video_episodes"):
            if getattr(self, name) < 1:
                raise DeftlyError(f"{name.replace('_', '-')} is {getattr(self, name)}, but it must be 1 or more")
        for text in self.gate:
            Gate.parse(text)


# ---------------------------------------------------------------------- report


def measure(task: Task, found: Checkpoint, args: EvalArgs, on_step: OnStep | None = None) -> dict[str, Any]:
    """Run a checkpoint on held out episodes of a task; returns the report that `eval.json` holds.

    Of `args` it takes what decides the episodes: episodes, seed, stochastic, sim and env.
    """
    return describe(task, found, args, run(task, found, args, on_step))


def run(task: Task, found: Checkpoint, args: EvalArgs, on_step: OnStep | None = None) -> Episodes:
    """The episodes that a report describes. Raises DeftlyError if the contract does not fit."""
    from deftly.rollout import EVALUATE, run_episodes

    found.require(task)
    return run_episodes(
        task,
        found.policy(),
        args.episodes,
        seed=args.seed,
        purpose=EVALUATE,
        env_cfg=args.env,
        sim_cfg=args.sim,
        stochastic=args.stochastic,
        on_step=on_step,
    )


def describe(task: Task, found: Checkpoint, args: EvalArgs, ran: Episodes) -> dict[str, Any]:
    """The report of episodes that ran."""
    disturbances = ("randomize", "noise", "pushes")
    return {
        "schema": report.SCHEMA,
        "task": task.name,
        "robot": found.contract.robot,
        "contract": found.contract.hash,
        "checkpoint": _identity(found),
        "episodes": len(ran),
        "seed": args.seed,
        "stochastic": args.stochastic,
        "preset": args.sim.preset,
        "disturbances": {
            **{name: getattr(args.env, name) for name in disturbances},
            "latency_ms": list(args.env.latency_ms),
        },
        **_figures(ran),
        "wall_seconds": round(ran.seconds, 3),
        "version": __version__,
    }


def _identity(found: Checkpoint) -> dict[str, Any]:
    weights = (found.path / runs.WEIGHTS).read_bytes()
    digest = hashlib.sha256(weights).hexdigest()
    return {"path": str(found.path), "sha256": digest, "iteration": found.iteration, "task": found.task}


def _figures(ran: Episodes) -> dict[str, Any]:
    values = columns(ran)
    success = values.pop("success")
    count, total = int(success.sum()), len(success)
    return {
        "success": {"rate": count / total, "count": count, "wilson95": list(report.wilson(count, total))},
        "figures": {name: report.summarize(value) for name, value in values.items()},
        "broken_physics": int(values["failed/physics"].sum()),
    }


def columns(ran: Episodes) -> dict[str, np.ndarray]:
    """The figures of the episodes, with their length in seconds and the time that a success took."""
    values = {name: value.numpy() for name, value in ran.values.items()}
    seconds = values["steps"] / ran.rate
    done = np.where(values["success"] > 0, seconds, np.nan)
    first = {"success": values["success"], "steps": values["steps"], "seconds": seconds}
    return {**first, "success_seconds": done, **values}


# ----------------------------------------------------------------------- gates


@dataclass(frozen=True)
class Gate:
    """A condition on a figure's mean, or on the success rate."""

    metric: str
    sign: str
    wanted: float

    @classmethod
    def parse(cls, text: str) -> Gate:
        """Read `success>=0.9`; the number may be a percentage."""
        match = GATE.fullmatch(text)
        if not match:
            raise DeftlyError(f"cannot read the gate '{text}': write METRIC>=NUMBER (or <=, >, <), as 'success>=0.9'")
        metric, sign, number, percent = match.groups()
        return cls(metric, sign, float(number) / (100 if percent else 1))

    def check(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """Whether it holds, and the measured value; a figure that no episode has holds nothing."""
        means = report.means(result)
        if self.metric not in means:
            near = suggest(self.metric, means) or f"; known are {', '.join(means)}"
            raise DeftlyError(f"--gate names the unknown metric '{self.metric}'{near}")
        value = means[self.metric]
        holds = value is not None and bool(OPERATORS[self.sign](value, self.wanted))
        return {"gate": f"{self.metric}{self.sign}{self.wanted:g}", "measured": value, "holds": holds}


def _verdict(gate: Mapping[str, Any]) -> str:
    measured = "no value" if gate["measured"] is None else f"{gate['measured']:.4g}"
    return f"gate {gate['gate']}: measured {measured}, {'holds' if gate['holds'] else 'FAILED'}"


def gather(argv: Sequence[str], flag: str = "gate") -> list[str]:
    """Put all values of a repeated flag behind one: the parser keeps the last, and no gate must be lost."""
    words, values, inside = [], [], False
    for word in argv:
        assigned = re.fullmatch(r"(?:--)?([A-Za-z_][\w.-]*)=(.*)", word)
        if assigned or word.startswith("--"):
            inside = word == f"--{flag}" or bool(assigned and assigned[1] == flag)
            values += [assigned[2]] if assigned and inside else []
            words += [] if inside else [word]
        else:
            (values if inside else words).append(word)
    return [*words, *([f"--{flag}", *values] if values else [])]


# ---------------------------------------------------------------------- output


def _write(path: Path, write: Callable[[Path], object]) -> None:
    scratch = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        write(scratch)
        os.replace(scratch, path)
    except OSError as error:
        raise DeftlyError(f"cannot write {path}: {error.strerror}; choose another --out DIR") from error
    finally:
        scratch.unlink(missing_ok=True)


def _write_csv(path: Path, values: Mapping[str, np.ndarray]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["episode", *values])
        for i, row in enumerate(zip(*values.values())):
            writer.writerow([i, *("" if math.isnan(value) else f"{value:.6g}" for value in row)])


def _save(folder: Path, result: Mapping[str, Any], ran: Episodes, recorder: Recorder | None) -> None:
    from deftly.sim.render import write_video

    values = columns(ran)
    text = json.dumps(result, indent=2, allow_nan=False) + "\n"
    _write(folder / "eval.json", lambda path: path.write_text(text))
    _write(folder / "episodes.csv", lambda path: _write_csv(path, values))
    video = folder / "video.mp4" if recorder else None
    if recorder and video:
        write_video(video, recorder.frames(), ran.rate)
    page = report.html(result, values, video)
    _write(folder / "report.html", lambda path: path.write_text(page))


def _folder(args: EvalArgs, task: str) -> Path:
    if args.out is None:
        return runs.create(task, "test", args.runs)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DeftlyError(f"cannot make {args.out}: {error.strerror}; choose another --out DIR") from error
    return args.out


def main(argv: list[str]) -> int:
    """Run `deftly eval`. The exit status is 1 if a gate fails."""
    from deftly.sim import render

    render.choose_gl()  # before anything imports MuJoCo
    from deftly import rollout, tasks
    from deftly.learn import checkpoint

    name, flags = split_task(argv)
    prog, flags = f"deftly eval {name or 'TASK'}", gather(flags)
    if name is None:
        parse(EvalArgs, flags, prog=prog)  # answers --help
        raise DeftlyError("eval needs a task: deftly eval TASK; 'deftly tasks' lists them")
    cls = tasks.load(name)
    typed = parse(with_task(EvalArgs, cls.Config), flags, prog=prog)
    earlier = report.read_report(typed.compare) if typed.compare else None
    found = checkpoint.load(rollout.find_policy(typed.checkpoint, cls.name, typed.runs))
    args = rollout.parse_saved(EvalArgs, cls, found, flags, prog)
    task = rollout.make_task(cls, args)
    found.require(task)
    recorder = render.Recorder(args.video_episodes, args.camera) if args.video else None
    ran = run(task, found, args, recorder.watch if recorder else None)
    result = describe(task, found, args, ran)
    result["gates"] = [Gate.parse(text).check(result) for text in args.gate]
    result["command"] = _command(argv, typed, found)
    folder = _folder(args, cls.name)
    _save(folder, result, ran, recorder)
    _print(result, earlier, folder)
    return 0 if all(gate["holds"] for gate in result["gates"]) else 1


def _command(argv: Sequence[str], args: EvalArgs, found: Checkpoint) -> str:
    """What to type to get the report again."""
    exact = [] if args.checkpoint == str(found.path) else ["--checkpoint", str(found.path)]
    return shlex.join(["deftly", "eval", *argv, *exact])


def _print(result: Mapping[str, Any], earlier: Mapping[str, Any] | None, folder: Path) -> None:
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 200, markup=False, highlight=False)
    console.print(report.table(result), "")
    if earlier is not None:
        side, lines = report.compare(earlier, result)
        console.print(side, "", *lines, "", sep="\n")
    if result["broken_physics"]:
        console.print(f"warning: the physics broke in {result['broken_physics']} episodes, counted as failed")
    verdicts = map(_verdict, result["gates"])
    console.print(report.headline(result), *verdicts, f"report: {folder / 'report.html'}", sep="\n")
