"""Look for poses in which a hand holds its object, from which training then starts."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from deftly.config import EnvConfig, SimConfig, TaskConfig
from deftly.console import Progress
from deftly.errors import DeftlyError
from deftly.objects.grasp_cache import ARRAYS, SCHEMA
from deftly.recipes.in_hand.protocol import GraspTask

if TYPE_CHECKING:
    from deftly.env import Env

BATCHES = 4
"""Batches of poses tried for a size before it has to do with fewer than were asked for."""


@dataclass(frozen=True)
class GraspSettings:
    """How grasps are looked for."""

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


def collect(cls: Any, settings: GraspSettings) -> tuple[dict[str, np.ndarray], dict[float, int], list[np.ndarray]]:
    """Grasps of all sizes by name, how many poses of each half edge (m) were tried, and pictures of eight."""
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table

    shares = np.linspace(*settings.task.size, settings.num_sizes)  # type: ignore[attr-defined]
    parts: list[dict[str, np.ndarray]] = []
    tried: dict[float, int] = {}
    shown = {round(i) for i in np.linspace(0, len(shares) - 1, 8)} if settings.render else set()
    pictures: list[np.ndarray] = []
    table = Table("edge mm", "tried", "stable", "rate", "kept", box=None)
    console, left = Console(), Progress(len(shares), "looking for grasps")
    with Live(table, console=console, refresh_per_second=2), left:
        for i, share in enumerate(shares):
            part, count, stable, picture = _of_size(cls, settings, float(share), i, i in shown)
            parts.append(part)
            half = float(part["cube_half"][0]) if len(part["cube_half"]) else float(share)
            tried[half] = count
            pictures += picture
            edge = f"{2e3 * half:.1f}" if len(part["cube_half"]) else f"x {share:.3f}"
            table.add_row(edge, str(count), str(stable), f"{stable / count:.0%}", str(len(part["cube_half"])))
            if console.is_terminal:  # below the table, which the terminal already shows
                left.done = i + 1
                table.caption = left.line(time.monotonic())
            else:
                left.advance()
    return {name: np.concatenate([part[name] for part in parts]) for name in ARRAYS}, tried, pictures


def _of_size(
    cls: Any, settings: GraspSettings, share: float, index: int, show: bool
) -> tuple[dict[str, np.ndarray], int, int, list[np.ndarray]]:
    """Grasps of one size, how many poses were tried and were stable, and a picture of one if asked."""
    from deftly.env import Env
    from deftly.render import NoGLError, Renderer

    task = cls(replace(settings.task, start="sample", size=(share, share), ready_s=(0.0, 0.0)))
    env = Env(task, EnvConfig(num_envs=settings.num_envs, noise=False), settings.sim, settings.seed, f"grasps/{index}")
    env.auto_reset = False
    parts: list[dict[str, np.ndarray]] = []
    pictures: list[np.ndarray] = []
    count = kept = 0
    for _ in range(BATCHES):
        stable = _settle(env, task, settings)
        count += env.num_envs
        kept += int(stable.sum())
        parts.append({name: value[stable].float().numpy() for name, value in task.grasp(env.state).items()})
        if show and stable.any() and not pictures:
            try:
                with Renderer(env.model, size=(320, 240)) as renderer:
                    pictures.append(renderer.environment(env, int(stable.nonzero()[0])))
            except NoGLError as error:
                print(f"no pictures: {error}")
        if kept >= settings.per_size:
            break
        env.reset()
    merged = {name: np.concatenate([part[name] for part in parts])[: settings.per_size] for name in ARRAYS}
    return merged, count, kept, pictures


def _settle(env: Env, task: GraspTask, settings: GraspSettings) -> Tensor:
    """Let fresh poses settle; which of them were never lost, and stable in every step of the watch."""
    good, idle = torch.ones(env.num_envs, dtype=torch.bool), torch.zeros(env.num_envs, env.contract.action_size)
    settle, watch = (round(seconds * env.contract.rate) for seconds in (settings.settle_s, settings.watch_s))
    for step in range(settle + watch):
        good &= ~env.step(idle).terminated
        if step >= settle - 1:
            good &= task.stable(env.state)
    return good


def write(path: Path, task: GraspTask, found: dict[str, np.ndarray], tried: dict[float, int], seed: int) -> None:
    """Write a cache atomically."""
    from deftly.files import write_npz

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
    write_npz(path, facts)
