"""Physics presets: how finely a scene is simulated, and how the settings `sim.dt` and `sim.substeps` change it."""

import math
from typing import Literal, NamedTuple

from deftly.errors import DeftlyError

Preset = Literal["coarse", "fast", "default", "accurate"]
MAX_SUBSTEPS = 10_000
"""Of a control period: beyond this a typing error is likelier than a wish."""


class Physics(NamedTuple):
    """How finely a scene is simulated."""

    timestep: float
    """Longest substep, s; the control period is divided into equal substeps no longer than this."""
    iterations: int
    """Most iterations of the Newton solver in a substep."""
    impratio: float
    """Ratio of frictional to normal impedance: a higher one lets a gripped object creep less, at a cost."""


PRESETS: dict[Preset, Physics] = {
    "coarse": Physics(timestep=0.0126, iterations=10, impratio=5.0),
    "fast": Physics(timestep=0.0084, iterations=10, impratio=3.0),
    "default": Physics(timestep=0.0067, iterations=20, impratio=5.0),
    "accurate": Physics(timestep=0.002, iterations=100, impratio=10.0),
}


def divide(
    rate: float, preset: Preset, dt: float | None = None, substeps: int | None = None
) -> int:
    """Into how many timesteps a control period of 1 / `rate` s is divided.

    `substeps` says it; else a timestep `dt`, s, of which the period is a whole multiple; else the preset. With both,
    each `dt` is divided into `substeps`, as in Isaac Gym. Raises DeftlyError if the period is no whole multiple of dt.
    """
    if dt is not None:
        count = _multiple(rate, dt) * (substeps or 1)
        if count > MAX_SUBSTEPS:
            raise DeftlyError(
                f"sim.substeps is {substeps} in each sim.dt of {dt:g} s: {count} timesteps in a control "
                f"period, but there may be at most {MAX_SUBSTEPS}"
            )
        return count
    if substeps is not None:
        return substeps
    return math.ceil(1 / (rate * PRESETS[preset].timestep) - 1e-9)


def _multiple(rate: float, dt: float) -> int:
    """How many times `dt`, s, goes into a control period."""
    exact = 1 / (rate * dt)
    count = max(1, round(exact))
    if count > MAX_SUBSTEPS or abs(exact - count) > 1e-3 * count:
        nearest = 1 / (rate * min(count, MAX_SUBSTEPS))
        period = f"the control period of {1 / rate:.6g} s ({rate:g} Hz)"
        raise DeftlyError(
            f"sim.dt is {dt:g} s, but {period} must be a whole multiple of it, such as {nearest:.6g}"
        )
    return count
