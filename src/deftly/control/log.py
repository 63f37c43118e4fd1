"""What a control loop did, tick by tick: a ring buffer in memory, an `.npz` on disk that replays bit for bit."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from deftly.console import printable
from deftly.contract import PolicyContract, RobotInterface
from deftly.errors import DeftlyError
from deftly.files import FileError, read_npz, write_npz

SCHEMA = "deftly.log/1"
MAX_BYTES = 512 * 2**20
"""Size of the largest log that is read, unpacked."""
SNAPSHOT_TICKS = 256
"""Ticks between two snapshots of the safety kernel in a log."""
Snapshot = Mapping[str, np.ndarray | float | str]


@dataclass(frozen=True)
class Log:
    """A log read from disk.

    `rows` holds arrays of T ticks each: `now` (s, monotonic), `episode`, `state` and `fault` (text, after the tick),
    `event` (what the operator asked before it), `at` (s, of the measurement; NaN: none), `signal/<name>` (T, size) of
    each signal that is no image, `input/<name>` (T, size) of each input of numbers that the policy was given,
    `decided` (whether the policy answered), `action` (T, action_size), `targets` and `command` (T, num_joints; NaN:
    none), `written` (whether the robot took it), `infer_ms` and `tick_ms`.
    """

    contract: PolicyContract
    """Of the policy that drove."""
    robot: RobotInterface
    """Of the robot that was driven: the policy's, or the policy was refused."""
    rows: Mapping[str, np.ndarray]
    facts: Mapping[str, Any]
    """Arrays and figures saved beside the rows, such as `task`, `seed`, `safety` (JSON), `reason`."""
    snapshots: Mapping[str, np.ndarray] = field(default_factory=dict)
    """The safety kernel before some of the ticks, a row each: `tick`, and what `Kernel.snapshot` gives."""

    def __len__(self) -> int:
        return len(self.rows["now"])

    def signals(self, tick: int) -> dict[str, np.ndarray]:
        """What was measured in a tick, by signal name."""
        return {
            s.name: self.rows[f"signal/{s.name}"][tick]
            for s in self.robot.signals
            if not s.is_image
        }

    def inputs(self, tick: int) -> dict[str, np.ndarray]:
        """What an operator or planner said to the policy in a tick, by name; without what was left at its default."""
        rows = {
            i.name: self.rows[f"input/{i.name}"][tick]
            for i in self.contract.inputs
            if not i.is_text
        }
        return {name: value for name, value in rows.items() if not np.isnan(value).any()}

    def snapshot(self, tick: int) -> dict[str, np.ndarray | float | str] | None:
        """The safety kernel before a tick and its event, for `Kernel.restore`; None if it was not kept.

        It is kept for tick 0 of every log of a control loop, and wherever a loop began.
        """
        places = np.flatnonzero(self.snapshots.get("tick", np.zeros(0)) == tick)
        if not len(places):
            return None
        rows = {
            name: column[places[-1]] for name, column in self.snapshots.items() if name != "tick"
        }
        return {name: value if value.ndim else value.item() for name, value in rows.items()}


