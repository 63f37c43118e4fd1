import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from four_joints import HOME, PERIOD, ROBOT, TOY, Steady, Watched

from deftly.contract import FAULTS, Input, Observe
from deftly.control.drivers import DriverError, FakeDriver, OtherWriterError, Reading
from deftly.control.log import Log, LogBuffer
from deftly.control.loop import HANGS_S, PatientClock, Runner, Ticker, run
from deftly.control.safety import Fault, Kernel, Missing, SafetyConfig, SafetyError, State
from deftly.control.signals import ALWAYS, HALTS, OTHERS
from deftly.policy.protocol import ContractPolicy, Decision, OnnxNetwork, PolicyError


class Clock:
    """A monotonic clock that only sleeping and a test move."""

    def __init__(self):
        self.now, self.slept = 50.0, []

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        assert seconds > 0
        self.slept.append(seconds)
        self.now += seconds


def throws(error):
    def act(*_, **__):
        raise error

    return act


def looped(driver, policy=None, ticks=10, each=None, log=None, **cfg):
    """A loop in simulated time, started at its first tick; the runner, when it has ended."""
    runner = Runner(
        policy or Steady(), Kernel(TOY.robot, TOY.rate, SafetyConfig(**cfg)), driver, log
    )
    ticker = Ticker(TOY.rate, lambda: driver.time, driver.sleep)
    left = [ticks]

    def step(tick):
        if tick.state is State.READY:
            runner.start()
        left[0] -= 1
        return each(tick) if each else left[0] > 0

    run(runner, ticker, step)
    return runner


def made_ready(runner):
    """Two measurements that agree; the runner."""
    for _ in range(2):
        runner.driver.sleep(PERIOD)
        runner.step(runner.driver.time)
    return runner


def left_safe(driver, policy=None):
    """The last command was written once more, the driver was stopped once, then nothing."""
    assert driver.calls.count("stop") == 1
    assert driver.calls[-2:] == ["write", "stop"]
    if policy:
        assert policy.calls.count("close") == 1
    return True


# ------------------------------------------------------------ the clock


def test_ticks_come_at_the_rate_whatever_the_work_takes():
    clock = Clock()
    ticker, times = Ticker(20, clock, clock.sleep), []
    for i in range(200):
        times.append(ticker.wait())
        clock.now += 0.001 * (i % 40)
    np.testing.assert_allclose(times, 50.0 + 0.05 * np.arange(200), atol=1e-9)
    assert ticker.overruns == 0


@pytest.mark.parametrize("stall", [0.05, 0.07, 0.1, 0.15, 1.0, 7.0, 3600.0])
def test_a_stall_is_counted_and_not_made_up_for(stall):
    clock = Clock()
    ticker = Ticker(20, clock, clock.sleep)
    times = [ticker.wait(), ticker.wait()]
    clock.now += 0.05 + stall
    times += [ticker.wait() for _ in range(20)]
    steps = np.diff(times)[2:]
    assert ticker.overruns == int(round(stall / 0.05, 6))
    np.testing.assert_allclose(steps, 0.05, atol=1e-9)


def test_a_stall_of_exactly_a_period_gives_no_second_tick_at_the_same_time():
    clock = Clock()
    ticker = Ticker(16, clock, clock.sleep)
    times = [ticker.wait()]
    clock.now += 2 / 16
    times += [ticker.wait(), ticker.wait()]
    assert times == [50.0, 50.125, 50.1875]
    assert ticker.overruns == 1


def test_the_time_before_the_first_tick_is_no_overrun():
    clock = Clock()
    ticker = Ticker(20, clock, clock.sleep)
    clock.now += 9.0
    assert ticker.wait() == 59.0
    assert ticker.wait() == pytest.approx(59.05)
    assert ticker.overruns == 0


def test_a_sleep_that_ends_early_is_slept_again():
    clock = Clock()
    ticker = Ticker(20, clock, lambda s: clock.sleep(max(s / 2, 1e-6)))
    ticker.wait()
    assert ticker.wait() >= 50.05


