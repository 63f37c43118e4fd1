"""Objects as a task handles them: a body in its grasp frame, and the numbers by which a policy tells it from others.

The grasp frame of an object has its origin where a parallel gripper that comes from above is to grasp it, z up as the
object rests, and y along the way of the fingers: the direction in which it is narrowest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import mujoco

from deftly.console import printable
from deftly.errors import DeftlyError
from deftly.objects import grasp_frame, scanned
from deftly.objects.grasp_frame import Hand
from deftly.sim import scene

Point = tuple[float, float, float]

PRIMITIVES = {
    "cube": mujoco.mjtGeom.mjGEOM_BOX,
    "sphere": mujoco.mjtGeom.mjGEOM_SPHERE,
    "cylinder": mujoco.mjtGeom.mjGEOM_CYLINDER,
}
FILL = {"cube": 1.0, "sphere": 0.5236, "cylinder": 0.7854}
"""Volume of a primitive as a fraction of that of the box around it: 1, pi / 6, pi / 4."""
ROLLING = 0.001
"""Rolling friction of what is round, m: a ball of 5 cm that rolls at 0.1 m/s comes to rest after 2 cm."""
COLOUR = (0.12, 0.45, 0.75, 1.0)
MESHES = (".stl", ".obj", ".ply", ".pcd", ".xyz")
PREFIX = "object/"
"""Of the names of bodies and geoms: an object may be called like a part of the robot."""
SHIPPED = Path(__file__).parents[1] / "shipped/objects"
CODE = 8
"""Numbers of `Item.code`."""


@dataclass(frozen=True)
class Item:
    """One object. Lengths in m, in its grasp frame."""

    name: str
    half: Point
    """Half extents of the box around it."""
    centre: Point
    """Of that box."""
    grip: float
    """Half of its width between the fingers where it is grasped."""
    fill: float
    """Its volume, as a fraction of that of the box."""
    mass: float
    """kg."""
    build: Callable[[], mujoco.MjSpec]
    """Its body on a free joint, with the grasp frame as its frame; to be attached with `PREFIX`."""
    parts: tuple[str, ...]
    """Names of the geoms by which it touches other things."""
    shown: str
    """Name of the geom that one sees."""
    is_primitive: bool = False

    @property
    def body(self) -> str:
        """Name of its body and of its free joint."""
        return PREFIX + self.name

    @property
    def height(self) -> float:
        """Of the grasp frame above the plane on which it rests."""
        return self.half[2] - self.centre[2]

    @property
    def top(self) -> float:
        """Height of its highest point above the grasp frame."""
        return self.half[2] + self.centre[2]

    @property
    def difficulty(self) -> float:
        """What orders objects from easy to hard: wide ones leave the hand no room, others than boxes little to hold."""
        return self.grip / 0.04 + 1.0 - self.fill

    @property
    def code(self) -> tuple[float, ...]:
        """Size and shape in 8 numbers: half extents, centre of the box, half width where it is grasped, fill."""
        return (*self.half, *self.centre, self.grip, self.fill)


def shipped() -> list[str]:
    """Names of the scanned objects that come with the package."""
    folders = SHIPPED.iterdir() if SHIPPED.is_dir() else ()
    return sorted(folder.name for folder in folders if (folder / scanned.RECORD).is_file())


def find(
    names: Sequence[str], hand: Hand, half: float, mass: float, size: float | None = None
) -> tuple[Item, ...]:
    """The objects that a setting names.

    Args:
        names: Each a primitive, a shipped object, or a folder that `deftly scan` wrote.
        hand: What the gripper can do: objects that it cannot hold are refused.
        half: Half extent of the primitives, m.
        mass: Of the primitives, kg.
        size: Longest side to which scanned objects are scaled, at the same density, m; None: as scanned.

    Raises:
        DeftlyError: One line that says which object cannot be used, why, and what to type instead.
    """
    if not names:
        raise DeftlyError("no objects: name one or more, such as cube,sphere")
    found = [_find(name, hand, half, mass, size) for name in names]
    seen: set[str] = set()
    for item in found:
        if item.name in seen:
            raise DeftlyError(f"two objects are called '{item.name}': scan one as another name")
        seen.add(item.name)
    return tuple(found)


def _find(name: str, hand: Hand, half: float, mass: float, size: float | None) -> Item:
    if name in PRIMITIVES:
        return _primitive(name, half, mass)
    folder = SHIPPED / name if name in shipped() else Path(name).expanduser()
    shown = printable(name, 200)
    if folder.suffix.lower() in MESHES and not folder.is_dir():
        made = Path("objects") / folder.stem
        raise DeftlyError(
            f"'{shown}' is a scan, not an object yet: 'deftly scan {shown} --out objects' makes one, {made}"
        )
    if not folder.is_dir():
        known = ", ".join([*PRIMITIVES, *shipped()])
        raise DeftlyError(
            f"no object '{shown}': there are {known}, and folders that deftly scan wrote"
        )
    return of_scan(scanned.load(folder), hand, size)


# ------------------------------------------------------------------ primitives


def _primitive(name: str, half: float, mass: float) -> Item:
    body = PREFIX + name
    return Item(
        name=name,
        half=(half, half, half),
        centre=(0.0, 0.0, 0.0),
        grip=half,
        fill=FILL[name],
        mass=mass,
        build=partial(_build_primitive, name, half, mass),
        parts=(body,),
        shown=body,
        is_primitive=True,
    )


def _build_primitive(name: str, half: float, mass: float) -> mujoco.MjSpec:
    """One geom; what is round rolls, so that its rolling friction counts."""
    spec = mujoco.MjSpec()
    body = spec.worldbody.add_body(name=name)
    body.add_freejoint(name=name)
    is_round = name != "cube"
    sliding, torsional, _ = scene.FRICTION
    body.add_geom(
        name=name,
        type=PRIMITIVES[name],
        size=[half] * 3,
        mass=mass,
        rgba=COLOUR,
        condim=6 if is_round else 3,
        friction=[sliding, torsional, ROLLING] if is_round else scene.FRICTION,
    )
    return spec


# ------------------------------------------------------------------ scanned objects


def of_scan(found: scanned.ScannedObject, hand: Hand, size: float | None = None) -> Item:
    """A scanned object as a hand grasps it, at the same density if it is scaled to a longest side `size`, m.

    Raises DeftlyError if its acceptance failed or the hand cannot close around it.
    """
    shown = printable(found.name, 60)
    if not found.accepted or not found.rest:
        raise DeftlyError(
            f"'{shown}' failed its acceptance, see {found.folder / scanned.RECORD}: scan it again"
        )
    scale = size / max(found.size) if size else 1.0
    width = scale * found.grasp_width
    if width > hand.opening:
        fitting = 1e-3 * int(900 * max(found.size) * scale * hand.opening / width)
        raise DeftlyError(
            f"'{shown}' is {1e3 * width:.0f} mm wide where it is narrowest, and the hand opens "
            f"{1e3 * hand.opening:.0f} mm: leave it out, or scale it with task.object_size={fitting:g}"
        )
    spec = _read(found)
    frame = grasp_frame.of(found, spec, hand, scale)
    half, centre = (frame.high - frame.low) / 2, (frame.high + frame.low) / 2
    return Item(
        name=found.name,
        half=_point(half),
        centre=_point(centre),
        grip=frame.grip,
        fill=min(1.0, scale**3 * found.volume / float(8 * half.prod())),
        mass=scale**3 * found.mass,
        build=partial(_build_scanned, found, frame, scale),
        parts=tuple(PREFIX + geom.name for geom in spec.geoms if geom.contype),
        shown=PREFIX + _surface(found),
    )


def _read(found: scanned.ScannedObject) -> mujoco.MjSpec:
    """Its MJCF. Raises DeftlyError if that is not one body with meshes by which it touches, as a scan writes it."""
    spec = found.spec()
    touching = [geom for geom in spec.geoms if geom.contype and geom.meshname]
    if len(spec.worldbody.bodies) != 1 or len(spec.bodies) != 2 or not touching:
        file = printable(found.folder / scanned.MODEL)
        raise DeftlyError(f"{file} is not what deftly scan writes: scan it again")
    return spec


def _point(values: Sequence[float]) -> Point:
    x, y, z = map(float, values)
    return x, y, z


def _build_scanned(
    found: scanned.ScannedObject, frame: grasp_frame.GraspFrame, scale: float
) -> mujoco.MjSpec:
    """Its MJCF with the body's frame moved to the grasp frame."""
    spec = found.spec()
    (body,) = spec.worldbody.bodies
    for geom in body.geoms:
        geom.name = geom.name or _surface(found)
    grasp_frame.move(spec, body, frame, scale)
    return spec


def _surface(found: scanned.ScannedObject) -> str:
    """Name of the geom that shows a scan, which its MJCF gives none."""
    return f"{found.name}_surface"
