"""Every reader of files from outside with a whole file of its kind, and ways to damage one."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import fifty
import numpy as np
import yaml

from deftly.config import TrainArgs, parse
from deftly.config.yaml import read_mapping, to_yaml
from deftly.console import show
from deftly.contract import PolicyContract, RobotInterface
from deftly.control import inspection, log
from deftly.control.drivers import FakeDriver
from deftly.control.loop import Runner
from deftly.control.safety import Kernel, SafetyConfig
from deftly.data import replay
from deftly.errors import DeftlyError
from deftly.evaluate import check
from deftly.policy import bundle
from deftly.policy.protocol import ContractPolicy, OnnxNetwork

CPU_SECONDS = 10.0
"""Longest that any file may take."""
LONGEST = 4000
"""Most characters of an error."""
EVENTS = {30: "start", 40: "hold", 45: "resume"}
"""What the operator of the log does, by tick."""
HERE = Path(__file__).parent


class Reader(NamedTuple):
    """A reader, and a file that it reads."""

    kind: str
    """`json`, `yaml`, `npz`, `csv` or `bytes`: how the file is damaged."""
    whole: bytes
    read: Callable[[bytes], object]
    """Puts the content into its place and reads it as a command would."""


def attempt(reader: Reader, data: bytes) -> str:
    """The error with which a file is refused; empty if it is read.

    Raises AssertionError if the error is not one line, or comes late.
    """
    started = time.process_time()
    said = ""
    try:
        reader.read(data)
    except DeftlyError as error:
        said = str(error)
    assert "\n" not in said, said
    assert len(said) < LONGEST, said[:200]
    assert time.process_time() - started < CPU_SECONDS
    return said


# ------------------------------------------------------------------------ readers


def contracts(root: Path) -> dict[str, Reader]:
    text = fifty.CONTRACT.to_json()
    robot = fifty.CONTRACT.robot.to_json()
    return {
        "contract": Reader(
            "json", text.encode(), lambda data: PolicyContract.from_json(_text(data))
        ),
        "robot": Reader("json", robot.encode(), lambda data: RobotInterface.from_json(_text(data))),
    }


def _text(data: bytes) -> str:
    return data.decode(errors="replace")


def bundles(root: Path) -> dict[str, Reader]:
    folder = fifty.write_bundle(root / "fifty")
    kinds = {
        bundle.NETWORK: "bytes",
        bundle.SPEC: "json",
        bundle.ROBOT: "yaml",
        bundle.GOLDEN: "npz",
        bundle.REPORT: "json",
    }
    found = {name: _part(folder, name, kind) for name, kind in kinds.items()}
    found["checksums.json"] = Reader(
        "json",
        (folder / bundle.MANIFEST).read_bytes(),
        _writing(folder / bundle.MANIFEST, lambda _: bundle.load(folder)),
    )
    return found


def _part(folder: Path, name: str, kind: str) -> Reader:
    """A file of a bundle, whose checksum changes with it."""

    def read(data: bytes) -> None:
        if name == bundle.SPEC:
            data = _canonical(data)
        manifest = json.loads(whole_manifest)
        manifest["files"][name] = hashlib.sha256(data).hexdigest()
        if name == bundle.SPEC:
            manifest["contract"] = manifest["files"][name]
        with (
            _replaced(folder / name, data),
            _replaced(folder / bundle.MANIFEST, json.dumps(manifest).encode()),
        ):
            check._report(bundle.load(folder, verify_golden=False))
            bundle.load(folder)

    whole_manifest = (folder / bundle.MANIFEST).read_bytes()
    return Reader(kind, (folder / name).read_bytes(), read)


def _canonical(data: bytes) -> bytes:
    try:
        return json.dumps(json.loads(data), sort_keys=True, separators=(",", ":")).encode()
    except (ValueError, RecursionError):
        return data


@contextmanager
def _replaced(path: Path, data: bytes) -> Iterator[None]:
    before = path.read_bytes()
    path.write_bytes(data)
    try:
        yield
    finally:
        path.write_bytes(before)


def _writing(path: Path, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    """What reads a file, as a function of its content."""

    def written(data: bytes) -> object:
        before = path.read_bytes() if path.exists() else b""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        try:
            return read(path)
        finally:
            path.write_bytes(before)

    return written


def runs(root: Path) -> dict[str, Reader]:
    """A training, its checkpoint, and what `deftly runs` reads."""
    from deftly import workspace
    from deftly.commands.train import main
    from deftly.config import RunsConfig

    cfg = RunsConfig(root=root)
    words = f"--env.num-envs 4 --train.steps 4 --train.hidden 8 --train.minibatches 2 --runs.root {root}"
    words += " --train.max-iterations 2 --eval-every 0 --tensorboard False --log-level warning"
    main([str(HERE / "rail.py"), *words.split(), "--sim.threads", "1"])
    run = workspace.find_run("latest", None, cfg)
    folder = workspace.find_checkpoint("latest:last", None, cfg)
    report = Path(bundle.SHIPPED / "jaka-pick-cube" / bundle.REPORT).read_bytes()

    def part(name: str, kind: str) -> Reader:
        whole = (folder / name).read_bytes()
        return Reader(kind, whole, lambda data: _read_checkpoint(folder, name, data))

    def resumed(path: Path) -> object:
        from deftly.learn import log as training_log

        writer = training_log.metrics(path, ["iteration", "steps"], 2)
        writer.close()
        return workspace.overview(cfg)

    def table(path: Path) -> None:
        show(workspace.overview(cfg))
        for name in ("latest", run.name[:8]):
            workspace.find_checkpoint(name, None, cfg)

    return {
        "checkpoint.json": part("checkpoint.json", "json"),
        "contract.json": part("contract.json", "json"),
        "config.yaml": part("config.yaml", "yaml"),
        "weights": part("weights.safetensors", "bytes"),
        "state": part("state.safetensors", "bytes"),
        "run.json": Reader(
            "json", (run / "run.json").read_bytes(), _writing(run / "run.json", table)
        ),
        "metrics.csv": Reader(
            "csv", (run / "metrics.csv").read_bytes(), _writing(run / "metrics.csv", resumed)
        ),
        "a link": Reader(
            "bytes", b"deftly.link/1 ../runs_all/x\n", _writing(root / "runs/link", table)
        ),
        "report": Reader("json", report, _writing(root / "eval.json", _read_report)),
    }


def _read_checkpoint(folder: Path, name: str, data: bytes) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    from deftly.learn import checkpoint

    before = (folder / checkpoint.WEIGHTS).read_bytes()
    with _replaced(folder / name, data):
        try:
            if name in checkpoint.TEXTS:
                with safe_open(folder / checkpoint.WEIGHTS, "pt") as file:
                    metadata = {**file.metadata(), name: hashlib.sha256(data).hexdigest()}
                save_file(
                    load_file(folder / checkpoint.WEIGHTS), folder / checkpoint.WEIGHTS, metadata
                )
            found = checkpoint.load(folder)
            found.policy()
            found.state()
            found.known_settings("train", TrainArgs)
            found.unknown_settings("task", TrainArgs)
            str(found.label)
        finally:
            (folder / checkpoint.WEIGHTS).write_bytes(before)


def _read_report(path: Path) -> None:
    from deftly.evaluate import comparison, report

    found = comparison.read_report(path)
    side, lines = comparison.compare(comparison.Side(found), comparison.Side(found))
    show(side, *lines, *report.conclusion(found))


def logs(root: Path) -> dict[str, Reader]:
    """A log of `deftly run`, a recording, and logs for `deftly sysid`."""
    from deftly.commands.record import main as record
    from deftly.sysid import logs

    runs(root)
    recording = root / "recording.npz"
    words = ["--policy", "latest", "--runs.root", str(root), "--episodes", "1"]
    record([str(HERE / "rail.py"), *words, "--out", str(recording)])
    _drive(root / "log.npz")

    def read_log(path: Path) -> None:
        found = log.read(path)
        if len(found):
            show(*inspection.summary(found))
            inspection.replay(found)
            inspection.rows_csv(found)

    def read_recording(path: Path) -> None:
        found = log.read(path)
        frames = replay.Frames(found, 0)
        len(frames)
        replay.open_robot(path, found, str(HERE / "rail.py"))

    time = np.arange(0.0, 8.0, 0.05)
    wave = 0.2 * np.sin(2 * time)[:, None] * np.ones(3)
    arrays = {"hand_cmd": wave, "hand_state": np.roll(wave, 1, 0), "time": time}
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["time_ms", *(f"{kind}_{j}" for kind in ("cmd", "state") for j in "abc")])
    for t, a, b in zip(time, wave, wave):
        writer.writerow([f"{x:.6g}" for x in (1e3 * t, *a, *b)])

    def read_motion(path: Path) -> None:
        logs.read(path, fifty.CONTRACT)

    return {
        "log": Reader("npz", (root / "log.npz").read_bytes(), _writing(root / "a.npz", read_log)),
        "recording": Reader(
            "npz", recording.read_bytes(), _writing(root / "b.npz", read_recording)
        ),
        "motion": Reader("npz", packed(arrays), _writing(root / "c.npz", read_motion)),
        "motion as text": Reader(
            "csv", table.getvalue().encode(), _writing(root / "d.csv", read_motion)
        ),
    }


def _drive(path: Path) -> None:
    """Write the log of a control loop that starts, holds and goes on."""
    contract, now = fifty.CONTRACT, [100.0]
    buffer = log.LogBuffer(contract, 100)
    policy = ContractPolicy(contract, OnnxNetwork(fifty.model(), contract))
    driver = FakeDriver(contract.robot, contract.rate, clock=lambda: now[0])
    kernel = Kernel(contract.robot, contract.rate, SafetyConfig(start_envelope=3.0))
    runner = Runner(policy, kernel, driver, buffer)
    for tick in range(60):
        now[0] += 1 / contract.rate
        if tick in EVENTS:
            getattr(runner, EVENTS[tick])()
        runner.step(now[0])
    buffer.save(path, {"safety": json.dumps(asdict(kernel.cfg)), "faults": "[]"})


def others(root: Path) -> dict[str, Reader]:
    """Settings, grasps, gaits, actuators and keys."""
    from deftly.objects.grasp_cache import Grasps, shipped
    from deftly.recipes.in_hand.gait.gaits import Gaits
    from deftly.robots import actuators
    from deftly.serving import keys
    from deftly.tasks import load

    name = "leap-right-cube-rotate"
    cls = load(name)
    task = cls(cls.Config(start="sample"))
    contract = task.contract()
    with np.load(shipped(name), allow_pickle=False) as cache:
        grasps = {
            key: value[:8] if value.ndim and len(value) > 99 else value
            for key, value in cache.items()
        }
    identified = {
        "schema": actuators.SCHEMA,
        "robot": "toy",
        "joints": {"a": {"kp": {"value": 3.0, "low": 2.0, "high": 4.0}}},
        "delay": {"value": 0.02, "low": 0.0, "high": 0.03},
    }
    keys.new_keys(root / "keys")
    secret = root / "keys/server/server.key_secret"

    def configured(path: Path) -> None:
        tree = read_mapping(path)
        to_yaml(parse(TrainArgs, [], prog="deftly train", filed=tree, origin=str(path)))

    def walked(path: Path) -> None:
        gait = Gaits.load(path, task).timed(None)
        gait.cycle(contract)

    return {
        "settings": Reader(
            "yaml", to_yaml(TrainArgs()).encode(), _writing(root / "settings.yaml", configured)
        ),
        "grasps": Reader(
            "npz",
            packed(grasps),
            _writing(root / "grasps.npz", lambda path: Grasps.load(path, name, contract)),
        ),
        "gait": Reader(
            "npz",
            Path(bundle.SHIPPED / f"{name}.gait.npz").read_bytes(),
            _writing(root / "gait.npz", walked),
        ),
        "actuators": Reader(
            "json",
            json.dumps(identified).encode(),
            _writing(root / "act.json", lambda path: actuators.load(path, "toy", ("a", "b"))),
        ),
        "key": Reader("bytes", secret.read_bytes(), _writing(secret, keys.load_key)),
    }


def packed(arrays: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


# ------------------------------------------------------------------------ damage

ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 0.5, -0.0, 1e-300, 1e308, -1e308, 2**31, 2**63, -(2**63), 2**64, 10**30,
    "", " ", "a", "nan", "inf", "\x1b[2J", "a\nb", "\u202e", "\ud800", "x" * 5000, "../../etc/passwd", "~", "1e999",
    [], {}, [[]], [None], ["a"], {"": None}, [0] * 5000, {"a": {"b": {"c": 1}}},
)  # fmt: skip
TOKENS = [
    "",
    "nan",
    "inf",
    "1e999",
    "-1",
    "0",
    "9" * 400,
    "x",
    '"',
    "a b",
    ",",
    ";;",
    "\x00",
    "²",
    "１",
    "1_0",
]


def damaged(reader: Reader, random: Random) -> bytes:
    """The reader's file with something wrong in it."""
    if random.random() < 0.2:
        return _bytes_damaged(reader.whole, random)
    data = DAMAGE[reader.kind](reader.whole, random)
    return _bytes_damaged(data, random) if random.random() < 0.1 else data


