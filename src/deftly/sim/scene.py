"""Scenes: options, light, table and objects around a robot, composed with `MjSpec`."""

import math

import mujoco
import numpy as np

from deftly.config import SimConfig
from deftly.config.presets import PRESETS
from deftly.errors import DeftlyError
from deftly.sim import looks

Point = tuple[float, float, float]
Colour = tuple[float, float, float, float]
_Object = tuple[mujoco.mjtObj, str]
"""What a contact sensor watches: a kind and a name."""

FRICTION = [
    0.8,
    0.01,
    0.0002,
]  # sliding, torsional (m), rolling (m): of the table and the boxes on it
WOOD = looks.Paint("wood", (0.72, 0.60, 0.46, 1), specular=0.1, shininess=0.2)
STEEL = looks.Paint("steel", (0.35, 0.36, 0.38, 1))
TABLE_THICKNESS = 0.03  # m
DEEPEST, NET_FORCE = 1, 3  # of the four reductions of a contact sensor
TILE = 0.25  # m, edge of a square tile of uneven ground: longer than a step of a small robot
TILED = (-1.5, -1.5)  # m, corner of the tiled part of a floor, from which it extends along x and y
TILES = (40, 12)  # of the tiled part, along x and y
TILE_DEPTH = 0.1  # m, half the thickness of a tile
SLEEP = mujoco.mjtEnableBit.mjENBL_SLEEP.value
LEG_INSET = 0.04  # of a table's legs from its edges, m


def compile_scene(
    spec: mujoco.MjSpec, rate: float, sim: SimConfig, with_looks: bool = True
) -> mujoco.MjModel:
    """Compile a task's scene with the timestep and solver that the settings want at a control rate, Hz.

    Without looks, geoms that are only drawn are taken out of the spec, see `deftly.sim.looks`.
    """
    physics = PRESETS[sim.preset]
    spec.option.timestep = 1 / (rate * sim.substeps_at(rate))
    spec.option.iterations = physics.iterations
    spec.option.impratio = physics.impratio
    if not with_looks:
        looks.remove(spec)
    model = compiled(spec)
    looks.show_hidden(model)
    return model


def compiled(spec: mujoco.MjSpec) -> mujoco.MjModel:
    """A scene's model. Raises DeftlyError for one that MuJoCo cannot build, as of a setting out of its range."""
    try:
        return spec.compile()
    except ValueError as error:
        reason = ", ".join(str(error).removeprefix("Error: ").splitlines())
        raise DeftlyError(
            f"MuJoCo cannot build the scene: {reason}; the task's settings, or what it makes of them, are out of range"
        ) from error


def let_sleep(spec: mujoco.MjSpec, engine: str = "cpu") -> None:
    """Let bodies that start asleep (`MjsBody.sleep`) cost nothing until something moves them; nothing else dozes off.

    Without any such body the scene stays as it is. In the engine warp all bodies are awake: it knows no such policy.
    """
    sleepers = [body for body in spec.bodies if body.sleep == mujoco.mjtSleepPolicy.mjSLEEP_INIT]
    if engine != "cpu":
        for body in sleepers:
            body.sleep = mujoco.mjtSleepPolicy.mjSLEEP_AUTO
    elif sleepers:
        spec.option.enableflags |= SLEEP
        spec.option.sleep_tolerance = 0.0  # m/s: what rests on a table goes on being simulated


def sleeps(model: mujoco.MjModel) -> bool:
    """Whether bodies may be asleep in a model: they are then part of no integration state, see `CpuSim`."""
    return bool(model.opt.enableflags & SLEEP)


def prepare(s: mujoco.MjSpec) -> None:
    """Give a robot's spec what every scene shares: implicit integration, elliptic friction cones, sky and light."""
    s.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    s.option.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
    s.visual.headlight.ambient = [0.28] * 3
    s.visual.headlight.diffuse = [0.16] * 3
    s.visual.headlight.specular = [0.10] * 3
    s.visual.global_.offwidth = 1280
    s.visual.global_.offheight = 960
    s.visual.global_.azimuth = 130  # of the free camera: from the side, a little in front
    s.visual.global_.elevation = -20
    s.visual.map.znear = 0.02
    s.visual.map.shadowclip = 2.0
    s.visual.quality.shadowsize = (
        2048  # half of MuJoCo's own: software draws an image a third faster
    )
    if s.texture("sky") is None:  # a robot's MJCF may bring its own
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
        type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL,
        pos=[0.3, -0.6, 2.2],
        dir=[-0.25, 0.45, -1],
        diffuse=[0.52] * 3,
        specular=[0.25] * 3,
        castshadow=True,
    )
    s.worldbody.add_light(  # from the other side, so that shadows are not black
        type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL,
        pos=[-0.8, 0.9, 1.6],
        dir=[0.6, -0.6, -0.7],
        diffuse=[0.20] * 3,
        specular=[0.05] * 3,
        castshadow=False,
    )


