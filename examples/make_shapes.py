"""Write point clouds of seven things that were never scanned, to try `deftly scan` and `panda-pick-place` with.

    python examples/make_shapes.py clouds
    deftly scan clouds/*.xyz --out objects --units m --scene object

Two of them, `pawn` and `tee`, come with the package as objects; the other five are for evaluation: no policy that is
shipped was trained on them. Lengths in m; each stands on z = 0 as it rests on a table, and fits a hand of 80 mm.
"""

import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np

NOISE = 0.0002
"""Standard deviation of the noise of a scanner of things of this size, m."""
SPACING = 0.0012
"""About the distance of neighbouring points, m."""


def along(corners: np.ndarray) -> np.ndarray:
    """Points along a polyline (n, 2), m."""
    parts = []
    for start, end in pairwise(corners):
        count = max(2, int(np.linalg.norm(end - start) / SPACING))
        parts.append(start + np.linspace(0, 1, count, endpoint=False)[:, None] * (end - start))
    return np.concatenate(parts)


def revolved(profile: list[tuple[float, float]]) -> np.ndarray:
    """The surface that a polyline of radius and height makes about the z axis (n, 3), m."""
    rings = []
    for radius, height in along(np.array(profile)):
        angles = np.linspace(
            0, 2 * np.pi, max(1, int(2 * np.pi * radius / SPACING)), endpoint=False
        )
        rings.append(
            np.stack((radius * np.cos(angles), radius * np.sin(angles), 0 * angles + height), -1)
        )
    return np.concatenate(rings)


def extruded(outline: list[tuple[float, float]], height: float) -> np.ndarray:
    """The surface of a prism over a closed outline (n, 3), m."""
    corners = np.array([*outline, outline[0]])
    border = along(corners)
    walls = [np.insert(border, 2, z, axis=1) for z in np.arange(0, height, SPACING)]
    axes = [np.arange(low, high, SPACING) for low, high in zip(corners.min(0), corners.max(0))]
    grid = np.stack(np.meshgrid(*axes), -1).reshape(-1, 2)
    cap = grid[inside(grid, corners)]
    return np.concatenate((*walls, *(np.insert(cap, 2, z, axis=1) for z in (0.0, height))))


def inside(points: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Which points (n, 2) a closed polyline encloses: a ray to the right crosses it an odd number of times."""
    crossings = np.zeros(len(points), int)
    for (x0, y0), (x1, y1) in pairwise(corners):
        spans = (y0 > points[:, 1]) != (y1 > points[:, 1])
        with np.errstate(divide="ignore", invalid="ignore"):
            at = x0 + (points[:, 1] - y0) / (y1 - y0) * (x1 - x0)
        crossings += spans & (at > points[:, 0])
    return crossings % 2 == 1


def arc(centre: tuple[float, float], radius: float, start: float, end: float) -> list:
    """Corners of an arc, angles in degrees from the first axis."""
    angles = np.radians(np.linspace(start, end, 24))
    return [(centre[0] + radius * np.cos(a), centre[1] + radius * np.sin(a)) for a in angles]


def pawn() -> np.ndarray:
    """A chess piece 62 mm high."""
    head = arc((0, 0.048), 0.014, -50, 90)
    return revolved([(0, 0), (0.021, 0), (0.021, 0.008), (0.013, 0.016), (0.008, 0.034), *head])


def tee() -> np.ndarray:
    """A T of 60 mm that lies on its side, 26 mm thick."""
    w, b = 0.030, 0.012
    outline = [
        (-w, 0),
        (w, 0),
        (w, 2 * b),
        (b, 2 * b),
        (b, 0.06),
        (-b, 0.06),
        (-b, 2 * b),
        (-w, 2 * b),
    ]
    return extruded(outline, 0.026)


def bracket() -> np.ndarray:
    """An L of 55 mm whose legs are 18 mm wide, 28 mm thick."""
    a, b = 0.055, 0.018
    return extruded([(0, 0), (a, 0), (a, b), (b, b), (b, a), (0, a)], 0.028)


def cup() -> np.ndarray:
    """A cup of 48 mm with a thick wall, a hollow 22 mm deep, and a handle."""
    r, h, wall, deep = 0.024, 0.050, 0.008, 0.022
    bowl = revolved([(0, 0), (r, 0), (r, h), (r - wall, h), (r - wall, h - deep), (0, h - deep)])
    ring = along(np.array(arc((0.024, 0.025), 0.014, -85, 85)))
    angles = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    outward = (ring - (0.024, 0.025)) / 0.014
    spoke = 0.004 * np.cos(angles)[:, None, None] * outward
    x, z = np.moveaxis(ring + spoke, -1, 0)
    y = np.broadcast_to(0.004 * np.sin(angles)[:, None], x.shape)
    handle = np.stack((x, y, z), -1).reshape(-1, 3)
    return np.concatenate((bowl, handle[np.hypot(handle[:, 0], handle[:, 1]) > r]))


def bottle() -> np.ndarray:
    """A bottle 85 mm high, 36 mm wide, full."""
    shoulder = arc((0.008, 0.050), 0.010, 0, 90)
    return revolved([(0, 0), (0.018, 0), *shoulder, (0.008, 0.085), (0, 0.085)])


def star() -> np.ndarray:
    """A star of five points, 58 mm across and 30 mm thick."""
    radii = np.tile((0.030, 0.017), 5)
    angles = np.arange(10) * np.pi / 5
    return extruded(list(zip(radii * np.cos(angles), radii * np.sin(angles))), 0.030)


def twins() -> np.ndarray:
    """Two capsules side by side, 70 mm long and 28 mm thick."""
    length, radius, apart = 0.021, 0.014, 0.011
    upright = revolved([*arc((0, -length), radius, -90, 0), *arc((0, length), radius, 0, 90)])
    lying = upright[:, (2, 0, 1)]
    both = []
    for sign in (-1, 1):
        centre = np.array((0, sign * apart, radius))
        places = lying + centre
        nearest = np.clip(places[:, :1], -length, length) * (1, 0, 0) + centre * (1, -1, 1)
        both.append(places[np.linalg.norm(places - nearest, axis=1) > radius])
    return np.concatenate(both)


SHAPES: dict[str, Callable[[], np.ndarray]] = {
    shape.__name__: shape for shape in (pawn, tee, bracket, cup, bottle, star, twins)
}


def main(folder: Path) -> None:
    """Write `NAME.xyz` of each shape."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, shape in SHAPES.items():
        points = shape()
        rng = np.random.default_rng(0)
        np.savetxt(folder / f"{name}.xyz", points + rng.normal(0, NOISE, points.shape), fmt="%.5f")
        print(f"{folder / name}.xyz: {len(points)} points")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "clouds"))
