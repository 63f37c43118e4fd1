"""A simulated robot in a process of its own and in real time, for `deftly run --driver sim`.

    python -m deftly.twin.server TASK [--policy SPEC]

Physics follows the monotonic clock in whole substeps, whoever is connected or not. When no command comes, the servos
keep the last target, as a position controller does. Clients come and go: each message is answered to whom it came from.
It ends with a `stop` message, SIGTERM, SIGINT, or with the process `--parent`.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import zmq

from deftly.errors import DeftlyError
from deftly.evaluate.source import prepare
from deftly.serving.wire import MAX_FRAME, WireError, pack, read_array, unpack
from deftly.twin.loop import SceneArgs

if TYPE_CHECKING:
    from deftly.twin.robot import SimRobot

READY = "simulated robot at "
"""What the line begins with that is printed once it answers; the endpoint follows."""
MAX_BEHIND_S = 0.25
"""What physics lags behind the clock by more than this is left out, not caught up with."""
MAX_AHEAD_S = 5.0
"""Likewise of a robot that follows the clock of its messages: farther ahead than this is another clock."""
START_S = 90.0
"""How long `launch` waits for a process to answer."""


@dataclass(frozen=True)
class SimServerArgs(SceneArgs):
    """Run a simulated robot in real time, to be driven over a socket."""

    bind: str = "tcp://127.0.0.1:*"
    """Where to answer, on this machine only; port * takes a free one."""
    episode: int = 0
    """With the seed, decides how the task starts."""
    follow: bool = False
    """Let time go on as the messages' `at` says, not by itself: a computer that is too slow makes the robot slow."""
    parent: int = 0
    """End when the process of this number has; 0: never mind."""


