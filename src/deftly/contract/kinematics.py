"""Forward kinematics of a site, batched on the leading axes, from the chain that the interface holds as data."""

from __future__ import annotations

import math
from collections.abc import Sequence

from deftly.contract.arrays import Array, Like, join, library, pick
from deftly.contract.derive import with_positive_w
from deftly.contract.robot import Link, RobotInterface, Site

Matrix = list[list[float]]
Quat = tuple[float, float, float, float]

IDENTITY: Matrix = [[float(i == j) for j in range(4)] for i in range(4)]


class Kinematics:
    """A chain as arrays, made for one library, dtype and device.

    The chain is followed from the site back to the base. A moving link is a matrix that is linear in (1, sin q, cos q)
    for a hinge, by Rodrigues' formula, and in (1, q) for a slide; what is fixed between two joints is multiplied out
    beforehand. An orientation goes the same way, as a quaternion that is linear in the cosine and sine of half the
    angle.
    """

    def __init__(self, site: Site, robot: RobotInterface, like: Like):
        moving = [link for link in site.chain if link.joint is not None]
        places, tip = _fixed_parts(site.chain)
        turns, tip_turn = _fixed_turns(site.chain)
        hinges = [link.kind == "hinge" for link in moving]
        self._columns = like.indices([robot.joint_names.index(str(link.joint)) for link in moving])
        self._hinge = None if all(hinges) else like.numbers([float(h) for h in hinges]) > 0.5
        steps = [_step(place, link) for place, link in zip(places, moving)]
        self._place = _Chain([row[3] for row in tip], steps, 3, like)
        turn_steps = [_turn_step(turn, link) for turn, link in zip(turns, moving)]
        self._turn = _Chain(tip_turn, turn_steps, 2, like)

    def position(self, joint_pos: Array) -> Array:
        """Position of the site in the base's frame, `(..., 3)` m."""
        xp, q = library(joint_pos), pick(joint_pos, self._columns)
        sine, cosine = xp.sin(q), xp.cos(q)
        if self._hinge is not None:
            sine = xp.where(self._hinge, sine, q)
        return self._place.followed((xp.ones_like(q), sine, cosine))[..., :3]

    def pose(self, joint_pos: Array) -> Array:
        """Position and orientation of the site in the base's frame, `(..., 7)`; the quaternion has w >= 0."""
        xp, half = library(joint_pos), 0.5 * pick(joint_pos, self._columns)
        cosine, sine = xp.cos(half), xp.sin(half)
        if self._hinge is not None:
            cosine = xp.where(self._hinge, cosine, xp.ones_like(half))
        turn = self._turn.followed((cosine, sine))
        return join((self.position(joint_pos), with_positive_w(turn)))