class Ring:
    """The newest `ticks` rows of a control loop; memory is taken once, when it is made.

    The robot is the contract's, unless another one is driven.
    """

    def __init__(self, contract: PolicyContract, ticks: int, robot: RobotInterface | None = None):
        if ticks < 1:
            raise DeftlyError(f"a log of {ticks} ticks keeps nothing: at least 1")
        self.contract, self.robot = contract, robot or contract.robot
        self._begun, self._count, self._ticks = 0, 0, ticks
        self._snapshots: deque[tuple[int, Snapshot]] = deque()
        self._every = max(1, min(SNAPSHOT_TICKS, ticks // 4))
        columns = _columns(contract, self.robot)
        self._rows = {
            name: np.empty((ticks, *shape), dtype) for name, (shape, dtype) in columns.items()
        }
        for column in self._rows.values():
            column.fill(column.dtype.type())  # touched now, not first in the control loop

    def __len__(self) -> int:
        return min(self._count, self._ticks)

    @property
    def wants_snapshot(self) -> bool:
        """Whether it is time to `keep` the safety kernel again."""
        return self._count % self._every == 0

    def keep(self, snapshot: Snapshot) -> None:
        """Note the safety kernel as it is before the next row and its event: a log replays from there."""
        self._snapshots.append((self._count, snapshot))

    def add(self, **row: Any) -> None:
        """Append a tick, over the oldest if the ring is full; what is not given, or does not fit, is NaN or empty."""
        place, self._begun = self._count % self._ticks, self._count + 1
        with np.errstate(all="ignore"):  # of numbers too large for a column
            for name, column in self._rows.items():
                column[place] = _fitting(row.get(name), column)
        self._count = self._begun
        while self._snapshots and self._snapshots[0][0] < self._count - self._ticks:
            self._snapshots.popleft()

    def rows(self) -> dict[str, np.ndarray]:
        """Copies of the rows, oldest first."""
        return self._copy(self._count)

    def _copy(self, end: int) -> dict[str, np.ndarray]:
        order = np.arange(max(0, end - self._ticks), end) % self._ticks
        return {name: column[order] for name, column in self._rows.items()}

    def save(self, path: Path, facts: Mapping[str, Any]) -> None:
        """Write the rows and some facts to an `.npz`, atomically.

        Rows older than the oldest snapshot of the safety kernel are left out: nothing could replay them. So are those
        that another thread writes over meanwhile: a control loop may go on.
        """
        end, noted = self._count, list(self._snapshots)
        copied = self._copy(end)
        oldest = max(0, self._begun - self._ticks)
        kept = [(tick, snapshot) for tick, snapshot in noted if oldest <= tick < end]
        first = min(kept[0][0] if kept else oldest, end)
        rows = {
            name: column[first - max(0, end - self._ticks) :] for name, column in copied.items()
        }
        snapshots = {
            name: np.array([s[name] for _, s in kept]) for name in (kept[0][1] if kept else ())
        }
        if kept:
            snapshots["tick"] = np.array([tick - first for tick, _ in kept])
        write(path, self.contract, rows, facts, snapshots, self.robot)


def write(
    path: Path,
    contract: PolicyContract,
    rows: Mapping[str, np.ndarray],
    facts: Mapping[str, Any],
    snapshots: Mapping[str, np.ndarray] | None = None,
    robot: RobotInterface | None = None,
) -> None:
    """Write a log atomically. The robot is the contract's unless it is given."""
    if path.suffix != ".npz":
        raise DeftlyError(f"a log is an .npz file: {path.with_suffix('.npz')}, not {path}")
    head = {
        "schema": SCHEMA,
        "contract": contract.to_json(),
        "contract_hash": contract.hash,
        "rate": contract.rate,
    }
    head["robot"] = (robot or contract.robot).to_json()
    parts = {"row": rows, "fact": facts, "snapshot": snapshots or {}}
    arrays = {
        **head,
        **{f"{part}/{k}": v for part, values in parts.items() for k, v in values.items()},
    }
    write_npz(path, arrays, level=1)  # in a third of the time: a control loop may be running beside


def read(path: Path) -> Log:
    """Read and check a log. Raises DeftlyError if it is none, damaged, too large, or of another schema."""
    what = "a log of 'deftly run' or 'deftly record'"
    arrays = read_npz(path, what, MAX_BYTES)
    try:
        return _checked(arrays)
    except (
        Exception
    ) as error:  # the contract in it, and numpy, have many ways to say that an array does not fit
        raise FileError(
            f"{path} is not {what}: {printable(error, 160) or type(error).__name__}"
        ) from None


def _checked(arrays: Mapping[str, np.ndarray]) -> Log:
    """The log that some arrays are. Raises ValueError or KeyError naming the array that does not fit."""
    if "schema" not in arrays or str(arrays["schema"]) != SCHEMA:
        raise ValueError(
            f"its schema is {str(arrays.get('schema'))[:40]!r}, this Deftly reads {SCHEMA!r}"
        )
    contract = PolicyContract.from_json(str(arrays["contract"]))
    robot = RobotInterface.from_json(str(arrays["robot"]))
    parts: dict[str, dict[str, np.ndarray]] = {"row": {}, "fact": {}, "snapshot": {}}
    for name, value in arrays.items():
        part, _, key = name.partition("/")
        parts.get(part, {})[key] = value
    rows, snapshots = parts["row"], parts["snapshot"]
    if rows["now"].ndim != 1:
        raise ValueError(f"'now' is {rows['now'].shape}")
    for name, (shape, dtype) in _columns(contract, robot).items():
        if (
            rows[name].shape != (*rows["now"].shape, *shape)
            or rows[name].dtype.kind != np.dtype(dtype).kind
        ):
            raise ValueError(f"'{name}' is {rows[name].shape} of {rows[name].dtype}")
    for name, column in snapshots.items():
        if column.shape[:1] != snapshots["tick"].shape:
            raise ValueError(f"'snapshot/{name}' is {column.shape} of {column.dtype}")
    return Log(contract, robot, rows, parts["fact"], snapshots)


def _fitting(value: Any, column: np.ndarray) -> Any:
    """The value if it fits a row of the column, else NaN or nothing."""
    nothing = np.nan if column.dtype.kind == "f" else column.dtype.type()
    if value is None:
        return nothing
    try:
        array = np.asarray(value)
        kinds = {"f": "fiu", "i": "iu"}.get(column.dtype.kind, column.dtype.kind)
        return value if array.dtype.kind in kinds and array.shape == column.shape[1:] else nothing
    except Exception:  # lists may hold anything
        return nothing


def max_ticks(contract: PolicyContract) -> int:
    """Ticks of the longest log of a robot that can be read back; a tenth is left to snapshots and facts."""
    columns = _columns(contract, contract.robot).values()
    row = sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in columns)
    return int(0.9 * MAX_BYTES / row)


def _columns(
    contract: PolicyContract, robot: RobotInterface
) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape of a tick's value and type of each row."""
    joints = len(robot.joints)
    return {
        **dict.fromkeys(("now", "at", "infer_ms", "tick_ms"), ((), "f8")),
        **dict.fromkeys(("state", "fault", "event"), ((), "U32")),
        "episode": ((), "i4"),
        **dict.fromkeys(("decided", "written"), ((), "?")),
        "action": ((contract.action_size,), "f4"),
        "targets": ((joints,), "f8"),
        "command": ((joints,), "f8"),
        **{f"signal/{s.name}": ((s.size,), "f8") for s in robot.signals if not s.is_image},
        **{f"input/{i.name}": ((i.size,), "f8") for i in contract.inputs if not i.is_text},
    }
