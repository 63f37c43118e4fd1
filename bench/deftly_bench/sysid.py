"""How well `deftly sysid` finds the parameters of simulated servos again, and how long it takes.

    python -m deftly_bench.sysid --trials 20 --out bench/results/sysid.json

Each trial draws servos, a delay and a motion, lets the whole hand, at 0.05 ms steps, follow it under the safety kernel
with noise, jitter and quantisation, fits one finger, and compares. The parameters drawn are those of `LIMITS`.

With `--touch`, all four joints of a finger follow chirps at once, straight into palm, thumb and neighbours, by plain
MuJoCo without the kernel: in trials 0 to 3 of one finger, the others at rest in the grasp, in trials 4 to 7 of
the whole hand, and so on.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Gt, Le, Lt
from typing_extensions import Doc

from deftly import tasks
from deftly.config import OUTPUT_FILE, SEEDS, Settings, Suffix, parse
from deftly.contract import JOINT_POS, PolicyContract
from deftly.control.safety import SafetyConfig
from deftly.errors import DeftlyError
from deftly.files import write_json, write_npz
from deftly.robots import Robot, leap_hand
from deftly.robots.actuators import PARAMETERS
from deftly.sysid import excite, fit, logs
from deftly.sysid.driver import LoneRobot
from deftly.sysid.touch import find_touch
from deftly_bench.entry import start

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
TOUCH_AMPLITUDE = 0.35
"""Of the chirps of `--touch`, as a fraction of a joint's range, about its middle."""
TOUCH_HZ = (0.1, 2.5)
"""Their first and last frequency, Hz."""
MIN_TOUCH = 0.03
"""Fraction of the time in which the commanded finger goes into something; phases are drawn until it does."""
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
    driver = _driver(robot, contract, parameters, delay, seed, timestep)
    policy = excite.MotionPolicy(contract, motion.cmd)
    buffer = excite.on_simulated(policy, driver, SafetyConfig(lead=1.5))
    buffer.save(path, {})
    return robot, joints, logs.read(path, contract), parameters, delay


