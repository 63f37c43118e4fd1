"""`deftly doctor [TASK]`: is this machine fit, is everything installed, and is a task sound?

Without a task it needs only the base installation, and says what is missing for more.
"""

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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deftly.config import EnvConfig, PPOConfig, RunsConfig, parse, split_task
from deftly.findings import Finding, failed, judge, table

if TYPE_CHECKING:
    from deftly.env import Env
    from deftly.tasks import Task

BASE = ("numpy", "onnxruntime")
TRAIN = ("mujoco", "torch", "rsl-rl-lib", "gymnasium", "safetensors", "tensorboard", "pillow", "av")
NEEDED = {"torch": "torch", "mujoco": "mujoco", "rsl-rl-lib": "rsl_rl"}
"""What a task cannot do without, and the name it is imported by."""
INSTALL = 'pip install "deftly[train]"'
BROKEN = {("mujoco", "4.0.0"): "known fault in its sparse Cholesky factorization, mended in 4.0.1"}
MEMORY_GB = 2.0  # that 1024 environments and the learner find comfortable
DISK_GB = 1.0
TASK_ENVS, TASK_STEPS, ROLLOUT = 16, 5, 8
RENDER = """
import mujoco
xml = '<mujoco><worldbody><geom size="1" rgba="1 0 0 1"/></worldbody></mujoco>'
model = mujoco.MjModel.from_xml_string(xml)
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
with mujoco.Renderer(model, 64, 64) as renderer:
    renderer.update_scene(data)
    assert renderer.render().max() > 0
"""


@dataclass(frozen=True)
class DoctorArgs:
    """Check this machine and its installation, or a task as well: `deftly doctor [TASK]`."""

    runs: RunsConfig = field(default_factory=RunsConfig)
    """Where runs would be kept."""


def main(argv: list[str]) -> int:
    """Run `deftly doctor`: 1 if something fails."""
    from rich.console import Console

    name, rest = split_task(argv)
    args = parse(DoctorArgs, rest, prog="deftly doctor")
    missing = [package for package, module in NEEDED.items() if util.find_spec(module) is None]
    cls = None
    if name and not missing:
        from deftly.tasks import load

        cls = load(name)  # a wrong name is refused before anything is measured
    found = [*machine(args.runs), *installation(), *physics()]
    if cls:
        found += examine(cls)
    elif name:
        found.append(Finding("task", "fail", f"'{name}' needs {', '.join(missing)}: {INSTALL}"))
    Console(width=None if sys.stdout.isatty() else 200, highlight=False).print(table(found))
    return int(failed(found))


# ---------------------------------------------------------------------- machine


def machine(cfg: RunsConfig) -> list[Finding]:
    """Cores, memory, disk."""
    return [Finding("cores", "ok", f"{cores()} for this process: {processor()}"), memory(), disk(cfg.root)]


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """The processor's name."""
    try:
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def memory() -> Finding:
    """Memory that is available, within the limit of a container if there is one."""
    free, total = _memory_gb()
    text = f"{free:.1f} of {total:.1f} GB available"
    if free < MEMORY_GB:
        return Finding("memory", "warn", f"{text}, {MEMORY_GB:g} GB wanted: train with fewer env.num_envs")
    return Finding("memory", "ok", text)


def _memory_gb() -> tuple[float, float]:
    """Available and total memory, GB."""
    try:
        text = Path("/proc/meminfo").read_text()
        total, free = (
            int(re.search(rf"^{key}:\s+(\d+)", text, re.MULTILINE)[1]) * 1024  # type: ignore[index]
            for key in ("MemTotal", "MemAvailable")
        )
    except (OSError, TypeError):
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        free = total
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdigit() and int(text) < total:
        total = int(text)
        free = min(free, total - int(limit.with_name("memory.current").read_text()))
    return free / 1e9, total / 1e9


def disk(root: Path) -> Finding:
    """Whether runs can be written to `root`, and how much fits."""
    place = next(p for p in (root.resolve(), *root.resolve().parents) if p.exists())
    try:
        with tempfile.NamedTemporaryFile(dir=place):
            pass
    except OSError as error:
        text = f"cannot write to '{place}' ({error.strerror}): choose another place with --runs.root DIR"
        return Finding("disk", "fail", text)
    free = shutil.disk_usage(place).free / 1e9
    few = f"{free:.1f} GB free in '{place}', {DISK_GB:g} GB wanted: delete old runs in runs_all/"
    return judge("disk", [few] if free < DISK_GB else [], f"{free:.1f} GB free in '{place}', writable", "warn")


