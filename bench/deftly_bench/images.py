"""How many images a core draws: `python -m deftly_bench.images panda-pick-place --out images.json`.

The images are those of a policy, with all that differs between environments. Processor time is counted,
that of the rasterizer's threads as well, so that other programs on the machine hardly matter.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deftly import __version__
from deftly.commands.doctor import cores
from deftly.config import EnvConfig, SimConfig, parse, split_task
from deftly.config.ladder import with_changes
from deftly.env import Env
from deftly.errors import DeftlyError
from deftly.tasks import load
from deftly_bench.entry import start

SIZES = (32, 64, 128)
"""Edges of the images, pixels."""


@dataclass(frozen=True)
class ImagesArgs:
    """Measure how many images a core draws: `python -m deftly_bench.images TASK`."""

    num_envs: int = 16
    """Environments that are drawn one after the other."""
    seconds: float = 5.0
    """Processor time of each measurement."""
    out: Path | None = None
    """Write the results to this JSON file."""


def measure(task: str, size: int, args: ImagesArgs) -> dict[str, Any]:
    """Images a second on one core for a task that has `observation` and `image_size` among its settings."""
    cls = load(task)
    cfg = with_changes(cls.Config(), {"observation": "rgb", "image_size": size}, "task")
    env = Env(cls(cfg), EnvConfig(num_envs=args.num_envs), SimConfig(threads=1))
    cameras, fields = env._cameras, env._randomizer.fields
    if cameras is None:
        raise DeftlyError(f"{task} gives its images itself: no camera of its scene is drawn")
    count, start = 0, time.process_time()
    while time.process_time() - start < args.seconds:
        cameras.images(env.sim, range(args.num_envs), fields)
        count += args.num_envs * len(cameras.signals)
    seconds = time.process_time() - start
    return {"size": size, "images": count, "images_per_core_second": round(count / seconds, 1)}


def main(argv: list[str]) -> int:
    """Measure, and print what was found. Exit status 0."""
    task, rest = split_task(argv)
    args = parse(ImagesArgs, rest, prog="deftly_bench.images")
    task = task or "panda-pick-place"
    found = [measure(task, size, args) for size in SIZES]
    for row in found:
        edge, rate = row["size"], row["images_per_core_second"]
        print(f"{edge}x{edge}: {rate:.0f} images a second on one core")
    if args.out:
        about = {"task": task, "version": __version__, "cores": cores(), "sizes": found}
        args.out.write_text(json.dumps(about, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    start(main)
