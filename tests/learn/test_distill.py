from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import deftly
from deftly.commands import distill
from deftly.config import DistillConfig, EnvConfig, RunsConfig, SimConfig
from deftly.env import Env
from deftly.errors import DeftlyError
from deftly.learn import checkpoint
from deftly.learn.distill import Distillation, Teacher
from deftly.tasks import load

SLIDER = Path(__file__).parents[1] / "assets/slider.py"
QUIET = {
    "sim": {"threads": 1},
    "tensorboard": False,
    "log_level": "warning",
    "eval_every": 0,
}


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A task of which a teacher may see more than a student, by `task.see`, and the run of such a teacher."""
    root = tmp_path_factory.mktemp("taught")
    text = SLIDER.read_text()
    text = text.replace('@task("slider")', '@task("seeing")')
    text = text.replace("history=2", "history=2 if self.cfg.see else 1")
    text = text.replace("goal: float = 0.05", "goal: float = 0.1\n    see: bool = False")
    text = text.replace("    randomize: tuple[Randomize, ...] = ()\n", "")
    text = text.replace("return self.cfg.randomize", "return ()")
    text = text.replace('"near": torch.exp', '"near": -s.joint_pos.norm(dim=-1) + 0 * torch.exp')
    task = root / "seeing.py"
    task.write_text(text)
    training = deftly.train(
        str(task),
        env={"num_envs": 64},
        task={"see": True},
        train={"minibatches": 2, "hidden": (64, 64), "max_iterations": 30, "init_std": 0.5},
        runs={"root": root},
        name="teacher",
        **QUIET,
    )
    return str(task), training.run, root


def success(taught, run, **task) -> float:
    found = deftly.evaluate(
        taught[0], run, episodes=64, sim={"threads": 1}, task=task, runs={"root": taught[2]}
    )
    return found.success


def learn(taught, iterations: int, train=None, **settings) -> deftly.Training:
    train = {
        "algorithm": "distill",
        "steps": 8,
        "minibatches": 4,
        "hidden": (32,),
        "mix_iterations": 3,
        **(train or {}),
    }
    return deftly.train(
        taught[0],
        env={"num_envs": 32},
        train={"teacher": str(taught[1]), **train, "max_iterations": iterations},
        runs={"root": taught[2]},
        **QUIET,
        **settings,
    )


def test_student_does_what_a_teacher_does_that_sees_more(taught):
    student = learn(taught, 30, name="student")
    teacher_success = success(taught, taught[1])
    assert teacher_success > 0.8
    assert success(taught, student.run) >= teacher_success - 0.05
    rows = (student.run / "metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("loss/imitation")
    losses = [float(row.split(",")[column]) for row in rows[1:]]
    assert losses[-1] < 0.1 * losses[0]
    shares = [float(row.split(",")[rows[0].split(",").index("teacher")]) for row in rows[1:]]
    assert shares[:4] == pytest.approx([1.0, 2 / 3, 1 / 3, 0.0], abs=1e-5)


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_resumed_is_uninterrupted(taught, average):
    whole = learn(taught, 4, {"average": average}, name="whole")
    half = learn(taught, 2, {"average": average}, name="half")
    resumed = deftly.train(
        taught[0],
        resume=str(half.run),
        train={"max_iterations": 4},
        runs={"root": taught[2]},
        **QUIET,
    )
    weights = [
        load_file(run / "checkpoints/last/weights.safetensors") for run in (whole.run, resumed.run)
    ]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_the_policy_is_the_moving_average_of_the_student(taught):
    """Over few steps at first, so that it does not keep what it started from; it drives, and takes over `--init`."""
    cls = load(taught[0])
    env = Env(cls(cls.Config()), EnvConfig(num_envs=8), SimConfig(threads=1), 5)
    cfg = DistillConfig(teacher=str(taught[1]), steps=8, minibatches=4, hidden=(8,), average=0.5)
    learner = Distillation(env, cfg)
    with torch.no_grad():
        learner.actor.layers[0].weight.fill_(0.1)
    expected = learner.actor.layers[0].weight.clone()
    step, seen = learner.optimizer.step, 0

    def watched():
        nonlocal expected, seen
        step()
        decay = min(0.5, (1 + seen) / (10 + seen))
        expected = decay * expected + (1 - decay) * learner.student.layers[0].weight.detach()
        seen += 1

    learner.optimizer.step = watched
    learner.iterate()
    learner.iterate()
    assert seen == 2 * cfg.epochs * cfg.minibatches
    policy = learner.policy().actor
    assert torch.allclose(policy.layers[0].weight, expected, atol=1e-6)
    assert not torch.equal(policy.layers[0].weight, learner.student.layers[0].weight)
    count = learner.student.normalizer.count
    assert torch.equal(policy.normalizer.count, count)
    assert int(count) == 2 * 8 * 8


def test_a_teacher_that_sees_the_same_decides_as_in_its_own_environments(taught):
    """Histories, commands and filtered actions follow what was done, across ends of episodes."""
    cls = load(taught[0])
    env = Env(cls(cls.Config(**{"see": True})), EnvConfig(num_envs=8), SimConfig(threads=1), 5)
    teacher = Teacher(env, checkpoint.load(taught[1] / "checkpoints/last"))
    generator = torch.Generator().manual_seed(0)
    ended = 0
    for _ in range(50):
        own = teacher.policy(env.obs).clip(-1, 1)
        assert torch.allclose(teacher.decide(), own, atol=1e-5)
        action = 3 * torch.rand(8, 2, generator=generator) - 1.5
        step = env.step(action)
        teacher.follow(action, step.terminated | step.truncated)
        ended += int((step.terminated | step.truncated).sum())
    assert ended > 8


def test_a_teacher_is_shown_the_scene_that_is_there(taught):
    """Of its own settings, those decide what it sees; all else is as in the student's environments."""
    cls = load(taught[0])
    env = Env(cls(cls.Config(goal=0.2, start=0.3)), EnvConfig(num_envs=2), SimConfig(threads=1), 5)
    teacher = Teacher(env, checkpoint.load(taught[1] / "checkpoints/last"))
    assert (teacher.task.cfg.see, env.task.cfg.see) == (True, False)
    assert (teacher.task.cfg.goal, teacher.task.cfg.start) == (0.2, 0.3)
    assert teacher.decide().shape == (2, 2)


