"""Reading a data set of `deftly demos`: what it is, whether it is whole, and its rows.

Beside LeRobot's files stand

    meta/contract.json    the contract of a policy that learns from it: what it sees, and what its actions mean
    meta/deftly.json      where the episodes came from, the meaning of each number, and what was checked
    README.md             the card of the data set; report.html, what the checks found
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NotRequired, TypedDict

import msgspec
import numpy as np

from deftly.config import SEEDS
from deftly.console import printable
from deftly.contract import PolicyContract
from deftly.errors import DeftlyError
from deftly.files import MB, read_json, read_text
from deftly.vla.features import (
    ACTION,
    EXECUTED,
    IMAGES,
    OBS_STATE,
    Layout,
    image_sizes,
    layout_of,
)

SCHEMA = "deftly.dataset/1"
CONTRACT, FACTS, INFO = "meta/contract.json", "meta/deftly.json", "meta/info.json"
LEROBOTS = ("meta/tasks.parquet", "meta/stats.json", "meta/episodes/chunk-000/file-000.parquet")
"""What LeRobot reads beside."""
NUMBERED = "chunk-{chunk_index:03d}/file-{file_index:03d}"
DATA_PATH, VIDEO_PATH = f"data/{NUMBERED}.parquet", f"videos/{{video_key}}/{NUMBERED}.mp4"
"""Where LeRobot's tables and videos are."""
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


LEARNED_FROM = (OBS_STATE, ACTION, EXECUTED)
"""Columns of lists of numbers, whose widths follow from the contract; all others have one number in a row."""
MAX_BATCH = 512
"""Most environments that are simulated side by side for a data set (`deftly demos --batch`)."""
MAX_BATCHES = MAX_STEPS = 1_000_000
"""Most batches of a data set, and most steps of an episode."""


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
    total_episodes: NotRequired[int]
    total_frames: NotRequired[int]
    data_path: NotRequired[str]
    """Where LeRobot looks for the tables, and for the videos."""
    video_path: NotRequired[str | None]


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
    try:
        contract = PolicyContract.from_json(text)
    except DeftlyError as error:
        raise DeftlyError(f"'{path / CONTRACT}' is damaged: {error}") from None
    if contract.hash != facts["contract_sha256"]:
        raise DeftlyError(
            f"'{path / CONTRACT}' is not the contract with which the data set was made"
        )
    found = Dataset(path, contract, facts, info)
    _require_possible(path / FACTS, facts)
    _require_features(found)
    return found


def _read(file: Path, kind: Any) -> Any:
    """A JSON file of a data set, checked against its schema."""
    tree = read_json(file, "a part of a data set", MAX_FACTS)
    try:
        msgspec.convert(tree, kind)
    except msgspec.ValidationError as error:
        raise _damaged(file, printable(error, 120)) from None
    if kind is Facts and tree["schema"] != SCHEMA:
        raise DeftlyError(f"'{file}' is not of the schema {SCHEMA}: collect the data set again")
    return tree


def _damaged(file: Path, reason: str) -> DeftlyError:
    return DeftlyError(f"'{file}' is damaged ({reason}): collect the data set again")


def _require_possible(file: Path, facts: Facts) -> None:
    """Raise DeftlyError unless the numbers of `meta/deftly.json` may be those of a collection."""

    def require(value: float, low: float, high: float, what: str) -> None:
        if not low <= value <= high:
            raise _damaged(file, f"{what} is {value}, expected {low} to {high}")

    require(facts["batch"], 1, MAX_BATCH, "`batch`")
    require(facts["seed"], 0, SEEDS - 1, "`seed`")
    require(facts["perturb"], 0, 1, "`perturb`")
    episodes = facts["episodes"]
    if not episodes:
        raise DeftlyError(f"'{file}' has no episodes: collect them again")
    checked = episodes[0]["checks"].keys()
    met: set[tuple[int, int]] = set()
    for number, episode in enumerate(episodes):
        of = f"of episode {number}"
        place = episode["batch"], episode["env"]
        require(place[0], 0, MAX_BATCHES, f"`batch` {of}")
        require(place[1], 0, facts["batch"] - 1, f"`env` {of}")
        require(episode["steps"], 1, MAX_STEPS, f"`steps` {of}")
        if place in met:
            raise _damaged(file, f"episode {number} is another one's environment of the same batch")
        met.add(place)
        if not checked or episode["checks"].keys() != checked:
            raise _damaged(file, f"`checks` {of} are missing, or others than those of episode 0")


