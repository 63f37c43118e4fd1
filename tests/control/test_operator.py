"""Operators: a file, a keyboard and a gamepad say the inputs; who is lost is a fault, and says why."""

import dataclasses
import os
import pty
import sys
import termios
from collections import namedtuple

import fifty
import numpy as np
import pytest

from deftly.contract import Input, Observe
from deftly.control import log, operator, session
from deftly.control.drivers import FakeDriver
from deftly.control.loop import Runner
from deftly.control.operator import gamepad, keyboard, open_operator
from deftly.control.operator.gamepad import Gamepad, Pad
from deftly.control.operator.keyboard import Keyboard, split
from deftly.control.operator.timetable import Timetable
from deftly.control.operator.words import OperatorError, Words
from deftly.control.safety import Fault, Kernel, SafetyConfig, State
from deftly.errors import DeftlyError
from deftly.policy.protocol import ContractPolicy

WALK = (
    Input("speed", 1, "m/s", lower=(0.0,), upper=(0.7,)),
    Input("turn", 1, "rad/s", lower=(-0.3,), upper=(0.3,)),
)
GOAL = (
    Input("goal", 2, "m", lower=(-1.0, 0.0), upper=(1.0, 2.0), default=(0.0, 1.0)),
    Input("prompt", dtype="text", text="wait"),
)


def told(*inputs):
    """A contract of a policy that hears these."""
    seen = tuple(Observe(given.name) for given in inputs if not given.is_text)
    terms = (*fifty.CONTRACT.observe_terms, *seen)
    return dataclasses.replace(fifty.CONTRACT, inputs=inputs, observe_terms=terms)


WALKS = told(*WALK)
"""Two speeds, as of a robot on legs."""
REACHES = told(*GOAL)
"""A place and a text, as of a hand or an arm."""


def said(values):
    return {
        name: v if isinstance(v, str) else np.round(v, 6).tolist() for name, v in values.items()
    }


# ------------------------------------------------------------------------ words


def test_what_is_beyond_the_trained_range_is_clipped_and_said_once():
    words = Words(WALKS)
    assert said(words.checked({"speed": 0.9, "turn": [-5]})) == {"speed": [0.7], "turn": [-0.3]}
    first = "speed is 0.9 m/s, but the policy was trained for 0 to 0.7 m/s: clipped"
    second = "turn is -5 rad/s, but the policy was trained for -0.3 to 0.3 rad/s: clipped"
    assert words.take_notes() == [first, second]
    words.checked({"speed": 2.0})
    assert words.take_notes() == []
    goals = Words(REACHES)
    assert said(goals.checked({"goal": [0.5, 9]})) == {"goal": [0.5, 2.0]}
    assert goals.take_notes()[0].startswith("goal[1] is 9 m, but")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"height": 1.0}, "'height' is no input of the policy, which has goal, prompt"),
        ({"goal": 1.0}, "input 'goal' is 1.0, expected 2 finite numbers"),
        ({"goal": [0.0, np.nan]}, "expected 2 finite numbers"),
        ({"goal": [0.0, np.inf]}, "expected 2 finite numbers"),
        ({"goal": "up"}, "input 'goal' is up, expected 2 finite numbers"),
        ({"goal": None}, "expected 2 finite numbers"),
        ({"goal": {}}, "expected 2 finite numbers"),
        ({"prompt": 3}, "input 'prompt' is 3, expected a text"),
        ({"prompt": "x" * 4097}, "input 'prompt' has 4097 characters, at most 4096"),
    ],
)
def test_words_that_are_no_input_are_one_line(values, message):
    with pytest.raises(OperatorError) as caught:
        Words(REACHES).checked(values)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_stick_says_the_default_in_its_middle_and_the_bounds_at_its_ends():
    speed, turn = Words(WALKS).elements
    assert [speed.at(x) for x in (-1, 0, 0.5, 1)] == pytest.approx([0.0, 0.0, 0.35, 0.7])
    assert [turn.at(x) for x in (-1, 0, 1)] == pytest.approx([-0.3, 0.0, 0.3])
    assert (speed.is_rate, Words(REACHES).elements[0].is_rate) == (True, False)


# ------------------------------------------------------------------------ a file of commands

