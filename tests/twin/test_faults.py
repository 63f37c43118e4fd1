"""Faults injected by name into the simulated robot: from each to the safe command in two control periods."""

import dataclasses

import numpy as np
import pytest
from legged import HALTS, LEGS, Legged

from deftly.commands.sim2sim import main as sim2sim_main
from deftly.contract import Fault
from deftly.control.drivers.faults import BY_MOTION, Injection, expected, names, parse
from deftly.control.safety import Kernel, SafetyConfig, State
from deftly.errors import DeftlyError
from deftly.evaluate.comparison import read_report
from deftly.policy.protocol import ContractPolicy
from deftly.serving.wire import pack
from deftly.twin.loop import run_episode
from deftly.twin.robot import SimRobot
from deftly.twin.server import RobotServer

CFG = Legged.Config(rate=50.0, episode_steps=100, stop_on_success=False)
BOUNDS = SafetyConfig(ramp_s=0.2, start_envelope=0.5)


def legs(robot=LEGS, **cfg):
    """The simulated robot on legs, with another interface or settings."""
    task = Legged(dataclasses.replace(CFG, **cfg))
    own = task.contract
    task.contract = lambda: dataclasses.replace(own(), robot=robot)
    return SimRobot(task)


def swaying(contract):
    """Bends and stretches its left hip and knee, one against the other."""
    count = [0]

    def network(obs):
        count[0] += 1
        swing = np.sin(2 * np.pi * count[0] / 40)
        return np.array([[0.6 * swing, -0.6 * swing, 0.0, 0.0]], np.float32)

    return ContractPolicy(contract, network)


NAMES = names(Legged(CFG).contract())


def test_without_a_fault_it_stands_and_sways_to_the_end():
    robot = legs()
    result = run_episode(robot, swaying(robot.contract), BOUNDS, 0)
    assert (result.end, result.reason, result.injected) == ("success", "", None)
    assert np.ptp(result.rows["command"][:, 0][20:]) > 0.5


@pytest.mark.parametrize("name", NAMES)
def test_every_fault_leads_to_the_safe_state_within_two_periods(name):
    robot = legs()
    result = run_episode(robot, swaying(robot.contract), BOUNDS, 0, injection=Injection(name, 0.5))
    found = result.injected
    assert found.name == name
    assert found.fault in expected(name)
    assert found.periods <= (25 if name in BY_MOTION else 2)
    assert result.rows["state"][-1] == "damp"
    assert not result.rows["written"][-1] or np.isnan(result.rows["command"][-1]).all()


def test_every_fault_of_the_kernel_can_be_injected_but_three():
    """Of the start, of another contract, and of a loop that is late for long."""
    reached = {fault for name in NAMES for fault in expected(name)}
    assert set(Fault) - reached == {"none", "envelope", "contract", "deadlines"}


def test_a_robot_that_holds_on_a_fault_holds_in_the_simulation_too():
    robot = legs(HALTS)
    found = run_episode(robot, swaying(robot.contract), BOUNDS, 0, injection=Injection("hold", 0.5))
    assert found.rows["state"][-1] == "hold"
    np.testing.assert_array_equal(found.rows["command"][-1], found.rows["command"][-2])


def test_damped_servos_brake_and_hold_no_pose():
    robot = legs()
    for _ in range(50):
        robot.write(np.array([0.5, 0.5, 0.5, 0.5]))
        robot.advance()
    held = robot.view.joint_pos[0].numpy().copy()
    robot.damp()
    for _ in range(100):
        robot.advance()
        np.testing.assert_allclose(robot.data.ctrl, robot.view.joint_pos[0].numpy(), atol=0.05)
        assert robot.view.joint_vel[0].abs().max() < 1.5, "slowly"
    after = robot.view.joint_pos[0].numpy()
    assert (np.abs(after[::2]) < np.abs(held[::2]) - 0.1).all(), "the thighs sink"
    robot.write(np.zeros(4))
    robot.advance()
    np.testing.assert_array_equal(robot.data.ctrl, 0.0)


