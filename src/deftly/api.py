"""The Python API: what the commands do, as functions. `import deftly` offers them.

Settings are those of the command line, by keyword: `env={"num_envs": 64}` is `--env.num-envs 64`, with the same checks
and messages. A section may also be an instance of its dataclass, such as `deftly.config.EnvConfig`.

The task is the first argument, by position: the keyword `task` is the section of its own settings. This module imports
nothing of torch or MuJoCo before a function needs it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_type_hints

import numpy as np
from typing_extensions import Doc

from deftly import __version__
from deftly.config import (
    EnvConfig,
    RunsConfig,
    SimConfig,
    TrainArgs,
    chosen_algorithm,
    defaults_under,
    parse,
    to_yaml,
    with_algorithm,
    with_task,
)
from deftly.config.mapping import differences, require_names, settings_from, words_of
from deftly.errors import DeftlyError
from deftly.files import parse_yaml

if TYPE_CHECKING:
    from deftly.contract import PolicyContract, RobotInterface
    from deftly.control.drivers import Driver
    from deftly.control.operator import Operator
    from deftly.control.safety import SafetyConfig
    from deftly.env import Env
    from deftly.env.gym import TaskEnv, TaskVectorEnv
    from deftly.learn.checkpoint import Checkpoint
    from deftly.learn.trainer import Callback
    from deftly.policy.protocol import Policy
    from deftly.robots import Robot
    from deftly.tasks import Task


# ------------------------------------------------------------------ tasks and robots


def list_tasks() -> list[str]:
    """Names of the shipped tasks."""
    from deftly import tasks

    return list(tasks.shipped())


def list_robots() -> list[str]:
    """Names of the shipped robots."""
    from deftly import robots

    return list(robots.shipped())


def load_task(name: str) -> type[Task]:
    """The class of a task.

    Args:
        name: A shipped task's name, `my_task.py`, or `my_task.py:name` of a file with several.

    Raises:
        DeftlyError: There is none, or its file does not import.
    """
    from deftly import tasks

    return tasks.load(str(name))


def load_robot(name: str) -> Robot:
    """A robot, of a shipped robot's name or of a file that defines `ROBOT`. Raises DeftlyError if there is none."""
    from deftly import robots

    return robots.load(str(name))


# ------------------------------------------------------------------ environments


@dataclass(frozen=True)
class EnvSettings:
    """What an environment is built from, besides the task's own settings."""

    sim: Annotated[SimConfig, Doc("The physics engine.")] = field(default_factory=SimConfig)
    env: Annotated[EnvConfig, Doc("The batch of environments and what disturbs it.")] = field(
        default_factory=EnvConfig
    )


def make_env(task: str, /, num_envs: int = 64, *, seed: int = 0, **settings: Any) -> Env:
    """A batch of environments of a task, as training steps it: torch tensors in and out.

    Args:
        task: Name or file of the task.
        num_envs: Environments stepped side by side.
        seed: Decides every draw.
        settings: The sections `sim`, `env` and `task`.

    Returns:
        An environment whose `step(action)` takes `(num_envs, action_size)` and starts new episodes by itself.
    """
    from deftly.env import Env

    cls = load_task(task)
    args: Any = settings_from(with_task(EnvSettings, cls.Config), settings, prog=f"make_env {task}")
    return Env(cls(args.task), replace(args.env, num_envs=num_envs), args.sim, seed)


def make(task: str, /, num_envs: int | None = None, **settings: Any) -> TaskEnv | TaskVectorEnv:
    """A Gymnasium environment of a task, numpy in and out; a vector environment if `num_envs` is given.

    Args:
        task: Name or file of the task.
        num_envs: Environments in one batch; None: a single one.
        settings: `render_mode`, `max_episode_steps`, `autoreset_mode`, and the sections `sim`, `env` and `task`.
    """
    from deftly.env import gym

    return gym.make(str(task), num_envs, **settings)


# ------------------------------------------------------------------ training


@dataclass(frozen=True)
class Training:
    """What a training did."""

    task: str
    """Name or file of the task, as it was given."""
    run: Path
    """Folder of the run, which is what to give as a policy: `evaluate(task, result.run)`."""
    iteration: int
    """Iterations done, those before a resume included."""
    steps: int
    """Environment steps done."""
    seconds: float
    """Wall time of the training."""
    success: float | None
    """Success rate of the last evaluation in training; None if there was none."""
    episodes: int
    """Episodes of that evaluation."""
    reached: bool
    """Whether the success that `until_success` asked for was reached."""
    stop_signal: int = 0
    """The signal that ended the training early; 0: none."""
    is_first_rank: bool = True
    """Whether this is the process that writes and prints, where several train together."""

    def policy(self) -> Policy:
        """The run's best policy, for one robot."""
        return load_policy(self.run)


