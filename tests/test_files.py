"""Files are the old or the new whenever the writer is killed; what is read is plain, bounded, or refused in a line."""

import errno
import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from deftly import files
from deftly.files import (
    MAX_ARRAYS,
    MB,
    FileError,
    atomic_folder,
    atomic_write,
    parse_json,
    parse_npz,
    parse_yaml,
    read_bytes,
    read_json,
    read_npz,
    read_yaml,
    remove_folder,
    require_plain,
    sha256,
    sweep,
    write_bytes,
    write_json,
    write_npz,
    write_text,
)


def one_line(call, *args, **kwargs) -> str:
    """The message of the FileError that a call must raise."""
    with pytest.raises(FileError) as caught:
        call(*args, **kwargs)
    text = str(caught.value)
    assert text.isprintable()
    assert len(text) < 700
    return text


def tried(call, *args) -> tuple[object, str]:
    """What a call returns, or the message of its FileError, which is one line."""
    try:
        return call(*args), ""
    except FileError as error:
        said = str(error)
    assert said.isprintable()
    return None, said


def fail_after(path: Path) -> None:
    """Write half a file, then fail."""
    path.write_text("half")
    raise KeyError


# ------------------------------------------------------------------------ writing


def test_what_was_written_is_read(tmp_path):
    write_json(tmp_path / "new/folder/a.json", {"a": [1, None, "ü"]})
    assert read_json(tmp_path / "new/folder/a.json", "a thing") == {"a": [1, None, "ü"]}
    write_text(tmp_path / "b", "one\r\ntwo\n")
    assert read_bytes(tmp_path / "b", "a thing", 100) == b"one\r\ntwo\n"
    assert sorted(os.listdir(tmp_path)) == ["b", "new"]


def test_permissions_are_those_of_a_new_file(tmp_path):
    write_bytes(tmp_path / "a", b"")
    (tmp_path / "b").touch()
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_an_error_in_the_block_keeps_the_old_file_and_leaves_nothing(tmp_path):
    write_text(tmp_path / "a", "old")
    with pytest.raises(KeyError), atomic_write(tmp_path / "a") as scratch:
        fail_after(scratch)
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a", float("nan"))
    assert os.listdir(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == "old"


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_full_disk_keeps_the_old_file_and_is_one_line(tmp_path, monkeypatch, where):
    write_text(tmp_path / "a", "old")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, where, full)
    assert (
        one_line(write_text, tmp_path / "a", "new")
        == f"cannot write '{tmp_path / 'a'}': No space left on device"
    )
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == "old"


def test_scratch_has_a_name_that_nobody_can_guess_and_follows_no_link(tmp_path, monkeypatch):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    with atomic_write(tmp_path / "a") as first, atomic_write(tmp_path / "a") as second:
        assert first != second
        assert str(os.getpid()) not in first.name
        first.write_text("first")
        second.write_text("second")
    assert (tmp_path / "a").read_text() == "first"  # whose block ended last
    monkeypatch.setattr(
        files.secrets, "token_hex", lambda n: "0" * 2 * n
    )  # an attacker who guessed it
    (tmp_path / f".tmp-{'0' * 16}-b").symlink_to(victim)
    assert "File exists" in one_line(write_text, tmp_path / "b", "evil")
    assert victim.read_text() == "precious"


def test_a_link_in_the_place_is_replaced_not_followed(tmp_path):
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "a").symlink_to("victim")
    write_text(tmp_path / "a", "mine")
    assert (tmp_path / "victim").read_text() == "precious"
    assert (tmp_path / "a").read_text() == "mine"
    assert not (tmp_path / "a").is_symlink()


def test_devices_pipes_and_folders_are_never_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("/dev/null")
    for path, kind in (
        (Path("/dev/null"), "a device"),
        (tmp_path / "link", "a device"),
        (tmp_path / "pipe", "a pipe"),
        (tmp_path / "folder", "a folder"),
    ):
        assert one_line(write_text, path, "x").endswith(f": it is {kind}, not a file")


def test_a_place_below_a_file_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    assert one_line(write_text, tmp_path / "file/a", "x").startswith(
        f"cannot write '{tmp_path / 'file/a'}': "
    )