def test_a_jump_of_the_wall_clock_has_no_effect(monkeypatch):
    wall = iter(np.linspace(-1e9, 1e12, 10_000))
    monkeypatch.setattr(time, "time", lambda: next(wall))
    monkeypatch.setattr(time, "time_ns", lambda: int(1e9 * next(wall)))
    driver = Watched()
    runner = Runner(Steady(), Kernel(TOY.robot, TOY.rate), driver)
    ticker, times = Ticker(200), []
    driver._clock = time.monotonic
    for _ in range(20):
        times.append(ticker.wait())
        runner.step(times[-1])
        if runner.kernel.state is State.READY:
            runner.start()
    assert runner.kernel.fault is not Fault.CLOCK
    assert min(np.diff(times)) > 0
    assert times[-1] - times[0] < 60


# ------------------------------------------------------------ every exit


def test_the_normal_end_leaves_the_robot_safe():
    driver, policy = Watched(), Steady()
    runner = looped(driver, policy)
    assert left_safe(driver, policy)
    assert (runner.kernel.state, runner.kernel.reason) == (State.STOP, "the loop ended")
    np.testing.assert_array_equal(driver.command, runner.kernel.command)


@pytest.mark.parametrize(
    "error", [ValueError("x"), KeyboardInterrupt(), SystemExit(3), GeneratorExit(), MemoryError()]
)
@pytest.mark.parametrize("where", ["each", "read", "write", "reset", "infer"])
def test_every_exit_commands_the_safe_target_and_stops_the_driver_once(where, error):
    count = [0]

    def late(*_):
        count[0] += 1
        if count[0] == 5:
            raise error
        return

    driver, policy = Watched(), Steady()
    if where in ("read", "write"):
        real = getattr(super(Watched, driver), where)
        driver.broken[where] = lambda *args: (late(), real(*args))[1]
    elif where == "infer":
        policy = Steady(infer=lambda s, a: (late(), Decision(np.zeros(3), HOME))[1])
    elif where == "reset":
        policy = Steady(reset=throws(error))
    each = (lambda tick: late() is None) if where == "each" else None
    passes = isinstance(error, Exception) and where != "each"  # the kernel's business
    if passes:
        runner = looped(driver, policy, ticks=30)
        assert runner.problem
        assert runner.kernel.fault in (Fault.DRIVER, Fault.POLICY_STALE, Fault.OPERATOR)
    else:
        with pytest.raises(type(error)):
            looped(driver, policy, ticks=30, each=each)
    assert left_safe(driver, policy)


@pytest.mark.parametrize("error", [OSError("gone"), KeyboardInterrupt(), SystemExit(1)])
@pytest.mark.parametrize("where", ["write", "stop", "policy"])
def test_what_fails_while_leaving_does_not_keep_the_rest_from_being_left_safe(where, error):
    driver, policy = Watched(), Steady(close=throws(error) if where == "policy" else None)
    runner = made_ready(Runner(policy, Kernel(TOY.robot, TOY.rate), driver))
    if where != "policy":
        driver.broken[where] = throws(error)
    if where == "stop" and isinstance(error, Exception):
        with pytest.raises(DriverError, match=r"^stop: OSError: gone: the robot was not let go of"):
            runner.close()
    elif isinstance(error, Exception):
        runner.close()
        assert "OSError: gone" in runner.problem
    else:
        with pytest.raises(type(error)):
            runner.close()
    assert left_safe(driver, policy)
    assert bool(runner.refused) == (where == "write" and isinstance(error, Exception))
    runner.close()
    assert left_safe(driver, policy)


def test_a_robot_that_was_never_measured_is_stopped_and_not_commanded():
    driver = Watched("read", at=0)
    looped(driver, ticks=3)
    assert driver.calls == ["read"] * 3 + ["stop"]


def test_leaving_after_a_resume_commands_what_was_held():
    driver = Watched()
    runner = made_ready(Runner(Steady(), Kernel(TOY.robot, TOY.rate), driver))
    runner.hold()
    runner.resume()
    runner.close()
    assert left_safe(driver)
    assert runner.kernel.state is State.STOP


def test_a_loop_that_ended_writes_no_more():
    driver = Watched()
    runner = looped(driver)
    before = list(driver.calls)
    with pytest.raises(SafetyError, match="has ended"):
        runner.step(driver.time + 1)
    assert driver.calls == before


