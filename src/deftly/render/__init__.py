"""Offscreen images and videos of a scene: EGL if it is installed, else OSMesa, else one line to mend it."""

from __future__ import annotations

import atexit
import contextlib
import ctypes.util
import importlib
import os
import sys
import traceback
import warnings
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deftly.config import suggest
from deftly.console import Progress
from deftly.errors import DeftlyError
from deftly.files import atomic_write
from deftly.render import framing

if TYPE_CHECKING:
    import mujoco
    from torch import Tensor

    from deftly.env import Env

NO_GL = "no OpenGL to render with: apt-get install libegl1 libgl1-mesa-dri (or libosmesa6, with MUJOCO_GL=osmesa)"
LIBRARIES = {"egl": "EGL", "osmesa": "OSMesa"}
WINDOW = (
    "glfw",
    "glx",
    "",
    "enable",
    "enabled",
    "on",
    "true",
    "1",
)  # MuJoCo's words for what needs a display
OFF = ("0", "off", "false", "disable", "disabled")
FREE = "free"
"""Name of the camera that is placed so that an image shows all bodies, wherever the scene's own cameras are."""
FOLLOWING = (1, 2)  # mujoco.mjtCamLight: mjCAMLIGHT_TRACK, mjCAMLIGHT_TRACKCOM
"""Modes of cameras that go along with a body, and do not turn with it."""
SIZE = (640, 480)  # width and height of an image in pixels; even, as h264 wants


class NoGLError(DeftlyError):
    """There is nothing to render with."""


def choose_gl() -> str:
    """The backend, put into MUJOCO_GL for MuJoCo's first import; raises NoGLError if that import could not succeed."""
    chosen = os.environ.get("MUJOCO_GL", "").lower()
    if sys.platform != "linux":
        return chosen
    installed = [gl for gl, library in LIBRARIES.items() if ctypes.util.find_library(library)]
    if not chosen and installed:
        chosen = os.environ["MUJOCO_GL"] = installed[0]
    if chosen in LIBRARIES and chosen not in installed:
        raise NoGLError(f"{NO_GL} (MUJOCO_GL={chosen}, but its library is missing)")
    if chosen not in (*LIBRARIES, *WINDOW, *OFF):
        near = suggest(chosen, (*LIBRARIES, "glfw"))
        raise NoGLError(f"MUJOCO_GL={chosen} is no backend{near}; unset it, or take egl")
    return chosen


