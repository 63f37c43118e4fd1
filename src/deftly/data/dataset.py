"""Reading a data set of `deftly demos`: what it is, whether it is whole, and its rows.

Beside LeRobot's files stand

    meta/contract.json    the contract of a policy that learns from it: what it sees, and what its actions mean
    meta/deftly.json      where the episodes came from, the meaning of each number, and what was checked
    README.md             the card of the data set; report.html, what the checks found
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NotRequired, TypedDict

import msgspec
import numpy as np

from deftly.console import printable
from deftly.contract import PolicyContract
from deftly.errors import DeftlyError
from deftly.files import MB, read_json, read_text
from deftly.vla.features import EXECUTED, IMAGES, Layout, image_sizes, layout_of

SCHEMA = "deftly.dataset/1"
CONTRACT, FACTS, INFO = "meta/contract.json", "meta/deftly.json", "meta/info.json"
MAX_FACTS = 256 * MB
"""Largest `meta/deftly.json`: an episode takes some 700 bytes of it."""
TOLERANCE_S = 1e-4
"""By how much a time stamp may be off, s; LeRobot's own."""


class Check(TypedDict):
    """What one check found in an episode."""

    fine: bool
    value: float


class EpisodeFacts(TypedDict):
    """What is known of an episode."""

    batch: int
    """Which batch it was simulated in, and which environment of it."""
    env: int
    success: bool
    steps: int
    prompt: str
    object: NotRequired[str]
    """Name of what was drawn for it."""
    checks: dict[str, Check]


class Facts(TypedDict):
    """What `meta/deftly.json` holds, as far as it is read."""

    schema: str
    task: str
    settings: dict[str, Any]
    """Of the task and the physics."""
    contract_sha256: str
    layout: Layout
    prompts: list[str]
    seed: int
    batch: int
    """Environments that were simulated side by side."""
    perturb: float
    episodes: list[EpisodeFacts]


class Feature(TypedDict):
    """A column, as LeRobot describes it."""

    dtype: str
    shape: list[int]


class Info(TypedDict):
    """What LeRobot's `meta/info.json` holds, as far as it is read."""

    fps: float
    features: dict[str, Feature]


class Dataset(NamedTuple):
    """What is known of a data set before its frames are read."""

    path: Path
    contract: PolicyContract
    """Of a policy that learns from it."""
    facts: Facts
    info: Info

    @property
    def steps(self) -> list[int]:
        """Rows of each episode."""
        return [fact["steps"] for fact in self.facts["episodes"]]

    @property
    def videos(self) -> dict[str, bool]:
        """Whether the images of each camera are videos, by the camera's name."""
        cameras = image_sizes(self.contract)
        columns = self.info["features"]
        return {name: columns[IMAGES + name]["dtype"] == "video" for name in cameras}


def open_dataset(path: Path) -> Dataset:
    """A data set of `deftly demos`. Raises DeftlyError, one line, for any other folder."""
    if not path.is_dir():
        raise DeftlyError(f"no data set '{path}': 'deftly demos TASK --out {path}' makes one")
    missing = [name for name in (INFO, FACTS, CONTRACT) if not (path / name).is_file()]
    if missing:
        raise DeftlyError(
            f"'{path}' has no {missing[0]}: it is no data set of 'deftly demos', or half of one; collect it again"
        )
    info = _read(path / INFO, Info)
    facts = _read(path / FACTS, Facts)
    text = read_text(path / CONTRACT, "the contract of a data set").strip()
    contract = PolicyContract.from_json(text)
    if contract.hash != facts["contract_sha256"]:
        raise DeftlyError(
            f"'{path / CONTRACT}' is not the contract with which the data set was made"
        )
    found = Dataset(path, contract, facts, info)
    _require_features(found)
    return found


def _read(file: Path, kind: Any) -> Any:
    """A JSON file of a data set, checked against its schema."""
    tree = read_json(file, "a part of a data set", MAX_FACTS)
    try:
        msgspec.convert(tree, kind)
    except msgspec.ValidationError as error:
        reason = printable(error, 120)
        raise DeftlyError(f"'{file}' is damaged ({reason}): collect the data set again") from None
    if kind is Facts and tree["schema"] != SCHEMA:
        raise DeftlyError(f"'{file}' is not of the schema {SCHEMA}: collect the data set again")
    return tree


def _require_features(found: Dataset) -> None:
    """Raise DeftlyError unless LeRobot's columns, and their rate, are those of the contract."""
    contract, info = found.contract, found.info
    if info["fps"] != contract.rate:
        raise DeftlyError(
            f"'{found.path / INFO}' has {info['fps']:g} frames in a second, and the contract {contract.rate:g}"
        )
    if not found.facts["episodes"] or min(found.steps) < 1:
        raise DeftlyError(f"'{found.path}' has no episodes: collect it again")
    sizes = layout_of(found.facts["layout"], contract).sizes
    wanted: dict[str, list[int]] = {name: [size] for name, size in sizes.items()}
    wanted[EXECUTED] = wanted["action"]
    for camera, size in image_sizes(contract).items():
        wanted[IMAGES + camera] = [size, size, 3]
    for name, shape in wanted.items():
        feature = info["features"].get(name)
        if feature is None or feature["shape"] != shape:
            has = "no such column" if feature is None else f"shape {feature['shape']}"
            raise DeftlyError(
                f"'{found.path / INFO}': '{name}' has {has}, and the contract of the data set wants {shape}"
            )


