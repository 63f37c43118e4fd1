import dataclasses

import mujoco
import pytest

from deftly import robots
from deftly.console import failed
from deftly.contract import Joint
from deftly.errors import DeftlyError
from deftly.robots.check import check

JAKA = robots.load("jaka-zu5")
LIMIT = (-1.5, 1.5)


def arm(change=lambda spec: None, joints=("one", "two"), homes=(0.3, 0.4)):
    """A sound robot of two links, to be broken by `change`."""

    def spec() -> mujoco.MjSpec:
        s = mujoco.MjSpec()
        s.compiler.degree = False
        body = s.worldbody.add_body(name="base")
        body.add_geom(name="base", size=[0.05, 0, 0], mass=1.0)
        for name in ("one", "two"):
            body = body.add_body(name=f"link_{name}", pos=[0.3, 0, 0], gravcomp=1)
            body.add_joint(name=name, axis=[0, 1, 0], range=LIMIT, armature=0.05)
            geom = body.add_geom(
                name=name, type=mujoco.mjtGeom.mjGEOM_CAPSULE, fromto=[0, 0, 0, 0.2, 0, 0]
            )
            geom.size[0], geom.mass = 0.03, 1.0
            actuator = s.add_actuator(name=name, target=name, trntype=mujoco.mjtTrn.mjTRN_JOINT)
            actuator.set_to_position(kp=100.0, kv=10.0)
            actuator.ctrlrange, actuator.forcerange = LIMIT, (-20, 20)
        change(s)
        return s

    listed = tuple(
        Joint(name, *LIMIT, home=home, velocity=2.0) for name, home in zip(joints, homes)
    )
    return robots.Robot("arm", "Two links", spec, listed)


def level(robot, name):
    return next(finding.level for finding in check(robot) if finding.name == name)


def test_shipped_robots_pass():
    for name in robots.shipped():
        assert not failed(check(robots.load(name)))


def test_jaka_is_found_by_name():
    assert JAKA.name == "jaka-zu5"
    assert robots.shipped()["jaka-zu5"] == "deftly.robots.jaka_zu5"


def test_sound_arm_passes():
    assert {finding.level for finding in check(arm())} == {"ok"}


def test_wrong_limit():
    def change(s):
        s.joint("two").range = (-1.5, 1.6)

    assert level(arm(change), "limits") == "fail"


def test_unlimited_joint_and_actuator():
    def change(s):
        s.joint("one").limited = 0
        s.actuator("one").ctrllimited = 0

    (found,) = (f for f in check(arm(change)) if f.name == "limits")
    assert found.level == "fail"
    assert "not limited" in found.text
    assert "no ctrlrange" in found.text


def test_limits_of_jaka_in_degrees():
    degrees = tuple(dataclasses.replace(j, upper=57.3 * j.upper) for j in JAKA.joints)
    assert level(dataclasses.replace(JAKA, joints=degrees), "limits") == "fail"


def test_wrong_order():
    (found,) = (f for f in check(arm(joints=("two", "one"))) if f.name == "joint order")
    assert found.level == "fail"
    assert "one, two" in found.text


def test_missing_joint_and_actuator():
    found = check(arm(joints=("one", "too")))
    assert next(f for f in found if f.name == "model").text.startswith("no joint 'too'")
    assert level(arm(lambda s: s.delete(s.actuator("two"))), "actuators") == "fail"


def test_torque_actuator():
    assert level(arm(lambda s: s.actuator("one").set_to_motor()), "actuators") == "fail"


def test_massless_body_does_not_compile():
    def change(s):
        s.geom("two").mass = 0.0

    (found,) = check(arm(change))
    assert found.level == "fail"
    assert "does not compile" in found.text


@pytest.mark.parametrize("mass", [1e-4, 500.0])
def test_implausible_mass(mass):
    def change(s):
        s.geom("two").mass = mass

    assert level(arm(change), "masses") == "fail"


