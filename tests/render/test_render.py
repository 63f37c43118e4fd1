"""Pictures and videos, and the one line where there is no OpenGL."""

import ctypes.util
import os
import subprocess
import sys

import mujoco
import numpy as np
import pytest

from deftly import render
from deftly.config import EnvConfig, SimConfig
from deftly.errors import DeftlyError
from deftly.render import Recorder, Renderer, choose_gl, write_png, write_video

needs_gl = pytest.mark.skipif(
    not any(ctypes.util.find_library(name) for name in ("EGL", "OSMesa")),
    reason="no GL library is installed",
)
BALL = """
<mujoco>
  <visual><global offwidth="64" offheight="48"/></visual>
  <worldbody>
    <light pos="0 0 3"/>
    <geom name="ball" size=".3" rgba="1 0 0 1"/>
    {camera}
  </worldbody>
</mujoco>
"""
CAMERA = (
    '<camera name="side" pos="0 -3 0" xyaxes="1 0 0 0 0 1"/>'
    '<camera name="away" pos="0 -3 0" xyaxes="-1 0 0 0 0 1"/>'
)


def ball(camera=CAMERA):
    model = mujoco.MjModel.from_xml_string(BALL.format(camera=camera))
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    return model, data


def redness(image):
    return float((image[..., 0].astype(int) - image[..., 1] > 60).mean())


@needs_gl
@pytest.mark.parametrize("camera", [CAMERA, ""])
def test_a_picture_shows_the_scene(camera):
    model, data = ball(camera)
    with Renderer(model, size=(160, 120)) as renderer:  # larger than the model's buffer
        image = renderer.image(model, data)
    assert image.shape == (120, 160, 3)
    assert image.dtype == np.uint8
    assert redness(image) > 0.01
    assert redness(image[:, 60:100]) > redness(image[:, :30])


@needs_gl
def test_a_picture_is_the_right_way_up():
    model, data = ball('<camera name="low" pos="0 -3 -.6" xyaxes="1 0 0 0 0 1"/>')
    with Renderer(model, "low", (64, 48)) as renderer:
        image = renderer.image(model, data)
    assert redness(image[:24]) > redness(image[24:])


@needs_gl
def test_cameras_by_name():
    model, data = ball()
    seen = {}
    for name in ("side", "away"):
        with Renderer(model, name, (64, 48)) as renderer:
            seen[name] = redness(renderer.image(model, data))
    assert seen["side"] > 0
    assert seen["away"] == 0


def test_unknown_camera():
    with pytest.raises(DeftlyError, match="no camera 'sid' in the scene, did you mean 'side'"):
        Renderer(ball()[0], "sid")
    with pytest.raises(DeftlyError, match=r"no camera 'side' in the scene; it has \['free'\]"):
        render.camera_index(ball("")[0], "side")


@needs_gl
def test_environments_look_like_themselves(slider):
    env = slider(3)
    env.state.joint("ball")[1, 1] -= 1.0
    with Renderer(env.model, size=(64, 48)) as renderer:
        images = [renderer.environment(env, i) for i in range(3)]
        again = renderer.environment(env, 0)
    assert not np.array_equal(images[0], images[1])
    assert np.array_equal(images[0], again)


@needs_gl
def test_recorder_shows_each_episode_to_its_end(slider):
    import torch

    from deftly.evaluate.rollout import run_episodes

    recorder = Recorder(2, size=(64, 48))
    task = slider(1).task
    run_episodes(
        task,
        lambda obs: torch.zeros(len(obs), 2),
        3,
        seed=0,
        purpose="evaluate",
        env_cfg=EnvConfig(episode_steps=4),
        sim_cfg=SimConfig(threads=1),
        on_step=recorder.watch,
    )
    frames = list(recorder.frames())
    assert len(frames) == 2 * (4 + task.cfg.rate / 2)  # held for half a second
    assert all(frame.shape == (48, 64, 3) for frame in frames)


def test_a_video_plays_at_the_control_rate(tmp_path):
    import av

    images = (np.full((48, 64, 3), 4 * i, np.uint8) for i in range(30))
    path = tmp_path / "video.mp4"
    assert write_video(path, images, fps=12.5) == 30
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert float(stream.average_rate) == 12.5
        times = [float(frame.time) for frame in file.decode(stream)]
    assert times == pytest.approx([i / 12.5 for i in range(30)])
    assert [p.name for p in tmp_path.iterdir()] == ["video.mp4"]


