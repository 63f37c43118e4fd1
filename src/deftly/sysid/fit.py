"""Fit the servo parameters of a robot to a log: cross-entropy search, Gauss-Newton refinement, confidence intervals.

Joints of one branch move each other little. So each joint is judged by its own error, and its next candidates are drawn
around its own best ones: a search over seven numbers for each joint at once, not one over all of them. The refinement
then weighs all errors together, in logarithms, with a wide prior about the robot's file: a parameter that the log does
not determine stays there, and its interval shows it.

What touches is left out, as is what was not logged: the log is simulated in the segments between, each from the state
measured at its start.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from deftly.errors import DeftlyError
from deftly.robots import Robot
from deftly.robots.actuators import PARAMETERS
from deftly.sysid.logs import MIN_MOTION, HandLog, gaps, moving
from deftly.sysid.model import DELAY_UNIT, Chain, Window
from deftly.sysid.touch import Touch, find_touch

PRIOR = dict(zip(PARAMETERS, (0.7, 0.7, 0.7, 0.5, 0.3, 0.3)))
"""Standard deviation of the logarithm of a parameter about the robot's file: what is known without a log."""
PRIOR_DELAY = 0.1
"""Likewise of the delay about zero, s."""
SEARCH_DT = 0.01
"""Timestep of the search, s: coarse, and ten times as fast as one that the intervals could bear."""
SEARCH_WINDOW_S = 1.5
LONG_WINDOW_S = 60.0
BURN_IN_S = 0.25
TOUCH_SPARE = 1
"""Intervals beside one in which something touches that are left out with it: poses between samples are estimates."""
MIN_COMPARED_S = 2.0
"""Least part of a log that is left where nothing touches, without the beginnings of its segments, s."""
FIRST_WINDOWS = 4
"""Windows' worth of samples by which the first half of the generations is judged."""
LAST_WINDOWS = 8
"""Likewise the second half."""
ELITE_FRACTION = 0.05
SMOOTHING = 0.3
"""Fraction of the old mean and standard deviation that a generation keeps."""
INITIAL_STD = 0.5
MIN_STD = 0.02
DIFFERENCE = 0.03
"""Step of the finite differences in a logarithm: 3 % of a parameter."""
DIFFERENCE_DELAY = 0.1
"""Likewise in the delay, in units of `DELAY_UNIT`: 1 ms."""
DAMPINGS = (0.0, 1e-3, 0.01, 0.1, 1.0, 10.0)
COARSE_TOLERANCE = 30.0
"""A fall of the cost, in squared standard deviations, below which the coarse refinement ends."""
MAX_STEPS = 6
"""Of the fine refinement on the same Jacobian."""
MAX_ROUNDS = 3
"""Jacobians that the fine refinement takes at most."""
STEP_TOLERANCE = 0.1
"""A step below this, in standard deviations, ends a round."""
ROUND_TOLERANCE = 1.0
"""A round that moves by less, in standard deviations, is the last."""
MAX_STEP = 0.5
"""Longest step of the fine refinement, in logarithms."""
DELAY_RESOLUTION = 0.0005
"""A delay is known no better than this, s: without it, three of twenty intervals missed, by 0.1 ms at most."""
BLOCK = 20
"""Consecutive samples of a log whose errors are taken to be correlated, for the intervals."""
Z_95 = 1.96
"""Standard deviations of an interval of 95 %."""
IDENTIFIED = 0.5
"""A parameter is identified if the log narrows the prior to less than this fraction of it."""
IDENTIFIED_DELAY = 0.01
"""A delay is identified if its standard deviation is below this, s."""
IQR_PER_STD = 1.349
"""Interquartile range of a normal distribution, in standard deviations."""
MIN_NOISE = 1e-4
"""Least standard deviation of an error by which residuals are weighted, rad."""


@dataclass(frozen=True)
class FitSettings:
    """Settings of a fit."""

    optimizer: Literal["cem", "random"] = "cem"
    generations: int = 12
    population: int = 8192
    seed: int = 0
    delays: tuple[float, float] = (0.0, 0.25)  # s
    bound: float = 5.0  # parameters are sought within this factor of the robot's file, up and down
    held_out: float = 0.2  # last fraction of the log, which is never fitted
    polish: int = 12  # most iterations of the coarse refinement
    timesteps: tuple[float, float, float] = (0.0025, 0.001, 0.000125)
    """Of the coarse refinement, of the Jacobian of the fine one, and of its residuals, s.

    Joints that stick and slip do so slightly differently at each timestep, and a fit takes that for something to be
    explained: 0.25 ms shift it by a third of a standard deviation. Jacobians bear longer steps: see
    `LeastSquares.jacobian`.
    """


