"""Files that no command can use: empty, binary, cut off, hostile, or no files at all, each under every suffix."""

import io
import json
import os
import zipfile
from pathlib import Path

import numpy as np

SUFFIXES = ("csv", "json", "mp4", "npz", "onnx", "png", "py", "xml", "yaml")
CONTENTS = (
    "empty",
    "binary",
    "truncated",
    "deep",
    "scalar",
    "escapes",
    "nul",
    "latin",
    "other",
    "bomb",
    "pickled",
)
"""Files by what is in them."""
PLACES = ("fifo", "zero", "loop", "dangling", "folder", "huge")
"""Paths that are no files to read."""
DEEP = 100_000
"""Levels of nesting, far beyond the recursion limit."""
LINES = {
    "json": '{"a": [1, 2, {"b": "c"',
    "yaml": "env:\n  num_envs: 64\n  'seed: 1",
    "csv": 'time,"index_cmd,index_state\n0,',
    "py": "def f(:\n    return (",
    "xml": "<mujoco><worldbody><body",
}
"""Text that is cut off, by suffix."""
WORD = "\x1b[2J\x1b]0;owned\x07\u202egnp"
"""Clears a terminal, sets its title, and turns the direction of writing."""


def make(folder: Path) -> None:
    """Write `KIND.SUFFIX` for every kind and suffix."""
    folder.mkdir()
    for suffix in SUFFIXES:
        for kind, data in contents(suffix).items():
            (folder / f"{kind}.{suffix}").write_bytes(data)
        os.mkfifo(folder / f"fifo.{suffix}")
        (folder / f"zero.{suffix}").symlink_to("/dev/zero")
        (folder / f"loop.{suffix}").symlink_to(f"loop.{suffix}")
        (folder / f"dangling.{suffix}").symlink_to("nowhere")
        (folder / f"folder.{suffix}").mkdir()
        with (folder / f"huge.{suffix}").open("wb") as file:
            file.truncate(1 << 42)


def contents(suffix: str) -> dict[str, bytes]:
    """What the files of a suffix hold, by kind."""
    noise = np.random.default_rng(5).bytes(4000)
    whole = archive({"hand_cmd": np.zeros((4, 2)), "format": np.array("deftly.log/1")})
    text = LINES.get(suffix, "").encode()
    deep = {"json": b"[" * DEEP, "yaml": b"[" * DEEP, "py": b"(" * 5000, "xml": b"<a>" * DEEP}
    return {
        "empty": b"",
        "binary": noise,
        "truncated": text or whole[: len(whole) // 2],
        "deep": deep.get(suffix, b"[" * DEEP),
        "scalar": b"1\n",
        "escapes": json.dumps({WORD: WORD}, ensure_ascii=False).encode(),
        "nul": b"\0" * 100,
        "latin": "caf\xe9: 1\n".encode("latin-1"),
        "other": whole if suffix == "npz" else b'{"schema": "another/9", "values": [1, 2]}',
        "bomb": BOMBS.get(suffix, bomb()),
        "pickled": pickled(),
    }


def archive(arrays: dict[str, np.ndarray]) -> bytes:
    """An `.npz`."""
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def pickled() -> bytes:
    """An `.npz` whose array would be unpickled."""
    return archive({"hand_cmd": np.array([{"a": 1}], dtype=object)})


def bomb() -> bytes:
    """A small zip archive that unpacks to 20 MB."""
    file = io.BytesIO()
    with (
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as packed,
        packed.open("hand_cmd.npy", "w", force_zip64=True) as part,
    ):
        for _ in range(20):
            part.write(bytes(1 << 20))
    return file.getvalue()


def _laughs(line: str, count: int = 12) -> str:
    return "\n".join(line.format(here=chr(98 + i), before=chr(97 + i)) for i in range(count))


BOMBS = {
    "yaml": (
        "a: &a [1,1,1,1,1,1,1,1,1]\n"
        + _laughs("{here}: &{here} [*{before},*{before},*{before},*{before},*{before}]")
    ).encode(),
    "json": b'{"a": ' + b"9" * 100_000 + b"}",
    "xml": (
        '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "ha">'
        + _laughs('<!ENTITY {here} "&{before};&{before};&{before};&{before};">')
        + "]><mujoco>&m;</mujoco>"
    ).encode(),
}
"""Small texts that unfold into large ones."""
