"""Runs commands of `deftly` in processes that may be killed, without starting Python for each.

Reads one command a line, a JSON list: the seconds after which it is killed (none: never), and its words. Answers with
its exit status, negative if a signal ended it, and the seconds that it took.
"""

import json
import os
import signal
import sys
import time

import torch

import deftly.data.record
import deftly.evaluate.export
import deftly.evaluate.handover
import deftly.evaluate.validation
import deftly.learn.train
import deftly.twin.robot  # noqa: F401  (all that the commands would import, once for all of them)
from deftly.commands import export, record, train

MAINS = {"train": train.main, "export": export.main, "record": record.main}


def run(name: str, words: list[str]) -> int:
    """Run a command in this process; what it prints goes to standard error."""
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        return MAINS[name](words)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return 2


def main() -> None:
    """Answer until the input ends."""
    torch.set_num_threads(1)
    for line in sys.stdin:
        seconds, name, *words = json.loads(line)
        started = time.monotonic()
        child = os.fork()
        if child == 0:
            os._exit(run(name, words))
        if seconds is not None:
            time.sleep(seconds)
            os.kill(
                child, signal.SIGKILL
            )  # also one that has ended: its number is not free before it is waited for
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(json.dumps([status, time.monotonic() - started]), flush=True)


if __name__ == "__main__":
    main()
