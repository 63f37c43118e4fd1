"""`deftly eval`: measure a policy on held out episodes, with confidence intervals, gates and a report."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge
from typing_extensions import Doc

from deftly import render, workspace
from deftly.config import INPUT, INPUT_FILE, OUTPUT_FOLDER, Repeatable, RunsConfig, with_setting
from deftly.console import show, table
from deftly.errors import DeftlyError
from deftly.evaluate import comparison, ladder, ladder_report, report, source
from deftly.evaluate.evaluate import EvalSettings, Metrics, Result, measure
from deftly.evaluate.gates import read_gate, read_gates, require_rungs
from deftly.evaluate.source import PolicyArgs, PolicySource
from deftly.files import WriteError

if TYPE_CHECKING:
    from deftly.tasks import Task

VIDEO = "video.mp4"


@dataclass(frozen=True)
class EvalArgs(PolicyArgs, EvalSettings):
    """Measure a policy on episodes that no training has seen."""

    gate: Annotated[
        tuple[str, ...],
        Repeatable(),
        Doc("Conditions such as 'success>=0.9' 'steps<80'; the exit status is 1 unless all hold."),
    ] = ()
    gates: Annotated[
        Path | None,
        INPUT_FILE,
        Doc("File of gates, YAML; with --ladder by rung: 'push: [half>=8]'."),
    ] = None
    ladder: Annotated[
        bool,
        Doc("Measure under each of the task's conditions: pushes, latency, other physics, ..."),
    ] = False
    rungs: Annotated[
        tuple[str, ...], Repeatable(), Doc("Names of conditions of the ladder; unset: all.")
    ] = ()
    compare: Annotated[
        Path | None, INPUT, Doc("Earlier report (eval.json, or ladder.json) to compare with.")
    ] = None
    by: Annotated[
        tuple[str, ...],
        Repeatable(),
        Doc("Metrics that --compare judges beside success; unset: reward_per_step."),
    ] = ()
    out: Annotated[
        Path | None, OUTPUT_FOLDER, Doc("Folder for the report; unset: a new test run in runs/.")
    ] = None
    video: Annotated[
        bool | None,
        Doc(
            "Show the first episodes in video.mp4 and the page; unset: if this machine can render."
        ),
    ] = None
    failures: Annotated[
        bool, Doc("Let the video show the first episodes that failed, of those side by side (512).")
    ] = False
    video_episodes: Annotated[int, Ge(1), Doc("How many episodes the video shows.")] = 4
    camera: Annotated[
        str | None,
        Doc("Camera of the video; unset: the first that stands in the scene; free: all in view."),
    ] = None
    runs: Annotated[RunsConfig, Doc("Where runs are kept.")] = field(default_factory=RunsConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        for text in self.gate:
            read_gate(text)
        if self.failures and self.video is False:
            raise DeftlyError("--failures says what the video shows: leave out --video False")
        if self.by and not self.compare:
            raise DeftlyError("--by says what --compare judges: add --compare REPORT")
        if self.has_ladder:
            self._require_one_way()

    @property
    def has_ladder(self) -> bool:
        """Whether a ladder is climbed."""
        return self.ladder or bool(self.rungs)

    def _require_one_way(self) -> None:
        """Raise DeftlyError for settings that a ladder has rungs for, or has no place for."""
        if self.stochastic or self.wider > 1:
            flag = "stochastic" if self.stochastic else "wider"
            raise DeftlyError(f"a ladder has a rung for --{flag}: --rungs {flag}")
        if self.video:
            raise DeftlyError("a ladder has no video: leave out --video, or --ladder")
        if self.gate:
            raise DeftlyError("a gate of a ladder is of one of its rungs: --gates FILE")


def main(argv: list[str]) -> int:
    """Run `deftly eval`. The exit status is 1 if a gate fails."""
    render.choose_gl()  # before anything imports MuJoCo
    words = source.policy_words(argv)
    task, args, found = source.prepare(EvalArgs, "eval", words)
    assert found is not None
    if args.out:
        report.require_place(args.out, task.name, args.compare)
    gates = read_gates(args.gates) if args.gates else {}
    rungs = ladder.choose(task.ladder, args.rungs) if args.has_ladder else ()
    if args.gates:
        known = [rung.name for rung in task.ladder]
        require_rungs(args.gates, gates, [rung.name for rung in rungs], known)
    same = with_setting(words, "policy", found.label)
    if args.seed:  # it may have been drawn
        same = with_setting(same, "seed", str(args.seed))
    command = shlex.join(["deftly", "eval", *same])
    if rungs:
        climbed = ladder.Ladder(task, found, args, rungs, gates, args.keys)
        return _climb(climbed, args, command)
    return _evaluate(task, args, found, command, (*args.gate, *gates.get("", ())))


def _evaluate(
    task: Task, args: EvalArgs, found: PolicySource, command: str, gates: Sequence[str]
) -> int:
    """One evaluation."""
    earlier = comparison.read_side(args.compare) if args.compare else None
    if earlier:
        comparison.require_metrics(args.by, comparison.means(earlier.report))
    result, values, recorder = _measure(task, found, args, gates)
    result["command"] = command
    for head, *rows in filter(None, (report.metrics_table(result), report.bins_table(result))):
        show(table(head, rows), "")
    folder = _written(task, args, result, values)  # a video takes long: what was measured is kept
    if earlier:
        side, lines = comparison.compare(earlier, comparison.read_side(folder), args.by)
        show(side, "\n".join(["", *lines, ""]))
    show("\n".join([*report.conclusion(result), f"report: {folder / 'report.html'}"]))
    video = _write_video(folder, recorder, values, task, args.failures)
    if video:
        if args.failures:
            result["video"] = report.FAILED
        report.write(folder, result, values, task, video)
    return 0 if all(gate["holds"] for gate in result["gates"]) else 1


def _written(task: Task, args: EvalArgs, result: Result, values: Metrics) -> Path:
    """The folder of the report. Where it cannot be written, the screen still has what was found."""
    folder = None
    try:
        folder = _folder(task, args)
        replaced = (folder / "eval.json").is_file()
        report.write(folder, result, values, task)
        if replaced:
            with suppress(OSError):
                (folder / VIDEO).unlink()  # of the episodes of then
    except WriteError as error:
        show("\n".join(report.conclusion(result)))
        if args.out or folder is None:
            raise
        workspace.discard(folder, "test", args.runs)
        raise WriteError(f"{error}; {workspace.ELSEWHERE}") from error
    return folder


def _write_video(
    folder: Path,
    recorder: render.Recorder | None,
    values: Metrics,
    task: Task,
    failures: bool,
) -> Path | None:
    """The video of what was watched, if anything was; with `failures`, of the episodes among it that failed."""
    watched = recorder and (not failures or recorder.keep_failed(values["success"]))
    if recorder and watched:
        path = folder / VIDEO
        render.write_video(path, recorder.frames(), task.contract().rate)
        return path
    if failures:
        print("no video of failures: none of the episodes that were watched failed")
    return None


def _measure(
    task: Task, found: PolicySource, args: EvalArgs, gates: Sequence[str]
) -> tuple[Result, Metrics, render.Recorder | None]:
    """The evaluation, and who took the pictures, if this machine can."""
    recorder = None
    if args.video is not False:
        recorder = render.Recorder(args.video_episodes, args.camera, failed=args.failures)
    try:
        watch = recorder and recorder.watch
        return *measure(task, found, args, watch, args.keys, gates), recorder
    except render.NoGLError as error:
        if args.video:
            raise
        print(f"no video: {error}")
        return *measure(task, found, args, keys=args.keys, gates=gates), None


def _folder(task: Task, args: EvalArgs) -> Path:
    folder = args.out or workspace.create(task.name, "test", args.runs)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _climb(climbed: ladder.Ladder, args: EvalArgs, command: str) -> int:
    """A ladder. What is measured is written rung by rung, so that nothing is lost of one that is stopped."""
    earlier = ladder.read(args.compare) if args.compare else None
    if earlier:
        ladder_report.require_comparable(earlier, [rung.name for rung in climbed.rungs], args.by)
    task = climbed.task
    folder = _folder(task, args)
    result: dict[str, Any] = {}
    for result in climbed.climb():
        result["command"] = command
        print("\n".join(_said(result["rungs"][-1])), flush=True)
        ladder_report.write(folder, result, task)
    head, *rows = ladder_report.conditions_table(result["rungs"], task)
    show("", table(head, rows), "")
    if earlier:
        side, lines = ladder_report.compare(earlier, result, args.by)
        show(side, "\n".join(["", *lines, ""]))
    lines = [*ladder_report.conclusion(result), f"report: {folder / ladder.PAGE}"]
    show("\n".join(lines))
    return 0 if ladder.passed(result) else 1


def _said(entry: Mapping[str, Any]) -> list[str]:
    """A line for each condition of a rung that was measured."""
    return [
        f"{ladder_report.place(entry, found)}: success {ladder_report.rate(found['success'])}"
        for found in entry["conditions"]
    ]
