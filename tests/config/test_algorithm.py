"""The settings of a training are those of its algorithm."""

from dataclasses import dataclass
from typing import Annotated, Literal

import pytest
from annotated_types import Ge
from typing_extensions import Doc

from deftly.config import ALGORITHMS, LearnerConfig, PPOConfig, TrainArgs, parse, with_algorithm
from deftly.errors import DeftlyError


@dataclass(frozen=True)
class OtherConfig(LearnerConfig):
    """An off-policy algorithm, as a later version may have it."""

    algorithm: Annotated[Literal["other"], Doc("Learning algorithm.")] = "other"
    replay: Annotated[int, Ge(1), Doc("Steps kept.")] = 100


def settings(*words: str, **filed):
    return parse(
        with_algorithm(TrainArgs, words, filed), words, prog="deftly train TASK", filed=filed
    ).train


@pytest.fixture
def two_algorithms(monkeypatch):
    monkeypatch.setitem(ALGORITHMS, "other", OtherConfig)


def test_it_is_ppo_if_nothing_is_said():
    assert settings("--train.steps", "7") == PPOConfig(steps=7)
    assert settings("--train.algorithm", "ppo").algorithm == "ppo"


@pytest.mark.parametrize(
    "words",
    [("--train.algorithm", "other"), ("train.algorithm=other",), ("--train.algorithm=other",)],
)
def test_another_algorithm_brings_its_own_settings(two_algorithms, words):
    assert settings(*words, "--train.replay", "5", "--train.seed", "3") == OtherConfig(
        seed=3, replay=5
    )
    with pytest.raises(DeftlyError, match=r"train\.steps|steps"):
        settings(*words, "--train.steps", "7")
    with pytest.raises(DeftlyError, match=r"train\.replay is 0, but it must be 1 or more"):
        settings(*words, "--train.replay", "0")


def test_what_a_checkpoint_saved_says_it_as_well(two_algorithms):
    saved = {"train": {"algorithm": "other", "replay": 9}}
    assert settings(**saved) == OtherConfig(replay=9)
    assert (
        settings("--train.algorithm", "other", **{"train": {"algorithm": "ppo"}}) == OtherConfig()
    )


def test_an_algorithm_that_there_is_not():
    with pytest.raises(
        DeftlyError,
        match=r"train\.algorithm is 'pop', but it must be one of ppo, sac, ddpg, td3, distill, did you mean 'ppo'\?",
    ):
        settings("--train.algorithm", "pop")
