"""What there is: `deftly tasks`, `deftly robots`, `deftly config`."""

import inspect
import json
import math
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

from deftly import robots, tasks
from deftly.config import field_docs, parse, split_task, to_yaml, with_task
from deftly.console import report, show, table
from deftly.contract import Joint
from deftly.errors import DeftlyError

POLICIES = Path(__file__).parents[1] / "shipped/policies"
MEANING = {  # how an action of each kind becomes a target; `deftly.contract.Act` has the whole story
    "absolute": "middle of the range + scale * a",
    "relative": "home + scale * a",
    "delta": "last command + scale * a",
    "velocity": "last command + scale * a / rate",
    "gripper": "a > 0 closes, else opens, at scale per second",
}


@dataclass(frozen=True)
class TasksArgs:
    """List the tasks, or show one: `deftly tasks [NAME]`."""

    names: bool = False  # Print the bare names, one a line.


def tasks_main(argv: list[str]) -> int:
    """Run `deftly tasks`."""
    if argv == ["--names"]:  # what shell completion calls: no parser, no tables
        print("\n".join(tasks.shipped()))
        return 0
    name, rest = split_task(argv)
    parse(TasksArgs, rest, prog="deftly tasks")
    if name:
        _show_task(tasks.load(name))
        return 0
    rows = []
    for name, module in tasks.shipped().items():
        file = Path(tasks.__path__[0], module.rpartition(".")[2] + ".py")
        what = re.search(rf'@task\("{name}"\)\nclass .*:\n    """(.*?)("""|\n)', file.read_text())
        sizes = ("", "", "", "")
        with suppress(ImportError):  # without the train extra
            cls = tasks.load(name)
            c = cls(cls.Config()).contract()
            sizes = (c.robot.name, str(c.obs_size()), str(c.action_size), f"{c.rate:g} Hz")
        rows.append((name, what[1] if what else "", *sizes, shipped_policy(name)))
    show(table(("task", "what", "robot", "obs", "action", "rate", "shipped policy"), rows))
    return 0


def shipped_policy(task: str) -> str:
    """`yes`, with its success rate if its evaluation is shipped; `no` if no policy of the task is shipped."""
    folder = POLICIES / task
    if not (folder / "checkpoint/weights.safetensors").is_file():
        return "no"
    with suppress(OSError, ValueError, KeyError, TypeError):
        return f"yes, {json.loads((folder / 'eval.json').read_text())['success']['rate']:.1%} success"
    return "yes"


def _show_task(cls: type[tasks.Task]) -> None:
    task = cls(cls.Config())
    c = task.contract()
    summary = f"Robot {c.robot.name}, {c.rate:g} Hz, policy shipped: {shipped_policy(cls.name)}\nContract {c.hash}"
    show(f"{cls.name}\n\n{inspect.getdoc(cls)}\n\n{summary}\n", soft_wrap=True)
    _show_joints(c.joints)
    _section(
        "Signals",
        ("signal", "shape", "units", "frame", "type"),
        ((s.name, s.shape, s.units, s.frame, s.dtype) for s in c.signals),
    )
    observed = []
    for o in c.observe_terms:
        clip = " .. ".join(map(_text, o.clip or ()))
        size = c.source_size(o.term) * o.frames
        observed.append((size, o.term, o.scale, o.offset, clip, o.history, o.stride))
    columns = ("index", "term", "scale", "offset", "clip", "history", "stride")
    if c.derive:
        derived = [(d.name, d.kind, d.of or "", d.site or (f"{d.period:g} s" if d.period else "")) for d in c.derive]
        _section("Derived values", ("value", "kind", "of", "site or period"), derived)
    _section(f"Observation ({sum(map(c.obs_size, c.groups))})", columns, observed)
    acts = [(len(a.joints), a.joints, a.kind, a.scale or "default", a.lowpass, MEANING[a.kind]) for a in c.act_terms]
    _section(f"Action ({c.action_size})", ("index", "joints", "kind", "scale", "lowpass", "target"), acts)
    if couplings := c.robot.couplings:
        coupled = [(k.joint, " + ".join([*(f"{r:g} * {j}" for j, r in k.of), f"{k.offset:g}"])) for k in couplings]
        _section("Coupled joints", ("joint", "target"), coupled)
    if weights := getattr(task.cfg, "weights", None):
        docs = field_docs(type(weights))
        rows = [(name, float(value), docs.get(name, "")) for name, value in vars(weights).items()]
        _section("Reward terms", ("term", "weight", "meaning"), rows)


