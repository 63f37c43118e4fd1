"""`deftly eval`: measure a policy on held out episodes, with confidence intervals, gates and a report."""

from __future__ import annotations

import csv
import io
import json
import shlex
from dataclasses import dataclass, field
from pathlib import Path

from deftly import render, workspace
from deftly.config import RunsConfig, gather
from deftly.console import show, table
from deftly.errors import DeftlyError
from deftly.evaluate import report, source
from deftly.evaluate.evaluate import EvalSettings, check_gate, measure, read_gate
from deftly.files import write_text


@dataclass(frozen=True)
class EvalArgs(EvalSettings):
    """Measure a policy on episodes that no training has seen."""

    policy: str | None = None
    """Policy: latest, a run, a checkpoint or bundle folder, shipped, tcp://HOST:PORT; unset: latest, else shipped."""
    keys: Path | None = None  # The robot's folder of keys, for a policy at tcp://HOST:PORT that has them.
    settings_from: str | None = None  # With tcp://: the run or bundle whose settings of task and physics are used.
    gate: tuple[str, ...] = ()  # Conditions such as 'success>=0.9' 'steps<80'; the exit status is 1 unless all hold.
    compare: Path | None = None  # Earlier report (eval.json) to compare with.
    out: Path | None = None  # Folder for the report; unset: a new test run in runs/.
    video: bool | None = None  # Show the first episodes in video.mp4 and the page; unset: if this machine can render.
    video_episodes: int = 4  # How many episodes the video shows.
    camera: str | None = None  # Camera of the video; unset: the scene's first.
    runs: RunsConfig = field(default_factory=RunsConfig)  # Where runs are kept.

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.video_episodes < 1:
            raise DeftlyError(f"video-episodes is {self.video_episodes}, but it must be 1 or more")
        for text in self.gate:
            read_gate(text)


def main(argv: list[str]) -> int:
    """Run `deftly eval`. The exit status is 1 if a gate fails."""
    render.choose_gl()  # before anything imports MuJoCo
    words = source.policy_words(argv)
    task, args, found = source.prepare(EvalArgs, "eval", gather(words))
    assert found is not None
    earlier = report.read_report(args.compare) if args.compare else None
    recorder = None if args.video is False else render.Recorder(args.video_episodes, args.camera)
    try:
        result, values = measure(task, found, args, recorder and recorder.watch, args.keys)
    except render.NoGLError as error:
        if args.video:
            raise
        print(f"no video: {error}")
        recorder = None
        result, values = measure(task, found, args, keys=args.keys)
    result["gates"] = [check_gate(text, result) for text in args.gate]
    result["command"] = shlex.join(["deftly", "eval", *gather(words, "policy", found.label)])
    folder = args.out or workspace.create(task.name, "test", args.runs)
    folder.mkdir(parents=True, exist_ok=True)
    if recorder:
        render.write_video(folder / "video.mp4", recorder.frames(), task.contract().rate)
    file = io.StringIO()
    rows = zip(range(len(values["steps"])), *([report.number(x, 6) for x in column] for column in values.values()))
    csv.writer(file, lineterminator="\n").writerows([("episode", *values), *rows])
    texts = {"eval.json": json.dumps(result, indent=2, allow_nan=False) + "\n", "episodes.csv": file.getvalue()}
    texts["report.html"] = report.html(result, values, folder / "video.mp4" if recorder else None, task)
    for name, text in texts.items():
        write_text(folder / name, text)
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
