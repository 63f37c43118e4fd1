"""What a control loop did, tick by tick: a log buffer in memory, an `.npz` on disk that replays bit for bit."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple

import numpy as np

from deftly.console import printable
from deftly.contract import PolicyContract, RobotInterface
from deftly.control.image_log import ImageLog, file_names, read_png
from deftly.errors import DeftlyError
from deftly.files import FileError, read_npz, write_npz

SCHEMA = "deftly.log/1"
MAX_BYTES = 512 * 2**20
"""Size of the largest log that is read, unpacked."""
IMAGES, FIRST_TICK = "images", "first_tick"
"""Facts of a log with images: their folder, beside it, and the number of its first tick in their names."""
SNAPSHOT_TICKS = 256
"""Ticks between two snapshots of the safety kernel in a log."""
Snapshot = Mapping[str, np.ndarray | float | str]
"""What `Kernel.snapshot` gives."""
Column = tuple[tuple[int, ...], str]
"""Shape of a tick's value, and numpy's name of its type."""
_TAKES = {"f": "fiu", "i": "iu"}
"""Kinds of numpy types that a column takes besides its own."""
_PLAIN: Mapping[str, type] = {"f": float, "U": str, "?": bool}
"""Python's type of a single value that fits a column as it is, by the kind of the column's numpy type."""


@dataclass(frozen=True)
class Log:
    """A log read from disk.

    `rows` holds arrays of T ticks each: `now` (s, monotonic), `episode`, `state` and `fault` (text, after the tick),
    `event` (what the operator asked before it), `at` (s, of the measurement; NaN: none), `writes_at` (s, when ages
    were judged; NaN: at `now`), `heard_at` (s, when the operator said last what the inputs are; NaN: nobody did),
    `signal/<name>` (T, size) of each signal that is no image, `input/<name>` (T, size)
    of each input of numbers that the policy was given, `decided` (whether the policy answered), `action` (T,
    action_size), `targets` and `command` (T, num_joints; NaN: none), `written` (whether the robot took it),
    `read_fault` and `write_fault` (text, if the driver said more than that it failed, and why it took nothing),
    `infer_ms` and `tick_ms`.
    """

    contract: PolicyContract
    """Of the policy that drove."""
    robot: RobotInterface
    """Of the robot that was driven: the policy's, or the policy was refused."""
    rows: Mapping[str, np.ndarray]
    facts: Mapping[str, Any]
    """Arrays and numbers saved beside the rows, such as `task`, `seed`, `safety` (JSON), `reason`."""
    snapshots: Mapping[str, np.ndarray] = field(default_factory=dict)
    """The safety kernel before some of the ticks, a row each: `tick`, and what `Kernel.snapshot` gives."""
    place: Path = Path()
    """The folder of the log."""

    def __len__(self) -> int:
        return len(self.rows["now"])

    @property
    def has_images(self) -> bool:
        """Whether images were kept beside it."""
        return bool(self.facts.get(IMAGES))

    def signals(self, tick: int, images: bool = False) -> dict[str, np.ndarray]:
        """What was measured in a tick, by signal name; with `images`, these too: a FileError if one was not kept."""
        signals = {}
        for signal in self.robot.signals:
            if not signal.is_image:
                signals[signal.name] = self.rows[f"signal/{signal.name}"][tick]
            elif images:
                image = self.image(tick, signal.name)
                if image is None:
                    raise FileError(f"the image '{signal.name}' of tick {tick} was not kept")
                signals[signal.name] = image
        return signals

    def image(self, tick: int, name: str) -> np.ndarray | None:
        """What a camera's signal was in a tick, its shape of uint8; None if it was not kept.

        Raises FileError for a file that is damaged.
        """
        folder = str(self.facts.get(IMAGES, ""))
        if not folder or Path(folder).name != folder:
            return None
        number = int(self.facts.get(FIRST_TICK, 0)) + tick
        stem = f"{number:08d}_{file_names(self.robot)[name]}"
        path = self.place / folder / f"{stem}.png"
        if not path.exists():
            return None
        return read_png(path, self.robot.signal(name).shape)

    def inputs(self, tick: int) -> dict[str, np.ndarray]:
        """What an operator or planner said to the policy in a tick, by name; without what was left at its default."""
        inputs = {}
        for given in self.contract.inputs:
            if given.is_text:
                continue
            value = self.rows[f"input/{given.name}"][tick]
            if not np.isnan(value).any():
                inputs[given.name] = value
        return inputs

    def snapshot(self, tick: int) -> dict[str, np.ndarray | float | str] | None:
        """The safety kernel before a tick and its event, for `Kernel.restore`; None if it was not kept.

        It is kept for tick 0 of every log of a control loop, and wherever a loop began.
        """
        ticks = self.snapshots.get("tick", np.zeros(0))
        places = np.flatnonzero(ticks == tick)
        if not len(places):
            return None
        snapshot = {}
        for name, column in self.snapshots.items():
            if name != "tick":
                value = column[places[-1]]
                snapshot[name] = value if value.ndim else value.item()
        return snapshot


