"""The results of `deftly bench` as tables: on the terminal, and between two marks of a page of the documentation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deftly.errors import DeftlyError
from deftly_bench.entry import no_program

if TYPE_CHECKING:
    from rich.console import RenderableType

SCHEMA = "deftly.bench/1"
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
TITLES = {
    "raw": "MuJoCo `mj_step`, one thread",
    "raw_limit": "MuJoCo `mj_step`, one thread, times the cores",
    "raw_cores": "MuJoCo `mj_step`, a thread on each core",
    "raw_policy": "MuJoCo `mj_step`, one thread, the policy's motions",
    "env": "Deftly `Env.step`, random actions",
    "env_warp": "Deftly `Env.step` on Warp, random actions",
    "train": "Deftly training, end to end",
    "sb3": "Stable-Baselines3 PPO, a process per environment",
}
RATIO_TITLES = {
    "env/raw": "`Env.step` / raw limit (one thread times the cores)",
    "env/raw_cores": "`Env.step` / raw, a thread on each core",
    "train/raw": "training / raw limit (one thread times the cores)",
    "train/sb3": "training / Stable-Baselines3",
    "env_warp/env": "`Env.step`, engine warp / engine cpu",
}
Row = tuple[str, ...]
Titled = tuple[str, Row, list[Row]]
"""A table: title, heads of the columns, rows."""


def tables(result: dict[str, Any]) -> list[Titled]:
    """The tables of a result."""
    cases, found = result["cases"], []
    speed = [(title, *_spread(cases[name])) for name, title in TITLES.items() if name in cases]
    found.append(("Control steps per second", ("case", "median", "lowest", "highest"), speed))
    rows = [
        (title, f"{result['ratios'][name]:.2f}")
        for name, title in RATIO_TITLES.items()
        if name in result["ratios"]
    ]
    found.append(("Ratios within the run", ("ratio", "median"), rows))
    found.append(("Memory and start", ("what", "measured"), _costs(result)))
    if result["presets"]:
        found.append(
            (
                "Physics presets",
                _PRESET_HEADS,
                [_preset(*item) for item in result["presets"].items()],
            )
        )
    return [titled for titled in found if titled[2]]


def _spread(case: dict[str, Any]) -> Row:
    return tuple(
        f"{value:,.0f}"
        for value in (case["median"], min(case["repetitions"]), max(case["repetitions"]))
    )


def _costs(result: dict[str, Any]) -> list[Row]:
    rows = [
        (
            f"largest memory of {TITLES[name]}, {case['num_envs']} environments",
            f"{case['memory_mb']:,.0f} MB",
        )
        for name, case in result["cases"].items()
        if "memory_mb" in case
    ]
    names = {
        "help": "`deftly --help`",
        "first_step": f"start to first step, {result['settings']['num_envs']} environments",
    }
    return rows + [
        (names[name], f"{case['median']:.2f} s") for name, case in result["startup_s"].items()
    ]


_PRESET_HEADS = (
    "preset",
    "`Env.step`, steps/s",
    "fingers sink into the cube",
    "cube creeps in 2 s",
    "success",
)


def _preset(name: str, result: dict[str, Any]) -> Row:
    depth, slip = (
        f"{1e3 * result[k]:.2f} mm" if k in result else "" for k in ("penetration_m", "slip_m")
    )
    rate = f"{result['success']:.1%} of {result['episodes']}" if "success" in result else ""
    if "wilson95" in result:
        low, high = result["wilson95"]
        rate += f" ({low:.1%} to {high:.1%})"
    return name, f"{result['steps_per_second']:,.0f}", depth, slip, rate


def summary(result: dict[str, Any]) -> list[RenderableType]:
    """What the terminal shows."""
    from rich.table import Table

    lines: list[RenderableType] = []
    for title, heads, rows in tables(result):
        table = Table(*map(_plain, heads), box=None, title=title, title_justify="left")
        for row in rows:
            table.add_row(*map(_plain, row))
        lines += ["", table]
    skipped = [
        f"not measured: {_plain(TITLES[name])} ({why})" for name, why in result["skipped"].items()
    ]
    return [*lines, "", *skipped]


def _plain(text: str) -> str:
    return text.replace("`", "")


def markdown(result: dict[str, Any]) -> str:
    """A result as a section of a Markdown page."""
    facts, versions, settings = result["machine"], result["versions"], result["settings"]
    software = ", ".join(f"{name} {version}" for name, version in versions.items())
    parts = [
        f"### {result['task']}: {facts['cpu']}, {facts['cores']} cores, {result['date'][:10]}",
        f"{software}. {settings['num_envs']} environments, preset {settings['preset']}, "
        f"{settings['repeats']} rounds of at least {settings['seconds']:g} s for each case"
        + (" (quick: a look, not a measurement)." if settings["quick"] else "."),
    ]
    for title, heads, rows in tables(result):
        align = ["---", *["---:"] * (len(heads) - 1)]
        lines = [f"| {' | '.join(row)} |" for row in (heads, align, *rows)]
        parts.append("\n".join([f"{title}:", "", *lines]))
    parts += [f"Not measured: {TITLES[name]} ({why})." for name, why in result["skipped"].items()]
    return "\n\n".join(parts)


def update(page: Path, files: Sequence[Path]) -> None:
    """Write the tables of result files between the marks of a page.

    Raises DeftlyError if there are no results, or one cannot be read, or the page has no marks.
    """
    if not files:
        raise DeftlyError(
            "no results in bench/results: measure first, deftly bench --out bench/results/NAME.json"
        )
    body = "\n\n".join(_section(file) for file in files)
    try:
        text = page.read_text()
        before, rest = text.split(BEGIN)
        after = rest.split(END)[1]
    except OSError as error:
        raise DeftlyError(
            f"cannot read '{page}': {error.strerror}; name the page with --docs FILE"
        ) from error
    except (ValueError, IndexError):
        raise DeftlyError(
            f"'{page}' needs the marks {BEGIN} and {END}, once each, where the tables go"
        ) from None
    try:
        page.write_text(f"{before}{BEGIN}\n\n{body}\n\n{END}{after}")
    except OSError as error:
        raise DeftlyError(f"cannot write '{page}': {error.strerror}") from error


def _section(file: Path) -> str:
    try:
        return markdown(read(file))
    except (KeyError, TypeError, ValueError) as error:
        raise DeftlyError(
            f"'{file}' is no whole result of 'deftly bench' ({error!r}): measure again"
        ) from None


def read(file: Path) -> dict[str, Any]:
    """The result in a file. Raises DeftlyError for anything else."""
    try:
        result = json.loads(file.read_text())
        found = result["schema"]
    except OSError as error:
        raise DeftlyError(f"cannot read the result '{file}': {error.strerror}") from error
    except (ValueError, KeyError, TypeError):
        raise DeftlyError(f"'{file}' is no result of 'deftly bench'") from None
    if found != SCHEMA:
        raise DeftlyError(
            f"'{file}' has schema {found!r}, this Deftly reads {SCHEMA!r}: measure again"
        )
    return result


if __name__ == "__main__":
    no_program()