# ----------------------------------------------------------------- installation


def installation() -> list[Finding]:
    """Python, the packages and their versions, what torch and OpenGL can do here."""
    ranges = supported()
    python = Finding("Python", "ok", f"{platform.python_version()} ({sys.executable})")
    found = [python, *(package(name, ranges) for name in (*BASE, *TRAIN))]
    if util.find_spec("torch"):
        found += torch_here()
    if util.find_spec("mujoco"):
        found.append(rendering())
    return found


def supported() -> dict[str, str]:
    """The range of versions of each package, as Deftly's own metadata states it."""
    try:
        lines = metadata.requires("deftly") or []
    except metadata.PackageNotFoundError:
        return {}
    parts = [re.match(r"([\w-]+)([^;]*)", line) for line in lines]
    return {part[1]: part[2].strip() for part in parts if part}


def package(name: str, ranges: dict[str, str], version: str | None = None) -> Finding:
    """Whether a package is there (or would be, at `version`) and of a supported version."""
    try:
        version = version or metadata.version(name)
    except metadata.PackageNotFoundError:
        if name in TRAIN:
            return Finding(name, "warn", f"missing; simulation and training need it: {INSTALL}")
        return Finding(name, "fail", f"missing: pip install {name}")
    if (name, version) in BROKEN:
        text = f'{version}: {BROKEN[name, version]}: pip install "{name}{ranges.get(name, "")}"'
        return Finding(name, "fail", text)
    wanted = ranges.get(name, "")
    if not _within(version, wanted):
        return Finding(name, "warn", f'{version}, tested with {wanted}: pip install "{name}{wanted}"')
    return Finding(name, "ok", f"{version} (supported: {wanted})" if wanted else version)


def _within(version: str, wanted: str) -> bool:
    from packaging.specifiers import SpecifierSet

    return SpecifierSet(wanted, prereleases=True).contains(version)


def torch_here() -> list[Finding]:
    """Threads of torch, and whether it sees a GPU."""
    import torch

    threads, gpu = torch.get_num_threads(), torch.cuda.is_available()
    many = f"{threads} threads on {cores()} cores: set OMP_NUM_THREADS={cores()}"
    which = torch.cuda.get_device_name() if gpu else "none that torch sees; Deftly trains on the CPU"
    return [
        judge("torch threads", [many] if threads > cores() else [], f"{threads}", "warn"),
        Finding("GPU", "ok", which),
    ]


def rendering() -> Finding:
    """Which OpenGL backend renders a picture, each tried in a process of its own: a fault can be fatal."""
    tries = {gl: _render(gl) for gl in ("egl", "osmesa")}
    works = [gl for gl, process in tries.items() if _ends_well(process)]
    if works:
        return Finding("rendering", "ok", f"{works[0]} works" + ("; so does osmesa" if len(works) > 1 else ""))
    text = "neither egl nor osmesa works: no pictures or videos, but training is not affected; "
    return Finding("rendering", "warn", text + "apt-get install libegl1 libgl1-mesa-dri (or libosmesa6)")


def _render(gl: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "MUJOCO_GL": gl, "PYOPENGL_PLATFORM": gl}
    command, null = [sys.executable, "-c", RENDER], subprocess.DEVNULL
    return subprocess.Popen(command, env=environment, stdout=null, stderr=null)


def _ends_well(process: subprocess.Popen[bytes]) -> bool:
    try:
        return process.wait(timeout=60) == 0
    except subprocess.TimeoutExpired:
        process.kill()
        return False


# ---------------------------------------------------------------------- physics


def physics(seconds: float = 1.0) -> list[Finding]:
    """How fast `mujoco.batch` steps a small scene here; nothing if MuJoCo is not installed."""
    if util.find_spec("mujoco") is None:
        return []
    try:
        rate = reference_rate(seconds)
    except (ImportError, AttributeError) as error:
        return [Finding("physics", "fail", f"{error}: MuJoCo 3.17 has mujoco.batch: {INSTALL}")]
    text = f"{rate:,.0f} steps/s of 64 falling chains of ten links; `deftly bench` measures a task"
    return [Finding("physics", "ok", text)]


