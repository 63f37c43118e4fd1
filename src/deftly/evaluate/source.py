"""Which policy is meant: the same words, and the same default, mean the same policy in every command.

    latest, latest_train    the task's newest run that has a checkpoint
    latest_test             what the task's newest test run measured
    shipped                 the policy that Deftly ships for the task
    a run, part of its name, a path, each with `:last` or `:iter_000100`     a checkpoint of that run
    a folder                a checkpoint (of `deftly finetune` too), or a bundle of `deftly export`
    tcp://HOST:PORT         the policy of a server, `deftly serve`
    ws://HOST:PORT          action chunks of a server that speaks openpi's protocol, `deftly serve` or openpi's own

Without a word it is the task's newest run with a checkpoint, else the shipped policy. A bundle or an endpoint is
resolved and opened without torch and MuJoCo.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Le
from typing_extensions import Doc

from deftly import workspace
from deftly.config import (
    KEYS,
    RunsConfig,
    Settings,
    SimConfig,
    parse,
    split_task,
    suggest,
    with_task,
)
from deftly.config.mapping import changed
from deftly.console import debug, printable, say
from deftly.contract import PolicyContract
from deftly.errors import DeftlyError
from deftly.files import sha256
from deftly.policy import bundle
from deftly.policy.bundle import Bundle
from deftly.policy.chunks import ChunkConfig, ChunkPolicy
from deftly.policy.layouts import OpenpiConfig
from deftly.policy.protocol import Policy
from deftly.serving.endpoint import is_websocket, read_websocket
from deftly.tasks import OLDER_NAMES
from deftly.tasks import load as find_task
from deftly.tasks import shipped as shipped_tasks
from deftly.vla import checkpoint as vla

if TYPE_CHECKING:
    from deftly.learn.checkpoint import Checkpoint
    from deftly.tasks import Task
    from deftly.vla.checkpoint import VlaCheckpoint

Form = Literal["checkpoint", "bundle"]
"""In which of its two forms the shipped policy is taken: with torch, or without."""
SHIPPED = "shipped"
OLDER = {
    "bundle": "policy",
    "checkpoint": "policy",
    "checkpoint-file": "policy",
    "server-endpoint": "policy",
    "training.checkpoint": "policy",
}
"""Older names of the flag `--policy`."""
SETTINGS_FROM = "settings-from"
POLICY = (
    "Policy: latest, a run, a checkpoint or bundle folder, shipped, tcp:// or ws://HOST:PORT; "
    "unset: latest, else shipped."
)
"""What the help says of --policy."""


@dataclass(frozen=True)
class PolicyArgs(Settings):
    """Which policy a command takes, wherever it is, and how it is asked."""

    policy: Annotated[str | None, Doc(POLICY)] = None
    settings_from: Annotated[
        str | None,
        Doc("With tcp:// or ws://: the run or bundle whose settings of task and physics are used."),
    ] = None
    keys: Annotated[
        Path | None,
        KEYS,
        Doc("The robot's folder of keys, for a policy at tcp:// or ws://HOST:PORT."),
    ] = None
    jpeg: Annotated[
        int,
        Ge(0),
        Le(95),
        Doc("Quality of images sent to tcp://HOST:PORT as JPEG; 0: as they are."),
    ] = 0
    chunk: Annotated[
        ChunkConfig, Doc("How action chunks are executed, of a policy that gives them.")
    ] = field(default_factory=ChunkConfig)
    openpi: Annotated[OpenpiConfig, Doc("How a policy at ws://HOST:PORT is spoken with.")] = field(
        default_factory=OpenpiConfig
    )


@dataclass(frozen=True, eq=False)
class PolicySource:
    """A policy that was found, and what is known of it before it decides."""

    kind: Literal["run", "checkpoint", "bundle", "shipped", "endpoint", "model"]
    label: str
    """What to type after --policy."""
    loaded: Bundle | Checkpoint | VlaCheckpoint | None
    """None if only a server has it."""
    like: PolicySource | None = None
    """What has the settings and the report of a server's policy, if --settings-from says."""
    chunk: ChunkConfig = field(default_factory=ChunkConfig)
    """How its action chunks are executed, if it gives any."""
    openpi: OpenpiConfig = field(default_factory=OpenpiConfig)
    """How it is spoken with at `ws://HOST:PORT`."""
    jpeg: int = 0
    """Quality of the images that a server is sent at `tcp://HOST:PORT`; 0: they are sent as they are."""

    @property
    def line(self) -> str:
        """The first line of a command's output."""
        name = self.label
        if self.kind == "run" and self.loaded is not None:
            run = self.loaded.path.parent.parent
            name = f"run {run.name}"
        elif self.kind in ("checkpoint", "bundle", "model"):
            name = f"{self.kind} {self.label}"
        return f"policy: {printable(name)}" + (
            "" if self.loaded is None else f" (iteration {self.iteration})"
        )

    @property
    def place(self) -> str:
        """The folder or the endpoint."""
        return self.label if self.loaded is None else str(self.loaded.path)

    @property
    def task(self) -> str:
        """Name of the task for which it was made; empty if only a server knows."""
        return "" if self.loaded is None else self.loaded.task

    @property
    def contract(self) -> PolicyContract | None:
        """The contract under which it was made; None if only a server knows."""
        return None if self.loaded is None else self.loaded.contract

    @property
    def iteration(self) -> int:
        """Iteration of the training; 0 if unknown."""
        if isinstance(self.loaded, Bundle):
            return self.loaded.manifest["checkpoint"]["iteration"]
        return 0 if self.loaded is None else self.loaded.iteration

    @property
    def sha256(self) -> str:
        """Of the weights of its checkpoint, also of a bundle's; empty if unknown."""
        if isinstance(self.loaded, Bundle):
            return self.loaded.manifest["checkpoint"]["sha256"]
        if self.loaded is None:
            return ""
        return sha256(self.loaded.path / workspace.WEIGHTS, "the weights of a checkpoint")

    @property
    def report(self) -> Mapping[str, Any] | None:
        """Its `eval.json`, if it has one. Raises DeftlyError for one that is no report."""
        if isinstance(self.loaded, Bundle):
            return _measured(self.label, self.loaded.report)
        if self.like is not None:
            return self.like.report
        if self.loaded is None or self.kind != SHIPPED:
            return None
        from deftly.evaluate.comparison import read_report

        folder = self.loaded.path
        places = [place / "eval.json" for place in (folder, folder.parent)]
        return next((read_report(path) for path in places if path.is_file()), None)

    def settings(self, task: type[Task]) -> dict[str, Any]:
        """The settings of task and physics under which it was made, as data; of a checkpoint, as far as they exist."""
        if self.loaded is None:
            return {}
        if isinstance(self.loaded, Bundle):
            return dict(self.loaded.manifest["settings"])
        if isinstance(self.loaded, vla.VlaCheckpoint):
            saved = self.loaded.settings
            if self.loaded.task != task.name:  # which is said when the contracts are compared
                saved.pop("task", None)
            return saved
        return _saved(self.loaded, task)

    def asked(self, args: PolicyArgs) -> PolicySource:
        """This policy, asked as a command's arguments say."""
        return replace(self, chunk=args.chunk, openpi=args.openpi, jpeg=args.jpeg)

    def require(self, contract: PolicyContract, task: str) -> None:
        """Raise DeftlyError, one line, unless it was made under this contract of this task; a server is asked later."""
        if self.contract is None or self.contract.hash == contract.hash:
            return
        if self.task != task:
            theirs, robot = self.task, self.contract.robot.name
            raise DeftlyError(
                f"{self.label} is a policy of {theirs} (robot {robot}), not of {task} (robot {contract.robot.name}): "
                f"give another --policy, or name the task {theirs}"
            )
        contract.require_policy_of(self.contract, self.label)
        warn_if_guarded_less(contract, self.contract, self.label)

    def checkpoint(self, verb: str) -> Checkpoint:
        """The checkpoint that it is. Raises DeftlyError for a bundle or an endpoint, which `verb` cannot use."""
        if self.loaded is None or isinstance(self.loaded, (Bundle, vla.VlaCheckpoint)):
            raise DeftlyError(
                f"{verb} needs a checkpoint, and {self.label} is {_article(self.kind)}: give a run"
            )
        return self.loaded

    def seen_by(self, task: Task) -> Task:
        """The task as this policy sees it: of one that learned from images, through the cameras of the scene.

        What a server has is seen as by that whose settings are used (--settings-from).
        """
        known = self.loaded if self.like is None else self.like.loaded
        if not isinstance(known, vla.VlaCheckpoint) or known.task != task.name:
            return task
        from deftly.vla.cameras import seen_through

        return seen_through(task, known.contract)

    def open(
        self,
        contract: PolicyContract | None = None,
        *,
        stochastic: bool = False,
        timeout: float = 1.0,
        keys: Path | None = None,
        ahead: bool = False,
        untold: Callable[[], PolicyContract] | None = None,
    ) -> Policy:
        """A new policy.

        Args:
            contract: What it must have been made under; None takes its own.
            stochastic: Draw actions from its distribution. Only a checkpoint can.
            timeout: Longest wait for a server's decision, s.
            keys: The robot's folder of keys, for a server that has them.
            ahead: Ask for action chunks while the last ones are executed, as a robot in real time needs it.
            untold: Called for the contract if none is given and the server tells none.
        """
        if stochastic and (
            self.loaded is None or isinstance(self.loaded, (Bundle, vla.VlaCheckpoint))
        ):
            raise DeftlyError(
                f"{self.label} is {_article(self.kind)} and gives its mean action: leave out --stochastic"
            )
        if self.loaded is None and is_websocket(self.label):
            from deftly.serving.openpi_client import OpenpiModel

            model = OpenpiModel(self.label, contract, timeout, keys, self.openpi, untold)
            return ChunkPolicy(model, self.chunk, ahead)
        if self.loaded is None:
            from deftly.serving.client import Client

            return Client(self.label, contract, timeout, keys, self.jpeg, real_time=ahead)
        if contract is not None:
            contract.require_policy_of(self.loaded.contract, self.label)
        if isinstance(self.loaded, Bundle):
            return self.loaded.policy()
        if isinstance(self.loaded, vla.VlaCheckpoint):
            return self.loaded.open(self.chunk, ahead)
        from deftly.learn.policy import NetworkPolicy

        return NetworkPolicy(self.loaded.contract, self.loaded.policy(), stochastic)


