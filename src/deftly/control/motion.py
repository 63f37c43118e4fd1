"""How a command may move: towards a goal, within limits, top speeds and accelerations, with the couplings kept.

What limits one joint limits those that it is coupled to by the same fraction of their way, and no other: so what a
coupling was, it stays, and the rest of the robot goes on.
"""

from __future__ import annotations

import numpy as np

from deftly.contract import RobotInterface

_ROUNDING = 1e-12
"""Rounding of a joint's position, rad (m)."""
_SHORTEST = 1e-9
"""Time in which no command moves, s: a velocity in it would be no number."""


class Motion:
    """The bounds of a robot's commands. All arrays are (num_joints,) float64, in rad (m), rad/s (m/s) and so on.

    Args:
        robot: whose couplings and accelerations hold.
        lower: least command of each joint.
        upper: largest.
        speed: how fast a command may move.
    """

    def __init__(
        self, robot: RobotInterface, lower: np.ndarray, upper: np.ndarray, speed: np.ndarray
    ):
        self._lower = lower
        self._upper = upper
        self._speed = speed
        bounds = np.array([joint.acceleration for joint in robot.joints], np.float64)
        self._acceleration = np.where(bounds > 0, bounds, np.inf)
        self._has_acceleration = bool((bounds > 0).any())
        self._set_couplings(robot)

    def _set_couplings(self, robot: RobotInterface) -> None:
        """Followers as offset + ratios @ leaders, and which joints are coupled to one another."""
        count = len(robot.joints)
        index = {name: place for place, name in enumerate(robot.joint_names)}
        couplings = robot.couplings
        self._followers = np.array([index[each.joint] for each in couplings], np.intp)
        self._offsets = np.array([each.offset for each in couplings], np.float64)
        self._ratios = np.zeros((len(couplings), count))
        linked = np.eye(count, dtype=bool)
        for row, each in enumerate(couplings):
            for leader, ratio in each.of:
                self._ratios[row, index[leader]] = ratio
                linked[index[leader], index[each.joint]] = True
        linked |= linked.T
        for _ in range(count.bit_length()):  # who is coupled to a neighbour's neighbour, too
            linked = linked @ linked
        self.linked = linked
        """Which joints are coupled, (num_joints, num_joints) bool; each joint with itself."""

    def coupled(self, goal: np.ndarray) -> np.ndarray:
        """The goal with its leaders within limits and its followers where these leaders put them."""
        if not len(self._followers):
            return goal
        coupled = np.clip(goal, self._lower, self._upper)
        coupled[self._followers] = self._offsets + self._ratios @ coupled
        return coupled

    def towards(
        self, command: np.ndarray, velocity: np.ndarray, goal: np.ndarray, ramp: float, dt: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """The command a time `dt` later, s, as near to a coupled goal as it may be, and its velocity.

        Args:
            command: The one before.
            velocity: Its velocity.
            goal: Where to.
            ramp: Fraction of the speed that is allowed.
            dt: Time in which it moves, s.
        """
        allowed = self._allowed(command, goal)
        most = ramp * self._speed * dt
        if self._has_acceleration:
            return self._accelerated(command, velocity, allowed, most, dt)
        moved = self._limited(command, allowed, most)
        return np.clip(moved, self._lower, self._upper), velocity

    def _shared(self, fraction: np.ndarray) -> np.ndarray:
        """The least of the fractions of the joints that each joint is coupled to."""
        return np.where(self.linked, fraction, 1.0).min(axis=1)

    def _allowed(self, command: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """As far towards the goal as limits allow."""
        allowed = np.clip(goal, self._lower, self._upper)
        if not len(self._followers) or np.array_equal(allowed, goal):
            return allowed
        way = goal - command
        fraction = np.divide(allowed - command, way, out=np.ones_like(way), where=allowed != goal)
        shared = self._shared(fraction)
        some = np.clip(command + shared * way, self._lower, self._upper)
        return np.where(shared < 1.0, some, allowed)

    def _limited(self, command: np.ndarray, goal: np.ndarray, most: np.ndarray) -> np.ndarray:
        """The command moved towards the goal, each joint by at most `most`."""
        way = goal - command
        distance = np.abs(way)
        fraction = np.divide(most, distance, out=np.ones_like(way), where=distance > most)
        shared = self._shared(fraction)
        some = np.clip(command + shared * way, command - most, command + most)
        return np.where(shared < 1.0, some, goal)

    # ----------------------------------------------------------- acceleration

    def _accelerated(
        self,
        command: np.ndarray,
        velocity: np.ndarray,
        goal: np.ndarray,
        most: np.ndarray,
        dt: float,
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `towards`, with accelerations; what could not stop before a limit any more brakes instead."""
        if dt < _SHORTEST:
            return command, velocity
        wanted = self._wanted(command, goal, most, dt)
        change = np.abs(wanted - velocity)
        reach = self._acceleration * dt
        fraction = np.divide(reach, change, out=np.ones_like(change), where=change > reach)
        faster = velocity + self._shared(fraction) * (wanted - velocity)
        stops = self._can_stop(command, faster, dt)
        safe = np.where(self._all_coupled(stops), faster, self._braked(velocity, dt))
        moved = np.clip(command + safe * dt, self._lower, self._upper)
        arrived = np.abs(moved - goal) < _ROUNDING
        return np.where(arrived, goal, moved), safe

    def _wanted(
        self, command: np.ndarray, goal: np.ndarray, most: np.ndarray, dt: float
    ) -> np.ndarray:
        """The velocity that leads to the goal fastest, and can still come to rest there."""
        way = goal - command
        distance = np.abs(way)
        bound = self._acceleration
        finite = np.isfinite(bound)
        braking = np.where(finite, bound, 1.0)
        still = braking * dt * (np.sqrt(dt * dt + 2.0 * distance / braking) - dt)
        reach = np.minimum(most, np.where(finite, still, distance))
        fraction = np.divide(reach, distance, out=np.ones_like(way), where=distance > reach)
        return self._shared(fraction) * way / dt

    def _stopping_time(self, velocity: np.ndarray) -> np.ndarray:
        """How long those that each joint is coupled to take to stop together, s."""
        alone = np.abs(velocity) / self._acceleration
        return np.where(self.linked, alone, 0.0).max(axis=1)

    def _can_stop(self, command: np.ndarray, velocity: np.ndarray, dt: float) -> np.ndarray:
        """Which joints come to rest before their limits if they brake after moving so for a time `dt`."""
        room = np.where(velocity > 0, self._upper - command, command - self._lower)
        way = np.abs(velocity) * (dt + 0.5 * self._stopping_time(velocity))
        return way <= room + _ROUNDING

    def _all_coupled(self, fine: np.ndarray) -> np.ndarray:
        """Whether it is fine for all that each joint is coupled to, bool."""
        return np.logical_and.reduce(fine | ~self.linked, axis=1)

    def _braked(self, velocity: np.ndarray, dt: float) -> np.ndarray:
        """The velocity after braking for a time `dt`: it stops before the limits, since it could before."""
        needed = self._stopping_time(velocity)
        left = np.divide(dt, needed, out=np.ones_like(needed), where=needed > dt)
        return velocity * (1.0 - left)