def test_arrays_come_back_at_every_level_and_numpy_reads_them(tmp_path):
    arrays = {
        "a/b": np.arange(12.0).reshape(3, 4)[:, ::-1],
        "text": "hello",
        "flag": np.array([True]),
        "none": [],
    }
    for level in (0, 1, 6):
        write_npz(tmp_path / "a.npz", arrays, level)
        found = read_npz(tmp_path / "a.npz", "a thing", MB, names=arrays)
        with np.load(tmp_path / "a.npz", allow_pickle=False) as theirs:
            assert set(theirs.files) == set(found) == set(arrays)
            assert all((theirs[name] == found[name]).all() for name in found)
    np.savez_compressed(tmp_path / "b.npz", **arrays)
    assert (read_npz(tmp_path / "b.npz", "a thing", MB)["a/b"] == arrays["a/b"]).all()
    with pytest.raises(ValueError, match="Object arrays"):
        write_npz(tmp_path / "c.npz", {"x": None})
    assert not (tmp_path / "c.npz").exists()


# ------------------------------------------------------------------------ folders


def fill(folder: Path, word: str) -> None:
    with atomic_folder(folder) as scratch:
        (scratch / "sub").mkdir()
        for name in ("one", "sub/two"):
            (scratch / name).write_text(word)


def content(folder: Path) -> set[str]:
    return {(folder / name).read_text() for name in ("one", "sub/two")}


@pytest.fixture(params=["exchange", "two renames"])
def swap(request, monkeypatch):
    """Both ways of putting a folder into its place."""
    if request.param == "two renames":
        monkeypatch.setattr(files, "_exchange_in_one_step", lambda one, other: False)


def test_a_folder_is_replaced_as_a_whole(tmp_path, swap):
    for word in ("first", "second"):
        fill(tmp_path / "deep/folder", word)
        assert content(tmp_path / "deep/folder") == {word}
    (tmp_path / "deep/folder/other").touch()
    fill(tmp_path / "deep/folder", "third")
    assert sorted(os.listdir(tmp_path / "deep/folder")) == ["one", "sub"]
    assert os.listdir(tmp_path / "deep") == ["folder"]


def test_an_error_keeps_the_old_folder(tmp_path, swap):
    fill(tmp_path / "folder", "old")
    with pytest.raises(KeyError), atomic_folder(tmp_path / "folder") as scratch:
        fail_after(scratch / "one")
    assert content(tmp_path / "folder") == {"old"}
    assert os.listdir(tmp_path) == ["folder"]


def test_numbers_of_another_byte_order_are_read_as_this_machines(tmp_path):
    """Else torch refuses them."""
    write_npz(tmp_path / "a.npz", {"x": np.array([1.5, -2.0], ">f4"), "y": np.array([3], ">i8")})
    found = read_npz(tmp_path / "a.npz", "a thing", MB)
    assert found["x"].dtype == np.float32
    assert found["x"].dtype.isnative
    assert found["x"].tolist() == [1.5, -2.0]
    assert found["y"].tolist() == [3]


