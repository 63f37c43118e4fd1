"""Forward kinematics of a site, batched on the leading axes, from the chain that the interface holds as data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain

from deftly.contract.arrays import Array, Like, join, library, pick
from deftly.contract.derive import with_positive_w
from deftly.contract.robot import Link, RobotInterface, Site

Vector = list[float]
Matrix = list[list[float]]
Quat = tuple[float, float, float, float]

IDENTITY: Matrix = [
    [1.0, 0.0, 0.0, 0.0],
    [0.0, 1.0, 0.0, 0.0],
    [0.0, 0.0, 1.0, 0.0],
    [0.0, 0.0, 0.0, 1.0],
]
ZERO: Matrix = [
    [0.0, 0.0, 0.0, 0.0],
    [0.0, 0.0, 0.0, 0.0],
    [0.0, 0.0, 0.0, 0.0],
    [0.0, 0.0, 0.0, 0.0],
]
IDENTITY_QUAT: Quat = (1.0, 0.0, 0.0, 0.0)
STILL = 1e-12
"""Largest displacement of a site, m, by a joint that is left out because the site lies on its axis."""


class Kinematics:
    """A chain as arrays, made for one library, dtype and device.

    The chain is followed from the site back to the base. The transform of a moving link is linear in (1, sin q, cos q)
    for a hinge, by Rodrigues' formula, and in (1, q) for a slide; the fixed transforms between two joints are
    multiplied out beforehand. An orientation goes the same way, as a quaternion that is linear in the cosine and sine
    of half the angle.
    """

    def __init__(self, site: Site, robot: RobotInterface, like: Like):
        moving = [link for link in site.chain if link.joint is not None]
        self._columns = like.indices([robot.joint_names.index(str(link.joint)) for link in moving])
        self._hinge = _hinge_mask(moving, like)
        self._translation = _translation_chain(site, moving, like)
        self._rotation = _rotation_chain(site, moving, like)

    def position(self, joint_pos: Array) -> Array:
        """Position of the site in the base's frame, `(..., 3)` m."""
        xp = library(joint_pos)
        q = pick(joint_pos, self._columns)
        sine = xp.sin(q)
        cosine = xp.cos(q)
        if self._hinge is not None:
            sine = xp.where(self._hinge, sine, q)
        homogeneous = self._translation.transform((xp.ones_like(q), sine, cosine))
        return homogeneous[..., :3]

    def pose(self, joint_pos: Array) -> Array:
        """Position and orientation of the site in the base's frame, `(..., 7)`; the quaternion has w >= 0."""
        xp = library(joint_pos)
        half = 0.5 * pick(joint_pos, self._columns)
        cosine = xp.cos(half)
        sine = xp.sin(half)
        if self._hinge is not None:
            cosine = xp.where(self._hinge, cosine, xp.ones_like(half))
        quat = self._rotation.transform((cosine, sine))
        return join((self.position(joint_pos), with_positive_w(quat)))


def _hinge_mask(moving: Sequence[Link], like: Like) -> Array | None:
    """Which of the moving links turn on a hinge, `(joints,)`; None if all do."""
    hinges = [link.kind == "hinge" for link in moving]
    if all(hinges):
        return None
    return like.numbers([float(hinge) for hinge in hinges]) > 0.5


def _translation_chain(site: Site, moving: Sequence[Link], like: Like) -> _Chain:
    """The chain of homogeneous transforms that carries the origin of the site's frame to the base."""
    transforms, last = _fixed_transforms(site.chain)
    origin = [row[3] for row in last]
    joints = [_joint_transforms(fixed, link) for fixed, link in zip(transforms, moving)]
    while joints and _is_still(origin, joints[-1]):
        joint = joints.pop()
        origin = _product([origin], joint)[0][:4]
    return _Chain(origin, joints, len(moving), 3, like)


def _rotation_chain(site: Site, moving: Sequence[Link], like: Like) -> _Chain:
    """The chain of quaternion products that carries the site's orientation to the base."""
    quats, last = _fixed_quats(site.chain)
    joints = [_joint_rotations(fixed, link) for fixed, link in zip(quats, moving)]
    return _Chain(last, joints, len(moving), 2, like)


class _Chain:
    """Carries a 4-vector from the site to the base, through matrices that are weighted sums of fixed ones.

    A joint with n weights first gives the vector times each of its n matrices, beside each other: 4 n numbers. They are
    multiplied by their weights, and summed by the next joint's matrix, which is that of the sum and its own in one. So
    a joint costs one matrix product and one multiplication, whatever the batch.

    Args:
        tip: the vector in the frame of the last joint, 4 numbers.
        joints: matrices (4, 4 n) of each joint that moves the vector, from the base outwards.
        num_joints: joints that have weights; those behind the last of `joints` do not move the vector.
        num_weights: n.
        like: makes the arrays.
    """

    def __init__(
        self,
        tip: Sequence[float],
        joints: Sequence[Matrix],
        num_joints: int,
        num_weights: int,
        like: Like,
    ):
        self._width = 4 * num_weights
        weighted_sum = IDENTITY * num_weights  # (4 n, 4)
        inwards = list(reversed(joints))
        self._tip = like.numbers(tip)
        self._first = None
        if inwards:
            self._first = like.numbers(_product([list(tip)], inwards[0])[0])
        self._next = [like.numbers(_product(weighted_sum, joint)) for joint in inwards[1:]]
        self._weighted_sum = like.numbers(weighted_sum)
        self._spread = like.indices(_spread(len(joints), num_joints, num_weights))

    def transform(self, weights: Sequence[Array]) -> Array:
        """The vector in the base's frame, `(..., 4)`, for the weights of each joint, `(..., num_joints)` each."""
        if self._first is None:  # nothing moves: the same for every robot of the batch
            return self._tip + 0.0 * weights[0].sum(-1)[..., None]
        spread = pick(join(weights), self._spread)
        value = self._first * spread[..., : self._width]
        for i, matrix in enumerate(self._next, 1):
            value = (value @ matrix) * spread[..., i * self._width : (i + 1) * self._width]
        return value @ self._weighted_sum


