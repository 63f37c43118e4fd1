"""Ten million points: read, thinned and cut in less than 2 GiB."""

import subprocess
import sys

import numpy as np
import pytest
import scans

PROGRAM = """
import re, sys
from pathlib import Path
from deftly.scan import readers, segment
from deftly.scan.cloud import finite, thinned, without_strays
import numpy as np
cloud = thinned(without_strays(finite(readers.read(Path(sys.argv[1])))), 100_000)
(thing,) = segment.cut(cloud, "auto", np.random.default_rng(0))
own = Path("/proc/self/status").read_text()
print(len(cloud), len(thing.cloud), int(re.search(r"VmHWM:\\s+(\\d+) kB", own)[1]) // 1024)
"""
"""Its memory is that of the process since its start: `ru_maxrss` holds what the process that started it took, too."""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["binary.pcd", "packed.pcd", "cloud.ply", "cloud.xyz"])
def test_ten_million_points(tmp_path, name):
    points = np.tile(scans.box(1_000_000), (10, 1)).astype(np.float32)
    points += np.random.default_rng(0).normal(0, 1e-4, points.shape).astype(np.float32)
    if name == "cloud.xyz":
        with (tmp_path / name).open("w") as file:
            for block in np.array_split(points, 100):
                np.savetxt(file, block, fmt="%.5f")
    elif name == "cloud.ply":
        (tmp_path / name).write_bytes(scans.ply(points))
    else:
        (tmp_path / name).write_bytes(pcd(points, packed=name == "packed.pcd"))
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / name)], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    kept, found, mebibytes = map(int, result.stdout.split())
    assert 20_000 < found <= kept <= 100_000
    assert mebibytes < 2048


def pcd(points, packed):
    """A `.pcd`, packed in literal runs of 32 bytes: what no packer can pack."""
    if not packed:
        return scans.pcd(points, "binary")
    raw = np.ascontiguousarray(points.T).reshape(-1, 8).view(np.uint8)
    runs = np.insert(raw, 0, 31, axis=1).tobytes()
    head = scans.pcd(
        [],
        POINTS=len(points),
        FIELDS="x y z",
        SIZE="4 4 4",
        TYPE="F F F",
        COUNT="1 1 1",
        DATA="binary_compressed",
    )
    return head + len(runs).to_bytes(4, "little") + raw.size.to_bytes(4, "little") + runs
