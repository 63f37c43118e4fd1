"""Checkpoints: a folder of plain data, written atomically, that a policy is read and a training resumed from.

    weights.safetensors       parameters and statistics of all networks; its metadata binds the other files to it
    checkpoint.json           what this is: task, algorithm, networks as data, iteration, steps, numbers
    contract.json             the contract under which the policy was trained
    config.yaml               the settings of the training, as data
    state.safetensors         optimizer, random generators, environments (only where training can resume)
    state.rank_1.safetensors  the same of the second process, and so on

A policy is rebuilt from `checkpoint.json` and its weights alone. No pickle: safetensors, JSON and YAML.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, get_type_hints

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save, save_file
from torch import Tensor, nn

from deftly import __version__, workspace
from deftly.config import RunsConfig, suggest
from deftly.config.constraints import show
from deftly.console import printable
from deftly.contract import PolicyContract
from deftly.errors import DeftlyError
from deftly.files import (
    MB,
    FileError,
    atomic_folder,
    parse_json,
    parse_yaml,
    read_text,
    require_plain,
    write_text,
)
from deftly.learn.networks import Network, NetworkSpec, Policy, build
from deftly.policy.bundle import SHIPPED
from deftly.tasks import Task

SCHEMA = "deftly.checkpoint/2"
WEIGHTS, STATE = "weights.safetensors", "state.safetensors"
ABOUT, CONTRACT, CONFIG = "checkpoint.json", "contract.json", "config.yaml"
TEXTS = (ABOUT, CONTRACT, CONFIG)
MAX_TEXT, MAX_WEIGHTS, MAX_STATE = 4 * MB, 4096 * MB, 65_536 * MB
"""Largest files that are read: networks of a billion parameters, states of a million environments."""
MAX_HEADER = MB
"""Longest description of the tensors in a file; that of a training has some kB."""
MAX_NETWORKS = 32
OTHER = "use another checkpoint"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint read from disk and checked."""

    path: Path
    task: str
    source: str  # where the task's class stands, see `task_source`
    algorithm: str
    networks: Mapping[str, NetworkSpec]  # by name: `actor`, `critic`, ...
    iteration: int
    steps: int  # environment steps of all processes so far
    ranks: int  # processes that trained together
    contract: PolicyContract
    config: Mapping[str, Any]  # the saved settings by section: `sim`, `env`, `task`, `train`, ...
    weights: Mapping[str, Tensor]  # by `actor/...`, `critic/...`
    numbers: Mapping[str, float]  # such as `learning_rate` and `success`

    @property
    def label(self) -> str:
        """What to type after --policy: `shipped`, or the folder."""
        return "shipped" if self.path == shipped(self.task) else str(self.path)

    def policy(self) -> Policy:
        """The policy, rebuilt from its description and weights."""
        return Policy(self.network("actor"))

    def network(self, name: str) -> Network:
        """One of the networks, without gradients."""
        try:
            return build(self.networks[name], self._part(name))
        except DeftlyError as error:
            reason = f"the weights of '{name}' do not fit its description: {printable(error)}"
            raise DeftlyError(f"{self.path} is damaged: {reason}; {OTHER}") from None

    def load_into(self, networks: Mapping[str, nn.Module]) -> None:
        """Write the weights into networks of the same description. Raises DeftlyError for others."""
        for name, network in networks.items():
            self._require_same_network(name, network)
            try:
                network.load_state_dict(self._part(name))
            except RuntimeError as error:
                reason = printable(" ".join(str(error).split()), 200)
                raise DeftlyError(
                    f"{self.path}: the weights do not fit the network '{name}': {reason}"
                ) from None

    def _require_same_network(self, name: str, network: nn.Module) -> None:
        """Raise DeftlyError if a network differs from the saved one; other activations would fit the same weights."""
        saved = self.networks.get(name)
        if saved is None or not isinstance(network, Network):
            return
        for field in ("hidden", "activation"):
            there, here = getattr(saved, field), getattr(network.spec, field)
            if there != here:
                raise DeftlyError(
                    f"the network '{name}' of {self.path} has {field} {show(there)}, this training {show(here)}: "
                    f"leave out --train.{field}, or set it to {show(there)}"
                )

    def _part(self, name: str) -> dict[str, Tensor]:
        prefix = f"{name}/"
        return {
            key.removeprefix(prefix): value
            for key, value in self.weights.items()
            if key.startswith(prefix)
        }

    def require(self, task: Task, any_robot: bool = False) -> None:
        """Raise DeftlyError naming the first difference if the task's contract is not the one trained under.

        The robot may be guarded better than it was. `any_robot` allows another one with the same joints, observation
        and action, such as a mirrored hand.
        """
        own, other = task.contract(), self.contract
        if any_robot and other.joint_names == own.joint_names:
            named = {"name": own.robot.name, "motors": own.robot.motors, "sites": own.robot.sites}
            other = replace(other, robot=replace(other.robot, **named))
        own.require_policy_of(other, str(self.path))

    def require_algorithm(self, algorithm: str) -> None:
        """Raise DeftlyError if its networks are those of another algorithm, which this one cannot go on with."""
        if algorithm != self.algorithm:
            raise DeftlyError(
                f"{self.label} was trained by {self.algorithm}, and this training is by {algorithm}: "
                f"give --train.algorithm {self.algorithm}, or train from nothing"
            )

    def is_of(self, task: type[Task]) -> bool:
        """Whether the checkpoint is of this very task: the same name, defined in the same place.

        A task of the user's that has the name of a shipped one is another task, with other settings.
        """
        return (self.task, self.source) == (task.name, task_source(task))

    def unknown_settings(self, section: str, kind: type) -> list[str]:
        """Saved settings of a section that its class `kind` does not have (any more), by their dotted names."""
        return _unknown(self.config.get(section), kind, section)

    def known_settings(self, section: str, kind: type) -> dict[str, Any]:
        """The saved settings of a section that its class `kind` still has."""
        return _known(self.config.get(section), kind)

    def require_settings(self, section: str, kind: type) -> None:
        """Raise DeftlyError that names the file and the first saved setting that `kind` does not have."""
        unknown = self.unknown_settings(section, kind)
        if unknown:
            _, _, field = unknown[0].rpartition(".")
            near = suggest(field, [item.name for item in fields(kind)])
            place = f"{self.path / CONFIG} sets {printable(unknown[0], 80)}"
            advice = (
                "give the field its old name again, or start a new run from the weights with --init"
            )
            raise DeftlyError(
                f"{place}, which {kind.__name__} does not have (any more){near}; {advice}"
            )

    def state(self, rank: int = 0, ranks: int = 1) -> dict[str, Tensor]:
        """What process `rank` of `ranks` resumes from.

        Raises DeftlyError if the checkpoint holds only the policy, or is of another number of processes.
        """
        if not (self.path / STATE).is_file():
            raise DeftlyError(
                f"{self.path} holds a policy but no training state: resume the run's newest checkpoint"
            )
        if ranks != self.ranks:
            processes = f"{self.ranks} process{'es' if self.ranks > 1 else ''}"
            command = (
                f"torchrun --nproc-per-node={self.ranks}"
                if self.ranks > 1
                else "plain 'deftly train'"
            )
            advice = f"resume with {command}, or start a new run from its weights with --init"
            raise DeftlyError(
                f"{self.path} is of a training in {processes}, this one has {ranks}: {advice}"
            )
        return _read_tensors(self.path / state_name(rank), MAX_STATE)[0]


