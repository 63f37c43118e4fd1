"""Forward kinematics of sites, batched on the leading axes, from the chains that the interface holds as data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

from deftly.contract.arrays import Array, Like, library, pick_rows
from deftly.contract.robot import Link, RobotInterface, Site

Vector = list[float]
Matrix = list[list[float]]
Quat = tuple[float, float, float, float]
Weight = tuple[int, int]
"""What a weight is, SINE, COSINE or ONE, and of which joint; 0 where it is one."""
SINE, COSINE, ONE = range(3)

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
    """The chains of one or several sites as arrays, made for one library, dtype and device.

    A chain is followed from the site back to the base. The transform of a moving link is linear in (1, sin q, cos q)
    for a hinge, by Rodrigues' formula, and in (1, q) for a slide; the fixed transforms between two joints are
    multiplied out beforehand. An orientation goes the same way, as a quaternion that is linear in the cosine and sine
    of half the angle. All sites are followed at once: what a control step takes is how many operations it is.
    """

    def __init__(self, sites: Sequence[Site], robot: RobotInterface, like: Like):
        kinds = {link.joint: link.kind for site in sites for link in site.chain}
        joints = [name for name in robot.joint_names if name in kinds]
        self._columns = like.indices([robot.joint_names.index(name) for name in joints])
        self._hinge = _hinge_mask([kinds[name] for name in joints], like)
        translations = [_translation_chain(site, joints) for site in sites]
        rotations = [_rotation_chain(site, joints) for site in sites]
        self._translations = _Chains(translations, len(joints), like)
        self._rotations = _Chains(rotations, len(joints), like)

    def positions(self, joint_pos: Array) -> Array:
        """Position of each site in the base's frame, `(sites, ..., 3)` m."""
        return _with_batch(self._positions(_rows(joint_pos)), joint_pos)

    def poses(self, joint_pos: Array) -> Array:
        """Position and orientation of each site in the base's frame, `(sites, ..., 7)`; quaternions have w >= 0."""
        rows = _rows(joint_pos)
        quats = self._orientations(rows)
        quats = library(rows).where(quats[:, :1] < 0.0, -quats, quats)
        return _with_batch(library(rows).concatenate((self._positions(rows), quats), 1), joint_pos)

    def _positions(self, rows: Array) -> Array:
        """Positions of the sites, `(sites, 3, robots)`, for joint positions `(joints, robots)`."""
        xp = library(rows)
        q = pick_rows(rows, self._columns)
        sine = xp.sin(q)
        cosine = xp.cos(q)
        if self._hinge is not None:
            sine = xp.where(self._hinge, sine, q)
        one = xp.ones_like(rows[:1])
        return self._translations.transform(xp.concatenate((sine, cosine, one), 0))[:, :3]

    def _orientations(self, rows: Array) -> Array:
        """Quaternions of the sites, `(sites, 4, robots)`, for joint positions `(joints, robots)`."""
        xp = library(rows)
        half = 0.5 * pick_rows(rows, self._columns)
        sine = xp.sin(half)
        cosine = xp.cos(half)
        one = xp.ones_like(rows[:1])
        if self._hinge is not None:
            cosine = xp.where(self._hinge, cosine, one)
        return self._rotations.transform(xp.concatenate((sine, cosine, one), 0))


def _rows(joint_pos: Array) -> Array:
    """Joint positions with a row for each joint, `(joints, robots)`: what follows is fastest along the robots."""
    robots = math.prod(joint_pos.shape[:-1])
    return joint_pos.reshape(robots, joint_pos.shape[-1]).swapaxes(0, 1)


def _with_batch(vectors: Array, joint_pos: Array) -> Array:
    """Vectors `(sites, size, robots)` with the batch axes of the joint positions, `(sites, ..., size)`."""
    batch = joint_pos.shape[:-1]
    return vectors.swapaxes(1, 2).reshape(len(vectors), *batch, vectors.shape[1])


def _hinge_mask(kinds: Sequence[str], like: Like) -> Array | None:
    """Which of the joints are hinges, `(joints, 1)`; None if all are."""
    hinges = [kind == "hinge" for kind in kinds]
    if all(hinges):
        return None
    return like.numbers([[float(hinge)] for hinge in hinges]) > 0.5


class _Step(NamedTuple):
    """What a joint does to the vector of a chain: it becomes the sum of n matrices times it, each with a weight."""

    matrices: Matrix
    """(4 n, 4): n matrices below each other."""
    weights: tuple[Weight, ...]
    """n of them."""


class _Path(NamedTuple):
    """The chain of one site."""

    tip: Vector
    """The vector, 4 numbers, in the frame of the last joint."""
    steps: list[_Step]
    """From the base outwards."""