def test_a_file_is_written_through_a_link_to_its_folder(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    write_bytes(tmp_path / "link/a", b"new")
    assert (tmp_path / "real/a").read_bytes() == b"new"


def test_a_folder_reached_by_a_link_is_replaced_behind_it(tmp_path, swap):
    fill(tmp_path / "real", "old")
    (tmp_path / "link").symlink_to("real")
    fill(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert content(tmp_path / "real") == {"new"}


def test_a_file_is_not_replaced_by_a_folder(tmp_path):
    (tmp_path / "file").write_text("mine")
    assert "it is a file, not a folder; what was there is kept" in one_line(
        fill, tmp_path / "file", "x"
    )
    assert (tmp_path / "file").read_text() == "mine"
    assert os.listdir(tmp_path) == ["file"]


def test_a_folder_that_was_set_aside_comes_back(tmp_path):
    """On a file system that cannot exchange, a kill between the two renames."""
    (tmp_path / f".tmp-old-{'a' * 16}-folder").mkdir()
    (tmp_path / f".tmp-old-{'a' * 16}-folder" / "one").write_text("old")
    with pytest.raises(KeyError), atomic_folder(tmp_path / "folder"):
        raise KeyError
    assert (tmp_path / "folder/one").read_text() == "old"


def test_a_removed_folder_is_gone_at_once(tmp_path):
    fill(tmp_path / "folder", "x")
    remove_folder(tmp_path / "folder")
    assert not os.listdir(tmp_path)
    assert "cannot delete" in one_line(remove_folder, tmp_path / "folder")


WRITERS = {
    "file": """
        with files.atomic_write(path) as scratch, scratch.open("w") as file:
            for _ in range(50):
                file.write(word)
                file.flush()
    """,
    "folder": """
        with files.atomic_folder(path) as scratch:
            for i in range(50):
                (scratch / str(i)).write_text(word)
    """,
}


def started(kind: str, path: Path) -> subprocess.Popen:
    """A process that writes `path` again and again, a and b in turn."""
    code = f"""
import sys
from pathlib import Path
from deftly import files
path = Path(sys.argv[1])
print("ready", flush=True)
while True:
    for word in "ab":
{WRITERS[kind]}
"""
    writer = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout
    assert writer.stdout.readline() == "ready\n"
    return writer


@pytest.mark.parametrize("kind", WRITERS)
def test_a_kill_at_any_time_leaves_the_old_or_the_new(tmp_path, kind):
    path, rng = tmp_path / "target", random.Random(0)
    deadline = time.monotonic() + 20
    for _ in range(5):
        writer = started(kind, path)
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.001)
        end = time.monotonic() + rng.uniform(0, 0.03)
        while time.monotonic() < end:  # who looks meanwhile finds a whole one, too
            assert_whole(path)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        assert_whole(path)
        others = [entry for entry in os.listdir(tmp_path) if entry != "target"]
        assert all(files.SCRATCH.fullmatch(entry) for entry in others)


def assert_whole(path: Path) -> None:
    if path.is_file():
        text = path.read_text()
        assert text in ("a" * 50, "b" * 50)
        return
    handle = os.open(
        path, os.O_RDONLY | os.O_DIRECTORY
    )  # this folder, even if it is exchanged meanwhile
    try:
        words = {_word(handle, name) for name in map(str, range(50))} - {None}
        assert len(words) <= 1
        if os.path.samestat(os.stat(path), os.fstat(handle)):
            assert len(os.listdir(handle)) == 50 or not os.path.samestat(
                os.stat(path), os.fstat(handle)
            )
    finally:
        os.close(handle)


def _word(folder: int, name: str) -> str | None:
    try:
        handle = os.open(name, os.O_RDONLY, dir_fd=folder)
    except FileNotFoundError:  # the folder was replaced, and is being deleted
        return None
    with os.fdopen(handle) as file:
        return file.read()


def test_old_scratch_of_dead_processes_is_swept_and_nothing_else(tmp_path):
    dead = [tmp_path / f".tmp-{c * 16}-a" for c in "abc"]
    dead[0].write_text("half")
    dead[1].mkdir()
    (dead[1] / "file").touch()
    dead[2].symlink_to("nowhere")
    young = tmp_path / f".tmp-{'d' * 16}-a"
    young.touch()
    users = [tmp_path / name for name in (".tmp-mine", ".tmp-1234-a", "a", ".hidden")]
    for path in users:
        path.touch()
    for path in (*dead, *users):
        os.utime(path, (0, 0), follow_symlinks=False)
    sweep.cache_clear()
    with atomic_folder(tmp_path / "held") as scratch:
        os.utime(scratch, (0, 0))
        sweep.cache_clear()
        sweep(tmp_path)
        assert scratch.is_dir()
    assert not any(os.path.lexists(path) for path in dead)
    assert young.exists()
    assert all(path.exists() for path in users)


def test_what_was_set_aside_and_not_replaced_is_not_swept_but_put_back(tmp_path):
    aside = tmp_path / f".tmp-old-{'a' * 16}-folder"
    aside.mkdir()
    os.utime(aside, (0, 0))
    sweep.cache_clear()
    sweep(tmp_path)
    assert os.listdir(tmp_path) == ["folder"]


# ------------------------------------------------------------------------ reading


def test_only_plain_files_are_read_and_nothing_hangs(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to("loop")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "socket"))
    for name, reason in (
        ("pipe", "it is a pipe, not a file"),
        ("folder", "it is a folder, not a file"),
        ("zero", "it is a device, not a file"),
        ("socket", "it is a socket, not a file"),
        ("loop", "Too many levels of symbolic links"),
        ("none", "no such file"),
        ("a\0b", "null"),
        ("a" * 300, "File name too long"),
    ):
        path = tmp_path / name
        for call in (read_json, read_yaml):
            assert reason in one_line(call, path, "a thing", advice="make one: x")
        assert reason in one_line(read_npz, path, "a thing", MB)
        assert reason in one_line(sha256, path, "a thing")
        assert reason in one_line(require_plain, path, "a thing", MB)
    assert one_line(read_json, tmp_path / "none", "a report", advice="give another") == (
        f"cannot read '{tmp_path / 'none'}' as a report: no such file; give another"
    )


def test_a_device_is_not_even_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "open", lambda *_, **__: pytest.fail("opened"))
    assert "a device" in one_line(read_bytes, Path("/dev/tty"), "a thing", 10)


