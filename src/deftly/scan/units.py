"""In which units a scan is: no format says it."""

from __future__ import annotations

from deftly.errors import DeftlyError
from deftly.scan.settings import Units

METRES = {"m": 1.0, "cm": 0.01, "mm": 0.001, "in": 0.0254}
GUESSED = (("m", 5.0), ("cm", 40.0), ("mm", 5000.0))
"""Units, and the largest extent of a scan that is taken to be in them: 5 m, 40 cm, 5 m."""
SMALLEST, LARGEST = 0.005, 5.0
"""Extents of a scan, m: a hand can hold nothing smaller, and a room with a table is no larger."""
ADVICE = "give its units, --units m, cm, mm or in, or the length of its longest side in metres, --size 0.1"


def guess(extent: float) -> str:
    """The units of a scan by its extent: an object of a few centimetres, or a scene of a few metres."""
    if extent >= SMALLEST:
        for units, largest in GUESSED:
            if extent <= largest:
                return units
    raise DeftlyError(
        f"it is {extent:.3g} units long, which fits no object in m, cm or mm: {ADVICE}"
    )


def factor(extent: float, units: Units, size: float | None) -> tuple[float, str]:
    """Metres in a unit of the file, and how that was found.

    Args:
        extent: of the whole scan, in units of the file.
        units: as given; `auto` guesses.
        size: the extent in m, as given; None goes by the units.

    Raises DeftlyError if the scan is then as small as a grain or as large as a house.
    """
    if size is not None:
        found, how = size / extent, f"scaled to {size:g} m"
    else:
        name = guess(extent) if units == "auto" else units
        found, how = METRES[name], f"{name} (guessed by its size)" if units == "auto" else name
    if not SMALLEST <= found * extent <= LARGEST:
        raise DeftlyError(
            f"it is {found * extent:.3g} m long, and {SMALLEST:g} to {LARGEST:g} m are scanned: {ADVICE}"
        )
    return found, how
