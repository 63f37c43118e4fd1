"""What a control loop did, tick by tick: a ring buffer in memory, an `.npz` on disk that replays bit for bit."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deftly.contract import Contract
from deftly.errors import DeftlyError

SCHEMA = "deftly.log/1"
MAX_BYTES = 512 * 2**20
"""Size of the largest log that is read, unpacked."""


@dataclass(frozen=True)
class Log:
    """A log read from disk.

    `rows` holds arrays of T ticks each: `now` (s, monotonic), `episode`, `state` and `fault` (text, after the tick),
    `event` (what the operator asked before it), `at` (s, of the measurement; NaN: none), `signal/<name>` (T, size),
    `decided` (whether the policy answered), `action` (T, action_size), `targets` and `command` (T, num_joints; NaN:
    none), `written` (whether the robot took it), `infer_ms` and `tick_ms`.
    """

    contract: Contract
    rows: Mapping[str, np.ndarray]
    facts: Mapping[str, Any]
    """Arrays and figures saved beside the rows, such as `task`, `seed`, `safety` (JSON), `reason`."""

    def __len__(self) -> int:
        return len(self.rows["now"])

    def signals(self, tick: int) -> dict[str, np.ndarray]:
        """What was measured in a tick, by signal name."""
        return {s.name: self.rows[f"signal/{s.name}"][tick] for s in self.contract.signals}


class Ring:
    """The newest `ticks` rows of a control loop; memory is taken once, when it is made."""

    def __init__(self, contract: Contract, ticks: int):
        self.contract, self._count, self._ticks = contract, 0, ticks
        self._rows = {name: np.zeros((ticks, *shape), dtype) for name, (shape, dtype) in _columns(contract).items()}

    def __len__(self) -> int:
        return min(self._count, self._ticks)

    def add(self, **row: Any) -> None:
        """Append a tick, over the oldest if the ring is full; what is not given, or does not fit, is NaN or empty."""
        place = self._count % self._ticks
        for name, column in self._rows.items():
            column[place] = np.nan if column.dtype.kind == "f" else column.dtype.type()
            value = row.get(name)
            if value is not None and np.shape(value) == column.shape[1:]:
                with suppress(TypeError, ValueError, OverflowError):
                    column[place] = value
        self._count += 1

    def rows(self) -> dict[str, np.ndarray]:
        """Copies of the rows, oldest first."""
        start = self._count % self._ticks if self._count > self._ticks else 0
        order = (start + np.arange(len(self))) % self._ticks
        return {name: column[order] for name, column in self._rows.items()}

    def save(self, path: Path, facts: Mapping[str, Any]) -> None:
        """Write the rows and some facts to an `.npz`; it appears whole or not at all."""
        write(path, self.contract, self.rows(), facts)


def write(path: Path, contract: Contract, rows: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
    """Write a log; the file appears whole or not at all."""
    if path.suffix != ".npz":
        raise DeftlyError(f"a log is an .npz file: {path.with_suffix('.npz')}, not {path}")
    scratch = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    head = {"schema": SCHEMA, "contract": contract.to_json(), "contract_hash": contract.hash, "rate": contract.rate}
    arrays = {**head, **{f"row/{k}": v for k, v in rows.items()}, **{f"fact/{k}": v for k, v in facts.items()}}
    try:
        with scratch.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **{k: np.asarray(v) for k, v in arrays.items()})
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def read(path: Path) -> Log:
    """Read and check a log. Raises DeftlyError if it is none, damaged, too large, or of another schema."""
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(item.file_size for item in archive.infolist()) > MAX_BYTES:
                raise DeftlyError(f"{path} unpacks to more than {MAX_BYTES >> 20} MiB: it is no log of Deftly's")
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        if "schema" not in arrays or str(arrays["schema"]) != SCHEMA:
            raise ValueError(f"its schema is {str(arrays.get('schema'))[:40]!r}, this Deftly reads {SCHEMA!r}")
        contract = Contract.from_json(str(arrays["contract"]))
        rows = {name[4:]: value for name, value in arrays.items() if name.startswith("row/")}
        facts = {name[5:]: value for name, value in arrays.items() if name.startswith("fact/")}
        for name, (shape, dtype) in _columns(contract).items():
            if rows[name].shape != (len(rows["now"]), *shape) or rows[name].dtype.kind != np.dtype(dtype).kind:
                raise ValueError(f"'{name}' is {rows[name].shape} of {rows[name].dtype}")
    except OSError as error:
        raise DeftlyError(f"cannot read the log '{path}': {error.strerror or error}") from None
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())[:160]
        raise DeftlyError(f"{path} is no log of 'deftly run' or 'deftly record', or damaged: {reason}") from None
    return Log(contract, rows, facts)


def _columns(contract: Contract) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape of a tick's value and type of each row."""
    joints = len(contract.joints)
    return {
        **dict.fromkeys(("now", "at", "infer_ms", "tick_ms"), ((), "f8")),
        **dict.fromkeys(("state", "fault", "event"), ((), "U32")),
        "episode": ((), "i4"),
        **dict.fromkeys(("decided", "written"), ((), "?")),
        "action": ((contract.action_size,), "f4"),
        "targets": ((joints,), "f8"),
        "command": ((joints,), "f8"),
        **{f"signal/{s.name}": ((s.size,), "f8") for s in contract.signals},
    }
