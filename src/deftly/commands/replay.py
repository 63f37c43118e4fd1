"""`deftly replay`: what was commanded, again and open loop: in simulation, or served to a robot."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from deftly import render
from deftly.config import parse, split_task
from deftly.control import log
from deftly.data import replay
from deftly.data.replay import Frames, open_robot
from deftly.errors import DeftlyError
from deftly.twin.loop import Film, run_episode


@dataclass(frozen=True)
class ReplayArgs:
    """Replay a recording, FILE.npz, in simulation; or serve it to a robot, which 'deftly run' then drives."""

    episode: int = 0
    """Which episode of the recording."""
    png: Path | None = None
    """Plot of each joint: commanded, recorded, replayed."""
    video: Path | None = None
    """Write an mp4 of the replay to this file."""
    camera: str | None = None
    """Camera of the video; unset: the scene's first."""
    task: str | None = None
    """File of the recording's task, if that is none of Deftly's."""
    serve: str | None = None
    """Serve the commands at this endpoint instead, as tcp://127.0.0.1:5556."""
    loop: bool = False
    """When served, start again at the end; without it the last command is held."""
    keys: Path | None = None
    """The server's folder of keys, for an endpoint that other machines reach."""

    def __post_init__(self) -> None:
        if self.serve is None and (self.loop or self.keys):
            raise DeftlyError(f"--{'loop' if self.loop else 'keys'} is for a robot: give --serve ENDPOINT too")


def main(argv: list[str]) -> int:
    """Run `deftly replay`. The exit status is 1 if a recorded success is none when replayed."""
    name, flags = split_task(argv)
    args = parse(ReplayArgs, flags, prog="deftly replay FILE.npz")
    if name is None:
        raise DeftlyError("replay needs a recording: deftly replay FILE.npz; 'deftly record' makes one")
    path = Path(name)
    recording = log.read(path)
    frames = Frames(recording, args.episode, args.loop)
    if args.serve:
        return serve(frames, args, path)
    with contextlib.suppress(render.NoGLError):
        render.choose_gl()  # before anything imports MuJoCo
    robot, safety = open_robot(path, recording, args.task)
    film = Film(robot, 1, args.camera) if args.video else None
    each = film.watch if film else lambda: None
    state = recording.facts["state0"][args.episode]
    outcome = run_episode(robot, frames, safety, args.episode, limit=len(frames), state=state, each=each)
    print(*replay.text(robot.contract, replay.errors(frames, outcome)), sep="\n")
    recorded = bool(recording.facts["success"][args.episode])
    was, now = ("success" if s else "no success" for s in (recorded, outcome.success))
    print(f"recorded: {was}; replayed: {now}, {outcome.end} after {outcome.steps} of {len(frames)} steps")
    if args.png:
        replay.plot(args.png, frames, outcome)
    if film and args.video:
        render.write_video(args.video, film.frames(), robot.contract.rate)
    return int(recorded and not outcome.success)


def serve(frames: Frames, args: ReplayArgs, path: Path) -> int:
    """Answer robots with the frames until SIGTERM or SIGINT."""
    from deftly.serving.server import Server

    assert args.serve is not None
    server = Server(frames, args.serve, keys=args.keys)
    end = "again and again" if args.loop else "and holds the last"
    print(f"serving episode {args.episode} of {path} at {server.endpoint}: {len(frames)} commands, {end}", flush=True)
    server.run_until_signal()
    return 0
