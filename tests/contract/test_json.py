"""Contracts as JSON: exact, canonical, hashed; and whatever else is in a file or a message is refused in one line."""

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from contracts import ARM, DERIVED, JOINTS, PLAIN, ROBOT, contracts, signals_of
from hypothesis import given, settings
from hypothesis import strategies as st

from deftly import contract
from deftly.contract import (
    Act,
    ContractError,
    Coupling,
    Derive,
    Fault,
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

POLICIES = Path(contract.__file__).parents[1] / "shipped/policies"
SHIPPED = [path.parent.name for path in POLICIES.glob("*/policy_spec.json")]


@given(contracts())
@settings(max_examples=30, deadline=None)
def test_json_round_trip_keeps_everything(c):
    again = PolicyContract.from_json(c.to_json())
    assert again == c
    assert again.hash == c.hash
    assert again.to_json() == c.to_json()
    assert RobotInterface.from_json(c.robot.to_json()) == c.robot


def test_hashes_do_not_change_between_versions():
    assert PLAIN.hash == "933524db487de7ad7577561fd92c68aa51e68bf6fdbefb11d63b277a04e00a2d"
    assert ROBOT.hash == "d9394392f9af5b9c4e1f35ce264b317bf1b34e0b91e5702eaf8b3fe9c69d8e98"
    assert DERIVED.hash == "4c4a788cc50bd1b88bc4816f9d40f956aa3a496169c399a784c618271f6537a1"


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_contracts_keep_their_text_and_hash(name):
    text = (POLICIES / name / "policy_spec.json").read_text()
    again = PolicyContract.from_json(text)
    assert again.to_json() == text
    assert again.hash == json.loads((POLICIES / name / "checksums.json").read_text())["contract"]


def test_hash_ignores_how_numbers_are_written():
    assert dataclasses.replace(PLAIN, rate=20.0).hash == PLAIN.hash
    assert dataclasses.replace(PLAIN, rate=np.float64(20.0)).hash == PLAIN.hash
    assert dataclasses.replace(JOINTS[1], home=-0.0) == JOINTS[1]
    joints = (JOINTS[0], dataclasses.replace(JOINTS[1], home=-0.0), *JOINTS[2:])
    assert dataclasses.replace(ROBOT, joints=list(joints)).hash == ROBOT.hash  # type: ignore[arg-type]


def test_hash_sees_every_number():
    assert dataclasses.replace(PLAIN, rate=20.000001).hash != PLAIN.hash
    joints = (dataclasses.replace(JOINTS[0], upper=2.0000001), *JOINTS[1:])
    other = dataclasses.replace(ROBOT, joints=joints)
    assert other.hash != ROBOT.hash
    assert dataclasses.replace(PLAIN, robot=other).hash != PLAIN.hash


def test_two_policies_share_an_interface():
    other = dataclasses.replace(PLAIN, rate=30, observe_terms=(Observe("cube"),))
    assert other.robot.hash == PLAIN.robot.hash
    assert other.hash != PLAIN.hash


def test_require_names_the_first_difference():
    PLAIN.require(PolicyContract.from_json(PLAIN.to_json()), "a copy")
    other = dataclasses.replace(
        ROBOT, joints=(dataclasses.replace(JOINTS[0], upper=1.5), *JOINTS[1:])
    )
    with pytest.raises(
        ContractError,
        match=r"^the robot was made under another robot interface: joints\[0\]\.upper is",
    ):
        ROBOT.require(other, "the robot")
    with pytest.raises(
        ContractError,
        match=r"another contract: robot\.joints\[0\]\.upper is 1\.5 there, 2\.0 here$",
    ):
        PLAIN.require(dataclasses.replace(PLAIN, robot=other), "the robot")


def test_of_another_robot_its_name_is_the_difference():
    other = dataclasses.replace(ROBOT, name="other")
    with pytest.raises(ContractError, match=f"its robot is other, not {ROBOT.name}$"):
        ROBOT.require(other, "the robot")
    with pytest.raises(ContractError, match=f"its robot is other, not {ROBOT.name}$"):
        PLAIN.require(
            dataclasses.replace(PLAIN, robot=dataclasses.replace(ROBOT, name="other")), "x"
        )


def test_schema_1_is_refused_by_name():
    with pytest.raises(
        ContractError,
        match="is of contract schema 1, made by an older Deftly: train or export it again",
    ):
        PolicyContract.from_json('{"schema":"deftly.contract/1","robot":"toy","rate":20.0}')
    with pytest.raises(
        ContractError, match=r"contract schema is 'deftly\.robot/2', this Deftly reads 'deftly\."
    ):
        PolicyContract.from_json(ROBOT.to_json())
    with pytest.raises(ContractError, match=r"robot schema is 'deftly\.contract/2'"):
        RobotInterface.from_json(PLAIN.to_json())


def test_imports_neither_torch_nor_mujoco_nor_numpy():
    code = "import sys, deftly.contract; print(*{'torch', 'mujoco', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "\n"
    assert done.returncode == 0


# ------------------------------------------------------------------ damaged and hostile JSON

anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=6)
    | st.just(10**400),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)


