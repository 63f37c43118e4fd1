"""Offscreen pictures and videos of a scene: EGL where it works, else OSMesa, else one line to mend it."""

from __future__ import annotations

import atexit
import contextlib
import ctypes.util
import importlib
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deftly.config import suggest
from deftly.errors import DeftlyError

if TYPE_CHECKING:
    import mujoco
    from torch import Tensor

    from deftly.env import Env

NO_GL = "no OpenGL to render with: apt-get install libegl1 libgl1-mesa-dri (or libosmesa6), or leave out the video"
BACKENDS = ("egl", "osmesa", "glfw")
OFF = ("0", "off", "false", "disable", "disabled")
LIBRARIES = {"egl": "EGL", "osmesa": "OSMesa"}
SIZE = (640, 480)
"""Width and height of a picture in pixels; even, as h264 wants."""


def choose_gl() -> str:
    """Set MUJOCO_GL, which MuJoCo reads when it is first imported, unless the user did. Returns its value.

    Raises DeftlyError where the user chose what is not installed: MuJoCo would fail to import.
    """
    chosen = os.environ.get("MUJOCO_GL", "").lower()
    if sys.platform != "linux":
        return chosen
    if chosen not in (*BACKENDS, *OFF, "", "glx", "enable", "enabled", "on", "true", "1"):
        raise DeftlyError(f"MUJOCO_GL={chosen} is no backend{suggest(chosen, BACKENDS)}; unset it, or take egl")
    installed = [gl for gl, library in LIBRARIES.items() if ctypes.util.find_library(library)]
    if chosen in LIBRARIES and chosen not in installed:
        raise DeftlyError(f"MUJOCO_GL={chosen}, but its library is missing; {NO_GL}, or unset MUJOCO_GL")
    if not chosen and "mujoco" not in sys.modules and installed:
        os.environ["MUJOCO_GL"] = installed[0]
    return os.environ.get("MUJOCO_GL", "").lower() or "glfw"


class Renderer:
    """Renders one environment, or any model and data, from a camera.

    The graphics context is made here, not by `mujoco.Renderer`, so that it does not matter who imported
    MuJoCo when. Raises DeftlyError for an unknown camera, and where there is no OpenGL.

    Args:
        model: the scene.
        camera: name of one of its cameras; None takes the first, or looks at the whole scene if it has none.
        size: width and height in pixels.
    """

    def __init__(self, model: mujoco.MjModel, camera: str | None = None, size: tuple[int, int] = SIZE):
        import mujoco

        self._camera = _camera(model, camera)
        self._rect = mujoco.MjrRect(0, 0, *size)
        self._scene = mujoco.MjvScene(model, maxgeom=10_000)
        self._option = mujoco.MjvOption()
        buffer = model.vis.global_
        buffer.offwidth, buffer.offheight = max(size[0], buffer.offwidth), max(size[1], buffer.offheight)
        with _one_line():
            self._gl = _context(*size)
            atexit.register(self.close)  # before the display goes, which then complains
            self._gl.make_current()
            self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150.value)
            mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._context)

    def picture(self, model: mujoco.MjModel, data: mujoco.MjData) -> np.ndarray:
        """The scene as `(height, width, 3)` uint8; the positions in `data` must be fresh (`mj_forward`)."""
        import mujoco

        every = mujoco.mjtCatBit.mjCAT_ALL.value
        mujoco.mjv_updateScene(model, data, self._option, None, self._camera, every, self._scene)
        self._gl.make_current()
        mujoco.mjr_render(self._rect, self._scene, self._context)
        pixels = np.empty((self._rect.height, self._rect.width, 3), np.uint8)
        mujoco.mjr_readPixels(pixels, None, self._rect, self._context)
        return pixels[::-1].copy()

    def environment(self, env: Env, index: int = 0) -> np.ndarray:
        """One environment as it is now, `(height, width, 3)` uint8."""
        import mujoco

        model, data = snapshot(env, index)
        mujoco.mj_forward(model, data)
        return self.picture(model, data)

    def close(self) -> None:
        """Free the graphics context."""
        atexit.unregister(self.close)
        if hasattr(self, "_context"):
            self._context.free()
        self._gl.free()

    def __enter__(self) -> Renderer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Recorder:
    """Keeps the states of the first environments of an evaluation, which `frames` renders afterwards.

    Its `watch` is an `on_step` of `rollout.run_episodes`. It makes the renderer at once: without OpenGL an
    evaluation ends before it starts.
    """

    def __init__(self, episodes: int, camera: str | None = None, size: tuple[int, int] = SIZE):
        self._episodes, self._camera, self._size = episodes, camera, size
        self._env: Env | None = None
        self._renderer: Renderer | None = None
        self._models: list[mujoco.MjModel] = []
        self._states: list[list[np.ndarray]] = []

    def watch(self, env: Env, running: Tensor) -> None:
        """Keep the state of each environment that is still in its first episode."""
        if self._env is None:
            self._env, self._renderer = env, Renderer(env.model, self._camera, self._size)
            self._models = [snapshot(env, i)[0] for i in range(min(self._episodes, env.num_envs))]
            self._states = [[] for _ in self._models]
        for i, states in enumerate(self._states):
            if env is self._env and running[i]:
                states.append(env.sim.state[i].numpy().copy())

    def frames(self) -> Iterator[np.ndarray]:
        """The episodes one after the other, each with its last picture held for half a second."""
        import mujoco

        assert self._env is not None
        assert self._renderer is not None
        hold = round(self._env.contract.rate / 2)
        with self._renderer as renderer:
            for model, states in zip(self._models, self._states):
                data = mujoco.MjData(model)
                for state in [*states, *states[-1:] * hold]:
                    mujoco.mj_setState(model, data, state, mujoco.mjtState.mjSTATE_INTEGRATION.value)
                    mujoco.mj_forward(model, data)
                    yield renderer.picture(model, data)


