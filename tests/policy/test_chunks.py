"""Action chunks: executed step by step, asked for ahead with a measured delay, late ones, ensembles."""

import threading
import time

import numpy as np
import pytest
from toy_robot import CONTRACT, signals

from deftly.contract import Act, PolicyContract
from deftly.policy.chunks import Ahead, Chunk, ChunkConfig, ChunkPolicy, Observed, Plan
from deftly.policy.protocol import OneRobot, Policy, PolicyError

SIZE = CONTRACT.action_size
SECONDS = 10.0
"""Longest wait of a test for a thread."""


class Counting:
    """A model whose k-th chunk of a robot says k and the place in the chunk: 0.1 k + 0.001 place."""

    contract = CONTRACT
    deterministic = True

    def __init__(self, horizon: int = 10, contract: PolicyContract = CONTRACT):
        self.horizon: int | None = horizon
        self.executed: int | None = None
        self.contract = contract
        self.asked: list[Observed] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.failing = False

    def predict(self, seen: Observed) -> np.ndarray:
        self.asked.append(seen)
        number = len(self.asked)
        self.entered.release()
        assert self.gate.wait(SECONDS)
        if self.failing:
            raise PolicyError("the model is away")
        places = np.arange(self.horizon or 10)[None, :, None] * 0.001
        return np.broadcast_to(0.1 * number + places, (len(seen.ids), places.shape[1], SIZE))

    def close(self) -> None:
        self.gate.set()


def rows(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    each = [signals(seed + i) for i in range(count)]
    return {name: np.stack([one[name] for one in each]) for name in each[0]}


def said(policy: Policy, steps: int, count: int = 1) -> np.ndarray:
    """Which number each robot's action said in each step, (steps, count)."""
    return np.array([policy.infer(rows(count)).action[:, 0] for _ in range(steps)])


def wait_for(condition) -> None:
    until = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.001)


def test_eight_of_ten_actions_of_a_chunk_are_executed():
    model = Counting()
    found = said(ChunkPolicy(model), 18)[:, 0]
    chunk = np.arange(8) * 0.001
    wanted = np.concatenate((0.1 + chunk, 0.2 + chunk, 0.3 + chunk[:2]))
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert len(model.asked) == 3


def test_a_simulated_delay_skips_what_is_in_the_past_and_holds_at_the_start():
    policy = ChunkPolicy(Counting(), ChunkConfig(executed=4, delay=2))
    first = rows(1)
    command = np.clip(
        first["joint_pos"], *np.array([(j.lower, j.upper) for j in CONTRACT.joints]).T
    )
    for _ in range(2):
        np.testing.assert_allclose(policy.infer(first).targets, command, atol=1e-6)
    found = said(policy, 8)[:, 0]
    wanted = [0.102, 0.103, 0.104, 0.105, 0.202, 0.203, 0.204, 0.205]
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_robots_are_asked_for_in_one_batch_and_each_starts_with_its_own_episode():
    model = Counting()
    policy = ChunkPolicy(model, ChunkConfig(executed=4))
    said(policy, 2, 3)
    policy.reset([1])
    said(policy, 1, 3)
    assert [seen.ids for seen in model.asked] == [[0, 1, 2], [1]]
    assert [seen.fresh for seen in model.asked] == [[True] * 3, [True]]
    said(policy, 2, 3)
    assert model.asked[-1].ids == [0, 2]
    assert model.asked[-1].fresh == [False, False]


def test_the_model_is_told_what_was_commanded():
    model = Counting()
    policy = ChunkPolicy(model, ChunkConfig(executed=1))
    last = policy.infer(rows(1)).targets
    policy.infer(rows(1))
    np.testing.assert_array_equal(model.asked[1].command, last)
    applied = np.array([[0.1, 0.2, 0.03]], np.float32)
    policy.infer(rows(1), applied=applied)
    np.testing.assert_array_equal(model.asked[2].command, applied)


def test_the_same_in_a_batch_as_alone_and_every_time():
    class Looking(Counting):
        def predict(self, seen: Observed) -> np.ndarray:
            start = np.tanh(seen.signals["joint_pos"])[:, None, :]
            return start * np.linspace(1, 0.5, 10)[None, :, None]

    together = ChunkPolicy(Looking())
    alone = [ChunkPolicy(Looking()) for _ in range(3)]
    for step in range(12):
        seen = rows(3, step)
        decision = together.infer(seen)
        for i, policy in enumerate(alone):
            one = policy.infer({name: value[i : i + 1] for name, value in seen.items()})
            np.testing.assert_array_equal(one.action[0], decision.action[i])
            np.testing.assert_array_equal(one.targets[0], decision.targets[i])


