"""Whatever is wrong with a file from outside: it is read, or refused in a line, soon. Slow tests fuzz ten minutes."""

import importlib.util
import json
import os
import resource
import subprocess
import sys
import time

import numpy as np
import pytest
import readers
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from readers import attempt, packed

KINDS = [name for names in readers.GROUPS.values() for name in names]
SECONDS = 300 / len(KINDS)
"""For a reader, by hypothesis and by atheris each: ten minutes in all."""
MEMORY = 1 << 20
"""Most memory that a reader may come to take, kB."""


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    found = {}
    for make, names in readers.GROUPS.items():
        made = make(tmp_path_factory.mktemp("readers"))
        assert set(made) == set(names)
        found |= made
    return found


def fuzzed(reader, examples: int, number: int) -> None:
    """Read so many damaged files."""

    @seed(number)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.randoms(use_true_random=False))
    def run(random):
        attempt(reader, readers.damaged(reader, random))

    run()


@pytest.mark.parametrize("name", KINDS)
def test_a_whole_file_is_read_and_a_damaged_one_is_refused_in_a_line(known, name):
    assert attempt(known[name], known[name].whole) == ""
    fuzzed(known[name], 10, 0)


GRASPS = {
    "schema": "deftly.grasps/1",
    "hand": "leap-right",
    "joint_names": ["a"],
    "cube_half": np.ones(1),
    "joint_pos": np.zeros((1, 16)),
    "cube_pose": np.zeros((1, 7)),
}
GAIT = {
    "schema": "deftly.gait/2",
    "joint_names": ["a"],
    "frequency": np.ones(1),
    "shape": np.zeros((1, 5, 16)),
}
DAMAGED = {
    "grasps of one joint's name": (
        "grasps",
        {**GRASPS, "joint_names": "a"},
        "'joint_names' in it is",
    ),
    "grasps of texts": (
        "grasps",
        {**GRASPS, "cube_half": ["x"]},
        "'cube_half' in it is (1,) of <U1",
    ),
    "grasps of one number": ("grasps", {**GRASPS, "cube_half": 1.0}, "not numbers of 1 axes"),
    "grasps of complex numbers": (
        "grasps",
        {**GRASPS, "cube_pose": np.zeros((1, 7), complex)},
        "x128",
    ),
    "grasps of NaN": ("grasps", {**GRASPS, "joint_pos": np.full((1, 16), np.nan)}, "not finite"),
    "grasps of an endless schema": (
        "grasps",
        {**GRASPS, "schema": "x" * 5000},
        "no text, or a long",
    ),
    "a gait of one joint's name": (
        "gait",
        {**GAIT, "joint_names": "a"},
        "'joint_names' in it is no",
    ),
    "a gait of records": (
        "gait",
        {**GAIT, "shape": np.zeros((1, 5, 16), "V3")},
        "not numbers of 3",
    ),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_arrays_of_another_kind_are_named(known, kind):
    name, arrays, reason = DAMAGED[kind]
    assert reason in attempt(known[name], packed(arrays))


@pytest.mark.parametrize("frequency", [0.0, -1.0, 1e-30, 1e30])
def test_a_gait_that_never_ends_is_refused(known, frequency):
    with np.load(readers.bundle.SHIPPED / "leap-right-cube-rotate.gait.npz") as found:
        arrays = {**found, "frequency": np.full_like(found["frequency"], frequency)}
    assert "a gait has 0.01 to 100 Hz" in attempt(known["gait"], packed(arrays))


def edited(reader, **changes) -> bytes:
    """A JSON file with some of its keys changed."""
    return json.dumps({**json.loads(reader.whole), **changes}).encode()


def test_a_checkpoint_without_a_policy_is_refused(known):
    reader = known["checkpoint.json"]
    critic = json.loads(reader.whole)["networks"]["critic"]
    assert "no network 'actor'" in attempt(reader, edited(reader, networks={"critic": critic}))


def test_numbers_beyond_all_floats_are_refused(known):
    huge = edited(known["actuators"], delay={"value": 1, "low": 0, "high": 10**400})
    assert "delay must have the numbers" in attempt(known["actuators"], huge)
    infinite = known["actuators"].whole.replace(b"0.03", b"1e999")
    assert "1e999, which is too large a number" in attempt(known["actuators"], infinite)


def test_a_name_of_another_robot_moves_no_cursor(known):
    said = attempt(known["actuators"], edited(known["actuators"], robot="a\n\x1b[2J"))
    assert said.isprintable()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("settings", "[" * 100_000),
        ("settings", json.dumps({"task": "x", "sim": {}})),
        ("settings", json.dumps({"task": [], "sim": None})),
        ("safety", "[1]"),
        ("seed", np.inf),
        ("seed", -5),
        ("latency_ms", np.nan),
    ],
)
def test_a_recording_of_odd_settings_is_one_line(known, name, change):
    with np.load(readers.io.BytesIO(known["recording"].whole)) as found:
        arrays = {**found, f"fact/{name}": np.array(change)}
    assert attempt(known["recording"], packed(arrays))


@pytest.mark.parametrize("text", [b"", b"nonsense", b"curve\n", b'curve\n    public-key = "x"\n'])
def test_a_key_that_is_none_is_one_line(known, text):
    assert "as a key" in attempt(known["key"], text)


def test_metrics_that_are_no_text_do_not_stop_a_resume(known):
    for data in (
        b"\xff\xfe\n1,2\n",
        b"iteration,steps\n1,\xff\n\n2",
        b"iteration\n\xc2\xb2\n",
        b"\0,",
    ):
        assert attempt(known["metrics.csv"], data) == ""


BOMBS = {
    "many rows": ("metrics.csv", b"iteration,steps\n" + b"1,\n" * 1_000_000),
    "many columns": ("metrics.csv", b"," * 30_000_000),
    "many samples": ("motion as text", b"time,cmd_a\n" + b"1\n" * 5_000_000),
    "many joints": ("motion as text", b"," * 10_000_000),
    "many line ends": ("motion as text", b"\n" * 20_000_000),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_table_that_would_take_gigabytes_is_refused(known, kind):
    name, data = BOMBS[kind]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    attempt(known[name], data)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEMORY


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_files_damaged_at_random_are_read_or_refused(known, name):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    end, number = time.monotonic() + SECONDS, 1
    while time.monotonic() < end:
        fuzzed(known[name], 50, number)
        number += 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEMORY


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="atheris has no wheel for this Python"
)
@pytest.mark.parametrize("name", KINDS)
def test_files_that_coverage_guides_are_read_or_refused(tmp_path, name):
    program = [sys.executable, str(readers.HERE / "fuzz_reader.py"), str(tmp_path), name]
    program.append(f"{SECONDS:.0f}")
    places = [str(readers.HERE), *filter(None, sys.path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
    done = subprocess.run(
        program, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
