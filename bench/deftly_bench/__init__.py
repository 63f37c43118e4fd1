"""`deftly bench`: how fast simulation and training are here, beside the raw limit and beside a common peer.

Every case runs in a process of its own, and the cases take turns (A B C, A B C, ...), so that a machine that slows
down slows all of them. What counts are the ratios within a run.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from importlib import metadata, util
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge, Gt, Lt
from typing_extensions import Doc

from deftly import __version__
from deftly.config import (
    OUTPUT_FILE,
    RunsConfig,
    Settings,
    SimConfig,
    Suffix,
    parse,
    split_task,
)
from deftly.config.presets import PRESETS
from deftly.errors import DeftlyError

if TYPE_CHECKING:
    from deftly_bench.cases import Job

TASK = "jaka-pick-cube"
PACKAGES = ("numpy", "mujoco", "torch", "stable-baselines3")
RATIOS = {
    "env/raw": ("env", "raw_limit"),
    "env/raw_cores": ("env", "raw_cores"),
    "train/raw": ("train", "raw_limit"),
    "train/sb3": ("train", "sb3"),
    "env_warp/env": ("env_warp", "env"),
}
NO_SPEED: dict[str, Any] = {"cases": {}, "ratios": {}, "startup_s": {}}
Say = Callable[[str], None]


@dataclass(frozen=True)
class BenchArgs(Settings):
    """Measure simulation and training beside the raw limit and a peer: `deftly bench [TASK]`."""

    sim: Annotated[
        SimConfig, Doc("The physics; with the engine warp, `Env.step` is measured on it too.")
    ] = field(default_factory=SimConfig)
    num_envs: Annotated[int, Ge(1), Doc("Environments of the batch that is stepped.")] = 1024
    seconds: Annotated[float, Gt(0), Lt(3600), Doc("Shortest time of one measurement, s.")] = 10.0
    repeats: Annotated[
        int, Ge(1), Doc("Rounds in which the cases take turns; the medians count.")
    ] = 3
    quick: Annotated[bool, Doc("Small sizes and one short round: a look, not a measurement.")] = (
        False
    )
    presets: Annotated[
        bool, Doc("Also compare the physics presets: speed, grip, and success of the policy.")
    ] = False
    speed: Annotated[
        bool, Doc("Measure beside the raw limit and a peer; off, --presets is all there is.")
    ] = True
    checkpoint: Annotated[
        str | None,
        Doc(
            "Policy whose motions and success are measured: latest, a run, a checkpoint; unset: the shipped one."
        ),
    ] = None
    out: Annotated[
        Path | None,
        Suffix(".json"),
        OUTPUT_FILE,
        Doc("Write the results to this JSON file, such as bench/results/laptop.json."),
    ] = None
    algorithms: Annotated[
        bool,
        Doc(
            "Instead compare how long learning algorithms take to solve the task: `--algorithms --help`."
        ),
    ] = False
    table: Annotated[
        bool,
        Doc(
            "Measure nothing: write the tables of bench/results/*.json (or of --out) into docs/performance.md."
        ),
    ] = False
    docs: Annotated[Path, OUTPUT_FILE, Doc("Page that holds the tables.")] = Path(
        "docs/performance.md"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.speed or self.presets or self.table):
            raise DeftlyError("--speed False leaves nothing to measure: add --presets True")


def main(argv: list[str]) -> int:
    """Run `deftly bench`."""
    from rich.console import Console

    from deftly_bench import table

    if any(word.partition("=")[0] == "--algorithms" for word in argv):
        from deftly_bench import algorithms

        return algorithms.main(algorithms.without_bare_flag(argv))
    name, rest = split_task(argv)
    args = parse(BenchArgs, rest, prog="deftly bench [TASK]")
    console = Console(width=None if sys.stdout.isatty() else 200, markup=False, highlight=False)
    if args.table:
        files = [args.out] if args.out else sorted(Path("bench/results").glob("*.json"))
        table.update(args.docs, files)
        console.print(f"wrote the tables of {len(files)} results into {args.docs}")
        return 0
    job = _job(name or TASK, args)
    result = measure(job, args, console.print)
    for line in table.summary(result):
        console.print(line)
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n")
        console.print(f"wrote {args.out}")
    return 0


def _job(name: str, args: BenchArgs) -> Job:
    """The sizes of every measurement. Raises DeftlyError for an unknown task or a broken checkpoint."""
    from deftly import workspace
    from deftly.learn import checkpoint
    from deftly.tasks import load
    from deftly_bench.cases import Job

    cls, given = load(name), args.checkpoint
    path = (
        workspace.find_checkpoint(given, cls.name, RunsConfig())
        if given
        else checkpoint.shipped(cls.name)
    )
    if path:
        checkpoint.load(path).require(cls(cls.Config()))
    job = Job(
        "",
        name,
        num_envs=args.num_envs,
        seconds=args.seconds,
        checkpoint=str(path) if path else None,
    )
    job = replace(job, preset=args.sim.preset, threads=args.sim.threads)
    if not args.quick:
        return job
    small = {"num_envs": 64, "train_envs": 64, "seconds": min(args.seconds, 1.0), "episodes": 32}
    return replace(job, **small, tape_envs=16, tape_steps=50, peer_envs=2, peer_steps=32)


# ---------------------------------------------------------------------- measure


def measure(job: Job, args: BenchArgs, say: Say) -> dict[str, Any]:
    """Everything `deftly bench` measures, as the JSON that it writes."""
    from deftly_bench.table import SCHEMA

    skipped = _skipped(job) if args.speed else {}
    result: dict[str, Any] = {"schema": SCHEMA, "task": job.task, **machine(), "skipped": skipped}
    result["settings"] = {"num_envs": job.num_envs, "seconds": job.seconds, "preset": job.preset}
    result["settings"] |= {"repeats": 1 if args.quick else args.repeats, "quick": args.quick}
    result |= _speed(job, args, result, say) if args.speed else NO_SPEED
    result["presets"] = compare_presets(job, say) if args.presets else {}
    return result


def _speed(job: Job, args: BenchArgs, result: dict[str, Any], say: Say) -> dict[str, Any]:
    """The cases, in rounds in which they take turns, their ratios, and how long whole processes take."""
    with tempfile.TemporaryDirectory(prefix="deftly-bench-") as folder:
        jobs = _jobs(job, Path(folder), result["skipped"])
        if args.sim.engine == "warp":
            jobs["env_warp"] = replace(jobs["env"], engine="warp")
        rounds = [_round(jobs, i, result, say) for i in range(result["settings"]["repeats"])]
    cases = {name: _case([r[name] for r in rounds]) for name in jobs}
    cores = result["machine"]["cores"]
    cases["raw_limit"] = _case([{"rate": r["raw"]["rate"] * cores} for r in rounds])
    return {
        "cases": cases,
        "ratios": ratios(cases),
        "startup_s": startup(job, result["settings"]["repeats"]),
    }


def _skipped(job: Job) -> dict[str, str]:
    """Cases that cannot be measured, and why."""
    from deftly_bench import peer

    found = {}
    if job.task != peer.TASK:
        found["sb3"] = f"written for {peer.TASK} only"
    elif util.find_spec("stable_baselines3") is None:
        found["sb3"] = "stable-baselines3 is not installed: pip install stable-baselines3"
    if job.checkpoint is None:
        found["raw_policy"] = "no policy shipped or given: --checkpoint latest"
    return found


def _jobs(job: Job, folder: Path, skipped: dict[str, str]) -> dict[str, Job]:
    """The measurements of a round in their order; records the motions that they replay."""
    random, policy = (
        replace(job, tape=str(folder / f"{name}.npz")) for name in ("random", "policy")
    )
    call(replace(random, case="record", checkpoint=None))
    jobs = {
        name: replace(random, case=name) for name in ("raw", "env", "raw_cores", "train", "sb3")
    }
    if job.checkpoint:
        call(replace(policy, case="record"))
        jobs["raw_policy"] = replace(policy, case="raw")
    return {name: jobs[name] for name in jobs if name not in skipped}


def _round(
    jobs: dict[str, Job], index: int, result: dict[str, Any], say: Say
) -> dict[str, dict[str, Any]]:
    from deftly_bench.table import TITLES

    found = {}
    for name, job in jobs.items():
        found[name] = call(job)
        title, count = TITLES[name].replace("`", ""), result["settings"]["repeats"]
        say(f"round {index + 1}/{count}: {title}: {found[name]['rate']:,.0f} steps/s")
    return found


def call(job: Job) -> dict[str, Any]:
    """Run a job in a process of its own. Raises DeftlyError with its last words if it fails.

    All jobs inherit the same environment, with OMP_WAIT_POLICY as `import deftly` set it, and torch's own threads.
    """
    from deftly_bench.cases import command

    done = subprocess.run(command(job), capture_output=True, text=True)
    if done.returncode:
        words = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
        words = words.removeprefix("error: ")
        raise DeftlyError(
            f"the measurement '{job.case}' of {job.task} failed: {words}; try `deftly doctor {job.task}`"
        )
    return json.loads(done.stdout.splitlines()[-1])


def _case(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """The repetitions of a case and their median; of other numbers, the last."""
    rates = [part["rate"] for part in parts]
    other = {name: value for name, value in parts[-1].items() if name != "rate"}
    return {"unit": "control steps/s", "repetitions": rates, "median": median(rates), **other}


def ratios(cases: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Medians of the ratios within each round, which a slow spell of the machine leaves alone."""
    found = {}
    for name, (top, bottom) in RATIOS.items():
        if top in cases and bottom in cases:
            pairs = zip(cases[top]["repetitions"], cases[bottom]["repetitions"])
            found[name] = median(a / b for a, b in pairs)
    return found