def test_targets_are_those_of_the_contract():
    policy = ChunkPolicy(Counting())
    memory = CONTRACT.reset({k: v[0] for k, v in rows(1).items()})
    for _ in range(10):
        decision = policy.infer(rows(1))
        targets, memory = CONTRACT.act(decision.action[0], memory)
        np.testing.assert_array_equal(decision.targets[0], targets)


def test_temporal_ensembling_weights_the_oldest_most():
    plan = Plan(0, step=1)
    for start, value in ((0, 1.0), (1, 3.0)):
        plan.asked = start
        plan.add(Chunk(start, np.full((4, SIZE), value, np.float32)))
    weights = np.exp([0.0, -0.5])
    wanted = (weights @ [1.0, 3.0]) / weights.sum()
    np.testing.assert_allclose(plan.action(0.5), np.full(SIZE, wanted), rtol=1e-6)
    np.testing.assert_array_equal(plan.action(0.0), np.full(SIZE, 3.0))
    plan.step = 4
    np.testing.assert_array_equal(plan.action(0.5), np.full(SIZE, 3.0))  # the first one is over
    plan.step = 5
    assert plan.action(0.5) is None


def test_the_next_chunk_is_asked_for_while_the_last_is_executed():
    model = Counting()
    policy = ChunkPolicy(model, ChunkConfig(executed=8, late=3), ahead=True)
    said(policy, 1)  # it holds, since nothing can be there yet, or has the first action
    wait_for(lambda: not policy._asker._answers.empty() or policy.delays)
    found = said(policy, 6)[:, 0]
    np.testing.assert_allclose(found, 0.1 + 0.001 * np.arange(1, 7), atol=1e-6)
    model.gate.clear()
    np.testing.assert_allclose(said(policy, 2)[:, 0], [0.107, 0.108], atol=1e-6)
    wait_for(lambda: len(model.asked) == 2)  # it is on its way, the first goes on
    np.testing.assert_allclose(said(policy, 1)[:, 0], [0.109], atol=1e-6)
    model.gate.set()
    wait_for(lambda: not policy._asker._answers.empty())
    np.testing.assert_allclose(said(policy, 1)[:, 0], [0.202], atol=1e-6)  # two were in the past
    assert policy.delays[-1] == 2
    policy.close()


def test_a_chunk_that_takes_longer_is_asked_for_earlier():
    policy = ChunkPolicy(Counting(), ChunkConfig(executed=8), ahead=True)
    policy.close()
    plan = Plan(0, step=5, asked=0, due=8)
    policy._take(plan, np.zeros((10, SIZE), np.float32))
    assert plan.due == 5  # ten actions, of which the delay needs five
    plan.step, plan.asked, plan.due = 20, 10, 18
    policy._take(plan, np.zeros((10, SIZE), np.float32))
    assert plan.due == 11  # as soon as may be
    assert list(policy.delays) == [5, 10]


def test_a_robot_holds_while_its_chunk_is_late_and_then_there_is_no_decision():
    model = Counting()
    model.gate.clear()
    policy = ChunkPolicy(model, ChunkConfig(late=4), ahead=True)
    robot = OneRobot(policy)
    held = [robot.infer(signals(0)).targets for _ in range(4)]
    for targets in held:
        np.testing.assert_array_equal(targets, held[0])
    for _ in range(3):
        with pytest.raises(PolicyError, match="no action chunk for 4 control periods"):
            robot.infer(signals(0))
    model.gate.set()
    wait_for(lambda: not policy._asker._answers.empty())
    assert robot.infer(signals(0)).action[0] == pytest.approx(
        0.107
    )  # what is in the past is skipped
    policy.close()


def test_what_is_held_is_within_the_limits():
    """A robot may be commanded, or stand, beyond them: its gripper pressed further open, say."""
    model = Counting()
    model.gate.clear()
    policy = ChunkPolicy(model, ChunkConfig(late=100), ahead=True)
    commanded = np.array([0.1, -3.0, 0.05])
    targets = OneRobot(policy).infer(signals(0), commanded).targets
    np.testing.assert_allclose(targets, [0.1, -2.0, 0.04])
    policy.close()