def train(task: str, /, *, callbacks: Sequence[Callback] = (), **settings: Any) -> Training:
    """Train a policy, as `deftly train TASK` does.

    Args:
        task: Name or file of the task.
        callbacks: Each is called as `callback(trainer, metrics)` after every iteration. It may add to `metrics`, and
            end the training with `trainer.stop()`.
        settings: The settings of `deftly train` by name: `until_success=0.95`, `env={"num_envs": 256}`,
            `train={"seed": 2}`, `runs={"root": "results"}`, `resume="latest"`, `log_level="warning"`, ...

    Raises:
        DeftlyError: A setting is wrong, or there is nothing left to resume.
    """
    words = words_of(settings)
    cls = load_task(task)
    require_names(with_algorithm(with_task(TrainArgs, cls.Config), words, cls.defaults), settings)
    args, source = training_settings(task, words)
    if finished := nothing_left(args, source):
        raise DeftlyError(finished)
    return run_training(task, args, source, callbacks)


def training_settings(task: str, words: Sequence[str]) -> tuple[TrainArgs, Checkpoint | None]:
    """The settings of a training from words of the command line, and the checkpoint that is continued.

    The settings of that checkpoint hold where none is typed.
    """
    from deftly import workspace
    from deftly.learn import checkpoint

    cls = load_task(task)
    args_type = with_task(TrainArgs, cls.Config)
    prog = f"deftly train {task}"
    defaults = defaults_under(chosen_algorithm(words, cls.defaults), cls.defaults)
    args = parse(with_algorithm(args_type, words, defaults), words, prog=prog, filed=defaults)
    if not args.resume:
        return args, None
    if args.resume == "shipped":
        raise DeftlyError(
            "a shipped policy holds no training state to resume from: start a run with --init shipped"
        )
    source = checkpoint.load(workspace.find_checkpoint(args.resume, cls.name, args.runs, "last"))
    if source.task != cls.name:
        raise DeftlyError(
            f"{source.label} is a run of {source.task}, not of {cls.name}: "
            f"deftly train {source.task} --resume {args.resume}"
        )
    source.require_algorithm(chosen_algorithm(words, source.config))
    args_type = with_algorithm(args_type, words, source.config)
    kinds = get_type_hints(args_type)
    for section in fields(args_type):
        source.require_settings(section.name, kinds[section.name])
    usual = parse_yaml(to_yaml(args_type()), "the default settings")
    saved = differences(source.config, usual)
    return parse(
        args_type, words, prog=prog, filed=saved, origin=str(source.path / checkpoint.CONFIG)
    ), source


def nothing_left(args: TrainArgs, source: Checkpoint | None) -> str:
    """Why a resumed training would do nothing; empty if there is something to do."""
    if source is None or source.iteration < args.train.max_iterations:
        return ""
    done = f"{source.path} is at iteration {source.iteration}, and train.max-iterations is"
    return f"{done} {args.train.max_iterations}: nothing left to do; go on with a larger one"


def run_training(
    task: str, args: TrainArgs, source: Checkpoint | None = None, callbacks: Sequence[Callback] = ()
) -> Training:
    """Train under given settings, with evaluations on episodes that training never sees."""
    from deftly.evaluate.validation import Validation
    from deftly.learn import train as learning
    from deftly.render.viewers import Watch

    validation = Validation.of(task, args)
    with Watch() if args.render else ExitStack() as shown:
        watching = [shown] if isinstance(shown, Watch) else []
        trainer = learning.train(task, args, source, callbacks=[validation, *watching, *callbacks])
    return Training(
        task=task,
        run=trainer.run,
        iteration=trainer.iteration,
        steps=trainer.steps,
        seconds=trainer.seconds,
        success=None if math.isnan(validation.success) else validation.success,
        episodes=validation.episodes,
        reached=validation.reached,
        stop_signal=trainer.stop_signal,
        is_first_rank=trainer.ranks.first,
    )


