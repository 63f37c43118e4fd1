"""The free camera shows a robot whole, whatever the robot; a robot's own cameras are never the default."""

import mujoco
import numpy as np
import pytest

from deftly import render, robots, tasks
from deftly.render import framing
from deftly.robots.check import on_floor
from deftly.sim import looks

WRIST = """<mujoco><worldbody>
  <geom type="plane" size="5 5 .1"/>{standing}
  <body name="arm"><joint/><geom type="capsule" fromto="0 0 0 {length} 0 0" size=".05" group="{group}"/>
    <camera name="wrist" pos="{length} 0 0"/></body>
</worldbody></mujoco>"""
STANDING = '<camera name="front" pos="0 -3 0" xyaxes="1 0 0 0 0 1"/>'


def arm(standing="", length=1.0, group=0):
    model = mujoco.MjModel.from_xml_string(
        WRIST.format(standing=standing, length=length, group=group)
    )
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    return model, data


def in_image(model, data, camera, aspect):
    """Where the corners of what is drawn are in a free camera's image, (n, 2): the edges are -1 and 1."""
    right, up, forward = framing._axes(camera.azimuth, camera.elevation)
    away = looks.corners(model, data) - (camera.lookat - camera.distance * forward)
    half = np.tan(np.radians(model.vis.global_.fovy) / 2)
    depth = away @ forward
    return np.stack((away @ right / (half * aspect * depth), away @ up / (half * depth)), -1)


@pytest.mark.parametrize("aspect", [0.5, 4 / 3, 3.0])
@pytest.mark.parametrize("name", robots.shipped())
def test_shipped_robots_are_shown_whole_and_large(name, aspect):
    model, data = on_floor(robots.load(name))
    places = in_image(model, data, framing.free_camera(model, data, aspect), aspect)
    assert 0.75 < np.abs(places).max() < 1.0


@pytest.mark.parametrize("length", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("direction", [(0, -90), (45, 30), (200, -20)])
def test_robots_of_any_size_are_shown_whole_from_any_side(length, direction):
    model, data = arm(length=length)
    model.vis.global_.azimuth, model.vis.global_.elevation = direction
    places = in_image(model, data, framing.free_camera(model, data, 4 / 3), 4 / 3)
    assert 0.6 < np.abs(places).max() < 1.0


def test_what_sinks_into_the_floor_a_little_is_framed_whole():
    """An object at rest does; one that is wholly below, put aside, is left out."""
    model = mujoco.MjModel.from_xml_string(
        '<mujoco><worldbody><geom type="plane" size="1 1 1"/>'
        '<body pos="0 0 .0999"><geom type="box" size=".02 .02 .1"/></body>'
        '<body pos="0 0 -9"><geom size=".1"/></body></worldbody></mujoco>'
    )
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    found = looks.corners(model, data)
    assert len(found) == 8
    assert found[:, 2].min() == pytest.approx(-0.0001)


def test_the_floor_is_not_what_is_framed():
    model, data = arm()
    assert looks.corners(model, data)[:, 0].max() == pytest.approx(1.05)


def test_what_only_stands_in_the_world_is_framed_if_nothing_else_is_there():
    model = mujoco.MjModel.from_xml_string(
        '<mujoco><worldbody><geom size=".2" pos="3 0 0"/></worldbody></mujoco>'
    )
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    assert framing.free_camera(model, data, 1.0).lookat == pytest.approx([3, 0, 0])


def test_a_scene_without_anything_to_see_has_a_camera_too():
    model = mujoco.MjModel.from_xml_string("<mujoco/>")
    assert framing.free_camera(model, mujoco.MjData(model), 1.0).distance > 0


def test_the_default_camera_stands_in_the_scene():
    assert render.camera_index(arm()[0], None) == -1
    assert render.camera_index(arm(STANDING)[0], None) == 0
    model = arm(STANDING)[0]
    assert model.camera(render.camera_index(model, None)).name == "front"
    assert model.camera(render.camera_index(model, "wrist")).name == "wrist"
    assert render.camera_index(model, render.FREE) == -1


def test_a_camera_that_follows_the_robot_is_not_on_it():
    """A legged robot leaves the image of a camera that stands."""
    task = tasks.load("wildrobot-walk")
    model = task(task.Config()).scene().compile()
    assert model.camera(render.camera_index(model, None)).name == "front"


def test_the_floor_is_below_a_robot_that_reaches_below_its_base():
    model, data = on_floor(robots.load("leap-right"))
    lowest = looks.corners(model, data)[:, 2].min()
    assert data.geom("floor").xpos[2] == pytest.approx(lowest)
    assert lowest < -0.1
