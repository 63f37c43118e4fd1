"""The simulated robot against the environment of training, and the chain of policy, kernel and robot in it."""

import hashlib
import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from deftly.commands.sim2sim import main as sim2sim_main
from deftly.config import EnvConfig, SimConfig
from deftly.contract import JOINT_POS, ContractError
from deftly.control.drivers import DriverError
from deftly.control.safety import SafetyConfig
from deftly.env import Env
from deftly.errors import DeftlyError
from deftly.evaluate.source import PolicySource
from deftly.policy.protocol import ContractPolicy
from deftly.sim.sensors import Noise
from deftly.stats import proportion
from deftly.tasks import load
from deftly.twin import sim2sim
from deftly.twin.loop import run_episode
from deftly.twin.robot import Sensor, SimRobot
from deftly.twin.sim2sim import agreement, violation

TASK = "jaka-pick-cube"


def make_task(name=TASK, **cfg):
    cls = load(name)
    return cls(cls.Config(**cfg))


@pytest.fixture
def block(slider):
    """Makes robots of the toy task."""
    return lambda noise=None, latency_ms=0.0, seed=0, **cfg: SimRobot(
        slider(1, **cfg, **({"noise": noise} if noise else {})).task,
        None,
        seed,
        noise is not None,
        latency_ms,
    )


def homing(contract):
    """Drives the toy task to success; its observation begins with two steps of joint positions."""
    return ContractPolicy(contract, lambda obs: np.clip(-5 * obs[:, 2:4], -1, 1).astype(np.float32))


# ----------------------------------------------------------------------- the robot


@pytest.mark.parametrize("preset", ["fast", "default"])
def test_it_moves_as_the_environment_does(preset):
    quiet = EnvConfig(num_envs=1, randomize=False, noise=False, pushes=False)
    env = Env(make_task(), quiet, SimConfig(preset, 1), seed=3, purpose="evaluate")
    robot, generator = (
        SimRobot(make_task(), SimConfig(preset=preset)),
        torch.Generator().manual_seed(0),
    )
    env.auto_reset = False
    robot.reset(0, env.sim.state_of(0))
    for _ in range(60):
        env.step(2 * torch.rand(1, 4, generator=generator) - 1)  # it also knocks the cube about
        robot.write(env.state.command[0].double().numpy())
        robot.advance()
        np.testing.assert_allclose(
            robot.data.qpos, env.sim.bind("qpos")[0].numpy(), rtol=0, atol=1e-9
        )
        np.testing.assert_allclose(
            robot.data.sensordata, env.sim.bind("sensordata")[0].numpy(), rtol=0, atol=1e-9
        )
        assert robot.success == bool(env.task.success(env.state))
    own, theirs = robot.metrics, env.task.metrics(env.state)
    assert {k: v for k, v in own.items() if v == v} == {
        k: float(v) for k, v in theirs.items() if v == v
    }


def test_an_episode_is_the_same_whatever_came_before(block):
    noise = Noise(gaussian=0.01, bias=0.1)
    first, other = block(noise), block(noise)
    for episode in (5, 2, 3):
        other.reset(episode)
        other.read()
        other.advance()
    readings = []
    for robot in (first, other):
        robot.reset(3)
        readings.append(
            [robot.read().signals[JOINT_POS], robot.advance(), robot.read().signals[JOINT_POS]]
        )
    np.testing.assert_array_equal(*[np.stack([r[0], r[2]]) for r in readings])
    first.reset(4)
    assert not np.array_equal(first.read().signals[JOINT_POS], readings[0][0])
    seeded = block(noise, seed=1)
    seeded.reset(3)
    assert not np.array_equal(seeded.read().signals[JOINT_POS], readings[0][0])


