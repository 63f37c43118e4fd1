"""A task as a Gymnasium vector environment: a linear policy, found by the cross-entropy method.

python examples/gymnasium_search.py

Each environment of the batch plays one candidate for an episode. Any code written for Gymnasium runs the same way.
(Rubinstein, "The Cross-Entropy Method for Combinatorial and Continuous Optimization", 1999.)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import deftly

TASK = str(Path(__file__).with_name("reach_target.py"))
ELITE = 0.1
"""Fraction of the candidates from which the next distribution is estimated."""


def returns_of(envs: Any, weights: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Undiscounted return and success of one episode of each candidate; `weights` is (n, action_size, obs_size + 1)."""
    obs, _ = envs.reset(seed=seed)
    running = np.ones(envs.num_envs, bool)
    returns = np.zeros(envs.num_envs)
    succeeded = np.zeros(envs.num_envs, bool)
    while running.any():
        inputs = np.concatenate((obs, np.ones((envs.num_envs, 1))), axis=1)
        actions = np.tanh(np.einsum("nao,no->na", weights, inputs))
        obs, reward, terminated, truncated, infos = envs.step(actions)
        done = terminated | truncated
        returns[running] += reward[running]
        if done.any():
            succeeded |= running & infos["final_info"]["is_success"]
        running &= ~done
    return returns, succeeded


def main(
    candidates: int = 128, iterations: int = 20, seed: int = 0, **settings: Any
) -> list[float]:
    """Search, and return the best return of each iteration; `settings` are those of `deftly.make`."""
    envs: Any = deftly.make(TASK, candidates, **settings)
    rng = np.random.default_rng(seed)
    size = (envs.single_action_space.shape[0], envs.single_observation_space.shape[0] + 1)
    mean = np.zeros(size)
    std = np.ones(size)
    best = []
    for iteration in range(iterations):
        weights = mean + std * rng.standard_normal((candidates, *size))
        returns, succeeded = returns_of(envs, weights, seed + iteration)
        elite = weights[np.argsort(returns)[-max(2, int(ELITE * candidates)) :]]
        mean = elite.mean(axis=0)
        std = elite.std(axis=0) + 0.02
        best.append(float(returns.max()))
        print(
            f"{iteration + 1}: best return {best[-1]:.2f}, mean {returns.mean():.2f}, success {succeeded.mean():.1%}"
        )
    envs.close()
    return best


if __name__ == "__main__":
    main()
