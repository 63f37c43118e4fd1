"""`deftly tasks`: list the tasks, or show one."""

import inspect
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Annotated

from typing_extensions import Doc

from deftly import tasks
from deftly.config import Settings, field_docs, parse, split_task
from deftly.console import show, table
from deftly.contract import STATE, Joint, PolicyContract
from deftly.files import FileError, read_json

POLICIES = Path(__file__).parents[1] / "shipped/policies"
MEANING = {  # how an action of each kind becomes a target; `deftly.contract.Act` has the whole story
    "absolute": "middle of the range + scale * a",
    "relative": "home + scale * a",
    "delta": "last command + scale * a",
    "velocity": "last command + scale * a / rate",
    "gripper": "a > 0 closes, else opens, at scale per second",
}


@dataclass(frozen=True)
class TasksArgs(Settings):
    """List the tasks, or show one: `deftly tasks [NAME]`."""

    names: Annotated[bool, Doc("Print the bare names, one a line.")] = False


def main(argv: list[str]) -> int:
    """Run `deftly tasks`."""
    if argv == ["--names"]:  # what shell completion calls: no parser, no tables
        print("\n".join(tasks.shipped()))
        return 0
    name, rest = split_task(argv)
    parse(TasksArgs, rest, prog="deftly tasks [TASK]")
    if name:
        _show_task(tasks.load(name))
        return 0
    rows = []
    for name, (_, what) in tasks.SHIPPED.items():
        sizes = ("", "", "", "")
        with suppress(ImportError):  # without the train extra
            cls = tasks.load(name)
            c = cls(cls.Config()).contract()
            numbers = (str(c.obs_size()), str(c.action_size), f"{c.rate:g} Hz")
            sizes = (c.robot.name, *numbers)
        rows.append((name, what, *sizes, shipped_policy(name)))
    show(table(("task", "what", "robot", "obs", "action", "rate", "shipped policy"), rows))
    return 0


def shipped_policy(task: str) -> str:
    """`yes`, with its success rate if its evaluation is shipped; `no` if no policy of the task is shipped."""
    folder = POLICIES / task
    if not (folder / "checkpoint/weights.safetensors").is_file():
        return "no"
    with suppress(FileError, KeyError, TypeError):
        return f"yes, {read_json(folder / 'eval.json', 'a report')['success']['rate']:.1%} success"
    return "yes"


def _show_task(cls: type[tasks.Task]) -> None:
    task = cls(cls.Config())
    c = task.contract()
    robot = f"Robot {c.robot.name}, {c.rate:g} Hz, policy shipped: {shipped_policy(cls.name)}"
    summary = f"{robot}\nContract {c.hash}"
    show(f"{cls.name}\n\n{inspect.getdoc(cls)}\n\n{summary}\n", soft_wrap=True)
    show_joints(c.joints)
    signals = [(s.name, s.shape, s.units, s.frame, s.dtype) for s in c.signals]
    section("Signals", ("signal", "shape", "units", "frame", "type"), signals)
    _show_inputs(c)
    for group in c.groups:
        _show_group(c, group)
    acts = [
        (len(a.joints), a.joints, a.kind, a.scale or "default", a.lowpass, MEANING[a.kind])
        for a in c.act_terms
    ]
    section(
        f"Action ({c.action_size})", ("index", "joints", "kind", "scale", "lowpass", "target"), acts
    )
    if couplings := c.robot.couplings:
        coupled = []
        for coupling in couplings:
            parts = [f"{ratio:g} * {leader}" for leader, ratio in coupling.of]
            parts.append(f"{coupling.offset:g}")
            coupled.append((coupling.joint, " + ".join(parts)))
        section("Coupled joints", ("joint", "target"), coupled)
    if weights := getattr(task.cfg, "weights", None):
        docs = field_docs(type(weights))
        rows = [(name, float(value), docs.get(name, "")) for name, value in vars(weights).items()]
        section("Reward terms", ("term", "weight", "meaning"), rows)


def _show_inputs(c: PolicyContract) -> None:
    """Inputs and derived values, where there are any."""
    if c.inputs:
        said = [
            (i.name, i.size, i.units, i.frame, i.lower, i.upper, i.text or i.default)
            for i in c.inputs
        ]
        section("Inputs", ("input", "size", "units", "frame", "lower", "upper", "default"), said)
    if c.derive:
        derived = [
            (d.name, d.kind, d.of, d.site or (f"{d.period:g} s" if d.period else ""))
            for d in c.derive
        ]
        section("Derived values", ("value", "kind", "of", "site or period"), derived)


def _show_group(c: PolicyContract, group: str) -> None:
    """What the policy sees, in the order of the network's input."""
    observed = []
    for o in c.observe_terms:
        if o.group == group:
            clip = " .. ".join(map(text, o.clip or ()))
            size = c.source_size(o.term) * o.frames
            observed.append((size, o.term, o.scale, o.offset, clip, o.history, o.stride))
    columns = ("index", "term", "scale", "offset", "clip", "history", "stride")
    title = "Observation" if c.groups == (STATE,) else f"Observation, group {group}"
    section(f"{title} ({c.obs_size(group)})", columns, observed)


def show_joints(joints: Sequence[Joint]) -> None:
    """Print a table of the joints of a robot."""
    rows = [
        (1, j.name, j.lower, j.upper, j.home, j.units, f"{j.velocity:g} {j.units}/s")
        for j in joints
    ]
    section("Joints", ("index", "joint", "lower", "upper", "home", "units", "top speed"), rows)


def section(title: str, columns: Sequence[str], rows: Iterable[tuple]) -> None:
    """Print a table. Rows of an `index` begin with a size and are counted through: `0-6`, `7`, `8-9`."""
    cells = [list(map(text, row)) for row in rows]
    if columns[0] == "index":
        sizes = [int(row[0]) for row in cells]
        ends = pairwise(accumulate(sizes, initial=0))
        for row, (start, end) in zip(cells, ends):
            row[0] = f"{start}-{end - 1}" if end - start > 1 else str(start)
    show(title, table(columns, cells), "")


def text(cell: object) -> str:
    """What a table shows; of several numbers that are all the same, one."""
    if isinstance(cell, tuple):
        between = ", " if any(isinstance(x, str) for x in cell) else " "
        is_one = len(set(cell)) == 1
        return between.join(map(text, cell[:1] if is_one else cell))
    return f"{cell:g}" if isinstance(cell, float) else str(cell)