PROGRAM = """
    import sys, time
    sys.path[:0] = {paths!r}
    from four_joints import *
    from deftly.control.loop import Runner, Ticker, run
    from deftly.control.drivers import FakeDriver

    class Loud(FakeDriver):
        def write(self, targets):
            super().write(targets)
            print("write", flush=True)
        def stop(self):
            print("stopping", flush=True)
            time.sleep(0.3)
            print("stopped", flush=True)

    run(Runner(Steady(), Kernel(TOY.robot, TOY.rate), Loud(TOY.robot, TOY.rate)), Ticker(TOY.rate), lambda tick: True)
"""


ENDING = [name for name in (*ALWAYS, *OTHERS) if name not in ("SIGPIPE", "SIGXFSZ")]
"""Those two are ignored by Python already."""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT"])
def test_a_signal_leaves_the_robot_safe_and_a_second_one_does_not_interrupt_that(name):
    paths = [str(Path(__file__).parents[1] / "assets"), str(Path(__file__).parents[2] / "src")]
    program = [sys.executable, "-c", textwrap.dedent(PROGRAM).format(paths=paths)]
    with subprocess.Popen(
        program, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            lines = [process.stdout.readline().strip() for _ in range(3)]
            assert lines == ["write"] * 3
            os.kill(process.pid, getattr(signal, name))
            for line in process.stdout:
                lines.append(line.strip())
                if line.strip() == "stopping":
                    os.kill(process.pid, signal.SIGTERM)
                    os.kill(process.pid, signal.SIGINT)
            code = process.wait(10)
        finally:
            process.kill()
    assert lines[-3:] == ["write", "stopping", "stopped"]
    assert code == (-signal.SIGINT if name == "SIGINT" else 128 + getattr(signal, name))


REAL_TIME = [int(signal.SIGRTMIN), signal.SIGRTMIN + 1, signal.SIGRTMAX - 1, int(signal.SIGRTMAX)]


BY_THREAD = pytest.mark.timeout(240, method="thread")
"""Of tests of SIGALRM, which pytest-timeout otherwise takes for itself."""


@BY_THREAD
@pytest.mark.parametrize("name", [*ENDING, *REAL_TIME])
def test_every_signal_that_would_kill_the_process_ends_the_loop(name):
    driver, policy = Watched(), Steady()
    number = name if isinstance(name, int) else int(getattr(signal, name))

    def read():
        if driver.calls.count("read") == 5:
            os.kill(os.getpid(), number)
            time.sleep(0.001)  # a signal comes between two instructions
        return super(Watched, driver).read()

    driver.broken["read"] = read
    with pytest.raises(KeyboardInterrupt if name == "SIGINT" else SystemExit) as ended:
        looped(driver, policy, ticks=100)
    assert name == "SIGINT" or ended.value.code == 128 + number
    assert left_safe(driver, policy)
    assert driver.calls.count("read") == 5


def test_the_handlers_of_signals_are_put_back():
    numbers = [getattr(signal, name) for name in (*ALWAYS, *OTHERS, *HALTS)] + REAL_TIME
    before = [signal.getsignal(number) for number in numbers]
    looped(Watched())
    assert [signal.getsignal(number) for number in numbers] == before


@BY_THREAD
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGQUIT", "SIGALRM"])
@pytest.mark.parametrize("where", ["write", "stop", "policy"])
def test_a_signal_while_the_loop_ends_by_itself_does_not_interrupt_that(where, name):
    driver, policy, ended = Watched(), Steady(), []

    def signalled(*_):
        if driver.calls.count("write") == 10:  # the end, and not before
            os.kill(os.getpid(), getattr(signal, name))
            time.sleep(0.001)  # a signal comes between two instructions
            ended.append(where)

    if where == "policy":
        policy = Steady(close=signalled)
    else:
        driver.broken[where] = signalled
    looped(driver, policy, ticks=10, each=lambda tick: driver.calls.count("read") < 10)
    assert left_safe(driver, policy)
    assert ended


def test_a_signal_that_somebodys_code_swallows_ends_the_loop_all_the_same():
    driver = Watched()

    def read():
        if driver.calls.count("read") == 5:
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.1)
            except BaseException:  # what `except:` does
                pass
        return super(Watched, driver).read()

    driver.broken["read"] = read
    with pytest.raises(SystemExit) as ended:
        looped(driver, ticks=100)
    assert ended.value.code == 128 + signal.SIGTERM
    assert left_safe(driver)
    assert driver.calls.count("read") == 5


