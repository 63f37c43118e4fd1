"""Viewers of a running simulation: a window, or a page for the browser of this machine."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch

from deftly.contract import PolicyContract
from deftly.control.operator.words import Words
from deftly.errors import DeftlyError
from deftly.render import camera_index, has_display, pose

if TYPE_CHECKING:
    import mujoco

    from deftly.env import Env

LOOPBACK = "127.0.0.1"
FRAMES = 30
"""Most images of a training in a second."""
NO_VIEWER = {
    "auto": 'no display and no web viewer: pip install "deftly[viewer]", or write a video with --video FILE.mp4',
    "native": "no display for --viewer native: use --viewer web, or --video FILE.mp4",
    "web": '--viewer web needs mjviser: pip install "deftly[viewer]"',
    "none": "nothing to show it on: write a video with --video FILE.mp4, or use --viewer web",
}


class Options(Protocol):
    """What a viewer is told; the settings of `deftly play` have it."""

    @property
    def viewer(self) -> str:
        """`auto`, `native`, `web` or `none`."""
        ...

    @property
    def speed(self) -> float:
        """Simulated seconds in a second."""
        ...

    @property
    def camera(self) -> str | None:
        """Camera of the first view; None: the first that stands in the scene."""
        ...

    @property
    def port(self) -> int:
        """Port of the page, on this machine alone."""
        ...


class View(NamedTuple):
    """An open viewer: draws a state, says whether it is still open, and the user's factor of time, 0 while paused."""

    show: Callable[[mujoco.MjData], None]
    running: Callable[[], bool]
    speed: Callable[[], float]
    said: Callable[[], Mapping[str, Any] | None] = lambda: None
    """What the user says the policy's inputs are; None: nothing."""


def pick_viewer(wanted: str) -> str:
    """`native` or `web`. Raises DeftlyError where the wanted one cannot work, or none can."""
    works = {
        "native": has_display(),
        "web": all(map(importlib.util.find_spec, ("viser", "mjviser"))),
    }
    for name in works:
        if works[name] and wanted in (name, "auto"):
            return name
    raise DeftlyError(NO_VIEWER[wanted])


def open_view(env: Env, data: mujoco.MjData, options: Options) -> AbstractContextManager[View]:
    """Open the viewer that is wanted, on a state. Raises DeftlyError where it cannot work."""
    return {"native": native, "web": web}[pick_viewer(options.viewer)](env, data, options)


@contextlib.contextmanager
def native(env: Env, data: mujoco.MjData, options: Options) -> Iterator[View]:
    """A window, closed by its user."""
    import mujoco.viewer

    index = camera_index(env.drawn, options.camera)
    with mujoco.viewer.launch_passive(env.drawn, data) as window:
        if options.camera and index >= 0:
            window.cam.type, window.cam.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED.value, index
        yield View(lambda _: window.sync(), window.is_running, lambda: options.speed)


@contextlib.contextmanager
def web(env: Env, data: mujoco.MjData, options: Options) -> Iterator[View]:
    """A page for the browser, open until the program ends."""
    try:  # a port that is taken would make viser move to the next one without a word
        socket.create_server((LOOPBACK, options.port)).close()
    except OSError as error:
        taken = f"cannot serve on {LOOPBACK}:{options.port}: {os.strerror(error.errno or 0)}"
        raise DeftlyError(f"{taken}; choose another --port") from None
    import viser
    from mjviser import ViserMujocoScene

    model, index = env.drawn, camera_index(env.drawn, options.camera)
    with contextlib.redirect_stdout(io.StringIO()):  # its banner, whatever `verbose` says
        server = viser.ViserServer(
            host=LOOPBACK, port=options.port, label=f"deftly: {env.task.name}"
        )
    try:
        server.gui.configure_theme(
            show_share_button=False
        )  # it would open a tunnel to a public address
        if index >= 0:  # the first view is that of the camera
            eye, axes, view = (
                data.cam_xpos[index],
                data.cam_xmat[index].reshape(3, 3),
                server.initial_camera,
            )
            view.position, view.look_at = eye, eye - axes[:, 2] * model.stat.extent
            view.fov = float(model.cam_fovy[index]) * torch.pi / 180
        pause = server.gui.add_checkbox("Pause", initial_value=False)
        speed = server.gui.add_slider(
            "Speed", min=0.1, max=4.0, step=0.1, initial_value=min(4.0, options.speed)
        )
        said = sliders(server.gui, env.contract)
        scene = ViserMujocoScene(server, copy.copy(model), num_envs=1)
        print(f"open http://{LOOPBACK}:{server.get_port()} in a browser; Ctrl-C ends", flush=True)
        yield View(
            scene.update_from_mjdata,
            lambda: True,
            lambda: 0.0 if pause.value else speed.value,
            said,
        )
    finally:
        server.stop()


def sliders(gui: Any, contract: PolicyContract) -> Callable[[], Mapping[str, Any] | None]:
    """Put a slider for each number of the policy's inputs on a page; what they say, if the user ticked the box."""
    words = Words(contract)
    if not words.elements:
        return lambda: None
    by_hand = gui.add_checkbox("Say the inputs", initial_value=False)
    made = [
        gui.add_slider(
            f"{element.label}, {element.units}".rstrip(", "),
            min=element.lower,
            max=element.upper,
            step=element.range / 100,
            initial_value=element.default,
        )
        for element in words.elements
    ]
    return lambda: words.values([each.value for each in made]) if by_hand.value else None


class Watch(contextlib.ExitStack):
    """A callback of a training that shows its first environment, as fast as the training is, from iteration 1 on.

    Pausing halts the picture, not the training. Raises DeftlyError at once where nothing can be shown.
    """

    viewer, speed, camera, port = "auto", 1.0, None, 8080  # `Options`

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        super().__init__()
        pick_viewer(self.viewer)
        self._clock = clock
        self._due = 0.0
        self._view: View | None = None

    def __call__(self, trainer: Any, metrics: object) -> None:
        """Open the viewer, the first time."""
        if self._view is None:
            env = trainer.env
            data = pose(env.drawn, env.sim.state_of(0))
            self._view = self.enter_context(open_view(env, data, self))
            env.on_step = partial(self._show, env, data, self._view)
            self.callback(setattr, env, "on_step", None)

    def _show(self, env: Env, data: mujoco.MjData, view: View) -> None:
        now = self._clock()
        if now < self._due or view.speed() == 0 or not view.running():
            return
        self._due = now + 1 / FRAMES
        view.show(pose(env.drawn, env.sim.state_of(0), data))
