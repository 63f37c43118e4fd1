"""Logs in which fingers touch: what touches is found, named and left out, and what is left is enough."""

from types import SimpleNamespace

import numpy as np
import pytest

from deftly.errors import DeftlyError
from deftly.robots.actuators import PARAMETERS
from deftly.sysid import fit, logs, model, report, touch
from deftly.sysid.driver import LoneRobot
from deftly_bench import sysid as trials


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A log of an index finger that goes into its neighbours, and whether it touched after each sample."""
    path = tmp_path_factory.mktemp("touch") / "log.npz"
    touched = []

    class Watched(LoneRobot):
        def write(self, targets):
            before = self.contact_steps
            super().write(targets)
            touched.append(self.contact_steps > before)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trials, "LoneRobot", Watched)
        found = trials.touching_log(path, 0, 30.0, timestep=0.0005)
    return *found, np.array(touched[:-1])


@pytest.fixture(scope="module")
def found(case):
    robot, joints, log, *_ = case
    return touch.find_touch(robot, joints, log)


def true_candidate(joints, parameters, delay):
    values = [parameters[joint][name] for name in PARAMETERS for joint in joints]
    return np.append(np.log(values), delay / model.DELAY_UNIT)


def errors(chain, theta, windows):
    paths = chain.simulate(theta[None], windows)
    parts = [fit._errors(chain, window, path)[0] for window, path in zip(windows, paths)]
    return np.concatenate(parts)


def test_it_finds_when_a_finger_touches_and_whom(case, found):
    truth = case[-1]
    assert 0.05 < truth.mean() < 0.6
    segments = fit.free_segments(case[2], found, 0.25)
    free = np.zeros(len(truth), bool)
    for start, end in segments:
        free[start : end - 1] = True
    assert (truth & free).sum() <= 0.002 * len(truth)
    assert (found.intervals & ~truth).mean() < 0.1  # no more than the clearance takes
    assert all(any(link.startswith("if_") for link in pair) for pair in found.pairs)
    assert any(not other.startswith("if_") for pair in found.pairs for other in pair)
    assert list(found.pairs.values()) == sorted(found.pairs.values(), reverse=True)


def test_other_fingers_that_touch_each_other_do_not_count(case):
    robot, _, log, *_ = case
    ring = tuple(joint.name for joint in robot.joints if joint.name.startswith("rf_"))
    assert not touch.find_touch(robot, ring, log).intervals.any()


def test_the_true_servos_explain_what_is_left_and_nothing_else_does(case, found):
    robot, joints, log, parameters, delay, _ = case
    chain = model.Chain(robot, joints, log, 0.0005, (0.0, 0.25))
    theta = true_candidate(joints, parameters, delay)
    segments = fit.free_segments(log, found, 0.25)
    left = errors(chain, theta, fit._windows(log, segments, 0, len(log.time), 60.0))
    whole = errors(chain, theta, fit._windows(log, [(0, len(log.time))], 0, len(log.time), 60.0))
    expected = np.hypot(trials.NOISE, trials.QUANTUM / np.sqrt(12))
    assert len(left) > 100
    assert np.sqrt((left**2).mean()) < 1.3 * expected
    assert np.sqrt((whole**2).mean()) > 10 * expected


def test_a_finger_that_touches_nearly_all_the_time_is_refused_by_name(case, monkeypatch):
    robot, joints, log, *_ = case
    intervals = np.ones(len(log.time) - 1, bool)
    intervals[40:80] = False
    always = touch.Touch(intervals, {("if_dip", "th_ipl"): 0.9, ("palm", "if_dip"): 0.3})
    monkeypatch.setattr(fit, "find_touch", lambda *_: always)
    with pytest.raises(DeftlyError) as error:
        fit.fit(robot, joints, log, fit.FitSettings())
    said = str(error.value)
    assert "s of the motion of if_mcp" in said
    assert "links touch in 93% of the time: if_dip and th_ipl (90%), palm and if_dip (30%)" in said
    assert "move less far" in said
    assert "\n" not in said


def test_links_near_each_other_by_design_touch_only_when_they_meet(case):
    robot, joints, log, *_ = case
    home = np.array([joint.home for joint in robot.joints])
    still = log._replace(time=log.time[:9], state=np.repeat(home[None], 9, 0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(touch, "CLEARANCE", 0.05)
        assert not touch.find_touch(robot, joints, still).intervals.any()


# --------------------------------------------------------------- segments


def plain_log(count=400):
    rng = np.random.default_rng(0)
    cmd = rng.normal(size=(count, 16))
    return logs.HandLog(np.arange(count) / 20, cmd, cmd)


def no_touch(log):
    return touch.Touch(np.zeros(len(log.time) - 1, bool), {})


def test_a_gap_parts_a_log_and_so_does_what_was_commanded_in_it():
    log = plain_log()
    log.time[200:] += 3.0
    segments = fit.free_segments(log, no_touch(log), 0.25)
    assert segments == [(5, 200), (205, 400)]
    windows = fit._windows(log, segments, 0, 400, 60.0)
    assert all(log.time[w.last - 1] - log.time[w.first] < 10 for w in windows)


def test_what_touches_is_left_out_with_its_neighbours():
    log = plain_log()
    found = no_touch(log)
    found.intervals[100:110] = True
    segments = fit.free_segments(log, found, 0.25)
    assert segments == [(5, 100), (111, 400)]


def test_the_same_fraction_of_what_is_left_is_held_out():
    assert fit._train_end([(0, 400)], 0.2) == 320
    assert fit._train_end([(0, 100), (200, 300)], 0.25) == 250


def test_windows_of_many_lengths_are_simulated_as_each_alone(case):
    robot, joints, log, parameters, delay, _ = case
    chain = model.Chain(robot, joints, log, 0.005, (0.0, 0.2))
    theta = np.stack([true_candidate(joints, parameters, delay), chain.nominal()])
    windows = [
        model.Window(a, b, 5) for a, b in ((10, 30), (40, 200), (50, 62), (300, 420), (8, 19))
    ]
    together = chain.simulate(theta, windows)
    for window, path in zip(windows, together):
        np.testing.assert_allclose(path, chain.simulate(theta, [window])[0], atol=1e-9)
    groups = chain._of_like_length(windows)
    assert sorted(i for group in groups for i in group) == [0, 1, 2, 3, 4]
    assert len(groups) == 3


# --------------------------------------------------------------- the refinement


def test_the_scale_of_all_forces_has_the_slope_that_it_has(case, found):
    """Chance in the differences made its slope look larger, and its interval too narrow."""
    robot, joints, log, parameters, delay, _ = case
    segments = fit.free_segments(log, found, 0.25)
    windows = fit._windows(log, segments, 0, len(log.time), 60.0)
    chain = model.Chain(robot, joints, log, 0.001, (0.0, 0.25))
    theta = true_candidate(joints, parameters, delay)
    problem = fit.LeastSquares(chain, windows, theta)
    problem.noise = np.full(4, np.hypot(trials.NOISE, trials.QUANTUM / np.sqrt(12)))
    jacobian = problem.jacobian(theta)
    for joint in range(4):
        scale = np.zeros(theta.size)
        scale[joint:-1:4] = 1.0
        above, below = problem.errors(theta + 0.2 * np.array([scale, -scale])) / problem.noise
        expected = np.linalg.norm((above - below) / 0.4)
        slope = (jacobian @ scale)[: -theta.size]
        assert np.linalg.norm(slope) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("method", ["jacobian", "jacobian_by_joint"])
def test_jacobians_of_linear_errors_are_those_errors(method):
    joints = 2
    size = len(PARAMETERS) * joints + 1
    slopes = np.random.default_rng(0).normal(size=(30, joints, size))
    if (
        method == "jacobian_by_joint"
    ):  # each joint's errors depend on its own parameters and the delay
        for joint in range(joints):
            slopes[:, joint, 1 - joint : -1 : joints] = 0.0

    class Linear(fit.LeastSquares):
        def _simulate(self, theta):
            return np.einsum("sjk,ck->csj", slopes, theta)

    chain = SimpleNamespace(joints=("a", "b"), size=size, nominal=lambda: np.zeros(size))
    problem = Linear(chain, [], np.zeros(size))
    found = getattr(problem, method)(np.zeros(size))
    expected = slopes / problem.noise[:, None]
    np.testing.assert_allclose(found[:-size].reshape(slopes.shape), expected, rtol=1e-6, atol=1e-3)
    np.testing.assert_allclose(found[-size:], np.diag(1 / problem.prior_sd))


# --------------------------------------------------------------- the report


def made_fit(case, found, nominal_rmse=0.05, fitted_rmse=0.001):
    robot, joints, log, parameters, delay, _ = case
    columns = [[joint.name for joint in robot.joints].index(name) for name in joints]
    theta = true_candidate(joints, parameters, delay)
    rng = np.random.default_rng(0)
    measured = log.state[:, columns]
    rmse = {"nominal": np.full(4, nominal_rmse), "fitted": np.full(4, fitted_rmse)}
    return fit.Fit(
        joints=joints,
        theta=theta,
        sd=np.full(theta.size, 0.02),
        nominal=theta,
        bounds=np.stack((theta - 2, theta + 2)),
        held_out=rmse,
        train=rmse,
        time=log.time,
        commands=log.cmd[:, columns],
        measured=measured,
        predicted=measured + rng.normal(0, 0.001, measured.shape),
        cost={},
        trace=[],
        train_end=len(log.time) * 4 // 5,
        touch=found,
        used=0.61,
    )


def said(log, made):
    return list(report.findings(log, [made], fit.FitSettings()))


def test_the_report_names_what_touches_and_how_much_is_used(case, found):
    warned = [f for f in said(case[2], made_fit(case, found)) if "links touch" in f.text]
    assert [f.level for f in warned] == ["warn"]
    first, second = next(iter(found.pairs))
    assert f"{first} and {second}" in warned[0].text
    assert "61% of the samples are used" in warned[0].text
    assert "trust them where the held-out error is" in warned[0].text


def test_the_report_says_so_if_something_touches_that_is_no_link(case, found):
    made = made_fit(case, found)
    assert not [f for f in said(case[2], made) if "standard deviations off" in f.text]
    made.predicted[20:60, 1] += 0.05
    warned = [f for f in said(case[2], made) if "standard deviations off" in f.text]
    assert [f.name for f in warned] == ["if_rot"]


def test_gaps_and_conventions_are_reported(case, found):
    log = case[2]._replace(
        time=case[2].time + 3.0 * (np.arange(len(case[2].time)) > 99), notes=("x",)
    )
    findings = {f.name: f for f in said(log, made_fit(case, found))}
    assert "1 gaps, 3.0" in findings["time"].text or "1 gaps, 3.1" in findings["time"].text
    assert "jitter" not in findings["time"].text
    assert findings["convention"].level == "warn"


@pytest.mark.parametrize(
    ("nominal", "fitted", "level"),
    [(0.00100, 0.00101, "ok"), (0.0, 0.0001, "ok"), (0.001, 0.0014, "fail"), (0.01, 0.012, "fail")],
)
def test_a_fit_fails_only_if_it_is_worse_by_more_than_chance(case, found, nominal, fitted, level):
    made = made_fit(case, found, nominal, fitted)
    levels = {f.level for f in said(case[2], made) if f.text.startswith("held-out error")}
    assert levels == {level}


# --------------------------------------------------------------- many trials


@pytest.mark.slow
def test_known_servos_are_found_again_though_fingers_touch(tmp_path):
    search = {"generations": 5, "population": 128}
    data = trials.run(20, search, 60.0, tmp_path / "trials.json", touch=True)
    assert data["refused"] == []
    for name in ("kp", "kd", "frictionloss"):
        assert data["summary"][name]["median_error"] <= 0.05, name
        assert data["summary"][name]["coverage"] >= 0.9, name
    assert np.mean(data["touching"]) > 0.1
