import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deftly import contract
from deftly.contract import Act, Contract, ContractError, Couple, Joint, Kind, Motor, Observe, Signal

KINDS = get_args(Kind)
JOINTS = (
    Joint("a", -1.0, 2.0, 0.5, 3.0),
    Joint("b", -2.0, 2.0, 0.0, 1.5),
    Joint("c", 0.0, 0.04, 0.04, 0.15, "m"),
    Joint("d", -1.0, 1.0, 0.0, 1.0),
)
PLAIN = Contract(
    robot="toy",
    rate=20,
    joints=JOINTS,
    signals=(Signal("joint_pos", 4, "rad"), Signal("cube", 3, "m", "base")),
    observe_terms=(
        Observe("joint_pos", scale=(1, 2, 25, 1), offset=(0.5, 0, 0, 0), history=3),
        Observe("cube", clip=(-1, 1)),
        Observe("command"),
        Observe("action", history=2),
    ),
    act_terms=(Act(("a", "b"), "relative", (0.5,), lowpass=0.25), Act(("c",), "gripper", (0.2,))),
    couplings=(Couple("d", (("a", -0.5), ("b", 0.25)), 0.1),),
)
POLICIES = Path(contract.__file__).parents[1] / "shipped/policies"
finite = st.floats(-100, 100, width=32)


def with_kind(kind: str, scale=(0.5,), lowpass: float = 0.0) -> Contract:
    return dataclasses.replace(PLAIN, act_terms=(Act(("a", "b", "c"), kind, scale, lowpass),))


def strided(history: int, stride: int = 1) -> Contract:
    """Two terms that see this much of the past, with one between that has none."""
    cube = Observe("cube", (2.0,), history=history, stride=stride)
    terms = (cube, Observe("joint_pos"), Observe("command", history=history, stride=stride))
    return dataclasses.replace(PLAIN, observe_terms=terms)


@st.composite
def contracts(draw) -> Contract:
    """Any valid contract of up to five joints."""
    number, positive = st.floats(-50, 50), st.floats(0.01, 50)
    joints = []
    for i in range(draw(st.integers(1, 5))):
        lower = draw(number)
        upper = lower + draw(positive)
        home = lower + draw(st.floats(0, 1)) * (upper - lower)
        joints.append(Joint(f"j{i}", lower, upper, min(max(home, lower), upper), draw(positive), slack=draw(positive)))
    driven = draw(st.integers(1, len(joints)))
    acts = tuple(
        Act((j.name,), draw(st.sampled_from(KINDS)), (draw(positive),), draw(st.floats(0, 0.9)))
        for j in joints[:driven]
    )
    couplings = tuple(
        Couple(j.name, (("j0", draw(number)),), draw(number)) for j in joints[driven:] if draw(st.booleans())
    )
    signals = (Signal("joint_pos", len(joints)), Signal("extra", draw(st.integers(1, 4))))
    terms = tuple(
        Observe(name, (draw(number),), (draw(number),), draw(st.none() | st.just((-5.0, 5.0))), h, stride)
        for name in ("joint_pos", "extra", "command", "action")
        for h in [draw(st.integers(1, 4))]
        for stride in [draw(st.integers(1, h))]
    )
    order = draw(st.just([]) | st.permutations(joints))
    motors = tuple(Motor(j.name, i, draw(st.sampled_from((1.0, -1.0))), draw(number)) for i, j in enumerate(order))
    return Contract("any", draw(st.floats(1, 1000)), tuple(joints), signals, terms, acts, couplings, motors)


def signals_of(c: Contract, rng: np.random.Generator, *batch: int) -> dict[str, np.ndarray]:
    return {s.name: rng.normal(size=(*batch, s.size)).astype(np.float32) for s in c.signals}


def run(c: Contract, signals: list[dict], actions: list) -> list:
    """Observations and targets of a few steps."""
    memory, out = c.reset(signals[0]), []
    for signal, action in zip(signals, actions):
        obs, memory = c.observe(signal, memory)
        targets, memory = c.act(action, memory)
        out += [obs, targets]
    return out


# ------------------------------------------------------------------ JSON