def _bytes_damaged(whole: bytes, random: Random) -> bytes:
    data = bytearray(whole)
    for _ in range(random.choice((1, 1, 2, 5))):
        place = random.randrange(len(data) + 1)
        kind = random.randrange(5)
        if kind == 0 and place < len(data):
            data[place] ^= 1 << random.randrange(8)
        elif kind == 1:
            data[place : place + random.randrange(40)] = b""
        elif kind == 2:
            data[place:place] = bytes(random.randrange(256) for _ in range(random.randrange(9)))
        elif kind == 3:
            data[place:place] = data[random.randrange(len(data) + 1) :][: random.randrange(200)]
        else:
            del data[place:]
    return bytes(data)


def _tree_damaged(tree: Any, random: Random) -> Any:
    """A tree of mappings and lists with one of its branches changed."""
    if isinstance(tree, (dict, list)) and tree and random.random() < 0.85:
        keys = list(tree) if isinstance(tree, dict) else range(len(tree))
        key = random.choice(keys)
        copy: Any = dict(tree) if isinstance(tree, dict) else list(tree)
        kind = random.random()
        if kind < 0.1:
            del copy[key]
        elif kind < 0.2 and isinstance(copy, dict):
            copy[random.choice(("extra", "", "schema", str(key) + "x"))] = random.choice(ODD)
        elif kind < 0.2:
            copy += copy
        else:
            copy[key] = _tree_damaged(tree[key], random)
        return copy
    return random.choice(ODD)