class _Chain:
    """Carries a 4-vector from the site to the base, through matrices that are weighted sums of fixed ones.

    A joint with n weights first gives the vector times each of its n matrices, beside each other: 4 n numbers. They are
    multiplied by their weights, and summed by the next joint's matrix, which is that of the sum and its own in one. So
    a joint costs one matrix product and one multiplication, whatever the batch.
    """

    def __init__(self, tip: Sequence[float], steps: Sequence[Matrix], count: int, like: Like):
        total = [[float(row % 4 == column) for column in range(4)] for row in range(4 * count)]
        joints, self._width = len(steps), 4 * count
        moving = list(reversed(range(joints)))
        start = list(tip)
        while moving and count == 3 and _is_still(start, steps[moving[0]]):
            start = _product([start], steps[moving.pop(0)])[0][
                :4
            ]  # the site is on the joint's axis
        self._tip = like.numbers(start)
        self._first = like.numbers(_product([start], steps[moving[0]])[0]) if moving else None
        self._next = [like.numbers(_product(total, steps[joint])) for joint in moving[1:]]
        self._total = like.numbers(total)
        order = [joints * (i // 4) + joint for joint in moving for i in range(self._width)]
        self._spread = like.indices(order)

    def followed(self, weights: Sequence[Array]) -> Array:
        """The vector in the base's frame, `(..., 4)`, for the weights of each joint, `(..., joints)` each."""
        if self._first is None:  # nothing moves: the same for every robot of the batch
            return self._tip + 0.0 * weights[0].sum(-1)[..., None]
        spread = pick(join(weights), self._spread)
        value = self._first * spread[..., : self._width]
        for i, matrix in enumerate(self._next, 1):
            value = (value @ matrix) * spread[..., i * self._width : (i + 1) * self._width]
        return value @ self._total


def _is_still(vector: Sequence[float], step: Matrix) -> bool:
    """Whether a joint leaves a point where it is: its matrices of sine and cosine give nothing."""
    moved = _product([list(vector)], step)[0][4:]
    return max(map(abs, moved)) < 1e-12


def _fixed_parts(chain: Sequence[Link]) -> tuple[list[Matrix], Matrix]:
    """What is fixed before each moving link's joint, as 4 x 4 matrices, and what is fixed behind the last."""
    parts, fixed = [], IDENTITY
    for link in chain:
        fixed = _product(fixed, _placed(link))
        if link.joint is not None:
            parts.append(fixed)
            fixed = IDENTITY
    return parts, fixed


def _fixed_turns(chain: Sequence[Link]) -> tuple[list[Quat], Quat]:
    """The same as quaternions."""
    turns, fixed = [], (1.0, 0.0, 0.0, 0.0)
    for link in chain:
        fixed = _quat_product(fixed, link.quat)
        if link.joint is not None:
            turns.append(fixed)
            fixed = (1.0, 0.0, 0.0, 0.0)
    return turns, fixed


def _step(place: Matrix, link: Link) -> Matrix:
    """The matrices of weights 1, sin q (or q) and cos q of a moving link: (4, 12), each transposed."""
    x, y, z = link.axis
    if link.kind == "slide":
        constant = IDENTITY
        first = [[0.0, 0.0, 0.0, x], [0.0, 0.0, 0.0, y], [0.0, 0.0, 0.0, z], [0.0] * 4]
        second = [[0.0] * 4 for _ in range(4)]
    else:
        first = [[0.0, -z, y, 0.0], [z, 0.0, -x, 0.0], [-y, x, 0.0, 0.0], [0.0] * 4]
        square = _product(first, first)
        constant = [[a + b for a, b in zip(*rows)] for rows in zip(IDENTITY, square)]
        second = [[-b for b in row] for row in square]
    matrices = [_product(place, matrix) for matrix in (constant, first, second)]
    return _beside([_transposed(matrix) for matrix in matrices])


def _turn_step(turn: Quat, link: Link) -> Matrix:
    """The matrices of weights cos(q / 2) and sin(q / 2), as above: (4, 8)."""
    axis = (0.0, *link.axis) if link.kind == "hinge" else (0.0, 0.0, 0.0, 0.0)
    matrices = [_from_left(turn), _from_left(_quat_product(turn, axis))]
    return _beside([_transposed(matrix) for matrix in matrices])


def _placed(link: Link) -> Matrix:
    """The fixed offset of a link, 4 x 4."""
    length = math.hypot(*link.quat)
    w, x, y, z = (part / length for part in link.quat)
    px, py, pz = link.pos
    return [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y), px],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x), py],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y), pz],
        [0.0, 0.0, 0.0, 1.0],
    ]


def _product(a: Matrix, b: Matrix) -> Matrix:
    columns = _transposed(b)
    return [[sum(x * y for x, y in zip(row, column)) for column in columns] for row in a]


def _transposed(matrix: Matrix) -> Matrix:
    return [list(column) for column in zip(*matrix)]


def _beside(matrices: Sequence[Matrix]) -> Matrix:
    return [[value for row in rows for value in row] for rows in zip(*matrices)]


def _from_left(quat: Quat) -> Matrix:
    """The matrix that multiplies a quaternion by this one from the left."""
    w, x, y, z = quat
    return [[w, -x, -y, -z], [x, w, -z, y], [y, z, w, -x], [z, -y, x, w]]


def _quat_product(a: Quat, b: Quat) -> Quat:
    w, x, y, z = (sum(p * q for p, q in zip(row, b)) for row in _from_left(a))
    return w, x, y, z
