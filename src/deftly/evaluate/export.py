"""Turn a checkpoint into a bundle, the folder that a robot's computer runs without torch or MuJoCo.

Everything in it is made from this one checkpoint, now: the network, its evaluation on held out episodes, and golden
vectors from a real episode. What was written is then checked as `deftly check` does.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from deftly import __version__
from deftly.config import EnvConfig, SimConfig, to_yaml
from deftly.contract import STATE
from deftly.errors import DeftlyError
from deftly.evaluate.evaluate import EvalSettings, measure
from deftly.files import pack_npz
from deftly.policy import bundle
from deftly.policy.protocol import (
    ACTION,
    OBSERVATION,
    ContractPolicy,
    OnnxNetwork,
)

if TYPE_CHECKING:
    from deftly.contract import PolicyContract
    from deftly.learn.checkpoint import Checkpoint
    from deftly.learn.networks import Policy
    from deftly.tasks import Task

OPSET = 18
"""Version of ONNX's operators: what onnxruntime 1.20 and later run."""
GOLDEN_STEPS = 32
EXTREMES = (0.0, 1.0, 10.0, 1e3, 1e6)
"""Sizes of the observations on which torch and ONNX are compared."""


def export(
    task: Task,
    found: Checkpoint,
    folder: Path,
    settings: EvalSettings,
    command: str,
    say: Callable[[str], None] = lambda line: None,
) -> Path:
    """Write the bundle of a checkpoint: its network as ONNX, contract, golden vectors, and its evaluation.

    Args:
        task: The task, with the settings under which the policy is evaluated.
        found: The checkpoint.
        folder: Where to write; an older bundle there is replaced.
        settings: Which episodes the evaluation has.
        command: What makes this bundle again, for the report.
        say: Takes a line for each part that is done.

    Raises DeftlyError if `folder` is something else, or torch and ONNX do not compute the same.
    """
    bundle.require_place(folder)
    policy, contract = found.policy(), found.contract
    model = to_onnx(policy)
    network = bundle.read_network(model, contract)
    error = compare(policy, network, contract.obs_size())
    if not error <= bundle.TOLERANCE:
        raise DeftlyError(
            f"{found.path}: torch and ONNX differ by {error:.2g} on the same observation: not exported"
        )
    say(f"{bundle.NETWORK}: torch and ONNX agree to {error:.1g}")
    report, _ = measure(task, found, settings)
    report["command"] = command
    low, high = report["success"]["wilson95"]
    rate, episodes = report["success"]["rate"], report["episodes"]
    interval = f"{low:.1%} to {high:.1%}"
    say(f"{bundle.REPORT}: success {rate:.1%} ({interval}), {episodes} episodes")
    files = {
        bundle.NETWORK: model,
        bundle.SPEC: contract.to_json().encode(),
        bundle.ROBOT: bundle.robot_config(contract).encode(),
        bundle.GOLDEN: golden(task, network, settings.sim, settings.seed),
        bundle.REPORT: (json.dumps(report, indent=2, allow_nan=False) + "\n").encode(),
    }
    bundle.write(folder, files, facts(task, found, settings.sim, report))
    size = sum(len(data) for data in files.values())
    say(f"bundle: {folder}, {size / 1e3:.0f} kB\n")
    return folder


