"""What there is: `deftly tasks`, `deftly robots`, `deftly config`."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deftly import robots, tasks
from deftly.config import field_docs, parse, split_task, to_yaml, with_task
from deftly.contract import Act, Contract, Joint
from deftly.errors import DeftlyError

if TYPE_CHECKING:
    import mujoco
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


# ------------------------------------------------------------------------ tasks


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
    args = parse(TasksArgs, rest, prog="deftly tasks")
    if args.names:
        print("\n".join(tasks.shipped()))
    elif name:
        _show_task(tasks.load(name))
    else:
        _console().print(_task_table())
    return 0


def _task_table() -> Table:
    rows = [_task_row(name, module) for name, module in tasks.shipped().items()]
    table = _table("task", "what", "robot", "obs", "action", "rate", "shipped policy", rows=rows)
    table.columns[1].no_wrap = False
    return table


def _task_row(name: str, module: str) -> tuple[str, ...]:
    try:
        cls = tasks.load(name)
    except ImportError:  # without the train extra the names and the first lines can still be told
        return name, _first_line_of_file(name, module), "", "", "", "", shipped_policy(name)
    c = cls(cls.Config()).contract()
    sizes = (c.robot, str(c.obs_size), str(c.action_size), f"{c.rate:g} Hz")
    return name, _first_line(inspect.getdoc(cls)), *sizes, shipped_policy(name)


def _first_line(text: str | None) -> str:
    return (text or "").strip().partition("\n")[0]


def _first_line_of_file(name: str, module: str) -> str:
    """The first line of a task's docstring, read without importing anything the task needs."""
    found = importlib.util.find_spec(module)
    assert found is not None
    assert found.origin is not None
    for node in ast.parse(Path(found.origin).read_text()).body:
        marks = [ast.unparse(mark) for mark in getattr(node, "decorator_list", [])]
        if isinstance(node, ast.ClassDef) and f"task('{name}')" in marks:
            return _first_line(ast.get_docstring(node))
    return ""


def shipped_policy(task: str) -> str:
    """`yes`, with its success rate if its evaluation is shipped; `no` if no policy of the task is shipped."""
    folder = POLICIES / task
    if not (folder / "weights.safetensors").is_file():
        return "no"
    try:
        rate = json.loads((folder / "eval.json").read_text())["success"]["rate"]
    except (OSError, ValueError, KeyError, TypeError):
        return "yes"
    return f"yes, {rate:.1%} success"


def _show_task(cls: type[Task]) -> None:
    task = cls(cls.Config())
    contract, console = task.contract(), _console()
    console.print(f"{cls.name}\n\n{inspect.getdoc(cls)}\n", soft_wrap=True)
    console.print(f"Robot {contract.robot}, {contract.rate:g} Hz, policy shipped: {shipped_policy(cls.name)}")
    console.print(f"Contract {contract.hash}\n", soft_wrap=True)
    for title, table in contract_tables(contract):
        _print(console, title, table)
    weights = getattr(task.cfg, "weights", None)
    if weights is not None:
        docs = field_docs(type(weights))
        rows = [(name, f"{value:g}", docs.get(name, "")) for name, value in vars(weights).items()]
        _print(console, "Reward terms", _table("term", "weight", "meaning", rows=rows))


def contract_tables(c: Contract) -> list[tuple[str, Table]]:
    """A contract as titled tables: joints, signals, observation, actions and couplings."""
    signals = [(s.name, str(s.size), s.units, s.frame) for s in c.signals]
    found = [
        ("Joints", _joint_table(c.joints)),
        ("Signals", _table("signal", "size", "units", "frame", rows=signals)),
        (f"Observation ({c.obs_size})", _observation_table(c)),
        (f"Action ({c.action_size})", _action_table(c)),
    ]
    rows = [(k.joint, " + ".join([f"{r:g} * {j}" for j, r in k.of] + [f"{k.offset:g}"])) for k in c.couplings]
    return [*found, ("Coupled joints", _table("joint", "target", rows=rows))] if rows else found


def _joint_table(joints: Sequence[Joint]) -> Table:
    rows = [
        (
            str(i),
            j.name,
            f"{j.lower:g}",
            f"{j.upper:g}",
            f"{j.home:g}",
            j.units,
            f"{j.velocity:g} {j.units}/s",
        )
        for i, j in enumerate(joints)
    ]
    return _table("index", "joint", "lower", "upper", "home", "units", "top speed", rows=rows)


def _observation_table(c: Contract) -> Table:
    rows, start = [], 0
    for term in c.observe_terms:
        size = c.source_size(term.signal) * term.history
        clip = "" if term.clip is None else f"{term.clip[0]:g} .. {term.clip[1]:g}"
        figures = (_numbers(term.scale), _numbers(term.offset), clip, str(term.history))
        rows.append((_span(start, size), term.signal, *figures))
        start += size
    return _table("index", "source", "scale", "offset", "clip", "history", rows=rows)


