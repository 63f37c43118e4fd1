"""Acceptance: is a scanned object a body that simulation can trust, and is it the thing that was scanned?"""

from __future__ import annotations

from typing import Any, NamedTuple

import mujoco
import numpy as np
from scipy.spatial import KDTree
from trimesh import Trimesh

from deftly.console import Finding, judge
from deftly.scan.cloud import extent
from deftly.scan.solid import Solid
from deftly.scan.surface import Surface, convex_volume, distance_to_surface, sampled, unseen

DROP = 0.01
"""Height above the floor from which it falls, m."""
SECONDS = 5.0
"""Longest fall until it must be at rest."""
REST_S = 0.25
"""For so long it must stay where it is, s."""
STILL = 0.0005, 0.0125
"""How far it may move, m, and turn, rad, meanwhile: what is scanned is never quite flat below, and rocks a little."""
PENETRATION = 0.001
"""Most depth to which it sinks into the floor where it rests, m."""
FAR = 0.02
"""Most mean distance of the points from the surface, as a fraction of the size."""
INVENTED = 0.05
"""Fraction of the surface without points near it above which the scan was open."""
LIGHTEST, HEAVIEST = 0.0005, 50.0
"""Masses that are plausible for what a robot handles, kg."""
TURNS = ((1, 0, 0, 0), (0, 1, 0, 0), (1, 1, 0, 0), (1, -1, 0, 0), (1, 0, 1, 0), (1, 0, -1, 0))
"""Quaternions in which it is dropped: as scanned, upside down, and on its four sides."""
SAME = 0.1
"""Resting poses whose downward directions differ by less than this, rad, are one."""
YAWS = 180
"""Directions in which the width is measured."""


class Rest(NamedTuple):
    """How an object came to rest after a fall."""

    seconds: float
    """How long that took; infinite if it did not."""
    penetration: float
    """Depth into the floor while it rested, m."""
    impact: float
    """Largest depth in the fall, m."""
    height: float
    """Of the body's frame, m."""
    quat: np.ndarray


def drop(compiled: mujoco.MjModel, quat: tuple[float, ...], lowest: np.ndarray) -> Rest:
    """Let the object fall onto the floor.

    Args:
        compiled: the object on a floor.
        quat: its orientation, w x y z of any length.
        lowest: vertices of its convex hull (n, 3), m, in the body's frame.
    """
    data = mujoco.MjData(compiled)
    turn = np.array(quat) / np.linalg.norm(quat)
    heights = _turned(lowest, turn)[:, 2]
    data.qpos[:] = [0, 0, DROP - heights.min(), *turn]
    impact = depth = since = 0.0
    seconds, anchor = np.inf, data.qpos.copy()
    # The second half of the time at rest lets it sink to where it stays.
    while data.time < SECONDS and data.time - since < 2 * REST_S:
        mujoco.mj_step(compiled, data)
        depth = -float(data.contact.dist.min(initial=0.0))
        impact = max(impact, depth)
        if not data.ncon or _has_moved(anchor, data.qpos):
            seconds, anchor, since = np.inf, data.qpos.copy(), data.time
        elif data.time - since > REST_S:
            seconds = min(seconds, data.time)
    sunk = depth if np.isfinite(seconds) else 0.0
    height = float(data.qpos[2])
    return Rest(seconds, sunk, impact, height, data.qpos[3:].copy())


def _turned(points: np.ndarray, quat: np.ndarray) -> np.ndarray:
    """Points (n, 3) turned by a quaternion, w x y z."""
    matrix = np.empty(9)
    mujoco.mju_quat2Mat(matrix, quat)
    return points @ matrix.reshape(3, 3).T


def _has_moved(before: np.ndarray, after: np.ndarray) -> bool:
    """Whether a body moved or turned by more than `STILL` between two poses, `(7,)` each."""
    most_way, most_turn = STILL
    way = np.linalg.norm(after[:3] - before[:3])
    cosine = min(1.0, abs(before[3:] @ after[3:]))
    turn = 2 * np.arccos(cosine)
    return bool(way > most_way or turn > most_turn)


