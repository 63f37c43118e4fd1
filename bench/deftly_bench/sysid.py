"""How well `deftly sysid` finds the parameters of simulated servos again, and how long it takes.

    python -m deftly_bench.sysid --trials 20 --out bench/results/sysid.json

Each trial draws servos, a delay and a motion, lets the whole hand, at 0.05 ms steps, follow it under the safety kernel
with noise, jitter and quantisation, fits one finger, and compares. The parameters drawn are those of `LIMITS`.
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
"""What each parameter is drawn between, uniformly, as a fraction of the robot's file."""
DELAY = (0.005, 0.08)
"""Likewise the delay, s."""
NOISE = 0.001
"""Standard deviation of white noise, rad."""
JITTER = 0.002
"""Standard deviation of the control period, s."""
QUANTUM = 2 * np.pi / 4096
"""Step of the servo's encoder, rad."""


def draw(joints: tuple[str, ...], seed: int) -> tuple[dict[str, dict[str, float]], float]:
    """Servo parameters and delay of a trial."""
    rng = np.random.default_rng([7, seed])
    parameters: dict[str, dict[str, float]] = {}
    for joint in joints:
        parameters[joint] = {}
        for name, nominal, limits in zip(PARAMETERS, NOMINAL, LIMITS):
            parameters[joint][name] = nominal * rng.uniform(*limits)
    return parameters, float(rng.uniform(*DELAY))


def simulated_log(
    path: Path, seed: int, seconds: float, finger: str = "index", timestep: float = 0.00005
) -> tuple[Robot, tuple[str, ...], logs.HandLog, dict[str, dict[str, float]], float]:
    """A trial's log, written and read as from a robot, and the truth."""
    cls = tasks.load(TASK)
    task: Any = cls(cls.Config())
    contract = task.contract()
    robot = task.robot
    joints = excite.groups(robot, finger)[0]
    parameters, delay = draw(joints, seed)
    excitation = excite.Excitation(seconds=seconds, seed=seed)
    motion = excite.motion(robot, contract, [joints], excitation)
    driver = LoneRobot(
        robot,
        contract,
        parameters,
        delay=delay,
        noise=NOISE,
        quantum=QUANTUM,
        jitter=JITTER,
        seed=seed,
        timestep=timestep,
    )
    policy = excite.MotionPolicy(contract, motion.cmd)
    buffer = excite.on_simulated(policy, driver, SafetyConfig(lead=1.5))
    buffer.save(path, {})
    return robot, joints, logs.read(path, contract), parameters, delay


def compare(
    found: fit.Fit, parameters: dict[str, dict[str, float]], delay: float
) -> dict[str, list[dict[str, Any]]]:
    """For each parameter, and the delay, each joint's relative error and whether the interval contains the truth."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for joint, estimates in found.parameters().items():
        for name, estimate in estimates.items():
            row = _row(joint, estimate, parameters[joint][name])
            rows.setdefault(name, []).append(row)
    rows["delay"] = [_row("", found.delay(), delay)]
    return rows


def _row(joint: str, estimate: fit.Estimate, true: float) -> dict[str, Any]:
    return {
        "joint": joint,
        "error": estimate.value / true - 1,
        "inside": estimate.low <= true <= estimate.high,
        "identified": estimate.identified,
        "half_width": (estimate.high - estimate.low) / 2 / true,
    }


def summary(rows: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, float]]:
    """Median absolute error, coverage, and the half width of the median interval, over joints and trials."""
    return {name: _statistics(found) for name, found in rows.items()}


def _statistics(rows: list[dict[str, Any]]) -> dict[str, float]:
    errors = [abs(row["error"]) for row in rows]
    half_widths = [row["half_width"] for row in rows]
    return {
        "median_error": float(np.median(errors)),
        "coverage": float(np.mean([row["inside"] for row in rows])),
        "median_half_width": float(np.median(half_widths)),
        "identified": float(np.mean([row["identified"] for row in rows])),
        "count": len(rows),
    }


def run(
    trials: int, settings: dict[str, Any], seconds: float, out: Path | None, first: int = 0
) -> dict[str, Any]:
    """The trials; after each, the results so far are written to `out`."""
    rows: dict[str, list[dict[str, Any]]] = {}
    spent: list[dict[str, float]] = []
    scratch = (out or Path("sysid.json")).with_suffix(".npz")
    data: dict[str, Any] = {}
    for seed in range(first, first + trials):
        robot, joints, log, parameters, delay = simulated_log(scratch, seed, seconds)
        began = time.perf_counter()
        cpu_began = time.process_time()
        found = fit.fit(robot, joints, log, fit.FitSettings(seed=seed, **settings))
        total = time.perf_counter() - began
        cpu = time.process_time() - cpu_began
        spent.append({**found.cost, "total": total, "cpu": cpu})
        for name, more in compare(found, parameters, delay).items():
            rows.setdefault(name, []).extend(more)
        data = {
            "log_seconds": seconds,
            "search": settings,
            "trials": len(spent),
            "cores": os.cpu_count(),
            "summary": summary(rows),
            "seconds": spent,
            "rows": rows,
        }
        print(f"trial {seed}: {total:.0f} s, {cpu:.0f} s of CPU; {json.dumps(data['summary'])}")
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
    settings = {
        "generations": args.generations,
        "population": args.population,
        "optimizer": args.optimizer,
    }
    run(args.trials, settings, args.seconds, args.out, args.first)


if __name__ == "__main__":
    main()
