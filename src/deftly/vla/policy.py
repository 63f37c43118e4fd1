"""A fine-tuned model as a model of action chunks, which `policy.chunks` executes as those of every other one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from deftly.contract import JOINT_POS
from deftly.policy.chunks import Observed, require_finite
from deftly.vla.features import PROMPT, layout_of
from deftly.vla.recipes import RECIPES

if TYPE_CHECKING:
    from deftly.vla.checkpoint import VlaCheckpoint
    from deftly.vla.models import Model

DRAWS = ("diffusion", "smolvla", "pi05")
"""Kinds that begin with noise: diffusion and flow matching."""


class VlaModel:
    """A `ChunkModel` that answers from images, joints and words, for all robots that ask at one time in one call."""

    def __init__(self, checkpoint: VlaCheckpoint):
        self.contract = checkpoint.contract
        self.executed: int | None = checkpoint.about["executed"]
        self._model = checkpoint.model()
        self._layout = layout_of(checkpoint.about["layout"], self.contract)
        self._cameras = [signal.name for signal in self.contract.signals if signal.is_image]
        self.horizon: int | None = _whole_chunks(self._model)
        # pi0_fast samples its tokens only at a temperature
        sampled = getattr(self._model.config, "temperature", 0.0) > 0.0
        self.deterministic = self._model.kind not in DRAWS and not sampled

    def predict(self, seen: Observed) -> np.ndarray:
        """The next actions of each robot under the contract, `(n, horizon, action_size)`.

        Raises PolicyError if some are not finite: a layout's gripper would take NaN for a word to close.
        """
        # torch wants arrays that may be written to, and those of a message may not
        images = {name: np.require(seen.signals[name], None, "W") for name in self._cameras}
        state = self._layout.state(seen.signals[JOINT_POS])
        actions = self._model.chunk(images, state, seen.inputs[PROMPT])
        require_finite(actions)
        return self._layout.to_contract(actions)

    def close(self) -> None:
        """Nothing is held."""


def _whole_chunks(model: Model) -> int:
    """Let a model give all actions that it predicts from the observation on; how many these are.

    LeRobot's diffusion cuts chunks off at `n_action_steps`, and pi0_fast decodes the cosine transform of `chunk_size`
    actions as that of so many, which makes others of them.
    """
    config = model.config
    before = getattr(config, "n_obs_steps", 1) - 1  # a chunk of diffusion begins with the past
    config.n_action_steps = getattr(config, RECIPES[model.kind].chunk_field) - before
    return config.n_action_steps
