"""What surrounds a control loop on hardware: the operator's keys, what is printed, and the logs.

The loop waits for nobody: keys are looked at and never waited for, lines are printed and logs written by other threads.
"""

from __future__ import annotations

import gc
import json
import os
import queue
import select
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, Le
from typing_extensions import Doc

from deftly.config import OUTPUT_FILE, Settings, Suffix
from deftly.console import printable
from deftly.control.log import LogBuffer
from deftly.control.loop import PatientClock, Runner, Tick, Ticker, run
from deftly.control.operator import Operator
from deftly.control.operator.words import show
from deftly.control.safety import SAFE, Fault, SafetyError, State
from deftly.control.signals import ending_on_signals
from deftly.errors import DeftlyError
from deftly.files import why_unwritable

SECONDS = Annotated[float, Ge(0), Le(1e9), Doc("End after this time; 0: when the operator quits.")]
START = Annotated[bool, Doc("Start as soon as the robot is ready, without a key.")]
LOG = Annotated[
    Path | None,
    Suffix(".npz"),
    OUTPUT_FILE,
    Doc(
        "Save the log of all ticks to this .npz at the end; a fault saves it at once, beside, in a file of its own."
    ),
]
LOG_SECONDS = Annotated[float, Ge(1), Le(36_000), Doc("How far back the log reaches.")]
KEYS = {"s": "start", "h": "hold", "r": "resume", "q": "quit"}
HINTS = {
    State.READY: "s starts, q quits",
    State.ACTIVE: "Enter holds",
    State.HOLD: "r resumes, q quits",
    State.DAMP: "put it up, then r resumes, q quits",
}
READY_S = 5.0
"""Without an operator, a robot that gives no good measurement for this long has failed."""
STATUS_S = {True: 0.25, False: 10.0}
"""Time between two status lines, on a terminal and elsewhere."""
SWITCH_S = 5e-4
"""How long another thread's Python may hold up a tick, s."""
TIMES = 1000
"""Newest ticks that the status line's times are of."""


@dataclass(frozen=True)
class SessionSettings(Settings):
    """How a session goes, as `deftly.drive` takes it."""

    start: START = False
    seconds: SECONDS = 0.0
    log: LOG = None
    log_seconds: LOG_SECONDS = 600.0


def require_place(log: Path | None, *, keep: bool) -> None:
    """Raise DeftlyError unless logs can be written: to learn it after a fault is too late.

    With `keep`, a log that is there already is no place: what a real robot did cannot be had again.
    """
    if problem := why_unwritable(log or Path("fault.npz")):
        raise DeftlyError(f"no place for logs: {problem}, as --log FILE.npz in another folder")
    if keep and log is not None and log.exists():
        raise DeftlyError(f"'{printable(log)}' is there already, a robot's log: name another file")


