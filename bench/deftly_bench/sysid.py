"""How well `deftly sysid` finds the figures of simulated servos again, and how long it takes.

    python -m deftly_bench.sysid --trials 20 --out bench/results/sysid.json

Each trial draws servos, a delay and a motion, lets the whole hand, at 0.05 ms steps, follow it under the safety kernel
with noise, jitter and quantisation, fits one finger, and compares. The figures drawn are those of `LIMITS`.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from deftly import tasks
from deftly.control.safety import SafetyConfig
from deftly.files import atomic_write
from deftly.robots import Robot, leap_hand
from deftly.robots.actuators import PARAMETERS
from deftly.sysid import excite, fit, logs
from deftly.sysid.driver import LoneRobot

TASK = "leap-right-cube-rotate"
NOMINAL = (
    leap_hand.KP,
    leap_hand.KD,
    leap_hand.FRICTIONLOSS,
    leap_hand.DAMPING,
    leap_hand.ARMATURE,
    leap_hand.TORQUE,
)
LIMITS = ((0.6, 1.6), (0.6, 1.6), (0.4, 2.0), (0.6, 1.6), (0.7, 1.3), (0.8, 1.2))
"""What each figure is drawn between, evenly, as a share of the robot's file."""
DELAY = (0.005, 0.08)
"""Likewise the delay, s."""
NOISE, JITTER, QUANTUM = 0.001, 0.002, 2 * np.pi / 4096
"""White noise (rad) and jitter of the control period (s), standard deviations; the servo's encoder, rad."""


def draw(joints: tuple[str, ...], seed: int) -> tuple[dict[str, dict[str, float]], float]:
    """Servos and delay of a trial."""
    rng = np.random.default_rng([7, seed])
    shares = {j: [rng.uniform(*limits) for limits in LIMITS] for j in joints}
    figures = {
        j: {p: n * s for p, n, s in zip(PARAMETERS, NOMINAL, row)} for j, row in shares.items()
    }
    return figures, float(rng.uniform(*DELAY))


def simulated_log(
    path: Path, seed: int, seconds: float, finger: str = "index", timestep: float = 0.00005
) -> tuple[Robot, tuple[str, ...], logs.HandLog, dict[str, dict[str, float]], float]:
    """A trial's log, written and read as from a robot, and the truth."""
    cls = tasks.load(TASK)
    task: Any = cls(cls.Config())
    contract, robot = task.contract(), task.robot
    joints = excite.groups(robot, finger)[0]
    figures, delay = draw(joints, seed)
    made = excite.motion(robot, contract, [joints], excite.Excitation(seconds=seconds, seed=seed))
    told = {
        "delay": delay,
        "noise": NOISE,
        "quantum": QUANTUM,
        "jitter": JITTER,
        "seed": seed,
        "timestep": timestep,
    }
    driver = LoneRobot(robot, contract, figures, **told)
    excite.on_simulated(excite.Frames(contract, made.cmd), driver, SafetyConfig(lead=1.5)).save(
        path, {}
    )
    return robot, joints, logs.read(path, contract), figures, delay


def compare(
    found: fit.Fit, figures: dict[str, dict[str, float]], delay: float
) -> dict[str, list[dict[str, Any]]]:
    """For each parameter, and the delay, the error (a share) of each joint and whether the interval has the truth."""
    rows: dict[str, list[dict[str, Any]]] = {}

    def note(name: str, joint: str, estimate: fit.Estimate, true: float) -> None:
        inside = estimate.low <= true <= estimate.high
        row = {
            "joint": joint,
            "error": estimate.value / true - 1,
            "inside": inside,
            "identified": estimate.identified,
        }
        rows.setdefault(name, []).append(
            {**row, "half_width": (estimate.high - estimate.low) / 2 / true}
        )

    for joint, estimates in found.figures().items():
        for name, estimate in estimates.items():
            note(name, joint, estimate, figures[joint][name])
    note("delay", "", found.delay(), delay)
    return rows


def summary(rows: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, float]]:
    """Median absolute error, coverage, and the half width of the median interval, over joints and trials."""
    return {
        name: {
            "median_error": float(np.median([abs(r["error"]) for r in found])),
            "coverage": float(np.mean([r["inside"] for r in found])),
            "median_half_width": float(np.median([r["half_width"] for r in found])),
            "identified": float(np.mean([r["identified"] for r in found])),
            "count": len(found),
        }
        for name, found in rows.items()
    }


def run(
    trials: int, how: dict[str, Any], seconds: float, out: Path | None, first: int = 0
) -> dict[str, Any]:
    """The trials; after each, what is known so far is written to `out`."""
    rows: dict[str, list[dict[str, Any]]] = {}
    spent: list[dict[str, float]] = []
    scratch = (out or Path("sysid.json")).with_suffix(".npz")
    data: dict[str, Any] = {}
    for seed in range(first, first + trials):
        robot, joints, log, figures, delay = simulated_log(scratch, seed, seconds)
        began, cpu = time.perf_counter(), time.process_time()
        found = fit.fit(robot, joints, log, fit.Search(seed=seed, **how))
        spent.append(
            {**found.cost, "total": time.perf_counter() - began, "cpu": time.process_time() - cpu}
        )
        for name, more in compare(found, figures, delay).items():
            rows.setdefault(name, []).extend(more)
        data = {
            "log_seconds": seconds,
            "search": how,
            "trials": len(spent),
            "cores": os.cpu_count(),
        }
        data |= {"summary": summary(rows), "seconds": spent, "rows": rows}
        print(
            f"trial {seed}: {spent[-1]['total']:.0f} s, {spent[-1]['cpu']:.0f} s of CPU; {json.dumps(data['summary'])}"
        )
        if out:
            with atomic_write(out) as part:
                part.write_text(json.dumps(data, indent=1) + "\n")
    scratch.unlink(missing_ok=True)
    return data


def main() -> None:
    """Parse, run, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--first", type=int, default=0, help="seed of the first trial")
    parser.add_argument("--seconds", type=float, default=60.0, help="length of a log")
    parser.add_argument("--generations", type=int, default=12)
    parser.add_argument("--population", type=int, default=8192)
    parser.add_argument("--optimizer", default="cem")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    how = {
        "generations": args.generations,
        "population": args.population,
        "optimizer": args.optimizer,
    }
    run(args.trials, how, args.seconds, args.out, args.first)


if __name__ == "__main__":
    main()
