"""What a policy wanted, again and open loop: in simulation, or served to a robot.

In simulation the episode starts from the recorded state, with the sensors and the latency that were recorded, and the
policy's targets pass the safety kernel again. Nothing then differs but what physics does: with the same MuJoCo, nothing
at all. The commands that the kernel made of them would not do: each would be a goal to come to rest at, and one
that limits accelerations would brake before every goal.

Two errors are measured for each joint. Tracking is the recorded position one control period after a command, less that
command: what servos and load make of it. Replay is the replayed position less the recorded one, tick by tick.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deftly.config import SimConfig, parse
from deftly.console import printable
from deftly.contract import JOINT_POS, Inputs, PolicyContract
from deftly.control.log import Log
from deftly.control.safety import SafetyConfig
from deftly.errors import DeftlyError
from deftly.files import atomic_write, parse_json
from deftly.policy.protocol import NO_INPUTS, Decision, Signals
from deftly.twin.loop import EpisodeResult

if TYPE_CHECKING:
    from deftly.twin.robot import SimRobot


LARGEST = 1e10
"""Largest number of a state of MuJoCo (mjMAXVAL): beyond it physics has broken."""


class Frames:
    """The targets of an episode, from the policy's first decision on: a `Policy` that knows only those.

    Where the policy decided nothing, the command stands in for its targets. After the episode its last command is held,
    unless it begins again (`loop`): its last targets may be far from where it came to.

    Raises DeftlyError if the recording has no such episode, no policy ever drove in it, or what it would give is beyond
    the joints' limits.
    """

    def __init__(self, recording: Log, episode: int, loop: bool = False):
        self.contract = recording.contract
        self.deterministic = True
        self._loop = loop
        self._next: dict[int, int] = {}
        rows = recording.rows
        episodes = sorted(set(rows["episode"].tolist()))
        if episode not in episodes:
            raise DeftlyError(
                f"the recording has episodes {episodes[:1]} to {episodes[-1:]}, not {episode}"
            )
        mine = np.flatnonzero(rows["episode"] == episode)
        self.positions = rows[f"signal/{JOINT_POS}"][mine]
        """Measured, (ticks, num_joints); also before the policy drove."""
        self.commands = rows["command"][mine]
        """Likewise."""
        driven = np.flatnonzero(rows["decided"][mine])
        if not len(driven) or not np.isfinite(self.commands[driven[0] :]).all():
            raise DeftlyError(f"no policy drove in episode {episode} of the recording")
        self.first = int(driven[0])
        """Tick of the policy's first decision."""
        is_given = np.isfinite(rows["targets"])
        targets = np.where(is_given, rows["targets"], rows["command"])
        self._frames = targets[mine][self.first :]
        actions = rows["action"][mine][self.first :]
        self._actions = np.nan_to_num(actions)
        self._require_within_limits(episode)

    def require_measured(self) -> None:
        """Raise DeftlyError unless every tick has a position and a command, as a recording of a simulation has."""
        for name, values in (("position", self.positions), ("command", self.commands)):
            odd = np.flatnonzero(~(np.abs(values) <= LARGEST))  # NaN too
            if len(odd):
                tick, column = divmod(int(odd[0]), values.shape[1])
                joint = self.contract.joint_names[column]
                where = f"tick {tick} of the recording's episode"
                if np.isnan(values[tick, column]):
                    raise DeftlyError(
                        f"{where} has no {name} of {joint}: it is no recording of a simulation (a log of 'deftly run' "
                        "begins before the robot is ready), or is damaged: serve it with --serve"
                    )
                raise DeftlyError(
                    f"{where} has the {name} {values[tick, column]:g} of {joint}: it is damaged"
                )

    def _require_within_limits(self, episode: int) -> None:
        """Raise DeftlyError, naming tick and joint, for a target that no joint may be given; see `Decision`."""
        given = np.concatenate((self._frames, self.commands[-1:]))  # the last command is held
        with np.errstate(
            over="ignore"
        ):  # they are given in float32, for which some may be too large
            beyond = self.contract.robot.beyond_limits(given.astype(np.float32))
        if beyond:
            tick = min(self.first + beyond[0], len(self.commands) - 1)
            raise DeftlyError(
                f"tick {tick} of episode {episode} of the recording: {beyond[1]}: it is damaged, record it again"
            )

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, i: int) -> Decision:
        if self._loop:
            i %= len(self)
        if i >= len(self):
            return Decision(self._actions[-1], self.commands[-1])
        return Decision(self._actions[i], self._frames[i])

    def reset(self, ids: Sequence[int] | None = None) -> None:
        """These robots go back to the first targets; None: all."""
        for robot in list(self._next) if ids is None else ids:
            self._next.pop(robot, None)

    def infer(
        self,
        signals: Signals,
        inputs: Inputs = NO_INPUTS,
        applied: np.ndarray | None = None,
        ids: Sequence[int] | None = None,
    ) -> Decision:
        """The next targets of each robot."""
        rows = range(len(signals[JOINT_POS])) if ids is None else ids
        frames = [self[self._next.get(robot, 0)] for robot in rows]
        for robot in rows:
            self._next[robot] = self._next.get(robot, 0) + 1
        return Decision(
            np.stack([frame.action for frame in frames]),
            np.stack([frame.targets for frame in frames]),
        )

    def forget(self, ids: Sequence[int]) -> None:
        """These robots are gone."""
        self.reset(ids)

    def close(self) -> None:
        """Nothing is held."""


