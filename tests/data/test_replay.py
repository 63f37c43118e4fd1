"""Replay: the same physics again, what is refused, and commands served to a robot."""

import ctypes.util
import json
import threading
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from deftly.commands.record import main as record_main
from deftly.commands.replay import main as replay_main
from deftly.contract import JOINT_POS, ContractError
from deftly.control import log
from deftly.data import replay
from deftly.data.replay import Frames
from deftly.errors import DeftlyError
from deftly.policy.protocol import OneRobot
from deftly.serving.client import Client
from deftly.serving.server import Server
from deftly.twin.loop import run_episode

needs_gl = pytest.mark.skipif(
    not any(ctypes.util.find_library(name) for name in ("EGL", "OSMesa")),
    reason="no GL library is installed",
)


@pytest.fixture(scope="module")
def recording(exported, tmp_path_factory):
    path = tmp_path_factory.mktemp("log") / "two.npz"
    words = ["--episodes", "2", "--noise", "--latency-ms", "30", "--out", str(path)]
    assert record_main([exported.task, "--bundle", str(exported.bundle), *words]) == 0
    return path


def change(path, into, contract=None, **facts):
    """The recording with other facts, or another contract; a fact that is None is left out."""
    found = log.read(path)
    kept = {k: v for k, v in {**found.facts, **facts}.items() if v is not None}
    log.write(into, contract or found.contract, found.rows, kept)
    return into


@pytest.mark.parametrize("episode", [0, 1])
def test_an_episode_repeats_itself(exported, recording, episode):
    found = log.read(recording)
    frames = Frames(found, episode)
    robot, safety = replay.open_robot(recording, found, exported.task)
    state = found.facts["state0"][episode]
    result = run_episode(robot, frames, safety, episode, limit=len(frames), state=state)
    error = replay.errors(frames, result)["replay"]
    assert len(error) == len(frames.positions) == len(frames) + frames.first
    assert np.abs(error).max() < 1e-9
    assert result.success == bool(found.facts["success"][episode])


def test_a_kernel_that_limits_accelerations_is_given_what_the_policy_wanted(tmp_path, capsys):
    """Each command would be a goal to come to rest at, and the robot would lag behind."""
    file = str(tmp_path / "pick.npz")
    assert record_main(["panda-pick-place", "--policy", "shipped", "--out", file]) == 0
    assert replay_main([file]) == 0
    assert "recorded: success; replayed: success" in capsys.readouterr().out


def test_the_replay_starts_from_the_recorded_state(exported, recording):
    found = log.read(recording)
    frames = Frames(found, 0)
    robot, safety = replay.open_robot(recording, found, exported.task)
    result = run_episode(
        robot, frames, safety, 0, limit=len(frames), state=found.facts["state0"][1]
    )
    assert np.abs(replay.errors(frames, result)["replay"]).max() > 1e-3


def test_errors_are_those_of_the_definition(recording):
    found = log.read(recording)
    frames, rows = (
        Frames(found, 0),
        {k: v[found.rows["episode"] == 0] for k, v in found.rows.items()},
    )
    result = type(
        "EpisodeResult", (), {"rows": {f"signal/{JOINT_POS}": rows[f"signal/{JOINT_POS}"] + 0.5}}
    )
    measured = replay.errors(frames, result)
    np.testing.assert_allclose(measured["replay"], 0.5)
    np.testing.assert_allclose(
        measured["tracking"][3], rows[f"signal/{JOINT_POS}"][4] - rows["command"][3]
    )
    line = replay.text(found.contract, measured)[1]
    assert line.split() == ["x", *line.split()[1:3], "0.5", "0.5", "m"]


@needs_gl
def test_the_command_prints_plots_and_films(exported, recording, tmp_path, capsys):
    png, video = tmp_path / "a.png", tmp_path / "a.mp4"
    words = [str(recording), "--task", exported.task, "--png", str(png), "--video", str(video)]
    assert replay_main(words) == 0
    assert "tracking rms" in capsys.readouterr().out
    assert png.read_bytes()[:4] == b"\x89PNG"
    assert video.stat().st_size > 1000


def test_a_success_that_is_not_repeated_is_an_exit_status(exported, recording, tmp_path):
    path = change(recording, tmp_path / "a.npz", success=np.array([True, True]))
    expected = 0 if log.read(recording).facts["success"][0] else 1
    assert replay_main([str(path), "--task", exported.task]) == expected


