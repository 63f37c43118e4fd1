"""A check that any robot file can be held against: does the model do what the contract says of its joints?"""

from __future__ import annotations

from collections.abc import Iterator

import mujoco
import numpy as np

from deftly.contract import Joint
from deftly.findings import Finding, judge
from deftly.robots import Robot
from deftly.sim import scene

LIMIT_TOLERANCE = 1e-6
LIGHTEST, HEAVIEST = 0.001, 100.0  # kg, of one body
HOLD_SECONDS = 5.0
DRIFT = {"rad": 0.02, "m": 0.001}
"""Farthest a joint may be from home while it holds it, by its units."""
SATURATED = 0.99  # of an actuator's force limit
RANDOM_POSES = 200


def check(robot: Robot) -> list[Finding]:
    """Hold a robot's model against its contract and physics; stops early if there is no model to check."""
    try:
        model = robot.spec().compile()
    except Exception as error:
        return [Finding("model", "fail", f"does not compile: {' '.join(str(error).split())}")]
    missing = [j.name for j in robot.joints if j.name not in _names(model, mujoco.mjtObj.mjOBJ_JOINT)]
    size = f"compiles: {model.nbody - 1} bodies, {model.nv} degrees of freedom, {model.nu} actuators"
    found = [
        judge("model", (f"no joint '{name}', which the contract commands" for name in missing), size),
        judge("actuators", _actuator_problems(robot, model), "each joint takes a position target"),
        judge("velocity", _velocity_problems(robot), "top speeds are positive"),
        _masses(model),
        judge("inertia", _inertia_problems(model), "positive, triangle inequality holds, size plausible"),
        _self_contained(robot, model),
    ]
    if missing:
        return found
    found += [
        _order(robot, model),
        judge("limits", _limit_problems(robot, model), "model and contract agree"),
    ]
    if any(f.level == "fail" for f in found if f.name in ("actuators", "limits")):
        return found
    return [*found, _self_collision(robot), _gravity_hold(robot)]


def home_model(robot: Robot, fixed: bool = False) -> mujoco.MjModel:
    """The robot alone with scene options and a keyframe `home`; `fixed` holds a floating base."""
    spec = robot.spec()
    if fixed:
        for joint in [j for j in spec.joints if j.type == mujoco.mjtJoint.mjJNT_FREE]:
            spec.delete(joint)
    scene.prepare(spec)
    scene.add_home(spec, {j.name: j.home for j in robot.joints})
    return spec.compile()


def _names(model: mujoco.MjModel, kind: mujoco.mjtObj) -> set[str]:
    count = {mujoco.mjtObj.mjOBJ_JOINT: model.njnt, mujoco.mjtObj.mjOBJ_ACTUATOR: model.nu}[kind]
    return {mujoco.mj_id2name(model, kind.value, i) or "" for i in range(count)}


def _actuator_problems(robot: Robot, model: mujoco.MjModel) -> Iterator[str]:
    names = _names(model, mujoco.mjtObj.mjOBJ_ACTUATOR)
    for name in (j.name for j in robot.joints):
        if name not in names:
            yield f"no actuator '{name}': add one of the joint's name"
            continue
        i = model.actuator(name).id
        kp, stiffness = model.actuator_gainprm[i, 0], -model.actuator_biasprm[i, 1]
        if model.actuator_trntype[i] != mujoco.mjtTrn.mjTRN_JOINT:
            yield f"actuator '{name}' does not drive a joint"
        elif model.joint(model.actuator_trnid[i, 0]).name != name:
            yield f"actuator '{name}' drives joint '{model.joint(model.actuator_trnid[i, 0]).name}'"
        elif kp <= 0 or abs(kp - stiffness) > 1e-9 * abs(kp) or model.actuator_gear[i, 0] != 1:
            yield f"actuator '{name}' takes no position target: use set_to_position(kp, kv) and gear 1"
    for name in sorted(names - {j.name for j in robot.joints}):
        yield f"actuator '{name}' is no joint of the contract: nothing would command it"


def _velocity_problems(robot: Robot) -> Iterator[str]:
    for j in robot.joints:
        if not 0 < j.velocity < np.inf:
            yield f"{j.name}: top speed {j.velocity} {j.units}/s, expected a positive number"