def _require_features(found: Dataset) -> None:
    """Raise DeftlyError unless LeRobot's columns, and their rate, are those of the contract."""
    contract, info = found.contract, found.info
    if info["fps"] != contract.rate:
        raise DeftlyError(
            f"'{found.path / INFO}' has {info['fps']:g} frames in a second, and the contract {contract.rate:g}"
        )
    sizes = layout_of(found.facts["layout"], contract).sizes
    wanted: dict[str, list[int]] = {name: [size] for name, size in sizes.items()}
    wanted[EXECUTED] = wanted["action"]
    for name, shape in wanted.items():
        _require_feature(found, name, shape, ("float32",))
    for name, size in image_sizes(contract).items():
        _require_feature(found, IMAGES + name, [size, size, 3], ("video", "image"))


def _require_feature(found: Dataset, name: str, shape: list[int], dtypes: tuple[str, ...]) -> None:
    feature = found.info["features"].get(name)
    if feature is None:
        has, wants = "no such column", shape
    elif feature["shape"] != shape:
        has, wants = f"shape {feature['shape']}", shape
    elif feature["dtype"] not in dtypes:
        has, wants = f"dtype {feature['dtype']}", " or ".join(dtypes)
    else:
        return
    raise DeftlyError(
        f"'{found.path / INFO}': '{name}' has {printable(has)}, and the contract of the data set wants {wants}"
    )


def require_whole(path: Path) -> Dataset:
    """Raise DeftlyError, one line, unless every episode has its rows at its time stamps, and its videos are there."""
    found = open_dataset(path)
    _require_lerobots(found)
    table = read_rows(found, ("episode_index", "frame_index", "timestamp"))
    steps, rows = found.steps, table["episode_index"]
    one_each = all(values.ndim == 1 for values in table.values())
    if (
        not one_each
        or rows.dtype.kind not in "iu"
        or (rows != np.repeat(np.arange(len(steps)), steps)).any()
    ):
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
    for _ in read_numbers(found, LEARNED_FROM):  # it judges them
        pass
    for name, is_video in found.videos.items():
        if is_video:
            _require_video(found, name)
        else:
            _require_images(found, name)
    return found


def _require_lerobots(found: Dataset) -> None:
    """Raise DeftlyError unless what LeRobot itself reads of a data set is there, and says the same."""
    for name in LEROBOTS:
        if not (found.path / name).is_file():
            raise DeftlyError(
                f"'{found.path}' has no {name}, which LeRobot reads: collect the data set again"
            )
    info: Mapping[str, Any] = found.info
    wanted: dict[str, Any] = {
        "total_episodes": len(found.steps),
        "total_frames": sum(found.steps),
        "data_path": DATA_PATH,
    }
    if any(found.videos.values()):
        wanted["video_path"] = VIDEO_PATH
    for name, value in wanted.items():
        if info.get(name) != value:
            raise DeftlyError(
                f"'{found.path / INFO}': `{name}` is {printable(info.get(name), 60)}, expected {value}"
            )


def _require_images(found: Dataset, camera: str) -> None:
    """Raise DeftlyError unless each table has the images of a camera; they are not decoded."""
    import pyarrow.parquet as parquet  # type: ignore[import-not-found]

    for file in data_files(found.path):
        if IMAGES + camera not in parquet.read_schema(file).names:
            raise DeftlyError(f"'{file}' has no images of {camera}: collect the data set again")


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