class Renderer(contextlib.ExitStack):
    """Renders one environment, or any model and data, from a camera: unless named, see `camera_index`.

    Where the scene has no camera that is meant, a free one is placed so that the first image shows all that moves.

    DeftlyError: an unknown camera; NoGLError: no OpenGL. `mujoco.Renderer` draws only the model that it was made for,
    and fails if MuJoCo was imported before MUJOCO_GL was set, as by a user of `deftly.env.gym`.

    Args:
        model: the scene.
        camera: name of one of its cameras.
        size: width and height of an image, pixels.
        plain: without shadows, reflections and multisampling, for what learns from images: in software (llvmpipe) an
            image of 224 x 224 then takes an eighth of the time.
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        camera: str | None = None,
        size: tuple[int, int] = SIZE,
        plain: bool = False,
    ):
        import mujoco

        super().__init__()
        index = camera_index(model, camera)
        self._camera = None if index < 0 else framing.fixed_camera(index)
        self._rect, self._option = mujoco.MjrRect(0, 0, *size), mujoco.MjvOption()
        self._scene = mujoco.MjvScene(model, maxgeom=10_000)
        buffer = model.vis.global_
        buffer.offwidth, buffer.offheight = (
            max(size[0], buffer.offwidth),
            max(size[1], buffer.offheight),
        )
        if plain:
            model.vis.quality.offsamples = 0
            for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
                self._scene.flags[flag.value] = 0
        gl = choose_gl()
        if gl in OFF:
            raise NoGLError(f"MUJOCO_GL={gl} forbids rendering: unset it, or leave out the video")
        if sys.platform != "linux":
            gl = "gl_context"
        elif gl in WINDOW:
            if not has_display():
                raise NoGLError(f"{NO_GL} (glfw needs a display)")
            gl = "glfw"
        try:
            self._gl = importlib.import_module(f"mujoco.{gl}").GLContext(*size)
            self.callback(self._gl.free)
            atexit.register(self.close)  # before the display goes, which then complains
            self.callback(atexit.unregister, self.close)
            self._gl.make_current()
            self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150.value)
            self.callback(self._context.free)
            mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._context)
        except (
            Exception
        ) as error:  # the backends raise anything from AttributeError to mujoco.FatalError
            reason = " ".join(traceback.format_exception_only(error)[-1].split())[:150]
            raise NoGLError(f"{NO_GL} ({reason})") from error

    def image(self, model: mujoco.MjModel, data: mujoco.MjData) -> np.ndarray:
        """The scene as `(height, width, 3)` uint8; the positions in `data` must be fresh (`mj_forward`)."""
        import mujoco

        if self._camera is None:
            self._camera = framing.free_camera(model, data, self._rect.width / self._rect.height)
        every = mujoco.mjtCatBit.mjCAT_ALL.value
        mujoco.mjv_updateScene(model, data, self._option, None, self._camera, every, self._scene)
        self._gl.make_current()
        mujoco.mjr_render(self._rect, self._scene, self._context)
        pixels = np.empty((self._rect.height, self._rect.width, 3), np.uint8)
        mujoco.mjr_readPixels(pixels, None, self._rect, self._context)
        return pixels[::-1].copy()

    def environment(self, env: Env, index: int = 0) -> np.ndarray:
        """One environment as it is now, `(height, width, 3)` uint8."""
        model = env.drawn_of(index)
        return self.image(model, pose(model, env.sim.state_of(index)))


class Recorder:
    """Keeps the states of the first episodes of `rollout.run_episodes(on_step=watch)`, which `frames` then renders.

    Args:
        episodes: How many.
        camera: Whose view; None: of the first camera that stands in the scene.
        size: Width and height, pixels.
        failed: Keep the states of all that run side by side, so that `keep_failed` can choose.
    """

    def __init__(
        self,
        episodes: int,
        camera: str | None = None,
        size: tuple[int, int] = SIZE,
        failed: bool = False,
    ):
        self._count, self._camera, self._size = episodes, camera, size
        self._watches_all = failed
        self._episodes: list[tuple[mujoco.MjModel, list[np.ndarray]]] = []

    def watch(self, env: Env, running: Tensor) -> None:
        """Keep the states of environments in their first episode; without OpenGL it raises before the first step."""
        if not self._episodes:
            self._env, self._renderer = env, Renderer(env.drawn, self._camera, self._size)
            count = env.num_envs if self._watches_all else min(self._count, env.num_envs)
            self._episodes = [(env.drawn_of(i), []) for i in range(count)]
        for i, (_, states) in enumerate(self._episodes):
            if env is self._env and running[i]:
                states.append(env.sim.state_of(i))

    def keep_failed(self, success: np.ndarray) -> int:
        """Keep the first that failed, by the `success` of the episodes, `(n,)` in their order; returns how many."""
        failed = np.flatnonzero(success[: len(self._episodes)] == 0)[: self._count]
        self._episodes = [self._episodes[i] for i in failed]
        return len(failed)

    def frames(self) -> Iterator[np.ndarray]:
        """The episodes one after the other, each with its last frame held for half a second."""
        hold = round(self._env.contract.rate / 2)
        total = sum(len(states) + hold for _, states in self._episodes)
        with self._renderer as renderer, Progress(total, "rendering") as shown:
            for model, states in self._episodes:
                data = pose(model, states[0])
                for state in [*states, *states[-1:] * hold]:
                    yield renderer.image(model, pose(model, state, data))
                    shown.advance()


def pose(
    model: mujoco.MjModel, state: np.ndarray, data: mujoco.MjData | None = None
) -> mujoco.MjData:
    """A scene in a state of the simulation (`Sim.state_of`), all that follows from it included; in `data` if given."""
    import mujoco

    data = data or mujoco.MjData(model)
    mujoco.mj_setState(model, data, state, mujoco.mjtState.mjSTATE_INTEGRATION.value)
    mujoco.mj_forward(model, data)
    return data


def camera_index(model: mujoco.MjModel, name: str | None) -> int:
    """Index of a named camera, -1 a free one; None takes the first that is not on a robot, or -1.

    That is one that stands in the scene, or follows a body from a fixed direction: it sees the robot, not what the
    robot sees. Raises DeftlyError for an unknown name.
    """
    known = [model.camera(i).name for i in range(model.ncam)]
    if name is None:
        outside = np.flatnonzero((model.cam_bodyid == 0) | np.isin(model.cam_mode, FOLLOWING))
        return int(outside[0]) if len(outside) else -1
    if name == FREE and FREE not in known:
        return -1
    if name not in known:
        known = list(dict.fromkeys((*known, FREE)))
        raise DeftlyError(f"no camera '{name}' in the scene{suggest(name, known)}; it has {known}")
    return known.index(name)


def has_display() -> bool:
    """Whether a window can open: a DISPLAY that nobody serves would hang MuJoCo's viewer for ever."""
    import glfw

    with warnings.catch_warnings(action="ignore"):  # it says in two lines what False says
        return bool(glfw.init())


def write_video(path: Path, frames: Iterable[np.ndarray], fps: float) -> int:
    """Write frames, `(height, width, 3)` uint8, as an h264 mp4, each encoded as it comes; returns how many."""
    import av

    count = 0
    with (
        atomic_write(path) as scratch,
        av.open(str(scratch), "w", "mp4", options={"movflags": "faststart"}) as file,
    ):
        rate = Fraction(fps).limit_denominator(1000)
        stream = file.add_stream("libx264", rate=rate, options={"crf": "23", "preset": "fast"})
        for count, frame in enumerate(frames, 1):
            if count == 1:
                stream.height, stream.width, stream.pix_fmt = *frame.shape[:2], "yuv420p"
            file.mux(
                stream.encode(
                    av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
                )
            )
        if not count:
            raise DeftlyError("there are no frames to make a video of: nothing was simulated")
        file.mux(stream.encode(None))
    return count


def write_png(path: Path, image: np.ndarray) -> None:
    """Write one image, `(height, width, 3)` uint8."""
    from PIL import Image

    with atomic_write(path) as scratch:
        Image.fromarray(image).save(scratch, format="PNG")
