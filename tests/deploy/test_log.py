import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from deftly.contract import Act, Contract, Couple, Joint, Observe, Signal
from deftly.deploy import log
from deftly.deploy.drivers import FAULTS, FakeDriver
from deftly.deploy.log import Ring
from deftly.deploy.loop import Runner
from deftly.deploy.policy import Decision
from deftly.deploy.safety import Kernel, State

TOY = Contract(
    robot="toy",
    rate=20,
    joints=(
        Joint("a", -1.0, 2.0, 0.5, 3.0),
        Joint("b", -2.0, 2.0, 0.0, 1.5),
        Joint("grip", 0.0, 0.04, 0.04, 0.15, "m"),
        Joint("d", -1.0, 1.0, 0.0, 1.0),
    ),
    signals=(Signal("joint_pos", 4, "rad"), Signal("cube", 3, "m", "base")),
    observe_terms=(Observe("joint_pos"), Observe("cube")),
    act_terms=(Act(("a", "b"), "delta", (0.2,)), Act(("grip",), "gripper", (0.1,))),
    couplings=(Couple("d", (("a", -0.5),), 0.1),),
)


class Shaky:
    """A policy that asks for anything, and sometimes gives no answer."""

    contract = TOY

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)

    def reset(self, signals):
        pass

    def infer(self, signals, applied=None):
        if self.rng.random() < 0.03:
            raise TimeoutError
        return Decision(np.zeros(3, np.float32), self.rng.normal(size=4).astype(np.float32))

    def close(self):
        pass


def recorded(ring, seed, ticks, fault="", at=40):
    """A loop of some ticks with an operator who starts and resumes at once; returns what it commanded."""
    clock = [100.0]
    runner = Runner(Shaky(seed), Kernel(TOY), FakeDriver(TOY, fault, at, lambda: clock[0]), ring)
    rng = np.random.default_rng(seed)
    for _ in range(ticks):
        clock[0] += rng.choice([0.05, 0.05, 0.05, 0.051, 0.09])
        if runner.kernel.state is State.READY and rng.random() < 0.5:
            runner.start()
        if runner.kernel.state is State.HOLD and rng.random() < 0.5:
            runner.resume()
        if rng.random() < 0.01:
            runner.hold()
        runner.step(clock[0])
    return runner


def replayed(found, kernel):
    """The commands that a kernel gives for the rows of a log."""
    from deftly.deploy.drivers import Reading
    from deftly.deploy.safety import Fault

    commands = []
    for i in range(len(found)):
        if (snapshot := found.snapshot(i)) is not None:
            if i:
                now = kernel.snapshot()
                assert all(
                    np.array_equal(now[k], v, equal_nan=k == "command") for k, v in snapshot.items() if k != "reason"
                )
            kernel.restore(snapshot)
        row = {name: column[i] for name, column in found.rows.items()}
        for event in filter(None, str(row["event"]).split("+")):
            getattr(kernel, event)()
        reading = None if np.isnan(row["at"]) else Reading(found.signals(i), float(row["at"]))
        command = kernel.tick(float(row["now"]), reading, row["targets"] if row["decided"] else None)
        if not row["written"]:
            kernel.hold("", Fault.DRIVER)
        assert (kernel.state, kernel.fault) == (row["state"], row["fault"])
        commands.append(np.full(4, np.nan) if command is None else command)
    return np.array(commands)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 300), st.integers(1, 400), st.sampled_from(("", *FAULTS)))
def test_a_log_whose_beginning_was_dropped_replays_from_its_oldest_row(tmp_path_factory, seed, ticks, size, fault):
    path = tmp_path_factory.mktemp("log") / "log.npz"
    ring = Ring(TOY, size)
    recorded(ring, seed, ticks, "" if fault == "slow" else fault)
    ring.save(path, {})
    found = log.read(path)
    assert min(ticks, 0.7 * size) <= len(found) <= size
    assert found.snapshot(0) is not None
    np.testing.assert_array_equal(replayed(found, Kernel(TOY)), found.rows["command"])