def reference_rate(seconds: float) -> float:
    """Steps per second of a chain of ten links over a plane in 64 environments on all cores."""
    import mujoco
    from mujoco.batch import Batch

    spec = mujoco.MjSpec()
    spec.worldbody.add_geom(type=mujoco.mjtGeom.mjGEOM_PLANE, size=[1, 1, 0.1])
    body = spec.worldbody
    for i in range(10):
        body = body.add_body(pos=[0.1, 0, 0] if i else [0, 0, 0.4])
        body.add_joint(type=mujoco.mjtJoint.mjJNT_HINGE, axis=[0, 1, i % 2])
        body.add_geom(type=mujoco.mjtGeom.mjGEOM_CAPSULE, fromto=[0, 0, 0, 0.08, 0, 0], size=[0.01, 0, 0])
    batch, steps, start = Batch(spec.compile(), 64, cores()), 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        batch.step(nstep=10)
        steps += 640
    return steps / (time.perf_counter() - start)


# ------------------------------------------------------------------------- task


def examine(cls: type[Task]) -> list[Finding]:
    """Whether a task's parts fit each other and one iteration of learning is finite; stops where it must."""
    return list(_examine(cls))


def _examine(cls: type[Task]) -> Iterator[Finding]:
    from deftly.env import Env

    task = cls(cls.Config())
    contract = yield from _try("contract", task.contract)
    spec = yield from _try("scene", task.scene)
    if contract is None or spec is None:
        return
    sizes = f"{contract.obs_size} observations, {contract.action_size} actions, {contract.rate:g} Hz"
    yield Finding("contract", "ok", f"{sizes}, {contract.robot}, hash {contract.hash[:12]}")
    model = yield from _try("model", spec.compile)
    if model is None:
        return
    yield Finding("model", "ok", f"compiles: {model.nbody - 1} bodies, {model.nv} degrees of freedom")
    keys = [model.key(i).name for i in range(model.nkey)]
    yield judge("keyframe", [] if keys[:1] == ["home"] else [f"the first is {keys[:1]}: scene.add_home"], "home")
    env = yield from _try("reset", lambda: Env(task, EnvConfig(num_envs=TASK_ENVS)))
    if env is not None:
        yield from _run(task, env)


def _run(task: Task, env: Env) -> Iterator[Finding]:
    problems = yield from _try("rewards", lambda: list(_reward_problems(task, env)))
    if problems is None:
        return
    fine = judge("rewards", problems, "every term has a weight, every weight a term")
    yield fine
    if fine.level == "fail":
        return
    wrong = yield from _try("steps", lambda: random_steps(env))
    if wrong is not None:
        yield judge("steps", wrong, f"reset and {TASK_STEPS} random steps of {TASK_ENVS} environments are finite")
    losses = yield from _try("learning", lambda: one_iteration(env))
    if losses is not None:
        wrong = [f"{name} is {value}" for name, value in losses.items() if not math.isfinite(value)]
        text = ", ".join(f"{name} {value:.3g}" for name, value in losses.items())
        yield judge("learning", wrong, f"one iteration of PPO: {text}")


def _try(name: str, part: Callable[[], Any]) -> Iterator[Finding]:
    """The result of a part of a task; if it raises, None and a finding that says where."""
    try:
        return part()
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{type(error).__name__}: {' '.join(str(error).split())} ({place.filename}:{place.lineno})"
        yield Finding(name, "fail", text)


def _reward_problems(task: Task, env: Env) -> Iterator[str]:
    terms, weights = set(task.rewards(env.state)), set(vars(task.cfg.weights))
    for name in sorted(terms - weights):
        yield f"reward term '{name}' has no weight: add it to Config.weights"
    for name in sorted(weights - terms):
        yield f"weight '{name}' has no reward term: return it from rewards(), or remove it"


def random_steps(env: Env) -> list[str]:
    """Take some random steps; returns what is not finite, or broke."""
    import torch

    for i in range(TASK_STEPS):
        action = 2 * torch.rand(env.num_envs, env.contract.action_size) - 1
        raw = {**env.task.signals(env.state), **env.task.rewards(env.state)}
        step = env.step(action)
        tensors = {**raw, **{f"{k} observation": v for k, v in step.obs.items()}, "reward": step.reward}
        wrong = [f"'{name}' is not finite at step {i}" for name, t in tensors.items() if not t.isfinite().all()]
        if env.broken_count:
            wrong.append(f"the physics of {env.broken_count} environments broke by step {i}")
        if wrong:
            return wrong
    return []


def one_iteration(env: Env) -> dict[str, float]:
    """The losses of one small iteration of learning."""
    from deftly.learn.ppo import PPO

    figures = PPO(env, PPOConfig(steps=ROLLOUT)).iterate()
    return {name.removeprefix("loss/"): value for name, value in figures.items() if name.startswith("loss/")}
