"""Find the figures that explain a log: a search over thousands of candidates, a least-squares polish, intervals.

Joints of one branch move each other little. So each joint is judged by its own error, and draws its next candidates
around its own best ones: a search in seven numbers for each joint at once, not one in all of them. The polish then
weighs all errors together, in logarithms, with a wide prior about the robot's file: what a log does not tell stays
there, and its interval says so.
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
from deftly.sysid.logs import STILL, HandLog, moving
from deftly.sysid.model import DELAY_UNIT, Chain, Window

PRIOR = dict(zip(PARAMETERS, (0.7, 0.7, 0.7, 0.5, 0.3, 0.3)))
"""Standard deviation of the logarithm of a figure about the robot's file: what is known without a log."""
PRIOR_DELAY = 0.1
"""Likewise of the delay, s, about none."""
SEARCH_DT = 0.01
"""Timestep of the search, s: coarse, and ten times as fast as one that the intervals could bear."""
WINDOW_S, BURN_S, LONG_S = 1.5, 0.25, 60.0
ELITES, SMOOTHING, LEAST_STD = 0.05, 0.3, 0.02
EPS, EPS_DELAY = 0.03, 0.1
"""Steps of the finite differences: 3 % of a figure, 1 ms of the delay."""
DAMPINGS = (0.0, 1e-3, 0.01, 0.1, 1.0, 10.0)
ENOUGH = 30.0
"""Fall of the cost of the coarse polish, in squared standard deviations, that is too little to go on."""
STEPS, ROUNDS, NEAR, FAR = 6, 3, (0.1, 1.0), 0.5
"""Of the final polish: most steps on the same slopes, and most such rounds; the move in a step, and that in a round, in
standard deviations, that end them; and the longest step, in logarithms."""
BLOCK = 20
"""Samples of a log that are taken to err together, for the intervals."""
SURE = 1.96
"""Standard deviations of an interval of 95 %."""
IDENTIFIED = 0.5
"""A figure is identified if the log narrows the prior to less than this share of it."""


@dataclass(frozen=True)
class Search:
    """How to look."""

    optimizer: Literal["cem", "random"] = "cem"
    generations: int = 12
    population: int = 8192
    seed: int = 0
    delays: tuple[float, float] = (0.0, 0.25)  # s
    bound: float = 5.0  # figures are sought within this factor of the robot's file, up and down
    held_out: float = 0.2  # last share of the log that is never fitted
    polish: int = 12  # most iterations of the coarse polish
    timesteps: tuple[float, float, float] = (0.0025, 0.0005, 0.000125)
    """Of the coarse polish, of the slopes of the final one, and of its residuals, s.

    Joints that stick and slip do so a little otherwise at each timestep, and a fit takes that for something to be
    explained: 0.25 ms shift it by a third of a standard deviation. Slopes bear longer steps, but at 1 ms they say so
    much by chance that intervals come out half as wide as they should.
    """


class Estimate(NamedTuple):
    """One figure."""

    value: float
    low: float
    high: float
    nominal: float
    identified: bool
    at_bound: bool


@dataclass
class Fit:
    """What is known of some joints after a log."""

    joints: tuple[str, ...]
    theta: np.ndarray
    sd: np.ndarray
    """Standard deviations of `theta`."""
    nominal: np.ndarray
    bounds: np.ndarray
    """(2, size)."""
    held_out: dict[str, np.ndarray]
    """RMSE of each joint over samples never fitted, rad: `nominal`, `fitted`."""
    train: dict[str, np.ndarray]
    """Likewise over those that were."""
    time: np.ndarray
    """(T,) of the stretch of the log in which these joints move, s."""
    commands: np.ndarray
    """(T, joints) in it, rad."""
    measured: np.ndarray
    """Likewise."""
    predicted: np.ndarray
    """(T, joints) simulated positions of the fitted model; NaN where none."""
    cost: dict[str, float]
    """Of the search `candidates`, `steps`, `simulated_s`; and the times of it and of the polish, wall and CPU."""
    trace: list[list[float]]
    """RMSE of each joint's best candidate, for each generation, rad."""

    def figures(self) -> dict[str, dict[str, Estimate]]:
        """Each joint's figures by parameter."""
        n = len(self.joints)
        return {
            joint: {
                name: self._estimate(i * n + j, PRIOR[name]) for i, name in enumerate(PARAMETERS)
            }
            for j, joint in enumerate(self.joints)
        }

    def _estimate(self, k: int, prior: float) -> Estimate:
        x, sd = self.theta[k], self.sd[k]
        value, low, high = (float(np.exp(x + side * SURE * sd)) for side in (0, -1, 1))
        near = 0.01 * (self.bounds[1, k] - self.bounds[0, k])
        at_bound = bool(x - self.bounds[0, k] < near or self.bounds[1, k] - x < near)
        return Estimate(
            value,
            low,
            high,
            float(np.exp(self.nominal[k])),
            bool(sd < IDENTIFIED * prior),
            at_bound,
        )

    def delay(self) -> Estimate:
        """s."""
        x, sd = DELAY_UNIT * self.theta[-1], DELAY_UNIT * self.sd[-1]
        low, high = DELAY_UNIT * self.bounds[:, -1]
        at_bound = bool(x - low < 1e-4 or high - x < 1e-4)
        return Estimate(
            float(x), float(x - SURE * sd), float(x + SURE * sd), 0.0, bool(sd < 0.01), at_bound
        )


