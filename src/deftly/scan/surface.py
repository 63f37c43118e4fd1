"""A closed surface around a point cloud, as the zero level of a signed distance on a grid.

Clouds with normals that agree are reconstructed by Poisson's equation (Kazhdan 2005, solved by FFT on the grid): its
solution is the winding number, and the surface is where that is one half, so a hole is closed where half of all
directions meet the scan. Clouds without normals are shrink-wrapped: the outside is what a ball of radius r reaches from
far away without touching a point, and the surface is the outside, grown back by r. If the ball gets in through a hole,
places from which enough directions meet the scan are closed to it as well: 90 % of them, then fewer, until the volume
is sane.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy import fft, ndimage
from scipy.spatial import ConvexHull, KDTree
from trimesh import Trimesh

from deftly.errors import DeftlyError
from deftly.scan.cloud import Cloud, denoised, extent, typical_spacing

CELLS, MOST_CELLS = 160, 350_000
"""Of the grid: at most so many along the largest extent of the cloud, and about so many in the box around it."""
BALL = 2.0
"""Radius of the ball, in units of the distance of neighbouring points (90th percentile)."""
SANE = 0.7
"""The ball got in through a hole if the volume that it leaves is less than this fraction of that with holes closed."""
FLAT = 0.05
"""Least volume of a solid, as a fraction of its convex hull's."""
OCCLUDED = (0.9, 0.8, 0.7, 0.6, 0.5)
"""Fractions of directions that meet the scan where a place counts as inside, tried one after the other."""
AGREEING = 0.9
"""Least fraction of normals on one side of the surface that was made with them."""
SEEN = 3.0
"""A surface point is seen if a point of the cloud is this near, in units of the distance of neighbouring points."""

# Quadrature of order 11 on the sphere (Lebedev 1975, 50 points): directions up to symmetry, and the weight of each.
DIRECTIONS = {
    (1, 0, 0): 4 / 315,
    (1, 1, 0): 64 / 2835,
    (1, 1, 1): 27 / 1280,
    (1, 1, 3): 14641 / 725760,
}


class Surface(NamedTuple):
    """A closed surface, and how it came about."""

    mesh: Trimesh
    method: str
    closing: str
    """The rule by which holes were closed; empty if there were none."""


class Grid(NamedTuple):
    """Places in space: `origin + step * index`, m."""

    origin: np.ndarray
    step: float
    shape: tuple[int, ...]

    def places(self, index: np.ndarray) -> np.ndarray:
        """Positions (n, 3), m, of indices (n, 3)."""
        return self.origin + self.step * index

    def cells(self, places: np.ndarray) -> np.ndarray:
        """Indices (n, 3) of the cells nearest to positions (n, 3), m."""
        index = (places - self.origin) / self.step
        return np.rint(index).astype(np.int64)


def reconstruct(cloud: Cloud) -> Surface:
    """A closed surface around a cloud of one object, m. Raises DeftlyError if it encloses nothing."""
    if cloud.normals is not None:
        found = poisson(cloud)
        if found is not None:
            return found
    return shrink_wrap(cloud)


# ------------------------------------------------------------------ without normals


def shrink_wrap(cloud: Cloud) -> Surface:
    """The surface of what a ball cannot reach; see the module. Raises DeftlyError for points in a plane."""
    step = _step(cloud.points)
    points = denoised(cloud.points, 1.5 * step)
    ball = BALL * typical_spacing(points)
    radius = max(ball, 2 * step)
    grid = _grid(points, step, radius + 3 * step)
    nearest = _nearest(grid, points)
    offsets = _offsets(grid, nearest)
    away = np.linalg.norm(offsets, axis=-1)
    outside, closing = _outside(grid, away, radius)
    volume = _volume(grid, outside, away, radius)
    mesh = None
    if volume > FLAT * convex_volume(points):
        mesh = _wrapped(grid, nearest, radius, outside)
    if mesh is None:
        hull = _convex(points)
        return Surface(hull, "convex hull", "closed by its convex hull")
    return Surface(mesh, "shrink-wrap", closing)