class LogBuffer:
    """The newest `ticks` rows of a control loop; memory is taken once, when it is made.

    The robot is the contract's, unless another one is driven. Images are written by `images`, if there is one, while
    the loop runs: they would not fit into memory.
    """

    def __init__(
        self,
        contract: PolicyContract,
        ticks: int,
        robot: RobotInterface | None = None,
        images: ImageLog | None = None,
    ):
        if ticks < 1:
            raise DeftlyError(f"a log of {ticks} ticks keeps nothing: at least 1")
        self.contract = contract
        self.robot = robot or contract.robot
        self.images = images
        self._cameras = [signal.name for signal in self.robot.signals if signal.is_image]
        self._ticks = ticks
        self._begun = 0  # ticks whose writing began; another thread may save meanwhile
        self._count = 0  # ticks written
        self._snapshots: deque[tuple[int, Snapshot]] = deque()
        self._every = max(1, min(SNAPSHOT_TICKS, ticks // 4))
        self._rows: dict[str, np.ndarray] = {}
        self._fits: dict[str, _Fit] = {}
        for name, (shape, dtype) in _columns(contract, self.robot).items():
            column = np.empty((ticks, *shape), dtype)
            column.fill(column.dtype.type())  # touched now, not first in the control loop
            self._rows[name] = column
            self._fits[name] = _fit(column)

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
        """Append a tick, over the oldest if the buffer is full; what is not given, or does not fit, is NaN or empty."""
        place = self._count % self._ticks
        self._begun = self._count + 1
        with np.errstate(all="ignore"):  # of numbers too large for a column
            for name, column in self._rows.items():
                column[place] = _fitting(row.get(name), self._fits[name])
        if self.images is not None:
            for name in self._cameras:
                self.images.put(self._count, name, row.get(f"signal/{name}"))
        self._count = self._begun
        oldest = self._count - self._ticks
        while self._snapshots and self._snapshots[0][0] < oldest:
            self._snapshots.popleft()

    def rows(self) -> dict[str, np.ndarray]:
        """Copies of the rows, oldest first."""
        return self._copy(self._count)

    def _copy(self, end: int) -> dict[str, np.ndarray]:
        """Copies of the rows before the tick `end`, oldest first."""
        oldest = max(0, end - self._ticks)
        order = np.arange(oldest, end) % self._ticks
        return {name: column[order] for name, column in self._rows.items()}

    def save(self, path: Path, facts: Mapping[str, Any]) -> None:
        """Write the rows and some facts to an `.npz`, atomically.

        Rows older than the oldest snapshot of the safety kernel are left out: nothing could replay them. So are those
        that another thread writes over meanwhile: a control loop may go on.
        """
        end = self._count
        noted = list(self._snapshots)
        copied = self._copy(end)
        oldest = max(0, self._begun - self._ticks)  # that was not written over during the copy
        kept = [(tick, snapshot) for tick, snapshot in noted if oldest <= tick < end]
        first = min(oldest, end)
        if kept:
            first = kept[0][0]
        skipped = first - max(0, end - self._ticks)
        rows = {name: column[skipped:] for name, column in copied.items()}
        if self.images is not None and self.images.folder.parent == path.parent:
            dropped = self.images.flush()
            named = {IMAGES: self.images.folder.name, FIRST_TICK: first}
            facts = {**facts, **named, "images_dropped": dropped}
        snapshots = _stacked(kept, first)
        write(path, self.contract, rows, facts, snapshots, self.robot)


def _stacked(kept: Sequence[tuple[int, Snapshot]], first: int) -> dict[str, np.ndarray]:
    """Snapshots as arrays of a row each, and their ticks, counted from the tick `first`; empty without any."""
    if not kept:
        return {}
    arrays = {}
    for name in kept[0][1]:
        arrays[name] = np.array([snapshot[name] for _, snapshot in kept])
    arrays["tick"] = np.array([tick - first for tick, _ in kept])
    return arrays


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
    driven = robot or contract.robot
    arrays: dict[str, Any] = {
        "schema": SCHEMA,
        "contract": contract.to_json(),
        "contract_hash": contract.hash,
        "rate": contract.rate,
        "robot": driven.to_json(),
    }
    parts = {"row": rows, "fact": facts, "snapshot": snapshots or {}}
    for part, values in parts.items():
        for name, value in values.items():
            arrays[f"{part}/{name}"] = value
    write_npz(path, arrays, level=1)  # in a third of the time: a control loop may be running beside


def read(path: Path) -> Log:
    """Read and check a log. Raises DeftlyError if it is none, damaged, too large, or of another schema."""
    what = "a log of 'deftly run' or 'deftly record'"
    arrays = read_npz(path, what, MAX_BYTES)
    try:
        return replace(_checked(arrays), place=path.parent)
    except Exception as error:  # contract and numpy have many errors for an array that does not fit
        reason = printable(error, 160) or type(error).__name__
        raise FileError(f"{path} is not {what}: {reason}") from None


def _checked(arrays: Mapping[str, np.ndarray]) -> Log:
    """The log that some arrays are. Raises ValueError or KeyError naming the array that does not fit."""
    schema = str(arrays.get("schema"))
    if schema != SCHEMA:
        raise ValueError(f"its schema is {schema[:40]!r}, this Deftly reads {SCHEMA!r}")
    contract = PolicyContract.from_json(str(arrays["contract"]))
    robot = RobotInterface.from_json(str(arrays["robot"]))
    parts: dict[str, dict[str, np.ndarray]] = {"row": {}, "fact": {}, "snapshot": {}}
    for name, value in arrays.items():
        part, _, key = name.partition("/")
        parts.get(part, {})[key] = value
    row = parts["row"]
    if "now" in row:  # older logs do not have all
        ticks = row["now"].shape
        for later in ("writes_at", "heard_at"):
            row.setdefault(later, np.full(ticks, np.nan))
        for later in ("read_fault", "write_fault"):
            row.setdefault(later, np.full(ticks, "", "U32"))
    _require_rows(row, _columns(contract, robot))
    _require_snapshots(parts["snapshot"])
    return Log(contract, robot, row, parts["fact"], parts["snapshot"])


def _require_rows(rows: Mapping[str, np.ndarray], columns: Mapping[str, Column]) -> None:
    """Each column has a row for each tick, of the right shape and kind."""
    now = rows["now"]
    if now.ndim != 1:
        raise ValueError(f"'now' is {now.shape}")
    for name, (shape, dtype) in columns.items():
        column = rows[name]
        fits = column.shape == (*now.shape, *shape)
        if not fits or column.dtype.kind != np.dtype(dtype).kind:
            raise ValueError(f"'{name}' is {column.shape} of {column.dtype}")
    for name, column in rows.items():  # also of columns that this Deftly does not know
        if column.shape[:1] != now.shape:
            raise ValueError(f"'{name}' is {column.shape}, not a row for each of {len(now)} ticks")


def _require_snapshots(snapshots: Mapping[str, np.ndarray]) -> None:
    """Each array has a row for each snapshot."""
    for name, column in snapshots.items():
        if column.shape[:1] != snapshots["tick"].shape:
            raise ValueError(f"'snapshot/{name}' is {column.shape} of {column.dtype}")


class _Fit(NamedTuple):
    """What fits a row of a column: known beforehand, since each tick asks for every column."""

    plain: type
    """Of a single value."""
    kinds: str
    """Of the numpy types of an array, or of what can be one."""
    shape: tuple[int, ...]
    nothing: Any
    """What stands for a value that does not fit."""


def _fit(column: np.ndarray) -> _Fit:
    kind, shape = column.dtype.kind, column.shape[1:]
    plain = NoneType if shape else _PLAIN.get(kind, NoneType)
    nothing = np.nan if kind == "f" else column.dtype.type()
    return _Fit(plain, _TAKES.get(kind, kind), shape, nothing)


def _fitting(value: Any, fit: _Fit) -> Any:
    """The value if it fits a row of a column, else NaN or nothing."""
    if value is None:
        return fit.nothing
    if isinstance(value, fit.plain):
        return value
    try:
        array = np.asarray(value)
    except Exception:  # lists may hold anything
        return fit.nothing
    if array.dtype.kind not in fit.kinds or array.shape != fit.shape:
        return fit.nothing
    return value


def max_ticks(contract: PolicyContract) -> int:
    """Ticks of the longest log of a robot that can be read back; a tenth is left to snapshots and facts."""
    columns = _columns(contract, contract.robot).values()
    row_bytes = 0
    for shape, dtype in columns:
        row_bytes += math.prod(shape) * np.dtype(dtype).itemsize
    return int(0.9 * MAX_BYTES / row_bytes)


def _columns(contract: PolicyContract, robot: RobotInterface) -> dict[str, Column]:
    """Shape of a tick's value and type of each row."""
    joints = len(robot.joints)
    columns: dict[str, Column] = {
        "now": ((), "f8"),
        "at": ((), "f8"),
        "writes_at": ((), "f8"),
        "heard_at": ((), "f8"),
        "infer_ms": ((), "f8"),
        "tick_ms": ((), "f8"),
        "state": ((), "U32"),
        "fault": ((), "U32"),
        "event": ((), "U32"),
        "read_fault": ((), "U32"),
        "write_fault": ((), "U32"),
        "episode": ((), "i4"),
        "decided": ((), "?"),
        "written": ((), "?"),
        "action": ((contract.action_size,), "f4"),
        "targets": ((joints,), "f8"),
        "command": ((joints,), "f8"),
    }
    for signal in robot.signals:
        if not signal.is_image:
            columns[f"signal/{signal.name}"] = ((signal.size,), "f8")
    for given in contract.inputs:
        if not given.is_text:
            columns[f"input/{given.name}"] = ((given.size,), "f8")
    return columns