def test_implausible_inertia():
    def change(s):
        body = s.body("link_two")
        body.explicitinertial, body.mass, body.ipos, body.inertia = (
            True,
            1.0,
            [0.1, 0, 0],
            [1.0, 1.0, 1.0],
        )

    assert level(arm(change), "inertia") == "fail"


def test_collision_at_home():
    def collide(s):
        s.worldbody.add_geom(name="wall", size=[0.1, 0, 0], pos=[0.6, 0, -0.2])

    (found,) = (f for f in check(arm(collide)) if f.name == "self-collision")
    assert found.level == "fail"
    assert "'wall'" in found.text


def test_gravity_pulls_a_weak_arm_from_home():
    def change(s):
        for name in ("one", "two"):
            s.body(f"link_{name}").gravcomp = 0
            s.actuator(name).forcerange = (-1, 1)

    (found,) = (f for f in check(arm(change)) if f.name == "gravity hold")
    assert found.level == "fail"
    assert "drifts" in found.text


def test_a_joint_needs_a_top_speed():
    with pytest.raises(DeftlyError, match=r"Joint.velocity is 0.0"):
        dataclasses.replace(JAKA.joints[0], velocity=0.0)


def test_floating_base_is_held():
    robot = arm(lambda s: s.body("base").add_freejoint(name="root"))
    assert level(robot, "gravity hold") == "ok"
    assert level(robot, "joint order") == "ok"


def test_unknown_robot():
    with pytest.raises(DeftlyError, match="did you mean 'jaka-zu5'"):
        robots.load("jaka-zu")
    with pytest.raises(DeftlyError, match="no robot file"):
        robots.load("missing.py")


def test_robot_file(tmp_path):
    file = tmp_path / "my_robot.py"
    file.write_text("from deftly.robots.jaka_zu5 import ROBOT\n")
    assert robots.load(str(file)).name == "jaka-zu5"
    file.write_text("x = 1\n")
    with pytest.raises(DeftlyError, match="defines no robot"):
        robots.load(str(file))
    file.write_text("import nothing_of_that_name\n")
    with pytest.raises(DeftlyError, match="does not import"):
        robots.load(str(file))


def test_geoms_that_touch_exactly_do_not_collide():
    """Two surfaces that meet come out as penetrating by rounding, 2e-14 mm say."""

    def touch(depth):
        def change(s):
            box = {"type": mujoco.mjtGeom.mjGEOM_BOX, "size": [0.05] * 3}
            s.body("link_one").add_geom(pos=[0, 0.5, 0], mass=0, **box)
            s.worldbody.add_geom(pos=[0.3, 0.6 - depth, 0], **box)

        return arm(change, homes=(0.0, 0.0))

    assert level(touch(2e-17), "self-collision") == "ok"
    assert level(touch(1e-12), "self-collision") == "ok"
    assert level(touch(1e-5), "self-collision") == "fail"


def test_joints_that_nothing_commands_may_be_between():
    """The links of a gripper that follow by constraints."""

    def change(s):
        s.body("link_one").add_joint(name="passive", axis=[0, 0, 1], range=(-1e-3, 1e-3))

    robot = arm(change)
    model = robot.spec().compile()
    assert [model.joint(i).name for i in range(3)] == ["one", "passive", "two"]
    assert level(robot, "joint order") == "ok"


def test_an_actuator_of_another_name_is_named():
    def change(s):
        s.actuator("one").name = "motor_1"

    (found,) = (f for f in check(arm(change)) if f.name == "actuators")
    assert found.level == "fail"
    assert "no actuator 'one', but 'motor_1' drives that joint: mjcf.set_servo" in found.text
    assert "nothing would command" not in found.text


def test_a_keyframe_of_the_models_own_does_not_stand_in_the_way():
    def change(s):
        s.add_key(name="home", qpos=[1.0, 1.0])
        s.add_key(name="other", qpos=[-1.0, 1.0])

    assert {finding.level for finding in check(arm(change))} == {"ok"}
    from deftly.robots.check import at_home

    _, data, addresses = at_home(arm(change))
    assert data.qpos[addresses].tolist() == [0.3, 0.4]
