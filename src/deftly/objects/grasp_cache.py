"""Grasp caches: the poses of a hand and what it holds, from which in-hand tasks start. `deftly grasps` makes them.

A cache is an .npz: `schema`, `task`, `hand`, `contract` (hash), `joint_names` (16,), `cube_half` (n,) m,
`joint_pos` (n, 16) rad, `cube_pose` (n, 7) m and quaternion w x y z in the frame of the palm, `seed`, `tried` (k,) and
`sizes` (k,): how many poses of each size were tried.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from deftly.console import printable
from deftly.contract import PolicyContract
from deftly.errors import DeftlyError
from deftly.files import read_npz

SCHEMA = "deftly.grasps/1"
ARRAYS = {"cube_half": 1, "joint_pos": 2, "cube_pose": 2}
"""The numbers of a cache, and how many axes each array has."""
TEXTS = {"schema": 0, "hand": 0, "joint_names": 1}
MAX_BYTES = 256 << 20
"""Largest cache that is read, unpacked: a million grasps of 16 joints."""
HELP = "collect one: deftly grasps {task} --out FILE, and give it as --task.grasps FILE"


@dataclass(frozen=True)
class Grasps:
    """Grasps in the order of the size of what is held."""

    cube_half: Tensor  # (n,) m
    joint_pos: Tensor  # (n, num_joints) rad
    cube_pose: Tensor  # (n, 7) m and quaternion w x y z

    @classmethod
    def load(cls, path: Path | None, task: str, contract: PolicyContract) -> Grasps:
        """Read a cache, or the one shipped for the task. DeftlyError if it is missing, corrupt or foreign."""
        path = path or shipped(task)
        advice = HELP.format(task=task)
        found = read_npz(
            path, "a grasp cache", MAX_BYTES, numbers=ARRAYS, texts=TEXTS, advice=advice
        )
        if str(found["schema"]) != SCHEMA:
            raise DeftlyError(
                f"{path} has schema '{printable(found['schema'])}', this Deftly reads {SCHEMA}: {advice}"
            )
        is_same_hand = str(found["hand"]) == contract.robot.name
        joint_names = tuple(map(str, found["joint_names"]))
        if not is_same_hand or joint_names != contract.joint_names:
            raise DeftlyError(
                f"{path} holds grasps of '{printable(found['hand'])}', the task has {contract.robot.name}: {advice}"
            )
        half, joint_pos, pose = (found[name] for name in ARRAYS)
        count = len(half)
        shapes = (half.shape, joint_pos.shape, pose.shape)
        expected = ((count,), (count, len(contract.joints)), (count, 7))
        if not count or shapes != expected:
            raise DeftlyError(f"{path} is corrupt: arrays of shape {shapes}: {advice}")
        if (half <= 0).any():
            raise DeftlyError(f"{path} is corrupt: it holds sizes that are not positive: {advice}")
        order = torch.from_numpy(np.argsort(half, kind="stable"))
        arrays = [torch.from_numpy(array).double() for array in (half, joint_pos, pose)]
        return cls(*(array[order] for array in arrays))

    def to(self, device: torch.device, dtype: torch.dtype) -> Grasps:
        """The same grasps on a device; themselves if they are there."""
        if self.cube_half.device == device and self.cube_half.dtype == dtype:
            return self
        if (device, dtype) not in self._copies:
            arrays = (self.cube_half, self.joint_pos, self.cube_pose)
            self._copies[device, dtype] = Grasps(*(array.to(device, dtype) for array in arrays))
        return self._copies[device, dtype]

    @cached_property
    def _copies(self) -> dict[tuple[torch.device, torch.dtype], Grasps]:
        return {}

    @cached_property
    def _groups(self) -> tuple[Tensor, Tensor]:
        """The sizes, and how many grasps there are of each."""
        return torch.unique_consecutive(self.cube_half, return_counts=True)  # type: ignore[return-value]

    def draw(self, half: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Joint positions and cube poses, `(k, ...)`, of the sizes nearest to `half` (k,); `u` in 0 .. 1 chooses."""
        sizes, counts = self._groups
        nearest = (half[:, None] - sizes).abs().argmin(-1)
        first = counts.cumsum(0) - counts
        rows = first[nearest] + (u * counts[nearest]).long()
        return self.joint_pos[rows], self.cube_pose[rows]


def shipped(task: str) -> Path:
    """Where the cache of a task lies in the package."""
    return Path(__file__).parents[1] / "shipped/grasp_caches" / f"{task}.npz"