def test_handlers_that_somebody_else_has_are_left_alone():
    heard = []
    before = signal.signal(signal.SIGUSR1, lambda *_: heard.append("user"))
    try:
        driver = Watched()
        driver.broken["stop"] = lambda: os.kill(os.getpid(), signal.SIGUSR1)
        looped(driver)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert heard == ["user"]


# ------------------------------------------------------------ what comes in


class Rude(Exception):
    def __str__(self):
        raise RuntimeError


ANSWERS = [
    None,
    3,
    (),
    (1, 2),
    Reading(None, 0.0),
    Reading({}, None),
    Reading({"joint_pos": [[1], [1, 2]]}, 101.0),
]


@pytest.mark.parametrize(
    "answer", [*ANSWERS, Reading({1: 2}, "x"), Reading({"joint_pos": HOME}, np.nan)], ids=repr
)
def test_whatever_a_driver_gives_is_at_most_a_fault(answer):
    driver, buffer, count = Watched(), LogBuffer(TOY, 50), [0]

    def read():
        count[0] += 1
        return super(Watched, driver).read() if count[0] < 5 else answer

    driver.broken["read"] = read
    runner = looped(driver, ticks=20, log=buffer)
    assert runner.kernel.fault in (Fault.DRIVER, Fault.SIGNALS_BAD, Fault.SIGNALS_STALE)
    assert left_safe(driver)


@pytest.mark.parametrize(
    "answer", [None, 3, (), (None, None), ([1], [[1], [1, 2]]), ("a", "b"), (HOME, HOME > 0)]
)
def test_whatever_a_policy_gives_is_at_most_a_fault(answer):
    driver, buffer = Watched(), LogBuffer(TOY, 50)
    runner = looped(driver, Steady(infer=lambda s, a: answer), ticks=20, log=buffer)
    assert runner.kernel.fault in (Fault.POLICY_STALE, Fault.POLICY_BAD)
    assert left_safe(driver)


@pytest.mark.parametrize("at", [np.nan, np.inf])
def test_a_measurement_without_a_time_is_the_drivers_fault_in_the_log_too(at):
    buffer, driver = LogBuffer(TOY, 50), Watched()
    driver.broken["read"] = lambda: Reading({"joint_pos": HOME, "cube": np.zeros(3)}, at)
    runner = looped(driver, ticks=3, log=buffer)
    assert runner.problem == f"read: measured at {at} s, which is no time"
    assert np.isnan(buffer.rows()["at"]).all()


def test_an_exception_without_words_is_named():
    runner = looped(Watched(read=throws(Rude())), ticks=3)
    assert runner.problem == "read: Rude: without a word"
    runner = looped(Watched(read=throws(DriverError("no\nanswer"))), ticks=3)
    assert runner.problem == "read: no answer"


def test_a_policy_cannot_change_what_was_measured_or_commanded():
    def infer(signals, applied):
        for array in (*signals.values(), applied):
            with contextlib.suppress(ValueError):  # read-only, or a copy
                array += 1.0
        signals.clear()  # its own map
        return Decision(np.zeros(3), HOME)

    changed, untouched = LogBuffer(TOY, 50), LogBuffer(TOY, 50)
    runner = looped(Watched(), Steady(infer=infer), ticks=10, log=changed)
    assert runner.kernel.fault is Fault.OPERATOR  # the end
    still = Steady(infer=lambda signals, applied: Decision(np.zeros(3), HOME))
    looped(Watched(), still, ticks=10, log=untouched)
    for name in ("command", "signal/joint_pos", "signal/cube"):
        np.testing.assert_array_equal(changed.rows()[name], untouched.rows()[name])


def test_a_driver_may_keep_and_change_its_arrays():
    driver, buffer, mine = Watched(), LogBuffer(TOY, 50), Reading({}, 0.0)

    def read():
        nonlocal mine
        for value in mine.signals.values():
            value += 1e6
        mine = super(Watched, driver).read()
        return mine

    def write(targets):
        super(Watched, driver).write(targets)
        targets *= 57.3  # to degrees, in place

    driver.broken |= {"read": read, "write": write}
    runner = looped(driver, ticks=20, log=buffer)
    assert runner.kernel.fault is Fault.OPERATOR
    assert np.abs(buffer.rows()["signal/joint_pos"]).max() < 10
    assert np.nanmax(np.abs(buffer.rows()["command"])) < 10


