"""Tasks, one file each: a module here, or a file of the user's, with a class decorated by `@task("name")`."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from deftly.config import LADDER, Rung, TaskConfig, suggest
from deftly.contract import PolicyContract
from deftly.errors import DeftlyError

if TYPE_CHECKING:
    import mujoco
    from torch import Tensor

    from deftly.sim.pushes import Push
    from deftly.sim.randomize import Randomize
    from deftly.sim.sensors import Noise
    from deftly.sim.state import State


@dataclass(frozen=True)
class Report:
    """What training and the evaluation report show of a task beyond success."""

    selection: str | None = None
    """The metric that is to be high, by which training selects its best checkpoint; None: success, then few steps."""
    metrics: Mapping[str, str] = field(default_factory=dict)
    """What each of the task's metrics is, by name, with its unit."""
    plots: tuple[tuple[str, str], ...] = (("seconds", "Episode length, s"),)
    """Metrics whose distribution is plotted, each with a title; the first is shown by the bins of `breakdown` too."""
    breakdown: tuple[str, tuple[float, ...]] | None = None
    """The metric by which the episodes are divided, and the rising edges of its bins."""
    kinds: tuple[str, ...] = ()
    """Names of what the metric of `breakdown` counts through, such as objects: 0 is the first. No edges are needed."""


class Goals(Protocol):
    """What hindsight experience replay asks a task with goals, about observations by group, each `(..., size)`."""

    def achieved(self, obs: Mapping[str, Tensor]) -> Tensor:
        """What there is of what a goal asks for, `(..., k)`, such as the position of an object and its speed."""
        ...

    def with_goal(self, obs: Mapping[str, Tensor], goal: Tensor) -> dict[str, Tensor]:
        """The observations as they would have been with another goal: what was achieved later, `(..., k)`."""
        ...

    def goal_reward(self, achieved: Tensor, goal: Tensor) -> Tensor:
        """The reward of a step that ended with what was achieved, `(...)`."""
        ...


class Mirror(NamedTuple):
    """How a task looks in a mirror, where left and right are alike: functions of rows `(..., size)`."""

    observation: Callable[[Tensor], Tensor]
    """What the policy sees, `(..., obs_size)`, in the mirror: as long."""
    privileged: Callable[[Tensor], Tensor]
    """What `Task.privileged` adds for the critic."""
    action: Callable[[Tensor], Tensor]


class Task:
    """A task: its scene, its contract, and its Markov decision process in torch.

    Methods work on all environments at once: every tensor of `s` leads with `num_envs`, and they return one value for
    each environment. Rewards are unweighted terms: `Config.weights` has a field of each term's name. What a task
    carries between steps lives in `s.store`, so that it is saved and restored with the environment. Nothing indexes
    by environment or asks for the value of a tensor, which would wait for a GPU: `torch.where` and masks select.

    On a CPU, what is called where episodes start or end (`reset`, `start`, the first `signals`, `inputs` and
    `privileged`, `metrics`) gets a part of the state: the environments that do, `s.num_envs` of them.

    The first line of the docstring is what `deftly tasks` shows.
    """

    name: str
    Config: type[TaskConfig] = TaskConfig
    report: Report = Report()
    defaults: Mapping[str, Any] = {}
    """Settings with which the task is trained, where they differ from the general ones: section to name to value.

    `train` is of PPO; the settings of another algorithm are in a section of its name, such as `sac`.
    """
    safety: Mapping[str, float] = {}
    """Bounds of the safety kernel for this task where they differ from the general ones, by names of `SafetyConfig`.

    Of a hand that starts in any pose, say. They hold in simulation: `sim2sim`, `record`, `run --driver sim`.
    """
    ladder: tuple[Rung, ...] = LADDER
    """The conditions of `deftly eval TASK --ladder`."""
    teacher: str = ""
    """The task whose shipped policy `deftly distill --teacher shipped` takes; empty: its own."""
    prompts: tuple[str, ...] = ()
    """How a person would say what is to be done, first the plainest: the instructions of `deftly demos`.

    `{object}` stands for the name of what was drawn for an episode, one of the report's `kinds`.
    """

    def __init__(self, cfg: TaskConfig):
        self.cfg: Any = cfg

    @property
    def goals(self) -> Goals | None:
        """What is known of its goals, if it has some that learning may replace in hindsight."""
        return None

    def scene(self) -> mujoco.MjSpec:
        """The robot in its surroundings, with a keyframe `home`."""
        raise NotImplementedError

    def contract(self) -> PolicyContract:
        """Which signals are observed and how actions act."""
        raise NotImplementedError

    def signals(self, s: State) -> dict[str, Tensor]:
        """What the robot could measure now, by signal name: `(num_envs, size)`."""
        raise NotImplementedError

    def inputs(self, s: State) -> dict[str, Tensor]:
        """What an operator says now, by name of an input of the contract: `(num_envs, size)`; left out: its default."""
        return {}

    def hear(self, s: State, said: Mapping[str, Tensor]) -> None:
        """Somebody else is the operator: judge by what he says, `(num_envs, size)` by name, not by the task's own.

        Called before `inputs`. A task that does not care lets its policy hear him and judges as before.
        """

    def privileged(self, s: State) -> Tensor | None:
        """What only the critic sees, `(num_envs, k)`, or None."""
        return None

    def mirror(self) -> Mirror | None:
        """The task in a mirror, for `--train.symmetry`; None: left and right differ."""
        return None

    def require(self) -> None:
        """Raise DeftlyError if a file that episodes start from is missing or another's; called before a run is made."""

    def reset(self, s: State, mask: Tensor) -> None:
        """Write the state in which the environments of `mask`, which stand at the home keyframe, start an episode."""

    def start(self, s: State, mask: Tensor) -> None:
        """Prepare `s.store` for the episodes that start where `mask` is True: its rows are zero, positions fresh."""

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
        """Metrics of the episode so far, for the evaluation report; NaN where there is none."""
        return {}

    def randomize(self) -> tuple[Randomize, ...]:
        """Which parameters of the model differ between episodes."""
        return ()

    def noise(self) -> dict[str, Noise]:
        """What the sensors do to signals, by signal name."""
        return {}

    def pushes(self) -> tuple[Push, ...]:
        """Which bodies are pushed."""
        return ()

    def curriculum(self, s: State, progress: dict[str, float]) -> None:
        """Set factors `s.scale[name]`, of a reward term's weight or the task's own, by means over ended episodes."""


