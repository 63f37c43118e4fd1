"""Checks of demonstrations: do the cameras see what matters, are they frozen, does the arm move smoothly?"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mujoco
import numpy as np

from deftly.contract import PolicyContract
from deftly.files import write_text
from deftly.render import Renderer, pose

if TYPE_CHECKING:
    from deftly.data.demonstrations import Episode
    from deftly.env import Env

MIN_ROBOT, MIN_OBJECT = 0.01, 0.0005
"""Smallest parts of an image that the robot, and the object, must cover for the camera to see them: 25 of 224 x 224
pixels are 5 x 5."""
STILL = 1e-3
"""Largest change of a joint between frames that may leave an image as it is, rad or m."""
MAX_FROZEN = 0.2
"""Largest fraction of the frames, of those in which a joint moved, that may equal the frame before."""
SLOW = 0.05
"""Part of a joint's top speed below which a change of direction is no jitter."""
MAX_REVERSALS = 0.25
"""Largest fraction of the steps in which a joint may turn around."""
NAMED = 8
"""Episodes that fail a check, of which the first are named."""
SHOWN = 12
"""Episodes of which the report shows images."""
NONE = -1
"""Geom or body of a pixel that shows none."""


class Labels(Renderer):
    """Renders which geom each pixel shows."""

    def geoms(self, model: mujoco.MjModel, data: mujoco.MjData) -> np.ndarray:
        """Index of the geom at each pixel, `(height, width)`; -1 where there is none."""
        for flag in (mujoco.mjtRndFlag.mjRND_SEGMENT, mujoco.mjtRndFlag.mjRND_IDCOLOR):
            self._scene.flags[flag.value] = 1
        colours = self.image(model, data).astype(np.int64)
        ids = colours @ (1, 256, 65536) - 1  # a segment's number is its colour; black is none
        count = max(self._scene.ngeom, 1)
        shown = np.full(count + 1, NONE)
        for geom in self._scene.geoms[: self._scene.ngeom]:
            is_geom = geom.objtype == mujoco.mjtObj.mjOBJ_GEOM.value
            if is_geom and geom.segid >= 0:
                shown[geom.segid] = geom.objid
        known = np.clip(ids, -1, len(shown) - 1)
        return shown[known]


def visible(env: Env, episode: Episode, cameras: Sequence[str], size: int) -> dict[str, Any]:
    """Whether a camera that stands in the scene sees robot and object first, and each camera the object once.

    Looked at are the first, the middle and the last frame. A scene without a free body has no object.
    """
    model = env.drawn_of(episode.env)
    robot, objects = _bodies(env, model)
    middle = len(episode) // 2
    states = [episode.states[i] for i in (0, middle, -1)]
    seen = {}
    for name in cameras:
        with Labels(env.drawn, name, (size, size), plain=True) as labels:
            images = [_shown(labels, model, state) for state in states]
        robot_part = _parts(images, robot)
        object_part = None
        if len(objects):
            object_part = _parts(images, objects)
        stands = model.camera(name).bodyid[0] == 0
        judge = _standing if stands else _moving_along
        seen[f"{name} sees"] = judge(robot_part, object_part)
    return seen


def _shown(labels: Labels, model: mujoco.MjModel, state: np.ndarray) -> np.ndarray:
    """Body at each pixel of an image of a state, `(height, width)`; -1 where there is none."""
    geoms = labels.geoms(model, pose(model, state))
    bodies = model.geom_bodyid[geoms]
    return np.where(geoms == NONE, NONE, bodies)


def _parts(images: Sequence[np.ndarray], bodies: np.ndarray) -> list[float]:
    """Which part of each image `(height, width)` of bodies shows one of these."""
    return [float(np.isin(image, bodies).mean()) for image in images]


def _standing(robot: list[float], objects: list[float] | None) -> dict[str, Any]:
    """What a camera of the scene found: at the start it must see both, if there is an object."""
    sees_object = objects is None or objects[0] >= MIN_OBJECT
    return _found(sees_object and robot[0] >= MIN_ROBOT, min(robot))


def _moving_along(_: list[float], objects: list[float] | None) -> dict[str, Any]:
    """What a camera on the robot found: it must see the object once, if there is one."""
    most = max(objects or [0.0])
    return _found(objects is None or most >= MIN_OBJECT, most)


def _bodies(env: Env, model: mujoco.MjModel) -> tuple[np.ndarray, np.ndarray]:
    """Bodies of the robot's joints, and free bodies that have none of them."""
    names = env.contract.joint_names
    robot = {int(model.joint(name).bodyid[0]) for name in names}
    roots = {int(model.body_rootid[body]) for body in robot}
    free_joints = np.flatnonzero(model.jnt_type == mujoco.mjtJoint.mjJNT_FREE.value)
    free = {int(model.jnt_bodyid[i]) for i in free_joints}
    objects = sorted(free - roots)
    return np.array(sorted(robot)), np.array(objects, int)


