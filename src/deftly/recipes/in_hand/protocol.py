"""What a task that turns or holds an object in a hand offers to `deftly grasps` and `deftly gait`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from deftly.contract import PolicyContract
    from deftly.objects.strokes import Strokes
    from deftly.sim.state import State
    from deftly.tasks import Task


class GraspTask(Protocol):
    """A task whose grasps can be searched for."""

    name: str
    cfg: Any
    """With `start`, which is "sample" while grasps are searched for, and `size`, the range of the object's size."""

    def contract(self) -> PolicyContract:
        """The hand's joints."""
        ...

    def stable(self, s: State) -> Tensor:
        """Which environments hold their object still and well, `(num_envs,)` bool."""
        ...

    def grasp(self, s: State) -> dict[str, Tensor]:
        """`cube_half` (num_envs,), `joint_pos` (num_envs, n) and `cube_pose` (num_envs, 7) now."""
        ...


class GaitTask(Protocol):
    """A task that helps the search for a gait.

    Both methods may be missing: then there is one gait, and the search starts at home.
    """

    def context(self, s: State) -> Tensor:
        """A number of each episode by which a gait may differ, `(num_envs,)` in -1 .. 1; no policy sees it."""
        ...

    def strokes(self) -> Strokes:
        """Where fingertips push the object."""
        ...


def context(task: Task, s: State) -> Tensor | None:
    """The context of each episode, `(num_envs,)`; None if the task has none."""
    own = getattr(task, "context", None)
    return own(s) if own else None


def strokes(task: Task) -> Strokes | None:
    """The strokes from which a search starts; None if the task has none, and it starts from standing still."""
    own = getattr(task, "strokes", None)
    return own() if own else None
