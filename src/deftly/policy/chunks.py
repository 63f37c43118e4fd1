"""Policies that answer action chunks, as policies that decide step by step.

A chunk is asked for every `executed` control steps, and each action in it is for one step, the first for that in which
it was asked for. The newest chunk that is there decides. One that took d steps is used from its action d on: what is in
the past by then is skipped. That is the simplest form of real-time chunking (K. Black, M. Y. Galliker, S. Levine,
Real-time execution of action chunking flow policies, 2025, arXiv:2506.07339, which makes the new chunk agree with what
is executed meanwhile as well). `ensemble` averages over all chunks that have an action for the step, as temporal
ensembling does (T. Z. Zhao et al., Learning fine-grained bimanual manipulation with low-cost hardware, RSS 2023).

In an environment the model is asked in the step itself, and a delay is simulated: `delay`. On a robot it is asked in a
thread of its own (`Ahead`), and the delay is measured: a chunk is asked for as early as the slowest of the last few
took. A robot without an action holds the command that it has; after `late` such steps there is no decision any more,
which the safety kernel makes a fault.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple, Protocol

import numpy as np
from annotated_types import Ge, Le
from typing_extensions import Doc

from deftly.config import Settings
from deftly.contract import ACTION, COMMAND, Inputs, Memory, PolicyContract
from deftly.contract.terms import spread
from deftly.errors import DeftlyError
from deftly.policy.protocol import (
    NO_INPUTS,
    ContractPolicy,
    Decision,
    PolicyError,
    Signals,
    rows_of,
)

HORIZON, EXECUTED = 10, 8
"""Actions of a chunk, and how many of them are executed, unless the model says otherwise: openpi's for DROID."""
MAX_HORIZON = 1000
CHUNK_S = 10.0
"""Longest wait for a chunk on a robot, s, unless one is asked for: the robot has held long before."""
MEASURED = 8
"""Chunks whose delay is remembered."""


@dataclass(frozen=True)
class ChunkConfig(Settings, section="chunk"):
    """How the chunks of a policy are executed."""

    executed: Annotated[
        int | None,
        Ge(1),
        Le(MAX_HORIZON),
        Doc("Control steps from asking for one chunk to the next; unset: the model's own, else 8."),
    ] = None
    delay: Annotated[
        int,
        Ge(0),
        Le(MAX_HORIZON),
        Doc("In simulation: control steps that a chunk takes; on a robot that is measured."),
    ] = 0
    ensemble: Annotated[
        float,
        Ge(0),
        Le(100),
        Doc("Average over chunks, the i-th oldest weighted exp(-ensemble * i); 0: the newest."),
    ] = 0.0
    late: Annotated[
        int,
        Ge(0),
        Le(100_000),
        Doc("Control steps for which a robot without an action holds; then the policy has failed."),
    ] = 10


class Observed(NamedTuple):
    """What a model is told of n robots."""

    signals: dict[str, np.ndarray]
    """What each measured, by name: `(n, size)` float32, or `(n, height, width, 3)` uint8."""
    inputs: dict[str, Any]
    """What their operators say: every input of the contract, numbers `(n, size)` float32, texts a list of n."""
    command: np.ndarray
    """(n, num_joints) float32: what each was commanded last; at the start of an episode, where it is."""
    ids: list[int]
    """Which robots they are."""
    fresh: list[bool]
    """Which of them start an episode."""

    def rows(self, places: Sequence[int]) -> Observed:
        """Of some of the robots."""
        return Observed(
            {name: value[places] for name, value in self.signals.items()},
            {name: rows_of(value, places) for name, value in self.inputs.items()},
            self.command[places],
            [self.ids[i] for i in places],
            [self.fresh[i] for i in places],
        )


class ChunkModel(Protocol):
    """What answers action chunks for n robots: a model in this process, or a server's."""

    contract: PolicyContract
    deterministic: bool
    horizon: int | None
    """Actions of a chunk; None: not known yet. One that decides step by step has 1, and may remember the episode."""
    executed: int | None
    """How many of them it was trained to execute before it is asked again; None: it does not say."""

    def predict(self, seen: Observed) -> np.ndarray:
        """The next actions of each robot under the contract, `(n, horizon, action_size)`, one for each control step.

        Raises PolicyError if there is no answer.
        """
        ...

    def close(self) -> None:
        """Let go of what is held."""
        ...


class Chunk(NamedTuple):
    """The actions of a robot from a step of its episode on."""

    start: int
    actions: np.ndarray
    """(horizon, action_size) float32."""

    def covers(self, step: int) -> bool:
        """Whether it has an action for this step."""
        return self.start <= step < self.start + len(self.actions)


