"""The Panda's model against the published tables."""

import mujoco
import numpy as np
import pytest

from deftly.robots import load, panda

# World anchor (m) and axis at q = 0, range (rad, m), torque (N m), from the published model; None: a slide.
PUBLISHED = {
    "joint1": ((0, 0, 0.333), (0, 0, 1), (-2.8973, 2.8973), 87),
    "joint2": ((0, 0, 0.333), (0, 1, 0), (-1.7628, 1.7628), 87),
    "joint3": ((0, 0, 0.649), (0, 0, 1), (-2.8973, 2.8973), 87),
    "joint4": ((0.0825, 0, 0.649), (0, -1, 0), (-3.0718, -0.0698), 87),
    "joint5": ((0, 0, 1.033), (0, 0, 1), (-2.8973, 2.8973), 12),
    "joint6": ((0, 0, 1.033), (0, -1, 0), (-0.0175, 3.7525), 12),
    "joint7": ((0.088, 0, 1.033), (0, 0, -1), (-2.8973, 2.8973), 12),
    "finger_joint1": ((0.088, 0, 0.8676), (0.70711, -0.70711, 0), (0, 0.04), 70),
    "finger_joint2": ((0.088, 0, 0.8676), (-0.70711, 0.70711, 0), (0, 0.04), 70),
}
MASSES = {
    "base": 0.629769,
    "link1": 4.970684,
    "link2": 0.646926,
    "link3": 3.228604,
    "link4": 3.587895,
    "link5": 1.225946,
    "link6": 1.666555,
    "link7": 0.735522,
    "hand": 0.73,
    "left_finger": 0.015,
    "right_finger": 0.015,
}


@pytest.fixture(scope="module")
def model():
    return load("panda").spec().compile()


@pytest.fixture
def data(model):
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    return data


@pytest.mark.parametrize("joint", PUBLISHED)
def test_joints_are_as_published(model, data, joint):
    anchor, axis, limits, torque = PUBLISHED[joint]
    assert data.joint(joint).xanchor == pytest.approx(anchor, abs=1e-5)
    assert data.joint(joint).xaxis == pytest.approx(axis, abs=1e-5)
    assert model.joint(joint).range == pytest.approx(limits)
    assert model.actuator(joint).forcerange == pytest.approx((-torque, torque))


def test_masses_are_as_published(model):
    found = {model.body(i).name: float(model.body_mass[i]) for i in range(1, model.nbody)}
    assert found == pytest.approx(MASSES)


def test_speed_and_acceleration_are_the_makers():
    arm = panda.ROBOT.joints[:7]
    assert [joint.velocity for joint in arm] == [2.175] * 4 + [2.61] * 3
    assert [joint.acceleration for joint in arm] == [15, 7.5, 10, 12.5, 15, 20, 20]
    assert [joint.velocity for joint in panda.ROBOT.joints[7:]] == [0.05, 0.05]


def test_at_home_the_tool_points_down_and_the_fingers_move_sideways(model, data):
    data.qpos[:7] = panda.HOME
    mujoco.mj_forward(model, data)
    assert data.site("tool").xpos == pytest.approx((0.5, 0.0, 0.25), abs=1e-3)
    axes = data.site("tool").xmat.reshape(3, 3)
    assert axes[:, 2] == pytest.approx((0, 0, -1), abs=1e-3)
    assert np.abs(axes[:, 1]) == pytest.approx((0, 1, 0), abs=1e-3)
    inside = [data.contact[i].dist for i in range(data.ncon) if data.contact[i].dist < 0]
    assert inside == []


def settled(model, data, left: float, right: float) -> tuple[float, float]:
    """Where the fingers come to rest under two commands, m."""
    data.qpos[:7] = data.ctrl[:7] = panda.HOME
    data.qpos[7:9] = 0.02
    data.ctrl[7:] = (left, right)
    for _ in range(1000):
        mujoco.mj_step(model, data)
    return tuple(data.qpos[7:9])


def test_fingers_move_as_one(model, data):
    """Whatever each is told: the hand has one motor."""
    one, two = settled(model, data, 0.04, 0.0)
    assert one == pytest.approx(two, abs=1e-3)
    assert one == pytest.approx(0.02, abs=2e-3)
    assert settled(model, data, 0.04, 0.04) == pytest.approx((0.04, 0.04), abs=1e-3)


def test_closed_pads_meet_in_the_middle(model, data):
    """Their faces are 1.5 mm off the middle, as the published boxes are."""
    left, right = data.geom("left_pad").xpos, data.geom("right_pad").xpos
    gap = float(np.linalg.norm(left - right)) - 2 * panda.PAD_HALF[1]
    assert gap == pytest.approx(0.003, abs=1e-6)


def test_its_contract_says_where_the_tool_is(model, data):
    """The chain of the interface is that of the model, in any pose."""
    from deftly.contract import Derive, Observe, PolicyContract
    from deftly.contract.terms import Act

    derive = (Derive("tool", "forward_kinematics", site="tool", pose=True),)
    act = (Act(tuple(panda.LINKS), "velocity"),)
    contract = PolicyContract(panda.ROBOT.interface(), 20, (Observe("tool"),), act, (), derive)
    random = np.random.default_rng(0)
    for _ in range(20):
        q = [random.uniform(joint.lower, joint.upper) for joint in panda.ROBOT.joints]
        data.qpos[:9] = q
        mujoco.mj_kinematics(model, data)
        observed, _ = contract.observe(
            {"joint_pos": np.array(q)}, contract.reset({"joint_pos": np.array(q)})
        )
        pose = observed["state"]
        assert pose[:3] == pytest.approx(data.site("tool").xpos, abs=1e-5)
        turned = np.zeros(4)
        mujoco.mju_mat2Quat(turned, data.site("tool").xmat)
        assert abs(float(pose[3:] @ turned)) == pytest.approx(1.0, abs=1e-6)