def read_rows(found: Dataset, columns: Sequence[str]) -> dict[str, np.ndarray]:
    """Columns of numbers of all rows, in their order: float32 or whole numbers, (n,), or (n, width) of lists.

    Nothing is read before the tables say that they have as many rows as the episodes have steps, and no more numbers.
    Raises DeftlyError, one line, for tables that do not read, or hold what is no finite float32.
    """
    import pyarrow.lib  # type: ignore[import-not-found]
    import pyarrow.parquet as parquet  # type: ignore[import-not-found]

    files = data_files(found.path)
    if not files:
        raise DeftlyError(f"'{found.path}' is half written: it has no tables; collect it again")
    try:
        tables = [parquet.ParquetFile(file) for file in files]
        if sum(table.metadata.num_rows for table in tables) != sum(found.steps):
            raise DeftlyError(
                f"'{found.path}' is half written: its rows are not those of its {len(found.steps)} episodes"
            )
        return {name: _column(found, tables, name) for name in columns}
    except (OSError, ValueError, KeyError, pyarrow.lib.ArrowException) as error:
        reason = printable(" ".join(str(error).split()), 120)
        raise DeftlyError(
            f"'{found.path}' is half written: its tables do not read: {reason}"
        ) from None


def _column(found: Dataset, tables: Sequence[Any], name: str) -> np.ndarray:
    """A column of tables of parquet, which is small enough to be read."""
    width = 1
    if name in LEARNED_FROM:
        width = math.prod(found.info["features"][name]["shape"])
    parts = []
    for table in tables:
        if not _is_numeric(table.schema_arrow.field(name).type):
            raise _not_finite(found, name)
        if _count(table.metadata, name) > table.metadata.num_rows * width:
            raise DeftlyError(
                f"'{found.path}': the column '{name}' has more than {width} numbers in a row"
            )
        part = _numbers(table.read([name])[name].combine_chunks())
        if part is None:
            raise _not_finite(found, name)
        parts.append(part)
    values = np.concatenate(parts)
    if values.dtype.kind == "f":
        with np.errstate(over="ignore"):
            values = values.astype(np.float32)
    if not np.isfinite(values).all():
        raise _not_finite(found, name)
    return values


def _not_finite(found: Dataset, name: str) -> DeftlyError:
    return DeftlyError(f"'{found.path}': the column '{name}' has rows without finite numbers")


def _is_numeric(kind: Any) -> bool:
    """Whether a type of pyarrow is that of numbers, or of lists of them."""
    import pyarrow.types as types  # type: ignore[import-not-found]

    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        kind = kind.value_type
    return types.is_integer(kind) or types.is_floating(kind)


def _count(metadata: Any, name: str) -> int:
    """How many numbers a column of a table of parquet has, by the table's own words."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    chunks = [group.column(number) for group in groups for number in range(group.num_columns)]
    # of lists the path goes on, "action.list.element"
    return sum(
        chunk.num_values for chunk in chunks if f"{chunk.path_in_schema}.".startswith(f"{name}.")
    )


def _numbers(column: Any) -> np.ndarray | None:
    """The numbers of a column of pyarrow, (n,), or (n, width) of lists; None where some are missing."""
    import pyarrow.compute as compute  # type: ignore[import-not-found]
    import pyarrow.types as types  # type: ignore[import-not-found]

    if column.null_count:
        return None
    if types.is_integer(column.type) or types.is_floating(column.type):
        return np.asarray(column)
    values, lengths = column.flatten(), np.asarray(compute.list_value_length(column))
    if values.null_count or (lengths != lengths[:1]).any():
        return None
    return np.asarray(values).reshape(len(column), -1)


def data_files(path: Path) -> list[Path]:
    """The tables of a data set, in order."""
    return sorted((path / "data").glob("*/*.parquet"))


def read_numbers(found: Dataset, columns: Sequence[str]) -> Iterator[np.ndarray]:
    """Columns of float32, each as wide as LeRobot's description of it says."""
    rows = read_rows(found, columns)
    for name in columns:
        shape = (sum(found.steps), *found.info["features"][name]["shape"])
        if rows[name].size != math.prod(shape):
            raise DeftlyError(
                f"'{found.path}': the column '{name}' has shape {rows[name].shape}, expected {shape}"
            )
        yield rows[name].reshape(shape).astype(np.float32)


def stored_actions(found: Dataset) -> dict[tuple[int, int], np.ndarray]:
    """What the robot was told in each episode, (steps, action_size) in the contract's units, by batch and row of it."""
    layout = layout_of(found.facts["layout"], found.contract)
    (executed,) = read_numbers(found, (EXECUTED,))
    ends = np.cumsum(found.steps)
    parts = np.split(layout.to_contract(executed), ends[:-1])
    episodes = found.facts["episodes"]
    return {(fact["batch"], fact["env"]): each for fact, each in zip(episodes, parts)}
