"""Demonstrations as a LeRobot v3 data set, by LeRobot's own writer.

LeRobot writes the footers of its tables when a data set is finished: a process killed before leaves nothing that can
be read. So each episode is written atomically into `DIR.partial/` first, as images and numbers in an `.npz`; an
interrupted collection goes on from there. The data set is then made of them in a scratch folder, and takes its place at
`DIR` whole.

Beside LeRobot's files stand

    meta/contract.json    the contract of a policy that learns from it: what it sees, and what its actions mean
    meta/deftly.json      where the episodes came from, the meaning of each number, and what was checked
    README.md             the card of the data set; report.html, what the checks found
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from deftly import __version__
from deftly.console import Progress, printable, progress, say
from deftly.contract import PolicyContract
from deftly.data import lerobot_checks as checks
from deftly.data.demonstrations import Episode, Film, Source, simulate
from deftly.errors import DeftlyError
from deftly.files import (
    MB,
    atomic_folder,
    read_json,
    read_npz,
    read_text,
    remove_folder,
    write_json,
    write_npz,
    write_text,
)
from deftly.policy.protocol import Policy
from deftly.vla.features import (
    ACTION,
    EXECUTED,
    IMAGES,
    OBS_STATE,
    Droid,
    Layout,
    Plain,
    features,
    layout_of,
)

if TYPE_CHECKING:
    from deftly.env import Env

SCHEMA = "deftly.dataset/1"
CONTRACT, FACTS, INFO = "meta/contract.json", "meta/deftly.json", "meta/info.json"
MAX_PART = 512 * MB
"""Largest file of an episode in `DIR.partial/`, unpacked."""
MAX_BARREN = 512
"""Episodes without a success after which a collection gives up."""
MAX_QUEUE = 100_000
"""Frames that wait for LeRobot's encoder: it drops what is more, and a dropped frame would shift those after it."""
TOLERANCE_S = 1e-4
"""By how much a time stamp may be off, s; LeRobot's own."""
ENCODER = {"vcodec": "h264", "crf": 20, "g": 2, "preset": "fast"}
"""How videos are encoded: h264 plays everywhere; every second frame stands by itself, as LeRobot has it, so that
reading a random one decodes two."""
NO_LEROBOT = (
    "this needs lerobot 0.6, which needs Python 3.12: 'make vla' builds .venv-vla with it, then type "
    ".venv-vla/bin/deftly in place of deftly"
)


def require_lerobot() -> None:
    """Raise DeftlyError, one line, where LeRobot is not installed."""
    if importlib.util.find_spec("lerobot") is None:
        version = ".".join(map(str, sys.version_info[:2]))
        raise DeftlyError(f"{NO_LEROBOT} (this is Python {version} without lerobot)")


@dataclass(frozen=True)
class Plan:
    """What is collected. Two plans that are equal collect the same episodes."""

    source: Source
    seen: PolicyContract
    """The contract of a policy that sees, `seen_contract`."""
    layout: Layout
    prompts: tuple[str, ...]
    """What the policy is told: in turn, so that a data set has paraphrases."""
    only_success: bool
    policy: str
    policy_sha256: str
    settings: Mapping[str, Any]
    """Of the task and the physics, as data."""

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names of the scene's cameras."""
        return tuple(signal.name for signal in self.seen.signals if signal.is_image)

    @property
    def size(self) -> int:
        """Width and height of an image, pixels."""
        return next(signal.shape[0] for signal in self.seen.signals if signal.is_image)

    @property
    def facts(self) -> dict[str, Any]:
        """The plan as data."""
        return {
            "schema": SCHEMA,
            "task": self.source.task.name,
            "settings": self.settings,
            "contract_sha256": self.seen.hash,
            "layout": self.layout,
            "prompts": list(self.prompts),
            "only_success": self.only_success,
            "perturb": self.source.perturb,
            "policy": self.policy,
            "policy_sha256": self.policy_sha256,
            "seed": self.source.seed,
            "batch": self.source.batch,
            "deftly": __version__,
        }


def collect(plan: Plan, policy: Policy, count: int, out: Path, video: bool = True) -> Path:
    """Collect so many episodes into a data set at `out`; goes on where an interrupted collection stopped.

    Raises DeftlyError, before anything is simulated, if `out` holds anything, or `DIR.partial/` episodes of another
    plan: neither is ever written over.
    """
    require_lerobot()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DeftlyError(
            f"'{out}' is not empty, and a data set is never written over: choose another --out"
        )
    parts = Parts(out.with_name(f"{out.name}.partial"), plan)
    _fill(parts, plan, policy, count)
    _assemble(parts, plan, count, out, video)
    remove_folder(parts.folder)
    return out


