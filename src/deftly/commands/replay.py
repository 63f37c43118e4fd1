"""`deftly replay`: what was commanded, again and open loop: in simulation, or served to a robot."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Ge
from typing_extensions import Doc

from deftly import render
from deftly.config import KEYS, OUTPUT_FILE, Settings, Suffix, parse, split_word
from deftly.console import printable
from deftly.control import log
from deftly.data import replay
from deftly.data.replay import Frames, open_robot
from deftly.errors import DeftlyError
from deftly.twin.loop import Film, run_episode


@dataclass(frozen=True)
class ReplayArgs(Settings):
    """Replay a recording, FILE.npz, in simulation; or serve it to a robot, which 'deftly run' then drives."""

    episode: Annotated[int, Ge(0), Doc("Which episode of the recording.")] = 0
    png: Annotated[
        Path | None,
        Suffix(".png"),
        OUTPUT_FILE,
        Doc("Plot of each joint: commanded, recorded, replayed."),
    ] = None
    video: Annotated[
        Path | None, Suffix(".mp4"), OUTPUT_FILE, Doc("Write an mp4 of the replay to this file.")
    ] = None
    camera: Annotated[
        str | None,
        Doc("Camera of the video; unset: the first that stands in the scene; free: all in view."),
    ] = None
    task: Annotated[
        str | None, Doc("File of the recording's task, if that is none of Deftly's.")
    ] = None
    serve: Annotated[
        str | None, Doc("Serve the commands at this endpoint instead, as tcp://127.0.0.1:5556.")
    ] = None
    loop: Annotated[
        bool, Doc("When served, start again at the end; without it the last command is held.")
    ] = False
    keys: Annotated[
        Path | None,
        KEYS,
        Doc("The server's folder of keys, for an endpoint that other machines reach."),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.serve is None and (self.loop or self.keys):
            raise DeftlyError(
                f"--{'loop' if self.loop else 'keys'} is for a robot: give --serve ENDPOINT too"
            )
        if self.serve and (self.png or self.video):
            raise DeftlyError(
                f"--{'png' if self.png else 'video'} shows a replay in simulation: leave out --serve"
            )


def main(argv: list[str]) -> int:
    """Run `deftly replay`. The exit status is 1 if a recorded success is none when replayed."""
    name, flags = split_word(argv)
    args = parse(ReplayArgs, flags, prog="deftly replay FILE.npz")
    if name is None:
        raise DeftlyError(
            "replay needs a recording: deftly replay FILE.npz; 'deftly record' makes one"
        )
    path = Path(name)
    recording = log.read(path)
    frames = Frames(recording, args.episode, args.loop)
    if args.serve:
        return serve(frames, args, path)
    with contextlib.suppress(render.NoGLError):
        render.choose_gl()  # before anything imports MuJoCo
    frames.require_measured()
    robot, safety = open_robot(path, recording, args.task)
    film = Film(robot, 1, args.camera) if args.video else None
    each = film.watch if film else lambda: None
    state = recording.facts["state0"][args.episode]
    result = run_episode(
        robot, frames, safety, args.episode, limit=len(frames), state=state, each=each
    )
    print(*replay.text(robot.contract, replay.errors(frames, result)), sep="\n")
    recorded = bool(recording.facts["success"][args.episode])
    was, now = ("success" if s else "no success" for s in (recorded, result.success))
    print(
        f"recorded: {was}; replayed: {now}, {result.end} after {result.steps} of {len(frames)} steps"
    )
    if args.png:
        replay.plot(args.png, frames, result)
    if film and args.video:
        render.write_video(args.video, film.frames(), robot.contract.rate)
    return int(recorded and not result.success)


def serve(frames: Frames, args: ReplayArgs, path: Path) -> int:
    """Answer robots with the frames until SIGTERM or SIGINT."""
    from deftly.serving.server import Server

    assert args.serve is not None
    server = Server(frames, args.serve, keys=args.keys)
    end = "again and again" if args.loop else "and holds the last"
    print(
        f"serving episode {args.episode} of {printable(path)} at {server.endpoint}: {len(frames)} commands, {end}",
        flush=True,
    )
    server.run_until_signal()
    return 0
