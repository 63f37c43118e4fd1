"""Search for grasps: poses in which a hand holds its object, from which training then starts."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

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
IMAGES = 8
"""Sizes of which an image is taken."""


@dataclass(frozen=True)
class GraspSettings(Settings):
    """Settings of the search for grasps."""

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
    task: Annotated[TaskConfig, Doc("The task's own settings.")] = field(default_factory=TaskConfig)
    render: Annotated[bool, Doc("Write images of some grasps.")] = True


class SizeGrasps(NamedTuple):
    """Grasps of one size of the object."""

    arrays: dict[str, np.ndarray]
    """By name, as `GraspTask.grasp` gives them, (kept, ...) each."""
    tried: int
    stable: int
    images: list[np.ndarray]
    """One, (height, width, 3) uint8, or none."""

    @property
    def kept(self) -> int:
        """How many grasps there are."""
        return len(self.arrays["cube_half"])

    @property
    def half(self) -> float:
        """Half the object's edge, m."""
        return float(self.arrays["cube_half"][0])


def collect(
    cls: Any, settings: GraspSettings
) -> tuple[dict[str, np.ndarray], dict[float, int], list[np.ndarray]]:
    """Grasps of all sizes by name, how many poses of each half edge (m) were tried, and images of eight."""
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table

    scales = np.linspace(*settings.task.size, settings.num_sizes)  # type: ignore[attr-defined]
    shown = _evenly(len(scales), IMAGES) if settings.render else set()
    found: list[SizeGrasps] = []
    tried: dict[float, int] = {}
    table = Table("edge mm", "tried", "stable", "rate", "kept", box=None)
    console = Console()
    progress = Progress(len(scales), "searching for grasps")
    with Live(table, console=console, refresh_per_second=2), progress:
        for i, scale in enumerate(scales):
            grasps = _of_size(cls, settings, float(scale), i, i in shown)
            found.append(grasps)
            tried[grasps.half if grasps.kept else float(scale)] = grasps.tried
            table.add_row(*_cells(grasps, scale))
            if console.is_terminal:  # below the table, which the terminal already shows
                progress.done = i + 1
                table.caption = progress.line(time.monotonic())
            else:
                progress.advance()
    arrays = _concatenate([grasps.arrays for grasps in found])
    images = [image for grasps in found for image in grasps.images]
    return arrays, tried, images


def _evenly(size: int, count: int) -> set[int]:
    """Indices of `count` of `size` elements, evenly spaced."""
    return {round(i) for i in np.linspace(0, size - 1, count)}


def _cells(grasps: SizeGrasps, scale: float) -> tuple[str, ...]:
    """A row of the table."""
    edge = f"{2e3 * grasps.half:.1f}" if grasps.kept else f"x {scale:.3f}"
    rate = grasps.stable / grasps.tried
    return edge, str(grasps.tried), str(grasps.stable), f"{rate:.0%}", str(grasps.kept)


def _concatenate(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in ARRAYS}


def _of_size(cls: Any, settings: GraspSettings, scale: float, index: int, show: bool) -> SizeGrasps:
    """Grasps of one size, with an image of one if asked."""
    from deftly.env import Env

    size = (scale, scale)
    task_config = replace(settings.task, start="sample", size=size, ready_s=(0.0, 0.0))
    task = cls(task_config)
    env_config = EnvConfig(num_envs=settings.num_envs, noise=False)
    env = Env(task, env_config, settings.sim, settings.seed, f"grasps/{index}")
    env.auto_reset = False
    parts: list[dict[str, np.ndarray]] = []
    images: list[np.ndarray] = []
    tried = stable = 0
    for _ in range(BATCHES):
        good = _settle(env, task, settings)
        tried += env.num_envs
        stable += int(good.sum())
        parts.append(_arrays(task.grasp(env.state), good))
        if show and good.any() and not images:
            images = _image(env, int(good.nonzero()[0]))
        if stable >= settings.per_size:
            break
        env.reset()
    arrays = _concatenate(parts)
    kept = {name: values[: settings.per_size] for name, values in arrays.items()}
    return SizeGrasps(kept, tried, stable, images)


def _arrays(grasps: dict[str, Tensor], good: Tensor) -> dict[str, np.ndarray]:
    """The grasps of which `good` (num_envs,) holds."""
    return {name: value[good].float().numpy() for name, value in grasps.items()}


def _image(env: Env, index: int) -> list[np.ndarray]:
    """An image of an environment, (240, 320, 3) uint8; none without OpenGL."""
    from deftly.render import NoGLError, Renderer

    try:
        with Renderer(env.drawn, size=(320, 240)) as renderer:
            return [renderer.environment(env, index)]
    except NoGLError as error:
        print(f"no images: {error}")
        return []


def _settle(env: Env, task: GraspTask, settings: GraspSettings) -> Tensor:
    """Let fresh poses settle; which of them were never lost, and stable in every step that was watched."""
    good = torch.ones(env.num_envs, dtype=torch.bool)
    idle = torch.zeros(env.num_envs, env.contract.action_size)
    settle = round(settings.settle_s * env.contract.rate)
    watch = round(settings.watch_s * env.contract.rate)
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
    arrays: dict[str, Any] = {
        "schema": SCHEMA,
        "task": task.name,
        "hand": contract.robot.name,
        "contract": contract.hash,
        "seed": seed,
        **found,
        "joint_names": np.array(contract.joint_names),
        "sizes": np.array(list(tried)),
        "tried": list(tried.values()),
    }
    write_npz(path, arrays)