def test_the_log_holds_what_the_kernel_saw():
    driver, buffer = Watched(), LogBuffer(TOY, 50)
    driver.broken["read"] = lambda: Reading(
        {"joint_pos": ["1", "2", "3", "4"], "cube": np.zeros(3, bool)}, driver.time
    )
    looped(driver, ticks=3, log=buffer)
    assert np.isnan(buffer.rows()["signal/joint_pos"]).all()
    assert np.isnan(buffer.rows()["signal/cube"]).all()


def test_a_record_with_a_gap_makes_the_robot_stand_still():
    buffer = LogBuffer(TOY, 50)
    driver = Watched()
    runner = made_ready(Runner(Steady(), Kernel(TOY.robot, TOY.rate), driver, buffer))
    buffer.add = throws(MemoryError("full"))
    driver.sleep(PERIOD)
    runner.step(driver.time)
    assert (runner.kernel.state, runner.kernel.reason) == (State.HOLD, "log: MemoryError: full")


# ------------------------------------------------------------ the policy


def test_the_policy_is_asked_only_while_active_and_reset_at_each_start():
    driver, policy, buffer = Watched(), Steady(), LogBuffer(TOY, 400)
    runner = Runner(
        policy, Kernel(TOY.robot, TOY.rate, SafetyConfig(approach_s=0.5)), driver, buffer
    )
    asked = []
    for i in range(120):
        driver.sleep(PERIOD)
        before = (runner.kernel.state, bool(runner.kernel._approach_s), len(policy.calls))
        runner.step(driver.time)
        asked.append((before[0], before[1], policy.calls[before[2] :]))
        if i in (3, 63):
            assert runner.kernel.state is State.READY
            runner.start()
        if i == 50:
            runner.hold()
        if i == 60:
            runner.resume()
    assert all(
        (state is State.ACTIVE and not approach) == bool(calls) for state, approach, calls in asked
    )
    assert policy.calls.count("reset") == 2
    assert [c for _, _, c in asked if "reset" in c] == [["reset", "infer"]] * 2


@pytest.mark.parametrize("error", [PolicyError("no answer"), TimeoutError(), ZeroDivisionError()])
def test_a_policy_that_fails_once_is_waited_for_and_then_held(error):
    count = [0]

    def infer(signals, applied):
        count[0] += 1
        if count[0] == 5 or count[0] > 9:
            raise error
        return Decision(np.zeros(3), HOME)

    driver = Watched()
    runner = looped(driver, Steady(infer=infer), ticks=30)
    assert count[0] == 11  # two control periods after the last answer, it is asked no more
    assert runner.kernel.fault is Fault.POLICY_STALE


@pytest.mark.parametrize("periods", [1.6, 2.0, 5.0])
def test_the_age_of_a_measurement_is_judged_when_the_command_is_written(periods):
    driver, buffer = Watched(), LogBuffer(TOY, 50)

    def infer(signals, applied):
        driver.time += periods * PERIOD
        return Decision(np.zeros(3), HOME + 0.01)

    runner = looped(driver, Steady(infer=infer), ticks=4, log=buffer)
    rows = buffer.rows()
    assert rows["fault"].tolist() == ["none", "none", *["signals-stale"] * 2]
    assert f"the measurement is {1e3 * periods * PERIOD:.0f} ms old" in runner.kernel.reason
    np.testing.assert_array_equal(rows["command"][2], rows["command"][1])
    found = Log(TOY, TOY.robot, rows, {"safety": json.dumps(dataclasses.asdict(SafetyConfig()))})
    assert replays(found)


def replays(found, kernel=None):
    kernel = kernel or Kernel(TOY.robot, TOY.rate)
    for i, now in enumerate(found.rows["now"]):
        for event in filter(None, str(found.rows["event"][i]).split("+")):
            getattr(kernel, event)()
        reading = Reading(found.signals(i), found.rows["at"][i])
        targets = found.rows["targets"][i] if found.rows["decided"][i] else None
        if np.isnan(found.rows["at"][i]):
            reading = None
        if reading is None and found.rows["read_fault"][i]:
            reading = Missing(Fault(found.rows["read_fault"][i]), "another")
        writes_at, heard_at = (
            None if np.isnan(found.rows[name][i]) else found.rows[name][i]
            for name in ("writes_at", "heard_at")
        )
        command = kernel.tick(now, reading, targets, writes_at, heard_at)
        if not found.rows["written"][i]:
            kernel.hold("not taken", Fault(found.rows["write_fault"][i]))
        assert command is None or np.array_equal(command, found.rows["command"][i])
        assert (kernel.state, kernel.fault) == (found.rows["state"][i], found.rows["fault"][i])
    return True


