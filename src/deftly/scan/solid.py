"""From a surface to a rigid body: a mesh with few faces, convex parts, mass and inertia."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from trimesh import Trimesh

from deftly.scan.cloud import Cloud
from deftly.scan.surface import Surface, convex_volume, largest, sampled

SIMPLE = 20_000
"""Faces of a mesh that is held against the rules of a solid."""
RAYS = 40
"""Rays along each side of a mesh by which it is tested for parts that overlap."""
KEPT_VOLUME = 0.03
"""Most that simplification may change of the volume, as a fraction."""
CONVEX = 0.97
"""A solid with this fraction of its hull's volume is one convex part."""
COARSE = 800
"""Faces of the mesh that is decomposed: time goes with them."""
CONCAVITY = 0.05
"""Where decomposition ends (Wei 2022): the collision-aware concavity of a part, in units of the object's half size."""
LEAST_PART = 1e-4
"""Volume of the smallest part, as a fraction of the object's."""
PART_VERTICES = 48
"""Most vertices of a convex part: collisions of meshes take time with them."""
SAMPLED = 20_000
"""Points of the cloud that is made of a mesh that is no solid."""


class Solid(NamedTuple):
    """A rigid body."""

    mesh: Trimesh
    parts: list[Trimesh]
    """Convex parts, whose union is the body where things touch it."""
    mass: float
    """kg."""
    centre: np.ndarray
    """Centre of mass (3,), m."""
    inertia: np.ndarray
    """About the centre of mass (3, 3), kg m2."""


def whole(cloud: Cloud) -> Trimesh | str:
    """The mesh of a file if it bounds a solid, else why it does not, in words."""
    mesh = as_mesh(cloud)
    if not len(mesh.faces):
        return "it has no triangles"
    if not mesh.is_watertight:
        return "its mesh is open"
    if not mesh.is_winding_consistent:
        return "faces of its mesh are turned inside out"
    if mesh.body_count > 1:
        return f"its mesh is in {mesh.body_count} pieces"
    solid = largest(mesh)
    if _overlaps(simplified(solid, SIMPLE)):
        return "its mesh intersects itself"
    return solid


def as_mesh(cloud: Cloud) -> Trimesh:
    """The triangles of a cloud, without those that are lines or twice there; equal points are one."""
    good = np.asarray(np.isfinite(cloud.points).all(-1))
    assert cloud.faces is not None
    all_good = good[cloud.faces].all(-1)
    points = np.nan_to_num(cloud.points)
    mesh = Trimesh(points, cloud.faces[all_good], process=False)
    mesh.merge_vertices(merge_tex=True, merge_norm=True)
    proper = mesh.nondegenerate_faces(height=None)  # type: ignore[arg-type]
    mesh.update_faces(mesh.unique_faces() & proper)
    mesh.remove_unreferenced_vertices()
    return mesh


def as_cloud(mesh: Trimesh) -> Cloud:
    """Points all over a mesh that bounds no solid, with normals if its faces agree on what is outside."""
    places, faces = sampled(mesh, SAMPLED)
    agrees = mesh.is_winding_consistent and mesh.body_count == 1
    normals = np.asarray(mesh.face_normals[faces]) if agrees else None
    return Cloud(places, normals)


def _overlaps(mesh: Trimesh) -> bool:
    """Whether some ray along z enters a closed mesh again before it has left it, or leaves it first."""
    corners = np.asarray(mesh.triangles, float)
    low, high = mesh.bounds
    lowest_x = corners[:, :, 0].min(1)
    highest_x = corners[:, :, 0].max(1)
    for i in range(RAYS):
        x = low[0] + (i + 0.4142) / RAYS * (high[0] - low[0])
        crossed = (lowest_x <= x) & (highest_x >= x)
        near = corners[crossed]
        for j in range(RAYS):
            y = low[1] + (j + 0.7321) / RAYS * (high[1] - low[1])
            windings = set(_winding(near, x, y))
            if not windings <= {0, 1}:
                return True
    return False


def _winding(corners: np.ndarray, x: float, y: float) -> np.ndarray:
    """How many times a ray at x, y is inside after each crossing of triangles (n, 3, 3), from below."""
    a, b, c = (corners[:, k, :2] - (x, y) for k in range(3))
    weights = np.stack([_cross(b, c), _cross(c, a), _cross(a, b)], -1)
    hit = (weights > 0).all(-1) | (weights < 0).all(-1)
    weights = weights[hit]
    heights = corners[hit][:, :, 2]
    total = weights.sum(-1)
    height = (weights * heights).sum(-1) / total
    turns = np.where(total > 0, -1, 1)  # a face that looks up is where the ray leaves
    from_below = np.argsort(height)
    return np.cumsum(turns[from_below])


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]


def simplified(mesh: Trimesh, faces: int) -> Trimesh:
    """A closed mesh with at most about `faces` faces, by quadric error (Garland and Heckbert 1997).

    With more, if it would not be closed or would lose volume.
    """
    import fast_simplification

    count = faces
    while count < len(mesh.faces):
        points, triangles, *_ = fast_simplification.simplify(
            np.ascontiguousarray(mesh.vertices, np.float64),
            np.ascontiguousarray(mesh.faces, np.int32),
            target_count=count,
        )
        found = manifold(np.asarray(points), np.asarray(triangles, np.int64))
        change = abs(found.volume / mesh.volume - 1)
        if found.is_watertight and change < KEPT_VOLUME:
            return found
        count *= 2
    return mesh


