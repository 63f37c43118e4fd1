import errno
import io
import os
import pickle
import zipfile
from contextlib import suppress

import numpy as np
import pytest
from four_joints import HOME, TOY, Steady
from hypothesis import given, settings
from hypothesis import strategies as st
from one_row import OneRow

from deftly.control import log
from deftly.control.drivers import FAULTS, FakeDriver, Reading
from deftly.control.log import LogBuffer
from deftly.control.loop import Runner
from deftly.control.safety import Fault, Kernel, State
from deftly.errors import DeftlyError
from deftly.policy.protocol import Decision


class Shaky(OneRow):
    """A policy that asks for anything, and sometimes gives no answer."""

    contract = TOY

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)

    def decide(self, signals, applied, inputs):
        if self.rng.random() < 0.03:
            raise TimeoutError
        return Decision(np.zeros(3, np.float32), self.rng.normal(size=4).astype(np.float32))

    def close(self):
        pass


def recorded(buffer, seed, ticks, fault="", at=40):
    """A loop of some ticks with an operator who starts and resumes at once; returns what it commanded."""
    clock = [100.0]
    runner = Runner(
        Shaky(seed),
        Kernel(TOY.robot, TOY.rate),
        FakeDriver(TOY.robot, TOY.rate, fault, at, lambda: clock[0]),
        buffer,
    )
    rng = np.random.default_rng(seed)
    for _ in range(ticks):
        clock[0] += rng.choice([0.05, 0.05, 0.05, 0.051, 0.09])
        if runner.kernel.state is State.READY and rng.random() < 0.5:
            runner.start()
        if runner.kernel.state is State.HOLD and rng.random() < 0.5:
            runner.resume()
        if rng.random() < 0.01:
            runner.hold()
        runner.step(clock[0])
    return runner


def replayed(found, kernel):
    """The commands that a kernel gives for the rows of a log."""
    commands = []
    for i in range(len(found)):
        if (snapshot := found.snapshot(i)) is not None:
            if i:
                now = kernel.snapshot()
                assert all(
                    np.array_equal(now[k], v, equal_nan=k == "command")
                    for k, v in snapshot.items()
                    if k != "reason"
                )
            kernel.restore(snapshot)
        row = {name: column[i] for name, column in found.rows.items()}
        for event in filter(None, str(row["event"]).split("+")):
            getattr(kernel, event)()
        reading = None if np.isnan(row["at"]) else Reading(found.signals(i), float(row["at"]))
        row["writes_at"] = None if np.isnan(row["writes_at"]) else float(row["writes_at"])
        command = kernel.tick(
            float(row["now"]), reading, row["targets"] if row["decided"] else None, row["writes_at"]
        )
        if not row["written"]:
            kernel.hold("", Fault.DRIVER)
        assert (kernel.state, kernel.fault) == (row["state"], row["fault"])
        commands.append(np.full(4, np.nan) if command is None else command)
    return np.array(commands)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**32), st.integers(1, 300), st.integers(1, 400), st.sampled_from(("", *FAULTS))
)
def test_a_log_whose_beginning_was_dropped_replays_from_its_oldest_row(
    tmp_path_factory, seed, ticks, size, fault
):
    path = tmp_path_factory.mktemp("log") / "log.npz"
    buffer = LogBuffer(TOY, size)
    recorded(buffer, seed, ticks, "" if fault == "slow" else fault)
    buffer.save(path, {})
    found = log.read(path)
    assert min(ticks, 0.7 * size) <= len(found) <= size
    assert found.snapshot(0) is not None
    np.testing.assert_array_equal(
        replayed(found, Kernel(TOY.robot, TOY.rate)), found.rows["command"]
    )


def small(ticks=5, size=10):
    buffer = LogBuffer(TOY, size)
    for i in range(ticks):
        buffer.add(
            now=i,
            at=i + 0.5,
            state=State.READY,
            fault=Fault.NONE,
            command=HOME + i,
            written=True,
            episode=i,
        )
    return buffer


def saved(path, **changes):
    """A log with some of its arrays changed, or left out (None)."""
    small().save(path, {"task": "toy"})
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files} | changes
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    return path


