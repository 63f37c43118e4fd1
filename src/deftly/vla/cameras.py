"""A task seen through the cameras of its scene: the same task, with images for signals."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import mujoco
import numpy as np
import torch
from torch import Tensor

from deftly.config import SimConfig
from deftly.contract import PolicyContract
from deftly.errors import DeftlyError
from deftly.render import FREE, Renderer, camera_index
from deftly.sim import looks
from deftly.sim.scene import compile_scene
from deftly.tasks import Task
from deftly.vla.features import image_sizes, seen_contract

if TYPE_CHECKING:
    from deftly.sim.sensors import Noise
    from deftly.sim.state import State

SHAPES = ("size", "joint_offset")
"""Randomized quantities that change what an image of known positions shows."""


def cameras_of(task: Task, names: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The cameras that are meant: those named, else all that the scene has. Raises DeftlyError if there is none."""
    model = task.scene().compile()
    own = tuple(model.camera(i).name for i in range(model.ncam))
    found = names or own
    for name in found:
        camera_index(model, name)
    if not found or FREE in found:
        raise DeftlyError(f"the scene of {task.name} has no camera: add one, or use another task")
    return found


class _Seen(Task):
    """Mixed into a task's class: the contract of a policy that sees, and the images as signals."""

    seen: PolicyContract

    def contract(self) -> PolicyContract:
        return self.seen

    def signals(self, s: State) -> dict[str, Tensor]:
        wanted = {signal.name for signal in self.seen.signals}
        all_signals = super().signals(s)
        known = {name: value for name, value in all_signals.items() if name in wanted}
        return {**known, **self._eyes.look(s)}

    def noise(self) -> dict[str, Noise]:
        wanted = {signal.name for signal in self.seen.signals}
        all_noise = super().noise()
        return {name: noise for name, noise in all_noise.items() if name in wanted}

    @cached_property
    def _eyes(self) -> Eyes:
        return Eyes(self, image_sizes(self.seen))


def seen_through(task: Task, contract: PolicyContract, what: str = "the policy") -> Task:
    """The same task, whose policies see what a contract of `seen_contract` says, which `what` brings.

    Raises DeftlyError if the contract is of another robot, or its actions mean something else.
    """
    own = task.contract()
    images = image_sizes(contract)
    if not images:
        raise DeftlyError(f"the contract of {what} has no image: it is not made for cameras")
    names = cameras_of(task, tuple(images))
    prompt = next((given.text for given in contract.inputs if given.is_text), "")
    expected = seen_contract(own, names, images[names[0]], prompt)
    expected.require(contract, what)
    name = f"Seen{type(task).__name__}"
    kind = type(name, (_Seen, type(task)), {"seen": contract})
    return kind(task.cfg)


class Eyes:
    """Renders the environments of a batch, one after the other, from positions alone.

    Args:
        task: Whose scene; its looks, and the sizes of its bodies, are those of each environment.
        sizes: Pixels of width and height, by the camera's name.
    """

    def __init__(self, task: Task, sizes: dict[str, int]):
        rate = task.contract().rate
        self.model = compile_scene(task.scene(), rate, SimConfig(), with_looks=True)
        self._renderers = {
            name: Renderer(self.model, name, (size, size), plain=True)
            for name, size in sizes.items()
        }
        self._data = mujoco.MjData(self.model)
        self._reshaped = any(entry.quantity in SHAPES for entry in task.randomize())

    def look(self, s: State) -> dict[str, Tensor]:
        """Images `(num_envs, size, size, 3)` uint8, by the camera's name."""
        qpos = s.sim.bind("qpos").cpu().numpy()
        mocap = (s.sim.bind("mocap_pos"), s.sim.bind("mocap_quat")) if self.model.nmocap else ()
        images: dict[str, list[np.ndarray]] = {name: [] for name in self._renderers}
        for i, positions in enumerate(qpos):
            model = self.model
            if self._reshaped:
                model = looks.restored(self.model, s.sim.model_of(i))
            self._data.qpos[:] = positions
            if mocap:
                pos, quat = mocap
                self._data.mocap_pos[:] = pos[i].cpu()
                self._data.mocap_quat[:] = quat[i].cpu()
            for name, image in self.images(model, self._data).items():
                images[name].append(image)
        return {name: torch.from_numpy(np.stack(each)) for name, each in images.items()}

    def images(self, model: mujoco.MjModel, data: mujoco.MjData) -> dict[str, np.ndarray]:
        """Images `(size, size, 3)` uint8 of a scene whose `qpos` is set."""
        mujoco.mj_kinematics(model, data)
        mujoco.mj_camlight(model, data)
        return {name: each.image(model, data) for name, each in self._renderers.items()}