class Estimate(NamedTuple):
    """Estimate of one parameter, with its interval of 95 %, in SI units."""

    value: float
    low: float
    high: float
    nominal: float
    identified: bool
    at_bound: bool


@dataclass
class Fit:
    """Result of fitting some joints to a log."""

    joints: tuple[str, ...]
    theta: np.ndarray
    """(size,) best candidate, as `model` defines it."""
    sd: np.ndarray
    """(size,) standard deviations of `theta`."""
    nominal: np.ndarray
    """(size,) the candidate that the robot's file is."""
    bounds: np.ndarray
    """(2, size)."""
    held_out: dict[str, np.ndarray]
    """RMSE of each joint over samples never fitted, rad: `nominal`, `fitted`."""
    train: dict[str, np.ndarray]
    """Likewise over those that were."""
    time: np.ndarray
    """(T,) of the part of the log in which these joints move, s."""
    commands: np.ndarray
    """(T, joints) in it, rad."""
    measured: np.ndarray
    """Likewise."""
    predicted: np.ndarray
    """(T, joints) simulated positions of the fitted model, rad; NaN where none."""
    cost: dict[str, float]
    """Of the search `candidates`, `steps`, `simulated_s`; and the times of it and of the refinement, wall and CPU."""
    trace: list[list[float]]
    """RMSE of each joint's best candidate, for each generation, rad."""
    train_end: int
    """The first sample held out."""
    touch: Touch
    """Which links touch, and when: this is left out."""
    used: float
    """Fraction of the samples that are fitted or held out."""

    def parameters(self) -> dict[str, dict[str, Estimate]]:
        """Estimates of the parameters, by joint and parameter."""
        found: dict[str, dict[str, Estimate]] = {}
        for j, joint in enumerate(self.joints):
            found[joint] = {}
            for p, name in enumerate(PARAMETERS):
                index = p * len(self.joints) + j
                found[joint][name] = self._parameter(index, PRIOR[name])
        return found

    def _parameter(self, index: int, prior: float) -> Estimate:
        x = self.theta[index]
        sd = self.sd[index]
        lower, upper = self.bounds[:, index]
        near = 0.01 * (upper - lower)
        return Estimate(
            value=float(np.exp(x)),
            low=float(np.exp(x - Z_95 * sd)),
            high=float(np.exp(x + Z_95 * sd)),
            nominal=float(np.exp(self.nominal[index])),
            identified=bool(sd < IDENTIFIED * prior),
            at_bound=bool(x - lower < near or upper - x < near),
        )

    def delay(self) -> Estimate:
        """Estimate of the delay, s."""
        x = DELAY_UNIT * self.theta[-1]
        sd = DELAY_UNIT * self.sd[-1]
        lower, upper = DELAY_UNIT * self.bounds[:, -1]
        return Estimate(
            value=float(x),
            low=float(x - Z_95 * sd),
            high=float(x + Z_95 * sd),
            nominal=0.0,
            identified=bool(sd < IDENTIFIED_DELAY),
            at_bound=bool(x - lower < 1e-4 or upper - x < 1e-4),
        )