def moving(images: Mapping[str, np.ndarray], joint_pos: np.ndarray) -> dict[str, Any]:
    """Whether each camera's images (steps, height, width, 3) change as the joints (steps, num_joints) do."""
    steps = np.abs(np.diff(joint_pos, axis=0))
    moved = steps.max(-1, initial=0.0) > STILL
    found = {}
    for name, frames in images.items():
        pixels = frames.reshape(len(frames), -1)
        same = (pixels[1:] == pixels[:-1]).all(-1)
        frozen = 0.0
        if moved.any():
            frozen = float(same[moved].mean())
        found[f"{name} moves"] = _found(frozen <= MAX_FROZEN, frozen)
    return found


def smooth(contract: PolicyContract, joint_pos: np.ndarray) -> dict[str, Any]:
    """Whether the joints (steps, num_joints) move without jitter: how often the one that does most turns around."""
    velocity = np.diff(joint_pos, axis=0) * contract.rate
    top = np.array([joint.velocity for joint in contract.joints])
    fast = np.abs(velocity) > SLOW * top
    turned = velocity[1:] * velocity[:-1] < 0
    turns = turned & fast[1:] & fast[:-1]
    worst = 0.0
    if len(turns):
        worst = float(turns.mean(0).max())
    return {"smooth": _found(worst <= MAX_REVERSALS, worst)}


def _found(fine: bool, value: float) -> dict[str, Any]:
    return {"fine": bool(fine), "value": round(value, 6)}


# ------------------------------------------------------------------ what was found

MEANING = {
    "sees": "smallest part of the image that the robot covers, or largest that the object does",
    "moves": "fraction of frames that stand still while a joint moves",
    "smooth": "fraction of steps in which a joint turns around",
}


def failures(facts: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is wrong, a line for each check, with the episodes; empty if nothing is."""
    lines = []
    for name in facts[0]["checks"]:
        fine = [fact["checks"][name]["fine"] for fact in facts]
        bad = np.flatnonzero(np.logical_not(fine))
        if len(bad):
            named = ", ".join(map(str, bad[:NAMED]))
            if len(bad) > NAMED:
                named += ", ..."
            lines.append(f"{name}: {len(bad)} of {len(facts)} episodes fail ({named})")
    return lines


PAGE = """<!doctype html><meta charset=utf-8><title>Demonstrations</title>
<style>
body {{font: 15px sans-serif; max-width: 60em; margin: 2em auto}}
td {{padding: 2px 12px}}
img {{width: 112px}}
</style>
<h1>Demonstrations</h1>
<p>{count} episodes, {frames} frames, {least} to {most} steps, {successes} successes.</p>
<h2>Problems</h2>
<ul>{problems}</ul>
<h2>Checks</h2>
<table>
<tr><th>check</th><th>episodes that pass</th><th>range</th><th>what it is</th></tr>
{rows}
</table>
<h2>First and last frames</h2>
{images}
"""


def write_report(
    folder: Path, facts: Sequence[Mapping[str, Any]], sheets: Sequence[Mapping[str, np.ndarray]]
) -> None:
    """Write `report.html`: what was checked, and the first and the last frame of the first episodes.

    Args:
        folder: Where.
        facts: Of each episode, as `meta/deftly.json` has them.
        sheets: Of each episode, images (2, size, size, 3) uint8 by the camera's name.
    """
    steps = [fact["steps"] for fact in facts]
    lines = failures(facts) or ["none"]
    problems = [f"<li>{escape(line)}</li>" for line in lines]
    rows = [_row(name, facts) for name in facts[0]["checks"]]
    images = [_images(number, sheet) for number, sheet in enumerate(sheets[:SHOWN])]
    page = PAGE.format(
        count=len(facts),
        frames=sum(steps),
        least=min(steps),
        most=max(steps),
        successes=sum(fact["success"] for fact in facts),
        problems="".join(problems),
        rows="\n".join(rows),
        images="\n".join(images),
    )
    write_text(folder / "report.html", page)


def _row(name: str, facts: Sequence[Mapping[str, Any]]) -> str:
    """The row of a check in the table."""
    found = [fact["checks"][name] for fact in facts]
    values = [each["value"] for each in found]
    fine = [each["fine"] for each in found]
    kind = name.split()[-1]
    cells = (
        escape(name),
        f"{sum(fine)} of {len(facts)}",
        f"{min(values):.4g} .. {max(values):.4g}",
        MEANING[kind],
    )
    inner = "</td><td>".join(cells)
    return f"<tr><td>{inner}</td></tr>"


def _images(number: int, sheet: Mapping[str, np.ndarray]) -> str:
    """The images of an episode."""
    images = ""
    for frames in sheet.values():
        images += "".join(_embedded(image) for image in frames)
    return f"<p>{number} {images}</p>"


def _embedded(image: np.ndarray) -> str:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, format="JPEG", quality=80)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img src="data:image/jpeg;base64,{data}">'
