"""A policy remembers each robot by itself, and nothing of a step that failed."""

import os
import subprocess
import sys

import numpy as np
import pytest
from toy_robot import CONTRACT, network, signals

from deftly.policy.protocol import ContractPolicy, OneRobot, PolicyError


def rows(*seeds):
    """Signals of several robots."""
    each = [signals(seed) for seed in seeds]
    return {name: np.stack([one[name] for one in each]) for name in each[0]}


def test_a_batch_decides_as_robots_by_themselves():
    batch = ContractPolicy(CONTRACT, network)
    alone = [OneRobot(ContractPolicy(CONTRACT, network)) for _ in range(3)]
    for step in range(6):
        if step == 3:
            batch.reset([1])
            alone[1].reset()
        seeds = [10 * step + robot for robot in range(3)]
        together = batch.infer(rows(*seeds))
        for robot, seed in enumerate(seeds):
            np.testing.assert_array_equal(
                together.targets[robot], alone[robot].infer(signals(seed)).targets
            )


def test_robots_are_asked_in_any_order_and_number():
    batch = ContractPolicy(CONTRACT, network)
    alone = {robot: OneRobot(ContractPolicy(CONTRACT, network)) for robot in (0, 4, 7)}
    for step, ids in enumerate([[4], [7, 4], [0, 7], [4, 0, 7], [7], [0, 4]]):
        seeds = [10 * step + robot for robot in ids]
        together = batch.infer(rows(*seeds), ids=ids)
        for place, robot in enumerate(ids):
            np.testing.assert_array_equal(
                together.targets[place], alone[robot].infer(signals(seeds[place])).targets
            )


def test_a_decision_is_not_changed_later():
    policy = ContractPolicy(CONTRACT, network)
    first = policy.infer(rows(1, 2))
    before = first.targets.copy()
    policy.infer(rows(3), ids=[1])
    policy.infer(rows(4, 5))
    np.testing.assert_array_equal(first.targets, before)


def test_a_step_that_fails_leaves_every_memory_as_it_was():
    fails = [False]

    def shaky(obs):
        if fails[0]:
            raise PolicyError("no")
        return network(obs)

    policy, twin = ContractPolicy(CONTRACT, shaky), ContractPolicy(CONTRACT, network)
    for each in (policy, twin):
        each.infer(rows(1, 2))
    fails[0] = True
    policy.reset([1])
    with pytest.raises(PolicyError):
        policy.infer(rows(3, 4))
    fails[0] = False
    twin.reset([1])
    np.testing.assert_array_equal(policy.infer(rows(5, 6)).targets, twin.infer(rows(5, 6)).targets)


def test_only_the_robot_whose_decision_is_not_finite_forgets_it():
    def poisoned(obs):
        return np.where(obs[:, 9:10] > 100, np.nan, network(obs)).astype(np.float32)

    policy, twin = ContractPolicy(CONTRACT, poisoned), ContractPolicy(CONTRACT, network)
    for each in (policy, twin):
        each.infer(rows(1, 2))
    bad = rows(3, 4)
    bad["cube"][0, 0] = 101.0
    assert not np.isfinite(policy.infer(bad).action[0]).any()
    twin.infer(rows(4), ids=[1])
    np.testing.assert_array_equal(policy.infer(rows(5, 6)).targets, twin.infer(rows(5, 6)).targets)


def test_what_was_applied_counts_and_nan_means_the_last_targets():
    policy, twin = ContractPolicy(CONTRACT, network), ContractPolicy(CONTRACT, network)
    for each in (policy, twin):
        each.infer(rows(1, 2))
    applied = np.array([[np.nan] * 3, [0.1, 0.2, 0.01]])
    found = policy.infer(rows(3, 4), applied=applied).targets
    np.testing.assert_array_equal(found[0], twin.infer(rows(3), ids=[0]).targets[0])
    assert not np.array_equal(found[1], twin.infer(rows(4), ids=[1]).targets[0])


def test_a_network_of_another_size_is_named():
    with pytest.raises(
        PolicyError, match=r"the network answers \(1, 15\), the contract wants \(1, 3\)"
    ):
        ContractPolicy(CONTRACT, lambda obs: obs).infer(rows(1))


def test_a_network_leaves_nothing_in_the_home_folder(exported, tmp_path):
    code = "import sys, pathlib; from deftly.policy import bundle; bundle.load(pathlib.Path(sys.argv[1])).policy()"
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    subprocess.run(
        [sys.executable, "-c", code, exported.bundle], env=environment, check=True, timeout=60
    )
    assert list(tmp_path.iterdir()) == []
