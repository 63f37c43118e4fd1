"""`deftly eval`: measure a policy on held out episodes, with confidence intervals, gates and a report."""

from __future__ import annotations

import copy
import csv
import hashlib
import io
import json
import math
import operator
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deftly import __version__, render, workspace
from deftly.config import OLDER_NAMES, EnvConfig, RunsConfig, SimConfig, suggest
from deftly.console import show, table
from deftly.errors import DeftlyError
from deftly.evaluate import report
from deftly.files import whole

if TYPE_CHECKING:
    from deftly.evaluate.rollout import OnStep
    from deftly.learn.checkpoint import Checkpoint
    from deftly.tasks import Task

OPERATORS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
GATE = re.compile(r"\s*([\w./-]+?)\s*(>=|<=|>|<)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)(%?)\s*")
Result = dict[str, Any]  # what `eval.json` holds
Figures = dict[str, np.ndarray]  # of the episodes by name, `(episodes,)` each; NaN where an episode has none


@dataclass(frozen=True)
class EvalArgs:
    """Measure a policy on episodes that no training has seen."""

    checkpoint: str | None = None  # Policy: latest, a run, a checkpoint folder or shipped; unset: latest, else shipped.
    episodes: int = 200  # Episodes to run, one in each environment, so env.num-envs is not used.
    seed: int = 0  # Decides which episodes; the same seed gives the same report, bit for bit.
    stochastic: bool = False  # Draw actions from the policy's distribution instead of taking its mean.
    gate: tuple[str, ...] = ()  # Conditions such as 'success>=0.9' 'steps<80'; the exit status is 1 unless all hold.
    compare: Path | None = None  # Earlier report (eval.json) to compare with.
    out: Path | None = None  # Folder for the report; unset: a new test run in runs/.
    video: bool | None = None  # Show the first episodes in video.mp4 and the page; unset: if this machine can render.
    video_episodes: int = 4  # How many episodes the video shows.
    camera: str | None = None  # Camera of the video; unset: the scene's first.
    wider: float = 1.0  # How many times as wide the ranges of the task's randomization are as in the task, 1 or more.
    only_outside: bool = False  # With wider: draw nothing that lies in the task's own ranges.
    sim: SimConfig = field(default_factory=SimConfig)  # The physics engine; as in the training unless set.
    env: EnvConfig = field(default_factory=EnvConfig)  # What disturbs the episodes.
    runs: RunsConfig = field(default_factory=RunsConfig)  # Where runs are kept.

    def __post_init__(self) -> None:
        for name in ("episodes", "video_episodes", "wider"):
            if not 1 <= getattr(self, name) < math.inf:
                raise DeftlyError(f"{name.replace('_', '-')} is {getattr(self, name)}, but it must be 1 or more")
        if self.only_outside and self.wider == 1:
            raise DeftlyError("--only-outside draws what --wider adds to the ranges: add --wider 1.5")
        for text in self.gate:
            read_gate(text)


def measure(task: Task, found: Checkpoint, args: EvalArgs, on_step: OnStep | None = None) -> tuple[Result, Figures]:
    """What `eval.json` holds, and the figures, of a checkpoint on held out episodes.

    Of `args` it takes episodes, seed, stochastic, wider, only_outside, sim and env. Raises DeftlyError if the contract
    is not the task's, or if there is nothing to widen.
    """
    from deftly.evaluate.rollout import EVALUATE, run_episodes

    found.require(task)
    task = _widened(task, args)
    how: dict[str, Any] = {"env_cfg": args.env, "sim_cfg": args.sim, "stochastic": args.stochastic, "on_step": on_step}
    ran = run_episodes(task, found.policy(), args.episodes, seed=args.seed, purpose=EVALUATE, **how)
    values = {name: value.numpy() for name, value in ran.values.items()}
    seconds, success = values["steps"] / ran.rate, values["success"]
    times = {"seconds": seconds, "success_seconds": np.where(success > 0, seconds, np.nan)}
    values = {"success": success, "steps": values["steps"]} | times | values
    sha = hashlib.sha256((found.path / workspace.WEIGHTS).read_bytes()).hexdigest()
    disturbances = {name: getattr(args.env, name) for name in ("randomize", "noise", "pushes")}
    disturbances["latency_ms"] = list(args.env.latency_ms)
    if args.wider > 1:
        disturbances |= {"wider": args.wider, "only_outside": args.only_outside}
    policy = {"path": found.label, "sha256": sha, "iteration": found.iteration, "task": found.task}
    who = {"task": task.name, "robot": found.contract.robot.name, "contract": found.contract.hash, "checkpoint": policy}
    how = {"episodes": len(ran), "seed": args.seed, "stochastic": args.stochastic, "preset": args.sim.preset}
    how |= {"disturbances": disturbances, "wall_seconds": round(ran.seconds, 3), "version": __version__}
    figures = {name: report.summarize(value) for name, value in values.items() if name != "success"}
    outcome = {"success": report.share(success), "figures": figures, **report.divide(values, task)}
    outcome["broken_physics"] = int(values["failed/physics"].sum())
    return {"schema": report.SCHEMA, **who, **how, **outcome}, values