CSV = "time,turn,speed\n0,0,0.3\n\n2.5, 0.1 ,0.3\n4,0,0\n"
YAML = "- {time: 0, speed: 0.3}\n- {time: 2.5, speed: 0.3, turn: [0.1]}\n- {time: 4, speed: 0}\n"


def written(folder, name, text):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(("name", "text"), [("a.csv", CSV), ("a.CSV", CSV), ("a.yaml", YAML)])
def test_a_row_holds_until_the_time_of_the_next(name, text, tmp_path):
    table = open_operator(str(written(tmp_path, name, text)), WALKS)
    assert said(table.hear(100.0, False)) == {"speed": [0.0], "turn": [0.0]}, "before it drives"
    assert said(table.hear(101.0, True)) == {"speed": [0.3], "turn": [0.0]}
    assert said(table.hear(103.4, True)) == {"speed": [0.3], "turn": [0.0]}
    assert said(table.hear(103.5, True)) == {"speed": [0.3], "turn": [0.1]}
    for now in (105.0, 1e6):
        assert said(table.hear(now, True)) == {"speed": [0.0], "turn": [0.0]}
    table.hear(1e6 + 1, False)
    assert said(table.hear(1e6 + 2, True)) == {"speed": [0.3], "turn": [0.0]}, "a start anew"
    assert table.words() == table.notes() == []


def test_a_file_for_a_goal_and_a_prompt(tmp_path):
    text = 'time,goal[1],prompt\n0.5,1.5,"go, now"\n1,2.5,stop\n'
    table = Timetable(written(tmp_path, "a.csv", text), REACHES)
    assert said(table.at(0.0)) == {"goal": [0.0, 1.0]}
    assert said(table.at(0.5)) == {"goal": [0.0, 1.5], "prompt": "go, now"}
    assert said(table.at(9.0)) == {"goal": [0.0, 2.0], "prompt": "stop"}, "a place is held on"
    assert len(table.notes()) == 1
    text = "- {time: 0, goal: [0.5, 1], prompt: go}\n"
    table = Timetable(written(tmp_path, "a.yml", text), REACHES)
    assert said(table.at(0.0)) == {"goal": [0.5, 1.0], "prompt": "go"}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "", "its first line should name the columns, such as time,speed,turn"),
        ("a.csv", "0,0.3,0\n", "its first line should name the columns"),
        ("a.csv", "time,speed\n", "has no commands"),
        ("a.csv", "time,sped\n0,1\n", "has a column 'sped', which is no input"),
        ("a.csv", "time,speed,speed\n0,1,1\n", "has two columns of a name"),
        ("a.csv", "time,speed\n0,0.3\n1\n", "line 3 has 1 values, but there are 2 columns"),
        ("a.csv", "time,speed\n0,fast\n", "line 2: speed is 'fast', expected a finite number"),
        ("a.csv", "time,speed\n0,nan\n", "line 2: speed is 'nan', expected a finite number"),
        ("a.csv", "time,speed\n0,\n", "line 2: speed is '', expected a finite number"),
        ("a.csv", "time,speed\n-1,0\n", "line 2: its time is -1 s, but it must be 0 or more"),
        ("a.csv", "time,speed\n1,0\n1,0\n", "line 3: its time, 1 s, is not after 1 s"),
        (
            "a.csv",
            "time,speed\n0,0.3\n",
            "line 2: speed is not 0 m/s in the last row, which holds on",
        ),
        ("a.csv", b"time,speed\n0,\xff\n", "a file of commands"),
        ("a.csv", b"time,speed\n0,0\x00\n", "a.csv"),
        ("a.csv", "time,speed\n" + "0,0\n" * 100_002, "has more than 100000 rows"),
        ("a.yaml", "speed: 0.3\n", "holds no list: write '- {time: 0, speed: 0}' for each"),
        ("a.yaml", "- [0, 0.3]\n", "row 1 is [0, 0.3], expected {time: 0, speed: 0}"),
        ("a.yaml", "- {speed: 0.3}\n", "row 1 is "),
        ("a.yaml", "- {time: true, speed: 0}\n", "row 1: time is 'True', expected a finite number"),
        ("a.yaml", "- {time: 0, sped: 0}\n", "row 1: 'sped' is no input of the policy"),
        ("a.yaml", "- {time: 0, speed: [1, 2]}\n", "row 1: input 'speed' is [1, 2], expected"),
        ("a.yaml", "- {time: 0, speed: 0}\n- {time: 0, speed: 0}\n", "row 2: its time, 0 s"),
        ("a.yaml", "- {time: 0, speed: 0.5}\n", "row 1: speed is not 0 m/s in the last row"),
        ("a.yaml", "- {time: 0, speed: 0", "a file of commands"),
        ("a.yaml", "", "holds no list"),
    ],
)
def test_a_file_that_is_none_is_one_line_that_names_the_row(name, text, message, tmp_path):
    path = written(tmp_path, name, text)
    with pytest.raises(DeftlyError) as caught:
        Timetable(path, WALKS)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_none_at_all_are_one_line(tmp_path):
    os.mkfifo(tmp_path / "a.csv")
    for path in (tmp_path / "a.csv", tmp_path / "none.yaml", tmp_path):
        with pytest.raises(DeftlyError) as caught:
            Timetable(path, WALKS)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "spec", ["mouse", "joystick:/dev/input/js0", "commands.txt", "", "KEYBOARD"]
)
def test_what_names_no_operator_is_refused(spec):
    with pytest.raises(OperatorError, match="keyboard, gamepad, or a file of commands"):
        open_operator(spec, WALKS)


