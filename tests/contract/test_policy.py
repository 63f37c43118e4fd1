"""Observing and acting under a contract: what each term means, and that numpy and torch mean the same."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from contracts import DERIVED, PLAIN, ROBOT, contracts, signals_of, with_kind
from hypothesis import given, settings
from hypothesis import strategies as st

from deftly import contract
from deftly.contract import ContractError, Coupling, Derive, Input, Observe, PolicyContract, Signal

POLICIES = Path(contract.__file__).parents[1] / "shipped/policies"
SHIPPED = [path.parent.name for path in POLICIES.glob("*/policy_spec.json")]
finite = st.floats(-100, 100, width=32)


def strided(history: int, stride: int = 1) -> PolicyContract:
    """Two terms that see this much of the past, with one between that has none."""
    cube = Observe("cube", (2.0,), history=history, stride=stride)
    terms = (cube, Observe("joint_pos"), Observe("command", history=history, stride=stride))
    return dataclasses.replace(PLAIN, observe_terms=terms)


def state(c: PolicyContract, signals, memory, inputs=None):
    """What the policy sees of the group `state`, and the memory."""
    groups, memory = c.observe(signals, memory, inputs)
    return groups["state"], memory


def run(c: PolicyContract, signals: list[dict], actions: list) -> list:
    """Observations and targets of a few steps."""
    memory, out = c.reset(signals[0]), []
    for signal, action in zip(signals, actions):
        obs, memory = state(c, signal, memory)
        targets, memory = c.act(action, memory)
        out += [obs, targets]
    return out


# ------------------------------------------------------------------ observing


def test_observation_is_scaled_offset_clipped_and_stacked_oldest_first():
    first = {"joint_pos": np.array([0.5, 1, 0.04, 0.0]), "cube": np.array([-3, 0.2, 3])}
    second = {"joint_pos": np.array([1.5, 1, 0.00, 0.0]), "cube": np.array([0.1, 0.2, 0.3])}
    memory = PLAIN.reset(first)
    obs, memory = state(PLAIN, first, memory)
    assert obs.shape == (PLAIN.obs_size(),) == (12 + 3 + 4 + 6,)
    assert obs[:12].tolist() == [0, 2, 1, 0] * 3
    assert obs[12:15].tolist() == [-1, 0.2, 1]
    obs, _ = state(PLAIN, second, memory)
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
    assert c.obs_size() == 7 * len(back) + 4
    signals = [{k: array(v) for k, v in signals_of(c, rng, *batch).items()} for _ in range(40)]
    cubes, commands, memory = [], [], c.reset(signals[0])
    for t, now in enumerate(signals):
        cubes.append(2 * now["cube"])
        commands.append(memory["command"])
        obs, memory = state(c, now, memory)
        past = [max(t - b, 0) for b in back]  # before the episode, all is as in its first step
        rows = [*(cubes[i] for i in past), now["joint_pos"], *(commands[i] for i in past)]
        np.testing.assert_array_equal(obs, np.concatenate(rows, -1))
        kept = [
            tuple(value.shape) for name, value in memory.items() if name.startswith("history.0.")
        ]
        assert kept == ([(*batch, 3 * len(back))] * stride if len(back) > 1 else [])
        _, memory = c.act(array(rng.normal(size=(*batch, 3)).astype(np.float32)), memory)


def test_command_and_action_are_observed_after_they_were_given():
    signals = {"joint_pos": np.array([0.5, 0, 0.04, 0.1]), "cube": np.zeros(3)}
    memory = PLAIN.reset(signals)
    obs, memory = state(PLAIN, signals, memory)
    targets, memory = PLAIN.act(np.array([1.0, -1.0, 0.5]), memory)
    obs, memory = state(PLAIN, signals, memory)
    assert obs[15:19].tolist() == targets.tolist()
    assert obs[-3:].tolist() == [0.75, -0.75, 0.5]


def test_missing_and_misshapen_signals_are_named():
    with pytest.raises(ContractError, match="signal 'joint_pos' is missing"):
        PLAIN.reset({"cube": np.zeros(3)})
    signals = {"joint_pos": np.zeros(4), "cube": np.zeros(2)}
    memory = PLAIN.reset({**signals, "cube": np.zeros(3)})
    with pytest.raises(ContractError, match=r"'cube' has shape \(2,\), expected \(..., 3\)"):
        state(PLAIN, signals, memory)
    with pytest.raises(ContractError, match="action has 5 elements, toy takes 3"):
        PLAIN.act(np.zeros(5), memory)


# ------------------------------------------------------------------ acting


def first_targets(
    c: PolicyContract, action: list[float], pose=(0.5, 0.0, 0.02, 0.0)
) -> list[float]:
    memory = c.reset({"joint_pos": np.array(pose), "cube": np.zeros(3)})
    return c.act(np.array(action, float), memory)[0][:3].round(9).tolist()


def test_each_kind_means_what_it_says():
    action = [0.5, -0.5, 0.5]
    assert first_targets(with_kind("absolute", ()), action) == [0.5 + 0.75, -1.0, 0.03]
    assert first_targets(with_kind("absolute", (0.2, 0.4, 0.01)), action) == [0.6, -0.2, 0.025]
    assert first_targets(with_kind("relative", (0.2, 0.4, 0.01)), action) == [0.6, -0.2, 0.04]
    assert first_targets(with_kind("delta", (0.2, 0.4, 0.01)), action) == [0.6, -0.2, 0.025]
    assert first_targets(with_kind("velocity", (2.0, 4.0, 0.1)), action) == [0.55, -0.1, 0.0225]
    assert first_targets(with_kind("velocity", ()), action) == [
        0.575,
        -0.0375,
        0.02 + 0.15 * 0.5 / 20,
    ]
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
    for name in ("joint_pos", "cube"):
        measured = {"joint_pos": np.zeros(4), "cube": np.zeros(3)}
        measured[name] = measured[name].astype(np.int64)
        with pytest.raises(ContractError, match=r"floating point, got an array of int64"):
            PLAIN.observe(measured, memory)


def test_coupled_joint_follows_the_limited_targets():
    memory = PLAIN.reset({"joint_pos": np.array([2.0, 0.0, 0.0, 0.0]), "cube": np.zeros(3)})
    targets, _ = PLAIN.act(np.array([0.5, -0.5, 0]), memory)
    assert targets[3] == pytest.approx(np.clip(0.1 - 0.5 * targets[0] + 0.25 * targets[1], -1, 1))
    robot = dataclasses.replace(ROBOT, couplings=(Coupling("d", (), 0.3),))
    free = dataclasses.replace(PLAIN, robot=robot)
    assert free.act(np.zeros(3), memory)[0][3] == pytest.approx(0.3)


def test_joint_that_nothing_drives_keeps_its_command():
    c = dataclasses.replace(PLAIN, robot=dataclasses.replace(ROBOT, couplings=()))
    memory = c.reset({"joint_pos": np.array([0.5, 0, 0.04, 0.7]), "cube": np.zeros(3)})
    assert c.act(np.ones(3), memory)[0][3] == 0.7


@pytest.mark.parametrize("kind", ["absolute", "relative"])
def test_memory_starts_with_the_action_that_keeps_the_pose(kind):
    c = with_kind(kind, ()) if kind == "absolute" else with_kind(kind, (2.0, 2.0, 0.04))
    pose = np.array([0.3, -1.0, 0.01, 0.0])
    memory = c.reset({"joint_pos": pose, "cube": np.zeros(3)})
    assert c.act(memory["action"], memory)[0][:3] == pytest.approx(pose[:3])


bits = st.integers(0, 2**32 - 1).map(lambda i: np.uint32(i).view(np.float32))


@settings(max_examples=40, deadline=None)
@given(contracts(), st.data())
def test_no_action_leaves_the_limits_and_only_nan_gives_nan(c, data):
    lower = np.array([j.lower for j in c.joints], np.float32)
    upper = np.array([j.upper for j in c.joints], np.float32)
    start = data.draw(st.lists(finite, min_size=len(c.joints), max_size=len(c.joints)))
    signals = {**signals_of(c, np.random.default_rng(0)), "joint_pos": np.array(start, np.float32)}
    memory, poisoned = c.reset(signals), False
    for _ in range(3):
        action = np.array(
            data.draw(st.lists(bits, min_size=c.action_size, max_size=c.action_size)), np.float32
        )
        poisoned |= bool(np.isnan(action).any())
        targets, memory = c.act(action, memory)
        within = (lower <= targets) & (targets <= upper)
        assert np.where(np.isnan(targets), poisoned, within).all()
        for exact in (np.float32, np.float64):
            assert c.robot.beyond_limits(targets[None].astype(exact)) is None


@pytest.mark.parametrize("name", SHIPPED)
def test_no_target_of_a_shipped_policy_is_beyond_the_limits(name):
    c = PolicyContract.from_json((POLICIES / name / "policy_spec.json").read_text())
    rng = np.random.default_rng(0)
    memory = c.reset(signals_of(c, rng, 4))
    for step in range(200):
        actions = np.sign(rng.normal(size=(4, c.action_size))) * (1.0, np.inf)[step // 40 % 2]
        targets, memory = c.act(actions.astype(np.float32), memory)
        assert c.robot.beyond_limits(targets) is None


def test_what_is_beyond_the_limits_is_named_and_clipped():
    lower, upper = np.transpose([(j.lower, j.upper) for j in ROBOT.joints])
    targets = np.array([lower, upper, upper + 9e-7, upper])
    assert ROBOT.beyond_limits(targets) is None
    assert ROBOT.beyond_limits(np.full((2, len(lower)), np.nan)) is None
    targets[3, 1] += 1e-4
    for array in (targets, targets.astype(np.float32), torch.from_numpy(targets)):
        row, said = ROBOT.beyond_limits(array)  # type: ignore[misc]
        assert row == 3
        assert said.startswith(f"{ROBOT.joints[1].name} would be told ")
        assert said.endswith(f"its limits are {lower[1]:.9g} .. {upper[1]:.9g}")
        assert ROBOT.beyond_limits(ROBOT.within_limits(array)) is None


def test_nan_stays_nan_so_that_the_caller_can_refuse_it():
    memory = PLAIN.reset({"joint_pos": np.zeros(4), "cube": np.zeros(3)})
    targets, _ = PLAIN.act(np.array([np.nan, 0.5, 0.5]), memory)
    assert np.isnan(targets).tolist() == [True, False, False, True]


# ------------------------------------------------------------------ one code for all


@settings(max_examples=25, deadline=None)
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


@settings(max_examples=25, deadline=None)
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
    _, after = state(PLAIN, signals, memory)
    PLAIN.act(np.ones(3), after)
    for key, value in before.items():
        np.testing.assert_array_equal(memory[key], value)


def test_imports_neither_torch_nor_mujoco_nor_numpy():
    code = "import sys, deftly.contract; print(*{'torch', 'mujoco', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.stdout == "\n"
    assert done.returncode == 0


# ------------------------------------------------------------------ origin, inputs, groups


def test_a_relative_action_from_the_start_is_about_where_the_episode_began():
    c = with_kind("relative", (0.2, 0.4, 0.01), origin="start")
    memory = c.reset({"joint_pos": np.array([0.1, -0.2, 0.02, 0.0]), "cube": np.zeros(3)})
    assert memory["action"].tolist() == [0.0, 0.0, 0.0]
    for _ in range(2):  # it does not add up
        targets, memory = c.act(np.array([1.0, -1.0, 0.5]), memory)
        assert targets[:3] == pytest.approx([0.3, -0.6, 0.025])
    assert c.action_for(targets, memory) == pytest.approx([1.0, -1.0, 0.5])


COMMANDED = dataclasses.replace(
    PLAIN,
    inputs=(
        Input("velocity", 2, "m/s", lower=(-1.0, -0.5), upper=1.0, default=(0.25, 0.0)),
        Input("say", dtype="text"),
    ),
    observe_terms=(Observe("velocity", history=2), Observe("cube")),
)


@pytest.mark.parametrize("array", [np.asarray, torch.as_tensor])
def test_inputs_take_their_default_and_are_clipped(array):
    signals = {"joint_pos": array(np.zeros((3, 4))), "cube": array(np.zeros((3, 3)))}
    memory = COMMANDED.reset(signals)
    obs, memory = state(COMMANDED, signals, memory)
    assert obs[1].tolist() == [0.25, 0.0, 0.25, 0.0, 0.0, 0.0, 0.0]
    obs, memory = state(COMMANDED, signals, memory, {"velocity": [5.0, -5.0], "say": "go"})
    assert obs[2].tolist() == [0.25, 0.0, 1.0, -0.5, 0.0, 0.0, 0.0]
    each = array(np.array([[0.1, 0.1], [0.2, 0.2], [0.3, 0.3]]))
    obs, _ = state(COMMANDED, signals, memory, {"velocity": each})
    np.testing.assert_allclose(obs[:, 2:4], each)


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"velocty": 1.0}, "'velocty' is no input of the policy"),
        ({"velocity": [1.0, 2.0, 3.0]}, r"input 'velocity' has shape \(3,\), expected \(..., 2\)"),
        ({"velocity": "fast"}, "input 'velocity' is no array of numbers"),
    ],
)
def test_inputs_that_do_not_fit_are_named(inputs, said):
    signals = {"joint_pos": np.zeros(4), "cube": np.zeros(3)}
    with pytest.raises(ContractError, match=said):
        COMMANDED.observe(signals, COMMANDED.reset(signals), inputs)


SEEING = dataclasses.replace(
    PLAIN,
    robot=dataclasses.replace(
        ROBOT, signals=(*ROBOT.signals, Signal("front", (4, 6, 3), dtype="uint8"))
    ),
    observe_terms=(
        Observe("cube", (2.0,)),
        Observe("front", group="front"),
        Observe("command", group="touch"),
        Observe("joint_pos"),
    ),
)


@pytest.mark.parametrize("array", [np.asarray, torch.from_numpy])
def test_groups_are_apart_and_an_image_passes_unchanged(array):
    assert SEEING.groups == ("state", "front", "touch")
    assert [SEEING.obs_size(group) for group in SEEING.groups] == [7, 72, 4]
    assert SEEING.group_shape("front") == (4, 6, 3)
    image = np.random.default_rng(0).integers(0, 256, (2, 4, 6, 3), np.uint8)
    signals = {"joint_pos": np.full((2, 4), 0.5), "cube": np.ones((2, 3)), "front": image}
    signals = {name: array(value) for name, value in signals.items()}
    groups, memory = SEEING.observe(signals, SEEING.reset(signals))
    assert groups["front"] is signals["front"]
    assert groups["state"].tolist() == [[2.0, 2.0, 2.0, 0.5, 0.5, 0.5, 0.5]] * 2
    assert groups["touch"].tolist() == memory["command"].tolist()
    with pytest.raises(ContractError, match="is an image of uint8, got an array of"):
        SEEING.observe({**signals, "front": array(np.zeros((2, 4, 6, 3)))}, memory)
    with pytest.raises(ContractError, match="no group 'back'"):
        SEEING.obs_size("back")


def test_an_observation_is_an_array_of_its_own():
    c = dataclasses.replace(PLAIN, observe_terms=(Observe("cube"),))
    signals = {"joint_pos": np.zeros(4), "cube": np.zeros(3)}
    obs, _ = state(c, signals, c.reset(signals))
    obs += 1
    assert not signals["cube"].any()


# ------------------------------------------------------------------ derived values


@given(st.integers(0, 1000), st.sampled_from([(), (3,), (2, 3)]))
@settings(max_examples=20, deadline=None)
def test_derived_values_agree_between_numpy_and_torch(seed, batch):
    rng = np.random.default_rng(seed)
    signals = [signals_of(DERIVED, rng, *batch) for _ in range(3)]
    actions = [rng.normal(size=(*batch, DERIVED.action_size)).astype(np.float32) for _ in range(3)]
    ours = run(DERIVED, signals, actions)
    as_torch = [{k: torch.from_numpy(v) for k, v in s.items()} for s in signals]
    for a, b in zip(ours, run(DERIVED, as_torch, [torch.from_numpy(x) for x in actions])):
        assert a.dtype == np.float32
        assert b.dtype == torch.float32
        np.testing.assert_allclose(a, b.numpy(), atol=2e-6)


def test_a_derived_value_sees_the_noise_of_what_it_is_of():
    rng = np.random.default_rng(0)
    signals = signals_of(DERIVED, rng)
    c = dataclasses.replace(DERIVED, observe_terms=(Observe("distance"),))
    memory = c.reset(signals)
    before, _ = state(c, signals, memory)
    after, _ = state(c, {**signals, "wind": signals["wind"] + np.float32(0.5)}, memory)
    assert abs(before - after) > 0.01


def test_the_phase_clock_starts_at_zero_and_takes_its_period():
    c = dataclasses.replace(DERIVED, observe_terms=(Observe("clock"),))
    signals = signals_of(c, np.random.default_rng(0), 2)
    memory = c.reset(signals)
    for step in range(40):
        clock, memory = state(c, signals, memory)
        angle = 2 * np.pi * step / (20 * 0.7)
        np.testing.assert_allclose(clock, [[np.sin(angle), np.cos(angle)]] * 2, atol=1e-5)


@pytest.mark.parametrize("array", [np.asarray, torch.from_numpy])
@pytest.mark.parametrize("held", [False, True])
def test_to_begin_is_to_reset_to_follow_and_to_observe(array, held):
    of_command = (
        Derive("lag", "difference", of=("command", "joint_pos")),
        Derive("lag_size", "norm", of=("lag",)),
        Derive("command_rate", "rate", of=("command",)),
    )
    terms = (*DERIVED.observe_terms, *(Observe(each.name) for each in of_command))
    past = Observe("lag", history=3, stride=2)
    c = dataclasses.replace(
        DERIVED, derive=(*DERIVED.derive, *of_command), observe_terms=(*terms, past)
    )
    rng = np.random.default_rng(0)
    measured = signals_of(c, rng, 5)
    measured["joint_pos"][1, 0] = (
        np.nan
    )  # a robot whose physics broke spoils no other's, nor what it is told
    signals = {k: array(v) for k, v in measured.items()}
    command = array(rng.normal(size=(5, len(c.joints))).astype(np.float32)) if held else None
    memory = c.reset(signals)
    if command is not None:
        memory = c.follow(command, memory)
    observed, memory = c.observe(signals, memory)
    begun, begun_memory = c.begin(signals, command=command)
    assert begun.keys() == observed.keys()
    assert begun_memory.keys() == memory.keys()
    for name, value in {**observed, **memory}.items():
        np.testing.assert_array_equal({**begun, **begun_memory}[name], value, err_msg=name)