def to_onnx(policy: Policy) -> bytes:
    """The mean action of a policy as an ONNX model: normalizer inside, any number of rows, no other files.

    Its input is `observation`, or where it sees images `state` and each of them by name.
    """
    import torch

    network = policy.actor.eval()
    spec = network.spec
    batch = {0: torch.export.Dim("batch")}
    numbers = torch.zeros(2, spec.input_size)
    images = [torch.zeros(2, *size, 3, dtype=torch.uint8) for size in spec.images.values()]
    with _quiet():
        program = torch.onnx.export(
            network,
            (numbers, *images),
            input_names=[STATE, *spec.images] if images else [OBSERVATION],
            output_names=[ACTION],
            dynamic_shapes=(batch, (batch,) * len(images)) if images else (batch,),
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    model: Any = program.model_proto
    graph = model.graph  # what the exporter noted beside it are stack traces: paths of this machine
    for part in (
        model,
        graph,
        *graph.node,
        *graph.input,
        *graph.output,
        *graph.value_info,
        *graph.initializer,
    ):
        del part.metadata_props[:]
    return model.SerializeToString(deterministic=True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No hints of the exporter about itself on the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def compare(policy: Policy, network: OnnxNetwork, size: int) -> float:
    """Largest difference of the actions of torch and of ONNX, for observations from usual to absurd.

    It is measured against the row's largest action where that is above 1: in float32 an action of 1e6 has no 1e-5.
    Images are of random pixels.
    """
    import torch

    rng = np.random.default_rng(0)
    draws = rng.standard_normal((64, size)).astype(np.float32)
    units = np.eye(size)
    alone = np.concatenate((units, -units), dtype=np.float32)
    obs = np.concatenate(
        [scale * rows for scale in EXTREMES for rows in (draws, alone)], dtype=np.float32
    )
    images = {
        name: rng.integers(0, 256, (len(obs), *edges, 3), np.uint8)
        for name, edges in policy.actor.spec.images.items()
    }
    pixels = [torch.from_numpy(each) for each in images.values()]
    with torch.inference_mode():
        expected = policy.actor(torch.from_numpy(obs), *pixels).numpy()

    def acts(rows: slice) -> np.ndarray:
        seen = {name: value[rows] for name, value in images.items()}
        return network({STATE: obs[rows], **seen} if seen else obs[rows])

    one_by_one = [acts(slice(i, i + 1)) for i in range(len(obs))]
    together = acts(slice(None))
    both = np.stack((together, np.concatenate(one_by_one)))
    largest = np.abs(expected).max(-1, keepdims=True)
    errors = np.abs(both - expected) / np.maximum(1.0, largest)
    return float(np.nan_to_num(errors, nan=np.inf).max())


def golden(task: Task, network: OnnxNetwork, sim: SimConfig, seed: int) -> bytes:
    """`golden.npz`: the signals of the first steps of an episode that this policy drives, and what it makes of them.

    Inputs are drawn over their range: what an episode's operator says may cover little of it.
    """
    from deftly.env import Env
    from deftly.evaluate.handover import drive
    from deftly.evaluate.rollout import EVALUATE

    env = Env(task, EnvConfig(num_envs=1), sim, seed, EVALUATE)
    policy = ContractPolicy(env.contract, network)
    steps = islice(drive(env, policy, seed), GOLDEN_STEPS)
    rows = [signals for signals, _, _ in steps]
    signals = {s.name: np.stack([row[s.name] for row in rows]) for s in env.contract.signals}
    return pack_golden(env.contract, network, signals)


def pack_golden(
    contract: PolicyContract, network: OnnxNetwork, signals: Mapping[str, np.ndarray]
) -> bytes:
    """`golden.npz` of signals (steps, size) by name."""
    steps = len(next(iter(signals.values())))
    inputs = bundle.draw_inputs(contract, steps)
    arrays = {f"signal/{name}": value for name, value in signals.items()}
    arrays |= {f"input/{name}": value for name, value in inputs.items()}
    file = io.BytesIO()
    has_images = any(signal.is_image for signal in contract.signals)
    level = 6 if has_images else 0  # of 1.6 MB, of two cameras of 64x64 pixels, a tenth is left
    arrays |= bundle.replay(contract, network, signals, inputs)
    pack_npz(file, arrays, level=level)
    return file.getvalue()


def facts(task: Task, found: Checkpoint, sim: SimConfig, report: dict[str, Any]) -> dict[str, Any]:
    """What the manifest says of the policy; the settings are those under which it was just evaluated."""
    return {
        "task": task.name,
        "deftly": __version__,
        "contract": found.contract.hash,
        "checkpoint": {
            "label": found.label,
            "sha256": report["policy"]["sha256"],
            "iteration": found.iteration,
        },
        "settings": {
            name: yaml.safe_load(to_yaml(part)) for name, part in (("task", task.cfg), ("sim", sim))
        },
    }
