"""A check that any robot file can be held against: does the model do what the contract says of its joints?"""

from collections.abc import Iterator

import mujoco
import numpy as np

from deftly.console import Finding, failed, judge
from deftly.contract import Joint
from deftly.robots import Robot, mjcf
from deftly.sim import looks, scene

LIMIT_TOLERANCE = 1e-6  # rad or m, between the limits of model and contract
ROUNDING = 1e-4  # of MJCF, written with six digits
INERTIA_TOLERANCE = 1e-6  # relative, of the triangle inequality
GAIN_TOLERANCE = 1e-9  # relative, between kp and the stiffness of a position actuator
LIGHTEST = 0.001  # kg, of one body
HEAVIEST = 100.0  # kg, of one body
HOLD_SECONDS = 5.0
RANDOM_POSES = 200
TOUCHING = 1e-6
"""Depth, m, up to which geoms only touch. Surfaces that meet exactly come out 1e-17 m deep by rounding, and soft
contacts let what rests on something sink by more than this."""
DRIFT = {"rad": 0.02, "m": 0.001}
"""Largest distance of a joint from home while it holds it, by its units."""
SATURATED = 0.99  # of an actuator's force limit
SERVO = "mjcf.set_servo(spec, joint, kp, kv, force) makes a position servo"
"""What to type where an actuator is none that the contract can command."""
COMPARED_FIELDS = (
    "body_pos",
    "body_quat",
    "body_ipos",
    "body_mass",
    "body_inertia",
    "jnt_pos",
    "jnt_axis",
    "jnt_range",
)


def check(robot: Robot) -> list[Finding]:
    """Hold a robot's model against its contract and physics; stops early if there is no model to check."""
    try:
        model = robot.spec().compile()
    except Exception as error:
        reason = " ".join(str(error).split())
        return [Finding("model", "fail", f"does not compile: {reason}")]
    missing = list(_missing_joints(robot, model))
    findings = _model_findings(robot, model, missing)
    if missing:
        return findings
    findings.append(_joint_order(robot, model))
    limits = _limit_problems(robot, model)
    findings.append(judge("limits", limits, "model and contract agree"))
    decisive = [finding for finding in findings if finding.name in ("actuators", "limits")]
    if not failed(decisive):
        findings.append(_self_collision(robot))
        findings.append(_gravity_hold(robot))
    return findings


def at_home(
    robot: Robot, held: bool = False, floor: float | None = None
) -> tuple[mujoco.MjModel, mujoco.MjData, list[int]]:
    """The robot at home, and where its joints are in qpos.

    Args:
        robot: whose spec is built.
        held: fix a floating base.
        floor: height of a floor that is only drawn, m; None: the robot alone.
    """
    spec = robot.spec()
    if held:
        free = mujoco.mjtJoint.mjJNT_FREE
        free_joints = [joint for joint in spec.joints if joint.type == free]
        for joint in free_joints:
            spec.delete(joint)
    if floor is not None:
        scene.add_floor(spec, floor)
    scene.prepare(spec)
    home = {joint.name: joint.home for joint in robot.joints}
    scene.add_home(spec, home)
    model = spec.compile()
    looks.show_hidden(model)
    data = mujoco.MjData(model)
    mujoco.mj_resetDataKeyframe(model, data, 0)
    mujoco.mj_forward(model, data)
    return model, data, _qpos_addresses(robot, model)


def on_floor(robot: Robot) -> tuple[mujoco.MjModel, mujoco.MjData]:
    """The robot at home, to look at, on a floor at the height of its base or of its lowest point."""
    model, data, _ = at_home(robot)
    corners = looks.corners(model, data)
    low = corners[:, 2].min(initial=0.0)
    model, data, _ = at_home(robot, floor=float(low))
    # Of the robot alone, without the floor: shadows are as sharp as this is small.
    model.stat.extent = np.ptp(corners, axis=0).max()
    return model, data


def _qpos_addresses(robot: Robot, model: mujoco.MjModel) -> list[int]:
    joints = [model.joint(joint.name) for joint in robot.joints]
    return [int(joint.qposadr[0]) for joint in joints]


# ---------------------------------------------------------------- the model


