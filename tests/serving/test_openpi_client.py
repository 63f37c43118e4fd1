"""`openpi-client` 0.1.2, which nobody here wrote, drives our server.

It wants numpy < 2: `python -m venv V; V/bin/pip install openpi-client==0.1.2 typing_extensions`, and the variable
OPENPI_CLIENT_PYTHON says where that Python is. `make test-openpi` does it.
"""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("websockets", minversion="15")

from openpi_arm import ARM, Model, serving

from deftly.policy.chunks import ChunkPolicy
from deftly.policy.layouts import OpenpiConfig

PYTHON = os.environ.get("OPENPI_CLIENT_PYTHON", "")
SCRIPT = Path(__file__).parents[1] / "assets" / "openpi_client_script.py"

pytestmark = [
    pytest.mark.openpi,
    pytest.mark.skipif(
        not PYTHON, reason="OPENPI_CLIENT_PYTHON names no Python with openpi-client"
    ),
]


def test_openpis_own_client_drives_our_server():
    observation = {
        "observation/exterior_image_1_left": {"image": [8, 6]},
        "observation/wrist_image_left": {"image": [4, 4]},
        "observation/joint_position": [0.5, 0, 0, 0, 0, 0, 0],
        "observation/gripper_position": [1.0],
        "prompt": "pick up the red cube",
    }
    model = Model()
    with serving(ChunkPolicy(model), cfg=OpenpiConfig(layout="droid")) as server:
        port = server.endpoint.rpartition(":")[2]
        command = [PYTHON, str(SCRIPT), "127.0.0.1", port, json.dumps(observation)]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = json.loads(ran.stdout)
    actions = np.array(found["actions"])
    assert actions.shape == (10, 8)
    np.testing.assert_allclose(actions[:, 2], 1.5 * 51 / 255, rtol=1e-5)
    np.testing.assert_allclose(actions[:, 0], 1.5 * 0.5, rtol=1e-5)
    np.testing.assert_array_equal(actions[:, 7], np.zeros(10))
    np.testing.assert_array_equal(np.array(found["steps"]), actions)
    assert found["metadata"]["contract"] == ARM.hash
    assert found["timing"]["infer_ms"] >= 0
    assert "the observation has no 'observation/joint_position'" in found["refused"]
    assert model.seen[0].inputs["instruction"] == ["pick up the red cube"]
    np.testing.assert_allclose(model.seen[0].signals["joint_pos"], [[0.5, 0, 0, 0, 0.04]])
