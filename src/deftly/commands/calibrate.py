"""`deftly calibrate`: how one robot's motors and inertial sensor are mounted, into a file for `deftly run`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from typing_extensions import Doc

from deftly.commands.run import hardware
from deftly.config import OUTPUT_FILE, RunsConfig, Settings, Suffix, parse, split_word
from deftly.console import printable, show
from deftly.contract import PolicyContract
from deftly.control import calibrate
from deftly.control.drivers.buses import SERVOS
from deftly.errors import DeftlyError
from deftly.evaluate.source import resolve
from deftly.files import why_unwritable
from deftly.policy import bundle

RATE = 10.0
"""At which a robot is read meanwhile, Hz: nobody drives it, so a slow bus will do."""


@dataclass(frozen=True)
class CalibrateArgs(Settings):
    """Find signs and offsets of a robot's motors by hand: `deftly calibrate ROBOT --driver wildrobot --port PORT`."""

    driver: Annotated[str, Doc("The robot: wildrobot, leap, or your own MODULE:CLASS.")]
    port: Annotated[
        str | None,
        Doc("Serial ports, with a comma between, such as /dev/ttyUSB0,/dev/ttyUSB1."),
    ] = None
    policy: Annotated[
        str | None,
        Doc("A bundle or a run of the robot, for its interface; unset: what is shipped for ROBOT."),
    ] = None
    runs: Annotated[RunsConfig, Doc("Where runs are kept.")] = field(default_factory=RunsConfig)
    out: Annotated[
        Path | None,
        Suffix(".json"),
        OUTPUT_FILE,
        Doc("The calibration, .json; unset: ROBOT.calibration.json, here."),
    ] = None


def main(argv: list[str]) -> int:
    """Run `deftly calibrate`. Exit status 1 if somebody ended it before it was done."""
    name, rest = split_word(argv)
    args = parse(CalibrateArgs, rest, prog="deftly calibrate [ROBOT]")
    contract = _contract(name, args)
    robot = contract.robot
    path = args.out or Path(f"{robot.name}.calibration.json")
    _require_place(path, is_named=args.out is not None)
    driver = hardware(args.driver, robot, min(RATE, contract.rate), args.port)
    positive = SERVOS[robot.name].positive if robot.name in SERVOS else {}
    try:
        by_hand = calibrate.ByHand(driver, robot, _ask, _say, positive)
        found = by_hand.run()
    finally:
        driver.stop()
    calibrate.save(path, found)
    for motor in found.motors:
        show(f"{motor.joint}: sign {motor.sign:+g}, offset {motor.offset:+.4f} rad")
    show(f"{path}: give it to deftly run as --calibration")
    return 0


def _require_place(path: Path, is_named: bool) -> None:
    """Raise DeftlyError unless the file can be written: what was found by hand would be lost.

    One that is there, of another robot of this kind perhaps, is only replaced if it was named.
    """
    if problem := why_unwritable(path):
        raise DeftlyError(f"'{printable(path)}': {problem}, with --out FILE.json")
    if path.exists() and not is_named:
        raise DeftlyError(
            f"'{printable(path)}' is there already: say with --out FILE.json whether it is to be replaced"
        )


def _contract(name: str | None, args: CalibrateArgs) -> PolicyContract:
    """A contract of the robot. Raises DeftlyError if there is none."""
    if args.policy is not None:
        contract = resolve(args.policy, None, args.runs, "bundle").contract
        if contract is None:
            raise DeftlyError(f"--policy {args.policy} has no interface here: give a bundle")
        if name not in (None, contract.robot.name):
            raise DeftlyError(f"{args.policy} is of the robot {contract.robot.name}, not of {name}")
        return contract
    shipped = {}
    for task in bundle.all_shipped():
        contract = bundle.load(bundle.SHIPPED / task, verify_golden=False).contract
        shipped[contract.robot.name] = contract
    if name in shipped:
        return shipped[name]
    known = ", ".join(sorted(shipped))
    raise DeftlyError(
        f"calibrate needs a robot, one of {known}, or --policy with a bundle of another"
        if name is None
        else f"no policy is shipped for a robot '{printable(name)}', but for {known}: give --policy BUNDLE"
    )


def _ask(line: str) -> None:
    """Show what is to be done, and wait for Enter. Raises DeftlyError if nobody will press it."""
    try:
        input(f"{line}, then press Enter: ")
    except EOFError:
        raise DeftlyError(
            "calibrate needs somebody at a terminal: no more lines come, nothing was written"
        ) from None


def _say(line: str) -> None:
    show(line)