def _widened(task: Task, args: EvalArgs) -> Task:
    """A task whose randomization is as wide as `args` want it; the task itself if they want nothing."""
    from deftly.sim.randomize import widen

    if args.wider == 1:
        return task
    entries = tuple(widen(entry, args.wider, args.only_outside) for entry in task.randomize())
    if not entries or not args.env.randomize:
        raise DeftlyError(f"--wider has nothing to widen: {task.name} is evaluated without randomization")
    wide = copy.copy(task)
    wide.randomize = lambda: entries
    return wide


def read_gate(text: str) -> tuple[str, str, float]:
    """Metric, sign and number of a condition such as `success>=0.9`; the number may be a percentage."""
    if not (match := GATE.fullmatch(text)):
        raise DeftlyError(f"cannot read the gate '{text}': write METRIC>=NUMBER (or <=, >, <), as 'success>=0.9'")
    metric, sign, number, percent = match.groups()
    return metric, sign, float(number) / (100 if percent else 1)


def check_gate(text: str, result: Result) -> dict[str, Any]:
    """Whether a condition on a figure's mean holds, and the measured value; what no episode has holds nothing."""
    metric, sign, wanted = read_gate(text)
    means = report.means(result)
    if metric not in means:
        near = suggest(metric, means) or f"; known are {', '.join(means)}"
        raise DeftlyError(f"--gate names the unknown metric '{metric}'{near}")
    holds = (value := means[metric]) is not None and bool(OPERATORS[sign](value, wanted))
    return {"gate": f"{metric}{sign}{wanted:g}", "measured": value, "holds": holds}


def gather(argv: Sequence[str], flag: str = "gate", instead: str | None = None) -> list[str]:
    """Put the values of every --gate, or what stands `instead` of another flag's, behind one; the parser keeps one."""
    words, values, inside = [], [], False
    for word in argv:
        name, equals, value = word.partition("=")
        is_flag = name.startswith("--") or (equals and re.fullmatch(r"[A-Za-z_][\w.-]*", name))
        inside = name in (flag, f"--{flag}", *OLDER_NAMES.get(flag, "").split()) if is_flag else inside
        if not inside:
            words.append(word)
        elif equals or not is_flag:
            values.append(value if is_flag else word)
    values = [instead] if instead else values
    return [*words, *([f"--{flag}", *values] if values else [])]


def main(argv: list[str]) -> int:
    """Run `deftly eval`. The exit status is 1 if a gate fails."""
    render.choose_gl()  # before anything imports MuJoCo
    from deftly.evaluate import rollout

    task, args, found = rollout.prepare(EvalArgs, "eval", gather(argv))
    assert found is not None
    earlier = report.read_report(args.compare) if args.compare else None
    recorder = None if args.video is False else render.Recorder(args.video_episodes, args.camera)
    try:
        result, values = measure(task, found, args, recorder and recorder.watch)
    except render.NoGLError as error:
        if args.video:
            raise
        print(f"no video: {error}")
        recorder = None
        result, values = measure(task, found, args)
    result["gates"] = [check_gate(text, result) for text in args.gate]
    result["command"] = shlex.join(["deftly", "eval", *gather(argv, "checkpoint", found.label)])
    folder = args.out or workspace.create(task.name, "test", args.runs)
    folder.mkdir(parents=True, exist_ok=True)
    if recorder:
        render.write_video(folder / "video.mp4", recorder.frames(), found.contract.rate)
    file = io.StringIO()
    rows = zip(range(len(values["steps"])), *([report.number(x, 6) for x in column] for column in values.values()))
    csv.writer(file, lineterminator="\n").writerows([("episode", *values), *rows])
    texts = {"eval.json": json.dumps(result, indent=2, allow_nan=False) + "\n", "episodes.csv": file.getvalue()}
    texts["report.html"] = report.html(result, values, folder / "video.mp4" if recorder else None, task)
    for name, text in texts.items():
        with whole(folder / name) as path:
            path.write_text(text)
    for head, *rows in filter(None, (report.figures_table(result), report.bins_table(result))):
        show(table(head, rows), "")
    if earlier:
        side, lines = report.compare(earlier, result)
        show(side, "\n".join(["", *lines, ""]))
    if result["broken_physics"]:
        show(f"warning: the physics broke in {result['broken_physics']} episodes, counted as failed")
    gates = [f"gate {report.verdict(gate)}" for gate in result["gates"]]
    show("\n".join([report.headline(result), *gates, f"report: {folder / 'report.html'}"]))
    return 0 if all(gate["holds"] for gate in result["gates"]) else 1