def test_a_video_that_fails_leaves_the_old_one(tmp_path):
    path = tmp_path / "video.mp4"
    path.write_text("old")

    def broken():
        yield np.zeros((48, 64, 3), np.uint8)
        raise ValueError("stopped")

    with pytest.raises(ValueError, match="stopped"):
        write_video(path, broken(), 10)
    with pytest.raises(DeftlyError, match="no frames"):
        write_video(path, [], 10)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["video.mp4"]
    with pytest.raises(DeftlyError, match="cannot write"):
        write_video(path / "video.mp4", [np.zeros((48, 64, 3), np.uint8)], 10)


def test_png(tmp_path):
    from PIL import Image

    image = np.random.default_rng(0).integers(0, 255, (9, 7, 3), np.uint8)
    write_png(tmp_path / "a.png", image)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), image)
    with pytest.raises(DeftlyError, match="cannot write"):
        write_png(tmp_path / "a.png/b.png", image)


# -------------------------------------------------------------------- no OpenGL


@pytest.fixture
def no_display(monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "MUJOCO_GL"):
        monkeypatch.setenv(name, "")  # so that what a test sets is undone
        monkeypatch.delenv(name)


@pytest.fixture
def no_library(no_display, monkeypatch):
    monkeypatch.setattr(render.ctypes.util, "find_library", lambda name: None)


@pytest.mark.parametrize("chosen", ["", "egl", "osmesa", "glfw"])
def test_one_line_without_libraries(chosen, no_library, monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", chosen)
    with pytest.raises(
        DeftlyError, match=r"^no OpenGL to render with: apt-get install libegl1"
    ) as error:
        Renderer(ball()[0])
    assert "\n" not in str(error.value)


def test_rendering_switched_off(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "off")
    with pytest.raises(DeftlyError, match="MUJOCO_GL=off forbids rendering"):
        Renderer(ball()[0])


def test_choosing(no_display, monkeypatch):
    monkeypatch.setattr(
        render.ctypes.util, "find_library", lambda name: name if name == "OSMesa" else None
    )
    assert choose_gl() == os.environ["MUJOCO_GL"] == "osmesa"
    monkeypatch.setenv("MUJOCO_GL", "egl")
    with pytest.raises(DeftlyError, match="MUJOCO_GL=egl, but its library is missing"):
        choose_gl()


def test_choosing_what_does_not_exist(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "elg")
    with pytest.raises(DeftlyError, match="MUJOCO_GL=elg is no backend, did you mean 'egl'"):
        choose_gl()


def test_choosing_with_nothing_installed_waits_for_the_renderer(no_library):
    assert choose_gl() == ""


@needs_gl
@pytest.mark.parametrize(
    "setting", [{"MUJOCO_GL": "glfw"}, {"__EGL_VENDOR_LIBRARY_FILENAMES": "/nowhere"}]
)
def test_one_line_where_the_driver_fails(setting):
    code = (
        "import mujoco; from deftly.render import Renderer\n"
        "model = mujoco.MjModel.from_xml_string('<mujoco><worldbody><geom size=\"1\"/></worldbody></mujoco>')\n"
        "try: Renderer(model)\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    dropped = ("DISPLAY", "WAYLAND_DISPLAY", "MUJOCO_GL")
    env = {name: value for name, value in os.environ.items() if name not in dropped} | setting
    ran = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60
    )
    assert ran.stdout.startswith("NoGLError no OpenGL to render with: apt-get install libegl1")
    assert ran.stdout.count("\n") == 1
    assert not ran.stderr


@needs_gl
def test_what_is_only_in_a_hidden_group_is_seen():
    """A robot whose geoms are all in group 3, by convention what collides, and which has no looks."""
    from deftly.sim import looks

    xml = BALL.replace("/>\n    {camera}", ' group="3"/>').replace('name="ball"', "")
    model = mujoco.MjModel.from_xml_string(xml)
    looks.show_hidden(model)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    with Renderer(model, size=(64, 48)) as renderer:
        assert redness(renderer.image(model, data)) > 0.1
