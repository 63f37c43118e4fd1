"""Grasp caches."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


class Grasps:
    def __init__(self, half, joint_pos, pose):
        order = np.argsort(half, kind="stable")
        self.half = torch.from_numpy(half[order]).double()
        self.joint_pos, self.pose = torch.from_numpy(joint_pos[order]).double(), torch.from_numpy(pose[order]).double()
        self.sizes, self.counts = torch.unique(self.half, return_counts=True)
        self.starts = torch.cumsum(self.counts, 0) - self.counts

    @classmethod
    def load(cls, path, task, contract):
        with np.load(path, allow_pickle=False) as f:
            return cls(f["cube_half"], f["joint_pos"], f["cube_pose"])

    def draw(self, half: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        nearest = (half[:, None] - self.sizes).abs().argmin(-1)
        rows = self.starts[nearest] + (u * self.counts[nearest]).long()
        return self.joint_pos[rows], self.pose[rows]
