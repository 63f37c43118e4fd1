"""Logs of commands and positions: read, checked, and refused in one line with the remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from deftly.contract import JOINT_POS, PolicyContract
from deftly.control import log
from deftly.errors import DeftlyError
from deftly.files import read_npz

CMD, STATE, TIME, NAMES = "hand_cmd", "hand_state", "time", "joint_names"
MIN_SECONDS = 5.0
"""Shortest log that is fitted, s."""
MIN_MOTION = 0.02
"""A joint commanded over less than this has not moved, rad."""
LIMIT_TOLERANCE = 0.3
"""A joint this far beyond its limits is not this robot's, or not in these units, rad."""
MAX_LAG = 8
"""Samples by which a joint may lag behind its command where they are correlated."""
FOLLOWS, FOLLOWS_ANOTHER = 0.3, 0.6
"""Correlation above which a joint follows its command, and that of another joint."""
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
        found = _read_run(path, contract)
        _check(path, contract, found)
        return found
    cmd = _matrix(path, arrays, CMD, contract)
    state = _matrix(path, arrays, STATE, contract)
    if len(cmd) != len(state):
        raise DeftlyError(
            f"{path}: {CMD} has {len(cmd)} rows, {STATE} {len(state)}: each row is one sample of both"
        )
    if NAMES in arrays:
        names = [str(name) for name in np.atleast_1d(arrays[NAMES])]
        _require_names(path, contract, names, hardware_order)
    if units == "deg":
        cmd = np.deg2rad(cmd)
        state = np.deg2rad(state)
    if hardware_order:
        if not contract.robot.motors:
            raise DeftlyError(
                f"{contract.robot.name} has no table of motors: leave --hardware-order out"
            )
        cmd = contract.robot.from_motors(cmd)
        state = contract.robot.from_motors(state)
    stamped = TIME in arrays
    if stamped:
        time = _time_stamps(path, arrays[TIME], len(cmd))
    else:
        time = np.arange(len(cmd)) / (command_hz or contract.rate)
    found = HandLog(time, cmd, state, stamped)
    _check(path, contract, found, units)
    return found


def _arrays(path: Path) -> dict[str, np.ndarray]:
    what = f"a log of {CMD} and {STATE}"
    return read_npz(path, what, MAX_BYTES, advice="give --log-file FILE.npz")


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
    numeric = values.dtype.kind in "fiu"
    if values.ndim != 2 or values.shape[1] != joints or not numeric:
        shape = "x".join(map(str, values.shape)) or "a single value"
        raise DeftlyError(
            f"{path}: '{name}' is {shape} of {values.dtype}, "
            f"but {contract.robot.name} has {joints} joints: (T, {joints}) numbers"
        )
    values = values.astype(np.float64)
    bad = np.argwhere(~np.isfinite(values)).tolist()
    if bad:
        row, column = bad[0]
        raise DeftlyError(
            f"{path}: '{name}' is not finite in row {row}, column {column} ({len(bad)} in all): "
            "leave such samples out"
        )
    return values


def _time_stamps(path: Path, time: np.ndarray, count: int) -> np.ndarray:
    """Time stamps (count,), s from the first."""
    numeric = time.dtype.kind in "fiu"
    if time.shape != (count,) or not numeric or not np.isfinite(time).all():
        raise DeftlyError(
            f"{path}: '{TIME}' must be {count} finite numbers, s, one a row; it is {time.shape}"
        )
    time = time.astype(np.float64)
    backwards = np.flatnonzero(np.diff(time) <= 0)
    if backwards.size:
        row = int(backwards[0])
        earlier = time[row]
        later = time[row + 1]
        raise DeftlyError(
            f"{path}: '{TIME}' goes from {earlier:.9g} to {later:.9g} s in row {row + 1}, "
            f"but it must increase: sort the rows, or leave '{TIME}' out and give --command-hz"
        )
    return time - time[0]


def _require_names(
    path: Path, contract: PolicyContract, names: list[str], hardware_order: bool
) -> None:
    motors = [motor.joint for motor in contract.robot.motors]
    wanted = motors if hardware_order else list(contract.joint_names)
    if names == wanted:
        return
    if motors and names == motors:
        raise DeftlyError(
            f"{path}: its joints are in the order of the motors: add --hardware-order True"
        )
    different = f"{len(names)} for {len(wanted)}"
    for name, other in zip(names, wanted):
        if name != other:
            different = f"'{name}' for '{other}'"
            break
    raise DeftlyError(
        f"{path} is of another robot than {contract.robot.name}: its joints are {different}"
    )


def _read_run(path: Path, contract: PolicyContract) -> HandLog:
    """The ticks of a `deftly.log/1` in which a policy drove; the first consecutive ones."""
    found = log.read(path)
    _require_same(path, "robot", contract.robot.name, found.robot.name)
    _require_same(path, "joints", contract.joint_names, found.robot.joint_names)
    rows = found.rows
    command = rows["command"]
    position = rows[f"signal/{JOINT_POS}"]
    driven = rows["decided"] & rows["written"]
    driven &= np.isfinite(command).all(1)
    driven &= np.isfinite(position).all(1)
    if not driven.any():
        raise DeftlyError(
            f"{path}: no policy drove in it; 'deftly sysid TASK --excite' makes a log to fit"
        )
    first = int(driven.argmax())
    idle = np.flatnonzero(~driven[first:])
    count = int(idle[0]) if idle.size else len(driven) - first
    part = slice(first, first + count)
    time = _time_stamps(path, rows["now"][part], count)
    return HandLog(time, command[part], position[part])