def test_a_file_that_becomes_a_pipe_after_the_look_does_not_hang(tmp_path, monkeypatch):
    path, real = tmp_path / "a", os.stat
    path.touch()

    def swapped(name, **kwargs):
        info = real(name, **kwargs)
        path.unlink()
        os.mkfifo(path)
        return info

    monkeypatch.setattr(os, "stat", swapped)
    assert "it is a pipe" in one_line(read_bytes, path, "a thing", 10)


def test_no_more_is_read_than_allowed(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"x" * 10)
    assert read_bytes(path, "a thing", 10) == b"x" * 10
    assert "it has 10 bytes, at most 9 bytes are read" in one_line(read_bytes, path, "a thing", 9)
    with path.open("wb") as file:
        file.truncate(1 << 40)  # sparse
    assert "at most 1 MiB are read" in one_line(read_json, path, "a thing")
    assert "at most 1 MiB are read" in one_line(read_npz, path, "a thing", MB)


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs Linux")
def test_endless_files_of_the_system_end(tmp_path):
    """They say that they are plain files of no bytes."""
    for name in ("/proc/self/mem", "/proc/self/pagemap"):
        (tmp_path / "link").unlink(missing_ok=True)
        (tmp_path / "link").symlink_to(name)
        assert "cannot read" in one_line(read_bytes, tmp_path / "link", "a thing", 100)


def test_links_are_followed_unless_told_otherwise(tmp_path):
    (tmp_path / "a").write_text("x")
    (tmp_path / "b").symlink_to("a")
    assert read_bytes(tmp_path / "b", "a thing", 10) == b"x"
    assert "it is a link, not a file" in one_line(
        read_bytes, tmp_path / "b", "a thing", 10, links=False
    )


HOSTILE_JSON = {
    "{": "it is not JSON",
    "": "it is not JSON",
    "[" * 100_000: "nested too deeply",
    "[" * 100 + "]" * 100: "nested too deeply",
    '{"a": NaN}': "it holds NaN",
    "-Infinity": "it holds -Infinity",
    "1" * 10_000: "digits",
    "[" + "0," * 300_000 + "0]": "more than 250000 values",
    '{"\\ud800\x1b[31m': "it is not JSON",
    '[{"a": 1, "b": 2, "a": 3}]': "it has the key 'a' twice in one mapping",
}


@pytest.mark.parametrize("text", HOSTILE_JSON, ids=[text[:9] for text in HOSTILE_JSON])
def test_hostile_json_is_one_line(text):
    assert HOSTILE_JSON[text] in one_line(parse_json, text, "a thing", "x.json")


def test_bytes_that_are_no_text_are_one_line():
    assert "x.json" in one_line(parse_json, b"\xff\xfe\x00", "a thing", "x.json")
    assert "x.yaml" in one_line(parse_yaml, b"\xff\xfe\x00", "a thing", "x.yaml")


BOMB = "a0: &a0 [1, 1]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))
HOSTILE_YAML = {
    "a: [1": "line 1",
    "a: 1\nb: 2\na: 3": "it has 'a' twice, again in line 3",
    "a: {b: 1, b: 2}": "it has 'b' twice",
    "&a [*a]": "nested too deeply",
    "[" * 10_000: "nested too deeply",
    BOMB: "more than 250000 values",
    "x: &x 1\ny: [" + "*x, " * 200 + "]": "aliases",
    "!!python/object/apply:os.system ['true']": "could not determine a constructor",
    "a: !!int ''": "cannot read",
    "a: !!bool x": "cannot read",
    "a: !!timestamp x": "cannot read",
    "? [a, {b: c}]\n: d": "unhashable",
    "a\t:\x07": "cannot read",
}


@pytest.mark.parametrize("text", HOSTILE_YAML, ids=[text[:9] for text in HOSTILE_YAML])
def test_hostile_yaml_is_one_line(text):
    assert HOSTILE_YAML[text] in one_line(parse_yaml, text, "a thing", "x.yaml")


@pytest.mark.parametrize("keys", ["{k: 1}", "{" + ", ".join(f"k{i}: 1" for i in range(2000)) + "}"])
def test_a_bomb_of_merges_ends(keys):
    """PyYAML before 6.0.4 makes 4^19 pairs of the first; the second is too much for any."""
    levels = "".join(
        f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}, *a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 20)
    )
    found, said = tried(parse_yaml, f"a0: &a0 {keys}\n{levels}", "a thing", "x.yaml")
    assert "merges" in said or found["a19"] == {"k": 1}


