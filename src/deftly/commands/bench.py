"""`deftly bench`: run the benchmarks of the checkout that this package is installed from."""

import importlib
import sys
from pathlib import Path

from deftly.errors import DeftlyError

FOLDER = (
    Path(__file__).resolve().parents[3] / "bench"
)  # of the repository around the package, not installed with it


def main(argv: list[str]) -> int:
    """Run `deftly bench`."""
    if not (FOLDER / "deftly_bench").is_dir():
        raise DeftlyError(
            "deftly bench runs from a checkout of the repository: clone it, and there run make bench"
        )
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    return importlib.import_module("deftly_bench").main(argv)
