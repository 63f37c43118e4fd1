import mujoco
import numpy as np
import pytest
import torch

from deftly.robots import dexhand021, load
from deftly.robots.dexhand021 import BASE, DRIVEN, finger_joints

# World anchor (m) and axis of each joint at q = 0, from the published model's table.
PUBLISHED = {
    "f_joint1_1": ((0.11211, 0.02378, -0.03278), (-0.95309, 0.20792, 0.22)),
    "f_joint1_2": ((0.11337, 0.03175, -0.03485), (-0.26212, -0.20342, -0.94335)),
    "f_joint1_3": ((0.11988, 0.07289, -0.04553), (-0.26212, -0.20342, -0.94335)),
    "f_joint1_4": ((0.12367, 0.09681, -0.05174), (-0.26212, -0.20342, -0.94335)),
    "f_joint2_1": ((0.1644, 0.03491, -0.00697), (0, 0, 1)),
    "f_joint2_2": ((0.1814, 0.03491, -0.00697), (0, 1, 0)),
    "f_joint2_4": ((0.2494, 0.03491, -0.00697), (0, 1, 0)),
    "f_joint3_3": ((0.2334, 0.01061, -0.00697), (0, 1, 0)),
    "f_joint4_1": ((0.1644, -0.01369, -0.00697), (0, 0, -1)),
    "f_joint4_3": ((0.2244, -0.01369, -0.00697), (0, 1, 0)),
    "f_joint5_1": ((0.1504, -0.03799, -0.00697), (0, 0, -1)),
    "f_joint5_4": ((0.2354, -0.03799, -0.00697), (0, 1, 0)),
}
PADS = {
    1: (0.13025, 0.12137, -0.05781),
    2: (0.2754, 0.03491, -0.00947),
    3: (0.2844, 0.01061, -0.00947),
    4: (0.2754, -0.01369, -0.00947),
    5: (0.2614, -0.03799, -0.00947),
}


def placed(name: str, fingers: np.ndarray | float = 0.0) -> tuple[mujoco.MjModel, mujoco.MjData]:
    model = load(name).spec().compile()
    data = mujoco.MjData(model)
    data.qpos[6:] = fingers
    mujoco.mj_forward(model, data)
    return model, data


def finger_poses(count: int) -> np.ndarray:
    joints = dexhand021.joints()[6:]
    lower = [joint.lower for joint in joints]
    upper = [joint.upper for joint in joints]
    return np.random.default_rng(0).uniform(lower, upper, (count, 20))


@pytest.mark.parametrize("joint", PUBLISHED)
def test_joints_are_where_they_are_published(joint):
    _, data = placed("dexhand021-right")
    anchor, axis = PUBLISHED[joint]
    assert data.joint(joint).xanchor == pytest.approx(anchor, abs=2e-5)
    assert data.joint(joint).xaxis == pytest.approx(axis, abs=2e-5)


@pytest.mark.parametrize("finger", PADS)
def test_pads_are_where_they_are_published(finger):
    _, data = placed("dexhand021-right")
    assert data.site(f"f_pad{finger}").xpos == pytest.approx(PADS[finger], abs=2e-5)


def test_left_hand_is_the_mirror_image_in_every_pose():
    for pose in finger_poses(30):
        _, right = placed("dexhand021-right", pose)
        _, left = placed("dexhand021-left", pose)
        assert left.geom_xpos * [1, -1, 1] == pytest.approx(right.geom_xpos, abs=1e-9)
        assert left.xipos * [1, -1, 1] == pytest.approx(right.xipos, abs=1e-9)


def test_mirrored_hands_move_alike():
    """The same commands of the fingers: dynamics mirror too."""
    targets = finger_poses(1)[0]
    ends = {}
    for name in ("dexhand021-right", "dexhand021-left"):
        model, data = placed(name)
        data.ctrl[6:] = targets
        for _ in range(300):
            mujoco.mj_step(model, data)
        ends[name] = data.qpos[6:].copy()
    assert ends["dexhand021-left"] == pytest.approx(ends["dexhand021-right"], abs=1e-6)
    assert np.abs(ends["dexhand021-right"]).max() > 0.2


def test_twelve_motors_drive_twenty_joints():
    """Seed 001's table: distal joints turn together, the little finger spreads twice as far, the middle not at all."""
    interface = load("dexhand021-right").interface()
    assert interface.joint_names == (*BASE, *finger_joints())
    followers = {coupling.joint for coupling in interface.couplings}
    assert {name for name in finger_joints() if name not in followers} == set(DRIVEN)
    ratios = {coupling.joint: dict(coupling.of) for coupling in interface.couplings}
    assert ratios["f_joint5_1"] == {"f_joint2_1": 2.0}
    assert ratios["f_joint4_1"] == {"f_joint2_1": 1.0}
    assert ratios["f_joint3_1"] == {}
    assert all(ratios[f"f_joint{i}_4"] == {f"f_joint{i}_3": 1.0} for i in range(1, 6))


def test_open_and_closed_hands_touch_nothing_of_themselves_at_rest():
    for pose in (np.zeros(20), np.tile([0.0, 0.3, 0.2, 0.2], 5)):
        _, data = placed("dexhand021-right", pose)
        assert data.ncon == 0


def test_a_finger_presses_with_what_its_servo_has():
    """10 N at the tip of a straight index finger is its first servo's limit: the chosen torque."""
    model, data = placed("dexhand021-right")
    torque = model.actuator("f_joint2_2").forcerange[1]
    lever = data.site("f_pad2").xpos[0] - data.joint("f_joint2_2").xanchor[0]
    assert torque / lever == pytest.approx(10.0, rel=0.1)


def test_pads_feel_what_presses_them():
    """A weight on an upturned index pad: its touch sensor reads the weight."""
    spec = dexhand021.spec(1.0)
    spec.option.timestep = 0.002
    ball = spec.worldbody.add_body(name="ball", pos=[0.2754, 0.0349, 0.05])
    ball.add_joint(type=mujoco.mjtJoint.mjJNT_SLIDE, axis=[0, 0, 1])
    ball.add_geom(size=[0.01, 0, 0], mass=0.1)
    model = spec.compile()
    data = mujoco.MjData(model)
    turned = model.joint("ARRx").qposadr[0]
    data.qpos[turned] = np.pi  # palm up
    data.ctrl[model.actuator("ARRx").id] = np.pi
    model.body("ball").pos[1] = -0.0349
    for _ in range(1500):
        mujoco.mj_step(model, data)
    assert data.sensor("touch2").data[0] == pytest.approx(0.981, rel=0.1)
    assert data.sensor("touch3").data[0] == 0.0


def test_kinematics_of_the_pads_are_those_of_the_model():
    robot = load("dexhand021-left")
    interface = robot.interface()
    marked = {f"f_{kind}{i}" for kind in ("pad", "tip") for i in range(1, 6)}
    assert {site.name for site in interface.sites} == {"palm", *marked}
    assert torch.tensor(interface.home()).abs().max() == 0