@dataclass(slots=True, eq=False)
class Plan:
    """What one robot does next."""

    row: int
    """Which robot it is."""
    begun: bool = False
    """Whether a chunk came in this episode."""
    step: int = 0
    """Control steps since its episode began."""
    due: int = 0
    """Step in which the next chunk is asked for."""
    asked: int | None = None
    """Step in which the chunk was asked for that is on its way; None: there is none."""
    chunks: list[Chunk] = field(default_factory=list)
    """Oldest first."""
    held: int = 0
    """Steps for which there was no action, up to now."""
    problem: str = ""
    """Why the last chunk did not come."""

    def add(self, chunk: Chunk) -> None:
        """Take a chunk that came, and let go of those that are over."""
        kept = [each for each in self.chunks if each.covers(self.step)]
        self.chunks = [*kept, chunk]
        self.asked = None

    def action(self, ensemble: float) -> np.ndarray | None:
        """The action of this step, `(action_size,)`; None if no chunk has one."""
        there = [chunk for chunk in self.chunks if chunk.covers(self.step)]
        if not there:
            return None
        actions = np.stack([chunk.actions[self.step - chunk.start] for chunk in there])
        if not ensemble:
            return actions[-1]
        weights = np.exp(-ensemble * np.arange(len(there), dtype=np.float32))
        return (weights / weights.sum()) @ actions


Request = tuple[list[Plan], Observed]
"""Robots, and what is observed of each."""
Answer = tuple[list[Plan], np.ndarray | Exception]
"""Robots, and the chunk of each, or why there is none."""


class AtOnce:
    """Asks a model in the control step itself: of an environment, whose time stands still meanwhile."""

    def __init__(self, ask: Callable[[Request], np.ndarray], delay: int):
        self._ask = ask
        self._delay = delay
        self._waiting: list[tuple[list[Plan], np.ndarray]] = []

    def ask(self, request: Request) -> None:
        """Ask for a chunk of each robot. Raises what the model raises."""
        self._waiting.append((request[0], self._ask(request)))

    def answers(self) -> list[Answer]:
        """The chunks whose simulated delay is over."""
        ready: list[Answer] = []
        waiting = []
        for plans, chunks in self._waiting:
            over = []
            rest = []
            for plan in plans:
                is_over = plan.asked is not None and plan.step - plan.asked >= self._delay
                over.append(is_over)
                rest.append(plan.asked is not None and not is_over)
            ready.append((_chosen(plans, over), chunks[over]))
            if any(rest):
                waiting.append((_chosen(plans, rest), chunks[rest]))
        self._waiting = waiting
        return ready

    def close(self) -> None:
        """Nothing is held."""


class Ahead:
    """Asks a model in a thread of its own, for all robots that wait at one time, while these go on."""

    def __init__(self, ask: Callable[[Request], np.ndarray]):
        self._ask = ask
        self._requests = queue.SimpleQueue[Request | None]()
        self._answers = queue.SimpleQueue[Answer]()
        threading.Thread(target=self._work, name="chunks", daemon=True).start()

    def ask(self, request: Request) -> None:
        """Ask for a chunk of each robot, when the model is free."""
        self._requests.put(request)

    def answers(self) -> list[Answer]:
        """What came since the last call."""
        found = []
        while True:
            try:
                found.append(self._answers.get_nowait())
            except queue.Empty:
                return found

    def close(self) -> None:
        """End the thread, after the call that it may be in."""
        self._requests.put(None)

    def _work(self) -> None:
        while (request := self._requests.get()) is not None:
            waiting = [request]
            while not self._requests.empty():
                following = self._requests.get()
                if following is None:
                    return
                waiting.append(following)
            together = _merged(waiting)
            answer: Answer
            try:
                answer = (together[0], self._ask(together))
            except Exception as error:  # the robots' to judge, whatever it is
                answer = (together[0], error)
            self._answers.put(answer)


