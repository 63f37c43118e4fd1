"""The Python API: what the commands do, in a few lines, with the same settings, checks and messages."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import deftly
from deftly.config import EnvConfig
from deftly.control.drivers import FakeDriver
from deftly.errors import DeftlyError
from deftly.evaluate import report

SLIDER = str(Path(__file__).parent / "assets/slider.py")
TINY = {"num_envs": 8}
LEARN = {"steps": 4, "hidden": (16,), "minibatches": 2, "max_iterations": 2}
ONE = {"threads": 1}
PATIENT = {"misses": 100, "miss_periods": 9.0, "stall_periods": 90.0}
"""Busy machines stall the loops of tests, which then must not fault for that."""

LAZY = """
import json, sys
import deftly
bare = [name for name in ("torch", "mujoco", "gymnasium", "numpy", "tyro", "typing") if name in sys.modules]
deftly.load_policy, deftly.drive, deftly.DeftlyError
heavy = [name for name in ("torch", "mujoco", "gymnasium") if name in sys.modules]
import deftly.evaluate
print(json.dumps([bare, heavy, callable(deftly.evaluate), sorted(set(deftly.__all__) - set(dir(deftly)))]))
"""


def test_importing_deftly_imports_nothing():
    done = subprocess.run(
        [sys.executable, "-S", "-c", LAZY], capture_output=True, text=True, env=environment()
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[], [], True, []]


def environment():
    return {**os.environ, "PYTHONPATH": ":".join(path for path in sys.path if path)}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ["PASSIVE", "3000"]),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, ["ACTIVE", None]),
        ({"GOMP_SPINCOUNT": "5"}, ["PASSIVE", "5"]),
    ],
)
def test_idle_threads_of_torch_soon_sleep_unless_the_user_says_otherwise(given, expected):
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    clean = {name: value for name, value in environment().items() if name not in names}
    code = f"import deftly, json, os; print(json.dumps([os.environ.get(name) for name in {names}]))"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, env={**clean, **given}
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == expected


def test_every_public_name_is_there_and_documented():
    for name in deftly.__all__:
        assert getattr(deftly, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        deftly.trian  # noqa: B018


def test_tasks_and_robots():
    assert "jaka-pick-cube" in deftly.list_tasks()
    assert "jaka-zu5" in deftly.list_robots()
    assert deftly.load_task(SLIDER).name == "slider"
    assert deftly.load_robot("jaka-zu5").title
    with pytest.raises(DeftlyError, match="did you mean 'jaka-pick-cube'"):
        deftly.load_task("jaka-pick-cub")


def test_make_env_takes_sections_as_mappings_and_as_dataclasses():
    env = deftly.make_env(SLIDER, 3, seed=1, sim=ONE, env={"noise": False}, task={"goal": 0.25})
    assert (env.num_envs, env.cfg.noise, env.task.cfg.goal) == (3, False, 0.25)
    same = deftly.make_env(
        SLIDER, 3, seed=1, sim=ONE, env=EnvConfig(noise=False), task={"goal": 0.25}
    )
    assert same.cfg == env.cfg
    assert same.obs["policy"].equal(env.obs["policy"])


def test_make_gives_gymnasium_environments():
    envs = deftly.make(SLIDER, 2, sim=ONE)
    assert envs.reset(seed=0)[0].shape == (2, 8)
    assert deftly.make(SLIDER).reset(seed=0)[0].shape == (8,)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"env": {"noize": False}}, "env has no setting 'noize', did you mean 'noise'"),
        (
            {"task": {"weights": {"neer": 1.0}}},
            "task.weights has no setting 'neer', did you mean 'near'",
        ),
        (
            {"untill_success": 0.9},
            "there is no setting 'untill_success', did you mean 'until_success'",
        ),
        ({"env": 8}, "env is 8, but it must be a mapping"),
        ({"sim": {"threads": -1}}, "sim.threads is -1"),
        ({"env": {"noise": "perhaps"}}, "perhaps"),
    ],
)
def test_wrong_settings_are_refused_as_on_the_command_line(settings, message, tmp_path):
    with pytest.raises(DeftlyError, match=message) as caught:
        deftly.train(SLIDER, runs={"root": tmp_path}, **settings)
    assert "\n" not in str(caught.value)
    assert not [*tmp_path.iterdir()]


def train(task, root, **settings):
    quiet = {"log_level": "warning", "tensorboard": False, "eval_every": 1, "eval_episodes": 4}
    return deftly.train(
        task, runs={"root": root}, env=TINY, sim=ONE, **{"train": LEARN, **quiet, **settings}
    )


def test_from_training_to_a_driven_robot(exported, tmp_path):
    seen = []
    result = train(
        exported.task, tmp_path, callbacks=[lambda trainer, metrics: seen.append(trainer.iteration)]
    )
    assert seen == [1, 2]
    assert (result.iteration, result.reached, result.episodes) == (2, False, 4)
    assert result.success is not None
    assert result.run.is_relative_to(tmp_path.resolve()) or result.run.is_relative_to(tmp_path)

    found = deftly.evaluate(
        exported.task, result.run, episodes=8, seed=3, sim=ONE, gates=["success>=0", "steps<0"]
    )
    again = deftly.evaluate(exported.task, runs={"root": tmp_path}, episodes=8, seed=3, sim=ONE)
    assert (found.success, found.interval) == (again.success, again.interval)
    assert len(found.episodes["steps"]) == 8
    assert [gate["holds"] for gate in found.gates] == [True, False]
    assert not found.passed
    assert again.passed
    assert str(found) == report.headline(dict(found.report))

    folder = deftly.export(exported.task, result.run, out=tmp_path / "bundle", episodes=2, sim=ONE)
    policies = [
        deftly.load_policy(folder),
        result.policy(),
        deftly.load_policy(None, exported.task, runs={"root": tmp_path}),
    ]
    signals = {s.name: np.zeros((1, *s.shape)) for s in policies[0].contract.robot.signals}
    targets = []
    for policy in policies:
        policy.reset()
        targets.append(np.asarray(policy.infer(signals).targets))
    assert targets[0] == pytest.approx(targets[1], abs=1e-5)
    assert targets[1] == pytest.approx(targets[2], abs=1e-6)


def test_resume_continues_and_says_when_nothing_is_left(exported, tmp_path):
    first = train(exported.task, tmp_path)
    more = train(exported.task, tmp_path, resume=first.run, train={**LEARN, "max_iterations": 3})
    assert (more.run, more.iteration) == (first.run, 3)
    with pytest.raises(DeftlyError, match="nothing left to do"):
        train(exported.task, tmp_path, resume=first.run, train={**LEARN, "max_iterations": 3})


def test_drive_keeps_the_log_and_leaves_the_robot_safe(exported, tmp_path):
    robots = []

    def connect(robot, rate):
        robots.append(FakeDriver(robot, rate))
        return robots[0]

    path = tmp_path / "run.npz"
    result = deftly.drive(
        connect, exported.bundle, start=True, seconds=0.4, log=path, safety=PATIENT
    )
    assert result.ok
    assert result.ticks == len(result.rows["state"]) > 0
    assert result.faults == []
    assert "active" in result.rows["state"]
    assert path.is_file()
    assert robots[0].stopped


def test_drive_lets_the_policy_hear_an_operator(exported, tmp_path):
    """That policy has no inputs, so he is refused, before the driver is made; `tests/control` has those who speak."""
    path = tmp_path / "commands.csv"
    path.write_text("time\n0\n")
    with pytest.raises(DeftlyError, match="the policy has no inputs"):
        deftly.drive(lambda *_: pytest.fail("made"), exported.bundle, operator=str(path))


def test_drive_tells_of_faults(exported, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where the log of the fault goes
    result = deftly.drive(
        lambda robot, rate: FakeDriver(robot, rate, "nan", at=3),
        exported.bundle,
        start=True,
        seconds=5,
        safety=PATIENT,
    )
    assert not result.ok
    assert result.faults == ["signals-bad"]


class Numbered(FakeDriver):
    """One that took `robot` for a number of its own."""

    def __init__(self, robot, rate):
        super().__init__(robot, rate)
        self.robot = 7


class HalfDriver:
    def read(self):
        raise AssertionError("read")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"driver": lambda robot, rate: object()}, "has no method read"),
        ({"driver": object}, "does not make a driver"),
        ({"safety": {"sped": 0.5}}, "no setting 'sped', did you mean 'speed'"),
        ({"driver": HalfDriver()}, r"has no method write\(\)"),
        ({"log_seconds": 0.0}, "log-seconds is 0.0, but it must be 1 or more"),
        ({"log_seconds": 9e9}, "log-seconds"),
        ({"seconds": -5.0}, "seconds is -5.0, but it must be 0 or more"),
        ({"seconds": float("nan")}, "seconds"),
        ({"log": "out.txt"}, r"\.npz"),
        ({"operator": 3}, "operator is a int, but it must be text"),
        ({"driver": Numbered}, "the driver's `robot` is a int"),
        ({"log": "/dev/null/out.npz"}, "not a directory"),
        ({"policy": "nothing-here"}, "nothing-here"),
    ],
)
def test_drive_refuses_before_anything_moves(change, message, exported):
    given = {
        "driver": FakeDriver,
        "policy": exported.bundle,
        "start": True,
        "seconds": 0.2,
        **change,
    }
    with pytest.raises(DeftlyError, match=message):
        deftly.drive(given.pop("driver"), given.pop("policy"), **given)


@pytest.mark.parametrize("is_made", [False, True])
@pytest.mark.parametrize(
    "change", [{"safety": {"margin": 0.9}}, {"seconds": -1.0}, {"policy": "nothing-here"}]
)
def test_a_driver_is_stopped_when_driving_is_refused(change, is_made, exported):
    """A driver may hold the robot from the moment it is made."""
    made, stopped = [], []

    class Holding(FakeDriver):
        def __init__(self, *args):
            super().__init__(*args)
            made.append(self)

        def stop(self):
            stopped.append(self)

    contract = deftly.load_policy(exported.bundle).contract
    driver = Holding(contract.robot, contract.rate) if is_made else Holding
    given = {"policy": exported.bundle, "start": True, **change}
    with pytest.raises(DeftlyError):
        deftly.drive(driver, given.pop("policy"), **given)
    assert stopped == made


def test_a_driver_that_lacks_a_method_is_stopped_and_a_policy_closed(exported):
    stopped, closed = [], []

    class NoWrite:
        def __init__(self, robot, rate):
            pass

        def read(self):
            raise AssertionError("read")

        def stop(self):
            stopped.append(self)

    with pytest.raises(DeftlyError, match=r"has no method write\(\)"):
        deftly.drive(NoWrite, exported.bundle)
    assert len(stopped) == 1
    policy = deftly.load_policy(exported.bundle)
    policy.close = lambda: closed.append(True)
    with pytest.raises(DeftlyError, match="seconds is -1"):
        deftly.drive(FakeDriver, policy, seconds=-1.0)
    assert closed == [True]


def test_load_policy_needs_to_know_which():
    with pytest.raises(DeftlyError, match="which policy"):
        deftly.load_policy()
    assert deftly.load_policy("shipped", "jaka-pick-cube").contract.robot.name == "jaka-zu5"
