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
        sites = [model.site(i).name for i in range(model.nsite)]
        raise DeftlyError(f"the model has no site '{site}', but {sites}")
    links: list[Link] = []
    for body in _bodies_above(model, int(model.site_bodyid[number])):
        links += _body_links(model, body, joints, site)
    at_site = _link(model.site_pos[number], model.site_quat[number])
    links.append(at_site)
    return Site(site, tuple(_merged(links)))


def _bodies_above(model: mujoco.MjModel, body: int) -> list[int]:
    """The bodies from below the base to this one."""
    bodies = []
    while body and not _floats(model, body):
        bodies.append(body)
        body = int(model.body_parentid[body])
    return bodies[::-1]


def _floats(model: mujoco.MjModel, body: int) -> bool:
    """Whether a body has a free joint."""
    free = mujoco.mjtJoint.mjJNT_FREE
    return any(model.jnt_type[joint] == free for joint in _joints_of(model, body))


def _joints_of(model: mujoco.MjModel, body: int) -> range:
    first = int(model.body_jntadr[body])
    return range(first, first + int(model.body_jntnum[body]))


def _body_links(
    model: mujoco.MjModel, body: int, joints: Sequence[str], site: str
) -> Iterator[Link]:
    """The body's place in its parent, then its joints, each about its anchor and from its reference."""
    yield _link(model.body_pos[body], model.body_quat[body])
    for number in _joints_of(model, body):
        name = model.joint(number).name
        what = f"site '{site}' hangs on joint '{name}'"
        if name not in joints:
            raise DeftlyError(f"{what}, which is none of the robot's: {list(joints)}")
        if model.jnt_type[number] == mujoco.mjtJoint.mjJNT_SLIDE:
            yield _slide_link(model, number)
        elif model.jnt_type[number] == mujoco.mjtJoint.mjJNT_HINGE:
            yield from _hinge_links(model, number)
        else:
            raise DeftlyError(f"{what}, which is neither a hinge nor a slide")


def _slide_link(model: mujoco.MjModel, number: int) -> Link:
    axis = model.jnt_axis[number]
    reference = float(model.qpos0[model.jnt_qposadr[number]])
    name = model.joint(number).name
    return _link(-reference * axis, joint=name, axis=axis, kind="slide")


def _hinge_links(model: mujoco.MjModel, number: int) -> Iterator[Link]:
    """To the joint's anchor and turned back by its reference; then from the anchor back to the body's frame."""
    anchor = model.jnt_pos[number]
    axis = model.jnt_axis[number]
    reference = float(model.qpos0[model.jnt_qposadr[number]])
    turned_back = np.zeros(4)
    mujoco.mju_axisAngle2Quat(turned_back, axis, -reference)
    yield _link(anchor, turned_back, joint=model.joint(number).name, axis=axis)
    yield _link(-anchor)


def _link(
    pos: np.ndarray,
    quat: np.ndarray | Sequence[float] = (1.0, 0.0, 0.0, 0.0),
    joint: str | None = None,
    axis: np.ndarray | Sequence[float] = (0.0, 0.0, 1.0),
    kind: str = "hinge",
) -> Link:
    return Link(_rounded(pos), _rounded(quat), joint, _rounded(axis), kind)  # type: ignore[arg-type]


def _rounded(values: np.ndarray | Sequence[float]) -> tuple[float, ...]:
    return tuple(round(float(value), DIGITS) for value in values)


def _merged(links: Sequence[Link]) -> Iterator[Link]:
    """The links without those that move and turn nothing."""
    for link in links:
        if link.joint is not None or link != Link():
            yield link
    if all(link == Link() for link in links):
        yield Link()