def driven_in_real_time(infer, seconds=1.0, **cfg):
    """A loop on the real clock with a policy; its log's rows, and the runner."""
    driver, buffer = FakeDriver(TOY.robot, TOY.rate), LogBuffer(TOY, 400)
    patient = {"misses": 100, "stall_periods": 50.0, "signal_periods": 10.0} | cfg
    kernel = Kernel(TOY.robot, TOY.rate, SafetyConfig(**patient))
    runner, end = Runner(Steady(infer=infer), kernel, driver, buffer), time.monotonic() + seconds

    def each(tick):
        if tick.state is State.READY and not buffer.rows()["decided"].any():
            runner.start()
        return time.monotonic() < end

    run(runner, Ticker(TOY.rate), each)
    return buffer.rows(), runner


@pytest.mark.realtime
@pytest.mark.parametrize("seconds", [0.11, 30.0])
def test_a_policy_that_is_slow_or_hangs_is_a_fault_in_two_periods_and_the_loop_goes_on(seconds):
    released = threading.Event()
    asked = []

    def infer(signals, applied):
        asked.append(1)
        if len(asked) > 5:
            released.wait(seconds)
        return Decision(np.zeros(3), HOME)

    try:
        began = time.monotonic()
        rows, runner = driven_in_real_time(infer)
        assert time.monotonic() - began < 5.0, "the end does not wait for it"
    finally:
        released.set()
    active = rows["state"] == State.ACTIVE
    assert rows["fault"][-1] == Fault.POLICY_STALE
    last = int(np.flatnonzero(rows["decided"])[-1])
    held = int(np.flatnonzero(rows["state"] == State.HOLD)[0])
    assert held - last == 2
    assert active[last]
    assert len(rows["now"]) > held + 3, "it goes on"
    assert "policy: no answer in time" in runner.problem or "left alone" in runner.problem


@pytest.mark.realtime
def test_a_network_that_loops_for_ever_is_held_and_ends_with_the_loop():
    network = OnnxNetwork(endless_network(), TOY)
    driver, policy = FakeDriver(TOY.robot, TOY.rate), ContractPolicy(TOY, network)
    patient = SafetyConfig(misses=100, stall_periods=50.0, signal_periods=10.0)
    runner, states = Runner(policy, Kernel(TOY.robot, TOY.rate, patient), driver), []

    def each(tick):
        states.append(tick.state)
        if tick.state is State.READY:
            runner.start()
        return states.count(State.HOLD) < 5 and len(states) < 100

    run(runner, Ticker(TOY.rate), each)
    assert State.HOLD in states
    assert states.count(State.ACTIVE) <= 2
    assert not [each for each in threading.enumerate() if each.name == "policy"]


def endless_network():
    """An ONNX model that loops 2^62 times, for a policy of TOY."""
    onnx = pytest.importorskip("onnx")
    make, kinds = onnx.helper, onnx.TensorProto
    value = make.make_tensor_value_info
    obs = TOY.group_shape("state")
    body = make.make_graph(
        [make.make_node("Identity", ["c"], ["d"]), make.make_node("Add", ["x", "x"], ["y"])],
        "body",
        [
            value("i", kinds.INT64, []),
            value("c", kinds.BOOL, []),
            value("x", kinds.FLOAT, ["n", *obs]),
        ],
        [value("d", kinds.BOOL, []), value("y", kinds.FLOAT, ["n", *obs])],
    )
    graph = make.make_graph(
        [
            make.make_node("Loop", ["count", "go", "observation"], ["end"], body=body),
            make.make_node("Slice", ["end", "zero", "three", "one"], ["action"]),
        ],
        "endless",
        [value("observation", kinds.FLOAT, ["n", *obs])],
        [value("action", kinds.FLOAT, ["n", TOY.action_size])],
        [
            make.make_tensor("count", kinds.INT64, [], [2**62]),
            make.make_tensor("go", kinds.BOOL, [], [True]),
            make.make_tensor("zero", kinds.INT64, [1], [0]),
            make.make_tensor("three", kinds.INT64, [1], [TOY.action_size]),
            make.make_tensor("one", kinds.INT64, [1], [1]),
        ],
    )
    opsets = [make.make_opsetid("", 17)]
    return make.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