class Session:
    """One run of a control loop.

    Args:
        runner: the loop.
        buffer: its log.
        facts: what the logs say beside the ticks.
        start: start once, as soon as the robot is ready, without a key; not after a hold, nor a word of the operator.
        seconds: end after this time; 0 does not.
        log: where the log is saved at the end. A fault is saved at once, in a file of its own beside it.
        operator: who says what the policy's inputs are; None: their defaults hold.
    """

    def __init__(
        self,
        runner: Runner,
        buffer: LogBuffer,
        facts: Mapping[str, Any],
        *,
        start: bool = False,
        seconds: float = 0.0,
        log: Path | None = None,
        operator: Operator | None = None,
    ):
        self.runner = runner
        self.buffer = buffer
        self.facts = facts
        self.seconds = seconds
        self.log = log
        self.ticker = Stopwatch(runner.kernel.rate, getattr(runner.driver, "clock", None))
        self.operator = operator
        self.keys = operator if isinstance(operator, Keys) else Keys()
        self._to_start = start
        self._began = 0.0
        self._done = False
        self._was_ready = False
        self._was_started = False
        self._last = (State.INIT, Fault.NONE)
        self._failed = ""
        self._faults: list[tuple[float, str, str]] = []
        self._dumps: list[threading.Thread] = []
        self.screen = Screen(self.status)

    def run(self) -> int:
        """Drive until the end. Exit status 0: the time is over or the operator quit; 1: it failed.

        The first signal ends it; none interrupts what comes after the loop, the saving of the log above all.
        """
        with ending_on_signals():
            return self._run()

    def _run(self) -> int:
        was_frozen = gc.get_freeze_count() > 0  # by the program around it, which keeps it so
        gc.collect()
        gc.freeze()  # what is loaded now stays: to go through it again and again would hold ticks up
        before = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_S)
        if self.operator is not None and self.operator.hint:
            self.screen.say(self.operator.hint)
        try:
            run(self.runner, self.ticker, self.each)
        except SystemExit as error:
            if error.code:  # of a signal, or of code that says that it failed
                raise
            raise DeftlyError(
                "the driver or the policy ended the program (SystemExit): the task is not done, look after the robot"
            ) from error
        finally:
            sys.setswitchinterval(before)
            if not was_frozen:
                gc.unfreeze()
            self._finish()
        return 1 if self._failed or self.runner.refused else 0

    def _finish(self) -> None:
        """After the loop: wait for the logs of faults, save the log, print what happened."""
        if self.runner.refused:
            refused = (
                f"the robot did not take its last command, look after it: {self.runner.refused}"
            )
            self.screen.say(refused)
        for thread in self._dumps:
            thread.join()
        try:
            self._save()
        finally:
            ticks = f"{self.ticker.count} ticks"
            faults = f"{len(self._faults) or 'no'} faults"
            self.screen.say(f"{ticks} | {self.statistics()} | {faults}")
            if isinstance(self.ticker.clock, PatientClock) and self.ticker.clock.shortfall():
                self.screen.say(self.ticker.clock.shortfall())
            self.screen.close()

    def each(self, _: Tick) -> bool:
        """After every tick: say what changed, do what the operator asks; False ends the loop."""
        now = self.ticker.lap()
        self._began = self._began or now
        elapsed = now - self._began
        kernel = self.runner.kernel
        if (kernel.state, kernel.fault) != self._last:
            self._last = (kernel.state, kernel.fault)
            self._changed(now)
        succeeded = getattr(self.runner.driver, "success", False)  # only a simulated robot can tell
        if succeeded and not self._done:
            self._done = True
            self.screen.say(f"{elapsed:8.2f} s  the task is done")
        asked = [self._obey(word) for word in self._words()]
        self._listen(now)
        if asked or kernel.state in SAFE:
            self._to_start = False  # from now on, the operator starts
        if self._to_start and kernel.state is State.READY:
            self._to_start = False
            self._obey("s")
        self._was_ready |= kernel.state in (State.READY, State.ACTIVE)
        self._was_started |= kernel.state is State.ACTIVE
        over = 0 < self.seconds <= elapsed
        self._failed = self._failure(elapsed, over)
        if self._failed:
            self.screen.say(f"ended: {self._failed}")
        return not (self._failed or over or "quit" in asked)

    def _words(self) -> list[str]:
        """What the operator typed or pressed."""
        words = self.keys.read()
        if self.operator is not None:
            words += self.operator.words()
        return words

    def _listen(self, now: float) -> None:
        """Let the policy hear what the operator says."""
        if self.operator is None:
            return
        said = self.operator.hear(now, self.runner.kernel.wants_policy)
        if said is not None:
            self.runner.hear(now, **said)
        elif self.runner.heard_at is None:
            self.runner.hear(now)  # he is expected from now on
        for line in (*self.operator.notes(), *self.runner.notes()):
            self.screen.say(line)

    @property
    def _alone(self) -> bool:
        """Whether nobody can start or resume the robot now."""
        return not (self.keys.terminal or (self.operator is not None and self.operator.starts))

    def _obey(self, word: str) -> str:
        """Do what a line of the operator asks. Whatever is no known key means hold: so does Enter."""
        verb = KEYS.get(word.lower(), "hold")
        try:
            if verb != "quit":
                getattr(self.runner, verb)()
        except SafetyError as error:
            self.screen.say(str(error))
        return verb

    def _changed(self, now: float) -> None:
        kernel = self.runner.kernel
        state, _ = self._last
        words = f"{now - self._began:8.2f} s  {state}"
        if kernel.fault is not Fault.NONE:
            words += f": {kernel.fault}: {self._reason()}"
            if kernel.fault is not Fault.OPERATOR:  # who holds the robot found no fault
                self._faults.append((now, kernel.fault, self._reason()))
                self._dump()
        if not self._alone and state in HINTS:
            words += f"  ({HINTS[state]})"
        self.screen.say(words)

    def _reason(self) -> str:
        """The kernel's reason; where the kernel cannot know more, with the words of driver or policy."""
        kernel = self.runner.kernel
        problem = self.runner.problem
        others = (Fault.DRIVER, Fault.WRITER, Fault.POLICY_STALE)
        heard = kernel.fault in others or kernel.state is State.INIT
        if heard and problem and problem not in kernel.reason:
            return f"{kernel.reason} ({problem})"
        return kernel.reason

    def _failure(self, elapsed: float, over: bool) -> str:
        """Why the run is over with exit status 1, if it is; `over`: its time is."""
        kernel = self.runner.kernel
        alone = self._alone
        closed = alone and self.keys.closed
        if kernel.state is State.STOP:
            return f"{kernel.fault}: {kernel.reason}"
        if kernel.state in (State.HOLD, State.DAMP) and alone:
            nobody_resumes = closed or kernel.fault is not Fault.OPERATOR
            if nobody_resumes:
                return f"{kernel.fault}, and nobody at a terminal to resume"
        if kernel.state is State.INIT and alone and elapsed > READY_S:
            return f"the robot was not ready in {READY_S:g} s: {self._reason()}"
        if over and not self._was_ready:
            return f"the robot was not ready in {self.seconds:g} s: {self._reason()}"
        if kernel.state is State.READY and closed and not self._to_start:
            return "nobody can start the robot: without a terminal, give --start"
        if over and alone and not self._was_started:
            return (
                f"nobody started the robot in {self.seconds:g} s: without a terminal, give --start"
            )
        return ""

    def status(self) -> str:
        """State, times and counts in a line; the screen's thread asks for it."""
        kernel = self.runner.kernel
        fault = "" if kernel.fault is Fault.NONE else f" ({kernel.fault}: {kernel.reason})"
        said = f" | {show(self.runner.inputs)}" if self.runner.inputs else ""
        return f"{kernel.state}{fault}{said} | {self.statistics()}"

    def statistics(self) -> str:
        """Times of the newest ticks, and counts of all."""
        p50, p99 = np.percentile(self.ticker.times(), (50, 99))
        counts = f"{self.ticker.overruns} overruns | {self.runner.kernel.clipped} targets clipped"
        return f"tick {p50:.2f} ms p50, {p99:.2f} ms p99 | {counts}"

    def _dump(self) -> None:
        """Save the log of a fault in a thread, while the loop goes on."""
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S-%f")[:-3]  # to the millisecond
        folder = self.log.parent if self.log else Path()
        path = folder / f"deftly-fault-{stamp}.npz"
        thread = threading.Thread(target=self._write, args=(path, self._facts()))
        thread.start()
        self._dumps = [dump for dump in self._dumps if dump.is_alive()]
        self._dumps.append(thread)

    def _write(self, path: Path, facts: Mapping[str, Any]) -> None:
        try:
            self.buffer.save(path, facts)
            self.screen.say(f"log of the fault: {path}")
        except (OSError, MemoryError, DeftlyError) as error:
            words = " ".join(str(error).split())[:200]
            self.screen.say(f"cannot write the log of the fault, {path}: {words}")

    def _save(self) -> None:
        if self.log:
            was_there = self.log.exists()
            self.buffer.save(self.log, self._facts())
            replaced = ", which replaces what was there" if was_there else ""
            self.screen.say(f"log: {self.log}{replaced}")
        images = self.buffer.images
        if images is not None:
            left_out = f", {images.dropped} left out" if images.dropped else ""
            self.screen.say(f"images: {images.folder}{left_out}")

    def _facts(self) -> dict[str, Any]:
        """What the log says beside the ticks, with what happened so far."""
        faults = json.dumps(self._faults[-100:])
        return {
            **self.facts,
            "faults": faults,
            "reason": self._reason(),
            "overruns": self.ticker.overruns,
        }


