"""Report of a fit: what to doubt in it, the JSON, the table and the plot."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from deftly import __version__
from deftly.console import Finding
from deftly.files import atomic_write, write_json
from deftly.robots.actuators import Actuators, Identified
from deftly.sysid.fit import IQR_PER_STD, MIN_NOISE, Estimate, Fit, FitSettings
from deftly.sysid.logs import MIN_MOTION, HandLog, jitter
from deftly.sysid.model import UNITS

SCHEMA = "deftly.sysid/1"
JITTER = 0.02
"""Standard deviation of the periods between time stamps, in periods, above which a finding warns."""
GAP = 1.5
"""Likewise their longest gap."""
WORSE, WORSE_RAD = 1.1, 2e-4
"""Held-out error, over that of the robot's file and above it (rad), from which a fit is worse than none."""
OUTLIER = 6.0
"""Error of a sample in standard deviations (of the middle half of the errors) that the model does not explain."""
MAX_OUTLIERS = 0.02
"""Fraction of such samples above which a finding warns."""
OVERFIT = 1.5
"""Held-out error over that of the fitted part above which a finding warns."""


def pooled(fits: list[Fit]) -> Estimate:
    """The delay of all fits, each weighted by its precision, s: the joints of a robot are on one bus."""
    delays = [fit.delay() for fit in fits]
    widths = np.array([delay.high - delay.low for delay in delays])
    half_widths = widths / 2
    precision = np.maximum(half_widths, 1e-6) ** -2
    weight = precision / precision.sum()
    value = float(weight @ [delay.value for delay in delays])
    half_width = float(precision.sum() ** -0.5)
    # fingers that differ are not known better than they agree
    disagreement = max(abs(delay.value - value) for delay in delays)
    half_width = max(half_width, disagreement)
    return Estimate(
        value=value,
        low=value - half_width,
        high=value + half_width,
        nominal=0.0,
        identified=all(delay.identified for delay in delays),
        at_bound=any(delay.at_bound for delay in delays),
    )


# --------------------------------------------------------------- findings


def findings(log: HandLog, fits: list[Fit], settings: FitSettings) -> Iterator[Finding]:
    """What the user should know before using the parameters."""
    yield _time_stamps(log)
    for note in log.notes:
        yield Finding("convention", "warn", note)
    for fit in fits:
        yield from _touch(fit)
        for name, estimates in fit.parameters().items():
            yield from _parameters(name, estimates, settings.bound)
        for joint in range(len(fit.joints)):
            yield _error(fit, joint)
            yield from _outliers(fit, joint)
    yield from _excitation(fits)
    yield _delay(pooled(fits))


def _time_stamps(log: HandLog) -> Finding:
    found = jitter(log)
    period = found["period"]
    std = found["std"]
    longest = found["longest"]
    if not found["stamped"]:
        text = f"no time stamps: samples are taken to be {1e3 * period:g} ms apart, all alike"
        return Finding("time", "warn", text)
    text = (
        f"samples every {1e3 * period:.2f} ms, "
        f"standard deviation {1e3 * std:.2f} ms, longest gap {1e3 * longest:.1f} ms"
    )
    if found["gaps"]:
        text += (
            f"; {found['gaps']} gaps, {found['missing']:.1f} s in all: the parts between are fitted"
        )
        return Finding("time", "warn", text)
    if std > JITTER * period or longest > GAP * period:
        text = f"the time stamps jitter: {text}; they are taken at their word"
        return Finding("time", "warn", text)
    return Finding("time", "ok", text)


def _touch(fit: Fit) -> Iterator[Finding]:
    """What touched and was left out, and what that makes of the intervals."""
    if fit.touch.fraction == 0.0:
        return
    text = (
        f"{fit.touch}; that is left out, and {fit.used:.0%} of the samples are used. Intervals are as wide as "
        "these samples leave them; of a touch that was missed they know nothing: trust them where the held-out "
        "error is that of the fitted part"
    )
    yield Finding("+".join(fit.joints), "warn", text)


