"""Logs of commands and positions: read, checked, and refused in one line with the remedy."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from deftly.contract import JOINT_POS, PolicyContract
from deftly.control import log
from deftly.errors import DeftlyError
from deftly.files import read_npz
from deftly.sysid import csv_log
from deftly.sysid.csv_log import TICK
from deftly.sysid.rows import Rows, in_order

Units = Literal["rad", "deg", "ticks"]
RAD_PER_UNIT: dict[str, float] = {"rad": 1.0, "deg": np.pi / 180, "ticks": TICK}
SAID_OF_UNITS = {"rad": "radians", "deg": "degrees", "ticks": "encoder ticks"}
CMD, STATE, TIME, NAMES = "hand_cmd", "hand_state", "time", "joint_names"
MIN_SECONDS = 5.0
"""Shortest log that is fitted, s."""
MIN_MOTION = 0.02
"""A joint commanded over less than this has not moved, rad."""
LIMIT_TOLERANCE = 0.3
"""A joint this far beyond its limits is not this robot's, or not in these units, rad."""
FLAT_AT_PI = np.pi
"""Where the LEAP API, and servos as they are mounted, read a flat hand, rad."""
TIME_UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
MIN_RATE, MAX_RATE = 2.0, 2000.0
"""Rates of a log, Hz; their ratio is that of two units of time, so that only one unit fits."""
MAX_MOTION_S = 1800.0
"""Longest log that is read, without its gaps, s: a fit of a minute takes minutes."""
MAX_RADIANS = 2 * np.pi + LIMIT_TOLERANCE
"""Columns with less than this are neither degrees nor ticks."""
MAX_LAG = 8
"""Samples by which a joint may lag behind its command where they are correlated."""
FOLLOWS, FOLLOWS_ANOTHER = 0.3, 0.6
"""Correlation above which a joint follows its command, and that of another joint."""
MIN_FINITE = 0.5
"""Least fraction of the rows that are finite; the others are left out."""
GAP_PERIODS = 3.0
"""Time stamps so many periods apart, or more, have a gap between them, in which anything may have been commanded."""
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
    notes: tuple[str, ...] = ()
    """What was converted, and what was left out."""
    lost: tuple[float, ...] = ()
    """Times of samples that were left out, s: the log is parted there, as it is at gaps."""

    @property
    def period(self) -> float:
        """Median time between samples, s."""
        return float(np.median(np.diff(self.time)))


def read(
    path: Path,
    contract: PolicyContract,
    command_hz: float = 0.0,
    hardware_order: bool = False,
    units: Units = "rad",
) -> HandLog:
    """Read a log of `deftly run` or `sysid --excite`, an .npz of `hand_cmd`, `hand_state` and perhaps `time`, or CSV.

    Units of time stamps are recognised, and joints that read pi where they are flat, as the LEAP API has it. Rows
    that are not finite, or there twice, are left out, and rows out of order are sorted.

    Args:
        path: the file.
        contract: of the robot; names and limits of its joints.
        command_hz: rate of a log without time stamps; 0 takes the contract's.
        hardware_order: columns are the robot's motors in their order, with their signs, not the contract's joints.
        units: of the columns.

    Raises DeftlyError, one line, for anything that is no such log of this robot.
    """
    if path.suffix.lower() in csv_log.SUFFIXES:
        arrays, doubt = _table(path, contract, hardware_order, units)
    else:
        arrays, doubt = _arrays(path), ""
    if "schema" in arrays and str(arrays["schema"]) == log.SCHEMA:
        found = _read_run(path, contract)
        _check(path, found)
        return found
    rows = _rows(path, arrays, contract)
    if NAMES in arrays:
        names = [str(name) for name in np.atleast_1d(arrays[NAMES])]
        _require_names(path, contract, names, hardware_order)
    if hardware_order and not contract.robot.motors:
        raise DeftlyError(
            f"{contract.robot.name} has no table of motors: leave --hardware-order out"
        )
    convention = Convention(hardware_order, units)
    _require_units(path, units, rows)
    cmd, cmd_note = _as_joints(path, contract, CMD, rows.cmd, convention)
    state, state_note = _as_joints(path, contract, STATE, rows.state, convention)
    stamped = TIME in arrays
    time = rows.time / (command_hz or contract.rate)
    time_note = ""
    if stamped:
        time, time_note = _time_stamps(path, rows.time, len(rows.time))
    kept = time[rows.finite]
    start = kept[:1]
    remarks = (doubt, cmd_note, state_note, time_note, *rows.notes)
    notes = tuple(remark for remark in remarks if remark)
    lost = time[~rows.finite] - start
    found = HandLog(kept - start, cmd, state, stamped, notes, tuple(lost.tolist()))
    _check(path, found)
    return found