class ChunkPolicy(ContractPolicy):
    """A model of action chunks as a `Policy`; see the module.

    Args:
        model: What answers chunks.
        cfg: How they are executed.
        ahead: Ask in a thread of its own, as on a robot; else in the step itself, which gives the same every time.

    Raises PolicyError if the chunks of a model whose horizon is known are too short for these settings.
    """

    def __init__(self, model: ChunkModel, cfg: ChunkConfig | None = None, ahead: bool = False):
        super().__init__(model.contract, _no_network, model.deterministic)
        self.model = model
        self.cfg = cfg or ChunkConfig()
        self.ahead = ahead
        self.delays: deque[int] = deque(maxlen=MEASURED)
        """Control steps that the last chunks took."""
        self._plans: dict[int, Plan] = {}
        executed = self.cfg.executed or model.executed or EXECUTED
        self.executed = 1 if model.horizon == 1 else executed
        """Control steps from asking for one chunk to the next."""
        self._asker = Ahead(self._predict) if ahead else AtOnce(self._predict, self.cfg.delay)
        if model.horizon is not None:
            self._require_horizon(model.horizon)

    def require_network(self) -> None:
        """Raise DeftlyError unless the model answers; also gets its first, slow call done."""
        signals = {}
        for signal in self.contract.signals:
            dtype = np.uint8 if signal.is_image else np.float32
            signals[signal.name] = np.zeros((1, *signal.shape), dtype)
        command = np.array([self.contract.home()], np.float32)
        said = said_by_all(self.contract, NO_INPUTS, 1)
        seen = Observed(signals, said, command, [0], [True])
        self._predict(([], seen))

    def predict(self, seen: Observed) -> np.ndarray:
        """A chunk of each of n robots, `(n, horizon, action_size)` float32, straight from the model, and checked.

        Raises PolicyError for one of another shape, or with numbers that are not finite.
        """
        chunks = np.asarray(self.model.predict(seen))
        count = len(seen.ids)
        size = self.contract.action_size
        fits = chunks.ndim == 3 and chunks.shape[0] == count and chunks.shape[2] == size
        if not fits or not 1 <= chunks.shape[1] <= MAX_HORIZON:
            wanted = f"({count}, 1 to {MAX_HORIZON}, {size})"
            raise PolicyError(f"the policy answers a chunk of shape {chunks.shape}, not {wanted}")
        require_finite(chunks)
        return chunks.astype(np.float32)

    def _require_horizon(self, horizon: int) -> None:
        """Raise PolicyError if chunks are over before the next one is there."""
        delay = 0 if self.ahead else self.cfg.delay
        needed = self.executed + delay
        if horizon < needed:
            raise PolicyError(
                f"the policy answers chunks of {horizon} actions, and {needed} are needed: "
                f"--chunk.executed and --chunk.delay together are at most {horizon}"
            )

    def reset(self, ids: Sequence[int] | None = None) -> None:
        """These robots start an episode with their next signals; what was asked for them before is dropped."""
        super().reset(ids)
        for row in list(self._plans) if ids is None else ids:
            self._drop(row)

    def forget(self, ids: Sequence[int]) -> None:
        """These robots are gone; others may get their rows."""
        super().forget(ids)
        for row in ids:
            self._drop(row)

    def infer(
        self,
        signals: Signals,
        inputs: Inputs = NO_INPUTS,
        applied: Any = None,
        ids: Sequence[int] | None = None,
    ) -> Decision:
        """Decide one control step of n robots; see `Policy`. Raises PolicyError if a robot has held for too long."""
        signals = self._read(signals)
        count = len(next(iter(signals.values())))
        rows = list(range(count)) if ids is None else list(ids)
        plans = [self._plans.setdefault(row, Plan(row)) for row in rows]
        memory = self._recalled(rows, signals, inputs, applied)
        self._take_answers()
        self._ask_for(plans, signals, inputs, memory[COMMAND])
        self._take_answers()
        actions = [plan.action(self.cfg.ensemble) for plan in plans]
        self._require_in_time(plans, actions)
        holds = np.array([action is None for action in actions])
        given = np.stack([self._idle(memory, i) if a is None else a for i, a in enumerate(actions)])
        targets, after = self.contract.act(given, memory)
        held = self.contract.robot.within_limits(memory[COMMAND])
        after[ACTION] = np.where(holds[:, None], memory[ACTION], after[ACTION])
        after[COMMAND] = targets = np.where(holds[:, None], held, targets)
        self._keep_finite(rows, after, given, targets)
        for plan, held in zip(plans, holds):
            plan.step += 1
            plan.held = plan.held + 1 if held else 0
        return Decision(given, targets)

    def close(self) -> None:
        """Let go of the model."""
        self._asker.close()
        self.model.close()

    def _recalled(
        self, rows: list[int], signals: dict[str, Any], inputs: Inputs, applied: Any
    ) -> Memory:
        """The contract's memory of these robots, with what they were commanded, before the action."""
        memory = self._recall(rows, signals, inputs)
        if applied is not None:
            memory = self._followed(applied, memory)
        _, memory = self.contract.observe(signals, memory, inputs)  # clocks and histories go on
        return memory

    def _drop(self, row: int) -> None:
        plan = self._plans.pop(row, None)
        if plan is not None:
            plan.asked = None  # an answer to it is too late

    def _ask_for(
        self, plans: list[Plan], signals: dict[str, Any], inputs: Inputs, command: np.ndarray
    ) -> None:
        """Ask for a chunk of each robot that needs one, unless one is on its way."""
        needing = [plan.asked is None and plan.step >= plan.due for plan in plans]
        places = [i for i, needs in enumerate(needing) if needs]
        if not places:
            return
        said = said_by_all(self.contract, inputs, len(plans))
        ids = [plan.row for plan in plans]
        begins = [not plan.begun for plan in plans]
        seen = Observed(signals, said, command, ids, begins)
        wanting = [plans[i] for i in places]
        self._asker.ask((wanting, seen.rows(places)))
        for plan in wanting:
            plan.asked = plan.step
            plan.due = plan.step + self.executed

    def _take_answers(self) -> None:
        for plans, answer in self._asker.answers():
            for i, plan in enumerate(plans):
                if plan.asked is None:  # its episode is over
                    continue
                if isinstance(answer, Exception):
                    reason = " ".join(str(answer).split())
                    plan.problem = reason[:200]
                    plan.asked = None
                    plan.due = plan.step
                    continue
                self._take(plan, answer[i])

    def _take(self, plan: Plan, actions: np.ndarray) -> None:
        """A robot gets its chunk; the next one is asked for as early as chunks take."""
        assert plan.asked is not None
        self.delays.append(plan.step - plan.asked)
        in_time = len(actions) - max(self.delays)
        interval = min(self.executed, max(1, in_time))
        plan.due = min(plan.due, plan.asked + interval)
        plan.add(Chunk(plan.asked, actions))
        plan.begun = True
        plan.problem = ""

    def _require_in_time(self, plans: list[Plan], actions: list[np.ndarray | None]) -> None:
        """Raise PolicyError if a robot has held for as long as it may."""
        for plan, action in zip(plans, actions):
            longest = self.cfg.late + self._simulated(plan)
            if action is None and plan.held >= longest:
                if len(plans) == 1:  # its time goes on; of several each is asked for alone again
                    plan.step += 1
                why = f": {plan.problem}" if plan.problem else ""
                raise PolicyError(f"no action chunk for {plan.held} control periods{why}")

    def _simulated(self, plan: Plan) -> int:
        """How long a robot at the start of its episode waits for the delay that is simulated."""
        return 0 if self.ahead or plan.chunks else self.cfg.delay

    def _idle(self, memory: Memory, place: int) -> np.ndarray:
        """The action of a robot that holds: the last one, or none where an action is a movement."""
        moves = []
        for act in self.contract.act_terms:
            moves += [act.kind in ("delta", "velocity")] * len(act.joints)
        last = memory[ACTION][place]
        return np.where(moves, 0.0, last).astype(np.float32)

    def _predict(self, request: Request) -> np.ndarray:
        chunks = self.predict(request[1])
        if not self.ahead:
            self._require_horizon(chunks.shape[1])
        return chunks


