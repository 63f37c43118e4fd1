"""Robot interfaces and policy contracts for tests: a plain one of four joints, and hypothesis' choice of any."""

import dataclasses
from typing import get_args

import numpy as np
from hypothesis import strategies as st

from deftly.contract import (
    Act,
    ActKind,
    Coupling,
    Derive,
    Input,
    Joint,
    Limit,
    Link,
    Motor,
    Observe,
    PolicyContract,
    RobotInterface,
    Signal,
    Site,
)

KINDS = get_args(ActKind)
JOINTS = (
    Joint("a", -1.0, 2.0, 0.5, 3.0),
    Joint("b", -2.0, 2.0, 0.0, 1.5),
    Joint("c", 0.0, 0.04, 0.04, 0.15, "m", grips=True),
    Joint("d", -1.0, 1.0, 0.0, 1.0),
)
ROBOT = RobotInterface(
    name="toy",
    joints=JOINTS,
    signals=(Signal("joint_pos", 4, "rad"), Signal("cube", 3, "m", "base")),
    couplings=(Coupling("d", (("a", -0.5), ("b", 0.25)), 0.1),),
)
PLAIN = PolicyContract(
    robot=ROBOT,
    rate=20,
    observe_terms=(
        Observe("joint_pos", scale=(1, 2, 25, 1), offset=(0.5, 0, 0, 0), history=3),
        Observe("cube", clip=(-1, 1)),
        Observe("command"),
        Observe("action", history=2),
    ),
    act_terms=(Act(("a", "b"), "relative", (0.5,), lowpass=0.25), Act(("c",), "gripper", (0.2,))),
)
ARM = RobotInterface(
    name="arm",
    joints=(*JOINTS[:2], Joint("rail", -0.5, 0.5, 0.0, 1.0, "m")),
    signals=(
        Signal("joint_pos", 3, "rad, m"),
        Signal("orientation", 4, frame="world"),
        Signal("base", 7, "m", "world"),
        Signal("goal", 7, "m", "world"),
        Signal("wind", 3, "m/s", "world"),
    ),
    motors=(Motor("b", -1, 0.2), Motor("rail"), Motor("a")),
    sites=(
        Site(
            "tip",
            (
                Link((0.0, 0.0, 0.3), joint="rail", axis=(1.0, 0.0, 0.0), kind="slide"),
                Link((0.1, 0.0, 0.0), (0.5**0.5, 0.0, 0.5**0.5, 0.0), "a", (0.0, 0.6, 0.8)),
                Link((0.0, 0.05, 0.0)),
                Link((0.2, 0.0, 0.1), joint="b", axis=(0.0, 0.0, 1.0)),
                Link((0.0, 0.0, 0.15), (0.5, 0.5, 0.5, 0.5)),
            ),
        ),
        Site("plate", (Link((0.0, 0.0, 0.02)),)),
    ),
    limits=(Limit("wind", -30.0, 30.0), Limit("orientation", 0.2, 1.0, 0)),
)
DERIVE = (
    Derive("tip_pos", "forward_kinematics", site="tip"),
    Derive("tip_pose", "forward_kinematics", site="tip", pose=True),
    Derive("plate_pos", "forward_kinematics", site="plate"),
    Derive("away", "difference", ("tip_pos", "wind")),
    Derive("distance", "norm", ("away",)),
    Derive("gravity", "projected_gravity", ("orientation",)),
    Derive("heading", "heading_frame", ("velocity", "orientation")),
    Derive("goal_in_base", "relative_pose", ("base", "goal")),
    Derive("clock", "phase_clock", period=0.7),
)
"""Every kind of derived value; `velocity` is an input."""
DERIVED = PolicyContract(
    robot=ARM,
    rate=20,
    observe_terms=tuple(Observe(d.name, history=1 + i % 3) for i, d in enumerate(DERIVE)),
    act_terms=(Act(("a", "rail"), "relative", (0.5,), 0.25, "start"), Act(("b",), "velocity")),
    inputs=(
        Input("velocity", 3, "m/s", "base", (-1, -1, 0), 1, (0.5, 0, 0)),
        Input("prompt", dtype="text"),
    ),
    derive=DERIVE,
)


def signals_of(c: PolicyContract, rng: np.random.Generator, *batch: int) -> dict[str, np.ndarray]:
    """Signals of the contract's robot, float32; what are orientations have length 1."""
    found = {s.name: rng.normal(size=(*batch, s.size)).astype(np.float32) for s in c.signals}
    for name, first in (("orientation", 0), ("base", 3), ("goal", 3)):
        if name in found:
            found[name][..., first:] /= np.linalg.norm(
                found[name][..., first:], axis=-1, keepdims=True
            )
    return found


def with_kind(
    kind: str, scale=(0.5,), lowpass: float = 0.0, origin: str = "home"
) -> PolicyContract:
    """The plain contract with one kind of action for its first three joints."""
    joints = tuple(dataclasses.replace(joint, grips=kind == "gripper") for joint in JOINTS)
    robot = dataclasses.replace(ROBOT, joints=joints)
    acts = (Act(("a", "b", "c"), kind, scale, lowpass, origin),)  # type: ignore[arg-type]
    return dataclasses.replace(PLAIN, robot=robot, act_terms=acts)


@st.composite
def contracts(draw) -> PolicyContract:
    """Any valid contract of up to five joints."""
    number, positive = st.floats(-50, 50), st.floats(0.01, 50)
    joints = []
    for i in range(draw(st.integers(1, 5))):
        lower = draw(number)
        upper = lower + draw(positive)
        home = min(max(lower + draw(st.floats(0, 1)) * (upper - lower), lower), upper)
        joints.append(
            Joint(f"j{i}", lower, upper, home, draw(positive), slack=draw(positive), grips=True)
        )
    driven = draw(st.integers(1, len(joints)))
    acts = []
    for joint in joints[:driven]:
        kind = draw(st.sampled_from(KINDS))
        origin = draw(st.sampled_from(("home", "start"))) if kind == "relative" else "home"
        acts.append(Act((joint.name,), kind, (draw(positive),), draw(st.floats(0, 0.9)), origin))
    couplings = [
        Coupling(j.name, (("j0", draw(number)),), draw(number))
        for j in joints[driven:]
        if draw(st.booleans())
    ]
    terms = []
    for name in ("joint_pos", "extra", "command", "action"):
        history = draw(st.integers(1, 4))
        stride = draw(st.integers(1, history))
        clip = draw(st.none() | st.just((-5.0, 5.0)))
        terms.append(Observe(name, (draw(number),), (draw(number),), clip, history, stride))
    order = draw(st.just([]) | st.permutations(joints))
    motors = tuple(Motor(j.name, draw(st.sampled_from((1.0, -1.0))), draw(number)) for j in order)
    signals = (Signal("joint_pos", len(joints)), Signal("extra", draw(st.integers(1, 4))))
    robot = RobotInterface("any", tuple(joints), signals, tuple(couplings), motors)
    return PolicyContract(robot, draw(st.floats(1, 1000)), tuple(terms), tuple(acts))
