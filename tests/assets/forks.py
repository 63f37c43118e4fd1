"""Commands in processes of their own, forked from one that has imported what they need: each starts in milliseconds."""

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

PARSING = ("tyro", "deftly.commands.main")
TRAINING = (
    *PARSING,
    *("deftly.commands.train", "deftly.env", "deftly.evaluate.validation"),
    *("deftly.learn.train", "deftly.learn.ppo"),
    "torch._dynamo",  # which the first step of an optimizer imports
)
RUNNING = (
    *PARSING,
    *("deftly.commands.run", "deftly.control.session"),
    *("deftly.policy.bundle", "deftly.serving.client"),
)
LONGEST = 1 << 20
"""Of a message, bytes."""


class Forks:
    """The process that they are forked from, which imports these modules."""

    def __init__(self, modules: Sequence[str]):
        self.link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            words = [sys.executable, __file__, str(theirs.fileno()), *modules]
            self.process = subprocess.Popen(words, pass_fds=[theirs.fileno()])

    def ask(self, request: dict, handles: Sequence[int] = ()):
        socket.send_fds(self.link, [json.dumps(request).encode()], handles)
        return json.loads(self.link.recv(LONGEST))

    def close(self) -> None:
        self.link.close()
        self.process.wait(20)


class Command:
    """`deftly WORDS` as it runs in a folder, with these numbers for standard input, output and errors."""

    def __init__(self, forks: Forks, words: Sequence[str], folder: Path, handles: Sequence[int]):
        self._forks, self.returncode = forks, None
        self.pid: int = forks.ask({"words": list(words), "folder": str(folder)}, handles)

    def poll(self) -> int | None:
        """The exit status, less than 0 for a signal that killed it; None while it runs."""
        if self.returncode is None:
            self.returncode = self._forks.ask({"ended": self.pid})
        return self.returncode

    def wait(self, seconds: float = 60.0) -> int:
        deadline = time.monotonic() + seconds
        while (status := self.poll()) is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        return status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start(link: socket.socket, handles: Sequence[int], words: list[str], folder: str) -> int:
    """Fork `python -m deftly WORDS`, which asks nothing by the link; the process id."""
    pid = os.fork()
    if pid:
        for handle in handles:
            os.close(handle)
        return pid
    os.close(link.detach())
    for number, handle in enumerate(handles):
        os.dup2(handle, number)
        os.close(handle)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
    os.chdir(folder)
    sys.path[0], sys.argv = folder, ["deftly", *words]
    main = importlib.import_module("deftly.commands.main").main
    sys.exit(main())


def ended(pid: int) -> int | None:
    found, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def serve(link: socket.socket) -> None:
    """Answer requests until nobody is there to make them; no command outlives that."""
    running = set()
    while message := (received := socket.recv_fds(link, LONGEST, 3))[0]:
        asked = json.loads(message)
        if "ended" in asked:
            answer = ended(asked["ended"])
            if answer is not None:
                running.remove(asked["ended"])
        else:
            answer = start(link, received[1], **asked)
            running.add(answer)
        link.send(json.dumps(answer).encode())
    for pid in running:
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    for name in sys.argv[2:]:
        importlib.import_module(name)
    with socket.socket(fileno=int(sys.argv[1])) as asking:
        serve(asking)
