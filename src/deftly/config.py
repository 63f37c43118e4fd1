"""What can be configured, and how it is written: flags, `key=value`, YAML and the older names.

The dataclasses here and in the stages are the only source. Every other way of writing a setting is rewritten into flags
(`--env.num-envs 4096`), and tyro alone parses those. The text below each field is what `--help` shows.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import json
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, make_dataclass
from itertools import pairwise
from math import inf
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_type_hints

from deftly.errors import DeftlyError

T = TypeVar("T")
OLDER_NAMES = {
    "env.num-envs": "numEnvs",
    "env.device": "device",
    "env.episode-steps": "task.episodeLength",
    "train.seed": "seed training.seed",
    "train.max-iterations": "maxIter maxIterations training.maxIterations",
    "checkpoint": "training.checkpoint",
    "resume": "checkpoint",
    "test": "training.test",
    "render": "env.render",
    "video": "env.recordVideo",
    "reload": "testing.reloadInterval",
    "name": "logging.experiment_name",
    "log-level": "logLevel logging.logLevel",
    "runs.max-train-runs": "experiment.maxRecentRuns experiment.maxTrainRuns",
    "runs.max-test-runs": "experiment.maxTestRuns",
    "runs.workspace": "experiment.useCleanWorkspace",
}
ALIASES = {old: flag for flag, names in OLDER_NAMES.items() for old in names.split()}
"""What users of the older systems type, unless it is the flag's own name (`test`, `env.numEnvs`)."""


def _require(ok: object, name: str, value: object, want: str) -> None:
    if not ok:
        raise DeftlyError(f"{name} is {value}, but it must be {want}")


def _check(config: object, section: str, names: str, ok: Callable[[Any], object], want: str) -> None:
    for name in names.split():
        value = getattr(config, name)
        _require(ok(value), f"{section}.{_kebab(name)}", value, want)


@dataclass(frozen=True)
class SimConfig:
    """The physics engine."""

    preset: Literal["fast", "default", "accurate"] = "default"
    """Solver effort: how many steps and iterations the physics spends on one control step."""
    threads: int = 0
    """CPU threads that step the environments; 0 uses all cores. The results do not depend on it."""

    def __post_init__(self) -> None:
        _check(self, "sim", "threads", lambda x: x >= 0, "0 (all cores) or more")


@dataclass(frozen=True)
class EnvConfig:
    """The batch of environments and what disturbs it."""

    num_envs: int = 1024
    """Environments stepped side by side."""
    episode_steps: int = 0
    """Control steps after which an episode is cut off; 0 takes the task's own length."""
    randomize: bool = True
    """Draw the task's randomization (masses, friction, gains, ...) anew for each episode."""
    noise: bool = True
    """Apply the task's signal noise, delay and dropout."""
    latency_ms: tuple[float, float] = (0.0, 0.0)
    """Shortest and longest action latency in milliseconds, drawn once per episode."""
    pushes: bool = True
    """Apply the task's random pushes."""
    device: str = "cpu"
    """Where the environments and the policy run: cpu, cuda or cuda:N."""

    def __post_init__(self) -> None:
        _check(self, "env", "num_envs", lambda x: x >= 1, "1 or more")
        _check(self, "env", "episode_steps", lambda x: x >= 0, "0 (the task's) or more")
        _check(self, "env", "latency_ms", lambda x: 0 <= x[0] <= x[1] < inf, "'LOW HIGH', 0 <= LOW <= HIGH")
        _check(self, "env", "device", re.compile(r"cpu|cuda(:\d+)?").fullmatch, "cpu, cuda or cuda:N")


@dataclass(frozen=True)
class TaskConfig:
    """What every task can be asked to change; tasks subclass it and set their own values."""

    rate: float = 20.0
    """Control frequency, Hz."""
    episode_steps: int = 200
    """Control steps in a full episode."""
    stop_on_success: bool = True
    """A success ends the episode."""

    def __post_init__(self) -> None:
        _check(self, "task", "rate", lambda x: 0 < x < inf, "above 0 Hz")
        _check(self, "task", "episode_steps", lambda x: x >= 1, "1 or more")