def test_a_teacher_of_other_actions_is_refused(taught):
    cls = load(taught[0])
    env = Env(cls(cls.Config(rate=10.0)), EnvConfig(num_envs=2), SimConfig(threads=1), 5)
    settings = DistillConfig(teacher=str(taught[1] / "checkpoints/last"), steps=8)
    with pytest.raises(DeftlyError, match="actions mean something else"):
        Distillation(env, settings)


def test_a_teacher_of_another_robot_is_refused_in_one_line(tmp_path):
    place = str(checkpoint.find("shipped", "wildrobot-walk", RunsConfig()))
    for name in (
        "dexhand-box",
        "panda-pick-place",
    ):  # both have settings that the teacher's task has
        with pytest.raises(DeftlyError) as caught:
            deftly.train(
                name,
                env={"num_envs": 2},
                train={"algorithm": "distill", "teacher": place, "max_iterations": 1},
                runs={"root": tmp_path},
                **QUIET,
            )
        assert f"is a policy of wildrobot-walk (robot wildrobot), not of {name}" in str(
            caught.value
        )
        assert not list(tmp_path.iterdir())


def test_a_student_without_a_teacher_is_refused_before_a_run_is_made(tmp_path):
    with pytest.raises(DeftlyError, match=r"which teacher\? `deftly distill slider --teacher RUN`"):
        distill.main([str(SLIDER), "--runs.root", str(tmp_path)])
    assert not (tmp_path / "runs_all").exists()


def test_the_command_takes_a_teacher(taught):
    flags = ["--env.num-envs", "8", "--train.steps", "4", "--train.max-iterations", "1"]
    quiet = ["--eval-every", "0", "--tensorboard", "False", "--log-level", "warning"]
    where = ["--runs.root", str(taught[2]), "--name", "typed", "--sim.threads", "1"]
    status = distill.main([taught[0], "--teacher", str(taught[1]), *flags, *quiet, *where])
    assert status == 0
    (run,) = (taught[2] / "runs_all").glob("*typed*")
    assert checkpoint.load(run / "checkpoints/last").algorithm == "distill"