# ------------------------------------------------------------------ evaluation and export


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found."""

    report: Mapping[str, Any]
    """What `deftly eval` writes into `eval.json`."""
    episodes: Mapping[str, np.ndarray]
    """The metrics of each episode by name, `(episodes,)` each; NaN where an episode has none."""

    @property
    def success(self) -> float:
        """Success rate, a fraction."""
        return self.report["success"]["rate"]

    @property
    def interval(self) -> tuple[float, float]:
        """95 % confidence interval of the success rate (Wilson)."""
        low, high = self.report["success"]["wilson95"]
        return low, high

    @property
    def gates(self) -> list[Mapping[str, Any]]:
        """Each gate with `gate`, the value `measured`, and whether it `holds`."""
        return self.report["gates"]

    @property
    def passed(self) -> bool:
        """Whether all gates hold; what `deftly eval` says by its exit status."""
        return all(gate["holds"] for gate in self.gates)

    def __str__(self) -> str:
        from deftly.evaluate import report

        return report.headline(dict(self.report))


def evaluate(
    task: str, /, policy: str | Path | None = None, *, gates: Sequence[str] = (), **settings: Any
) -> Evaluation:
    """Measure a policy on held out episodes, as `deftly eval TASK` does.

    Args:
        task: Name or file of the task.
        policy: `latest`, a run, a checkpoint folder or `shipped`; None: the newest run, else the shipped policy.
        gates: Conditions such as `success>=0.9` and `steps<80`.
        settings: `episodes`, `seed`, `stochastic`, `wider`, `only_outside`, `widened`, and the sections `sim`, `env`,
            `task` and `runs`. What is not given of `sim` and `task` is as in the training.

    Raises:
        DeftlyError: There is no such policy, its contract is not the task's, or a setting or gate is wrong.
    """
    from deftly.evaluate.evaluate import EvalSettings, measure
    from deftly.evaluate.gates import read_gate

    for gate in gates:
        read_gate(gate)
    built, found, args = _prepare(EvalSettings, "evaluate", task, policy, settings)
    report, values = measure(built, found, args, gates=gates)
    return Evaluation(report, values)


def evaluate_ladder(
    task: str,
    /,
    policy: str | Path | None = None,
    *,
    rungs: Sequence[str] = (),
    gates: Mapping[str, Sequence[str]] = {},
    **settings: Any,
) -> Mapping[str, Any]:
    """Measure a policy under one condition after the other, as `deftly eval TASK --ladder` does.

    Args:
        task: Name or file of the task.
        policy: See `evaluate`.
        rungs: Names of conditions of the task's `ladder`; none: all of them.
        gates: Conditions such as `success>=0.9` by the name of a rung, or `half>=8` of one with levels.
        settings: As those of `evaluate`, for every rung.

    Returns:
        What `deftly eval TASK --ladder` writes into `ladder.json`.

    Raises:
        DeftlyError: There is no such policy or rung, or a setting or gate is wrong.
    """
    from deftly.evaluate import ladder
    from deftly.evaluate.evaluate import EvalSettings
    from deftly.evaluate.source import of_checkpoint

    built, found, args = _prepare(EvalSettings, "evaluate_ladder", task, policy, settings)
    chosen = ladder.choose(built.ladder, rungs)
    source = of_checkpoint(found)
    *_, result = ladder.Ladder(built, source, args, chosen, gates).climb()
    return result


def export(
    task: str,
    /,
    policy: str | Path | None = None,
    *,
    out: str | Path | None = None,
    **settings: Any,
) -> Path:
    """Write a policy as a bundle, the folder that a robot's computer runs without torch, and read it back.

    Args:
        task: Name or file of the task.
        policy: See `evaluate`.
        out: Folder of the bundle; an older bundle there is replaced. None: `bundles/TASK` under the runs' root.
        settings: `episodes` and `seed` of the evaluation that goes into the bundle, and the sections `sim`, `task` and
            `runs`.

    Returns:
        The folder, which was read back: whole, and computing what the torch policy computes.
    """
    from deftly.evaluate import export as exporting
    from deftly.evaluate.evaluate import EvalSettings
    from deftly.policy import bundle

    built, found, args = _prepare(EvalSettings, "export", task, policy, settings)
    folder = Path(out) if out is not None else args.runs.root / "bundles" / built.name
    exporting.export(built, found, folder, args, f"deftly.export({task!r}, {found.label!r})")
    return bundle.load(folder).path


def _prepare(
    kind: type, verb: str, task: str, policy: str | Path | None, settings: Mapping[str, Any]
) -> tuple[Task, Checkpoint, Any]:
    """The task, the policy and the settings of `kind` (with `runs`): as in the training where nothing is given."""
    from deftly.evaluate import source

    cls = load_task(task)
    prog = f"{verb} {task}"
    args_type = with_task(_with_runs(kind), cls.Config)
    args = settings_from(args_type, settings, prog=prog)
    chosen = source.resolve(None if policy is None else str(policy), cls.name, args.runs)
    found = chosen.checkpoint(verb)
    args = settings_from(args_type, settings, prog=prog, saved=chosen.settings(cls))
    built = cls(args.task)
    found.require(built)
    return built, found, args


def _with_runs(kind: type) -> type:
    @dataclass(frozen=True)
    class Settings(kind):
        runs: Annotated[RunsConfig, Doc("Where runs are kept.")] = field(default_factory=RunsConfig)

    return Settings


# ------------------------------------------------------------------ policies and robots


def load_policy(
    policy: str | Path | None = None,
    task: str | None = None,
    *,
    keys: str | Path | None = None,
    timeout: float | None = None,
    ahead: bool = False,
    runs: Mapping[str, Any] | RunsConfig | None = None,
) -> Policy:
    """A policy that decides for robots from their signals, batched: one row for each robot.

    Args:
        policy: A bundle's folder, `tcp://HOST:PORT` or `ws://HOST:PORT` of a policy server, `latest`, a run, a
            checkpoint folder, or `shipped`; None: the newest run of `task`, else its shipped policy.
        task: Name or file of the task; needed for None and `shipped`.
        keys: The robot's folder of keys, for a server that asks for them.
        timeout: Longest wait for a server's decision, s; a control loop wants less than its period. None: 0.25 s, and
            10 s for a chunk that is asked for ahead.
        ahead: Ask for action chunks while the last ones are executed, as a robot in real time needs it.
        runs: The section `runs`: where runs are kept.

    Raises:
        DeftlyError: There is none, its files are damaged, or the server does not answer.
    """
    from deftly.evaluate import source
    from deftly.policy.chunks import CHUNK_S
    from deftly.serving.endpoint import is_websocket

    chosen = source.of_task(None if policy is None else str(policy), task, _runs(runs), "bundle")
    if timeout is None:
        timeout = CHUNK_S if ahead and is_websocket(chosen.place) else 0.25
    return chosen.open(timeout=timeout, keys=None if keys is None else Path(keys), ahead=ahead)


def _runs(given: Mapping[str, Any] | RunsConfig | None) -> RunsConfig:
    return (
        given
        if isinstance(given, RunsConfig)
        else settings_from(RunsConfig, given or {}, prog="runs")
    )


@dataclass(frozen=True)
class DriveResult:
    """What a robot did while a policy drove it."""

    ok: bool
    """Whether the time was over or the operator ended it; False: a fault that nobody could clear."""
    ticks: int
    """Control periods."""
    overruns: int
    """Control periods left out because the one before took too long."""
    rows: Mapping[str, np.ndarray]
    """The log, one row a tick: `state`, `fault`, `command`, `signal/NAME`, ..."""

    @property
    def faults(self) -> list[str]:
        """The safety kernel's faults, in the order in which they came first."""
        from deftly.control.safety import Fault

        return [
            fault
            for fault in dict.fromkeys(self.rows["fault"].tolist())
            if fault not in ("", Fault.NONE)
        ]