def _require_units(path: Path, units: Units, rows: Rows) -> None:
    """Raise DeftlyError where columns of other units might as well be radians, which all are within their limits."""
    if units == "rad":
        return
    largest = max(np.abs(rows.cmd).max(initial=0.0), np.abs(rows.state).max(initial=0.0))
    if largest <= MAX_RADIANS:
        raise DeftlyError(
            f"{path}: no angle is beyond {largest:.3g}: are they radians? Leave --units {units} out; if they are not, "
            "convert them to radians"
        )


def _rows(path: Path, arrays: dict[str, np.ndarray], contract: PolicyContract) -> Rows:
    """The rows of a log, in the order of time; without stamps, their time is their number."""
    cmd = _matrix(path, arrays, CMD, contract)
    state = _matrix(path, arrays, STATE, contract)
    if len(cmd) != len(state):
        raise DeftlyError(
            f"{path}: {CMD} has {len(cmd)} rows, {STATE} {len(state)}: each row is one sample of both"
        )
    time = np.arange(len(cmd))
    if TIME in arrays:
        time = _numbers(path, arrays[TIME], len(cmd))
    rows = in_order(time, cmd, state)
    _require_finite(path, rows, {CMD: cmd, STATE: state})
    return rows


def _require_finite(path: Path, rows: Rows, arrays: dict[str, np.ndarray]) -> None:
    """Raise DeftlyError unless most rows are finite."""
    if rows.finite.sum() >= MIN_FINITE * len(rows.finite):
        return
    for name, values in arrays.items():
        bad = ~np.isfinite(values)
        if bad.any():
            row, column = np.argwhere(bad)[0].tolist()
            raise DeftlyError(
                f"{path}: '{name}' is not finite in {bad.any(1).sum()} of {len(bad)} rows, first in "
                f"row {row}, column {column}: log all joints, those that rest too"
            )
    raise DeftlyError(
        f"{path}: '{TIME}' is not finite in most rows: leave it out, and give --command-hz"
    )


def _arrays(path: Path) -> dict[str, np.ndarray]:
    what = f"a log of {CMD} and {STATE}"
    return read_npz(path, what, MAX_BYTES, advice="give --log-file FILE.npz")


def _table(
    path: Path, contract: PolicyContract, hardware_order: bool, units: Units
) -> tuple[dict[str, np.ndarray], str]:
    """The arrays of a log as text, as those of an .npz: in the order of joints and in the units that were asked for.

    With them comes what is doubtful about units that the names of its columns have.
    """
    motors = [motor.joint for motor in contract.robot.motors]
    names = motors if hardware_order and motors else list(contract.joint_names)
    table = csv_log.read(path, names)
    scale = 1 / RAD_PER_UNIT[units] if table.angles_named else 1.0
    arrays = {CMD: scale * table.cmd, STATE: scale * table.state}
    if table.time is not None:
        arrays[TIME] = table.time
    doubt = ""
    if table.largest is not None and table.largest <= MAX_RADIANS:
        doubt = (
            f"no angle is beyond {table.largest:.3g}, in the units of the columns' names: if they are radians, name "
            "the columns [rad]"
        )
    return arrays, doubt


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
    is_table = values.ndim == 2 and values.shape[1] == joints
    if not is_table or not numeric:
        shape = "x".join(map(str, values.shape)) or "a single value"
        raise DeftlyError(
            f"{path}: '{name}' is {shape} of {values.dtype}, "
            f"but {contract.robot.name} has {joints} joints: (T, {joints}) numbers"
        )
    return values.astype(np.float64)


def _numbers(path: Path, time: np.ndarray, count: int) -> np.ndarray:
    """Time stamps (count,) as numbers, which may not be finite."""
    if time.dtype.kind in "US" and time.shape == (count,):
        with suppress(ValueError):  # said below
            time = time.astype(np.float64)
    if time.shape != (count,) or time.dtype.kind not in "fiu":
        shape = "x".join(map(str, time.shape)) or "a single value"
        raise DeftlyError(
            f"{path}: '{TIME}' must be {count} numbers, s, one a row; it is {shape} of {time.dtype}"
        )
    return time