def _action_table(c: Contract) -> Table:
    rows, start = [], 0
    for act in c.act_terms:
        scale = _numbers(act.scale) or "default"
        rows.append((_span(start, len(act.joints)), ", ".join(act.joints), *_how(act, scale)))
        start += len(act.joints)
    return _table("index", "joints", "kind", "scale", "lowpass", "target", rows=rows)


def _how(act: Act, scale: str) -> tuple[str, ...]:
    return act.kind, scale, f"{act.lowpass:g}", MEANING[act.kind]


def _span(start: int, size: int) -> str:
    return str(start) if size == 1 else f"{start}-{start + size - 1}"


def _numbers(values: Sequence[float]) -> str:
    """Figures in a row; one if they are all the same."""
    return " ".join(f"{v:g}" for v in (values[:1] if len(set(values)) == 1 else values))


# ----------------------------------------------------------------------- robots


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
        _console().print(_robot_table())
        return 0
    if args.png:
        return _write_picture(name, args.png)
    robot = robots.load(name)
    if args.xml:
        spec = robot.spec()
        spec.compile()
        print(spec.to_xml())
        return 0
    return _show_robot(robot)


def _robot_table() -> Table:
    rows = [_robot_row(robots.load(name)) for name in robots.shipped()]
    return _table("robot", "what", "joints", "mass", rows=rows)


def _robot_row(robot: Robot) -> tuple[str, ...]:
    mass = float(robot.spec().compile().body_mass.sum())
    return robot.name, robot.title, str(len(robot.joints)), f"{mass:.3g} kg"


def _show_robot(robot: Robot) -> int:
    from deftly import findings
    from deftly.robots.check import check

    console, found = _console(), check(robot)
    console.print(f"{robot.name}: {robot.title}\n")
    _print(console, "Joints", _joint_table(robot.joints))
    _print(console, "Check", findings.table(found))
    return int(findings.failed(found))


def _write_picture(name: str, path: Path) -> int:
    from deftly.sim import render

    if path.suffix.lower() != ".png":
        raise DeftlyError(f"--png writes a PNG picture: --png {path.with_suffix('.png')}")
    if not path.parent.is_dir():
        raise DeftlyError(f"--png: there is no folder {path.parent}; make it, or choose another place")
    render.choose_gl()  # before MuJoCo is imported
    render.write_png(path, portrait(robots.load(name)))
    _console().print(f"wrote {path}")
    return 0


def portrait(robot: Robot, size: tuple[int, int] = (960, 720)) -> Any:
    """The robot at home on a floor, `(height, width, 3)` uint8."""
    import numpy as np

    from deftly.robots.check import home_model
    from deftly.sim import render, scene

    model, data = _at_home(home_model(robot))
    low, high = _visible_box(model, data)
    eye = (low + high) / 2 + 1.5 * np.linalg.norm(high - low) * np.array([0.62, -0.70, 0.35])
    spec = robot.spec()
    scene.prepare(spec)
    scene.add_floor(spec, float(low[2]))
    scene.add_camera(spec, "portrait", tuple(eye), tuple((low + high) / 2), fovy=40)
    scene.add_home(spec, {j.name: j.home for j in robot.joints})
    model, data = _at_home(spec.compile())
    with render.Renderer(model, "portrait", size) as renderer:
        return renderer.picture(model, data)


def _at_home(model: mujoco.MjModel) -> tuple[mujoco.MjModel, mujoco.MjData]:
    import mujoco

    data = mujoco.MjData(model)
    mujoco.mj_resetDataKeyframe(model, data, 0)
    mujoco.mj_forward(model, data)
    return model, data


def _visible_box(model: mujoco.MjModel, data: mujoco.MjData) -> tuple[Any, Any]:
    """Lowest and highest corner (m) of the box around the geoms that are drawn, or all if none is."""
    import numpy as np

    shown = model.geom_group < 3
    shown = shown if shown.any() else ~shown
    turn = data.geom_xmat.reshape(-1, 3, 3)
    centre = data.geom_xpos + np.einsum("gij,gj->gi", turn, model.geom_aabb[:, :3])
    half = np.einsum("gij,gj->gi", np.abs(turn), model.geom_aabb[:, 3:])
    return (centre - half)[shown].min(0), (centre + half)[shown].max(0)


# ----------------------------------------------------------------------- config


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


# ----------------------------------------------------------------------- output


def _console() -> Console:
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 200, markup=False, highlight=False)


def _table(*columns: str, rows: Sequence[Sequence[str]]) -> Table:
    from rich.table import Column, Table

    table = Table(*(Column(name, overflow="fold", no_wrap=not i) for i, name in enumerate(columns)), box=None)
    for row in rows:
        table.add_row(*row)
    return table


def _print(console: Console, title: str, table: Table) -> None:
    console.print(title, style="bold")
    console.print(table, "")
