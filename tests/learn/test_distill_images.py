"""A student that sees images learns from a teacher that sees numbers, and goes the whole way of a policy."""

import ctypes.util
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from toy_robot import running

import deftly
from deftly.commands import check, distill, export, sim2sim
from deftly.config import DistillConfig, EnvConfig, SimConfig
from deftly.env import Env
from deftly.errors import DeftlyError
from deftly.evaluate.evaluate import EvalSettings, measure
from deftly.evaluate.source import PolicySource
from deftly.learn.distill import Distillation, LessonBuffer, Lessons
from deftly.policy import bundle
from deftly.tasks import load

needs_gl = pytest.mark.skipif(
    not any(ctypes.util.find_library(name) for name in ("EGL", "OSMesa")),
    reason="no GL library is installed",
)
SEEKER = str(Path(__file__).parents[1] / "assets/seeker.py")
ONE = {"threads": 1}
QUIET = {"sim": ONE, "tensorboard": False, "log_level": "warning", "eval_every": 0}
SETTINGS = {
    "algorithm": "distill",
    "steps": 10,
    "buffer": 2000,
    "epochs": 4,
    "minibatches": 2,
    "hidden": (32,),
    "learning_rate": 3e-3,
    "mix_iterations": 4,
    "augment_shift": 1,
    "augment_gain": 0.2,
}


@pytest.fixture(scope="module")
def school(tmp_path_factory):
    """The folder of the runs, and a teacher of one linear layer."""
    root = tmp_path_factory.mktemp("school")
    module = sys.modules[load(SEEKER).__module__]
    return SimpleNamespace(root=root, teacher=module.write_teacher(root / "teacher"))


@pytest.fixture(scope="module")
def learn(school):
    def learned(iterations: int, **settings):
        return deftly.train(
            SEEKER,
            env={"num_envs": 12},
            task={"observation": "rgb"},
            train={**SETTINGS, "teacher": str(school.teacher), "max_iterations": iterations},
            runs={"root": school.root},
            **QUIET,
            **settings,
        )

    return learned


@pytest.fixture(scope="module")
def student(learn):
    return learn(25, name="student").run


@pytest.fixture(scope="module")
def exported(school, student):
    where = ["--runs.root", str(school.root), "--sim.threads", "1"]
    words = [SEEKER, "--policy", str(student), "--out", str(school.root / "bundle")]
    assert export.main([*words, "--episodes", "8", *where]) == 0
    return school.root / "bundle"


def success(school, policy, **settings) -> float:
    where = {"sim": ONE, "runs": {"root": school.root}}
    return deftly.evaluate(SEEKER, str(policy), episodes=32, **where, **settings).success


@needs_gl
def test_a_student_that_sees_images_does_what_its_teacher_does(school, student):
    assert success(school, school.teacher) == 1.0
    assert success(school, student) >= 0.75


@needs_gl
def test_the_shipped_policy_of_another_task_teaches_and_is_remembered_by_that_word(tmp_path):
    """It sees the numbers that it was trained with, which were saved before there was a choice."""
    cls = load("panda-pick-place-rgb")
    env = Env(cls(cls.Config(objects=("cube",))), EnvConfig(num_envs=2), SimConfig(threads=1))
    settings = DistillConfig(teacher="shipped", steps=1, minibatches=1)
    teacher = Distillation(env, settings).teacher
    assert teacher.task.cfg.observation == "state"
    assert teacher.decide().shape == (2, 9)
    words = ["--teacher", "shipped", "--train.max-iterations", "1", "--train.steps", "1"]
    small = ["--env.num-envs", "2", "--train.minibatches", "1", "--train.buffer", "0"]
    quiet = ["--eval-every", "0", "--no-tensorboard", "--runs.root", str(tmp_path)]
    assert distill.main([cls.name, *words, *small, *quiet, "task.objects=cube"]) == 0
    (saved,) = tmp_path.glob("runs_all/*/checkpoints/iter_000001/config.yaml")
    assert "teacher: shipped" in saved.read_text()


@needs_gl
def test_light_colours_and_camera_outside_of_the_training_are_an_evaluation(school, student):
    outside = {"wider": 1.5, "only_outside": True, "widened": "visual"}
    found = deftly.evaluate(
        SEEKER, str(student), episodes=8, sim=ONE, runs={"root": school.root}, **outside
    )
    said = found.report["disturbances"]
    assert {name: said[name] for name in outside} == outside
    with pytest.raises(
        DeftlyError, match=r"nothing to widen: .* without randomization \(physics\)"
    ):
        success(school, student, **{**outside, "widened": "physics"})
    with pytest.raises(DeftlyError, match="add --wider"):
        EvalSettings(widened="visual")


