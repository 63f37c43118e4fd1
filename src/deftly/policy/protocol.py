"""The protocol of all policies, batched over robots; ONNX networks, and the contract's memory around a network."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy as np

from deftly.console import printable
from deftly.contract import COMMAND, STATE, Inputs, Memory, PolicyContract
from deftly.contract.arrays import Array, all_finite, library
from deftly.errors import DeftlyError

Signals = Mapping[str, Array]
"""What n robots measured, by signal name: `(n, size)` each, or `(n, height, width, 3)` uint8 of images. Of one robot
(`OneRobot`) the same without the first axis."""
Observation = np.ndarray | dict[str, np.ndarray]
"""What a network sees of n robots: (n, obs_size) float32 if the group `state` is all; else that of each group by name,
an image group (n, height, width, 3) uint8."""
NO_INPUTS: Inputs = MappingProxyType({})
"""Every input at its default."""
Network = Callable[[Any], np.ndarray]
"""An `Observation` to actions (n, action_size) float32."""
OBSERVATION, ACTION = "observation", "action"
"""Names of the network's input, where it has one, and of its output."""
LONGEST_WAIT = 3600.0
"""Longest wait for a decision that can be asked for, s."""
ONNX_TYPES = {False: "tensor(float)", True: "tensor(uint8)"}
"""Type of a network's input, by whether it is an image."""


class PolicyError(DeftlyError):
    """The policy gave no usable answer in time."""


class Decision(NamedTuple):
    """What a policy decided for one control step of n robots; of `OneRobot`, without the first axis."""

    action: Array
    """(n, action_size) float32, as the network gave it."""
    targets: Array
    """(n, num_joints) float32: joint targets within the contract's limits, rad (m)."""


class Policy(Protocol):
    """Decides for robots: a checkpoint, an ONNX bundle, a server at an endpoint, or a recording.

    Each robot has a number, its row (`ids`), under which the policy remembers its episode. A decision need not be one
    call of a network.
    """

    contract: PolicyContract
    deterministic: bool
    """False: actions are drawn from the policy's distribution."""

    def reset(self, ids: Sequence[int] | None = None) -> None:
        """These robots start an episode with their next signals; None: all of them."""
        ...

    def infer(
        self,
        signals: Signals,
        inputs: Inputs = NO_INPUTS,
        applied: Array | None = None,
        ids: Sequence[int] | None = None,
    ) -> Decision:
        """Decide one control step of n robots.

        Args:
            signals: What each robot measured.
            inputs: What an operator or planner says, (n, size) by name, or a text for each robot. A missing one takes
                its default.
            applied: (n, num_joints): what the robots were commanded last, where it is not the last targets; a row of
                NaN: it is.
            ids: Which robots the rows are; None: 0 to n - 1.

        Raises PolicyError if there is no answer; every memory is then as it was. A decision that is not finite leaves
        the memory of its robot as it was.
        """
        ...

    def forget(self, ids: Sequence[int]) -> None:
        """These robots are gone."""
        ...

    def close(self) -> None:
        """Let go of what is held."""
        ...


def single_input(contract: PolicyContract) -> bool:
    """Whether a network of this contract has one input: `observation`, the numbers of the group `state`."""
    return contract.groups == (STATE,)


def seen(contract: PolicyContract, groups: Mapping[str, Array]) -> Any:
    """The `Observation` of a network, from what the contract observes of n robots."""
    return groups[STATE] if single_input(contract) else dict(groups)


def blank(contract: PolicyContract, count: int) -> Observation:
    """Zeros in the shape that a network sees of `count` robots."""
    kinds = {
        group: np.uint8 if contract.is_image(group) else np.float32 for group in contract.groups
    }
    zeros = {
        group: np.zeros((count, *contract.group_shape(group)), kind)
        for group, kind in kinds.items()
    }
    return seen(contract, zeros)


class OnnxNetwork:
    """An ONNX model on one CPU thread.

    Raises DeftlyError if the model does not load, or its inputs and output are not the contract's.
    """

    def __init__(self, model: bytes, contract: PolicyContract, what: str = "policy.onnx"):
        # its builds write a database of telemetry into the home folder, and send it
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        import onnxruntime as ort

        self._running = ort.RunOptions()
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        try:
            self._session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions have no common base
            raise DeftlyError(
                f"{what} is no ONNX model that runs here: {' '.join(str(error).split())[:160]}"
            ) from None
        _require_ports(self._session.get_inputs(), _input_ports(contract), what)
        _require_ports(
            self._session.get_outputs(),
            [(ACTION, ONNX_TYPES[False], (contract.action_size,))],
            what,
        )

    def cancel(self) -> None:
        """End a call that another thread is in, before its next operator; no call succeeds any more."""
        self._running.terminate = True

    def __call__(self, obs: Observation) -> np.ndarray:
        """Actions (n, action_size) float32. Raises PolicyError if it fails."""
        fed = obs if isinstance(obs, dict) else {OBSERVATION: obs}
        try:
            return np.asarray(self._session.run([ACTION], fed, self._running)[0])
        except Exception as error:  # as above
            raise PolicyError(f"the network failed: {' '.join(str(error).split())[:160]}") from None


