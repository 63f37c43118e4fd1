"""The documentation: examples run, commands parse, links lead somewhere."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from documented import ROOT, parse_command

from deftly import robots, tasks
from deftly.commands import main as cli
from deftly.commands.table import COMMANDS
from deftly.config import ALIASES, EnvConfig, SimConfig
from deftly.config.constraints import kebab
from deftly.config.older_names import SWITCHES, resolve
from deftly.config.presets import PRESETS, divide
from deftly.console import failed
from deftly.control.operator.timetable import Timetable
from deftly.env import Env
from deftly.robots.check import check

EXAMPLES = ROOT / "examples"
REACH = str(EXAMPLES / "reach_target.py")
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[list[str]]:
    """Words after `deftly` of each command in a page's fenced blocks."""
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    lines = [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]
    return [line[line.index("deftly") + 1 :] for line in lines if "deftly" in line]


ALL_COMMANDS = sorted(
    {(page.name, shlex.join(words)) for page in PAGES for words in commands(page)}
)


def anchors(page: Path) -> set[str]:
    heads = re.findall(r"^#+ (.*)$", without_code(page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", without_code(page.read_text())):
        if not re.match(r"https?://", target):
            path, _, anchor = target.partition("#")
            other = (page.parent / path).resolve() if path else page
            assert other.exists(), target
            assert not anchor or anchor in anchors(other), target


def test_readme_names_every_page():
    text = (ROOT / "README.md").read_text()
    for page in [*(ROOT / "docs").glob("*.md"), *EXAMPLES.glob("*.py"), *EXAMPLES.glob("*.ipynb")]:
        assert str(page.relative_to(ROOT)) in text


def test_the_site_names_every_page():
    nav = (ROOT / "zensical.toml").read_text()
    assert {page.name for page in (ROOT / "docs").glob("*.md")} == set(
        re.findall(r'"([\w-]+\.md)"', nav)
    )


def test_the_python_page_runs(tmp_path, monkeypatch):
    page = (ROOT / "docs/python.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 5
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(EXAMPLES)
    exec(compile("\n".join(blocks), "docs/python.md", "exec"), {"__name__": "docs"})
    assert (tmp_path / "results/bundle/policy.onnx").is_file()


def test_readme_has_exactly_two_set_up_commands():
    text = (ROOT / "README.md").read_text()
    block = re.search(r"^## Set-up.*?^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert block is not None
    assert block[1].splitlines() == ["make quickstart", "make test"]


def test_make_targets_exist():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for page in PAGES:
        for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
            for name in re.findall(r"^make ([\w-]+)", block, re.MULTILINE):
                assert name in targets, page


@pytest.mark.parametrize("target", ["test-slow", "test-warp", "test-vla", "test-openpi"])
def test_long_tests_are_not_taken_for_hanging(target):
    """Some fuzz for ten minutes; a plain `pytest` ends a process whose test takes five."""
    recipe = subprocess.run(
        ["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    runs = [line for line in recipe.splitlines() if " -m pytest -m " in line]
    assert len(runs) == 1
    allowed = re.search(r"-o faulthandler_timeout=(\d+)", runs[0])
    assert allowed
    assert int(allowed[1]) >= 1800


@pytest.mark.parametrize(("page", "command"), ALL_COMMANDS)
def test_commands_parse(page, command):
    parse_command(shlex.split(command))


def test_every_command_is_documented():
    text = "".join(page.read_text() for page in PAGES)
    assert all(f"deftly {name}" in text for name in COMMANDS)


def test_aliases_of_the_table_are_known():
    text = (ROOT / "docs/configuration.md").read_text()
    table = text.partition("## Aliases")[2].partition("\n## ")[0]
    typed = {
        word
        for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
        for word in re.findall(r"`([\w.]+)`", row)
    }
    assert typed
    assert {word for word in typed if resolve(word, ()) == kebab(word)} <= {*ALIASES, *SWITCHES}


def test_presets_of_the_table():
    text = (ROOT / "docs/configuration.md").read_text()
    for name, p in PRESETS.items():
        cells = [
            f"{1e3 * p.timestep:.1f} ms",
            str(divide(15.0, name)),
            str(p.iterations),
            f"{p.impratio:g}",
        ]
        row = re.search(rf"^\| `{name}` +\|(.*)\|$", text, re.MULTILINE)
        assert row is not None
        assert [cell.strip() for cell in row[1].split("|")] == cells


def test_two_link_passes_its_check(capsys):
    assert not failed(check(robots.load(str(EXAMPLES / "two_link.py"))))
    assert cli.main(["robots", str(EXAMPLES / "two_link.py")]) == 0


WALKING = ROOT / "docs/wildrobot-tutorial.md"
TINY = {
    "train": (
        *("--env.num-envs", "8", "--train.steps", "4", "--train.hidden", "16", "--eval-every", "0"),
        *("--train.max-iterations", "1", "--tensorboard", "False", "--log-level", "warning"),
    ),
    "eval": ("--episodes", "2", "--env.episode-steps", "20", "--video", "False"),
    "export": ("--episodes", "2"),
    "check": (),
    "sim2sim": ("--episodes", "1", "--task.episode-steps", "40"),
}
"""What makes the tutorial's commands short."""


def without(words, *flags):
    """A command without some flags and their values."""
    kept, skips = [], False
    for word in words:
        skips = word in flags or (skips and not word.startswith("--"))
        kept += [] if skips else [word]
    return kept


def file_of_commands(folder):
    """The one that the tutorial has the reader save."""
    table = re.search(r"^```csv\n(.*?)^```", WALKING.read_text(), re.DOTALL | re.MULTILINE)
    assert table is not None
    path = folder / "walk.csv"
    path.write_text(table[1])
    return path


def test_the_walking_tutorials_file_of_commands_is_one(tmp_path):
    task = tasks.load("wildrobot-walk")
    operator = Timetable(file_of_commands(tmp_path), task(task.Config()).contract())
    said = [float(operator.at(seconds)["speed"][0]) for seconds in (0.0, 1.0, 6.0, 9.0, 99.0)]
    assert said == [0.0, 0.3, 0.4, 0.0, 0.0]
    assert operator.notes() == []


@pytest.mark.slow
def test_the_walking_tutorial_runs(tmp_path, monkeypatch, capsys):
    """Each of its commands that needs no person, no screen and no real time, made short."""
    monkeypatch.chdir(tmp_path)
    file_of_commands(tmp_path)
    ran = []
    for words in commands(WALKING):
        name, rest = words[0], without(words[1:], "--gate", "--episodes", "--until-success")
        # a policy that learned for seconds falls before the second at which the tutorial has a fault
        rest = [re.sub(r"^(\w+)@\d+$", r"\1@0.1", word) for word in rest]
        if name in TINY and "wildrobot-stand" not in rest:
            assert cli.main([name, *rest, *TINY[name]]) == 0, words
            ran.append(name)
    assert set(ran) == set(TINY)
    assert ran.count("sim2sim") == 4


def test_reach_target_runs(capsys, tmp_path):
    root = ("--runs.root", str(tmp_path))
    assert tasks.load(REACH).name == "jaka-reach"
    assert cli.main(["config", REACH, "task.tolerance=0.03"]) == 0
    assert "tolerance: 0.03" in capsys.readouterr().out
    tiny = [
        "--env.num-envs",
        "8",
        "--train.steps",
        "4",
        "--train.hidden",
        "16",
        "--tensorboard",
        "False",
    ]
    few = [
        "--train.max-iterations",
        "2",
        "--eval-every",
        "0",
        "--env.episode-steps",
        "8",
        "--log-level",
        "warning",
    ]
    assert cli.main(["train", REACH, *tiny, *few, *root]) == 0
    short = ["--episodes", "4", "--env.episode-steps", "8", "--video", "False"]
    assert cli.main(["eval", REACH, *short, *root]) == 0
    assert "jaka-reach: success" in capsys.readouterr().out


def test_reach_target_starts_anywhere_in_its_box():
    cls = tasks.load(REACH)
    env = Env(cls(cls.Config()), EnvConfig(num_envs=64), SimConfig(threads=1))
    target, cfg = env.state.body("target"), cls.Config()
    for axis in range(3):
        low, high = cfg.target_low[axis], cfg.target_high[axis]
        assert low <= target[:, axis].min() < target[:, axis].max() <= high
        assert target[:, axis].max() - target[:, axis].min() > 0.5 * (high - low)