def warn_if_guarded_less(own: PolicyContract, trained: PolicyContract, label: str) -> None:
    """Say so if a policy's contract, which fits, has a robot that is guarded less than that of `own`."""
    less = own.difference(trained)
    if less:
        print(
            f"warning: {label} is of an interface of its robot that guards it less: {less}; "
            "export it again before it drives one",
            file=sys.stderr,
            flush=True,
        )


def resolve(
    spec: str | None, task: str | None, runs: RunsConfig, form: Form = "checkpoint"
) -> PolicySource:
    """The policy that a user means by a word after --policy, for the task of this name; None: the default.

    Raises DeftlyError, one line, if there is none, or it needs the name of a task.
    """
    if spec is None:
        return _default(task, runs, form)
    if spec == "latest_test":
        spec = workspace.tested_policy(task, runs)
    if is_websocket(spec):
        read_websocket(spec)
    if "://" in spec:
        return PolicySource("endpoint", spec, None)
    if spec == SHIPPED:
        return _shipped(task, form)
    path = Path(spec)
    if path.is_dir() and any(
        (path / name).exists() for name in (bundle.MANIFEST, bundle.NETWORK, bundle.SPEC)
    ):
        return of_bundle(path)
    for folder in (path, path / "checkpoint"):
        if vla.is_one(folder):
            return of_vla(folder)
    return _of_run(spec, task, runs)