def startup(job: Job, repeats: int) -> dict[str, Any]:
    """Wall time of whole processes, s: the help, and a first step of the batch."""
    from deftly_bench.cases import command

    help_, first = (
        [sys.executable, "-m", "deftly", "--help"],
        command(replace(job, case="first_step")),
    )
    return {
        name: _timed(words, repeats) for name, words in (("help", help_), ("first_step", first))
    }


def _timed(words: list[str], repeats: int) -> dict[str, Any]:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        subprocess.run(words, check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return {"unit": "s", "repetitions": times, "median": median(times)}


def compare_presets(job: Job, say: Say) -> dict[str, dict[str, Any]]:
    """For each physics preset: speed, grip, and success of the policy if there is one."""
    from deftly_bench import presets

    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="deftly-bench-") as folder:
        for preset in sorted(PRESETS, key=lambda name: -PRESETS[name].timestep):
            mine = replace(job, preset=preset, tape=str(Path(folder) / f"{preset}.npz"))
            call(replace(mine, case="record", checkpoint=None))
            found[preset] = {"steps_per_second": call(replace(mine, case="env"))["rate"]}
            if job.task == presets.TASK:
                found[preset] |= call(replace(mine, case="grip"))
            if job.checkpoint:
                found[preset] |= call(replace(mine, case="success"))
            say(f"preset {preset}: {found[preset]}")
    return found


def machine() -> dict[str, Any]:
    """Date, machine and versions."""
    from deftly.commands import doctor

    versions = {"deftly": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    facts = {"cpu": doctor.processor(), "cores": doctor.cores(), "system": platform.platform()}
    facts["omp_wait_policy"] = os.environ["OMP_WAIT_POLICY"]
    facts["gomp_spincount"] = os.environ.get("GOMP_SPINCOUNT", "unset")
    facts["load"] = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return {"date": datetime.now().astimezone().isoformat(), "machine": facts, "versions": versions}