def manifold(points: np.ndarray, faces: np.ndarray) -> Trimesh:
    """A mesh in which two faces meet at each edge: where sheets touch at an edge they are parted.

    Simplification lets a surface pinch itself. Pairs of faces with the same corners go, and points are doubled.

    Args:
        points: (n, 3), m.
        faces: (m, 3) indices of points; at each edge as many faces to either side.
    """
    faces = _without_flaps(faces)
    tails = faces.ravel()
    corners = np.arange(faces.size)
    next_corners = np.roll(corners.reshape(-1, 3), -1, axis=1).ravel()
    one, other = _neighbours(points, faces).T
    tail_to_head = [corners[one], next_corners[other]]
    head_to_tail = [next_corners[one], corners[other]]
    same = np.concatenate([tail_to_head, head_to_tail], 1)
    ones = np.ones(same.shape[1], bool)
    graph = coo_array((ones, tuple(same)), shape=(faces.size,) * 2)
    total, label = connected_components(graph, directed=False)
    places = np.empty((total, 3))
    places[label] = points[tails]
    parted = Trimesh(places, label.reshape(-1, 3), process=False)
    return largest(parted)


def _neighbours(points: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Pairs of half-edges (k, 2), as indices into `faces.ravel()`, at which a sheet goes on from face to face."""
    tails = faces.ravel()
    heads = np.roll(faces, -1, axis=1).ravel()
    edges = np.sort(np.stack([tails, heads], -1), axis=-1)
    _, edge, count = np.unique(edges, axis=0, return_inverse=True, return_counts=True)
    order = np.argsort(edge, kind="stable")
    faces_there = count[edge[order]]
    simple = order[faces_there == 2].reshape(-1, 2)
    pinched = order[faces_there > 2]
    borders = np.flatnonzero(np.diff(edge[pinched])) + 1
    groups = np.split(pinched, borders)
    pairs = [_paired(points, faces, tails, heads, group) for group in groups]
    return np.concatenate([simple, *pairs])


def _without_flaps(faces: np.ndarray) -> np.ndarray:
    """The faces without those that are lines, and without pairs that have the same corners."""
    while True:
        corners = np.sort(faces, axis=1)
        proper = (corners[:, 0] != corners[:, 1]) & (corners[:, 1] != corners[:, 2])
        _, group, count = np.unique(corners, axis=0, return_inverse=True, return_counts=True)
        kept = proper & (count[group] == 1)
        if kept.all():
            return faces
        faces = faces[kept]


def _paired(
    points: np.ndarray, faces: np.ndarray, tails: np.ndarray, heads: np.ndarray, members: np.ndarray
) -> np.ndarray:
    """Half-edges (2 k,) of one edge in pairs (k, 2) that run against each other, each the next around the edge."""
    if not len(members):
        return np.empty((0, 2), np.int64)
    first = members[0]
    a, b = sorted((tails[first], heads[first]))
    axis = points[b] - points[a]
    third = faces[members // 3].sum(1) - a - b
    angle = _angles(axis, points[third] - points[a])
    turn = members[np.argsort(angle, kind="stable")]
    first_forward = np.flatnonzero(tails[turn] == a)[0]
    turn = np.roll(turn, -int(first_forward))
    is_forward = tails[turn] == a
    forward, backward = turn[is_forward], turn[~is_forward]
    if len(forward) != len(backward):  # it is no border of a solid: `is_watertight` will say so
        return np.empty((0, 2), np.int64)
    return np.stack([forward, backward], -1)


def _angles(axis: np.ndarray, away: np.ndarray) -> np.ndarray:
    """Angles about an axis (3,) of vectors (n, 3) from the first of them on, rad."""
    along = away @ axis / (axis @ axis)
    across = away - along[:, None] * axis
    zero = across[0]
    side = np.cross(axis, zero)
    sine = across @ side * np.linalg.norm(zero)
    cosine = across @ zero * np.linalg.norm(side)
    return np.arctan2(sine, cosine)


def body(surface: Surface, density: float, mass: float | None, parts: int, seed: int) -> Solid:
    """The rigid body that a closed surface bounds, of one density (kg/m3) throughout, or of a mass (kg)."""
    mesh = surface.mesh
    if mass is not None:
        density = mass / mesh.volume
    mesh.density = density
    found = mesh.mass_properties
    return Solid(
        mesh,
        convex_parts(mesh, parts, seed),
        float(found["mass"]),
        np.array(found["center_mass"]),
        np.array(found["inertia"]),
    )


def convex_parts(mesh: Trimesh, most: int, seed: int) -> list[Trimesh]:
    """At most so many convex parts, by CoACD (Wei 2022)."""
    if most == 1 or mesh.volume > CONVEX * convex_volume(mesh.vertices):
        return [mesh.convex_hull]
    import coacd

    coacd.set_log_level("error")
    coarse = simplified(mesh, COARSE)
    found = coacd.run_coacd(
        coacd.Mesh(coarse.vertices, coarse.faces),
        threshold=CONCAVITY,
        max_convex_hull=most,
        preprocess_mode="off",
        mcts_iterations=20,
        mcts_nodes=10,
        resolution=500,
        decimate=True,
        max_ch_vertex=PART_VERTICES,
        seed=seed,
    )
    hulls = [Trimesh(vertices, process=False).convex_hull for vertices, _ in found]
    large = [hull for hull in hulls if hull.volume > LEAST_PART * mesh.volume]
    return large or [mesh.convex_hull]