def _outside(grid: Grid, away: np.ndarray, radius: float) -> tuple[np.ndarray, str]:
    """The cells that the ball's centre reaches, and the rule by which it is kept out of holes.

    Args:
        grid: of the cells.
        away: from each cell to the nearest point, m.
        radius: of the ball, m.
    """
    free = away > radius
    reached = _reached(free)
    volume = _volume(grid, reached, away, radius)
    occlusion = _occlusion(~free)
    closed = []
    for threshold in OCCLUDED:
        visible = occlusion < threshold
        closed.append(_reached(free & visible))
    least_closed = _volume(grid, closed[0], away, radius)
    cells_on_sheet = float((away < grid.step).sum())
    sheet = cells_on_sheet * grid.step**3
    if volume > max(sheet / 2, SANE * least_closed):
        return reached, ""
    volumes = [_volume(grid, outside, away, radius) for outside in closed]
    least = SANE * volumes[-1]
    best = next(i for i, found in enumerate(volumes) if found >= least)
    return closed[best], f"closed where {OCCLUDED[best]:.0%} of all directions meet the scan"


def _volume(grid: Grid, outside: np.ndarray, away: np.ndarray, radius: float) -> float:
    """About the volume of what is not outside when the outside is grown back by the ball, except at holes, m3."""
    touching = outside & (away < radius + 2 * grid.step)
    depth = np.asarray(ndimage.distance_transform_edt(~touching))
    beyond_ball = depth * grid.step > radius
    inside = ~outside & beyond_ball
    return float(inside.sum()) * grid.step**3


def _step(points: np.ndarray) -> float:
    """The edge of the grid's cells, m: no finer than the points, nor than there is memory and time for."""
    longest = extent(points)
    sides = np.ptp(points, axis=0) + longest / 10
    box = float(np.prod(sides))
    finest_in_memory = (box / MOST_CELLS) ** (1 / 3)
    finest_of_points = typical_spacing(points) / 3
    return max(longest / CELLS, finest_of_points, finest_in_memory)


def _grid(points: np.ndarray, step: float, margin: float) -> Grid:
    low = points.min(0) - margin
    high = points.max(0) + margin
    counts = np.ceil((high - low) / step) + 1
    shape = tuple(int(n) for n in counts)
    return Grid(low, step, shape)


def _nearest(grid: Grid, points: np.ndarray) -> np.ndarray:
    """For each cell the mean of the points in the nearest cell that has some, `(*grid.shape, 3)`, m."""
    index = grid.cells(points)
    flat = np.ravel_multi_index(tuple(index.T), grid.shape)
    cells, member = np.unique(flat, return_inverse=True)
    count = np.bincount(member)
    means = [np.bincount(member, points[:, axis]) / count for axis in range(3)]
    return _spread(grid, cells, np.stack(means, -1))


def _spread(grid: Grid, cells: np.ndarray, values: np.ndarray) -> np.ndarray:
    """For each cell the value of the nearest of `cells` (flat indices), `(*grid.shape, 3)`."""
    empty = np.ones(grid.shape, bool)
    empty.flat[cells] = False
    where: Any = ndimage.distance_transform_edt(empty, return_distances=False, return_indices=True)
    row = np.zeros(grid.shape, np.int32)
    row.flat[cells] = np.arange(len(cells))
    nearest_row = row[tuple(where)]
    return values[nearest_row]


def _offsets(grid: Grid, places: np.ndarray) -> np.ndarray:
    """From `places` (*grid.shape, 3) to the cells, m."""
    indices = [np.arange(n) for n in grid.shape]
    axes = np.meshgrid(*indices, indexing="ij", sparse=True)
    offsets = np.empty_like(places)
    for i, axis in enumerate(axes):
        coordinate = grid.origin[i] + grid.step * axis
        offsets[..., i] = coordinate - places[..., i]
    return offsets


def _reached(free: np.ndarray) -> np.ndarray:
    """Which free cells are connected to the border of the grid."""
    found: Any = ndimage.label(free)
    labels = found[0]
    at_corner = labels[0, 0, 0]
    return free & (labels == at_corner)


def _wrapped(grid: Grid, nearest: np.ndarray, radius: float, outside: np.ndarray) -> Trimesh | None:
    """The surface at a distance of `radius` from the places that the ball's centre reached, grown back by it."""
    edge = outside & ndimage.binary_dilation(~outside)
    cells = np.flatnonzero(edge)
    index = np.stack(np.unravel_index(cells, grid.shape), -1)
    places = grid.places(index)
    contacts = nearest[edge]
    away = places - contacts
    length = np.linalg.norm(away, axis=-1, keepdims=True)
    on_ball = contacts + radius * away / length
    touches = length[:, 0] < radius + 2 * grid.step  # else it is at a hole that was closed
    depth = _depth(grid, cells[touches], on_ball[touches]) - radius
    if not touches.all():
        closed = ~touches
        depth_of_holes = _depth(grid, cells[closed], places[closed])
        depth = np.minimum(depth, depth_of_holes)
    depth[outside] = -grid.step
    return _level(grid, depth)


