"""`deftly eval`: measure a policy on held out episodes, with confidence intervals, gates and a report."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from annotated_types import Ge
from typing_extensions import Doc

from deftly import render, workspace
from deftly.config import INPUT, OUTPUT_FOLDER, Repeatable, RunsConfig, with_setting
from deftly.console import show, table
from deftly.evaluate import report, source
from deftly.evaluate.evaluate import EvalSettings, measure, read_gate
from deftly.evaluate.source import PolicyArgs


@dataclass(frozen=True)
class EvalArgs(PolicyArgs, EvalSettings):
    """Measure a policy on episodes that no training has seen."""

    gate: Annotated[
        tuple[str, ...],
        Repeatable(),
        Doc("Conditions such as 'success>=0.9' 'steps<80'; the exit status is 1 unless all hold."),
    ] = ()
    compare: Annotated[Path | None, INPUT, Doc("Earlier report (eval.json) to compare with.")] = (
        None
    )
    out: Annotated[
        Path | None, OUTPUT_FOLDER, Doc("Folder for the report; unset: a new test run in runs/.")
    ] = None
    video: Annotated[
        bool | None,
        Doc(
            "Show the first episodes in video.mp4 and the page; unset: if this machine can render."
        ),
    ] = None
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


def main(argv: list[str]) -> int:
    """Run `deftly eval`. The exit status is 1 if a gate fails."""
    render.choose_gl()  # before anything imports MuJoCo
    words = source.policy_words(argv)
    task, args, found = source.prepare(EvalArgs, "eval", words)
    assert found is not None
    earlier = report.read_report(args.compare) if args.compare else None
    recorder = None if args.video is False else render.Recorder(args.video_episodes, args.camera)
    try:
        watch = recorder and recorder.watch
        result, values = measure(task, found, args, watch, args.keys, args.gate)
    except render.NoGLError as error:
        if args.video:
            raise
        print(f"no video: {error}")
        recorder = None
        result, values = measure(task, found, args, keys=args.keys, gates=args.gate)
    same = with_setting(words, "policy", found.label)
    if args.seed:  # it may have been drawn
        same = with_setting(same, "seed", str(args.seed))
    result["command"] = shlex.join(["deftly", "eval", *same])
    folder = args.out or workspace.create(task.name, "test", args.runs)
    folder.mkdir(parents=True, exist_ok=True)
    video = None
    if recorder:
        video = folder / "video.mp4"
        render.write_video(video, recorder.frames(), task.contract().rate)
    report.write(folder, result, values, task, video)
    for head, *rows in filter(None, (report.metrics_table(result), report.bins_table(result))):
        show(table(head, rows), "")
    if earlier:
        side, lines = report.compare(earlier, result)
        show(side, "\n".join(["", *lines, ""]))
    show("\n".join([*report.conclusion(result), f"report: {folder / 'report.html'}"]))
    return 0 if all(gate["holds"] for gate in result["gates"]) else 1