def test_the_ring_keeps_the_newest_ticks_oldest_first():
    buffer = small(ticks=3)
    assert len(buffer) == 3
    np.testing.assert_array_equal(buffer.rows()["now"], [0, 1, 2])
    buffer = small(ticks=25)
    assert len(buffer) == 10
    np.testing.assert_array_equal(buffer.rows()["now"], np.arange(15, 25))
    buffer.rows()["now"][:] = -1
    np.testing.assert_array_equal(buffer.rows()["now"], np.arange(15, 25))


def test_what_is_not_given_or_does_not_fit_is_empty():
    buffer, bad = (
        LogBuffer(TOY, 8),
        [HOME[:3], "1", ["1", "2", "3", "4"], [[1], [1, 2]], {}, HOME > 0, [None] * 4, HOME * 1j],
    )
    for value in bad:
        buffer.add(
            now=1.0,
            command=value,
            state=7,
            episode=1e300,
            decided="yes",
            action=[1e300] * 3,
            unknown=1,
        )
    rows = buffer.rows()
    assert np.isnan(rows["command"]).all()
    assert np.isnan(rows["at"]).all()
    assert rows["state"].tolist() == [""] * 8
    assert not rows["decided"].any()
    assert not rows["episode"].any()
    assert np.isinf(rows["action"]).all()
    assert (rows["now"] == 1.0).all()


def test_the_longest_log_can_be_read_back():
    ticks = log.max_ticks(TOY)
    buffer = LogBuffer(TOY, 1000)
    row = sum(column.nbytes for column in buffer._rows.values()) / 1000
    assert 0.8 * log.MAX_BYTES < ticks * row < 0.95 * log.MAX_BYTES


def test_the_ring_takes_its_memory_once_and_copies():
    buffer, row = LogBuffer(TOY, 4), HOME.copy()
    places = {name: column.ctypes.data for name, column in buffer._rows.items()}
    for _ in range(9):
        buffer.add(command=row)
        row += 1.0
    np.testing.assert_array_equal(buffer.rows()["command"][:, 1], [5, 6, 7, 8])
    assert {name: column.ctypes.data for name, column in buffer._rows.items()} == places


@pytest.mark.parametrize("ticks", [0, -1])
def test_a_ring_without_room_is_refused(ticks):
    with pytest.raises(DeftlyError, match="keeps nothing"):
        LogBuffer(TOY, ticks)


def test_snapshots_of_a_long_run_are_few():
    buffer = LogBuffer(TOY, 2000)
    recorded(buffer, 0, 50)
    for _ in range(20_000):
        if buffer.wants_snapshot:
            buffer.keep(Kernel(TOY.robot, TOY.rate).snapshot())
        buffer.add(now=1.0)
    assert len(buffer._snapshots) == 2000 // 256 + 1


def test_a_log_read_back_is_what_was_saved(tmp_path):
    buffer = small()
    buffer.save(tmp_path / "deep" / "log.npz", {"task": "toy", "seed": 3, "figures": np.arange(4)})
    found = log.read(tmp_path / "deep" / "log.npz")
    assert found.contract == TOY
    assert len(found) == 5
    for name, column in buffer.rows().items():
        np.testing.assert_array_equal(found.rows[name], column)
        assert found.rows[name].dtype == column.dtype
    assert str(found.facts["task"]) == "toy"
    assert found.facts["figures"].tolist() == [0, 1, 2, 3]
    assert found.snapshot(0) is None
    assert os.listdir(tmp_path / "deep") == ["log.npz"]


def test_a_snapshot_is_read_back_as_it_was_kept(tmp_path):
    buffer, kernel = LogBuffer(TOY, 9), Kernel(TOY.robot, TOY.rate)
    kernel.hold("a reason, with any length: " + "x" * 300)
    runner = Runner(Steady(), kernel, FakeDriver(TOY.robot, TOY.rate), buffer)
    kept = kernel.snapshot()
    runner.step(100.0)
    buffer.save(tmp_path / "log.npz", {})
    found = log.read(tmp_path / "log.npz").snapshot(0)
    assert found is not None
    assert set(found) == set(kept)
    assert all(type(found[name]) is type(kept[name]) for name in kept)
    assert all(
        np.array_equal(found[name], kept[name], equal_nan=name == "command") for name in kept
    )