def snapshot(env: Env, index: int) -> tuple[mujoco.MjModel, mujoco.MjData]:
    """Copies of one environment's own model and state; run `mj_forward` to fill in the rest."""
    batch: Any = env.sim.batch  # type: ignore[attr-defined]
    return batch.get_model(index), batch.get_data(index)


def camera_index(model: mujoco.MjModel, name: str | None) -> int:
    """Index of a named camera; None takes the first, or -1. Raises DeftlyError for an unknown name."""
    known = [model.camera(i).name for i in range(model.ncam)]
    if name is not None and name not in known:
        raise DeftlyError(f"no camera '{name}' in the scene{suggest(name, known)}; it has {known}")
    return known.index(name) if name else min(0, len(known) - 1)


def _camera(model: mujoco.MjModel, name: str | None) -> mujoco.MjvCamera:
    import mujoco

    camera, index = mujoco.MjvCamera(), camera_index(model, name)
    if index < 0:
        mujoco.mjv_defaultFreeCamera(model, camera)
    else:
        camera.type, camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED.value, index
    return camera


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    """Turn what the backends raise, from AttributeError to mujoco.FatalError, into one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # glfw warns in two lines that there is no display
            yield
    except DeftlyError:
        raise
    except Exception as error:
        reason = " ".join(_text(error).split())[:120]
        raise DeftlyError(f"{NO_GL} ({type(error).__name__}: {reason})") from error


def _text(error: Exception) -> str:
    try:
        return str(error)
    except Exception:  # PyOpenGL's own errors need a library to print
        return "OpenGL error"


def _context(width: int, height: int) -> Any:
    """A graphics context of the backend that MUJOCO_GL names, else of the first that works."""
    if sys.platform != "linux":
        return importlib.import_module("mujoco.gl_context").GLContext(width, height)
    chosen = os.environ.get("MUJOCO_GL", "").lower()
    if chosen in OFF:
        raise DeftlyError(f"MUJOCO_GL={chosen} forbids rendering: unset it, or leave out the video")
    names = (chosen,) if chosen in BACKENDS else BACKENDS
    errors: list[Exception] = []
    for name in names:
        try:
            return _backend(name, width, height)
        except Exception as error:  # each fails in its own way: see the tests
            errors.append(error)
    raise errors[0]


def _backend(name: str, width: int, height: int) -> Any:
    if name in LIBRARIES and not ctypes.util.find_library(LIBRARIES[name]):
        raise FileNotFoundError(f"lib{LIBRARIES[name]} is not installed")
    if name == "glfw" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise RuntimeError("MUJOCO_GL=glfw needs a display")
    context = importlib.import_module(f"mujoco.{name}").GLContext(width, height)
    if context._context is None:  # glfw's way to fail
        raise RuntimeError(f"{name} gave no context")
    return context


def write_video(path: Path, frames: Iterable[np.ndarray], fps: float) -> int:
    """Write pictures, `(height, width, 3)` uint8, as an h264 mp4; returns how many.

    `fps` is the control rate, so that the video's time is the robot's. Frames are encoded as they come, so
    that a generator of any length needs no memory. The file appears whole or not at all.
    """
    from av.error import FFmpegError

    scratch = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        count = _encode(scratch, iter(frames), Fraction(fps).limit_denominator(1000))
        os.replace(scratch, path)
    except (OSError, FFmpegError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DeftlyError(f"cannot write the video {path}: {reason}") from error
    finally:
        scratch.unlink(missing_ok=True)
    return count


def _encode(path: Path, frames: Iterator[np.ndarray], fps: Fraction) -> int:
    import av

    first = next(frames, None)
    if first is None:
        raise DeftlyError("there are no pictures to make a video of: nothing was simulated")
    count = 0
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as file:
        stream = file.add_stream("libx264", rate=fps, options={"crf": "23", "preset": "fast"})
        stream.height, stream.width, stream.pix_fmt = *first.shape[:2], "yuv420p"
        for picture in chain((first,), frames):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
            count += 1
        file.mux(stream.encode(None))
    return count


def write_png(path: Path, picture: np.ndarray) -> None:
    """Write one picture, `(height, width, 3)` uint8. The file appears whole or not at all."""
    from PIL import Image

    scratch = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        Image.fromarray(picture).save(scratch, format="PNG")
        os.replace(scratch, path)
    except OSError as error:
        raise DeftlyError(f"cannot write the picture {path}: {error.strerror or error}") from error
    finally:
        scratch.unlink(missing_ok=True)
