"""Logs of commands and positions: read, checked, and refused in one line that says what to do instead."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from deftly.contract import JOINT_POS, PolicyContract
from deftly.control import log
from deftly.errors import DeftlyError
from deftly.files import read_npz

CMD, STATE, TIME, NAMES = "hand_cmd", "hand_state", "time", "joint_names"
LEAST_S = 5.0
"""Shortest log that is fitted, s."""
STILL = 0.02
"""A joint commanded over less than this has not moved, rad."""
BEYOND = 0.3
"""A joint this far beyond its limits is not this robot's, or not in these units, rad."""
MAX_BYTES = 1 << 30


class HandLog(NamedTuple):
    """What was commanded and measured, in the contract's order of joints; T samples."""

    time: np.ndarray
    """(T,) s from the first sample; command and position of a sample have one stamp."""
    cmd: np.ndarray
    """(T, num_joints) rad."""
    state: np.ndarray
    """(T, num_joints) rad, measured before the command of the same row was sent."""
    stamped: bool = True
    """Whether the log had time stamps; without them, samples are taken to be evenly spaced."""


def read(
    path: Path,
    contract: PolicyContract,
    command_hz: float = 0.0,
    hardware_order: bool = False,
    units: Literal["rad", "deg"] = "rad",
) -> HandLog:
    """Read a log of `deftly run` or `sysid --excite`, or an .npz of `hand_cmd`, `hand_state` and optional `time`.

    Args:
        path: the file.
        contract: of the robot; names and limits of its joints.
        command_hz: rate of a log without time stamps; 0 takes the contract's.
        hardware_order: columns are the robot's motors in their order, with their signs, not the contract's joints.
        units: of the columns.

    Raises DeftlyError, one line, for anything that is no such log of this robot.
    """
    arrays = _arrays(path)
    if "schema" in arrays and str(arrays["schema"]) == log.SCHEMA:
        return _check(path, contract, _of_run(path, contract))
    cmd, state = (_matrix(path, arrays, name, contract) for name in (CMD, STATE))
    if len(cmd) != len(state):
        raise DeftlyError(
            f"{path}: {CMD} has {len(cmd)} rows, {STATE} {len(state)}: each row is one sample of both"
        )
    if NAMES in arrays:
        _require_names(
            path, contract, [str(n) for n in np.atleast_1d(arrays[NAMES])], hardware_order
        )
    if units == "deg":
        cmd, state = np.deg2rad(cmd), np.deg2rad(state)
    if hardware_order:
        if not contract.robot.motors:
            raise DeftlyError(
                f"{contract.robot.name} has no table of motors: leave --hardware-order out"
            )
        cmd, state = contract.robot.from_motors(cmd), contract.robot.from_motors(state)
    rate = command_hz or contract.rate
    time = _times(path, arrays[TIME], len(cmd)) if TIME in arrays else np.arange(len(cmd)) / rate
    return _check(path, contract, HandLog(time, cmd, state, TIME in arrays), units)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    return read_npz(
        path, f"a log of {CMD} and {STATE}", MAX_BYTES, advice="give --log-file FILE.npz"
    )


def _matrix(
    path: Path, arrays: dict[str, np.ndarray], name: str, contract: PolicyContract
) -> np.ndarray:
    """An array of the log, (T, num_joints) float64."""
    joints = len(contract.joints)
    if name not in arrays:
        raise DeftlyError(
            f"{path} has no '{name}', it has {sorted(arrays)}: a log has {CMD} and {STATE}, (T, {joints})"
        )
    values = arrays[name]
    if values.ndim != 2 or values.shape[1] != joints or values.dtype.kind not in "fiu":
        found = f"{'x'.join(map(str, values.shape)) or 'a single value'} of {values.dtype}"
        raise DeftlyError(
            f"{path}: '{name}' is {found}, but {contract.robot.name} has {joints} joints: (T, {joints}) numbers"
        )
    values = values.astype(np.float64)
    if bad := np.argwhere(~np.isfinite(values)).tolist():
        where = f"row {bad[0][0]}, column {bad[0][1]}"
        raise DeftlyError(
            f"{path}: '{name}' is not finite in {where} ({len(bad)} in all): leave such samples out"
        )
    return values


def _times(path: Path, time: np.ndarray, count: int) -> np.ndarray:
    if time.shape != (count,) or time.dtype.kind not in "fiu" or not np.isfinite(time).all():
        raise DeftlyError(
            f"{path}: '{TIME}' must be {count} finite numbers, s, one a row; it is {time.shape}"
        )
    time = time.astype(np.float64)
    if (back := np.flatnonzero(np.diff(time) <= 0)).size:
        i = int(back[0])
        text = f"'{TIME}' goes from {time[i]:.9g} to {time[i + 1]:.9g} s in row {i + 1}, but it must increase"
        raise DeftlyError(
            f"{path}: {text}: sort the rows, or leave '{TIME}' out and give --command-hz"
        )
    return time - time[0]


def _require_names(
    path: Path, contract: PolicyContract, names: list[str], hardware_order: bool
) -> None:
    wanted = (
        [m.joint for m in contract.robot.motors] if hardware_order else list(contract.joint_names)
    )
    if names == wanted:
        return
    if contract.robot.motors and names == [m.joint for m in contract.robot.motors]:
        raise DeftlyError(
            f"{path}: its joints are in the order of the motors: add --hardware-order True"
        )
    first = next(
        (f"'{a}' for '{b}'" for a, b in zip(names, wanted) if a != b),
        f"{len(names)} for {len(wanted)}",
    )
    raise DeftlyError(
        f"{path} is of another robot than {contract.robot.name}: its joints are {first}"
    )