@pytest.mark.parametrize("latency_ms", [0.0, 6.0, 20.0, 50.0, 120.0])
def test_latency_is_what_passes_before_the_servos_know(block, latency_ms):
    robot = block(latency_ms=latency_ms)
    before = robot.data.ctrl[0].copy()
    robot.write(np.array([0.9, 0.0]))
    substeps = 0
    while robot.data.ctrl[0] == before:
        robot.step(1)
        substeps += 1
    timestep = robot.model.opt.timestep
    assert (substeps - 1) * timestep == pytest.approx(
        np.ceil(1e-3 * latency_ms / timestep - 1e-9) * timestep
    )


def test_commands_on_their_way_keep_their_order_and_are_gone_with_the_episode(block):
    robot = block(latency_ms=100.0)
    for target in (0.1, 0.2, 0.3):
        robot.write(np.array([target, 0.0]))
        robot.advance()
    robot.advance()
    assert robot.data.ctrl[0] == 0.2
    robot.reset(0)
    rest = robot.data.ctrl.copy()
    for _ in range(4):
        robot.advance()
    np.testing.assert_array_equal(robot.data.ctrl, rest)


def test_asking_twice_at_one_time_gives_one_reading(block):
    robot = block(Noise(gaussian=0.1))
    assert robot.read() is robot.read()
    first = robot.read()
    robot.advance()
    assert robot.read() is not first


def test_noise_is_what_the_task_says():
    def draws(noise, count=20_000):
        sensor = Sensor(noise, 1, np.random.default_rng(0))
        return np.array([sensor.read(np.array([float(i)]))[0] - i for i in range(count)])

    white = draws(Noise(gaussian=0.5))
    assert white.mean() == pytest.approx(0.0, abs=0.02)
    assert white.std() == pytest.approx(0.5, rel=0.02)
    flat = draws(Noise(uniform=0.3))
    assert np.abs(flat).max() <= 0.3
    assert flat.std() == pytest.approx(0.3 / 3**0.5, rel=0.02)
    biases = [
        Sensor(Noise(bias=0.2), 1, np.random.default_rng(i)).read(np.zeros(1))[0]
        for i in range(2000)
    ]
    assert np.abs(biases).max() <= 0.2
    assert np.std(biases) == pytest.approx(0.2 / 3**0.5, rel=0.05)
    constant = draws(Noise(bias=0.2), 100)
    assert np.ptp(constant) == pytest.approx(0.0, abs=1e-12)
    assert {lag(seed) for seed in range(300)} == {0, 1, 2, 3}
    sensor = Sensor(Noise(dropout=0.25), 1, np.random.default_rng(0))
    values = np.array([sensor.read(np.array([float(i)]))[0] for i in range(8000)])
    assert np.mean(np.diff(values) == 0) == pytest.approx(0.25, abs=0.02)


def lag(seed):
    sensor = Sensor(Noise(delay=3), 1, np.random.default_rng(seed))
    lags = [int(i - sensor.read(np.array([float(i)]))[0]) for i in range(10)]
    assert lags == [min(i, lags[-1]) for i in range(10)]
    return lags[-1]


def test_what_does_not_fit_is_refused(block):
    with pytest.raises(DriverError, match="2 joints"):
        block().write(np.zeros(3))
    with pytest.raises(DeftlyError, match="this scene's are"):
        block().reset(0, np.zeros(3))
    with pytest.raises(DeftlyError, match="0 or more"):
        block(latency_ms=-1.0)


# ----------------------------------------------------------------------- the chain


def test_an_episode_through_the_kernel_succeeds(block):
    robot = block(episode_steps=100)
    result = run_episode(robot, homing(robot.contract), SafetyConfig(), 0)
    assert (result.end, result.success, result.reason) == ("success", True, "")
    rows = result.rows
    assert rows["state"].tolist() == ["ready"] + ["active"] * result.steps
    assert rows["event"][1] == "start"
    assert rows["decided"].sum() == result.steps
    np.testing.assert_allclose(np.diff(rows["now"]), 0.05)
    np.testing.assert_array_equal(
        rows["command"][0], rows[f"signal/{JOINT_POS}"][0]
    )  # it stood still before
    np.testing.assert_allclose(*rows[f"signal/{JOINT_POS}"][:2], atol=1e-6)
    assert violation(robot.contract, rows) == 0.0