class Stopwatch(Ticker):
    """A ticker that notes how long the ticks take."""

    def __init__(self, rate: float, patient: PatientClock | None = None):
        if patient is None:
            super().__init__(rate)
        else:
            super().__init__(rate, patient, patient.sleep)
        self._woke = time.monotonic()
        self._times = np.zeros(TIMES)  # ms, of the newest ticks
        self._now = 0.0
        self.count = 0
        """Ticks so far."""

    def wait(self) -> float:
        """Sleep until the next period begins, and return the time then, s."""
        self._now = super().wait()
        self._woke = time.monotonic()
        return self._now

    def lap(self) -> float:
        """The tick is over: note how long it took, and return when it began."""
        self._times[self.count % TIMES] = 1e3 * (time.monotonic() - self._woke)
        self.count += 1
        return self._now

    def times(self) -> np.ndarray:
        """The newest times, ms; a zero before the first."""
        return self._times[: max(1, min(self.count, TIMES))].copy()


class Keys:
    """The operator's lines on standard input, looked at and never waited for."""

    def __init__(self) -> None:
        self._fd: int | None = None
        with suppress(AttributeError, OSError, ValueError):  # there is none, or it is closed
            self._fd = sys.stdin.fileno()
        self._rest = b""
        self.terminal = self._fd is not None and os.isatty(self._fd)
        """Whether somebody may sit there."""

    @property
    def closed(self) -> bool:
        """Whether no more lines will come."""
        return self._fd is None

    def read(self) -> list[str]:
        """The lines that came since the last look."""
        data = self._take()
        if data is None:
            return self._over()
        if not data:
            return []
        *lines, self._rest = (self._rest[-100:] + data).split(b"\n")
        return [line.decode(errors="replace").strip() for line in lines]

    def _take(self) -> bytes | None:
        """What was typed since the last look, maybe nothing; None: input ended, or cannot be read."""
        if self._fd is None or not select.select([self._fd], [], [], 0)[0]:
            return b""
        try:
            return os.read(self._fd, 4096) or None
        except BlockingIOError:
            return b""
        except OSError:  # the process is in the background, or the terminal is gone
            return None

    def _over(self) -> list[str]:
        """Input ended, or cannot be read: a terminal's robot holds, and its keys stay if it is still there."""
        lines = ["h"] if self.terminal else []
        self._rest = b""
        self.terminal = self.terminal and self._fd is not None and os.isatty(self._fd)
        self._fd = self._fd if self.terminal else None
        return lines


