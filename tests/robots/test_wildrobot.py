"""WildRobot: its tables, that left and right are mirror images, its servos, and what its sensors call forward."""

import mujoco
import numpy as np
import pytest

from deftly.contract import derive
from deftly.robots import wildrobot
from deftly.robots.check import check
from deftly.robots.wildrobot import LEG, ROBOT, WILD

DT = 0.005
HOME = np.array([joint.home for joint in ROBOT.joints])


@pytest.fixture(scope="module")
def model() -> mujoco.MjModel:
    spec = WILD.scene()
    spec.option.timestep = DT
    return spec.compile()


@pytest.fixture
def data(model) -> mujoco.MjData:
    data = mujoco.MjData(model)
    mujoco.mj_resetDataKeyframe(model, data, 0)
    mujoco.mj_forward(model, data)
    return data


def simulate(model, data, seconds):
    while data.time < seconds - 1e-9:
        mujoco.mj_step(model, data)


def test_check_finds_nothing():
    assert [finding for finding in check(ROBOT) if finding.level != "ok"] == []


def test_masses_and_lengths_are_the_tables(model):
    assert model.body_mass.sum() == pytest.approx(3.297, abs=1e-3)
    assert model.body("waist").mass[0] == pytest.approx(1.28083)
    shin = model.body("left_ankle_pitch").pos - [0, model.body("left_ankle_pitch").pos[1], 0]
    assert np.linalg.norm(shin) == pytest.approx(0.180, abs=1e-3)
    assert model.site("chest_imu").pos == pytest.approx([0, 0, 0.1672])


def test_joints_are_the_policy_specs(model):
    legs = [f"{side}_{link.joint}" for side in ("left", "right") for link in LEG]
    assert [joint.name for joint in ROBOT.joints] == legs
    assert [model.actuator(i).name for i in range(model.nu)] == legs
    signs = {motor.joint: motor.sign for motor in ROBOT.motors}
    turned = {name for name, sign in signs.items() if sign == -1}
    assert turned == {"right_hip_pitch", "right_hip_roll"}


def test_equal_joint_values_are_mirrored_poses(model, data):
    rng = np.random.default_rng(0)
    for _ in range(20):
        leg = [rng.uniform(*link.limits) for link in LEG]
        data.qpos[7:] = [*leg, *leg]
        mujoco.mj_kinematics(model, data)
        left, right = data.site("left_foot").xpos, data.site("right_foot").xpos
        assert right == pytest.approx(left * [1, -1, 1], abs=1e-9)


def test_legs_weigh_and_resist_the_same_as_their_mirror_image(model):
    mirror = np.diag([1.0, -1.0, 1.0])
    for link in LEG:
        left, right = (model.body(f"{side}_{link.joint}") for side in ("left", "right"))
        assert right.ipos == pytest.approx(left.ipos * [1, -1, 1], abs=1e-9)
        inertias = []
        for body in (left, right):
            rotation = np.empty(9)
            mujoco.mju_quat2Mat(rotation, body.iquat)
            turn = rotation.reshape(3, 3)
            inertias.append(turn @ np.diag(body.inertia) @ turn.T)
        assert inertias[1] == pytest.approx(mirror @ inertias[0] @ mirror, abs=1e-9)


def test_positive_angles_are_what_the_file_says(model, data):
    names = [joint.name for joint in ROBOT.joints]
    data.qpos[7:] = 0.0
    mujoco.mj_kinematics(model, data)
    straight = data.site("left_foot").xpos.copy()
    moves = {"left_hip_pitch": (0, 1), "left_hip_roll": (1, -1), "left_knee": (0, -1)}
    for name, (axis, sign) in moves.items():
        data.qpos[7:] = 0.0
        data.qpos[7 + names.index(name)] = 0.15
        mujoco.mj_kinematics(model, data)
        assert sign * (data.site("left_foot").xpos - straight)[axis] > 0.02
    data.qpos[7:] = 0.0
    data.qpos[7 + names.index("left_ankle_pitch")] = 0.2
    mujoco.mj_kinematics(model, data)
    assert data.geom("left_toe").xpos[2] < data.geom("left_heel").xpos[2] - 0.02


def test_home_stands_with_level_feet(model, data):
    assert data.ncon == 8
    simulate(model, data, 5.0)
    assert data.qpos[:2] == pytest.approx([0, 0], abs=0.01)
    assert data.qpos[2] == pytest.approx(wildrobot.HOME_HEIGHT, abs=0.005)
    assert np.abs(data.qpos[7:] - HOME).max() < 0.03
    assert np.abs(data.actuator_force).max() < 0.15 * wildrobot.TORQUE
    sole = [data.geom(pad).xpos[2] for pad in WILD.pads]
    assert sole == pytest.approx([wildrobot.PAD] * 4, abs=1e-3)


def test_servo_is_no_stronger_than_its_speed_allows(model):
    """Driven as hard as it can be, a free joint gains (4 N m (1 - speed / 10 rad/s) - friction) / inertia."""
    spec = mujoco.MjSpec()
    spec.option.timestep = 1e-4
    spec.option.gravity = (0, 0, 0)
    body = spec.worldbody.add_body(name="leg", mass=1e-6, ipos=(0, 0, 0), inertia=(1e-9,) * 3)
    wildrobot._add_servo(spec, body, LEG[0]._replace(limits=(-100.0, 100.0)), 1.0)
    alone = spec.compile()
    data = mujoco.MjData(alone)
    data.ctrl[:] = 100.0
    speeds, before = [], 0.0
    while data.time < 0.15:
        mujoco.mj_step(alone, data)
        speed = data.qvel[0]
        torque = wildrobot.ARMATURE * (speed - before) / 1e-4
        limit = wildrobot.TORQUE * (1 - speed / wildrobot.SPEED)
        assert torque <= limit + 0.02
        before = speed
        speeds.append(speed)
    assert 0.8 * wildrobot.SPEED < max(speeds) < wildrobot.SPEED


def turned(axis, angle):
    quat = np.empty(4)
    mujoco.mju_axisAngle2Quat(quat, np.array(axis, float), angle)
    return quat


def test_inertial_sensor_knows_forward_left_and_up():
    """Nose down: gravity pulls forward. Leaning to the left: gravity pulls left."""
    assert derive.projected_gravity(turned((0, 1, 0), 0.2))[0] > 0.19
    assert derive.projected_gravity(turned((1, 0, 0), -0.2))[1] > 0.19
    assert derive.projected_gravity(turned((0, 0, 1), 1.0)) == pytest.approx([0, 0, -1])


def test_foot_switches_are_left_toe_left_heel_right_toe_right_heel(model, data):
    assert WILD.pads == ("left_toe", "left_heel", "right_toe", "right_heel")
    for lean, pressed in (((0, 1, 0), "toe"), ((0, -1, 0), "heel")):
        mujoco.mj_resetDataKeyframe(model, data, 0)
        data.qpos[3:7] = turned(lean, 0.06)
        data.qpos[2] += 0.002
        mujoco.mj_forward(model, data)
        touching = {model.geom(g).name for c in data.contact[: data.ncon] for g in c.geom}
        assert {f"left_{pressed}", f"right_{pressed}"} <= touching
        assert len(touching) == 3  # and the floor
