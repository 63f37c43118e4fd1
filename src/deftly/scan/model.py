"""The MJCF of a scanned object, and the scenes in which it is tested and drawn."""

from __future__ import annotations

from xml.sax.saxutils import quoteattr

import mujoco
import numpy as np
from trimesh import Trimesh
from trimesh.exchange.stl import export_stl

from deftly.scan.solid import Solid
from deftly.sim import scene

SURFACE = "surface.stl"
STIFF = "0.005 1"
"""Of contacts, MuJoCo's `solref`: their time constant, s, and damping ratio; stiff for a timestep of 2.5 ms."""
COLOURS = (
    "0.89 0.47 0.20",
    "0.22 0.49 0.72",
    "0.30 0.69 0.40",
    "0.60 0.35 0.70",
    "0.90 0.75 0.20",
    "0.25 0.70 0.75",
)
DRAWN, TOUCHING = 2, 3
"""Groups of geoms: what is drawn, and the convex parts, which are hidden."""


def part_file(index: int) -> str:
    """The name of a part's STL."""
    return f"part_{index:02d}.stl"


def files(name: str, solid: Solid) -> dict[str, bytes]:
    """The MJCF and the meshes by file name; meshes are in the body's frame, which is at the centre of mass."""
    found = {SURFACE: _stl(solid.mesh, solid.centre)}
    for i, part in enumerate(solid.parts):
        found[part_file(i)] = _stl(part, solid.centre)
    return {"object.xml": xml(name, solid).encode(), **found}


def _stl(mesh: Trimesh, centre: np.ndarray) -> bytes:
    moved = Trimesh(mesh.vertices - centre, mesh.faces, process=False)
    data = export_stl(moved)
    assert isinstance(data, bytes)
    return data


def xml(name: str, solid: Solid) -> str:
    """The object as MJCF: a free body whose surface is drawn and whose convex parts touch."""
    body = quoteattr(name)
    meshes = [SURFACE, *map(part_file, range(len(solid.parts)))]
    names = [f"{name}_{file.removesuffix('.stl')}" for file in meshes]
    assets = [f"    <mesh name={quoteattr(n)} file={quoteattr(f)}/>" for n, f in zip(names, meshes)]
    friction = " ".join(f"{value:g}" for value in scene.FRICTION)
    parts = [
        f'      <geom name={quoteattr(n)} type="mesh" mesh={quoteattr(n)} group="{TOUCHING}" mass="0" condim="6" '
        f'friction="{friction}" solref="{STIFF}" rgba="{COLOURS[i % len(COLOURS)]} 1"/>'
        for i, n in enumerate(names[1:])
    ]
    lines = [
        f"<mujoco model={body}>",
        "  <asset>",
        *assets,
        "  </asset>",
        "  <worldbody>",
        f"    <body name={body}>",
        f"      <freejoint name={body}/>",
        f'      <inertial pos="0 0 0" mass="{solid.mass:.9g}" fullinertia="{_inertia(solid.inertia)}"/>',
        f'      <geom type="mesh" mesh={quoteattr(names[0])} group="{DRAWN}" contype="0" conaffinity="0" mass="0" '
        'rgba="0.85 0.82 0.76 1"/>',
        *parts,
        "    </body>",
        "  </worldbody>",
        "</mujoco>",
    ]
    return "\n".join(lines) + "\n"


def _inertia(tensor: np.ndarray) -> str:
    """As `fullinertia` wants it: xx yy zz xy xz yz."""
    rows, columns = (0, 1, 2, 0, 0, 1), (0, 1, 2, 1, 2, 2)
    return " ".join(f"{value:.9g}" for value in tensor[rows, columns])


def on_floor(name: str, found: dict[str, bytes]) -> mujoco.MjSpec:
    """A scene of the object alone above a floor, z = 0."""
    spec = mujoco.MjSpec.from_string(found["object.xml"].decode(), assets=found)
    scene.prepare(spec)
    scene.add_floor(spec, 0.0, collides=True)
    spec.option.timestep = 0.002
    spec.option.impratio = 10
    return spec
