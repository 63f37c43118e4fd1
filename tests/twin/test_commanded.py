"""Who says a policy's inputs to the simulated robot: the task, as in training, a file, or nobody any more."""

import numpy as np
import pytest

from deftly.commands.sim2sim import main as sim2sim_main
from deftly.control.drivers.faults import Injection
from deftly.control.operator.timetable import Timetable
from deftly.control.safety import SafetyConfig
from deftly.errors import DeftlyError
from deftly.evaluate.comparison import read_report
from deftly.policy.protocol import ContractPolicy
from deftly.tasks import load
from deftly.twin.loop import run_episode
from deftly.twin.robot import SimRobot

WALK = load("wildrobot-walk")
STILL = SafetyConfig(ramp_s=0.1)
STEPS = 40


@pytest.fixture(scope="module")
def robot():
    """A WildRobot that is told to walk at 0.3 m/s or more, another speed now and then."""
    return SimRobot(WALK(WALK.Config(speed=(0.3, 0.6), turn=0.2, hold_s=0.2)))


def drive(robot, **more):
    """An episode of a policy that holds home: what it was told while it drove, (steps, 1) each, and how it went."""
    seen = []

    def network(obs):
        seen.append(obs[0, 34])
        return np.zeros((1, 8), np.float32)

    policy = ContractPolicy(robot.contract, network)
    result = run_episode(robot, policy, STILL, 0, limit=STEPS, **more)
    rows = {name: result.rows[f"input/{name}"][robot.ready :] for name in ("speed", "turn")}
    assert rows["speed"].ravel() == pytest.approx(np.array(seen), abs=1e-6)
    return rows, result


def test_the_task_says_what_its_policy_is_judged_by(robot):
    rows, result = drive(robot)
    assert result.end == "cut_off"
    assert rows["speed"].min() >= 0.3
    assert rows["speed"].max() <= 0.6
    assert len(np.unique(rows["speed"])) > 2, "commands change"
    assert np.abs(rows["turn"]).max() > 0.0
    assert result.metrics["command"] == pytest.approx(rows["speed"].mean(), abs=1e-6)


def test_another_operator_is_heard_and_judged_by(robot, tmp_path):
    path = tmp_path / "commands.csv"
    path.write_text("time,speed,turn\n0,0.1,0\n0.4,0.2,0.1\n0.6,0,0\n")
    rows, result = drive(robot, operator=Timetable(path, robot.contract))
    wanted = np.repeat([0.1, 0.2, 0.0], [20, 10, 10])
    assert rows["speed"].ravel() == pytest.approx(wanted)
    assert rows["turn"].ravel() == pytest.approx(0.5 * (wanted == 0.2) * 0.2)
    assert result.metrics["command"] == pytest.approx(wanted.mean(), abs=1e-6)


class Silent(Timetable):
    """Is heard for a quarter of a second."""

    def hear(self, now, driving):
        return super().hear(now, driving) if now < 0.25 else None


def test_an_operator_who_falls_silent_is_a_fault_here_too(robot, tmp_path):
    path = tmp_path / "commands.yaml"
    path.write_text("- {time: 0, speed: 0.1}\n- {time: 60, speed: 0}\n")
    safety = SafetyConfig(ramp_s=0.1, input_s=0.2)
    policy = ContractPolicy(robot.contract, lambda obs: np.zeros((1, 8), np.float32))
    silent = Silent(path, robot.contract)
    result = run_episode(robot, policy, safety, 0, limit=STEPS, operator=silent)
    assert result.end == "fault/input-stale"
    assert result.rows["state"][-1] in ("damp", "hold")
    assert result.steps <= 0.45 * 50 + 2


def test_a_mute_operator_is_a_fault_of_a_policy_with_inputs(robot):
    found = drive(robot, injection=Injection("mute", 0.1))[1].injected
    assert (found.name, found.fault) == ("mute", "input-stale")
    assert found.periods <= 2


FAULTS = ["wildrobot-walk", "--policy", "shipped", "--fault", "random", "--gate", "missed<=0"]


@pytest.mark.parametrize(
    ("episodes", "steps"), [(4, 250), pytest.param(1000, 500, marks=pytest.mark.slow)]
)
def test_the_shipped_policy_of_wildrobot_drives_on_after_no_random_fault(
    episodes, steps, tmp_path, capsys
):
    words = [*FAULTS, "--episodes", str(episodes), "--task.episode-steps", str(steps)]
    assert sim2sim_main([*words, "--out", str(tmp_path / "out")]) == 0
    twin = read_report(tmp_path / "out")["twin"]
    assert twin["missed"] == 0
    assert sum(each["struck"] for each in twin["injected"].values()) >= 0.5 * episodes
    assert "eval: " not in capsys.readouterr().out, "who is given faults is not compared"


def test_who_is_told_other_commands_is_not_compared_with_the_evaluation(tmp_path, capsys):
    path = tmp_path / "told.csv"
    path.write_text("time,speed\n0,0.2\n0.2,0\n")
    words = ["wildrobot-walk", "--policy", "shipped", "--episodes", "1"]
    short = ["--task.episode-steps", "20", "--out", str(tmp_path)]
    sim2sim_main([*words, *short, "--operator", str(path)])
    assert "eval: " not in capsys.readouterr().out
    sim2sim_main([*words, *short])
    assert "eval: " in capsys.readouterr().out


@pytest.mark.parametrize("fault", ["stuck", "blocked", "flipped"])
def test_a_joint_that_fails_while_wildrobot_walks_is_found(fault, tmp_path):
    """By the gain from its command to where it is: none of them is ever a `lead` away."""
    words = ["wildrobot-walk", "--policy", "shipped", "--fault", f"{fault}@2.5", "--episodes", "2"]
    short = ["--task.episode-steps", "250", "--task.speed", "0.4", "0.5"]
    sim2sim_main([*words, *short, "--out", str(tmp_path)])
    found = read_report(tmp_path)["twin"]["injected"][fault]
    assert found["safe"] == found["struck"] == 2
    assert found["periods_max"] <= 60


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--operator", "keyboard"], "needs somebody who sees the robot: add --render"),
        (["--operator", "mouse"], "must be keyboard, gamepad, or a file of commands"),
        (["--operator", "none.csv"], "none.csv"),
    ],
)
def test_an_operator_who_cannot_be_heard_is_refused_before_an_episode(words, said, monkeypatch):
    monkeypatch.setattr("deftly.twin.sim2sim.run_sim2sim", lambda *_, **__: pytest.fail("it ran"))
    with pytest.raises(DeftlyError) as caught:
        sim2sim_main(["wildrobot-walk", "--policy", "shipped", *words])
    assert said in str(caught.value)


def test_a_policy_that_hears_nobody_has_no_operator(exported, tmp_path):
    path = tmp_path / "commands.csv"
    path.write_text("time\n0\n")
    words = [exported.task, "--policy", str(exported.bundle), "--runs.root", str(exported.root)]
    with pytest.raises(DeftlyError, match="the policy has no inputs"):
        sim2sim_main([*words, "--operator", str(path)])