def add_floor(s: mujoco.MjSpec, z: float, collides: bool = False) -> None:
    """A checkered floor at height z (m): only drawn, or for robots that stand on it.

    A scene that has a floor of its own keeps that.
    """
    if s.geom("floor") is not None:
        return
    s.add_texture(
        name="deftly_checker",
        type=mujoco.mjtTexture.mjTEXTURE_2D,
        builtin=mujoco.mjtBuiltin.mjBUILTIN_CHECKER,
        rgb1=[0.55, 0.57, 0.60],
        rgb2=[0.50, 0.52, 0.55],
        width=256,
        height=256,
    )
    material = s.add_material(name="deftly_floor", texrepeat=[12, 12], specular=0.1)
    material.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = "deftly_checker"
    s.worldbody.add_geom(
        name="floor",
        type=mujoco.mjtGeom.mjGEOM_PLANE,
        size=[4, 4, 0.1],
        pos=[0, 0, z],
        material="deftly_floor",
        friction=FRICTION,
        contype=int(collides),
        conaffinity=int(collides),
    )


def follow(s: mujoco.MjSpec, body: str) -> None:
    """Draw for a body that goes away: a floor without end, and the light that casts shadows always above the body.

    Shadows are drawn within `shadowclip` times the extent of the light's place: a small one makes them sharp.
    """
    s.geom("floor").size = [0, 0, 0.1]
    material = s.material("deftly_floor")
    if material is not None:
        material.texuniform = True
        material.texrepeat = [3, 3]  # in a metre
    s.stat.extent = 1.0
    for light in s.worldbody.lights:
        if light.castshadow:
            s.body(body).add_light(
                type=light.type,
                mode=mujoco.mjtCamLight.mjCAMLIGHT_TRACK,
                pos=light.pos,
                dir=light.dir,
                diffuse=light.diffuse,
                specular=light.specular,
                castshadow=True,
            )
            s.delete(light)


def add_pattern(s: mujoco.MjSpec, material: str) -> None:
    """Give a material of one colour a checkered texture, which varies its brightness by a few percent."""
    name = f"{material}_checker"
    s.add_texture(
        name=name,
        type=mujoco.mjtTexture.mjTEXTURE_2D,
        builtin=mujoco.mjtBuiltin.mjBUILTIN_CHECKER,
        rgb1=[1.0, 1.0, 1.0],
        rgb2=[0.9, 0.9, 0.9],
        width=64,
        height=64,
    )
    found = s.material(material)
    found.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = name
    found.texrepeat = [4, 4]


def incline(s: mujoco.MjSpec, slope: float, uphill: float) -> None:
    """Let the floor z = 0 be a plane that rises by an angle (rad) in a direction (rad, from x to y): gravity leans.

    The scene keeps the floor's frame, so that heights, distances and paths are those along the floor.
    """
    size = float(np.linalg.norm(s.option.gravity))
    down_the_slope = math.sin(slope) * np.array((math.cos(uphill), math.sin(uphill)))
    s.option.gravity = -size * np.array((*down_the_slope, math.cos(slope)))


def add_tiles(s: mujoco.MjSpec, highest: float, seed: int = 0) -> None:
    """Square tiles of `TILE` (m) over the part `TILED` of the floor, each 0 to `highest` (m) above it."""
    heights = np.random.default_rng(seed).uniform(0.0, highest, TILES)
    for (row, column), height in np.ndenumerate(heights):
        place = (TILED[0] + TILE * (row + 0.5), TILED[1] + TILE * (column + 0.5))
        s.worldbody.add_geom(
            name=f"tile_{row}_{column}",
            type=mujoco.mjtGeom.mjGEOM_BOX,
            size=[TILE / 2, TILE / 2, TILE_DEPTH],
            pos=[*place, height - TILE_DEPTH],
            rgba=(*(3 * [0.45 + 0.2 * height / highest]), 1),
            friction=FRICTION,
        )