def _json_damaged(whole: bytes, random: Random) -> bytes:
    text = json.dumps(_tree_damaged(json.loads(whole), random))
    kind = random.random()
    if kind < 0.05:
        text = text.replace('"', "'", 1)
    elif kind < 0.1:
        text = "[" * random.choice((50, 100, 50_000)) + text
    elif kind < 0.15:
        text = text.replace(
            ": ", f": {random.choice(('NaN', '1e999', '-Infinity', '9' * 5000))}, ", 1
        )
    elif kind < 0.2:
        numbers = [place for place, letter in enumerate(text) if letter in "0123456789"]
        if numbers:
            place = random.choice(numbers)
            text = text[:place] + random.choice(("1e999", "9" * 5000, "-")) + text[place + 1 :]
    return text.encode(errors="surrogatepass")


def _yaml_damaged(whole: bytes, random: Random) -> bytes:
    tree = _tree_damaged(yaml.safe_load(whole), random)
    try:
        text = yaml.safe_dump(tree, allow_unicode=True)
    except (ValueError, yaml.YAMLError):  # of surrogates
        text = "a: [1"
    kind = random.random()
    lines = text.splitlines()
    place = random.randrange(len(lines) + 1)
    if kind < 0.2:
        odd = (
            "  - ",
            "&a [*a]",
            "<<: *b",
            "!!python/name:os.system x",
            "? : ?",
            "%",
            "\t",
            "- - -",
            ".inf",
            ".nan",
        )
        lines.insert(place, random.choice(odd))
    elif kind < 0.3 and lines:
        lines.append(random.choice(lines))
    return "\n".join(lines).encode(errors="replace")