DAMAGED = {
    "text": lambda p: p.write_text("now, command"),
    "empty": lambda p: p.write_bytes(b""),
    "pickle": lambda p: p.write_bytes(pickle.dumps({"now": 1})),
    "one array": lambda p: np.save(p.open("wb"), HOME),
    "half": lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]),
    "foreign": lambda p: np.savez(p, weights=HOME),
    "folder": lambda p: (p.unlink(), p.mkdir()),
    "gone": lambda p: p.unlink(),
    "older schema": lambda p: saved(p, schema="deftly.log/0"),
    "other contract": lambda p: saved(p, contract="{}"),
    "no contract": lambda p: saved(p, contract=None),
    "no column": lambda p: saved(p, **{"row/command": None}),
    "short column": lambda p: saved(p, **{"row/command": np.zeros((4, 4))}),
    "short column that is unknown": lambda p: saved(p, **{"row/later": np.zeros(4)}),
    "wide column": lambda p: saved(p, **{"row/command": np.zeros((5, 7))}),
    "text column": lambda p: saved(p, **{"row/command": np.full((5, 4), "x")}),
    "no rows": lambda p: saved(p, **{"row/now": np.float64(1)}),
    "no ticks": lambda p: saved(p, **_first_rows(p)),
    "short snapshot": lambda p: saved(
        p, **{"snapshot/tick": np.zeros(2), "snapshot/now": np.zeros(1)}
    ),
    "objects": lambda p: saved(p, **{"fact/x": np.array([{}], dtype=object)}),
    "no array": lambda p: _member(p, "row/now", b"not an array"),
    "huge array": lambda p: _member(p, "row/now.npy", _header("(100000000000000,)")),
    "odd header": lambda p: _member(p, "row/now.npy", _header("(" * 300)),
}


def _first_rows(path):
    with np.load(path) as file:
        return {name: file[name][0] for name in file.files if name.startswith("row/")}


def _member(path, name, data):
    with zipfile.ZipFile(path) as old:
        parts = {
            n: old.read(n)
            for n in old.namelist()
            if n.removesuffix(".npy") != name.removesuffix(".npy")
        }
    with zipfile.ZipFile(path, "w") as new:
        for part, content in (parts | {name: data}).items():
            new.writestr(part, content)


def _header(shape):
    text = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".ljust(410) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize("damage", DAMAGED)
def test_what_is_no_log_is_refused_in_one_line(tmp_path, damage):
    path = tmp_path / "log.npz"
    small().save(path, {})
    DAMAGED[damage](path)
    with pytest.raises(DeftlyError) as caught:
        log.read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(path))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_log_with_any_byte_changed_is_read_or_refused(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("log") / "log.npz"
    small().save(path, {})
    content = bytearray(path.read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=5)):
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with suppress(DeftlyError):
        assert len(log.read(path)) == 5


def test_a_log_that_unpacks_to_too_much_is_refused_before_it_is_unpacked(tmp_path):
    path = tmp_path / "bomb.npz"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file,
        file.open("schema.npy", "w", force_zip64=True) as part,
    ):
        for _ in range(log.MAX_BYTES // 2**22 + 1):
            part.write(bytes(2**22))
    assert path.stat().st_size < 2**20
    with pytest.raises(DeftlyError, match=r"unpacks to more than 512 MiB"):
        log.read(path)


def test_a_log_never_runs_a_pickle(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "evil"),)

    path, buffer = tmp_path / "log.npz", io.BytesIO()
    np.save(buffer, np.array([Evil()], dtype=object), allow_pickle=True)
    small().save(path, {})
    _member(path, "schema.npy", buffer.getvalue())
    with pytest.raises(DeftlyError, match=r"as a log of .*Object arrays"):
        log.read(path)
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_disk_that_fails_keeps_the_old_log(tmp_path, monkeypatch, where):
    path = tmp_path / "log.npz"
    small(ticks=3).save(path, {})

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, where, full)
    with pytest.raises(DeftlyError, match=r"cannot write .*No space left"):
        small(ticks=5).save(path, {})
    monkeypatch.undo()
    assert len(log.read(path)) == 3
    assert os.listdir(tmp_path) == ["log.npz"]


def test_facts_that_would_need_a_pickle_are_refused_and_leave_nothing(tmp_path):
    with pytest.raises(ValueError, match="Object arrays"):
        small().save(tmp_path / "log.npz", {"x": None})
    assert not os.listdir(tmp_path)


def test_another_ending_is_refused(tmp_path):
    with pytest.raises(DeftlyError, match=r"a log is an .npz file: .*log.npz, not .*log.txt"):
        small().save(tmp_path / "log.txt", {})