def drive(
    driver: Driver | Callable[[RobotInterface, float], Driver],
    policy: Policy | str | Path,
    *,
    task: str | None = None,
    start: bool = False,
    seconds: float = 0.0,
    log: str | Path | None = None,
    log_seconds: float = 600.0,
    safety: Mapping[str, Any] | SafetyConfig | None = None,
    operator: str | Operator | None = None,
) -> DriveResult:
    """Drive a robot with a policy in real time, under the safety kernel, as `deftly run` does.

    The operator's keys work on a terminal: Enter holds, q quits. However this ends, the robot is left safe, and driver
    and policy are let go of.

    Args:
        driver: The robot, or its class, which is called with the robot interface and the control rate, Hz.
        policy: A policy, or what `load_policy` takes, with `task`.
        task: Name or file of the task.
        start: Start as soon as the robot is ready; False: at the operator's key.
        seconds: End after this time; 0: when the operator quits.
        log: Save the log of all ticks here (.npz). A fault is saved at once in a file of its own beside it.
        log_seconds: How far back the log reaches.
        safety: Bounds of the safety kernel, by the names of `SafetyConfig`.
        operator: Who says the policy's inputs: what `--operator` takes, or an `Operator` of your own; None: nobody,
            their defaults hold.

    Raises:
        DeftlyError: The policy, the driver, the operator or a setting cannot be had. Nothing has moved.
    """
    from deftly.control.drivers import robot_of
    from deftly.control.log import LogBuffer
    from deftly.control.loop import Runner
    from deftly.control.operator import open_operator
    from deftly.control.safety import Kernel, SafetyConfig
    from deftly.control.session import Session, SessionSettings, require_place

    is_made = hasattr(driver, "read") and not isinstance(driver, type)
    with ExitStack() as stack:
        unclaimed = stack.enter_context(ExitStack())
        if is_made:
            unclaimed.callback(_stopping(driver))
        if not isinstance(policy, (str, Path)):
            unclaimed.callback(policy.close)
        given = {"start": start, "seconds": seconds, "log": log, "log_seconds": log_seconds}
        asked = settings_from(SessionSettings, given, prog="drive")
        require_place(asked.log, keep=True)
        if isinstance(policy, (str, Path)):
            chosen = load_policy(policy, task, ahead=True)
            unclaimed.callback(chosen.close)
        else:
            chosen = policy
        bounds = (
            safety
            if isinstance(safety, SafetyConfig)
            else settings_from(SafetyConfig, safety or {}, prog="safety")
        )
        contract = chosen.contract
        ticks = _log_ticks(contract, asked.log_seconds)
        if isinstance(operator, str):
            operator = open_operator(operator, contract)
            stack.callback(operator.close)
        _require_operator(operator)
        robot_driver = cast("Driver", driver) if is_made else _made(driver, contract)
        if not is_made:
            unclaimed.callback(_stopping(robot_driver))
        _require_methods(robot_driver, driver, contract.robot)
        bounds = _bounds(bounds, robot_driver)
        robot = robot_of(robot_driver, contract.robot)
        buffer = LogBuffer(contract, ticks, robot)
        facts = _drive_facts(policy, robot_driver, bounds)
        kernel = Kernel(robot, contract.rate, bounds)
        runner = stack.enter_context(Runner(chosen, kernel, robot_driver, buffer))
        unclaimed.pop_all()  # the runner lets go of policy and robot
        how = {"start": asked.start, "seconds": asked.seconds, "log": asked.log}
        session = Session(runner, buffer, facts, **how, operator=operator)
        status = session.run()
    return DriveResult(status == 0, session.ticker.count, session.ticker.overruns, buffer.rows())


