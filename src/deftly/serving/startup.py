"""How a policy server of either protocol starts and ends: who may reach it, why it cannot bind, what stops it."""

from __future__ import annotations

import errno
import signal
from collections.abc import Callable
from pathlib import Path

from deftly.errors import DeftlyError
from deftly.serving.endpoint import Endpoint
from deftly.serving.memory import keep_memory


def require_keys(endpoint: str, where: Endpoint, keys: Path | None) -> None:
    """Raise DeftlyError if other machines can reach an address, and the server has no keys."""
    if not where.is_local and keys is None:
        raise DeftlyError(
            f"'{endpoint}' may be reached from other machines: give --keys DIR, or bind to 127.0.0.1"
        )


def unbound(endpoint: str, error: OSError, advice: str = "") -> DeftlyError:
    """Why there is no server at an address, in a line; `advice` is for other reasons than a port in use."""
    hint = "; choose another port" if error.errno == errno.EADDRINUSE else advice
    return DeftlyError(f"cannot serve on '{endpoint}': {error.strerror or error}{hint}")


def run_until_signal(run: Callable[[], None], stop: Callable[[], None]) -> None:
    """Call `run`, which returns after `stop`; SIGTERM and SIGINT call that. For the main thread."""
    keep_memory()
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, lambda *_: stop()) for number in numbers}
    try:
        run()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