def _require_same(path: Path, what: str, ours: Any, theirs: Any) -> None:
    if ours != theirs:
        raise DeftlyError(
            f"{path} is of another {what}: {theirs}, not {ours}; name a task of that robot"
        )


def _check(path: Path, contract: PolicyContract, found: HandLog, units: str = "rad") -> None:
    """Raise DeftlyError unless the log may be this robot's."""
    seconds = found.time[-1] if len(found.time) else 0.0
    if len(found.time) < 2 or seconds < MIN_SECONDS:
        raise DeftlyError(
            f"{path} is {seconds:.3g} s long, but at least {MIN_SECONDS:g} s are needed, better 60 s"
        )
    _require_within_limits(path, contract, CMD, found.cmd, units)
    _require_within_limits(path, contract, STATE, found.state, units)
    reach = np.ptp(found.cmd, axis=0).max()
    if units == "deg" and reach < MIN_MOTION:
        raise DeftlyError(
            f"{path}: commands span {reach:.3g} rad at most: are they radians? Leave --units deg out"
        )


def _require_within_limits(
    path: Path, contract: PolicyContract, name: str, values: np.ndarray, units: str
) -> None:
    """Raise DeftlyError if a column of values, (T, num_joints) rad, is far beyond its joint's limits."""
    lower = np.array([joint.lower for joint in contract.joints])
    upper = np.array([joint.upper for joint in contract.joints])
    beyond = np.maximum(lower - values, values - upper).max(0)
    worst = int(beyond.argmax())
    if beyond[worst] <= LIMIT_TOLERANCE:
        return
    joint = contract.joints[worst]
    least = values[:, worst].min()
    most = values[:, worst].max()
    hint = "the log of another hand, or its motors' order (--hardware-order True)"
    turn = 2 * np.pi + LIMIT_TOLERANCE
    if units == "rad" and np.abs(values).max() > turn:
        hint = "these look like degrees: add --units deg"
    raise DeftlyError(
        f"{path}: '{name}' of {joint.name} spans {least:.3g} to {most:.3g} rad, "
        f"its limits are {joint.lower:.3g} to {joint.upper:.3g}: {hint}"
    )


def moving(found: HandLog, columns: list[int], spare: float = 1.0) -> HandLog:
    """The part in which these joints are commanded to move, and `spare` s before and after."""
    steps = np.diff(found.cmd[:, columns], axis=0)
    changed = np.flatnonzero(np.abs(steps).max(1) > 1e-6)
    if not changed.size:
        return found
    begin = found.time[changed[0]] - spare
    end = found.time[changed[-1] + 1] + spare
    first, stop = np.searchsorted(found.time, (begin, end))
    part = slice(first, stop)
    return HandLog(
        time=found.time[part],
        cmd=found.cmd[part],
        state=found.state[part],
        stamped=found.stamped,
    )


def require_motion(
    path: Path, contract: PolicyContract, found: HandLog, joints: tuple[str, ...]
) -> list[str]:
    """The joints of these that the log moves, in order.

    Raises DeftlyError if there is none, or one of them goes where another joint is commanded.
    """
    span = np.ptp(found.cmd, axis=0)
    moved = [name for name, reach in zip(contract.joint_names, span) if reach >= MIN_MOTION]
    wanted = [name for name in joints if name in moved]
    if not wanted:
        hint = "nothing moves in it"
        if moved:
            hint = f"it moves {', '.join(moved)}: choose their --finger"
        raise DeftlyError(f"{path} has no motion of {', '.join(joints)}; {hint}")
    for name in wanted:
        _require_following(path, found, contract.joint_names, name, moved)
    return wanted


def _require_following(
    path: Path, found: HandLog, names: tuple[str, ...], name: str, moved: list[str]
) -> None:
    """Raise DeftlyError if a joint does not go where it is commanded."""
    state = found.state[:, names.index(name)]
    correlations = {}
    for other in moved:
        cmd = found.cmd[:, names.index(other)]
        correlations[other] = _correlation(state, cmd)
    own = correlations[name]
    if own > FOLLOWS:
        return
    problem = f"{path}: {name} does not go where it is commanded (correlation {own:.2f})"
    if own < -FOLLOWS:
        raise DeftlyError(
            f"{problem}, it turns the other way: signs are the motors', add --hardware-order True"
        )
    nearest = max(correlations, key=lambda other: correlations[other])
    if correlations[nearest] > FOLLOWS_ANOTHER:
        raise DeftlyError(
            f"{problem}, it follows the command of {nearest}: another order, try --hardware-order True"
        )
    raise DeftlyError(f"{problem}: it is blocked, without power, or its column is another joint's")


def _correlation(state: np.ndarray, cmd: np.ndarray) -> float:
    """Correlation of a position (T,) with a command (T,), at the lag at which it is strongest."""
    strongest = 0.0
    for lag in range(MAX_LAG):
        late = state[lag:]
        early = cmd[: len(cmd) - lag]
        if np.ptp(late) > 0:
            matrix = np.corrcoef(late, early)
            strongest = max(strongest, float(matrix[0, 1]), key=abs)
    return strongest


def jitter(found: HandLog) -> dict[str, Any]:
    """How regular the time stamps are: `period` (median), `std`, `longest` (all s), and whether there are any."""
    steps = np.diff(found.time)
    return {
        "stamped": found.stamped,
        "period": float(np.median(steps)),
        "std": float(steps.std()),
        "longest": float(steps.max()),
    }
