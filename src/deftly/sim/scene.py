"""Scenes: options, light, table and objects around a robot, composed with `MjSpec`."""

import mujoco
import numpy as np

from deftly.config import SimConfig
from deftly.config.presets import PRESETS

Point = tuple[float, float, float]


def compile_scene(spec: mujoco.MjSpec, rate: float, sim: SimConfig) -> mujoco.MjModel:
    """Compile a task's scene with the timestep and solver that the settings want at a control rate, Hz."""
    physics = PRESETS[sim.preset]
    spec.option.timestep = 1 / (rate * sim.substeps_at(rate))
    spec.option.iterations = physics.iterations
    spec.option.impratio = physics.impratio
    return spec.compile()


def prepare(s: mujoco.MjSpec) -> None:
    """Give a robot's spec what every scene shares: implicit integration, elliptic friction cones, sky and light."""
    s.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    s.option.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
    s.visual.headlight.ambient, s.visual.headlight.diffuse = [0.35] * 3, [0.45] * 3
    s.visual.global_.offwidth, s.visual.global_.offheight = 1280, 960
    s.visual.map.znear = 0.02
    sky = s.add_texture(name="sky", type=mujoco.mjtTexture.mjTEXTURE_SKYBOX, width=64, height=256)
    sky.builtin, sky.rgb1, sky.rgb2 = (
        mujoco.mjtBuiltin.mjBUILTIN_GRADIENT,
        [0.55, 0.66, 0.78],
        [0.93, 0.95, 0.97],
    )
    s.worldbody.add_light(
        pos=[0.3, -0.6, 2.2], dir=[0.05, 0.25, -1], diffuse=[0.5] * 3, castshadow=True
    )


def add_floor(s: mujoco.MjSpec, z: float) -> None:
    """A checkered floor at height z (m), to look at; nothing collides with it."""
    checker = s.add_texture(
        name="checker", type=mujoco.mjtTexture.mjTEXTURE_2D, width=256, height=256
    )
    checker.builtin, checker.rgb1, checker.rgb2 = (
        mujoco.mjtBuiltin.mjBUILTIN_CHECKER,
        [0.72] * 3,
        [0.66] * 3,
    )
    material = s.add_material(name="floor", texrepeat=[6, 6], reflectance=0.05)
    material.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = "checker"
    floor = s.worldbody.add_geom(
        name="floor", type=mujoco.mjtGeom.mjGEOM_PLANE, size=[4, 4, 0.1], pos=[0, 0, z]
    )
    floor.material, floor.contype, floor.conaffinity = "floor", 0, 0


def add_table(
    s: mujoco.MjSpec, centre: tuple[float, float], half: tuple[float, float], height: float
) -> None:
    """A table whose top is the plane z = 0, `height` (m) above the floor, on four legs to look at."""
    thick, wood = 0.03, (0.80, 0.70, 0.56, 1)
    top = s.worldbody.add_geom(
        name="table", type=mujoco.mjtGeom.mjGEOM_BOX, size=[*half, thick / 2]
    )
    top.pos, top.rgba, top.friction = [*centre, -thick / 2], wood, [0.8, 0.01, 0.0002]
    for i, (x, y) in enumerate(((1, 1), (1, -1), (-1, 1), (-1, -1))):
        leg = s.worldbody.add_geom(name=f"leg_{i}", type=mujoco.mjtGeom.mjGEOM_BOX)
        leg.size = [0.025, 0.025, (height - thick) / 2]
        leg.pos = [
            centre[0] + x * (half[0] - 0.04),
            centre[1] + y * (half[1] - 0.04),
            -(height + thick) / 2,
        ]
        leg.rgba, leg.contype, leg.conaffinity = [0.35, 0.36, 0.38, 1], 0, 0


def add_box(
    s: mujoco.MjSpec, name: str, half: float, mass: float, rgba: tuple[float, float, float, float]
) -> None:
    """A free cube with edges of twice `half` (m) at rest on the plane z = 0."""
    body = s.worldbody.add_body(name=name, pos=[0, 0, half])
    body.add_freejoint(name=name)
    geom = body.add_geom(
        name=name, type=mujoco.mjtGeom.mjGEOM_BOX, size=[half] * 3, mass=mass, rgba=rgba
    )
    geom.friction = [0.8, 0.01, 0.0002]


def add_contact_force(s: mujoco.MjSpec, name: str, geom: str, body: str) -> None:
    """A sensor of the net contact force (N, world frame, 3 numbers) that a body exerts on a geom."""
    sensor = s.add_sensor(name=name, type=mujoco.mjtSensor.mjSENS_CONTACT)
    sensor.objtype, sensor.objname = mujoco.mjtObj.mjOBJ_GEOM, geom
    sensor.reftype, sensor.refname = mujoco.mjtObj.mjOBJ_BODY, body
    sensor.intprm[:3] = [
        1 << mujoco.mjtConDataField.mjCONDATA_FORCE.value,
        3,
        1,
    ]  # 3: the net force


def add_home(s: mujoco.MjSpec, joints: dict[str, float]) -> None:
    """Give the scene its keyframe `home`: the named joints at these positions and their actuators holding them."""
    model = s.compile()
    qpos, ctrl = model.qpos0.copy(), [0.0] * model.nu
    for name, value in joints.items():
        qpos[model.joint(name).qposadr[0]] = value
        ctrl[model.actuator(name).id] = value
    for i in range(model.neq):  # a follower stands where its leader does
        if model.eq_type[i] == mujoco.mjtEq.mjEQ_JOINT:
            follower, leader = model.eq_obj1id[i], model.eq_obj2id[i]
            qpos[model.jnt_qposadr[follower]] = qpos[model.jnt_qposadr[leader]]
    s.add_key(name="home", qpos=qpos, ctrl=ctrl)


def cylinder_inertia(mass: float, radius: float, length: float, along: str) -> list[float]:
    """Principal moments (kg m2) of a solid cylinder about its centre, its axis along x, y or z."""
    across = mass * (3 * radius**2 + length**2) / 12
    return [mass * radius**2 / 2 if axis == along else across for axis in "xyz"]


def add_camera(
    s: mujoco.MjSpec,
    name: str,
    eye: Point,
    target: Point,
    fovy: float,
    body: str | None = None,
    up: Point = (0, 0, 1),
) -> None:
    """A camera at `eye` that looks at `target`, both in the frame of `body` (m; world if None); fovy in degrees."""
    back = np.subtract(eye, target)
    right = np.cross(up, back)
    camera = (s.body(body) if body else s.worldbody).add_camera(name=name, pos=eye, fovy=fovy)
    camera.alt.type = mujoco.mjtOrientation.mjORIENTATION_XYAXES
    camera.alt.xyaxes = [*right, *np.cross(back, right)]  # MuJoCo normalizes them
