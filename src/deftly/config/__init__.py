"""What can be configured, and how it is written: flags, `key=value`, YAML and the older names.

The dataclasses here and in the stages are the only source. Every other way of writing a setting is rewritten into flags
(`--env.num-envs 4096`), and tyro alone parses those. The text beside or below a field is what `--help` shows;
of a field whose default a subclass changes, only the text below.
"""

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

RANGES: tuple[tuple[str, str, Callable[[Any], object]], ...] = (
    ("0 (all cores) or more", "sim.threads", lambda x: x >= 0),
    (
        "1 or more",
        "sim.contacts env.num-envs task.episode-steps runs.max-train-runs runs.max-test-runs",
        lambda x: x >= 1,
    ),
    ("1 or more", "train.max-iterations train.steps train.epochs train.minibatches", lambda x: x >= 1),
    ("1 or more", ".eval-episodes .save-every .keep-checkpoints", lambda x: x >= 1),
    ("0 (the task's) or more", "env.episode-steps", lambda x: x >= 0),
    ("'LOW HIGH', 0 <= LOW <= HIGH", "env.latency-ms task.ready-s", lambda x: 0 <= x[0] <= x[1] < inf),
    ("cpu, cuda or cuda:N", "env.device", re.compile(r"cpu|cuda(:\d+)?").fullmatch),
    ("above 0 Hz", "task.rate", lambda x: 0 < x < inf),
    ("0 or more, or -1 for a random one", "train.seed", lambda x: x >= -1),
    ("widths of 1 or more", "train.hidden", lambda widths: all(x >= 1 for x in widths)),
    ("above 0", "train.learning-rate train.desired-kl train.clip", lambda x: 0 < x < inf),
    ("above 0", "train.init-std train.max-grad-norm", lambda x: 0 < x < inf),
    ("0 or more", "train.entropy train.value-coef train.critic-warmup .eval-every", lambda x: 0 <= x < inf),
    ("above 0 and at most 1", "train.gamma .until-success", lambda x: x is None or 0 < x <= 1),
    ("between 0 and 1", "train.lam", lambda x: 0 <= x <= 1),
)
"""What a value must be, the flags of which that is asked, and its test."""


class Ranged:
    """Refuses values out of `RANGES`, however the class is built; without a `section`, its flags start with a dot."""

    _section = ""

    def __init_subclass__(cls, section: str = "") -> None:
        cls._section = section or cls._section

    def __post_init__(self) -> None:
        for want, flags, ok in RANGES:
            for section, name in re.findall(r"(\S*)\.(\S+)", flags):
                if section == self._section and not ok(value := getattr(self, name.replace("-", "_"))):
                    raise DeftlyError(f"{section}.{name} is {value}, but it must be {want}".lstrip("."))


@dataclass(frozen=True)
class SimConfig(Ranged, section="sim"):
    """The physics engine."""

    preset: Literal["coarse", "fast", "default", "accurate"] = "default"  # How finely it steps, and how hard it solves.
    threads: int = 0  # CPU threads that step the environments; 0 uses all cores. The results do not depend on it.
    engine: Literal["cpu", "warp"] = "cpu"  # cpu: MuJoCo on the cores, float64; warp: MuJoCo Warp, float32, for a GPU.
    contacts: int = 64  # Of the engine warp: room for contacts of an environment; one with more breaks, and is counted.


@dataclass(frozen=True)
class EnvConfig(Ranged, section="env"):
    """The batch of environments and what disturbs it."""

    num_envs: int = 1024  # Environments stepped side by side.
    episode_steps: int = 0  # Control steps after which an episode is cut off; 0 takes the task's own length.
    randomize: bool = True  # Draw the task's randomization (masses, friction, gains, ...) anew for each episode.
    noise: bool = True  # Apply the task's signal noise, delay and dropout.
    latency_ms: tuple[float, float] = (0.0, 0.0)  # Shortest and longest action latency in ms, drawn once per episode.
    pushes: bool = True  # Apply the task's random pushes.
    device: str = "cpu"  # Where the environments and the policy run: cpu, cuda or cuda:N.


@dataclass(frozen=True)
class TaskConfig(Ranged, section="task"):
    """What every task can be asked to change; tasks subclass it and set their own values."""

    rate: float = 20.0
    """Control frequency, Hz."""
    episode_steps: int = 200
    """Control steps in a full episode."""
    stop_on_success: bool = True
    """A success ends the episode."""
    ready_s: tuple[float, float] = (0.0, 0.0)
    """Shortest and longest time for which servos hold the robot where it starts, before the policy drives, s."""