def _order(robot: Robot, model: mujoco.MjModel) -> Finding:
    places = {j.name: int(model.joint(j.name).qposadr[0]) for j in robot.joints}
    first = min(places.values())
    wrong = [name for i, (name, place) in enumerate(places.items()) if place != first + i]
    by_place = ", ".join(sorted(places, key=lambda name: places[name]))
    problems = [f"'{name}' is not at qpos {first + list(places).index(name)}" for name in wrong]
    fine = f"qpos {first} to {first + len(places) - 1} in the order of the contract"
    found = judge("joint order", problems[:1], fine)
    hint = f"; the model's order is {by_place}: reorder `joints`, or the bodies"
    return Finding(found.name, found.level, found.text + (hint if wrong else ""))


def _limit_problems(robot: Robot, model: mujoco.MjModel) -> Iterator[str]:
    actuators = _names(model, mujoco.mjtObj.mjOBJ_ACTUATOR)
    for j in robot.joints:
        joint = model.joint(j.name)
        low, high = joint.range
        if not joint.limited[0]:
            yield f"{j.name}: not limited in the model, contract has {j.lower:g} .. {j.upper:g} {j.units}"
        elif max(abs(low - j.lower), abs(high - j.upper)) > LIMIT_TOLERANCE:
            yield f"{j.name}: model {low:g} .. {high:g}, contract {j.lower:g} .. {j.upper:g} {j.units}"
        if not j.lower <= j.home <= j.upper:
            yield f"{j.name}: home {j.home:g} is outside {j.lower:g} .. {j.upper:g} {j.units}"
        if j.name in actuators:
            yield from _control_problems(j, model)


def _control_problems(j: Joint, model: mujoco.MjModel) -> Iterator[str]:
    i = model.actuator(j.name).id
    low, high = model.actuator_ctrlrange[i]
    if not model.actuator_ctrllimited[i]:
        yield f"{j.name}: the actuator has no ctrlrange, expected {j.lower:g} .. {j.upper:g}"
    elif low < j.lower - LIMIT_TOLERANCE or high > j.upper + LIMIT_TOLERANCE:
        yield f"{j.name}: ctrlrange {low:g} .. {high:g} exceeds the limits {j.lower:g} .. {j.upper:g}"
    elif not low <= j.home <= high:
        yield f"{j.name}: home {j.home:g} is outside ctrlrange {low:g} .. {high:g}"


def _moving(model: mujoco.MjModel) -> dict[str, float]:
    """Mass of each moving body, with what is welded to it, by the name of its first body."""
    masses: dict[str, float] = {}
    for body in range(1, model.nbody):
        root = int(model.body_weldid[body])
        if root:
            name = model.body(root).name or f"body {root}"
            masses[name] = masses.get(name, 0.0) + float(model.body_mass[body])
    return masses


def _masses(model: mujoco.MjModel) -> Finding:
    masses = _moving(model)
    wrong = [
        f"'{name}' weighs {mass:g} kg, expected {LIGHTEST:g} .. {HEAVIEST:g}"
        for name, mass in masses.items()
        if not LIGHTEST <= mass <= HEAVIEST
    ]
    low, high = min(masses.values(), default=0.0), max(masses.values(), default=0.0)
    total = f"{float(model.body_mass.sum()):.3g} kg in all, moving bodies {low:.3g} .. {high:.3g} kg"
    return judge("masses", wrong, total)


def _inertia_problems(model: mujoco.MjModel) -> Iterator[str]:
    for body in range(1, model.nbody):
        mass, moments = float(model.body_mass[body]), np.sort(model.body_inertia[body])
        name = model.body(body).name or f"body {body}"
        if mass <= 0:
            continue
        if moments[0] <= 0:
            yield f"'{name}' has principal moments {moments}, expected positive ones"
        elif moments[2] > (moments[0] + moments[1]) * (1 + 1e-6):
            yield f"'{name}' has principal moments {moments}: the largest exceeds the sum of the others"
        gyration, extent = float(np.sqrt(moments[2] / mass)), _extent(model, body)
        if extent > 0 and gyration > 2 * extent:
            yield f"'{name}': radius of gyration {gyration:.3g} m, but its geoms reach only {extent:.3g} m"


def _extent(model: mujoco.MjModel, body: int) -> float:
    """How far a body's geoms reach from its centre of mass, m; 0 if it has none."""
    geoms = np.flatnonzero(model.geom_bodyid == body)
    away = np.linalg.norm(model.geom_pos[geoms] - model.body_ipos[body], axis=-1)
    return float(np.max(away + model.geom_rbound[geoms], initial=0.0))


