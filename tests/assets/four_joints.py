"""A robot of four joints, one of them a gripper and one coupled to another, and what tests drive it with."""

import numpy as np
from one_row import OneRow

from deftly.contract import Act, Coupling, Joint, Observe, PolicyContract, RobotInterface, Signal
from deftly.control.drivers import FakeDriver, Reading
from deftly.control.safety import Kernel, SafetyConfig
from deftly.policy.protocol import Decision

ROBOT = RobotInterface(
    name="toy",
    joints=(
        Joint("a", -1.0, 2.0, 0.5, 3.0),
        Joint("b", -2.0, 2.0, 0.0, 1.5),
        Joint("grip", 0.0, 0.04, 0.04, 0.15, "m", grips=True),
        Joint("d", -1.0, 1.0, 0.0, 1.0),
    ),
    signals=(Signal("joint_pos", 4, "rad"), Signal("cube", 3, "m", "base")),
    couplings=(Coupling("d", (("a", -0.5),), 0.25),),
)
TOY = PolicyContract(
    robot=ROBOT,
    rate=20,
    observe_terms=(Observe("joint_pos"), Observe("cube")),
    act_terms=(Act(("a", "b"), "delta", (0.2,)), Act(("grip",), "gripper", (0.1,))),
)
HOME = np.array(TOY.home())
LOWER, UPPER = np.array([(j.lower, j.upper) for j in TOY.joints]).T
TOP = np.array([j.velocity for j in TOY.joints])
PERIOD = 1 / TOY.rate


class Bench:
    """A kernel and a clock: one good control period after another, unless a test breaks one of them."""

    def __init__(self, robot=ROBOT, **cfg):
        self.kernel, self.now, self.pose = (
            Kernel(robot, TOY.rate, SafetyConfig(**cfg)),
            100.0,
            HOME.copy(),
        )

    def reading(self, age=0.0, **signals):
        return Reading(
            {"joint_pos": self.pose.copy(), "cube": np.zeros(3), **signals}, self.now - age
        )

    def tick(self, targets=HOME, periods=1.0, **broken):
        self.now += periods * PERIOD
        reading = broken["reading"] if "reading" in broken else self.reading(**broken)
        return self.kernel.tick(self.now, reading, targets)

    def ready(self):
        """Two measurements that agree."""
        self.tick()
        self.tick()
        return self

    def resume(self):
        """Two measurements that agree after a resume; the command after the second."""
        self.kernel.resume()
        assert self.tick() is None
        return self.tick()

    def active(self):
        self.ready().kernel.start()
        self.tick()
        return self


class Steady(OneRow):
    """A policy that wants the home pose, or does what it is told."""

    contract = TOY

    def __init__(self, infer=None, reset=None, close=None):
        self.calls, self._infer, self._reset, self._close = [], infer, reset, close

    def reset(self, ids=None):
        self.calls.append("reset")
        if self._reset:
            self._reset(ids)

    def decide(self, signals, applied, inputs):
        self.calls.append("infer")
        if self._infer:
            return self._infer(signals, applied)
        return Decision(np.zeros(3, np.float32), HOME.astype(np.float32))

    def close(self):
        self.calls.append("close")
        if self._close:
            self._close()


class Watched(FakeDriver):
    """The fake robot in simulated time, noting its calls; `broken` maps a method's name to what it does instead."""

    def __init__(self, fault="", at=40, **broken):
        self.time, self.calls, self.broken = 100.0, [], broken
        super().__init__(ROBOT, TOY.rate, fault, at, lambda: self.time, self.sleep)

    def sleep(self, seconds):
        self.time += seconds

    def read(self):
        return self._do("read", super().read)

    def write(self, targets):
        return self._do("write", lambda: super(Watched, self).write(targets), targets)

    def stop(self):
        return self._do("stop", super().stop)

    def _do(self, name, real, *args):
        self.calls.append(name)
        return self.broken[name](*args) if name in self.broken else real()
