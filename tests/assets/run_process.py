"""A `deftly run` of a test's own, whose lines are gathered."""

import os
import subprocess
import threading
import time

from forks import Command


class Process:
    """A running command whose lines are gathered, forked from a process that has imported what it needs."""

    def __init__(self, forks, words, cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE):
        self.lines: list[str] = []
        given, self.stdin = _ends(stdin, os.O_RDONLY)
        taken, output = _ends(stdout, os.O_WRONLY)
        self._output = output
        self.child = Command(forks, ["run", *map(str, words)], cwd, (given, taken, taken))
        for ours, asked in ((given, stdin), (taken, stdout)):
            if asked in (subprocess.DEVNULL, subprocess.PIPE):
                os.close(ours)
        self._reader = threading.Thread(target=lambda: self.lines.extend(output or ()))
        self._reader.start()

    @property
    def text(self):
        return "".join(self.lines)

    def until(self, words, count=1, seconds=20):
        """Wait until the words were said."""
        self.wait_for(lambda: self.text.count(words) >= count, seconds)

    def wait_for(self, happened, seconds=20):
        end = time.monotonic() + seconds
        while not happened():
            assert time.monotonic() < end, self.text
            time.sleep(0.005)

    def end(self, seconds=20):
        """The exit status, once it has ended."""
        try:
            return self.child.wait(seconds)
        finally:
            self.close()

    def close(self):
        self.child.kill()
        self.child.wait()
        self._reader.join()
        for end in filter(None, (self._output, self.stdin)):
            end.close()


def _ends(asked, flags):
    """The end of a stream that is the command's, and ours as a file; None if it is nobody's or the test's own."""
    if asked == subprocess.DEVNULL:
        return os.open(os.devnull, flags), None
    if asked != subprocess.PIPE:
        return asked, None
    reads, writes = os.pipe()
    if flags == os.O_RDONLY:
        return reads, open(writes, "w")
    return writes, open(reads)
