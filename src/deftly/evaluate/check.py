"""Hold a bundle against its contract, its golden vectors, and the policy from which it was made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import yaml
from annotated_types import Ge, Lt
from typing_extensions import Doc

from deftly.config import SEEDS, RunsConfig, Settings
from deftly.console import Finding, judge
from deftly.contract import ACTION, PolicyContract
from deftly.errors import DeftlyError
from deftly.evaluate.source import resolve, warn_if_guarded_less
from deftly.files import sha256
from deftly.policy import bundle
from deftly.policy.bundle import TOLERANCE, Bundle
from deftly.policy.protocol import single_input

if TYPE_CHECKING:
    from deftly.learn.checkpoint import Checkpoint

HOME_TOLERANCE = 1e-6
"""rad (m)."""
POSE_TOLERANCE = 1e-4
"""rad (m)."""
ROBOTS, TICKS = 64, 100
"""Of the check of the limits: actions at once, and one after the other."""
LOOP = "closed loop"


@dataclass(frozen=True)
class CheckSettings(Settings):
    """With what a bundle is compared."""

    against: Annotated[
        str | None,
        Doc(
            "Policy from which the bundle was made; unset: where the bundle says, or shipped, if it is there."
        ),
    ] = None
    task: Annotated[str | None, Doc("File of the bundle's task, if that is none of Deftly's.")] = (
        None
    )
    episodes: Annotated[int, Ge(1), Doc("Episodes of the closed loop.")] = 1
    seed: Annotated[int, Ge(0), Lt(SEEDS), Doc("Decides which episodes.")] = 0
    runs: Annotated[RunsConfig, Doc("Where runs are kept.")] = field(default_factory=RunsConfig)


def examine(folder: Path, settings: CheckSettings) -> list[Finding]:
    """Everything that can be checked here; stops early if there is no bundle to check."""
    if not folder.is_dir():
        bundle.find(str(folder))  # says what to type
    try:
        found = bundle.load(folder, verify_golden=False)
    except DeftlyError as error:
        return [Finding("bundle", "fail", str(error))]
    c, facts = found.contract, found.manifest
    iteration = facts["checkpoint"]["iteration"]
    made = f"{found.task}, iteration {iteration}, made by Deftly {facts['deftly']}"
    files = f"{len(facts['files'])} files are those of {bundle.MANIFEST}, by sha256"
    network = f"one file, {_observed(c)} to action (n, {c.action_size}), float32"
    expected = yaml.safe_load(bundle.robot_config(c))
    is_same = found.robot_config == expected
    robot = [] if is_same else ["differs from the contract"]
    return [
        Finding("bundle", "ok", f"schema {bundle.SCHEMA}: {made}"),
        Finding("files", "ok", files),
        Finding("contract", "ok", f"{c.robot.name}, {c.rate:g} Hz, {c.hash}"),
        Finding("network", "ok", network),
        judge(bundle.ROBOT, robot, "says what the contract says"),
        _golden(found),
        judge(
            "home",
            _home_problems(c),
            f"home -> action -> targets is home, within {HOME_TOLERANCE:g} rad (m)",
        ),
        judge(
            "poses",
            _pose_problems(c),
            f"{ROBOTS} poses -> action -> targets come back, within {POSE_TOLERANCE:g} rad (m)",
        ),
        judge(
            "limits",
            _limit_problems(c),
            f"{ROBOTS * TICKS} random and infinite actions keep every target within",
        ),
        _report(found),
        _closed_loop(found, settings),
    ]


def _observed(c: PolicyContract) -> str:
    """Names and shapes of a network's inputs, in words."""
    if single_input(c):
        return f"observation (n, {c.obs_size()})"
    shown = []
    for group in c.groups:
        shape = ", ".join(map(str, c.group_shape(group)))
        kind = " uint8" if c.is_image(group) else ""
        shown.append(f"{group} (n, {shape}){kind}")
    return " and ".join(shown)


def _at_rest(c: PolicyContract, *batch: int) -> dict[str, np.ndarray]:
    """Signals that are all zero, (*batch, size) each: dark images, no numbers."""
    kinds = {True: np.uint8, False: np.float32}
    return {s.name: np.zeros((*batch, *s.shape), kinds[s.is_image]) for s in c.signals}


