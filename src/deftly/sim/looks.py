"""Looks: geoms that are only drawn. Simulations leave them out, since each costs time in every substep.

A look collides with nothing, adds nothing to the inertia of its body, and has no name by which anything could reach it.
"""

from __future__ import annotations

import copy
import itertools
from typing import NamedTuple

import mujoco
import numpy as np

Point = tuple[float, float, float]

DRAWN_GROUPS = 3
"""Groups of geoms that MuJoCo draws unless told otherwise: 0 to 2."""
INERTIA_FROM_GEOMS = mujoco.mjtInertiaFromGeom.mjINERTIAFROMGEOM_TRUE.value
SIGNS = itertools.product((-1.0, 1.0), repeat=3)
CORNERS = np.array(list(SIGNS))
"""Of a box, in units of its half sizes, (8, 3)."""
EDGE = 0.18
"""How much of the edges of a box is cut off, a fraction of its smallest half size."""
PREFIXES = ("body_", "jnt_", "dof_", "geom_", "site_", "cam_", "light_", "mat_", "tendon_", "qpos0")
"""Of the fields of a model that may differ between environments and are seen."""


def remove(spec: mujoco.MjSpec) -> None:
    """Take the looks out of a scene. Its physics stays the same, bit for bit."""
    for look in _find(spec):
        spec.delete(look)


def _find(spec: mujoco.MjSpec) -> list[mujoco.MjsGeom]:
    """Geoms that collide with nothing and have no name, of bodies to whose inertia they add nothing."""
    always_from_geoms = spec.compiler.inertiafromgeom == INERTIA_FROM_GEOMS
    found: list[mujoco.MjsGeom] = []
    for body in spec.bodies:
        unnamed = [geom for geom in body.geoms if not geom.name]
        own = [geom for geom in unnamed if not (geom.contype or geom.conaffinity)]
        has_inertia = np.isfinite(body.ipos).all() and not always_from_geoms
        given = body == spec.worldbody or has_inertia
        light = all(geom.mass == 0 or geom.density == 0 for geom in own)
        in_fluid = any(geom.fluid_ellipsoid for geom in own)
        if (given or light) and not in_fluid:
            found += own
    return found


def restored(drawn: mujoco.MjModel, model: mujoco.MjModel) -> mujoco.MjModel:
    """A copy of a scene with its looks that has the values of the same scene without them.

    Args:
        drawn: compiled with looks.
        model: compiled without; one environment's, say, with masses and sizes of its own.
    """
    shown = copy.copy(drawn)
    kept = kept_geoms(drawn, model)
    for field in _float_fields(model):
        values = getattr(model, field)
        if field.startswith("geom_"):
            getattr(shown, field)[kept] = values
        else:
            getattr(shown, field)[:] = values
    return shown


def kept_geoms(drawn: mujoco.MjModel, model: mujoco.MjModel) -> np.ndarray:
    """The geoms of the scene with looks that the one without has too, (ngeom,) of the latter: all of a body, or what
    collides or has a name.
    """
    names = [drawn.geom(i).name for i in range(drawn.ngeom)]
    named = np.array([bool(name) for name in names], bool)
    solid = (drawn.geom_contype != 0) | (drawn.geom_conaffinity != 0)
    same_count = drawn.body_geomnum == model.body_geomnum
    has_all = same_count[drawn.geom_bodyid]
    return np.flatnonzero(named | solid | has_all)


def _float_fields(model: mujoco.MjModel) -> list[str]:
    """Names of the model's values that may differ between environments: of bodies, joints, geoms, lights, cameras."""
    named = [name for name in dir(model) if name.startswith(PREFIXES)]
    arrays = {name: getattr(model, name) for name in named}
    found = []
    for name, array in arrays.items():
        if isinstance(array, np.ndarray) and array.dtype.kind == "f":
            found.append(name)
    return found


def show_hidden(model: mujoco.MjModel) -> None:
    """Put geoms of bodies that would not be drawn at all, since their groups are hidden, into the group 0.

    MuJoCo's viewers and images show the groups 0 to 2. By convention, 3 is for what collides and is drawn otherwise;
    but there are robots without looks of their own.
    """
    hidden = model.geom_group >= DRAWN_GROUPS
    for body in range(model.nbody):
        own = model.geom_bodyid == body
        if own.any() and hidden[own].all():
            model.geom_group[own] = 0