def of_task(
    spec: str | None, word: str | None, runs: RunsConfig, form: Form = "checkpoint"
) -> PolicySource:
    """The policy that a user means (see `resolve`) for the task that he typed, a name or a file.

    Raises DeftlyError that there is no such task, where that is why there is no policy.
    """
    if spec not in (None, SHIPPED, *workspace.LATEST):  # it says itself what it is
        return resolve(spec, word, runs, form)
    try:
        return resolve(spec, task_name(word), runs, form)
    except DeftlyError:
        if word is not None and not _is_task(word, runs) and not Path(word).is_dir():
            find_task(word)  # says that there is none, and which is near
        raise


def task_name(task: str | None) -> str | None:
    """The name of the task that a user typed, which may be a file: that alone is imported, with MuJoCo."""
    if task is None or ".py" not in task:
        return None if task is None else OLDER_NAMES.get(task, task)
    return find_task(task).name


def _is_task(word: str, runs: RunsConfig) -> bool:
    """Whether there is a task of this name: a file, one of Deftly's, or of a user's of which there are runs."""
    if ".py" in word or task_name(word) in shipped_tasks():
        return True
    return any(run.task == word for run in workspace.list_runs(runs))


def of_bundle(path: Path) -> PolicySource:
    """The policy of a bundle."""
    return PolicySource("bundle", str(path), bundle.load(path))


