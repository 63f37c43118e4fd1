"""The kinematic chain of a site as data of a robot interface, taken from its MuJoCo model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import mujoco
import numpy as np

from deftly.contract import Link, Site
from deftly.errors import DeftlyError

DIGITS = 9
"""Decimals that are kept, of m and of quaternions: so that a contract's hash is the same on every computer."""


def site_chain(model: mujoco.MjModel, site: str, joints: Sequence[str]) -> Site:
    """The chain from the robot's base to one of its sites.

    The base is the world, or the nearest body above the site that floats freely.

    Args:
        model: the robot's, alone or in a scene.
        site: name of the site.
        joints: names of the robot's joints; each joint on the way must be one of them.

    Raises DeftlyError if there is no such site, or a joint on the way is not one of the robot's.
    """
    number = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_SITE, site)
    if number < 0:
        raise DeftlyError(
            f"the model has no site '{site}', but {[model.site(i).name for i in range(model.nsite)]}"
        )
    links: list[Link] = []
    for body in _bodies_above(model, int(model.site_bodyid[number])):
        links += _body_links(model, body, joints, site)
    links.append(_link(model.site_pos[number], model.site_quat[number]))
    return Site(site, tuple(_merged(links)))


def _bodies_above(model: mujoco.MjModel, body: int) -> list[int]:
    """The bodies from below the base to this one."""
    bodies = []
    while body and not _floats(model, body):
        bodies.append(body)
        body = int(model.body_parentid[body])
    return bodies[::-1]


def _floats(model: mujoco.MjModel, body: int) -> bool:
    joints = range(model.body_jntadr[body], model.body_jntadr[body] + model.body_jntnum[body])
    return any(model.jnt_type[joint] == mujoco.mjtJoint.mjJNT_FREE for joint in joints)


def _body_links(
    model: mujoco.MjModel, body: int, joints: Sequence[str], site: str
) -> Iterator[Link]:
    """The body's place in its parent, then its joints, each about its anchor and from its reference."""
    yield _link(model.body_pos[body], model.body_quat[body])
    first = int(model.body_jntadr[body])
    for number in range(first, first + int(model.body_jntnum[body])):
        name = model.joint(number).name
        if name not in joints:
            raise DeftlyError(
                f"site '{site}' hangs on joint '{name}', which is none of the robot's: {list(joints)}"
            )
        anchor, axis = model.jnt_pos[number], model.jnt_axis[number]
        reference = float(model.qpos0[model.jnt_qposadr[number]])
        if model.jnt_type[number] == mujoco.mjtJoint.mjJNT_SLIDE:
            yield _link(-reference * axis, joint=name, axis=axis, kind="slide")
        elif model.jnt_type[number] == mujoco.mjtJoint.mjJNT_HINGE:
            back = np.zeros(4)
            mujoco.mju_axisAngle2Quat(back, axis, -reference)
            yield _link(anchor, back, joint=name, axis=axis)
            yield _link(-anchor)
        else:
            raise DeftlyError(
                f"site '{site}' hangs on joint '{name}', which is neither a hinge nor a slide"
            )


def _link(
    pos: np.ndarray,
    quat: np.ndarray | Sequence[float] = (1.0, 0.0, 0.0, 0.0),
    joint: str | None = None,
    axis: np.ndarray | Sequence[float] = (0.0, 0.0, 1.0),
    kind: str = "hinge",
) -> Link:
    rounded = [tuple(round(float(part), DIGITS) for part in values) for values in (pos, quat, axis)]
    return Link(*rounded[:2], joint, rounded[2], kind)  # type: ignore[arg-type]


def _merged(links: Sequence[Link]) -> Iterator[Link]:
    """The links without those that move and turn nothing."""
    for link in links:
        if link.joint is not None or link != Link():
            yield link
    if all(link == Link() for link in links):
        yield Link()
