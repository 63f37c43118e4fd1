"""The robot's computer: the deploy side runs from the base install alone, with nothing of training in the process."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BLOCKED = (
    "torch mujoco gymnasium rsl_rl safetensors tensordict tensorboard matplotlib PIL av onnx onnxscript mjviser viser "
    "scipy pandas pytest hypothesis"
)
MOST_PACKAGES, MOST_MEGABYTES = 20, 200

PROGRAM = '''
"""Load, verify, infer, serve and check, as a robot's computer would. Arguments: a bundle, modules to block."""
import importlib.util, json, sys, threading
from importlib.abc import MetaPathFinder
from pathlib import Path

folder, blocked = Path(sys.argv[1]), sys.argv[2].split()

class Block(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name.partition(".")[0])

sys.meta_path.insert(0, Block())

import numpy as np
from deftly.policy.protocol import ContractPolicy, OneRobot
from deftly.commands import main as cli
from deftly.policy import bundle

found = bundle.load(folder)
policy = OneRobot(found.policy())
signals = {s.name: found.golden[f"signal/{s.name}"][0] for s in found.contract.signals}
policy.reset()
action, targets = policy.infer(signals)
np.testing.assert_allclose(targets, found.golden["targets"][0], atol=1e-5)
policy.close()

served = None
if importlib.util.find_spec("deftly.serving.server"):
    from deftly.serving.client import Client
    from deftly.serving.server import Server

    server = Server(ContractPolicy(found.contract, found.network), "tcp://127.0.0.1:*")
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        client = OneRobot(Client(server.endpoint, timeout=10.0))
        client.reset()
        served = client.infer(signals).targets.tolist()
        client.close()
    finally:
        server.stop()
        thread.join(10)

status = cli.main(["check", str(folder)])
loaded = sorted(name for name in blocked if name in sys.modules)
print(json.dumps({"status": status, "loaded": loaded, "targets": targets.tolist(), "served": served}))
'''


def run(
    python, folder: Path, cwd: Path, blocked: str = "", path: str | None = None
) -> tuple[dict, str]:
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | (
        {"PYTHONPATH": path} if path else {}
    )
    done = subprocess.run(
        [str(python), "-c", PROGRAM, str(folder), blocked],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stdout


def judge(result: dict, text: str) -> None:
    assert result["status"] == 0, text
    assert result["loaded"] == []
    assert result["served"] in (None, pytest.approx(result["targets"], abs=1e-6))
    assert "not checked, for want of" in text
    assert 'pip install "deftly[train]"' in text
    assert text.startswith("policy: bundle ")
    assert text.count("\n ok ") == 9
    assert text.count("\n warn ") == 2  # the closed loop, and a policy that never succeeded


def test_the_deploy_side_runs_without_training(exported, tmp_path):
    result, text = run(sys.executable, exported.bundle, tmp_path, BLOCKED, str(ROOT / "src"))
    judge(result, text)


def test_importing_the_deploy_side_imports_nothing_of_training(tmp_path):
    rooms, package = ("contract", "policy", "control", "serving"), ROOT / "src/deftly"
    files = [
        file.relative_to(package.parent)
        for room in rooms
        for file in (package / room).rglob("[!_]*.py")
    ]
    names = [".".join(file.with_suffix("").parts) for file in files]
    code = f"import sys, importlib\nfor n in {names!r}: importlib.import_module(n)\nprint(*sys.modules)"
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert "deftly.policy.bundle" in loaded
    assert not loaded & {*BLOCKED.split(), "tyro"}


@pytest.mark.slow
def test_the_base_install_is_small_and_enough(exported, tmp_path):
    """`pip install .` in a new virtual environment: needs the package index."""
    source, venv = tmp_path / "source", tmp_path / "venv"
    shutil.copytree(
        ROOT / "src", source / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__")
    )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    python = venv / "bin/python"
    pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--quiet", str(source)], check=True, timeout=600)
    listed = subprocess.run(
        [*pip, "list", "--format", "json"], check=True, capture_output=True, text=True
    )
    packages = [
        p["name"]
        for p in json.loads(listed.stdout)
        if p["name"] not in ("pip", "setuptools", "wheel")
    ]
    site = next(venv.glob("lib/python*/site-packages"))
    own = [
        p
        for p in site.rglob("*")
        if p.is_file() and p.relative_to(site).parts[0] not in ("pip", "setuptools")
    ]
    megabytes = sum(p.stat().st_size for p in own) / 1e6
    print(
        f"base install: {len(packages)} packages, {megabytes:.0f} MB: {', '.join(sorted(packages))}"
    )
    assert len(packages) <= MOST_PACKAGES, packages
    assert megabytes <= MOST_MEGABYTES
    judge(*run(python, exported.bundle, tmp_path))
