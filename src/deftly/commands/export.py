"""`deftly export`: turn a policy into a bundle, and check what was written."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge, Lt
from typing_extensions import Doc

from deftly.commands import check
from deftly.config import SEEDS, RunsConfig, Settings, SimConfig, split_task
from deftly.errors import DeftlyError
from deftly.evaluate import export
from deftly.evaluate.check import CheckSettings
from deftly.evaluate.evaluate import EvalSettings, measure
from deftly.evaluate.source import policy_words, prepare
from deftly.policy import bundle
from deftly.policy.protocol import OnnxNetwork

if TYPE_CHECKING:
    from deftly.learn.checkpoint import Checkpoint
    from deftly.tasks import Task


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
    bundle.require_place(folder)
    policy, contract = found.policy(), found.contract
    model = export.to_onnx(policy)
    network = OnnxNetwork(model, contract)
    if not (error := export.compare(policy, network, contract.obs_size())) <= bundle.TOLERANCE:
        raise DeftlyError(
            f"{found.path}: torch and ONNX differ by {error:.2g} on the same observation: not exported"
        )
    print(f"{bundle.NETWORK}: torch and ONNX agree to {error:.1g}")
    report = _evaluate(task, found, args, words)
    low, high = report["success"]["wilson95"]
    print(
        f"{bundle.REPORT}: success {report['success']['rate']:.1%} ({low:.1%} to {high:.1%}), {args.episodes} episodes"
    )
    files = {
        bundle.NETWORK: model,
        bundle.SPEC: contract.to_json().encode(),
        bundle.ROBOT: bundle.robot_config(contract).encode(),
        bundle.GOLDEN: export.golden(task, network, args.sim, args.seed),
        bundle.REPORT: (json.dumps(report, indent=2, allow_nan=False) + "\n").encode(),
    }
    bundle.write(folder, files, export.facts(task, found, args.sim, report))
    size = sum(len(data) for data in files.values())
    print(f"bundle: {folder}, {size / 1e3:.0f} kB\n", flush=True)
    spec = split_task(argv)[0]
    return check.show(
        folder, CheckSettings(against=str(found.path), task=spec, seed=args.seed, runs=args.runs)
    )


def _evaluate(
    task: Task, found: Checkpoint, args: ExportArgs, argv: Sequence[str]
) -> dict[str, Any]:
    report, _ = measure(
        task, found, EvalSettings(episodes=args.episodes, seed=args.seed, sim=args.sim)
    )
    exact = [] if args.policy == found.label else ["--policy", found.label]
    return {**report, "gates": [], "command": shlex.join(["deftly", "export", *argv, *exact])}