def said_by_all(contract: PolicyContract, inputs: Inputs, count: int) -> dict[str, Any]:
    """Every input for `count` robots, numbers `(count, size)` float32 and lists of texts; the default where unsaid."""
    found: dict[str, Any] = {}
    for given in contract.inputs:
        value = inputs.get(given.name)
        if given.is_text:
            found[given.name] = [given.text] * count if value is None else list(value)
            continue
        default = np.array(spread(given.default, given.size), np.float32)
        numbers = default if value is None else np.asarray(value, np.float32)
        found[given.name] = np.broadcast_to(numbers, (count, given.size))
    return found


def require_finite(chunks: np.ndarray) -> None:
    """Raise PolicyError for actions that are not finite."""
    if not np.isfinite(chunks).all():
        raise PolicyError("the policy answers a chunk with numbers that are not finite")


def _merged(requests: Sequence[Request]) -> Request:
    """Requests of several robots as one."""
    plans = [plan for own, _ in requests for plan in own]
    return plans, merged([seen for _, seen in requests])


def _chosen(plans: Sequence[Plan], flags: Sequence[bool]) -> list[Plan]:
    """Those of the plans whose flag is set."""
    return [plan for plan, is_chosen in zip(plans, flags) if is_chosen]


def merged(parts: Sequence[Observed]) -> Observed:
    """What is observed of several groups of robots, as of one."""
    first = parts[0]
    if len(parts) == 1:
        return first
    return Observed(
        {name: np.concatenate([part.signals[name] for part in parts]) for name in first.signals},
        {name: _joined([part.inputs[name] for part in parts]) for name in first.inputs},
        np.concatenate([part.command for part in parts]),
        [row for part in parts for row in part.ids],
        [fresh for part in parts for fresh in part.fresh],
    )


def _joined(values: Sequence[Any]) -> Any:
    """An input of several groups of robots: numbers, or lists of texts."""
    if isinstance(values[0], list):
        return [text for texts in values for text in texts]
    return np.concatenate(values)


def _no_network(_: Any) -> np.ndarray:
    raise DeftlyError("a policy of action chunks has no network that decides a single step")
