"""`deftly grasps TASK`: look for poses in which a hand holds its object, from which training then starts."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from deftly.config import EnvConfig, SimConfig, TaskConfig, parse, split_task, with_task
from deftly.contract import PolicyContract
from deftly.errors import DeftlyError
from deftly.objects.grasp_cache import ARRAYS, SCHEMA

if TYPE_CHECKING:
    from deftly.env import Env, State

BATCHES = 4
"""Batches of poses tried for a size before it has to do with fewer than were asked for."""


class GraspTask(Protocol):
    """What a task offers to have its grasps looked for."""

    name: str
    cfg: Any  # with `start` and `size`

    def contract(self) -> PolicyContract:
        """The hand's joints."""
        ...

    def stable(self, s: State) -> Tensor:
        """Which environments hold their object still and well, `(num_envs,)` bool."""
        ...

    def grasp(self, s: State) -> dict[str, Tensor]:
        """`cube_half` (num_envs,), `joint_pos` (num_envs, n) and `cube_pose` (num_envs, 7) now."""
        ...


@dataclass(frozen=True)
class GraspArgs:
    """Look for stable grasps: `deftly grasps TASK --out FILE`."""

    out: Path
    """The .npz to write; beside it, pictures of some grasps as .png."""
    num_envs: int = 256
    """Poses tried side by side."""
    num_sizes: int = 32
    """Sizes of the object, evenly over the task's range."""
    per_size: int = 64
    """Grasps kept of each size, so that all sizes weigh the same."""
    settle_s: float = 2.0
    """Time in which a pose settles under gravity and pushes before it is judged, s."""
    watch_s: float = 0.5
    """Time over which it must then stay still, s."""
    seed: int = 1
    """Decides every draw."""
    sim: SimConfig = field(default_factory=SimConfig)
    """The physics engine."""
    task: TaskConfig = field(default_factory=TaskConfig)
    """The task's own figures."""
    render: bool = True
    """Write the pictures."""

    def __post_init__(self) -> None:
        for name, least in (("num_envs", 1), ("num_sizes", 1), ("per_size", 1), ("settle_s", 0.1), ("watch_s", 0.0)):
            if not least <= getattr(self, name) < 1e6:
                raise DeftlyError(f"{name.replace('_', '-')} is {getattr(self, name)}, but it must be {least} or more")
        if self.out.suffix != ".npz":
            raise DeftlyError(f"--out is {self.out}, but a grasp cache is an .npz file: {self.out.with_suffix('.npz')}")


