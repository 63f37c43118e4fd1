"""A robot in another process, over a socket: `Driver` for the simulated robot of `deftly.twin.server`, or one like it.

Each message is a msgpack map with `type` (`hello`, `read`, `write`, `damp`, `stop`) and a number `seq`, which the
answer repeats. An answer says `ok`; that to `hello` brings the robot's interface as `spec` and its `rate`, that to
`read` `signals` and `age_s`, how long ago they were measured. `read` and `write` may say `at`, the time on the loop's
clock, s: a simulated robot that follows it goes on until then, and `age_s` is that of the measurement at that time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import zmq

from deftly.contract import ContractError, RobotInterface
from deftly.control.drivers import Driver, DriverError, Reading
from deftly.serving.wire import WireError, max_frame, pack, read_signals, unpack


class SocketDriver(Driver):
    """The robot at `endpoint`, which must have this interface and rate; `read` and `write` wait at most `timeout` s.

    With a clock, each message says what time it is there, and the robot's time goes on until then: of a simulated robot
    that waits for the loop.

    Raises DriverError if it does not answer, within `patience` s the first time.
    """

    def __init__(
        self,
        robot: RobotInterface,
        rate: float,
        endpoint: str,
        timeout: float | None = None,
        patience: float = 3.0,
        clock: Callable[[], float] | None = None,
    ):
        self.robot = robot
        self.endpoint = endpoint
        self._seq = 0
        if timeout is None:
            timeout = min(0.03, 0.2 / rate)  # policy, kernel and log need the rest of the period
        self.timeout = timeout
        self.clock = clock
        self.success = False
        """Whether the task is done, if the robot can tell."""
        self._socket = zmq.Context.instance().socket(zmq.DEALER)
        self._socket.set(zmq.LINGER, 0)
        self._frame = max_frame(robot)
        self._socket.set(zmq.MAXMSGSIZE, self._frame)
        try:
            self._socket.connect(endpoint)
            hello = self._ask("hello", patience)
            driven = RobotInterface.from_json(str(hello.get("spec")))
            robot.require(driven, f"the robot at {endpoint}")
            if hello.get("rate") != rate:
                got = f"its control rate is {hello.get('rate')!r:.20} Hz"
                raise DriverError(f"{got}, the policy's {rate:g}")
        except (zmq.ZMQError, ContractError, DriverError) as error:
            self._socket.close()
            raise DriverError(f"no robot to drive at '{endpoint}': {error}") from None

    def read(self) -> Reading:
        """The newest measurement."""
        asked = self._clock_now()
        reply = self._ask("read", self.timeout, **asked)
        now = asked.get("at", time.monotonic())
        age = reply.get("age_s")
        try:
            signals = read_signals(reply.get("signals"), self.robot)
        except WireError as error:
            raise DriverError(f"{self.endpoint}: {error}") from None
        if not isinstance(age, float) or not 0.0 <= age < 1e6:
            raise DriverError(f"{self.endpoint}: 'age_s' is no time")
        self.success = reply.get("success") is True
        return Reading(signals, now - age)

    def write(self, targets: np.ndarray) -> None:
        """Command joint targets, (num_joints,)."""
        values = np.asarray(targets, np.float64)
        self._ask("write", self.timeout, targets=values, **self._clock_now())

    def damp(self) -> None:
        """Let the motors brake."""
        self._ask("damp", self.timeout)

    def stop(self) -> None:
        """End the robot's process, whose servos hold what they hold until then; if it is gone, that is that."""
        if not self._socket.closed:
            with suppress(DriverError):
                self._ask("stop", self.timeout)
            self._socket.close()

    def _clock_now(self) -> dict[str, float]:
        """What a message says of the time, if the robot follows a clock."""
        return {} if self.clock is None else {"at": self.clock()}

    def _ask(self, kind: str, timeout: float, **fields: Any) -> dict[str, Any]:
        """The answer to one message; one that comes late is never taken for another's."""
        if self._socket.closed:
            raise DriverError("the robot was let go of: it can be neither read nor commanded")
        self._seq += 1
        deadline = time.monotonic() + timeout
        try:
            self._socket.send(pack({"type": kind, "seq": self._seq, **fields}), zmq.NOBLOCK)
            reply = self._answer(deadline)
        except (zmq.ZMQError, WireError) as error:
            raise DriverError(f"{self.endpoint}: {error}") from None
        if reply is None:
            waited = f"within {1e3 * timeout:g} ms"
            raise DriverError(f"{self.endpoint} does not answer '{kind}' {waited}")
        if reply.get("ok") is not True:
            raise DriverError(f"{self.endpoint}: {str(reply.get('error'))[:200]}")
        return reply

    def _answer(self, deadline: float) -> dict[str, Any] | None:
        """The answer to the newest message; None if there is none by the deadline, s on the monotonic clock."""
        while True:
            left = deadline - time.monotonic()
            if left <= 0 or not self._socket.poll(max(1, round(1e3 * left))):
                return None
            reply = unpack(self._socket.recv(), self._frame)
            if reply.get("seq") == self._seq:
                return reply
