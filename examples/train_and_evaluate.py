"""The pipeline in Python: train a task, measure the policy, and write it as a bundle for the robot's computer.

python examples/train_and_evaluate.py

About a minute on two cores: the training ends as soon as evaluation says, with 95 % confidence, that 95 % succeed.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import deftly

TASK = str(Path(__file__).with_name("reach_target.py"))


class Progress:
    """A callback: keeps the mean episode return of each iteration, and prints the evaluations."""

    def __init__(self) -> None:
        self.returns: list[float] = []

    def __call__(self, trainer: Any, metrics: dict[str, float]) -> None:
        """Called after each iteration; `metrics` is what the training logs."""
        self.returns.append(metrics.get("return", float("nan")))
        if "eval_success" in metrics:
            print(f"iteration {trainer.iteration}: success {metrics['eval_success']:.1%}")


def main(root: str = ".", episodes: int = 100, **settings: Any) -> Path:
    """Train with the settings of `deftly train`, and measure on some episodes; all files go under the folder `root`."""
    runs = {"root": root}
    progress = Progress()
    training = deftly.train(TASK, callbacks=[progress], runs=runs, **settings)
    print(f"{len(progress.returns)} iterations in {training.seconds:.0f} s, kept in {training.run}")

    evaluation = deftly.evaluate(
        TASK, training.run, episodes=episodes, gates=["success>=0.9"], runs=runs
    )
    low, high = evaluation.interval
    print(f"success {evaluation.success:.1%}, 95 % interval {low:.1%} to {high:.1%}")
    print("the gate holds" if evaluation.passed else "the gate does not hold")

    bundle = deftly.export(
        TASK, training.run, out=Path(root) / "bundles/reach", episodes=episodes, runs=runs
    )
    print(f"bundle: {bundle}")
    return bundle


if __name__ == "__main__":
    main(*sys.argv[1:2], env={"num_envs": 256}, until_success=0.95)