def fit(
    robot: Robot,
    joints: tuple[str, ...],
    log: HandLog,
    how: Search,
    say: Callable[[str], None] = lambda _: None,
) -> Fit:
    """Fit the servos of one branch of a robot to a log.

    `say` is told of progress. Raises DeftlyError if the log is too short to hold a part out.
    """
    log = moving(log, [[j.name for j in robot.joints].index(name) for name in joints])
    last, clock = round(len(log.time) * (1 - how.held_out)), [_clock()]
    coarse = Chain(robot, joints, log, SEARCH_DT, how.delays)
    nominal, bounds = coarse.nominal(), _bounds(coarse, how)
    short = _windows(log, 0, last, WINDOW_S)
    if len(short) < 2:
        raise DeftlyError(
            f"the fitted part of the log has {log.time[last - 1]:.3g} s, too few for windows: log longer"
        )
    order = informative(coarse, short)
    theta, trace = search(coarse, [order[:4], order[:8]], bounds, how, say)
    clock.append(_clock())
    theta, sd = polish(robot, joints, log, last, theta, bounds, how, say)
    final = Chain(robot, joints, log, how.timesteps[-1], how.delays)
    both = np.stack([nominal, theta])
    predicted = np.full((2, *final.state.shape), np.nan)
    windows = [*_windows(log, 0, last, LONG_S), *_windows(log, last, len(log.time), LONG_S)]
    for w, path in zip(windows, final.simulate(both, windows)):
        predicted[:, w.first + w.burn : w.last] = path[:, w.burn :]
    error = predicted - final.state
    parts = {"train": slice(0, last), "held_out": slice(last, None)}
    rmse = {
        part: {
            name: np.sqrt(np.nanmean(error[k, rows] ** 2, axis=0))
            for k, name in enumerate(("nominal", "fitted"))
        }
        for part, rows in parts.items()
    }
    (search_s, search_cpu), (polish_s, polish_cpu) = np.diff([*clock, _clock()], axis=0).tolist()
    cost = {"candidates": how.generations * how.population, "steps": coarse.steps}
    cost |= {
        "simulated_s": coarse.steps * SEARCH_DT,
        "search_s": search_s,
        "search_cpu_s": search_cpu,
    }
    cost |= {"polish_s": polish_s, "polish_cpu_s": polish_cpu}
    seen = {
        "time": log.time,
        "commands": final.cmd,
        "measured": final.state,
        "predicted": predicted[1],
    }
    return Fit(
        joints,
        theta,
        sd,
        nominal,
        bounds,
        rmse["held_out"],
        rmse["train"],
        **seen,
        cost=cost,
        trace=trace,
    )


def _clock() -> tuple[float, float]:
    """Time on the wall, and of the CPU over all threads, s."""
    return time.perf_counter(), time.process_time()


def _bounds(chain: Chain, how: Search) -> np.ndarray:
    reach = np.full(chain.size, np.log(how.bound))
    low, high = chain.nominal() - reach, chain.nominal() + reach
    low[-1], high[-1] = np.array(how.delays) / DELAY_UNIT
    return np.stack([low, high])


def _windows(log: HandLog, first: int, last: int, seconds: float) -> list[Window]:
    """Windows over the samples first .. last, whose compared parts lie side by side."""
    period = float(np.median(np.diff(log.time)))
    burn, length = max(2, round(BURN_S / period)), max(4, round(seconds / period))
    starts = range(first + burn, last - 2, length)
    return [Window(s - burn, min(s + length, last), burn) for s in starts]


