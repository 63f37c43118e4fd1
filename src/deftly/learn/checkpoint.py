"""Checkpoints: a folder of plain data, written whole or not at all, that a policy and a training resume from.

    weights.safetensors   networks with their normalizers; the metadata says which task, iteration and schema
    contract.json         the contract under which the policy was trained
    config.yaml           the configuration, which can be fed back
    state.safetensors     optimizer, random generators, environment (only where training can resume)

No pickle: safetensors, JSON and YAML. A folder is written under a temporary name, flushed and renamed.
"""

import json
import os
import shutil
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from deftly.config import PPOConfig
from deftly.contract import PolicyContract
from deftly.errors import DeftlyError
from deftly.learn.ppo import actor_model
from deftly.tasks import Task

SCHEMA = "deftly.checkpoint/1"
WEIGHTS, STATE, CONTRACT, CONFIG = "weights.safetensors", "state.safetensors", "contract.json", "config.yaml"


class Policy(nn.Module):
    """A trained policy: observation `(n, obs_size)` float32 to action `(n, action_size)` in [-1, 1] and beyond."""

    def __init__(self, actor: nn.Module):
        super().__init__()
        self.actor = actor.eval()

    @torch.inference_mode()
    def forward(self, obs: Tensor, stochastic: bool = False) -> Tensor:
        """The mean action, or a draw from the policy's distribution."""
        return self.actor({"policy": obs}, stochastic_output=stochastic)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint read from disk and checked."""

    path: Path
    task: str
    iteration: int
    contract: PolicyContract
    config: dict[str, Any]  # The saved configuration by section: `sim`, `env`, `task`, `train`, ...
    weights: dict[str, Tensor]  # Tensors by `actor/...` and `critic/...`.
    numbers: dict[str, float]  # Figures saved beside the weights, such as `learning_rate` and `success`.

    @property
    def label(self) -> str:
        """What to type after --checkpoint: `shipped`, or the folder."""
        return "shipped" if self.path == shipped(self.task) else str(self.path)

    def policy(self) -> Policy:
        """The policy network with these weights."""
        cfg = PPOConfig(**{**self.config["train"], "hidden": tuple(self.config["train"]["hidden"])})
        actor = actor_model(self.contract.obs_size(), self.contract.action_size, cfg)
        self.load_into({"actor": actor})
        return Policy(actor)

    def load_into(self, models: dict[str, nn.Module]) -> None:
        """Write the weights into networks of the same shape."""
        for name, model in models.items():
            part = {k.removeprefix(f"{name}/"): v for k, v in self.weights.items() if k.startswith(f"{name}/")}
            try:
                model.load_state_dict(part)
            except RuntimeError as error:
                reason = " ".join(str(error).split())[:200]
                raise DeftlyError(f"{self.path}: the weights do not fit the network: {reason}") from None

    def require(self, task: Task, any_robot: bool = False) -> None:
        """Raise DeftlyError naming the first difference if the task's contract is not the one trained under.

        `any_robot` allows another robot with the same joints, observation and action, such as a mirrored hand.
        """
        own, other = task.contract(), self.contract
        if any_robot:
            named = {"name": own.robot.name, "motors": own.robot.motors, "sites": own.robot.sites}
            other = replace(other, robot=replace(other.robot, **named))
        own.require(other, str(self.path))

    def state(self) -> dict[str, Tensor]:
        """What training resumes from. Raises DeftlyError if the checkpoint holds only the policy."""
        if not (self.path / STATE).is_file():
            raise DeftlyError(f"{self.path} holds a policy but no training state: resume from another checkpoint")
        return _read(self.path / STATE)[0]


def save(
    folder: Path,
    models: dict[str, nn.Module],
    contract: PolicyContract,
    config: str,
    task: str,
    iteration: int,
    numbers: dict[str, float],
    state: dict[str, Tensor] | None,
) -> None:
    """Write a checkpoint folder whole; raises DeftlyError, leaving what was there, if the disk is full or read-only."""
    weights = {f"{n}/{k}": v.contiguous() for n, m in models.items() for k, v in m.state_dict().items()}
    texts = {CONTRACT: contract.to_json(), CONFIG: config}
    facts = {"schema": SCHEMA, "task": task, "iteration": str(iteration), "numbers": json.dumps(numbers)}
    facts |= {name: sha256(text.encode()).hexdigest() for name, text in texts.items()}
    scratch, old = (folder.with_name(f".tmp-{word}{folder.name}-{os.getpid()}") for word in ("", "old-"))
    try:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        save_file(weights, scratch / WEIGHTS, metadata=facts)
        for name, text in texts.items():
            (scratch / name).write_text(text)
        if state is not None:
            save_file({k: v.contiguous() for k, v in state.items()}, scratch / STATE)
        for file in scratch.iterdir():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        if folder.exists():  # a kill between the two renames leaves the old one aside, whole
            folder.rename(old)
        scratch.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(scratch, ignore_errors=True)
        reason = getattr(error, "strerror", None) or error
        raise DeftlyError(f"cannot write the checkpoint {folder}: {reason}; what was there is kept") from error


def load(path: Path) -> Checkpoint:
    """Read and check a checkpoint folder, without its training state. Raises DeftlyError if it is not whole."""
    weights_file = path / WEIGHTS
    if not weights_file.is_file():
        raise DeftlyError(f"{path} is no checkpoint: it has no {WEIGHTS}; `deftly runs` lists the runs")
    weights, facts = _read(weights_file)
    if facts.get("schema") != SCHEMA:
        raise DeftlyError(f"{weights_file} has schema {facts.get('schema')!r}, this Deftly reads {SCHEMA!r}")
    try:
        texts = {name: (path / name).read_text() for name in (CONTRACT, CONFIG)}
        if changed := [name for name, text in texts.items() if sha256(text.encode()).hexdigest() != facts[name]]:
            raise DeftlyError(f"{path / changed[0]} is not what was saved with the weights; use another checkpoint")
        contract, config = PolicyContract.from_json(texts[CONTRACT]), yaml.safe_load(texts[CONFIG])
        numbers = json.loads(facts["numbers"])
        return Checkpoint(path, facts["task"], int(facts["iteration"]), contract, dict(config), weights, numbers)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValueError, KeyError, TypeError) as error:
        raise DeftlyError(f"{path} is damaged: {' '.join(str(error).split())[:200]}; use another checkpoint") from None


def shipped(task: str) -> Path | None:
    """The checkpoint of the policy that Deftly ships for a task, if it does."""
    path = Path(__file__).parents[1] / "shipped/policies" / task / "checkpoint"
    return path if (path / WEIGHTS).is_file() else None


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file."""
    try:
        with safe_open(path, "pt") as file:
            return load_file(path), file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise DeftlyError(f"{path} is truncated or no safetensors file ({error}); use another checkpoint") from None