def test_a_policy_without_inputs_has_no_operator(tmp_path):
    with pytest.raises(OperatorError, match="the policy has no inputs"):
        open_operator(str(written(tmp_path, "a.csv", CSV)), fifty.CONTRACT)


# ------------------------------------------------------------------------ a keyboard


@pytest.fixture
def typing(monkeypatch):
    """A keyboard on a terminal of its own, and what types on it."""
    ours, theirs = pty.openpty()
    monkeypatch.setattr(session.sys, "stdin", open(theirs, closefd=False))  # noqa: SIM115
    made = []

    def keys(contract=WALKS):
        made.append(Keyboard(contract))
        return made[-1], lambda text: os.write(ours, text.encode())

    yield keys
    for each in made:
        each.close()
    os.close(theirs)
    os.close(ours)


UP, DOWN, RIGHT, LEFT = (f"\x1b[{end}" for end in "ABCD")


def test_arrows_change_the_command_at_once_and_stop_at_its_bounds(typing):
    board, press = typing()
    press(UP + UP + "\x1bOA" + LEFT)
    assert board.read() == []
    assert said(board.hear(1.0, True)) == {"speed": [0.21], "turn": [0.06]}
    press(UP * 20 + RIGHT * 20)
    board.read()
    assert said(board.hear(1.5, True)) == {"speed": [0.7], "turn": [-0.3]}
    press(DOWN + "0")
    board.read()
    assert said(board.hear(1.6, True)) == {"speed": [0.0], "turn": [0.0]}


def test_without_a_key_what_moves_the_robot_rests_after_a_second(typing):
    board, press = typing()
    press(UP)
    board.read()
    assert said(board.hear(10.0, True))["speed"] == [0.07]
    assert said(board.hear(10.9, True))["speed"] == [0.07]
    press(" ")
    board.read()
    assert said(board.hear(10.95, True))["speed"] == [0.07], "space is the dead-man switch"
    assert said(board.hear(11.9, True))["speed"] == [0.07]
    assert said(board.hear(11.96, True))["speed"] == [0.0]
    press(UP)
    board.read()
    assert said(board.hear(12.0, False))["speed"] == [0.0], "nothing is kept for the start"


def test_a_place_stays_where_it_was_put(typing):
    board, press = typing(REACHES)
    press(UP + DOWN * 3 + RIGHT)
    board.read()
    assert said(board.hear(1.0, True)) == {"goal": [-0.4, 0.8]}
    assert said(board.hear(99.0, False)) == {"goal": [-0.4, 0.8]}


def test_tab_takes_the_next_two_numbers(typing):
    board, press = typing(told(Input("pose", 3, "rad")))
    press(UP + "\t" + UP + LEFT + "\t" + LEFT)
    assert board.read() == []
    assert said(board.hear(0.0, True)) == {"pose": [0.2, 0.2, 0.2]}


