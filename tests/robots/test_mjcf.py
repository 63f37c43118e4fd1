"""Robots of other people: the recipe of docs/add-a-robot.md, followed with a stand-in for the Panda.

The stand-in is made here: the names of the real file, which is not the project's, and a mesh of one tetrahedron. It has
what such files have: an include, a folder of meshes, classes, degrees, geoms of group 3, a camera on the wrist, torque
motors not named after joints, a tendon that drives a gripper whose other finger follows, passive joints, keyframes.
"""

import ctypes.util
import re
import shlex
import struct
from pathlib import Path

import mujoco
import numpy as np
import pytest

from deftly import robots
from deftly.commands import main as cli
from deftly.console import failed
from deftly.errors import DeftlyError
from deftly.robots import mjcf
from deftly.robots.check import at_home, check

PAGE = (Path(__file__).parents[2] / "docs/add-a-robot.md").read_text()
RECIPE = PAGE.partition("## A robot that has an MJCF")[2].partition("\n## ")[0]
RANGES = ["-166 166", "-101 101", "-166 166", "-176 -4", "-166 166", "-1 215", "-166 166"]
ARM = """<body name="link{i}" pos="0 0 {length}"><inertial mass="1" pos="0 0 .05" diaginertia=".01 .01 .01"/>
<joint name="joint{i}" axis="{axis}" range="{limits}"/><geom class="visual"/><geom class="collision"/>"""
GRIPPER = """<body name="hand" pos="0 0 .1"><inertial mass=".5" pos="0 0 0" diaginertia=".001 .001 .001"/>
<geom class="visual"/><camera name="handcam"/><site name="pinch" pos="0 0 .1"/>
{fingers}</body>"""
FINGER = """<body name="{side}_driver" pos="0 {y} .05"><inertial mass=".01" pos="0 0 0" diaginertia="1e-6 1e-6 1e-6"/>
<joint name="{side}_driver_joint" axis="1 0 0" range="0 45.8" armature=".005" damping=".1"/>
<geom class="collision" size=".01"/>
<body name="{side}_coupler"><inertial mass=".01" pos="0 0 0" diaginertia="1e-6 1e-6 1e-6"/>
<joint name="{side}_coupler_joint" range="-90 0" armature=".005" damping=".1"/></body></body>"""
WHOLE = """<mujoco model="stand-in"><compiler angle="degree" meshdir="meshes" autolimits="true"/>
<include file="parts.xml"/>
<worldbody><body name="link0"><inertial mass="1" pos="0 0 0" diaginertia=".01 .01 .01"/><geom class="visual"/>
{arm}{gripper}{closing}</body></worldbody>
<tendon><fixed name="split"><joint joint="right_driver_joint" coef=".5"/>
<joint joint="left_driver_joint" coef=".5"/></fixed></tendon>
<equality><joint joint1="left_driver_joint" joint2="right_driver_joint"/></equality>
<actuator>{motors}<general name="fingers_actuator" tendon="split" ctrlrange="0 255" forcerange="-5 5"/></actuator>
<keyframe><key name="home" qpos="0 .2 0 -2 0 2 0 .1 0 .1 0" ctrl="0 0 0 0 0 0 0 255"/></keyframe></mujoco>"""
PARTS = """<mujoco><default><joint armature=".1" damping="1"/>
<default class="visual"><geom type="mesh" mesh="shape" contype="0" conaffinity="0" group="2"/></default>
<default class="collision"><geom size=".02" group="3"/></default></default>
<asset><mesh name="shape" file="shape.stl" scale=".001 .001 .001"/></asset></mujoco>"""


def write_stl(path: Path) -> None:
    """A tetrahedron of 60 mm, in mm."""
    corners = 60.0 * np.array([(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)])
    faces = [(0, 2, 1), (0, 1, 3), (0, 3, 2), (1, 2, 3)]
    triangles = b"".join(
        struct.pack("<12fH", 0, 0, 0, *corners[list(face)].ravel(), 0) for face in faces
    )
    path.write_bytes(bytes(80) + struct.pack("<I", len(faces)) + triangles)


@pytest.fixture
def panda(tmp_path, monkeypatch):
    """The recipe's file beside a stand-in for the MJCF that it reads."""
    assets = tmp_path / "assets"
    (assets / "meshes").mkdir(parents=True)
    write_stl(assets / "meshes/shape.stl")
    axes = ("0 0 1", "0 1 0", "0 0 1", "0 1 0", "0 0 1", "0 1 0", "0 0 1")
    links = [
        ARM.format(i=i, length=0.1, axis=axis, limits=limits)
        for i, (axis, limits) in enumerate(zip(axes, RANGES), 1)
    ]
    fingers = [FINGER.format(side="right", y=0.03), FINGER.format(side="left", y=-0.03)]
    motors = [
        f'<motor name="actuator{i}" joint="joint{i}" ctrlrange="-87 87"/>' for i in range(1, 8)
    ]
    whole = WHOLE.format(
        arm="".join(links),
        gripper=GRIPPER.format(fingers="".join(fingers)),
        closing="</body>" * 7,
        motors="".join(motors),
    )
    (assets / "panda.xml").write_text(whole)
    (assets / "parts.xml").write_text(PARTS)
    source = re.search(r"^```python\n(.*?)^```", RECIPE, re.DOTALL | re.MULTILINE)
    assert source is not None
    (tmp_path / "panda.py").write_text(source[1])
    monkeypatch.chdir(tmp_path)
    return tmp_path / "panda.py"


