"""A check that any robot file can be held against: does the model do what the contract says of its joints?"""

from collections.abc import Iterator

import mujoco
import numpy as np

from deftly.console import Finding, failed, judge
from deftly.robots import Robot
from deftly.sim import scene

LIMIT_TOLERANCE, ROUNDING = 1e-6, 1e-4  # the latter of MJCF, written with six digits
LIGHTEST, HEAVIEST = 0.001, 100.0  # kg, of one body
HOLD_SECONDS, RANDOM_POSES = 5.0, 200
DRIFT = {
    "rad": 0.02,
    "m": 0.001,
}  # farthest a joint may be from home while it holds it, by its units
SATURATED = 0.99  # of an actuator's force limit
KEPT = (
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
        return [Finding("model", "fail", f"does not compile: {' '.join(str(error).split())}")]
    known = {model.joint(i).name for i in range(model.njnt)}
    missing = [
        f"no joint '{j.name}', which the contract commands"
        for j in robot.joints
        if j.name not in known
    ]
    slow = [
        f"{j.name}: top speed {j.velocity} {j.units}/s"
        for j in robot.joints
        if not 0 < j.velocity < np.inf
    ]
    parts = f"{model.nbody - 1} bodies, {model.nv} degrees of freedom, {model.nu} actuators"
    found = [
        judge("model", missing, f"compiles: {parts}"),
        judge("actuators", _actuator_problems(robot, model), "each joint takes a position target"),
        judge("velocity", slow, "top speeds are positive"),
        _masses(model),
        judge(
            "inertia",
            _inertia_problems(model),
            "positive, triangle inequality holds, size plausible",
        ),
        judge(
            "MJCF", _text_problems(robot, model), "self-contained: read back, it is the same robot"
        ),
    ]
    if missing:
        return found
    places = [int(model.joint(j.name).qposadr[0]) for j in robot.joints]
    order = ", ".join(robot.joints[i].name for i in np.argsort(places))
    first, last = min(places), min(places) + len(places) - 1
    wrong = (
        []
        if places == [*range(first, last + 1)]
        else [f"the model's is {order}: reorder `joints` or bodies"]
    )
    found.append(
        judge("joint order", wrong, f"qpos {first} to {last} in the order of the contract")
    )
    found.append(judge("limits", _limit_problems(robot, model), "model and contract agree"))
    if not failed(f for f in found if f.name in ("actuators", "limits")):
        found += [_self_collision(robot), _gravity_hold(robot)]
    return found


def at_home(
    robot: Robot, held: bool = False, floor: bool = False
) -> tuple[mujoco.MjModel, mujoco.MjData, list[int]]:
    """The robot alone, or on a floor, at home, and where its joints are in qpos; `held` fixes a floating base."""
    spec = robot.spec()
    for joint in [j for j in spec.joints if held and j.type == mujoco.mjtJoint.mjJNT_FREE]:
        spec.delete(joint)
    if floor:
        scene.add_floor(spec, 0.0)
    scene.prepare(spec)
    scene.add_home(spec, {j.name: j.home for j in robot.joints})
    model = spec.compile()
    data = mujoco.MjData(model)
    mujoco.mj_resetDataKeyframe(model, data, 0)
    mujoco.mj_forward(model, data)
    return model, data, [int(model.joint(j.name).qposadr[0]) for j in robot.joints]


def _actuator_problems(robot: Robot, model: mujoco.MjModel) -> Iterator[str]:
    names = {model.actuator(i).name for i in range(model.nu)}
    joints = {j.name for j in robot.joints}
    yield from (
        f"no actuator '{name}': add one of the joint's name" for name in sorted(joints - names)
    )
    for name in sorted(names - joints):
        yield f"actuator '{name}' is no joint of the contract: nothing would command it"
    for name in sorted(names & joints):
        a = model.actuator(name)
        kp, stiffness = a.gainprm[0], -a.biasprm[1]
        if a.trntype[0] != mujoco.mjtTrn.mjTRN_JOINT or model.joint(a.trnid[0]).name != name:
            yield f"actuator '{name}' does not drive joint '{name}'"
        elif kp <= 0 or abs(kp - stiffness) > 1e-9 * abs(kp) or a.gear[0] != 1:
            yield f"actuator '{name}' takes no position target: use set_to_position(kp, kv) and gear 1"


def _limit_problems(robot: Robot, model: mujoco.MjModel) -> Iterator[str]:
    actuators = {model.actuator(i).name for i in range(model.nu)}
    for j in robot.joints:
        limits = f"contract {j.lower:g} .. {j.upper:g} {j.units}"
        joint = model.joint(j.name)
        if not joint.limited[0]:
            yield f"{j.name}: not limited in the model, {limits}"
        elif np.abs(joint.range - (j.lower, j.upper)).max() > LIMIT_TOLERANCE:
            yield f"{j.name}: model {joint.range[0]:g} .. {joint.range[1]:g}, {limits}"
        if not j.lower <= j.home <= j.upper:
            yield f"{j.name}: home {j.home:g} is outside, {limits}"
        if j.name in actuators:
            low, high = model.actuator(j.name).ctrlrange
            if not model.actuator(j.name).ctrllimited[0]:
                yield f"{j.name}: the actuator has no ctrlrange, {limits}"
            elif (
                low < j.lower - LIMIT_TOLERANCE
                or high > j.upper + LIMIT_TOLERANCE
                or not low <= j.home <= high
            ):
                yield f"{j.name}: ctrlrange {low:g} .. {high:g} must hold home {j.home:g} and be within, {limits}"


def _masses(model: mujoco.MjModel) -> Finding:
    """Each moving body, with what is welded to it, has a plausible mass."""
    sums = np.bincount(model.body_weldid, model.body_mass)
    moving = {model.body(i).name or f"body {i}": sums[i] for i in np.unique(model.body_weldid) if i}
    limits = f"expected {LIGHTEST:g} .. {HEAVIEST:g}"
    wrong = [
        f"'{name}' weighs {m:g} kg, {limits}"
        for name, m in moving.items()
        if not LIGHTEST <= m <= HEAVIEST
    ]
    low, high = min(moving.values(), default=0.0), max(moving.values(), default=0.0)
    return judge(
        "masses", wrong, f"{sums.sum():.3g} kg in all, moving bodies {low:.3g} .. {high:.3g} kg"
    )


def _inertia_problems(model: mujoco.MjModel) -> Iterator[str]:
    for i in np.flatnonzero(model.body_mass > 0):
        name, moments = model.body(i).name or f"body {i}", np.sort(model.body_inertia[i])
        if moments[0] <= 0 or moments[2] > (moments[0] + moments[1]) * (1 + 1e-6):
            yield f"'{name}' has principal moments {moments}: all are positive, none exceeds the sum of the others"
        geoms = np.flatnonzero(model.geom_bodyid == i)
        away = (
            np.linalg.norm(model.geom_pos[geoms] - model.body_ipos[i], axis=-1)
            + model.geom_rbound[geoms]
        )
        gyration, extent = np.sqrt(moments[2] / model.body_mass[i]), np.max(away, initial=0.0)
        if 0 < 2 * extent < gyration:
            yield f"'{name}': radius of gyration {gyration:.3g} m, but its geoms reach only {extent:.3g} m"


def _text_problems(robot: Robot, model: mujoco.MjModel) -> Iterator[str]:
    """How the model's XML, read back alone, differs."""
    spec = robot.spec()
    spec.compile()
    try:
        again = mujoco.MjModel.from_xml_string(spec.to_xml())
    except ValueError as error:
        yield f"not self-contained: {' '.join(str(error).split())}"
        return
    if (again.nbody, again.njnt, again.nu) != (model.nbody, model.njnt, model.nu):
        yield "read back from its XML, the model has other bodies, joints or actuators"
        return
    for field in KEPT:
        apart = np.abs(getattr(again, field) - getattr(model, field)).T
        for i in np.flatnonzero(np.atleast_2d(apart).max(0) > ROUNDING):
            thing = model.body(i) if field.startswith("body") else model.joint(i)
            yield f"read back from its XML, '{thing.name}' has another {field}: give a body with a mass `ipos` as well"


def _penetrations(model: mujoco.MjModel, data: mujoco.MjData) -> Iterator[str]:
    for contact in data.contact[: data.ncon]:
        if contact.dist < 0:
            a, b = (
                model.geom(g).name or model.body(model.geom_bodyid[g]).name for g in contact.geom
            )
            yield f"'{a}' and '{b}' penetrate by {-1e3 * contact.dist:.2g} mm at home"


def _self_collision(robot: Robot) -> Finding:
    model, data, places = at_home(robot)
    problems = list(_penetrations(model, data))
    rng, count = np.random.default_rng(0), 0
    for _ in range(RANDOM_POSES):
        data.qpos[places] = [rng.uniform(j.lower, j.upper) for j in robot.joints]
        mujoco.mj_kinematics(model, data)
        mujoco.mj_collision(model, data)
        count += any(_penetrations(model, data))
    return judge(
        "self-collision",
        problems,
        f"none at home; {count / RANDOM_POSES:.0%} of random poses within limits",
    )


def _gravity_hold(robot: Robot) -> Finding:
    model, data, places = at_home(robot, held=True)
    drift, load = np.zeros(len(places)), np.zeros(model.nu)
    limit = np.where(model.actuator_forcelimited, np.abs(model.actuator_forcerange).max(1), np.inf)
    while data.time < HOLD_SECONDS:
        mujoco.mj_step(model, data)
        drift = np.maximum(drift, np.abs(data.qpos[places] - [j.home for j in robot.joints]))
        load = np.maximum(load, np.abs(data.actuator_force) / limit)
    held = [(j, moved, DRIFT.get(j.units, 0.02)) for j, moved in zip(robot.joints, drift)]
    problems = [
        f"{j.name} drifts {d:.2g} {j.units} from home, at most {top:g}"
        for j, d, top in held
        if not d < top
    ]
    saturated = np.flatnonzero(load > SATURATED)
    problems += [
        f"actuator '{model.actuator(i).name}' saturates: {load[i]:.0%} of its limit"
        for i in saturated
    ]
    most = f"drift {drift.max():.1g}, load {load.max():.0%} of the force limits"
    return judge("gravity hold", problems, f"{HOLD_SECONDS:g} s at home: {most} at most")