class Parts:
    """The episodes of an unfinished data set, a file each.

    Raises DeftlyError if the folder holds something else, or episodes of another plan.
    """

    PLAN = "plan.json"

    def __init__(self, folder: Path, plan: Plan):
        self.folder = folder
        file = folder / self.PLAN
        if not folder.exists():
            write_json(file, plan.facts)
        elif not file.is_file():
            raise DeftlyError(f"'{folder}' is no unfinished collection: choose another --out")
        found, wanted = (
            read_json(file, "the plan of a collection"),
            json.loads(json.dumps(plan.facts)),
        )
        differs = [key for key in wanted if found.get(key) != wanted[key]]
        if differs:
            there, here = (printable(tree.get(differs[0]), 80) for tree in (found, wanted))
            raise DeftlyError(
                f"'{folder}' holds episodes whose {differs[0]} is {there}, and this is {here}: go on with the "
                "settings of then, or choose another --out"
            )

    def __len__(self) -> int:
        """Number of episodes that are whole; they are written in order."""
        number = 0
        while self.path(number).is_file():
            number += 1
        return number

    def path(self, number: int) -> Path:
        """The file of an episode."""
        return self.folder / f"episode_{number:06d}.npz"

    def write(
        self, number: int, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]
    ) -> None:
        """Write an episode, whole or not at all; on the disk when this returns."""
        write_npz(self.path(number), {**arrays, "facts": np.array(json.dumps(facts))}, level=1)

    def read(self, number: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays and facts of an episode."""
        arrays = read_npz(self.path(number), "an episode of a collection", MAX_PART)
        return arrays, json.loads(str(arrays.pop("facts")))


def _fill(parts: Parts, plan: Plan, policy: Policy, count: int) -> None:
    """Simulate and render until there are enough episodes."""
    done, last = len(parts), (0, -1)
    if done:
        facts = parts.read(done - 1)[1]
        last = (facts["batch"], facts["env"])
        say(f"going on after {done} episodes in '{parts.folder}'")
    film, episodes = Film(plan.cameras, plan.size), _kept(plan, policy, last)
    with contextlib.closing(film), Progress(count, "collecting") as shown:
        while done < count:
            shown.reach(done)
            env, episode = next(episodes)
            parts.write(done, *_rendered(plan, env, episode, film))
            done += 1
        shown.reach(count)


def _kept(plan: Plan, policy: Policy, last: tuple[int, int]) -> Iterator[tuple[Env, Episode]]:
    """Episodes to keep, without end, after `last`: the batch and the environment of one."""
    barren = 0
    for number in itertools.count(last[0]):
        env, episodes = simulate(plan.source, policy, number)
        good = [each for each in episodes if each.success or not plan.only_success]
        barren = 0 if good else barren + plan.source.batch
        if barren >= MAX_BARREN:
            raise DeftlyError(
                f"none of {barren} episodes succeeded: give another --policy, less --perturb, or --no-only-success"
            )
        yield from ((env, each) for each in good if (number, each.env) > last)


def _rendered(
    plan: Plan, env: Env, episode: Episode, film: Film
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and facts of an episode, its images as (steps, size, size, 3) uint8."""
    frames = list(film.frames(env, episode))
    images = {name: np.stack([frame[name] for frame in frames]) for name in plan.cameras}
    joint_pos = np.stack(episode.joint_pos)
    actions = np.stack(episode.actions)
    facts = {
        "batch": episode.batch,
        "env": episode.env,
        "success": episode.success,
        "steps": len(episode),
        "checks": {
            **checks.visible(env, episode, plan.cameras, plan.size),
            **checks.moving(images, joint_pos),
            **checks.smooth(plan.source.task.contract(), joint_pos),
        },
    }
    numbers = {"joint_pos": joint_pos, ACTION: actions, EXECUTED: np.stack(episode.executed)}
    return {**{IMAGES + name: each for name, each in images.items()}, **numbers}, facts


def _assemble(parts: Parts, plan: Plan, count: int, out: Path, video: bool) -> None:
    """Make the data set of the episodes, by LeRobot's writer, in the place of `out`."""
    import av.logging
    import datasets  # type: ignore[import-not-found]
    from lerobot.configs import RGBEncoderConfig  # type: ignore[import-not-found]
    from lerobot.datasets import LeRobotDataset  # type: ignore[import-not-found]

    av.logging.set_libav_level(av.logging.ERROR)  # the encoder would say twenty lines an episode
    datasets.disable_progress_bars()

    contract = plan.source.task.contract()
    layout = layout_of(plan.layout, contract)
    facts, sheets = [], []
    with atomic_folder(out) as scratch:
        root = scratch / "dataset"  # LeRobot wants to make the folder
        dataset = LeRobotDataset.create(
            repo_id=f"local/{out.name}",
            fps=_whole(contract.rate),
            features=features(layout, plan.seen, video),
            root=root,
            robot_type=contract.robot.name,
            use_videos=video,
            rgb_encoder=RGBEncoderConfig(**ENCODER) if video else None,
            encoder_threads=1,
            streaming_encoding=video,
            encoder_queue_maxsize=MAX_QUEUE,
        )
        for number in progress(range(count), "writing"):
            arrays, fact = parts.read(number)
            prompt = plan.prompts[number % len(plan.prompts)]
            for frame in _frames(arrays, layout):
                dataset.add_frame({**frame, "task": prompt})
            dataset.save_episode(parallel_encoding=False)
            facts.append({**fact, "prompt": prompt})
            sheets.append({name: arrays[IMAGES + name][[0, -1]] for name in plan.cameras})
        dataset.finalize()
        for path in root.iterdir():
            path.rename(scratch / path.name)
        root.rmdir()
        write_text(scratch / CONTRACT, plan.seen.to_json() + "\n")
        write_json(scratch / FACTS, {**plan.facts, "meaning": layout.meaning, "episodes": facts})
        checks.write_report(scratch, facts, sheets)
        write_text(scratch / "README.md", card(plan, facts, layout.meaning))
        require_whole(scratch)


def _frames(arrays: Mapping[str, np.ndarray], layout: Plain | Droid) -> Iterator[dict[str, Any]]:
    """The rows of an episode, as LeRobot takes them."""
    states = layout.state(arrays["joint_pos"])
    actions, executed = (layout.to_dataset(arrays[name]) for name in (ACTION, EXECUTED))
    images = [name for name in arrays if name.startswith(IMAGES)]
    for t, state in enumerate(states):
        looks = {name: arrays[name][t] for name in images}
        yield {OBS_STATE: state, ACTION: actions[t], EXECUTED: executed[t], **looks}


def _whole(rate: float) -> int:
    """Frames in a second. Raises DeftlyError for a rate that LeRobot, which counts in whole ones, has no place for."""
    if rate != round(rate):
        raise DeftlyError(
            f"a LeRobot data set has a whole number of frames in a second, and the rate is {rate:g}"
        )
    return round(rate)


# ------------------------------------------------------------------------- reading


class Dataset(NamedTuple):
    """What is known of a data set before its frames are read."""

    path: Path
    contract: PolicyContract
    """Of a policy that learns from it."""
    facts: dict[str, Any]
    info: dict[str, Any]


def open_dataset(path: Path) -> Dataset:
    """A data set of `deftly demos`. Raises DeftlyError, one line, for any other folder."""
    if not path.is_dir():
        raise DeftlyError(f"no data set '{path}': 'deftly demos TASK --out {path}' makes one")
    missing = [name for name in (INFO, FACTS, CONTRACT) if not (path / name).is_file()]
    if missing:
        raise DeftlyError(
            f"'{path}' has no {missing[0]}: it is no data set of 'deftly demos', or half of one; collect it again"
        )
    info, facts = (read_json(path / name, "a part of a data set") for name in (INFO, FACTS))
    if not isinstance(facts, dict) or facts.get("schema") != SCHEMA:
        raise DeftlyError(
            f"'{path / FACTS}' is not of the schema {SCHEMA}: collect the data set again"
        )
    contract = PolicyContract.from_json(
        read_text(path / CONTRACT, "the contract of a data set").strip()
    )
    if contract.hash != facts.get("contract_sha256"):
        raise DeftlyError(
            f"'{path / CONTRACT}' is not the contract with which the data set was made"
        )
    return Dataset(path, contract, facts, info)


def require_whole(path: Path) -> Dataset:
    """Raise DeftlyError, one line, unless every episode has its rows at its time stamps, and its videos are there."""
    found = open_dataset(path)
    episodes, fps = found.facts["episodes"], found.info["fps"]
    table = read_rows(path, ("episode_index", "frame_index", "timestamp"))
    steps = [fact["steps"] for fact in episodes]
    if np.bincount(table["episode_index"], minlength=len(steps)).tolist() != steps:
        raise DeftlyError(
            f"'{path}' is half written: its rows are not those of its {len(steps)} episodes"
        )
    starts = np.repeat(np.cumsum([0, *steps[:-1]]), steps)
    frame = np.arange(len(starts)) - starts
    late = np.abs(table["timestamp"] - frame / fps) > TOLERANCE_S
    if (table["frame_index"] != frame).any() or late.any():
        row = int(np.flatnonzero(late | (table["frame_index"] != frame))[0])
        raise DeftlyError(
            f"'{path}': the time stamps are shifted: frame {frame[row]} of episode {table['episode_index'][row]} "
            f"is at {table['timestamp'][row]:g} s, expected {frame[row] / fps:g}"
        )
    _require_videos(found, sum(steps))
    return found


def _require_videos(found: Dataset, frames: int) -> None:
    """Raise DeftlyError unless each camera's videos hold a frame for each row."""
    import av
    from av.error import FFmpegError

    for name, feature in found.info["features"].items():
        if feature["dtype"] != "video":
            continue
        count = 0
        for file in sorted((found.path / "videos" / name).glob("*/*.mp4")):
            try:
                with av.open(str(file)) as video:
                    count += video.streams.video[0].frames
            except (FFmpegError, IndexError) as error:
                raise DeftlyError(f"'{file}' is no video: {printable(error, 100)}") from None
        if count != frames:
            raise DeftlyError(
                f"'{found.path}' has {count} frames of {name.removeprefix(IMAGES)}, expected {frames}: its videos are "
                "missing or cut off; copy them again, or collect the data set again"
            )


def read_rows(path: Path, columns: Sequence[str]) -> dict[str, np.ndarray]:
    """Columns of numbers of all rows, in their order: float32, or whole numbers."""
    import pyarrow.lib  # type: ignore[import-not-found]
    import pyarrow.parquet as parquet  # type: ignore[import-not-found]

    try:
        files = sorted((path / "data").glob("*/*.parquet"))
        tables = [parquet.read_table(file, columns=list(columns)) for file in files]
        found = {
            name: np.concatenate([np.asarray(table[name].to_pylist()) for table in tables])
            for name in columns
        }
        found = {
            name: each.astype(np.float32) if each.dtype.kind == "f" else each
            for name, each in found.items()
        }
    except (OSError, ValueError, KeyError, pyarrow.lib.ArrowException) as error:
        reason = printable(" ".join(str(error).split()), 120)
        raise DeftlyError(f"'{path}' is half written: its tables do not read: {reason}") from None
    return found


def stored_actions(found: Dataset) -> dict[tuple[int, int], np.ndarray]:
    """What the robot was told in each episode, (steps, action_size) in the contract's units, by batch and row of it."""
    layout = layout_of(found.facts["layout"], found.contract)
    told = layout.to_contract(read_rows(found.path, (EXECUTED,))[EXECUTED])
    ends = np.cumsum([fact["steps"] for fact in found.facts["episodes"]])
    parts = np.split(told, ends[:-1])
    return {
        (fact["batch"], fact["env"]): each for fact, each in zip(found.facts["episodes"], parts)
    }


# ------------------------------------------------------------------------ the hub


def push(path: Path, repo: str) -> str:
    """Upload a data set to a repository of the Hugging Face hub; its address. Raises DeftlyError without a token."""
    require_lerobot()
    from huggingface_hub import HfApi, get_token  # type: ignore[import-not-found]
    from huggingface_hub.errors import HfHubHTTPError  # type: ignore[import-not-found]

    if not get_token():
        raise DeftlyError(
            "--push-to-hub needs a token: make one at https://huggingface.co/settings/tokens and type "
            "'hf auth login', or set HF_TOKEN"
        )
    api = HfApi()
    try:
        api.create_repo(repo, repo_type="dataset", exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=str(path), repo_type="dataset")
        api.create_tag(repo, tag="v3.0", repo_type="dataset", exist_ok=True)
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = printable(" ".join(str(error).split()), 160)
        raise DeftlyError(f"cannot upload to {repo}: {reason}") from None
    return f"https://huggingface.co/datasets/{repo}"


def card(plan: Plan, facts: Sequence[Mapping[str, Any]], meaning: Mapping[str, str]) -> str:
    """The card of the data set, Markdown under the header that the hub reads."""
    steps = [fact["steps"] for fact in facts]
    successes = sum(fact["success"] for fact in facts)
    noise = (
        f"noise of {plan.source.perturb:g} on what was executed"
        if plan.source.perturb
        else "no noise"
    )
    rows = "\n".join(f"| `{name}` | {what} |" for name, what in meaning.items())
    prompts = "\n".join(f"- {prompt}" for prompt in plan.prompts)
    return f"""---
license: mit
task_categories: [robotics]
tags: [LeRobot, deftly, simulation, {plan.seen.robot.name}]
---
# {plan.source.task.name}: {len(facts)} demonstrations

Simulated episodes of the robot `{plan.seen.robot.name}`, driven by the policy `{plan.policy}`
(weights sha256 `{plan.policy_sha256[:16]}`), at {plan.seen.rate:g} Hz: {sum(steps)} frames, {successes} successes.
Cameras {", ".join(plan.cameras)}, {plan.size} x {plan.size}. Seed {plan.source.seed}, {noise}.

What a row holds was measured before its action was decided; the next row follows from it.
`{EXECUTED}` is what the robot was told, `{ACTION}` what the policy wanted.

| number | meaning |
|---|---|
{rows}

Instructions:

{prompts}

Made by `deftly demos`, version {__version__}. The contract of a policy that learns from it is `{CONTRACT}`,
sha256 `{plan.seen.hash[:16]}`. What was checked is in `report.html`.
"""
