"""Joint positions that bring a site of a robot to a pose: inverse kinematics by damped least squares, batched."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deftly.contract.derive import relative_pose
from deftly.contract.kinematics import Kinematics

ITERATIONS = 6
"""Steps of Gauss and Newton; from the home of the Panda, four come within 0.01 mm and 0.01 mrad all over its table."""
DAMPING = 1e-4
"""Added to the diagonal, in m2 and rad2: joints that a pose leaves free stay where they are."""
DIFFERENCE = 1e-6
"""Step of the finite differences, rad or m."""


def reach(
    kinematics: Kinematics, start: Tensor, pose: Tensor, joints: Sequence[int] | slice
) -> Tensor:
    """Joint positions, `(n, num_joints)`, from which the site has this pose, or as nearly as it comes.

    Limits of the joints are not looked at: choose a start from which they are far.

    Args:
        kinematics: of the site alone, made for the dtype and device of `start`; float64, for the differences' sake.
        start: joint positions to begin with, `(n, num_joints)`, rad or m.
        pose: wanted position (m) and quaternion (w x y z) in the robot's base, `(n, 7)`.
        joints: which columns may change.
    """
    positions = start.clone()
    units = torch.eye(start.shape[-1], dtype=start.dtype, device=start.device)
    moves = units[joints] * DIFFERENCE
    damping = DAMPING * torch.eye(len(moves), dtype=start.dtype, device=start.device)
    for _ in range(ITERATIONS):
        error = _error(kinematics.poses(positions)[0], pose)  # (n, 6)
        jacobian = _jacobian(kinematics, positions, moves, pose, error)
        hessian = jacobian @ jacobian.mT + damping
        gradient = jacobian @ error[..., None]
        step = torch.linalg.solve(hessian, gradient)
        positions[:, joints] += step[..., 0]
    return positions


def _jacobian(
    kinematics: Kinematics, positions: Tensor, moves: Tensor, pose: Tensor, error: Tensor
) -> Tensor:
    """By how much of the error each joint's movement brings nearer, `(n, joints, 6)`, by forward differences."""
    moved = kinematics.poses(positions[:, None] + moves)[0]  # (n, joints, 7)
    wanted = pose[:, None].expand_as(moved)
    gained = error[:, None] - _error(moved, wanted)
    return gained / DIFFERENCE


def _error(now: Tensor, wanted: Tensor) -> Tensor:
    """What is missing to a pose, `(..., 6)`: a way in the base's frame, m, and a turn in the site's, rad."""
    way = wanted[..., :3] - now[..., :3]
    turn = 2.0 * relative_pose(now, wanted)[..., 4:]
    return torch.cat((way, turn), -1)