def test_the_clock_starts_with_the_policy_and_ends_the_episode(block):
    robot = block(episode_steps=7, goal=0.0)
    idle = ContractPolicy(robot.contract, lambda obs: np.zeros((1, 2), np.float32))
    result = run_episode(robot, idle, SafetyConfig(), 0)
    assert (result.end, result.steps, result.success) == ("time_out", 7, False)
    slow = run_episode(robot, idle, SafetyConfig(approach_s=1.0), 0)
    assert slow.steps == 7
    assert len(slow.rows["now"]) > 1 + 20 + 7


def test_a_fault_is_a_failed_episode_with_its_reason(block):
    robot = block()
    result = run_episode(robot, homing(robot.contract), SafetyConfig(start_envelope=1e-3), 0)
    assert (result.end, result.success, result.steps) == ("fault/envelope", False, 0)
    assert "stands at" in result.reason
    broken = ContractPolicy(robot.contract, lambda obs: np.full((1, 2), np.nan, np.float32))
    result = run_episode(robot, broken, SafetyConfig(), 0)
    assert result.end == "fault/policy-bad"


def test_an_episode_without_a_step_has_the_tasks_metrics():
    robot = SimRobot(make_task())
    broken = ContractPolicy(
        robot.contract, lambda obs: np.full((1, robot.contract.action_size), np.nan, np.float32)
    )
    result = run_episode(robot, broken, SafetyConfig(), 0)
    assert (result.end, result.steps) == ("fault/policy-bad", 0)
    assert result.metrics["slips"] == 0


@pytest.mark.parametrize("value", [np.nan, 1e12])
def test_physics_that_breaks_is_a_failed_episode(block, value):
    robot = block(episode_steps=50)

    def spoil():
        if robot.steps == 4:
            robot.data.qvel[0] = value

    result = run_episode(robot, homing(robot.contract), SafetyConfig(), 0, each=spoil)
    assert (result.end, result.success) == ("failed/physics", False)
    assert run_episode(robot, homing(robot.contract), SafetyConfig(), 0).end != "failed/physics"


def test_a_limited_step_keeps_coupled_joints_coupled():
    robot = SimRobot(make_task())
    full = ContractPolicy(robot.contract, lambda obs: np.array([[1, -1, -1, -1]], np.float32))
    rows = run_episode(robot, full, SafetyConfig(), 0, limit=12).rows["command"]
    assert np.ptp(rows[:, 1]) > 0.1
    np.testing.assert_allclose(rows[:, 3], np.pi / 2 - rows[:, 1] - rows[:, 2], atol=1e-5)


def test_violations_are_found(block):
    contract = block().contract
    now, command = 0.05 * np.arange(3), np.zeros((3, 2))
    assert violation(contract, {"now": now, "command": command}) == 0.0
    beyond, fast = command.copy(), command.copy()
    beyond[1:, 0], fast[1, 0] = 1.02, 0.2  # limits 1 m and 2 m/s
    fast[2, 0] = 0.4
    assert violation(contract, {"now": now * 100, "command": beyond}) == pytest.approx(0.02)
    assert violation(contract, {"now": now, "command": fast}) == pytest.approx(2.0)


def measured(count, total):
    return {"success": success(count, total), "episodes": total}


def success(count, total):
    return proportion(np.arange(total) < count)


