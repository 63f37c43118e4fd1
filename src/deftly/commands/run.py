"""`deftly run`: let a policy drive a robot under the safety kernel, with an operator at the terminal or none."""

from __future__ import annotations

import importlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, Gt, Le, Lt
from typing_extensions import Doc

from deftly import __version__
from deftly.config import (
    INPUT_FILE,
    SEEDS,
    RunsConfig,
    parse,
    split_task,
)
from deftly.console import print_unless_stuck
from deftly.contract import PolicyContract, RobotInterface
from deftly.control import calibrate
from deftly.control.drivers import SIMULATED, Driver, FakeDriver, lacking, robot_of
from deftly.control.image_log import ImageLog
from deftly.control.joints import JointCheck
from deftly.control.log import LogBuffer, max_ticks
from deftly.control.loop import HANGS_S, PatientClock, Runner, Tick
from deftly.control.operator import OPERATOR, open_operator, require_spec
from deftly.control.realtime import make_real_time
from deftly.control.safety import Kernel, SafetyConfig
from deftly.control.session import (
    LOG,
    LOG_SECONDS,
    SECONDS,
    START,
    Session,
    require_place,
)
from deftly.control.signals import ending_on_signals
from deftly.errors import DeftlyError
from deftly.evaluate.source import PolicyArgs, PolicySource, of_task, policy_words, task_name
from deftly.policy.chunks import CHUNK_S, ChunkPolicy
from deftly.policy.protocol import Policy
from deftly.serving.client import Client
from deftly.serving.endpoint import is_websocket

HANGING: dict[str, Any] = {"start_envelope": 10.0, "approach_s": 0.0}
"""Bounds of a check of the joints: a robot that hangs is anywhere, and is not brought home."""
PERIOD_FRACTION = 0.8
"""Longest wait for a server's answer, in control periods, unless one is asked for."""


