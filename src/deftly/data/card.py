"""The card of a data set: what the Hugging Face hub shows, and what a person needs to know who learns from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from deftly import __version__
from deftly.data.dataset import CONTRACT
from deftly.vla.features import ACTION, EXECUTED

if TYPE_CHECKING:
    from deftly.data.lerobot import Plan

TEMPLATE = """---
license: mit
task_categories: [robotics]
tags: [LeRobot, deftly, simulation, {robot}]
---
# {task}: {count} demonstrations

Simulated episodes of the robot `{robot}`, driven by the policy `{policy}` (weights sha256 `{weights}`), at {rate:g} Hz:
{frames} frames, {successes} successes. Cameras {cameras}, {size} x {size}. Seed {seed}, {noise}.

What a row holds was measured before its action was decided; the next row follows from it.
`{executed}` is what the robot was told, `{action}` what the policy wanted.

| number | meaning |
|---|---|
{numbers}

Instructions:

{prompts}

What it is not: the images are of a simulation without shadows, and the policy that moved the arm was given the object's
position, which no camera measures. A model that learned from it alone knows no real table.

Made by `deftly demos`, version {version}. The contract of a policy that learns from it is `{contract}`,
sha256 `{hash}`. What was checked is in `report.html`.
"""
"""The card, Markdown under the header that the hub reads."""


def card(plan: Plan, facts: Sequence[Mapping[str, Any]], meaning: Mapping[str, str]) -> str:
    """The card of a data set.

    Args:
        plan: What was collected.
        facts: Of each episode, as `meta/deftly.json` has them.
        meaning: What each number of state and action is, in words.
    """
    source, perturb = plan.source, plan.source.perturb
    prompts = dict.fromkeys(fact["prompt"] for fact in facts)
    return TEMPLATE.format(
        robot=plan.seen.robot.name,
        task=source.task.name,
        count=len(facts),
        policy=plan.policy,
        weights=plan.policy_sha256[:16],
        rate=plan.seen.rate,
        frames=sum(fact["steps"] for fact in facts),
        successes=sum(fact["success"] for fact in facts),
        cameras=", ".join(plan.cameras),
        size=plan.size,
        seed=source.seed,
        noise=f"noise of {perturb:g} on what was executed" if perturb else "no noise",
        executed=EXECUTED,
        action=ACTION,
        numbers="\n".join(f"| `{name}` | {what} |" for name, what in meaning.items()),
        prompts="\n".join(f"- {prompt}" for prompt in prompts),
        version=__version__,
        contract=CONTRACT,
        hash=plan.seen.hash[:16],
    )