@dataclass(frozen=True)
class PPOConfig:
    """Proximal policy optimization."""

    seed: int = 1
    """Seed of every random draw; -1 picks a random one, which is saved with the run."""
    max_iterations: int = 1000
    """Iterations (rollout and update) to train."""
    steps: int = 16
    """Control steps per environment in one rollout."""
    epochs: int = 5
    """Passes over each rollout."""
    minibatches: int = 4
    """Parts a rollout is split into for one gradient step each."""
    hidden: tuple[int, ...] = (128, 128)
    """Widths of the hidden layers of actor and critic."""
    activation: str = "elu"
    """Activation between the layers."""
    learning_rate: float = 1e-3
    """Initial step size; it adapts towards desired_kl."""
    desired_kl: float = 0.01
    """KL divergence per update that the step size aims for."""
    gamma: float = 0.98
    """Discount per control step."""
    lam: float = 0.95
    """Lambda of the generalized advantage estimate."""
    clip: float = 0.2
    """Clip range of the policy ratio and of the value update."""
    entropy: float = 0.005
    """Weight of the entropy bonus."""
    value_coef: float = 1.0
    """Weight of the value loss."""
    init_std: float = 1.0
    """Initial standard deviation of the action noise."""
    max_grad_norm: float = 1.0
    """Largest gradient norm; longer gradients are scaled down."""

    def __post_init__(self) -> None:
        _check(self, "train", "seed", lambda x: x >= -1, "0 or more, or -1 for a random one")
        _check(self, "train", "hidden", lambda widths: all(x >= 1 for x in widths), "widths of 1 or more")
        _check(self, "train", "max_iterations steps epochs minibatches", lambda x: x >= 1, "1 or more")
        positive = "learning_rate desired_kl clip init_std max_grad_norm"
        _check(self, "train", positive, lambda x: 0 < x < inf, "above 0")
        _check(self, "train", "entropy value_coef", lambda x: 0 <= x < inf, "0 or more")
        _check(self, "train", "gamma", lambda x: 0 < x <= 1, "above 0 and at most 1")
        _check(self, "train", "lam", lambda x: 0 <= x <= 1, "between 0 and 1")


@dataclass(frozen=True)
class RunsConfig:
    """Where runs are kept, and how many of them stay in view."""

    root: Path = Path(".")
    """Folder that holds `runs/` and `runs_all/`."""
    max_train_runs: int = 10
    """Training runs linked in `runs/`; older ones stay in `runs_all/`."""
    max_test_runs: int = 10
    """Test runs linked in `runs/`; older ones stay in `runs_all/`."""
    workspace: bool = True
    """Keep runs in `runs_all/` and link the newest; False writes plain folders into `runs/`."""

    def __post_init__(self) -> None:
        _check(self, "runs", "max_train_runs max_test_runs", lambda x: x >= 1, "1 or more")


def suggest(name: str, known: Iterable[str]) -> str:
    """`, did you mean 'x'?` for the nearest known name, or an empty string; goes at the end of an error."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f", did you mean '{near[0]}'?" if near else ""


def split_task(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """Take the task's name (first word, or `task=NAME` anywhere) off a command's arguments."""
    for position, word in enumerate(argv):
        if word.startswith("task=") or (position == 0 and re.fullmatch(r"[^-=][^=]*", word)):
            return word.removeprefix("task="), [*argv[:position], *argv[position + 1 :]]
    return None, list(argv)


def with_task(stage: type[T], task_config: type[TaskConfig]) -> type[T]:
    """`stage` with the chosen task's own settings in its `task` section, which is known only at run time."""
    section = ("task", task_config, field(default_factory=task_config))
    names = {"__doc__": stage.__doc__, "__module__": stage.__module__}
    return make_dataclass(stage.__name__, [section], bases=(stage,), namespace=names, frozen=True)


def parse(cls: type[T], argv: Sequence[str], *, prog: str) -> T:
    """Build a `cls` from the command line; raises `DeftlyError` for a bad file or a value out of range.

    An unknown key or a wrong type exits with status 2: tyro says so, with the nearest right name.
    """
    import tyro

    kinds = flag_kinds(cls)
    aliases = {old: new for old, new in ALIASES.items() if _kebab(old) not in kinds}
    flags = _spell(rewrite(argv, aliases), kinds)
    return tyro.cli(cls, args=flags, prog=prog, config=(tyro.conf.FlagConversionOff,))


def flag_kinds(cls: type, prefix: str = "") -> dict[str, Any]:
    """Every flag of a configuration class (`env.num-envs`) and its type, nested sections included."""
    kinds: dict[str, Any] = {}
    for name, kind in get_type_hints(cls).items():
        flag = prefix + _kebab(name)
        kinds |= flag_kinds(kind, f"{flag}.") if hasattr(kind, "__dataclass_fields__") else {flag: kind}
    return kinds


def rewrite(argv: Sequence[str], aliases: Mapping[str, str] = ALIASES) -> list[str]:
    """Turn `key=value` words and `--config FILE` into flags; real flags pass through.

    Files come first wherever they stand, so what is typed wins over what is filed, and later over earlier.
    """
    files, flags, words = [], [], iter(argv)
    for word in words:
        key, equals, value = word.partition("=")
        if key == "--config" or (key == "config" and equals):
            files += _read(value if equals else next(words, ""), aliases)
        elif equals and re.fullmatch(r"[A-Za-z_][\w.-]*", key):
            flags += _flag(key, _typed(value), aliases)
        else:
            flags.append(word)
    return files + flags


