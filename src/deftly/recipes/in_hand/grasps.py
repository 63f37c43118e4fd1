"""Look for poses in which a hand holds its object, from which training then starts."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from annotated_types import Ge, Lt
from torch import Tensor
from typing_extensions import Doc

from deftly.config import SEEDS, EnvConfig, Settings, SimConfig, TaskConfig
from deftly.console import Progress
from deftly.objects.grasp_cache import ARRAYS, SCHEMA
from deftly.recipes.in_hand.protocol import GraspTask

if TYPE_CHECKING:
    from deftly.env import Env

BATCHES = 4
"""Batches of poses tried for a size before it has to do with fewer than were asked for."""


@dataclass(frozen=True)
class GraspSettings(Settings):
    """How grasps are looked for."""

    num_envs: Annotated[int, Ge(1), Lt(10**6), Doc("Poses tried side by side.")] = 256
    num_sizes: Annotated[
        int, Ge(1), Lt(10**6), Doc("Sizes of the object, evenly over the task's range.")
    ] = 32
    per_size: Annotated[
        int, Ge(1), Lt(10**6), Doc("Grasps kept of each size, so that all sizes weigh the same.")
    ] = 64
    settle_s: Annotated[
        float,
        Ge(0.1),
        Lt(1e6),
        Doc("Time in which a pose settles under gravity and pushes before it is judged, s."),
    ] = 2.0
    watch_s: Annotated[
        float, Ge(0), Lt(1e6), Doc("Time over which it must then stay still, s.")
    ] = 0.5
    seed: Annotated[int, Ge(0), Lt(SEEDS), Doc("Decides every draw.")] = 1
    sim: Annotated[SimConfig, Doc("The physics engine.")] = field(default_factory=SimConfig)
    task: Annotated[TaskConfig, Doc("The task's own figures.")] = field(default_factory=TaskConfig)
    render: Annotated[bool, Doc("Write the pictures.")] = True


def collect(
    cls: Any, settings: GraspSettings
) -> tuple[dict[str, np.ndarray], dict[float, int], list[np.ndarray]]:
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
            table.add_row(
                edge, str(count), str(stable), f"{stable / count:.0%}", str(len(part["cube_half"]))
            )
            if console.is_terminal:  # below the table, which the terminal already shows
                left.done = i + 1
                table.caption = left.line(time.monotonic())
            else:
                left.advance()
    return (
        {name: np.concatenate([part[name] for part in parts]) for name in ARRAYS},
        tried,
        pictures,
    )


def _of_size(
    cls: Any, settings: GraspSettings, share: float, index: int, show: bool
) -> tuple[dict[str, np.ndarray], int, int, list[np.ndarray]]:
    """Grasps of one size, how many poses were tried and were stable, and a picture of one if asked."""
    from deftly.env import Env
    from deftly.render import NoGLError, Renderer

    task = cls(replace(settings.task, start="sample", size=(share, share), ready_s=(0.0, 0.0)))
    env = Env(
        task,
        EnvConfig(num_envs=settings.num_envs, noise=False),
        settings.sim,
        settings.seed,
        f"grasps/{index}",
    )
    env.auto_reset = False
    parts: list[dict[str, np.ndarray]] = []
    pictures: list[np.ndarray] = []
    count = kept = 0
    for _ in range(BATCHES):
        stable = _settle(env, task, settings)
        count += env.num_envs
        kept += int(stable.sum())
        parts.append(
            {name: value[stable].float().numpy() for name, value in task.grasp(env.state).items()}
        )
        if show and stable.any() and not pictures:
            try:
                with Renderer(env.model, size=(320, 240)) as renderer:
                    pictures.append(renderer.environment(env, int(stable.nonzero()[0])))
            except NoGLError as error:
                print(f"no pictures: {error}")
        if kept >= settings.per_size:
            break
        env.reset()
    merged = {
        name: np.concatenate([part[name] for part in parts])[: settings.per_size] for name in ARRAYS
    }
    return merged, count, kept, pictures


def _settle(env: Env, task: GraspTask, settings: GraspSettings) -> Tensor:
    """Let fresh poses settle; which of them were never lost, and stable in every step of the watch."""
    good, idle = (
        torch.ones(env.num_envs, dtype=torch.bool),
        torch.zeros(env.num_envs, env.contract.action_size),
    )
    settle, watch = (
        round(seconds * env.contract.rate) for seconds in (settings.settle_s, settings.watch_s)
    )
    for step in range(settle + watch):
        good &= ~env.step(idle).terminated
        if step >= settle - 1:
            good &= task.stable(env.state)
    return good


def write(
    path: Path, task: GraspTask, found: dict[str, np.ndarray], tried: dict[float, int], seed: int
) -> None:
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
    facts |= {
        "joint_names": np.array(contract.joint_names),
        "sizes": np.array([*tried]),
        "tried": [*tried.values()],
    }
    write_npz(path, facts)