def test_a_robot_that_falls_by_itself_is_damped_on_its_way_and_does_not_get_up():
    robot = legs(hangs=False)
    falls = ContractPolicy(robot.contract, lambda obs: np.ones((1, 4), np.float32))
    result = run_episode(robot, falls, dataclasses.replace(BOUNDS, lead=2.0), 0)
    assert result.end == "fault/limit"
    assert result.reason.startswith("the tilt of orientation is 0.9")
    assert result.rows["state"][-1] == "damp"
    for _ in range(150):
        robot.damp()
        robot.advance()
    kernel = Kernel(LEGS, 50.0, BOUNDS)
    for _ in range(5):
        robot.advance()
        kernel.tick(robot.now, robot.read())
    assert kernel.state is State.INIT
    assert "the tilt of orientation is " in kernel.reason


def test_a_robot_in_another_process_is_damped_by_a_message():
    robot = legs()
    server = RobotServer(robot, "tcp://127.0.0.1:*")
    try:
        answer = server._answer(pack({"type": "damp", "seq": 7}))
        assert (answer["seq"], answer["ok"]) == (7, True)
        robot.write(np.full(4, 0.5))
        robot.damp()
        robot.advance()
        np.testing.assert_allclose(robot.data.ctrl, robot.view.joint_pos[0].numpy(), atol=0.05)
    finally:
        server._socket.close()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("odd", "no fault 'odd': give any, or one of late, frozen"),
        ("nan@", "after @ come seconds, such as nan@1.5"),
        ("nan@soon", "--fault is 'nan@soon'"),
        ("nan@-1", "--fault is 'nan@-1'"),
        ("nan@nan", "--fault is 'nan@nan'"),
        ("limit/cube", "no fault 'limit/cube'"),
        ("", "no fault ''"),
    ],
)
def test_a_fault_that_there_is_not_is_refused_in_one_line(text, said):
    with pytest.raises(DeftlyError) as caught:
        parse(text, Legged(CFG).contract())
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert parse("nan@0.25", Legged(CFG).contract()) == Injection("nan", 0.25)


def test_the_command_injects_and_reports(exported, tmp_path, capsys):
    words = [exported.task, "--policy", str(exported.bundle), "--episodes", "6"]
    words += ["--runs.root", str(exported.root), "--task.goal", "0.0001"]
    out = tmp_path / "report"
    gate = ["--gate", "missed<=0", "--out", str(out)]
    assert sim2sim_main([*words, "--fault", "nan@0.2", *gate]) == 0
    assert "fault nan: safe in 6 of 6 episodes, 1 periods at most (signals-bad 6)" in (
        capsys.readouterr().out
    )
    found = read_report(out)["twin"]
    assert found["missed"] == 0
    assert found["injected"]["nan"]["periods_max"] == 1
    for word in ("any", "random"):
        assert sim2sim_main([*words, "--fault", word, *gate]) == 0
    with pytest.raises(DeftlyError, match="no fault 'odd'"):
        sim2sim_main([*words, "--fault", "odd"])
    capsys.readouterr()
    assert sim2sim_main([*words, "--fault", "nan@9999"]) == 1
    assert "fault nan@9999: it never happened" in capsys.readouterr().out


def random_faults(episodes):
    """Episodes with a random fault at a random time each: what came of those that struck."""
    robot = legs()
    rng = np.random.default_rng(0)
    found = []
    for episode in range(episodes):
        injection = Injection(str(rng.choice(NAMES)), float(rng.uniform(0.0, 1.2)))
        result = run_episode(robot, swaying(robot.contract), BOUNDS, episode, injection=injection)
        found.append(result.injected)
    return found


@pytest.mark.parametrize("episodes", [40, pytest.param(1000, marks=pytest.mark.slow)])
def test_no_policy_drives_on_after_a_random_fault(episodes):
    found = random_faults(episodes)
    assert all(each and each.fault in expected(each.name) for each in found)
    at_once = [each.periods for each in found if each.name not in BY_MOTION]
    print(f"{episodes} episodes, periods: {np.bincount(at_once)}")
    assert max(at_once) <= 2
