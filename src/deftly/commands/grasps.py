"""`deftly grasps TASK`: search for poses in which a hand holds its object, from which training then starts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from typing_extensions import Doc

from deftly.config import OUTPUT_FILE, Suffix, parse, split_task, with_task
from deftly.errors import DeftlyError
from deftly.recipes.in_hand.grasps import GraspSettings, collect, write


@dataclass(frozen=True, kw_only=True)
class GraspArgs(GraspSettings):
    """Search for stable grasps: `deftly grasps TASK --out FILE`."""

    out: Annotated[
        Path,
        Suffix(".npz"),
        OUTPUT_FILE,
        Doc("The .npz to write; beside it, images of some grasps as .png."),
    ]


def main(argv: list[str]) -> int:
    """Run `deftly grasps`. The exit status is 1 if a size has no grasp."""
    from deftly import render

    render.choose_gl()
    from deftly.tasks import load

    name, flags = split_task(argv)
    if name is None:
        parse(GraspArgs, flags, prog="deftly grasps TASK")
        raise DeftlyError(
            "grasps of which task? deftly grasps TASK --out FILE; 'deftly tasks' lists them"
        )
    cls: Any = load(name)
    if not hasattr(cls, "grasp"):
        raise DeftlyError(
            f"{name} starts without a grasp cache: it has no `stable` and `grasp` to search for grasps"
        )
    args = parse(with_task(GraspArgs, cls.Config), flags, prog=f"deftly grasps {name}")
    found, tried, images = collect(cls, args)
    if not len(found["cube_half"]):
        raise DeftlyError("no pose of any size was stable: nothing was written")
    write(args.out, cls(args.task), found, tried, args.seed)
    if images:
        render.write_png(args.out.with_suffix(".png"), tiled(images))
    kept = len(found["cube_half"])
    print(f"wrote {args.out}: {kept} grasps, {args.out.stat().st_size / 1024:.0f} kB")
    return int(any(not (found["cube_half"] == np.float32(half)).any() for half in tried))


def tiled(images: list[np.ndarray], columns: int = 4) -> np.ndarray:
    """One image of full rows of images; of a single row, if there are less."""
    full = len(images) // columns * columns
    rows = [images[i : i + columns] for i in range(0, full, columns)] or [images]
    return np.concatenate([np.concatenate(row, 1) for row in rows])