def test_any_other_key_holds_and_the_sessions_need_no_enter(typing):
    board, press = typing()
    press("srqhSx\n\x04\x1b[5~" + UP)
    assert board.read() == ["s", "r", "q", "h", "S", "h", "h", "h", "h"]
    press("\x1b")
    assert board.read() == [], "it may be the beginning of an arrow"
    assert board.read() == ["h"]
    press("\x1b[")
    assert board.read() == []
    press("A")
    assert board.read() == []
    assert said(board.hear(0.0, True))["speed"] == [0.14]


def test_keys_are_split_whatever_comes():
    assert split(b"a\x1b[1;5Ab", False) == (["a", "\x1b[1;5A", "b"], b"")
    assert split(b"\x1b[" + b"1" * 40, False)[0][0] == "\x1b"
    assert split("ü".encode(), False)[1] == b""
    rng = np.random.default_rng(0)
    for _ in range(300):
        data = bytes(rng.choice([27, 91, 79, 65, 126, 49, 10, 200], 12).tolist())
        keys, rest = split(data, True)
        assert rest == b""
        assert keys
        assert len(split(data, False)[1]) < 16


def test_a_terminal_that_is_lost_holds_and_is_not_heard_any_more(monkeypatch):
    ours, theirs = pty.openpty()
    monkeypatch.setattr(session.sys, "stdin", open(theirs, closefd=False))  # noqa: SIM115
    board = Keyboard(WALKS)
    assert board.hear(0.0, True) is not None
    os.close(ours)
    assert board.read() == ["h"]
    assert board.hear(0.1, True) is None
    board.close()
    os.close(theirs)


def test_the_terminal_is_given_back_as_it_was(typing, monkeypatch):
    fd = session.sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    board, _ = typing()
    assert termios.tcgetattr(fd)[3] & (termios.ICANON | termios.ECHO) == 0
    board.close()
    assert termios.tcgetattr(fd) == before


def test_a_keyboard_needs_a_terminal(monkeypatch):
    monkeypatch.setattr(session.sys, "stdin", None)
    with pytest.raises(OperatorError, match="--operator keyboard needs a terminal"):
        open_operator("keyboard", WALKS)


# ------------------------------------------------------------------------ a gamepad

Event = namedtuple("Event", "type code value")
Info = namedtuple("Info", "value min max")


class Device:
    """Stands in for `evdev.InputDevice`: sticks from 0 to 255, and a pipe that wakes who waits for it."""

    name = "pad"
    AXES = (gamepad.ABS_X, gamepad.ABS_Y, gamepad.ABS_RX, gamepad.ABS_RY)

    def __init__(self):
        self.fd, self._wake = os.pipe()
        os.set_blocking(self.fd, False)
        self.values = dict.fromkeys(self.AXES, 128)
        self.keys: set[int] = set()
        self.events: list[Event] = []
        self.gone = False
        self.closed = False

    def capabilities(self):
        return {
            gamepad.EV_KEY: [gamepad.BTN_GAMEPAD],
            gamepad.EV_ABS: [(a, None) for a in self.AXES],
        }

    def absinfo(self, axis_num):
        self._require()
        return Info(self.values[axis_num], 0, 255)

    def active_keys(self):
        self._require()
        return sorted(self.keys)

    def read(self):
        self._require()
        os.read(self.fd, 4096)
        events, self.events = self.events, []
        return iter(events)

    def close(self):
        if not self.closed:
            self.closed = True
            os.close(self.fd)
            os.close(self._wake)

    def _require(self):
        if self.gone:
            raise OSError(19, "No such device")

    def do(self, *events):
        """Something happens to it."""
        for kind, code, value in events:
            if kind == gamepad.EV_ABS:
                self.values[code] = value
            elif kind == gamepad.EV_KEY:
                (self.keys.add if value else self.keys.discard)(code)
        self.events += [Event(*event) for event in events]
        os.write(self._wake, b"x")


def stick(axis, value):
    return gamepad.EV_ABS, axis, value


def button(code, value=1):
    return gamepad.EV_KEY, code, value


HELD = button(gamepad.BTN_TR)