@given(contracts())
def test_json_round_trip_keeps_everything(c):
    again = Contract.from_json(c.to_json())
    assert again == c
    assert again.hash == c.hash
    assert again.to_json() == c.to_json()


def test_hash_does_not_change_between_versions():
    assert PLAIN.hash == "949e4cf1f422efefe6c14503c6f5ca5c347dfa1ad07ea4070bb6cd13803f575f"


@pytest.mark.parametrize("name", [path.parent.name for path in POLICIES.glob("*/policy_spec.json")])
def test_shipped_contracts_keep_their_text_and_hash(name):
    text = (POLICIES / name / "policy_spec.json").read_text()
    again = Contract.from_json(text)
    assert again.to_json() == text
    assert again.hash == json.loads((POLICIES / name / "checksums.json").read_text())["contract"]


def test_a_stride_is_written_where_it_is_not_1_and_read_again():
    c = strided(4, 3)
    terms = json.loads(c.to_json())["observe_terms"]
    assert [term.get("stride") for term in terms] == [3, None, 3]
    assert Contract.from_json(c.to_json()) == c
    assert strided(4, 1).hash == strided(4).hash != c.hash
    with pytest.raises(ContractError, match=r"observe_terms\[0\]\.stride is 3 there, 1 here"):
        strided(4).require(c, "the robot")


def test_slack_is_written_where_there_is_any():
    loose = dataclasses.replace(PLAIN, joints=tuple(dataclasses.replace(j, slack=0.1) for j in JOINTS))
    assert '"slack":0.1' in loose.to_json()
    assert "slack" not in PLAIN.to_json()
    assert Contract.from_json(loose.to_json()) == loose
    with pytest.raises(ContractError, match=r"slack of joint \w+ is -0.1"):
        dataclasses.replace(PLAIN, joints=(dataclasses.replace(JOINTS[0], slack=-0.1), *JOINTS[1:]))


def test_hash_ignores_how_numbers_are_written():
    assert dataclasses.replace(PLAIN, rate=20.0).hash == PLAIN.hash
    home = dataclasses.replace(JOINTS[1], home=-0.0)
    assert dataclasses.replace(PLAIN, joints=(JOINTS[0], home, *JOINTS[2:])).hash == PLAIN.hash
    lists = dataclasses.replace(PLAIN, joints=list(JOINTS))  # type: ignore[arg-type]
    assert lists.hash == PLAIN.hash


def test_hash_sees_every_figure():
    assert dataclasses.replace(PLAIN, rate=20.000001).hash != PLAIN.hash
    upper = dataclasses.replace(JOINTS[0], upper=2.0000001)
    assert dataclasses.replace(PLAIN, joints=(upper, *JOINTS[1:])).hash != PLAIN.hash


def test_require_names_the_first_difference():
    PLAIN.require(Contract.from_json(PLAIN.to_json()), "a copy")
    other = dataclasses.replace(PLAIN, joints=(dataclasses.replace(JOINTS[0], upper=1.5), *JOINTS[1:]))
    with pytest.raises(ContractError, match=r"the robot was made.*joints\[0\]\.upper is 1\.5 there, 2\.0 here"):
        PLAIN.require(other, "the robot")


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


def paths(tree, at=()) -> list[tuple]:
    children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [at, *(p for key, value in children for p in paths(value, (*at, key)))]


@settings(max_examples=300)
@given(st.data(), contracts())
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
        damaged = Contract.from_json(json.dumps(tree))
    except ContractError:
        return
    if damaged.obs_size > 1000:
        return
    signals = signals_of(damaged, np.random.default_rng(0))
    action = np.zeros(damaged.action_size, np.float32)
    assert all(np.isfinite(x).all() for x in run(damaged, [signals] * 2, [action] * 2))


@given(st.text() | anything.map(json.dumps))
def test_other_text_is_a_contract_error(text):
    with pytest.raises(ContractError):
        Contract.from_json(text)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"schema": "deftly.contract/2"}', "{}", "NaN", "1" * 5000])
def test_hostile_text_is_a_contract_error(text):
    with pytest.raises(ContractError):
        Contract.from_json(text)