def _model_findings(robot: Robot, model: mujoco.MjModel, missing: list[str]) -> list[Finding]:
    """What needs no joint of the contract to be in the model."""
    size = f"{model.nbody - 1} bodies, {model.nv} degrees of freedom, {model.nu} actuators"
    actuators = _actuator_problems(robot, model)
    velocities = _velocity_problems(robot)
    inertias = _inertia_problems(model)
    differences = _mjcf_problems(robot, model)
    return [
        judge("model", missing, f"compiles: {size}"),
        judge("actuators", actuators, "each joint takes a position target"),
        judge("velocity", velocities, "top speeds are positive"),
        _masses(model),
        judge("inertia", inertias, "positive, triangle inequality holds, size plausible"),
        judge("MJCF", differences, "read back from its XML, it is the same robot"),
    ]


def _missing_joints(robot: Robot, model: mujoco.MjModel) -> Iterator[str]:
    names = {model.joint(i).name for i in range(model.njnt)}
    for joint in robot.joints:
        if joint.name not in names:
            yield f"no joint '{joint.name}', which the contract commands"


def _velocity_problems(robot: Robot) -> Iterator[str]:
    for joint in robot.joints:
        if not 0 < joint.velocity < np.inf:
            yield f"{joint.name}: top speed {joint.velocity} {joint.units}/s"


def _joint_order(robot: Robot, model: mujoco.MjModel) -> Finding:
    """The joints of the contract are in qpos in its order; joints that nothing commands may be between them."""
    addresses = _qpos_addresses(robot, model)
    problems = []
    if addresses != sorted(addresses):
        in_model = [robot.joints[i].name for i in np.argsort(addresses)]
        order = ", ".join(in_model)
        problems.append(f"the model's is {order}: reorder `joints` or bodies")
    span = f"qpos {addresses[0]} to {addresses[-1]}"
    return judge("joint order", problems, f"{span} in the order of the contract")


def _actuator_problems(robot: Robot, model: mujoco.MjModel) -> Iterator[str]:
    actuators = {model.actuator(i).name for i in range(model.nu)}
    joints = {joint.name for joint in robot.joints}
    drivers = {}
    for name in actuators - joints:
        drivers |= dict.fromkeys(_driven(model, name), name)
    for name in sorted(joints - actuators):
        if name in drivers:
            yield f"no actuator '{name}', but '{drivers[name]}' drives that joint: {SERVO}"
        else:
            yield f"no actuator '{name}': add one of the joint's name, {SERVO}"
    for name in sorted(actuators - joints - set(drivers.values())):
        yield f"actuator '{name}' is no joint of the contract: nothing would command it"
    for name in sorted(actuators & joints):
        if not _drives_its_joint(model, name):
            yield f"actuator '{name}' does not drive joint '{name}'"
        elif not _takes_position(model, name):
            yield f"actuator '{name}' takes no position target: {SERVO}"


def _driven(model: mujoco.MjModel, name: str) -> list[str]:
    """Joints that an actuator drives: its own, or those that its tendon winds."""
    actuator = model.actuator(name)
    target = int(actuator.trnid[0])
    if actuator.trntype[0] == mujoco.mjtTrn.mjTRN_JOINT:
        return [model.joint(target).name]
    if actuator.trntype[0] != mujoco.mjtTrn.mjTRN_TENDON:
        return []
    first = int(model.tendon_adr[target])
    count = int(model.tendon_num[target])
    joints = []
    for wrap in range(first, first + count):
        if model.wrap_type[wrap] == mujoco.mjtWrap.mjWRAP_JOINT:
            joint = model.joint(model.wrap_objid[wrap])
            joints.append(joint.name)
    return joints


def _drives_its_joint(model: mujoco.MjModel, name: str) -> bool:
    """Whether an actuator's transmission is the joint of its name."""
    actuator = model.actuator(name)
    if actuator.trntype[0] != mujoco.mjtTrn.mjTRN_JOINT:
        return False
    return model.joint(actuator.trnid[0]).name == name


def _takes_position(model: mujoco.MjModel, name: str) -> bool:
    """Whether an actuator's force is kp (ctrl - position) - kv velocity, at gear 1."""
    actuator = model.actuator(name)
    kp = actuator.gainprm[0]
    stiffness = -actuator.biasprm[1]
    difference = abs(kp - stiffness)
    same_gain = difference <= GAIN_TOLERANCE * abs(kp)
    return kp > 0 and same_gain and actuator.gear[0] == 1