@pytest.mark.parametrize(
    ("ours", "theirs", "agrees", "how"),
    [
        ((50, 50), (500, 500), True, "the rate lies within its interval"),
        ((49, 50), (500, 500), True, "the intervals overlap, and p = 0.091"),  # 50 / 550
        (
            (48, 50),
            (500, 500),
            False,
            "outside its interval, and p = 0.0081",
        ),  # (50 * 49) / (550 * 549)
        ((30, 50), (500, 500), False, "outside its interval, and p = "),
        ((50, 50), (90, 100), False, "outside its interval, and p = 0.031"),
    ],
)
def test_agreement_with_eval(ours, theirs, agrees, how):
    found = agreement(success(*ours), ours[1], measured(*theirs))
    assert found["agrees"] is agrees
    assert how in found["how"]
    assert found["within_interval"] is ("within" in how)
    assert agreement(success(*ours), ours[1], None) is None


# -------------------------------------------------------------------- the command


def test_the_shipped_policy_passes(tmp_path, capsys):
    words = [
        TASK,
        "--checkpoint",
        "shipped",
        "--episodes",
        "20",
        "--gate",
        "success>=0.95",
        "faults<=0",
        "agrees>=1",
    ]
    assert sim2sim_main([*words, "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "largest violation of a limit 0\n" in out
    assert ": agrees, " in out
    report = json.loads((tmp_path / "sim2sim.json").read_text())
    assert report["schema"] == "deftly.eval/2"
    assert report["success"]["rate"] >= 0.95
    assert report["twin"]["violation"] == 0.0
    assert report["metrics"]["clipped"]["mean"] > 0


def test_a_failed_gate_is_an_exit_status(exported, tmp_path, capsys):
    words = ["--bundle", str(exported.bundle), "--episodes", "2"]
    assert sim2sim_main([exported.task, *words, "--gate", "steps>1000"]) == 1
    assert "FAILED" in capsys.readouterr().out


@pytest.fixture
def no_episodes(monkeypatch):
    """Whoever runs an episode has looked too late."""
    monkeypatch.setattr(sim2sim, "run_episode", lambda *_, **__: pytest.fail("an episode was run"))


def test_gates_and_out_are_looked_at_before_the_episodes(exported, no_episodes, tmp_path):
    words = [exported.task, "--bundle", str(exported.bundle)]
    with pytest.raises(DeftlyError, match="unknown metric 'sucess'"):
        sim2sim_main([*words, "--gate", "sucess>=0"])
    (tmp_path / "file").touch()
    with pytest.raises(DeftlyError, match="that is a file: name another folder"):
        sim2sim_main([*words, "--out", str(tmp_path / "file")])


def test_every_metric_that_a_report_has_may_be_named(exported, tmp_path, capsys):
    robot = SimRobot(make_task(exported.task))
    robot.reset(0)
    robot.advance()
    names = [*sim2sim.MEASURED, "success", "seconds", "broken_physics", "clipped", *robot.metrics]
    gates = [f"{name}>=0" for name in names]
    sim2sim_main(
        [exported.task, "--bundle", str(exported.bundle), "--episodes", "1", "--gate", *gates]
    )
    assert capsys.readouterr().out.count("\ngate ") == len(gates)


def test_the_report_is_that_of_an_evaluation(exported, tmp_path, capsys):
    """One schema: its page, its episodes as CSV, and a comparison with the report of `deftly eval`."""
    words = [exported.task, "--policy", str(exported.bundle), "--episodes", "2"]
    before = str(exported.bundle / "eval.json")
    assert sim2sim_main([*words, "--out", str(tmp_path / "a/b"), "--compare", before]) == 0
    out = capsys.readouterr().out
    assert "warning: world differs, env before and twin now" in out
    result = json.loads((tmp_path / "a/b/sim2sim.json").read_text())
    measured = json.loads((exported.bundle / "eval.json").read_text())
    assert set(measured) - set(result) == set()
    assert set(result) - set(measured) == {"twin"}
    assert (tmp_path / "a/b/episodes.csv").read_text().count("\n") == 3
    page = (tmp_path / "a/b/report.html").read_text()
    assert "Control loop and safety kernel" in page
    assert "largest violation of a limit" in page
    assert sim2sim_main([*words, "--compare", str(tmp_path / "a/b")]) == 0
    assert "world differs" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r.clear(),
        lambda r: r.pop("episodes"),
        lambda r: r.update(episodes=0),
        lambda r: r.update(episodes=10**12),
        lambda r: r.update(success=5),
        lambda r: r["success"].update(wilson95=[0.5]),
        lambda r: r["success"].update(rate="high"),
        lambda r: r["success"].update(rate=float("nan")),
        lambda r: r["success"].update(count=9999),
    ],
)
def test_a_bundles_report_is_read_before_the_episodes(exported, no_episodes, tmp_path, change):
    folder = shutil.copytree(exported.bundle, tmp_path / "b")
    measured = json.loads((folder / "eval.json").read_text())
    change(measured)
    data = json.dumps(measured).encode()
    (folder / "eval.json").write_bytes(data)
    manifest = json.loads((folder / "checksums.json").read_text())
    manifest["files"]["eval.json"] = hashlib.sha256(data).hexdigest()
    (folder / "checksums.json").write_text(json.dumps(manifest))
    with pytest.raises(
        DeftlyError,
        match=r"is no report of an evaluation|it holds NaN, which is no number",
    ):
        sim2sim_main([exported.task, "--bundle", str(folder)])