class RobotServer:
    """A `SimRobot` that answers on a socket bound at `bind`; it runs with the clock, or follows that of messages."""

    def __init__(self, robot: SimRobot, bind: str, follow: bool = False):
        if not bind.startswith(("tcp://127.0.0.1:", "ipc://")):
            raise DeftlyError(
                f"'{bind}' may be reached from other machines: bind to tcp://127.0.0.1:PORT"
            )
        self.robot, self.running, self._follow = robot, True, follow
        self._judged = robot.now
        self._substep = float(robot.model.opt.timestep)
        self._started = False
        self._socket = zmq.Context.instance().socket(zmq.ROUTER)
        for option, value in {
            zmq.LINGER: 200,
            zmq.MAXMSGSIZE: MAX_FRAME,
            zmq.RCVHWM: 16,
            zmq.SNDHWM: 16,
        }.items():
            self._socket.set(option, value)
        try:
            self._socket.bind(bind)
        except zmq.ZMQError as error:
            raise DeftlyError(f"cannot bind to '{bind}': {error}; choose another port") from None
        self.endpoint = self._socket.get_string(zmq.LAST_ENDPOINT)
        self.done = False
        """Whether the task was done once."""

    def run(self, parent: int = 0) -> None:
        """Until `running` is False, or the parent gone."""
        self._zero = time.monotonic() - self.robot.now
        while self.running and not (parent and os.getppid() != parent):
            wait_ms = 1e3 * MAX_BEHIND_S if self._follow else self._catch_up()
            self._answer_all(wait_ms)
        self._socket.close()

    def _catch_up(self) -> float:
        """A substep, if the clock is that far; the time until the next, ms."""
        behind = time.monotonic() - self._zero - self.robot.now
        if behind > MAX_BEHIND_S:
            self._zero += behind
        elif behind >= self._substep:
            self._step()
        return 0.0 if behind >= self._substep else 1e3 * (self._substep - behind)

    def _step(self) -> None:
        """One substep; the task looks on once in a control period."""
        robot = self.robot
        robot.step(1)
        if robot.now - self._judged >= robot.substeps * self._substep - 1e-9:
            self._judged = robot.now
            robot.judge()
            self.done = self.done or robot.success

    def _age(self, at: object) -> float:
        """How old the newest measurement is, s, after a robot that follows went on to a message's time."""
        if not self._follow:
            return max(0.0, time.monotonic() - self._zero - self.robot.now)
        if not isinstance(at, float) or not abs(at) < 1e12:
            raise WireError("'at' must be the time, s: this robot follows that of its messages")
        if not self._started or at - self._zero - self.robot.now > MAX_AHEAD_S:
            self._started = True
            self._zero = at - self.robot.now
        while at - self._zero - self.robot.now >= self._substep - 1e-9:
            self._step()
        return max(0.0, at - self._zero - self.robot.now)

    def _answer_all(self, wait_ms: float) -> None:
        """Answer what is there, or comes within the time until the next substep."""
        self._socket.poll(max(1, int(wait_ms)) if wait_ms else 0)
        with suppress(zmq.Again):
            for _ in range(32):  # then physics has its turn
                who, *frames = self._socket.recv_multipart(zmq.NOBLOCK)
                self._socket.send_multipart(
                    [who, pack(self._answer(frames[-1] if frames else b""))], zmq.NOBLOCK
                )

    def _answer(self, frame: bytes) -> dict[str, Any]:
        seq = None
        try:
            message = unpack(frame)
            kind, seq = message.get("type"), message.get("seq")
            seq = seq if type(seq) is int and 0 <= seq < 2**63 else None
            return {"seq": seq, "ok": True, **self._do(kind, message)}
        except (WireError, DeftlyError) as error:
            return {"seq": seq, "ok": False, "error": str(error)[:200]}

    def _do(self, kind: object, message: dict[str, Any]) -> dict[str, Any]:
        robot = self.robot
        if kind == "read":
            age = self._age(message.get("at"))
            return {"signals": robot.read().signals, "age_s": age, "success": self.done}
        if kind == "write":
            self._age(message.get("at"))
            robot.write(read_array(message.get("targets"), len(robot.contract.joints), "targets"))
        elif kind == "hello":
            return {"spec": robot.contract.robot.to_json(), "rate": robot.contract.rate}
        elif kind == "damp":
            robot.damp()
        elif kind == "stop":
            self.running = False
        else:
            raise WireError("'type' is none of hello, read, write, damp, stop")
        return {}


def main(argv: list[str]) -> int:
    """Run the robot until it is stopped."""
    from deftly.twin.robot import SimRobot

    task, args, _ = prepare(SimServerArgs, "sim", argv, "bundle", scene_only=True)
    robot = SimRobot(task, args.sim, args.seed, args.noise, args.latency_ms)
    robot.reset(args.episode)
    server = RobotServer(robot, args.bind, args.follow)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: setattr(server, "running", False))
    print(f"{READY}{server.endpoint}", flush=True)
    server.run(args.parent)
    return 0


def launch(argv: list[str]) -> tuple[subprocess.Popen[str], str]:
    """Start a simulated robot that ends with this process; returns it and its endpoint, once it answers.

    `argv` is what follows `python -m deftly.twin.server`: the task, and its settings. Raises DeftlyError if it does not
    start.
    """
    command = [sys.executable, "-m", "deftly.twin.server", *argv, "--parent", str(os.getpid())]
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            start_new_session=True,  # Ctrl-C is the parent's to handle
        )
        assert process.stdout is not None
        if select.select([process.stdout], [], [], START_S)[0]:
            line = process.stdout.readline()  # the only one
            if line.startswith(READY):
                return process, line.removeprefix(READY).strip()
        process.kill()
        process.communicate()
        said.seek(0)
        why = ([line for line in said if line.strip()] or [f"no answer within {START_S:g} s"])[
            -1
        ].strip()
    raise DeftlyError(f"the simulated robot did not start: {why.removeprefix('error: ')}")


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except DeftlyError as error:
        sys.exit(f"error: {error}")