def test_sticks_count_only_while_the_dead_mans_switch_is_held():
    device = Device()
    pad = Pad(device)
    pad.take(Event(*stick(gamepad.ABS_Y, 0)))
    pad.take(Event(*stick(gamepad.ABS_X, 255)))
    assert pad.sticks == [0.0] * 6
    pad.take(Event(*HELD))
    assert pad.sticks == pytest.approx([1.0, -1.0, 0.0, 0.0, 0.0, 0.0]), "up and left are positive"
    pad.take(Event(*stick(gamepad.ABS_Y, 138)))
    assert pad.sticks[0] == 0.0, "about its middle"
    pad.take(Event(*button(gamepad.BTN_TR, 0)))
    assert pad.sticks == [0.0] * 6
    device.close()


def test_events_that_the_system_dropped_are_looked_up():
    device = Device()
    pad = Pad(device)
    pad.take(Event(*HELD))
    pad.take(Event(*stick(gamepad.ABS_Y, 0)))
    device.values[gamepad.ABS_Y] = 255
    pad.take(Event(gamepad.EV_SYN, gamepad.SYN_DROPPED, 0))
    assert pad.held == set(), "its release was among them"
    device.keys.add(gamepad.BTN_TL)
    pad.take(Event(gamepad.EV_SYN, gamepad.SYN_DROPPED, 0))
    assert pad.sticks[0] == -1.0
    device.close()


def test_a_pad_with_an_axis_of_no_width_and_odd_events():
    device = Device()
    device.absinfo = lambda axis_num: Info(0, 0, 0)
    pad = Pad(device)
    for event in ((99, 5, 1), stick(77, 3), button(9999), button(gamepad.BTN_TR, 2), button(5, 0)):
        pad.take(Event(*event))
    assert pad.sticks == [0.0] * 6
    assert pad.pressed == []
    device.close()


class Padded:
    """A gamepad on a device that stands in, with what a test waits for."""

    def __init__(self, contract=WALKS):
        self.devices = [Device()]
        self.missing = False
        self.now = 0.0
        self.pad = Gamepad(contract, "", self.find)

    def find(self, path):
        if self.missing:
            raise OperatorError("no gamepad")
        return self.devices[-1]

    def until(self, holds, driving=True, step=0.0):
        """Ask, time going on by `step`, until what is heard is as it should be; gives up after half a minute or so."""
        for _ in range(6000):
            self.now += step
            heard = self.pad.hear(self.now, driving)
            if holds(heard):
                return heard
            self.pad._ends.wait(0.005)
        raise AssertionError("it was never so")

    def close(self):
        self.pad.close()
        for device in self.devices:
            device.close()


@pytest.fixture
def padded():
    made = []

    def make(contract=WALKS):
        made.append(Padded(contract))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_a_gamepad_says_speeds_by_its_sticks(padded):
    operator = padded()
    device = operator.devices[0]
    device.do(HELD, stick(gamepad.ABS_Y, 0), stick(gamepad.ABS_X, 0))
    heard = operator.until(lambda heard: heard and heard["speed"][0] > 0)
    assert said(heard) == {"speed": [0.7], "turn": [0.3]}
    heard = operator.until(lambda heard: heard, driving=False)
    assert said(heard) == {"speed": [0.0], "turn": [0.0]}
    device.do(stick(gamepad.ABS_Y, 255))
    operator.until(lambda heard: heard and heard["speed"][0] == 0.0)
    device.do(stick(gamepad.ABS_Y, 0), button(gamepad.BTN_TR, 0))
    operator.until(lambda heard: heard and heard["turn"][0] == 0.0)


def test_its_buttons_are_the_sessions_keys(padded):
    operator = padded()
    operator.devices[0].do(*(button(code) for code in gamepad.BUTTONS), button(gamepad.BTN_GAMEPAD))
    asked = []
    operator.until(lambda heard: asked.extend(operator.pad.words()) or len(asked) >= 3)
    assert asked == ["s", "h", "r"]


def test_a_place_moves_by_a_stick_and_stays_without_it(padded):
    operator = padded(REACHES)
    device = operator.devices[0]
    device.do(HELD, stick(gamepad.ABS_Y, 0))
    heard = operator.until(lambda heard: heard and heard["goal"][0] > 0.05, step=0.02)
    assert heard["goal"][1] == 1.0
    device.do(button(gamepad.BTN_TR, 0))
    for _ in range(5):
        place = operator.until(lambda heard: heard, step=0.02)["goal"]
    assert operator.until(lambda heard: heard, step=5.0)["goal"].tolist() == place.tolist()
    device.do(HELD)
    heard = operator.until(lambda heard: heard and heard["goal"][0] == 1.0, step=0.1)
    assert heard["goal"].tolist() == [1.0, 1.0], "no further than its bound"