def near(value: Tensor, scale: float) -> Tensor:
    """A reward term that is 1 where the value is 0, and falls as a Gaussian: 0.37 where it is one `scale` away."""
    return (-(value / scale).square()).exp()


T = TypeVar("T", bound=type[Task])


def task(name: str) -> Callable[[T], T]:
    """Give a `Task` class the name by which the command line knows it."""

    def mark(cls: T) -> T:
        cls.name = name
        return cls

    return mark


_TURN = "Turn a cube of 67 to 83 mm that lies in the upward palm about the palm's normal, without a look at it."
SHIPPED = {
    "dexhand-base": (
        "deftly.tasks.dexhand_base",
        "Move a DexHand 021 about above the ground: a task to try things on.",
    ),
    "dexhand-blind": (
        "deftly.tasks.dexhand_box",
        "Grasp a box with a DexHand 021 that does not see it in three timed stages, and lift it as in dexhand-box.",
    ),
    "dexhand-box": (
        "deftly.tasks.dexhand_box",
        "Grasp a box of 5 cm with a DexHand 021 that does not see it, and hold it 20 cm above the ground for 2 s.",
    ),
    "jaka-pick-cube": (
        "deftly.tasks.jaka_pick_cube",
        "Pick the red cube up with a JAKA Zu5 and hold it with its centre 10 cm above the table.",
    ),
    "leap-left-cube-rotate": ("deftly.tasks.leap_cube_rotate", _TURN),
    "leap-left-custom-cube-rotate": ("deftly.tasks.leap_cube_rotate", _TURN),
    "leap-right-cube-rotate": ("deftly.tasks.leap_cube_rotate", _TURN),
    "panda-pick-place": (
        "deftly.tasks.panda_pick_place",
        "Pick an object up with a Franka Panda and hold it still at a goal, on the table or in the air.",
    ),
    "panda-pick-place-rgb": (
        "deftly.tasks.panda_pick_place",
        "Pick an object up with a Franka Panda and hold it still at a goal, seen by two cameras and not measured.",
    ),
    "wildrobot-stand": (
        "deftly.tasks.wildrobot_stand",
        "Stand a WildRobot on its feet while it is pushed.",
    ),
    "wildrobot-walk": (
        "deftly.tasks.wildrobot_walk",
        "Walk with a WildRobot at a commanded speed and yaw rate.",
    ),
}
"""Shipped tasks: module and description. Written down, since importing is slow and needs torch; a test compares."""
OLDER_NAMES = {
    "BaseTask": "dexhand-base",
    "BlindGrasping": "dexhand-blind",
    "BoxGrasping": "dexhand-box",
}
"""What the tasks are called in seed 001."""


def shipped() -> dict[str, str]:
    """Shipped tasks: name -> module."""
    return {name: module for name, (module, _) in SHIPPED.items()}


def description(cls: type[Task]) -> str:
    """What a task is, in one line: the first of its class's docstring."""
    lines = (inspect.getdoc(cls) or "").strip().splitlines()
    return lines[0] if lines else ""


def load(name: str) -> type[Task]:
    """The class of a shipped task's name, of `file.py` or of `file.py:name`; raises DeftlyError if there is none."""
    name = OLDER_NAMES.get(name, name)
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
        raise DeftlyError(
            f"no task file {path}: give the path of a Python file with a class under @task(...)"
        )
    name = f"deftly_task_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    if name not in sys.modules:
        spec: Any = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException as error:
            del sys.modules[name]
            if not isinstance(error, (Exception, SystemExit)):
                raise
            reason = " ".join(str(error).split())
            raise DeftlyError(
                f"{path} does not import: {type(error).__name__}: {reason}"
            ) from error
    return sys.modules[name]


def _pick(module: ModuleType, wanted: str | None, given: str) -> type[Task]:
    found = {
        cls.name: cls
        for cls in vars(module).values()
        if isinstance(cls, type)
        and issubclass(cls, Task)
        and "name" in vars(cls)
        and cls.__module__ == module.__name__
    }
    names = [wanted] if wanted else list(found)
    if len(names) == 1 and names[0] in found:
        return found[names[0]]
    if not found:
        raise DeftlyError(f'{given} defines no task: decorate a class with @task("name")')
    raise DeftlyError(f"{given} defines {sorted(found)}: name one as file.py:{min(found)}")


_FROM_BELOW = {
    "Noise": "deftly.sim.sensors",
    "Push": "deftly.sim.pushes",
    "Randomize": "deftly.sim.randomize",
    "State": "deftly.sim.state",
}


def __getattr__(name: str) -> Any:
    """What a task's file needs besides: imported when asked for, since it needs torch and MuJoCo."""
    if name in _FROM_BELOW:
        return getattr(importlib.import_module(_FROM_BELOW[name]), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
