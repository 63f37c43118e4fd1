"""A policy that drives one robot: the ONNX network, and the contract's memory around it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import numpy as np

from deftly.contract import Contract
from deftly.errors import DeftlyError

Signals = Mapping[str, np.ndarray]
"""What the robot measured, by signal name: `(size,)` each."""
Network = Callable[[np.ndarray], np.ndarray]
"""Observations (n, obs_size) float32 to actions (n, action_size) float32."""
OBSERVATION, ACTION = "observation", "action"
"""Names of the network's input and output."""


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

    contract: Contract

    def reset(self, signals: Signals) -> None:
        """Start an episode where the robot is."""
        ...

    def infer(self, signals: Signals, applied: np.ndarray | None = None) -> Decision:
        """Decide one control step; `applied` is what the robot was commanded last, if not the last targets.

        Raises PolicyError if there is no answer.
        """
        ...

    def close(self) -> None:
        """Let go of what is held."""
        ...


class OnnxNetwork:
    """An ONNX model on one CPU thread.

    Raises DeftlyError if the model does not load, or its input and output are not the contract's.
    """

    def __init__(self, model: bytes, contract: Contract, what: str = "policy.onnx"):
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        try:
            self._session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions have no common base
            raise DeftlyError(f"{what} is no ONNX model that runs here: {' '.join(str(error).split())[:160]}") from None
        wanted = ((OBSERVATION, contract.obs_size), (ACTION, contract.action_size))
        for ports, (name, size) in zip((self._session.get_inputs(), self._session.get_outputs()), wanted):
            found = [(p.name, p.type, p.shape[-1] if len(p.shape) == 2 else p.shape) for p in ports]
            if found != [(name, "tensor(float)", size)]:
                raise DeftlyError(f"{what} has {found}, the contract wants ('{name}', 'tensor(float)', {size})")
            if isinstance(batch := ports[0].shape[0], int):
                raise DeftlyError(f"{what}: '{name}' is for batches of {batch} alone; export it with a free batch size")

    def __call__(self, obs: np.ndarray) -> np.ndarray:
        """Actions (n, action_size) of observations (n, obs_size), float32. Raises PolicyError if it fails."""
        try:
            return np.asarray(self._session.run([ACTION], {OBSERVATION: obs})[0])
        except Exception as error:  # as above
            raise PolicyError(f"the network failed: {' '.join(str(error).split())[:160]}") from None


class LocalPolicy:
    """A network and the contract's memory of one robot's episode, in this process."""

    def __init__(self, contract: Contract, network: Network):
        self.contract, self.network = contract, network
        self._memory = None

    def reset(self, signals: Signals) -> None:
        """Start an episode where the robot is."""
        self._memory = self.contract.reset(as_float32(signals))

    def infer(self, signals: Signals, applied: np.ndarray | None = None) -> Decision:
        """Decide one control step; `applied` is what the robot was commanded last, if not the last targets."""
        if self._memory is None:
            raise PolicyError("the policy decides only in an episode: call reset first")
        memory = self._memory
        if applied is not None:
            memory = self.contract.follow(np.asarray(applied, np.float32), memory)
        obs, memory = self.contract.observe(as_float32(signals), memory)
        action = self.network(obs[None])[0]
        targets, self._memory = self.contract.act(action, memory)
        return Decision(action, targets)

    def close(self) -> None:
        """Nothing is held."""


def as_float32(signals: Signals) -> dict[str, np.ndarray]:
    """Signals in the type that the policy was trained with."""
    return {name: np.asarray(value, np.float32) for name, value in signals.items()}