def add_table(
    s: mujoco.MjSpec, centre: tuple[float, float], half: tuple[float, float], height: float
) -> None:
    """A table whose top is the plane z = 0, `height` (m) above the floor, on four legs that are only drawn."""
    s.worldbody.add_geom(
        name="table",
        type=mujoco.mjtGeom.mjGEOM_BOX,
        size=[*half, TABLE_THICKNESS / 2],
        pos=[*centre, -TABLE_THICKNESS / 2],
        rgba=WOOD.rgba,
        friction=FRICTION,
    )
    s.geom("table").material = looks.material(s, WOOD)
    _draw_legs(s, centre, half, -TABLE_THICKNESS, -height)


def draw_table(
    s: mujoco.MjSpec,
    centre: tuple[float, float],
    half: tuple[float, float],
    top: float,
    floor: float,
) -> None:
    """A table between two heights, m, that is only drawn: what falls, falls through."""
    middle = (*centre, top - TABLE_THICKNESS / 2)
    looks.box(s, s.worldbody, middle, (*half, TABLE_THICKNESS / 2), WOOD)
    _draw_legs(s, centre, half, top - TABLE_THICKNESS, floor)


def _draw_legs(
    s: mujoco.MjSpec,
    centre: tuple[float, float],
    half: tuple[float, float],
    top: float,
    bottom: float,
) -> None:
    leg_half = (0.025, 0.025, (top - bottom) / 2)
    for x_side, y_side in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
        x = centre[0] + x_side * (half[0] - LEG_INSET)
        y = centre[1] + y_side * (half[1] - LEG_INSET)
        looks.box(s, s.worldbody, (x, y, (top + bottom) / 2), leg_half, STEEL)


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


def add_tube(
    s: mujoco.MjSpec,
    body: mujoco.MjsBody,
    name: str,
    start: looks.Point,
    end: looks.Point,
    radius: float,
    paint: looks.Paint,
) -> None:
    """A cylinder of a link (m) that is drawn, and a slimmer capsule of the same length that collides."""
    looks.tube(s, body, start, end, radius, paint)
    body.add_geom(
        name=name,
        type=mujoco.mjtGeom.mjGEOM_CAPSULE,
        fromto=[*start, *end],
        size=[0.9 * radius, 0, 0],
        group=3,
        mass=0,
    )


def add_contact_force(s: mujoco.MjSpec, name: str, geom: str, body: str) -> None:
    """A sensor of the net contact force (N, world frame, 3 numbers) that a body exerts on a geom."""
    _add_contact_sensor(
        s, name, _geom(geom), body, mujoco.mjtConDataField.mjCONDATA_FORCE, NET_FORCE
    )


def add_tree_force(s: mujoco.MjSpec, name: str, root: str, body: str) -> None:
    """A sensor of the net force (N, world frame, 3 numbers) that a body exerts on another and what hangs on it."""
    _add_contact_sensor(
        s, name, _tree(root), body, mujoco.mjtConDataField.mjCONDATA_FORCE, NET_FORCE
    )


def add_tree_distance(s: mujoco.MjSpec, name: str, root: str, body: str) -> None:
    """A sensor of the distance (m) of the deepest contact between a body and another with what hangs on it.

    Negative inside, 0 without contact.
    """
    _add_contact_sensor(s, name, _tree(root), body, mujoco.mjtConDataField.mjCONDATA_DIST, DEEPEST)


def _geom(name: str) -> _Object:
    return mujoco.mjtObj.mjOBJ_GEOM, name


def _tree(root: str) -> _Object:
    return mujoco.mjtObj.mjOBJ_XBODY, root


def _add_contact_sensor(
    s: mujoco.MjSpec,
    name: str,
    touched: _Object,
    body: str,
    data: mujoco.mjtConDataField,
    reduction: int,
) -> None:
    sensor = s.add_sensor(
        name=name,
        type=mujoco.mjtSensor.mjSENS_CONTACT,
        objtype=touched[0],
        objname=touched[1],
        reftype=mujoco.mjtObj.mjOBJ_BODY,
        refname=body,
    )
    contacts = 1
    sensor.intprm[:3] = [1 << data.value, reduction, contacts]


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
    """Give the scene its keyframe `home`: the named joints at these positions and their actuators holding them.

    It is the only one: episodes start from the first, and those of a robot's own MJCF do not know of the objects here.
    """
    for key in list(s.keys):
        s.delete(key)
    model = compiled(s)
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