def _limit_problems(robot: Robot, model: mujoco.MjModel) -> Iterator[str]:
    actuators = {model.actuator(i).name for i in range(model.nu)}
    for joint in robot.joints:
        yield from _joint_limit_problems(joint, model)
        if joint.name in actuators:
            yield from _ctrlrange_problems(joint, model)


def _contract_limits(joint: Joint) -> str:
    return f"contract {joint.lower:g} .. {joint.upper:g} {joint.units}"


def _joint_limit_problems(joint: Joint, model: mujoco.MjModel) -> Iterator[str]:
    limits = _contract_limits(joint)
    modelled = model.joint(joint.name)
    low, high = modelled.range
    differences = np.abs(modelled.range - (joint.lower, joint.upper))
    apart = differences.max()
    if not modelled.limited[0]:
        yield f"{joint.name}: not limited in the model, {limits}"
    elif apart > LIMIT_TOLERANCE:
        yield f"{joint.name}: model {low:g} .. {high:g}, {limits}"
    if not joint.lower <= joint.home <= joint.upper:
        yield f"{joint.name}: home {joint.home:g} is outside, {limits}"


def _ctrlrange_problems(joint: Joint, model: mujoco.MjModel) -> Iterator[str]:
    limits = _contract_limits(joint)
    actuator = model.actuator(joint.name)
    low, high = actuator.ctrlrange
    too_low = low < joint.lower - LIMIT_TOLERANCE
    too_high = high > joint.upper + LIMIT_TOLERANCE
    if not actuator.ctrllimited[0]:
        yield f"{joint.name}: the actuator has no ctrlrange, {limits}"
    elif too_low or too_high or not low <= joint.home <= high:
        ctrlrange = f"ctrlrange {low:g} .. {high:g}"
        yield f"{joint.name}: {ctrlrange} must hold home {joint.home:g} and be within, {limits}"


def _masses(model: mujoco.MjModel) -> Finding:
    """Each moving body, with what is welded to it, has a plausible mass."""
    masses = np.bincount(model.body_weldid, model.body_mass)  # kg, by the body welded to
    moving = {}
    for body in np.unique(model.body_weldid):
        if body:  # 0 is the world
            moving[_body_name(model, body)] = masses[body]
    limits = f"expected {LIGHTEST:g} .. {HEAVIEST:g}"
    problems = []
    for name, mass in moving.items():
        if not LIGHTEST <= mass <= HEAVIEST:
            problems.append(f"'{name}' weighs {mass:g} kg, {limits}")
    low = min(moving.values(), default=0.0)
    high = max(moving.values(), default=0.0)
    total = masses.sum()
    spread = f"{total:.3g} kg in all, moving bodies {low:.3g} .. {high:.3g} kg"
    return judge("masses", problems, spread)


def _body_name(model: mujoco.MjModel, body: int) -> str:
    return model.body(body).name or f"body {body}"


def _inertia_problems(model: mujoco.MjModel) -> Iterator[str]:
    for body in map(int, np.flatnonzero(model.body_mass > 0)):
        name = _body_name(model, body)
        moments = np.sort(model.body_inertia[body])
        smallest, middle, largest = moments
        most = (smallest + middle) * (1 + INERTIA_TOLERANCE)
        if smallest <= 0 or largest > most:
            yield f"'{name}' has principal moments {moments}: all are positive, none exceeds the sum of the others"
        gyration = np.sqrt(largest / model.body_mass[body])
        extent = _geom_extent(model, body)
        if 0 < 2 * extent < gyration:
            reach = f"its geoms reach only {extent:.3g} m"
            yield f"'{name}': radius of gyration {gyration:.3g} m, but {reach}"


def _geom_extent(model: mujoco.MjModel, body: int) -> float:
    """Largest distance of a body's geoms from its centre of mass, m; 0 without geoms."""
    geoms = np.flatnonzero(model.geom_bodyid == body)
    offset = model.geom_pos[geoms] - model.body_ipos[body]
    distances = np.linalg.norm(offset, axis=-1)
    farthest = distances + model.geom_rbound[geoms]
    return np.max(farthest, initial=0.0)


