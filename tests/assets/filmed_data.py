"""A data set of the filmed toy task, small enough to be collected by each module of tests."""

from pathlib import Path

import filmed

from deftly.config import SimConfig
from deftly.data import lerobot
from deftly.data.demonstrations import Source
from deftly.tasks import load
from deftly.vla.features import seen_contract

SIZE = 32
SETTINGS = {"episode_steps": 40, "goal": 0.08}


def toy():
    """The task."""
    cls = load(filmed.FILE)
    return cls(cls.Config(**SETTINGS))


def source(perturb: float = 0.2, batch: int = 4) -> Source:
    """Where its demonstrations come from."""
    return Source(toy(), SimConfig(threads=1), 3, batch, perturb)


def plan(layout: str = "contract", perturb: float = 0.2) -> lerobot.Plan:
    """What is collected."""
    task = toy()
    return lerobot.Plan(
        source=source(perturb),
        seen=seen_contract(task.contract(), ("front",), SIZE, task.prompts[0]),
        layout=layout,
        prompts=task.prompts,
        only_success=True,
        policy="expert",
        policy_sha256="",
        settings={"task": SETTINGS, "sim": {"threads": 1}},
    )


def collected(folder: Path, video: bool = True, count: int = 4) -> Path:
    """Collect so many episodes into a folder."""
    return lerobot.collect(plan(), filmed.expert(toy()), count, folder, video)