def _time_stamps(path: Path, time: np.ndarray, count: int) -> tuple[np.ndarray, str]:
    """Time stamps (count,), s from the first, and what to say of their unit, if it is not s."""
    backwards = np.flatnonzero(time[1:] <= time[:-1])
    if backwards.size:
        row = int(backwards[0])
        is_late = abs(float(time[row])) > 1e5
        coarse = time.dtype == np.float32 and is_late
        hint = "are these two recordings? Fit one at a time"
        if time[row + 1] == time[row]:
            hint = "two samples have one stamp"
        if coarse:
            hint = "save it as float64, float32 is too coarse"
        raise DeftlyError(
            f"{path}: '{TIME}' goes from {time[row]:.9g} to {time[row + 1]:.9g} in row {row + 1}, "
            f"but it must increase: {hint}, or leave '{TIME}' out and give --command-hz"
        )
    # integers of ns since 1970 have more digits than a float
    time = (time - time[:1]).astype(np.float64)
    if count < 2:
        return time, ""
    period = float(np.median(np.diff(time)))
    for unit, seconds in TIME_UNITS.items():
        if 1 / MAX_RATE < period * seconds <= 1 / MIN_RATE:
            note = f"'{TIME}' is taken for {unit}: samples every {1e3 * period * seconds:.3g} ms"
            return seconds * time, "" if unit == "s" else note
    raise DeftlyError(
        f"{path}: '{TIME}' rises by {period:.3g} a row, which is no rate of {MIN_RATE:g} to "
        f"{MAX_RATE:g} Hz in s, ms, us or ns: convert it to s, or leave it out and give --command-hz"
    )


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
    time, _ = _time_stamps(path, rows["now"][part], count)
    _require_within_limits(path, contract, CMD, command[part])
    _require_within_limits(path, contract, STATE, position[part])
    return HandLog(time, command[part], position[part])


def _require_same(path: Path, what: str, ours: Any, theirs: Any) -> None:
    if ours != theirs:
        raise DeftlyError(
            f"{path} is of another {what}: {theirs}, not {ours}; name a task of that robot"
        )


def _check(path: Path, found: HandLog) -> None:
    """Raise DeftlyError unless the log may be fitted."""
    seconds = found.time[-1] if len(found.time) else 0.0
    if len(found.time) < 2 or seconds < MIN_SECONDS:
        raise DeftlyError(
            f"{path} is {seconds:.3g} s long, but at least {MIN_SECONDS:g} s are needed, better 60 s"
        )
    steps = np.diff(found.time)
    logged = float(steps[~gaps(found)].sum())
    if logged > MAX_MOTION_S:
        raise DeftlyError(
            f"{path} has {logged:.0f} s, but {MAX_MOTION_S:g} s at most are fitted: cut a part out, 60 s do"
        )


# --------------------------------------------------------------- conventions


class Convention(NamedTuple):
    """How the columns of a log are to be read."""

    hardware_order: bool
    units: str  # of `RAD_PER_UNIT`
    zero: float = 0.0  # what a column reads where its joint is at zero, rad

    def joints(self, values: np.ndarray, contract: PolicyContract) -> np.ndarray:
        """Columns (T, num_joints) as positions of the contract's joints, rad."""
        values = RAD_PER_UNIT[self.units] * values - self.zero
        return contract.robot.from_motors(values) if self.hardware_order else values


def _others(given: Convention, contract: PolicyContract) -> list[Convention]:
    """Other conventions that flags ask for, the likeliest first."""
    orders = [given.hardware_order]
    if contract.robot.motors:
        orders.append(not given.hardware_order)
    found = []
    for units in (("rad", "deg"), ("ticks",)):
        for order in orders:
            found += [given._replace(units=unit, hardware_order=order) for unit in units]
    found.remove(given)
    return found


