"""Derived values against independent computations: rotation matrices by numpy, and MuJoCo's own kinematics."""

import mujoco
import numpy as np
import pytest
import torch
from contracts import ARM
from hypothesis import given, settings
from hypothesis import strategies as st

from deftly.contract import (
    Act,
    Derive,
    Input,
    Joint,
    Observe,
    PolicyContract,
    RobotInterface,
    Signal,
    derive,
)
from deftly.contract.arrays import Like
from deftly.contract.kinematics import Kinematics
from deftly.errors import DeftlyError
from deftly.robots import dexhand021, jaka_zu5, leap_hand
from deftly.robots.chain import site_chain

seeds = st.integers(0, 10_000)


def rotation(quat: np.ndarray) -> np.ndarray:
    out = np.empty(9)
    mujoco.mju_quat2Mat(out, quat)
    return out.reshape(3, 3)


def quaternion(rng: np.random.Generator) -> np.ndarray:
    quat = rng.normal(size=4)
    return quat / np.linalg.norm(quat)


@given(seeds)
@settings(max_examples=50, deadline=None)
def test_norm_and_difference(seed):
    a, b = np.random.default_rng(seed).normal(size=(2, 5, 3))
    assert derive.difference(a, b) == pytest.approx(a - b)
    assert derive.norm(a) == pytest.approx(np.linalg.norm(a, axis=-1, keepdims=True))


@given(seeds)
@settings(max_examples=50, deadline=None)
def test_projected_gravity_is_down_in_the_bodys_frame(seed):
    quat = quaternion(np.random.default_rng(seed))
    assert derive.projected_gravity(quat) == pytest.approx(
        rotation(quat).T @ [0.0, 0.0, -1.0], abs=1e-12
    )


@given(seeds)
@settings(max_examples=50, deadline=None)
def test_heading_frame_shares_the_yaw_alone(seed):
    rng = np.random.default_rng(seed)
    quat, vector = quaternion(rng), rng.normal(size=3)
    forward = rotation(quat) @ [1.0, 0.0, 0.0]
    yaw = np.arctan2(forward[1], forward[0])
    turned = np.array([[np.cos(yaw), np.sin(yaw), 0], [-np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]])
    assert derive.heading_frame(vector, quat) == pytest.approx(turned @ vector, abs=1e-9)


def test_heading_frame_of_a_body_that_looks_straight_up_is_the_worlds():
    quat = np.array([0.5**0.5, 0.0, -(0.5**0.5), 0.0])
    assert derive.heading_frame(np.array([1.0, 2.0, 3.0]), quat) == pytest.approx([1.0, 2.0, 3.0])


@given(seeds)
@settings(max_examples=50, deadline=None)
def test_relative_pose_leads_from_a_to_b(seed):
    rng = np.random.default_rng(seed)
    a, b = (np.concatenate((rng.normal(size=3), quaternion(rng))) for _ in range(2))
    seen = derive.relative_pose(a, b)
    assert rotation(a[3:]) @ seen[:3] + a[:3] == pytest.approx(b[:3], abs=1e-12)
    assert rotation(a[3:]) @ rotation(seen[3:]) == pytest.approx(rotation(b[3:]), abs=1e-12)
    assert seen[3] >= 0


@given(seeds)
@settings(max_examples=50, deadline=None)
def test_world_frame_turns_a_bodys_vector(seed):
    rng = np.random.default_rng(seed)
    quat, vector = quaternion(rng), rng.normal(size=3)
    assert derive.world_frame(vector, quat) == pytest.approx(rotation(quat) @ vector, abs=1e-12)


@given(st.floats(-7, 7), st.floats(-7, 7))
def test_angle_between_is_the_short_way(start, end):
    turn = derive.angle_between(np.array([start]), np.array([end]))
    assert -np.pi <= turn[0] <= np.pi
    assert np.exp(1j * (start + turn[0])) == pytest.approx(np.exp(1j * end))


# ------------------------------------------------------------------ what a step before decides


def test_a_part_is_some_elements_of_what_is_measured_or_derived():
    signals = (Signal("joint_pos", 1, "rad"), Signal("pose", 7))
    contract = PolicyContract(
        RobotInterface("arm", (Joint("a", -1.0, 1.0, 0.0, 5.0),), signals),
        50.0,
        (Observe("quat"), Observe("height")),
        (Act(("a",), "relative", (0.5,)),),
        derive=(
            Derive("quat", "part", ("pose",), first=3, count=4),
            Derive("height", "part", ("pose",), first=2, count=1),
        ),
    )
    for library in (np.array, torch.tensor):
        values = {
            "joint_pos": library([[0.0], [0.0]]),
            "pose": library([[1.0, 2, 3, 4, 5, 6, 7], [8.0, 9, 10, 11, 12, 13, 14]]),
        }
        obs, _ = contract.observe(values, contract.reset(values))
        assert obs["state"].tolist() == [[4, 5, 6, 7, 3], [11, 12, 13, 14, 10]]


