"""`docs/coming-from.md`: commands that take seconds are run, made small; the others are parsed."""

import re
import shlex
import shutil
from contextlib import contextmanager
from typing import NamedTuple

import pytest
from documented import ROOT, parse_command

from deftly.commands import main as cli
from deftly.commands import play
from deftly.render import viewers

SMALL = {
    "train": "--env.num-envs 8 --train.steps 4 --train.hidden 16 --train.minibatches 2 --eval-every 0 "
    "--tensorboard False --log-level warning --train.max-iterations 2 --sim.threads 1",
    "test": "--episodes 2 --video False --sim.threads 1",
    "eval": "--episodes 2 --video False --sim.threads 1",
    "play": "--episodes 1 --sim.threads 1",
    "export": "--episodes 2 --sim.threads 1",
    "record": "--num-steps 5 --sim.threads 1",
    "config": "",
    "runs": "",
    "tasks": "",
}
"""What makes each command that is run take little time, put at its end."""
NOT_HERE = {"torchrun", "torch.distributed.launch", "--wandb", "warp"}
"""Words of commands that need what a test does not have: they are parsed."""


class Row(NamedTuple):
    """A line of a table."""

    there: str
    here: str
    remarks: str

    @property
    def words(self) -> list[str]:
        """The words after `deftly`; none if it is another program's command."""
        words = shlex.split(self.here)
        return words[words.index("deftly") + 1 :] if "deftly" in words else []

    @property
    def runs(self) -> bool:
        """Whether it is run."""
        own = {word for word in self.words if re.match("TASK|RUN|BUNDLE", word)}
        listing = self.words[0] in ("config", "runs", "tasks")
        return (
            self.words[0] in SMALL
            and bool(own or listing)
            and not NOT_HERE & set(shlex.split(self.here))
        )


def rows() -> list[Row]:
    page = (ROOT / "docs/coming-from.md").read_text()
    found = []
    for line in page.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == 3 and cells[0] not in ("there", "-------") and "`" in cells[1]:
            found.append(Row(cells[0], re.findall("`([^`]+)`", cells[1])[0], cells[2]))
    return found


ROWS = [row for row in rows() if row.words]
RUN = [row for row in ROWS if row.runs]
PARSED = [row for row in ROWS if not row.runs]


def ids(found: list[Row]) -> list[str]:
    return [row.here for row in found]


@pytest.fixture
def place(exported, tmp_path, monkeypatch):
    """A folder with a run of the toy task, where nothing opens a window. What to write for the words of the page."""

    @contextmanager
    def view(env, data, options):
        yield viewers.View(lambda data: None, lambda: True, lambda: 100.0)

    for name in ("runs", "runs_all"):
        shutil.copytree(exported.root / name, tmp_path / name, symlinks=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(viewers, "pick_viewer", lambda wanted: "web")
    monkeypatch.setattr(viewers, "web", view)
    monkeypatch.setattr(play, "record", lambda *_: None)
    run = exported.checkpoint.parent.parent.name
    (tmp_path / "MyTaskPPO.yaml").write_text("train: {learning_rate: 3e-4}")
    return {
        "TASK": exported.task,
        "RUN": run,
        "BUNDLE": str(exported.bundle),
        "iter_000100": "iter_000001",
    }


def filled(words: list[str], place: dict[str, str]) -> list[str]:
    """The words with a task, a run and a bundle for those of the page."""
    pattern = re.compile(r"\b(" + "|".join(place) + r")\b")
    return [pattern.sub(lambda found: place[found[1]], word) for word in words]


@pytest.mark.parametrize("row", RUN, ids=ids(RUN))
def test_a_row_runs(row, place, capsys):
    words = filled(row.words, place)
    if ">" in words:
        del words[words.index(">") :]
    if "latest_test" in words:
        assert cli.main(["eval", place["TASK"], *SMALL["eval"].split()]) == 0
    is_test = any(word.endswith("test=true") or "test_re" in word for word in words)
    small = SMALL["test" if is_test else words[0]].split()
    status = cli.main([*words, *small])
    said = capsys.readouterr()
    gated = "--gate" in words
    assert status in ((0, 1) if gated else (0,)), said.err


@pytest.mark.parametrize("row", PARSED, ids=ids(PARSED))
def test_a_row_parses(row, place):
    parse_command(filled(row.words, place))


def test_every_system_has_rows():
    text = (ROOT / "docs/coming-from.md").read_text()
    heads = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert len(heads) == 7
    assert len(RUN) > 40
    assert len(PARSED) > 10