@dataclass(frozen=True)
class PPOConfig(Ranged, section="train"):
    """Proximal policy optimization."""

    seed: int = 1  # Seed of every random draw; -1 picks a random one, which is saved with the run.
    max_iterations: int = 1000  # Iterations (rollout and update) to train.
    steps: int = 16  # Control steps per environment in one rollout.
    epochs: int = 5  # Passes over each rollout.
    minibatches: int = 4  # Parts a rollout is split into for one gradient step each.
    hidden: tuple[int, ...] = (128, 128)  # Widths of the hidden layers of actor and critic.
    activation: str = "elu"  # Activation between the layers.
    learning_rate: float = 1e-3  # Initial step size; it adapts towards desired_kl.
    desired_kl: float = 0.01  # KL divergence per update that the step size aims for.
    gamma: float = 0.98  # Discount per control step.
    lam: float = 0.95  # Lambda of the generalized advantage estimate.
    clip: float = 0.2  # Clip range of the policy ratio and of the value update.
    entropy: float = 0.005  # Weight of the entropy bonus.
    value_coef: float = 1.0  # Weight of the value loss.
    keep_normalizer: bool = False  # Do not adapt the actor's normalizer; so with --init: it would shift the policy.
    critic_warmup: int = 0  # First iterations in which the critic alone learns: what --init brings is not spoilt by it.
    init_std: float = 1.0  # Initial standard deviation of the action noise.
    max_grad_norm: float = 1.0  # Largest gradient norm; longer gradients are scaled down.


@dataclass(frozen=True)
class RunsConfig(Ranged, section="runs"):
    """Where runs are kept, and how many of them stay in view."""

    root: Path = Path(".")  # Folder that holds `runs/` and `runs_all/`.
    max_train_runs: int = 10  # Training runs linked in `runs/`; older ones stay in `runs_all/`.
    max_test_runs: int = 10  # Test runs linked in `runs/`; older ones stay in `runs_all/`.
    workspace: bool = True  # Keep runs in `runs_all/` and link the newest; False writes plain folders into `runs/`.


@dataclass(frozen=True)
class TrainArgs(Ranged):
    """Train a policy. Sections: sim, env, task, train, runs."""

    sim: SimConfig = field(default_factory=SimConfig)  # The physics engine.
    env: EnvConfig = field(default_factory=lambda: EnvConfig(num_envs=512))  # The batch of environments.
    task: TaskConfig = field(default_factory=TaskConfig)  # The task's own figures.
    train: PPOConfig = field(default_factory=PPOConfig)  # The learner.
    runs: RunsConfig = field(default_factory=RunsConfig)  # Where runs are kept.
    name: str | None = None  # A word for the name of the run's folder.
    resume: str | None = None  # Continue exactly where a run stopped: latest, a run, or a checkpoint folder.
    init: str | None = None  # Start from the weights of this checkpoint, also of another hand's; all else starts anew.
    until_success: float | None = None
    """Stop once evaluation says with 95 % confidence that this share of episodes succeeds (or all of them did)."""
    eval_every: int = 25  # Iterations between evaluations; 0 never evaluates.
    eval_episodes: int = 200  # Episodes of an evaluation, deterministic, on seeds that training never sees.
    save_every: int = 50  # Iterations between checkpoints.
    keep_checkpoints: int = 3  # Periodic checkpoints kept, besides the best.
    tensorboard: bool = True  # Write TensorBoard files into the run's folder.
    wandb: bool = False  # Log to Weights & Biases, if it is installed.
    log_level: Literal["debug", "info", "warning"] = "info"
    """What to print: every iteration, a live table (each tenth iteration without a terminal), or only problems."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resume and self.init:
            raise DeftlyError("--resume continues a run and --init starts a new one: give one of them")
        if self.env.device != "cpu":
            raise DeftlyError(f"env.device is {self.env.device}, but training runs on the CPU so far: use cpu")


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


def parse(cls: type[T], argv: Sequence[str], *, prog: str, filed: Mapping[str, Any] = {}) -> T:
    """Build a `cls` from the command line; raises `DeftlyError` for a bad file or a value out of range.

    `argv` overrides `filed`, a mapping as YAML gives it. For an unknown key or a wrong type, tyro exits with status 2.
    """
    import tyro

    kinds = flag_kinds(cls)
    aliases = {_kebab(old): flag for old, flag in ALIASES.items() if _kebab(old) not in kinds}
    flags = _spell(_flag_words(filed, aliases) + rewrite(argv, aliases), kinds)
    return tyro.cli(cls, args=flags, prog=prog, config=(tyro.conf.FlagConversionOff,))


def gather(argv: Sequence[str], flag: str = "gate", instead: str | None = None) -> list[str]:
    """Put the values of every --gate, or what stands `instead` of another flag's, behind one; the parser keeps one."""
    words, values, inside = [], [], False
    for word in argv:
        name, equals, value = word.partition("=")
        is_flag = name.startswith("--") or (equals and re.fullmatch(r"[A-Za-z_][\w.-]*", name))
        inside = name in (flag, f"--{flag}", *OLDER_NAMES.get(flag, "").split()) if is_flag else inside
        if not inside:
            words.append(word)
        elif equals or not is_flag:
            values.append(value if is_flag else word)
    values = [instead] if instead else values
    return [*words, *([f"--{flag}", *values] if values else [])]


