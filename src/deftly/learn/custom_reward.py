"""A reward of the user's own, `--reward my_reward.py:function`: one more term of a task's reward.

The function takes the state of all environments, `deftly.sim.state.State`, and returns one number for each,
`(num_envs,)`. A run keeps a copy of the file, and a training that is resumed goes on with that copy.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import re
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib.abc import SourceLoader
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from deftly.console import printable
from deftly.env.metrics import check_vector
from deftly.errors import DeftlyError
from deftly.files import MB, read_bytes, read_json, write_bytes, write_json

if TYPE_CHECKING:
    from torch import Tensor

    from deftly.env import Env
    from deftly.sim.state import State
    from deftly.tasks import Task

FOLDER, RECORD = "reward", "reward.json"
"""What a run has of it: a folder with a copy of the file, and a record of its name and hash."""
WHAT = "a reward function"
SPEC = re.compile(r"(.+\.py):([A-Za-z_]\w*)")


@dataclass(frozen=True)
class CustomReward:
    """A reward function that was read from a file."""

    spec: str
    """As it was given: `my_reward.py:function`."""
    file: str
    """Name of the file."""
    name: str
    """Of the function, and of the term in logs and metrics."""
    source: bytes
    function: Callable[[State], Any]

    @property
    def sha256(self) -> str:
        """Of the source, hexadecimal."""
        return hashlib.sha256(self.source).hexdigest()

    def __call__(self, s: State) -> Tensor:
        """The reward of each environment, `(num_envs,)`. Raises DeftlyError, one line, if it gives something else."""
        try:
            value = torch.as_tensor(self.function(s), device=s.device)
        except (Exception, SystemExit) as error:
            line = traceback.extract_tb(error.__traceback__)[-1]
            said = printable(f"{type(error).__name__}: {error}", 200)
            raise DeftlyError(
                f"--reward {self.spec} failed at {Path(line.filename).name}:{line.lineno}: {said}"
            ) from error
        check_vector(f"--reward {self.spec}", value, s.num_envs)
        return value.to(s.dtype)


def read(spec: str) -> CustomReward:
    """The function that `FILE.py:FUNCTION` names. Raises DeftlyError, one line, if there is none."""
    found = SPEC.fullmatch(spec)
    if not found:
        raise DeftlyError(
            f"--reward is '{printable(spec, 200)}', but it must be FILE.py:FUNCTION, such as my_reward.py:smooth"
        )
    path = Path(found[1]).expanduser()
    source = read_bytes(path, WHAT, MB, advice="give --reward FILE.py:FUNCTION")
    return _run(spec, path, found[2], source)


class _Source(SourceLoader):
    """Imports the source that was read, which is what is kept with the run; no bytecode is written beside the file."""

    def __init__(self, path: str, source: bytes):
        self._path = path
        self._source = source

    def get_filename(self, fullname: str) -> str:
        """The path that tracebacks name."""
        return self._path

    def get_data(self, path: str) -> bytes:
        """The source."""
        return self._source


def _run(spec: str, path: Path, name: str, source: bytes) -> CustomReward:
    """The function of this name that a file's source defines."""
    loader = _Source(str(path), source)
    made = importlib.util.spec_from_loader(f"deftly_reward_{path.stem}", loader)
    assert made is not None
    module = importlib.util.module_from_spec(made)
    try:
        loader.exec_module(module)
    except (Exception, SystemExit) as error:
        reason = printable(f"{type(error).__name__}: {error}", 200)
        raise DeftlyError(f"{printable(path)} does not import: {reason}") from error
    function = getattr(module, name, None)
    if not callable(function):
        known = [one for one, value in vars(module).items() if _is_own_function(value, module)]
        raise DeftlyError(
            f"{printable(path)} has no function '{name}': it has {', '.join(known) or 'none'}"
        )
    return CustomReward(spec, path.name, name, source, function)


def _is_own_function(value: Any, module: ModuleType) -> bool:
    return callable(value) and getattr(value, "__module__", "") == module.__name__


def added(task: Task, custom: CustomReward, alone: bool = False) -> Task:
    """The task with one more reward term, of weight 1; `alone`: the weights of its own terms are 0.

    Raises DeftlyError if the task has a term of this name.
    """
    own = {name: 0.0 if alone else weight for name, weight in vars(task.cfg.weights).items()}
    if custom.name in own:
        raise DeftlyError(
            f"{task.name} has a reward term '{custom.name}' of its own: give the function another name"
        )
    changed = copy.copy(task)
    changed.cfg = copy.copy(task.cfg)
    # Past the checks of the settings: these weights are not of the class that the task's settings have.
    object.__setattr__(changed.cfg, "weights", SimpleNamespace(**own, **{custom.name: 1.0}))
    terms = type(task).rewards
    changed.rewards = lambda s: {**terms(changed, s), custom.name: custom(s)}
    return changed


def require(custom: CustomReward, env: Env) -> None:
    """Raise DeftlyError unless it gives a finite number for each environment that stands where episodes start."""
    bad = int((~custom(env.state).isfinite()).sum())
    if bad:
        raise DeftlyError(
            f"--reward {custom.spec} is not finite in {bad} of {env.num_envs} environments that start an episode"
        )


# ------------------------------------------------------------------ what a run keeps of it


def save(run: Path, custom: CustomReward) -> None:
    """Keep the file, its hash, and how it was named, with a run."""
    record = {"spec": custom.spec, "file": custom.file, "function": custom.name}
    write_bytes(run / FOLDER / custom.file, custom.source)
    write_json(run / FOLDER / RECORD, {**record, "sha256": custom.sha256})


def of_run(run: Path, spec: str | None) -> CustomReward | None:
    """The copy that a run has of its reward function, or None.

    Raises DeftlyError if `spec`, what is wanted now, is another one, or the copy is not what the run began with.
    """
    record = _record(run)
    began = record.get("spec")
    if began != spec:
        raise DeftlyError(
            f"{run} began with --reward {printable(began or 'none', 200)}, and goes on with that: "
            "a new run may start from its weights, with --init"
        )
    if began is None:
        return None
    file = run / FOLDER / Path(str(record.get("file"))).name
    source = read_bytes(file, WHAT, MB)
    if hashlib.sha256(source).hexdigest() != record.get("sha256"):
        raise DeftlyError(f"{file} is not what the run began with: put it back, or start a new run")
    return _run(began, file, str(record.get("function")), source)


def _record(run: Path) -> dict[str, Any]:
    """What a run says of its reward function; nothing if it has none."""
    path = run / FOLDER / RECORD
    if not path.parent.is_dir():
        return {}
    record = read_json(path, "a run's record of its reward")
    if not isinstance(record, dict) or not isinstance(record.get("spec"), str):
        raise DeftlyError(f"{path} is corrupt: start a new run from the weights, with --init")
    return record
