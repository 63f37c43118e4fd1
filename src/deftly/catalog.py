"""What there is: `deftly tasks`, `deftly robots`, `deftly config`."""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deftly import robots, tasks
from deftly.config import field_docs, parse, split_task, to_yaml, with_task
from deftly.contract import Contract, Joint
from deftly.errors import DeftlyError
from deftly.runs import table

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from deftly.robots import Robot
    from deftly.tasks import Task

POLICIES = Path(__file__).parent / "policies"

MEANING = {
    "absolute": "middle of the range + scale * a",
    "relative": "home + scale * a",
    "delta": "last command + scale * a",
    "velocity": "last command + scale * a / rate",
    "gripper": "a > 0 closes, else opens, at scale per second",
}
"""How an action of each kind becomes a target; `deftly.contract.Act` has the whole story."""


@dataclass(frozen=True)
class TasksArgs:
    """List the tasks, or show one: `deftly tasks [NAME]`."""

    names: bool = False
    """Print the bare names, one a line."""


def tasks_main(argv: list[str]) -> int:
    """Run `deftly tasks`."""
    if argv == ["--names"]:  # what shell completion calls: no parser, no tables
        print("\n".join(tasks.shipped()))
        return 0
    name, rest = split_task(argv)
    parse(TasksArgs, rest, prog="deftly tasks")
    if name:
        _show_task(_console(), tasks.load(name))
    else:
        rows = [_task_row(*item) for item in tasks.shipped().items()]
        _console().print(table(("task", "what", "robot", "obs", "action", "rate", "shipped policy"), rows))
    return 0


def _task_row(name: str, module: str) -> tuple[str, ...]:
    file = Path(tasks.__path__[0], module.rpartition(".")[2] + ".py")
    what = re.search(rf'@task\("{name}"\)\nclass .*:\n    """(.*?)("""|\n)', file.read_text())
    try:
        cls = tasks.load(name)
        c = cls(cls.Config()).contract()
        sizes = (c.robot, str(c.obs_size), str(c.action_size), f"{c.rate:g} Hz")
    except ImportError:  # without the train extra
        sizes = ("", "", "", "")
    return name, what[1] if what else "", *sizes, shipped_policy(name)


def shipped_policy(task: str) -> str:
    """`yes`, with its success rate if its evaluation is shipped; `no` if no policy of the task is shipped."""
    folder = POLICIES / task
    if not (folder / "checkpoint/weights.safetensors").is_file():
        return "no"
    try:
        return f"yes, {json.loads((folder / 'eval.json').read_text())['success']['rate']:.1%} success"
    except (OSError, ValueError, KeyError, TypeError):
        return "yes"


def _show_task(console: Console, cls: type[Task]) -> None:
    task = cls(cls.Config())
    contract = task.contract()
    console.print(f"{cls.name}\n\n{inspect.getdoc(cls)}\n", soft_wrap=True)
    console.print(f"Robot {contract.robot}, {contract.rate:g} Hz, policy shipped: {shipped_policy(cls.name)}")
    console.print(f"Contract {contract.hash}\n", soft_wrap=True)
    for title, part in contract_tables(contract):
        console.print(title, part, "")
    if weights := getattr(task.cfg, "weights", None):
        docs = field_docs(type(weights))
        rows = [(name, f"{value:g}", docs.get(name, "")) for name, value in vars(weights).items()]
        console.print("Reward terms", table(("term", "weight", "meaning"), rows), "")


def contract_tables(c: Contract) -> Iterator[tuple[str, Table]]:
    """A contract as titled tables: joints, signals, observation, actions and couplings."""
    yield "Joints", _joint_table(c.joints)
    signals = [(s.name, str(s.size), s.units, s.frame) for s in c.signals]
    yield "Signals", table(("signal", "size", "units", "frame"), signals)
    spans = _spans(c.source_size(o.signal) * o.history for o in c.observe_terms)
    observed = []
    for span, o in zip(spans, c.observe_terms):
        clip = " .. ".join(f"{x:g}" for x in o.clip or ())
        observed.append((span, o.signal, _numbers(o.scale), _numbers(o.offset), clip, str(o.history)))
    yield f"Observation ({c.obs_size})", table(("index", "source", "scale", "offset", "clip", "history"), observed)
    acts = [
        (span, ", ".join(a.joints), a.kind, _numbers(a.scale) or "default", f"{a.lowpass:g}", MEANING[a.kind])
        for span, a in zip(_spans(len(a.joints) for a in c.act_terms), c.act_terms)
    ]
    yield f"Action ({c.action_size})", table(("index", "joints", "kind", "scale", "lowpass", "target"), acts)
    coupled = [(k.joint, " + ".join([f"{r:g} * {j}" for j, r in k.of] + [f"{k.offset:g}"])) for k in c.couplings]
    if coupled:
        yield "Coupled joints", table(("joint", "target"), coupled)


