"""What is only drawn: it changes no physics, simulations are without it, images have it."""

import dataclasses

import mujoco
import numpy as np
import pytest
import torch

from deftly import robots, tasks
from deftly.config import EnvConfig, SimConfig
from deftly.env import Env
from deftly.robots import jaka_zu5
from deftly.sim import looks
from deftly.sim.randomize import Randomize

ROBOTS = tuple(robots.shipped())
# Sum of qpos (rad) after 500 steps of `move`, trace of the inertia matrix there (kg m2), and how many geoms collide:
# before there were looks.
BEFORE = {
    "jaka-zu5": (4.526024977080138, 6.242393836702712, 14),
    "leap-right": (8.804979685408998, 0.025047382103573892, 21),
    "leap-left": (8.804979685408998, 0.025047382103573892, 21),
    "leap-left-custom": (8.804979685408998, 0.025047382103573892, 21),
}
PAINT = looks.Paint("paint", (1, 0, 0, 1))


def move(robot: robots.Robot, spec: mujoco.MjSpec) -> tuple[np.ndarray, np.ndarray]:
    """Positions in 500 steps between home and the middle of the joints' ranges, and the last inertia matrix."""
    model = spec.compile()
    data = mujoco.MjData(model)
    home = np.array([joint.home for joint in robot.joints])
    middle = np.array([(joint.lower + joint.upper) / 2 for joint in robot.joints])
    data.qpos[[model.joint(joint.name).qposadr[0] for joint in robot.joints]] = home
    path = []
    for step in range(500):
        data.ctrl[:] = home + 0.2 * (middle - home) * np.sin(0.01 * step)
        mujoco.mj_step(model, data)
        path.append(data.qpos.copy())
    inertia = np.zeros((model.nv, model.nv))
    mujoco.mj_fullM(model, data, inertia)
    return np.array(path), inertia


@pytest.mark.parametrize("name", ROBOTS)
def test_looks_change_no_physics(name):
    robot = robots.load(name)
    plain = robot.spec()
    looks.remove(plain)
    path, inertia = move(robot, robot.spec())
    plain_path, plain_inertia = move(robot, plain)
    assert np.array_equal(path, plain_path)
    assert np.array_equal(inertia, plain_inertia)


@pytest.mark.parametrize("name", BEFORE)
def test_physics_is_what_it_was_before_there_were_looks(name):
    robot = robots.load(name)
    path, inertia = move(robot, robot.spec())
    total, trace, solid = BEFORE[name]
    assert path[-1].sum() == pytest.approx(total, abs=1e-8)
    assert np.trace(inertia) == pytest.approx(trace, rel=1e-9)
    model = robot.spec().compile()
    assert np.count_nonzero(model.geom_contype | model.geom_conaffinity) == solid


@pytest.mark.parametrize("name", tasks.shipped())
def test_simulations_are_without_looks_and_images_have_them(name):
    cls = tasks.load(name)
    env = Env(cls(cls.Config()), EnvConfig(num_envs=2), SimConfig(threads=1), seed=0)
    for i in range(env.model.ngeom):
        geom = env.model.geom(i)
        assert geom.name or geom.contype[0] or geom.conaffinity[0]
    assert env.drawn.ngeom > 2 * env.model.ngeom
    state = mujoco.mjtState.mjSTATE_INTEGRATION.value
    assert mujoco.mj_stateSize(env.drawn, state) == mujoco.mj_stateSize(env.model, state)


def test_an_environment_is_drawn_with_its_own_values():
    cls = tasks.load("leap-right-cube-rotate")
    env = Env(cls(cls.Config()), EnvConfig(num_envs=2), SimConfig(threads=1), seed=0)
    cube = env.model.geom("cube").id
    sizes = env.sim.expand("geom_size")
    assert sizes[0, cube, 0] != sizes[1, cube, 0]
    for i in range(2):
        shown = env.drawn_of(i)
        assert shown.geom("cube").size == pytest.approx(sizes[i, cube].numpy())
        assert shown.ngeom == env.drawn.ngeom
        looked = np.setdiff1d(np.arange(shown.ngeom), looks.kept_geoms(env.drawn, env.model))
        assert np.array_equal(shown.geom_size[looked], env.drawn.geom_size[looked])


