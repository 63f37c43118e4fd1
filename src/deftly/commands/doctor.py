"""`deftly doctor [TASK]`: is this machine fit, is everything installed, and is a task sound?"""

from __future__ import annotations

import math
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import metadata, util
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

from packaging.requirements import Requirement
from typing_extensions import Doc

from deftly import tasks
from deftly.config import EnvConfig, PPOConfig, RunsConfig, Settings, parse, split_task
from deftly.console import Finding, judge, progress, report
from deftly.errors import DeftlyError

if TYPE_CHECKING:
    from deftly.env import Env

INSTALL = 'pip install "deftly[train]"'
BROKEN = {
    "mujoco": {"4.0.0": "has a known fault in its sparse Cholesky factorization, mended in 4.0.1"}
}
MEMORY_GB = 2.0  # that 1024 environments and the learner find comfortable
DISK_GB = 1.0
MACHINE_CHECKS, TASK_CHECKS = 9, 6  # besides one for each package
TASK_ENVS, TASK_STEPS, ROLLOUT = 16, 5, 8
HOLD_SECONDS = 2.0  # for which a robot must stand where episodes start, held by its servos
SCENE = """<mujoco><worldbody><geom type="plane" size="1 1 1" rgba="1 0 0 1"/>
<body pos="0 0 1"><freejoint/><geom type="box" size="0.1 0.1 0.1"/></body></worldbody></mujoco>"""
RENDER = f"""
import mujoco
model = mujoco.MjModel.from_xml_string('''{SCENE}''')
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
with mujoco.Renderer(model, 64, 64) as renderer:
    renderer.update_scene(data)
    assert renderer.render().max() > 0
"""


@dataclass(frozen=True)
class DoctorArgs(Settings):
    """Check this machine and its installation, or a task as well: `deftly doctor [TASK]`."""

    runs: Annotated[RunsConfig, Doc("Where runs would be kept.")] = field(
        default_factory=RunsConfig
    )


def main(argv: list[str]) -> int:
    """Run `deftly doctor`: 1 if something fails."""
    name, rest = split_task(argv)
    args = parse(DoctorArgs, rest, prog="deftly doctor [TASK]")
    # a wrong name is refused before anything is measured
    of_task = examine(tasks.load(name)) if name else ()
    count = MACHINE_CHECKS + len(requirements())
    if name:
        count += TASK_CHECKS
    findings = chain(machine(args.runs.root), of_task)
    return report(progress(findings, "checking", count))


def machine(root: Path) -> Iterator[Finding]:
    """Cores, memory, disk, Python and the packages, and what torch, OpenGL and MuJoCo can do here."""
    yield Finding("cores", "ok", f"{cores()} for this process: {processor()}")
    yield memory()
    yield disk(root)
    yield Finding("Python", "ok", f"{platform.python_version()} ({sys.executable})")
    yield from map(package, requirements())
    if util.find_spec("torch"):
        import torch

        threads = torch.get_num_threads()
        gpu = "none that torch sees; Deftly trains on the CPU"
        if torch.cuda.is_available():
            gpu = torch.cuda.get_device_name()
        many = f"{threads} threads on {cores()} cores: set OMP_NUM_THREADS={cores()}"
        wrong = [many] if threads > cores() else []
        yield judge("torch threads", wrong, f"{threads}", "warn")
        yield Finding("GPU", "ok", gpu)
    yield engines()
    if util.find_spec("mujoco"):
        yield rendering()
        yield physics()


def engines() -> Finding:
    """Whether the engine on Warp is installed, and fits MuJoCo."""
    versions = {}
    for name in ("mujoco-warp", "mujoco"):
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    if "mujoco-warp" not in versions:
        return Finding(
            "engine warp",
            "ok",
            "not installed; sim.engine cpu needs none (pip install 'deftly[gpu]')",
        )
    here, wanted = (
        ".".join(versions.get(name, "").split(".")[:2]) for name in ("mujoco-warp", "mujoco")
    )
    odd = f"mujoco-warp {versions['mujoco-warp']} beside mujoco {versions.get('mujoco')}: pip install 'deftly[gpu]'"
    return judge(
        "engine warp",
        [odd] if here != wanted else [],
        f"mujoco-warp {versions['mujoco-warp']}",
        "warn",
    )


def cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor() -> str:
    """The processor's name."""
    return _proc("cpuinfo").get("model name") or platform.processor() or platform.machine()


def _proc(file: str) -> dict[str, str]:
    """The values in a file of Linux's /proc by their keys; empty elsewhere."""
    with suppress(OSError):
        return dict(re.findall(r"^(.+?)\s*: *(.+)$", Path("/proc", file).read_text(), re.MULTILINE))
    return {}


class Memory(NamedTuple):
    """Memory of this machine, GB; 0: not known on this system."""

    available: float
    total: float


