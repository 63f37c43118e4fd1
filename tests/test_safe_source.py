"""Nothing in the package runs what it reads: no pickle, no eval, no unsafe loader, no shell."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted([*ROOT.glob("src/**/*.py"), *ROOT.glob("bench/**/*.py")])
MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "cloudpickle",
    "dill",
    "joblib",
    "marshal",
    "shelve",
    "msgpack_numpy",
}
WORDS = ("msgpack_numpy", "allow_pickle=True", "weights_only=False", "shell=True")
FLAGS = {"allow_pickle": True, "weights_only": False, "shell": True}
"""Keyword arguments and the value that none may have."""
BUILTINS = {"eval", "exec", "compile", "__import__"}
ATTRIBUTES = {
    ("yaml", "load"): "yaml.load",
    ("yaml", "load_all"): "yaml.load_all",
    ("yaml", "unsafe_load"): "yaml.unsafe_load",
    ("yaml", "full_load"): "yaml.full_load",
    ("os", "system"): "os.system",
    ("os", "popen"): "os.popen",
    ("builtins", "eval"): "builtins.eval",
    ("builtins", "exec"): "builtins.exec",
}
NEEDS = {("np", "load"): ("allow_pickle", False), ("numpy", "load"): ("allow_pickle", False)}
NEEDS |= {("torch", "load"): ("weights_only", True)}
"""Calls that need a keyword argument of this value."""


def problems(text: str) -> list[str]:
    """What in a source file runs, or may run, what it reads."""
    found = [word for word in WORDS if word in text.replace(" ", "")]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.partition(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom):
            module = (node.module or "").partition(".")[0]
            found += [str(node.module)] if module in MODULES else []
            found += [
                f"{module}.{a.name}"
                for a in node.names
                if (module, a.name) in {**ATTRIBUTES, **NEEDS}
            ]
        elif isinstance(node, ast.Name) and node.id in BUILTINS:
            found.append(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found += [ATTRIBUTES[key]] if (key := (node.value.id, node.attr)) in ATTRIBUTES else []
        elif isinstance(node, ast.Call):
            found += _call(node)
    return found


def _call(node: ast.Call) -> list[str]:
    given = {
        k.arg: k.value.value if isinstance(k.value, ast.Constant) else "?" for k in node.keywords
    }
    found = [
        f"{name}={given[name]}"
        for name, bad in FLAGS.items()
        if name in given and given[name] in (bad, "?")
    ]
    function = node.func
    if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
        needs = NEEDS.get((function.value.id, function.attr))
        found += (
            [f"{function.value.id}.load without {needs[0]}"]
            if needs and given.get(needs[0]) is not needs[1]
            else []
        )
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_source_is_safe(file):
    assert problems(file.read_text()) == []


def test_there_is_source():
    assert len(FILES) > 40


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "def f():\n    import pickle as p",
        "from pickle import loads",
        "import cloudpickle.x",
        "import msgpack_numpy",
        "eval('1')",
        "f = eval",
        "exec(x)",
        "yaml.load(x)",
        "yaml.load(x, Loader=yaml.SafeLoader)",
        "from yaml import load",
        "yaml.unsafe_load(x)",
        "np.load(x)",
        "np.load(x, allow_pickle=True)",
        "np.load(x, allow_pickle=flag)",
        "from numpy import load",
        "numpy.load(x)",
        "torch.load(x)",
        "torch.load(x, weights_only=False)",
        "f(weights_only = False)",
        "subprocess.run(x, shell=True)",
        "subprocess.run(x, shell=flag)",
        "os.system(x)",
        "# shell=True",
    ],
)
def test_the_test_can_fail(text):
    assert problems(text)


@pytest.mark.parametrize(
    "text",
    [
        "model.eval()",
        "spec.loader.exec_module(module)",
        "ast.literal_eval(x)",
        "re.compile(x)",
        "spec.compile()",
        "yaml.safe_load(x)",
        "np.load(x, allow_pickle=False)",
        "np.savez(x, allow_pickle=False)",
        "torch.load(x, weights_only=True)",
        "checkpoint.load(x)",
    ],
)
def test_the_test_can_pass(text):
    assert problems(text) == []