def paths(tree, at=()) -> list[tuple]:
    """Where everything in a JSON tree stands."""
    children = (
        tree.items()
        if isinstance(tree, dict)
        else enumerate(tree)
        if isinstance(tree, list)
        else ()
    )
    return [at, *(p for key, value in children for p in paths(value, (*at, key)))]


@settings(max_examples=100, deadline=None)
@given(st.data(), st.sampled_from([PLAIN, DERIVED]))
def test_damaged_json_gives_a_contract_that_works_or_a_contract_error(data, c):
    tree = json.loads(c.to_json())
    *parents, last = data.draw(st.sampled_from([p for p in paths(tree) if p]))
    node = tree
    for key in parents:
        node = node[key]
    if isinstance(node, dict) and data.draw(st.booleans()):
        del node[last]
    else:
        node[last] = data.draw(anything)
    try:
        damaged = PolicyContract.from_json(json.dumps(tree))
    except ContractError:
        return
    signals = signals_of(damaged, np.random.default_rng(0))
    memory = damaged.reset(signals)
    obs, memory = damaged.observe(signals, memory)
    targets, _ = damaged.act(np.zeros(damaged.action_size, np.float32), memory)
    assert all(np.isfinite(x).all() for x in (*obs.values(), targets))


@settings(max_examples=50, deadline=None)
@given(st.text() | anything.map(json.dumps))
def test_other_text_is_a_contract_error(text):
    with pytest.raises(ContractError):
        PolicyContract.from_json(text)


def spoiled(old: str, new: str) -> str:
    text = PLAIN.to_json()
    assert old in text
    return text.replace(old, new, 1)