def _penetrations(model: mujoco.MjModel, data: mujoco.MjData) -> list[tuple[str, str, float]]:
    """Pairs of geoms that penetrate each other, with the depth in m."""
    pairs = []
    for contact in data.contact[: data.ncon]:
        if contact.dist < 0:
            a, b = (model.geom(g).name or model.body(model.geom_bodyid[g]).name for g in contact.geom)
            pairs.append((a, b, -float(contact.dist)))
    return pairs


def _self_collision(robot: Robot) -> Finding:
    model = home_model(robot)
    data = mujoco.MjData(model)
    mujoco.mj_resetDataKeyframe(model, data, 0)
    mujoco.mj_forward(model, data)
    problems = [f"'{a}' and '{b}' penetrate by {1e3 * d:.2g} mm at home" for a, b, d in _penetrations(model, data)]
    colliding = _colliding_share(robot, model, data)
    return judge("self-collision", problems, f"none at home; {colliding:.0%} of random poses within limits")


def _colliding_share(robot: Robot, model: mujoco.MjModel, data: mujoco.MjData) -> float:
    rng, count = np.random.default_rng(0), 0
    places = [int(model.joint(j.name).qposadr[0]) for j in robot.joints]
    low, high = ([getattr(j, end) for j in robot.joints] for end in ("lower", "upper"))
    for _ in range(RANDOM_POSES):
        data.qpos[places] = rng.uniform(low, high)
        mujoco.mj_kinematics(model, data)
        mujoco.mj_collision(model, data)
        count += bool(_penetrations(model, data))
    return count / RANDOM_POSES


def _gravity_hold(robot: Robot) -> Finding:
    model = home_model(robot, fixed=True)
    data = mujoco.MjData(model)
    mujoco.mj_resetDataKeyframe(model, data, 0)
    drift, load = np.zeros(len(robot.joints)), np.zeros(model.nu)
    places = [int(model.joint(j.name).qposadr[0]) for j in robot.joints]
    limit = np.where(model.actuator_forcelimited, np.abs(model.actuator_forcerange).max(1), np.inf)
    while data.time < HOLD_SECONDS:
        mujoco.mj_step(model, data)
        drift = np.maximum(drift, np.abs(data.qpos[places] - [j.home for j in robot.joints]))
        load = np.maximum(load, np.abs(data.actuator_force) / limit)
    problems = [
        f"{j.name} drifts {d:.2g} {j.units} from home, at most {DRIFT.get(j.units, 0.02):g}"
        for j, d in zip(robot.joints, drift)
        if not d < DRIFT.get(j.units, 0.02)
    ]
    problems += [
        f"actuator '{model.actuator(i).name}' saturates: {load[i]:.0%} of its limit"
        for i in np.flatnonzero(load > SATURATED)
    ]
    most = f"drift {drift.max():.1g}, load {load.max():.0%} of the force limits"
    fine = f"{HOLD_SECONDS:g} s at home: {most} at most"
    return judge("gravity hold", problems, fine)


def _self_contained(robot: Robot, model: mujoco.MjModel) -> Finding:
    """Whether the model's XML, read back alone, is the same robot."""
    spec = robot.spec()
    spec.compile()
    try:
        again = mujoco.MjModel.from_xml_string(spec.to_xml())
    except ValueError as error:
        return Finding("MJCF", "fail", f"not self-contained: {' '.join(str(error).split())}")
    same = (again.nbody, again.njnt, again.nu) == (model.nbody, model.njnt, model.nu)
    if not same or max(_apart(again, model, field) for field in _KEPT) > _ROUNDING:
        return Finding("MJCF", "fail", "read back from its XML, the model has other bodies, joints or actuators")
    lost = np.flatnonzero(np.abs(again.body_mass - model.body_mass) > _ROUNDING)
    turned = np.flatnonzero(np.abs(again.body_inertia - model.body_inertia).max(1) > _ROUNDING)
    problems = [f"the XML loses the mass of '{model.body(i).name}': give the body `ipos` as well" for i in lost]
    problems += [f"the XML changes the inertia of '{model.body(i).name}'" for i in turned if i not in lost]
    level = "fail" if any(model.body_weldid[i] for i in (*lost, *turned)) else "warn"
    return judge("MJCF", problems, "self-contained: read back, it has the same masses and kinematics", level)


_KEPT = ("body_pos", "body_quat", "jnt_pos", "jnt_axis", "jnt_range", "body_ipos")
_ROUNDING = 1e-4  # MJCF is written with six digits


def _apart(a: mujoco.MjModel, b: mujoco.MjModel, field: str) -> float:
    return float(np.abs(getattr(a, field) - getattr(b, field)).max(initial=0.0))
