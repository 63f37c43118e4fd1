"""An operator with a gamepad, read by evdev: `pip install "deftly[gamepad]"`, Linux.

A thread reads the device, so that one that hangs holds up no control loop: what is heard gets older then, as it does
when the gamepad is unplugged or its battery is empty, until the safety kernel's fault. A shoulder button is the
dead-man switch: while neither is held, every input that makes the robot move (m/s, rad/s) is at its default.
"""

from __future__ import annotations

import importlib
import select
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Protocol

from deftly.console import printable
from deftly.contract import PolicyContract
from deftly.control.operator.words import OperatorError, Words

EV_SYN, EV_KEY, EV_ABS = 0, 1, 3
SYN_DROPPED = 3
ABS_X, ABS_Y, ABS_RX, ABS_RY, ABS_HAT0X, ABS_HAT0Y = 0, 1, 3, 4, 16, 17
BTN_GAMEPAD, BTN_EAST, BTN_TL, BTN_TR, BTN_SELECT, BTN_START = 304, 305, 310, 311, 314, 315
"""Types and codes of events are those of Linux's `input-event-codes.h`; where buttons are, of its `gamepad.rst`."""
STICKS = (ABS_Y, ABS_X, ABS_RY, ABS_RX, ABS_HAT0Y, ABS_HAT0X)
"""What moves the first, second, ... number of the inputs: left stick, right stick, cross. Up and left are positive."""
DEAD_MAN = (BTN_TL, BTN_TR)
BUTTONS = {BTN_START: "s", BTN_EAST: "h", BTN_SELECT: "r"}
MIDDLE = 0.1
"""How far from its middle a stick counts as there: worn ones do not come back to it."""
PLACE_S = 2.0
"""Time in which a stick at its end moves a place (an input that is no speed) through all of its range, s."""
BEAT_S = 0.02
"""Longest time between two looks at the device, s."""
RETRY_S = 0.5
"""Time between two tries to find a gamepad that is gone, s."""
HINT = (
    "hold a shoulder button and move the sticks; Start starts, B (east) holds, Select resumes; "
    "on the terminal, Enter holds"
)


class Event(Protocol):
    """What a device says."""

    type: int
    code: int
    value: int


