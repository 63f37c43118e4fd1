"""The policies that Deftly ships do what their reports say: evaluated again, on the same held-out episodes."""

import hashlib
import json
import re
from pathlib import Path

import pytest

from deftly.commands.eval import EvalArgs
from deftly.commands.sim2sim import main as sim2sim
from deftly.evaluate.evaluate import measure
from deftly.evaluate.report import means
from deftly.evaluate.source import prepare
from deftly.learn import checkpoint
from deftly.stats import fisher
from deftly.tasks import shipped

POLICIES = Path(checkpoint.__file__).parents[1] / "shipped/policies"
WANTED = {
    "jaka-pick-cube": {"success": (0.98, 1.0)},
    "leap-right-cube-rotate": {
        "success": (0.92, 1.0),
        "yaw_rate": (0.8, 9.0),
        "drop_rate": (0.0, 0.03),
    },
    "leap-left-cube-rotate": {
        "success": (0.92, 1.0),
        "yaw_rate": (0.8, 9.0),
        "drop_rate": (0.0, 0.03),
    },
    "leap-left-custom-cube-rotate": {
        "success": (0.84, 1.0),
        "yaw_rate": (0.75, 9.0),
        "drop_rate": (0.0, 0.06),
    },
    "dexhand-box": {"success": (0.95, 1.0), "depth": (0.0, 0.2)},
    "dexhand-blind": {"success": (0.8, 1.0), "depth": (0.0, 0.4)},
    "panda-pick-place": {"success": (0.94, 1.0), "distance": (0.0, 0.03)},
    "panda-pick-place-rgb": {"success": (0.86, 1.0), "distance": (0.0, 0.05)},
    "wildrobot-stand": {"success": (0.99, 1.0), "drift": (0.0, 0.1), "saturated": (0.0, 0.02)},
    "wildrobot-walk": {
        "success": (0.99, 1.0),
        "tracking_error": (0.0, 0.06),
        "lateral_drift": (0.0, 0.3),
        "saturated": (0.0, 0.02),
    },
}
"""Least and most of each mean: of the hands, tighter than what was aimed at (0.5 and 0.3 rad/s, 5 % lost)."""


FEW = {"panda-pick-place-rgb": 8, "dexhand-box": 12, "dexhand-blind": 8}
"""Episodes where each step draws images, or has ten substeps."""
WITHOUT = {"dexhand-base"}
"""Tasks for which no policy is shipped yet."""


def test_every_shipped_task_has_a_policy():
    names = {p.name for p in POLICIES.iterdir() if p.is_dir()}
    assert names == set(WANTED)
    assert names | WITHOUT == set(shipped())
    assert not names & WITHOUT


def evaluate_again(name: str, episodes: int | None = None) -> tuple[dict, dict]:
    """The report that is shipped, and that of the policy now, on its episodes or on so many others."""
    found = checkpoint.load(POLICIES / name / "checkpoint")
    assert checkpoint.shipped(name) == found.path
    report = json.loads((POLICIES / name / "eval.json").read_text())
    weights = (found.path / "weights.safetensors").read_bytes()
    assert report["policy"]["sha256"] == hashlib.sha256(weights).hexdigest()
    flags = ["--episodes", str(episodes or report["episodes"]), "--seed", str(report["seed"])]
    task, args, policy = prepare(EvalArgs, "eval", [name, "--policy", "shipped", *flags])
    assert policy is not None
    again, _ = measure(task, policy, args)
    assert again["contract"] == report["contract"]
    assert again["broken_physics"] == 0
    return report, again


@pytest.mark.parametrize("name", WANTED)
def test_a_few_episodes_agree_with_the_report(name):
    """32 episodes, or `FEW` where they are slow: Fisher's test finds no difference at the level of 0.1 %."""
    few = FEW.get(name, 32)
    report, again = evaluate_again(name, few)
    success = report["success"]
    assert fisher(again["success"]["count"], few, success["count"], report["episodes"]) > 0.001
    for metric, (least, most) in WANTED[name].items():
        assert least <= means(report)[metric] <= most


@pytest.mark.slow
@pytest.mark.parametrize("name", WANTED)
def test_shipped_policy(name):
    """All episodes of the report."""
    report, again = evaluate_again(name)
    for metric, (least, most) in WANTED[name].items():
        assert least <= means(report)[metric] <= most
        assert least <= means(again)[metric] <= most


SEEN_BY_CAMERAS = {"panda-pick-place-rgb"}


HANDED_OVER = sorted(set(WANTED) - SEEN_BY_CAMERAS)


@pytest.mark.parametrize("name", HANDED_OVER)
def test_it_is_handed_over_as_it_is(name, capsys):
    """Through the safety kernel under the bounds that hold without a word of the user's: an episode without a fault."""
    words = [name, "--policy", "shipped", "--episodes", "1", "--gate", "faults<=0"]
    assert sim2sim(words) == 0, capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("name", HANDED_OVER)
def test_it_does_its_task_through_the_safety_kernel(name, capsys):
    """A finger of the Panda may jump: one fault is let pass."""
    words = [name, "--policy", "shipped", "--episodes", "10", "--gate", "faults<=1"]
    assert sim2sim([*words, "success>=0.6"]) == 0, capsys.readouterr().out


def test_nothing_shipped_names_a_path_of_the_machine_that_made_it():
    files = [path for path in POLICIES.parent.rglob("*") if path.suffix in (".json", ".yaml")]
    assert files
    for path in files:
        assert not re.search(r"(?<![\w.])/(work|home|tmp|root|var|Users)/", path.read_text()), path