def test_a_gamepad_that_is_gone_is_not_heard_until_it_is_back(padded):
    operator = padded()
    first = operator.devices[0]
    first.do(HELD, stick(gamepad.ABS_Y, 0))
    operator.until(lambda heard: heard and heard["speed"][0] > 0)
    operator.missing = first.gone = True
    notes = []
    operator.until(lambda heard: heard is None and (notes.extend(operator.pad.notes()) or notes))
    assert notes == ["the gamepad is gone: [Errno 19] No such device"]
    assert operator.pad.hear(1.0, True) is None
    assert first.closed
    operator.devices.append(Device())
    operator.missing = False
    heard = operator.until(lambda heard: heard)
    assert said(heard) == {"speed": [0.0], "turn": [0.0]}, "no button is held on it yet"
    assert operator.pad.notes() == ["the gamepad is back"]


def test_numbers_without_a_stick_are_named(padded):
    operator = padded(told(Input("pose", 8, "rad")))
    assert operator.pad.notes() == [
        "the gamepad has no stick for pose[6], pose[7]: it stays at its default"
    ]


def test_a_gamepad_that_cannot_be_had_is_one_line(monkeypatch):
    def refused(path):
        raise PermissionError(13, "Permission denied")

    with pytest.raises(OperatorError, match="cannot read /dev/input/event3: Permission denied"):
        Gamepad(WALKS, "/dev/input/event3", refused)
    monkeypatch.setitem(sys.modules, "evdev", None)
    with pytest.raises(OperatorError, match="a gamepad needs evdev: pip install"):
        open_operator("gamepad", WALKS)


def test_the_first_gamepad_is_found_by_what_it_can_do(monkeypatch):
    """Among a mouse, a keyboard, and a device that may not be read."""

    class Mouse(Device):
        def capabilities(self):
            return {gamepad.EV_KEY: [272], gamepad.EV_ABS: []}

    devices = {"/dev/input/event2": Mouse(), "/dev/input/event5": Device()}

    class Evdev:
        @staticmethod
        def list_devices():
            return ["/dev/input/event5", "/dev/input/event1", "/dev/input/event2"]

        @staticmethod
        def InputDevice(path):
            if path not in devices:
                raise PermissionError(13, "Permission denied")
            return devices[path]

    monkeypatch.setitem(sys.modules, "evdev", Evdev)
    assert gamepad.find_gamepad("") is devices["/dev/input/event5"]
    assert devices["/dev/input/event2"].closed
    with pytest.raises(OperatorError, match="/dev/input/event2 is no gamepad"):
        gamepad.find_gamepad("/dev/input/event2")
    monkeypatch.setattr(Evdev, "list_devices", list)
    with pytest.raises(OperatorError, match="no gamepad in /dev/input"):
        gamepad.find_gamepad("")
    devices["/dev/input/event5"].close()


# ------------------------------------------------------------------------ in a session


class Person:
    """An operator who says and presses what a test wants."""

    starts, hint = True, "says things"

    def __init__(self):
        self.says: dict | None = {"speed": 0.3}
        self.asks: list[str] = []
        self.driven: list[bool] = []

    def hear(self, now, driving):
        self.driven.append(driving)
        return self.says

    def words(self):
        asked, self.asks = self.asks, []
        return asked

    def notes(self):
        return []

    def close(self):
        pass


