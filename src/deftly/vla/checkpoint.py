"""A fine-tuned model on disk: a folder of plain data, written atomically, with the robot's contract inside.

    weights.safetensors     what has learned; with LoRA the adapter alone, and `vla.json` says what it adapts
    vla.json                what this is: model, step, layout, settings, and the sha256 of the other files
    contract.json           what the policy sees, and what its actions mean
    statistics.json         normalization statistics of the data set that it learned from
    config.json             LeRobot's settings of the model
    state.safetensors       the optimizer (only where training can resume)

Nothing is pickled. Importing this needs neither torch nor LeRobot.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deftly import __version__, workspace
from deftly.console import printable
from deftly.contract import PolicyContract
from deftly.errors import DeftlyError
from deftly.files import (
    MB,
    atomic_folder,
    read_json,
    read_text,
    require_plain,
    sha256,
    write_json,
    write_text,
)
from deftly.vla.features import IMAGES, image_sizes, layout_of

if TYPE_CHECKING:
    from torch import Tensor

    from deftly.policy.chunks import ChunkConfig, ChunkPolicy
    from deftly.vla.models import Model
    from deftly.vla.statistics import Statistics

SCHEMA = "deftly.vla/1"
ABOUT, CONTRACT, STATISTICS, CONFIG = "vla.json", "contract.json", "statistics.json", "config.json"
WEIGHTS, STATE = workspace.WEIGHTS, "state.safetensors"
BOUND = (CONTRACT, STATISTICS, CONFIG, WEIGHTS)
"""Files whose content `vla.json` names by its sha256."""
MAX_WEIGHTS = 32_768 * MB
MAX_HEADER = 4 * MB
OTHER = "use another checkpoint"


@dataclass(frozen=True)
class VlaCheckpoint:
    """A checkpoint read from disk and checked; its weights are read when a policy is opened."""

    path: Path
    about: Mapping[str, Any]
    contract: PolicyContract
    statistics: Statistics

    @property
    def label(self) -> str:
        """What to type after --policy."""
        return str(self.path)

    @property
    def task(self) -> str:
        """Name of the task whose demonstrations it learned from."""
        return self.about["task"]

    @property
    def iteration(self) -> int:
        """Steps of the optimizer."""
        return self.about["step"]

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of task and physics of the demonstrations, as data."""
        return dict(self.about["settings"])

    def model(self, device: str = "cpu") -> Model:
        """The model with its weights. Raises DeftlyError where LeRobot or a base model is missing."""
        from deftly.vla import models

        kind = self.about["model"]
        base = self.about["base"]
        rank = self.about["lora"]
        config = models.read_config(self.path, kind, device)
        models.require_shapes(config, self.contract, self.about["layout"], str(self.path / CONFIG))
        if base:
            self._require_base(kind, base)
        model = models.build(kind, config, self.statistics, base, rank)
        self.load_into(model)
        told = models.Instructions(kind, self.about.get("prompts", ()))
        return model._replace(instructions=told)

    def _require_base(self, kind: str, base: str) -> None:
        """Raise DeftlyError unless the pretrained weights below the adapter are those that it learned on."""
        from deftly.vla import models

        file = models.weights_file(kind, base)
        if self.about.get("base_sha256") not in (None, sha256(file, "pretrained weights")):
            raise DeftlyError(
                f"{file} is not the file on which {self.path} was trained: give back that one, or train anew"
            )

    def load_into(self, model: Model) -> None:
        """Write the weights into a model. Raises DeftlyError if they are those of another."""
        weights = read_tensors(self.path / WEIGHTS)
        wanted = learned(model, whole=not self.about["base"])
        fits = weights.keys() == wanted.keys() and all(
            weights[name].shape == wanted[name].shape for name in wanted
        )
        if not fits:
            raise DeftlyError(f"{self.path}: the weights are not those of its {CONFIG}; {OTHER}")
        model.network.load_state_dict(weights, strict=False)

    def optimizer_state(self) -> dict[str, Tensor]:
        """The state of the optimizer, to go on from. Raises DeftlyError if it is missing, or another's."""
        file = self.path / STATE
        if not file.is_file():
            raise DeftlyError(f"{self.path} has no {STATE}, so its training cannot go on; {OTHER}")
        _require_content(file, self.about)
        return read_tensors(file)

    def open(self, cfg: ChunkConfig | None = None, ahead: bool = False) -> ChunkPolicy:
        """The policy; see `ChunkPolicy`. Raises DeftlyError, one line, where LeRobot is missing."""
        from deftly.vla.models import require_installed

        require_installed()
        from deftly.policy.chunks import ChunkPolicy
        from deftly.vla.policy import VlaModel

        return ChunkPolicy(VlaModel(self), cfg, ahead)


def is_one(path: Path) -> bool:
    """Whether a folder looks like a checkpoint of a fine-tuned model."""
    return (path / ABOUT).is_file()


def learned(model: Model, whole: bool) -> dict[str, Tensor]:
    """What of a model has learned: all of its state, or its parameters that learn, on a pretrained model."""
    state = model.network.state_dict()
    if not whole:
        parameters = model.network.named_parameters()
        learns = {name for name, each in parameters if each.requires_grad}
        state = {name: value for name, value in state.items() if name in learns}
    return {name: value.detach().cpu().contiguous() for name, value in state.items()}