def _spread(moving: int, num_joints: int, num_weights: int) -> list[int]:
    """Columns of the joined weights, `(num_weights * num_joints,)`, that give each joint's 4 n factors, tip first."""
    columns = []
    for joint in reversed(range(moving)):
        for weight in range(num_weights):
            column = num_joints * weight + joint
            columns += [column] * 4
    return columns


def _is_still(point: Vector, joint: Matrix) -> bool:
    """Whether a joint does not move a point: its matrices of sine and cosine give zero."""
    moved = _product([point], joint)[0][4:]
    return max(map(abs, moved)) < STILL


def _fixed_transforms(links: Sequence[Link]) -> tuple[list[Matrix], Matrix]:
    """The fixed transform before each moving link's joint, 4 x 4, and the one behind the last joint."""
    before = []
    fixed = IDENTITY
    for link in links:
        fixed = _product(fixed, _offset(link))
        if link.joint is not None:
            before.append(fixed)
            fixed = IDENTITY
    return before, fixed


def _fixed_quats(links: Sequence[Link]) -> tuple[list[Quat], Quat]:
    """The fixed rotation before each moving link's joint, and the one behind the last joint."""
    before = []
    fixed = IDENTITY_QUAT
    for link in links:
        fixed = _quat_product(fixed, link.quat)
        if link.joint is not None:
            before.append(fixed)
            fixed = IDENTITY_QUAT
    return before, fixed


def _joint_transforms(fixed: Matrix, link: Link) -> Matrix:
    """The matrices of weights 1, sin q (or q) and cos q of a moving link: (4, 12), each transposed."""
    parts = _slide_parts(link) if link.kind == "slide" else _hinge_parts(link)
    return _beside([_transposed(_product(fixed, part)) for part in parts])


def _slide_parts(link: Link) -> tuple[Matrix, Matrix, Matrix]:
    """The transform of a slide: the parts of weight 1, q, and none."""
    x, y, z = link.axis
    along = [
        [0.0, 0.0, 0.0, x],
        [0.0, 0.0, 0.0, y],
        [0.0, 0.0, 0.0, z],
        [0.0, 0.0, 0.0, 0.0],
    ]
    return IDENTITY, along, ZERO


def _hinge_parts(link: Link) -> tuple[Matrix, Matrix, Matrix]:
    """Rodrigues' formula: with K the cross product matrix of the axis, I + K K, K (sin q) and -K K (cos q)."""
    x, y, z = link.axis
    cross = [
        [0.0, -z, y, 0.0],
        [z, 0.0, -x, 0.0],
        [-y, x, 0.0, 0.0],
        [0.0, 0.0, 0.0, 0.0],
    ]
    square = _product(cross, cross)
    constant = []
    for identity_row, square_row in zip(IDENTITY, square):
        constant.append([a + b for a, b in zip(identity_row, square_row)])
    negative_square = [[-value for value in row] for row in square]
    return constant, cross, negative_square


def _joint_rotations(fixed: Quat, link: Link) -> Matrix:
    """The matrices of weights cos(q / 2) and sin(q / 2), as above: (4, 8). A slide turns nothing."""
    axis = (0.0, 0.0, 0.0, 0.0)
    if link.kind == "hinge":
        axis = (0.0, *link.axis)
    of_cosine = _from_left(fixed)
    of_sine = _from_left(_quat_product(fixed, axis))
    return _beside([_transposed(of_cosine), _transposed(of_sine)])


def _offset(link: Link) -> Matrix:
    """The fixed offset of a link as a homogeneous transform, 4 x 4."""
    length = math.hypot(*link.quat)
    w, x, y, z = (part / length for part in link.quat)
    px, py, pz = link.pos
    return [
        [
            1 - 2 * (y * y + z * z),
            2 * (x * y - w * z),
            2 * (x * z + w * y),
            px,
        ],
        [
            2 * (x * y + w * z),
            1 - 2 * (x * x + z * z),
            2 * (y * z - w * x),
            py,
        ],
        [
            2 * (x * z - w * y),
            2 * (y * z + w * x),
            1 - 2 * (x * x + y * y),
            pz,
        ],
        [0.0, 0.0, 0.0, 1.0],
    ]


def _product(a: Matrix, b: Matrix) -> Matrix:
    columns = _transposed(b)
    return [[_dot(row, column) for column in columns] for row in a]


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(a, b))


def _transposed(matrix: Matrix) -> Matrix:
    return [list(column) for column in zip(*matrix)]


def _beside(matrices: Sequence[Matrix]) -> Matrix:
    """Matrices of as many rows, joined along the columns."""
    return [list(chain.from_iterable(rows)) for rows in zip(*matrices)]


def _from_left(quat: Quat) -> Matrix:
    """The matrix that multiplies a quaternion by this one from the left."""
    w, x, y, z = quat
    return [
        [w, -x, -y, -z],
        [x, w, -z, y],
        [y, z, w, -x],
        [z, -y, x, w],
    ]


def _quat_product(a: Quat, b: Quat) -> Quat:
    w, x, y, z = (_dot(row, b) for row in _from_left(a))
    return w, x, y, z