def _npz_damaged(whole: bytes, random: Random) -> bytes:
    with np.load(io.BytesIO(whole), allow_pickle=False) as found:
        arrays = dict(found.items())
    for _ in range(random.choice((1, 1, 2))):
        name = random.choice(list(arrays))
        arrays[name] = _array_damaged(arrays[name], random)
        if random.random() < 0.1:
            del arrays[name]
        elif random.random() < 0.1:
            arrays[random.choice(("extra", "row/extra", "fact/extra", "snapshot/x"))] = np.zeros(3)
    return packed(arrays) if arrays else b""


def _array_damaged(array: np.ndarray, random: Random) -> np.ndarray:
    if array.dtype.kind == "U" and array.ndim == 0 and random.random() < 0.6:
        return _text_damaged(array, random)
    kind = random.randrange(10)
    if kind == 0:
        dtypes = ("U3", "S3", "?", "c16", "i1", "u8", "f2", "M8[s]", "m8[ns]", "V3", "U0", ">f8")
        return np.zeros(array.shape, random.choice(dtypes))
    if kind == 1:
        return np.zeros(array.shape, [("a", "f8"), ("b", "U2")])
    if kind == 2:
        return array.reshape(-1)[:1].reshape(()) if array.size else np.zeros(())
    if kind == 3:
        return array[None]
    if kind == 4 and array.ndim:
        return array[: random.choice((0, 1, -1))]
    if kind == 5 and array.ndim > 1:
        return array.swapaxes(0, -1)
    if kind == 6 and array.ndim:
        return np.concatenate((array, array))
    if array.size and array.dtype.kind in "fiu":
        return _number_damaged(array, random)
    return np.array(random.choice(("", "a", "\x1b[2J", "[" * 3000, "x" * 5000)))