def _depth(grid: Grid, cells: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Distance of each cell to the nearest of `places`, each of which is in one of `cells`, m."""
    nearest = _spread(grid, cells, places)
    offsets = _offsets(grid, nearest)
    return np.linalg.norm(offsets, axis=-1)


def _occlusion(solid: np.ndarray) -> np.ndarray:
    """The fraction of directions in which a cell's view is blocked by solid cells."""
    found = np.zeros(solid.shape, np.float32)
    for direction, weight in _directions():
        found += np.float32(weight) * _blocked(solid, direction)
    return ndimage.gaussian_filter(found, 1.0)


def _directions() -> list[tuple[tuple[int, int, int], float]]:
    """All directions of the quadrature, with their weights, which add up to 1."""
    found = {}
    for (a, b, c), weight in DIRECTIONS.items():
        for order in ((a, b, c), (b, c, a), (c, a, b)):
            for negative in np.ndindex(2, 2, 2):
                signs = [1 - 2 * flag for flag in negative]
                turned = tuple(int(n * sign) for n, sign in zip(order, signs))
                found[turned] = weight
    return list(found.items())


def _blocked(solid: np.ndarray, direction: tuple[int, int, int]) -> np.ndarray:
    """Which cells meet a solid cell in a direction, an integer vector."""
    blocked = solid.copy()
    reaches = [n // abs(d) for n, d in zip(solid.shape, direction) if d]
    reach = int(max(reaches))
    shift = np.array(direction)
    for _ in range(reach.bit_length()):  # each round doubles how far is seen
        here, there = _overlap(solid.shape, shift)
        blocked[here] |= blocked[there].copy()
        shift = 2 * shift
    return blocked


def _overlap(shape: tuple[int, ...], shift: np.ndarray) -> tuple[tuple[slice, ...], ...]:
    """The cells that have one at `shift` from them, and those there."""
    here = []
    there = []
    for n, s in zip(shape, shift):
        forward = max(0, s)
        backward = max(0, -s)
        here.append(slice(backward, max(0, n - forward)))
        there.append(slice(forward, max(0, n - backward)))
    return tuple(here), tuple(there)


# ------------------------------------------------------------------ with normals


def poisson(cloud: Cloud) -> Surface | None:
    """The surface by Poisson's equation; None if the normals do not agree on what is inside."""
    points, normals = cloud.points, cloud.normals
    assert normals is not None
    step = _step(points)
    blur = max(1.0, typical_spacing(points) / step)
    grid = _grid(points, step, extent(points) / 4)
    areas = _areas(points)
    flux = normals * areas[:, None]
    field = _indicator(grid, points, flux, blur)
    cells = grid.cells(points)
    at_points = ndimage.map_coordinates(field, cells.T, order=1)
    field -= np.average(at_points, weights=areas)
    outwardness = ((points - points.mean(0)) * normals).sum(-1)
    inward = np.average(outwardness, weights=areas) < 0
    mesh = _level(grid, -field if inward else field)
    if mesh is None or not _fits(mesh, points, normals):
        return None
    was_open = unseen(mesh, points) > 0.02
    closing = "closed where half of all directions meet the scan" if was_open else ""
    return Surface(mesh, "Poisson", closing)


def _areas(points: np.ndarray, neighbours: int = 8) -> np.ndarray:
    """The area that each point stands for (n,), m2: of the disc of its neighbours, by their number."""
    count = min(neighbours, len(points) - 1)
    distances, _ = KDTree(points).query(points, k=count + 1)
    reach = distances[:, -1]
    return np.pi * reach**2 / count


def _indicator(grid: Grid, points: np.ndarray, flux: np.ndarray, blur: float) -> np.ndarray:
    """The solution f of laplace(f) = -div(flux), about 1 inside and 0 outside; flux (n, 3), m2."""
    frequencies = [2 * np.pi * fft.fftfreq(n, grid.step) for n in grid.shape]
    waves = np.meshgrid(*frequencies, indexing="ij", sparse=True)
    square = np.asarray(sum(wave**2 for wave in waves))
    square[0, 0, 0] = 1.0
    cells = grid.cells(points)
    index = tuple(cells.T)
    total = np.zeros(grid.shape, complex)
    for axis, wave in enumerate(waves):
        density = np.zeros(grid.shape)
        np.add.at(density, index, flux[:, axis] / grid.step**3)
        spectrum: Any = fft.fftn(density)
        total += 1j * wave * spectrum
    width = blur * grid.step
    smooth = np.exp(-square * width**2 / 2)
    solution: Any = fft.ifftn(total * smooth / square)
    return solution.real


def _fits(mesh: Trimesh, points: np.ndarray, normals: np.ndarray) -> bool:
    """Whether a surface keeps to the points and their normals, and encloses neither too little nor a balloon."""
    hull = convex_volume(points)
    if not FLAT * hull < mesh.volume < 1.15 * hull:
        return False
    distances = distance_to_surface(mesh, points)
    if distances.mean() > 0.02 * extent(points):
        return False
    places, faces = sampled(mesh, 10_000)
    _, nearest = KDTree(places).query(points)
    mesh_normals = mesh.face_normals[faces[nearest]]
    along = (mesh_normals * normals).sum(-1) > 0
    agreeing = max(along.mean(), 1 - along.mean())
    return bool(agreeing > AGREEING)


# ------------------------------------------------------------------ surfaces


def _level(grid: Grid, field: np.ndarray) -> Trimesh | None:
    """The zero level of a field that is positive inside, m; its largest piece, smoothed. None if there is none."""
    from skimage.measure import marching_cubes

    outside = float(-grid.step)
    field = np.pad(field.astype(np.float32), 1, constant_values=outside)
    if field.max() <= 0:
        return None
    spacings = (grid.step,) * 3
    vertices, faces, _, _ = marching_cubes(field, 0.0, spacing=spacings)
    mesh = Trimesh(vertices + grid.origin - grid.step, faces, process=False)
    return smoothed(largest(mesh))


def largest(mesh: Trimesh) -> Trimesh:
    """The piece of a mesh with the largest area, its faces turned outward."""
    from trimesh.graph import connected_component_labels

    labels = connected_component_labels(mesh.face_adjacency, node_count=len(mesh.faces))
    areas = np.bincount(labels, mesh.area_faces)
    faces = np.flatnonzero(labels == areas.argmax())
    piece = mesh.submesh([faces], append=True)
    assert isinstance(piece, Trimesh)
    if piece.volume < 0:
        piece.invert()
    return piece


def smoothed(mesh: Trimesh) -> Trimesh:
    """A surface without the steps of the grid, of the same volume (Taubin 1995)."""
    from trimesh.smoothing import filter_taubin

    return filter_taubin(mesh, lamb=0.5, nu=0.53, iterations=6)


def convex_volume(points: np.ndarray) -> float:
    """Volume of the convex hull, m3."""
    return float(ConvexHull(points).volume)


def _convex(points: np.ndarray) -> Trimesh:
    mesh = Trimesh(points).convex_hull
    if mesh.volume <= 0:
        raise DeftlyError("its points enclose no volume: scan it from more sides")
    return mesh


def distance_to_surface(mesh: Trimesh, points: np.ndarray, samples: int = 30_000) -> np.ndarray:
    """Distance of points to a surface, m (n,): to the plane through the nearest of many samples on it."""
    places, faces = sampled(mesh, samples)
    distance, row = KDTree(places).query(points)
    offsets = points - places[row]
    normals = mesh.face_normals[faces[row]]
    off_plane = np.abs((offsets * normals).sum(-1))
    reach = 2 * np.sqrt(mesh.area / samples)
    return np.where(distance < reach, off_plane, distance)


def sampled(mesh: Trimesh, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Places on a surface (n, 3), m, as many for each area, and the face of each; the same ones each time."""
    from trimesh.sample import sample_surface

    places, faces, *_ = sample_surface(mesh, count, seed=0)
    return np.asarray(places), np.asarray(faces)


def unseen(mesh: Trimesh, points: np.ndarray) -> float:
    """The fraction of a surface that no point of the scan is near: what was made up where the cloud is open."""
    far = SEEN * typical_spacing(points) + _step(points)
    places, _ = sampled(mesh, 5000)
    distances, _ = KDTree(points).query(places)
    return float((distances > far).mean())
