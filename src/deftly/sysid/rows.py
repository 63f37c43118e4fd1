"""The rows of a log, put in order: some are there twice, out of order, or not finite."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Rows(NamedTuple):
    """Rows of a log in the order of time; F of these T are finite."""

    time: np.ndarray
    """(T,) as they were stamped, of all rows: where one is missing, the log is to be parted."""
    finite: np.ndarray
    """(T,) bool: which rows are kept."""
    cmd: np.ndarray
    """(F, joints)."""
    state: np.ndarray
    """(F, joints)."""
    notes: tuple[str, ...]
    """What was changed."""


def in_order(time: np.ndarray, cmd: np.ndarray, state: np.ndarray) -> Rows:
    """Sort rows by their stamps, leave out repetitions, and find those that are not finite.

    Stamps of two recordings in one file are not sorted: that would weave one into the other.

    Args:
        time: (T,) stamps, of any unit.
        cmd: (T, joints).
        state: (T, joints).
    """
    notes = []
    finite = np.isfinite(time) & np.isfinite(cmd).all(1) & np.isfinite(state).all(1)
    time = _finite_stamps(time)
    if (time[1:] < time[:-1]).any():
        order = np.argsort(time, kind="stable")
        if _variation(state[order]) <= _variation(state):
            moved = int((order != np.arange(len(order))).sum())
            time, cmd, state, finite = time[order], cmd[order], state[order], finite[order]
            notes.append(f"{moved} rows were out of order: they are sorted by time")

    again = _repeats(time, cmd, state)
    if again.any():
        notes.append(f"{again.sum()} rows are there twice: they are left out once")
        time, cmd, state, finite = time[~again], cmd[~again], state[~again], finite[~again]
    bad = int((~finite).sum())
    if bad:
        notes.append(f"{bad} of {len(finite)} rows are not finite: they are left out")
    return Rows(time, finite, cmd[finite], state[finite], tuple(notes))


def _finite_stamps(time: np.ndarray) -> np.ndarray:
    """Stamps, those that are not finite in proportion between their neighbours."""
    finite = np.isfinite(time)
    if finite.all() or not finite.any():
        return time
    rows = np.arange(len(time))
    return np.interp(rows, rows[finite], time[finite])


def _variation(state: np.ndarray) -> float:
    """Total variation of positions (T, joints): rows out of order jump to and fro."""
    return float(np.nansum(np.abs(np.diff(state, axis=0))))


def _repeats(time: np.ndarray, cmd: np.ndarray, state: np.ndarray) -> np.ndarray:
    """(T,) bool: which rows are the same as the row before, stamp and all."""
    values = np.concatenate((cmd, state), axis=1)
    again = np.zeros(len(time), bool)
    same = (values[1:] == values[:-1]) | (np.isnan(values[1:]) & np.isnan(values[:-1]))
    again[1:] = same.all(1) & (time[1:] == time[:-1])
    return again