def in_session(person, monkeypatch, folder):
    """A session in simulated time, nobody at a terminal; its tick gives the state after each."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(session.sys, "stdin", None)
    clock = [100.0]
    kernel = Kernel(WALKS.robot, WALKS.rate, SafetyConfig(start_envelope=3.0))
    driver = FakeDriver(WALKS.robot, WALKS.rate, clock=lambda: clock[0])
    seen = []

    def network(obs):
        seen.append(obs[0, -2:].tolist())
        return np.zeros((1, 3), np.float32)

    buffer = log.LogBuffer(WALKS, 200)
    runner = Runner(ContractPolicy(WALKS, network), kernel, driver, buffer)
    made = session.Session(runner, buffer, {}, operator=person)
    made.ticker.lap = lambda: clock[0]

    def tick():
        clock[0] += 1 / WALKS.rate
        assert made.each(runner.step(clock[0]))
        return kernel.state

    return made, tick, seen


def ended(made):
    made.screen.close()
    for thread in made._dumps:
        thread.join()


def test_an_operator_starts_speaks_and_holds_without_a_terminal(monkeypatch, tmp_path):
    person = Person()
    made, tick, seen = in_session(person, monkeypatch, tmp_path)
    states = [tick() for _ in range(4)]
    assert states[-1] is State.READY, "it waits for him"
    person.asks = ["s"]
    assert [tick(), tick()] == [State.ACTIVE] * 2
    person.says = {"speed": 0.5, "turn": -0.1}
    tick()
    tick()
    assert seen[-1] == pytest.approx([0.5, -0.1])
    assert made.buffer.rows()["input/speed"][-1] == 0.5
    person.asks = ["h"]
    assert tick() is State.HOLD
    assert person.driven[0] is False
    assert person.driven[-2] is True
    assert "speed 0.50, turn -0.10" in made.status()
    ended(made)


def test_an_operator_who_is_lost_is_a_fault_until_he_is_back(monkeypatch, tmp_path):
    person = Person()
    made, tick, seen = in_session(person, monkeypatch, tmp_path)
    person.asks = ["s"]
    for _ in range(3):
        tick()
        person.asks = person.asks or ["s"]
    person.says, person.asks = None, []
    silent = 0
    while tick() is State.ACTIVE:
        silent += 1
    limit = made.runner.kernel.cfg.input_s * WALKS.rate
    assert limit - 2 <= silent <= limit + 2
    assert made.runner.kernel.fault is Fault.INPUT_STALE
    asked = len(seen)
    tick()
    assert len(seen) == asked, "no policy is asked any more"
    person.says = {"speed": 0.0}
    person.asks = ["r"]
    states = [tick() for _ in range(4)]
    assert states[-1] is State.READY
    person.asks = ["s"]
    tick()
    assert tick() is State.ACTIVE
    ended(made)


def test_an_operator_who_is_never_heard_is_missed_too(monkeypatch, tmp_path):
    person = Person()
    person.says, person.asks = None, []
    made, tick, _ = in_session(person, monkeypatch, tmp_path)
    states = [tick() for _ in range(4)]
    person.asks = ["s"]
    states += [tick() for _ in range(40)]
    assert State.ACTIVE in states
    assert states[-1] is State.HOLD
    assert made.runner.kernel.fault is Fault.INPUT_STALE
    ended(made)


def test_a_command_beyond_the_range_is_clipped_said_once_and_drives(monkeypatch, tmp_path):
    person = Person()
    person.says, person.asks = {"speed": 5.0}, []
    made, tick, seen = in_session(person, monkeypatch, tmp_path)
    lines = []
    monkeypatch.setattr(made.screen, "say", lines.append)
    for _ in range(4):
        tick()
    person.asks = ["s"]
    for _ in range(5):
        tick()
    assert seen[-1] == pytest.approx([0.7, 0.0])
    assert [line for line in lines if "clipped" in line] == [
        "speed is 5 m/s, but the policy was trained for 0 to 0.7 m/s: clipped"
    ]
    ended(made)


def test_a_runner_refuses_what_is_no_input():
    kernel = Kernel(WALKS.robot, WALKS.rate)
    driver = FakeDriver(WALKS.robot, WALKS.rate)
    with Runner(ContractPolicy(WALKS, lambda obs: obs), kernel, driver) as runner:
        runner.hear(1.0, speed=0.2)
        for wrong in ({"height": 1}, {"speed": np.nan}, {"speed": [1, 2]}):
            with pytest.raises(OperatorError):
                runner.hear(2.0, **wrong)
        assert (runner.heard_at, said(runner.inputs)) == (1.0, {"speed": [0.2]})


def test_kinds_of_operators():
    assert [operator.is_live(spec) for spec in ("keyboard", "gamepad:/dev/x", "a.csv")] == [
        True,
        True,
        False,
    ]
    assert keyboard.HINT