def _joint_table(joints: Sequence[Joint]) -> Table:
    rows = [
        (str(i), j.name, *map("{:g}".format, (j.lower, j.upper, j.home)), j.units, f"{j.velocity:g} {j.units}/s")
        for i, j in enumerate(joints)
    ]
    return table(("index", "joint", "lower", "upper", "home", "units", "top speed"), rows)


def _spans(sizes: Iterable[int]) -> list[str]:
    """Parts of these sizes, counted through: `0-6`, `7`, `8-9`."""
    ends = pairwise(accumulate(sizes, initial=0))
    return [f"{start}-{end - 1}" if end - start > 1 else str(start) for start, end in ends]


def _numbers(values: Sequence[float]) -> str:
    """Figures in a row; one if they are all the same."""
    return " ".join(f"{v:g}" for v in (values[:1] if len(set(values)) == 1 else values))


@dataclass(frozen=True)
class RobotsArgs:
    """List the robots, or check one and show its joints: `deftly robots [NAME]`."""

    xml: bool = False
    """Print the robot's MJCF and nothing else."""
    png: Path | None = None
    """Write a picture of the robot at home to this file."""


def robots_main(argv: list[str]) -> int:
    """Run `deftly robots`: 1 if a check of the robot fails."""
    name, rest = split_task(argv)
    args = parse(RobotsArgs, rest, prog="deftly robots")
    if name is None:
        if args.xml or args.png:
            raise DeftlyError("--xml and --png show one robot: deftly robots NAME --png robot.png")
        rows = [_robot_row(robots.load(name)) for name in robots.shipped()]
        _console().print(table(("robot", "what", "joints", "mass"), rows))
    elif args.png:
        _write_picture(name, args.png)
    elif args.xml:
        spec = robots.load(name).spec()
        spec.compile()
        print(spec.to_xml())
    else:
        return _show_robot(_console(), robots.load(name))
    return 0


def _robot_row(robot: Robot) -> tuple[str, ...]:
    mass = float(robot.spec().compile().body_mass.sum())
    return robot.name, robot.title, str(len(robot.joints)), f"{mass:.3g} kg"


def _show_robot(console: Console, robot: Robot) -> int:
    from deftly import findings
    from deftly.robots.check import check

    found = check(robot)
    console.print(f"{robot.name}: {robot.title}\n\nJoints", _joint_table(robot.joints), "")
    console.print("Check", findings.table(found), "")
    return int(findings.failed(found))


def _write_picture(name: str, path: Path) -> None:
    from deftly.sim import render

    if path.suffix.lower() != ".png":
        raise DeftlyError(f"--png writes a PNG picture: --png {path.with_suffix('.png')}")
    if not path.parent.is_dir():
        raise DeftlyError(f"--png: there is no folder {path.parent}; make it, or choose another place")
    render.choose_gl()  # before MuJoCo is imported
    render.write_png(path, portrait(robots.load(name)))
    print(f"wrote {path}")


def portrait(robot: Robot, size: tuple[int, int] = (960, 720)) -> Any:
    """The robot at home on a floor, `(height, width, 3)` uint8."""
    import mujoco
    import numpy as np

    from deftly.sim import render, scene

    spec = robot.spec()
    scene.prepare(spec)
    scene.add_home(spec, {j.name: j.home for j in robot.joints})
    scene.add_floor(spec, 0.0)
    spec.visual.global_.azimuth, spec.visual.global_.elevation = 130, -20
    model = spec.compile()
    data = mujoco.MjData(model)
    mujoco.mj_resetDataKeyframe(model, data, 0)
    mujoco.mj_forward(model, data)
    low, high = data.geom_xpos.min(0), data.geom_xpos.max(0)
    model.stat.center, model.stat.extent = (low + high) / 2, 1.1 * np.linalg.norm(high - low)
    with render.Renderer(model, size=size) as renderer:
        return renderer.picture(model, data)


def config_main(argv: list[str]) -> int:
    """Run `deftly config TASK [settings]`: the training's configuration as documented YAML."""
    name, rest = split_task(argv)
    if name is None:
        raise DeftlyError(f"config needs a task: deftly config {next(iter(tasks.shipped()), 'TASK')}")
    cls = tasks.load(name)
    from deftly.train import TrainArgs

    args = parse(with_task(TrainArgs, cls.Config), rest, prog=f"deftly config {name}")
    print(f"# deftly train {name} --config FILE\n{to_yaml(args)}", end="")
    return 0


def _console() -> Console:
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 200, markup=False, highlight=False)