HOSTILE = {
    "lists nested 100 000 deep": "[" * 100_000,
    "maps nested 100 000 deep": '{"a":' * 100_000,
    "an unknown field nested deeply": spoiled('"rate"', '"x":' + "[" * 900 + "]" * 900 + ',"rate"'),
    "a list of 10 000 000": "[" + "1," * 10_000_000 + "1]",
    "a scale of many": spoiled('"scale":[0.5]', '"scale":[' + "1.0," * 200_000 + "1.0]"),
    "a name of a megabyte": spoiled('"toy"', '"' + "a" * 1_000_000 + '"'),
    "a name of 65 letters": spoiled('"toy"', '"' + "a" * 65 + '"'),
    "a name with a terminal's escape": spoiled('"toy"', '"\\u001b[31mtoy"'),
    "a name that is a path": spoiled('"toy"', '"../toy"'),
    "units of two lines": spoiled('"units":"rad"', '"units":"ra\\nd"'),
    "a huge whole number": spoiled('"rate":20.0', '"rate":' + "1" * 5000),
    "a number beyond float64": spoiled('"rate":20.0', '"rate":1e999'),
    "infinity": spoiled('"rate":20.0', '"rate":Infinity'),
    "NaN": spoiled('"rate":20.0', '"rate":NaN'),
    "a number beyond the bound": spoiled('"upper":2.0', '"upper":1e13'),
    "a divisor below the bound": spoiled('"rate":20.0', '"rate":1e-9'),
    "a long history": spoiled('"history":3', '"history":1000000000000'),
    "a key twice": spoiled('"rate":20.0', '"rate":30.0,"rate":20.0'),
    "a deep list, its key twice": spoiled(
        '"rate":20.0', '"rate":' + "[" * 990 + "]" * 990 + ',"rate":20.0'
    ),
    "a key 80 000 times": spoiled('"rate":20.0', '"rate":20.0,' * 80_000 + '"rate":20.0'),
    "a key twice, far down": spoiled('"lowpass":0.25', '"lowpass":0.5,"lowpass":0.25'),
    "an unknown field": spoiled('"rate":20.0', '"rate":20.0,"speed":3'),
    "a missing field with a default": spoiled('"lowpass":0.25,', ""),
    "no mapping": "[]",
    "a lone surrogate": spoiled('"toy"', '"\\ud800"'),
    "text behind the end": PLAIN.to_json() + "x",
    "two contracts": PLAIN.to_json() * 2,
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_json_is_refused_in_one_short_line_and_at_once(what):
    began = time.perf_counter()
    with pytest.raises(ContractError) as error:
        PolicyContract.from_json(HOSTILE[what])
    assert time.perf_counter() - began < 2.0
    assert len(str(error.value)) < 400
    assert str(error.value).isprintable()


# ------------------------------------------------------------------ what contradicts itself


def robot(**change):
    return lambda: dataclasses.replace(ROBOT, **change)


def policy(**change):
    return lambda: dataclasses.replace(PLAIN, **change)


def arm(**change):
    return lambda: dataclasses.replace(ARM, **change)


MALFORMED = {
    "rate is 0": policy(rate=0),
    "rate is nan": policy(rate=float("nan")),
    "rate is True": policy(rate=True),
    "name is 5": robot(name=5),
    "a joint is named twice": robot(joints=(*JOINTS[:3], JOINTS[0])),
    "a signal is named twice": robot(signals=(*ROBOT.signals, Signal("cube", 1))),
    "Joint a: has limits 2.0 .. -1.0": lambda: Joint("a", 2.0, -1.0, 0.0, 1.0),
    "Joint a: home 9.0 is outside -1.0 .. 2.0": lambda: Joint("a", -1.0, 2.0, 9.0, 1.0),
    "Joint.velocity is 0": lambda: Joint("a", -1.0, 2.0, 0.0, 0.0),
    "Joint.lower is inf": lambda: Joint("a", float("inf"), 2.0, 0.0, 1.0),
    "Joint.slack is -0.1": lambda: Joint("a", -1.0, 2.0, 0.0, 1.0, slack=-0.1),
    "needs a signal 'joint_pos' of shape (4,)": robot(
        signals=(Signal("joint_pos", 3), Signal("cube", 3))
    ),
    "no signal is 'command' or 'action'": robot(signals=(*ROBOT.signals, Signal("action", 3))),
    "Signal.shape is (0,)": lambda: Signal("x", 0),
    "Signal.shape is (True,)": lambda: Signal("x", True),
    "Signal.shape is (4097,)": lambda: Signal("x", 4097),
    "Signal x: has shape (2, 2): a signal of numbers is a vector": lambda: Signal("x", (2, 2)),
    "Signal x: has shape (2, 2, 4): a uint8 signal is an image": lambda: Signal(
        "x", (2, 2, 4), dtype="uint8"
    ),
    "bytes, at most": lambda: Signal("x", (4096, 4096, 3), dtype="uint8"),
    "the sign of a motor is 1 or -1": lambda: Motor("a", 0.5),
    "expected each joint once": robot(motors=(Motor("a"),)),
    "a coupling names 'z', which is no joint": robot(couplings=(Coupling("z"),)),
    "a joint follows twice": robot(couplings=(Coupling("d"), Coupling("d"))),
    "c follows d, which follows others": robot(
        couplings=(Coupling("d", (("a", 1.0),)), Coupling("c", (("d", 1.0),)))
    ),
    "Coupling.of is": lambda: Coupling("d", ("a", 1.0)),  # type: ignore[arg-type]
    "Link: quat has length": lambda: Link(quat=(1.0, 1.0, 0.0, 0.0)),
    "axis has length 2": lambda: Link(joint="a", axis=(0.0, 2.0, 0.0)),
    "site 'toe' hangs on 'a' as a slide, elsewhere it is a hinge": arm(
        sites=(Site("tip", (Link(joint="a"),)), Site("toe", (Link(joint="a", kind="slide"),)))
    ),
    "site 'tip' hangs on 'z', which is no joint": arm(sites=(Site("tip", (Link(joint="z"),)),)),
    "Limit: of 'wind' is 2.0 .. 1.0": lambda: Limit("wind", 2.0, 1.0),
    "has no signal 'heat'": arm(limits=(Limit("heat", 0.0, 1.0),)),
    "a limit names element 3 of 'wind', which has 3": arm(limits=(Limit("wind", 0.0, 1.0, 3),)),
    "'cub' is no signal, input or derived value of toy": policy(observe_terms=(Observe("cub"),)),
    "scale of 'cube' has 2 values, expected 1 or 3": policy(
        observe_terms=(Observe("cube", scale=(1, 2)),)
    ),
    "clip of 'cube' is (1.0, -1.0)": lambda: Observe("cube", clip=(1, -1)),
    "has 1200000 elements, at most": policy(observe_terms=(Observe("cube", history=10_000),) * 40),
    "histories keep 1200000 elements": policy(
        observe_terms=tuple(Observe("cube", history=10_000, group=f"g{i}") for i in range(40))
    ),
    "Observe.history is 0": lambda: Observe("cube", history=0),
    "Observe.stride is True": lambda: Observe("cube", history=2, stride=True),
    "Observe.stride is 1.5": lambda: Observe("cube", history=2, stride=1.5),  # type: ignore[arg-type]
    "stride 4 of 'cube' is larger than its history of 3": lambda: Observe(
        "cube", history=3, stride=4
    ),
    "PolicyContract.observe_terms is ()": policy(observe_terms=()),
    "a joint is driven twice": policy(act_terms=(Act(("a", "a"), "velocity"),)),
    "a joint is driven twice: ['d'": policy(act_terms=(Act(("d",), "velocity"),)),
    "acts on 'z', which is no joint": policy(act_terms=(Act(("z",), "velocity", (1.0,)),)),
    "Act.kind is 'torque'": lambda: Act(("a",), "torque", (1.0,)),  # type: ignore[arg-type]
    "of kind delta needs a scale": lambda: Act(("a",), "delta"),
    "of kind delta has no origin": lambda: Act(("a",), "delta", (1.0,), origin="start"),
    "Act.scale is (-1.0,)": lambda: Act(("a",), "delta", (-1.0,)),
    "Act.lowpass is 1.0": lambda: Act(("a",), "delta", (1.0,), 1.0),
    "a gripper action drives a: set grips=True": policy(act_terms=(Act(("a",), "gripper"),)),
    "PolicyContract: 'cube' names two things": policy(inputs=(Input("cube"),)),
    "default (3.0,) must be within": lambda: Input("speed", default=3.0),
    "lower has 2 values, expected 1 or 3": lambda: Input("speed", 3, lower=(0.0, 0.0)),
    "only a text input has a default text": lambda: Input("speed", text="go"),
    "'say' is no signal, input or derived value": policy(
        inputs=(Input("say", dtype="text"),), observe_terms=(Observe("say"),)
    ),
    "a norm is of 1 values": lambda: Derive("x", "norm", ("a", "b")),
    "period is 0": lambda: Derive("x", "phase_clock"),
    "only forward kinematics give a pose": lambda: Derive("x", "norm", ("a",), pose=True),
    "count is 0: a part has elements": lambda: Derive("x", "part", ("a",)),
    "only a part has first and count": lambda: Derive("x", "norm", ("a",), first=1),
    "derived value 'x' is of elements 1 to 3 of 'cube', which has 3": policy(
        derive=(Derive("x", "part", ("cube",), first=1, count=3),)
    ),
    "Derive x: site is ''": lambda: Derive("x", "forward_kinematics"),
    "toy has no site 'tip'": policy(derive=(Derive("x", "forward_kinematics", site="tip"),)),
    "derived value 'x' is of 'y', which is not known there": policy(
        derive=(Derive("x", "norm", ("y",)), Derive("y", "norm", ("cube",)))
    ),
    "'cube' has 3 elements, not 4": policy(derive=(Derive("x", "projected_gravity", ("cube",)),)),
    "joint_pos has 4 elements, cube has 3": policy(
        derive=(Derive("x", "difference", ("joint_pos", "cube")),)
    ),
    "'cube' names two things among signals, inputs and derived values": policy(
        derive=(Derive("cube", "norm", ("joint_pos",)),)
    ),
}


@pytest.mark.parametrize("message", MALFORMED)
def test_what_contradicts_itself_is_refused_by_name(message):
    with pytest.raises(ContractError) as error:
        MALFORMED[message]()
    assert message in str(error.value)
    assert str(error.value).isprintable()


SEEING = dataclasses.replace(
    ROBOT, signals=(*ROBOT.signals, Signal("front", (4, 6, 3), dtype="uint8"))
)


@pytest.mark.parametrize(
    ("terms", "said"),
    [
        ((Observe("front"), Observe("cube")), "the image 'front' shares its group 'state'"),
        ((Observe("front", (2.0,), group="eye"),), "the image 'front' passes unchanged"),
        ((Observe("front", history=2, group="eye"),), "the image 'front' passes unchanged"),
    ],
)
def test_an_image_is_alone_in_its_group_and_unchanged(terms, said):
    with pytest.raises(ContractError, match=said):
        dataclasses.replace(PLAIN, robot=SEEING, observe_terms=terms)
    dataclasses.replace(
        PLAIN, robot=SEEING, observe_terms=(Observe("front", group="eye"), Observe("cube"))
    )


def test_no_value_is_derived_from_an_image():
    with pytest.raises(ContractError, match="is of 'front', which is not known there"):
        dataclasses.replace(PLAIN, robot=SEEING, derive=(Derive("x", "norm", ("front",)),))


# ------------------------------------------------------------ fields that came later

LEGS = dataclasses.replace(
    ROBOT,
    joints=(dataclasses.replace(JOINTS[0], acceleration=90.0, lead=0.4, frozen=0.1), *JOINTS[1:]),
    signals=(*ROBOT.signals, Signal("chest", 4), Signal("gyro", 3, "rad/s")),
    limits=(Limit("chest", 0.0, 0.8, of="tilt"), Limit("gyro", 0.0, 8.0, of="norm")),
    damps=(Fault.LIMIT, Fault.SIGNALS_BAD),
)


def test_fields_that_came_later_are_written_only_when_they_say_something():
    assert not any(word in ROBOT.to_json() for word in ("damps", "acceleration", "frozen", "lead"))
    assert '"damps":["limit","signals-bad"]' in LEGS.to_json()
    assert LEGS.to_json().count('"acceleration"') == 1
    again = RobotInterface.from_json(LEGS.to_json())
    assert again == LEGS
    assert again.hash == LEGS.hash != ROBOT.hash
    assert dataclasses.replace(LEGS, damps=()).hash != LEGS.hash


def test_a_default_that_is_written_out_is_refused():
    tree = json.loads(ROBOT.to_json())
    tree["damps"] = []
    with pytest.raises(ContractError, match="is not as Deftly writes it: damps is"):
        RobotInterface.from_json(json.dumps(tree, sort_keys=True, separators=(",", ":")))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"damps": ("limp",)}, "invalid enum value 'limp'"),
        ({"damps": (Fault.LIMIT, Fault.LIMIT)}, "expected faults, each once"),
        ({"damps": (Fault.NONE,)}, "expected faults, each once"),
        (
            {"limits": (Limit("gyro", 0.0, 1.0, of="tilt"),)},
            "a tilt is of a quaternion, 'gyro' has",
        ),
    ],
)
def test_what_a_robot_cannot_promise_is_refused_in_one_line(changes, said):
    with pytest.raises(ContractError, match=said):
        dataclasses.replace(LEGS, **changes)


def test_an_element_is_of_values_alone():
    with pytest.raises(ContractError, match="of the norm of 'gyro' has no element"):
        Limit("gyro", 0.0, 8.0, element=1, of="norm")