class Screen:
    """Prints from a thread of its own: a terminal that was halted, or a full pipe, must not halt the robot."""

    def __init__(self, status: Callable[[], str]):
        self._status = status
        self._lines = queue.SimpleQueue[str | None]()
        self._terminal = sys.stdout.isatty()
        self._thread = threading.Thread(target=self._print, daemon=True)
        self._thread.start()

    def say(self, line: str) -> None:
        """Print a line, soon."""
        self._lines.put(line)

    def close(self) -> None:
        """Print what is left; gives up on a screen that takes nothing."""
        self._lines.put(None)
        self._thread.join(2.0)

    def _print(self) -> None:
        clear = "\r\x1b[K" if self._terminal else ""
        with suppress(OSError, ValueError):  # nobody reads any more
            while True:
                try:
                    line = self._lines.get(timeout=STATUS_S[self._terminal])
                    text = f"{clear}{line}\n"
                except queue.Empty:
                    line = ""
                    text = self._status_line(clear)
                if line is None:
                    return
                sys.stdout.write(text)
                sys.stdout.flush()

    def _status_line(self, clear: str) -> str:
        """The status: on a terminal over the line before, as wide as fits; elsewhere a line of its own."""
        if not self._terminal:
            return f"{self._status()}\n"
        width = os.get_terminal_size().columns - 1
        return f"{clear}{self._status()[:width]}"