def _text_damaged(array: np.ndarray, random: Random) -> np.ndarray:
    text = str(array)
    try:
        changed = _json_damaged(text.encode(), random).decode(errors="replace")
    except (ValueError, RecursionError):  # it is none, or was damaged before
        changed = random.choice(("", "a", "\x1b[2J", "[" * 100_000, "x" * 100_000))
    return np.array(changed.replace("\x00", "?"))


def _number_damaged(array: np.ndarray, random: Random) -> np.ndarray:
    odd = (np.nan, np.inf, -np.inf, 0.0, -1.0, 1e-30, 1e30, 1e300, 1e9, 2.0**40)
    copy = array.copy()
    place = random.randrange(array.size) if random.random() < 0.7 else slice(None)
    with np.errstate(all="ignore"):
        copy.reshape(-1)[place] = np.array(random.choice(odd)).astype(array.dtype)
    return copy


def _csv_damaged(whole: bytes, random: Random) -> bytes:
    rows = [line.split(",") for line in whole.decode().splitlines()]
    for _ in range(random.choice((1, 1, 3))):
        row = random.choice(rows[:3]) if random.random() < 0.5 else random.choice(rows)
        kind = random.randrange(6)
        if kind == 0 and row:
            row[random.randrange(len(row))] = random.choice(TOKENS)
        elif kind == 1:
            row.append(random.choice(TOKENS))
        elif kind == 2 and row:
            del row[random.randrange(len(row))]
        elif kind == 3:
            del rows[random.randrange(len(rows)) :]
            rows = rows or [[]]
        elif kind == 4:
            rows.append(row * random.choice((1, 2, 500)))
        else:
            random.shuffle(row)
    text = random.choice(("\n", "\n", "\r\n", "\r", "\n\n", "\u2028")).join(map(",".join, rows))
    return text.encode(errors="replace")


DAMAGE = {
    "json": _json_damaged,
    "yaml": _yaml_damaged,
    "npz": _npz_damaged,
    "csv": _csv_damaged,
    "bytes": _bytes_damaged,
}


GROUPS = {
    contracts: ("contract", "robot"),
    bundles: (
        *("policy.onnx", "policy_spec.json", "robot_config.yaml", "golden.npz", "eval.json"),
        "checksums.json",
    ),
    runs: (
        *("checkpoint.json", "contract.json", "config.yaml", "weights", "state", "run.json"),
        *("metrics.csv", "a link", "report"),
    ),
    logs: ("log", "recording", "motion", "motion as text"),
    others: ("settings", "grasps", "gait", "actuators", "key"),
}
"""What makes readers, in a folder of its own, and their names."""
