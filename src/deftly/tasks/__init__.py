"""Tasks, one file each: a module here, or a file of the user's, with a class decorated by `@task("name")`."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from deftly.config import TaskConfig, suggest
from deftly.contract import PolicyContract
from deftly.errors import DeftlyError

if TYPE_CHECKING:
    import mujoco
    from torch import Tensor

    from deftly.env import State
    from deftly.sim.randomize import Randomize


@dataclass(frozen=True)
class Noise:
    """What the sensors do to one signal. All figures are in the signal's units, steps are control steps."""

    uniform: float = 0.0  # half range of white noise, drawn each step
    gaussian: float = 0.0  # standard deviation of white noise, drawn each step
    bias: float = 0.0  # half range of a constant error, drawn each episode
    delay: int = 0  # longest delay, steps; each episode draws one from 0 to this
    dropout: float = 0.0  # probability that a step repeats the last reading


@dataclass(frozen=True)
class Push:
    """Forces that hit a body at random times."""

    body: str
    force: tuple[float, float]  # range of the horizontal force, N
    interval: float  # mean time between pushes, s
    duration: float  # length of a push, s


@dataclass(frozen=True)
class Strokes:
    """Where tips of fingers push what they turn about the vertical, and when: from there a search for a gait starts."""

    sites: tuple[str, ...]  # of the tips
    angles: tuple[float, ...]  # on which side each pushes, rad about the centre, as of a turn counter-clockwise
    phases: tuple[float, ...]  # when each does, as a share of the period
    centre: tuple[float, float, float]  # of what is turned, at the height of the tips, m, in the world
    radius: float  # at which a tip touches it, m
    direction: float = 1.0  # -1 turns clockwise, with mirrored angles


class Task:
    """A task: its scene, its contract, and its Markov decision process in torch.

    Every tensor of `s` leads with `num_envs`; methods return one value for each environment. Rewards are unweighted
    terms: `Config.weights` has a field of each term's name. State that a task carries between steps lives in
    `s.store`, so that it is saved and restored with the environment.
    """

    name: str
    Config: type[TaskConfig] = TaskConfig
    headline: str | None = None
    """The metric that is to be high, by which training chooses its best checkpoint; None: success, then few steps."""
    defaults: Mapping[str, Any] = {}
    """Settings with which the task is trained, where they differ from the general ones: section to name to value."""
    figures: Mapping[str, str] = {}
    """The figures of `metrics` by name, and what each is, for the report."""
    plots: tuple[tuple[str, str], ...] = (("seconds", "Episode length, s"),)
    """Figures whose distribution the report plots, each with a title; it shows the first by the bins of `breakdown`."""
    breakdown: tuple[str, tuple[float, ...]] | None = None
    """The figure by which the report divides the episodes, and the rising edges of its bins."""

    def __init__(self, cfg: TaskConfig):
        self.cfg: Any = cfg

    def scene(self) -> mujoco.MjSpec:
        """The robot in its surroundings, with a keyframe `home`."""
        raise NotImplementedError

    def contract(self) -> PolicyContract:
        """Which signals are observed and how actions act."""
        raise NotImplementedError

    def signals(self, s: State) -> dict[str, Tensor]:
        """What the robot could measure now, by signal name: `(num_envs, size)`."""
        raise NotImplementedError

    def privileged(self, s: State) -> Tensor | None:
        """What only the critic sees, `(num_envs, k)`, or None."""
        return None

    def require(self) -> None:
        """Raise DeftlyError if a file that episodes start from is missing or another's; called before a run is made."""

    def reset(self, s: State, ids: Tensor) -> None:
        """Write the state in which the environments `ids`, which stand at the home keyframe, start an episode."""

    def start(self, s: State, ids: Tensor) -> None:
        """Prepare `s.store` for the episodes that start in `ids`; positions and contacts are fresh, rows of it zero."""

    def update(self, s: State) -> None:
        """Bring `s.store` up to date; called once after each step, before everything below."""

    def rewards(self, s: State) -> dict[str, Tensor]:
        """Unweighted reward terms of the step."""
        raise NotImplementedError

    def failed(self, s: State) -> dict[str, Tensor]:
        """Named conditions that end an episode as a failure."""
        return {}

    def success(self, s: State) -> Tensor:
        """Whether the task is done; ends the episode unless `Config.stop_on_success` is False."""
        raise NotImplementedError

    def metrics(self, s: State) -> dict[str, Tensor]:
        """Figures of the episode so far, for the evaluation report; NaN where there is none."""
        return {}

    def randomize(self) -> tuple[Randomize, ...]:
        """Which model figures differ between episodes."""
        return ()

    def noise(self) -> dict[str, Noise]:
        """What the sensors do to signals, by signal name."""
        return {}

    def pushes(self) -> tuple[Push, ...]:
        """Which bodies are pushed."""
        return ()

    def context(self, s: State) -> Tensor | None:
        """A figure of each episode by which a gait may differ, `(num_envs,)` in -1 .. 1, or None; no policy sees it."""
        return None

    def strokes(self) -> Strokes | None:
        """Where a search for a gait starts, or None: from standing still."""
        return None

    def curriculum(self, s: State, progress: dict[str, float]) -> None:
        """Set factors `s.scale[name]`, of a reward term's weight or the task's own, by means over ended episodes."""


T = TypeVar("T", bound=type[Task])


def task(name: str) -> Callable[[T], T]:
    """Give a `Task` class the name by which the command line knows it."""

    def mark(cls: T) -> T:
        cls.name = name
        return cls

    return mark


def shipped() -> dict[str, str]:
    """Shipped tasks: name -> module, read from the text of the files, since importing them is slow."""
    mark, files = re.compile(r'^@task\("([\w-]+)"\)', re.MULTILINE), sorted(Path(__path__[0]).glob("*.py"))
    return {name: f"{__name__}.{file.stem}" for file in files for name in mark.findall(file.read_text())}


def load(name: str) -> type[Task]:
    """The class of a shipped task's name, of `file.py` or of `file.py:name`; raises DeftlyError if there is none."""
    file = re.fullmatch(r"(.*\.py)(?::([\w-]*))?", name)
    if file:
        return _pick(_import_file(Path(file[1])), file[2] or None, name)
    modules = shipped()
    if name not in modules:
        unknown = f"no task '{name}'{suggest(name, modules)}"
        raise DeftlyError(f"{unknown} (`deftly tasks` lists them; or give a file, my_task.py)")
    return _pick(importlib.import_module(modules[name]), name, name)


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise DeftlyError(f"no task file {path}: give the path of a Python file with a class under @task(...)")
    name = f"deftly_task_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    if name not in sys.modules:
        spec: Any = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[name]
            reason = " ".join(str(error).split())
            raise DeftlyError(f"{path} does not import: {type(error).__name__}: {reason}") from error
    return sys.modules[name]


def _pick(module: ModuleType, wanted: str | None, given: str) -> type[Task]:
    found = {
        cls.name: cls
        for cls in vars(module).values()
        if isinstance(cls, type) and issubclass(cls, Task) and "name" in vars(cls) and cls.__module__ == module.__name__
    }
    names = [wanted] if wanted else list(found)
    if len(names) == 1 and names[0] in found:
        return found[names[0]]
    if not found:
        raise DeftlyError(f'{given} defines no task: decorate a class with @task("name")')
    raise DeftlyError(f"{given} defines {sorted(found)}: name one as file.py:{min(found)}")
