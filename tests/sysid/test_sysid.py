"""System identification: known servos are found again, what a log does not tell is said, and bad logs are refused."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from deftly import tasks
from deftly.commands.sysid import main as sysid_main
from deftly.errors import DeftlyError
from deftly.files import WriteError
from deftly.robots import actuators, leap_hand
from deftly.sysid import excite, fit, logs, model, report
from deftly_bench import sysid as trials

SETTINGS = fit.FitSettings(generations=4, population=96, polish=6, timesteps=(0.0025, 0.002, 0.001))
TASK = trials.TASK


@pytest.fixture(scope="module")
def contract():
    cls = tasks.load(TASK)
    return cls(cls.Config()).contract()


@pytest.fixture(scope="module")
def log_file(tmp_path_factory):
    return tmp_path_factory.mktemp("sysid") / "log.npz"


@pytest.fixture(scope="module")
def case(log_file):
    return trials.simulated_log(log_file, seed=1, seconds=14.0, timestep=0.001)


@pytest.fixture(scope="module")
def fitted(case):
    robot, joints, log, *_ = case
    return fit.fit(robot, joints, log, SETTINGS)


@pytest.fixture(scope="module")
def plain(case, contract):
    """The log as hardware gives it: arrays in the order of the motors."""
    log = case[2]
    return {
        "hand_cmd": contract.robot.to_motors(log.cmd),
        "hand_state": contract.robot.to_motors(log.state),
        "time": log.time,
    }


def save(path: Path, arrays: dict) -> Path:
    np.savez(path, **arrays)
    return path


def test_it_finds_known_servos_again_from_a_noisy_log(case, fitted):
    estimates = fitted.parameters()
    # the scale of all forces takes a longer log, but for the joint that carries most
    for joint, true in case[3].items():
        found = {name: estimate.value for name, estimate in estimates[joint].items()}
        assert found["kp"] / found["kd"] == pytest.approx(true["kp"] / true["kd"], rel=0.05)
        assert found["frictionloss"] / found["kp"] == pytest.approx(
            true["frictionloss"] / true["kp"], rel=0.15
        )
    assert estimates["if_mcp"]["kp"].value == pytest.approx(case[3]["if_mcp"]["kp"], rel=0.05)
    assert abs(fitted.delay().value - case[4]) < 0.001
    assert (fitted.held_out["fitted"] < 0.0025).all()
    assert (fitted.held_out["fitted"] < fitted.held_out["nominal"] / 5).all()


def test_what_a_log_does_not_tell_keeps_a_wide_interval(fitted):
    damping = [estimates["damping"] for estimates in fitted.parameters().values()]
    kp = fitted.parameters()["if_mcp"]["kp"]
    assert all((d.high - d.low) / d.value > (kp.high - kp.low) / kp.value for d in damping)
    loose = dataclasses.replace(
        fitted, sd=np.append(np.full(fitted.sd.size - 1, 0.6), fitted.sd[-1])
    )
    assert not any(
        e.identified for estimates in loose.parameters().values() for e in estimates.values()
    )
    assert report.identified([loose]).joints == {}


def test_a_fit_at_its_bound_is_a_warning_and_is_not_written(case, fitted):
    bounds = fitted.bounds.copy()
    bounds[1, 0] = fitted.theta[0]
    squeezed = dataclasses.replace(fitted, bounds=bounds)
    said = [f.text for f in report.findings(case[2], [squeezed], SETTINGS) if f.level == "warn"]
    assert any("kp sits at its bound" in text and "--bound 10" in text for text in said)
    assert "kp" not in report.identified([squeezed]).joints.get("if_mcp", {})


def test_only_the_stretch_in_which_a_finger_moves_is_fitted(case):
    log = case[2]
    rest = np.repeat(log.cmd[-1:], 200, 0)
    longer = logs.HandLog(
        np.arange(len(log.cmd) + 200) / 20,
        np.concatenate((log.cmd, rest)),
        np.concatenate((log.cmd, rest)),
    )
    found = logs.moving(longer, [0, 1, 2, 3])
    assert len(found.time) <= len(log.cmd) + 21
    assert np.ptp(found.cmd[:, :4], axis=0) == pytest.approx(np.ptp(log.cmd[:, :4], axis=0))


def test_random_search_gets_near_too(case):
    robot, joints, log, *_ = case
    chain = model.Chain(robot, joints, log, fit.SEARCH_DT, SETTINGS.delays)
    windows = fit.informative(
        chain, fit._windows(log, [(0, len(log.time))], 0, len(log.time), 1.5)
    )[:4]
    settings = dataclasses.replace(SETTINGS, optimizer="random", population=256, generations=2)
    theta, trace = fit.search(
        chain, [windows, windows], fit._bounds(chain, settings), settings, lambda _: None
    )
    before, after = (
        fit.mean_squared_error(chain, x[None], windows).sum() for x in (chain.nominal(), theta)
    )
    assert after < before / 2
    assert len(trace) == 2


def test_candidates_do_not_depend_on_their_company(case):
    robot, joints, log, *_ = case
    chain = model.Chain(robot, joints, log, 0.005, (0.0, 0.2))
    rng, window = np.random.default_rng(0), model.Window(40, 70, 5)
    theta = chain.nominal() + 0.2 * rng.standard_normal((7, chain.size)).clip(-1, 1)
    theta[:, -1] = rng.uniform(0, 8, 7)
    together = chain.simulate(theta, [window, model.Window(100, 120, 5)])[0]
    alone = np.stack([chain.simulate(t[None], [window])[0][0] for t in theta])
    np.testing.assert_allclose(together, alone, atol=1e-9)


def test_the_delay_moves_the_motion_by_itself(case):
    robot, joints, log, *_ = case
    chain = model.Chain(robot, joints, log, 0.001, (0.0, 0.2))
    theta = np.stack([chain.nominal()] * 2)
    theta[:, -1] = (2.0, 2.3)
    a, b = chain.simulate(theta, [model.Window(40, 120, 10)])[0]
    speed = np.gradient(a, 0.05, axis=0)
    moving = np.abs(speed) > 1.0
    # speeds at 20 Hz are rough
    assert np.median(((a - b) / speed)[moving]) == pytest.approx(0.003, rel=0.35)


# --------------------------------------------------------------- the command


def test_the_command_writes_report_plot_and_actuators(
    tmp_path, monkeypatch, capsys, case, fitted, plain
):
    monkeypatch.setattr(fit, "fit", lambda *_, **__: fitted)
    path, out, written = (
        save(tmp_path / "log.npz", plain),
        tmp_path / "fit.json",
        tmp_path / "servos.json",
    )
    words = [TASK, "--log-file", str(path), "--hardware-order", "True", "--output-file", str(out)]
    assert sysid_main([*words, "--write", str(written)]) == 0
    data = json.loads(out.read_text())
    assert data["schema"] == report.SCHEMA
    kp = data["joints"]["if_mcp"]["kp"]
    assert kp["low"] < kp["value"] < kp["high"]
    assert {"kp", "kd", "frictionloss", "damping", "armature", "torque"} <= set(
        data["joints"]["if_dip"]
    )
    assert data["delay"]["value"] == pytest.approx(case[4], rel=0.05)
    assert any("jitter" in text for text in data["warnings"])
    assert out.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    assert "held-out error" in capsys.readouterr().out
    found = actuators.load(written, "leap-right", case[1])
    assert found.joints["if_mcp"]["kp"].value == kp["value"]
    assert not list(tmp_path.glob(".tmp*"))


def test_a_fit_is_said_where_it_cannot_be_written(tmp_path, monkeypatch, capsys, fitted, plain):
    def full(*_):
        raise WriteError("No space left on device")

    monkeypatch.setattr(fit, "fit", lambda *_, **__: fitted)
    monkeypatch.setattr(report, "write", full)
    path = save(tmp_path / "log.npz", plain)
    with pytest.raises(WriteError, match="No space left"):
        sysid_main([TASK, "--log-file", str(path), "--hardware-order", "True"])
    assert "held-out error" in capsys.readouterr().out


def test_a_log_in_hardware_order_is_the_same_log(tmp_path, contract, case, plain):
    path = save(tmp_path / "log.npz", plain)
    found = logs.read(path, contract, hardware_order=True)
    np.testing.assert_allclose(found.state, case[2].state)
    degrees = {name: np.rad2deg(plain[name]) for name in ("hand_cmd", "hand_state")}
    found = logs.read(
        save(path, degrees), contract, command_hz=40, hardware_order=True, units="deg"
    )
    np.testing.assert_allclose(found.cmd, case[2].cmd)
    assert found.time[1] == 1 / 40
    assert not found.stamped


def _nan(a):
    a["hand_state"][7:, 3] = np.nan


def _shape(a):
    a["hand_cmd"] = a["hand_cmd"][:, :12]


def _short(a):
    for name in a:
        a[name] = a[name][:20]


def _still(a):
    a["hand_cmd"][:, :4] = a["hand_cmd"][0, :4]


def _degrees(a):
    a["hand_cmd"], a["hand_state"] = np.rad2deg(a["hand_cmd"]), np.rad2deg(a["hand_state"])


def _backwards(a):
    a["time"][9] = a["time"][8]


def _other(a):
    a["joint_names"] = np.array(["knee", *leap_hand.names()[1:]])


def _missing(a):
    del a["hand_state"]


def _turned(a):
    a["hand_state"][:, 0] = (
        a["hand_state"][:, 0].min() + a["hand_state"][:, 0].max() - a["hand_state"][:, 0]
    )


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_nan, "rows, first in row 7, column 3: log all joints"),
        (_shape, "but leap-right has 16 joints"),
        (_short, "at least 5 s are needed"),
        (_still, "no motion of if_mcp"),
        (_degrees, "--units deg"),
        (_backwards, "it must increase"),
        (_other, "another robot than leap-right: its joints are 'knee' for 'if_mcp'"),
        (_missing, "has no 'hand_state'"),
        (_turned, "if_mcp does not go where it is commanded"),
    ],
)
def test_a_bad_log_is_refused_in_one_line_and_nothing_is_lost(
    tmp_path, contract, case, spoil, said
):
    log = case[2]
    arrays = {"hand_cmd": log.cmd.copy(), "hand_state": log.state.copy(), "time": log.time.copy()}
    spoil(arrays)
    path, written = save(tmp_path / "log.npz", arrays), tmp_path / "servos.json"
    written.write_text('{"schema": "deftly.actuators/1", "robot": "leap-right", "joints": {}}')
    before = written.read_bytes()
    with pytest.raises(DeftlyError) as error:
        sysid_main([TASK, "--log-file", str(path), "--write", str(written)])
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert written.read_bytes() == before


def test_a_log_of_another_hand_is_refused(log_file, case):
    cls = tasks.load("leap-left-cube-rotate")
    with pytest.raises(DeftlyError, match="another robot: leap-right, not leap-left"):
        logs.read(log_file, cls(cls.Config()).contract())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--log-file", "nowhere.npz"], "log-file is nowhere.npz, but there is no such file"),
        ([], "give --log-file LOG.npz to fit"),
        (["--excite", "True"], "--out LOG.npz"),
        (["--log-file", "a.npz", "--driver", "sim"], "--driver is for --excite"),
        (["--log-file", "a.npz", "--output-file", "a.npz"], "must be a .json file, such as a.json"),
        (
            ["--log-file", "a.npz", "--parallel-envs", "1"],
            "parallel-envs is 1, but it must be 16 or more",
        ),
        (["--log-file", "a.npz", "--delay-min-ms", "300"], "it must be below 250"),
    ],
)
def test_bad_flags_are_refused_in_one_line(words, said):
    with pytest.raises(DeftlyError, match=said):
        sysid_main([TASK, *words])


@pytest.mark.parametrize("driver", [["--driver", "sim"], ["--driver", "fake"], []])
def test_a_calibration_is_of_a_real_robot(driver, tmp_path):
    (tmp_path / "c.json").write_text("{}")
    words = ["--excite", "True", "--out", "a.npz", "--calibration", str(tmp_path / "c.json")]
    with pytest.raises(DeftlyError, match="--calibration is of a real robot: give its --driver"):
        sysid_main([TASK, *words, *driver])


def test_a_calibration_reaches_the_driver(tmp_path):
    (tmp_path / "c.json").write_text("{}")
    words = ["--finger", "thumb", "--seconds", "5", "--calibration", str(tmp_path / "c.json")]
    out = ["--excite", "True", "--out", str(tmp_path / "a.npz"), "--driver", "wildrobot"]
    with pytest.raises(DeftlyError, match=r"cannot read '.*c\.json' as a calibration"):
        sysid_main([TASK, *out, *words])


# --------------------------------------------------------------- excitation


def test_motion_keeps_to_limits_and_speed_and_moves_every_joint(contract):
    excitation = excite.Excitation(seconds=20.0)
    groups = excite.groups(leap_hand.RIGHT, "all")
    made = excite.motion(leap_hand.RIGHT, contract, groups, excitation)
    lower, upper = np.array([(j.lower, j.upper) for j in contract.joints]).T
    assert (made.cmd >= lower - 1e-9).all()
    assert (made.cmd <= upper + 1e-9).all()
    speed = np.abs(np.diff(made.cmd, axis=0)).max(0) * contract.rate
    assert (speed <= 0.6 * leap_hand.SPEED + 1e-6).all()
    assert set(made.amplitude) == set(contract.joint_names)
    assert (np.ptp(made.cmd, axis=0) > 0.3).all()
    np.testing.assert_allclose(made.cmd[0], contract.home())


def test_excite_writes_the_motion_alone_or_drives_a_simulated_hand(tmp_path, contract, capsys):
    words = [TASK, "--excite", "True", "--finger", "thumb", "--seconds", "6"]
    alone, log = tmp_path / "motion.npz", tmp_path / "log.npz"
    assert sysid_main([*words, "--out", str(alone)]) == 0
    with np.load(alone, allow_pickle=False) as file:
        assert file["hand_cmd"].shape == (len(file["time"]), 16)
        assert file["joint_names"].tolist() == list(contract.joint_names)
    assert sysid_main([*words, "--driver", "sim", "--out", str(log)]) == 0
    found = logs.read(log, contract)
    thumb = tuple(n for n in contract.joint_names if n.startswith("th_"))
    assert logs.require_motion(log, contract, found, thumb) == list(thumb)
    assert "--finger thumb" in capsys.readouterr().out


# --------------------------------------------------------------- many trials


@pytest.mark.slow
def test_intervals_hold_the_truth_in_twenty_trials(tmp_path):
    data = trials.run(20, {"generations": 5, "population": 128}, 60.0, tmp_path / "trials.json")
    for name in ("kp", "kd", "frictionloss", "delay"):
        assert data["summary"][name]["median_error"] <= 0.05, name
        assert data["summary"][name]["coverage"] >= 0.9, name
