"""What the cameras of a scene see in a batch of environments: the images that are observations."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from deftly.contract import PolicyContract, Signal
from deftly.errors import DeftlyError
from deftly.render import Renderer, camera_index, framing
from deftly.sim import looks

if TYPE_CHECKING:
    import mujoco
    from torch import Tensor

    from deftly.sim.protocol import Sim

DRAW_HERE = ("LP_NUM_THREADS", "0")
"""For Mesa's software rasterizer: to hand an image this small to other threads takes longer than to draw it."""
SLICES, STACKS, QUADS = 8, 4, 1
"""Of round shapes and planes. An image of 64x64 pixels does not show more, and software takes its time by vertices."""


def image_signals(contract: PolicyContract, given: Iterable[str]) -> tuple[Signal, ...]:
    """The image signals of a contract that a task does not give itself: what the scene's cameras of their names see."""
    images = [signal for signal in contract.signals if signal.is_image]
    return tuple(image for image in images if image.name not in given)


class Cameras(Renderer):
    """Images of many environments, one after the other through one OpenGL context.

    They are made for a network and not for people: no multisampling, shadows, reflections or sky.

    Args:
        model: The scene with its looks; it is copied.
        signals: The images: each is what the camera of its name sees, in its shape.

    DeftlyError: a signal has no camera of its name; NoGLError: no OpenGL.
    """

    def __init__(self, model: mujoco.MjModel, signals: Iterable[Signal]):
        import mujoco

        self.signals = tuple(signals)
        self._model = _coarse(model)
        self._data = mujoco.MjData(self._model)
        self._kept: np.ndarray | None = None
        self._views = [_view(self._model, signal) for signal in self.signals]
        os.environ.setdefault(*DRAW_HERE)
        sizes = [signal.shape[:2] for signal in self.signals]
        height, width = np.max(sizes, axis=0).tolist()
        super().__init__(self._model, size=(width, height))
        for flag in ("SHADOW", "REFLECTION", "HAZE", "SKYBOX"):
            index = getattr(mujoco.mjtRndFlag, f"mjRND_{flag}").value
            self._scene.flags[index] = 0

    def images(
        self, sim: Sim, ids: Iterable[int], fields: Mapping[str, Tensor] | None = None
    ) -> dict[str, np.ndarray]:
        """What the cameras see in some environments, `(len(ids), height, width, 3)` uint8 by signal.

        Args:
            sim: The environments; their models may be without looks.
            ids: Which of them.
            fields: MjModel fields that differ between environments, `(num_envs, ...)` by name.
        """
        ids = list(ids)
        own = self._own_values(sim, fields or {})
        found = {s.name: np.empty((len(ids), *s.shape), np.uint8) for s in self.signals}
        for place, index in enumerate(ids):
            for target, where, values in own:
                target[where] = values[index]
            self._pose(sim.state_of(index))
            for signal, (camera, rect) in zip(self.signals, self._views):
                self._camera, self._rect = camera, rect
                image = self.image(self._model, self._data)
                found[signal.name][place] = image
        return found

    def _own_values(
        self, sim: Sim, fields: Mapping[str, Tensor]
    ) -> list[tuple[np.ndarray, slice | np.ndarray, np.ndarray]]:
        """Of each field that images show: where it lies in the model here, which rows, and the environments' values."""
        found = []
        for name, values in fields.items():
            if name.startswith(looks.PREFIXES):
                where = self._kept_geoms(sim) if name.startswith("geom_") else slice(None)
                own = getattr(self._model, name)
                found.append((own, where, values.cpu().numpy()))
        return found

    def _kept_geoms(self, sim: Sim) -> np.ndarray:
        if self._kept is None:
            self._kept = looks.kept_geoms(self._model, sim.model)
        return self._kept

    def _pose(self, state: np.ndarray) -> None:
        """Put bodies, cameras and lights where they are in a state."""
        import mujoco

        model, data = self._model, self._data
        mujoco.mj_setState(model, data, state, mujoco.mjtState.mjSTATE_INTEGRATION.value)
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        mujoco.mj_camlight(model, data)


def _coarse(model: mujoco.MjModel) -> mujoco.MjModel:
    """A copy of a model that is drawn in a fraction of the time."""
    coarse = copy.copy(model)
    coarse.vis.global_.offwidth = coarse.vis.global_.offheight = 1
    quality = coarse.vis.quality
    quality.offsamples = quality.shadowsize = 0
    quality.numslices = SLICES
    quality.numstacks = STACKS
    quality.numquads = QUADS
    return coarse


def _view(model: mujoco.MjModel, signal: Signal) -> tuple[mujoco.MjvCamera, mujoco.MjrRect]:
    """The camera of a signal, and the part of the buffer that its image takes."""
    import mujoco

    known = [model.camera(i).name for i in range(model.ncam)]
    if signal.name not in known:
        raise DeftlyError(
            f"`signals` does not give the image '{signal.name}', and no camera of the scene has this name: {known}"
        )
    height, width, _ = signal.shape
    camera = framing.fixed_camera(camera_index(model, signal.name))
    return camera, mujoco.MjrRect(0, 0, width, height)