def recipe_commands() -> list[list[str]]:
    block = re.search(r"^```sh\n(.*?)^```", RECIPE, re.DOTALL | re.MULTILINE)
    assert block is not None
    return [shlex.split(line) for line in block[1].splitlines()]


def test_the_recipe_fits_a_screen():
    source = re.search(r"^```python\n(.*?)^```", RECIPE, re.DOTALL | re.MULTILINE)
    assert source is not None
    assert len(source[1].splitlines()) <= 50


@pytest.mark.parametrize("words", recipe_commands(), ids=" ".join)
def test_commands_of_the_recipe(words, panda, capsys):
    if "--png" in words and not any(map(ctypes.util.find_library, ("EGL", "OSMesa"))):
        pytest.skip("no GL library is installed")
    assert words[0] == "deftly"
    assert cli.main(words[1:]) == 0
    if "--png" in words:
        from PIL import Image

        image = np.asarray(Image.open("panda.png")).astype(int)
        assert image.shape == (720, 960, 3)
        assert image.std() > 10
    else:
        assert "fail" not in capsys.readouterr().out


def test_the_robot_is_what_its_mjcf_says(panda):
    robot = robots.load(str(panda))
    model, data, addresses = at_home(robot)
    assert [joint.name for joint in robot.joints] == [model.actuator(i).name for i in range(8)]
    assert robot.joints[3].lower == pytest.approx(np.radians(-176))
    assert robot.joints[7].upper == pytest.approx(np.radians(45.8))
    assert data.qpos[addresses] == pytest.approx([joint.home for joint in robot.joints])
    assert model.actuator_forcerange[:, 1].tolist() == [87.0] * 4 + [12.0] * 3 + [5.0]
    assert model.nkey == 1
    assert not failed(check(robot))


def test_its_xml_finds_the_meshes_from_another_folder(panda, tmp_path, monkeypatch, capsys):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert cli.main(["robots", str(panda), "--xml"]) == 0
    model = mujoco.MjModel.from_xml_string(capsys.readouterr().out)
    assert model.nmesh == 1
    assert model.nu == 8


def test_the_gripper_closes_as_one(panda):
    robot = robots.load(str(panda))
    model, data, _ = at_home(robot)
    data.ctrl[7] = 0.5
    for _ in range(1000):
        mujoco.mj_step(model, data)
    assert data.joint("right_driver_joint").qpos[0] == pytest.approx(0.5, abs=0.05)
    assert data.joint("left_driver_joint").qpos[0] == pytest.approx(0.5, abs=0.05)


TASK = """
from dataclasses import dataclass, field
from pathlib import Path
import torch
from deftly import robots
from deftly.config import TaskConfig
from deftly.contract import Act, Observe, PolicyContract
from deftly.sim import scene
from deftly.tasks import Task, task

ROBOT = robots.load(str(Path(__file__).with_name("panda.py")))

@dataclass(frozen=True)
class Weights:
    still: float = 1.0

@dataclass(frozen=True)
class StillConfig(TaskConfig):
    weights: Weights = field(default_factory=Weights)

@task("still")
class Still(Task):
    "Stand still."
    robot = ROBOT
    Config = StillConfig

    def scene(self):
        s = ROBOT.spec()
        scene.prepare(s)
        scene.add_floor(s, 0.0)
        scene.add_box(s, "cube", 0.02, 0.1, (1, 0, 0, 1))
        scene.add_home(s, {j.name: j.home for j in ROBOT.joints})
        return s

    def contract(self):
        arm = Act(tuple(j.name for j in ROBOT.joints[:7]), "velocity", (1.0,))
        return PolicyContract(ROBOT.interface(), 10.0, (Observe("joint_pos"),), (arm,))

    def signals(self, s):
        return {"joint_pos": s.joint_pos}

    def rewards(self, s):
        return {"still": -s.joint_vel.abs().sum(-1)}

    def success(self, s):
        return torch.zeros(s.num_envs, dtype=torch.bool)
"""


def test_a_task_on_it_passes_the_doctor_and_is_drawn_by_a_free_camera(panda):
    from deftly import render, tasks
    from deftly.commands.doctor import examine
    from deftly.config import EnvConfig, SimConfig
    from deftly.env import Env

    panda.with_name("still.py").write_text(TASK)
    cls = tasks.load("still.py")
    assert {finding.text for finding in examine(cls) if finding.level != "ok"} == set()
    env = Env(cls(cls.Config()), EnvConfig(num_envs=1), SimConfig(threads=1))
    meshes = env.drawn.geom_type == mujoco.mjtGeom.mjGEOM_MESH
    assert np.count_nonzero(meshes) == 9
    assert not (env.model.geom_type == mujoco.mjtGeom.mjGEOM_MESH).any()
    assert render.camera_index(env.drawn, None) == -1
    assert env.drawn.camera(render.camera_index(env.drawn, "handcam")).name == "handcam"


