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
from deftly.config import Repeatable
from deftly.errors import DeftlyError
from deftly.evaluate.evaluate import read_gate
from deftly.evaluate.source import prepare
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
    out: Annotated[Path | None, Doc("Folder in which to write sim2sim.json.")] = None
    video: Annotated[Path | None, Doc("Write an mp4 of the first episodes to this file.")] = None
    video_episodes: Annotated[int, Ge(1), Doc("How many episodes the video shows.")] = 3
    render: Annotated[bool, Doc("Watch in a window, in real time.")] = False
    camera: Annotated[
        str | None, Doc("Camera of the video and the window; unset: the scene's first.")
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for text in self.gate:
            read_gate(text)


def main(argv: list[str]) -> int:
    """Run `deftly sim2sim`. The exit status is 1 if a gate fails, or a command was beyond a limit."""
    with contextlib.suppress(render.NoGLError):
        render.choose_gl()  # before anything imports MuJoCo
    task, args, origin = prepare(Sim2SimArgs, "sim2sim", argv, "bundle")
    assert origin is not None
    _ = origin.report  # one that is no report is refused before any episode
    from deftly.twin.robot import SimRobot

    if args.video and not args.video.parent.is_dir():
        raise DeftlyError(
            f"no folder '{args.video.parent}' for the video: make it, or choose another --video FILE"
        )
    robot = SimRobot(task, args.sim, args.seed, args.noise, args.latency_ms)
    sim2sim.require_metrics(args.gate, robot)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
    film = Film(robot, args.video_episodes, args.camera) if args.video else None
    hooks = [film.watch] if film else []
    with contextlib.ExitStack() as stack:
        if args.render:
            hooks.append(stack.enter_context(sim2sim.window(robot, args.camera)))
        policy = origin.open(robot.contract, timeout=1e-3 * args.timeout_ms, keys=args.keys)
        stack.callback(policy.close)
        outcomes = sim2sim.measure(robot, policy, args, hooks)
    result = sim2sim.summarize(task, args, origin, outcomes)
    result |= {"gates": [], "command": shlex.join(["deftly", "sim2sim", *argv])}
    sim2sim.save(
        args.out, result
    )  # what was measured is kept, whatever becomes of the gates and the video
    result["gates"] = sim2sim.judge(args.gate, result)
    sim2sim.save(args.out, result)
    print(*sim2sim.text(result), sep="\n")
    if film:
        assert args.video is not None
        render.write_video(args.video, film.frames(), robot.contract.rate)
        print(f"video: {args.video}")
    if args.out:
        print(f"report: {args.out / 'sim2sim.json'}")
    sys.stdout.flush()
    return 0 if all(gate["holds"] for gate in result["gates"]) and not result["violation"] else 1
