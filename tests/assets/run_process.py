"""A `deftly run` of a test's own, whose lines are gathered."""

import subprocess
import sys
import threading
import time


class Process:
    """A running command whose lines are gathered."""

    def __init__(self, words, cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE):
        command = [sys.executable, "-m", "deftly", "run", *map(str, words)]
        self.child = subprocess.Popen(
            command, cwd=cwd, stdin=stdin, stdout=stdout, stderr=subprocess.STDOUT, text=True
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=lambda: self.lines.extend(self.child.stdout or ()))
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
        if self.child.stdout:
            self.child.stdout.close()