def open_robot(path: Path, recording: Log, task_file: str | None) -> tuple[SimRobot, SafetyConfig]:
    """The simulated robot of a recording. Raises DeftlyError if it names another task, or was made by no simulation."""
    facts = recording.facts
    if missing := [
        name
        for name in ("task", "settings", "safety", "state0", "seed", "success")
        if name not in facts
    ]:
        raise DeftlyError(
            f"{path} has no '{missing[0]}': give a file of 'deftly record', or serve it with --serve"
        )
    _require_starts(path, recording)
    from deftly.evaluate.handover import load_task
    from deftly.twin.robot import SimRobot

    cls = load_task(task_file, str(facts["task"]), str(path))
    try:
        settings = parse_json(str(facts["settings"]), "the settings of a recording")
        safety = parse_json(str(facts["safety"]), "the bounds of a safety kernel")
        task = cls(_config(cls.Config, settings["task"]))
        sim = _config(SimConfig, settings["sim"])
        noise = bool(facts["noise"])
        latency = float(facts["latency_ms"])
        seed = int(facts["seed"])
        bounds = SafetyConfig(**safety)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, DeftlyError) as error:
        reason = printable(error, 200) or type(error).__name__
        raise DeftlyError(
            f"{path} was recorded under settings that {cls.name} no longer has: {reason}"
        ) from None
    task.contract().require_policy_of(recording.contract, str(path))
    return SimRobot(task, sim, seed, noise, latency), bounds


def _require_starts(path: Path, recording: Log) -> None:
    """Raise DeftlyError unless each episode can start as it did, and says whether it succeeded."""
    episodes, facts = sorted(set(recording.rows["episode"].tolist())), recording.facts
    state0, success, latency, noise, seed = (
        np.asarray(facts.get(name)) for name in ("state0", "success", "latency_ms", "noise", "seed")
    )
    count = len(episodes)
    whole = (
        episodes == [*range(count)]
        and state0.dtype.kind == "f"
        and state0.ndim == 2
        and bool((np.abs(state0) <= LARGEST).all())
    )
    for name, fits, what in (
        (
            "state0",
            whole and state0.shape[0] == count,
            f"numbers up to {LARGEST:g}, a row for each of {count} episodes",
        ),
        (
            "success",
            success.shape == (count,) and success.dtype.kind == "b",
            f"{count} truth values",
        ),
        (
            "latency_ms",
            latency.shape == () and latency.dtype.kind in "fiu" and 0 <= latency < 10_000,
            "0 to 10000",
        ),
        ("noise", noise.shape == () and noise.dtype.kind == "b", "a truth value"),
        (
            "seed",
            seed.shape == () and seed.dtype.kind in "iu" and seed >= 0,
            "a whole number from 0",
        ),
    ):
        if not fits:
            raise DeftlyError(
                f"{path}: '{name}' must be {what}: the recording is damaged, or not of 'deftly record'"
            )


def _config(cls: type[Any], tree: dict[str, Any]) -> Any:
    return parse(cls, [], prog="deftly replay", filed=tree)


def errors(frames: Frames, result: EpisodeResult) -> dict[str, np.ndarray]:
    """`tracking` and `replay`, (ticks, num_joints): see the module."""
    replayed = result.rows[f"signal/{JOINT_POS}"]
    both = min(len(replayed), len(frames.positions))
    return {
        "tracking": frames.positions[1:] - frames.commands[:-1],
        "replay": replayed[:both] - frames.positions[:both],
    }


def text(contract: PolicyContract, measured: dict[str, np.ndarray]) -> list[str]:
    """The table that is printed."""
    lines = [f"{'joint':<16} {'tracking rms':>13} {'max':>10} {'replay rms':>13} {'max':>10}"]
    for i, joint in enumerate(contract.joints):
        numbers = []
        for name, width in (("tracking", 13), ("replay", 13)):
            error = measured[name][:, i]
            numbers += [
                f"{np.sqrt(np.mean(error**2)):>{width}.3g}",
                f"{np.abs(error).max():>10.3g}",
            ]
        lines.append(f"{joint.name:<16} {' '.join(numbers)} {joint.units}")
    return lines


def plot(path: Path, frames: Frames, result: EpisodeResult) -> None:
    """Write a PNG with commanded, recorded and replayed position of each joint."""
    from matplotlib.figure import Figure

    joints = frames.contract.joints
    period = 1.0 / frames.contract.rate
    figure = Figure(figsize=(8, 1.7 * len(joints)), layout="constrained")
    replayed = result.rows[f"signal/{JOINT_POS}"]
    for i, (joint, axes) in enumerate(
        zip(joints, np.atleast_1d(figure.subplots(len(joints), sharex=True)))
    ):
        lines = [("command", frames.commands, "0.6"), ("recorded", frames.positions, "C0")]
        for label, values, colour in [*lines, ("replayed", replayed, "C1")]:
            style = "--" if label == "replayed" else "-"
            axes.plot(
                period * np.arange(len(values)), values[:, i], style, color=colour, label=label
            )
        axes.set_ylabel(f"{joint.name}, {joint.units}")
    figure.axes[0].legend(loc="best", ncols=3)
    figure.axes[-1].set_xlabel("s")
    with atomic_write(path) as scratch:
        figure.savefig(scratch, format="png", dpi=110)