def walker() -> PolicyContract:
    """Sees the rate of its joint and the error of its heading, at 50 Hz."""
    joint = Joint("hip", -1.0, 1.0, 0.0, 5.0)
    signals = (Signal("joint_pos", 1, "rad"), Signal("orientation", 4))
    return PolicyContract(
        RobotInterface("walker", (joint,), signals),
        50.0,
        (Observe("speed"), Observe("off")),
        (Act(("hip",), "relative", (0.5,)),),
        inputs=(Input("turn", 1, "rad/s", lower=(-2.0,), upper=(2.0,)),),
        derive=(
            Derive("speed", "rate", ("joint_pos",)),
            Derive("off", "heading_error", ("orientation", "turn")),
        ),
    )


def facing(yaw: float) -> np.ndarray:
    return np.array([np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)])


def seen_by_walker(yaws, joints, turn=0.0):
    """What the walker sees, (steps, 2), with these headings and joint positions."""
    contract = walker()
    memory, seen = None, []
    for yaw, joint in zip(yaws, joints):
        signals = {"joint_pos": np.array([float(joint)]), "orientation": facing(yaw)}
        said = {"turn": np.array([turn])}
        memory = memory or contract.reset(signals, said)
        obs, memory = contract.observe(signals, memory, said)
        seen.append(obs["state"])
    return np.array(seen)


def test_rate_is_the_change_per_second_and_zero_at_first():
    seen = seen_by_walker([0, 0, 0, 0], [0.1, 0.2, 0.2, -0.1])
    assert seen[:, 0] == pytest.approx([0.0, 5.0, 0.0, -15.0])


@pytest.mark.parametrize("start", [0.0, 2.0, -3.1])
def test_heading_error_counts_from_the_first_heading_across_the_turn(start):
    seen = seen_by_walker(start + np.array([0.0, 0.1, -0.2, 0.0]), [0] * 4)
    assert seen[:, 1] == pytest.approx([0.0, -0.1, 0.2, 0.0], abs=1e-9)


def test_the_commanded_heading_turns_with_the_commanded_rate():
    seen = seen_by_walker([0.5] * 201, [0] * 201, turn=1.0)
    assert seen[:3, 1] == pytest.approx([0.0, 0.02, 0.04])
    assert seen[200, 1] == pytest.approx(4.0 - 2 * np.pi)


def test_a_batch_remembers_as_one_robot_does():
    contract = walker()
    yaws = torch.tensor([[0.0, 3.0], [0.3, -3.0]])
    memory = None
    for row in yaws:
        orientation = torch.stack(((row / 2).cos(), 0 * row, 0 * row, (row / 2).sin()), -1)
        signals = {"joint_pos": row[:, None], "orientation": orientation}
        memory = memory or contract.reset(signals)
        obs, memory = contract.observe(signals, memory)
    assert obs["state"].numpy() == pytest.approx(
        np.array([[15.0, -0.3], [-300.0, -(2 * np.pi - 6.0)]]), abs=1e-4
    )


# ------------------------------------------------------------------ forward kinematics


def poses(robot, count=50):
    rng = np.random.default_rng(0)
    lower, upper = np.array([(joint.lower, joint.upper) for joint in robot.joints]).T
    return rng.uniform(lower, upper, (count, len(lower)))


def by_mujoco(model, site, joints, q):
    """Position and orientation of a site."""
    data = mujoco.MjData(model)
    places = [int(model.joint(joint.name).qposadr[0]) for joint in joints]
    found = []
    for row in q:
        data.qpos[places] = row
        mujoco.mj_kinematics(model, data)
        found.append((data.site(site).xpos.copy(), data.site(site).xmat.reshape(3, 3).copy()))
    return map(np.array, zip(*found))


@pytest.mark.parametrize(
    ("robot", "site"),
    [(jaka_zu5.ROBOT, "pinch"), (leap_hand.RIGHT, "if_tip"), (leap_hand.LEFT_CUSTOM, "th_tip")],
)
def test_a_site_is_where_mujoco_has_it(robot, site):
    model = robot.spec().compile()
    chain = site_chain(model, site, [joint.name for joint in robot.joints])
    q = poses(robot)
    positions, matrices = by_mujoco(model, site, robot.joints, q)
    kinematics = Kinematics([chain], robot.interface(), Like(q))
    assert np.abs(kinematics.positions(q)[0] - positions).max() < 1e-6
    (pose,) = kinematics.poses(q)
    assert np.abs(pose[:, :3] - positions).max() < 1e-6
    assert np.abs(np.array([rotation(quat) for quat in pose[:, 3:]]) - matrices).max() < 1e-6
    assert (pose[:, 3] >= 0).all()


