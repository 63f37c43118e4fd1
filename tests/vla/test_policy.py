"""A fine-tuned model as a model of chunks, as far as that needs no LeRobot: a stand-in of it predicts."""

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("websockets", minversion="15")

from openpi_arm import serving

from deftly.contract import Act, Joint, Observe, PolicyContract, RobotInterface, Signal
from deftly.errors import DeftlyError
from deftly.evaluate import source
from deftly.policy.chunks import ChunkConfig, ChunkPolicy
from deftly.policy.protocol import OneRobot, PolicyError
from deftly.serving.openpi_client import OpenpiModel
from deftly.vla import models
from deftly.vla.checkpoint import VlaCheckpoint
from deftly.vla.features import seen_contract
from deftly.vla.policy import VlaModel

SIZE = 8
RAIL = PolicyContract(
    RobotInterface(
        "rail",
        joints=(Joint("x", -1.0, 1.0, 0.0, 2.0), Joint("y", -1.0, 1.0, 0.0, 2.0)),
        signals=(Signal("joint_pos", 2, "m"),),
    ),
    rate=20,
    observe_terms=(Observe("joint_pos"),),
    act_terms=(Act(("x", "y"), "velocity"),),
)
CONTRACT = seen_contract(RAIL, ("front",), SIZE, "go")


class Network:
    """A stand-in for LeRobot's: the k-th action of a chunk is 0.01 k, and the mean of the image beside it."""

    def __init__(self, kind="act", **config):
        self.kind = kind
        self.config = SimpleNamespace(**{"chunk_size": 5, "n_action_steps": 2, **config})
        self.asked = []
        self.failing = False

    def chunk(self, images, state, prompts):
        assert all(image.flags.writeable for image in images.values())
        self.asked.append((images, state, prompts))
        count = self.config.n_action_steps
        if self.failing:
            return np.full((len(state), count, 2), np.nan, np.float32)
        chunk = np.zeros((len(state), count, 2), np.float32)
        chunk[..., 0] = 0.01 * np.arange(count)
        chunk[..., 1] = images["front"].mean((1, 2, 3))[:, None] / 255
        return chunk


@pytest.fixture
def network(monkeypatch):
    """What a checkpoint of this robot, which executes two actions of five, opens."""
    network = Network()
    monkeypatch.setattr(VlaCheckpoint, "model", lambda self: network)
    monkeypatch.setattr(models, "require_installed", lambda: None)
    return network


@pytest.fixture
def found(network, tmp_path):
    about = {"executed": 2, "layout": "contract", "task": "rail"}
    return source.PolicySource("model", "m", VlaCheckpoint(tmp_path, about, CONTRACT, {}))


def rows(count):
    images = np.arange(count, dtype=np.uint8)[:, None, None, None] + np.zeros(
        (count, SIZE, SIZE, 3), np.uint8
    )
    return {"joint_pos": np.zeros((count, 2), np.float32), "front": images}


def test_a_robot_executes_its_chunk_and_then_the_model_looks_again(found, network):
    policy = found.open(CONTRACT)
    assert isinstance(policy, ChunkPolicy)
    first = [policy.infer(rows(2)).action for _ in range(3)]
    np.testing.assert_allclose([each[0, 0] for each in first], [0.0, 0.01, 0.0])
    np.testing.assert_allclose(first[0][:, 1], [0.0, 1 / 255], rtol=1e-6)
    policy.reset([1])
    policy.infer(rows(2), {"prompt": ["stay", "centre it"]})
    assert [list(prompts) for _, _, prompts in network.asked] == [
        ["go"] * 2,
        ["go"] * 2,
        ["centre it"],
    ]
    (image,) = network.asked[-1][0].values()
    np.testing.assert_array_equal(image, rows(2)["front"][1:])


def test_a_models_gripper_that_is_not_finite_is_no_word_to_close_it(found, network, monkeypatch):
    """DROID's layout makes two values of a gripper's number: of the actions, none is NaN."""
    chunk = network.chunk

    def broken(*asked):
        actions = chunk(*asked)
        actions[..., 1] = np.nan
        return actions

    monkeypatch.setattr(network, "chunk", broken)
    model = VlaModel(found.loaded)
    model._layout = SimpleNamespace(state=lambda x: x, to_contract=lambda x: np.sign(x > 0.5))
    policy = ChunkPolicy(model)
    with pytest.raises(PolicyError, match="not finite"):
        policy.infer(rows(1))


def test_settings_of_chunks_count_for_a_model_as_for_every_other(found, network):
    from dataclasses import replace

    assert found.open().executed == 2
    policy = replace(found, chunk=ChunkConfig(executed=4, delay=1)).open()
    assert policy.executed == 4
    actions = [policy.infer(rows(1)).action[0, 0] for _ in range(6)]
    np.testing.assert_allclose(actions, [0.0, 0.01, 0.02, 0.03, 0.04, 0.01])
    with pytest.raises(PolicyError, match="chunks of 5 actions, and 6 are needed"):
        replace(found, chunk=ChunkConfig(executed=4, delay=2)).open()
    ahead = found.open(ahead=True)
    assert ahead.ahead
    ahead.close()


@pytest.mark.parametrize(
    ("network", "horizon", "deterministic"),
    [
        (Network("act"), 5, True),
        (Network("smolvla"), 5, False),
        (Network("pi0_fast", temperature=0.0), 5, True),
        (Network("pi0_fast", temperature=0.5), 5, False),
        (Network("diffusion", horizon=8, n_obs_steps=1), 8, False),
        (Network("diffusion", horizon=8, n_obs_steps=3), 6, False),
    ],
)
def test_chunks_are_whole_and_who_draws_says_so(network, horizon, deterministic):
    """LeRobot gives `n_action_steps` of diffusion and pi0_fast: with these as executed, none would be left to wait."""
    checkpoint = SimpleNamespace(
        contract=CONTRACT, about={"executed": 2, "layout": "contract"}, model=lambda: network
    )
    model = VlaModel(checkpoint)
    assert (model.horizon, model.executed) == (horizon, 2)
    assert model.deterministic is deterministic
    policy = ChunkPolicy(model)
    policy.infer(rows(1))
    assert len(policy._plans[0].chunks[0].actions) == horizon


def test_what_a_model_cannot_answer_is_one_line(found, network):
    network.failing = True
    with pytest.raises(PolicyError, match="numbers that are not finite"):
        found.open().infer(rows(1))
    with pytest.raises(DeftlyError, match="numbers that are not finite"):
        found.open(ahead=True).require_network()


def test_its_first_call_is_done_before_a_robot_waits_for_it(found, network):
    policy = found.open(ahead=True)
    policy.require_network()
    (images, state, prompts) = network.asked[0]
    assert images["front"].shape == (1, SIZE, SIZE, 3)
    assert images["front"].dtype == np.uint8
    assert (state.shape, prompts) == ((1, 2), ["go"])
    assert not policy._plans
    policy.close()


def test_a_server_of_openpis_protocol_gives_its_chunks_whole(found, network):
    with serving(found.open()) as server:
        policy = ChunkPolicy(OpenpiModel(server.endpoint, CONTRACT))
        assert (policy.model.horizon, policy.executed) == (5, 2)
        robot = OneRobot(policy)
        one = {name: value[0] for name, value in rows(1).items()}
        actions = [robot.infer(one).action[0] for _ in range(3)]
        np.testing.assert_allclose(actions, [0.0, 0.01, 0.0])
        policy.close()
    assert len(network.asked) == 2
