"""A robot's program that asks a policy server: `deftly serve` answers it, from this machine or another.

deftly serve jaka-pick-cube
python examples/policy_client.py tcp://127.0.0.1:5555

It sends signals and gets joint targets, as docs/wire.md describes. There is no safety kernel here: between this and
motors belongs `deftly.drive`, which takes the address as its policy.
"""

from __future__ import annotations

import sys

import numpy as np

import deftly

STEPS = 30


def main(
    endpoint: str = "tcp://127.0.0.1:5555", steps: int = STEPS, timeout: float = 1.0
) -> np.ndarray:
    """Ask for some control steps; returns the targets, (steps, num_joints), rad (m)."""
    policy = deftly.load_policy(endpoint, timeout=timeout)
    robot = policy.contract.robot
    print(f"{robot.name}: {len(robot.joints)} joints, {policy.contract.rate:g} Hz")
    # Policies are batched: a row for each robot, here one.
    signals = {signal.name: np.zeros((1, *signal.shape)) for signal in robot.signals}
    signals["joint_pos"] = np.array([[joint.home for joint in robot.joints]])
    targets = []
    policy.reset()
    for _ in range(steps):
        decision = policy.infer(signals)
        signals["joint_pos"] = np.asarray(
            decision.targets, float
        )  # a robot that goes where it is told at once
        targets.append(decision.targets[0])
    policy.close()
    print("last targets:", np.round(targets[-1], 3))
    return np.stack(targets)


if __name__ == "__main__":
    main(*sys.argv[1:2])