def fit(
    robot: Robot,
    joints: tuple[str, ...],
    log: HandLog,
    settings: FitSettings,
    progress: Callable[[str], None] = lambda _: None,
) -> Fit:
    """Fit the servos of one branch of a robot to a log.

    `progress` receives a line for each generation and step. Raises DeftlyError if too little of the log is left where
    nothing touches.
    """
    started = _Clock()
    names = [joint.name for joint in robot.joints]
    columns = [names.index(name) for name in joints]
    log = moving(log, columns)
    touching = find_touch(robot, joints, log)
    segments = free_segments(log, touching, settings.delays[1])
    train_end = _train_end(segments, settings.held_out)
    _require_enough(joints, log, segments, train_end, touching)

    chain = Chain(robot, joints, log, SEARCH_DT, settings.delays)
    nominal = chain.nominal()
    bounds = _bounds(chain, settings)
    windows = informative(chain, _windows(log, segments, 0, train_end, SEARCH_WINDOW_S))
    stages = [_first(windows, log, count) for count in (FIRST_WINDOWS, LAST_WINDOWS)]
    theta, trace = search(chain, stages, bounds, settings, progress)
    searched = _Clock()

    train = _windows(log, segments, 0, train_end, LONG_WINDOW_S)
    held_out = _windows(log, segments, train_end, len(log.time), LONG_WINDOW_S)
    theta, sd = refine(robot, joints, log, train, theta, bounds, settings, progress)

    timestep = settings.timesteps[-1]
    fine = Chain(robot, joints, log, timestep, settings.delays)
    both = np.stack([nominal, theta])
    predicted = _predict(fine, both, train + held_out)
    error = predicted - fine.state
    refined = _Clock()
    cost = {
        "candidates": settings.generations * settings.population,
        "steps": chain.steps,
        "simulated_s": chain.steps * SEARCH_DT,
        "search_s": searched.wall - started.wall,
        "search_cpu_s": searched.cpu - started.cpu,
        "polish_s": refined.wall - searched.wall,
        "polish_cpu_s": refined.cpu - searched.cpu,
    }
    return Fit(
        joints=joints,
        theta=theta,
        sd=sd,
        nominal=nominal,
        bounds=bounds,
        held_out=_rmse(error[:, train_end:]),
        train=_rmse(error[:, :train_end]),
        time=log.time,
        commands=fine.cmd,
        measured=fine.state,
        predicted=predicted[1],
        cost=cost,
        trace=trace,
        train_end=train_end,
        touch=touching,
        used=_count(segments) / len(log.time),
    )


class _Clock:
    """Time now: on the wall, and of the CPU over all threads, s."""

    def __init__(self) -> None:
        self.wall = time.perf_counter()
        self.cpu = time.process_time()


def _bounds(chain: Chain, settings: FitSettings) -> np.ndarray:
    """Lower and upper bounds of a candidate, (2, size)."""
    reach = np.log(settings.bound)
    nominal = chain.nominal()
    bounds = np.stack([nominal - reach, nominal + reach])
    delays = np.array(settings.delays)
    bounds[:, -1] = delays / DELAY_UNIT
    return bounds


def free_segments(log: HandLog, touching: Touch, longest_delay: float) -> list[tuple[int, int]]:
    """Segments of a log, first .. last samples of each, in which nothing touches and nothing is missing.

    A segment begins `longest_delay` (s) after the log or a gap at the earliest: what was commanded before still acts.
    """
    left_out = touching.intervals.copy()
    for _ in range(TOUCH_SPARE):
        left_out[1:] |= left_out[:-1]
        left_out[:-1] |= left_out[1:]
    for gap in [-1, *np.flatnonzero(gaps(log))]:
        end = np.searchsorted(log.time, log.time[gap + 1] + longest_delay)
        left_out[max(0, gap) : end] = True
    bounds = np.concatenate(([True], left_out, [True]))
    starts = np.flatnonzero(bounds[:-1] & ~bounds[1:])
    ends = np.flatnonzero(~bounds[:-1] & bounds[1:])
    segments = [(int(start), int(end) + 1) for start, end in zip(starts, ends)]
    burn_in = _burn_in(log)
    return [(start, end) for start, end in segments if end - start > burn_in + 2]


def _burn_in(log: HandLog) -> int:
    """Samples that are simulated and not compared."""
    return max(2, round(BURN_IN_S / log.period))


def _count(segments: list[tuple[int, int]]) -> int:
    return sum(end - start for start, end in segments)


def _train_end(segments: list[tuple[int, int]], held_out: float) -> int:
    """The first sample held out: before it is the same fraction of the samples of every log."""
    if not segments:
        return 0
    samples = np.concatenate([np.arange(start, end) for start, end in segments])
    train_fraction = 1 - held_out
    last = len(samples) - 1
    return int(samples[min(last, round(len(samples) * train_fraction))])


def _require_enough(
    joints: tuple[str, ...],
    log: HandLog,
    segments: list[tuple[int, int]],
    train_end: int,
    touching: Touch,
) -> None:
    """Raise DeftlyError unless enough of a log can be fitted, and some of it held out."""
    train = _windows(log, segments, 0, train_end, SEARCH_WINDOW_S)
    held_out = _windows(log, segments, train_end, len(log.time), SEARCH_WINDOW_S)
    seconds = sum(window.last - window.first - window.burn_in for window in train) * log.period
    if seconds >= MIN_COMPARED_S and held_out:
        return
    problem = (
        f"{seconds:.2g} s of the motion of {', '.join(joints)} can be fitted, "
        f"but {MIN_COMPARED_S:g} s are needed"
    )
    if touching.intervals.any():
        raise DeftlyError(
            f"{problem}: {touching}; move less far, the other fingers out of the way, as "
            "'deftly sysid TASK --excite' does"
        )
    raise DeftlyError(
        f"{problem}, in pieces of more than 0.5 s: log longer, without gaps; or if other joints moved, name their "
        "finger with --finger"
    )