def test_over_the_socket_as_in_process(exported, tmp_path):
    from deftly.policy import bundle
    from deftly.serving.server import Server

    found = bundle.load(exported.bundle)
    server = Server(ContractPolicy(found.contract, found.network), "tcp://127.0.0.1:*")
    thread = threading.Thread(target=server.run)
    thread.start()
    reports = []
    try:
        for more in ([], ["--server-endpoint", server.endpoint]):
            words = [exported.task, "--bundle", str(exported.bundle), "--episodes", "3", "--noise"]
            sim2sim_main([*words, *more, "--out", str(tmp_path)])
            reports.append(json.loads((tmp_path / "sim2sim.json").read_text()))
    finally:
        server.stop()
        thread.join()
    local, remote = reports
    assert (remote["policy"]["kind"], remote["policy"]["label"]) == ("endpoint", server.endpoint)
    assert (local["twin"]["ends"], local["success"]) == (remote["twin"]["ends"], remote["success"])
    for name in ("steps", "clipped"):
        assert local["metrics"][name] == remote["metrics"][name]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "needs a task"),
        (["--server-endpoint", "tcp://127.0.0.1:1"], "names its robot, not the task"),
        ([TASK, "--bundle", "/nowhere"], "/nowhere"),
        ([TASK, "--episodes", "0"], "1 or more"),
        ([TASK, "--latency-ms=-1"], "0 or more"),
        ([TASK, "--gate", "success"], "cannot read the gate"),
        ([TASK, "--checkpoint", "shipped", "--bundle", "x"], "both name the policy"),
        ([TASK, "--checkpoint", "shipped", "--video", "nowhere/x.mp4"], "no folder"),
        ([TASK, "--checkpoint", "shipped", "--task.speed", "0.5"], "another contract: act_terms"),
    ],
)
def test_what_cannot_be_done_is_one_line(words, message):
    with pytest.raises(DeftlyError, match=message) as found:
        sim2sim_main(words)
    assert "\n" not in str(found.value)


def test_another_tasks_bundle_is_refused_and_a_bundle_runs_no_code(exported):
    with pytest.raises(DeftlyError, match="is a policy of rail, not of jaka-pick-cube"):
        sim2sim_main([TASK, "--bundle", str(exported.bundle)])
    with pytest.raises(DeftlyError, match="'rail', none of Deftly's: give the file"):
        sim2sim_main(["--bundle", str(exported.bundle)])


def test_a_policy_of_another_contract_is_refused(block):
    robot = block()
    other = replace(robot.contract, rate=99.0)
    found = SimpleNamespace(contract=other, task="slider", path=Path("x"))
    source = PolicySource("checkpoint", "checkpoint x", found)
    with pytest.raises(ContractError, match="checkpoint x was made under another contract: rate"):
        source.open(robot.contract)
