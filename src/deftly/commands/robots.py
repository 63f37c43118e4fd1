"""`deftly robots`: list the robots, or check one and show its joints."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typing_extensions import Doc

from deftly import robots
from deftly.commands.tasks import show_joints
from deftly.config import OUTPUT_FILE, Settings, Suffix, parse, split_word
from deftly.console import report, show, table
from deftly.errors import DeftlyError


@dataclass(frozen=True)
class RobotsArgs(Settings):
    """List the robots, or check one and show its joints: `deftly robots [NAME]`."""

    names: Annotated[bool, Doc("Print the bare names, one a line.")] = False
    xml: Annotated[bool, Doc("Print the robot's MJCF and nothing else.")] = False
    png: Annotated[
        Path | None,
        Suffix(".png"),
        OUTPUT_FILE,
        Doc("Write an image of the robot at home to this file."),
    ] = None


def main(argv: list[str]) -> int:
    """Run `deftly robots`: 1 if a check of the robot fails."""
    if argv == ["--names"]:  # what shell completion calls: no parser, no tables
        print("\n".join(robots.shipped()))
        return 0
    name, rest = split_word(argv)
    args = parse(RobotsArgs, rest, prog="deftly robots [ROBOT]")
    if name is None:
        if args.xml or args.png:
            raise DeftlyError("--xml and --png show one robot: deftly robots NAME --png robot.png")
        shipped = map(robots.load, robots.shipped())
        rows = [
            (r.name, r.title, str(len(r.joints)), f"{r.spec().compile().body_mass.sum():.3g} kg")
            for r in shipped
        ]
        show(table(("robot", "what", "joints", "mass"), rows))
    elif args.png:
        _write_image(name, args.png)
    elif args.xml:
        from deftly.robots import mjcf

        print(mjcf.to_xml(robots.load(name).spec()))
    else:
        from deftly.robots.check import check

        robot = robots.load(name)
        show(f"{robot.name}: {robot.title}\n")
        show_joints(robot.joints)
        show("Check")
        return report(check(robot))
    return 0


def _write_image(name: str, path: Path) -> None:
    from deftly import render

    render.choose_gl()  # before MuJoCo is imported
    from deftly.robots.check import on_floor

    model, data = on_floor(robots.load(name))
    with render.Renderer(model, render.FREE, size=(960, 720)) as renderer:
        render.write_png(path, renderer.image(model, data))
    print(f"wrote {path}")
