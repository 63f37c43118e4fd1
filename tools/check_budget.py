"""The size budget: no file over 500 lines, and 5000 lines in the package. Exit status 1 if over.

The package is over its target. Until it is not, it may not grow: `PACKAGE_CEILING` is its size today, to be lowered
with each cut and never raised.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILE_LINES, PACKAGE_TARGET, PACKAGE_CEILING = 500, 5000, 6070
FOLDERS = ("src", "tests", "bench", "tools")


def lines(path: Path) -> int:
    """Lines of a file."""
    return len(path.read_text().splitlines())


def main() -> int:
    """Count, print what is over budget, and the total."""
    sizes = {p.relative_to(ROOT): lines(p) for folder in FOLDERS for p in sorted((ROOT / folder).rglob("*.py"))}
    total = sum(size for path, size in sizes.items() if path.parts[0] == "src")
    over = [f"{path}: {size} lines, at most {FILE_LINES}" for path, size in sizes.items() if size > FILE_LINES]
    if total > PACKAGE_CEILING:
        over.append(f"src: {total} lines, it may not grow beyond {PACKAGE_CEILING}")
    missed = f", {total - PACKAGE_TARGET} over the target" if total > PACKAGE_TARGET else ""
    print(*over, f"budget: src has {total} of {PACKAGE_TARGET} lines{missed}", sep="\n")
    return bool(over)


if __name__ == "__main__":
    sys.exit(main())
