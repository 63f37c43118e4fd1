"""The report page of a scanned object: pictures, checks, and every number."""

from __future__ import annotations

import html
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import mujoco
import numpy as np

from deftly import __version__, render
from deftly.files import write_text
from deftly.scan import model

if TYPE_CHECKING:
    from deftly.scan.ingest import Ingested

SHOWN_POINTS = 1500
IMAGE = (480, 400)
"""Width and height of a picture, pixels."""
PICTURES = {
    "scan": "the scan",
    "surface": "its surface",
    "parts": "its convex parts",
    "rest": "at rest",
}
REPORT = "report.html"
FILES = (REPORT, *(f"{name}.png" for name in PICTURES))
"""What a report consists of."""
UNITS = {
    "mass": "kg", "volume": "m3", "density": "kg/m3", "hull_volume": "m3", "parts_volume": "m3", "size": "m",
    "cloud_to_surface": "m", "cloud_to_surface_95": "m", "surface_to_cloud": "m", "parts_to_surface": "m",
    "grasp_width": "m", "grasp_yaw": "rad", "inertia": "kg m2",
}  # fmt: skip
LEFT_OUT = ("schema", "checks", "files", "rest", "notes", "name")
CLASSES = {"ok": "good", "warn": "warn", "fail": "bad"}


def write(made: Ingested, folder: Path) -> None:
    """Write `report.html` and its pictures into a folder; without OpenGL the page has none."""
    try:
        images = pictures(made)
    except render.NoGLError:
        images = {}
    for name, image in images.items():
        render.write_png(folder / f"{name}.png", image)
    write_text(folder / REPORT, page(made.record, list(images)))


def page(record: dict[str, Any], images: list[str]) -> str:
    """The page of an object with its record and the names of its pictures."""
    shown = ("name", "source", "units", "method")
    text = {name: html.escape(str(record[name])) for name in shown}
    figures = [
        f'<figure><img src="{name}.png" alt="{PICTURES[name]}"><figcaption>{PICTURES[name]}</figcaption></figure>'
        for name in images
    ]
    checks = [
        f"<tr><td class={CLASSES[found['level']]}>{found['level']}</td><td>{html.escape(found['name'])}</td>"
        f"<td>{html.escape(found['text'])}</td></tr>"
        for found in record["checks"]
    ]
    numbers = [
        f"<tr><td>{html.escape(name)}</td><td>{html.escape(_shown(value))} {UNITS.get(name, '')}</td></tr>"
        for name, value in record.items()
        if name not in LEFT_OUT
    ]
    notes = [f"<p class=soft>{html.escape(note)}</p>" for note in record["notes"]]
    template = Template(Path(__file__).with_name("report.html").read_text())
    return template.substitute(
        text,
        verdict="accepted" if record["accepted"] else "not accepted",
        verdict_class="good" if record["accepted"] else "bad",
        figures="".join(figures),
        checks="".join(checks),
        numbers="".join(numbers),
        notes="".join(notes),
        version=__version__,
    )


def _shown(value: Any) -> str:
    """A number with four digits, a list of them, or words."""
    if isinstance(value, dict):
        parts = [f"{key} {_shown(part)}" for key, part in value.items()]
        return ", ".join(parts)
    if isinstance(value, list):
        return " ".join(_shown(part) for part in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def pictures(made: Ingested) -> dict[str, np.ndarray]:
    """Images of the scan, the surface, the parts and the object at rest, `(height, width, 3)` uint8 by name."""
    poses = made.record["rest"]
    lying = [0, 0, poses[0]["height"], *poses[0]["quat"]] if poses else None
    height = float(max(made.record["size"]))
    aloft = [0, 0, height, 1, 0, 0, 0]
    return {
        "scan": _image(_with_points(made), aloft, group=None),
        "surface": _image(model.on_floor(made.name, made.files), aloft, group=model.DRAWN),
        "parts": _image(model.on_floor(made.name, made.files), aloft, group=model.TOUCHING),
        "rest": _image(model.on_floor(made.name, made.files), lying or aloft, group=model.DRAWN),
    }


def _with_points(made: Ingested) -> mujoco.MjSpec:
    """The object's body with some of the points of the scan on it."""
    spec = model.on_floor(made.name, made.files)
    step = -(-len(made.points) // SHOWN_POINTS)
    radius = 0.006 * max(made.record["size"])
    for point in made.points[::step]:
        geom = spec.body(made.name).add_geom(type=mujoco.mjtGeom.mjGEOM_SPHERE)
        geom.pos = point
        geom.size = [radius] * 3
        geom.rgba = [0.15, 0.35, 0.75, 1]
        geom.contype = geom.conaffinity = 0
    return spec


def _image(spec: mujoco.MjSpec, qpos: list[float], group: int | None) -> np.ndarray:
    """A picture of the object in a pose, of one group of its geoms: none draws those of its points."""
    for geom in spec.geoms:
        is_mesh = geom.type == mujoco.mjtGeom.mjGEOM_MESH
        if is_mesh and geom.group != group:
            geom.rgba = [0, 0, 0, 0]
        elif is_mesh:
            geom.group = model.DRAWN
    compiled = spec.compile()
    data = mujoco.MjData(compiled)
    data.qpos[:] = qpos
    mujoco.mj_forward(compiled, data)
    with render.Renderer(compiled, render.FREE, size=IMAGE) as renderer:
        return renderer.image(compiled, data)
