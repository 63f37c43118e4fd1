"""Scanned objects: what `deftly scan` writes into a folder, and scenes are composed of.

A folder holds `object.json`, with every measured number; `object.xml`, its MJCF; `surface.stl`, which is drawn; and
`part_00.stl`, `part_01.stl`, ..., the convex parts by which it touches other things. The body's frame is at the centre
of mass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mujoco

from deftly.console import printable
from deftly.errors import DeftlyError
from deftly.files import read_json, sha256
from deftly.robots import mjcf

SCHEMA = "deftly.object/1"
RECORD, MODEL = "object.json", "object.xml"
MAX_FILE = 64 << 20
"""Largest file of an object, bytes."""
ADVICE = "deftly scan FILE --out DIR writes one"
NUMBERS = ("mass", "volume", "density", "grasp_width")


@dataclass(frozen=True)
class ScannedObject:
    """An object that was scanned. Numbers are of `object.json`."""

    name: str
    folder: Path
    size: tuple[float, float, float]
    """Sides of the box around it in its own frame, m."""
    mass: float
    """kg."""
    volume: float
    """m3."""
    density: float
    """kg/m3."""
    grasp_width: float
    """Its smallest width between vertical fingers, where it rests, m."""
    grasp_yaw: float
    """The direction of that width in the first resting pose, rad about z."""
    rest: tuple[tuple[float, ...], ...]
    """How it rests on a plane: height of its frame, m, and quaternion w x y z, of each pose; the first as scanned."""
    accepted: bool
    """Whether it passed each of its checks."""
    record: Mapping[str, Any]
    """The whole of `object.json`."""

    def spec(self) -> mujoco.MjSpec:
        """Its MJCF: one body of its name on a free joint; it may be attached to a scene."""
        return mjcf.read(self.folder / MODEL)


def load(folder: Path) -> ScannedObject:
    """Read a scanned object. Raises DeftlyError, one line, if the folder holds none or its files were changed."""
    record = read_json(folder / RECORD, "a scanned object", advice=ADVICE)
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        said = printable(record.get("schema") if isinstance(record, dict) else "none", 40)
        raise DeftlyError(
            f"{folder / RECORD} has schema '{said}', this Deftly reads {SCHEMA}: scan it again"
        )
    try:
        found = _parsed(folder, record)
    except (KeyError, TypeError, ValueError) as error:
        raise DeftlyError(
            f"{folder / RECORD} is corrupt: {printable(error)}: scan it again"
        ) from None
    for name, digest in record["files"].items():
        if sha256(folder / Path(name).name, "a file of a scanned object", MAX_FILE) != digest:
            raise DeftlyError(f"{folder / Path(name).name} is not what was scanned: scan it again")
    return found


def _parsed(folder: Path, record: dict[str, Any]) -> ScannedObject:
    numbers = {name: float(record[name]) for name in NUMBERS}
    if min(numbers.values()) <= 0:
        raise ValueError(f"one of {', '.join(NUMBERS)} is not positive")
    if MODEL not in record["files"]:
        raise ValueError(f"it names no {MODEL}")
    x, y, z = map(float, record["size"])
    if min(x, y, z) <= 0:
        raise ValueError("its size is not positive")
    return ScannedObject(
        name=str(record["name"]),
        folder=folder,
        size=(x, y, z),
        grasp_yaw=float(record["grasp_yaw"]),
        rest=tuple(_rest(pose) for pose in record["rest"]),
        accepted=record["accepted"] is True,
        record=record,
        **numbers,
    )


def _rest(pose: Mapping[str, Any]) -> tuple[float, ...]:
    """Height and quaternion of a resting pose. Raises ValueError if that is none."""
    w, x, y, z = map(float, pose["quat"])
    if abs(math.hypot(w, x, y, z) - 1) > 1e-3:
        raise ValueError("a resting pose has no orientation")
    return float(pose["height"]), w, x, y, z