def _translation_chain(site: Site, joints: Sequence[str]) -> _Path:
    """The chain of homogeneous transforms that carries the origin of the site's frame to the base."""
    transforms, last = _fixed_transforms(site.chain)
    tip = [row[3] for row in last]
    steps = []
    for fixed, link in zip(transforms, _moving(site)):
        number = joints.index(str(link.joint))
        weights = ((ONE, 0), (SINE, number), (COSINE, number))
        steps.append(_Step(_joint_transforms(fixed, link), weights))
    while steps and _is_still(tip, steps[-1].matrices):
        tip = _times(steps.pop().matrices, tip)[:4]
    return _Path(tip, steps)


def _rotation_chain(site: Site, joints: Sequence[str]) -> _Path:
    """The chain of quaternion products that carries the site's orientation to the base."""
    quats, last = _fixed_quats(site.chain)
    steps = []
    for fixed, link in zip(quats, _moving(site)):
        number = joints.index(str(link.joint))
        weights = ((COSINE, number), (SINE, number))
        steps.append(_Step(_joint_rotations(fixed, link), weights))
    return _Path(list(last), steps)


def _moving(site: Site) -> list[Link]:
    """The links of a site's chain that a joint moves, from the base outwards."""
    return [link for link in site.chain if link.joint is not None]


class _Chains:
    """Carries a 4-vector of each site to the base, through matrices that are weighted sums of fixed ones.

    A joint with n weights first gives each of its n matrices times the vector, below each other: 4 n numbers. They are
    multiplied by their weights, and summed by the next joint's matrix, which is that of the sum and its own in one. So
    a joint costs one matrix product and one multiplication, whatever the number of robots and sites. A chain with fewer
    joints than the longest begins with some that do nothing.

    Args:
        paths: of each site; all have the same number of weights to a joint.
        num_joints: joints that have weights.
        like: makes the arrays.
    """

    def __init__(self, paths: Sequence[_Path], num_joints: int, like: Like):
        length = max(len(path.steps) for path in paths)
        count = max((len(step.weights) for path in paths for step in path.steps), default=1)
        inwards = [_padded(path.steps, length, count)[::-1] for path in paths]  # from the tip
        self._shape = (length, len(paths), 4 * count)
        tips = [path.tip for path in paths]
        starts = [
            _times(steps[0].matrices, tip) if steps else tip for steps, tip in zip(inwards, tips)
        ]
        self._starts = like.numbers(starts)[..., None]  # (sites, 4 n, 1)
        weighted_sum = _beside([IDENTITY] * count)  # (4, 4 n)
        self._matrices = []  # (sites, 4 n, 4 n) each
        for steps in list(zip(*inwards))[1:]:
            matrices = [_product(step.matrices, weighted_sum) for step in steps]
            self._matrices.append(like.numbers(matrices))
        self._weighted_sum = like.numbers(weighted_sum)
        weights = [weight for steps in zip(*inwards) for step in steps for weight in step.weights]
        rows = [kind * num_joints + number for kind, number in weights for _ in range(4)]
        self._weights = like.indices(rows)

    def transform(self, weights: Array) -> Array:
        """The vectors in the base's frame, `(sites, 4, robots)`.

        Rows of `weights`, (2 joints + 1, robots), are the sines of all joints, their cosines, and a one.
        """
        robots = weights.shape[-1]
        if not self._weights.shape[0]:  # nothing moves: the same for every robot of the batch
            return self._starts * weights[-1:]
        factors = pick_rows(weights, self._weights).reshape(*self._shape, robots)
        value = self._starts * factors[0]
        for place, matrices in enumerate(self._matrices, 1):
            value = (matrices @ value) * factors[place]
        return self._weighted_sum @ value


def _padded(steps: list[_Step], length: int, count: int) -> list[_Step]:
    """The steps of a chain, and behind them as many that do nothing as `length` asks for."""
    nothing = _Step(IDENTITY + ZERO * (count - 1), ((ONE, 0),) * count)
    return steps + [nothing] * (length - len(steps))


def _is_still(point: Vector, joint: Matrix) -> bool:
    """Whether a joint does not move a point: its matrices of sine and cosine give zero."""
    return max(map(abs, _times(joint, point)[4:])) < STILL


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
    """The matrices of weights 1, sin q (or q) and cos q of a moving link, below each other: (12, 4)."""
    parts = _slide_parts(link) if link.kind == "slide" else _hinge_parts(link)
    return [row for part in parts for row in _product(fixed, part)]


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
    """The matrices of weights cos(q / 2) and sin(q / 2), as above: (8, 4). A slide turns nothing."""
    axis = (0.0, 0.0, 0.0, 0.0)
    if link.kind == "hinge":
        axis = (0.0, *link.axis)
    of_cosine = _from_left(fixed)
    of_sine = _from_left(_quat_product(fixed, axis))
    return of_cosine + of_sine


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


def _times(matrix: Matrix, vector: Vector) -> Vector:
    return [_dot(row, vector) for row in matrix]


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