def test_a_keyframe_may_be_home(panda):
    spec = mjcf.read(panda.with_name("assets") / "panda.xml")
    home = mjcf.at_key(spec, "home", ("joint2", "joint4", "right_driver_joint"))
    assert home == {"joint2": 0.2, "joint4": -2.0, "right_driver_joint": 0.1}
    with pytest.raises(DeftlyError, match="no keyframe 'hom', did you mean 'home'"):
        mjcf.at_key(spec, "hom", ("joint2",))


BROKEN = """<mujoco><compiler autolimits="true"/><worldbody><body><joint name="free_turn"/>
<geom size=".1"/><body><joint name="ball" type="ball"/><geom size=".1"/></body></body></worldbody></mujoco>"""


@pytest.mark.parametrize(
    ("joint", "said"),
    [
        ("turn", "has no joint 'turn', did you mean 'free_turn'"),
        ("free_turn", "'free_turn' has no range: give s.joint"),
        ("ball", "'ball' is neither a hinge nor a slide"),
    ],
)
def test_joints_that_cannot_be_commanded(joint, said):
    spec = mujoco.MjSpec.from_string(BROKEN)
    with pytest.raises(DeftlyError, match=re.escape(said)):
        mjcf.set_servo(spec, joint, 1.0, 0.1, 1.0)
    with pytest.raises(DeftlyError, match=re.escape(said)):
        mjcf.joints(spec, {joint: 0.0}, {joint: 1.0})


def test_a_joint_needs_a_top_speed(panda):
    spec = mjcf.read(panda.with_name("assets") / "panda.xml")
    with pytest.raises(DeftlyError, match="joint 'joint1' has no top speed"):
        mjcf.joints(spec, {"joint1": 0.0}, {})


def test_a_gripper_from_another_folder_in_other_units(tmp_path, monkeypatch):
    """The arm's file is in degrees, with meshes in one folder; the gripper's is in radians, with files in another."""
    from PIL import Image

    for place in ("arm/meshes", "hand/files"):
        (tmp_path / place).mkdir(parents=True)
    write_stl(tmp_path / "arm/meshes/a.stl")
    write_stl(tmp_path / "hand/files/b.stl")
    Image.new("RGB", (4, 4), (255, 0, 0)).save(tmp_path / "hand/files/red.png")
    (tmp_path / "arm/arm.xml").write_text(
        '<mujoco><compiler meshdir="meshes"/><asset><mesh file="a.stl" scale=".001 .001 .001"/></asset>'
        '<worldbody><body><joint name="lift" range="-90 90"/><geom type="mesh" mesh="a"/>'
        '<site name="tool" pos="0 0 .1"/></body></worldbody></mujoco>'
    )
    (tmp_path / "hand/hand.xml").write_text(
        '<mujoco><compiler assetdir="files" angle="radian"/><asset><texture name="red" type="2d" file="red.png"/>'
        '<material name="red" texture="red"/><mesh file="b.stl" scale=".001 .001 .001"/></asset>'
        '<worldbody><body><joint name="grip" range="-1 1"/><geom type="mesh" mesh="b" material="red"/></body>'
        "</worldbody></mujoco>"
    )
    monkeypatch.chdir(tmp_path)
    spec = mjcf.read(Path("arm/arm.xml"))
    spec.attach(mjcf.read(Path("hand/hand.xml")), prefix="hand_", site=spec.site("tool"))
    names = ("lift", "hand_grip")
    lift, grip = mjcf.joints(spec, dict.fromkeys(names, 0.0), dict.fromkeys(names, 1.0))
    assert (lift.lower, lift.upper) == pytest.approx((-np.pi / 2, np.pi / 2))
    assert (grip.lower, grip.upper) == (-1.0, 1.0)
    for name in names:
        mjcf.set_servo(spec, name, 1.0, 0.1, 2.0)
    monkeypatch.chdir("/")
    model = mujoco.MjModel.from_xml_string(mjcf.to_xml(spec))
    assert (model.nmesh, model.ntex) == (2, 1)
    assert model.actuator("lift").ctrlrange == pytest.approx([-np.pi / 2, np.pi / 2], abs=1e-4)
    assert model.actuator("hand_grip").ctrlrange.tolist() == [-1.0, 1.0]


def test_files_that_are_no_robot(tmp_path, panda):
    with pytest.raises(DeftlyError, match=r"no file .*nothing\.xml: give the robot's MJCF"):
        mjcf.read(tmp_path / "nothing.xml")
    (tmp_path / "bad.xml").write_text("<mujoco><worldbody>")
    with pytest.raises(DeftlyError, match=r"bad\.xml is no MJCF that MuJoCo reads"):
        mjcf.read(tmp_path / "bad.xml")
    (tmp_path / "assets/meshes/shape.stl").unlink()
    with pytest.raises(DeftlyError, match=r"^[^\n]*panda\.py does not import: [^\n]*shape\.stl'$"):
        robots.load(str(panda))