def grasp_width(hull: np.ndarray, quat: np.ndarray) -> tuple[float, float]:
    """The smallest width between two vertical plates, m, and the direction from one to the other, rad about z."""
    flat = _turned(hull, quat)[:, :2]
    yaws = np.arange(YAWS) * np.pi / YAWS
    directions = np.stack([np.cos(yaws), np.sin(yaws)])
    widths = np.ptp(flat @ directions, axis=0)
    best = int(widths.argmin())
    return float(widths[best]), float(yaws[best])


def measure(
    surface: Surface, solid: Solid, points: np.ndarray, compiled: mujoco.MjModel
) -> dict[str, Any]:
    """Every number of an object that is measured, for `object.json`: m, kg, s.

    Args:
        surface: its surface.
        solid: its body.
        points: the scan (n, 3), m, freed of outliers, in the frame of the surface.
        compiled: the object on a floor.
    """
    mesh = solid.mesh
    hull = np.asarray(mesh.convex_hull.vertices) - solid.centre
    falls = [drop(compiled, turn, hull) for turn in TURNS]
    as_scanned = falls[0]
    width, yaw = grasp_width(hull, as_scanned.quat)
    return {
        "size": np.ptp(hull, axis=0).tolist(),
        "mass": solid.mass,
        "volume": float(mesh.volume),
        "density": solid.mass / float(mesh.volume),
        "inertia": solid.inertia.tolist(),
        "hull_volume": convex_volume(hull),
        "faces": len(mesh.faces),
        "watertight": bool(mesh.is_watertight),
        "parts": len(solid.parts),
        "parts_volume": float(sum(part.volume for part in solid.parts)),
        "parts_to_surface": float(_off_parts(mesh, solid.parts).mean()),
        **_distances(surface, mesh, points),
        "method": surface.method,
        "closing": surface.closing,
        "grasp_width": width,
        "grasp_yaw": yaw,
        "drop": {
            "seconds": as_scanned.seconds if np.isfinite(as_scanned.seconds) else None,
            "penetration": max(fall.penetration for fall in falls),
            "impact": max(fall.impact for fall in falls),
        },
        "rest": _rest_poses(falls),
    }


def _distances(surface: Surface, mesh: Trimesh, points: np.ndarray) -> dict[str, float]:
    """How far the points of the scan and the surface are from one another, m and fractions."""
    to_surface = distance_to_surface(mesh, points)
    mean_to_surface = float(to_surface.mean())
    places, _ = sampled(mesh, 5000)
    to_cloud, _ = KDTree(points).query(places)
    # Nothing is made up of a closed mesh, however far apart its vertices are.
    invented = 0.0 if surface.method == "mesh" else unseen(mesh, points)
    return {
        "cloud_to_surface": mean_to_surface,
        "cloud_to_surface_95": float(np.percentile(to_surface, 95)),
        "surface_to_cloud": float(to_cloud.mean()),
        "distance_fraction": mean_to_surface / extent(points),
        "unseen_fraction": invented,
    }


def _rest_poses(falls: list[Rest]) -> list[dict[str, Any]]:
    """The different poses in which it came to rest, the first as scanned."""
    kept: list[Rest] = []
    downs: list[np.ndarray] = []
    for fall in falls:
        down = _downward(fall.quat)
        same = any(down @ other > np.cos(SAME) for other in downs)
        if np.isfinite(fall.seconds) and not same:
            kept.append(fall)
            downs.append(down)
    return [{"height": fall.height, "quat": fall.quat.tolist()} for fall in kept]


def _downward(quat: np.ndarray) -> np.ndarray:
    """The direction that is down, (3,), in the frame of a body with this orientation."""
    inverse = np.empty(4)
    mujoco.mju_negQuat(inverse, quat)
    down = np.empty(3)
    mujoco.mju_rotVecQuat(down, np.array([0.0, 0.0, -1.0]), inverse)
    return down