def _show_joints(joints: Sequence[Joint]) -> None:
    rows = [(1, j.name, j.lower, j.upper, j.home, j.units, f"{j.velocity:g} {j.units}/s") for j in joints]
    _section("Joints", ("index", "joint", "lower", "upper", "home", "units", "top speed"), rows)


def _section(title: str, columns: Sequence[str], rows: Iterable[tuple]) -> None:
    """Print a table. Rows of an `index` begin with a size and are counted through: `0-6`, `7`, `8-9`."""
    cells = [list(map(_text, row)) for row in rows]
    if columns[0] == "index":
        ends = pairwise(accumulate((int(row[0]) for row in cells), initial=0))
        for row, (start, end) in zip(cells, ends):
            row[0] = f"{start}-{end - 1}" if end - start > 1 else str(start)
    show(title, table(columns, cells), "")


def _text(cell: object) -> str:
    """What a table shows; of several figures that are all the same, one."""
    if isinstance(cell, tuple):
        between = ", " if any(isinstance(x, str) for x in cell) else " "
        return between.join(map(_text, cell[:1] if len(set(cell)) == 1 else cell))
    return f"{cell:g}" if isinstance(cell, float) else str(cell)


@dataclass(frozen=True)
class RobotsArgs:
    """List the robots, or check one and show its joints: `deftly robots [NAME]`."""

    xml: bool = False  # Print the robot's MJCF and nothing else.
    png: Path | None = None  # Write a picture of the robot at home to this file.


def robots_main(argv: list[str]) -> int:
    """Run `deftly robots`: 1 if a check of the robot fails."""
    name, rest = split_task(argv)
    args = parse(RobotsArgs, rest, prog="deftly robots")
    if name is None:
        if args.xml or args.png:
            raise DeftlyError("--xml and --png show one robot: deftly robots NAME --png robot.png")
        shipped = map(robots.load, robots.shipped())
        rows = [(r.name, r.title, str(len(r.joints)), f"{r.spec().compile().body_mass.sum():.3g} kg") for r in shipped]
        show(table(("robot", "what", "joints", "mass"), rows))
    elif args.png:
        _write_picture(name, args.png)
    elif args.xml:
        spec = robots.load(name).spec()
        spec.compile()
        print(spec.to_xml())
    else:
        from deftly.robots.check import check

        robot = robots.load(name)
        show(f"{robot.name}: {robot.title}\n")
        _show_joints(robot.joints)
        show("Check")
        return report(check(robot))
    return 0


def _write_picture(name: str, path: Path) -> None:
    from deftly import render

    if path.suffix.lower() != ".png":
        raise DeftlyError(f"--png writes a PNG picture: --png {path.with_suffix('.png')}")
    if not path.parent.is_dir():
        raise DeftlyError(f"--png: there is no folder {path.parent}; make it, or choose another place")
    render.choose_gl()  # before MuJoCo is imported
    from deftly.robots.check import at_home

    model, data, _ = at_home(robots.load(name), floor=True)
    low, high = data.geom_xpos.min(0), data.geom_xpos.max(0)
    model.stat.center, model.stat.extent = (low + high) / 2, 1.1 * math.dist(low, high)
    model.vis.global_.azimuth, model.vis.global_.elevation = 130, -20
    with render.Renderer(model, size=(960, 720)) as renderer:
        render.write_png(path, renderer.picture(model, data))
    print(f"wrote {path}")


def config_main(argv: list[str]) -> int:
    """Run `deftly config TASK [settings]`: the training's configuration as documented YAML."""
    name, rest = split_task(argv)
    if name is None:
        raise DeftlyError(f"config needs a task: deftly config {next(iter(tasks.shipped()), 'TASK')}")
    cls = tasks.load(name)
    from deftly.learn.train import TrainArgs

    args = parse(with_task(TrainArgs, cls.Config), rest, prog=f"deftly config {name}")
    print(f"# deftly train {name} --config FILE\n{to_yaml(args)}", end="")
    return 0
