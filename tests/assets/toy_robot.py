"""A small robot and policy for the tests of server and client; as a script, a policy server of them."""

import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from deftly.contract import Act, Joint, Observe, PolicyContract, RobotInterface, Signal
from deftly.policy.protocol import ContractPolicy
from deftly.serving.server import Server

LOOPBACK = "tcp://127.0.0.1:*"
ROBOT = RobotInterface(
    name="toy",
    joints=(
        Joint("a", -1.0, 2.0, 0.5, 3.0),
        Joint("b", -2.0, 2.0, 0.0, 1.5),
        Joint("c", 0.0, 0.04, 0.04, 0.15, "m", grips=True),
    ),
    signals=(Signal("joint_pos", 3, "rad"), Signal("cube", 3, "m", "base")),
)
CONTRACT = PolicyContract(
    robot=ROBOT,
    rate=20,
    observe_terms=(
        Observe("joint_pos", scale=(1, 2, 25), history=3),
        Observe("cube"),
        Observe("command"),
    ),
    act_terms=(Act(("a", "b"), "delta", (0.05,), lowpass=0.25), Act(("c",), "gripper", (0.2,))),
)
WEIGHTS = (
    np.random.default_rng(7)
    .normal(size=(CONTRACT.obs_size(), CONTRACT.action_size))
    .astype(np.float32)
)


def network(obs: np.ndarray) -> np.ndarray:
    """Actions of observations; every row is summed alike, however many there are."""
    return np.tanh((obs[:, :, None] * WEIGHTS).sum(1))


def signals(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {s.name: rng.uniform(-0.5, 0.5, s.size).astype(np.float32) for s in CONTRACT.signals}


@contextmanager
def running(policy=None, endpoint=LOOPBACK, **settings):
    """A server in a thread of this process."""
    server = Server(policy or ContractPolicy(CONTRACT, network), endpoint, **settings)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join(10)
    assert not thread.is_alive()


if __name__ == "__main__":
    keys = Path(sys.argv[2]) if len(sys.argv) > 2 else None
    server = Server(ContractPolicy(CONTRACT, network), sys.argv[1], keys=keys)
    print(server.endpoint, flush=True)
    server.run_until_signal()
    print(f"answered {server.counts.answered}", flush=True)
