"""What the kernel asks of a policy: the robot's interface and the rate, not one contract."""

import dataclasses

import numpy as np
import pytest
from four_joints import HOME, ROBOT, TOY

from deftly.contract import Act, Input, Observe, PolicyContract, Signal
from deftly.control.drivers import FakeDriver, Reading
from deftly.control.log import LogBuffer
from deftly.control.loop import Runner
from deftly.control.safety import Fault, Kernel, SafetyConfig, State
from deftly.policy.protocol import ContractPolicy

EXPERT = TOY
SEEING = PolicyContract(
    robot=ROBOT,
    rate=20,
    observe_terms=(Observe("joint_pos", history=3), Observe("goal")),
    act_terms=(Act(("a", "b", "grip"), "absolute", lowpass=0.5),),
    inputs=(Input("goal", 2, lower=-2.0, upper=2.0),),  # type: ignore[arg-type]
)
"""Another policy on the same robot: it sees and acts otherwise, and is told where to go."""


def expert(obs):
    return np.concatenate((0.1 * np.ones((len(obs), 2)), -np.ones((len(obs), 1))), -1).astype(
        np.float32
    )


def seeing(obs):
    return np.concatenate((obs[:, -2:] / 3, np.ones((len(obs), 1))), -1).astype(np.float32)


class Clocked:
    """A loop in simulated time: one kernel and one robot, whatever drives."""

    def __init__(self):
        self.now = 100.0
        self.driver = FakeDriver(ROBOT, 20.0, clock=lambda: self.now)
        self.kernel = Kernel(ROBOT, 20.0, SafetyConfig(ramp_s=0.0, start_envelope=3.0, lead=5.0))

    def drive(self, policy, inputs=None, ticks=20):
        buffer = LogBuffer(policy.contract, 100)
        runner = Runner(policy, self.kernel, self.driver, buffer)
        runner.inputs = inputs or {}
        for _ in range(ticks):
            self.now += 0.05
            tick = runner.step(self.now)
            if tick.state is State.READY:
                runner.start()
        return buffer.rows()


def test_two_policies_on_one_interface_are_driven_by_one_kernel():
    assert EXPERT.hash != SEEING.hash
    loop = Clocked()
    first = loop.drive(ContractPolicy(EXPERT, expert))
    assert loop.kernel.state is State.ACTIVE
    assert first["decided"].sum() == 18
    raised = loop.driver.position[0]
    assert raised > HOME[0] + 0.3
    loop.kernel.hold()
    loop.kernel.resume()
    second = loop.drive(ContractPolicy(SEEING, seeing), {"goal": [-1.0, 1.5]}, 30)
    assert loop.kernel.fault is Fault.NONE
    assert second["decided"].sum() == 28
    assert loop.driver.position[0] < raised - 0.3
    np.testing.assert_array_equal(second["input/goal"], [[-1.0, 1.5]] * 30)
    assert "input/goal" not in first
    assert second["action"].shape == (30, 3)


def test_a_policy_for_another_robot_is_refused_by_the_first_difference():
    joints = (dataclasses.replace(ROBOT.joints[0], upper=1.9), *ROBOT.joints[1:])
    other = dataclasses.replace(TOY, robot=dataclasses.replace(ROBOT, joints=joints))
    kernel = Kernel(ROBOT, 20.0)
    kernel.require(other)
    assert (kernel.state, kernel.fault) == (State.STOP, Fault.CONTRACT)
    said = (
        "the policy was made under another robot interface: joints[0].upper is 1.9 there, 2.0 here"
    )
    assert kernel.reason == said


def test_a_policy_at_another_rate_is_refused():
    kernel = Kernel(ROBOT, 20.0)
    kernel.require(dataclasses.replace(SEEING, rate=15.0))
    assert kernel.fault is Fault.CONTRACT
    assert "rate is 15.0 there, 20.0 here" in kernel.reason


@pytest.mark.parametrize(
    ("image", "fault"),
    [
        (np.zeros((4, 6, 3), np.uint8), Fault.NONE),
        (np.zeros((4, 6, 3)), Fault.SIGNALS_BAD),
        (np.zeros((4, 5, 3), np.uint8), Fault.SIGNALS_BAD),
        (None, Fault.SIGNALS_BAD),
    ],
)
def test_an_image_is_a_signal_like_the_others(image, fault):
    signals = (*ROBOT.signals, Signal("front", (4, 6, 3), dtype="uint8"))
    kernel = Kernel(dataclasses.replace(ROBOT, signals=signals), 20.0)
    measured = {"joint_pos": HOME, "cube": np.zeros(3), "front": image}
    for now in (1.0, 1.05):
        kernel.tick(now, Reading(measured, now))
    assert (kernel.state is State.READY) == (fault is Fault.NONE)
    assert ("'front'" in kernel.reason) == (fault is not Fault.NONE)


def test_a_log_keeps_no_images():
    signals = (*ROBOT.signals, Signal("front", (4, 6, 3), dtype="uint8"))
    seen = dataclasses.replace(TOY, robot=dataclasses.replace(ROBOT, signals=signals))
    assert "signal/front" not in LogBuffer(seen, 5).rows()


def followed(kernel, lag):
    """Whether the kernel bears with a first joint that lags so far behind its command."""
    now = 1.0
    measured = {s.name: np.zeros(s.size) for s in kernel.robot.signals} | {
        "joint_pos": np.array(kernel.robot.home())
    }
    kernel.stood_still(now, Reading(measured, now))
    kernel.tick(now, Reading(measured, now))
    kernel.start()
    targets = measured["joint_pos"] + np.eye(len(HOME))[0] * lag
    for _ in range(100):
        now += kernel.period
        kernel.tick(now, Reading(measured, now), targets)
    return kernel.fault is not Fault.FOLLOWING


@pytest.mark.parametrize(
    ("name", "lead", "lag", "bears"),
    [
        ("toy", None, 0.4, True),
        ("toy", None, 0.6, False),
        ("toy", 1.0, 0.9, True),
        ("leap-right", None, 1.4, True),
        ("leap-right", None, 1.6, False),
        ("leap-right", 0.5, 0.6, False),
    ],
)
def test_how_far_a_command_may_lead_is_known_by_the_robots_name_unless_it_is_said(
    name, lead, lag, bears
):
    joints = (dataclasses.replace(ROBOT.joints[0], upper=9.0), *ROBOT.joints[1:])
    robot = dataclasses.replace(ROBOT, name=name, joints=joints)
    assert followed(Kernel(robot, 20.0, SafetyConfig(lead=lead, ramp_s=0.0)), lag) is bears


def test_a_driver_may_say_how_far_a_command_may_lead():
    from deftly.commands.run import _bounds

    driver = FakeDriver(ROBOT, 20.0)
    assert _bounds(SafetyConfig(), driver).lead is None
    driver.lead = 1.2  # type: ignore[attr-defined]
    assert _bounds(SafetyConfig(), driver).lead == 1.2
    assert _bounds(SafetyConfig(lead=0.3), driver).lead == 0.3
