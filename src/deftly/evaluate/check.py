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
    made = f"{found.task}, iteration {facts['checkpoint']['iteration']}, made by Deftly {facts['deftly']}"
    files = f"{len(facts['files'])} files are those of {bundle.MANIFEST}, by sha256"
    network = f"one file, {_observed(c)} to action (n, {c.action_size}), float32"
    robot = (
        []
        if found.robot_config == yaml.safe_load(bundle.robot_config(c))
        else ["differs from the contract"]
    )
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
    shapes = {group: ", ".join(map(str, c.group_shape(group))) for group in c.groups}
    images = {group: " uint8" if c.is_image(group) else "" for group in c.groups}
    return " and ".join(f"{group} (n, {shapes[group]}){images[group]}" for group in c.groups)


def _at_rest(c: PolicyContract, *batch: int) -> dict[str, np.ndarray]:
    """Signals that are all zero, (*batch, size) each: dark images, no numbers."""
    kinds = {True: np.uint8, False: np.float32}
    return {s.name: np.zeros((*batch, *s.shape), kinds[s.is_image]) for s in c.signals}


def _golden(found: Bundle) -> Finding:
    errors = found.golden_errors()
    wrong = [
        f"{name} differs by {error:.2g}, at most {TOLERANCE:g}" for name, error in errors.items()
    ]
    wrong = [text for text, error in zip(wrong, errors.values()) if not error <= TOLERANCE]
    steps = len(found.golden[ACTION])
    return judge(
        "golden", wrong, f"{steps} steps computed again: off by {max(errors.values()):.1g} at most"
    )


def _home_problems(c: PolicyContract) -> Iterator[str]:
    """A robot that stands at home, and is told to be there, stays there."""
    home = np.array(c.home())
    signals = _at_rest(c) | {"joint_pos": home}
    memory = c.reset(signals)
    targets, _ = c.act(c.action_for(home, memory), memory)
    for joint, target in zip(c.joints, targets):
        if not abs(target - joint.home) <= HOME_TOLERANCE:
            yield f"{joint.name}: home is {joint.home!r} {joint.units}, its target {float(target)!r}"


def _pose_problems(c: PolicyContract) -> Iterator[str]:
    """A robot that stands in a pose that actions reach from home, and is told to be there, stays there."""
    home = np.array(c.home(), np.float32)
    signals = _at_rest(c, ROBOTS)
    actions = np.random.default_rng(1).uniform(-0.9, 0.9, (ROBOTS, c.action_size))
    memory = c.reset(signals | {"joint_pos": np.tile(home, (ROBOTS, 1))})
    poses, _ = c.act(actions.astype(np.float32), memory)
    memory = c.reset(signals | {"joint_pos": poses})
    targets, _ = c.act(c.action_for(poses, memory), memory)
    for joint, errors in zip(c.joints, np.abs(targets - poses).T):
        if not joint.grips and not errors.max() <= POSE_TOLERANCE:
            yield f"{joint.name}: targets are off by {errors.max():.2g} {joint.units}"


def _limit_problems(c: PolicyContract) -> Iterator[str]:
    rng = np.random.default_rng(0)
    lower, upper = (
        np.array([getattr(j, name) for j in c.joints], np.float32) for name in ("lower", "upper")
    )
    numbers = [s for s in c.signals if not s.is_image]
    signals = _at_rest(c, ROBOTS) | {
        s.name: rng.normal(0, 10, (ROBOTS, s.size)).astype(np.float32) for s in numbers
    }
    memory, wrong = c.reset(signals), np.zeros(len(c.joints), bool)
    for _ in range(TICKS):
        action = rng.uniform(-1, 1, (ROBOTS, c.action_size)) * rng.choice(
            (1, 10, np.inf), (ROBOTS, 1)
        )
        targets, memory = c.act(action.astype(np.float32), memory)
        wrong |= ~((lower <= targets) & (targets <= upper)).all(0)
    yield from (
        f"{j.name}: a target outside {j.lower:g} .. {j.upper:g}"
        for j, bad in zip(c.joints, wrong)
        if bad
    )


def _report(found: Bundle) -> Finding:
    measured, of = found.report, found.manifest
    wrong = []
    try:
        low, high = measured["success"]["wilson95"]
        text = f"success {measured['success']['rate']:.1%} ({low:.1%} to {high:.1%}), {measured['episodes']} episodes"
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
        unmeasured = (
            f"was not evaluated: {text}" if not measured["episodes"] else f"never succeeded: {text}"
        )
        return Finding(
            bundle.REPORT,
            "warn",
            f"the policy {unmeasured}; train on, or export another with --policy",
        )
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
        places = [
            resolve(settings.against, found.task, settings.runs).checkpoint("check --against").path
        ]
    else:
        places = [found.path / "checkpoint", checkpoint.shipped(found.task), Path(wanted["label"])]
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

    env, network = Env(task, EnvConfig(num_envs=1), sim, settings.seed, EVALUATE), source.policy()
    errors, ends, wrong = {"actions": 0.0, "targets": 0.0}, [], []
    for seed in range(settings.seed, settings.seed + settings.episodes):
        for _, obs, decision in drive(env, found.policy(), seed):
            for name, mine, theirs in (
                ("actions", decision.action, network(obs)[0].numpy()),
                ("targets", decision.targets, env.state.command[0].numpy()),
            ):
                errors[name] = max(
                    errors[name], float(np.nan_to_num(np.abs(mine - theirs), nan=np.inf).max())
                )
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
    text = f"{ends[0]}, as with torch; actions off by {errors['actions']:.1g}, targets by {errors['targets']:.1g}"
    return judge(LOOP, wrong, text if len(ends) == 1 else f"{len(ends)} episodes: {text}")


def _ending(ended: dict[str, Any]) -> str:
    """How an episode ended; of one that ran its time, not if it succeeded: that can hang on the seventh digit."""
    if ended["time_out"][0] > 0:
        return "time_out"
    reasons = ["success", *(name for name in ended if name.startswith("failed/"))]
    return ", ".join(name for name in reasons if ended[name][0] > 0)