def state_name(rank: int) -> str:
    """The file of a process's training state."""
    return f"state.rank_{rank}.safetensors" if rank else STATE


def task_source(task: type[Task]) -> str:
    """Where a task's class stands: the module of an installed one, the name of a user's file."""
    module = sys.modules.get(task.__module__)
    file = getattr(module, "__file__", None)
    if task.__module__.startswith("deftly_task_") and file:
        return Path(file).name
    return task.__module__


def drop_state(folder: Path, most: int) -> None:
    """Leave a checkpoint its policy alone if the training states of its processes take more than so many bytes."""
    states = [*folder.glob(state_name(0)), *folder.glob("state.rank_*.safetensors")]
    if sum(path.stat().st_size for path in states) > most:
        for path in states:
            path.unlink()


def pack_state(state: Mapping[str, Tensor]) -> bytes:
    """A training state as the bytes of its file, which ranks can exchange."""
    return save({name: value.contiguous() for name, value in state.items()})


def write(
    folder: Path,
    task: Task,
    networks: Mapping[str, Network],
    *,
    contract: PolicyContract,
    config: str,
    algorithm: str = "ppo",
    iteration: int = 0,
    steps: int = 0,
    numbers: Mapping[str, float] = {},
    states: Sequence[bytes] = (),
    ranks: int = 1,
) -> None:
    """Write a checkpoint folder atomically.

    Args:
        folder: Where. What is there is replaced at the end, in one step.
        task: The task that was trained.
        networks: By name; `actor` is the policy.
        contract: The contract of the environment.
        config: The settings as YAML.
        algorithm: Name of the learner.
        iteration: How many iterations were done.
        steps: How many environment steps were done, by all processes.
        numbers: Whatever else is to be kept. JSON has no NaN: leave it out.
        states: What each process resumes from, by rank, from `pack_state`; none: the checkpoint is a policy alone.
        ranks: How many processes train together.

    Raises:
        DeftlyError: One line, if the disk is full or read-only. What was there is kept.
    """
    about = {
        "schema": SCHEMA,
        "deftly": __version__,
        "task": {"name": task.name, "source": task_source(type(task))},
        "algorithm": algorithm,
        "networks": {name: network.spec.to_json() for name, network in networks.items()},
        "iteration": iteration,
        "steps": steps,
        "ranks": ranks,
        "numbers": dict(numbers),
    }
    texts = {
        ABOUT: json.dumps(about, indent=2, allow_nan=False) + "\n",
        CONTRACT: contract.to_json(),
        CONFIG: config,
    }
    _write_files(folder, texts, _tensors(networks), states)