def memory_gb() -> Memory:
    """Memory that is there."""
    sizes = _proc("meminfo")
    gigabytes = []
    for key in MEMORY_KEYS:
        kilobytes, *_ = sizes.get(f"Mem{key}", "0 kB").split()
        gigabytes.append(int(kilobytes) / 1e6)
    return Memory(*gigabytes)


MEMORY_KEYS = ("Available", "Total")


def memory() -> Finding:
    """Memory that is available."""
    free, total = memory_gb()
    here = f"{free:.1f} of {total:.1f} GB available" if total else "not known on this system"
    few = f"{here}, {MEMORY_GB:g} GB wanted: train with fewer env.num_envs"
    wrong = [few] if total and free < MEMORY_GB else []
    return judge("memory", wrong, here, "warn")


def disk(root: Path) -> Finding:
    """Whether runs can be written to `root`, and how much fits."""
    root = root.resolve()
    place = next(folder for folder in (root, *root.parents) if folder.exists())
    try:
        with tempfile.NamedTemporaryFile(dir=place):
            free = shutil.disk_usage(place).free / 1e9
    except OSError as error:
        problem = f"cannot write to '{place}' ({error.strerror}): choose another --runs.root DIR"
        return Finding("disk", "fail", problem)
    here = f"{free:.1f} GB free in '{place}'"
    few = f"{here}, {DISK_GB:g} GB wanted: delete old runs in runs_all/"
    wrong = [few] if free < DISK_GB else []
    return judge("disk", wrong, f"{here}, writable", "warn")


def requirements() -> list[Requirement]:
    """What Deftly itself and its train extra need, as its own metadata states it."""
    found = map(Requirement, metadata.requires("deftly") or [])
    return [
        wanted
        for wanted in found
        if wanted.marker is None or wanted.marker.evaluate({"extra": "train"})
    ]


def package(wanted: Requirement, version: str | None = None) -> Finding:
    """Whether a package is there (or would be, at `version`) and of a supported version."""
    name, need = wanted.name, wanted.specifier
    try:
        version = version or metadata.version(name)
    except metadata.PackageNotFoundError:
        if wanted.marker:
            return Finding(name, "warn", f"missing; simulation and training need it: {INSTALL}")
        return Finding(name, "fail", f"missing: pip install {name}")
    if need.contains(version, prereleases=True):
        return Finding(name, "ok", f"{version} (supported: {need})")
    fault = BROKEN.get(name, {}).get(version)
    reason = fault or f"is not of the tested {need}"
    text = f'{version} {reason}: pip install "{name}{need}"'
    return Finding(name, "fail" if fault else "warn", text)


def rendering() -> Finding:
    """Which OpenGL backend renders an image, each tried in a process of its own: a fault can be fatal."""
    for gl in ("egl", "osmesa"):
        environment = {**os.environ, "MUJOCO_GL": gl, "PYOPENGL_PLATFORM": gl}
        with suppress(subprocess.SubprocessError):
            subprocess.run(
                [sys.executable, "-c", RENDER],
                env=environment,
                capture_output=True,
                timeout=60,
                check=True,
            )
            return Finding("rendering", "ok", f"{gl} works")
    text = "neither egl nor osmesa works: no images or videos, but training is not affected; "
    return Finding(
        "rendering", "warn", text + "apt-get install libegl1 libgl1-mesa-dri (or libosmesa6)"
    )


def physics(seconds: float = 1.0) -> Finding:
    """How fast `mujoco.batch` steps a small scene here."""
    try:
        import mujoco.batch
    except ImportError as error:
        return Finding("physics", "fail", f"{error}: MuJoCo 3.17 has mujoco.batch: {INSTALL}")
    batch = mujoco.batch.Batch(mujoco.MjModel.from_xml_string(SCENE), 64, cores())
    steps, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds:
        batch.step(nstep=10)
        steps += 640
    return Finding(
        "physics",
        "ok",
        f"{steps / passed:,.0f} steps/s of a falling box; `deftly bench` measures a task",
    )


def examine(cls: type[tasks.Task]) -> Iterator[Finding]:
    """Whether a task's parts fit each other and one iteration of learning is finite; stops where it must."""
    try:
        from deftly.env import Env

        task = cls(cls.Config())
        yield from _scene(task)
        yield from _robot(task)
        env = Env(task, EnvConfig(num_envs=TASK_ENVS))
        yield _signals(env)
        yield _hold(task)
        rewards = _rewards(task, env)
        yield rewards
        if rewards.level != "ok":
            return
        yield _steps(task, env)
        yield _learning(env)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        what = " ".join(str(error).split())
        where = f"{place.filename}:{place.lineno}"
        text = f"{type(error).__name__}: {what} ({where})"
        yield Finding("task", "fail", text)


