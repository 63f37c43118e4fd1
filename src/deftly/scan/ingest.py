"""The whole way of a scan: file, things, surface, body, MJCF, acceptance, folder."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from deftly.console import Finding, failed
from deftly.errors import DeftlyError
from deftly.files import atomic_folder, bring_along, read_json, sha256, write_bytes, write_json
from deftly.objects.scanned import MAX_FILE, RECORD, SCHEMA
from deftly.scan import accept, model, readers, segment, solid, units
from deftly.scan.cloud import Cloud, extent, finite, thinned, without_outliers, without_strays
from deftly.scan.settings import ScanSettings
from deftly.scan.surface import Surface, reconstruct

FEWEST = 30
"""Points of the smallest scan."""
POINTS, SCENE_POINTS = 15_000, 100_000
"""Points that a thing, and a whole scan, are thinned to."""
THIN = 0.01
"""Least thickness of a cloud across its flattest direction, as a fraction of its extent."""


class Ingested(NamedTuple):
    """One object of a scan, tested, and not yet written."""

    name: str
    record: dict[str, Any]
    """What `object.json` says."""
    files: dict[str, bytes]
    """MJCF and meshes."""
    findings: list[Finding]
    points: np.ndarray
    """The scan of it (n, 3), m, in the frame of its body."""


def ingest(path: Path, settings: ScanSettings) -> list[Ingested]:
    """The objects of a scan file. Raises DeftlyError, one line, if there is none to be made of it."""
    cloud = readers.read(path)
    try:
        surfaces, how, notes = _things(cloud, settings)
        found, problems = [], []
        for i, thing in enumerate(surfaces):
            number = f"_{i + 1}" if len(surfaces) > 1 else ""
            name = name_of(path.stem) + number
            try:
                found.append(_object(name, thing, settings))
            except DeftlyError as error:
                problems.append(str(error))
        if not found:
            raise DeftlyError(problems[0])
    except DeftlyError as error:
        raise DeftlyError(f"{path}: {error}") from None
    for made in found:
        made.record.update(
            source=path.name, units=how, notes=[*notes, *problems], seed=settings.seed
        )
    return found


def name_of(stem: str) -> str:
    """A name for files and bodies."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "_", stem).strip("_")
    return plain[:60] or "object"


# ------------------------------------------------------------------ things


def _things(
    cloud: Cloud, settings: ScanSettings
) -> tuple[list[Surface | segment.Thing], str, list[str]]:
    """The things of a scan in m: a surface where the file is a solid mesh; how units were found; what to know."""
    notes = []
    if cloud.faces is not None:
        mesh = solid.whole(cloud)
        if not isinstance(mesh, str):
            factor, how = units.factor(extent(mesh.vertices), settings.units, settings.size)
            mesh.apply_scale(factor)
            return [Surface(mesh, "mesh", "")], how, []
        notes.append(f"{mesh}: a new surface is wrapped around it")
        cloud = solid.as_cloud(solid.as_mesh(cloud))
    whole = thinned(without_strays(finite(cloud)), SCENE_POINTS)
    _require_body(whole)
    things = segment.cut(whole, settings.scene, np.random.default_rng(settings.seed))
    if not things:
        raise DeftlyError("nothing stands on a table in it: --scene object takes it as one object")
    if settings.mass is not None and len(things) > 1:
        notes.append(f"each of the {len(things)} things is given {settings.mass:g} kg (--mass)")
    cleaned = [thing._replace(cloud=without_outliers(thing.cloud)) for thing in things]
    span = extent(cleaned[0].cloud.points)
    if things[0].stood and settings.size is None:
        span = extent(whole.points)
    factor, how = units.factor(span, settings.units, settings.size)
    return [thing._replace(cloud=thing.cloud.scaled(factor)) for thing in cleaned], how, notes


def _require_body(cloud: Cloud) -> None:
    """Raise DeftlyError for points of which no body can be made."""
    if len(cloud) < FEWEST:
        raise DeftlyError(
            f"it has {len(cloud)} different points that are finite, and a scan has {FEWEST} or more"
        )
    centred = cloud.points - cloud.points.mean(0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    sides = np.ptp(cloud.points @ axes.T, axis=0)
    if sides.min() < THIN * sides.max():
        raise DeftlyError("its points lie in a plane or a line: scan it from more sides")


def _object(name: str, thing: Surface | segment.Thing, settings: ScanSettings) -> Ingested:
    """Surface, body, MJCF and acceptance of one thing."""
    if isinstance(thing, Surface):
        surface, points = thing, np.asarray(thing.mesh.vertices)
    else:
        _require_body(thing.cloud)
        cloud = thinned(thing.cloud, POINTS)
        points = cloud.points
        surface = reconstruct(segment.grounded(cloud) if thing.stood else cloud)
    if thing_is_grounded := isinstance(thing, segment.Thing) and thing.stood:
        surface = surface._replace(closing=f"{surface.closing or 'closed'}, and down to the table")
    simple = solid.simplified(surface.mesh, settings.faces)
    surface = surface._replace(mesh=simple)
    body = solid.body(surface, settings.density, settings.mass, settings.parts, settings.seed)
    files = model.files(name, body)
    measured = accept.measure(surface, body, points, model.on_floor(name, files).compile())
    findings = accept.check(measured, settings.parts, settings.gripper)
    record = {
        "schema": SCHEMA,
        "name": name,
        "accepted": not failed(findings),
        **measured,
        "stood_on_table": thing_is_grounded,
        "checks": [finding._asdict() for finding in findings],
        "files": {file: hashlib.sha256(data).hexdigest() for file, data in files.items()},
    }
    return Ingested(name, record, files, findings, points - body.centre)


# ------------------------------------------------------------------ the folder


def require_place(folder: Path) -> None:
    """Raise DeftlyError if a folder is there that no scan wrote, or whose files were changed since."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / RECORD).is_file():
        raise DeftlyError(f"'{folder}' is there and is no scanned object: name another --out")
    for name, digest in _digests(folder).items():
        file = folder / name
        if file.is_file() and sha256(file, "a file of a scanned object", MAX_FILE) != digest:
            raise DeftlyError(
                f"'{file}' was changed since it was made, and would be replaced: name another --out"
            )


def _digests(folder: Path) -> Mapping[str, str]:
    """The files of a scanned object and their digests, as its record has them; none of a record that cannot be read."""
    with suppress(DeftlyError):
        record = read_json(folder / RECORD, "a scanned object")
        files = record.get("files") if isinstance(record, dict) else None
        if isinstance(files, dict):
            return {name: files[name] for name in files if Path(name).name == name}
    return {}


def write(made: Ingested, out: Path) -> Path:
    """Write an object's folder into `out`, whole or not at all, with its report; returns it.

    What else lies in that folder comes along. Raises DeftlyError as `require_place`.
    """
    from deftly.scan import report

    folder = out / made.name
    require_place(folder)
    with atomic_folder(folder) as scratch:
        if folder.exists():
            bring_along(folder, scratch, but=(*_digests(folder), RECORD, *report.FILES))
        for file, data in made.files.items():
            write_bytes(scratch / file, data)
        write_json(scratch / RECORD, made.record)
        report.write(made, scratch)
    return folder
