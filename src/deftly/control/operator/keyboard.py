"""An operator at the keyboard of a terminal: each key counts at once, without Enter.

A terminal does not say when a key is released, but it repeats one that is held. So whoever drives holds a key: `DEAD_S`
after the last one, every input that makes the robot move (in m/s or rad/s) is back at its default.
"""

from __future__ import annotations

import math
import termios
import tty
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from deftly.contract import PolicyContract
from deftly.control.operator.words import OperatorError, Words
from deftly.control.session import KEYS, Keys

DEAD_S = 1.0
"""Longest time without a key, s: terminals repeat a key 0.25 to 0.66 s after it went down, then at 25 to 30 Hz."""
STEP = 0.1
"""What a key changes, as a fraction of an input's range."""
UP, DOWN, RIGHT, LEFT = "\x1b[A", "\x1b[B", "\x1b[C", "\x1b[D"
APPLICATION = {"\x1bO" + arrow[-1]: arrow for arrow in (UP, DOWN, RIGHT, LEFT)}
"""What the arrows send in a terminal's application mode (ECMA-48 and xterm's control sequences)."""
ARROWS = {UP: (0, 1), DOWN: (0, -1), LEFT: (1, 1), RIGHT: (1, -1)}
"""Which number of the chosen pair an arrow changes, and its sign; left is positive, as in REP 103 of ROS."""
ON, NEXT, REST = " ", "\t", "0"
HINT = (
    "arrows change the command, Tab the next two numbers, hold Space to go on, 0 rests; "
    "s starts, r resumes, q quits, any other key holds"
)


def split(data: bytes, final: bool) -> tuple[list[str], bytes]:
    """Single keys, and what may be the beginning of one; `final`: nothing more came since, then it is one itself.

    An arrow's control sequence is one key, and so is that of any other key.
    """
    keys = []
    while data:
        length = _length(data)
        if not length and not final:
            break
        key = data[: length or len(data)].decode(errors="replace")
        keys.append(APPLICATION.get(key, key))
        data = data[length or len(data) :]
    return keys, data


def _length(data: bytes) -> int:
    """Of the first key, bytes; 0 if its control sequence, which ends with a letter or ~, may go on."""
    if data[:1] != b"\x1b":
        return 1
    if data[1:2] not in (b"[", b"O", b""):
        return 1
    ends = [i for i in range(2, min(len(data), 16)) if 64 <= data[i] <= 126]
    if ends:
        return ends[0] + 1
    return 1 if len(data) >= 16 else 0


class Keyboard(Keys):
    """An operator who says more or less of each number of the inputs, at a terminal that gives each key at once.

    Args:
        contract: Of the policy that is spoken to.

    Raises OperatorError if there is no terminal.
    """

    starts = True
    hint = HINT

    def __init__(self, contract: PolicyContract):
        super().__init__()
        if self._fd is None or not self.terminal:
            raise OperatorError(
                "--operator keyboard needs a terminal: run it in one, or give a file of commands, --operator FILE.csv"
            )
        self._words = Words(contract)
        self._values = [element.default for element in self._words.elements]
        self._pair = 0
        self._pressed = False
        self._last = -math.inf  # when a key was pressed last, s
        self._device = self._fd
        self._before = termios.tcgetattr(self._fd)
        tty.setcbreak(self._fd, termios.TCSANOW)

    def read(self) -> list[str]:
        """Keys of the session since the last look; any other key holds, and so does a terminal that fails."""
        data = self._take()
        if data is None:
            return self._over()
        keys, self._rest = split(self._rest + data, final=not data)
        return [word for key in keys for word in self._obeyed(key)]

    words = read

    def hear(self, now: float, driving: bool) -> Mapping[str, Any] | None:
        """The numbers, as long as there is a terminal."""
        if self.closed:
            return None
        if self._pressed:
            self._last = now
        self._pressed = False
        if not driving or now - self._last > DEAD_S:
            self._rest_all()
        return self._words.values(self._values)

    def notes(self) -> list[str]:
        """None: keys go no further than an input's range."""
        return []

    def close(self) -> None:
        """Give the terminal back as it was."""
        with suppress(OSError, termios.error):
            termios.tcsetattr(self._device, termios.TCSANOW, self._before)

    def _obeyed(self, key: str) -> list[str]:
        """Let a key change the numbers; the session's key if it is none that does."""
        if key in ARROWS:
            which, sign = ARROWS[key]
            self._step(self._pair + which, sign)
        elif key == NEXT:
            pairs = (len(self._values) + 1) // 2
            self._pair = (self._pair + 2) % max(2, 2 * pairs)
        elif key == REST:
            self._rest_all()
        elif key != ON:
            return [key if key.lower() in KEYS else "h"]
        self._pressed = True
        return []

    def _step(self, place: int, sign: int) -> None:
        if place < len(self._values):
            element = self._words.elements[place]
            value = self._values[place] + sign * STEP * element.range
            self._values[place] = element.clip(round(value, 9))

    def _rest_all(self) -> None:
        """What makes the robot move is at its default again."""
        for i, element in enumerate(self._words.elements):
            if element.is_rate:
                self._values[i] = element.default
