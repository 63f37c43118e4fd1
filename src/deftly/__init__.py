"""Deftly: robot skills from simulation to hardware under one contract.

The pipeline as a library; docs/python.md shows it in ten minutes. Names are imported when they are first used, so that
`import deftly` costs nothing, and what a robot's computer needs (`load_policy` of a bundle, `drive`) needs no torch.
"""

from __future__ import annotations

import importlib
import os

TYPE_CHECKING = (
    False  # as type checkers read it; importing `typing` would take longer than all else here
)
if TYPE_CHECKING:
    from typing import Any

    from deftly.api import (
        DriveResult,
        Evaluation,
        Training,
        drive,
        evaluate,
        evaluate_ladder,
        export,
        list_robots,
        list_tasks,
        load_policy,
        load_robot,
        load_task,
        make,
        make_env,
        train,
    )
    from deftly.errors import DeftlyError

__version__ = "0.1.0"

__all__ = [
    "DeftlyError",
    "DriveResult",
    "Evaluation",
    "Training",
    "drive",
    "evaluate",
    "evaluate_ladder",
    "export",
    "list_robots",
    "list_tasks",
    "load_policy",
    "load_robot",
    "load_task",
    "make",
    "make_env",
    "train",
]

# Idle OpenMP threads sleep, or their spinning would take the cores from the simulation's own threads. Those of torch on
# Linux (libgomp) first spin for a moment: waking one takes longer than many operations of an update.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")


def __getattr__(name: str) -> Any:
    if (
        name == "evaluate"
    ):  # also a package, which the import system binds to this name: its module can be called
        return importlib.import_module("deftly.evaluate")
    if name == "DeftlyError":
        return importlib.import_module("deftly.errors").DeftlyError
    if name in __all__:
        return getattr(importlib.import_module("deftly.api"), name)
    raise AttributeError(f"module 'deftly' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
