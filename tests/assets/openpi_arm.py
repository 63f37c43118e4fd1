"""An arm with two cameras, a model of chunks for it, and a server of openpi's protocol in a thread of this process."""

import threading
from contextlib import contextmanager

import numpy as np

from deftly.contract import Act, Input, Joint, Observe, PolicyContract, RobotInterface, Signal
from deftly.policy.chunks import Observed
from deftly.serving.openpi_server import OpenpiServer

SECONDS = 10.0
"""Longest wait of a test for another thread."""
LOOPBACK = "ws://127.0.0.1:0"
ARM = PolicyContract(
    RobotInterface(
        "arm",
        joints=(
            *(Joint(f"j{i}", -3.0, 3.0, 0.0, 2.0) for i in range(3)),
            Joint("wrist", -3.0, 3.0, 0.0, 2.0),
            Joint("gripper", 0.0, 0.04, 0.04, 0.15, "m", grips=True),
        ),
        signals=(
            Signal("joint_pos", 5, "rad"),
            Signal("front", (8, 6, 3), dtype="uint8"),
            Signal("wrist", (4, 4, 3), dtype="uint8"),
        ),
    ),
    rate=15,
    observe_terms=(
        Observe("joint_pos"),
        Observe("front", group="front"),
        Observe("wrist", group="wrist"),
    ),
    act_terms=(
        Act(("j2", "j0"), "velocity", (1.5,)),
        Act(("j1",), "delta", (0.1,)),
        Act(("gripper",), "gripper", (0.15,)),
    ),
    inputs=(Input("instruction", dtype="text", text="pick up the cube"), Input("speed", 2)),
)


def seen(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    joints = rng.uniform(-1, 1, 5).astype(np.float32)
    joints[4] = rng.uniform(0, 0.04)
    images = {s.name: rng.integers(0, 256, s.shape, np.uint8) for s in ARM.signals if s.is_image}
    return {"joint_pos": joints, **images}


class Model:
    """Chunks that tell what was seen: the mean of the front image, and the first joint."""

    contract = ARM
    deterministic = True
    horizon = 10
    executed = None

    def __init__(self):
        self.seen: list[Observed] = []
        self.gate = threading.Event()
        self.gate.set()

    def predict(self, seen: Observed) -> np.ndarray:
        self.seen.append(seen)
        assert self.gate.wait(SECONDS)
        chunk = np.zeros((len(seen.ids), 10, 4), np.float32)
        chunk[..., 0] = seen.signals["front"].mean((1, 2, 3))[:, None] / 255
        chunk[..., 1] = seen.signals["joint_pos"][:, :1]
        chunk[..., 3] = 1.0
        return chunk

    def close(self) -> None:
        self.gate.set()


@contextmanager
def serving(policy, **settings):
    server = OpenpiServer(policy, settings.pop("endpoint", LOOPBACK), **settings)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join(SECONDS)
    assert not thread.is_alive()