def write(
    folder: Path,
    model: Model,
    contract: PolicyContract,
    statistics: Statistics,
    about: Mapping[str, Any],
    state: Mapping[str, Tensor],
) -> None:
    """Write a checkpoint folder atomically.

    Args:
        folder: Where. What is there is replaced at the end, in one step.
        model: The model.
        contract: What its policy sees, and what its actions mean.
        statistics: Of the data set.
        about: What else `vla.json` says; see `train.Training`.
        state: Of the optimizer.
    """
    from safetensors.torch import save_file

    with atomic_folder(folder) as scratch:
        model.config.save_pretrained(scratch)
        write_text(scratch / CONTRACT, contract.to_json() + "\n")
        write_json(scratch / STATISTICS, statistics, indent=0)
        weights = learned(model, whole=not about["base"])
        # tensors that share memory are written once each
        separate = {name: value.clone() for name, value in weights.items()}
        save_file(separate, scratch / WEIGHTS)
        save_file(dict(state), scratch / STATE)
        files = {name: sha256(scratch / name, "a file of a checkpoint") for name in (*BOUND, STATE)}
        write_json(
            scratch / ABOUT,
            {
                "schema": SCHEMA,
                "deftly": __version__,
                **about,
                "contract_sha256": contract.hash,
                "files": files,
            },
        )


def load(path: Path) -> VlaCheckpoint:
    """Read and check a checkpoint. Raises DeftlyError, one line, for what is damaged, incomplete or of another kind."""
    about = read_json(path / ABOUT, "what a fine-tuned model is")
    _require_about(path, about)
    for name in BOUND:
        file = path / name
        if not file.is_file():
            what = "normalization statistics" if name == STATISTICS else name
            raise DeftlyError(f"{path} has no {what} ({name}): it cannot be used; {OTHER}")
        limit = MAX_WEIGHTS if name == WEIGHTS else 64 * MB
        require_plain(file, "a file of a checkpoint", limit, advice=OTHER)
        _require_content(file, about)
    contract = PolicyContract.from_json(read_text(path / CONTRACT, "a contract").strip())
    if contract.hash != about["contract_sha256"]:
        raise DeftlyError(f"{path / CONTRACT} is not the contract that {ABOUT} names; {OTHER}")
    from deftly.vla import statistics

    layout = layout_of(about["layout"], contract)
    shapes: dict[str, tuple[int, ...]] = {name: (size,) for name, size in layout.sizes.items()}
    shapes |= {IMAGES + name: statistics.OF_COLOURS for name in image_sizes(contract)}
    tree = read_json(path / STATISTICS, "normalization statistics")
    measured = statistics.parse(tree, shapes, str(path))
    if statistics.digest(measured) != about["statistics_sha256"]:
        raise DeftlyError(f"{path / STATISTICS} are not the ones that {ABOUT} names; {OTHER}")
    return VlaCheckpoint(path, about, contract, measured)


def _require_content(file: Path, about: Mapping[str, Any]) -> None:
    """Raise DeftlyError unless a file is what `vla.json` names; older ones do not name the state."""
    named = about["files"].get(file.name)
    if named is not None and sha256(file, "a file of a checkpoint", MAX_WEIGHTS) != named:
        raise DeftlyError(f"{file} is not the file that {ABOUT} names: it was changed; {OTHER}")


def _require_about(path: Path, about: Any) -> None:
    """Raise DeftlyError unless `vla.json` has what is read of it."""
    kinds = {
        "schema": str,
        "task": str,
        "model": str,
        "base": str,
        "layout": str,
        "step": int,
        "lora": int,
        "executed": int,
        "settings": dict,
        "files": dict,
        "statistics_sha256": str,
        "contract_sha256": str,
    }
    fits = isinstance(about, dict) and all(type(about.get(k)) is v for k, v in kinds.items())
    known = fits and about["schema"] == SCHEMA
    if not known or about["layout"] not in ("contract", "droid"):
        raise DeftlyError(f"{path / ABOUT} is not of the schema {SCHEMA}; {OTHER}")
    told = about.get("prompts", [])
    if not isinstance(told, list) or not all(isinstance(text, str) for text in told):
        raise DeftlyError(f"{path / ABOUT} is damaged: 'prompts' is no list of texts; {OTHER}")
    if not set(BOUND) <= set(about["files"]) or about["executed"] < 1:
        raise DeftlyError(f"{path / ABOUT} is damaged; {OTHER}")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises DeftlyError, one line, for a damaged one."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    require_plain(path, "a safetensors file of a checkpoint", MAX_WEIGHTS, advice=OTHER)
    try:
        with path.open("rb") as file:
            if int.from_bytes(file.read(8), "little") > MAX_HEADER:
                raise ValueError("its header is too long")
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise DeftlyError(
            f"{path} is truncated or no safetensors file ({printable(error, 120)}); {OTHER}"
        ) from None


def combined(hashes: Mapping[str, str]) -> str:
    """One sha256 of several, by name."""
    pairs = [f"{name}={hashes[name]};" for name in sorted(hashes)]
    text = "".join(pairs)
    return hashlib.sha256(text.encode()).hexdigest()
