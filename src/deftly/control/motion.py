"""How a command may move: towards a goal, within limits, top speeds and accelerations, with the couplings kept.

What limits one joint limits those that it is coupled to by the same fraction of their way, and no other: so what a
coupling was, it stays, and the rest of the robot goes on.

A robot has 6 to 30 joints. For so few, loops over Python's floats take a third of the time of numpy's operations on
arrays, and round alike on every computer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from deftly.contract import RobotInterface

Values = list[float]
"""A number for each joint, `num_joints` of them, in rad (m), rad/s (m/s) and so on. No such list is ever changed."""
_ROUNDING = 1e-12
"""Rounding of a joint's position, rad (m)."""
_SHORTEST = 1e-9
"""Time in which no command moves, s: a velocity in it would be no number."""


class Motion:
    """The bounds of a robot's commands.

    Args:
        robot: whose couplings and accelerations hold.
        lower: least command of each joint.
        upper: largest.
        speed: how fast a command may move.
    """

    def __init__(self, robot: RobotInterface, lower: Values, upper: Values, speed: Values):
        self._lower = lower
        self._upper = upper
        self._speed = speed
        self._acceleration = [joint.acceleration or math.inf for joint in robot.joints]
        self._has_acceleration = min(self._acceleration) < math.inf
        self._set_couplings(robot)

    def _set_couplings(self, robot: RobotInterface) -> None:
        """Followers as offset + sum of ratio * leader, and the groups of joints that are coupled to one another."""
        index = {name: place for place, name in enumerate(robot.joint_names)}
        groups = {place: {place} for place in index.values()}
        self._couplings: list[tuple[int, float, list[tuple[int, float]]]] = []
        for each in robot.couplings:
            follower = index[each.joint]
            leaders = [(index[leader], ratio) for leader, ratio in each.of]
            self._couplings.append((follower, each.offset, leaders))
            group = groups[follower].copy()
            for leader, _ in leaders:
                group |= groups[leader]
            groups.update(dict.fromkeys(group, group))
        several = {}
        for group in groups.values():
            if len(group) > 1:
                several[min(group)] = sorted(group)
        self._groups = list(several.values())

    def coupled(self, goal: Values) -> Values:
        """The goal with its leaders within limits and its followers where these leaders put them."""
        if not self._couplings:
            return goal
        coupled = clipped(goal, self._lower, self._upper)
        for follower, offset, leaders in self._couplings:
            way = 0.0
            for leader, ratio in leaders:
                way += ratio * coupled[leader]
            coupled[follower] = offset + way
        return coupled

    def any_coupled(self, flags: Sequence[bool]) -> list[bool]:
        """Of each joint, whether it or one that it is coupled to is flagged."""
        spread = list(flags)
        for group in self._groups:
            if True in [flags[place] for place in group]:
                for place in group:
                    spread[place] = True
        return spread

    def towards(
        self, command: Values, velocity: Values, goal: Values, ramp: float, dt: float
    ) -> tuple[Values, Values]:
        """The command a time `dt` later, s, as near to a coupled goal as it may be, and its velocity.

        Args:
            command: The one before.
            velocity: Its velocity.
            goal: Where to.
            ramp: Fraction of the speed that is allowed.
            dt: Time in which it moves, s.
        """
        allowed = self._allowed(command, goal)
        most = [ramp * speed * dt for speed in self._speed]
        if self._has_acceleration:
            return self._accelerated(command, velocity, allowed, most, dt)
        moved = self._limited(command, allowed, most)
        return clipped(moved, self._lower, self._upper), velocity

    def _shared(self, fractions: Values) -> Values:
        """The least of the fractions of the joints that each joint is coupled to."""
        shared = fractions.copy()
        for group in self._groups:
            least = min([fractions[place] for place in group])
            for place in group:
                shared[place] = least
        return shared

    def _allowed(self, command: Values, goal: Values) -> Values:
        """As far towards the goal as limits allow."""
        allowed = clipped(goal, self._lower, self._upper)
        if not self._couplings or allowed == goal:
            return allowed
        ways = _ways(command, goal)
        fractions = []
        for limit, end, start, way in zip(allowed, goal, command, ways):
            is_limited = limit != end and way
            fractions.append((limit - start) / way if is_limited else 1.0)
        shared = self._shared(fractions)
        some = [start + part * way for start, part, way in zip(command, shared, ways)]
        some = clipped(some, self._lower, self._upper)
        return [near if part < 1.0 else all_ for near, part, all_ in zip(some, shared, allowed)]

    def _limited(self, command: Values, goal: Values, most: Values) -> Values:
        """The command moved towards the goal, each joint by at most `most`."""
        ways = _ways(command, goal)
        distances = [abs(way) for way in ways]
        fractions = _fractions(most, distances)
        if min(fractions) == 1.0:
            return goal
        shared = self._shared(fractions)
        moved = []
        for start, end, way, part, bound in zip(command, goal, ways, shared, most):
            some = start + part * way
            some = max(some, start - bound)
            some = min(some, start + bound)
            moved.append(some if part < 1.0 else end)
        return moved

    # ----------------------------------------------------------- acceleration

    def _accelerated(
        self, command: Values, velocity: Values, goal: Values, most: Values, dt: float
    ) -> tuple[Values, Values]:
        """As `towards`, with accelerations; what could not stop before a limit any more brakes instead."""
        if dt < _SHORTEST:
            return command, velocity
        wanted = self._wanted(command, goal, most, dt)
        faster = self._nearer(velocity, wanted, dt)
        cannot = self._cannot_stop(command, faster, dt)
        brakes = self.any_coupled(cannot)
        braked = self._braked(velocity, dt)
        safe = [slow if brake else fast for slow, brake, fast in zip(braked, brakes, faster)]
        moved = [start + speed * dt for start, speed in zip(command, safe)]
        moved = clipped(moved, self._lower, self._upper)
        arrived = []
        for now, end in zip(moved, goal):
            is_there = abs(now - end) < _ROUNDING
            arrived.append(end if is_there else now)
        return arrived, safe

    def _nearer(self, velocity: Values, wanted: Values, dt: float) -> Values:
        """The velocity a time `dt` later, as near to the wanted one as accelerations allow."""
        changes = _ways(velocity, wanted)
        reach = [bound * dt for bound in self._acceleration]
        sizes = [abs(change) for change in changes]
        shared = self._shared(_fractions(reach, sizes))
        return [speed + part * change for speed, part, change in zip(velocity, shared, changes)]

    def _wanted(self, command: Values, goal: Values, most: Values, dt: float) -> Values:
        """The velocity that leads to the goal fastest, and can still come to rest there."""
        ways = _ways(command, goal)
        distances = [abs(way) for way in ways]
        reach = []
        for bound, braking, distance in zip(most, self._acceleration, distances):
            still = distance
            if braking < math.inf:
                time = math.sqrt(dt * dt + 2.0 * distance / braking) - dt
                still = braking * dt * time
            reach.append(min(bound, still))
        fractions = _fractions(reach, distances)
        shared = self._shared(fractions)
        return [part * way / dt for part, way in zip(shared, ways)]

    def _stopping_times(self, velocity: Values) -> Values:
        """How long those that each joint is coupled to take to stop together, s."""
        times = [abs(speed) / bound for speed, bound in zip(velocity, self._acceleration)]
        for group in self._groups:
            longest = max([times[place] for place in group])
            for place in group:
                times[place] = longest
        return times

    def _cannot_stop(self, command: Values, velocity: Values, dt: float) -> list[bool]:
        """Which joints would not come to rest before their limits if they braked after moving so for a time `dt`."""
        cannot = []
        for place, time in enumerate(self._stopping_times(velocity)):
            speed = velocity[place]
            start = command[place]
            room = start - self._lower[place]
            if speed > 0:
                room = self._upper[place] - start
            way = abs(speed) * (dt + 0.5 * time)
            cannot.append(not way <= room + _ROUNDING)
        return cannot

    def _braked(self, velocity: Values, dt: float) -> Values:
        """The velocity after braking for a time `dt`: it stops before the limits, since it could before."""
        times = self._stopping_times(velocity)
        left = _fractions([dt] * len(times), times)
        return [speed * (1.0 - part) for speed, part in zip(velocity, left)]


def clipped(values: Values, lower: Values, upper: Values) -> Values:
    """Each value within its bounds."""
    return [
        low if value < low else high if value > high else value
        for value, low, high in zip(values, lower, upper)
    ]


def _ways(start: Values, end: Values) -> Values:
    """From start to end, of each."""
    return [after - before for before, after in zip(start, end)]


def _fractions(most: Values, wanted: Values) -> Values:
    """What part of each may be had: all of it, or as much as is allowed."""
    return [bound / all_ if all_ > bound else 1.0 for bound, all_ in zip(most, wanted)]