def test_what_is_not_its_own_is_refused_by_name(exported, recording, tmp_path):
    def refused(message, *words, **changes):
        path = change(recording, tmp_path / "a.npz", **changes)
        with pytest.raises(DeftlyError, match=message) as found:
            replay_main([str(path), *words])
        assert "\n" not in str(found.value)

    own = ("--task", exported.task)
    found = log.read(recording)
    refused("made for the task 'rail', not for jaka-pick-cube", "--task", "jaka-pick-cube")
    refused("none of Deftly's: give the file")
    refused("none of Deftly's: give the file", task=str(tmp_path / "evil.py"))
    refused("has no 'state0'", *own, state0=None)
    refused("not 7", *own, "--episode", "7")
    refused("no longer has", *own, safety=json.dumps({"speed": 1.0, "fast": True}))
    refused("no longer has", *own, settings=json.dumps({"task": {"colour": "red"}, "sim": {}}))
    state0, success = found.facts["state0"], found.facts["success"]
    for bad in (
        state0[0],
        state0[:1],
        np.full_like(state0, np.nan),
        np.full_like(state0, 1e300),
        state0.astype(int),
        state0.astype(str),
    ):
        refused("'state0' must be", *own, state0=bad)
    for bad in (success[:1], success[0], success.astype(float)):
        refused("'success' must be", *own, success=bad)
    refused("has no 'success'", *own, success=None)
    for bad in (-1.0, np.nan, np.inf, "30", np.array([30.0, 30.0])):
        refused("'latency_ms' must be", *own, latency_ms=bad)
    for bad in ("False", 1, np.array([True]), None):
        refused("'noise' must be a truth value", *own, noise=bad)
    for bad in ("7", 1.0, -1, None):
        refused("seed", *own, seed=bad)
    refused("--loop is for a robot: give --serve", "--loop")
    refused("--keys is for a robot: give --serve", "--keys", "robot")
    refused("this scene's are", *own, state0=found.facts["state0"][:, :-1])
    path = change(recording, tmp_path / "a.npz", contract=replace(found.contract, rate=21.0))
    with pytest.raises(ContractError, match=r"another contract: rate is 21\.0"):
        replay_main([str(path), *own])
    with pytest.raises(DeftlyError, match="needs a recording"):
        replay_main([])
    with pytest.raises(DeftlyError, match=r"as a log of .*no such file"):
        replay_main([str(tmp_path / "none.npz")])


@pytest.mark.parametrize("value", [1e30, 1e300, -1e9])
@pytest.mark.parametrize("column", ["targets", "command"])
def test_targets_beyond_the_limits_are_served_to_nobody(recording, tmp_path, column, value):
    """A command is given where there are no targets, and the last one is held."""
    found = log.read(recording)
    joint = found.contract.joint_names[0]
    mine = np.flatnonzero(found.rows["episode"] == 1)
    for place in (4, -1):
        rows = {name: array.copy() for name, array in found.rows.items()}
        rows["targets"][mine[4]] = np.nan
        rows[column][mine[place], 0] = value
        log.write(tmp_path / "a.npz", found.contract, rows, found.facts)
        tick = place % len(mine)
        with pytest.raises(DeftlyError, match=rf"tick {tick} of episode 1 .*: {joint} would be"):
            replay_main([str(tmp_path / "a.npz"), "--episode", "1", "--serve", "tcp://127.0.0.1:*"])
        Frames(log.read(tmp_path / "a.npz"), 0)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
@pytest.mark.parametrize("column", [f"signal/{JOINT_POS}", "command"])
def test_ticks_without_a_number_are_replayed_by_no_simulation(
    exported, recording, tmp_path, column, value
):
    whole = log.read(recording)
    rows = {name: array.copy() for name, array in whole.rows.items()}
    rows[column][0, 0] = value
    log.write(tmp_path / "a.npz", whole.contract, rows, whole.facts)
    name = "command" if column == "command" else "position"
    found = f"has no {name} of .* 'deftly run' begins before .* serve it with --serve"
    if not np.isnan(value):
        found = f"has the {name} .* of .*: it is damaged"
    with pytest.raises(DeftlyError, match=f"^tick 0 of the recording's episode {found}"):
        replay_main([str(tmp_path / "a.npz"), "--task", exported.task])


@contextmanager
def serving(frames):
    server = Server(frames, "tcp://127.0.0.1:*")
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield server.endpoint
    finally:
        server.stop()
        thread.join()


@pytest.mark.parametrize("loop", [False, True])
def test_served_targets_come_in_order_to_each_robot_and_then_the_last_command(recording, loop):
    found = log.read(recording)
    frames = Frames(found, 1, loop)
    count, signals = len(frames), found.signals(0)
    with serving(frames) as endpoint:
        robots = [OneRobot(Client(endpoint, found.contract, timeout=5.0)) for _ in range(2)]
        for robot in robots:
            robot.reset()
        taken = [[robot.infer(signals).targets for robot in robots] for _ in range(count + 3)]
        robots[0].reset()
        again = robots[0].infer(signals).targets
        for robot in robots:
            robot.close()
    mine = found.rows["episode"] == 1
    wanted = found.rows["targets"][mine][frames.first :].astype(np.float32)
    held = frames.commands[-1].astype(np.float32)
    for i, targets in enumerate(taken):
        expected = wanted[i % count] if loop or i < count else held
        for target in targets:
            np.testing.assert_array_equal(target, expected)
    np.testing.assert_array_equal(again, wanted[0])
