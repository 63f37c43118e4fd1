"""A scan is cut into things: what stands on a table, or what lies apart.

The table is the plane, by RANSAC (Fischler and Bolles 1981), on which most points stand: in clusters above
the plane and within its outline that are much smaller than it. A box that was scanned alone has no such plane, since
its other sides run along the whole of each.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.spatial import ConvexHull, Delaunay, KDTree, QhullError

from deftly.scan.cloud import Cloud, clusters, extent, thinned, typical_spacing
from deftly.scan.settings import Scene

COARSE = 20_000
"""Points of the thinned scan in which planes and clusters are sought."""
PLANES, TRIALS = 5, 200
"""Planes that are tried, and triples of points for each."""
FINE = 0.02
"""Most distance of neighbouring points in a scan with a table, as a fraction of its extent."""
LEAST_PLANE = 0.1
"""A plane has at least this fraction of the points."""
LEAST_POINTS = 40
"""Points of the smallest thing, in the thinned scan."""
LARGEST_THING = 0.6
"""Extent of a thing on a table, along either side of the table, as a fraction of the table's."""
INNER = 0.9
"""Half of a thing on a table is within the outline of the table when that is scaled by this."""
LEAST_HEIGHT = 5, 0.04
"""Height of the lowest thing on a table, in units of the distance of neighbouring points, and as a fraction of the
table's longer side; less is a bump."""
GAP = 0.05
"""Things without a table are apart by more than this fraction of the extent of the scan."""
LEAST_CLUSTER = 0.05
"""Fraction of the points that a thing without a table has at least."""


class Thing(NamedTuple):
    """One object of a scan."""

    cloud: Cloud
    """m; z is up where it stood on a table, whose top is z = 0."""
    stood: bool
    """Whether it stood on a table."""


class Plane(NamedTuple):
    """A plane in a scan."""

    centre: np.ndarray
    axes: np.ndarray
    """Rows: two axes in the plane, its longest first, and the normal, right-handed."""
    rows: np.ndarray
    """Indices of the points on it."""

    def local(self, points: np.ndarray) -> np.ndarray:
        """Points in the plane's frame: along, across, height."""
        return (points - self.centre) @ self.axes.T


def cut(cloud: Cloud, scene: Scene, rng: np.random.Generator) -> list[Thing]:
    """The things of a scan, m, the one with the most points first; empty if a table was asked for and there is none."""
    if scene != "object":
        found = _on_a_table(cloud, rng)
        if found or scene == "table":
            return found
    return _apart(cloud, scene == "object")


def _apart(cloud: Cloud, all_one: bool) -> list[Thing]:
    coarse = thinned(cloud, COARSE).points
    near = 4 * typical_spacing(coarse)
    reach = max(near, GAP * extent(coarse))
    least = 0.0 if all_one else LEAST_CLUSTER * len(coarse)
    groups = [rows for rows in clusters(coarse, reach) if len(rows) >= least]
    if all_one or len(groups) <= 1:
        kept = coarse[np.concatenate(groups)] if groups else coarse
        whole = _around(cloud, kept, reach)
        return [Thing(whole, False)]
    parts = [_around(cloud, coarse[rows], reach / 2) for rows in groups]
    return [Thing(part, False) for part in parts]


def _around(cloud: Cloud, places: np.ndarray, reach: float) -> Cloud:
    """The points of a cloud that are within `reach` of places."""
    distance, _ = KDTree(places).query(cloud.points, distance_upper_bound=reach)
    return cloud.at(np.isfinite(distance))


# ------------------------------------------------------------------ tables


def _on_a_table(cloud: Cloud, rng: np.random.Generator) -> list[Thing]:
    """What stands on the plane on which most points stand: noise of a far plane may look like small things on it."""
    coarse = thinned(cloud, COARSE).points
    cell = typical_spacing(coarse)
    if cell > FINE * extent(coarse):
        return []
    left = np.arange(len(coarse))
    best: list[Thing] = []
    for _ in range(PLANES):
        plane = _plane(coarse, left, cell, rng)
        if plane is None:
            break
        for side in (1, -1):
            turned = _turned(plane, side)
            things = _things_on(turned, coarse, cloud, cell)
            if _points_of(things) > _points_of(best):
                best = things
        left = np.setdiff1d(left, plane.rows)
    return best


def _points_of(things: list[Thing]) -> int:
    return sum(len(thing.cloud) for thing in things)


def _plane(
    points: np.ndarray, rows: np.ndarray, cell: float, rng: np.random.Generator
) -> Plane | None:
    """The plane with the most points that hang together, among `rows`; None if it has too few of all points."""
    least = LEAST_PLANE * len(points)
    if len(rows) < max(least, 3):
        return None
    among = points[rows]
    near = _on_best_plane(among, cell, rng)
    on_it = rows[near]
    together = clusters(points[on_it], 3 * cell)
    on_it = on_it[together[0]]
    if len(on_it) < least:
        return None
    found = points[on_it]
    centre = found.mean(0)
    _, _, axes = np.linalg.svd(found - centre, full_matrices=False)
    axes[2] = np.cross(axes[0], axes[1])
    return Plane(centre, axes, on_it)