def corners(model: mujoco.MjModel, data: mujoco.MjData) -> np.ndarray:
    """Corners of the boxes around all geoms that are drawn, (n, 3), m; of the world's own if there are no others.

    Planes have none: they have no end. A geom that is wholly below all of them, such as an object that is put aside, is
    not seen; one that rests on a plane sinks into it a little.
    """
    in_group = model.geom_group < DRAWN_GROUPS
    visible = model.geom_rgba[:, 3] > 0
    drawn = in_group & visible
    bounded = drawn & (model.geom_rbound > 0)
    of_bodies = bounded & (model.geom_bodyid > 0)
    geoms = np.flatnonzero(of_bodies if of_bodies.any() else bounded)
    centre = model.geom_aabb[geoms, None, :3]
    half = model.geom_aabb[geoms, None, 3:]
    local = centre + CORNERS * half
    rotations = data.geom_xmat[geoms].reshape(-1, 3, 3)
    turned = np.einsum("gij,gkj->gki", rotations, local)
    found = data.geom_xpos[geoms, None] + turned  # (geoms, corners, 3)
    planes = model.geom_type == mujoco.mjtGeom.mjGEOM_PLANE
    lowest = -np.inf
    if planes.any():
        lowest = data.geom_xpos[planes, 2].min()
    highest = found[..., 2].max(1, initial=-np.inf)
    above = highest >= lowest
    if above.any():
        found = found[above]
    return found.reshape(-1, 3)


# ---------------------------------------------------------------- what looks are made of


class Paint(NamedTuple):
    """A material, by what `mujoco.MjsMaterial` says of one."""

    name: str
    rgba: tuple[float, float, float, float]
    specular: float = 0.3
    shininess: float = 0.4


def box(
    spec: mujoco.MjSpec, body: mujoco.MjsBody, centre: Point, half: Point, paint: Paint
) -> None:
    """A box whose edges are cut off, by its centre and half sizes, m, aligned with its body."""
    sizes = [f"{1e4 * size:.0f}" for size in half]
    name = "look_" + "_".join(sizes)
    if spec.mesh(name) is None:
        vertices = _cut_box(half).ravel().tolist()
        mesh = spec.add_mesh(name=name, uservert=vertices)
        mesh.inertia = mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL
    geom = _add(spec, body, paint, type=mujoco.mjtGeom.mjGEOM_MESH, pos=centre)
    geom.meshname = name


def tube(
    spec: mujoco.MjSpec,
    body: mujoco.MjsBody,
    start: Point,
    end: Point,
    radius: float,
    paint: Paint,
    round_ends: bool = False,
) -> None:
    """A cylinder from a point to another, m; with `round_ends` a capsule."""
    capsule = mujoco.mjtGeom.mjGEOM_CAPSULE
    cylinder = mujoco.mjtGeom.mjGEOM_CYLINDER
    kind = capsule if round_ends else cylinder
    _add(spec, body, paint, type=kind, fromto=[*start, *end], size=[radius, 0, 0])


def _add(
    spec: mujoco.MjSpec, body: mujoco.MjsBody, paint: Paint, **shape: object
) -> mujoco.MjsGeom:
    """A look of a body, in the group of what is drawn and does not collide."""
    geom = body.add_geom(contype=0, conaffinity=0, mass=0, group=2, **shape)
    geom.material = material(spec, paint)
    return geom


def material(spec: mujoco.MjSpec, paint: Paint) -> str:
    """Name of a paint's material, which the spec has afterwards."""
    if spec.material(paint.name) is None:
        spec.add_material(**paint._asdict())
    return paint.name


def _cut_box(half: Point) -> np.ndarray:
    """Corners of a box with cut edges, (24, 3), m: MuJoCo draws their convex hull."""
    sizes = np.array(half)
    cut = EDGE * sizes.min()
    corner = np.tile(sizes - cut, (3, 1))
    np.fill_diagonal(corner, sizes)
    return (CORNERS[:, None] * corner).reshape(-1, 3)