def flag_kinds(cls: type, prefix: str = "") -> dict[str, Any]:
    """Every flag of a configuration class (`env.num-envs`) and its type, nested sections included."""
    kinds: dict[str, Any] = {}
    for name, kind in get_type_hints(cls).items():
        flag = prefix + _kebab(name)
        kinds |= flag_kinds(kind, f"{flag}.") if hasattr(kind, "__dataclass_fields__") else {flag: kind}
    return kinds


def rewrite(argv: Sequence[str], aliases: Mapping[str, str]) -> list[str]:
    """Turn `key=value` words and `--config FILE` into flags, of files first: what is typed wins, then what is later."""
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
    if not isinstance(tree, dict):
        raise DeftlyError(f"--config is '{name}', but it must be a YAML mapping such as 'env: {{num_envs: 64}}'")
    return _flag_words(tree, aliases)


def _flag_words(value: object, aliases: Mapping[str, str], key: str = "") -> list[str]:
    """The flags that say what a value read from YAML says; a mapping is several, each with its dotted key."""
    if isinstance(value, dict):
        return [word for name, inner in value.items() for word in _flag_words(inner, aliases, f"{key}.{name}")]
    return _flag(key[1:], _words(value), aliases)


def _flag(key: str, values: list[str], aliases: Mapping[str, str]) -> list[str]:
    name = aliases.get(_kebab(key), _kebab(key))
    flag = f"--{aliases.get(name, name)}"  # an older name of an older name
    dashed = len(values) == 1 and values[0].startswith("-")  # as a word of its own it would be taken for a flag
    return [f"{flag}={values[0]}"] if dashed else [flag, *values]


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
        flag, equals, value = word.partition("=")
        if not word.startswith("--"):
            out.append(_literal(word, kind))
            continue
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

    docs, text = field_docs(type(config)), ""
    for item in fields(config):
        value = getattr(config, item.name)
        text += "".join(f"# {line}\n" for line in textwrap.wrap(docs.get(item.name, ""), 100))
        if is_dataclass(value):
            body = to_yaml(value)
            text += f"{item.name}:\n{textwrap.indent(body, '  ')}" if body else f"{item.name}: {{}}\n"
        else:
            plain = json.loads(json.dumps([value], default=str))  # tuples become lists, paths text
            flow = yaml.safe_dump(plain, default_flow_style=True, sort_keys=False, width=10**6)
            text += f"{item.name}: {flow.strip()[1:-1]}\n"
    return text


def field_docs(cls: type) -> dict[str, str]:
    """The text beside or under each field of a dataclass, inherited ones included, on one line each."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        try:
            source = textwrap.dedent(inspect.getsource(base)).encode()
        except OSError:
            continue  # made at run time: the text is in its bases
        body, lines = getattr(ast.parse(source).body[0], "body", []), source.splitlines()
        for statement, after in pairwise([*body, None]):
            if isinstance(statement, ast.AnnAssign):
                name = ast.unparse(statement.target)
                beside = lines[(statement.end_lineno or 0) - 1][statement.end_col_offset :].decode().strip("# ")
                below = str(ast.literal_eval(after.value)) if isinstance(after, ast.Expr) else ""
                docs[name] = " ".join(below.split()) or docs.get(name, beside)
    return {name: text for name, text in docs.items() if text}
