"""What a fit came to: what to doubt in it, the JSON, and the picture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from deftly import __version__
from deftly.console import Finding
from deftly.files import atomic_write, write_json
from deftly.robots.actuators import Actuators, Identified
from deftly.sysid.fit import Estimate, Fit, Search
from deftly.sysid.logs import STILL, HandLog, jitter
from deftly.sysid.model import UNITS

SCHEMA = "deftly.sysid/1"
JITTER, GAP = 0.02, 1.5
"""Spread of time stamps, and their longest gap, in periods, that are spoken of."""
OVERFIT = 1.5


def pooled(fits: list[Fit]) -> Estimate:
    """The delay of all fits, each by its weight, s: the joints of a robot are on one bus."""
    delays = [f.delay() for f in fits]
    sd = np.array([max(1e-6, (d.high - d.low) / 2) for d in delays])
    weight = sd**-2 / (sd**-2).sum()
    value, half = float(weight @ [d.value for d in delays]), float((sd**-2).sum() ** -0.5)
    apart = max(
        abs(d.value - value) for d in delays
    )  # fingers that differ are not known better than they agree
    half = max(half, apart)
    return Estimate(
        value,
        value - half,
        value + half,
        0.0,
        all(d.identified for d in delays),
        any(d.at_bound for d in delays),
    )


def doubts(log: HandLog, fits: list[Fit], how: Search) -> Iterator[Finding]:
    """What the user should know before using the figures."""
    yield _stamps(log)
    for fit in fits:
        for name, figures in fit.figures().items():
            yield from _joint(name, figures, how.bound)
        for j, name in enumerate(fit.joints):
            before, after, fitted = (
                f[j] for f in (fit.held_out["nominal"], fit.held_out["fitted"], fit.train["fitted"])
            )
            text = (
                f"held-out error {1e3 * after:.2f} mrad, with the robot's file {1e3 * before:.2f}"
            )
            if after > before:
                yield Finding(name, "fail", f"{text}: the fit is worse than no fit; do not use it")
            elif after > OVERFIT * fitted + 1e-3:
                yield Finding(
                    name,
                    "warn",
                    f"{text}, where fitted {1e3 * fitted:.2f}: the rest of the log is unlike it",
                )
            else:
                yield Finding(name, "ok", text)
    still = [
        n for f in fits for n, span in zip(f.joints, np.ptp(f.commands, axis=0)) if span < STILL
    ]
    if still:
        yield Finding(
            "excitation",
            "warn",
            f"{', '.join(still)} not moved: their figures stay the robot's file's",
        )
    delay = pooled(fits)
    text = f"{1e3 * delay.value:.1f} ms ({1e3 * delay.low:.1f} .. {1e3 * delay.high:.1f})"
    if delay.at_bound:
        low = delay.value < 1e-3
        hint = (
            "states may be of after their commands: --delay-min-ms -50"
            if low
            else "widen with --delay-max-ms"
        )
        yield Finding("delay", "warn", f"{text} sits at its bound: {hint}")
    else:
        yield Finding("delay", "ok" if delay.identified else "warn", text)


def _stamps(log: HandLog) -> Finding:
    facts = jitter(log)
    period, std, longest = facts["period"], facts["std"], facts["longest"]
    if not facts["stamped"]:
        return Finding(
            "time",
            "warn",
            f"no time stamps: samples are taken to be {1e3 * period:g} ms apart, all alike",
        )
    text = f"samples every {1e3 * period:.2f} ms, spread {1e3 * std:.2f} ms, longest gap {1e3 * longest:.1f} ms"
    if std > JITTER * period or longest > GAP * period:
        return Finding(
            "time", "warn", f"the time stamps jitter: {text}; they are taken at their word"
        )
    return Finding("time", "ok", text)


def _joint(name: str, figures: dict[str, Estimate], bound: float) -> Iterator[Finding]:
    at = [p for p, e in figures.items() if e.at_bound]
    if at:
        yield Finding(
            name,
            "warn",
            f"{', '.join(at)} sits at its bound, a factor {bound:g}: widen it, --bound {2 * bound:g}",
        )
    unknown = [
        f"{p} ({e.low:.3g} .. {e.high:.3g} {UNITS[p]})"
        for p, e in figures.items()
        if not e.identified
    ]
    if unknown:
        yield Finding(
            name,
            "warn",
            f"the log does not tell {', '.join(unknown)}: the interval is mostly prior",
        )


def facts(
    task: str,
    robot: str,
    path: Path,
    log: HandLog,
    fits: list[Fit],
    how: Search,
    found: list[Finding],
) -> dict[str, Any]:
    """The JSON of a fit. Figures are SI units; intervals are of 95 %."""
    joints: dict[str, Any] = {}
    for fit in fits:
        for j, (name, figures) in enumerate(fit.figures().items()):
            rows = {p: {**e._asdict(), "unit": UNITS[p]} for p, e in figures.items()}
            error = {
                f"{part}_rmse": {
                    key: float(values[j]) for key, values in getattr(fit, part).items()
                }
                for part in ("train", "held_out")
            }
            joints[name] = {**rows, **error}
    return {
        "schema": SCHEMA,
        "deftly": __version__,
        "task": task,
        "robot": robot,
        "log": path.name,
        "seconds": float(log.time[-1]),
        "time": jitter(log),
        "joints": joints,
        "delay": {**pooled(fits)._asdict(), "unit": "s"},
        "delay_by_branch": {"+".join(f.joints): f.delay()._asdict() for f in fits},
        "search": {**how.__dict__, **{k: sum(f.cost[k] for f in fits) for k in fits[0].cost}},
        "trace": {"+".join(f.joints): f.trace for f in fits},
        "warnings": [f"{f.name}: {f.text}" for f in found if f.level != "ok"],
    }


def write(path: Path, data: dict[str, Any]) -> None:
    """Write the JSON atomically."""
    write_json(path, data, indent=1)


def identified(fits: list[Fit]) -> Actuators:
    """What training should use: the figures that the log tells, and none that sits at its bound."""
    joints = {
        name: {
            p: Identified(e.value, e.low, e.high)
            for p, e in figures.items()
            if e.identified and not e.at_bound
        }
        for fit in fits
        for name, figures in fit.figures().items()
    }
    delay = pooled(fits)
    value = max(0.0, delay.value)
    known = (
        Identified(value, max(0.0, min(delay.low, value)), max(delay.high, value))
        if delay.identified
        else None
    )
    return Actuators({name: figures for name, figures in joints.items() if figures}, known)


def table(fits: list[Fit]) -> list[str]:
    """The figures, a line for each joint; those that the log does not tell have a question mark."""
    lines = [f"{'joint':<8} {'':>1}" + "".join(f"{p + ', ' + u:>27}" for p, u in UNITS.items())]
    for fit in fits:
        for name, figures in fit.figures().items():
            cells = [
                f"{e.value:.3g} ({e.low:.3g}..{e.high:.3g}){'' if e.identified else '?'}"
                for e in figures.values()
            ]
            lines.append(f"{name:<8}  " + "".join(f"{cell:>27}" for cell in cells))
    return lines


def plot(path: Path, fits: list[Fit], held_out: float) -> None:
    """Write a PNG with command, measured and simulated position of each joint; what was not fitted is shaded."""
    from matplotlib.figure import Figure as Picture

    names = [name for fit in fits for name in fit.joints]
    picture = Picture(figsize=(14, 2.3 * len(names)), layout="constrained")
    panels = iter(np.atleast_1d(picture.subplots(len(names), sharex=True)))
    for fit in fits:
        time = fit.time
        start = time[round((len(time) - 1) * (1 - held_out))]
        for j, name in enumerate(fit.joints):
            axes = next(panels)
            axes.step(time, fit.commands[:, j], where="post", color="0.7", lw=1.0, label="command")
            axes.plot(time, fit.measured[:, j], color="C0", lw=1.2, label="measured")
            axes.plot(
                time, fit.predicted[:, j], "--", color="C1", lw=1.0, label="simulated, fitted"
            )
            axes.axvspan(start, time[-1], color="0.93", zorder=0, label="held out")
            error = 1e3 * fit.held_out["fitted"][j]
            axes.set_ylabel(f"{name}, rad")
            axes.set_title(f"held-out error {error:.2f} mrad", fontsize=9, loc="right")
    picture.axes[0].legend(loc="upper left", ncols=4, fontsize=8)
    picture.axes[-1].set_xlabel("s")
    with atomic_write(path) as scratch:
        picture.savefig(scratch, format="png", dpi=110)
