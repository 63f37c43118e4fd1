"""Behavioural cloning of a teacher on the states that the student comes to: DAgger (Ross et al. 2011, arXiv:1011.0686).

The teacher is a policy of the same robot whose contract may see more: where the box is, say. In the first iterations it
drives most environments, and then fewer, so that the student learns from what a good policy meets before it learns
from its own mistakes. Each rollout is learned from and forgotten, as rsl-rl's distillation does it, unless there is
a `buffer`: then the newest lessons of all rollouts are learned from again and again, which pays where a lesson is an
image that takes longer to draw than to learn from.

With `average` the policy is the exponential moving average of the student's weights over the last gradient steps.
Single steps disagree most where images differ from all that was seen, and the average of their weights errs less there
(Izmailov et al. 2018, arXiv:1803.05407).
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from deftly.config import DistillConfig, RunsConfig, TaskConfig, parse, to_yaml, with_task
from deftly.config.mapping import differences
from deftly.contract import Memory
from deftly.env import Env, group_of
from deftly.errors import DeftlyError
from deftly.files import parse_yaml
from deftly.learn import augmentation, checkpoint, optimizers
from deftly.learn.networks import Network, NetworkSpec, Policy, take_in
from deftly.learn.ppo import PRIVILEGED
from deftly.learn.ranks import Ranks
from deftly.sim.rows import wide
from deftly.tasks import Task, load, shipped


class Lessons(NamedTuple):
    """What the student saw, and what the teacher would have done there; the leading axes count steps."""

    inputs: Tensor  # (..., size of the student's input), not normalized
    actions: Tensor  # (..., action_size)
    images: tuple[Tensor, ...] = ()  # (..., height, width, 3) uint8 of each group of images

    def map(self, change: Callable[[Tensor], Tensor]) -> Lessons:
        """All of it changed in the same way, such as some rows of it."""
        images = tuple(map(change, self.images))
        return Lessons(change(self.inputs), change(self.actions), images)


class LessonBuffer:
    """The newest lessons of all rollouts: DAgger's aggregated data set, of a bounded size.

    Args:
        capacity: Lessons that are kept.
    """

    def __init__(self, capacity: int):
        self.capacity = capacity
        self.written = 0
        self._kept: Lessons | None = None

    def __len__(self) -> int:
        """Lessons that it holds."""
        return min(self.written, self.capacity)

    def add(self, lessons: Lessons) -> None:
        """Write lessons, flat, over the oldest."""
        count = len(lessons.inputs)
        if self._kept is None:
            self._kept = lessons.map(self._room_for)
        places = (self.written + torch.arange(count)) % self.capacity
        for kept, new in zip(_tensors(self._kept), _tensors(lessons)):
            kept[places] = new
        self.written += count

    def draw(self, count: int, generator: torch.Generator) -> Lessons:
        """Some lessons, with replacement."""
        assert self._kept is not None
        rows = torch.randint(len(self), (count,), generator=generator, device=generator.device)
        return self._kept.map(lambda kept: kept[rows])

    def state_dict(self) -> dict[str, Tensor]:
        """What was written, and how much there was, as a flat mapping of tensors."""
        kept = _tensors(self._kept) if self._kept else ()
        rows = {f"buffer/{i}": value[: len(self)] for i, value in enumerate(kept)}
        return {**rows, "buffer/written": torch.tensor(self.written)}

    def load_state_dict(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        """Restore what `state_dict` gave. Raises ValueError if it was of another size."""
        self.written = int(state["buffer/written"])
        self._kept = None
        rows = [state[f"buffer/{i}"] for i in range(len(state)) if f"buffer/{i}" in state]
        if not rows:
            return
        if len(rows[0]) != len(self):
            raise ValueError(f"the buffer holds {len(rows[0])} lessons: use the saved train.buffer")
        inputs, actions, *images = (self._room_for(saved.to(device)) for saved in rows)
        self._kept = Lessons(inputs, actions, tuple(images))
        for kept, saved in zip(_tensors(self._kept), rows):
            kept[: len(self)] = saved

    def _room_for(self, rows: Tensor) -> Tensor:
        """Zeros for as many rows as it may hold."""
        return rows.new_zeros(self.capacity, *rows.shape[1:])


def _tensors(lessons: Lessons) -> tuple[Tensor, ...]:
    return (lessons.inputs, lessons.actions, *lessons.images)


class Teacher:
    """A policy in the environments of another: it sees what its own contract says, without the sensors' noise.

    Raises DeftlyError if its actions mean something else than those of the environments' contract.
    """

    def __init__(self, env: Env, source: checkpoint.Checkpoint):
        self.env = env
        self._require_same_robot(source)
        saved = _task_settings(env, source)
        self.task = type(env.task)(_seen_by(env, saved))
        self.contract = self.task.contract()
        self.contract.require(source.contract, str(source.path))
        self._require_same_actions()
        self.policy = source.policy().to(env.device)
        self.memory = self._fresh()

    def _require_same_robot(self, source: checkpoint.Checkpoint) -> None:
        own, other = self.env.contract, source.contract
        if own.joint_names != other.joint_names:
            raise DeftlyError(
                f"{source.path} is a policy of {source.task} (robot {other.robot.name}), not of "
                f"{self.env.task.name} (robot {own.robot.name}): give another --teacher"
            )

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
        same_joints = own.joint_names == other.joint_names
        same_meaning = own.rate == other.rate and own.act_terms == other.act_terms
        if not (same_joints and same_meaning):
            raise DeftlyError(
                "the teacher's actions mean something else than the student's: distill under the settings of the "
                "teacher's actions (joints, speeds, rate, low-pass)"
            )


class Distillation:
    """One learner on `env`; settings are documented in `DistillConfig`.

    `student` is the network that learns, `actor` the policy: the student itself, or the average of its weights.
    """

    algorithm: str = "distill"
    metric_names: tuple[str, ...] = ("loss/imitation", "teacher", "time/collect", "time/update")

    def __init__(self, env: Env, settings: DistillConfig, ranks: Ranks | None = None):
        self.env = env
        self.settings = settings
        self.ranks = ranks or Ranks()
        self.device = env.device
        settings.require_for(env.num_envs)
        self.steps_per_iteration = settings.steps * env.num_envs
        place = teacher_place(settings.teacher, env.task, RunsConfig())
        self.teacher = Teacher(env, checkpoint.load(place))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.student = student_network(env, settings).to(self.device)
        self.ranks.broadcast_([self.student])
        self.actor = self.student
        if settings.average:
            self.actor = copy.deepcopy(self.student).requires_grad_(False)
        self.networks: Mapping[str, Network] = {"actor": self.actor}
        layers = (self.student.encoders, self.student.layers)
        self.parameters = [value for layer in layers for value in layer.parameters()]
        self.buffer = LessonBuffer(settings.buffer)
        self.optimizer = torch.optim.Adam(self.parameters, lr=settings.learning_rate, fused=True)
        self.iterations = 0
        self.updates = 0
        """Gradient steps that the average has taken in."""
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
        if self.iterations == 0:
            # --init gave its weights to the actor
            self.student.load_state_dict(self.actor.state_dict())
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
        """Drive the environments for some steps, and ask the teacher in each; the lessons are flat."""
        env, teacher = self.env, self.teacher
        num_taught = round(share * env.num_envs)
        taught = torch.arange(env.num_envs, device=self.device) < num_taught
        steps: list[Lessons] = []
        for _ in range(self.settings.steps):
            inputs = self.actor.gather(env.obs)
            images = self.actor.images(env.obs)
            lesson = Lessons(inputs, teacher.decide(), images)
            steps.append(lesson)
            own = self.actor(inputs, *images)
            action = torch.where(taught[:, None], lesson.actions, own)
            step = env.step(action)
            teacher.follow(action, step.terminated | step.truncated)
        inputs, actions, images = zip(*steps)
        by_camera = tuple(torch.cat(frames) for frames in zip(*images))
        return Lessons(torch.cat(inputs), torch.cat(actions), by_camera)

    def _update(self, lessons: Lessons) -> float:
        """Take gradient steps, `epochs` times through the lessons; returns the mean squared error per element."""
        if not self.settings.keep_normalizer:
            self.student.normalizer.update(lessons.inputs, self.ranks)  # type: ignore[operator]
            self.actor.normalizer.load_state_dict(self.student.normalizer.state_dict())
        total = torch.zeros((), device=self.device)
        for batch in self._minibatches(lessons):
            answers = self.student(batch.inputs, *map(self._augmented, batch.images))
            loss = (answers - batch.actions).square().mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.ranks.average_gradients(self.parameters)
            nn.utils.clip_grad_norm_(self.parameters, self.settings.max_grad_norm)
            self.optimizer.step()
            self._average()
            total += loss.detach()
        return float(total) / (self.settings.epochs * self.settings.minibatches)

    def _average(self) -> None:
        """Take the newest weights into the average, if there is one."""
        if self.settings.average:
            take_in(self.actor, self.student, self.settings.average, self.updates)
            self.updates += 1

    def _augmented(self, images: Tensor) -> Tensor:
        """Images of lessons as they are learned from, changed at random."""
        shift, gain = self.settings.augment_shift, self.settings.augment_gain
        if shift:
            images = augmentation.shifted(images, shift, self.generator)
        return augmentation.relit(images, gain, self.generator) if gain else images

    def _minibatches(self, lessons: Lessons) -> Iterator[Lessons]:
        """Parts in a new random order in each epoch; what a division leaves over is not used.

        With a buffer as many parts, each as large, drawn from all that it holds.
        """
        count = len(lessons.inputs)
        size = count // self.settings.minibatches
        if self.settings.buffer:
            self.buffer.add(lessons)
            for _ in range(self.settings.epochs * self.settings.minibatches):
                yield self.buffer.draw(size, self.generator)
            return
        for _ in range(self.settings.epochs):
            order = torch.randperm(count, generator=self.generator, device=self.device)
            for part in order.split(size)[: self.settings.minibatches]:
                yield lessons.map(partial(_rows, part))

    def state_dict(self) -> dict[str, Tensor]:
        """Optimizer, generator, counters, buffer, what the teacher remembers, and beside an average the student."""
        student = self.student.state_dict() if self.settings.average else {}
        return {
            **{f"student/{name}": value for name, value in student.items()},
            "updates": torch.tensor(self.updates),
            **self.buffer.state_dict(),
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
        if self.settings.buffer:
            self.buffer.load_state_dict(state, self.device)
        if self.settings.average:
            saved = {name: state[f"student/{name}"] for name in self.student.state_dict()}
            self.student.load_state_dict(saved)
            self.updates = int(state["updates"])
        self.iterations = int(state["iterations"])
        self.generator.set_state(state["generator"].cpu())


def teacher_place(teacher: str, task: Task, runs: RunsConfig) -> Path:
    """The folder of a teacher's checkpoint: `shipped` is that of the task, or of the one that it names.

    Raises DeftlyError if there is none.
    """
    name = (teacher == "shipped" and task.teacher) or task.name
    return checkpoint.find(teacher, name, runs)


def _rows(rows: Tensor, value: Tensor) -> Tensor:
    return value[rows]


def student_network(env: Env, settings: DistillConfig) -> Network:
    """The student's network: as PPO's actor, so that PPO can go on from it; it sees images as well."""
    groups = {group: value.shape for group, value in env.obs.items() if group != PRIVILEGED}
    images = {group: (shape[1], shape[2]) for group, shape in groups.items() if len(shape) == 4}
    inputs = {group: shape[1] for group, shape in groups.items() if group not in images}
    spec = NetworkSpec(
        inputs,
        env.contract.action_size,
        settings.hidden,
        settings.activation,
        head="gaussian",
        images=images,
    )
    return Network(spec, settings.init_std)


@dataclass(frozen=True)
class _Saved:
    """What of a checkpoint's settings makes its task."""

    task: TaskConfig = field(default_factory=TaskConfig)


def _task_settings(env: Env, source: checkpoint.Checkpoint) -> TaskConfig:
    """The settings of the task under which the teacher was trained; what it did not save is as in its own task."""
    kind = type(env.task).Config
    if source.task in shipped():
        kind = load(source.task).Config
    source.require_settings("task", kind)
    args = with_task(_Saved, kind)
    usual = parse_yaml(to_yaml(args()), "the default settings")
    saved = differences({"task": source.known_settings("task", kind)}, usual)
    return parse(args, [], prog="deftly distill", filed=saved).task


def _seen_by(env: Env, saved: TaskConfig) -> TaskConfig:
    """The settings of the environments' task, but for those of the teacher's on which its contract depends.

    So the teacher sees what it was trained to see, of the scene that is there: other objects, say, than it met.
    """
    kind = type(env.task)
    cfg = env.task.cfg
    known = {item.name for item in fields(cfg)}
    for item in fields(saved):
        if item.name not in known:
            continue
        changed = replace(cfg, **{item.name: getattr(saved, item.name)})
        if changed == cfg:
            continue
        if kind(changed).contract() != kind(cfg).contract():
            cfg = changed
    return cfg
