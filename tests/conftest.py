import gc
import os
import signal
import socket

import pytest

from deftly.console import set_log_level
from deftly.render import choose_gl

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tests' networks are tiny: threads only cost
try:
    choose_gl()
except Exception:  # the tests that render say what is missing
    os.environ.pop("MUJOCO_GL", None)

# A shell ignores these in what it runs in the background, and so would the tests' children.
for name in ("SIGINT", "SIGQUIT"):
    if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) is signal.SIG_IGN:
        signal.signal(getattr(signal, name), signal.SIG_DFL)


def pytest_ignore_collect(collection_path, config):
    """With `-m realtime`, or another single marker, files without such a test need not be imported."""
    marker, path = config.option.markexpr, collection_path
    if marker.isidentifier() and path.name.startswith("test_") and path.suffix == ".py":
        return True if marker not in path.read_text(encoding="utf-8") else None
    return None


LONG = (
    *("test_shipped.py", "test_wrong_calls.py", "test_off_policy.py", "test_gait.py"),
    *("test_distill.py", "test_distill_images.py", "test_trainer.py", "test_ranks.py"),
    *("test_sysid.py", "test_touch.py", "test_examples.py", "test_docs.py", "test_coming_from.py"),
)
"""Files that take longest. They come first, so that no process is left with one of them at the end."""


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in LONG)


def pytest_collection_finish():
    """Thousands of tests and their modules stay to the end: the garbage collector is not to go through them."""
    gc.collect()
    gc.freeze()


DIED = 3
"""Exit status if a process of pytest-xdist died: tests were left out, and to run the failed ones again is no cure."""
died = []


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    if error:
        died.append(node)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    if died:
        session.exitstatus = DIED


LOOPBACK = ("127.", "::1", "localhost", "0.0.0.0")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """A test that reaches for another machine fails."""

    def guarded(real):
        def connect(self, address):
            if isinstance(address, tuple) and not str(address[0]).startswith(LOOPBACK):
                raise OSError(f"a test reached for the network: {address}")
            return real(self, address)

        return connect

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, guarded(getattr(socket.socket, name)))


@pytest.fixture(autouse=True)
def usual_log_level():
    """A test does not inherit how much the command of another was told to print."""
    set_log_level("info")


@pytest.fixture(autouse=True, scope="session")
def few_threads():
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def slider():
    """Makes environments of the toy task: `slider(num_envs, seed=..., env={...}, goal=...)`."""
    from pathlib import Path

    from deftly.config import EnvConfig, SimConfig
    from deftly.env import Env
    from deftly.tasks import load

    cls = load(str(Path(__file__).parent / "assets" / "slider.py"))

    def make(num_envs=4, seed=0, purpose="train", env=None, threads=1, dump_dir=None, **task):
        config = EnvConfig(num_envs=num_envs, **(env or {}))
        return Env(
            cls(cls.Config(**task)), config, SimConfig(threads=threads), seed, purpose, dump_dir
        )

    return make


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """A toy task's bundle (`.bundle`), exported once, its checkpoint, the task's file, and the root of the runs."""
    from pathlib import Path
    from types import SimpleNamespace

    from deftly import workspace
    from deftly.commands import export, train
    from deftly.config import RunsConfig

    task, root = str(Path(__file__).parent / "assets/rail.py"), tmp_path_factory.mktemp("exported")
    where = ("--runs.root", str(root), "--sim.threads", "1")
    tiny = (
        "--env.num-envs",
        "8",
        "--train.steps",
        "4",
        "--train.hidden",
        "16",
        "--train.minibatches",
        "2",
    )
    short = (
        "--train.max-iterations",
        "1",
        "--eval-every",
        "0",
        "--tensorboard",
        "False",
        "--log-level",
        "warning",
    )
    assert train.main([task, *tiny, *short, *where]) == 0
    assert export.main([task, "--out", str(root / "bundle"), "--episodes", "8", *where]) == 0
    checkpoint = workspace.find_checkpoint("latest", "rail", RunsConfig(root=root))
    return SimpleNamespace(task=task, root=root, bundle=root / "bundle", checkpoint=checkpoint)


@pytest.fixture
def terminal():
    """Both ends of a terminal: the operator's, the program's."""
    import pty

    ends = pty.openpty()
    yield ends
    for end in ends:
        os.close(end)
