"""`deftly sysid`: fit the servos of a robot to a log, or make the motion for one."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from deftly import __version__, console
from deftly.config import parse, split_task
from deftly.control.safety import SafetyConfig
from deftly.errors import DeftlyError
from deftly.robots import actuators

if TYPE_CHECKING:
    from deftly.contract import PolicyContract
    from deftly.control.loop import Tick
    from deftly.robots import Robot
    from deftly.sysid.excite import Motion
    from deftly.tasks import Task

BOUNDS = {
    "cem_generations": (1, 1000),
    "parallel_envs": (16, 1_000_000),
    "command_hz": (0, 2000),
    "bound": (1.1, 100),
    "held_out": (0.05, 0.5),
    "seed": (0, 2**31),
    "delay_min_ms": (-500, 500),
    "delay_max_ms": (1, 1000),
    "seconds": (5, 600),
    "amplitude": (0.05, 1.0),
    "speed": (0.01, 1.0),
}


@dataclass(frozen=True)
class SysidArgs:
    """Fit a robot's servos to a log: `deftly sysid TASK --log-file LOG.npz`; `--excite` moves it to make one."""

    log_file: Path | None = None
    """.npz with hand_cmd and hand_state, (T, joints) rad, and perhaps time, (T,) s; or a log of `deftly run`."""
    output_file: Path | None = None
    """Report to write, .json; unset: beside the log, LOG.sysid.json. The plot goes beside it, .png."""
    write: Path | None = None
    """Write what was identified to this .json, for `deftly train TASK --task.actuators FILE`; other joints stay."""
    finger: Literal["index", "middle", "ring", "thumb", "all"] = "index"
    """Which joints to fit, or to move."""
    optimizer: Literal["cem", "random"] = "cem"
    """How to search: the cross-entropy method, or at random. Either is polished by least squares."""
    cem_generations: int = 12
    """Generations of the search."""
    parallel_envs: int = 8192
    """Candidates of a generation, all of which are simulated."""
    command_hz: float = 0.0
    """Rate of a log without time stamps, Hz; 0: the task's control rate."""
    hardware_order: bool = False
    """The log's columns are the motors, in their order and with their signs; else the joints as the task has them."""
    units: Literal["rad", "deg"] = "rad"
    """Of the log's columns."""
    delay_min_ms: float = 0.0
    """Least delay from a command to its effect that is considered, ms."""
    delay_max_ms: float = 250.0
    """Greatest delay, ms."""
    bound: float = 5.0
    """Figures are sought within this factor of the robot's file, up and down."""
    held_out: float = 0.2
    """Last share of the log, which is never fitted, and on which the fit is judged."""
    seed: int = 0
    """Of the search, or of the motion."""
    excite: bool = False
    """Move the robot to make a log, or write the motion alone: see --driver and --out."""
    driver: str | None = None
    """What to move: sim (the robot alone, simulated), fake, leap, or your own class as MODULE:CLASS; unset: nothing."""
    port: str | None = None
    """Passed to the driver: a serial device, an address."""
    out: Path | None = None
    """Where the log, or the motion, goes, .npz."""
    seconds: float = 60.0
    """Length of a finger's motion, s."""
    amplitude: float = 0.8
    """Share of half of a joint's range that it moves about its middle; less where shapes would touch."""
    chirp_hz: tuple[float, float] = (0.1, 3.0)
    """First and last frequency of the chirps, Hz."""
    speed: float = 0.6
    """Share of a joint's top speed that the motion uses."""
    safety: SafetyConfig = field(default_factory=lambda: SafetyConfig(approach_s=3.0))
    """The safety kernel."""

    def __post_init__(self) -> None:
        for name, (low, high) in BOUNDS.items():
            if not low <= getattr(self, name) <= high:
                flag = name.replace("_", "-")
                raise DeftlyError(f"{flag} is {getattr(self, name)}, but it must be within {low} .. {high:g}")
        if self.delay_min_ms >= self.delay_max_ms:
            raise DeftlyError(
                f"delay-min-ms is {self.delay_min_ms:g}, but it must be below {self.delay_max_ms:g}, the most"
            )
        if not 0 < self.chirp_hz[0] <= self.chirp_hz[1] < 1000:
            raise DeftlyError(f"chirp-hz is {self.chirp_hz}, but it must be two rising frequencies above 0")
        for name, suffix in (("output_file", ".json"), ("write", ".json"), ("out", ".npz")):
            if (path := getattr(self, name)) is not None and path.suffix != suffix:
                flag = name.replace("_", "-")
                raise DeftlyError(f"--{flag} is {path}, but it is a {suffix} file: {path.with_suffix(suffix)}")
        if self.excite == bool(self.log_file):
            raise DeftlyError("give --log-file LOG.npz to fit, or --excite True to make a log")
        if self.excite and self.out is None:
            raise DeftlyError("--excite needs a file to write: --out LOG.npz")
        if not self.excite and (self.driver or self.out):
            raise DeftlyError(f"--{'driver' if self.driver else 'out'} is for --excite True")


