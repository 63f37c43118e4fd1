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
    stamps = _finite_stamps(time)
    rows = _sorted_rows(stamps, state)
    moved = int((rows != np.arange(len(rows))).sum())
    if moved:
        notes.append(f"{moved} rows were out of order: they are sorted by time")

    again = _repeats(stamps[rows], cmd[rows], state[rows])
    rows = rows[~again]
    if again.any():
        notes.append(f"{again.sum()} rows are there twice: they are left out once")

    finite = np.isfinite(time[rows])
    finite &= np.isfinite(cmd[rows]).all(1)
    finite &= np.isfinite(state[rows]).all(1)
    bad = int((~finite).sum())
    if bad:
        notes.append(f"{bad} of {len(rows)} rows are not finite: they are left out")
    kept = rows[finite]
    return Rows(stamps[rows], finite, cmd[kept], state[kept], tuple(notes))


def _sorted_rows(stamps: np.ndarray, state: np.ndarray) -> np.ndarray:
    """Numbers of the rows (T,) in the order of time, or as they are if the positions are rougher then."""
    order = np.argsort(stamps, kind="stable")
    if _variation(state[order]) <= _variation(state):
        return order
    return np.arange(len(stamps))


def _finite_stamps(time: np.ndarray) -> np.ndarray:
    """Stamps, those that are not finite in proportion between their neighbours."""
    finite = np.isfinite(time)
    if finite.all() or not finite.any():
        return time
    rows = np.arange(len(time))
    known, stamps = rows[finite], time[finite]
    filled = np.interp(rows, known, stamps)
    if len(known) > 1:  # before the first and after the last, on at the usual rate
        period = np.median(np.diff(stamps) / np.diff(known))
        early, late = rows < known[0], rows > known[-1]
        filled[early] = stamps[0] + period * (rows[early] - known[0])
        filled[late] = stamps[-1] + period * (rows[late] - known[-1])
    return filled


def _variation(state: np.ndarray) -> float:
    """Total variation of positions (T, joints): rows out of order jump to and fro."""
    with np.errstate(invalid="ignore"):  # infinite ones are left out later
        return float(np.nansum(np.abs(np.diff(state, axis=0))))


def _repeats(time: np.ndarray, cmd: np.ndarray, state: np.ndarray) -> np.ndarray:
    """(T,) bool: which rows are the same as the row before, stamp and all."""
    values = np.concatenate((cmd, state), axis=1)
    before = values[:-1]
    after = values[1:]
    both_missing = np.isnan(before) & np.isnan(after)
    same = (before == after) | both_missing
    again = np.zeros(len(time), bool)
    again[1:] = same.all(1)
    again[1:] &= time[1:] == time[:-1]
    return again
