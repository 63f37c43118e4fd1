"""How fingertips turn an object: where each pushes it and when, from which a search for a gait starts."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Strokes:
    """Where fingertips push what they turn about the vertical, and when."""

    sites: tuple[str, ...]  # of the tips
    angles: tuple[
        float, ...
    ]  # on which side each pushes, rad about the centre, as of a turn counter-clockwise
    phases: tuple[float, ...]  # when each does, as a fraction of the period
    centre: tuple[
        float, float, float
    ]  # of what is turned, at the height of the tips, m, in the world
    radius: float  # at which a tip touches it, m
    direction: float = 1.0  # -1 turns clockwise, with mirrored angles