def _outliers(fit: Fit, joint: int) -> Iterator[Finding]:
    """Errors that nothing in the model explains, where no links of the robot touch."""
    error = (fit.predicted - fit.measured)[: fit.train_end, joint]
    error = error[np.isfinite(error)]
    low, middle, high = np.percentile(error, [25, 50, 75])
    std = max((high - low) / IQR_PER_STD, MIN_NOISE)
    fraction = float((np.abs(error - middle) > OUTLIER * std).mean())
    if fraction > MAX_OUTLIERS:
        text = (
            f"{fraction:.0%} of the fitted samples are more than {OUTLIER:g} standard deviations off, where no "
            "links touch: did something else touch, a table, an object, a cable?"
        )
        yield Finding(fit.joints[joint], "warn", text)


def _parameters(joint: str, estimates: dict[str, Estimate], bound: float) -> Iterator[Finding]:
    at_bound = []
    unknown = []
    for name, estimate in estimates.items():
        if estimate.at_bound:
            at_bound.append(name)
        if not estimate.identified:
            interval = f"{estimate.low:.3g} .. {estimate.high:.3g} {UNITS[name]}"
            unknown.append(f"{name} ({interval})")
    if at_bound:
        text = f"{', '.join(at_bound)} sits at its bound, a factor {bound:g}"
        yield Finding(joint, "warn", f"{text}: widen it, --bound {2 * bound:g}")
    if unknown:
        text = f"the log does not determine {', '.join(unknown)}"
        yield Finding(joint, "warn", f"{text}: the interval is mostly prior")


def _error(fit: Fit, joint: int) -> Finding:
    """The held-out error of a joint, against that of the robot's file and that of the fitted part."""
    name = fit.joints[joint]
    nominal = fit.held_out["nominal"][joint]
    fitted = fit.held_out["fitted"][joint]
    train = fit.train["fitted"][joint]
    text = f"held-out error {1e3 * fitted:.2f} mrad, with the robot's file {1e3 * nominal:.2f}"
    if fitted > WORSE * nominal + WORSE_RAD:
        return Finding(name, "fail", f"{text}: the fit is worse than no fit; do not use it")
    if fitted > OVERFIT * train + 1e-3:
        hint = f"where fitted {1e3 * train:.2f}: the rest of the log is unlike it"
        return Finding(name, "warn", f"{text}, {hint}")
    return Finding(name, "ok", text)


def _excitation(fits: list[Fit]) -> Iterator[Finding]:
    still = []
    for fit in fits:
        spans = np.ptp(fit.commands, axis=0)
        for name, span in zip(fit.joints, spans):
            if span < MIN_MOTION:
                still.append(name)
    if still:
        text = f"{', '.join(still)} not moved: their parameters stay those of the robot's file"
        yield Finding("excitation", "warn", text)


def _delay(delay: Estimate) -> Finding:
    value = 1e3 * delay.value
    low = 1e3 * delay.low
    high = 1e3 * delay.high
    text = f"{value:.1f} ms ({low:.1f} .. {high:.1f})"
    if not delay.at_bound:
        return Finding("delay", "ok" if delay.identified else "warn", text)
    hint = "widen with --delay-max-ms"
    if delay.value < 1e-3:
        hint = "states may be of after their commands: --delay-min-ms -50"
    return Finding("delay", "warn", f"{text} sits at its bound: {hint}")


# --------------------------------------------------------------- files


def contents(
    task: str,
    robot: str,
    path: Path,
    log: HandLog,
    fits: list[Fit],
    settings: FitSettings,
    found: list[Finding],
) -> dict[str, Any]:
    """The JSON of a fit. Parameters are in SI units; intervals are of 95 %."""
    warnings = [f"{f.name}: {f.text}" for f in found if f.level != "ok"]
    joints: dict[str, Any] = {}
    by_branch: dict[str, Any] = {}
    trace: dict[str, Any] = {}
    touch: dict[str, Any] = {}
    cost: dict[str, float] = dict.fromkeys(fits[0].cost, 0)
    for fit in fits:
        joints |= _joints(fit)
        branch = "+".join(fit.joints)
        pairs = {" and ".join(pair): value for pair, value in fit.touch.pairs.items()}
        touch[branch] = {"touching": fit.touch.fraction, "pairs": pairs, "used": fit.used}
        by_branch[branch] = fit.delay()._asdict()
        trace[branch] = fit.trace
        for name, value in fit.cost.items():
            cost[name] += value
    return {
        "schema": SCHEMA,
        "deftly": __version__,
        "task": task,
        "robot": robot,
        "log": path.name,
        "seconds": float(log.time[-1]),
        "time": jitter(log),
        "touch": touch,
        "joints": joints,
        "delay": {**pooled(fits)._asdict(), "unit": "s"},
        "delay_by_branch": by_branch,
        "search": {**vars(settings), **cost},
        "trace": trace,
        "warnings": warnings,
    }


