"""Backlash of gears: what lies between a servo and its link has play, and a command that turns round loses it first.

The link follows the servo's target by the play operator (a hysteresis; Krasnosel'skii and Pokrovskii 1989, "Systems
with Hysteresis"): it stays where it is while the target moves within the play, and is carried along beyond it. That the
link could be pushed to and fro within the play without a torque is not modelled, nor what a servo does that measures
its link behind the play.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deftly.errors import DeftlyError
from deftly.sim.randomize import Randomize
from deftly.sim.rows import Rows
from deftly.sim.state import State

BACKLASH = "backlash"
"""The quantity of `Randomize` whose entries are this module's."""


def split(
    entries: tuple[Randomize, ...],
) -> tuple[tuple[Randomize, ...], tuple[Randomize, ...]]:
    """Entries of the model's values, and entries of backlash."""
    model = tuple(entry for entry in entries if entry.quantity != BACKLASH)
    own = tuple(entry for entry in entries if entry.quantity == BACKLASH)
    return model, own


class Backlash:
    """Between commands and actuators; `state` holds the play of each joint and where it left the link.

    Args:
        s: the environments.
        entries: of the quantity `backlash`, with op "add"; the play is in rad or m, from one side to the other.
        joints: names of the contract's joints, in its order.
    """

    def __init__(self, s: State, entries: tuple[Randomize, ...], joints: tuple[str, ...]):
        self._s = s
        self._entries = [(entry, _places(entry, joints).to(s.device)) for entry in entries]
        self.state: dict[str, Tensor] = {}
        if entries:
            shape = (s.num_envs, len(joints))
            self.state = {
                "half": torch.zeros(shape, device=s.device),
                "target": torch.zeros(shape, device=s.device),
            }

    def start(self, rows: Rows, held: Tensor) -> None:
        """Draw the play of new episodes, in whose middle servos hold `held`, `(rows.count, num_joints)`."""
        if not self.state:
            return
        half = rows.take(self.state["half"]).clone()
        for entry, places in self._entries:
            shape = (1 if entry.shared else len(places),)
            half[:, places] = 0.5 * entry.uniform(rows, self._s.generator, shape, half.dtype)
        rows.put(self.state["half"], half)
        rows.put(self.state["target"], held)

    def __call__(self, command: Tensor) -> Tensor:
        """Where links are to go when servos are told `command`, `(num_envs, num_joints)`."""
        if not self.state:
            return command
        half, target = self.state["half"], self.state["target"]
        target.copy_(torch.minimum(torch.maximum(target, command - half), command + half))
        return target


def _places(entry: Randomize, joints: tuple[str, ...]) -> Tensor:
    """Columns of the joints that an entry names. Raises DeftlyError for what cannot be."""
    if entry.op != "add" or entry.low < 0:
        raise DeftlyError(
            'randomize backlash: give op="add" and a range from 0 up: the play of a joint, rad or m'
        )
    for name in entry.names:
        if name not in joints:
            raise DeftlyError(f"randomize backlash: no joint '{name}' of the contract: {[*joints]}")
    names = entry.names or joints
    return torch.tensor([joints.index(name) for name in names])
