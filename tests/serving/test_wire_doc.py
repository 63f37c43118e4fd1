"""docs/wire.md: its robot program runs, and its tables name what the code has."""

import re
import threading
from pathlib import Path

import numpy as np
import pytest
from toy_robot import CONTRACT, network, signals

from deftly.policy.protocol import ContractPolicy, OneRobot
from deftly.serving import server as server_module
from deftly.serving.listener import HANDSHAKE_S, MAX_PEERS, STALL_S
from deftly.serving.server import (
    _HANDLERS,
    IDLE_S,
    MAX_BATCH,
    MAX_SESSIONS,
    MAX_WAITING,
    PAUSE_S,
    Server,
)
from deftly.serving.wire import MAX_FRAME, MAX_LIST, MAX_MAP
from deftly.serving.zmtp import MAX_FRAMES

PAGE = (Path(__file__).parents[2] / "docs/wire.md").read_text()


class Robot:
    """A robot that is at once where it is told to be."""

    def __init__(self, dies_at: int = -1):
        self.now, self.written, self.stopped, self.dies_at = signals(0), [], 0, dies_at

    def read(self):
        return self.now

    def write(self, targets):
        self.written.append(targets)
        self.now = {**self.now, "joint_pos": targets}
        if len(self.written) == self.dies_at:
            self.server.stop()
            self.thread.join()

    def stop(self):
        self.stopped += 1


@pytest.fixture
def serving():
    server = Server(ContractPolicy(CONTRACT, network), "tcp://127.0.0.1:*")
    thread = threading.Thread(target=server.run)
    thread.start()
    yield server, thread
    server.stop()
    thread.join(10)


def program() -> str:
    (text,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    return text.replace("timeout=0.02", "timeout=2.0").replace(
        "1 / policy.contract.rate", "0.001"
    )  # for busy machines


def table(title: str) -> list[str]:
    part = PAGE.partition(f"## {title}\n")[2].partition("\n## ")[0]
    return re.findall(r"^\| `([\w-]+)`", part, re.MULTILINE)


def test_the_robot_program_drives_as_the_policy_does(serving):
    names = {}
    exec(compile(program(), "docs/wire.md", "exec"), names)
    robot, local, twin = Robot(), OneRobot(ContractPolicy(CONTRACT, network)), Robot()
    names["drive"](robot, serving[0].endpoint, steps=10)
    for _ in range(10):
        twin.write(local.infer(twin.read()).targets)
    assert np.array_equal(robot.written, twin.written)
    assert robot.stopped == 1


def test_the_robot_program_stops_when_the_server_goes(serving):
    names = {}
    exec(compile(program().replace("timeout=2.0", "timeout=0.3"), "docs/wire.md", "exec"), names)
    robot = Robot(dies_at=3)
    robot.server, robot.thread = serving
    with pytest.raises(SystemExit, match=r"stopped: no (answer|policy server)"):
        names["drive"](robot, serving[0].endpoint)
    assert (len(robot.written), robot.stopped) == (3, 1)


def test_the_program_is_short():
    (text,) = re.findall(r"^def drive.*?(?=^```)", PAGE, re.DOTALL | re.MULTILINE)
    assert len([line for line in text.splitlines() if line.strip()]) <= 20


def test_tables_name_every_message_and_code():
    assert table("Messages") == [
        "v",
        "type",
        "seq",
        "time",
        "ping",
        "init",
        "reset",
        "infer",
        "close",
        "status",
    ]
    assert set(table("Messages")[4:]) == set(_HANDLERS)
    source = Path(server_module.__file__).read_text()
    codes = set(re.findall(r'Refusal\(\s*"([\w-]+)"', source)) | {
        "bad-message",
        "bad-signals",
        "no-answer",
        "internal",
    }
    assert set(table("Codes")) == codes


def test_figures_of_the_page():
    figures = [
        f"{MAX_FRAME} bytes",
        f"\n{MAX_LIST} elements",
        f"{MAX_MAP}, at any",
        f"for {IDLE_S:.0f} s",
        f"for {PAUSE_S:.0f} s",
        f"{MAX_WAITING} sessions",
        f"{MAX_FRAMES} frames",
        f"{MAX_PEERS} connections",
        f"{HANDSHAKE_S:.0f} s",
        f"{STALL_S:.0f} s",
    ]
    for text in (*figures, f"most {MAX_SESSIONS} (", f"most {MAX_BATCH}."):
        assert text in PAGE, text