def _log_ticks(contract: PolicyContract, seconds: float) -> int:
    from deftly.control.log import max_ticks

    most = max_ticks(contract)
    ticks = math.ceil(seconds * contract.rate)
    if not 1 <= ticks <= most:
        longest = most // contract.rate
        raise DeftlyError(
            f"log_seconds is {seconds:g}, but a log of this robot holds up to {longest:g} s"
        )
    return ticks


def _made(driver: Any, contract: PolicyContract) -> Driver:
    """The driver of a class of the user's. Raises DeftlyError unless it makes one."""
    try:
        return driver(contract.robot, contract.rate)
    except TypeError as error:
        raise DeftlyError(
            f"{driver} does not make a driver of a robot interface and a rate: {error}"
        ) from error


def _stopping(driver: object) -> Callable[[], object]:
    """What lets go of a driver; nothing of one that has no `stop`, which is refused."""
    return getattr(driver, "stop", lambda: None)


def _require_operator(operator: object) -> None:
    """Raise DeftlyError unless it is an operator, or nobody."""
    if operator is not None and not hasattr(operator, "hear"):
        raise DeftlyError(
            f"operator is a {type(operator).__name__}, but it must be text, as --operator takes, or an Operator"
        )


def _require_methods(driver: Driver, given: object, robot: RobotInterface) -> None:
    """Raise DeftlyError unless the driver, or what was made by the one given, has what a driver has."""
    from deftly.control.drivers import lacking

    missing = lacking(driver, robot)
    if missing:
        raise DeftlyError(
            f"{given} has no method {missing[0]}(): a driver has read, write, stop and, for a robot "
            "that is damped, damp (docs/run.md)"
        )


def _bounds(safety: SafetyConfig, driver: Driver) -> SafetyConfig:
    """The safety kernel's bounds, with what the driver says of its robot where the user says nothing."""
    approach_s = safety.approach_s or getattr(driver, "approach_s", 0.0)
    lead = getattr(driver, "lead", None) if safety.lead is None else safety.lead
    return replace(safety, approach_s=approach_s, lead=lead)


def _drive_facts(policy: object, driver: Driver, safety: SafetyConfig) -> dict[str, Any]:
    """What a log says of the loop beside its ticks."""
    return {
        "task": "",
        "policy": str(policy) if isinstance(policy, (str, Path)) else type(policy).__name__,
        "driver": type(driver).__name__,
        "deftly": __version__,
        "safety": json.dumps(asdict(safety)),
        "began": datetime.now().astimezone().isoformat(),
    }