MALFORMED = {
    "rate is 0": {"rate": 0},
    "rate is nan": {"rate": float("nan")},
    "robot is 5": {"robot": 5},
    "joint is named twice": {"joints": (*JOINTS[:3], JOINTS[0])},
    "limits 2.0 .. -1.0": {"joints": (Joint("a", 2.0, -1.0, 0.0, 1.0), *JOINTS[1:])},
    "home 9.0 of joint a is outside": {"joints": (Joint("a", -1.0, 2.0, 9.0, 1.0), *JOINTS[1:])},
    "top speed of joint a is 0": {"joints": (Joint("a", -1.0, 2.0, 0.0, 0.0), *JOINTS[1:])},
    "Joint.lower is inf": {"joints": (Joint("a", float("inf"), 2.0, 0.0, 1.0), *JOINTS[1:])},
    "needs a signal 'joint_pos' of size 4": {"signals": (Signal("joint_pos", 3), Signal("cube", 3))},
    "are no signals": {"signals": (*PLAIN.signals, Signal("action", 3))},
    "Signal.size is 0": {"signals": (*PLAIN.signals, Signal("x", 0))},
    "Signal.size is True": {"signals": (*PLAIN.signals, Signal("x", True))},
    "observes 'cub', which is no signal": {"observe_terms": (Observe("cub"),)},
    "scale of 'cube' has 2 values, expected 1 or 3": {"observe_terms": (Observe("cube", scale=(1, 2)),)},
    "clip of 'cube' is (1.0, -1.0)": {"observe_terms": (Observe("cube", clip=(1, -1)),)},
    "Observe.history is 0": {"observe_terms": (Observe("cube", history=0),)},
    "Observe.stride is 0, expected a whole number of at least 1": {"observe_terms": (Observe("cube", stride=0),)},
    "Observe.stride is True": {"observe_terms": (Observe("cube", history=2, stride=True),)},
    "Observe.stride is 1.5": {"observe_terms": (Observe("cube", history=2, stride=1.5),)},  # type: ignore[arg-type]
    "stride 4 of 'cube' is larger than its history of 3": {"observe_terms": (Observe("cube", history=3, stride=4),)},
    "needs an observation and an action": {"observe_terms": ()},
    "a joint is driven twice": {"act_terms": (Act(("a", "a"), "velocity"),)},
    "no joint 'z'": {"act_terms": (Act(("z",), "velocity", (1.0,)),)},
    "unknown kind of action 'torque'": {"act_terms": (Act(("a",), "torque", (1.0,)),)},  # type: ignore[arg-type]
    "a delta action needs a scale": {"act_terms": (Act(("a",), "delta"),)},
    "scale of ('a',) is (-1.0,)": {"act_terms": (Act(("a",), "delta", (-1.0,)),)},
    "lowpass of ('a',) is 1.0": {"act_terms": (Act(("a",), "delta", (1.0,), 1.0),)},
    "expected each joint once": {"motors": (Motor("a", 0),)},
    "two motors have the same id": {"motors": tuple(Motor(j, 3) for j in "abcd")},
    "sign of a motor": {"motors": tuple(Motor(j, i, 0.5) for i, j in enumerate("abcd"))},
    "a bus id of 0 to 252": {"motors": tuple(Motor(j, i + 250) for i, j in enumerate("abcd"))},
    "c follows a follower": {"couplings": (Couple("d", (("a", 1.0),)), Couple("c", (("d", 1.0),)))},
    "expected (joint, ratio) pairs": {"couplings": (Couple("d", ("a", 1.0)),)},  # type: ignore[arg-type]
}


@pytest.mark.parametrize("message", MALFORMED)
def test_malformed_contract_is_refused_by_name(message):
    change = {"act_terms": (Act(("a",), "relative", (1.0,)),), **MALFORMED[message]}
    with pytest.raises(ContractError) as error:
        dataclasses.replace(PLAIN, **change)
    assert message in str(error.value)


# ------------------------------------------------------------------ observing