def main(argv: list[str]) -> int:
    """Run `deftly sysid`. The exit status is 1 if a joint is better off without the fit."""
    name, flags = split_task(argv)
    args = parse(SysidArgs, flags, prog="deftly sysid TASK")
    if name is None:
        raise DeftlyError("sysid needs a task: deftly sysid TASK --log-file LOG.npz; 'deftly tasks' lists them")
    from deftly import robots, tasks

    cls = tasks.load(name)
    task = cls(cls.Config())
    contract = task.contract()
    robot = robots.of(task)
    return excite_robot(name, robot, contract, args) if args.excite else fit_log(task, robot, contract, args)


# --------------------------------------------------------------- fit


def fit_log(task: Task, robot: Robot, contract: PolicyContract, args: SysidArgs) -> int:
    """Fit, and write what came of it."""
    from deftly.sysid import excite, fit, logs, report

    assert args.log_file is not None
    log = logs.read(args.log_file, contract, args.command_hz, args.hardware_order, args.units)
    wanted = excite.groups(robot, args.finger)
    logs.require_motion(args.log_file, contract, log, tuple(n for group in wanted for n in group))
    if args.write and args.write.exists():
        actuators.load(args.write, robot.name, contract.joint_names)  # refused now, not after minutes
    how = fit.Search(
        optimizer=args.optimizer,
        generations=args.cem_generations,
        population=args.parallel_envs,
        seed=args.seed,
        delays=(1e-3 * args.delay_min_ms, 1e-3 * args.delay_max_ms),
        bound=args.bound,
        held_out=args.held_out,
    )
    fits = [fit.fit(robot, names, log, how, lambda line: print(line, flush=True)) for names in wanted]
    found = list(report.doubts(log, fits, how))
    output = args.output_file or args.log_file.with_suffix(".sysid.json")
    facts = report.facts(task.name, robot.name, args.log_file, log, fits, how, found)
    report.write(output, facts)
    report.plot(output.with_suffix(".png"), fits, args.held_out)
    console.show("\n".join(report.table(fits)), soft_wrap=True)
    status = console.report(found)
    print(f"report: {output}, plot: {output.with_suffix('.png')}")
    if args.write and status:
        print(f"{args.write} was not written: a joint is better off without the fit")
    elif args.write:
        actuators.save(args.write, robot.name, contract.joint_names, report.identified(fits))
        print(f"actuators: {args.write}; deftly train {task.name} --task.actuators {args.write}")
    return status


# --------------------------------------------------------------- excite


def excite_robot(name: str, robot: Robot, contract: PolicyContract, args: SysidArgs) -> int:
    """Make the motion; write it, or send it to a robot and write the log."""
    from deftly.sysid import excite
    from deftly.sysid.driver import LoneRobot

    assert args.out is not None
    how = excite.Excitation(args.seconds, args.amplitude, args.chirp_hz, args.speed, args.seed)
    made = excite.motion(robot, contract, excite.groups(robot, args.finger), how)
    for joint, reach in made.amplitude.items():
        print(f"{joint}: {reach:.3f} rad about its middle")
    facts = {"task": name, "finger": args.finger, "driver": args.driver or "", "deftly": __version__}
    if args.driver is None:
        excite.write_motion(args.out, contract, made)
        print(f"motion: {args.out}, {len(made.cmd)} commands, {len(made.cmd) / contract.rate:.1f} s")
        return 0
    args.out.parent.mkdir(parents=True, exist_ok=True)
    if args.driver == "sim":
        excite.on_simulated(excite.Frames(contract, made.cmd), LoneRobot(robot, contract), args.safety).save(
            args.out, facts
        )
        status = 0
    else:
        status = _on_hardware(name, contract, made, args, facts)
    if status == 0:
        print(f"log: {args.out}; deftly sysid {name} --finger {args.finger} --log-file {args.out}")
    return status


def _on_hardware(name: str, contract: PolicyContract, made: Motion, args: SysidArgs, facts: dict[str, str]) -> int:
    """Send the motion to a driver in real time, as `deftly run` sends a policy's targets."""
    from deftly.commands.run import RunArgs, find_driver
    from deftly.control.log import Ring
    from deftly.control.loop import Runner
    from deftly.control.safety import Kernel
    from deftly.control.session import Session
    from deftly.sysid.excite import Frames

    frames = Frames(contract, made.cmd)

    class Until(Session):
        """Ends with the motion."""

        def each(self, _: Tick) -> bool:
            return super().each(_) and not frames.done

    with ExitStack() as stack:
        driver = find_driver(name, RunArgs(driver=str(args.driver), port=args.port), contract, stack)
        ring = Ring(contract, len(made.cmd) + round(120 * contract.rate))
        runner = stack.enter_context(Runner(frames, Kernel(contract.robot, contract.rate, args.safety), driver, ring))
        said = {**facts, "safety": json.dumps(asdict(args.safety))}
        return Until(runner, ring, said, start=True, log=args.out).run()