def _read(name: str, aliases: Mapping[str, str]) -> list[str]:
    import yaml

    try:
        tree = yaml.safe_load(Path(name).read_bytes()) or {}
    except OSError as error:
        raise DeftlyError(f"--config needs a YAML file, cannot read '{name}': {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DeftlyError(f"--config '{name}' is not valid YAML: {' '.join(str(error).split())}") from error
    _require(isinstance(tree, dict), "--config", f"'{name}'", "a YAML mapping such as 'env: {num_envs: 64}'")
    return flag_words(tree, aliases)


def flag_words(tree: Mapping[str, Any], aliases: Mapping[str, str] = {}, prefix: str = "") -> list[str]:
    """The flags that say what a nested mapping, as YAML gives it, says."""
    words: list[str] = []
    for key, value in tree.items():
        if isinstance(value, dict):
            words += flag_words(value, aliases, f"{prefix}{key}.")
        else:
            words += _flag(f"{prefix}{key}", _words(value), aliases)
    return words


def _flag(key: str, values: list[str], aliases: Mapping[str, str]) -> list[str]:
    known, key = {_kebab(old): new for old, new in aliases.items()}, _kebab(key)
    name = known.get(key, key)
    flag = f"--{known.get(name, name)}"  # an older name of an older name
    if len(values) == 1 and values[0].startswith("-"):
        return [f"{flag}={values[0]}"]  # a separate word that starts with a dash would be taken for a flag
    return [flag, *values]


def _kebab(key: str) -> str:
    return re.sub(r"(?<=[a-z0-9])[A-Z]", lambda upper: "-" + upper[0].lower(), key).replace("_", "-")


def _typed(value: str) -> list[str]:
    """The words of a value typed after `key=`: `[a, b]` and `1,2` are several, anything else is one."""
    if value[:1] + value[-1:] in ("[]", "()"):
        return [part.strip(" '\"") for part in value[1:-1].split(",") if part.strip()]
    return value.split(",") if re.fullmatch(r"[-+.\deE]+(,[-+.\deE]+)+", value) else [value]


def _words(value: object) -> list[str]:
    """The words of a value read from YAML."""
    if isinstance(value, dict):
        raise DeftlyError(f"--config holds a mapping in a list, {value}: give plain values or lists of them")
    return [word for item in value for word in _words(item)] if isinstance(value, list) else [str(value)]


def _spell(words: Sequence[str], kinds: Mapping[str, Any]) -> list[str]:
    """Write booleans and nulls as tyro reads them: `--x`, `--no-x`, `--x true`, `--x null`."""
    out: list[str] = []
    kind: Any = None
    for word, after in pairwise([*words, "--"]):
        if not word.startswith("--"):
            out.append(_literal(word, kind))
            continue
        flag, equals, value = word.partition("=")
        positive = re.sub(r"(^--|\.)no[-_](?=[^.]*$)", r"\1", flag)
        kind = kinds.get(_kebab(flag[2:]))
        if kind is None and kinds.get(_kebab(positive[2:])) in (bool, bool | None):
            out += [positive, "False"]
        elif equals:
            out.append(f"{flag}={_literal(value, kind)}")
        else:
            out += [flag, "True"] if kind in (bool, bool | None) and after.startswith("-") else [flag]
    return out


def _literal(word: str, kind: object) -> str:
    kinds = {kind, *get_args(kind)}
    spellings = {"true": "True", "false": "False"} if bool in kinds else {}
    spellings |= {"null": "None", "none": "None"} if type(None) in kinds else {}
    return spellings.get(word.lower(), word)


def to_yaml(config: Any) -> str:
    """A configuration as documented YAML that `--config` reads back into an equal one."""
    import yaml

    docs = field_docs(type(config))
    parts: list[str] = []
    for item in fields(config):
        value = getattr(config, item.name)
        parts += [f"# {line}\n" for line in textwrap.wrap(docs.get(item.name, ""), 100)]
        if is_dataclass(value):
            body = to_yaml(value)
            parts.append(f"{item.name}:\n{textwrap.indent(body, '  ')}" if body else f"{item.name}: {{}}\n")
        else:
            plain = json.loads(json.dumps([value], default=str))  # tuples become lists, paths text
            flow = yaml.safe_dump(plain, default_flow_style=True, sort_keys=False, width=10**6)
            parts.append(f"{item.name}: {flow.strip()[1:-1]}\n")
    return "".join(parts)


def field_docs(cls: type) -> dict[str, str]:
    """The text under each field of a dataclass, inherited ones included, on one line each."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        try:
            body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        except OSError:
            continue  # made at run time: the text is in its bases
        for statement, after in pairwise(getattr(body, "body", [])):
            if isinstance(statement, ast.AnnAssign) and isinstance(after, ast.Expr):
                docs[ast.unparse(statement.target)] = " ".join(str(ast.literal_eval(after.value)).split())
    return docs