def of_vla(path: Path) -> PolicySource:
    """The policy of a model of `deftly finetune`."""
    return PolicySource("model", str(path), vla.load(path))


def of_checkpoint(found: Checkpoint) -> PolicySource:
    """The policy of a checkpoint that was loaded."""
    if found.label == SHIPPED:
        return PolicySource("shipped", SHIPPED, found)
    kind = "run" if found.path.parent.name == "checkpoints" else "checkpoint"
    return PolicySource(kind, found.label, found)


def _default(task: str | None, runs: RunsConfig, form: Form) -> PolicySource:
    if task is None:
        raise DeftlyError(
            "which policy? name a task, or give --policy with a run, a folder or tcp://HOST:PORT"
        )
    path = None
    with suppress(DeftlyError):
        path = workspace.find_checkpoint("latest", task, runs)
    if path is not None:
        return _load(path)
    try:
        return _shipped(task, form)
    except DeftlyError:
        raise DeftlyError(_no_policy(task, runs)) from None


def _no_policy(task: str, runs: RunsConfig) -> str:
    """Why there is no policy of a task, and what to type instead."""
    near = ""
    if task not in shipped_tasks():
        if Path(task).is_dir():
            name = printable(task, 80)
            return f"'{name}' is no task, but a folder: give it as --policy {name}"
        near = suggest(task, shipped_tasks())
    what = f"no policy for {task}{near}: no run with a checkpoint in '{runs.root}', none is shipped"
    if near:
        return f"{what}; give --policy"
    return f"{what}; train one, 'deftly train {task}', or give --policy"


def _shipped(task: str | None, form: Form) -> PolicySource:
    if task is None:
        raise DeftlyError("--policy shipped needs a task: name the task, 'deftly tasks' lists them")
    folder = bundle.shipped(task)
    if folder is None:
        raise DeftlyError(f"no policy is shipped for {task}: train one, 'deftly train {task}'")
    if form == "bundle":
        return PolicySource("shipped", SHIPPED, bundle.load(folder))
    from deftly.learn import checkpoint

    return PolicySource("shipped", SHIPPED, checkpoint.load(folder / "checkpoint"))


def _of_run(spec: str, task: str | None, runs: RunsConfig) -> PolicySource:
    return _load(workspace.find_checkpoint(spec, task, runs))


def _load(path: Path) -> PolicySource:
    from deftly.learn import checkpoint

    return of_checkpoint(checkpoint.load(path))


def _saved(found: Checkpoint, task: type[Task]) -> dict[str, Any]:
    """The saved settings that still exist; what was renamed since is named on the terminal."""
    from deftly.learn import checkpoint

    kinds: dict[str, type] = (
        {"task": task.Config, "sim": SimConfig} if found.is_of(task) else {"sim": SimConfig}
    )
    for section, kind in kinds.items():
        unknown = found.unknown_settings(section, kind)
        if unknown:
            names = printable(", ".join(unknown[:5]))
            file = printable(found.path / checkpoint.CONFIG)
            print(f"{file}: {names} left out: {kind.__name__} has no such setting (any more)")
    return {section: found.known_settings(section, kind) for section, kind in kinds.items()}


def _measured(label: str, report: Mapping[str, Any]) -> Mapping[str, Any]:
    """A bundle's report. Raises DeftlyError if no success rate can be held against it."""
    try:
        success = report["success"]
        episodes = report["episodes"]
        count = success["count"]
        fractions = (success["rate"], *success["wilson95"])
        whole = (
            type(count) is type(episodes) is int
            and 0 <= count <= episodes
            and 0 < episodes <= 1_000_000
        )
        are_fractions = all(0 <= fraction <= 1 for fraction in fractions)
        if whole and len(fractions) == 3 and are_fractions:
            return report
    except (KeyError, TypeError):
        pass
    raise DeftlyError(
        f"eval.json of {label} is no report of an evaluation: export the bundle again"
    )