def _as_joints(
    path: Path, contract: PolicyContract, name: str, values: np.ndarray, convention: Convention
) -> tuple[np.ndarray, str]:
    """Columns as positions of the contract's joints, (T, num_joints) rad, and what to say of their convention.

    Raises DeftlyError with the flags under which they fit, if they do not under these.
    """
    at_zero = convention.joints(values, contract)
    if _excess(contract, at_zero).max() <= LIMIT_TOLERANCE:
        return at_zero, ""
    at_pi = convention._replace(zero=FLAT_AT_PI).joints(values, contract)
    if _excess(contract, at_pi).max() <= LIMIT_TOLERANCE:
        note = f"'{name}' reads pi where joints are flat, as the LEAP API has it: pi was subtracted"
        if contract.robot.motors and not convention.hardware_order:
            note += (
                "; if its columns are the API's motors in their order, add --hardware-order True"
            )
        return at_pi, note
    hint = "the log of another robot, or in an order or units of its own"
    for other in _others(convention, contract):
        if _fits(contract, values, other):
            hint = _flags(convention, other)
            break
    _refuse_limits(path, contract, name, at_zero, hint)
    return at_zero, ""


def _fits(contract: PolicyContract, values: np.ndarray, convention: Convention) -> bool:
    """Whether columns, read so, are within the limits, wherever they read a flat joint."""
    if convention.units != "rad" and np.abs(values).max() <= MAX_RADIANS:
        return False  # any radians, read as degrees or ticks, are within the limits
    if convention.units == "ticks" and (values % 1).any():
        return False
    for zero in (0.0, FLAT_AT_PI):
        joints = convention._replace(zero=zero).joints(values, contract)
        if _excess(contract, joints).max() <= LIMIT_TOLERANCE:
            return True
    return False


def _flags(given: Convention, wanted: Convention) -> str:
    """What to type for another convention."""
    said = []
    if wanted.units != given.units:
        said.append(f"these look like {SAID_OF_UNITS[wanted.units]}: add --units {wanted.units}")
        if wanted.units == "rad":
            said[-1] = f"these look like radians: leave --units {given.units} out"
    if wanted.hardware_order != given.hardware_order:
        said.append("columns look like the motors' order: add --hardware-order True")
        if given.hardware_order:
            said[-1] = "columns look like the joints' order: leave --hardware-order out"
    return "; ".join(said)


def _excess(contract: PolicyContract, values: np.ndarray) -> np.ndarray:
    """How far each joint of values (T, num_joints), rad, goes beyond its limits."""
    lower = np.array([joint.lower for joint in contract.joints])
    upper = np.array([joint.upper for joint in contract.joints])
    below = lower - values
    above = values - upper
    return np.maximum(below, above).max(0, initial=0.0)


def _require_within_limits(
    path: Path, contract: PolicyContract, name: str, values: np.ndarray
) -> None:
    if _excess(contract, values).max() > LIMIT_TOLERANCE:
        _refuse_limits(path, contract, name, values, "the log of another robot")


def _refuse_limits(
    path: Path, contract: PolicyContract, name: str, values: np.ndarray, hint: str
) -> None:
    """Raise DeftlyError of values (T, num_joints), rad, that are far beyond the limits of a joint."""
    worst = int(_excess(contract, values).argmax())
    joint = contract.joints[worst]
    least = values[:, worst].min()
    most = values[:, worst].max()
    raise DeftlyError(
        f"{path}: '{name}' of {joint.name} spans {least:.3g} to {most:.3g} rad, "
        f"its limits are {joint.lower:.3g} to {joint.upper:.3g}: {hint}"
    )


# --------------------------------------------------------------- motion


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
    return found._replace(time=found.time[part], cmd=found.cmd[part], state=found.state[part])


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


def gaps(found: HandLog) -> np.ndarray:
    """(T - 1,) bool: whether samples are missing between a sample and the next."""
    steps = np.diff(found.time)
    missing = steps > GAP_PERIODS * np.median(steps)
    places = np.searchsorted(found.time, found.lost) - 1
    inside = (places >= 0) & (places < len(missing))
    missing[places[inside]] = True
    return missing


def jitter(found: HandLog) -> dict[str, Any]:
    """How regular the time stamps are, and whether there are any (`stamped`).

    `period` (median), `std` and `longest` of the steps (s), without those that are gaps: `gaps`, how many, and
    `missing`, how long they are in all (s).
    """
    steps = np.diff(found.time)
    missing = gaps(found)
    regular = steps[~missing]
    return {
        "stamped": found.stamped,
        "period": found.period,
        "std": float(regular.std()),
        "longest": float(regular.max()),
        "gaps": int(missing.sum()),
        "missing": float(steps[missing].sum()),
    }
