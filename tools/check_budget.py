"""The size budget: no file over 500 lines, the package within 5000. Run from anywhere; exit status 1 if over."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILE_LINES, PACKAGE_LINES = 500, 5000
FOLDERS = ("src", "tests", "bench", "tools")


def lines(path: Path) -> int:
    """Lines of a file."""
    return len(path.read_text().splitlines())


def main() -> int:
    """Count, print what is over budget, and the total."""
    sizes = {p.relative_to(ROOT): lines(p) for folder in FOLDERS for p in sorted((ROOT / folder).rglob("*.py"))}
    total = sum(size for path, size in sizes.items() if path.parts[0] == "src")
    over = [f"{path}: {size} lines, at most {FILE_LINES}" for path, size in sizes.items() if size > FILE_LINES]
    if total > PACKAGE_LINES:
        over.append(f"src: {total} lines, at most {PACKAGE_LINES}")
    print(*over, f"budget: src has {total} of {PACKAGE_LINES} lines, {len(over)} over", sep="\n")
    return bool(over)


if __name__ == "__main__":
    sys.exit(main())