# --------------------------------------------------------------- the search


def informative(chain: Chain, windows: list[Window]) -> list[Window]:
    """The windows in an order in which the joint that moved least so far comes next, in its liveliest window."""
    motion = np.array(
        [np.abs(np.diff(chain.cmd[w.first : w.last], axis=0)).sum(0) for w in windows]
    )
    total = motion.sum(0)
    motion = np.where(
        total > STILL, motion, motion.sum(1, keepdims=True)
    )  # of a joint that rests, none is livelier
    motion /= motion.sum(0) + 1e-9
    order: list[int] = []
    while len(order) < len(windows):
        left = [i for i in range(len(windows)) if i not in order]
        joint = int(motion[order].sum(0).argmin())
        order.append(max(left, key=lambda i: motion[i, joint]))
    return [windows[i] for i in order]


def errors(chain: Chain, theta: np.ndarray, windows: list[Window]) -> np.ndarray:
    """Mean squared error of each candidate and joint, (candidates, joints), rad2."""
    total, count = np.zeros((len(theta), len(chain.joints))), 0
    for w, path in zip(windows, chain.simulate(theta, windows)):
        total += ((path - chain.state[w.first : w.last])[:, w.burn :] ** 2).sum(1)
        count += w.last - w.first - w.burn
    return np.nan_to_num(total / count, nan=np.inf)


def search(
    chain: Chain,
    stages: list[list[Window]],
    bounds: np.ndarray,
    how: Search,
    say: Callable[[str], None],
) -> tuple[np.ndarray, list[list[float]]]:
    """The best candidate, (size,), and each generation's best errors, by the cross-entropy method or at random.

    The first half of the generations is judged by the first list of windows, the second by the last.
    """
    rng, n = np.random.default_rng(how.seed), len(chain.joints)
    mean, std = np.clip(chain.nominal(), *bounds), np.full(chain.size, 0.5)
    mean[-1], std[-1] = bounds[:, -1].mean(), np.ptp(bounds[:, -1]) / 3
    elite, trace = max(4, round(ELITES * how.population)), []
    pool: list[tuple[np.ndarray, np.ndarray]] = []
    for generation in range(how.generations):
        theta = np.clip(mean + std * rng.standard_normal((how.population, chain.size)), *bounds)
        theta[0] = mean
        late = how.optimizer == "random" or 2 * generation >= how.generations
        began, before = time.perf_counter(), chain.steps
        score = errors(chain, theta, stages[-1 if late else 0])
        trace.append(np.sqrt(score.min(0)).tolist())
        if how.optimizer == "random":
            pool.append((theta, score))
            if generation + 1 < how.generations:
                continue
            theta, score = (np.concatenate(part) for part in zip(*pool))
        new_mean, new_std = _elite(theta, score, elite, n)
        keep = 0.0 if how.optimizer == "random" else SMOOTHING
        mean = keep * mean + (1 - keep) * new_mean
        std = np.maximum(keep * std + (1 - keep) * new_std, LEAST_STD)
        speed = (chain.steps - before) / (time.perf_counter() - began)
        rms = " ".join(f"{1e3 * e:.1f}" for e in trace[-1])
        say(f"generation {generation + 1}/{how.generations}: best {rms} mrad; {speed:,.0f} steps/s")
    return mean, trace


