"""A policy that drives one robot: the ONNX network, and the contract's memory around it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from deftly.contract import STATE, Inputs, Memory, PolicyContract
from deftly.errors import DeftlyError

Signals = Mapping[str, np.ndarray]
"""What the robot measured, by signal name: `(size,)` each, or `(height, width, 3)` uint8 of an image."""
Observation = np.ndarray | dict[str, np.ndarray]
"""What a network sees of n robots: (n, obs_size) float32 if the group `state` is all; else that of each group by name,
an image group (n, height, width, 3) uint8."""
Network = Callable[[Any], np.ndarray]
"""An `Observation` to actions (n, action_size) float32."""
OBSERVATION, ACTION = "observation", "action"
"""Names of the network's input, where it has one, and of its output."""
ONNX_TYPES = {False: "tensor(float)", True: "tensor(uint8)"}
"""Type of a network's input, by whether it is an image."""


class PolicyError(DeftlyError):
    """The policy gave no usable answer in time."""


class Decision(NamedTuple):
    """What a policy decided for one control step."""

    action: np.ndarray
    """(action_size,) float32, as the network gave it."""
    targets: np.ndarray
    """(num_joints,) float32: joint targets within the contract's limits, rad (m)."""


class Policy(Protocol):
    """Decides for one robot: in this process (`LocalPolicy`), or over a socket (`deftly.serving.client.Client`)."""

    contract: PolicyContract

    def reset(self, signals: Signals, inputs: Inputs | None = None) -> None:
        """Start an episode where the robot is."""
        ...

    def infer(self, signals: Signals, applied: np.ndarray | None = None, inputs: Inputs | None = None) -> Decision:
        """Decide one control step.

        `applied` is what the robot was commanded last, if not the last targets. `inputs` is what an operator or planner
        says: a missing one takes its default. Raises PolicyError if there is no answer.
        """
        ...

    def close(self) -> None:
        """Let go of what is held."""
        ...


def single_input(contract: PolicyContract) -> bool:
    """Whether a network of this contract has one input: `observation`, the numbers of the group `state`."""
    return contract.groups == (STATE,)


def stacked(contract: PolicyContract, rows: Sequence[Mapping[str, np.ndarray]]) -> Observation:
    """What a network sees of several robots, from what the contract observes of each."""
    groups = {group: np.stack([row[group] for row in rows]) for group in contract.groups}
    return groups[STATE] if single_input(contract) else groups


def blank(contract: PolicyContract, count: int) -> Observation:
    """Zeros in the shape that a network sees of `count` robots."""
    kinds = {group: np.uint8 if contract.is_image(group) else np.float32 for group in contract.groups}
    row = {group: np.zeros(contract.group_shape(group), kind) for group, kind in kinds.items()}
    return stacked(contract, [row] * count)


class OnnxNetwork:
    """An ONNX model on one CPU thread.

    Raises DeftlyError if the model does not load, or its inputs and output are not the contract's.
    """

    def __init__(self, model: bytes, contract: PolicyContract, what: str = "policy.onnx"):
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        try:
            self._session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions have no common base
            raise DeftlyError(f"{what} is no ONNX model that runs here: {' '.join(str(error).split())[:160]}") from None
        _require_ports(self._session.get_inputs(), _input_ports(contract), what)
        _require_ports(self._session.get_outputs(), [(ACTION, ONNX_TYPES[False], (contract.action_size,))], what)

    def __call__(self, obs: Observation) -> np.ndarray:
        """Actions (n, action_size) float32. Raises PolicyError if it fails."""
        fed = obs if isinstance(obs, dict) else {OBSERVATION: obs}
        try:
            return np.asarray(self._session.run([ACTION], fed)[0])
        except Exception as error:  # as above
            raise PolicyError(f"the network failed: {' '.join(str(error).split())[:160]}") from None


def _input_ports(contract: PolicyContract) -> list[tuple[str, str, tuple[int, ...]]]:
    """Name, type and shape, batch apart, of each input of a network of this contract."""
    names = {STATE: OBSERVATION} if single_input(contract) else {group: group for group in contract.groups}
    return [(n, ONNX_TYPES[contract.is_image(group)], contract.group_shape(group)) for group, n in names.items()]


def _require_ports(found: Sequence[Any], wanted: Sequence[tuple[str, str, tuple[int, ...]]], what: str) -> None:
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


class LocalPolicy:
    """A network and the contract's memory of one robot's episode, in this process."""

    def __init__(self, contract: PolicyContract, network: Network):
        self.contract, self.network = contract, network
        self._memory: Memory | None = None

    def reset(self, signals: Signals, inputs: Inputs | None = None) -> None:
        """Start an episode where the robot is."""
        self._memory = self.contract.reset(as_seen(signals), inputs)

    def infer(self, signals: Signals, applied: np.ndarray | None = None, inputs: Inputs | None = None) -> Decision:
        """Decide one control step; see `Policy`."""
        if self._memory is None:
            raise PolicyError("the policy decides only in an episode: call reset first")
        memory = self._memory
        if applied is not None:
            memory = self.contract.follow(np.asarray(applied, np.float32), memory)
        groups, memory = self.contract.observe(as_seen(signals), memory, inputs)
        action = self.network(stacked(self.contract, [groups]))[0]
        targets, self._memory = self.contract.act(action, memory)
        return Decision(action, targets)

    def close(self) -> None:
        """Nothing is held."""


def as_seen(signals: Signals) -> dict[str, np.ndarray]:
    """Signals in the type that the policy was trained with: float32, and images as they are."""
    found = {name: np.asarray(value) for name, value in signals.items()}
    return {name: value if value.dtype == np.uint8 else value.astype(np.float32) for name, value in found.items()}
