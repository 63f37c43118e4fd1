"""Point clouds: what a scan file holds, freed of outliers and noise, and thinned."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree


@dataclass(frozen=True)
class Cloud:
    """Points, and normals or triangles if the file had them. Units are the file's until `units` has set them to m."""

    points: np.ndarray
    """(n, 3) float64."""
    normals: np.ndarray | None = None
    """(n, 3), unit length, outward."""
    faces: np.ndarray | None = None
    """(m, 3) indices of points."""

    def __len__(self) -> int:
        return len(self.points)

    def at(self, rows: np.ndarray) -> Cloud:
        """Some of the points, by index or mask, without triangles."""
        normals = None if self.normals is None else self.normals[rows]
        return Cloud(self.points[rows], normals)

    def scaled(self, factor: float) -> Cloud:
        """The same in other units."""
        return replace(self, points=self.points * factor)


def extent(points: np.ndarray) -> float:
    """The largest side of the box around points."""
    if not len(points):
        return 0.0
    sides = np.ptp(points, axis=0)
    return float(sides.max())


def spacing(points: np.ndarray) -> np.ndarray:
    """Distance of each point to its nearest neighbour (n,)."""
    distances, _ = KDTree(points).query(points, k=2)
    return distances[:, 1]


def typical_spacing(points: np.ndarray) -> float:
    """The distance of neighbouring points, as its 90th percentile."""
    return float(np.percentile(spacing(points), 90))


def finite(cloud: Cloud) -> Cloud:
    """The points whose coordinates are finite, each once; depth cameras write NaN where they see nothing."""
    good = np.isfinite(cloud.points).all(-1)
    if cloud.normals is None:
        points = np.unique(cloud.points[good], axis=0)
        return Cloud(points)
    good &= np.isfinite(cloud.normals).all(-1)
    length = np.linalg.norm(cloud.normals, axis=-1)
    good &= length > 1e-6
    points = cloud.points[good]
    normals = cloud.normals[good] / length[good, None]
    _, rows = np.unique(points, axis=0, return_index=True)
    return Cloud(points[rows], normals[rows])


def without_strays(cloud: Cloud, ranges: float = 20.0) -> Cloud:
    """The points within so many interquartile ranges of the median: one wild point makes a scan look a town long."""
    if not len(cloud):
        return cloud
    low, middle, high = np.percentile(cloud.points, [25, 50, 75], axis=0)
    reach = ranges * (high - low).max()
    if reach == 0:
        return cloud
    distances = np.abs(cloud.points - middle)
    near = (distances <= reach).all(-1)
    return cloud.at(near)


def thinned(cloud: Cloud, count: int) -> Cloud:
    """At most about `count` points, one for each cell of a grid that is as fine as that allows."""
    if len(cloud) <= count:
        return cloud
    step = extent(cloud.points) / 1000
    offsets = cloud.points - cloud.points.min(0)
    while True:
        cells = np.floor(offsets / step).astype(np.int64)
        _, rows = np.unique(cells, axis=0, return_index=True)
        if len(rows) <= count:
            return cloud.at(np.sort(rows))
        excess = len(rows) / count
        step *= max(1.1, excess**0.4)


def denoised(points: np.ndarray, radius: float, most: int = 40) -> np.ndarray:
    """Each point moved onto the plane through its neighbours: moving least squares of first order (Alexa 2003).

    Neighbours are within `radius`, at most `most`; a point that has less than six stays where it is.
    """
    distance, rows = KDTree(points).query(points, k=min(most, len(points)))
    weight = (distance <= radius).astype(float)
    count = weight.sum(-1)
    near = points[rows]
    total = np.einsum("nk,nki->ni", weight, near)
    centre = total / count[:, None]
    away = near - centre[:, None]
    covariance = np.einsum("nk,nki,nkj->nij", weight, away, away)
    _, axes = np.linalg.eigh(covariance)
    normal = axes[:, :, 0]
    off_plane = ((points - centre) * normal).sum(-1)
    off_plane[count < 6] = 0.0
    return points - off_plane[:, None] * normal


def without_outliers(cloud: Cloud, neighbours: int = 8, deviations: float = 4.0) -> Cloud:
    """The points that are about as near to their neighbours as the others (Rusu 2008, statistical outlier removal)."""
    count = min(neighbours + 1, len(cloud))
    distances, _ = KDTree(cloud.points).query(cloud.points, k=count)
    to_others = distances[:, 1:]
    mean = to_others.mean(-1)
    typical = np.median(mean)
    deviation = np.median(np.abs(mean - typical))
    spread = 1.4826 * deviation  # the standard deviation of a normal
    largest = 2.0 * typical + deviations * spread  # on a regular grid there is no spread at all
    return cloud.at(mean <= largest)


def clusters(points: np.ndarray, reach: float) -> list[np.ndarray]:
    """Indices of the points of each connected cluster, the largest first; neighbours are within `reach`."""
    pairs = KDTree(points).query_pairs(reach, output_type="ndarray")
    ones = np.ones(len(pairs), bool)
    ends = (pairs[:, 0], pairs[:, 1])
    graph = coo_array((ones, ends), shape=(len(points),) * 2)
    _, labels = connected_components(graph, directed=False)
    sizes = np.bincount(labels)
    order = np.argsort(-sizes, kind="stable")
    return [np.flatnonzero(labels == label) for label in order[:100]]
