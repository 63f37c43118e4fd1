import ast
import dataclasses
import functools
import re
from pathlib import Path

from deftly.control.safety import Fault, SafetyConfig, State

HERE = Path(__file__).parent
DOC = (HERE.parents[1] / "docs" / "safety.md").read_text()


@functools.cache
def names(file):
    """Functions, classes and plain names at the top of a test file."""
    path = next(HERE.parent.rglob(file), HERE / file)
    body = ast.parse(path.read_text()).body
    assigned = [
        t.id
        for node in body
        if isinstance(node, ast.Assign)
        for t in node.targets
        if isinstance(t, ast.Name)
    ]
    return {
        *assigned,
        *(node.name for node in body if isinstance(node, (ast.FunctionDef, ast.ClassDef))),
    }


def test_every_test_that_the_page_names_exists():
    named = re.findall(r"`(test_\w+\.py)::(\w+)`", DOC)
    assert len(named) > 40
    assert [f"{file}::{name}" for file, name in named if name not in names(file)] == []


def test_every_promise_names_a_test():
    table = DOC.partition("## Promises")[2].partition("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 25
    assert [line for line in rows if "::test_" not in line and "::Test" not in line] == []


def test_the_page_knows_every_state_fault_and_bound():
    table = DOC.partition("## Faults")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `([\w-]+)` \|", table, re.M)) == set(Fault) - {Fault.NONE}
    assert all(f"| {state.upper()} " in DOC for state in State)
    assert [f.name for f in dataclasses.fields(SafetyConfig) if f"`{f.name}`" not in DOC] == []


def test_the_defaults_on_the_page_are_those_of_the_code():
    quoted = re.findall(r"`(\w+)` \((\d[\d.]*)", DOC)
    assert len(quoted) >= 10
    assert [name for name, value in quoted if getattr(SafetyConfig(), name) != float(value)] == []
