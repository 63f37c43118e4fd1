"""`deftly sysid`: fit the servos of a robot to a log, or make the motion for one."""

from __future__ import annotations

import json
import shlex
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge, Le, Lt
from typing_extensions import Doc

from deftly import __version__, console
from deftly.config import INPUT_FILE, OUTPUT_FILE, SEEDS, Must, Settings, Suffix, parse, split_task
from deftly.control.drivers import SIMULATED
from deftly.control.safety import SafetyConfig
from deftly.control.session import require_place
from deftly.errors import DeftlyError
from deftly.robots import actuators

if TYPE_CHECKING:
    from deftly.contract import PolicyContract
    from deftly.control.loop import Tick
    from deftly.robots import Robot
    from deftly.sysid.excite import MotionPolicy
    from deftly.tasks import Task


@dataclass(frozen=True)
class SysidArgs(Settings):
    """Fit a robot's servos to a log: `deftly sysid TASK --log-file LOG.npz`; `--excite` moves it to make one."""

    log_file: Annotated[
        Path | None,
        INPUT_FILE,
        Doc(
            ".npz with hand_cmd and hand_state, (T, joints) rad, and perhaps time, (T,); a .csv of such columns; "
            "or a log of `deftly run`."
        ),
    ] = None
    output_file: Annotated[
        Path | None,
        Suffix(".json"),
        OUTPUT_FILE,
        Doc(
            "Report to write, .json; unset: beside the log, LOG.sysid.json. The plot goes beside it, .png."
        ),
    ] = None
    write: Annotated[
        Path | None,
        Suffix(".json"),
        OUTPUT_FILE,
        Doc(
            "Write what was identified to this .json, for `deftly train TASK --task.actuators FILE`; other joints stay."
        ),
    ] = None
    finger: Annotated[
        Literal["index", "middle", "ring", "thumb", "all"], Doc("Which joints to fit, or to move.")
    ] = "index"
    optimizer: Annotated[
        Literal["cem", "random"],
        Doc(
            "How to search: the cross-entropy method, or at random. Gauss-Newton refinement follows either."
        ),
    ] = "cem"
    cem_generations: Annotated[int, Ge(1), Le(1000), Doc("Generations of the search.")] = 12
    parallel_envs: Annotated[
        int, Ge(16), Le(1_000_000), Doc("Candidates of a generation, all of which are simulated.")
    ] = 8192
    command_hz: Annotated[
        float,
        Ge(0),
        Le(2000),
        Doc("Rate of a log without time stamps, Hz; 0: the task's control rate."),
    ] = 0.0
    hardware_order: Annotated[
        bool,
        Doc(
            "The log's columns are the motors, in their order and signs; else the joints as the task has them."
        ),
    ] = False
    units: Annotated[
        Literal["rad", "deg", "ticks"],
        Doc("Of the log's columns; ticks are of a Dynamixel's encoder, 4096 a turn."),
    ] = "rad"
    delay_min_ms: Annotated[
        float,
        Ge(-500),
        Le(500),
        Doc("Least delay from a command to its effect that is considered, ms."),
    ] = 0.0
    delay_max_ms: Annotated[float, Ge(1), Le(1000), Doc("Greatest delay, ms.")] = 250.0
    bound: Annotated[
        float,
        Ge(1.1),
        Le(100),
        Doc("Parameters are sought within this factor of the robot's file, up and down."),
    ] = 5.0
    held_out: Annotated[
        float,
        Ge(0.05),
        Le(0.5),
        Doc("Last fraction of the log, which is never fitted, and on which the fit is judged."),
    ] = 0.2
    seed: Annotated[int, Ge(0), Lt(SEEDS), Doc("Of the search, or of the motion.")] = 0
    excite: Annotated[
        bool,
        Doc("Move the robot to make a log, or write the motion alone: see --driver and --out."),
    ] = False
    driver: Annotated[
        str | None,
        Doc(
            "What to move: sim (the robot alone), fake, leap, wildrobot, or your own MODULE:CLASS; unset: nothing."
        ),
    ] = None
    port: Annotated[str | None, Doc("Passed to the driver: a serial device, an address.")] = None
    calibration: Annotated[
        Path | None,
        INPUT_FILE,
        Doc("How this robot's motors are mounted: the file of `deftly calibrate`."),
    ] = None
    out: Annotated[
        Path | None, Suffix(".npz"), OUTPUT_FILE, Doc("Where the log, or the motion, goes, .npz.")
    ] = None
    seconds: Annotated[float, Ge(5), Le(600), Doc("Length of a finger's motion, s.")] = 60.0
    amplitude: Annotated[
        float,
        Ge(0.05),
        Le(1),
        Doc(
            "Fraction of half of a joint's range that it moves about its middle; less where geoms would touch."
        ),
    ] = 0.8
    chirp_hz: Annotated[
        tuple[float, float],
        Must("two rising frequencies above 0 and below 1000", lambda hz: 0 < hz[0] <= hz[1] < 1000),
        Doc("First and last frequency of the chirps, Hz."),
    ] = (0.1, 3.0)
    speed: Annotated[
        float, Ge(0.01), Le(1), Doc("Fraction of a joint's top speed that the motion uses.")
    ] = 0.6
    safety: Annotated[SafetyConfig, Doc("The safety kernel.")] = field(
        default_factory=lambda: SafetyConfig(approach_s=3.0)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.delay_min_ms >= self.delay_max_ms:
            raise DeftlyError(
                f"delay-min-ms is {self.delay_min_ms:g}, but it must be below {self.delay_max_ms:g}, the most"
            )
        if self.excite == bool(self.log_file):
            raise DeftlyError("give --log-file LOG.npz to fit, or --excite True to make a log")
        if self.excite and self.out is None:
            raise DeftlyError("--excite needs a file to write: --out LOG.npz")
        if not self.excite and (self.driver or self.out):
            raise DeftlyError(f"--{'driver' if self.driver else 'out'} is for --excite True")
        if self.calibration and self.driver in (None, *SIMULATED):
            raise DeftlyError(
                "--calibration is of a real robot: give its --driver with --excite True, or leave it out"
            )


def main(argv: list[str]) -> int:
    """Run `deftly sysid`. The exit status is 1 if a joint is better off without the fit."""
    name, flags = split_task(argv)
    args = parse(SysidArgs, flags, prog="deftly sysid TASK")
    if name is None:
        raise DeftlyError(
            "sysid needs a task: deftly sysid TASK --log-file LOG.npz; 'deftly tasks' lists them"
        )
    from deftly import robots, tasks

    cls = tasks.load(name)
    task = cls(cls.Config())
    contract = task.contract()
    robot = robots.of(task)
    if args.excite:
        return excite_robot(name, robot, contract, args)
    return fit_log(task, robot, contract, args)


# --------------------------------------------------------------- fit


def fit_log(task: Task, robot: Robot, contract: PolicyContract, args: SysidArgs) -> int:
    """Fit, and write the report, the plot and the actuators."""
    from deftly.sysid import excite, fit, logs, report

    assert args.log_file is not None
    log = logs.read(args.log_file, contract, args.command_hz, args.hardware_order, args.units)
    groups = excite.groups(robot, args.finger)
    joints = tuple(name for group in groups for name in group)
    logs.require_motion(args.log_file, contract, log, joints)
    if args.write and args.write.exists():  # refused now, not after minutes
        actuators.load(args.write, robot.name, contract.joint_names)
    settings = fit.FitSettings(
        optimizer=args.optimizer,
        generations=args.cem_generations,
        population=args.parallel_envs,
        seed=args.seed,
        delays=(1e-3 * args.delay_min_ms, 1e-3 * args.delay_max_ms),
        bound=args.bound,
        held_out=args.held_out,
    )
    fits = [fit.fit(robot, group, log, settings, _print) for group in groups]
    findings = list(report.findings(log, fits, settings))
    output = args.output_file or args.log_file.with_suffix(".sysid.json")
    plot = output.with_suffix(".png")
    data = report.contents(task.name, robot.name, args.log_file, log, fits, settings, findings)
    console.show("\n".join(report.table(fits)), soft_wrap=True)
    status = console.report(findings)
    report.write(output, data)
    report.plot(plot, fits)
    print(f"report: {output}, plot: {plot}")
    if args.write and status:
        print(f"{args.write} was not written: a joint is better off without the fit")
    elif args.write:
        actuators.save(args.write, robot.name, contract.joint_names, report.identified(fits))
        command = ["deftly", "train", task.name, "--task.actuators", str(args.write)]
        print(f"actuators: {args.write}; {shlex.join(command)}")
    return status


def _print(line: str) -> None:
    print(line, flush=True)


# --------------------------------------------------------------- excite


def excite_robot(name: str, robot: Robot, contract: PolicyContract, args: SysidArgs) -> int:
    """Make the motion; write it, or send it to a robot and write the log."""
    from deftly.sysid import excite
    from deftly.sysid.driver import LoneRobot

    assert args.out is not None
    require_place(args.out, keep=args.driver not in (None, *SIMULATED))
    excitation = excite.Excitation(
        seconds=args.seconds,
        amplitude=args.amplitude,
        chirp_hz=args.chirp_hz,
        speed=args.speed,
        seed=args.seed,
    )
    groups = excite.groups(robot, args.finger)
    motion = excite.motion(robot, contract, groups, excitation)
    for joint, amplitude in motion.amplitude.items():
        print(f"{joint}: {amplitude:.3f} rad about its middle")
    if args.driver is None:
        excite.write_motion(args.out, contract, motion)
        count = len(motion.cmd)
        print(f"motion: {args.out}, {count} commands, {count / contract.rate:.1f} s")
        return 0
    facts = {"task": name, "finger": args.finger, "driver": args.driver, "deftly": __version__}
    policy = excite.MotionPolicy(contract, motion.cmd)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    if args.driver == "sim":
        buffer = excite.on_simulated(policy, LoneRobot(robot, contract), args.safety)
        buffer.save(args.out, facts)
        status = 0
    else:
        status = _on_hardware(name, policy, args, facts)
    if status == 0:
        command = ["deftly", "sysid", name, "--finger", args.finger, "--log-file", str(args.out)]
        print(f"log: {args.out}; {shlex.join(command)}")
    return status


def _on_hardware(name: str, policy: MotionPolicy, args: SysidArgs, facts: dict[str, str]) -> int:
    """Send the motion to a driver in real time, as `deftly run` sends a policy's targets."""
    from deftly.commands.run import RunArgs, find_driver
    from deftly.control.log import LogBuffer
    from deftly.control.loop import Runner
    from deftly.control.safety import Kernel
    from deftly.control.session import Session

    contract = policy.contract

    class MotionSession(Session):
        """Ends with the motion."""

        def each(self, _: Tick) -> bool:
            return super().each(_) and not policy.done

    kernel = Kernel(contract.robot, contract.rate, args.safety)
    buffer = LogBuffer(contract, len(policy.cmd) + round(120 * contract.rate))
    with ExitStack() as stack:
        run_args = RunArgs(driver=str(args.driver), port=args.port, calibration=args.calibration)
        with ExitStack() as unclaimed:
            driver = find_driver(name, run_args, contract, stack)
            unclaimed.callback(driver.stop)
            runner = stack.enter_context(Runner(policy, kernel, driver, buffer))
            unclaimed.pop_all()  # the runner lets go of the robot
        facts = {**facts, "safety": json.dumps(asdict(args.safety))}
        return MotionSession(runner, buffer, facts, start=True, log=args.out).run()
