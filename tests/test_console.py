"""What commands print: nothing from outside moves the cursor or makes lines of its own, and long work shows its end."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deftly import console
from deftly.console import (
    Finding,
    Progress,
    clean,
    duration,
    printable,
    progress,
    report,
    show,
    table,
)

EVIL = "ok\x1b[2J\x1b]0;owned\x07\r\nerror: none\u202e\u200b\x9b31m\x00"


@given(st.text())
def test_printable_is_one_short_line(text):
    assert printable(text).isprintable()
    assert len(printable(text * 100)) <= 300
    assert len(printable(text * 100, 20)) <= 20


def test_printable_keeps_what_people_write():
    assert printable("  ein   Würfel, 5 µm\n") == "ein Würfel, 5 µm"
    assert printable("x" * 400) == "x" * 297 + "..."
    assert printable(ValueError("a\nb")) == "a b"


def test_printable_survives_an_object_without_text():
    class Evil:
        def __str__(self):
            raise RuntimeError

    assert printable(Evil()) == "Evil"


def test_clean_keeps_lines_and_spaces():
    assert clean("a  b\n  c\x1b[31m") == "a  b\n  c?[31m"


def test_nothing_that_is_shown_reaches_the_terminal_as_an_escape(capsys):
    show(EVIL, soft_wrap=True)  # which keeps the lines it is given
    assert "\x1b" not in capsys.readouterr().out
    show(table(("what", EVIL), [("cell", EVIL), (EVIL, "cell")]))
    assert report([Finding("name", "warn", EVIL), Finding(EVIL, "fail", "text")]) == 1
    out = capsys.readouterr().out
    assert all(c.isprintable() or c == "\n" for c in out)
    assert "[2J" in out  # harmless without its escape
    assert not any(line.startswith("error:") for line in out.splitlines())


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (7.4, "0:07"), (750, "12:30"), (3723, "1:02:03"), (-1, "0:00")],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


class Clock:
    """A clock that tests set."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_shows_the_time_left_on_a_terminal_and_wipes_it_off():
    clock, stream = Clock(), Terminal()
    with Progress(200, "evaluating", stream, clock) as shown:
        clock.now = 1.0
        shown.advance(10)
        assert not stream.getvalue()  # silent at first
        clock.now = 4.0
        shown.advance(40)
        assert stream.getvalue() == "\r\x1b[Kevaluating: 25%, 0:12 left"
        clock.now = 4.1
        shown.advance(1)
        assert stream.getvalue().count("\r") == 1  # no flicker
        clock.now = 8.0
        shown.reach(100)
        assert stream.getvalue().endswith("evaluating: 50%, 0:08 left")
    assert stream.getvalue().endswith("\r\x1b[K")


def test_progress_is_a_line_each_ten_seconds_elsewhere():
    clock, stream = Clock(), io.StringIO()
    with Progress(100, "fitting", stream, clock) as shown:
        for second in range(1, 36):
            clock.now = float(second)
            shown.advance()
    assert stream.getvalue() == (
        "fitting: 10%, 1:30 left\nfitting: 20%, 1:20 left\nfitting: 30%, 1:10 left\n"
    )


def test_progress_before_anything_is_done_says_how_long_it_took():
    clock, stream = Clock(), io.StringIO()
    with Progress(100, "fitting", stream, clock) as shown:
        clock.now = 12.0
        shown.reach(0)
    assert stream.getvalue() == "fitting: 0%, 0:12 so far\n"


def test_progress_goes_on_without_a_terminal():
    clock, stream = Clock(), io.StringIO()
    with Progress(0, "nothing", stream, clock) as shown:
        stream.close()
        clock.now = 20.0
        shown.advance()


def test_progress_over_items(monkeypatch, capsys):
    clock = Clock()
    monkeypatch.setattr(console.time, "monotonic", clock)
    for item in progress([5.0, 6.0, 7.0], "walking"):
        clock.now += item
    assert clock.now == 18.0
    assert capsys.readouterr().err == "walking: 67%, 0:06 left\n"
    assert list(progress((i for i in range(3)), "counting", total=3)) == [0, 1, 2]
