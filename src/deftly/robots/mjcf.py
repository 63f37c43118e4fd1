"""What makes a robot of this package out of somebody else's MJCF: servos, joints, and XML that finds its files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import mujoco

from deftly.config import suggest
from deftly.contract import Joint
from deftly.errors import DeftlyError

UNITS = {mujoco.mjtJoint.mjJNT_HINGE: "rad", mujoco.mjtJoint.mjJNT_SLIDE: "m"}


def read(path: Path) -> mujoco.MjSpec:
    """A robot's MJCF or URDF, with what it includes; it may be attached to another, whose files are elsewhere.

    Raises DeftlyError, one line, if it is none.
    """
    if not path.is_file():
        raise DeftlyError(f"no file {path}: give the robot's MJCF, its meshes beside it")
    try:
        spec = mujoco.MjSpec.from_file(str(path))
    except (ValueError, mujoco.FatalError) as error:
        said = " ".join(str(error).split())
        raise DeftlyError(f"{path} is no MJCF that MuJoCo reads: {said}") from None
    _use_whole_paths(spec)
    return spec


def _use_whole_paths(spec: mujoco.MjSpec) -> None:
    """Let meshes, height fields, skins and textures name their files from the root on."""
    folder = Path(spec.modelfiledir or ".").resolve()
    for asset in (*spec.meshes, *spec.hfields, *spec.skins):
        if asset.file:
            asset.file = str(folder / spec.meshdir / asset.file)
    textures = folder / spec.texturedir
    for texture in spec.textures:
        if texture.file:
            texture.file = str(textures / texture.file)
        sides = [name and str(textures / name) for name in texture.cubefiles]
        for i, name in enumerate(sides):
            texture.cubefiles[i] = name


def set_servo(
    spec: mujoco.MjSpec, joint: str, kp: float, kv: float, force: float
) -> mujoco.MjsActuator:
    """Give a joint the position servo of its name, in place of whatever drives it: directly, or by a tendon.

    Its targets may be anywhere within the joint's limits. Keyframes go, since their `ctrl` is of the actuators before:
    read them first, with `at_key`.

    Args:
        spec: the robot's.
        joint: name of a hinge or slide with a range.
        kp: N m/rad, or N/m.
        kv: N m s/rad, or N s/m.
        force: limit of the motor, N m or N.
    """
    _require_range(spec, joint)
    for key in list(spec.keys):
        spec.delete(key)
    for actuator in list(spec.actuators):
        if joint in _targets(spec, actuator):
            spec.delete(actuator)
    servo = spec.add_actuator(name=joint, target=joint, trntype=mujoco.mjtTrn.mjTRN_JOINT)
    servo.set_to_position(kp=kp, kv=kv)
    servo.inheritrange = 1.0  # of the joint, whatever the unit of its file
    servo.forcerange = (-force, force)
    return servo


def joints(
    spec: mujoco.MjSpec, home: Mapping[str, float], velocity: Mapping[str, float]
) -> tuple[Joint, ...]:
    """The contract's joints with the limits of the model, in the order of `home`.

    Args:
        spec: the robot's.
        home: where each joint stands at home, rad or m; of a keyframe: `at_key`.
        velocity: their top speeds, rad/s or m/s, which no MJCF has.
    """
    for name in home:
        _require_range(spec, name)
    model = spec.compile()
    made = []
    for name, q in home.items():
        lower, upper = map(float, model.joint(name).range)
        if name not in velocity:
            raise DeftlyError(f"joint '{name}' has no top speed: give velocity={{'{name}': ...}}")
        units = UNITS[spec.joint(name).type]
        made.append(Joint(name, lower, upper, home=q, velocity=velocity[name], units=units))
    return tuple(made)


def at_key(spec: mujoco.MjSpec, key: str, names: tuple[str, ...]) -> dict[str, float]:
    """Where joints stand in a keyframe of the model, rad or m, by name. Raises DeftlyError for an unknown keyframe."""
    model = spec.compile()
    keys = [model.key(i).name for i in range(model.nkey)]
    if key not in keys:
        raise DeftlyError(f"the MJCF has no keyframe '{key}'{suggest(key, keys)}; it has {keys}")
    qpos = model.key(key).qpos
    addresses = {name: model.joint(name).qposadr[0] for name in names}
    return {name: float(qpos[address]) for name, address in addresses.items()}


def to_xml(spec: mujoco.MjSpec) -> str:
    """The MJCF of a spec, compiled here, that finds its meshes and textures from any folder."""
    _use_whole_paths(spec)
    spec.compile()
    return spec.to_xml()


def _require_range(spec: mujoco.MjSpec, name: str) -> None:
    """Raise DeftlyError for a joint that no contract can have."""
    joint = spec.joint(name)
    if joint is None:
        names = [joint.name for joint in spec.joints]
        raise DeftlyError(f"the MJCF has no joint '{name}'{suggest(name, names)}; it has {names}")
    if joint.type not in UNITS:
        raise DeftlyError(f"joint '{name}' is neither a hinge nor a slide: it cannot be commanded")
    lower, upper = joint.range
    if not (joint.limited and lower < upper):
        advice = f"give s.joint('{name}').range = lower, upper"
        raise DeftlyError(f"joint '{name}' has no range: {advice}")


def _targets(spec: mujoco.MjSpec, actuator: mujoco.MjsActuator) -> list[str]:
    """Names of the joints that an actuator drives: its own, or those that its tendon winds."""
    if actuator.trntype == mujoco.mjtTrn.mjTRN_JOINT:
        return [actuator.target]
    if actuator.trntype != mujoco.mjtTrn.mjTRN_TENDON:
        return []
    tendon = spec.tendon(actuator.target)
    joint = mujoco.mjtWrap.mjWRAP_JOINT
    return [wrap.target.name for wrap in tendon.path if wrap.type == joint]