@needs_gl
def test_resumed_is_uninterrupted(school, learn):
    whole = learn(4, name="whole").run
    half = learn(2, name="half").run
    resumed = deftly.train(
        SEEKER,
        resume=str(half),
        train={"max_iterations": 4},
        runs={"root": school.root},
        **QUIET,
    ).run
    weights = [load_file(run / "checkpoints/last/weights.safetensors") for run in (whole, resumed)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@needs_gl
def test_a_bundle_of_it_is_fine_and_sees(exported, school):
    found = bundle.load(exported)
    assert found.contract.groups == ("state", "top")
    assert found.golden["signal/top"].dtype == np.uint8
    assert max(found.golden_errors().values()) <= 1e-5
    runs = ["--runs.root", str(school.root)]
    assert check.main([str(exported), "--task", SEEKER, *runs]) == 0


@needs_gl
def test_it_is_served_and_drives_the_simulated_robot(exported, school):
    found = bundle.load(exported)
    cls = load(SEEKER)
    task = cls(cls.Config(observation="rgb"))
    settings = EvalSettings(episodes=8, sim=SimConfig(threads=1))
    with running(found.policy()) as server:
        served, _ = measure(task, PolicySource("endpoint", server.endpoint, None), settings)
    assert served["success"]["rate"] >= 0.5
    where = ["--runs.root", str(school.root), "--episodes", "2", "--sim.threads", "1"]
    assert sim2sim.main([SEEKER, "--policy", str(exported), *where]) == 0


@needs_gl
@pytest.mark.parametrize("algorithm", ["ppo", "sac", "ddpg", "td3"])
def test_other_algorithms_say_that_they_do_not_see(algorithm, tmp_path):
    with pytest.raises(DeftlyError, match=rf"images \(top\), .* {algorithm} .*deftly distill"):
        deftly.train(
            SEEKER,
            env={"num_envs": 4},
            task={"observation": "rgb"},
            train={"algorithm": algorithm},
            runs={"root": tmp_path},
            **QUIET,
        )
    assert not (tmp_path / "runs_all").exists()


def lessons(first: int, count: int) -> Lessons:
    numbers = torch.arange(first, first + count)
    image = numbers.view(-1, 1, 1, 1).expand(-1, 2, 2, 3).to(torch.uint8)
    return Lessons(numbers[:, None].float(), -numbers[:, None].float(), (image,))


def held(buffer: LessonBuffer) -> set[int]:
    drawn = buffer.draw(2000, torch.Generator().manual_seed(0))
    assert torch.equal(drawn.inputs, -drawn.actions)
    assert torch.equal(drawn.images[0][:, 0, 0, 0].float(), drawn.inputs[:, 0])
    assert drawn.images[0].dtype == torch.uint8
    return {int(number) for number in drawn.inputs[:, 0]}


def test_a_buffer_keeps_the_newest_lessons():
    buffer = LessonBuffer(10)
    buffer.add(lessons(0, 6))
    assert held(buffer) == set(range(6))
    buffer.add(lessons(6, 6))
    buffer.add(lessons(12, 3))
    assert held(buffer) == set(range(5, 15))


@pytest.mark.parametrize("written", [0, 6, 12])
def test_a_buffer_is_restored(written):
    buffer, again = LessonBuffer(10), LessonBuffer(10)
    for first in range(0, written, 6):
        buffer.add(lessons(first, 6))
    again.load_state_dict(buffer.state_dict(), torch.device("cpu"))
    for each in (buffer, again):
        each.add(lessons(written, 3))
    generators = [torch.Generator().manual_seed(1) for _ in range(2)]
    one, other = (each.draw(50, g) for each, g in zip((buffer, again), generators))
    assert torch.equal(one.inputs, other.inputs)
    assert torch.equal(one.images[0], other.images[0])
    if written > 10:
        with pytest.raises(ValueError, match=r"use the saved train\.buffer"):
            LessonBuffer(20).load_state_dict(buffer.state_dict(), torch.device("cpu"))


def test_a_buffer_shorter_than_a_rollout_is_refused():

    settings = DistillConfig(buffer=100, steps=16)
    settings.require_for(6)
    with pytest.raises(DeftlyError, match=r"buffer is 100, but must hold a rollout, 112: env\.num"):
        settings.require_for(7)