def _windows(
    log: HandLog, segments: list[tuple[int, int]], first: int, last: int, seconds: float
) -> list[Window]:
    """Windows over the segments within the samples first .. last, whose compared parts lie side by side."""
    burn_in = _burn_in(log)
    length = max(4, round(seconds / log.period))
    windows = []
    for begin, stop in segments:
        begin = max(begin, first)
        stop = min(stop, last)
        for start in range(begin + burn_in, stop - 2, length):
            end = min(start + length, stop)
            windows.append(Window(start - burn_in, end, burn_in))
    return windows


def _first(windows: list[Window], log: HandLog, count: int) -> list[Window]:
    """The first of these windows that have as many samples as `count` windows of full length."""
    wanted = count * max(4, round(SEARCH_WINDOW_S / log.period))
    samples = 0
    for i, window in enumerate(windows):
        samples += window.last - window.first - window.burn_in
        if samples >= wanted:
            return windows[: i + 1]
    return windows


def _predict(chain: Chain, theta: np.ndarray, windows: list[Window]) -> np.ndarray:
    """Simulated positions of candidates in the windows, (candidates, T, joints), rad; NaN elsewhere."""
    shape = (len(theta), *chain.state.shape)
    predicted = np.full(shape, np.nan)
    for window, path in zip(windows, chain.simulate(theta, windows)):
        compared = path[:, window.burn_in :]
        predicted[:, window.compared] = compared
    return predicted


def _rmse(error: np.ndarray) -> dict[str, np.ndarray]:
    """RMSE of each joint, rad, of the errors (2, samples, joints) of the robot's file and of the fit."""
    squared = error**2
    nominal, fitted = np.sqrt(np.nanmean(squared, axis=1))
    return {"nominal": nominal, "fitted": fitted}


# --------------------------------------------------------------- search


def informative(chain: Chain, windows: list[Window]) -> list[Window]:
    """The windows, ordered: next comes the window that moves most the joint which moved least so far."""
    motion = _relative_motion(chain, windows)
    left = list(range(len(windows)))
    order: list[int] = []
    while left:
        joint = int(motion[order].sum(0).argmin())
        best = max(left, key=lambda i: motion[i, joint])
        left.remove(best)
        order.append(best)
    return [windows[i] for i in order]


def _relative_motion(chain: Chain, windows: list[Window]) -> np.ndarray:
    """Each window's fraction of the way that a joint is commanded over, (windows, joints)."""
    paths = []
    for window in windows:
        steps = np.diff(chain.cmd[window.samples], axis=0)
        paths.append(np.abs(steps).sum(0))
    motion = np.array(paths)
    moves = motion.sum(0) > MIN_MOTION
    # of a joint that rests, the motion of the others counts
    motion = np.where(moves, motion, motion.sum(1, keepdims=True))
    return motion / (motion.sum(0) + 1e-9)


def mean_squared_error(chain: Chain, theta: np.ndarray, windows: list[Window]) -> np.ndarray:
    """Mean squared error of each candidate and joint, (candidates, joints), rad2."""
    shape = (len(theta), len(chain.joints))
    total = np.zeros(shape)
    count = 0
    for window, path in zip(windows, chain.simulate(theta, windows)):
        error = _errors(chain, window, path)
        total += (error**2).sum(1)
        count += error.shape[1]
    return np.nan_to_num(total / count, nan=np.inf)


def _errors(chain: Chain, window: Window, path: np.ndarray) -> np.ndarray:
    """Errors of simulated positions after the burn-in, (candidates, samples, joints), rad."""
    error = path - chain.state[window.samples]
    return error[:, window.burn_in :]


def search(
    chain: Chain,
    stages: list[list[Window]],
    bounds: np.ndarray,
    settings: FitSettings,
    progress: Callable[[str], None],
) -> tuple[np.ndarray, list[list[float]]]:
    """The best candidate, (size,), and each generation's least RMSE of each joint, rad.

    The cross-entropy method judges the first half of the generations by the first list of windows, the second by the
    last; random search judges all by the last.
    """
    method = _random_search if settings.optimizer == "random" else _cross_entropy
    return method(chain, stages, bounds, settings, progress)


