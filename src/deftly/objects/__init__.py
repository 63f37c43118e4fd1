"""What scenes are composed of besides robots. `load` reads a scanned object; importing this imports nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deftly.objects.scanned import ScannedObject


def load(folder: Path) -> ScannedObject:
    """Read a folder that `deftly scan` wrote; see `deftly.objects.scanned.load`."""
    from deftly.objects import scanned

    return scanned.load(folder)