def _elite(
    theta: np.ndarray, score: np.ndarray, count: int, n: int
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each joint's best candidates; of the delay, of all joints' by their weight."""
    mean, std = np.empty(theta.shape[1]), np.empty(theta.shape[1])
    delays = []
    for j in range(n):
        best = theta[np.argpartition(score[:, j], count - 1)[:count]]
        mean[j:-1:n], std[j:-1:n] = best[:, j:-1:n].mean(0), best[:, j:-1:n].std(0)
        delays.append((best[:, -1].mean(), best[:, -1].var() + 1e-6))
    centre, variance = np.array(delays).T
    mean[-1] = (centre / variance).sum() / (1 / variance).sum()
    std[-1] = np.sqrt(variance.min())
    return mean, std


# --------------------------------------------------------------- the polish


class Problem:
    """Residuals of candidates over all of the fitted part, weighted by the noise of each joint, and of the prior."""

    def __init__(self, chain: Chain, windows: list[Window], theta: np.ndarray):
        self.chain, self.windows, n = chain, windows, len(chain.joints)
        self._known: dict[bytes, np.ndarray] = {}
        self.prior_sd = np.append(
            np.repeat([PRIOR[p] for p in PARAMETERS], n), PRIOR_DELAY / DELAY_UNIT
        )
        self.centre = chain.nominal()
        self.eps = np.append(np.full(chain.size - 1, EPS), EPS_DELAY)
        self.noise = _noise(self.compare(theta[None])[0])
        """Standard deviation of each joint's error at `theta`, (joints,), rad."""

    def __str__(self) -> str:
        return " ".join(f"{1e3 * e:.2f}" for e in self.noise) + " mrad"

    def compare(self, theta: np.ndarray) -> np.ndarray:
        """Errors of candidates, (candidates, samples, joints), rad."""
        new = [row for row in theta if row.tobytes() not in self._known]
        found = {}
        if new:
            paths = zip(self.windows, self.chain.simulate(np.array(new), self.windows))
            errors = np.concatenate(
                [(path - self.chain.state[w.first : w.last])[:, w.burn :] for w, path in paths], 1
            )
            found = {row.tobytes(): error for row, error in zip(new, errors)}
        # what was asked last is often asked again: a step goes on from the best of its tries
        known = self._known | found
        self._known = {row.tobytes(): known[row.tobytes()] for row in theta}
        return np.stack([known[row.tobytes()] for row in theta])

    def residual(self, x: np.ndarray) -> np.ndarray:
        """(residuals, candidates) of columns x (size, candidates)."""
        error = (self.compare(x.T) / self.noise).reshape(x.shape[1], -1)
        return np.concatenate((error, (x.T - self.centre) / self.prior_sd), 1).T

    def jacobian(self, x: np.ndarray, full: bool = True) -> np.ndarray:
        """(residuals, size) at x (size,), by central differences.

        Unless `full`, a parameter is changed in all joints at once, and each joint's error put down to its own: seven
        pairs of candidates in place of one for each number.
        """
        size, n = self.chain.size, len(self.chain.joints)
        names = [np.arange(size)[i : i + 1] for i in range(size)]
        groups = (
            names
            if full
            else [*np.split(np.arange(size - 1), len(PARAMETERS)), np.array([size - 1])]
        )
        theta = np.repeat(x[None], 2 * len(groups), 0)
        for g, group in enumerate(groups):
            theta[2 * g, group] += self.eps[group]
            theta[2 * g + 1, group] -= self.eps[group]
        error = self.compare(theta) / self.noise
        slope = [
            (error[2 * g] - error[2 * g + 1]) / (2 * self.eps[group[0]])
            for g, group in enumerate(groups)
        ]
        out = np.zeros((*error.shape[1:], size))
        for group, change in zip(groups, slope):
            if full or len(group) == 1:
                out[:, :, group[0]] = change
            else:
                out[:, np.arange(n), group] = change
        return np.concatenate((out.reshape(-1, size), np.diag(1 / self.prior_sd)))

    def improve(
        self, theta: np.ndarray, bounds: np.ndarray, jacobian: np.ndarray
    ) -> tuple[np.ndarray, float]:
        """A step of Levenberg and Marquardt, the best of several dampings or none; and by how much the cost falls."""
        x = np.clip(theta, *bounds)
        here = self.residual(x[:, None])[:, 0]
        normal, slope = jacobian.T @ jacobian, jacobian.T @ here
        damped = [np.linalg.solve(normal + np.diag(mu * np.diag(normal)), slope) for mu in DAMPINGS]
        tries = np.clip(x - np.array(damped), *bounds)
        gained = float((here**2).sum()) - (self.residual(tries.T) ** 2).sum(0)
        best = int(np.nan_to_num(gained, nan=-np.inf).argmax())
        return (tries[best], float(gained[best])) if gained[best] > 0 else (x, 0.0)

    def step(
        self, theta: np.ndarray, bounds: np.ndarray, jacobian: np.ndarray
    ) -> tuple[np.ndarray, float]:
        """A step of Gauss and Newton, and its length in standard deviations of the number that moves most.

        It is taken whether or not the cost falls. Near the minimum the cost is rough, as sticking joints come to rest
        here or there by chance, and a search for less of it stops anywhere; that the slopes tell nothing more of the
        residuals is a smooth condition, met after a few steps.
        """
        normal = jacobian.T @ jacobian
        move = np.linalg.solve(normal, jacobian.T @ self.residual(theta[:, None])[:, 0])
        if not np.isfinite(move).all():  # a simulation broke: what the coarse polish found stays
            return theta, 0.0
        new = np.clip(theta - move.clip(-FAR, FAR), *bounds)
        return new, float((np.abs(new - theta) * np.sqrt(1 / np.diag(np.linalg.inv(normal)))).max())


def polish(
    robot: Robot,
    joints: tuple[str, ...],
    log: HandLog,
    last: int,
    theta: np.ndarray,
    bounds: np.ndarray,
    how: Search,
    say: Callable[[str], None],
) -> tuple[np.ndarray, np.ndarray]:
    """The candidate that explains the fitted part best, and the standard deviations of its numbers, (size,) each."""
    windows, (coarse, middle, fine) = _windows(log, 0, last, LONG_S), how.timesteps
    chain = Chain(robot, joints, log, coarse, how.delays)
    for _ in range(how.polish):
        problem = Problem(chain, windows, theta)
        theta, gained = problem.improve(theta, bounds, problem.jacobian(theta, full=False))
        say(f"polish at {1e3 * coarse:g} ms: {problem}, gains {gained:.1f}")
        if gained < ENOUGH:
            break
    problem = Problem(Chain(robot, joints, log, fine, how.delays), windows, theta)
    steer = Problem(Chain(robot, joints, log, middle, how.delays), windows, theta)
    slopes, deviation = np.empty(0), problem.prior_sd
    for _ in range(ROUNDS):
        before, problem.noise = theta, _noise(problem.compare(theta[None])[0])
        slopes = _slopes(steer, problem, theta)
        for _ in range(STEPS):
            theta, moved = problem.step(theta, bounds, slopes)
            say(f"polish at {1e3 * fine:g} ms: {problem}, moves by {moved:.2f} standard deviations")
            if moved < NEAR[0]:
                break
        deviation = _deviations(problem, theta, slopes, middle)
        if (np.abs(theta - before) < NEAR[1] * deviation).all():
            break
    return theta, np.minimum(
        np.hypot(deviation, _numerical(steer, problem, theta, slopes)), problem.prior_sd
    )


def _numerical(
    steer: Problem, problem: Problem, theta: np.ndarray, slopes: np.ndarray
) -> np.ndarray:
    """How far the fit is off for steps that have a length, (size,), by what those of the slopes would change."""
    change = (steer.residual(theta[:, None]) - problem.residual(theta[:, None]))[:, 0]
    ratio = steer.chain.timestep / problem.chain.timestep
    return np.abs(np.linalg.solve(slopes.T @ slopes, slopes.T @ change)) / max(1.0, ratio - 1)


def _slopes(steer: Problem, problem: Problem, theta: np.ndarray) -> np.ndarray:
    """Jacobian of `steer`, weighted as the residuals of `problem` are."""
    steer.noise = problem.noise
    return steer.jacobian(theta)


def _noise(error: np.ndarray) -> np.ndarray:
    """Standard deviation of each joint's error, (joints,), by its quartiles: what is far out counts little."""
    low, high = np.percentile(error, [25, 75], axis=0)
    return np.maximum((high - low) / 1.349, 1e-4)


def _deviations(
    problem: Problem, theta: np.ndarray, jacobian: np.ndarray, resolution: float
) -> np.ndarray:
    """Standard deviations, (size,): the larger of those of independent errors, and of errors alike within a block.

    A delay is told no finer than `resolution`, the timestep (s) at which its slope is taken.
    """
    n = len(problem.chain.joints)
    residual = problem.residual(theta[:, None])[:, 0]
    inverse = np.linalg.inv(jacobian.T @ jacobian)
    rows = len(residual) - len(theta)
    scale = max(1.0, float((residual[:rows] ** 2).mean()))
    score = (jacobian[:rows] * residual[:rows, None]).reshape(-1, n, len(theta)).sum(1)
    blocks = np.add.reduceat(score, np.arange(0, len(score), BLOCK))
    prior = np.diag(1 / problem.prior_sd**2)
    alike = inverse @ (blocks.T @ blocks + prior) @ inverse
    variance = np.maximum(scale * np.diag(inverse), np.diag(alike))
    variance = np.minimum(variance, problem.prior_sd**2)
    variance[-1] += (resolution / DELAY_UNIT) ** 2 / 12
    return np.sqrt(variance)