def _cross_entropy(
    chain: Chain,
    stages: list[list[Window]],
    bounds: np.ndarray,
    settings: FitSettings,
    progress: Callable[[str], None],
) -> tuple[np.ndarray, list[list[float]]]:
    rng = np.random.default_rng(settings.seed)
    mean, std = _initial_distribution(chain, bounds)
    trace: list[list[float]] = []
    for generation in range(settings.generations):
        first_half = 2 * generation < settings.generations
        windows = stages[0] if first_half else stages[-1]
        theta = _sample(rng, mean, std, bounds, settings.population)
        score, speed = _score(chain, theta, windows)
        elite_mean, elite_std = _elite_statistics(theta, score, settings)
        mean = _smoothed(mean, elite_mean)
        std = _smoothed(std, elite_std)
        std = np.maximum(std, MIN_STD)
        trace.append(_least_rmse(score))
        progress(_generation_line(trace, settings, speed))
    return mean, trace


def _smoothed(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    return SMOOTHING * old + (1 - SMOOTHING) * new


def _least_rmse(score: np.ndarray) -> list[float]:
    """Least RMSE of each joint, rad, of mean squared errors (candidates, joints)."""
    least = score.min(0)
    return np.sqrt(least).tolist()


def _random_search(
    chain: Chain,
    stages: list[list[Window]],
    bounds: np.ndarray,
    settings: FitSettings,
    progress: Callable[[str], None],
) -> tuple[np.ndarray, list[list[float]]]:
    rng = np.random.default_rng(settings.seed)
    mean, std = _initial_distribution(chain, bounds)
    candidates: list[np.ndarray] = []
    scores: list[np.ndarray] = []
    trace: list[list[float]] = []
    speed = 0.0
    for _ in range(settings.generations):
        theta = _sample(rng, mean, std, bounds, settings.population)
        score, speed = _score(chain, theta, stages[-1])
        candidates.append(theta)
        scores.append(score)
        trace.append(_least_rmse(score))
    progress(_generation_line(trace, settings, speed))
    theta = np.concatenate(candidates)
    score = np.concatenate(scores)
    best, _ = _elite_statistics(theta, score, settings)
    return best, trace


def _initial_distribution(chain: Chain, bounds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the first candidates, (size,) each: about the robot's file, delays evenly."""
    lower, upper = bounds
    mean = np.clip(chain.nominal(), lower, upper)
    std = np.full(chain.size, INITIAL_STD)
    delays = bounds[:, -1]
    mean[-1] = delays.mean()
    std[-1] = np.ptp(delays) / 3
    return mean, std


def _sample(
    rng: np.random.Generator,
    mean: np.ndarray,
    std: np.ndarray,
    bounds: np.ndarray,
    count: int,
) -> np.ndarray:
    """Normally distributed candidates within bounds, (count, size); the first is the mean."""
    lower, upper = bounds
    noise = rng.standard_normal((count, len(mean)))
    theta = np.clip(mean + std * noise, lower, upper)
    theta[0] = mean
    return theta


def _score(chain: Chain, theta: np.ndarray, windows: list[Window]) -> tuple[np.ndarray, float]:
    """Mean squared errors, (candidates, joints), rad2, and simulated steps per second."""
    began = time.perf_counter()
    before = chain.steps
    score = mean_squared_error(chain, theta, windows)
    steps = chain.steps - before
    seconds = time.perf_counter() - began
    return score, steps / seconds


def _elite_statistics(
    theta: np.ndarray, score: np.ndarray, settings: FitSettings
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each joint's elite, (size,) each; of the delay, of all joints' by precision."""
    count = max(4, round(ELITE_FRACTION * settings.population))
    size = theta.shape[1]
    joints = score.shape[1]
    mean = np.empty(size)
    std = np.empty(size)
    delay = np.empty(joints)
    variance = np.empty(joints)
    for j in range(joints):
        order = np.argpartition(score[:, j], count - 1)
        elite = theta[order[:count]]
        own = slice(j, -1, joints)  # the parameters of this joint
        mean[own] = elite[:, own].mean(0)
        std[own] = elite[:, own].std(0)
        delays = elite[:, -1]
        delay[j] = delays.mean()
        variance[j] = delays.var() + 1e-6
    total = (delay / variance).sum()
    precision = (1 / variance).sum()
    mean[-1] = total / precision
    std[-1] = np.sqrt(variance.min())
    return mean, std


def _generation_line(trace: list[list[float]], settings: FitSettings, speed: float) -> str:
    rmse = " ".join(f"{1e3 * error:.1f}" for error in trace[-1])
    generation = f"generation {len(trace)}/{settings.generations}"
    return f"{generation}: best {rmse} mrad; {speed:,.0f} steps/s"


# --------------------------------------------------------------- refinement


class LeastSquares:
    """Residuals of candidates over the fitted part, weighted by the noise of each joint, and those of the prior."""

    def __init__(self, chain: Chain, windows: list[Window], theta: np.ndarray):
        self.chain = chain
        self.windows = windows
        self._cache: dict[bytes, np.ndarray] = {}
        parameters = [PRIOR[name] for name in PARAMETERS]
        prior = np.repeat(parameters, len(chain.joints))
        self.prior_mean = chain.nominal()
        self.prior_sd = np.append(prior, PRIOR_DELAY / DELAY_UNIT)
        self.difference = np.full(chain.size, DIFFERENCE)
        self.difference[-1] = DIFFERENCE_DELAY
        self.noise = self.measure_noise(theta)
        """Standard deviation of each joint's error at `theta`, (joints,), rad."""

    def __str__(self) -> str:
        noise = [f"{1e3 * value:.2f}" for value in self.noise]
        return f"{' '.join(noise)} mrad"

    def measure_noise(self, theta: np.ndarray) -> np.ndarray:
        """Standard deviation of each joint's error at a candidate, (joints,), rad, from quartiles."""
        error = self.errors(theta[None])[0]
        low, high = np.percentile(error, [25, 75], axis=0)
        std = (high - low) / IQR_PER_STD
        return np.maximum(std, MIN_NOISE)

    def errors(self, theta: np.ndarray) -> np.ndarray:
        """Errors of candidates, (candidates, samples, joints), rad."""
        keys = [row.tobytes() for row in theta]
        missing = [i for i, key in enumerate(keys) if key not in self._cache]
        known = dict(self._cache)
        if missing:
            errors = self._simulate(theta[missing])
            for i, error in zip(missing, errors):
                known[keys[i]] = error
        # the last candidates are often asked for again: a step goes on from the best of its tries
        self._cache = {key: known[key] for key in keys}
        return np.stack([known[key] for key in keys])

    def _simulate(self, theta: np.ndarray) -> np.ndarray:
        """Errors of candidates, (candidates, samples, joints), rad."""
        parts = []
        paths = self.chain.simulate(theta, self.windows)
        for window, path in zip(self.windows, paths):
            parts.append(_errors(self.chain, window, path))
        return np.concatenate(parts, axis=1)

    def residual(self, theta: np.ndarray) -> np.ndarray:
        """Residuals of candidates, (candidates, residuals): of the samples, then of the prior."""
        error = self.errors(theta) / self.noise
        samples = error.reshape(len(theta), -1)
        prior = (theta - self.prior_mean) / self.prior_sd
        return np.concatenate((samples, prior), axis=1)

    def jacobian(self, theta: np.ndarray) -> np.ndarray:
        """(residuals, size) at a candidate (size,), by central differences.

        The slope by a gain is that by all forces of its joint at once, without those by the others. By itself it would
        be large, and so would be its error by chance, as joints come to rest here or there, beside the slope by all
        forces: of that, the interval of every force is, and it would come out too narrow.
        """
        num_joints = len(self.chain.joints)
        moves = np.diag(self.difference)
        for joint in range(num_joints):
            moves[joint, joint:-1:num_joints] = DIFFERENCE
        slopes = self._slopes(theta, moves)
        slopes /= self.difference[:, None, None]
        for joint in range(num_joints):
            slopes[joint] -= slopes[joint + num_joints : -1 : num_joints].sum(0)
        return self._with_prior(slopes.reshape(self.chain.size, -1).T)

    def jacobian_by_joint(self, theta: np.ndarray) -> np.ndarray:
        """As `jacobian`, of each joint's errors by its own parameters and the delay only.

        A parameter is changed in all joints at once: seven pairs of candidates in place of one for each number.
        """
        num_joints = len(self.chain.joints)
        joints = np.arange(num_joints)
        columns = np.arange(self.chain.size)
        parameters = np.split(columns[:-1], len(PARAMETERS))
        groups = [columns[:-1], *parameters[1:], columns[-1:]]
        moves = np.zeros((len(groups), self.chain.size))
        for move, group in zip(moves, groups):
            move[group] = self.difference[group]
        slopes = self._slopes(theta, moves)
        forces = slopes[:-1] / DIFFERENCE
        forces[0] -= forces[1:].sum(0)
        out = np.zeros((*slopes.shape[1:], self.chain.size))
        for group, slope in zip(parameters, forces):
            out[:, joints, group] = slope
        out[:, :, -1] = slopes[-1] / DIFFERENCE_DELAY
        return self._with_prior(out.reshape(-1, self.chain.size))

    def _slopes(self, theta: np.ndarray, moves: np.ndarray) -> np.ndarray:
        """Half the difference of the weighted errors between `theta` + and - each move, (moves, samples, joints)."""
        error = self.errors(np.concatenate((theta + moves, theta - moves))) / self.noise
        above, below = np.split(error, 2)
        return (above - below) / 2

    def _with_prior(self, slopes: np.ndarray) -> np.ndarray:
        """Slopes of the samples' residuals (samples, size), and those of the prior below them."""
        prior = np.diag(1 / self.prior_sd)
        return np.concatenate((slopes, prior))

    def levenberg_marquardt_step(
        self, theta: np.ndarray, bounds: np.ndarray, jacobian: np.ndarray
    ) -> tuple[np.ndarray, float]:
        """The best of several dampings, or no step; and by how much the cost falls."""
        lower, upper = bounds
        theta = np.clip(theta, lower, upper)
        residual = self.residual(theta[None])[0]
        hessian = jacobian.T @ jacobian
        gradient = jacobian.T @ residual
        diagonal = np.diag(hessian)
        moves = []
        for damping in DAMPINGS:
            damped = hessian + np.diag(damping * diagonal)
            moves.append(np.linalg.solve(damped, gradient))
        tries = np.clip(theta - np.array(moves), lower, upper)
        cost = float((residual**2).sum())
        costs = (self.residual(tries) ** 2).sum(1)
        fall = np.nan_to_num(cost - costs, nan=-np.inf)
        best = int(fall.argmax())
        if fall[best] <= 0:
            return theta, 0.0
        return tries[best], float(fall[best])

    def gauss_newton_step(
        self, theta: np.ndarray, bounds: np.ndarray, jacobian: np.ndarray
    ) -> tuple[np.ndarray, float]:
        """A Gauss-Newton step, and its length in standard deviations of the number that moves most.

        It is taken whether or not the cost falls. Near the minimum the cost is rough, as sticking joints come to rest
        here or there by chance, and a line search stops anywhere; a vanishing gradient is a smooth condition, met after
        a few steps.
        """
        lower, upper = bounds
        hessian = jacobian.T @ jacobian
        residual = self.residual(theta[None])[0]
        gradient = jacobian.T @ residual
        move = np.linalg.solve(hessian, gradient)
        if not np.isfinite(move).all():  # a simulation diverged: the coarse refinement stands
            return theta, 0.0
        move = move.clip(-MAX_STEP, MAX_STEP)
        new = np.clip(theta - move, lower, upper)
        variance = np.diag(np.linalg.inv(hessian))
        length = np.abs(new - theta) * np.sqrt(1 / variance)
        return new, float(length.max())


def refine(
    robot: Robot,
    joints: tuple[str, ...],
    log: HandLog,
    windows: list[Window],
    theta: np.ndarray,
    bounds: np.ndarray,
    settings: FitSettings,
    progress: Callable[[str], None],
) -> tuple[np.ndarray, np.ndarray]:
    """The least-squares candidate over the windows, and the standard deviations of its numbers, (size,) each."""
    coarse, middle, fine = (
        Chain(robot, joints, log, timestep, settings.delays) for timestep in settings.timesteps
    )
    theta, jacobian = _refine_coarsely(coarse, windows, theta, bounds, settings.polish, progress)
    slopes = LeastSquares(middle, windows, theta)
    theta = _gauss_newton(slopes, theta, bounds, jacobian, progress)
    problem = LeastSquares(fine, windows, theta)
    return _refine_finely(problem, slopes, theta, bounds, progress)


def _refine_coarsely(
    chain: Chain,
    windows: list[Window],
    theta: np.ndarray,
    bounds: np.ndarray,
    iterations: int,
    progress: Callable[[str], None],
) -> tuple[np.ndarray, np.ndarray]:
    """Levenberg-Marquardt steps until the cost hardly falls; the candidate, and the last Jacobian."""
    timestep_ms = 1e3 * chain.timestep
    jacobian = np.empty(0)
    for _ in range(max(1, iterations)):
        problem = LeastSquares(chain, windows, theta)
        jacobian = problem.jacobian_by_joint(theta)
        theta, fall = problem.levenberg_marquardt_step(theta, bounds, jacobian)
        progress(f"refinement at {timestep_ms:g} ms: {problem}, cost falls by {fall:.1f}")
        if fall < COARSE_TOLERANCE:
            break
    return theta, jacobian


def _refine_finely(
    problem: LeastSquares,
    slopes: LeastSquares,
    theta: np.ndarray,
    bounds: np.ndarray,
    progress: Callable[[str], None],
) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Newton rounds on the residuals of `problem` and the Jacobian of `slopes`; as `refine`."""
    sd = problem.prior_sd
    jacobian = np.empty(0)
    for _ in range(MAX_ROUNDS):
        before = theta
        problem.noise = problem.measure_noise(theta)
        slopes.noise = problem.noise
        jacobian = slopes.jacobian(theta)
        theta = _gauss_newton(problem, theta, bounds, jacobian, progress)
        sd = _standard_deviations(problem, theta, jacobian)
        moved = np.abs(theta - before)
        if (moved < ROUND_TOLERANCE * sd).all():
            break
    discretization = _discretization_error(problem, slopes, theta, jacobian)
    sd = np.hypot(sd, discretization)
    return theta, np.minimum(sd, problem.prior_sd)


def _gauss_newton(
    problem: LeastSquares,
    theta: np.ndarray,
    bounds: np.ndarray,
    jacobian: np.ndarray,
    progress: Callable[[str], None],
) -> np.ndarray:
    """Gauss-Newton steps on one Jacobian until they are short."""
    timestep_ms = 1e3 * problem.chain.timestep
    for _ in range(MAX_STEPS):
        theta, length = problem.gauss_newton_step(theta, bounds, jacobian)
        progress(
            f"refinement at {timestep_ms:g} ms: {problem}, moves by {length:.2f} standard deviations"
        )
        if length < STEP_TOLERANCE:
            break
    return theta


def _discretization_error(
    problem: LeastSquares, slopes: LeastSquares, theta: np.ndarray, jacobian: np.ndarray
) -> np.ndarray:
    """Error of the fit by the length of its timestep, (size,), extrapolated from that of the Jacobian's."""
    here = problem.residual(theta[None])[0]
    coarser = slopes.residual(theta[None])[0]
    hessian = jacobian.T @ jacobian
    gradient = jacobian.T @ (coarser - here)
    move = np.linalg.solve(hessian, gradient)
    ratio = slopes.chain.timestep / problem.chain.timestep
    return np.abs(move) / max(1.0, ratio - 1)


def _standard_deviations(
    problem: LeastSquares, theta: np.ndarray, jacobian: np.ndarray
) -> np.ndarray:
    """Standard deviations, (size,): the larger of those of independent errors, and of errors correlated in a block.

    The latter are the cluster-robust ("sandwich") estimate.
    """
    residual = problem.residual(theta[None])[0]
    hessian = jacobian.T @ jacobian
    inverse = np.linalg.inv(hessian)

    count = len(residual) - len(theta)  # the rest are residuals of the prior
    data = residual[:count]
    free = max(1, count - len(theta))  # degrees of freedom: the errors are of fitted residuals
    scale = max(1.0, float((data**2).sum()) / free)
    independent = scale * np.diag(inverse)

    score = jacobian[:count] * data[:, None]
    num_joints = len(problem.chain.joints)
    score = score.reshape(-1, num_joints, len(theta)).sum(1)  # (samples, size)
    starts = np.arange(0, len(score), BLOCK)
    blocks = np.add.reduceat(score, starts)
    prior = np.diag(1 / problem.prior_sd**2)
    middle = blocks.T @ blocks + prior
    correlated = inverse @ middle @ inverse

    variance = np.maximum(independent, np.diag(correlated))
    variance = np.minimum(variance, problem.prior_sd**2)
    variance[-1] += (DELAY_RESOLUTION / DELAY_UNIT) ** 2 / 12  # of a uniform distribution
    return np.sqrt(variance)
