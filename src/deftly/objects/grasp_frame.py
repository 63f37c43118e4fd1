"""Where and from which side a parallel gripper grasps a scanned object that rests on a table, coming from above."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import mujoco
import numpy as np

from deftly.objects.scanned import ScannedObject

SAMPLES = 6000
"""Points on the convex parts, by which extents are measured: about 2 mm apart on an object of 6 cm."""


@dataclass(frozen=True)
class Hand:
    """What of a parallel gripper decides where it grasps, m; from its pads, which are boxes."""

    opening: float
    """Largest distance between the pads."""
    pad: tuple[float, float]
    """Half extents of a pad, along the object's x and z."""
    below: float
    """From the tool point to the tips of the fingers, and what is to be left below them."""
    above: float
    """From the tool point to the palm, less what is to be left above the object."""


class GraspFrame(NamedTuple):
    """The grasp frame of an object, and the object in it."""

    turn: np.ndarray
    """Rotation (3, 3) from the body's frame to the grasp frame."""
    origin: np.ndarray
    """The body's origin in the grasp frame (3,), m."""
    low: np.ndarray
    """Lowest coordinates of the object in the grasp frame (3,), m."""
    high: np.ndarray
    """Highest coordinates (3,), m."""
    grip: float
    """Half of the object's width between the pads, m."""


def of(found: ScannedObject, spec: mujoco.MjSpec, hand: Hand, scale: float = 1.0) -> GraspFrame:
    """The grasp frame of an object in its first resting pose.

    The fingers close along its narrowest width, beside the centre of mass and as high as that, unless fingertips would
    touch the table or the palm the object.

    Args:
        found: The object, which says how it rests and where it is narrowest.
        spec: Its MJCF.
        hand: What grasps it.
        scale: By which it is scaled.
    """
    _, *quat = found.rest[0]
    turn = _upright(quat, found.grasp_yaw)
    points = scale * surface_points(spec.compile()) @ turn.T
    low = points.min(0)
    high = points.max(0)
    half_length, half_height = hand.pad
    z = max(0.0, low[2] + hand.below, high[2] - hand.above)
    at_height = _within(points[:, 2], min(z, high[2]), half_height)
    level = points[at_height]
    x = _nearest_to_centre(level[:, 0], half_length)
    at_pads = _within(level[:, 0], x, half_length)
    between = level[at_pads, 1]
    y = _middle(between, low[1], high[1], hand.opening)
    origin = np.array((x, y, z))
    grip = float(np.abs(between - y).max())
    return GraspFrame(turn, -origin, low - origin, high - origin, grip)


def _within(values: np.ndarray, middle: float, half: float) -> np.ndarray:
    distances = np.abs(values - middle)
    return distances <= half


def _nearest_to_centre(x: np.ndarray, pad: float) -> float:
    """Where along x the pads meet the object, closest to the centre of mass: 0, unless there is nothing."""
    distances = np.abs(x)
    nearest = float(x[distances.argmin()])
    return 0.0 if abs(nearest) <= pad else nearest


def _middle(between: np.ndarray, low: float, high: float, opening: float) -> float:
    """The middle of what is between the pads, as far as the open hand then has room for the rest of the object."""
    wanted = (between.min() + between.max()) / 2
    width = high - low
    room = max(0.0, (opening - width) / 2)
    middle = (low + high) / 2
    return float(np.clip(wanted, middle - room, middle + room))


def _upright(quat: Sequence[float], yaw: float) -> np.ndarray:
    """Rotation (3, 3) from the body's frame to how it rests, turned so that the direction `yaw` (rad) becomes y."""
    unit = np.array(quat) / np.linalg.norm(quat)
    rest = np.empty(9)
    mujoco.mju_quat2Mat(rest, unit)
    angle = np.pi / 2 - yaw
    cos = np.cos(angle)
    sin = np.sin(angle)
    about_z = np.array(((cos, -sin, 0), (sin, cos, 0), (0, 0, 1)))
    return about_z @ rest.reshape(3, 3)


def surface_points(model: mujoco.MjModel) -> np.ndarray:
    """Points on the meshes by which a body touches others (n, 3), m, in its frame: corners, and evenly drawn ones."""
    collides = model.geom_contype != 0
    is_mesh = model.geom_dataid >= 0
    touching = np.flatnonzero(collides & is_mesh).tolist()
    triangles = np.concatenate([_triangles(model, geom) for geom in touching])
    corners = triangles.reshape(-1, 3)
    return np.concatenate((corners, _drawn(triangles)))


def _triangles(model: mujoco.MjModel, geom: int) -> np.ndarray:
    """The faces of a mesh geom (n, 3, 3), m, in the frame of its body."""
    mesh = model.mesh(model.geom_dataid[geom])
    first_corner, corners = int(mesh.vertadr[0]), int(mesh.vertnum[0])
    first_face, faces = int(mesh.faceadr[0]), int(mesh.facenum[0])
    vertices = model.mesh_vert[first_corner : first_corner + corners]
    indices = model.mesh_face[first_face : first_face + faces]
    matrix = np.empty(9)
    mujoco.mju_quat2Mat(matrix, model.geom_quat[geom])
    turned = vertices @ matrix.reshape(3, 3).T
    points = turned + model.geom_pos[geom]
    return points[indices]


def _drawn(triangles: np.ndarray) -> np.ndarray:
    """Points drawn evenly over triangles (n, 3, 3), `(SAMPLES, 3)`; the same each time."""
    rng = np.random.default_rng(0)
    corner = triangles[:, 0]
    one = triangles[:, 1] - corner
    other = triangles[:, 2] - corner
    areas = np.linalg.norm(np.cross(one, other), axis=1)
    probabilities = areas / areas.sum()
    chosen = rng.choice(len(areas), SAMPLES, p=probabilities)
    weights = rng.random((2, SAMPLES, 1))
    is_outside = weights.sum(0) > 1
    u, v = np.where(is_outside, 1 - weights, weights)  # folded into the triangle
    return corner[chosen] + u * one[chosen] + v * other[chosen]


def move(spec: mujoco.MjSpec, body: mujoco.MjsBody, frame: GraspFrame, scale: float = 1.0) -> None:
    """Let the frame of a scanned object's body be its grasp frame, and scale it, at the same density.

    Mass grows with the third power of the scale, moments of inertia with the fifth.
    """
    quat = np.empty(4)
    mujoco.mju_mat2Quat(quat, frame.turn.ravel())
    turn = scale * frame.turn
    for mesh in spec.meshes:
        mesh.scale = [scale] * 3
    for geom in body.geoms:
        geom.pos = frame.origin + turn @ geom.pos
        turned = np.empty(4)
        mujoco.mju_mulQuat(turned, quat, geom.quat)
        geom.quat = turned
    body.ipos = frame.origin + turn @ body.ipos
    body.mass *= scale**3
    body.fullinertia = scale**5 * _turned_inertia(body.fullinertia, frame.turn)


def _turned_inertia(inertia: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """MuJoCo's `fullinertia` (xx yy zz xy xz yz) about turned axes."""
    rows = np.array((0, 1, 2, 0, 0, 1))
    columns = np.array((0, 1, 2, 1, 2, 2))
    tensor = np.zeros((3, 3))
    tensor[rows, columns] = inertia
    tensor[columns, rows] = inertia
    turned = turn @ tensor @ turn.T
    return turned[rows, columns]