def _tensors(networks: Mapping[str, Network]) -> dict[str, Tensor]:
    """All parameters and statistics of the networks, each as `NETWORK/NAME`."""
    return {
        f"{name}/{key}": value.contiguous()
        for name, network in networks.items()
        for key, value in network.state_dict().items()
    }


def _write_files(
    folder: Path, texts: Mapping[str, str], weights: dict[str, Tensor], states: Sequence[bytes]
) -> None:
    """Write the folder in one step; the weights hold the digest of each text, so that none is exchanged alone."""
    digests = {name: _digest(text) for name, text in texts.items()}
    metadata = {"schema": SCHEMA, **digests}
    try:
        with atomic_folder(folder) as scratch:
            save_file(weights, scratch / WEIGHTS, metadata=metadata)
            for name, text in texts.items():
                write_text(scratch / name, text)
            for rank, state in enumerate(states):
                (scratch / state_name(rank)).write_bytes(state)
    except SafetensorError as error:
        raise DeftlyError(
            f"cannot write the checkpoint {folder}: {error}; what was there is kept"
        ) from error


def load(path: Path) -> Checkpoint:
    """Read and check a checkpoint folder, without its training state. Raises DeftlyError if anything is wrong."""
    weights_file = path / WEIGHTS
    if not weights_file.exists():
        raise DeftlyError(
            f"{path} is no checkpoint: it has no {WEIGHTS}; `deftly runs` lists the runs"
        )
    weights, metadata = _read_tensors(weights_file, MAX_WEIGHTS)
    schema = metadata.get("schema")
    if schema != SCHEMA:
        made = " (an older Deftly made it: train again)" if schema == "deftly.checkpoint/1" else ""
        raise DeftlyError(
            f"{weights_file} has schema '{printable(schema, 40)}', this Deftly reads '{SCHEMA}'{made}"
        )
    texts = {
        name: read_text(path / name, f"the {name} of a checkpoint", MAX_TEXT, advice=OTHER)
        for name in TEXTS
    }
    for name, text in texts.items():
        if _digest(text) != metadata.get(name):
            raise DeftlyError(f"{path / name} is not what was saved with the weights; {OTHER}")
    about = parse_json(texts[ABOUT], "a checkpoint's description", path / ABOUT, OTHER)
    config = parse_yaml(texts[CONFIG], "a checkpoint's settings", path / CONFIG, OTHER)
    try:
        return _checkpoint(path, about, config, PolicyContract.from_json(texts[CONTRACT]), weights)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise DeftlyError(
            f"{path} is damaged: {type(error).__name__} {printable(error, 200)}; {OTHER}"
        ) from None


