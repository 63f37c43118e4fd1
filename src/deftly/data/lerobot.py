"""Demonstrations as a LeRobot v3 data set, by LeRobot's own writer.

LeRobot writes the footers of its tables when a data set is finished: a process killed before leaves nothing that can
be read. So each episode is written atomically into `DIR.partial/` first, as images and numbers in an `.npz`; an
interrupted collection goes on from there. The data set is then made of them in a scratch folder, and takes its place at
`DIR` whole. What stands beside LeRobot's files is in `dataset`, which reads it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deftly import __version__, workspace
from deftly.console import Progress, printable, progress, say
from deftly.contract import PolicyContract
from deftly.data import lerobot_checks as checks
from deftly.data.card import card
from deftly.data.dataset import CONTRACT, FACTS, SCHEMA, require_whole
from deftly.data.demonstrations import Episode, Film, Source, simulate
from deftly.errors import DeftlyError
from deftly.files import (
    MB,
    atomic_folder,
    parse_json,
    read_json,
    read_npz,
    remove_folder,
    write_json,
    write_npz,
    write_text,
)
from deftly.policy.protocol import Policy
from deftly.render import Renderer
from deftly.vla.features import (
    ACTION,
    EXECUTED,
    IMAGES,
    OBS_STATE,
    Droid,
    Layout,
    Plain,
    features,
    image_sizes,
    layout_of,
)

if TYPE_CHECKING:
    from deftly.env import Env

OBJECT = "{object}"
"""Stands in an instruction for the name of what was drawn for an episode."""
MAX_PART = 512 * MB
"""Largest file of an episode in `DIR.partial/`, unpacked."""
MAX_BARREN = 512
"""Episodes without a success after which a collection gives up."""
MAX_QUEUE = 100_000
"""Frames that wait for LeRobot's encoder: it drops what is more, and a dropped frame would shift those after it."""
EPISODE = "an episode of a collection"
ANEW = "delete it, and the same command collects it and those after it anew"
FACTS_OF_EPISODE = frozenset(("batch", "env", "success", "steps", "checks"))
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
    """What the policy is told: in turn, so that a data set has paraphrases. `{object}` is what was drawn."""
    only_success: bool
    policy: str
    policy_sha256: str
    settings: Mapping[str, Any]
    """Of the task and the physics, as data."""

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names of the scene's cameras."""
        return tuple(image_sizes(self.seen))

    @property
    def size(self) -> int:
        """Width and height of an image, pixels."""
        return image_sizes(self.seen)[self.cameras[0]]

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
    plan, neither of which is ever written over; if images cannot be rendered, or an episode of them is too large.
    """
    require_lerobot()
    is_empty = out.is_dir() and not any(out.iterdir())
    if out.exists() and not is_empty:
        raise DeftlyError(
            f"'{out}' is not empty, and a data set is never written over: choose another --out"
        )
    _require_possible(plan)
    parts = Parts(out.with_name(f"{out.name}.partial"), plan)
    with parts.lock():
        parts.require_whole(count)
        _fill(parts, plan, policy, count)
        _assemble(parts, plan, count, out, video)
        remove_folder(parts.folder)
    return out


def _require_possible(plan: Plan) -> None:
    """Raise DeftlyError for what would only fail after a while: the rate, the size of an episode, OpenGL."""
    task = plan.source.task
    _whole(plan.seen.rate)
    steps = task.cfg.episode_steps
    frames = steps * len(plan.cameras)
    need = frames * 3 * plan.size**2
    if need > MAX_PART - MB:
        raise DeftlyError(
            f"the images of an episode of {steps} steps take up to {need / MB:.0f} MB, more than {MAX_PART / MB:.0f}: "
            "a smaller --size, or fewer --cameras"
        )
    model = task.scene().compile()
    for name in plan.cameras:
        Renderer(model, name, (plan.size, plan.size), plain=True).close()


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
        found = read_json(file, "the plan of a collection")
        if not isinstance(found, dict):
            raise DeftlyError(f"'{file}' is no plan of a collection: choose another --out")
        wanted = json.loads(json.dumps(plan.facts))
        differs = [key for key in wanted if found.get(key) != wanted[key]]
        if differs:
            first = differs[0]
            there = printable(found.get(first), 80)
            here = printable(wanted.get(first), 80)
            raise DeftlyError(
                f"'{folder}' holds episodes whose {first} is {there}, and this is {here}: go on with the "
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
        text = np.array(json.dumps(facts))
        write_npz(self.path(number), {**arrays, "facts": text}, level=1)

    def read(self, number: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays and facts of an episode. Raises DeftlyError if it is damaged, with what to do."""
        path = self.path(number)
        arrays = read_npz(path, EPISODE, MAX_PART, names=("facts",), advice=ANEW)
        facts = parse_json(str(arrays.pop("facts")), EPISODE, path, ANEW)
        is_told = isinstance(facts, dict) and facts.keys() >= FACTS_OF_EPISODE
        if not is_told or not all(isinstance(facts[name], int) for name in ("batch", "env")):
            raise DeftlyError(f"{path} is not {EPISODE}: it does not say which it is; {ANEW}")
        return arrays, facts

    def require_whole(self, count: int) -> None:
        """Raise DeftlyError if there are more than `count` episodes, or one is damaged: before more are simulated."""
        done = len(self)
        if done > count:
            raise DeftlyError(
                f"'{self.folder}' holds {done} episodes, more than the {count} asked for: give --episodes {done}, or "
                "choose another --out"
            )
        for number in progress(range(done), "checking"):
            self.read(number)

    def lock(self) -> AbstractContextManager[None]:
        """Keep the folder to this process. Raises DeftlyError if another one collects into it."""
        return workspace.lock(self.folder, f"'{self.folder}'")


def _fill(parts: Parts, plan: Plan, policy: Policy, count: int) -> None:
    """Simulate and render until there are enough episodes."""
    done = len(parts)
    last = (0, -1)
    if done:
        facts = parts.read(done - 1)[1]
        last = (facts["batch"], facts["env"])
        say(f"going on after {done} episodes in '{parts.folder}'")
    film = Film(plan.cameras, plan.size)
    episodes = _kept(plan, policy, last)
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
        for episode in good:
            if (number, episode.env) > last:
                yield env, episode


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
        "object": episode.object,
        "steps": len(episode),
        "checks": {
            **checks.visible(env, episode, plan.cameras, plan.size),
            **checks.moving(images, joint_pos),
            **checks.smooth(plan.source.task.contract(), joint_pos),
        },
    }
    arrays = {IMAGES + name: each for name, each in images.items()}
    arrays["joint_pos"] = joint_pos
    arrays[ACTION] = actions
    arrays[EXECUTED] = np.stack(episode.executed)
    return arrays, facts


def _assemble(parts: Parts, plan: Plan, count: int, out: Path, video: bool) -> None:
    """Make the data set of the episodes, by LeRobot's writer, in the place of `out`."""
    import av.logging

    from deftly.vla.models import quiet

    with quiet():  # it says with a traceback which decoder it lacks
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
            prompt = told(plan.prompts[number % len(plan.prompts)], fact.get("object", ""))
            for frame in _frames(arrays, layout):
                dataset.add_frame({**frame, "task": prompt})
            dataset.save_episode(parallel_encoding=False)
            facts.append({**fact, "prompt": prompt})
            if number < checks.SHOWN:
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


def told(prompt: str, name: str = "") -> str:
    """An instruction with the name of the object that was drawn; "object" where there is none."""
    return prompt.replace(OBJECT, name or "object")


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
