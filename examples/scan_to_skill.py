"""From a scan to a report of success, in one command: `make scan-demo`, or `python examples/scan_to_skill.py`.

Points of a bottle stand in for a scan. They become a simulated object, and the policy that Deftly ships for
`panda-pick-place` is measured on it; as long as none is shipped, one is trained briefly, which is too short to succeed.
Each step is a command that is printed, to be typed with files of your own.
"""

import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
from make_shapes import NOISE, bottle

from deftly.policy import bundle

TASK = "panda-pick-place"
BRIEFLY = ["--train.max-iterations", "30", "--env.num-envs", "128", "--eval-every", "0"]


def deftly(*words: str) -> None:
    """Run a command of Deftly's, and stop if it fails."""
    print(f"\n$ {shlex.join(['deftly', *words])}", flush=True)
    subprocess.run([sys.executable, "-m", "deftly", *words], check=True)


def main(folder: Path, episodes: int = 60, training: list[str] = BRIEFLY) -> Path:
    """Write everything into a folder; returns the page of the report."""
    cloud, objects, report = folder / "bottle.xyz", folder / "objects", folder / "report"
    folder.mkdir(parents=True, exist_ok=True)
    points = bottle()
    noisy = points + np.random.default_rng(0).normal(0, NOISE, points.shape)
    np.savetxt(cloud, noisy, fmt="%.5f")
    deftly("scan", str(cloud), "--out", str(objects), "--units", "m")
    thing = f"task.objects={objects / 'bottle'}"
    runs = ["--runs.root", str(folder)]
    policy = "shipped"
    if bundle.shipped(TASK) is None:
        policy = "latest"
        deftly("train", TASK, thing, *training, *runs)
    measured = ["--episodes", str(episodes), "--out", str(report), "--video-episodes", "1", *runs]
    deftly("eval", TASK, "--policy", policy, thing, *measured)
    print(f"\nthe object: {objects / 'bottle' / 'report.html'}")
    print(f"the policy: {report / 'report.html'}")
    return report / "report.html"


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "build/scan-demo"))