def _input_ports(contract: PolicyContract) -> list[tuple[str, str, tuple[int, ...]]]:
    """Name, type and shape, batch apart, of each input of a network of this contract."""
    names = (
        {STATE: OBSERVATION}
        if single_input(contract)
        else {group: group for group in contract.groups}
    )
    return [
        (n, ONNX_TYPES[contract.is_image(group)], contract.group_shape(group))
        for group, n in names.items()
    ]


def _require_ports(
    found: Sequence[Any], wanted: Sequence[tuple[str, str, tuple[int, ...]]], what: str
) -> None:
    """Raise DeftlyError unless a network's inputs, or outputs, are the wanted ones, for any number of robots."""
    seen = sorted((port.name, port.type, tuple(port.shape[1:])) for port in found)
    if seen != sorted(wanted):
        raise DeftlyError(f"{what} has {seen}, the contract wants {sorted(wanted)}")
    for port in found:
        if isinstance(port.shape[0], int):
            batch = port.shape[0]
            raise DeftlyError(
                f"{what}: '{port.name}' is for batches of {batch} alone; export it with a free batch size"
            )


class ContractPolicy:
    """A `Policy` in this process: a network, and the contract's memory of each robot's episode.

    Signals are converted to numpy; a subclass may keep them as they are.
    """

    def __init__(self, contract: PolicyContract, network: Network, deterministic: bool = True):
        self.contract = contract
        self.network = network
        self.deterministic = deterministic
        self._memory: Memory = {}
        self._driven: set[int] = set()

    def require_network(self) -> None:
        """Raise DeftlyError unless the network answers for two robots; also gets its first, slow call done."""
        shape = tuple(self.network(blank(self.contract, 2)).shape)
        wanted = (2, self.contract.action_size)
        if shape != wanted:
            raise DeftlyError(
                f"the network answers {shape} for 2 robots, the contract wants {wanted}"
            )

    def reset(self, ids: Sequence[int] | None = None) -> None:
        """These robots start an episode with their next signals; None: all of them."""
        self._driven.difference_update(self._driven.copy() if ids is None else ids)

    def forget(self, ids: Sequence[int]) -> None:
        """These robots are gone; others may get their rows."""
        self._driven.difference_update(ids)

    def infer(
        self,
        signals: Signals,
        inputs: Inputs = NO_INPUTS,
        applied: Array | None = None,
        ids: Sequence[int] | None = None,
    ) -> Decision:
        """Decide one control step of n robots; see `Policy`."""
        signals = self._read(signals)
        count = len(next(iter(signals.values())))
        rows = list(range(count)) if ids is None else list(ids)
        memory = self._recall(rows, signals, inputs)
        if applied is not None:
            memory = self._followed(applied, memory)
        groups, memory = self.contract.observe(signals, memory, inputs)
        action = self.network(seen(self.contract, groups))
        if tuple(action.shape) != (count, self.contract.action_size):
            wanted = (count, self.contract.action_size)
            raise PolicyError(
                f"the network answers {tuple(action.shape)}, the contract wants {wanted}"
            )
        targets, memory = self.contract.act(action, memory)
        self._keep_finite(rows, memory, action, targets)
        return Decision(action, targets)

    def close(self) -> None:
        """Nothing is held."""

    def _read(self, signals: Signals) -> dict[str, Array]:
        """Signals as the arrays with which the policy computes."""
        return as_seen(signals)

    def _followed(self, applied: Array, memory: Memory) -> Memory:
        """The memory after the robots were commanded this; NaN: the last targets."""
        command = self._read({COMMAND: applied})[COMMAND]
        return self.contract.follow(_commanded(command, memory), memory)

    def _keep_finite(self, rows: list[int], memory: Memory, action: Array, targets: Array) -> None:
        """Remember what was decided; a decision that is not finite, which no robot can follow, is not remembered."""
        if all_finite(action) and all_finite(targets):
            self._keep(rows, memory)
            return
        finite = np.isfinite(action).all(-1) & np.isfinite(targets).all(-1)
        if finite.any():
            kept = {name: value[finite] for name, value in memory.items()}
            self._keep([row for row, good in zip(rows, finite) if good], kept)

    def _recall(self, rows: list[int], signals: Signals, inputs: Inputs) -> Memory:
        """The memory of these robots, in this order; that of a new episode for those that start one."""
        fresh = [place for place, row in enumerate(rows) if row not in self._driven]
        if len(fresh) == len(rows):
            return self.contract.reset(signals, inputs)
        if not fresh and rows == list(range(_count(self._memory))):
            return self._memory
        present = [
            row if row in self._driven else rows[_first_driven(rows, self._driven)] for row in rows
        ]
        memory = {name: value[present] for name, value in self._memory.items()}
        if fresh:
            some = {name: value[fresh] for name, value in signals.items()}
            begun = self.contract.reset(
                some, {name: rows_of(value, fresh) for name, value in inputs.items()}
            )
            for name, value in memory.items():
                value[fresh] = begun[name]
        return memory

    def _keep(self, rows: list[int], memory: Memory) -> None:
        """Remember these robots' new memory; that of the others stays."""
        old = _count(self._memory) if self._driven else 0
        if rows == list(range(max(old, len(rows)))):
            self._memory = memory
        else:
            size = max(old, max(rows) + 1)
            for name, value in memory.items():
                # A copy: the arrays of the last step may be in the hands of who asked.
                base = value[[0] * size]
                if old:
                    base[:old] = self._memory[name]
                base[rows] = value
                memory[name] = base
            self._memory = memory
        self._driven.update(rows)