def _mjcf_problems(robot: Robot, model: mujoco.MjModel) -> Iterator[str]:
    """How the model's XML, read back alone, differs."""
    try:
        read_back = mujoco.MjModel.from_xml_string(mjcf.to_xml(robot.spec()))
    except (ValueError, mujoco.FatalError) as error:
        said = " ".join(str(error).split())
        yield f"its XML cannot be read back: {said}; read files with mjcf.read(path)"
        return
    if _sizes(read_back) != _sizes(model):
        yield "read back from its XML, the model has other bodies, joints or actuators"
        return
    for field in COMPARED_FIELDS:
        for name in _differing(model, read_back, field):
            problem = f"read back from its XML, '{name}' has another {field}"
            yield f"{problem}: give a body with a mass `ipos` as well"


def _sizes(model: mujoco.MjModel) -> tuple[int, int, int]:
    return model.nbody, model.njnt, model.nu


def _differing(model: mujoco.MjModel, other: mujoco.MjModel, field: str) -> Iterator[str]:
    """Names of the bodies or joints that have another value of a field in another model."""
    values = getattr(model, field)
    others = getattr(other, field)
    difference = np.abs(others - values).T
    largest = np.atleast_2d(difference).max(0)
    named = model.body if field.startswith("body") else model.joint
    for i in np.flatnonzero(largest > ROUNDING):
        yield named(i).name


# ---------------------------------------------------------------- the simulation


def _penetrations(model: mujoco.MjModel, data: mujoco.MjData) -> Iterator[str]:
    for contact in data.contact[: data.ncon]:
        if contact.dist < -TOUCHING:
            first, second = (_geom_name(model, geom) for geom in contact.geom)
            depth = -1e3 * contact.dist
            yield f"'{first}' and '{second}' penetrate by {depth:.2g} mm at home"


def _geom_name(model: mujoco.MjModel, geom: int) -> str:
    """The geom's name, or its body's."""
    name = model.geom(geom).name
    body = model.geom_bodyid[geom]
    return name or model.body(body).name


def _self_collision(robot: Robot) -> Finding:
    model, data, addresses = at_home(robot)
    problems = list(_penetrations(model, data))
    rng = np.random.default_rng(0)
    colliding = 0
    for _ in range(RANDOM_POSES):
        pose = [rng.uniform(joint.lower, joint.upper) for joint in robot.joints]
        data.qpos[addresses] = pose
        mujoco.mj_kinematics(model, data)
        mujoco.mj_collision(model, data)
        colliding += any(_penetrations(model, data))
    fraction = colliding / RANDOM_POSES
    fine = f"none at home; {fraction:.0%} of random poses within limits"
    return judge("self-collision", problems, fine)


def _gravity_hold(robot: Robot) -> Finding:
    """The joints hold home against gravity, with force to spare."""
    model, data, addresses = at_home(robot, held=True)
    drift, load = _hold(robot, model, data, addresses)
    problems = []
    for joint, moved in zip(robot.joints, drift):
        largest = DRIFT.get(joint.units, 0.02)
        if not moved < largest:
            distance = f"{moved:.2g} {joint.units} from home"
            problems.append(f"{joint.name} drifts {distance}, at most {largest:g}")
    for i in np.flatnonzero(load > SATURATED):
        name = model.actuator(i).name
        problems.append(f"actuator '{name}' saturates: {load[i]:.0%} of its limit")
    most = f"drift {drift.max():.1g}, load {load.max():.0%} of the force limits"
    return judge("gravity hold", problems, f"{HOLD_SECONDS:g} s at home: {most} at most")


def _hold(
    robot: Robot, model: mujoco.MjModel, data: mujoco.MjData, addresses: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Hold home: each joint's largest drift, rad or m, and each actuator's largest load, a fraction of its limit."""
    home = [joint.home for joint in robot.joints]
    drift = np.zeros(len(addresses))
    load = np.zeros(model.nu)
    strongest = np.abs(model.actuator_forcerange).max(1)
    limit = np.where(model.actuator_forcelimited, strongest, np.inf)
    while data.time < HOLD_SECONDS:
        mujoco.mj_step(model, data)
        moved = np.abs(data.qpos[addresses] - home)
        drift = np.maximum(drift, moved)
        used = np.abs(data.actuator_force) / limit
        load = np.maximum(load, used)
    return drift, load
