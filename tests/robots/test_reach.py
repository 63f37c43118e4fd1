import numpy as np
import torch

from deftly.robots import panda
from deftly.robots.reach import reach


def test_the_tool_comes_to_poses_all_over_the_table():
    rng = np.random.default_rng(0)
    interface = panda.ROBOT.interface()
    start = torch.zeros(200, len(interface.joints), dtype=torch.float64)
    start[:, :7] = torch.tensor(panda.HOME)
    tool = panda.TOOL_KINEMATICS.like(start)

    place = rng.uniform((0.38, -0.18, 0.01), (0.62, 0.18, 0.25), (200, 3))
    half_yaw = torch.tensor(rng.uniform(-0.3, 0.3, 200)) / 2
    down = torch.zeros(200, 4, dtype=torch.float64)
    down[:, 1], down[:, 2] = half_yaw.cos(), half_yaw.sin()
    pose = torch.cat((torch.tensor(place), down), -1)
    found = reach(tool, start, pose, slice(0, 7))

    (reached,) = tool.poses(found)
    assert (reached[:, :3] - pose[:, :3]).abs().max() < 1e-4
    assert ((reached[:, 3:] * pose[:, 3:]).sum(-1).abs() - 1).abs().max() < 1e-6
    limits = torch.tensor([(j.lower, j.upper) for j in interface.joints[:7]])
    assert (found[:, :7] > limits[:, 0]).all()
    assert (found[:, :7] < limits[:, 1]).all()
    assert (found[:, 7:] == start[:, 7:]).all(), "joints that are not to move stay"