def _joints(fit: Fit) -> dict[str, Any]:
    """Each joint's parameters and errors."""
    joints: dict[str, Any] = {}
    for j, (joint, estimates) in enumerate(fit.parameters().items()):
        joints[joint] = {}
        for name, estimate in estimates.items():
            joints[joint][name] = {**estimate._asdict(), "unit": UNITS[name]}
        joints[joint]["train_rmse"] = _of_joint(fit.train, j)
        joints[joint]["held_out_rmse"] = _of_joint(fit.held_out, j)
    return joints


def _of_joint(rmse: dict[str, np.ndarray], joint: int) -> dict[str, float]:
    return {model: float(values[joint]) for model, values in rmse.items()}


def write(path: Path, data: dict[str, Any]) -> None:
    """Write the JSON atomically."""
    write_json(path, data, indent=1)


def identified(fits: list[Fit]) -> Actuators:
    """What training should use: the parameters that were identified, and none that sits at its bound."""
    joints: dict[str, dict[str, Identified]] = {}
    for fit in fits:
        for joint, estimates in fit.parameters().items():
            known = _identified(estimates)
            if known:
                joints[joint] = known
    delay = pooled(fits)
    if not delay.identified:
        return Actuators(joints, None)
    value = max(0.0, delay.value)
    low = max(0.0, min(delay.low, value))
    high = max(delay.high, value)
    return Actuators(joints, Identified(value, low, high))


def _identified(estimates: dict[str, Estimate]) -> dict[str, Identified]:
    known = {}
    for name, estimate in estimates.items():
        if estimate.identified and not estimate.at_bound:
            known[name] = Identified(estimate.value, estimate.low, estimate.high)
    return known


def table(fits: list[Fit]) -> list[str]:
    """The parameters, a line for each joint; those that the log does not determine have a question mark."""
    header = [f"{name}, {unit}" for name, unit in UNITS.items()]
    lines = [_line("joint", header)]
    for fit in fits:
        for joint, estimates in fit.parameters().items():
            cells = [_cell(estimate) for estimate in estimates.values()]
            lines.append(_line(joint, cells))
    return lines


def _line(joint: str, cells: list[str]) -> str:
    columns = "".join(f"{cell:>27}" for cell in cells)
    return f"{joint:<8}  {columns}"


def _cell(estimate: Estimate) -> str:
    interval = f"{estimate.low:.3g}..{estimate.high:.3g}"
    mark = "" if estimate.identified else "?"
    return f"{estimate.value:.3g} ({interval}){mark}"


def plot(path: Path, fits: list[Fit]) -> None:
    """Write a PNG with command, measured and simulated position of each joint; what was held out is shaded."""
    from matplotlib import figure

    count = sum(len(fit.joints) for fit in fits)
    fig = figure.Figure(figsize=(14, 2.3 * count), layout="constrained")
    axes = iter(np.atleast_1d(fig.subplots(count, sharex=True)))
    for fit in fits:
        for joint in range(len(fit.joints)):
            _plot_joint(next(axes), fit, joint)
    fig.axes[0].legend(loc="upper left", ncols=4, fontsize=8)
    fig.axes[-1].set_xlabel("s")
    with atomic_write(path) as scratch:
        fig.savefig(scratch, format="png", dpi=110)


def _plot_joint(axes: Any, fit: Fit, joint: int) -> None:
    time = fit.time
    command = fit.commands[:, joint]
    measured = fit.measured[:, joint]
    predicted = fit.predicted[:, joint]
    axes.step(time, command, where="post", color="0.7", lw=1.0, label="command")
    axes.plot(time, measured, color="C0", lw=1.2, label="measured")
    axes.plot(time, predicted, "--", color="C1", lw=1.0, label="simulated, fitted")
    axes.axvspan(time[fit.train_end], time[-1], color="0.93", zorder=0, label="held out")
    error = 1e3 * fit.held_out["fitted"][joint]
    axes.set_ylabel(f"{fit.joints[joint]}, rad")
    axes.set_title(f"held-out error {error:.2f} mrad", fontsize=9, loc="right")
