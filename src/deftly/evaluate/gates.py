"""Gates: conditions on metrics that a policy is to meet, typed or in a file."""

import math
import operator
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from deftly.config import suggest
from deftly.console import printable
from deftly.errors import DeftlyError
from deftly.files import FileError, read_yaml

OPERATORS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
GATE = re.compile(
    r"\s*([\w./-]+?)\s*(>=|<=|>|<)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(%?)\s*"
)
GATES = "a file of gates"
MOST_GATES = 1000
"""Of a file."""
Means = Mapping[str, float | None]
"""Mean of each metric; None where no episode has one."""


def read_gate(text: str) -> tuple[str, str, float]:
    """Metric, sign and number of a condition such as `success>=0.9`; the number may be a percentage."""
    if not (match := GATE.fullmatch(text)):
        raise DeftlyError(
            f"cannot read the gate '{text}': write METRIC>=NUMBER (or <=, >, <), as 'success>=0.9'"
        )
    metric, sign, number, percent = match.groups()
    value = float(number) / (100 if percent else 1)
    if not math.isfinite(value):
        raise DeftlyError(f"{number} in the gate '{text}' is too large a number")
    if metric == "success" and value > 1:
        raise DeftlyError(
            f"no success rate is above 1: write the gate '{text}' as 'success{sign}{number}%'"
        )
    return metric, sign, value


def require_metric(gate: str, known: Collection[str]) -> None:
    """Raise DeftlyError if a gate names none of the known metrics."""
    metric, _, _ = read_gate(gate)
    if metric not in known:
        near = suggest(metric, known) or f"; known are {', '.join(known)}"
        raise DeftlyError(f"--gate names the unknown metric '{metric}'{near}")


def check_gate(text: str, means: Means) -> dict[str, Any]:
    """Whether a condition on a metric's mean holds, and the measured value; what no episode has holds nothing."""
    metric, sign, wanted = read_gate(text)
    require_metric(text, means.keys())
    value = means[metric]
    holds = value is not None and bool(OPERATORS[sign](value, wanted))
    return {"gate": f"{metric}{sign}{wanted:g}", "measured": value, "holds": holds}


def read_gates(path: Path) -> dict[str, tuple[str, ...]]:
    """The gates of a YAML file by rung of a ladder; those of a plain list are of the rung ''.

        nominal:
        - success >= 99 %
        - tracking_error <= 0.06

    Raises DeftlyError, one line, for anything else, and for a gate that cannot be read.
    """
    found = read_yaml(path, GATES, advice="write 'nominal: [success>=0.9]'")
    by_rung = {"": found} if isinstance(found, list) else found
    if not isinstance(by_rung, dict) or not by_rung:
        raise _no_gates(path, "it is neither a list of gates nor a mapping from rungs to lists")
    gates = {}
    for rung, texts in by_rung.items():
        if not isinstance(texts, list) or not texts or len(texts) > MOST_GATES:
            raise _no_gates(path, f"{printable(rung, 60)!r} has no list of gates")
        gates[str(rung)] = tuple(_gate_of(path, text) for text in texts)
    return gates


def _gate_of(path: Path, text: object) -> str:
    """A gate of a file, once it can be read."""
    try:
        read_gate(str(text))
    except DeftlyError as error:
        raise DeftlyError(f"{path}: {printable(error)}") from None
    return str(text)


def _no_gates(path: Path, problem: str) -> FileError:
    return FileError(f"{path} is not {GATES}: {problem}; write 'nominal: [success>=0.9]'")


def require_rungs(
    path: Path,
    gates: Mapping[str, Sequence[str]],
    rungs: Collection[str],
    known: Collection[str],
) -> None:
    """Raise DeftlyError if a file has gates of a rung that is not among `rungs`, or, if there are none, gates of any.

    `known` are those that the task has.
    """
    for rung in gates:
        if rung and not rungs:
            raise DeftlyError(f"{path} has gates of the rung '{rung}': add --ladder")
        if not rung and rungs:
            raise DeftlyError(f"{path} does not say of which rung its gates are: 'nominal: [...]'")
        if rung in known and rung not in rungs:
            raise DeftlyError(
                f"{path} has gates of the rung '{rung}', which --rungs leaves out: add it, or give another file"
            )
        if rung and rung not in rungs:
            near = suggest(rung, rungs) or f"; the rungs are {', '.join(rungs)}"
            raise DeftlyError(f"{path} has gates of the unknown rung '{printable(rung, 60)}'{near}")
