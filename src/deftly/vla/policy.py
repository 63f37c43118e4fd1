"""A fine-tuned model as a `Policy`: it is asked for a chunk of actions when a robot has executed those of the last."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from deftly.contract import STATE, Inputs
from deftly.contract.arrays import Array
from deftly.policy.protocol import (
    NO_INPUTS,
    ContractPolicy,
    Decision,
    PolicyError,
    Signals,
)
from deftly.vla.checkpoint import VlaCheckpoint
from deftly.vla.features import PROMPT, layout_of


class VlaPolicy(ContractPolicy):
    """Decides from images, joints and words; each robot executes `executed` actions of a chunk, then it looks again.

    Robots whose chunks have run out are asked for together, in one call of the model.
    """

    def __init__(self, checkpoint: VlaCheckpoint):
        super().__init__(checkpoint.contract, self._next, deterministic=True)
        self._model = checkpoint.model()
        self._executed = checkpoint.about["executed"]
        self._layout = layout_of(checkpoint.about["layout"], checkpoint.contract)
        self._default = next(given.text for given in self.contract.inputs if given.name == PROMPT)
        self._cameras = [group for group in self.contract.groups if group != STATE]
        self._left: dict[int, deque[np.ndarray]] = {}
        """Actions of the contract that a robot has not executed yet, by its row."""
        self._rows: list[int] = []
        self._prompts: list[str] = []

    def reset(self, ids: Sequence[int] | None = None) -> None:
        """These robots start an episode: what is left of their chunks is not executed."""
        super().reset(ids)
        for row in list(self._left) if ids is None else ids:
            self._left.pop(row, None)

    def forget(self, ids: Sequence[int]) -> None:
        """These robots are gone."""
        super().forget(ids)
        for row in ids:
            self._left.pop(row, None)

    def infer(
        self,
        signals: Signals,
        inputs: Inputs = NO_INPUTS,
        applied: Array | None = None,
        ids: Sequence[int] | None = None,
    ) -> Decision:
        """Decide one control step of n robots; see `Policy`."""
        count = len(next(iter(signals.values())))
        self._rows = list(range(count)) if ids is None else list(ids)
        said = inputs.get(PROMPT)
        self._prompts = [self._default] * count if said is None else [str(text) for text in said]
        return super().infer(signals, inputs, applied, ids)

    def _next(self, seen: Any) -> np.ndarray:
        """The next action of each robot that is asked for, (n, action_size)."""
        empty = [place for place, row in enumerate(self._rows) if not self._left.get(row)]
        if empty:
            images = {name: np.asarray(seen[name])[empty] for name in self._cameras}
            state = self._layout.state(np.asarray(seen[STATE])[empty])
            prompts = [self._prompts[place] for place in empty]
            chunks = self._model.chunk(images, state, prompts)[:, : self._executed]
            if not np.isfinite(chunks).all():
                raise PolicyError("the model gave actions that are not finite")
            for place, chunk in zip(empty, self._layout.to_contract(chunks)):
                self._left[self._rows[place]] = deque(chunk)
        return np.stack([self._left[row].popleft() for row in self._rows]).astype(np.float32)