def _golden(found: Bundle) -> Finding:
    errors = found.golden_errors()
    wrong = []
    for name, error in errors.items():
        if not error <= TOLERANCE:
            wrong.append(f"{name} differs by {error:.2g}, at most {TOLERANCE:g}")
    steps = len(found.golden[ACTION])
    computed = f"{steps} steps computed again: off by {max(errors.values()):.1g} at most"
    return judge("golden", wrong, computed)


def _home_problems(c: PolicyContract) -> Iterator[str]:
    """A robot that stands at home, and is told to be there, stays there."""
    home = np.array(c.home())
    signals = _at_rest(c) | {"joint_pos": home}
    memory = c.reset(signals)
    targets, _ = c.act(c.action_for(home, memory), memory)
    for joint, target in zip(c.joints, targets):
        if not abs(target - joint.home) <= HOME_TOLERANCE:
            is_home = f"home is {joint.home!r} {joint.units}"
            yield f"{joint.name}: {is_home}, its target {float(target)!r}"


def _pose_problems(c: PolicyContract) -> Iterator[str]:
    """A robot that stands in a pose that actions reach from home, and is told to be there, stays there."""
    home = np.array(c.home(), np.float32)
    signals = _at_rest(c, ROBOTS)
    rng = np.random.default_rng(1)
    actions = rng.uniform(-0.9, 0.9, (ROBOTS, c.action_size))
    at_home = np.tile(home, (ROBOTS, 1))
    memory = c.reset(signals | {"joint_pos": at_home})
    poses, _ = c.act(actions.astype(np.float32), memory)
    memory = c.reset(signals | {"joint_pos": poses})
    targets, _ = c.act(c.action_for(poses, memory), memory)
    differences = np.abs(targets - poses)
    for joint, errors in zip(c.joints, differences.T):
        if not joint.grips and not errors.max() <= POSE_TOLERANCE:
            yield f"{joint.name}: targets are off by {errors.max():.2g} {joint.units}"


def _limit_problems(c: PolicyContract) -> Iterator[str]:
    rng = np.random.default_rng(0)
    lower = np.array([joint.lower for joint in c.joints], np.float32)
    upper = np.array([joint.upper for joint in c.joints], np.float32)
    signals = _at_rest(c, ROBOTS)
    for signal in c.signals:
        if not signal.is_image:
            values = rng.normal(0, 10, (ROBOTS, signal.size))
            signals[signal.name] = values.astype(np.float32)
    memory = c.reset(signals)
    wrong = np.zeros(len(c.joints), bool)
    for _ in range(TICKS):
        action = rng.uniform(-1, 1, (ROBOTS, c.action_size))
        action = action * rng.choice((1, 10, np.inf), (ROBOTS, 1))
        targets, memory = c.act(action.astype(np.float32), memory)
        inside = (lower <= targets) & (targets <= upper)
        wrong |= ~inside.all(0)
    for joint, is_wrong in zip(c.joints, wrong):
        if is_wrong:
            yield f"{joint.name}: a target outside {joint.lower:g} .. {joint.upper:g}"


def _report(found: Bundle) -> Finding:
    measured = found.report
    of = found.manifest
    wrong = []
    try:
        low, high = measured["success"]["wilson95"]
        success = measured["success"]
        rate = f"success {success['rate']:.1%} ({low:.1%} to {high:.1%})"
        text = f"{rate}, {measured['episodes']} episodes"
        if measured["contract"] != of["contract"]:
            wrong.append("measured under another contract")
        if measured["policy"]["sha256"] != of["checkpoint"]["sha256"]:
            wrong.append("measured with another checkpoint")
        if measured["schema"] != bundle.REPORT_SCHEMA:
            wrong.append(
                f"schema is {measured['schema']!s:.40}, this Deftly reads {bundle.REPORT_SCHEMA}"
            )
    except (KeyError, TypeError, ValueError):
        wrong, text = ["is no report of an evaluation"], ""
    if not wrong and not measured["success"]["count"]:
        unmeasured = f"never succeeded: {text}"
        if not measured["episodes"]:
            unmeasured = f"was not evaluated: {text}"
        advice = f"the policy {unmeasured}; train on, or export another with --policy"
        return Finding(bundle.REPORT, "warn", advice)
    return judge(bundle.REPORT, [f"{problem}: export again" for problem in wrong], text)