def _on_best_plane(points: np.ndarray, cell: float, rng: np.random.Generator) -> np.ndarray:
    """Which points are within `cell`, m, of the plane through three of them that has the most, by RANSAC."""
    corners = points[rng.integers(len(points), size=(TRIALS, 3))]
    first = corners[:, 0]
    one_side = corners[:, 1] - first
    other_side = corners[:, 2] - first
    normals = np.cross(one_side, other_side)
    length = np.linalg.norm(normals, axis=-1, keepdims=True)
    normals = np.divide(normals, length, out=np.zeros_like(normals), where=length > 0)
    votes = []
    for corner, normal in zip(first, normals):
        inliers = np.abs((points - corner) @ normal) < cell
        votes.append(int(inliers.sum()))
    best = int(np.argmax(votes))
    return np.abs((points - first[best]) @ normals[best]) < cell


def _turned(plane: Plane, side: int) -> Plane:
    """The plane with its normal as it is, or to the other side."""
    signs = np.array([[1], [side], [side]])
    return plane._replace(axes=plane.axes * signs)


def _things_on(plane: Plane, coarse: np.ndarray, cloud: Cloud, cell: float) -> list[Thing]:
    local = plane.local(coarse)
    table = local[plane.rows, :2]
    outline = _outline(table, 1.0)
    inner = _outline(table, INNER)
    if outline is None or inner is None:
        return []
    high_enough = local[:, 2] > 2 * cell
    over_table = outline.find_simplex(local[:, :2]) >= 0
    above = np.flatnonzero(high_enough & over_table)
    if not len(above):
        return []
    found = []
    sides = np.ptp(table, axis=0)
    for rows in clusters(local[above], 3 * cell):
        thing = local[above[rows]]
        if not _stands(thing, sides, cell):
            continue
        at_border = inner.find_simplex(thing[:, :2]) < 0
        if at_border.mean() > 0.5:
            continue  # it stands along the border: another side of the same thing
        thing_sides = np.ptp(thing[:, :2], axis=0)
        if (thing_sides > LARGEST_THING * sides).any():
            return []  # the plane is a side of this
        own = _standing(plane, cloud, thing, cell)
        found.append(Thing(own, True))
    return found


def _stands(thing: np.ndarray, sides: np.ndarray, cell: float) -> bool:
    """Whether points (n, 3) in the frame of a table with these sides, m, are a thing on it: no bump, nor in the air."""
    heights = thing[:, 2]
    cells, fraction = LEAST_HEIGHT
    least_height = max(cells * cell, fraction * sides.max())
    touches_table = heights.min() <= 6 * cell
    is_high = heights.max() >= least_height
    return bool(len(thing) >= LEAST_POINTS and touches_table and is_high)


def _outline(table: np.ndarray, scale: float) -> Delaunay | None:
    """The convex outline of a table, scaled about its middle, to find what is within; None if it is a line."""
    try:
        middle = table.mean(0)
        corners = table[ConvexHull(table).vertices]
        return Delaunay(middle + scale * (corners - middle))
    except QhullError:
        return None


def _standing(plane: Plane, cloud: Cloud, thing: np.ndarray, cell: float) -> Cloud:
    """All points of a thing in the table's frame, its middle above the origin."""
    low = thing.min(0) - 2 * cell
    high = thing.max(0) + 2 * cell
    local = plane.local(cloud.points)
    in_box = ((local > low) & (local < high)).all(-1)
    inside = in_box & (local[:, 2] > cell)
    normals = None
    if cloud.normals is not None:
        local_normals = cloud.normals @ plane.axes.T
        normals = local_normals[inside]
    boxed = Cloud(local[inside], normals)
    own = _around(boxed, thing, 2 * cell)
    x, y = own.points[:, :2].mean(0)
    middle = np.array([x, y, 0.0])
    return Cloud(own.points - middle, own.normals)


def grounded(cloud: Cloud) -> Cloud:
    """A thing that stood on a table, with a base where it did, and walls below its lowest points.

    The walls reach down from points that are nearer to the table than a quarter of the thing's height.
    """
    points = cloud.points
    heights = points[:, 2]
    step = max(typical_spacing(points), extent(points) / 100)
    indices = np.rint(points[:, :2] / step)
    cells, column = np.unique(indices, axis=0, return_inverse=True)
    corners = cells * step
    lowest = np.full(len(cells), np.inf)
    np.minimum.at(lowest, column, heights)
    low = lowest < heights.max() / 4
    walls = [_wall(xy, height, step) for xy, height in zip(corners[low], lowest[low])]
    base = np.column_stack([corners, np.zeros(len(cells))])
    return Cloud(np.concatenate([points, base, *walls]))


def _wall(xy: np.ndarray, height: float, step: float) -> np.ndarray:
    """Points (n, 3), m, one above the other from the table up to a height, every `step`; none below one step."""
    count = max(0, int(height / step))
    levels = np.arange(1, count + 1) * step
    columns = np.broadcast_to(xy, (count, 2))
    return np.column_stack([columns, levels])
