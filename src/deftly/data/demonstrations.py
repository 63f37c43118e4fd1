"""Demonstrations: episodes of a policy in the environment of training, with what its cameras see.

A batch is simulated first, which is fast; then the episodes that are kept are rendered from their states. What stands
in row t of an episode was measured before action t was decided, and action t follows from it: nothing is off by one.

With noise on the executed actions (`perturb`) the policy is seen to come back from where it would not have gone by
itself, as in DART (Laskey et al. 2017); the action to learn is the policy's, not the one with the noise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from deftly.config import EnvConfig, SimConfig
from deftly.contract import JOINT_POS
from deftly.env import Env
from deftly.evaluate.rollout import decide
from deftly.policy.protocol import Policy
from deftly.render import Renderer, pose
from deftly.vla.features import exact

if TYPE_CHECKING:
    from deftly.tasks import Task

PURPOSE = "demos"
"""Purpose of the episodes: no training and no evaluation draws the same."""
MEMORY = 0.8
"""How much of the noise is left a step later (Ornstein-Uhlenbeck): white noise would hardly move an arm."""
NOISY_S = 2.0
"""The noise of an episode stops at a time drawn between 0 and this, s: no object can be held still while it lasts."""


@dataclass(frozen=True)
class Source:
    """Where demonstrations come from; the same source gives the same episodes."""

    task: Task
    sim: SimConfig
    seed: int
    batch: int
    """Environments simulated side by side."""
    perturb: float = 0.0
    """Standard deviation of the noise on the executed actions, which are within [-1, 1]; grippers have none."""

    def env(self, number: int) -> Env:
        """The environment of one batch, where its first episodes start."""
        return Env(
            self.task, EnvConfig(num_envs=self.batch), self.sim, self.seed, f"{PURPOSE}/{number}"
        )


@dataclass
class Episode:
    """One episode of one environment of a batch; arrays lead with its steps."""

    batch: int
    env: int
    success: bool = False
    object: str = ""
    """Name of what was drawn for it, of a task that says so (`Report.kinds`)."""
    states: list[np.ndarray] = field(default_factory=list)
    """Of the simulation, before each action."""
    joint_pos: list[np.ndarray] = field(default_factory=list)
    """Measured before each action, rad or m."""
    actions: list[np.ndarray] = field(default_factory=list)
    """What the policy decided."""
    executed: list[np.ndarray] = field(default_factory=list)
    """What the robot was told."""

    def __len__(self) -> int:
        return len(self.actions)


@torch.no_grad()
def simulate(source: Source, policy: Policy, number: int) -> tuple[Env, list[Episode]]:
    """Run the first episode of each environment of a batch."""
    env = source.env(number)
    episodes = [Episode(number, i) for i in range(env.num_envs)]
    noise = _Noise(source, number, env)
    running = np.ones(env.num_envs, bool)
    policy.reset()
    while running.any():
        before = [env.sim.state_of(i) if running[i] else None for i in range(env.num_envs)]
        joint_pos = env.signals[JOINT_POS].numpy().copy()
        action = exact(env.contract, decide(env, policy).numpy())
        executed = noise.add(action)
        env.step(torch.from_numpy(executed))
        for i in np.flatnonzero(running):
            episode = episodes[i]
            state = before[i]
            assert state is not None
            episode.states.append(state)
            episode.joint_pos.append(joint_pos[i])
            episode.actions.append(action[i])
            episode.executed.append(executed[i])
        if env.ended:
            ids = env.ended["env"].tolist()
            policy.reset(ids)
            objects = _objects(source.task, env)
            for place, i in enumerate(ids):
                if running[i]:
                    success = env.ended["success"][place]
                    episodes[i].success = bool(success)
                    episodes[i].object = objects[place]
            running[ids] = False
    return env, episodes


def _objects(task: Task, env: Env) -> list[str]:
    """Names of what was drawn for the episodes that just ended; empty where the task does not say."""
    kinds = task.report.kinds
    breakdown = task.report.breakdown
    if not kinds or breakdown is None:
        return [""] * len(env.ended["env"])
    metric, _ = breakdown
    return [kinds[int(number)] for number in env.ended[metric]]


class _Noise:
    """What is added to the actions of a batch."""

    def __init__(self, source: Source, number: int, env: Env):
        self._rng = np.random.default_rng([source.seed, number])
        self._std, self._contract = source.perturb, env.contract
        acts = env.contract.act_terms
        free = []
        for act in acts:
            free += [act.kind != "gripper"] * len(act.joints)
        self._free = np.array(free)
        self._value = np.zeros((env.num_envs, env.contract.action_size))
        longest = NOISY_S * env.contract.rate
        self._left = self._rng.uniform(0.0, longest, (env.num_envs, 1))

    def add(self, action: np.ndarray) -> np.ndarray:
        """Actions as they are executed."""
        if not self._std:
            return action
        std = self._std * np.sqrt(1 - MEMORY**2)
        fresh = self._rng.normal(0.0, std, self._value.shape)
        self._value = MEMORY * self._value + fresh * self._free
        self._left -= 1.0
        noise = self._value * (self._left > 0)
        return exact(self._contract, action + noise)


class Film:
    """Renders episodes with the cameras of a data set.

    Args:
        cameras: Names of cameras of the scene.
        size: Width and height of an image, pixels.
    """

    def __init__(self, cameras: tuple[str, ...], size: int):
        self._cameras, self._size = cameras, size
        self._renderers: dict[str, Renderer] = {}

    def frames(self, env: Env, episode: Episode) -> Iterator[dict[str, np.ndarray]]:
        """What each camera saw before each action, `(size, size, 3)` uint8 by its name."""
        model, data = env.drawn_of(episode.env), None
        if not self._renderers:
            size = (self._size, self._size)
            self._renderers = {
                name: Renderer(env.drawn, name, size, plain=True) for name in self._cameras
            }
        for state in episode.states:
            data = pose(model, state, data)
            yield {name: each.image(model, data) for name, each in self._renderers.items()}

    def close(self) -> None:
        """Let go of OpenGL."""
        for renderer in self._renderers.values():
            renderer.close()


@torch.no_grad()
def replay(
    source: Source, actions: dict[tuple[int, int], np.ndarray]
) -> dict[tuple[int, int], bool]:
    """Execute stored actions open loop from the starts of their episodes; whether each then succeeds.

    Args:
        source: What the episodes came from.
        actions: What the robot was told, (steps, action_size), by batch and environment. An environment without any
            opens its gripper and stays.
    """
    results = {}
    for number in sorted({batch for batch, _ in actions}):
        env = source.env(number)
        rows = {i: each for (batch, i), each in actions.items() if batch == number}
        left = set(rows)
        still = np.zeros((env.num_envs, env.contract.action_size), np.float32)
        longest = max(map(len, rows.values()))
        for step in range(longest):
            told = still.copy()
            for i in left:
                last = len(rows[i]) - 1
                told[i] = rows[i][min(step, last)]
            env.step(torch.from_numpy(told))
            if env.ended:
                ended = env.ended["env"].tolist()
                successes = env.ended["success"].tolist()
                for i, success in zip(ended, successes):
                    if i in left:
                        results[number, i] = bool(success)
                        left.discard(i)
        results |= {(number, i): False for i in left}
    return results