class Device(Protocol):
    """A gamepad, as `evdev.InputDevice` is one."""

    fd: int
    name: str

    def read(self) -> Any:
        """The events that are there; raises BlockingIOError for none, OSError if the device is gone."""
        ...

    def active_keys(self) -> list[int]:
        """The buttons that are held."""
        ...

    def absinfo(self, axis_num: int) -> Any:
        """An axis: `value`, `min`, `max`."""
        ...

    def capabilities(self) -> dict[int, list[Any]]:
        """Codes of each type of event."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


class Pad:
    """Sticks and buttons of a device, event by event."""

    def __init__(self, device: Device):
        self._device = device
        axes = [each[0] for each in device.capabilities().get(EV_ABS, [])]
        self._bounds = {axis: self._bounds_of(axis) for axis in STICKS if axis in axes}
        self.held: set[int] = set()
        self.pressed: list[str] = []
        """Keys of the session, since they were taken."""
        self._axes: dict[int, float] = {}
        self.look()

    def _bounds_of(self, axis: int) -> tuple[int, int]:
        info = self._device.absinfo(axis)
        return info.min, info.max

    def look(self) -> None:
        """Take sticks and buttons as they are now. Raises OSError if the device is gone."""
        self.held = set(self._device.active_keys())
        for axis in self._bounds:
            self._move(axis, self._device.absinfo(axis).value)

    def read(self) -> None:
        """Take what happened. Raises OSError if the device is gone."""
        with suppress(BlockingIOError):
            for event in self._device.read():
                self.take(event)

    def take(self, event: Event) -> None:
        """Take an event; where the system dropped some, look."""
        if event.type == EV_SYN and event.code == SYN_DROPPED:
            self.look()
        elif event.type == EV_ABS and event.code in self._bounds:
            self._move(event.code, event.value)
        elif event.type == EV_KEY and event.value == 1:
            self.held.add(event.code)
            self.pressed += [BUTTONS[event.code]] if event.code in BUTTONS else []
        elif event.type == EV_KEY and event.value == 0:
            self.held.discard(event.code)

    def _move(self, axis: int, value: int) -> None:
        """Note a stick: from -1 to 1, up and left positive, 0 about its middle."""
        low, high = self._bounds[axis]
        way = 0.0 if high <= low else 1.0 - 2.0 * (value - low) / (high - low)
        way = min(max(way, -1.0), 1.0)
        beyond = max(0.0, abs(way) - MIDDLE) / (1.0 - MIDDLE)
        self._axes[axis] = beyond if way > 0 else -beyond

    @property
    def sticks(self) -> list[float]:
        """All sticks in the order of `STICKS`, from -1 to 1; all 0 without the dead-man switch."""
        if not self.held & set(DEAD_MAN):
            return [0.0] * len(STICKS)
        return [self._axes.get(axis, 0.0) for axis in STICKS]


class Gamepad:
    """An operator with a gamepad.

    Args:
        contract: Of the policy that is spoken to.
        path: The device, such as /dev/input/event5; empty: the first gamepad.
        find: Opens it. Raises OperatorError or OSError if it is not there.

    Raises OperatorError, one line, if there is none.
    """

    starts = True
    hint = HINT

    def __init__(
        self,
        contract: PolicyContract,
        path: str = "",
        find: Callable[[str], Device] | None = None,
    ):
        self._words = Words(contract)
        self._path = path
        self._find = find or find_gamepad
        self._values = [element.default for element in self._words.elements]
        self._last: float | None = None
        self._heard = 0
        self._lock = threading.Lock()
        self._beats = 0  # looks at a device that is there
        self._sticks = [0.0] * len(STICKS)
        self._asked: list[str] = []
        self._notes = self._unreached()
        self._ends = threading.Event()
        self._device = self._open()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def hear(self, now: float, driving: bool) -> Mapping[str, Any] | None:
        """What the sticks say; None if the gamepad was not heard since the last call."""
        with self._lock:
            beats, sticks = self._beats, list(self._sticks)
        if beats == self._heard:
            return None
        self._heard = beats
        passed = 0.0 if self._last is None else min(max(now - self._last, 0.0), 0.1)
        self._last = now
        for i, (element, stick) in enumerate(zip(self._words.elements, sticks)):
            if element.is_rate:
                self._values[i] = element.at(stick if driving else 0.0)
            else:
                moved = self._values[i] + stick * element.range * passed / PLACE_S
                self._values[i] = element.clip(moved)
        return self._words.values(self._values)

    def words(self) -> list[str]:
        """Keys of the session for the buttons that were pressed."""
        with self._lock:
            asked, self._asked = self._asked, []
        return asked

    def notes(self) -> list[str]:
        """What became of the gamepad."""
        with self._lock:
            notes, self._notes = self._notes, []
        return notes

    def close(self) -> None:
        """Let go of the gamepad; a thread that hangs in it is left alone."""
        self._ends.set()
        self._thread.join(1.0)

    def _unreached(self) -> list[str]:
        """Say which numbers have no stick."""
        rest = self._words.elements[len(STICKS) :]
        labels = ", ".join(element.label for element in rest)
        return [f"the gamepad has no stick for {labels}: it stays at its default"] if rest else []

    def _open(self) -> Device:
        try:
            return self._find(self._path)
        except OSError as error:
            where = self._path or "the gamepad"
            raise OperatorError(
                f"cannot read {where}: {printable(error.strerror or error)}; who runs this must be in the group input"
            ) from None

    # ----------------------------------------------------------- its thread

    def _listen(self) -> None:
        """Read the gamepad until it is gone, then look for it again."""
        device: Device | None = self._device
        while not self._ends.is_set():
            if device is None:
                device = self._again()
                continue
            try:
                self._follow(Pad(device), device)
            except (OSError, ValueError) as error:
                self._note(f"the gamepad is gone: {printable(error)}")
            with suppress(OSError):
                device.close()
            device = None

    def _follow(self, pad: Pad, device: Device) -> None:
        """Pass on what a gamepad says, until the end. Raises OSError when it is gone."""
        while not self._ends.is_set():
            if select.select([device.fd], [], [], BEAT_S)[0]:
                pad.read()
            else:
                pad.held = set(device.active_keys())  # also asks whether it is still there
            pressed, pad.pressed = pad.pressed, []
            with self._lock:
                self._sticks = pad.sticks
                self._asked += pressed
                self._beats += 1

    def _again(self) -> Device | None:
        """The gamepad, if it is back."""
        try:
            device = self._find(self._path)
        except (OSError, OperatorError):
            self._ends.wait(RETRY_S)
            return None
        self._note("the gamepad is back")
        return device

    def _note(self, line: str) -> None:
        with self._lock:
            self._notes.append(line)


def find_gamepad(path: str) -> Device:
    """The device at a path, or the first gamepad. Raises OperatorError or OSError if there is none that can be read."""
    try:
        evdev: Any = importlib.import_module("evdev")
    except ImportError:
        raise OperatorError('a gamepad needs evdev: pip install "deftly[gamepad]"') from None
    if path:
        device = evdev.InputDevice(path)
        if not is_gamepad(device):
            device.close()
            raise OperatorError(
                f"{path} is no gamepad: 'deftly run' takes the first one as --operator gamepad"
            )
        return device
    for place in sorted(evdev.list_devices()):
        with suppress(OSError):
            device = evdev.InputDevice(place)
            if is_gamepad(device):
                return device
            device.close()
    raise OperatorError(
        "no gamepad in /dev/input that may be read: plug one in; who runs this must be in the group input"
    )


def is_gamepad(device: Device) -> bool:
    """Whether a device has a stick and a gamepad's buttons."""
    found = device.capabilities()
    axes = [each[0] for each in found.get(EV_ABS, [])]
    return BTN_GAMEPAD in found.get(EV_KEY, []) and ABS_Y in axes
