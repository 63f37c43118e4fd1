"""The simulated robot with a policy of chunks behind a websocket, and what becomes of an episode when that fails."""

import dataclasses

import numpy as np
import pytest

pytest.importorskip("websockets", minversion="15")

from openpi_arm import LOOPBACK, SECONDS, serving

from deftly.control.safety import Fault, SafetyConfig
from deftly.evaluate.source import PolicySource
from deftly.policy.chunks import ChunkPolicy, Observed
from deftly.policy.protocol import PolicyError
from deftly.serving.openpi_client import OpenpiModel
from deftly.twin import sim2sim
from deftly.twin.loop import FAULT, LoopArgs, run_episode
from deftly.twin.robot import SimRobot


class Homing:
    """Drives the toy task to success, in chunks of which the first half is right."""

    deterministic = True
    horizon = 4
    executed = 2

    def __init__(self, contract):
        self.contract = contract
        self.calls = 0
        self.wrong = range(0)
        """Which calls are answered with `answer`."""
        self.answer = np.zeros((1, 4, 2), np.float32)

    def predict(self, seen: Observed) -> np.ndarray:
        self.calls += 1
        if self.calls in self.wrong:
            return self.answer
        move = np.clip(-5 * seen.signals["joint_pos"], -1, 1)
        return np.repeat(move[:, None], 4, 1).astype(np.float32)

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def robot(slider):
    return SimRobot(slider(1, episode_steps=40).task, None, 0, False, 0.0)


def episode(robot, policy, number=0):
    return run_episode(robot, policy, SafetyConfig(), number)


def test_the_twin_is_driven_and_each_chunk_is_asked_for_once(robot):
    model = Homing(robot.contract)
    with serving(ChunkPolicy(model)) as server:
        found = PolicySource("endpoint", server.endpoint, None)
        result, values = sim2sim.run_sim2sim(robot, found, LoopArgs(episodes=1))
    assert result["success"]["rate"] == 1.0
    assert 2 * model.calls == pytest.approx(values["steps"].sum(), abs=2)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (np.full((1, 4, 2), np.nan), "numbers that are not finite"),
        (np.zeros((1, 4, 3)), "a chunk of shape (1, 4, 3), not (1, 1 to 1000, 2)"),
    ],
    ids=["nan", "size"],
)
def test_an_answer_that_is_none_ends_its_episode_and_the_next_goes_on(robot, answer, said):
    model = Homing(robot.contract)
    model.wrong, model.answer = range(3, 1000), answer
    with serving(ChunkPolicy(model)) as server:
        policy = ChunkPolicy(OpenpiModel(server.endpoint, robot.contract, SECONDS))
        broken = episode(robot, policy)
        assert broken.end == f"{FAULT}{Fault.POLICY_STALE}"
        assert said in broken.reason
        assert "\n" not in broken.reason
        assert broken.steps >= 4  # two whole chunks, and what the kernel waits for
        ticks = len(broken.rows["now"])
        assert ticks in (robot.ready + broken.steps, robot.ready + broken.steps + 1)
        assert np.isfinite(broken.rows["command"][robot.ready :]).all()
        model.wrong = range(0)
        assert episode(robot, policy, 1).success
        model.wrong = range(model.calls + 2, model.calls + 3)
        assert episode(robot, policy).success  # a single one is asked for again in time
        policy.close()


def test_a_server_that_dies_fails_its_episodes_and_says_so(robot):
    with serving(ChunkPolicy(Homing(robot.contract))) as server:
        policy = ChunkPolicy(OpenpiModel(server.endpoint, robot.contract, SECONDS))
        assert episode(robot, policy).success
    for number in range(2):
        dead = episode(robot, policy, number)
        assert dead.end == f"{FAULT}{Fault.POLICY_STALE}"
        assert f"no policy server at {server.endpoint}" in dead.reason
        assert dead.reason.count("ws://") == 1
    policy.close()


def test_a_server_of_another_contract_is_refused_before_an_episode(robot):
    other = dataclasses.replace(robot.contract, rate=robot.contract.rate / 2)
    with serving(ChunkPolicy(Homing(other)), endpoint=LOOPBACK) as server:
        found = PolicySource("endpoint", server.endpoint, None)
        with pytest.raises(PolicyError, match="made under another contract"):
            sim2sim.run_sim2sim(robot, found, LoopArgs(episodes=1))
