"""Logs as people have them: units of time, gaps, the LEAP API's convention, CSV."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from deftly import tasks
from deftly.errors import DeftlyError
from deftly.sysid import logs
from deftly_bench import sysid as trials


@pytest.fixture(scope="module")
def contract():
    cls = tasks.load(trials.TASK)
    return cls(cls.Config()).contract()


@pytest.fixture
def arrays(contract):
    """12 s of all joints about their middles, at 20 Hz."""
    time = np.arange(240) / 20
    lower = np.array([joint.lower for joint in contract.joints])
    upper = np.array([joint.upper for joint in contract.joints])
    phase = 2 * np.pi * (0.5 * time[:, None] + np.linspace(0, 1, len(lower)))
    cmd = (lower + upper) / 2 + 0.4 * (upper - lower) * np.sin(phase)
    state = np.concatenate((cmd[:1], cmd[:-1]))
    return {"hand_cmd": cmd, "hand_state": state, "time": time}


def save(folder, arrays):
    path = folder / "log.npz"
    np.savez(path, **arrays)
    return path


def write_csv(path, names, columns, delimiter=","):
    rows = [delimiter.join(f"{value:.9g}" for value in row) for row in np.column_stack(columns)]
    path.write_text("\n".join([delimiter.join(names), *rows]) + "\n")
    return path


# --------------------------------------------------------------- time


@pytest.mark.parametrize(("unit", "seconds"), [("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9)])
@pytest.mark.parametrize("start", [0, 1_700_000_000])
def test_units_of_time_stamps_are_recognised(tmp_path, contract, arrays, unit, seconds, start):
    expected = arrays["time"]
    arrays["time"] = np.round((start + expected) / seconds).astype(np.int64)
    tracemalloc.start()
    found = logs.read(save(tmp_path, arrays), contract)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    np.testing.assert_allclose(found.time, expected, atol=1e-6)
    assert f"taken for {unit}: samples every 50 ms" in found.notes[0]
    assert peak < 20e6


@pytest.mark.parametrize("rate", [2.5, 20.0, 50.0, 333.0, 1000.0, 1900.0])
@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_every_rate_has_one_unit(rate, unit):
    stamps = np.arange(100) / rate / logs.TIME_UNITS[unit]
    time, note = logs._time_stamps(Path("log.npz"), stamps, 100)
    np.testing.assert_allclose(time, np.arange(100) / rate)
    assert (unit == "s") == (not note)


@pytest.mark.parametrize("factor", [1e-4, 1e12])
def test_time_stamps_of_no_unit_are_refused(tmp_path, contract, arrays, factor):
    arrays["time"] = arrays["time"] * factor
    with pytest.raises(DeftlyError, match=r"no rate of 2 to 2000 Hz in s, ms, us or ns"):
        logs.read(save(tmp_path, arrays), contract)


def test_coarse_time_stamps_are_said_to_be_coarse(tmp_path, contract, arrays):
    arrays["time"] = (arrays["time"] + 1.7e9).astype(np.float32)
    with pytest.raises(DeftlyError, match="float32 is too coarse"):
        logs.read(save(tmp_path, arrays), contract)


def test_an_hour_is_refused_but_not_an_hours_gap(tmp_path, contract, arrays):
    arrays["time"][120:] += 3600
    found = logs.read(save(tmp_path, arrays), contract)
    assert logs.gaps(found).sum() == 1
    long = {name: np.tile(values.T, 400).T for name, values in arrays.items()}
    long["time"] = np.arange(len(long["time"])) / 20
    with pytest.raises(DeftlyError, match="has 4800 s, but 1800 s at most"):
        logs.read(save(tmp_path, long), contract)


def test_a_gap_is_a_gap_and_no_jitter(tmp_path, contract, arrays):
    arrays["time"][100:] += 3.0
    found = logs.read(save(tmp_path, arrays), contract)
    jitter = logs.jitter(found)
    assert np.flatnonzero(logs.gaps(found)).tolist() == [99]
    assert jitter["gaps"] == 1
    assert jitter["missing"] == pytest.approx(3.05)
    assert jitter["std"] < 1e-9
    assert jitter["longest"] == pytest.approx(0.05)


def test_two_gaps_part_a_log_in_three(tmp_path, contract, arrays):
    arrays["time"][80:] += 3.0
    arrays["time"][160:] += 0.2
    found = logs.read(save(tmp_path, arrays), contract)
    assert np.flatnonzero(logs.gaps(found)).tolist() == [79, 159]
    assert logs.jitter(found)["gaps"] == 2
    assert logs.jitter(found)["missing"] == pytest.approx(3.3)


def test_time_stamps_may_be_text(tmp_path, contract, arrays):
    expected = arrays["time"]
    arrays["time"] = np.array([f"{1.7e12 + 1e3 * t:.3f}" for t in expected])
    found = logs.read(save(tmp_path, arrays), contract)
    np.testing.assert_allclose(found.time, expected, atol=1e-6)
    arrays["time"][3] = "noon"
    with pytest.raises(
        DeftlyError, match=r"'time' must be 240 numbers, s, one a row; it is 240 of"
    ):
        logs.read(save(tmp_path, arrays), contract)


# --------------------------------------------------------------- rows out of order, repeated, not finite


def test_rows_out_of_order_are_sorted(tmp_path, contract, arrays):
    order = np.arange(240)
    order[[10, 11, 150, 153]] = [11, 10, 153, 150]
    path = save(tmp_path, {name: values[order] for name, values in arrays.items()})
    found = logs.read(path, contract)
    np.testing.assert_allclose(found.time, arrays["time"])
    np.testing.assert_allclose(found.state, arrays["hand_state"])
    assert found.notes == ("4 rows were out of order: they are sorted by time",)


def test_two_recordings_in_one_file_are_not_woven_into_one(tmp_path, contract, arrays):
    later = {**arrays, "hand_state": arrays["hand_state"][::-1], "time": arrays["time"] + 0.02}
    both = {name: np.concatenate((arrays[name], later[name])) for name in arrays}
    with pytest.raises(DeftlyError, match=r"row 240, .* are these two recordings"):
        logs.read(save(tmp_path, both), contract)


def test_rows_that_are_there_twice_count_once(tmp_path, contract, arrays):
    rows = np.sort(np.append(np.arange(240), [7, 7, 100]))
    path = save(tmp_path, {name: values[rows] for name, values in arrays.items()})
    found = logs.read(path, contract)
    np.testing.assert_allclose(found.time, arrays["time"])
    np.testing.assert_allclose(found.cmd, arrays["hand_cmd"])
    assert found.notes == ("3 rows are there twice: they are left out once",)


def test_two_samples_of_one_stamp_are_refused(tmp_path, contract, arrays):
    arrays["time"][9] = arrays["time"][8]
    with pytest.raises(DeftlyError, match=r"in row 9, .* two samples have one stamp"):
        logs.read(save(tmp_path, arrays), contract)


@pytest.mark.parametrize(
    ("name", "stamped"),
    [("hand_cmd", True), ("hand_state", True), ("time", True), ("hand_state", False)],
)
def test_rows_that_are_not_finite_are_left_out_and_part_the_log(
    tmp_path, contract, arrays, name, stamped
):
    expected = dict(arrays)
    arrays[name] = arrays[name].copy()
    arrays[name][[7, 100]] = np.nan
    if not stamped:
        del arrays["time"]
    found = logs.read(save(tmp_path, arrays), contract)
    kept = np.delete(np.arange(240), [7, 100])
    np.testing.assert_allclose(found.time, expected["time"][kept])
    np.testing.assert_allclose(found.state, expected["hand_state"][kept])
    assert found.notes == ("2 of 240 rows are not finite: they are left out",)
    assert np.flatnonzero(logs.gaps(found)).tolist() == [6, 98]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("places", [[0], [239], [0, 1, 238, 239]])
def test_stamps_may_be_missing_at_the_ends(tmp_path, contract, arrays, bad, places):
    arrays["time"] = arrays["time"].copy()
    arrays["time"][places] = bad
    found = logs.read(save(tmp_path, arrays), contract)
    np.testing.assert_allclose(found.state, np.delete(arrays["hand_state"], places, 0))
    assert not logs.gaps(found).any()


def test_a_column_without_a_finite_number_is_no_warning(tmp_path, contract, arrays, recwarn):
    arrays["hand_state"][:, 3] = np.inf
    with pytest.raises(DeftlyError, match="is not finite in 240 of 240 rows"):
        logs.read(save(tmp_path, arrays), contract)
    assert not recwarn.list


def test_where_a_row_was_left_out_is_known_in_a_part_of_a_log(tmp_path, contract, arrays):
    arrays["hand_cmd"][:60] = arrays["hand_cmd"][60]
    arrays["hand_state"][[7, 100]] = np.nan
    found = logs.read(save(tmp_path, arrays), contract)
    part = logs.moving(found, [0])
    assert len(part.time) < 220
    place = int(np.flatnonzero(logs.gaps(part))[0])
    assert part.time[place : place + 2] == pytest.approx([4.95, 5.05])


def test_a_joint_that_is_never_finite_is_named(tmp_path, contract, arrays):
    arrays["hand_state"][:, 12] = np.nan
    with pytest.raises(DeftlyError, match=r"'hand_state' is not finite in 240 of 240 rows, .* 12"):
        logs.read(save(tmp_path, arrays), contract)


# --------------------------------------------------------------- the LEAP API's convention


@pytest.mark.parametrize("both", [True, False])
@pytest.mark.parametrize("hardware_order", [True, False])
@pytest.mark.parametrize("units", ["rad", "deg"])
def test_a_log_that_is_flat_at_pi_is_converted(
    tmp_path, contract, arrays, both, hardware_order, units
):
    expected = arrays["hand_state"]
    for name in ("hand_cmd", "hand_state"):
        values = arrays[name]
        if hardware_order:
            values = contract.robot.to_motors(values)
        if both or name == "hand_state":
            values = values + np.pi
        arrays[name] = np.rad2deg(values) if units == "deg" else values
    path = save(tmp_path, arrays)
    found = logs.read(path, contract, hardware_order=hardware_order, units=units)
    np.testing.assert_allclose(found.state, expected, atol=1e-9)
    assert "'hand_state' reads pi where joints are flat" in found.notes[-1]
    assert len(found.notes) == 1 + both


@pytest.mark.parametrize("hardware_order", [True, False])
@pytest.mark.parametrize("units", ["rad", "deg"])
@pytest.mark.parametrize("zero", [0.0, np.pi])
def test_what_a_refusal_says_to_type_works(tmp_path, contract, arrays, hardware_order, units, zero):
    expected = arrays["hand_cmd"]
    for name in ("hand_cmd", "hand_state"):
        values = arrays[name]
        if hardware_order:
            values = contract.robot.to_motors(values)
        values = values + zero
        arrays[name] = np.rad2deg(values) if units == "deg" else values
    path = save(tmp_path, arrays)
    flags = {}
    if units == "deg" or hardware_order:
        with pytest.raises(DeftlyError) as error:
            logs.read(path, contract)
        if "--units deg" in str(error.value):
            flags["units"] = "deg"
        if "--hardware-order True" in str(error.value):
            flags["hardware_order"] = True
    found = logs.read(path, contract, **flags)
    np.testing.assert_allclose(found.cmd, expected, atol=1e-9)


@pytest.mark.parametrize("hardware_order", [True, False])
@pytest.mark.parametrize("zero", [0.0, np.pi])
def test_encoder_ticks_are_recognised_and_read(tmp_path, contract, arrays, hardware_order, zero):
    expected = arrays["hand_state"]
    for name in ("hand_cmd", "hand_state"):
        values = arrays[name]
        if hardware_order:
            values = contract.robot.to_motors(values)
        arrays[name] = np.round((values + zero) * 4096 / (2 * np.pi)).astype(int)
    path = save(tmp_path, arrays)
    with pytest.raises(DeftlyError, match="these look like encoder ticks: add --units ticks"):
        logs.read(path, contract)
    found = logs.read(path, contract, units="ticks", hardware_order=hardware_order)
    np.testing.assert_allclose(found.state, expected, atol=0.0008)


def test_a_log_that_no_convention_explains_is_of_another_robot(tmp_path, contract, arrays):
    arrays["hand_cmd"] += 100.0
    with pytest.raises(DeftlyError, match="the log of another robot"):
        logs.read(save(tmp_path, arrays), contract)


# --------------------------------------------------------------- CSV


def names_of(contract, style):
    joints = contract.joint_names
    return {
        "prefix": ["time", *(f"cmd_{j}" for j in joints), *(f"state_{j}" for j in joints)],
        "units": [
            "Time [ms]",
            *(f"{j} target (deg)" for j in joints),
            *(f"{j} position (deg)" for j in joints),
        ],
        "ticks": [
            "stamp (ms)",
            *(f"{j} goal [ticks]" for j in joints),
            *(f"{j} present [ticks]" for j in joints),
        ],
        "numbers": [
            "timestamp_us",
            *(f"goal_position[{i}]" for i in range(len(joints))),
            *(f"present_position[{i}]" for i in range(len(joints))),
        ],
        "from one": [
            "t",
            *(f"hand_cmd_{i + 1}" for i in range(len(joints))),
            *(f"hand_state_{i + 1}" for i in range(len(joints))),
        ],
    }[style]


@pytest.mark.parametrize(
    ("style", "angle", "second", "delimiter"),
    [
        ("prefix", 1.0, 1.0, ","),
        ("units", np.pi / 180, 1e-3, ";"),
        ("numbers", 1.0, 1e-6, "\t"),
        ("ticks", 2 * np.pi / 4096, 1e-3, "\t"),
        ("from one", 1.0, 1e-3, ","),
    ],
)
def test_a_csv_log_is_the_same_log(tmp_path, contract, arrays, style, angle, second, delimiter):
    columns = [arrays["time"] / second, arrays["hand_cmd"] / angle, arrays["hand_state"] / angle]
    names = names_of(contract, style)
    path = write_csv(tmp_path / "log.csv", names, columns, delimiter)
    for units in ("rad", "deg", "ticks") if style in ("units", "ticks") else ("rad",):
        found = logs.read(path, contract, units=units)
        np.testing.assert_allclose(found.time, arrays["time"], atol=1e-6)
        np.testing.assert_allclose(found.cmd, arrays["hand_cmd"], atol=1e-6)
        np.testing.assert_allclose(found.state, arrays["hand_state"], atol=1e-6)


def csv_lines(contract, arrays):
    path_columns = [arrays["time"], arrays["hand_cmd"], arrays["hand_state"]]
    rows = [[f"{v:.9g}" for v in row] for row in np.column_stack(path_columns)]
    return names_of(contract, "prefix"), rows


@pytest.mark.parametrize("delimiter", [";", "\t", "; "])
def test_a_csv_may_have_decimal_commas(tmp_path, contract, arrays, delimiter):
    names, rows = csv_lines(contract, arrays)
    lines = [delimiter.join(names), *(delimiter.join(row).replace(".", ",") for row in rows)]
    path = tmp_path / "log.csv"
    path.write_text("\n".join(lines))
    found = logs.read(path, contract)
    np.testing.assert_allclose(found.time, arrays["time"], atol=1e-6)
    np.testing.assert_allclose(found.state, arrays["hand_state"], atol=1e-6)


@pytest.mark.parametrize(
    "head",
    [
        "# hand of Monday\n{names}\n",
        "# hand of Monday\n# {names}\n",
        "\ufeff\r\n{names}\r\n",
        '"{quoted}"\n',
        "{names}\ns,{units}\n",
    ],
)
def test_comments_quotes_and_a_line_of_units_may_surround_the_names(
    tmp_path, contract, arrays, head
):
    names, rows = csv_lines(contract, arrays)
    units = ",".join(["rad"] * 32)
    head = head.format(names=",".join(names), quoted='","'.join(names), units=units)
    path = tmp_path / "log.csv"
    path.write_text(head + "\n".join(",".join(row) for row in rows), newline="")
    found = logs.read(path, contract)
    np.testing.assert_allclose(found.state, arrays["hand_state"], atol=1e-6)


def test_a_line_of_units_counts(tmp_path, contract, arrays):
    names, rows = csv_lines(contract, arrays)
    text = [",".join(names), ",".join(["s", *["deg"] * 32]), *(",".join(row) for row in rows)]
    path = tmp_path / "log.csv"
    path.write_text("\n".join(text))
    found = logs.read(path, contract)
    np.testing.assert_allclose(found.state, np.deg2rad(arrays["hand_state"]), atol=1e-6)
    assert "if they are radians, name the columns [rad]" in found.notes[0]


@pytest.mark.parametrize("units", ["deg", "ticks"])
def test_radians_are_not_read_in_other_units(tmp_path, contract, arrays, units):
    """They would be within every limit, and tell nothing."""
    with pytest.raises(DeftlyError, match=rf"are they radians\? Leave --units {units} out"):
        logs.read(save(tmp_path, arrays), contract, units=units)


def test_text_separated_by_spaces_is_read(tmp_path, contract, arrays):
    path = tmp_path / "log.txt"
    columns = [arrays["time"], arrays["hand_cmd"], arrays["hand_state"]]
    np.savetxt(path, np.column_stack(columns), header=" ".join(names_of(contract, "prefix")))
    found = logs.read(path, contract)
    np.testing.assert_allclose(found.state, arrays["hand_state"], atol=1e-6)


@pytest.mark.parametrize("missing", ["", "nan", "NaN", "NA", "null"])
def test_what_is_missing_in_a_csv_is_left_out(tmp_path, contract, arrays, missing):
    names, rows = csv_lines(contract, arrays)
    rows[20][5] = missing
    rows[21] = [missing] * 33
    path = tmp_path / "log.csv"
    path.write_text("\n".join([",".join(names), *(",".join(row) for row in rows)]))
    found = logs.read(path, contract)
    assert len(found.time) == 238
    assert np.flatnonzero(logs.gaps(found)).tolist() == [19]


def test_columns_of_a_csv_are_found_by_name_whatever_their_order(tmp_path, contract, arrays):
    names = [*names_of(contract, "prefix"), *(f"{j}_velocity" for j in contract.joint_names)]
    table = np.column_stack(
        (*(arrays[n] for n in ("time", "hand_cmd", "hand_state")), 9 * arrays["hand_cmd"])
    )
    order = np.random.default_rng(0).permutation(len(names))
    path = write_csv(tmp_path / "log.csv", [names[i] for i in order], [table[:, order]])
    found = logs.read(path, contract)
    np.testing.assert_allclose(found.cmd, arrays["hand_cmd"], atol=1e-6)


def test_numbered_columns_of_a_csv_may_be_the_motors(tmp_path, contract, arrays):
    motors = [contract.robot.to_motors(arrays[name]) for name in ("hand_cmd", "hand_state")]
    path = write_csv(
        tmp_path / "log.csv", names_of(contract, "numbers"), [arrays["time"] * 1e6, *motors]
    )
    found = logs.read(path, contract, hardware_order=True)
    np.testing.assert_allclose(found.state, arrays["hand_state"], atol=1e-6)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "begins without names of columns"),
        ("0.0,1.0,2.0\n0.1,1.0,2.0\n", "begins without names of columns"),
        ("time,cmd_if_mcp\n0,1\n", "no column of cmd of if_rot"),
        ("time,{cmd}\n", "no column of state of if_mcp"),
        ("time,t,{cmd},{state}\n" + "0," * 33 + "0\n", "2 columns of time"),
        ("time,cmd_if_mcp,{cmd},{state}\n" + "0," * 33 + "0\n", "two columns of cmd of 'if_mcp'"),
        ("time,{cmd},{state}\n0,1,2\n", "33 names of columns, but 3 numbers"),
        ("time,{cmd},{state}\n" + "0," * 32 + "x\n", "sample 1 has 'x', which is no number"),
        (
            "time,{cmd},{state}\n" + ("0," * 32 + "0\n") * 2 + "0,1\n",
            "sample 3, '0,1', has 2 numbers",
        ),
        ("time,{cmd},{state} deg\n" + "0," * 32 + "0\n", "name all or none"),
    ],
)
def test_a_bad_csv_is_refused_in_one_line(tmp_path, contract, text, said):
    path = tmp_path / "log.csv"
    cmd = ",".join(f"cmd_{joint}" for joint in contract.joint_names)
    state = ",".join(f"state_{joint}" for joint in contract.joint_names)
    path.write_text(text.format(cmd=cmd, state=state))
    with pytest.raises(DeftlyError) as error:
        logs.read(path, contract)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