def _driver(
    robot: Robot,
    contract: PolicyContract,
    parameters: dict[str, dict[str, float]],
    delay: float,
    seed: int,
    timestep: float,
) -> LoneRobot:
    """The robot of a trial, with these servos, measured as hardware is."""
    return LoneRobot(
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


def touching_log(
    path: Path, seed: int, seconds: float, timestep: float = 0.0002
) -> tuple[Robot, tuple[str, ...], logs.HandLog, dict[str, dict[str, float]], float]:
    """As `simulated_log`, of a finger that touches what is in its way."""
    cls = tasks.load(TASK)
    task: Any = cls(cls.Config())
    contract = task.contract()
    robot = task.robot
    fingers = list(excite.FINGERS)
    joints = excite.groups(robot, fingers[seed % len(fingers)])[0]
    whole_hand = seed // len(fingers) % 2
    moved = contract.joint_names if whole_hand else joints
    parameters, delay = draw(joints, seed)
    driver = _driver(robot, contract, parameters, delay, seed, timestep)
    cmd = _touching_chirps(robot, contract, joints, moved, seconds, seed)
    readings = []
    for row in cmd:
        readings.append(driver.read())
        driver.write(row)
    state = np.array([reading.signals[JOINT_POS] for reading in readings])
    stamps = np.array([reading.at for reading in readings])
    write_npz(path, {logs.CMD: cmd, logs.STATE: state, logs.TIME: stamps})
    return robot, joints, logs.read(path, contract), parameters, delay


def _touching_chirps(
    robot: Robot,
    contract: PolicyContract,
    joints: tuple[str, ...],
    moved: tuple[str, ...],
    seconds: float,
    seed: int,
) -> np.ndarray:
    """The first chirps with which the finger of `joints` touches something often, (T, num_joints), rad."""
    time = np.arange(round(seconds * contract.rate)) / contract.rate
    rng = np.random.default_rng([11, seed])
    while True:
        cmd = _chirps(contract, moved, time, rng)
        if find_touch(robot, joints, logs.HandLog(time, cmd, cmd)).fraction > MIN_TOUCH:
            return cmd


def _chirps(
    contract: PolicyContract, moved: tuple[str, ...], time: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Chirps of some joints, each of its own phase, the others at home, (T, num_joints), rad."""
    seconds = time[-1]
    low, high = TOUCH_HZ
    octaves = np.log(high / low)
    turns = low * seconds / octaves * np.expm1(octaves * time / seconds)
    cmd = np.repeat(np.array([contract.home()]), len(time), 0)
    for column, joint in enumerate(contract.joints):
        if joint.name in moved:
            phase = 2 * np.pi * (turns + rng.uniform())
            middle = (joint.lower + joint.upper) / 2
            amplitude = TOUCH_AMPLITUDE * (joint.upper - joint.lower)
            cmd[:, column] = middle + amplitude * np.sin(phase)
    return cmd


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
    trials: int,
    settings: dict[str, Any],
    seconds: float,
    out: Path | None,
    first: int = 0,
    touch: bool = False,
) -> dict[str, Any]:
    """The trials; after each, the results so far are written to `out`."""
    scratch = (out or Path("sysid.json")).with_suffix(".npz")
    done: list[dict[str, Any]] = []
    refused: list[dict[str, Any]] = []
    data: dict[str, Any] = {}
    for seed in range(first, first + trials):
        try:
            done.append(trial(scratch, seed, settings, seconds, touch))
        except DeftlyError as error:
            refused.append({"seed": seed, "why": str(error)})
            print(f"trial {seed}: refused: {error}")
        data = results(done, refused, settings, seconds)
        if out:
            write_json(out, data, indent=1)
    scratch.unlink(missing_ok=True)
    return data


def trial(
    scratch: Path, seed: int, settings: dict[str, Any], seconds: float, touch: bool
) -> dict[str, Any]:
    """One trial: its rows (`compare`), and what it took. Raises DeftlyError if the log is refused."""
    make_log = touching_log if touch else simulated_log
    robot, joints, log, parameters, delay = make_log(scratch, seed, seconds)
    began = time.perf_counter()
    cpu_began = time.process_time()
    found = fit.fit(robot, joints, log, fit.FitSettings(seed=seed, **settings))
    total = time.perf_counter() - began
    cpu = time.process_time() - cpu_began
    print(f"trial {seed}: {total:.0f} s, {cpu:.0f} s of CPU")
    return {
        "rows": compare(found, parameters, delay),
        "used": found.used,
        "touching": found.touch.fraction,
        "seconds": {**found.cost, "total": total, "cpu": cpu},
    }


def results(
    done: list[dict[str, Any]],
    refused: list[dict[str, Any]],
    settings: dict[str, Any],
    seconds: float,
) -> dict[str, Any]:
    """The JSON of some trials."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for each in done:
        for name, more in each["rows"].items():
            rows.setdefault(name, []).extend(more)
    return {
        "log_seconds": seconds,
        "search": settings,
        "trials": len(done),
        "refused": refused,
        "touching": [each["touching"] for each in done],
        "used": [each["used"] for each in done],
        "cores": os.cpu_count(),
        "summary": summary(rows),
        "seconds": [each["seconds"] for each in done],
        "rows": rows,
    }


@dataclass(frozen=True)
class TrialsArgs(Settings):
    """Fit logs of simulated servos whose parameters are known, and compare."""

    trials: Annotated[int, Ge(1), Doc("Trials, each with a seed of its own.")] = 20
    first: Annotated[int, Ge(0), Lt(SEEDS), Doc("Seed of the first trial.")] = 0
    seconds: Annotated[float, Gt(0), Le(3600), Doc("Length of a log, s.")] = 60.0
    generations: Annotated[int, Ge(1), Doc("Generations of the search.")] = 5
    population: Annotated[int, Ge(2), Doc("Candidates of each generation.")] = 128
    optimizer: Annotated[Literal["cem", "random"], Doc("How candidates are drawn.")] = "cem"
    touch: Annotated[bool, Doc("Logs in which fingers touch.")] = False
    out: Annotated[
        Path | None, Suffix(".json"), OUTPUT_FILE, Doc("Write the results to this JSON file.")
    ] = None


def main(argv: list[str]) -> int:
    """Run the trials, and print the summary. Exit status 0."""
    args = parse(TrialsArgs, argv, prog="deftly_bench.sysid")
    settings = {
        "generations": args.generations,
        "population": args.population,
        "optimizer": args.optimizer,
    }
    data = run(args.trials, settings, args.seconds, args.out, args.first, args.touch)
    print(json.dumps(data["summary"], indent=1))
    return 0


if __name__ == "__main__":
    start(main)