def _of_run(path: Path, contract: PolicyContract) -> HandLog:
    """The ticks of a `deftly.log/1` in which a policy drove; the first stretch of them."""
    found = log.read(path)
    for what, ours, theirs in (
        ("robot", contract.robot.name, found.robot.name),
        ("joints", contract.joint_names, found.robot.joint_names),
    ):
        if ours != theirs:
            raise DeftlyError(
                f"{path} is of another {what}: {theirs}, not {ours}; name a task of that robot"
            )
    rows = found.rows
    good = rows["decided"] & rows["written"] & np.isfinite(rows["command"]).all(1)
    good &= np.isfinite(rows[f"signal/{JOINT_POS}"]).all(1)
    places = np.flatnonzero(good)
    if not len(places):
        raise DeftlyError(
            f"{path}: no policy drove in it; 'deftly sysid TASK --excite' makes a log to fit"
        )
    stop = int(np.append(np.flatnonzero(~good[places[0] :]), len(good) - places[0])[0]) + int(
        places[0]
    )
    part = slice(int(places[0]), stop)
    time = _times(path, rows["now"][part], stop - part.start)
    return HandLog(time, rows["command"][part], rows[f"signal/{JOINT_POS}"][part])


def _check(path: Path, contract: PolicyContract, found: HandLog, units: str = "rad") -> HandLog:
    """The log, if it may be this robot's."""
    lower, upper = np.array([(j.lower, j.upper) for j in contract.joints]).T
    if len(found.time) < 2 or found.time[-1] < LEAST_S:
        seconds = found.time[-1] if len(found.time) else 0.0
        raise DeftlyError(
            f"{path} is {seconds:.3g} s long, but at least {LEAST_S:g} s are needed, better 60 s"
        )
    for name, values in ((CMD, found.cmd), (STATE, found.state)):
        beyond = np.maximum(lower - values, values - upper).max(0)
        worst = int(beyond.argmax())
        if beyond[worst] <= BEYOND:
            continue
        joint, most = contract.joints[worst], np.abs(values).max()
        said = f"'{name}' of {joint.name} spans {values[:, worst].min():.3g} to {values[:, worst].max():.3g} rad"
        hint = "the log of another hand, or its motors' order (--hardware-order True)"
        if most > 2 * np.pi + BEYOND and units == "rad":
            hint = "these look like degrees: add --units deg"
        raise DeftlyError(
            f"{path}: {said}, its limits are {joint.lower:.3g} to {joint.upper:.3g}: {hint}"
        )
    reach = np.ptp(found.cmd, axis=0).max()
    if units == "deg" and reach < STILL:
        raise DeftlyError(
            f"{path}: commands span {reach:.3g} rad at most: are they radians? Leave --units deg out"
        )
    return found


def moving(found: HandLog, columns: list[int], spare: float = 1.0) -> HandLog:
    """The stretch in which these joints are commanded to move, and `spare` s before and after: others' need no fit."""
    changed = np.flatnonzero(np.abs(np.diff(found.cmd[:, columns], axis=0)).max(1) > 1e-6)
    if not changed.size:
        return found
    begin, end = found.time[changed[0]] - spare, found.time[changed[-1] + 1] + spare
    first, stop = np.searchsorted(found.time, (begin, end))
    return HandLog(
        found.time[first:stop], found.cmd[first:stop], found.state[first:stop], found.stamped
    )


def require_motion(
    path: Path, contract: PolicyContract, found: HandLog, joints: tuple[str, ...]
) -> list[str]:
    """The joints of these that the log moves, in order.

    Raises DeftlyError if there is none, or one of them goes where another joint is commanded.
    """
    span, names = np.ptp(found.cmd, axis=0), contract.joint_names
    moving = [j for j in joints if span[names.index(j)] >= STILL]
    if not moving:
        others = [n for n, s in zip(names, span) if s >= STILL]
        hint = (
            f"it moves {', '.join(others)}: choose their --finger"
            if others
            else "nothing moves in it"
        )
        raise DeftlyError(f"{path} has no motion of {', '.join(joints)}; {hint}")
    for name in moving:
        _require_following(path, found, names, name, [n for n, s in zip(names, span) if s >= STILL])
    return moving


def _require_following(
    path: Path, found: HandLog, names: tuple[str, ...], name: str, moving: list[str]
) -> None:
    """Raise DeftlyError if a joint does not go where it is commanded."""

    def likeness(commanded: str, lag: int) -> float:
        state, cmd = (
            found.state[lag:, names.index(name)],
            found.cmd[: len(found.cmd) - lag, names.index(commanded)],
        )
        return float(np.corrcoef(state, cmd)[0, 1]) if np.ptp(state) > 0 else 0.0

    best = {other: max((likeness(other, lag) for lag in range(8)), key=abs) for other in moving}
    if best[name] > 0.3:
        return
    said = f"{path}: {name} does not go where it is commanded (correlation {best[name]:.2f})"
    if best[name] < -0.3:
        raise DeftlyError(
            f"{said}, it turns the other way: signs are the motors', add --hardware-order True"
        )
    near = max(best, key=lambda other: best[other])
    if best[near] > 0.6:
        raise DeftlyError(
            f"{said}, it follows the command of {near}: another order, try --hardware-order True"
        )
    raise DeftlyError(f"{said}: it is blocked, without power, or its column is another joint's")


def jitter(found: HandLog) -> dict[str, Any]:
    """How regular the time stamps are: `period` (median), `std`, `longest` (all s), and whether there are any."""
    steps = np.diff(found.time)
    period = float(np.median(steps))
    return {
        "stamped": found.stamped,
        "period": period,
        "std": float(steps.std()),
        "longest": float(steps.max()),
    }