def shipped(task: str) -> Path | None:
    """The checkpoint of the policy that Deftly ships for a task, if it does."""
    return SHIPPED / task / "checkpoint" if task in all_shipped() else None


def all_shipped() -> list[str]:
    """The tasks for which Deftly ships a checkpoint."""
    return sorted(path.parents[1].name for path in SHIPPED.glob(f"*/checkpoint/{WEIGHTS}"))


def find(spec: str, task: str, runs: RunsConfig, wanted: str = "best") -> Path:
    """The checkpoint folder that a user means after --init or --teacher.

    `shipped`, `shipped:TASK` for that of another task, or see `find_checkpoint`.
    """
    word, _, named = spec.partition(":")
    if word != "shipped":
        return workspace.find_checkpoint(spec, task, runs, wanted)
    path = shipped(named or task)
    if path is None:
        near = suggest(named or task, all_shipped())
        raise DeftlyError(
            f"no policy is shipped for {printable(named or task, 60)}{near}: give a run; 'deftly runs' lists them"
        )
    return path


def _checkpoint(
    path: Path, about: Any, config: Any, contract: PolicyContract, weights: dict[str, Tensor]
) -> Checkpoint:
    """Put together what the files say. Raises ValueError, KeyError or TypeError for what no checkpoint says."""
    if not isinstance(config, dict):
        raise TypeError(f"{CONFIG} holds no sections")
    if "actor" not in about["networks"]:
        raise ValueError("it has no network 'actor', which is the policy")
    if len(about["networks"]) > MAX_NETWORKS:
        raise ValueError(f"{len(about['networks'])} networks")
    task = about["task"]
    counts = {name: about[name] for name in ("iteration", "steps", "ranks")}
    if not all(type(count) is int and 0 <= count < 2**53 for count in counts.values()):
        raise ValueError(f"counts that are no counts: {counts}")
    return Checkpoint(
        path=path,
        task=_text(task["name"]),
        source=_text(task["source"]),
        algorithm=_text(about["algorithm"]),
        networks={
            _text(name): NetworkSpec.from_json(spec) for name, spec in about["networks"].items()
        },
        contract=contract,
        config=config,
        weights=weights,
        numbers={_text(name): float(value) for name, value in about["numbers"].items()},
        **counts,
    )


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > 300:
        raise TypeError(f"a name that is no text: {printable(value, 40)}")
    return printable(value)


def _digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()


def _read_tensors(path: Path, max_bytes: int) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file."""
    require_plain(path, "a safetensors file of a checkpoint", max_bytes, advice=OTHER)
    try:
        _require_short_header(path)
        with safe_open(path, "pt") as file:
            return load_file(path), file.metadata() or {}
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        reason = f"truncated or no safetensors file ({printable(error, 200)})"
        raise FileError(f"{path} is {reason}; {OTHER}") from None


def _require_short_header(path: Path) -> None:
    """Raise ValueError for a header that describes more tensors than any training has: each costs time and memory."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
    if size > MAX_HEADER:
        raise ValueError(f"its header has {size} bytes, at most {MAX_HEADER} are read")


def _unknown(values: Any, kind: type, prefix: str) -> list[str]:
    if not isinstance(values, dict) or not is_dataclass(kind):
        return []
    hints = get_type_hints(kind)
    found: list[str] = []
    for name, value in values.items():
        if name in hints:
            found += _unknown(value, hints[name], f"{prefix}.{name}")
        else:
            found.append(f"{prefix}.{name}")
    return found


def _known(values: Any, kind: type) -> dict[str, Any]:
    if not isinstance(values, dict):
        return {}
    hints = get_type_hints(kind)
    known: dict[str, Any] = {}
    for name, value in values.items():
        if name in hints:
            nested = isinstance(value, dict) and is_dataclass(hints[name])
            known[name] = _known(value, hints[name]) if nested else value
    return known
