"""The size budget: 500 lines a file, and a number of lines for each part of the package. Exit status 1 if over."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILE_LINES = 500
FOLDERS = ("src", "tests", "bench", "tools")
HAND_OVER = {"deploy", "handover", "export", "check", "serve", "run", "inspection", "session"}
HAND_OVER |= {"sim2sim", "simrobot", "simserver", "simloop", "record", "replay"}
"""Modules and folders of `src/deftly` that hand a policy over."""
IN_HAND = {"grasps", "grasp_cache", "gait", "sysid", "actuators"}
IN_HAND_FILES = {"leap_hand.py", "leap_cube_rotate.py", "dynamixel.py", "dynamixel_bus.py"}
"""What in-hand rotation brought; all else is the foundation (docs/decisions.md)."""
PARTS = {"foundation": 5000, "hand-over": 5200, "in-hand": 4500}
"""Lines of `src/`."""
ADDED = {("foundation", "hand-over"): 19, ("foundation", "in-hand"): 313, ("hand-over", "in-hand"): 41}
"""Lines that a later part had to add to modules of an earlier one, such as motors in the contract: its own."""


def lines(path: Path) -> int:
    """Lines of a file."""
    return len(path.read_text().splitlines())


def part(path: Path) -> str:
    """The part of the package that a file below `src/deftly` belongs to."""
    if path.name in IN_HAND_FILES or path.parts[2].removesuffix(".py") in IN_HAND:
        return "in-hand"
    return "hand-over" if path.parts[2].removesuffix(".py") in HAND_OVER else "foundation"


def main() -> int:
    """Count, print what is over budget, and the totals."""
    sizes = {p.relative_to(ROOT): lines(p) for folder in FOLDERS for p in sorted((ROOT / folder).rglob("*.py"))}
    over = [f"{path}: {size} lines, at most {FILE_LINES}" for path, size in sizes.items() if size > FILE_LINES]
    for name, budget in PARTS.items():
        total = sum(size for path, size in sizes.items() if path.parts[0] == "src" and part(path) == name)
        total += sum(added * ((later == name) - (earlier == name)) for (earlier, later), added in ADDED.items())
        if total > budget:
            over.append(f"{name}: over its budget")
        print(f"{name}: {total} of {budget} lines")
    print(*over, sep="\n", end="\n" if over else "")
    return bool(over)


if __name__ == "__main__":
    sys.exit(main())