# -------------------------------------------------------------------- closed loop


def _closed_loop(found: Bundle, settings: CheckSettings) -> Finding:
    """Whole episodes in simulation against the torch policy, where both are here."""
    try:
        from deftly.evaluate import handover
    except ModuleNotFoundError as error:
        return Finding(
            LOOP, "warn", f'not checked, for want of {error.name}: pip install "deftly[train]"'
        )
    source = _find_checkpoint(found, settings)
    if isinstance(source, Finding):
        return source
    try:
        task, sim = handover.rebuild(settings.task, found.manifest["settings"], found.task)
    except DeftlyError as error:
        level = "fail" if settings.task else "warn"  # what was asked for was not done
        return Finding(LOOP, level, f"not checked: {error}; --task FILE names the task's file")
    try:
        task.contract().require_policy_of(found.contract, str(found.path))
        warn_if_guarded_less(task.contract(), found.contract, str(found.path))
    except DeftlyError as error:
        return Finding(LOOP, "fail", str(error))
    return _compare(found, source, task, sim, settings)


def _find_checkpoint(found: Bundle, settings: CheckSettings) -> Checkpoint | Finding:
    from deftly.learn import checkpoint

    wanted = found.manifest["checkpoint"]
    if settings.against:
        given = resolve(settings.against, found.task, settings.runs)
        places = [given.checkpoint("check --against").path]
    else:
        beside = found.path / "checkpoint"
        places = [beside, checkpoint.shipped(found.task), Path(wanted["label"])]
    for place in places:
        file = place / checkpoint.WEIGHTS if place else None
        if (
            file
            and file.is_file()
            and sha256(file, "the weights of a checkpoint") == wanted["sha256"]
        ):
            return checkpoint.load(file.parent)
    if settings.against:
        return Finding(
            LOOP,
            "fail",
            f"the bundle was not made from {places[0]}: its weights' sha256 is another",
        )
    text = f"not checked: its checkpoint '{wanted['label']}' is not here; --against names another place of it"
    return Finding(LOOP, "warn", text)


def _compare(
    found: Bundle, source: Checkpoint, task: Any, sim: Any, settings: CheckSettings
) -> Finding:
    """The bundle drives from signals alone; torch sees the same steps. Then torch drives the same episodes."""
    from deftly.config import EnvConfig
    from deftly.env import Env
    from deftly.evaluate.handover import drive
    from deftly.evaluate.rollout import EVALUATE

    env = Env(task, EnvConfig(num_envs=1), sim, settings.seed, EVALUATE)
    network = source.policy()
    errors = {"actions": 0.0, "targets": 0.0}
    ends, wrong = [], []
    for seed in range(settings.seed, settings.seed + settings.episodes):
        for _, obs, decision in drive(env, found.policy(), seed):
            for name, mine, theirs in (
                ("actions", decision.action, network(obs)[0].numpy()),
                ("targets", decision.targets, env.state.command[0].numpy()),
            ):
                difference = np.abs(mine - theirs)
                largest = float(np.nan_to_num(difference, nan=np.inf).max())
                errors[name] = max(errors[name], largest)
        ours = _ending(env.ended)
        env.seed(seed)
        env.reset()
        env.step(network(env.obs))
        while not env.ended:
            env.step(network(env.obs))
        ends.append(f"{ours} after {int(env.ended['steps'])} steps")
        if ours != _ending(env.ended):
            wrong.append(
                f"episode of seed {seed}: {ours} with the bundle, {_ending(env.ended)} with torch"
            )
    wrong += [
        f"{name} differ by {e:.2g}, at most {TOLERANCE:g}"
        for name, e in errors.items()
        if not e <= TOLERANCE
    ]
    off = f"actions off by {errors['actions']:.1g}, targets by {errors['targets']:.1g}"
    text = f"{ends[0]}, as with torch; {off}"
    if len(ends) > 1:
        text = f"{len(ends)} episodes: {text}"
    return judge(LOOP, wrong, text)


def _ending(ended: dict[str, Any]) -> str:
    """How an episode ended; of one that ran its time, not if it succeeded: that can hang on the seventh digit."""
    if ended["time_out"][0] > 0:
        return "time_out"
    reasons = ["success", *(name for name in ended if name.startswith("failed/"))]
    return ", ".join(name for name in reasons if ended[name][0] > 0)