def test_observation_is_scaled_offset_clipped_and_stacked_oldest_first():
    first = {"joint_pos": np.array([0.5, 1, 0.04, 0.0]), "cube": np.array([-3, 0.2, 3])}
    second = {"joint_pos": np.array([1.5, 1, 0.00, 0.0]), "cube": np.array([0.1, 0.2, 0.3])}
    memory = PLAIN.reset(first)
    obs, memory = PLAIN.observe(first, memory)
    assert obs.shape == (PLAIN.obs_size,) == (12 + 3 + 4 + 6,)
    assert obs[:12].tolist() == [0, 2, 1, 0] * 3
    assert obs[12:15].tolist() == [-1, 0.2, 1]
    obs, _ = PLAIN.observe(second, memory)
    assert obs[:12].tolist() == [0, 2, 1, 0, 0, 2, 1, 0, 1, 2, 0, 0]


SEEN = {  # steps back, by history and stride
    (27, 3): (24, 21, 18, 15, 12, 9, 6, 3, 0),
    (28, 3): (27, 24, 21, 18, 15, 12, 9, 6, 3, 0),
    (6, 4): (4, 0),
    (3, 2): (2, 0),
    (3, 1): (2, 1, 0),
    (4, 4): (0,),
}


@pytest.mark.parametrize("array", [np.asarray, torch.from_numpy])
@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
@pytest.mark.parametrize(("history", "stride"), SEEN)
def test_a_stride_sees_the_newest_step_and_every_so_many_before(history, stride, batch, array):
    c, rng, back = strided(history, stride), np.random.default_rng(0), SEEN[history, stride]
    assert c.obs_size == 7 * len(back) + 4
    signals = [{k: array(v) for k, v in signals_of(c, rng, *batch).items()} for _ in range(40)]
    cubes, commands, memory = [], [], c.reset(signals[0])
    for t, now in enumerate(signals):
        cubes.append(2 * now["cube"])
        commands.append(memory["command"])
        obs, memory = c.observe(now, memory)
        past = [max(t - b, 0) for b in back]  # before the episode, all is as in its first step
        rows = [*(cubes[i] for i in past), now["joint_pos"], *(commands[i] for i in past)]
        np.testing.assert_array_equal(obs, np.concatenate(rows, -1))
        kept = (*batch, back[0] + 1, 3) if back[0] else None
        assert (tuple(memory["history.0"].shape) if "history.0" in memory else None) == kept
        _, memory = c.act(array(rng.normal(size=(*batch, 3)).astype(np.float32)), memory)


def test_command_and_action_are_observed_after_they_were_given():
    signals = {"joint_pos": np.array([0.5, 0, 0.04, 0.1]), "cube": np.zeros(3)}
    memory = PLAIN.reset(signals)
    obs, memory = PLAIN.observe(signals, memory)
    targets, memory = PLAIN.act(np.array([1.0, -1.0, 0.5]), memory)
    obs, memory = PLAIN.observe(signals, memory)
    assert obs[15:19].tolist() == targets.tolist()
    assert obs[-3:].tolist() == [0.75, -0.75, 0.5]


def test_missing_and_misshapen_signals_are_named():
    with pytest.raises(ContractError, match="signal 'joint_pos' is missing"):
        PLAIN.reset({"cube": np.zeros(3)})
    signals = {"joint_pos": np.zeros(4), "cube": np.zeros(2)}
    memory = PLAIN.reset({**signals, "cube": np.zeros(3)})
    with pytest.raises(ContractError, match=r"'cube' has shape \(2,\), expected \(..., 3\)"):
        PLAIN.observe(signals, memory)
    with pytest.raises(ContractError, match="action has 5 elements, toy takes 3"):
        PLAIN.act(np.zeros(5), memory)


# ------------------------------------------------------------------ acting


def first_targets(c: Contract, action: list[float], pose=(0.5, 0.0, 0.02, 0.0)) -> list[float]:
    memory = c.reset({"joint_pos": np.array(pose), "cube": np.zeros(3)})
    return c.act(np.array(action, float), memory)[0][:3].round(9).tolist()