@dataclass(frozen=True, kw_only=True)
class RunArgs(PolicyArgs):
    """Let a policy drive a robot: `deftly run TASK`, or `deftly run --policy BUNDLE`, or `--policy tcp://...`, or `ws://...`."""

    driver: Annotated[
        str,
        Doc(
            "The robot: sim (TASK, simulated), fake, leap, wildrobot (both at --port), or your own MODULE:CLASS."
        ),
    ]
    settings_from: Annotated[
        str | None,
        Doc("With tcp:// or ws://: the bundle or run whose contract the robot has."),
    ] = None
    runs: Annotated[RunsConfig, Doc("Where runs are kept.")] = field(default_factory=RunsConfig)
    timeout_ms: Annotated[
        float | None,
        Gt(0),
        Doc(
            "Longest wait for the server's answer; unset: 0.8 of the control period; of a chunk 10 s."
        ),
    ] = None
    port: Annotated[
        str | None,
        Doc(
            "Serial port, such as /dev/ttyUSB0, or several with commas between; or what your driver takes as `port=`."
        ),
    ] = None
    calibration: Annotated[
        Path | None,
        INPUT_FILE,
        Doc("How this robot's motors are mounted: the file of `deftly calibrate`."),
    ] = None
    baud: Annotated[int, Ge(1), Doc("Rate of the LEAP hand's bus.")] = 4_000_000
    current_ma: Annotated[
        int,
        Ge(1),
        Doc("Largest current of each motor of the LEAP hand, mA; 550 is what is simulated."),
    ] = 550
    seconds: SECONDS = 0.0
    operator: Annotated[
        str | None, Doc(f"{OPERATOR} Unset: nobody, inputs have their defaults.")
    ] = None
    check_joints: Annotated[
        bool,
        Doc(
            "Let no policy drive: move each joint a little, while the robot hangs, and say which is wrong."
        ),
    ] = False
    start: START = False
    real_time: Annotated[
        bool,
        Doc("Have Linux prefer this loop to all other programs, and keep its memory in RAM."),
    ] = False
    log: LOG = None
    log_seconds: LOG_SECONDS = 600.0
    seed: Annotated[
        int, Ge(0), Lt(SEEDS), Doc("Decides how the simulated robot's task starts.")
    ] = 0
    fault: Annotated[str, Doc("A fault of the fake robot, such as frozen or nan.")] = ""
    fault_at: Annotated[int, Ge(0), Le(10**9), Doc("Tick after which the fake robot has it.")] = 40
    safety: Annotated[SafetyConfig, Doc("Bounds of the safety kernel.")] = field(
        default_factory=SafetyConfig
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.operator:
            require_spec(self.operator)
        if self.operator and self.check_joints:
            raise DeftlyError("--check-joints lets no policy drive: leave out --operator")
        if self.fault and self.driver != "fake":
            raise DeftlyError(f"--fault is of the fake robot, not of --driver {self.driver}")
        if self.port and self.driver in SIMULATED:
            raise DeftlyError(
                f"--port is of a real robot: leave it out with --driver {self.driver}"
            )
        if self.calibration and self.driver in SIMULATED:
            raise DeftlyError(
                f"--calibration is of a real robot: leave it out with --driver {self.driver}"
            )


def main(argv: list[str]) -> int:
    """Run `deftly run`. Exit status 0: the time is over or the operator quit; 1: a fault that nobody could clear."""
    task, flags = split_task(argv)
    args = parse(RunArgs, policy_words(flags), prog="deftly run [TASK]")
    require_place(args.log, keep=args.driver not in SIMULATED)
    if args.real_time:
        make_real_time()
    with ending_on_signals(), ExitStack() as stack:
        with ExitStack() as unclaimed:
            source, like = find_source(task, args)
            print_unless_stuck(source.line)
            contract, policy = open_policy(source, like, args, task)
            unclaimed.callback(policy.close)
            operator = open_operator(args.operator, contract) if args.operator else None
            if operator:
                stack.callback(operator.close)
            if args.driver == "sim":
                args = _as_simulated(task or (like.task if like else ""), args, flags)
            driver = find_driver(task, args, contract, stack, like)
            unclaimed.callback(driver.stop)
            args = replace(args, safety=_bounds(args.safety, driver))
            if args.check_joints:
                policy.close()
                policy = JointCheck(contract)
                args = replace(args, safety=replace(args.safety, **HANGING))
            robot = robot_of(driver, contract.robot)
            if args.log_seconds > (most := max_ticks(contract) // contract.rate):
                raise DeftlyError(
                    f"log-seconds is {args.log_seconds:g}, but at most {most:g} s of this robot fit a log"
                )
            ticks = math.ceil(args.log_seconds * contract.rate)
            buffer = LogBuffer(contract, ticks, robot, _image_log(args.log, robot, ticks))
            kernel = Kernel(robot, contract.rate, args.safety)
            runner = stack.enter_context(Runner(policy, kernel, driver, buffer))
            unclaimed.pop_all()  # the runner lets go of policy and robot
        facts = _facts((like.task if like else "") or task, args, source)
        session = CheckSession if args.check_joints else Session
        status = session(
            runner,
            buffer,
            facts,
            start=args.start,
            seconds=args.seconds,
            log=args.log,
            operator=operator,
        ).run()
        if args.fault and isinstance(driver, FakeDriver) and not driver.faulty:
            print_unless_stuck(
                f"fault {args.fault}: it never happened, since it comes after {args.fault_at} ticks "
                "(--fault-at)"
            )
            return status or 1
        return status


class CheckSession(Session):
    """Ends when each joint was moved, and says what was found."""

    def each(self, _: Tick) -> bool:
        """As a session does; False when all joints were moved."""
        return super().each(_) and not self._check.done

    @property
    def _check(self) -> JointCheck:
        check = self.runner.policy.policy
        assert isinstance(check, JointCheck)
        return check

    def run(self) -> int:
        """Exit status 0: every joint went where it was sent. A check that was cut short is none."""
        check = self._check
        status = super().run()
        for line in check.verdicts():
            print_unless_stuck(line)
            status = 1
        moved = f"{len(check.moves)} of {check.count} joints were moved"
        if not check.done:
            print_unless_stuck(f"{moved}: the check was cut short, it takes {check.seconds:.0f} s")
            return status or 1
        if check.followers:
            moved += f" (and with them {', '.join(check.followers)}, coupled to them)"
        print_unless_stuck(moved + ("" if status else ", all are in order"))
        return status


# --------------------------------------------------------------- policy and robot


def find_source(task: str | None, args: RunArgs) -> tuple[PolicySource, PolicySource | None]:
    """The policy that is meant, and what has the robot's contract and settings: itself, or what --settings-from names.

    Raises DeftlyError if there is none of the task.
    """
    if task is None and args.policy is None:
        raise DeftlyError(
            "run needs a policy: deftly run TASK, or --policy with a bundle or tcp://HOST:PORT"
        )
    source = of_task(args.policy, task, args.runs, "bundle").asked(args)
    like = source
    if args.settings_from:
        like = of_task(args.settings_from, task, args.runs, "bundle")
    if like.loaded is None:
        return source, None
    in_file = ".py" in (
        task or ""
    )  # which nothing here reads; the simulated robot does, and looks at its name
    if not in_file and task_name(task) not in (None, like.task):
        raise DeftlyError(f"{like.label} is a policy of {like.task}, not of {task}")
    return source, like


def open_policy(
    source: PolicySource, like: PolicySource | None, args: RunArgs, task: str | None = None
) -> tuple[PolicyContract, Policy]:
    """The robot's contract and its policy, in this process or on a server. Raises DeftlyError if it cannot be had.

    A server that tells no contract, as openpi's, decides under that of the shipped task that is named.
    """
    if source.loaded is not None:
        policy = source.open(ahead=True)
        if isinstance(policy, ChunkPolicy):
            policy.require_network()  # a model's first call is slow: the robot need not wait for it
        return source.loaded.contract, policy
    if is_websocket(source.label):
        wanted = like.contract if like else None
        timeout = CHUNK_S if args.timeout_ms is None else 1e-3 * args.timeout_ms
        untold = partial(_contract_of, task) if task and _is_shipped(task) else None
        policy = source.open(wanted, timeout=timeout, keys=args.keys, ahead=True, untold=untold)
        return policy.contract, policy
    client = Client(source.label, keys=args.keys, quality=args.jpeg)
    with ExitStack() as unclaimed:
        unclaimed.callback(client.close)
        period_ms = 1e3 / client.contract.rate
        timeout_ms = PERIOD_FRACTION * period_ms if args.timeout_ms is None else args.timeout_ms
        if not 0 < timeout_ms <= period_ms:
            raise DeftlyError(
                f"timeout-ms is {timeout_ms:g}, but the control period has only {period_ms:g} ms"
            )
        client.timeout = client.patience = (
            1e-3 * timeout_ms
        )  # in the loop nothing is waited for any longer
        unclaimed.pop_all()
    contract = like.contract if like else None
    return contract or client.contract, client


def find_driver(
    task: str | None,
    args: RunArgs,
    contract: PolicyContract,
    stack: ExitStack,
    like: PolicySource | None = None,
) -> Driver:
    """The robot that `--driver` names; what it needs is ended with `stack`. Raises DeftlyError if it cannot be had."""
    if args.driver == "fake":
        return FakeDriver(contract.robot, contract.rate, args.fault, args.fault_at)
    if args.driver == "sim":
        return _simulated(task, args, contract, stack, like)
    calibration = None
    if args.calibration is not None:
        calibration = calibrate.load(args.calibration)
        what = f"--calibration {args.calibration}"
        contract = replace(contract, robot=calibration.applied(contract.robot, what))
    elif args.driver == "wildrobot":
        raise DeftlyError(
            "--driver wildrobot needs --calibration FILE, how this one's servos are mounted: "
            "deftly calibrate wildrobot --driver wildrobot --port PORT makes it"
        )
    mount = None if calibration is None else calibration.imu
    bus = {"baud": args.baud, "current_ma": args.current_ma}
    return hardware(args.driver, contract.robot, contract.rate, args.port, mount, **bus)


def hardware(
    name: str,
    robot: RobotInterface,
    rate: float,
    port: str | None,
    mount: Sequence[float] | None = None,
    **bus: int,
) -> Driver:
    """A real robot. Raises DeftlyError if it cannot be had.

    Args:
        name: `leap`, `wildrobot`, or MODULE:CLASS.
        robot: its interface, with motors as they are mounted.
        rate: of the control loop, Hz.
        port: where it is.
        mount: how its inertial sensor is mounted, quaternion w x y z; None: not known.
        bus: rate and largest current of a bus of Dynamixel motors.
    """
    if name == "leap":
        from deftly.control.drivers.dynamixel import Dynamixel

        return Dynamixel(robot, rate, port, **bus)
    if name == "wildrobot":
        from deftly.control.drivers.wildrobot import WildRobot

        return WildRobot(robot, rate, port, None if mount is None else np.array(mount))
    return custom_driver(name, robot, rate, port)


def _simulated(
    task: str | None,
    args: RunArgs,
    contract: PolicyContract,
    stack: ExitStack,
    like: PolicySource | None,
) -> Driver:
    from deftly.control.drivers.socketdriver import SocketDriver
    from deftly.twin.server import launch

    if task is None and like is None:
        raise DeftlyError(
            "--driver sim simulates a task: deftly run TASK --driver sim --policy tcp://HOST:PORT"
        )
    words = [task or (like.task if like else "")]
    if like is not None:
        words += ["--policy", like.place, "--runs.root", str(args.runs.root)]
    process, endpoint = launch([*words, "--seed", str(args.seed), "--follow", "True"])
    stack.callback(_end, process)
    clock = PatientClock(1 / contract.rate)
    return SocketDriver(contract.robot, contract.rate, endpoint, HANGS_S, clock=clock)


def _is_shipped(task: str) -> bool:
    """Whether a task is one of ours, and no file of a user's."""
    from deftly.tasks import OLDER_NAMES, SHIPPED

    return OLDER_NAMES.get(task, task) in SHIPPED


def _contract_of(task: str) -> PolicyContract:
    """The contract of a shipped task under its own settings."""
    from deftly.tasks import load

    cls = load(task)
    return cls(cls.Config()).contract()


def _as_simulated(task: str, args: RunArgs, flags: list[str]) -> RunArgs:
    """The arguments with a shipped task's own bounds of the safety kernel where the user says nothing.

    The file of a user's task is imported by the robot's process alone.
    """
    from deftly.tasks import load

    safety = dict(load(task).safety) if _is_shipped(task) else {}
    if not safety:
        return args
    filed = {"safety": safety}
    return parse(RunArgs, policy_words(flags), prog="deftly run [TASK]", filed=filed)


def _bounds(safety: SafetyConfig, driver: Driver) -> SafetyConfig:
    """The safety kernel's bounds, with what the driver says of its robot where the user says nothing."""
    approach_s = safety.approach_s or getattr(driver, "approach_s", 0.0)
    lead = getattr(driver, "lead", None) if safety.lead is None else safety.lead
    return replace(safety, approach_s=approach_s, lead=lead)


def _end(process: subprocess.Popen[str]) -> None:
    """End a process of ours, which was asked to end already."""
    try:
        process.wait(1.0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def custom_driver(spec: str, robot: RobotInterface, rate: float, port: str | None = None) -> Driver:
    """`MODULE:CLASS`, also of the current folder, made as `CLASS(robot, rate)` or `CLASS(robot, rate, port=...)`.

    Raises DeftlyError, one line, if it cannot be imported, lacks a method of `Driver`, or fails.
    """
    module, colon, name = spec.partition(":")
    if not (module and colon and name):
        is_none = spec in SIMULATED  # which a command that needs a robot does not know
        known = "leap, wildrobot" if is_none else "sim, fake, leap, wildrobot"
        raise DeftlyError(
            f"--driver is '{spec}', but it must be {known}, or MODULE:CLASS such as my_robot:Driver"
        )
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        cls = getattr(importlib.import_module(module), name)
        missing = lacking(cls, robot)
        if not missing:
            return cls(robot, rate) if port is None else cls(robot, rate, port=port)
    except DeftlyError:
        raise
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise DeftlyError(
                f"--driver {spec}: it needs the module '{error.name}', which is not there"
            ) from error
        raise DeftlyError(
            f"--driver {spec}: no module '{module}' here or installed; known are sim, fake, leap, wildrobot, and "
            "MODULE:CLASS of the current folder"
        ) from error
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        said = " ".join(str(error).split())[:200]
        raise DeftlyError(f"--driver {spec}: {type(error).__name__}: {said}") from error
    raise DeftlyError(
        f"--driver {spec} has no method {missing[0]}(): a driver has read, write, stop and, for a robot "
        "that is damped, damp (docs/run.md)"
    )


# --------------------------------------------------------------- around it


def _facts(task: str | None, args: RunArgs, source: PolicySource) -> dict[str, Any]:
    policy = source.place
    facts = {"task": task or "", "policy": policy, "driver": args.driver, "deftly": __version__}
    return {
        **facts,
        "safety": json.dumps(asdict(args.safety)),
        "began": datetime.now().astimezone().isoformat(),
    }


def _image_log(log: Path | None, robot: RobotInterface, ticks: int) -> ImageLog | None:
    """What keeps the images of a robot with cameras, if a log is asked for."""
    if log is None or not any(signal.is_image for signal in robot.signals):
        return None
    return ImageLog(log, robot, ticks)