def test_images_of_an_environment_have_the_places_of_its_simulation():
    """Poses of all geoms that both have are the same, for the joints of the simulation."""
    cls = tasks.load("jaka-pick-cube")
    env = Env(cls(cls.Config()), EnvConfig(num_envs=1), SimConfig(threads=1), seed=0)
    for _ in range(5):
        env.step(torch.ones(1, env.contract.action_size))
    from deftly.render import pose

    state = env.sim.state_of(0)
    plain, shown = pose(env.sim.model_of(0), state), pose(env.drawn_of(0), state)
    kept = looks.kept_geoms(env.drawn, env.model)
    assert np.array_equal(shown.geom_xpos[kept], plain.geom_xpos)


def test_images_show_a_joint_offset(slider):
    """The link is off where sensor and servo have it: so it is where the simulation has it."""
    from deftly.render import pose

    env = slider(2, randomize=(Randomize("joint_offset", 0.1, 0.3, ("x",), op="add"),))
    state = env.sim.state_of(1)
    block = env.model.body("block").id
    shown, plain = pose(env.drawn_of(1), state), pose(env.sim.model_of(1), state)
    assert shown.xpos[block] == pytest.approx(plain.xpos[block])
    assert shown.xpos[block, 0] != pytest.approx(env.state.joint_pos[1, 0].item(), abs=0.05)


def scene() -> tuple[mujoco.MjSpec, mujoco.MjsBody]:
    spec = mujoco.MjSpec()
    body = spec.worldbody.add_body(name="body")
    body.add_freejoint()
    return spec, body


def count_after_remove(spec: mujoco.MjSpec) -> tuple[int, float]:
    """Geoms and mass (kg) of what `remove` leaves, which has the mass that it had."""
    mass = spec.copy().compile().body_mass.sum()
    looks.remove(spec)
    model = spec.compile()
    assert model.body_mass.sum() == pytest.approx(mass)
    return model.ngeom, mass


DRAWN = {"contype": 0, "conaffinity": 0, "size": [0.1, 0, 0]}


def test_what_weighs_or_has_a_name_or_collides_is_no_look():
    spec, body = scene()
    body.add_geom(size=[0.1, 0, 0])
    body.add_geom(name="named", mass=0, **DRAWN)
    body.add_geom(conaffinity=1, contype=0, size=[0.1, 0, 0])
    body.add_geom(**DRAWN)  # weighs 4 kg: its density is that of water
    assert count_after_remove(spec)[0] == 4


def test_a_look_of_a_body_whose_inertia_is_given_weighs_nothing():
    spec, body = scene()
    body.mass, body.inertia, body.ipos = 2.0, [0.1, 0.1, 0.1], [0, 0, 0]
    body.add_geom(**DRAWN)
    spec.worldbody.add_geom(**DRAWN)
    assert count_after_remove(spec) == (0, 2.0)


def test_inertia_that_is_always_that_of_the_geoms():
    spec, body = scene()
    spec.compiler.inertiafromgeom = looks.INERTIA_FROM_GEOMS
    body.mass, body.inertia, body.ipos = 2.0, [0.1, 0.1, 0.1], [0, 0, 0]
    body.add_geom(**DRAWN)
    geoms, mass = count_after_remove(spec)
    assert geoms == 1
    assert mass == pytest.approx(4 / 3 * np.pi * 0.1**3 * 1000)


def test_what_a_fluid_pushes_is_no_look():
    spec, body = scene()
    body.mass, body.inertia, body.ipos = 2.0, [0.1, 0.1, 0.1], [0, 0, 0]
    body.add_geom(fluid_ellipsoid=1, **DRAWN)
    assert count_after_remove(spec)[0] == 1


def test_bodies_that_would_not_be_drawn_are_shown():
    spec, body = scene()
    body.add_geom(size=[0.1, 0, 0], group=3)
    other = spec.worldbody.add_body(name="other")
    other.add_geom(size=[0.1, 0, 0], group=3)
    looks.box(spec, other, (0, 0, 0), (0.1, 0.1, 0.1), PAINT)
    model = spec.compile()
    looks.show_hidden(model)
    assert model.geom_group.tolist() == [0, 3, 2]


