"""The messages: whatever bytes come, a message or a WireError; arrays come back as they went."""

from contextlib import suppress

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from toy_robot import CONTRACT, signals

from deftly.console import printable
from deftly.serving import openpi_wire
from deftly.serving.wire import (
    MAX_FRAME,
    MAX_LIST,
    WireError,
    pack,
    read_array,
    read_signals,
    unpack,
)

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=9)
    | st.binary(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4)
    ),
    max_leaves=12,
)
arrays = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["<f4", "<f8", "<i4", "|O", ">f4", None, 3, []]) | plain,
        "shape": st.lists(st.integers(-1, 4), max_size=2) | plain,
        "data": st.binary(max_size=40) | plain,
    },
)


@settings(max_examples=200)
@given(st.binary(max_size=200) | plain.map(msgpack.packb))
def test_any_bytes_are_a_message_or_a_wire_error(frame):
    with suppress(WireError):
        assert all(isinstance(key, str) for key in unpack(frame))


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (b"\xc1", "a byte in it (0xc1) means nothing"),
        (b"\x81\xa1a\xc1", "a byte in it (0xc1) means nothing"),
        (b"\x91" * 3000, "lists and maps in it are nested too deeply"),
        (b"\x81\xa1a" * 3000, "lists and maps in it are nested too deeply"),
        (b"\x80\x80", "unpack(b) received extra data."),
    ],
)
def test_bytes_that_are_no_msgpack_say_why(frame, reason):
    for read in (unpack, lambda data: openpi_wire.unpack(data, len(data))):
        with pytest.raises(WireError) as error:
            read(frame)
        assert str(error.value) == f"message is no msgpack: {reason}"


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\x81\xa1a",  # truncated
        b"\x81\x01\x02",  # a number as key
        b"\x81\xc4\x01a\x02",  # bytes as key
        b"\x81\xa1\xff\x02",  # no UTF-8
        b"\x80\x80",  # two messages
        b"\x90",
        msgpack.packb({"a": msgpack.ExtType(4, b"abcd")}),
        msgpack.packb({"a": msgpack.Timestamp(1, 1)}),
        b"\x91" * 60_000,  # deep
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        msgpack.packb({"a": [0] * (MAX_LIST + 1)}),
        bytes(MAX_FRAME + 1),
    ],
    ids=lambda frame: frame[:6].hex(),
)
def test_what_is_no_message(frame):
    with pytest.raises(WireError) as error:
        unpack(frame)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 200


def test_a_bomb_of_nested_lists_costs_little():
    """Each header claims 60000 elements: unbounded, msgpack sets half a gigabyte aside for these 5 kB."""
    import tracemalloc

    tracemalloc.start()
    with pytest.raises(WireError):
        unpack(b"\xdd\x00\x00\xea\x60" * 1000 + bytes(60_000))
    with pytest.raises(WireError):
        unpack((b"\xdd" + MAX_LIST.to_bytes(4, "big")) * 1000 + bytes(60_000))
    assert tracemalloc.get_traced_memory()[1] < 10e6
    tracemalloc.stop()


@given(
    hnp.arrays(
        st.sampled_from([np.float32, np.float64]),
        st.integers(0, 40),
        elements=st.floats(-(2.0**99), 2.0**99, width=32),
    )
)
def test_arrays_come_back(array):
    message = unpack(pack({"x": array, "y": array.tolist()}))
    for value in message.values():
        again = read_array(value, len(array), "x")
        assert again.dtype == np.float32
        assert np.array_equal(again, array.astype(np.float32))


def test_only_floating_arrays_are_sent():
    for value in (np.arange(3), np.array(["a"]), np.array([None]), object()):
        with pytest.raises(TypeError, match="cannot send"):
            pack({"x": value})


@settings(max_examples=200)
@given(arrays | plain, st.integers(0, 3))
def test_any_value_is_an_array_or_a_wire_error(value, size):
    with suppress(WireError):
        array = read_array(value, size, "x")
        assert array.shape == (size,)
        assert array.dtype == np.float32
        assert np.isfinite(array).all()


@pytest.mark.parametrize(
    "value",
    [
        {"dtype": "<f4", "shape": [3], "data": bytes(11)},
        {"dtype": "<f4", "shape": [3], "data": bytes(16)},
        {"dtype": "<f4", "shape": [1, 3], "data": bytes(12)},
        {"dtype": "<f4", "shape": 3, "data": bytes(12)},
        {"dtype": "<f4", "shape": [3], "data": "abcdefghijkl"},
        {"dtype": "|O", "shape": [3], "data": bytes(24)},
        {"dtype": "<i4", "shape": [3], "data": bytes(12)},
        {"shape": [3], "data": bytes(12)},
        [1.0, 2.0],
        [1.0, 2.0, "3"],
        [1.0, 2.0, True],
        [1.0, 2.0, None],
        [[1.0, 2.0, 3.0]],
        [1.0, 2.0, float("nan")],
        [1.0, 2.0, float("inf")],
        [1.0, 2.0, 1e39],  # infinite in float32
        "123",
        None,
        3,
    ],
)
def test_what_is_no_array_of_three(value):
    with pytest.raises(
        WireError, match=r"'x' (is no array of 3 numbers|holds a number that is not finite)"
    ):
        read_array(value, 3, "x")


def test_signals_are_refused_by_name():
    good = unpack(pack({"signals": signals(0)}))["signals"]
    read = read_signals(good, CONTRACT.robot)
    assert all(np.array_equal(read[name], value) for name, value in signals(0).items())
    wrong = {
        "'signals' is no map": None,
        "'cub' is no signal of toy": {**good, "cub": good["cube"]},
        "signal 'cube' is missing": {"joint_pos": good["joint_pos"]},
        "'cube' is no array of 3": {**good, "cube": [1.0]},
        "'joint_pos' holds a number": {**good, "joint_pos": [0.0, 0.0, float("nan")]},
    }
    for message, value in wrong.items():
        with pytest.raises(WireError, match=message):
            read_signals(value, CONTRACT.robot)


@given(st.text())
def test_printable(text):
    assert printable(text).isprintable()
    assert len(printable(text * 100)) <= 300


@pytest.mark.parametrize("packs", [pack, openpi_wire.pack])
def test_arrays_that_do_not_lie_together_in_memory_are_sent_as_they_are(packs):
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    numbers = np.arange(8, dtype="<f8")
    sent = {"image": image[:, ::-1], "turned": image.T, "numbers": numbers[::2], "none": image[:0]}
    found = msgpack.unpackb(packs(sent))
    for name, value in sent.items():
        entries = {str(key).strip("b'"): entry for key, entry in found[name].items()}
        array = np.frombuffer(entries["data"], entries["dtype"]).reshape(entries["shape"])
        np.testing.assert_array_equal(array, value, err_msg=name)


def test_a_message_that_cannot_be_packed_leaves_nothing_in_the_next():
    with pytest.raises(TypeError):
        pack({"first": [1, 2, 3], "second": object()})
    assert unpack(pack({"third": 3})) == {"third": 3}
