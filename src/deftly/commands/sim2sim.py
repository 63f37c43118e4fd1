"""`deftly sim2sim`: evaluate what was handed over on a simulated robot, before it meets a real one."""

from __future__ import annotations

import contextlib
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Ge
from typing_extensions import Doc

from deftly import render
from deftly.config import INPUT, OUTPUT_FILE, OUTPUT_FOLDER, Repeatable, Suffix
from deftly.console import show
from deftly.control.operator import OPERATOR, is_live, listening, require_spec
from deftly.errors import DeftlyError
from deftly.evaluate import comparison, report
from deftly.evaluate.gates import read_gate
from deftly.evaluate.source import policy_words, prepare
from deftly.twin import sim2sim
from deftly.twin.loop import Film, LoopArgs


@dataclass(frozen=True)
class Sim2SimArgs(LoopArgs):
    """Drive a simulated robot as a real one: policy, safety kernel and driver, in a simulation of its own."""

    gate: Annotated[
        tuple[str, ...],
        Repeatable(),
        Doc(
            "Conditions such as 'success>=0.95' 'faults<=0' 'agrees>=1'; the exit status is 1 unless all hold."
        ),
    ] = ()
    fault: Annotated[
        str,
        Doc(
            "Inject a fault, NAME[@seconds after the start], such as nan@0.5; random: another one in each episode."
        ),
    ] = ""
    operator: Annotated[
        str | None, Doc(f"{OPERATOR} Unset: the task, as in training. A person needs --render.")
    ] = None
    compare: Annotated[
        Path | None, INPUT, Doc("Earlier report (eval.json or sim2sim.json) to compare with.")
    ] = None
    out: Annotated[
        Path | None, OUTPUT_FOLDER, Doc("Folder for the report: sim2sim.json and its page.")
    ] = None
    video: Annotated[
        Path | None,
        Suffix(".mp4"),
        OUTPUT_FILE,
        Doc("Write an mp4 of the first episodes to this file."),
    ] = None
    video_episodes: Annotated[int, Ge(1), Doc("How many episodes the video shows.")] = 3
    render: Annotated[bool, Doc("Watch in a window, in real time.")] = False
    camera: Annotated[
        str | None,
        Doc("Camera of the video and the window; unset: the first that stands in the scene."),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for text in self.gate:
            read_gate(text)
        if self.operator:
            require_spec(self.operator)
            if is_live(self.operator) and not self.render:
                raise DeftlyError(
                    f"--operator {self.operator} needs somebody who sees the robot: add --render, or give FILE.csv"
                )


def main(argv: list[str]) -> int:
    """Run `deftly sim2sim`. The exit status is 1 if a gate fails, a command was beyond a limit or a fault missed."""
    with contextlib.suppress(render.NoGLError):
        render.choose_gl()  # before anything imports MuJoCo
    words = policy_words(argv)
    task, args, source = prepare(Sim2SimArgs, "sim2sim", words, "bundle")
    assert source is not None
    earlier = comparison.read_side(args.compare) if args.compare else None
    if args.out:
        report.require_place(args.out, task.name, args.compare)
    from deftly.twin.robot import SimRobot

    if args.video and not args.video.parent.is_dir():
        raise DeftlyError(
            f"no folder '{args.video.parent}' for the video: make it, or choose another --video FILE"
        )
    robot = SimRobot(task, args.sim, args.seed, args.noise, args.latency_ms)
    film = Film(robot, args.video_episodes, args.camera) if args.video else None
    hooks = [film.watch] if film else []
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        if args.render:
            hooks.append(stack.enter_context(sim2sim.window(robot, args.camera)))
        operator = None
        if args.operator:
            operator = stack.enter_context(listening(args.operator, robot.contract))
        result, values = sim2sim.run_sim2sim(
            robot, source, args, gates=args.gate, hooks=hooks, fault=args.fault, operator=operator
        )
    result["command"] = shlex.join(["deftly", "sim2sim", *words])
    file = report.write(args.out, result, values, task) if args.out else None
    if earlier:
        side, lines = comparison.compare(earlier, comparison.Side(result, values))
        show(side, "\n".join(["", *lines, ""]))
    show("\n".join(sim2sim.text(result)))
    never_happened = args.fault and not result["twin"].get("injected")
    if never_happened:
        show(
            f"fault {args.fault}: it never happened, every episode ended before: name an earlier time"
        )
    if film:
        assert args.video is not None
        render.write_video(args.video, film.frames(), robot.contract.rate)
        show(f"video: {args.video}")
    if file:
        show(f"report: {file}")
    sys.stdout.flush()
    unsafe = result["twin"]["violation"] or result["twin"].get("missed")
    fine = all(gate["holds"] for gate in result["gates"]) and not unsafe and not never_happened
    return 0 if fine else 1