def _off_parts(mesh: Trimesh, parts: list[Trimesh], count: int = 2000) -> np.ndarray:
    """Distance of places on the surface from the surface of the nearest part, m: how much parts fill or leave out."""
    places, _ = sampled(mesh, count)
    depths = []
    for part in parts:
        normals = np.asarray(part.face_normals)
        corners = part.triangles[:, 0]
        offsets = (corners * normals).sum(-1)
        heights = places @ normals.T - offsets
        depths.append(heights.max(1))
    nearest = np.min(depths, axis=0)
    return np.abs(nearest)


def check(found: dict[str, Any], most_parts: int, gripper: float) -> list[Finding]:
    """The findings for what `measure` found, with a gripper that opens by so much, m."""
    size = max(found["size"])
    off = found["distance_fraction"]
    depth, seconds = found["drop"]["penetration"], found["drop"]["seconds"]
    volumes = found["volume"] / found["hull_volume"]
    fallen = [] if seconds is not None else [f"it does not come to rest within {SECONDS:g} s"]
    if depth >= PENETRATION:
        fallen.append(f"it sinks {1e3 * depth:.2f} mm into the floor, and 1 mm is allowed")
    open_scan = f"{found['unseen_fraction']:.0%} of the surface is made up: {found['closing'] or 'no points near it'}"
    wide = f"{1e3 * found['grasp_width']:.0f} mm, wider than the {1e3 * gripper:.0f} mm of the gripper (--gripper)"
    return [
        judge(
            "watertight",
            _unless(found["watertight"], "its surface is open"),
            f"{found['faces']} faces",
        ),
        judge(
            "volume",
            _unless(0 < volumes <= 1.001, f"{volumes:.0%} of its convex hull"),
            f"{1e6 * found['volume']:.3g} cm3, {volumes:.0%} of its convex hull",
        ),
        judge(
            "inertia",
            _inertia_problems(found),
            f"{found['mass']:.3g} kg, moments are those of a body",
        ),
        judge(
            "parts",
            _unless(found["parts"] <= most_parts, f"{found['parts']}, at most {most_parts}"),
            f"{found['parts']} convex parts, {1e3 * found['parts_to_surface']:.2f} mm from the surface",
        ),
        judge(
            "distance",
            _unless(
                off < FAR, f"points are {off:.2%} of the size from the surface, at most {FAR:.0%}"
            ),
            f"points are {1e3 * found['cloud_to_surface']:.2f} mm from the surface, {off:.2%} of {1e3 * size:.0f} mm",
        ),
        judge(
            "closed",
            _unless(found["unseen_fraction"] <= INVENTED, open_scan),
            "seen from all sides",
            "warn",
        ),
        judge("drop", fallen, f"at rest after {seconds or 0:.2f} s, {1e3 * depth:.2f} mm deep"),
        judge(
            "grasp",
            _unless(found["grasp_width"] <= gripper, wide),
            f"{1e3 * found['grasp_width']:.0f} mm wide",
            "warn",
        ),
    ]


def _unless(fine: bool, problem: str) -> list[str]:
    return [] if fine else [problem]


def _inertia_problems(found: dict[str, Any]) -> list[str]:
    """Why mass and moments are not those of a solid body of plausible weight."""
    moments = np.linalg.eigvalsh(np.array(found["inertia"]))
    problems = []
    if moments[0] <= 0 or moments[2] > moments[0] + moments[1]:
        problems.append(f"its moments {moments} are not those of a body")
    if not LIGHTEST <= found["mass"] <= HEAVIEST:
        wanted = f"{1e3 * LIGHTEST:g} g to {HEAVIEST:g} kg"
        problems.append(
            f"it weighs {found['mass']:.3g} kg, not {wanted}: set --mass or --density, check --units"
        )
    return problems