def test_each_kind_means_what_it_says():
    action = [0.5, -0.5, 0.5]
    assert first_targets(with_kind("absolute", ()), action) == [0.5 + 0.75, -1.0, 0.03]
    assert first_targets(with_kind("absolute", (0.2, 0.4, 0.01)), action) == [0.6, -0.2, 0.025]
    assert first_targets(with_kind("relative", (0.2, 0.4, 0.01)), action) == [0.6, -0.2, 0.04]
    assert first_targets(with_kind("delta", (0.2, 0.4, 0.01)), action) == [0.6, -0.2, 0.025]
    assert first_targets(with_kind("velocity", (2.0, 4.0, 0.1)), action) == [0.55, -0.1, 0.0225]
    assert first_targets(with_kind("velocity", ()), action) == [0.575, -0.0375, 0.02 + 0.15 * 0.5 / 20]
    assert first_targets(with_kind("gripper", (1.0, 1.0, 0.1)), action) == [0.45, 0.05, 0.015]


def test_delta_and_velocity_go_on_from_the_command_not_the_measurement():
    for kind in ("delta", "velocity"):
        c = with_kind(kind, (0.1,))
        memory = c.reset({"joint_pos": np.array([0.5, 0, 0.02, 0]), "cube": np.zeros(3)})
        for _ in range(3):
            targets, memory = c.act(np.array([1.0, 0, 0]), memory)
        step = 0.1 if kind == "delta" else 0.1 / 20
        assert targets[0] == pytest.approx(0.5 + 3 * step)


def test_gripper_stops_at_its_ends():
    c = with_kind("gripper", (100.0,))
    assert first_targets(c, [1, 1, 1]) == [-1, -2, 0]
    assert first_targets(c, [-1, 0, -1]) == [2, 2, 0.04]


def test_lowpass_weighs_the_previous_action():
    c = with_kind("delta", (0.1,), lowpass=0.75)
    memory = c.reset({"joint_pos": np.array([0.5, 0, 0.02, 0]), "cube": np.zeros(3)})
    filtered = 0.0
    for action in (1.0, -0.5, 0.25):
        _, memory = c.act(np.full(3, action), memory)
        filtered = 0.75 * filtered + 0.25 * action
        assert memory["action"] == pytest.approx(np.full(3, filtered))


def test_whole_numbers_are_refused_not_truncated():
    memory = PLAIN.reset({"joint_pos": np.zeros(4), "cube": np.zeros(3)})
    for action in (np.array([1, 0, 1]), torch.tensor([1, 0, 1])):
        with pytest.raises(ContractError, match=r"floating point, got an array of .*int64"):
            PLAIN.act(action, memory)


def test_coupled_joint_follows_the_limited_targets():
    memory = PLAIN.reset({"joint_pos": np.array([2.0, 0.0, 0.0, 0.0]), "cube": np.zeros(3)})
    targets, _ = PLAIN.act(np.array([0.5, -0.5, 0]), memory)
    assert targets[3] == pytest.approx(np.clip(0.1 - 0.5 * targets[0] + 0.25 * targets[1], -1, 1))
    free = dataclasses.replace(PLAIN, couplings=(Couple("d", (), 0.3),))
    assert free.act(np.zeros(3), memory)[0][3] == pytest.approx(0.3)


def test_joint_that_nothing_drives_keeps_its_command():
    c = dataclasses.replace(PLAIN, couplings=())
    memory = c.reset({"joint_pos": np.array([0.5, 0, 0.04, 0.7]), "cube": np.zeros(3)})
    assert c.act(np.ones(3), memory)[0][3] == 0.7


@pytest.mark.parametrize("kind", ["absolute", "relative"])
def test_memory_starts_with_the_action_that_keeps_the_pose(kind):
    c = with_kind(kind, ()) if kind == "absolute" else with_kind(kind, (2.0, 2.0, 0.04))
    pose = np.array([0.3, -1.0, 0.01, 0.0])
    memory = c.reset({"joint_pos": pose, "cube": np.zeros(3)})
    assert c.act(memory["action"], memory)[0][:3] == pytest.approx(pose[:3])


bits = st.integers(0, 2**32 - 1).map(lambda i: np.uint32(i).view(np.float32))