ODD = """
<mujoco>
  <compiler angle="radian"/>
  <worldbody>
    <body name="base" pos="1 2 3" quat=".5 .5 .5 .5">
      {free}
      <geom size=".1"/>
      <body pos=".1 .2 .3" euler=".1 .2 .3">
        <joint name="turn" type="hinge" axis=".6 0 .8" pos=".05 -.1 .2" ref=".4"/>
        <joint name="rail" type="slide" axis="0 1 0" ref=".2"/>
        <geom size=".1"/>
        <body pos="0 0 .4">
          <joint name="lift" type="hinge" axis="0 1 0" pos="0 0 -.1"/>
          <geom size=".1"/>
          <site name="end" pos=".1 .2 .3" euler="1 0 0"/>
        </body>
      </body>
    </body>
    <site name="mark" pos="1 0 0"/>
  </worldbody>
</mujoco>
"""


def test_anchors_references_slides_and_several_joints_of_a_body():
    from deftly.contract import Joint
    from deftly.robots import Robot

    joints = tuple(
        Joint(name, -1, 1, 0, 1, "m" if name == "rail" else "rad")
        for name in ("lift", "rail", "turn")
    )
    robot = Robot(
        "odd",
        "Odd",
        lambda: mujoco.MjSpec.from_string(ODD.format(free="")),
        joints,
        sites=("end", "mark"),
    )
    model = robot.spec().compile()
    q = poses(robot)
    positions, matrices = by_mujoco(model, "end", joints, q)
    interface = robot.interface()
    (pose,) = Kinematics([interface.site("end")], interface, Like(q)).poses(q)
    assert np.abs(pose[:, :3] - positions).max() < 1e-6
    assert np.abs(np.array([rotation(quat) for quat in pose[:, 3:]]) - matrices).max() < 1e-6
    (fixed,) = Kinematics([interface.site("mark")], interface, Like(q)).poses(q)
    assert fixed.shape == (50, 7)
    assert fixed[7] == pytest.approx([1, 0, 0, 1, 0, 0, 0])


def test_the_base_is_the_body_that_floats():
    model = mujoco.MjModel.from_xml_string(ODD.format(free='<freejoint name="root"/>'))
    fixed = mujoco.MjModel.from_xml_string(
        ODD.format(free="").replace('pos="1 2 3" quat=".5 .5 .5 .5"', "")
    )
    names = ("turn", "rail", "lift")
    assert site_chain(model, "end", names) == site_chain(fixed, "end", names)


def test_what_has_no_chain_is_refused():
    model = mujoco.MjModel.from_xml_string(ODD.format(free=""))
    with pytest.raises(DeftlyError, match="no site 'tip', but"):
        site_chain(model, "tip", ("turn",))
    with pytest.raises(DeftlyError, match="hangs on joint 'rail', which is none of the robot's"):
        site_chain(model, "end", ("turn", "lift"))


def test_a_single_robot_is_a_row_of_the_batch():
    q = poses(ARM, 5)
    kinematics = Kinematics([ARM.site("tip")], ARM, Like(q))
    assert kinematics.poses(q)[:, 3] == pytest.approx(kinematics.poses(q[3]), abs=1e-12)


def test_sites_at_once_are_those_one_by_one():
    robot = dexhand021.RIGHT
    interface = robot.interface()
    sites = [*interface.sites, interface.sites[0]]
    q = poses(robot, 6)
    together = Kinematics(sites, interface, Like(q))
    alone = [Kinematics([site], interface, Like(q)) for site in sites]
    assert len({len(site.chain) for site in sites}) > 1  # chains of several lengths
    assert together.positions(q) == pytest.approx(
        np.concatenate([each.positions(q) for each in alone]), abs=1e-12
    )
    assert together.poses(q) == pytest.approx(
        np.concatenate([each.poses(q) for each in alone]), abs=1e-12
    )
    grid = q.reshape(2, 3, -1)
    assert together.poses(grid) == pytest.approx(together.poses(q).reshape(-1, 2, 3, 7), abs=1e-12)
    assert together.poses(q[:0]).shape == (len(sites), 0, 7)
    tensor = torch.from_numpy(q)
    found = Kinematics(sites, interface, Like(tensor)).poses(tensor)
    assert found.numpy() == pytest.approx(together.poses(q), abs=1e-12)


def test_every_site_is_where_mujoco_has_it():
    robot = dexhand021.RIGHT
    interface = robot.interface()
    q = poses(robot)
    found = Kinematics(interface.sites, interface, Like(q)).poses(q)
    model = robot.spec().compile()
    for site, pose in zip(interface.sites, found, strict=True):
        positions, matrices = by_mujoco(model, site.name, robot.joints, q)
        assert np.abs(pose[:, :3] - positions).max() < 1e-6
        assert np.abs(np.array([rotation(quat) for quat in pose[:, 3:]]) - matrices).max() < 1e-6
