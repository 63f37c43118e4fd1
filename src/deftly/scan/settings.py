"""How scans become objects: settings, without anything heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt
from typing_extensions import Doc

from deftly.config import SEEDS, Settings

Units = Literal["auto", "m", "cm", "mm", "in"]
Scene = Literal["auto", "object", "table"]


@dataclass(frozen=True, kw_only=True)
class ScanSettings(Settings):
    """How scans become objects."""

    units: Annotated[
        Units, Doc("Units of the files; auto guesses them by the size, and says so.")
    ] = "auto"
    size: Annotated[
        float | None, Gt(0), Doc("Longest side of the largest thing, m, in place of units.")
    ] = None
    scene: Annotated[
        Scene, Doc("What a file shows: one object, things on a table, or either (auto).")
    ] = "auto"
    density: Annotated[
        float, Gt(0), Le(25_000), Doc("kg/m3, the same throughout; water has 1000.")
    ] = 500.0
    mass: Annotated[float | None, Gt(0), Doc("kg of each thing, in place of the density.")] = None
    faces: Annotated[int, Ge(100), Le(100_000), Doc("Faces of the mesh that is drawn, about.")] = (
        2000
    )
    parts: Annotated[
        int, Ge(1), Le(64), Doc("Most convex parts by which it touches other things.")
    ] = 16
    gripper: Annotated[
        float, Gt(0), Doc("Width to which the gripper opens, m; a Panda's opens 0.08.")
    ] = 0.08
    seed: Annotated[int, Ge(0), Lt(SEEDS), Doc("The same seed makes the same files.")] = 0
