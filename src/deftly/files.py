"""Files and folders are written atomically, and read with care: one writer and one reader for the whole package.

Writing: what is there is the old content or the new, whenever the process is killed. The content is written beside
the target under an unpredictable name that begins with `.tmp-`, flushed to the disk, and renamed. Nothing whose name
begins with `.tmp-` counts as a run, a checkpoint or a bundle; what a killed process left of it is swept later.

Reading: a file may be anything that somebody put there. Only a plain file is read, never a FIFO, a device or a folder;
no more of it than the caller allows; and every failure is one line that says what the file should have been.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import glob
import hashlib
import io
import json
import math
import os
import re
import secrets
import shutil
import stat
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from deftly.console import printable
from deftly.errors import DeftlyError

if TYPE_CHECKING:
    import numpy as np

KB, MB = 1 << 10, 1 << 20
MAX_DEPTH = 64
"""Deepest nesting of a JSON or YAML file; what Deftly writes is less than ten deep."""
MAX_ALIASES = 100
"""Most aliases (`*name`) in a YAML file: they make a small file a large tree."""
MAX_ARRAYS = 4096
"""Most arrays in an `.npz`."""
MAX_DIRECTORY = 1 * MB
"""Largest directory of a zip archive, bytes: 4096 names take about 400 kB."""
MAX_MERGED = 10_000
"""Most keys that the merges (`<<`) of a YAML file make."""
MAX_VALUES = 250_000
"""Most values of a JSON or YAML file, with those that aliases repeat."""
MAX_WORD = 200
"""Most characters of an array of short texts."""
BRANCHES = (dict, list, tuple, set)
"""What JSON and YAML nest."""
SCRATCH = re.compile(r"\.tmp-(old-)?[0-9a-f]{16}-(.+)")
STALE_SECONDS = 60.0
"""Age at which scratch that no process holds is swept."""


class FileError(DeftlyError):
    """A file that cannot be read, is not what it should be, or cannot be written."""


class WriteError(FileError):
    """A file or folder that the system does not let be written: a full disk, a missing permission; exit status 1."""


# ------------------------------------------------------------------------ writing


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A scratch file, empty, in the folder of `path`, which becomes `path` when the block ends without an error.

    The folder is made if it is missing. A link at `path` is replaced, not followed. Raises FileError, leaving what
    was there, where the disk is full, the folder is read-only, or `path` is a folder or a device.
    """
    with _said_as(f"cannot write '{path}'"):
        _require_replaceable(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent)
        scratch = scratch_for(path)
        handle = os.open(scratch, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
        try:
            _hold(handle)
            yield scratch
            _flush(scratch)
            os.replace(scratch, path)
            _flush(path.parent.resolve())  # a link to a folder is one
        finally:
            os.close(handle)
            scratch.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically; see `atomic_write`."""
    with atomic_write(path) as scratch:
        scratch.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write a file of text (UTF-8, line ends as they are) atomically; see `atomic_write`."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any, indent: int = 2) -> None:
    """Write a JSON file atomically. Raises ValueError for NaN and infinity, which JSON does not know."""
    write_text(path, json.dumps(value, indent=indent, allow_nan=False) + "\n")


def write_npz(path: Path, arrays: Mapping[str, Any], level: int = 6) -> None:
    """Write arrays as an `.npz` atomically, without pickle; `level` of compression from 0 (none) to 9.

    Unlike `numpy.savez` it takes any name of an array, and is told how hard to compress: level 1 takes a third of the
    time of 6.
    """
    with atomic_write(path) as scratch, scratch.open("wb") as file:
        pack_npz(file, arrays, level)


def pack_npz(file: BinaryIO, arrays: Mapping[str, Any], level: int = 6) -> None:
    """Write arrays into an open file as `write_npz` does."""
    import numpy as np

    method = zipfile.ZIP_DEFLATED if level else zipfile.ZIP_STORED
    with zipfile.ZipFile(file, "w", method, compresslevel=level or None) as archive:
        for name, value in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as part:
                np.lib.format.write_array(part, np.asanyarray(value), allow_pickle=False)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """An empty scratch folder beside `path`, which takes its place when the block ends without an error.

    Who looks finds the old folder or the new one, complete: they are exchanged in one step where the file system can
    do that (Linux: ext4, xfs, btrfs, tmpfs, overlayfs), in two renames elsewhere. A link at `path` is followed.
    Raises FileError, leaving what was there, where the disk is full or read-only.
    """
    with _said_as(f"cannot write the folder '{path}'", "; what was there is kept"):
        path = path.resolve()
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent)
        _recover(path)
        scratch = scratch_for(path)
        scratch.mkdir()
        handle = os.open(scratch, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            _hold(handle)
            yield scratch
            _flush_tree(scratch)
            _exchange(scratch, path)
            _flush(path.parent)
        finally:
            os.close(handle)
            shutil.rmtree(scratch, ignore_errors=True)  # after the exchange: what was there before


def bring_along(folder: Path, scratch: Path, but: Container[str]) -> None:
    """Copy what lies in a folder into the scratch that is to replace it; of files none of these names."""
    for other in folder.iterdir():
        if other.is_dir() and not other.is_symlink():
            shutil.copytree(other, scratch / other.name, symlinks=True)
        elif other.name not in but:
            shutil.copy2(other, scratch / other.name, follow_symlinks=False)


def remove_folder(path: Path) -> None:
    """Delete a folder so that no half of it can be taken for the whole: first it is renamed to scratch."""
    scratch = scratch_for(path)
    with _said_as(f"cannot delete '{path}'"):
        path.rename(scratch)
        shutil.rmtree(scratch, ignore_errors=True)


def scratch_for(path: Path, word: str = "") -> Path:
    """A new name beside `path` that nobody can guess, for scratch that `sweep` knows."""
    return path.with_name(f".tmp-{word}{secrets.token_hex(8)}-{path.name}")


@cache
def sweep(folder: Path) -> None:
    """Delete what killed processes left in a folder: scratch that nobody holds, a minute old. Once in a process."""
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(folder)):
            if SCRATCH.fullmatch(entry.name) and _is_stale(entry):
                _delete(Path(entry.path))


# ------------------------------------------------------------------------ reading


def require_plain(
    path: Path, what: str, max_bytes: int, *, links: bool = True, advice: str = ""
) -> None:
    """Raise FileError unless `path` is a plain file of at most `max_bytes`, for a library that opens it by itself."""
    with _opened(path, what, max_bytes, links, advice):
        pass


def open_plain(
    path: Path, what: str, max_bytes: int, *, advice: str = ""
) -> contextlib.AbstractContextManager[io.BufferedReader]:
    """A plain file, open to be read piece by piece; a ValueError of the block becomes a FileError."""
    return _opened(path, what, max_bytes, True, advice)


def read_bytes(
    path: Path, what: str, max_bytes: int, *, links: bool = True, advice: str = ""
) -> bytes:
    """The content of a plain file.

    Args:
        path: The file. A link is followed unless `links` is False.
        what: What the file should be, for the message: "the report of an evaluation".
        max_bytes: The largest file that is read.
        links: Whether the file may be a link.
        advice: What to do instead, put at the end of the message after "; ".

    Raises:
        FileError: One line. The file is missing, is no plain file, or is larger.
    """
    with _opened(path, what, max_bytes, links, advice) as file:
        data = _drain(file, max_bytes + 1)
    if len(data) > max_bytes:  # it grew meanwhile
        raise _unreadable(path, what, f"it has more than {_size(max_bytes)}", advice)
    return data


def read_text(
    path: Path, what: str, max_bytes: int = MB, *, links: bool = True, advice: str = ""
) -> str:
    """The text of a plain file in UTF-8; otherwise as `read_bytes`."""
    data = read_bytes(path, what, max_bytes, links=links, advice=advice)
    return _parsed(bytes.decode, data, what, path, advice)


def read_json(
    path: Path, what: str, max_bytes: int = MB, *, links: bool = True, advice: str = ""
) -> Any:
    """What a JSON file holds; otherwise as `read_bytes`. NaN, infinity and deep nesting are refused."""
    return parse_json(
        read_bytes(path, what, max_bytes, links=links, advice=advice), what, path, advice
    )


def read_yaml(
    path: Path, what: str, max_bytes: int = 256 * KB, *, links: bool = True, advice: str = ""
) -> Any:
    """What a YAML file holds; otherwise as `read_bytes`. Plain data only; see `parse_yaml`."""
    return parse_yaml(
        read_bytes(path, what, max_bytes, links=links, advice=advice), what, path, advice
    )


def read_npz(
    path: Path,
    what: str,
    max_bytes: int,
    *,
    names: Iterable[str] = (),
    numbers: Mapping[str, int] = {},
    texts: Mapping[str, int] = {},
    links: bool = True,
    advice: str = "",
) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` by name, without pickle.

    Args:
        path: The file.
        what: What it should be, for the message.
        max_bytes: Bounds the file and what it unpacks to, which its directory says before anything is unpacked.
        names: Arrays that it must hold, of any kind; it may hold more.
        numbers: Those that must be finite numbers, and how many axes each has.
        texts: Those that must be short texts, and how many axes each has.
        links: Whether the file may be a link.
        advice: What to do instead, put at the end of the message.

    Raises FileError as `read_bytes` does.
    """

    def load(file: BinaryIO) -> dict[str, np.ndarray]:
        arrays = _unpack(file, max_bytes, (*names, *numbers, *texts))
        for name, axes in numbers.items():
            _require_numbers(name, arrays[name], axes)
        for name, axes in texts.items():
            _require_texts(name, arrays[name], axes)
        return arrays

    with _opened(path, what, max_bytes, links, advice) as file:
        return _parsed(load, file, what, path, advice)


def parse_json(data: bytes | str, what: str, path: Path | str = "", advice: str = "") -> Any:
    """What JSON text holds; `read_json` for text that is already in memory."""
    return _parsed(_load_json, data, what, path, advice)


def parse_yaml(data: bytes | str, what: str, path: Path | str = "", advice: str = "") -> Any:
    """What YAML text holds: plain data, no key twice, no deep nesting, few aliases. Raises FileError."""
    return _parsed(_load_yaml, data, what, path, advice)


def parse_npz(
    data: bytes,
    what: str,
    max_bytes: int,
    path: Path | str = "",
    *,
    names: Iterable[str] = (),
    advice: str = "",
) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` that is already in memory; see `read_npz`."""
    return _parsed(
        lambda held: _unpack(io.BytesIO(held), max_bytes, tuple(names)), data, what, path, advice
    )


def sha256(path: Path, what: str, max_bytes: int = 1 << 40) -> str:
    """The SHA-256 of a plain file, hexadecimal. Raises FileError as `read_bytes` does."""
    with _opened(path, what, max_bytes, True, "") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ------------------------------------------------------------------------ looking ahead


def why_unreadable(path: Path, file: bool = True, folder: bool = False) -> str:
    """Why no `file` and no `folder`, as wanted, can be read at a path, to say so before any work; empty if one can."""
    kinds = (("file", file), ("folder", folder))
    wanted = " or ".join(name for name, is_wanted in kinds if is_wanted)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return f"there is no such {wanted}"
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        return _reason(error)
    is_file = file and stat.S_ISREG(mode)
    is_folder = folder and stat.S_ISDIR(mode)
    if not is_file and not is_folder:
        return f"that is {_kind(mode)}: give a {wanted}"
    return "" if os.access(path, os.R_OK) else "it may not be read"


def why_unwritable(path: Path, folder: bool = False) -> str:
    """Why no file (or no folder) can be written at a path, to say so before any work; empty if one can.

    Folders on the way there may be missing. To find out, a file without a name is opened, and nothing stays.
    """
    wanted = f"name another {'folder' if folder else 'file'}"
    try:
        mode = path.stat().st_mode
        if not (stat.S_ISDIR if folder else stat.S_ISREG)(mode):
            return f"that is {_kind(mode)}: {wanted}"
    except FileNotFoundError:
        if folder and path.is_symlink():
            return f"that is a link to nowhere: {wanted}"
    except (OSError, ValueError) as error:
        return f"{_reason(error)}: {wanted}"
    place = path if folder else path.parent
    try:
        first = place.absolute()
        place = next(found for found in (first, *first.parents) if found.exists())
        with tempfile.TemporaryFile(dir=place):
            return ""
    except OSError as error:
        return f"nothing can be written in '{place}', {_reason(error)}: {wanted}"


def _reason(error: Exception) -> str:
    """What the system says, as part of a sentence."""
    said = getattr(error, "strerror", None) or printable(error)
    return f"{said[:1].lower()}{said[1:]}"


# ------------------------------------------------------------------------ how it is written


@contextlib.contextmanager
def _said_as(what: str, kept: str = "") -> Iterator[None]:
    """Turn an OSError in the block into one line."""
    try:
        yield
    except BrokenPipeError:  # of a terminal that went away, not of the file
        raise
    except OSError as error:
        reason = error.strerror or printable(error)
        raise WriteError(f"{what}: {reason}{kept}") from error


def _require_replaceable(path: Path) -> None:
    """Raise OSError if a rename to `path` would fail, or would replace a device such as /dev/null."""
    with contextlib.suppress(FileNotFoundError):
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, f"it is {_kind(mode)}, not a file")


def _hold(handle: int) -> None:
    """Lock scratch for as long as this process lives, so that nobody sweeps it; not every file system can."""
    with contextlib.suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_stale(entry: os.DirEntry[str]) -> bool:
    """Whether scratch is old, and no living process holds it."""
    info = entry.stat(follow_symlinks=False)
    if abs(time.time() - info.st_mtime) < STALE_SECONDS:
        return False
    if not (stat.S_ISREG(info.st_mode) or stat.S_ISDIR(info.st_mode)):
        return True
    handle = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError:
        return False
    finally:
        os.close(handle)


def _delete(scratch: Path) -> None:
    """Delete stale scratch; but what was set aside and never replaced goes back to its place."""
    target = scratch.with_name(SCRATCH.sub(r"\2", scratch.name))
    if scratch.name.startswith(".tmp-old-") and not os.path.lexists(target):
        scratch.rename(target)
    elif scratch.is_dir() and not scratch.is_symlink():
        shutil.rmtree(scratch, ignore_errors=True)
    else:
        scratch.unlink(missing_ok=True)


def _recover(path: Path) -> None:
    """Put a folder back that was set aside by a process that was killed before the new one was in place."""
    for aside in path.parent.glob(f".tmp-old-*-{glob.escape(path.name)}"):
        if not path.exists():
            aside.rename(path)


def _flush(path: Path) -> None:
    """Wait until a file or a folder is on the disk."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # folders on some file systems
            raise
    finally:
        os.close(handle)


def _flush_tree(folder: Path) -> None:
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            file = Path(parent, name)
            if not file.is_symlink():
                _flush(file)
        _flush(Path(parent))


def _exchange(new: Path, path: Path) -> None:
    """Put the folder `new` into the place of `path`; afterwards `new` is what was there, if anything was."""
    if not path.exists():
        new.rename(path)
        return
    if not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "it is a file, not a folder")
    if not _exchange_in_one_step(new, path):
        aside = scratch_for(path, "old-")
        path.rename(aside)
        try:
            new.rename(path)
        except OSError:
            aside.rename(path)
            raise
        aside.rename(new)


def _exchange_in_one_step(one: Path, other: Path) -> bool:
    """Linux's `renameat2` with RENAME_EXCHANGE; False where the system or the file system has none."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE of <linux/fcntl.h> and <linux/fs.h>
    if rename(here, os.fsencode(one), here, os.fsencode(other), ctypes.c_uint(exchange)) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.EPERM, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code))


# ------------------------------------------------------------------------ how it is read


@contextlib.contextmanager
def _opened(
    path: Path, what: str, max_bytes: int, links: bool, advice: str
) -> Iterator[io.BufferedReader]:
    """A plain file, open. It may be swapped after the first look at it, so the open itself cannot hang."""
    guards = os.O_NONBLOCK | os.O_CLOEXEC | (0 if links else os.O_NOFOLLOW)
    try:
        _require_readable(os.stat(path, follow_symlinks=links), max_bytes)
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | guards)) as file:
            _require_readable(os.fstat(file.fileno()), max_bytes)
            yield file
    except FileNotFoundError:
        raise _unreadable(path, what, "no such file", advice) from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise _unreadable(
            path, what, getattr(error, "strerror", None) or str(error), advice
        ) from None


def _require_readable(info: os.stat_result, max_bytes: int) -> None:
    if not stat.S_ISREG(info.st_mode):
        raise ValueError(f"it is {_kind(info.st_mode)}, not a file")
    if info.st_size > max_bytes:
        raise ValueError(f"it has {_size(info.st_size)}, at most {_size(max_bytes)} are read")


def _size(count: int) -> str:
    """A number of bytes for people; exact, so that a limit and what is one byte more do not read the same."""
    for unit, name in ((MB, "MiB"), (KB, "KiB")):
        if count and count % unit == 0:
            return f"{count // unit} {name}"
    return f"{count} bytes"


def _kind(mode: int) -> str:
    """What a path is, in words."""
    kinds: tuple[tuple[Callable[[int], bool], str], ...] = (
        (stat.S_ISREG, "a file"),
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISLNK, "a link"),
        (stat.S_ISFIFO, "a pipe"),
        (stat.S_ISSOCK, "a socket"),
    )
    return next((name for is_kind, name in kinds if is_kind(mode)), "a device")


def _drain(file: BinaryIO, limit: int) -> bytes:
    """Up to `limit` bytes, in pieces, so that no more memory is taken than there is to read."""
    pieces, left = [], limit
    while left > 0:
        piece = file.read(min(left, MB))
        if not piece:
            break
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)


def _unreadable(path: Path | str, what: str, reason: str, advice: str) -> FileError:
    name = f" '{printable(path)}'" if str(path) else ""
    return FileError(f"cannot read{name} as {what}: {reason}{advice and '; '}{advice}")


def _parsed(load: Callable[[Any], Any], data: Any, what: str, path: Path | str, advice: str) -> Any:
    """What `load` makes of the data. Libraries have many ways to say that a file is damaged; here they become one."""
    try:
        return load(data)
    except RecursionError:
        raise _unreadable(path, what, "it is nested too deeply", advice) from None
    except Exception as error:
        reason = printable(error, 160) or type(error).__name__
        raise _unreadable(path, what, reason, advice) from None


def _load_json(data: bytes | str) -> Any:
    try:
        value = json.loads(
            data,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            object_pairs_hook=_unique_keys,
        )
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON: {error}") from None
    _require_tree(value)
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A mapping of JSON, for `object_pairs_hook`.

    Raises ValueError for a key that stands twice: two programs might read different values.
    """
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"it has the key '{printable(name, 40)}' twice in one mapping")
        found[name] = value
    return found


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"it holds {name}, which is no number")


def _finite(text: str) -> float:
    """A number of a JSON file; what is too large for a float would be infinite."""
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"it holds {text:.40}, which is too large a number")
    return number


def _load_yaml(data: bytes | str) -> Any:
    import yaml

    try:
        loader = _yaml_loader()(data)
        try:
            value = loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        where = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ValueError(f"it is not YAML: {where}{error.problem or error.context}") from None
    _require_tree(value)
    return value


@cache
def _yaml_loader() -> Any:
    """PyYAML's safe loader, with bounds on nesting, aliases and merges; PyYAML is imported only when it is needed."""
    import yaml

    class Loader(yaml.SafeLoader):
        """Plain data, bounded."""

        def __init__(self, stream: Any):
            super().__init__(stream)
            self.depth = self.aliases = self.merged = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            self.depth += 1
            self.aliases += self.check_event(yaml.AliasEvent)
            if self.depth > MAX_DEPTH:
                raise ValueError("it is nested too deeply")
            if self.aliases > MAX_ALIASES:
                raise ValueError(f"it has more than {MAX_ALIASES} aliases")
            node = super().compose_node(parent, index)
            self.depth -= 1
            return node

        def compose_mapping_node(self, anchor: Any) -> Any:
            node = super().compose_mapping_node(anchor)
            seen: set[str] = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.value in seen:
                    raise ValueError(
                        f"it has '{key.value}' twice, again in line {key.start_mark.line + 1}"
                    )
                seen.add(key.value if isinstance(key, yaml.ScalarNode) else "")
            return node

        def flatten_mapping(self, node: Any) -> None:
            super().flatten_mapping(node)
            self.merged += len(node.value)
            if self.merged > MAX_MERGED:
                raise ValueError("its merges (<<) make too many values")

    return Loader


def _require_tree(value: Any) -> None:
    """Raise ValueError if a value is nested too deeply, is its own part, or unfolds into too many values."""
    left, seen = [(value, 1)], 1
    while left:
        item, depth = left.pop()
        if type(item) not in BRANCHES:
            continue
        parts = item.values() if isinstance(item, dict) else item
        seen += len(parts)
        if depth >= MAX_DEPTH and parts:
            raise ValueError("it is nested too deeply")
        if seen > MAX_VALUES:
            raise ValueError(f"it holds more than {MAX_VALUES} values")
        left.extend((part, depth + 1) for part in parts if type(part) in BRANCHES)


def _unpack(file: BinaryIO, max_bytes: int, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    _require_small_directory(file)
    with zipfile.ZipFile(file) as archive:
        parts = archive.infolist()
        if len(parts) > MAX_ARRAYS:
            raise ValueError(f"it holds more than {MAX_ARRAYS} arrays")
        if sum(part.file_size for part in parts) > max_bytes:
            raise ValueError(f"it unpacks to more than {_size(max_bytes)}")
        by_name = {part.filename.removesuffix(".npy"): part for part in parts}
        if len(by_name) < len(parts):
            raise ValueError("it holds an array twice")
        if missing := [name for name in names if name not in by_name]:
            raise ValueError(f"it holds no '{missing[0]}'")
        return {name: _unpack_array(archive, part) for name, part in by_name.items()}


def _require_numbers(name: str, array: np.ndarray, axes: int) -> None:
    import numpy as np

    if array.dtype.kind not in "fiu" or array.ndim != axes:
        raise ValueError(
            f"'{name}' in it is {array.shape} of {array.dtype}, not numbers of {axes} axes"
        )
    if not np.isfinite(array).all():
        raise ValueError(f"'{name}' in it holds numbers that are not finite")


def _require_texts(name: str, array: np.ndarray, axes: int) -> None:
    if array.dtype.kind != "U" or array.ndim != axes or array.itemsize > 4 * MAX_WORD:
        raise ValueError(f"'{name}' in it is no text, or a long one")


def _require_small_directory(file: BinaryIO) -> None:
    """Raise ValueError unless a zip archive ends as numpy's do, with a small directory: it is read as a whole."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 42))
    tail = file.read(42)
    end = tail[-22:]
    locator = tail[:-22]
    if not end.startswith(b"PK\x05\x06") or end[20:] != b"\0\0":
        raise ValueError("it is no zip archive, or is cut off")
    size_of_directory = int.from_bytes(end[12:16], "little")
    if locator.startswith(b"PK\x06\x07") or size_of_directory > MAX_DIRECTORY:
        raise ValueError(f"it holds more than {MAX_ARRAYS} arrays")


def _unpack_array(archive: zipfile.ZipFile, part: zipfile.ZipInfo) -> np.ndarray:
    import numpy as np

    if not part.filename.endswith(".npy"):
        raise ValueError(f"'{part.filename}' in it is no array")
    if part.compress_type not in (
        zipfile.ZIP_STORED,
        zipfile.ZIP_DEFLATED,
    ):  # others unpack without a bound
        raise ValueError(f"'{part.filename}' in it is packed by another method than deflate")
    with archive.open(part) as stream:
        array = np.lib.format.read_array(stream, allow_pickle=False)
    if array.size and not array.itemsize:
        raise ValueError(f"'{part.filename}' in it has elements of no size")
    if array.dtype.kind == "U":
        order = array.dtype.byteorder
        codes = np.frombuffer(array.tobytes(), np.dtype(np.uint32).newbyteorder(order))
        if (codes > sys.maxunicode).any():  # Python cannot make a text of them
            raise ValueError(f"'{part.filename}' in it holds characters that there are not")
    native = array.dtype.newbyteorder("=")  # torch takes no other order of bytes
    return array.astype(native, copy=False)
