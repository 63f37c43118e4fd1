"""Layouts of the numbers in a data set: each is the inverse of its inverse, and says what it means."""

import numpy as np
import pytest

from deftly.contract import STATE
from deftly.errors import DeftlyError
from deftly.tasks import load
from deftly.vla.features import (
    ACTION,
    OBS_STATE,
    Droid,
    Plain,
    exact,
    features,
    layout_of,
    seen_contract,
)


@pytest.fixture(scope="module")
def jaka():
    cls = load("jaka-pick-cube")
    return cls(cls.Config()).contract()


@pytest.fixture(scope="module")
def panda():
    cls = load("panda-pick-place")
    return cls(cls.Config()).contract()


def actions(contract, count=200, seed=0):
    drawn = np.random.default_rng(seed).uniform(-1.5, 1.5, (count, contract.action_size))
    return exact(contract, drawn.astype(np.float32))


def test_a_grippers_action_is_its_sign_and_the_others_are_clipped(jaka):
    action = exact(jaka, np.array([[2.0, -0.5, -3.0, 0.001], [0.1, 0.2, 0.3, 0.0]], np.float32))
    assert action.tolist() == [[1.0, -0.5, -1.0, 1.0], pytest.approx([0.1, 0.2, 0.3, -1.0])]


def test_exact_actions_do_to_the_robot_what_the_others_did(jaka):
    """The contract clips and takes the sign itself: what is stored moves the robot alike."""
    rng = np.random.default_rng(1)
    raw = rng.normal(0, 2, (50, jaka.action_size)).astype(np.float32)
    home = np.tile(np.array(jaka.home(), np.float32), (50, 1))
    signals = {"joint_pos": home, "cube_pos": np.zeros((50, 3), np.float32)}
    memory = jaka.reset(signals)
    want, _ = jaka.act(raw, memory)
    got, _ = jaka.act(exact(jaka, raw), memory)
    assert np.array_equal(want, got)


@pytest.mark.parametrize("robot", ["jaka", "panda"])
@pytest.mark.parametrize("layout", ["contract", "droid"])
def test_a_layouts_inverse_gives_back_actions_and_states(robot, layout, request):
    contract = request.getfixturevalue(robot)
    mapping, action = layout_of(layout, contract), actions(contract)
    if robot == "panda":
        action[:, 8] = action[:, 7]  # a gripper's fingers are told alike
    stored = mapping.to_dataset(action)
    assert stored.shape == (200, len(mapping.action_names))
    np.testing.assert_allclose(mapping.to_contract(stored), action, atol=1e-6)
    low = np.array([joint.lower for joint in contract.joints])
    high = np.array([joint.upper for joint in contract.joints])
    joints = np.random.default_rng(2).uniform(low, high, (50, len(low))).astype(np.float32)
    if robot == "panda":
        joints[:, 8] = joints[:, 7]  # and are open alike
    np.testing.assert_allclose(mapping.joint_pos(mapping.state(joints)), joints, atol=1e-5)


def test_droid_has_eight_numbers_and_a_gripper_of_one_is_open(jaka):
    droid = Droid(jaka)
    assert len(droid.state_names) == len(droid.action_names) == 8
    opened = np.array([[0.5, 0.0, 0.0, -1.0], [0.5, 0.0, 0.0, 1.0]], np.float32)
    assert droid.to_dataset(opened)[:, -1].tolist() == [1.0, 0.0]
    joints = np.array(jaka.home(), np.float32)
    gripper = jaka.joint_names.index("gripper")
    joints[gripper] = jaka.joints[gripper].upper
    assert droid.state(joints)[-1] == 1.0
    joints[gripper] = jaka.joints[gripper].lower
    assert droid.state(joints)[-1] == 0.0
    assert droid.state(joints)[6] == 0.0  # an arm of six joints


def test_droid_velocities_are_those_of_the_joints_in_rad_s_with_the_coupled_ones(jaka):
    """q4 = pi/2 - q2 - q3 and q6 = pi/2 + q1: their velocities follow."""
    speed = jaka.act_terms[0].scale[0]
    stored = Droid(jaka).to_dataset(np.array([0.5, 0.25, -1.0, 1.0], np.float32))
    want = np.array([0.5, 0.25, -1.0, 0.75, 0.0, 0.5]) * speed
    np.testing.assert_allclose(stored[:6], want, atol=1e-6)


def test_a_robot_without_a_gripper_does_not_fit_droid():
    cls = load("wildrobot-stand")
    with pytest.raises(DeftlyError, match=r"does not fit DROID's layout.*--layout contract"):
        Droid(cls(cls.Config()).contract())


def test_every_number_has_a_meaning(jaka):
    for mapping in (Plain(jaka), Droid(jaka)):
        assert set(mapping.meaning) == {*mapping.state_names, *mapping.action_names}
    assert Plain(jaka).meaning["gripper.gripper"] == "gripper: 1 closes, -1 opens; within [-1, 1]"
    scale = jaka.act_terms[0].scale[0]
    velocity = f"velocity, integrated on the command; 1 is {scale:g} rad/s; within [-1, 1]"
    assert Plain(jaka).meaning["joint_1.velocity"] == velocity
    assert "1 opens" in Droid(jaka).meaning["gripper.open"]


def test_the_contract_of_who_sees_has_images_joints_and_words(jaka):
    seen = seen_contract(jaka, ("front", "wrist"), 32, "lift it")
    assert seen.groups == (STATE, "front", "wrist")
    assert seen.group_shape("wrist") == (32, 32, 3)
    assert seen.group_shape() == (len(jaka.joints),)
    assert seen.act_terms == jaka.act_terms
    assert [given.text for given in seen.inputs] == ["lift it"]
    named = features(Plain(jaka), seen, video=True)
    assert named["observation.images.front"]["shape"] == (32, 32, 3)
    assert named[OBS_STATE]["names"] == list(jaka.joint_names)
    assert len(named[ACTION]["names"]) == 4
