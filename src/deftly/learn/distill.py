"""Behavioural cloning of a teacher on the states that the student comes to: DAgger (Ross et al. 2011, arXiv:1011.0686).

The teacher is a policy of the same robot whose contract may see more: where the box is, say. In the first iterations it
drives most environments, and then fewer, so that the student learns from what a good policy meets before it learns
from its own mistakes. Each rollout is learned from and forgotten, as rsl-rl's distillation does it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from deftly.config import DistillConfig, TaskConfig, parse, to_yaml, with_task
from deftly.config.mapping import differences
from deftly.contract import Memory
from deftly.env import Env, group_of
from deftly.errors import DeftlyError
from deftly.files import parse_yaml
from deftly.learn import checkpoint, optimizers
from deftly.learn.networks import Network, NetworkSpec, Policy
from deftly.learn.ppo import PRIVILEGED
from deftly.learn.ranks import Ranks
from deftly.sim.rows import wide


class Lessons(NamedTuple):
    """What the student saw, and what the teacher would have done there; the leading axes count steps."""

    inputs: Tensor  # (..., size of the student's input), not normalized
    actions: Tensor  # (..., action_size)


class Teacher:
    """A policy in the environments of another: it sees what its own contract says, without the sensors' noise.

    Raises DeftlyError if its actions mean something else than those of the environments' contract.
    """

    def __init__(self, env: Env, source: checkpoint.Checkpoint):
        self.env = env
        self.task = type(env.task)(_task_settings(env, source))
        self.contract = self.task.contract()
        self.contract.require(source.contract, str(source.path))
        self._require_same_actions()
        self.policy = source.policy().to(env.device)
        self.memory = self._fresh()

    def decide(self) -> Tensor:
        """What it does now, `(num_envs, action_size)` in [-1, 1]."""
        observed, self.memory = self.contract.observe(*self._now(self.memory))
        obs = {group_of(name): value for name, value in observed.items()}
        return self.policy(obs).clip(-1.0, 1.0)

    def follow(self, action: Tensor, ended: Tensor) -> None:
        """Note the action that was taken, and which environments began another episode after it."""
        _, memory = self.contract.act(action.clip(-1.0, 1.0), self.memory)
        fresh = self._fresh()
        self.memory = {
            name: torch.where(wide(ended, value), fresh[name], value)
            for name, value in memory.items()
        }

    def _now(self, memory: Memory) -> tuple[dict[str, Tensor], Memory, dict[str, Tensor]]:
        """Signals without noise, memory, inputs."""
        s = self.env.state
        signals = {
            name: value if value.dtype == torch.uint8 else value.float()
            for name, value in self.task.signals(s).items()
        }
        return signals, memory, {name: value.float() for name, value in self.task.inputs(s).items()}

    def _fresh(self) -> Memory:
        """The memory of an episode that begins now, under the command that holds."""
        signals, _, inputs = self._now({})
        memory = self.contract.reset(signals, inputs)
        return self.contract.follow(self.env.state.command, memory)

    def _require_same_actions(self) -> None:
        own, other = self.env.contract, self.contract
        same = own.joint_names == other.joint_names and own.rate == other.rate
        if not same or own.act_terms != other.act_terms:
            raise DeftlyError(
                "the teacher's actions mean something else than the student's: distill under the settings of the "
                "teacher's actions (joints, speeds, rate, low-pass)"
            )


class Distillation:
    """One learner on `env`. `actor` is the student; settings are documented in `DistillConfig`."""

    algorithm: str = "distill"
    metric_names: tuple[str, ...] = ("loss/imitation", "teacher", "time/collect", "time/update")

    def __init__(self, env: Env, settings: DistillConfig, ranks: Ranks | None = None):
        self.env, self.settings, self.ranks = env, settings, ranks or Ranks()
        self.device = env.device
        settings.require_for(env.num_envs)
        self.steps_per_iteration = settings.steps * env.num_envs
        self.teacher = Teacher(env, checkpoint.load(Path(settings.teacher)))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.actor = student_network(env, settings).to(self.device)
        self.networks: Mapping[str, Network] = {"actor": self.actor}
        self.ranks.broadcast_(self.networks.values())
        self.parameters = [*self.actor.layers.parameters()]
        self.optimizer = torch.optim.Adam(self.parameters, lr=settings.learning_rate, fused=True)
        self.iterations = 0
        self.generator = torch.Generator(self.device)
        self.generator.manual_seed(settings.seed + self.ranks.rank)

    @property
    def numbers(self) -> dict[str, float]:
        """None."""
        return {}

    @property
    def teacher_share(self) -> float:
        """Fraction of the environments that the teacher drives in the next iteration."""
        if self.iterations >= self.settings.mix_iterations:
            return 0.0
        return 1.0 - self.iterations / self.settings.mix_iterations

    def policy(self) -> Policy:
        """The student as it is now; it goes on changing."""
        return Policy(self.actor)

    def iterate(self) -> dict[str, float]:
        """One rollout and one update."""
        share = self.teacher_share
        start = time.perf_counter()
        lessons = self._collect(share)
        collected = time.perf_counter()
        loss = self._update(lessons)
        self.iterations += 1
        return {
            "loss/imitation": loss,
            "teacher": share,
            "time/collect": collected - start,
            "time/update": time.perf_counter() - collected,
        }

    @torch.no_grad()
    def _collect(self, share: float) -> Lessons:
        """Drive the environments for some steps, and ask the teacher in each."""
        env, teacher = self.env, self.teacher
        taught = torch.arange(env.num_envs, device=self.device) < round(share * env.num_envs)
        inputs, actions = [], []
        for _ in range(self.settings.steps):
            inputs.append(self.actor.gather(env.obs))
            actions.append(teacher.decide())
            action = torch.where(taught[:, None], actions[-1], self.actor(inputs[-1]))
            step = env.step(action)
            teacher.follow(action, step.terminated | step.truncated)
        return Lessons(torch.stack(inputs), torch.stack(actions))

    def _update(self, lessons: Lessons) -> float:
        """Take gradient steps, `epochs` times through the lessons; returns the mean squared error per element."""
        lessons = Lessons(*(value.flatten(0, 1) for value in lessons))
        if not self.settings.keep_normalizer:
            self.actor.normalizer.update(lessons.inputs, self.ranks)  # type: ignore[operator]
        total = torch.zeros((), device=self.device)
        for batch in self._minibatches(lessons):
            loss = (self.actor(batch.inputs) - batch.actions).square().mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.ranks.average_gradients(self.parameters)
            nn.utils.clip_grad_norm_(self.parameters, self.settings.max_grad_norm)
            self.optimizer.step()
            total += loss.detach()
        return float(total) / (self.settings.epochs * self.settings.minibatches)

    def _minibatches(self, lessons: Lessons) -> Iterator[Lessons]:
        """Parts in a new random order in each epoch; what a division leaves over is not used."""
        count = len(lessons.inputs)
        size = count // self.settings.minibatches
        for _ in range(self.settings.epochs):
            order = torch.randperm(count, generator=self.generator, device=self.device)
            for part in order.split(size)[: self.settings.minibatches]:
                yield Lessons(*(value[part] for value in lessons))

    def state_dict(self) -> dict[str, Tensor]:
        """Optimizer, generator, counter, and what the teacher remembers, as a flat mapping of tensors."""
        return {
            **optimizers.pack(self.optimizer),
            **{f"teacher/{name}": value for name, value in self.teacher.memory.items()},
            "iterations": torch.tensor(self.iterations),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` gave."""
        optimizers.unpack(self.optimizer, state)
        self.teacher.memory = {
            name: state[f"teacher/{name}"].to(self.device) for name in self.teacher.memory
        }
        self.iterations = int(state["iterations"])
        self.generator.set_state(state["generator"].cpu())


def student_network(env: Env, settings: DistillConfig) -> Network:
    """The student's network: as PPO's actor, so that PPO can go on from it."""
    inputs = {group: value.shape[-1] for group, value in env.obs.items() if group != PRIVILEGED}
    spec = NetworkSpec(
        inputs, env.contract.action_size, settings.hidden, settings.activation, head="gaussian"
    )
    return Network(spec, settings.init_std)


@dataclass(frozen=True)
class _Saved:
    """What of a checkpoint's settings makes its task."""

    task: TaskConfig = field(default_factory=TaskConfig)


def _task_settings(env: Env, source: checkpoint.Checkpoint) -> TaskConfig:
    """The settings of the task under which the teacher was trained."""
    kind = type(env.task).Config
    source.require_settings("task", kind)
    args = with_task(_Saved, kind)
    usual = parse_yaml(to_yaml(args()), "the default settings")
    saved = differences({"task": source.known_settings("task", kind)}, usual)
    return parse(args, [], prog="deftly distill", filed=saved).task