class OneRobot:
    """A policy for one robot, without the axis of robots: what a control loop asks.

    Args:
        policy: Its robot 0 is meant.
    """

    def __init__(self, policy: Policy):
        self.policy = policy
        self.contract = policy.contract

    def reset(self) -> None:
        """The robot starts an episode with its next signals."""
        self.policy.reset([0])

    def infer(
        self, signals: Signals, applied: np.ndarray | None = None, inputs: Inputs = NO_INPUTS
    ) -> Decision:
        """Decide one control step of the robot; see `Policy`, whose arrays have one axis more."""
        require_mapping(signals, "signals")
        require_mapping(inputs, "inputs")
        rows = {name: as_numbers(value, name)[None] for name, value in signals.items()}
        said = {
            name: [value] if isinstance(value, str) else as_numbers(value, name)[None]
            for name, value in inputs.items()
        }
        command = None
        if applied is not None:
            command = as_numbers(applied, "applied").astype(np.float32)[None]
        action, targets = self.policy.infer(rows, said, command)
        return Decision(action[0], targets[0])

    def close(self) -> None:
        """Let go of what the policy holds."""
        self.policy.close()


def as_seen(signals: Signals) -> dict[str, np.ndarray]:
    """Signals in the type that the policy was trained with: float32, and images as they are.

    Raises PolicyError, naming it, for one that is no array of numbers, or if there is none at all.
    """
    require_mapping(signals, "signals")
    if not signals:
        raise PolicyError("there are no signals: infer needs all that the contract names")
    return {name: _as_seen(value, name) for name, value in signals.items()}


def _as_seen(value: Any, name: str) -> np.ndarray:
    """An image as it is, else a copy in float32."""
    array = as_numbers(value, name)
    if not array.ndim:
        raise PolicyError(f"'{printable(name, 60)}' is a single number, expected an array")
    return array if array.dtype.type is np.uint8 else array.astype(np.float32)


def as_numbers(value: Any, name: str) -> np.ndarray:
    """An array of any library as numpy's. Raises PolicyError, naming it, unless its elements are numbers."""
    try:
        array = value
        if not isinstance(value, np.ndarray):
            array = np.asarray(value.cpu() if hasattr(value, "cpu") else value)
        if array.dtype.kind not in "fiub":
            raise TypeError
    except (ValueError, TypeError, RuntimeError, OverflowError):
        raise PolicyError(f"'{printable(name, 60)}' is no array of numbers") from None
    return array


def require_mapping(value: object, what: str) -> None:
    """Raise PolicyError unless `signals` or `inputs` are by name."""
    if not isinstance(value, Mapping):
        kind = type(value).__name__
        raise PolicyError(f"{what} is a {kind}, expected a mapping of names to arrays")


def checked_timeout(seconds: Any) -> float:
    """The wait for a decision, s. Raises PolicyError unless it is above 0 and at most `LONGEST_WAIT`."""
    is_number = isinstance(seconds, int | float | np.number) and not isinstance(seconds, bool)
    if not is_number or not 0 < seconds <= LONGEST_WAIT:
        raise PolicyError(
            f"timeout is {printable(seconds, 40)}, expected seconds above 0, at most {LONGEST_WAIT:g}"
        )
    return float(seconds)


def _commanded(applied: Array, memory: Memory) -> Array:
    """The last command of each robot: what was applied, and where that is not said (NaN) the last targets."""
    xp = library(applied)
    return xp.where(xp.isnan(applied), memory[COMMAND], applied)


def rows_of(value: Any, places: Sequence[int]) -> Any:
    """Some robots' part of an input: of an array, or of a list of texts."""
    return [value[place] for place in places] if isinstance(value, list) else value[places]


def _count(memory: Memory) -> int:
    return len(memory[COMMAND]) if memory else 0


def _first_driven(rows: list[int], driven: set[int]) -> int:
    """Place of the first of the robots that is in an episode: its memory stands in for those that start one."""
    return next(place for place, row in enumerate(rows) if row in driven)