def test_looks_survive_mjcf():
    spec, body = scene()
    body.add_geom(size=[0.1, 0, 0])
    looks.box(spec, body, (0, 0, 0.1), (0.1, 0.2, 0.3), PAINT)
    looks.tube(spec, body, (0, 0, 0), (0, 0, 1), 0.05, PAINT)
    model = spec.compile()
    again = mujoco.MjModel.from_xml_string(spec.to_xml())
    assert again.body_mass.sum() == pytest.approx(model.body_mass.sum())
    assert again.geom_contype.tolist() == model.geom_contype.tolist() == [1, 0, 0]
    half = model.geom_aabb[1, 3:]
    assert sorted(half) == pytest.approx([0.1, 0.2, 0.3], abs=1e-6)


def at_home(name: str) -> tuple[mujoco.MjModel, mujoco.MjData]:
    """A task's scene at its home, as it is drawn."""
    cls = tasks.load(name)
    model = cls(cls.Config()).scene().compile()
    data = mujoco.MjData(model)
    mujoco.mj_resetDataKeyframe(model, data, 0)
    mujoco.mj_forward(model, data)
    return model, data


def in_image(model, data, camera: str, points: np.ndarray) -> np.ndarray:
    """Where world points are in a camera's image, (n, 2): -1 is the left or lower edge, 1 the other, of one of 4:3."""
    number = model.camera(camera).id
    seen = (points - data.cam_xpos[number]) @ data.cam_xmat[number].reshape(3, 3)
    half = np.tan(np.radians(model.cam_fovy[number]) / 2)
    return seen[:, :2] / -seen[:, 2:] / (half * 4 / 3, half)


def hidden_by(model, data, camera: str, bodies: range) -> float:
    """Fraction of a camera's image of 4:3 that some bodies hide."""
    number = model.camera(camera).id
    half = np.tan(np.radians(model.cam_fovy[number]) / 2)
    x, y = np.meshgrid(np.linspace(-4 / 3, 4 / 3, 41), np.linspace(-1, 1, 31))
    rays = np.stack((half * x, half * y, -np.ones_like(x)), -1).reshape(-1, 3)
    hit = np.zeros(1, np.int32)
    count = 0
    for ray in rays @ data.cam_xmat[number].reshape(3, 3).T:
        mujoco.mj_ray(model, data, data.cam_xpos[number], ray, None, 1, -1, hit)
        count += hit[0] >= 0 and model.geom_bodyid[hit[0]] in bodies
    return count / len(rays)


def test_the_wrist_camera_sees_the_cube_and_little_of_the_gripper():
    model, data = at_home("jaka-pick-cube")
    gripper = range(model.body("gripper").id, model.body("finger_right").id + 1)
    assert hidden_by(model, data, "wrist", gripper) < 0.15
    cube = in_image(model, data, "wrist", data.body("cube").xpos[None])
    assert np.abs(cube).max() < 0.6


def test_the_wrist_camera_is_upright():
    """The fingers are left and right, low in the image, and its top is away from the arm's base."""
    model, data = at_home("jaka-pick-cube")
    pads = np.array([data.geom(name).xpos for name in ("pad_left", "pad_right")])
    (left, low), (right, also_low) = in_image(model, data, "wrist", pads)
    assert left == pytest.approx(-right, abs=0.01)
    assert abs(left) > 0.3
    assert low == pytest.approx(also_low, abs=0.01)
    assert low < 0
    assert data.camera("wrist").xmat[3 * 0 + 1] > 0.9  # up in the image is +x in the world


@pytest.mark.parametrize("hand", ["leap-right", "leap-left", "leap-left-custom"])
@pytest.mark.parametrize("camera", ["front", "top"])
def test_cameras_of_the_hands_show_hand_and_cube_whole(hand, camera):
    model, data = at_home(f"{hand}-cube-rotate")
    solid = (model.geom_contype != 0) & (model.geom_bodyid != 0)
    places = in_image(model, data, camera, data.geom_xpos[solid])
    assert np.abs(places).max() < 0.9


def test_the_front_camera_shows_the_whole_arm():
    model, data = at_home("jaka-pick-cube")
    drawn = looks.corners(model, data)
    assert np.abs(in_image(model, data, "front", drawn)).max() < 1


def test_looks_of_a_robot_leave_its_interface_alone():
    robot = jaka_zu5.ROBOT
    plain = robot.spec()
    looks.remove(plain)
    bare = dataclasses.replace(robot, spec=lambda: plain.copy())
    assert bare.interface() == robot.interface()