def _scene(task: tasks.Task) -> Iterator[Finding]:
    """The contract, the compiled model and its keyframe."""
    contract = task.contract()
    images = [group for group in contract.groups if contract.is_image(group)]
    numbers = [group for group in contract.groups if group not in images]
    count = sum(contract.obs_size(group) for group in numbers)
    seen = f"{count} observations"
    if images:
        seen += f" and images ({', '.join(images)})"
    sizes = f"{seen}, {contract.action_size} actions"
    made = f"{sizes}, {contract.rate:g} Hz, {contract.robot.name}, hash {contract.hash[:12]}"
    yield Finding("contract", "ok", made)
    model = task.scene().compile()
    size = f"{model.nbody - 1} bodies, {model.nv} degrees of freedom"
    yield Finding("model", "ok", f"compiles: {size}")
    keys = [model.key(i).name for i in range(model.nkey)]
    first = keys[:1]
    wrong = [] if first == ["home"] else [f"the first is {first}: scene.add_home"]
    yield judge("keyframe", wrong, "home")


def _robot(task: tasks.Task) -> Iterator[Finding]:
    """The check of the task's robot: masses, joint order, limits, actuators, self-collision."""
    from deftly import robots
    from deftly.robots.check import check

    try:
        robot = robots.of(task)
    except DeftlyError:
        name = task.contract().robot.name
        unknown = (
            f"'{name}' is no shipped robot: give the task an attribute `robot` to have it checked"
        )
        yield Finding("robot", "warn", unknown)
        return
    for finding in check(robot):
        yield finding._replace(name=f"robot {finding.name}")


def _signals(env: Env) -> Finding:
    """Every signal of the contract was measured, in its shape; the environment refuses any other."""
    shown = [f"{name} {value.shape[-1]}" for name, value in env.signals.items()]
    sizes = ", ".join(shown)
    return Finding("signals", "ok", sizes)


def _hold(task: tasks.Task) -> Finding:
    """Without disturbances, a robot whose servos hold the pose in which episodes start does not fail."""
    from deftly.env import Env

    env = Env(task, EnvConfig(1, randomize=False, noise=False, pushes=False), purpose="doctor")
    held = env.state.joint_pos.float()
    wrong: list[str] = []
    for i in range(round(HOLD_SECONDS * env.contract.rate)):
        env.state.set_targets(held)
        broken = env.sim.step(env.substeps)
        task.update(env.state)
        failures = {**task.failed(env.state), "physics": broken}
        wrong = [name for name, failed in failures.items() if bool(failed)]
        if wrong:
            seconds = (i + 1) / env.contract.rate
            wrong = [f"{wrong[0]} after {seconds:.2g} s: the home pose does not hold itself"]
            break
    return judge("hold", wrong, f"{HOLD_SECONDS:g} s where an episode starts, held by the servos")


def _rewards(task: tasks.Task, env: Env) -> Finding:
    """Every reward term has a weight, and every weight a term."""
    terms = set(task.rewards(env.state))
    weights = set(vars(task.cfg.weights))
    wrong = [
        f"reward term '{name}' has no weight: add it to Config.weights"
        for name in sorted(terms - weights)
    ]
    wrong += [
        f"weight '{name}' has no reward term: return it from rewards()"
        for name in sorted(weights - terms)
    ]
    return judge("rewards", wrong, "every term has a weight, every weight a term")


def _steps(task: tasks.Task, env: Env) -> Finding:
    """Signals, rewards and observations of some random steps are finite."""
    import torch

    wrong: list[str] = []
    for i in range(TASK_STEPS):
        tensors = {**task.signals(env.state), **task.rewards(env.state)}
        actions = 2 * torch.rand(TASK_ENVS, env.contract.action_size) - 1
        step = env.step(actions)
        for group, value in step.obs.items():
            tensors[f"{group} observation"] = value
        tensors["reward"] = step.reward
        bad = [name for name, value in tensors.items() if not value.isfinite().all()]
        wrong += [f"'{name}' is not finite at step {i}" for name in bad]
        for name, count in env.nan_counts.items():
            wrong.append(f"'{name}' is not finite in {count} places by step {i}")
        if env.broken_count:
            wrong.append(f"the physics of {env.broken_count} environments broke by step {i}")
        if wrong:
            break
    fine = f"reset and {TASK_STEPS} random steps of {TASK_ENVS} environments are finite"
    return judge("steps", wrong, fine)


def _learning(env: Env) -> Finding:
    """One iteration of PPO has finite losses; a policy that sees images does not learn by it."""
    from deftly.learn.learner import make_learner

    try:
        metrics = make_learner(env, PPOConfig(steps=ROLLOUT)).iterate()
    except DeftlyError as error:
        return Finding("learning", "warn", f"not tried: {error}")
    losses = {
        name.removeprefix("loss/"): value
        for name, value in metrics.items()
        if name.startswith("loss/")
    }
    wrong = [f"{name} is {value}" for name, value in losses.items() if not math.isfinite(value)]
    shown = [f"{name} {value:.3g}" for name, value in losses.items()]
    text = ", ".join(shown)
    return judge("learning", wrong, f"one iteration of PPO: {text}")
