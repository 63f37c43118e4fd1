"""A robot as a task meets it in a scene: verbs on the state of all environments, in the robot's own words."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

from deftly.errors import DeftlyError
from deftly.sim import scene

if TYPE_CHECKING:
    import mujoco
    from torch import Tensor

    from deftly.sim.state import State


class Entity:
    """What robots have in common. A robot's file subclasses it, and knows its sites, pads and cameras.

    Attributes:
        tool_site: the site that tasks move: between the fingertips of a gripper; empty if the robot has none.
        pads: geoms that touch what the robot handles.
        root: body from which all links hang; empty if no task asks for contacts of the whole robot.
    """

    tool_site: str = ""
    pads: tuple[str, ...] = ()
    root: str = ""

    def add_touch(self, spec: mujoco.MjSpec, body: str) -> None:
        """Give the scene sensors of the force between each pad and a body, which `touch` reads; `world` is one."""
        for pad in self.pads:
            scene.add_contact_force(spec, _touch_name(pad, body), pad, body)

    def add_pad_distances(self, spec: mujoco.MjSpec, cutoff: float) -> None:
        """Give the scene sensors of the distance between each two pads, up to `cutoff` (m): see `pad_distances`."""
        for pad, other in combinations(self.pads, 2):
            scene.add_distance(spec, _distance_name(pad, other), pad, other, cutoff)

    def add_depth(self, spec: mujoco.MjSpec, body: str) -> None:
        """Give the scene a sensor of how deep the robot is in a body, which `depth` reads."""
        name = _depth_name(self.root, body)
        scene.add_tree_distance(spec, name, self.root, body)

    def add_press(self, spec: mujoco.MjSpec, body: str) -> None:
        """Give the scene a sensor of the force between the robot and a body, which `press` reads; `world` is one."""
        name = _press_name(self.root, body)
        scene.add_tree_force(spec, name, self.root, body)

    def tool(self, s: State) -> Tensor:
        """World position of the tool point, `(num_envs, 3)`, m."""
        if not self.tool_site:
            raise DeftlyError(f"{type(self).__name__} has no tool point")
        return s.site(self.tool_site)

    def joint_pos(self, s: State) -> Tensor:
        """Positions of the joints, `(num_envs, num_joints)`, rad or m, in the contract's order."""
        return s.joint_pos

    def joint_vel(self, s: State) -> Tensor:
        """Velocities of the joints, `(num_envs, num_joints)`, rad/s or m/s."""
        return s.joint_vel

    def touch(self, s: State, body: str) -> Tensor:
        """Size of the force between each pad and a body of `add_touch`, `(num_envs, pads)`, N."""
        return s.sensors(tuple(_touch_name(pad, body) for pad in self.pads)).norm(dim=-1)

    def touches(self, s: State, bodies: tuple[str, ...]) -> Tensor:
        """The same of several bodies, `(num_envs, len(bodies), pads)`, N."""
        names = tuple(_touch_name(pad, body) for body in bodies for pad in self.pads)
        return s.sensors(names).norm(dim=-1).unflatten(1, (len(bodies), -1))

    def pad_distances(self, s: State) -> Tensor:
        """Signed distance between each two pads, `(num_envs, pairs)`, m, at most the cutoff; negative: they overlap.

        Pairs are in the order of `itertools.combinations(pads, 2)`.
        """
        pairs = combinations(self.pads, 2)
        return s.sensors(tuple(_distance_name(*pair) for pair in pairs)).squeeze(-1)

    def depth(self, s: State, body: str) -> Tensor:
        """Depth of the robot's deepest contact with a body of `add_depth`, `(num_envs,)`, m."""
        return (-s.sensor(_depth_name(self.root, body))[:, 0]).clip(min=0.0)

    def press(self, s: State, body: str) -> Tensor:
        """Size of the net force between the robot and a body of `add_press`, `(num_envs,)`, N."""
        return s.sensor(_press_name(self.root, body)).norm(dim=-1)

    def is_grasping(self, s: State, body: str, within: float, force: float = 1.0) -> Tensor:
        """Whether all pads press a body with over `force` (N), and it is `within` (m) of the tool point."""
        near = (self.tool(s) - s.body(body)).norm(dim=-1) < within
        return (self.touch(s, body) > force).all(-1) & near


def _touch_name(pad: str, body: str) -> str:
    return f"{pad}/{body}"


def _distance_name(pad: str, other: str) -> str:
    return f"{pad}/{other}/distance"


def _depth_name(pad: str, body: str) -> str:
    return f"{pad}/{body}/depth"


def _press_name(root: str, body: str) -> str:
    return f"{root}/{body}/press"