@pytest.mark.realtime
def test_a_policy_that_is_late_once_is_waited_for():
    asked = []

    def infer(signals, applied):
        asked.append(1)
        if len(asked) == 5:
            time.sleep(1.2 * PERIOD)
        return Decision(np.zeros(3), HOME)

    rows, _ = driven_in_real_time(infer, policy_periods=5.0)
    missing = np.flatnonzero((rows["state"] == State.ACTIVE) & ~rows["decided"])
    assert len(missing) <= 2
    assert rows["fault"][-1] == Fault.NONE
    assert rows["decided"][-1]


def test_a_local_policy_that_gives_nan_is_a_fault():
    policy = ContractPolicy(TOY, lambda obs: np.full((1, 3), np.nan, np.float32))
    assert looped(Watched(), policy, ticks=10).kernel.fault is Fault.POLICY_BAD


def test_operators_who_lean_on_a_key_are_logged_once():
    buffer, driver = LogBuffer(TOY, 10), Watched()
    runner = made_ready(Runner(Steady(), Kernel(TOY.robot, TOY.rate), driver, buffer))
    runner.start()
    for _ in range(50):
        runner.hold()
    runner.resume()
    for _ in range(50):
        runner.hold()
    driver.sleep(PERIOD)
    runner.step(driver.time)
    assert buffer.rows()["event"].tolist() == ["", "", "start+hold+resume+hold"]


# ---------------------------------------------------------------- a computer that is too slow for a simulated robot


def patient(clock):
    """A patient clock over a test's, and the ticker on it, 20 Hz."""
    patient = PatientClock(0.05, clock, clock.sleep)
    return patient, Ticker(20, patient, patient.sleep)


def test_a_patient_clock_is_the_monotonic_one_on_a_computer_that_keeps_up():
    clock = Clock()
    slow, ticker = patient(clock)
    ticker.wait()
    for _ in range(100):
        clock.now += 0.02
        assert slow() == pytest.approx(clock.now)
        ticker.wait()
    assert slow() == pytest.approx(clock.now) == pytest.approx(55.0)
    assert (slow.lost, ticker.overruns, slow.shortfall()) == (0.0, 0, "")


def test_time_of_a_simulated_robot_stands_still_while_the_computer_is_late():
    clock = Clock()
    slow, ticker = patient(clock)
    before = ticker.wait()
    for _ in range(40):
        clock.now += 0.2  # four periods
        assert before < slow() < before + 0.05
        now = ticker.wait()
        assert now - before == pytest.approx(0.05)
        before = now
    assert ticker.overruns == 0
    assert slow.lost == pytest.approx(40 * 0.15)
    assert "simulated time ran at 25% of real time, 6.0 s were lost in 8.0 s" in slow.shortfall()
    assert slow.shortfall().startswith("this computer was too slow")


def test_a_patient_clock_goes_on_while_something_hangs():
    clock = Clock()
    slow, ticker = patient(clock)
    before = ticker.wait()
    assert slow.until(before + 0.05) == pytest.approx(HANGS_S, abs=0.1)
    clock.now += slow.until(before + 0.05)
    assert slow() == pytest.approx(before + 0.05)
    clock.now += 1.0
    assert slow() == pytest.approx(before + 1.05)
    assert ticker.wait() - before == pytest.approx(1.05)
    assert ticker.overruns > 10


def test_sleeps_that_are_a_little_late_lose_no_time():
    clock = Clock()
    late = PatientClock(0.05, clock, lambda seconds: clock.sleep(seconds + 0.002))
    ticker = Ticker(20, late, late.sleep)
    for _ in range(100):
        ticker.wait()
        assert late() == pytest.approx(clock.now)
    assert late.lost == 0.0


# ------------------------------------------------------------ damped, heard, alone

LIMP = dataclasses.replace(TOY, robot=dataclasses.replace(ROBOT, damps=FAULTS))
"""The robot of four joints, damped on every fault."""


class LimpPolicy(Steady):
    contract = LIMP