def test_plain_yaml_is_read_as_pyyaml_reads_it(tmp_path):
    text = (
        "base: &base {a: 1, b: [x, 2.5, null, true]}\nother: {<<: *base, a: 2}\nlist:\n  - *base\n"
    )
    assert parse_yaml(text, "a thing") == yaml.safe_load(text)
    (tmp_path / "a.yaml").write_text(text)
    assert read_yaml(tmp_path / "a.yaml", "a thing") == yaml.safe_load(text)
    assert parse_yaml("", "a thing") is None


def zipped(members, method=zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return file.getvalue()


def header(shape, descr="<f8") -> bytes:
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


class Evil:
    def __reduce__(self):
        return pytest.fail, ("unpickled",)


def pickled() -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([Evil()], dtype=object), allow_pickle=True)
    return file.getvalue()


ONE = zipped([("a.npy", header((1,)) + bytes(8))])
HOSTILE_NPZ = {
    "nothing": (b"", "no zip archive"),
    "text": (b"hello" * 100, "no zip archive"),
    "cut off": (ONE[:-1], "no zip archive"),
    "a comment": (ONE[:-2] + b"\x05\x00hello", "no zip archive"),
    "no array": (zipped([("a.txt", b"hi")]), "'a.txt' in it is no array"),
    "a pickle": (zipped([("a.npy", pickled())]), "Object arrays cannot be loaded"),
    "a bomb": (zipped([("a.npy", bytes(2 * MB))]), "unpacks to more than 1 MiB"),
    "many small": (
        zipped([(f"{i}.npy", bytes(MB // 8)) for i in range(9)]),
        "unpacks to more than 1 MiB",
    ),
    "huge shape": (zipped([("a.npy", header((10**15,)))]), "cannot read"),
    "shape beyond": (zipped([("a.npy", header((10**9,)) + bytes(8))]), "cannot read"),
    "negative shape": (zipped([("a.npy", header((-1,)) + bytes(8))]), "cannot read"),
    "elements of nothing": (zipped([("a.npy", header((10**12,), "<U0"))]), "elements of no size"),
    "another method": (
        zipped([("a.npy", header((1,)) + bytes(8))], zipfile.ZIP_LZMA),
        "another method than deflate",
    ),
    "twice": (zipped([("a.npy", header((1,)) + bytes(8)), ("a", b"")]), "an array twice"),
    "too many": (
        zipped([(f"{i}.npy", b"") for i in range(MAX_ARRAYS + 1)]),
        "more than 4096 arrays",
    ),
}


@pytest.mark.parametrize("kind", HOSTILE_NPZ)
def test_hostile_arrays_are_one_line(tmp_path, kind):
    data, reason = HOSTILE_NPZ[kind]
    assert reason in one_line(parse_npz, data, "a thing", MB, "x.npz")
    (tmp_path / "x.npz").write_bytes(data)
    assert reason in one_line(read_npz, tmp_path / "x.npz", "a thing", MB, advice="make one")


def test_a_zip_directory_that_is_too_large_is_not_read():
    data = bytearray(ONE)
    data[-10:-6] = (2**31).to_bytes(4, "little")
    assert "more than 4096 arrays" in one_line(parse_npz, bytes(data), "a thing", MB)
    assert "more than 4096 arrays" in one_line(
        parse_npz, ONE[:-22] + b"PK\x06\x07" + bytes(16) + ONE[-22:], "it", MB
    )


def test_an_array_that_is_missing_is_named():
    assert "it holds no 'b'" in one_line(parse_npz, ONE, "a thing", MB, names=("a", "b"))


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_arrays_with_any_byte_changed_are_read_or_refused(data):
    content = bytearray(ONE)
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    found, _ = tried(parse_npz, bytes(content), "a thing", MB)
    assert sum(array.nbytes for array in (found or {}).values()) <= MB


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text):
    for parse, reference in ((parse_json, json.loads), (parse_yaml, yaml.safe_load)):
        found, said = tried(parse, text, "a thing")
        assert said or repr(found) == repr(reference(text))  # repr: a NaN of YAML equals itself


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_text_of_characters_that_there_are_not_is_refused(tmp_path, order):
    codes = np.array([65, 0x110000], f"{order}u4")
    np.savez(tmp_path / "x.npz", word=codes.view(f"{order}U2"))
    found = one_line(read_npz, tmp_path / "x.npz", "a thing", 1 << 20)
    assert "holds characters that there are not" in found
    np.savez(tmp_path / "y.npz", word=np.array(["a\U0010ffff"], f"{order}U2"))
    assert read_npz(tmp_path / "y.npz", "a thing", 1 << 20)["word"][0] == "a\U0010ffff"