def test_a_held_gripper_keeps_what_it_has():
    model = Counting()
    model.gate.clear()
    policy = ChunkPolicy(model, ChunkConfig(late=100), ahead=True)
    robot = OneRobot(policy)
    start = {**signals(0), "joint_pos": np.array([0.1, 0.2, 0.013], np.float32)}
    for _ in range(20):
        targets = robot.infer(start).targets
        np.testing.assert_allclose(targets, start["joint_pos"], atol=1e-6)
    policy.close()


def test_an_answer_of_the_episode_before_is_not_used():
    model = Counting()
    model.gate.clear()
    policy = ChunkPolicy(model, ChunkConfig(late=100), ahead=True)
    said(policy, 1)
    assert model.entered.acquire(timeout=SECONDS)
    policy.reset()
    said(policy, 1)
    model.gate.set()
    assert model.entered.acquire(timeout=SECONDS)
    wait_for(lambda: policy._asker._answers.qsize() == 2)
    assert said(policy, 1)[0, 0] == pytest.approx(0.201)
    policy.close()


def test_a_model_that_fails_is_asked_again_and_named_when_it_is_too_late():
    model = Counting()
    model.failing = True
    policy = ChunkPolicy(model, ChunkConfig(late=3), ahead=True)
    for _ in range(3):
        said(policy, 1)
        assert model.entered.acquire(timeout=SECONDS)
        # it may have failed before the step was over, which has taken it then
        wait_for(lambda: policy._plans[0].asked is None or not policy._asker._answers.empty())
    with pytest.raises(PolicyError, match="for 3 control periods: the model is away"):
        said(policy, 1)
    policy.close()


def test_one_late_robot_of_several_does_not_move_the_others_on():
    model = Counting()
    model.gate.clear()  # else the answer may be there at once
    policy = ChunkPolicy(model, ChunkConfig(late=0), ahead=True)
    with pytest.raises(PolicyError):
        policy.infer(rows(2))
    assert [plan.step for plan in policy._plans.values()] == [0, 0]
    policy.close()


def test_in_the_step_itself_a_failure_is_raised_and_nothing_moves_on():
    model = Counting()
    policy = ChunkPolicy(model)
    said(policy, 8)
    model.failing = True
    with pytest.raises(PolicyError, match="the model is away"):
        said(policy, 1)
    model.failing = False
    assert said(policy, 1)[0, 0] == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (np.zeros((1, 10, SIZE + 1)), r"shape \(1, 10, 4\)"),
        (np.zeros((10, SIZE)), r"shape \(10, 3\)"),
        (np.zeros((1, 0, SIZE)), r"shape \(1, 0, 3\)"),
        (np.full((1, 10, SIZE), np.nan), "not finite"),
        (np.zeros((1, 5, SIZE)), "chunks of 5 actions, and 8 are needed"),
    ],
)
def test_a_chunk_that_is_none_is_refused(answer, message):
    model = Counting()
    model.predict = lambda seen: answer
    with pytest.raises(PolicyError, match=message):
        ChunkPolicy(model).infer(rows(1))


def test_settings_that_leave_no_action_are_refused_at_once():
    with pytest.raises(
        PolicyError, match=r"--chunk.executed and --chunk.delay together are at most 10"
    ):
        ChunkPolicy(Counting(), ChunkConfig(executed=8, delay=3))
    assert ChunkPolicy(Counting(1)).executed == 1  # it decides step by step


def test_slow_chunks_of_one_robot_hold_up_no_other():
    asked = threading.Semaphore(0)
    ahead = Ahead(lambda request: (asked.release(), np.zeros((len(request[0]), 10, SIZE)))[1])
    seen = Observed(rows(1), {}, np.zeros((1, 3), np.float32), [0], [True])
    for i in range(5):
        ahead.ask(([Plan(i)], seen))
    got: list = []

    def take() -> bool:
        got.extend(plan.row for plans, _ in ahead.answers() for plan in plans)
        return len(got) == 5

    wait_for(take)
    assert got == [0, 1, 2, 3, 4]
    ahead.close()


def test_absolute_targets_are_held_as_they_are():
    contract = PolicyContract(
        CONTRACT.robot, 20, CONTRACT.observe_terms, (Act(("a", "b", "c"), "absolute"),)
    )
    model = Counting(contract=contract)
    policy = ChunkPolicy(model, ChunkConfig(executed=10, late=3), ahead=True)
    said(policy, 1)
    wait_for(lambda: not policy._asker._answers.empty() or policy.delays)
    model.gate.clear()
    targets = [policy.infer(rows(1)).targets for _ in range(11)]
    np.testing.assert_array_equal(targets[-1], targets[8])
    assert not np.array_equal(targets[7], targets[8])
    policy.close()