def require_whole(path: Path) -> Dataset:
    """Raise DeftlyError, one line, unless every episode has its rows at its time stamps, and its videos are there."""
    found = open_dataset(path)
    table = read_rows(path, ("episode_index", "frame_index", "timestamp"))
    steps = found.steps
    rows = table["episode_index"]
    there = len(rows) == sum(steps) and rows.dtype.kind in "iu"
    episodes = np.repeat(np.arange(len(steps)), steps)
    if not there or (rows != episodes).any():
        raise DeftlyError(
            f"'{path}' is half written: its rows are not those of its {len(steps)} episodes"
        )
    first_rows = np.cumsum([0, *steps[:-1]])
    starts = np.repeat(first_rows, steps)
    frame = np.arange(len(starts)) - starts
    due = frame / found.info["fps"]
    on_time = np.abs(table["timestamp"] - due) <= TOLERANCE_S
    bad = (table["frame_index"] != frame) | ~on_time
    if bad.any():
        row = int(np.argmax(bad))
        raise DeftlyError(
            f"'{path}': the time stamps are shifted: frame {frame[row]} of episode {rows[row]} "
            f"is at {table['timestamp'][row]:g} s, expected {due[row]:g}"
        )
    for name, is_video in found.videos.items():
        if is_video:
            _require_video(found, name)
    return found


def _require_video(found: Dataset, camera: str) -> None:
    """Raise DeftlyError unless a camera's videos hold a frame for each row, at its time."""
    frames = sum(found.steps)
    fps = found.info["fps"]
    times = [_times(file) for file in video_files(found.path, camera)]
    count = sum(map(len, times))
    if count != frames:
        raise DeftlyError(
            f"'{found.path}' has {count} frames of {camera}, expected {frames}: its videos are missing or cut off; "
            "copy them again, or collect the data set again"
        )
    late = []
    for shown in times:
        due = np.arange(len(shown)) / fps
        late.append(np.abs(shown - due).max(initial=0.0))
    if max(late) > TOLERANCE_S:
        raise DeftlyError(
            f"'{found.path}': the time stamps of {camera} are shifted: a frame is {max(late):.3g} s off"
        )


def video_files(path: Path, camera: str) -> list[Path]:
    """The videos of a camera, in order."""
    return sorted((path / "videos" / (IMAGES + camera)).glob("*/*.mp4"))


def _times(file: Path) -> np.ndarray:
    """When each frame of a video is shown, s, in order; nothing is decoded."""
    import av
    from av.error import FFmpegError

    try:
        with av.open(str(file)) as video:
            packets = list(video.demux(video=0))
            times = [float(p.pts * p.time_base) for p in packets if p.pts is not None]
    except (FFmpegError, IndexError, TypeError) as error:
        raise DeftlyError(f"'{file}' is no video: {printable(error, 100)}") from None
    return np.sort(times)


def read_rows(path: Path, columns: Sequence[str]) -> dict[str, np.ndarray]:
    """Columns of numbers of all rows, in their order: float32, or whole numbers.

    Raises DeftlyError, one line, for tables that do not read, or hold what is no finite number.
    """
    import pyarrow.lib  # type: ignore[import-not-found]
    import pyarrow.parquet as parquet  # type: ignore[import-not-found]

    files = data_files(path)
    if not files:
        raise DeftlyError(f"'{path}' is half written: it has no tables; collect it again")
    try:
        tables = [parquet.read_table(file, columns=list(columns)) for file in files]
        found = {
            name: np.concatenate([np.asarray(table[name].to_pylist()) for table in tables])
            for name in columns
        }
    except (OSError, ValueError, KeyError, pyarrow.lib.ArrowException) as error:
        reason = printable(" ".join(str(error).split()), 120)
        raise DeftlyError(f"'{path}' is half written: its tables do not read: {reason}") from None
    for name, values in found.items():
        is_number = values.dtype.kind in "iuf"
        if not is_number or not np.isfinite(values).all():
            raise DeftlyError(f"'{path}': the column '{name}' has rows without finite numbers")
    return {
        name: values.astype(np.float32) if values.dtype.kind == "f" else values
        for name, values in found.items()
    }


def data_files(path: Path) -> list[Path]:
    """The tables of a data set, in order."""
    return sorted((path / "data").glob("*/*.parquet"))


def read_numbers(found: Dataset, columns: Sequence[str]) -> Iterator[np.ndarray]:
    """Columns of float32, each as wide as LeRobot's description of it says."""
    rows = read_rows(found.path, columns)
    for name in columns:
        width = found.info["features"][name]["shape"]
        shape = (sum(found.steps), *width)
        if rows[name].shape != shape:
            raise DeftlyError(
                f"'{found.path}': the column '{name}' has shape {rows[name].shape}, expected {shape}"
            )
        yield rows[name].astype(np.float32)


def stored_actions(found: Dataset) -> dict[tuple[int, int], np.ndarray]:
    """What the robot was told in each episode, (steps, action_size) in the contract's units, by batch and row of it."""
    layout = layout_of(found.facts["layout"], found.contract)
    (executed,) = read_numbers(found, (EXECUTED,))
    ends = np.cumsum(found.steps)
    parts = np.split(layout.to_contract(executed), ends[:-1])
    episodes = found.facts["episodes"]
    return {(fact["batch"], fact["env"]): each for fact, each in zip(episodes, parts)}