class Limp(Watched):
    """A fake robot that can be damped; `damped` counts how often it was."""

    damped = 0

    def damp(self):
        self.damped += 1
        return self._do("damp", super().damp)


def limp_looped(driver, ticks=10, each=None, log=None):
    """A loop of a robot that is damped, started when it is ready; the runner, not yet closed."""
    runner = Runner(LimpPolicy(), Kernel(LIMP.robot, LIMP.rate), driver, log)
    for _ in range(ticks):
        driver.sleep(PERIOD)
        tick = runner.step(driver.time)
        if tick.state is State.READY:
            runner.start()
        if each:
            each(runner)
    return runner


def test_a_robot_that_is_damped_is_damped_in_each_period_and_at_the_end():
    driver, buffer = Limp("nan", at=5), LogBuffer(LIMP, 50)
    runner = limp_looped(driver, ticks=10, log=buffer)
    assert runner.kernel.state is State.DAMP
    assert driver.calls[-10:] == ["read", "damp"] * 5
    runner.close()
    assert driver.calls[-2:] == ["damp", "stop"]
    assert "write" not in driver.calls[-12:]
    rows = buffer.rows()
    assert rows["state"][-5:].tolist() == ["damp"] * 5
    assert np.isnan(rows["command"][-5:]).all()
    facts = {"safety": json.dumps(dataclasses.asdict(SafetyConfig()))}
    found = Log(LIMP, LIMP.robot, rows, facts)
    kernel = Kernel(LIMP.robot, LIMP.rate)
    assert replays(found, kernel)


def test_a_command_that_is_not_taken_damps_in_the_same_period():
    driver = Limp("write", at=5)
    limp_looped(driver, ticks=6)
    assert driver.calls[-3:] == ["read", "write", "damp"]


def test_a_damping_that_fails_is_said_and_tried_again():
    driver = Limp("nan", at=5)
    driver.broken["damp"] = throws(DriverError("no answer"))
    runner = limp_looped(driver, ticks=8)
    assert runner.problem == "damp: no answer"
    assert driver.damped == 3
    runner.close()
    assert runner.refused == "damp: no answer"
    assert driver.calls.count("stop") == 1


def test_another_writer_is_a_fault_of_its_own():
    for verb in ("read", "write"):
        driver = Watched()
        count = [0]

        def other(*_, verb=verb, driver=driver, count=count):
            count[0] += 1
            if count[0] > 4:
                raise OtherWriterError("motor 3 has a goal that is not ours")
            return getattr(super(Watched, driver), verb)(*_)

        driver.broken[verb] = other
        buffer = LogBuffer(TOY, 50)
        runner = looped(driver, ticks=20, log=buffer)
        assert runner.kernel.fault is Fault.WRITER
        assert runner.kernel.reason == f"{verb}: motor 3 has a goal that is not ours"
        rows = buffer.rows()
        assert rows["fault"].tolist().index("writer") <= count[0]
        assert replays(Log(TOY, TOY.robot, rows, {}))


WALK = dataclasses.replace(
    TOY,
    inputs=(Input("velocity", 1, "m/s"),),
    observe_terms=(*TOY.observe_terms, Observe("velocity")),
)


def test_a_policy_acts_on_what_the_operator_says_only_while_he_is_heard():
    driver, buffer, given = Watched(), LogBuffer(WALK, 200), []
    policy = Steady()
    policy.contract = WALK
    policy.infer = lambda signals, inputs, applied, ids=None: (  # type: ignore[method-assign]
        given.append(dict(inputs)),
        Decision(np.zeros((1, 3)), HOME[None]),
    )[1]
    runner = Runner(policy, Kernel(WALK.robot, WALK.rate), driver, buffer)
    made_ready(runner).start()
    held_after = None
    for i in range(60):
        driver.sleep(PERIOD)
        if i < 20:
            runner.hear(driver.time, velocity=[0.1 * i])
        tick = runner.step(driver.time)
        if tick.state is State.HOLD and held_after is None:
            held_after = driver.time - runner.heard_at
    assert given[5]["velocity"] == [[0.5]]
    assert runner.kernel.fault is Fault.INPUT_STALE
    assert 0.5 < held_after <= 0.5 + 2 * PERIOD
    assert replays(Log(WALK, WALK.robot, buffer.rows(), {}))