def _article(kind: str) -> str:
    return f"{'an' if kind == 'endpoint' else 'a'} {'bundle' if kind == SHIPPED else kind}"


# --------------------------------------------------------------- the command line


def policy_words(argv: Sequence[str]) -> list[str]:
    """The words of a command with the older names of --policy written as that.

    A bundle or checkpoint beside an endpoint gives only the settings of the task.
    """
    places = [(place, _older(word)) for place, word in enumerate(argv)]
    names = [name for _, name in places if name]
    if "bundle" in names and "checkpoint" in names:
        raise DeftlyError("--bundle and --checkpoint both name the policy: give one --policy")
    served = "server-endpoint" in names or "://" in (typed(argv, "policy") or "")
    words = list(argv)
    for place, name in places:
        if name:
            flag = SETTINGS_FROM if served and name != "server-endpoint" else OLDER[name]
            value = words[place].partition("=")[1:]
            words[place] = f"--{flag}{''.join(value)}"
    return words


def _older(word: str) -> str:
    """Which older name of --policy a word is; empty for any other."""
    key, equals, _ = word.partition("=")
    name = key.removeprefix("--").replace("_", "-")
    is_flag = key.startswith("--") or bool(equals)
    return name if is_flag and name in OLDER else ""


def typed(flags: Sequence[str], name: str) -> str | None:
    """The last value of a flag among words."""
    found = None
    for place, word in enumerate(flags):
        key, equals, value = word.partition("=")
        is_named = key.removeprefix("--").replace("_", "-") == name
        if is_named and equals:
            found = value
        elif is_named and key.startswith("--"):
            found = next(iter(flags[place + 1 : place + 2]), None)
    return found


def prepare(
    command: type[Any],
    verb: str,
    argv: Sequence[str],
    form: Form = "checkpoint",
    scene_only: bool = False,
) -> tuple[Task, Any, PolicySource | None]:
    """Task, arguments and policy of `deftly VERB [TASK] [--policy SPEC] ...`, and the line that says which policy.

    What the user gives, in files or typed, overrides the settings with which the policy was made. There is no policy if
    the command has an `agent` that needs none. `scene_only`: only the settings are wanted, and without --policy they
    are the task's own; nothing is printed.
    """
    name, flags = split_task(policy_words(argv))
    prog = f"deftly {verb} {name or 'TASK'}"
    spec = typed(flags, SETTINGS_FROM) or typed(flags, "policy")
    if name is None and (spec is None or "://" in spec):
        parse(command, flags, prog=prog)  # answers --help
        why = f"{spec} names its robot, not the task: " if spec else ""
        raise DeftlyError(
            f"{why}{verb} needs a task: deftly {verb} TASK; 'deftly tasks' lists them"
        )
    named = resolve(spec, None, RunsConfig(), form).task if name is None else ""
    from deftly.evaluate.handover import load_task

    cls = load_task(name, named, f"policy {spec}")
    command = with_task(command, cls.Config)
    args = parse(command, flags, prog=prog)
    if getattr(args, "agent", "trained") != "trained" or (scene_only and args.policy is None):
        return cls(args.task), args, None
    source = resolve(args.policy, cls.name, args.runs, form)
    if not scene_only:
        say(source.line)
    like = source
    if getattr(args, "settings_from", None):
        like = resolve(args.settings_from, cls.name, args.runs, form)
        source = replace(source, like=like)
    if isinstance(args, PolicyArgs):
        source = source.asked(args)
    if isinstance(like.loaded, Bundle) and like.task != cls.name:
        raise DeftlyError(
            f"{like.label} is a policy of {like.task}, not of {cls.name}: name the task {like.task}"
        )
    filed = {**like.settings(cls)}
    if "sim" in filed:  # threads are the computer's, and results do not depend on them
        filed["sim"] = {k: v for k, v in filed["sim"].items() if k != "threads"}
    if cls.safety and "safety" in command.__dataclass_fields__:
        filed["safety"] = dict(cls.safety)
    args = parse(command, flags, prog=prog, filed=filed, origin=f"the settings of {like.label}")
    debug(lambda: shlex.join([*prog.split(), *changed(args)]))
    task = source.seen_by(cls(args.task))
    source.require(task.contract(), cls.name)
    return task, args, source