@settings(max_examples=200)
@given(contracts(), st.data())
def test_no_action_leaves_the_limits_and_only_nan_gives_nan(c, data):
    lower = np.array([j.lower for j in c.joints], np.float32)
    upper = np.array([j.upper for j in c.joints], np.float32)
    start = data.draw(st.lists(finite, min_size=len(c.joints), max_size=len(c.joints)))
    signals = {**signals_of(c, np.random.default_rng(0)), "joint_pos": np.array(start, np.float32)}
    memory, poisoned = c.reset(signals), False
    for _ in range(3):
        action = np.array(data.draw(st.lists(bits, min_size=c.action_size, max_size=c.action_size)), np.float32)
        poisoned |= bool(np.isnan(action).any())
        targets, memory = c.act(action, memory)
        within = (lower <= targets) & (targets <= upper)
        assert np.where(np.isnan(targets), poisoned, within).all()


def test_nan_stays_nan_so_that_the_caller_can_refuse_it():
    memory = PLAIN.reset({"joint_pos": np.zeros(4), "cube": np.zeros(3)})
    targets, _ = PLAIN.act(np.array([np.nan, 0.5, 0.5]), memory)
    assert np.isnan(targets).tolist() == [True, False, False, True]


# ------------------------------------------------------------------ one code for all


@given(contracts(), st.integers(0, 1000))
def test_numpy_and_torch_agree_to_the_bit(c, seed):
    rng = np.random.default_rng(seed)
    signals = [signals_of(c, rng, 5) for _ in range(3)]
    actions = [rng.normal(size=(5, c.action_size)).astype(np.float32) for _ in range(3)]
    ours = run(c, signals, actions)
    as_torch = [{k: torch.from_numpy(v) for k, v in s.items()} for s in signals]
    for a, b in zip(ours, run(c, as_torch, [torch.from_numpy(x) for x in actions])):
        assert a.dtype == np.float32
        assert b.dtype == torch.float32
        np.testing.assert_array_equal(a, b.numpy())


@given(contracts(), st.integers(0, 1000))
def test_a_batch_is_its_single_robots(c, seed):
    rng = np.random.default_rng(seed)
    signals = [signals_of(c, rng, 3) for _ in range(3)]
    actions = [rng.normal(size=(3, c.action_size)).astype(np.float32) for _ in range(3)]
    batch = run(c, signals, actions)
    for i in range(3):
        single = run(c, [{k: v[i] for k, v in s.items()} for s in signals], [a[i] for a in actions])
        for a, b in zip(batch, single):
            np.testing.assert_array_equal(a[i], b)


def test_calls_leave_their_arguments_alone():
    signals = {"joint_pos": np.zeros(4), "cube": np.zeros(3)}
    memory = PLAIN.reset(signals)
    before = {k: v.copy() for k, v in memory.items()}
    _, after = PLAIN.observe(signals, memory)
    PLAIN.act(np.ones(3), after)
    for key, value in before.items():
        np.testing.assert_array_equal(memory[key], value)


def test_imports_neither_torch_nor_mujoco_nor_numpy():
    code = "import sys, deftly.contract; print(*{'torch', 'mujoco', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.stdout == "\n"
    assert done.returncode == 0


@given(contracts(), st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_motors_have_the_joints_positions_in_their_own_order_and_sign(c, seed):
    if not c.motors:
        return
    q = np.random.default_rng(seed).normal(size=(3, len(c.joints)))
    sent = c.to_motors(q)
    for i, motor in enumerate(c.motors):
        assert sent[:, i] == pytest.approx(motor.sign * q[:, c.joint_names.index(motor.joint)] + motor.offset)
    assert c.from_motors(sent) == pytest.approx(q)
    assert c.to_motors(torch.tensor(q)).numpy() == pytest.approx(sent)


def test_a_contract_without_motors_hashes_as_before_there_were_any():
    assert "motors" not in json.loads(PLAIN.to_json())
    assert "motors" in json.loads(
        dataclasses.replace(PLAIN, motors=tuple(Motor(j, i) for i, j in enumerate("abcd"))).to_json()
    )
