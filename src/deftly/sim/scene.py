"""Scenes: options, light, table and objects around a robot, composed with `MjSpec`."""

import mujoco
import numpy as np

from deftly.config import SimConfig
from deftly.config.presets import PRESETS

Point = tuple[float, float, float]
Colour = tuple[float, float, float, float]

FRICTION = [
    0.8,
    0.01,
    0.0002,
]  # sliding, torsional (m), rolling (m): of the table and the boxes on it
WOOD = (0.80, 0.70, 0.56, 1)
STEEL = (0.35, 0.36, 0.38, 1)
LEG_INSET = 0.04  # of a table's legs from its edges, m


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
    s.visual.headlight.ambient = [0.35] * 3
    s.visual.headlight.diffuse = [0.45] * 3
    s.visual.global_.offwidth = 1280
    s.visual.global_.offheight = 960
    s.visual.map.znear = 0.02
    s.add_texture(
        name="sky",
        type=mujoco.mjtTexture.mjTEXTURE_SKYBOX,
        builtin=mujoco.mjtBuiltin.mjBUILTIN_GRADIENT,
        rgb1=[0.55, 0.66, 0.78],
        rgb2=[0.93, 0.95, 0.97],
        width=64,
        height=256,
    )
    s.worldbody.add_light(
        pos=[0.3, -0.6, 2.2],
        dir=[0.05, 0.25, -1],
        diffuse=[0.5] * 3,
        castshadow=True,
    )


def add_floor(s: mujoco.MjSpec, z: float) -> None:
    """A checkered floor at height z (m), only drawn: nothing collides with it."""
    s.add_texture(
        name="checker",
        type=mujoco.mjtTexture.mjTEXTURE_2D,
        builtin=mujoco.mjtBuiltin.mjBUILTIN_CHECKER,
        rgb1=[0.72] * 3,
        rgb2=[0.66] * 3,
        width=256,
        height=256,
    )
    material = s.add_material(name="floor", texrepeat=[6, 6], reflectance=0.05)
    material.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = "checker"
    s.worldbody.add_geom(
        name="floor",
        type=mujoco.mjtGeom.mjGEOM_PLANE,
        size=[4, 4, 0.1],
        pos=[0, 0, z],
        material="floor",
        contype=0,
        conaffinity=0,
    )


def add_table(
    s: mujoco.MjSpec, centre: tuple[float, float], half: tuple[float, float], height: float
) -> None:
    """A table whose top is the plane z = 0, `height` (m) above the floor, on four legs that are only drawn."""
    thickness = 0.03
    s.worldbody.add_geom(
        name="table",
        type=mujoco.mjtGeom.mjGEOM_BOX,
        size=[*half, thickness / 2],
        pos=[*centre, -thickness / 2],
        rgba=WOOD,
        friction=FRICTION,
    )
    leg_half_length = (height - thickness) / 2
    leg_z = -(height + thickness) / 2
    for i, (x_side, y_side) in enumerate(((1, 1), (1, -1), (-1, 1), (-1, -1))):
        x = centre[0] + x_side * (half[0] - LEG_INSET)
        y = centre[1] + y_side * (half[1] - LEG_INSET)
        s.worldbody.add_geom(
            name=f"leg_{i}",
            type=mujoco.mjtGeom.mjGEOM_BOX,
            size=[0.025, 0.025, leg_half_length],
            pos=[x, y, leg_z],
            rgba=STEEL,
            contype=0,
            conaffinity=0,
        )


def add_box(s: mujoco.MjSpec, name: str, half: float, mass: float, rgba: Colour) -> None:
    """A free cube with edges of twice `half` (m) at rest on the plane z = 0."""
    body = s.worldbody.add_body(name=name, pos=[0, 0, half])
    body.add_freejoint(name=name)
    body.add_geom(
        name=name,
        type=mujoco.mjtGeom.mjGEOM_BOX,
        size=[half] * 3,
        mass=mass,
        rgba=rgba,
        friction=FRICTION,
    )


def add_contact_force(s: mujoco.MjSpec, name: str, geom: str, body: str) -> None:
    """A sensor of the net contact force (N, world frame, 3 numbers) that a body exerts on a geom."""
    sensor = s.add_sensor(
        name=name,
        type=mujoco.mjtSensor.mjSENS_CONTACT,
        objtype=mujoco.mjtObj.mjOBJ_GEOM,
        objname=geom,
        reftype=mujoco.mjtObj.mjOBJ_BODY,
        refname=body,
    )
    force = 1 << mujoco.mjtConDataField.mjCONDATA_FORCE.value
    net_force = 3  # of the four reductions of a contact sensor
    contacts = 1
    sensor.intprm[:3] = [force, net_force, contacts]


def add_distance(s: mujoco.MjSpec, name: str, geom: str, other: str, cutoff: float) -> None:
    """A sensor of the distance between two geoms (m, 1 number), at most `cutoff`; negative where they overlap."""
    s.add_sensor(
        name=name,
        type=mujoco.mjtSensor.mjSENS_GEOMDIST,
        objtype=mujoco.mjtObj.mjOBJ_GEOM,
        objname=geom,
        reftype=mujoco.mjtObj.mjOBJ_GEOM,
        refname=other,
        cutoff=cutoff,
    )


def add_home(s: mujoco.MjSpec, joints: dict[str, float]) -> None:
    """Give the scene its keyframe `home`: the named joints at these positions and their actuators holding them."""
    model = s.compile()
    qpos = model.qpos0.copy()
    ctrl = [0.0] * model.nu
    for name, value in joints.items():
        qpos[model.joint(name).qposadr[0]] = value
        ctrl[model.actuator(name).id] = value
    _move_followers(model, qpos)
    s.add_key(name="home", qpos=qpos, ctrl=ctrl)


def _move_followers(model: mujoco.MjModel, qpos: np.ndarray) -> None:
    """Set each joint that an equality constraint couples to another to the position of that one, in place."""
    for i in np.flatnonzero(model.eq_type == mujoco.mjtEq.mjEQ_JOINT):
        follower = model.eq_obj1id[i]
        leader = model.eq_obj2id[i]
        qpos[model.jnt_qposadr[follower]] = qpos[model.jnt_qposadr[leader]]


def cylinder_inertia(mass: float, radius: float, length: float, along: str) -> list[float]:
    """Principal moments (kg m2) of a solid cylinder about its centre, its axis along x, y or z."""
    axial = mass * radius**2 / 2
    transverse = mass * (3 * radius**2 + length**2) / 12
    return [axial if axis == along else transverse for axis in "xyz"]


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
    parent = s.body(body) if body else s.worldbody
    camera = parent.add_camera(name=name, pos=eye, fovy=fovy)
    camera.alt.type = mujoco.mjtOrientation.mjORIENTATION_XYAXES
    camera.alt.xyaxes = [*right, *np.cross(back, right)]  # MuJoCo normalizes them