def main(argv: list[str]) -> int:
    """Run `deftly grasps`. The exit status is 1 if a size has no grasp."""
    from deftly import render

    render.choose_gl()
    from deftly.tasks import load

    name, flags = split_task(argv)
    if name is None:
        parse(GraspArgs, flags, prog="deftly grasps TASK")
        raise DeftlyError("grasps of which task? deftly grasps TASK --out FILE; 'deftly tasks' lists them")
    cls: Any = load(name)
    if not hasattr(cls, "grasp"):
        raise DeftlyError(f"{name} starts without a grasp cache: it has no `stable` and `grasp` to look for grasps")
    args = parse(with_task(GraspArgs, cls.Config), flags, prog=f"deftly grasps {name}")
    found, tried, pictures = collect(cls, args)
    if not len(found["cube_half"]):
        raise DeftlyError("no pose of any size was stable: nothing was written")
    write(args.out, cls(args.task), found, tried, args.seed)
    if pictures:
        grid = np.concatenate([np.concatenate(pictures[i : i + 4], 1) for i in range(0, len(pictures) // 4 * 4, 4)])
        render.write_png(args.out.with_suffix(".png"), grid)
    kept = len(found["cube_half"])
    print(f"wrote {args.out}: {kept} grasps, {args.out.stat().st_size / 1024:.0f} kB")
    return int(any(not (found["cube_half"] == np.float32(half)).any() for half in tried))


def collect(cls: Any, args: GraspArgs) -> tuple[dict[str, np.ndarray], dict[float, int], list[np.ndarray]]:
    """Grasps of all sizes by name, how many poses of each half edge (m) were tried, and pictures of eight."""
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table

    shares = np.linspace(*args.task.size, args.num_sizes)  # type: ignore[attr-defined]
    parts: list[dict[str, np.ndarray]] = []
    tried: dict[float, int] = {}
    shown = {round(i) for i in np.linspace(0, len(shares) - 1, 8)} if args.render else set()
    pictures: list[np.ndarray] = []
    table = Table("edge mm", "tried", "stable", "rate", "kept", box=None)
    with Live(table, console=Console(), refresh_per_second=2):
        for i, share in enumerate(shares):
            part, count, stable, picture = _of_size(cls, args, float(share), i, i in shown)
            parts.append(part)
            half = float(part["cube_half"][0]) if len(part["cube_half"]) else float(share)
            tried[half] = count
            pictures += picture
            edge = f"{2e3 * half:.1f}" if len(part["cube_half"]) else f"x {share:.3f}"
            table.add_row(edge, str(count), str(stable), f"{stable / count:.0%}", str(len(part["cube_half"])))
    return {name: np.concatenate([part[name] for part in parts]) for name in ARRAYS}, tried, pictures


def _of_size(
    cls: Any, args: GraspArgs, share: float, index: int, show: bool
) -> tuple[dict[str, np.ndarray], int, int, list[np.ndarray]]:
    """Grasps of one size, how many poses were tried and were stable, and a picture of one if asked."""
    from deftly.env import Env
    from deftly.render import NoGLError, Renderer

    task = cls(replace(args.task, start="sample", size=(share, share), ready_s=(0.0, 0.0)))
    env = Env(task, EnvConfig(num_envs=args.num_envs, noise=False), args.sim, args.seed, f"grasps/{index}")
    env.auto_reset = False
    parts: list[dict[str, np.ndarray]] = []
    pictures: list[np.ndarray] = []
    count = kept = 0
    for _ in range(BATCHES):
        stable = _settle(env, task, args)
        count += env.num_envs
        kept += int(stable.sum())
        parts.append({name: value[stable].float().numpy() for name, value in task.grasp(env.state).items()})
        if show and stable.any() and not pictures:
            try:
                with Renderer(env.model, size=(320, 240)) as renderer:
                    pictures.append(renderer.environment(env, int(stable.nonzero()[0])))
            except NoGLError as error:
                print(f"no pictures: {error}")
        if kept >= args.per_size:
            break
        env.reset()
    merged = {name: np.concatenate([part[name] for part in parts])[: args.per_size] for name in ARRAYS}
    return merged, count, kept, pictures


def _settle(env: Env, task: GraspTask, args: GraspArgs) -> Tensor:
    """Let fresh poses settle; which of them were never lost, and stable in every step of the watch."""
    good, idle = torch.ones(env.num_envs, dtype=torch.bool), torch.zeros(env.num_envs, env.contract.action_size)
    settle, watch = (round(seconds * env.contract.rate) for seconds in (args.settle_s, args.watch_s))
    for step in range(settle + watch):
        good &= ~env.step(idle).terminated
        if step >= settle - 1:
            good &= task.stable(env.state)
    return good


def write(path: Path, task: GraspTask, found: dict[str, np.ndarray], tried: dict[float, int], seed: int) -> None:
    """Write a cache whole or not at all."""
    from deftly.files import whole

    contract = task.contract()
    facts: dict[str, Any] = {
        "schema": SCHEMA,
        "task": task.name,
        "hand": contract.robot.name,
        "contract": contract.hash,
        "seed": seed,
        **found,
    }
    facts |= {"joint_names": np.array(contract.joint_names), "sizes": np.array([*tried]), "tried": [*tried.values()]}
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as scratch, scratch.open("wb") as file:
        np.savez_compressed(file, **facts)
