"""`deftly play`: watch a policy in a window, in a browser or as a video, and follow a training while it runs."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from annotated_types import Ge, Le, Lt
from torch import Tensor
from typing_extensions import Doc

from deftly.config import OUTPUT_FILE, SEEDS, EnvConfig, RunsConfig, SimConfig, Suffix, draw_seed
from deftly.console import printable, say
from deftly.control.operator import OPERATOR, Operator, is_live, listening, require_spec
from deftly.control.operator.words import Words
from deftly.errors import DeftlyError
from deftly.evaluate.source import PolicyArgs, PolicySource, prepare, resolve
from deftly.learn.policy import NetworkPolicy
from deftly.policy.protocol import NO_INPUTS
from deftly.render import Recorder, choose_gl, pose, viewers, write_video
from deftly.render.viewers import View
from deftly.serving.endpoint import is_websocket

if TYPE_CHECKING:
    import mujoco

    from deftly.contract import Inputs, PolicyContract
    from deftly.env import Env
    from deftly.policy.protocol import Decision, Policy, Signals
    from deftly.tasks import Task


@dataclass(frozen=True)
class PlayArgs(PolicyArgs):
    """Watch a policy in one environment, in real time, or record a video of it."""

    agent: Annotated[
        Literal["trained", "random", "zero"], Doc("Who acts: a policy, uniform noise or nobody.")
    ] = "trained"
    viewer: Annotated[
        Literal["auto", "native", "web", "none"],
        Doc("A window (native), a page for the browser (web), or the first that works (auto)."),
    ] = "auto"
    video: Annotated[
        Path | None,
        Suffix(".mp4"),
        OUTPUT_FILE,
        Doc("Write an mp4 of some episodes to this file instead, and exit."),
    ] = None
    episodes: Annotated[
        int,
        Ge(0),
        Le(10**9),
        Doc("Episodes to play; 0 goes on until Ctrl-C, and takes 3 for a video."),
    ] = 0
    reload: Annotated[
        float,
        Ge(0),
        Le(1e9),
        Doc(
            "Look for a newer checkpoint each so many seconds, to follow a training; 0 never does."
        ),
    ] = 0.0
    seed: Annotated[
        int, Ge(-1), Lt(SEEDS), Doc("Decides which episodes are played; -1 draws one.")
    ] = 0
    speed: Annotated[float, Ge(0.01), Le(100), Doc("Simulated seconds in a second.")] = 1.0
    operator: Annotated[
        str | None, Doc(f"{OPERATOR} Unset: the task, as in training, or the page's sliders.")
    ] = None
    camera: Annotated[
        str | None,
        Doc(
            "Camera of the video and of the first view; unset: the first that stands in the scene."
        ),
    ] = None
    port: Annotated[
        int,
        Ge(1),
        Le(65535),
        Doc(
            "Port of the web viewer on this machine; without a password: from elsewhere use ssh -L."
        ),
    ] = 8080
    sim: Annotated[SimConfig, Doc("The physics engine; as in the training unless set.")] = field(
        default_factory=SimConfig
    )
    env: Annotated[EnvConfig, Doc("What disturbs the episodes; env.num-envs is not used.")] = field(
        default_factory=EnvConfig
    )
    runs: Annotated[RunsConfig, Doc("Where runs are kept.")] = field(default_factory=RunsConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        draw_seed(self)
        if self.operator:
            require_spec(self.operator)
            if is_live(self.operator) and self.video:
                raise DeftlyError(
                    f"--operator {self.operator} needs somebody who sees the robot: leave out --video, or give FILE.csv"
                )


class Reloaded:
    """The `Policy` that `find` finds, which `poll` swaps for a newer one."""

    deterministic = True

    def __init__(
        self, source: PolicySource, find: Callable[[], PolicySource], task: Task, args: PlayArgs
    ):
        self.contract = task.contract()
        self._find = find
        self._name = task.name
        self._keys = args.keys
        self._interval = args.reload
        self._warned = ""
        self._use(source)

    def reset(self, ids: Sequence[int] | None = None) -> None:
        """These robots start an episode."""
        self._policy.reset(ids)

    def infer(
        self,
        signals: Signals,
        inputs: Inputs = NO_INPUTS,
        applied: Any = None,
        ids: Sequence[int] | None = None,
    ) -> Decision:
        """Decide; see `Policy`."""
        return self._policy.infer(signals, inputs, applied, ids)

    def forget(self, ids: Sequence[int]) -> None:
        """These robots are gone."""
        self._policy.forget(ids)

    def close(self) -> None:
        """Let go of the policy."""
        self._policy.close()

    def poll(self) -> None:
        """Swap the policy if it is time and there is a newer one; what cannot be used is told and skipped."""
        if not self._interval or time.monotonic() < self._due:
            return
        self._due = time.monotonic() + self._interval
        try:
            source = self._find()
            if source.sha256 != self._sha256:
                source.require(self.contract, self._name)
                self._policy.close()
                self._use(source)
                say(source.line)
        except (DeftlyError, OSError) as error:
            if str(error) != self._warned:  # once, while it stays as it is
                print(f"warning: kept the policy, {printable(error)}", file=sys.stderr, flush=True)
            self._warned = str(error)

    def _use(self, source: PolicySource) -> None:
        in_real_time = source.kind == "endpoint" and not is_websocket(source.label)
        self._policy = source.open(self.contract, timeout=10.0, keys=self._keys, ahead=in_real_time)
        self._sha256 = source.sha256
        self._due = time.monotonic() + self._interval


def _untrained(agent: str, contract: PolicyContract) -> Policy:
    """Nobody (zeros), or uniform noise."""

    def act(obs: Tensor | Mapping[str, Tensor]) -> Tensor:
        rows = obs if isinstance(obs, Tensor) else next(iter(obs.values()))
        shape = len(rows), contract.action_size
        return torch.zeros(shape) if agent == "zero" else 2 * torch.rand(shape) - 1

    return NetworkPolicy(contract, act)


class Listener:
    """Lets an environment hear an operator, step by step; each episode is a new one for him."""

    def __init__(self, operator: Operator):
        self._operator = operator
        self._ticks = 0

    def __call__(self, env: Env) -> None:
        """Before a step. Raises KeyboardInterrupt if he quits."""
        now = self._ticks / env.contract.rate
        self._ticks += 1
        if "q" in self._operator.words():
            raise KeyboardInterrupt
        if not int(env.state.steps[0]):
            self._operator.hear(now, False)
        said = self._operator.hear(now, True)
        env.hear(Words(env.contract).defaults() if said is None else said)
        for line in self._operator.notes():
            print(line, flush=True)


def play(
    env: Env,
    policy: Policy,
    args: PlayArgs,
    view: View,
    data: mujoco.MjData,
    listen: Callable[[Env], None] | None = None,
) -> None:
    """Step one environment in real time until the episodes are played or the viewer is closed.

    `listen` lets it hear an operator before each step; without one, the viewer's user may be one.
    """
    from deftly.evaluate.rollout import decide

    policy.reset()
    poll = getattr(policy, "poll", lambda: None)
    episodes, due = 0, time.perf_counter()
    while view.running() and not (args.episodes and episodes >= args.episodes):
        speed = view.speed()
        if speed > 0:
            if listen:
                listen(env)
            else:
                env.hear(view.said())
            env.step(decide(env, policy))
            if env.ended:
                policy.reset()
                ended = {name: float(value[0]) for name, value in env.ended.items()}
                seconds = ended["steps"] / env.contract.rate
                say(f"{outcome(ended)} after {seconds:.1f} s, return {ended['return']:.2f}")
                episodes += 1
            pose(env.drawn, env.sim.state_of(0), data)
        view.show(data)
        poll()
        due = max(due + 1 / (env.contract.rate * (speed or 1.0)), time.perf_counter() - 0.2)
        time.sleep(max(0.0, due - time.perf_counter()))


def outcome(ended: Mapping[str, float]) -> str:
    """How an episode ended, by its metrics: `success`, or why it failed."""
    if ended["success"] > 0:
        return "success"
    prefix = "failed/"
    failures = [name.removeprefix(prefix) for name in ended if name.startswith(prefix)]
    met = [name for name in failures if ended[prefix + name] > 0]
    return f"failed: {', '.join(met) or 'time is up'}"


def _live(task: Task, policy: Policy, args: PlayArgs) -> None:
    from deftly.env import Env

    env = Env(task, replace(args.env, num_envs=1), args.sim, args.seed, "play")
    data = pose(env.drawn, env.sim.state_of(0))
    with (
        contextlib.suppress(KeyboardInterrupt),
        viewers.open_view(env, data, args) as view,
        _listener(args, env.contract) as listen,
    ):
        play(env, policy, args, view, data, listen)


@contextlib.contextmanager
def _listener(args: PlayArgs, contract: PolicyContract) -> Iterator[Listener | None]:
    """What lets an environment hear the operator of `--operator`; None without one."""
    if not args.operator:
        yield None
        return
    with listening(args.operator, contract) as operator:
        yield Listener(operator)


def record(task: Task, policy: Policy, args: PlayArgs, path: Path) -> None:
    """Write an mp4 of some episodes, one after the other, at the control rate."""
    from deftly.evaluate.rollout import run_episodes

    if not path.parent.is_dir():
        raise DeftlyError(
            f"no folder '{path.parent}' for the video: make it, or choose another --video FILE"
        )
    count = args.episodes or 3
    recorder = Recorder(count, args.camera)
    with _listener(args, task.contract()) as listen:

        def on_step(env: Env, running: Tensor) -> None:
            recorder.watch(env, running)
            if listen:
                listen(env)

        ran = run_episodes(
            task,
            policy,
            count,
            seed=args.seed,
            purpose="play",
            env_cfg=args.env,
            sim_cfg=args.sim,
            on_step=on_step,
            what="simulating",
        )
    frames = write_video(path, recorder.frames(), ran.rate * args.speed)
    print(
        f"{path}: {count} episodes, success {ran.success_rate:.0%}, {frames / ran.rate / args.speed:.1f} s"
    )
    for i in range(count):
        ended = {name: float(values[i]) for name, values in ran.values.items()}
        print(f"episode {i + 1}: {outcome(ended)} after {ended['steps'] / ran.rate:.1f} s")


def main(argv: list[str]) -> int:
    """Run `deftly play`."""
    choose_gl()  # before anything imports MuJoCo
    task, args, source = prepare(PlayArgs, "play", argv)
    if not args.video:
        viewers.pick_viewer(args.viewer)
    if source:

        def find() -> PolicySource:
            return resolve(args.policy, task.name, args.runs)

        policy: Policy = Reloaded(source, find, task, args)
    else:
        policy = _untrained(args.agent, task.contract())
    if args.video:
        record(task, policy, args, args.video)
    else:
        _live(task, policy, args)
    policy.close()
    return 0
