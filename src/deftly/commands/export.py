"""`deftly export`: turn a policy into a bundle, and check what was written."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Lt
from typing_extensions import Doc

from deftly.commands import check
from deftly.config import (
    OUTPUT_FOLDER,
    SEEDS,
    RunsConfig,
    Settings,
    SimConfig,
    split_task,
    with_setting,
)
from deftly.evaluate import export
from deftly.evaluate.check import CheckSettings
from deftly.evaluate.evaluate import EvalSettings
from deftly.evaluate.source import policy_words, prepare


@dataclass(frozen=True)
class ExportArgs(Settings):
    """Export a policy as a bundle: one folder that checks itself and runs without torch."""

    policy: Annotated[
        str | None,
        Doc(
            "Policy to export: latest, a run, a checkpoint folder or shipped; unset: latest, else shipped."
        ),
    ] = None
    out: Annotated[
        Path | None,
        OUTPUT_FOLDER,
        Doc("Folder of the bundle; an older bundle there is replaced; unset: bundles/TASK."),
    ] = None
    episodes: Annotated[
        int, Ge(1), Doc("Held out episodes of the evaluation that goes into the bundle.")
    ] = 200
    seed: Annotated[int, Ge(0), Lt(SEEDS), Doc("Decides which episodes.")] = 0
    sim: Annotated[SimConfig, Doc("The physics engine; as in the training unless set.")] = field(
        default_factory=SimConfig
    )
    runs: Annotated[RunsConfig, Doc("Where runs are kept.")] = field(default_factory=RunsConfig)


def main(argv: list[str]) -> int:
    """Run `deftly export`. The exit status is 1 if a check of what was written fails."""
    words = policy_words(argv)
    task, args, source = prepare(ExportArgs, "export", words)
    assert source is not None
    found = source.checkpoint("export")
    folder = args.out or args.runs.root / "bundles" / task.name
    settings = EvalSettings(episodes=args.episodes, seed=args.seed, sim=args.sim)
    command = shlex.join(["deftly", "export", *with_setting(words, "policy", found.label)])
    export.export(task, found, folder, settings, command, say=lambda line: print(line, flush=True))
    spec = split_task(argv)[0]
    return check.show(
        folder, CheckSettings(against=str(found.path), task=spec, seed=args.seed, runs=args.runs)
    )
