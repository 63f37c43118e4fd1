"""LeRobot's policies, as this package builds, asks and adapts them.

LeRobot is imported where it is used, so that this module can say that it is missing.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from deftly.config import suggest
from deftly.console import printable, say
from deftly.contract import PolicyContract
from deftly.errors import DeftlyError
from deftly.policy.protocol import PolicyError
from deftly.vla.checkpoint import read_tensors
from deftly.vla.features import ACTION, IMAGES, OBS_STATE, Layout, image_sizes, layout_of
from deftly.vla.frames import resized, to_float
from deftly.vla.recipes import RECIPES
from deftly.vla.statistics import Statistics
from deftly.vla.tokenizers import without_remote_code

if TYPE_CHECKING:
    from lerobot.configs import PreTrainedConfig  # type: ignore[import-not-found]

LORA_TARGETS = r".*\.(q_proj|v_proj)"
"""Layers that LoRA adapts where the model does not say: queries and values of all attention (Hu et al. 2021)."""
STEPS = "n_action_steps"
"""LeRobot's name of the setting that says how many actions of a chunk a robot executes."""
NO_CAMERA = "empty_camera"
"""How LeRobot's names of cameras begin that are always black (`--set empty_cameras:1`)."""
MAX_KNOWN = 1000
"""Instructions after which no more are named as not known, so that a peer cannot fill a terminal."""
BASE_WEIGHTS = "model.safetensors"
"""LeRobot's name of the file of pretrained weights."""


def require_installed() -> None:
    """Raise DeftlyError, one line, where LeRobot is not installed."""
    if importlib.util.find_spec("lerobot") is None:
        raise DeftlyError(
            "this needs lerobot 0.6 (Python 3.12): 'make vla' builds .venv-vla; type .venv-vla/bin/deftly in place of "
            "deftly"
        )


class Shapes(NamedTuple):
    """What a model sees and gives."""

    state: int
    action: int
    cameras: tuple[str, ...]
    image_size: int

    @classmethod
    def of(cls, contract: PolicyContract, layout: Layout, image_size: int) -> Shapes:
        """Those of a policy under a contract, whose images are brought to a size, pixels."""
        sizes = layout_of(layout, contract).sizes
        cameras = tuple(image_sizes(contract))
        return cls(sizes[OBS_STATE], sizes[ACTION], cameras, image_size)


def config_of(
    kind: str, shapes: Shapes, chunk: int, extra: Sequence[str], device: str
) -> PreTrainedConfig:
    """LeRobot's settings of a model.

    Args:
        kind: One of `RECIPES`.
        shapes: Sizes of state, action and images.
        chunk: Actions that it predicts. How many of them a robot executes is its policy's affair: pi0_fast would take
            a smaller `n_action_steps` for the length of what it decodes, and give other actions.
        extra: `NAME:VALUE` of LeRobot's own settings, values in JSON or plain words; folders become absolute.
        device: Where it runs.

    Raises DeftlyError for a setting that it does not have, or refuses.
    """
    from lerobot.configs import FeatureType, PolicyFeature  # type: ignore[import-not-found]
    from lerobot.policies.factory import make_policy_config  # type: ignore[import-not-found]

    recipe = RECIPES[kind]
    own = {recipe.chunk_field: chunk, STEPS: chunk, "device": device, "push_to_hub": False}
    settings = {**recipe.config, **_parsed(kind, extra, own), **own}
    image = (3, shapes.image_size, shapes.image_size)
    inputs = {IMAGES + name: PolicyFeature(FeatureType.VISUAL, image) for name in shapes.cameras}
    inputs[OBS_STATE] = PolicyFeature(FeatureType.STATE, (shapes.state,))
    outputs = {ACTION: PolicyFeature(FeatureType.ACTION, (shapes.action,))}
    try:
        config = make_policy_config(
            kind, **settings, input_features=inputs, output_features=outputs
        )
        config.validate_features()
    except (ValueError, TypeError, NotImplementedError) as error:
        raise DeftlyError(f"{kind} refuses these settings: {_line(error)}") from None
    return config


def _parsed(kind: str, extra: Sequence[str], own: Collection[str]) -> dict[str, Any]:
    """The settings of `--set NAME:VALUE`, but for those of our own flags."""
    from lerobot.configs import PreTrainedConfig  # type: ignore[import-not-found]
    from lerobot.policies.factory import make_policy_config  # type: ignore[import-not-found]

    assert make_policy_config  # its import registers the kinds
    known = [field.name for field in fields(PreTrainedConfig.get_choice_class(kind))]
    found = {}
    for word in extra:
        name, colon, value = word.partition(":")
        if not colon or name not in known:
            raise DeftlyError(f"--set NAME:VALUE: {kind} has no '{name}'{suggest(name, known)}")
        if name in (*own, "input_features", "output_features"):
            raise DeftlyError(f"--set {name} follows from the data set and --chunk, --device")
        try:
            found[name] = json.loads(value)
        except json.JSONDecodeError:
            found[name] = absolute(value)
    return found


def absolute(name: str) -> str:
    """The whole path of a folder; any other name, as of a repository of the hub, as it is."""
    if name and Path(name).is_dir():
        return str(Path(name).resolve())
    return name


def read_config(folder: Path, kind: str, device: str) -> PreTrainedConfig:
    """LeRobot's settings in a checkpoint of a kind. Raises DeftlyError, one line, for what LeRobot does not take."""
    from lerobot.configs import PreTrainedConfig  # type: ignore[import-not-found]
    from lerobot.policies.factory import make_policy_config  # type: ignore[import-not-found]

    assert make_policy_config  # its import registers the kinds
    try:
        with quiet():
            config = PreTrainedConfig.from_pretrained(folder)
    except (Exception, SystemExit) as error:  # its parser ends the program for an unknown setting
        raise DeftlyError(f"{folder} has settings that LeRobot refuses: {_line(error)}") from None
    if config.type != kind:
        raise DeftlyError(f"{folder} says that it is {kind}, and its settings are of {config.type}")
    config.device, config.pretrained_path = device, None
    return config


def require_shapes(
    config: PreTrainedConfig, contract: PolicyContract, layout: Layout, what: str
) -> None:
    """Raise DeftlyError unless a model sees and gives what a contract says, in a layout."""
    sizes = layout_of(layout, contract).sizes
    state, action = config.robot_state_feature, config.action_feature
    found = {OBS_STATE: state and state.shape[0], ACTION: action and action.shape[0]}
    for name, size in sizes.items():
        if found[name] != size:
            raise DeftlyError(
                f"{what} is of a model whose '{name}' has {found[name]} numbers, and the contract's has {size}"
            )
    cameras = {name.removeprefix(IMAGES) for name in config.image_features}
    known = set(image_sizes(contract))
    if {name for name in cameras if not name.startswith(NO_CAMERA)} != known:
        raise DeftlyError(
            f"{what} is of a model with the cameras {sorted(cameras)}, and the contract has {sorted(known)}"
        )


class Instructions:
    """What a model was told while it learned; it says once of each other instruction that it does not know it."""

    def __init__(self, kind: str, known: Sequence[str] = ()):
        self._hears = bool(RECIPES[kind].tokenizers)
        self._known = set(known)
        named = [f"'{printable(text, 80)}'" for text in known[:3]]
        self._named = ", ".join(named)

    def hear(self, said: Sequence[str]) -> None:
        """What robots are told, before the model answers."""
        new = set(said) - self._known
        if not new or not self._known or len(self._known) > MAX_KNOWN:
            return
        why = (
            "it may do anything"
            if self._hears
            else "it hears no words, and does what it always does"
        )
        for text in sorted(new):
            say(
                f"'{printable(text, 80)}' is not what the model learned from ({self._named}): {why}"
            )
        self._known |= new


class Model(NamedTuple):
    """A policy of LeRobot with the steps before and after it."""

    kind: str
    config: PreTrainedConfig
    network: Any
    """A `torch.nn.Module`, of LeRobot's own kind."""
    before: Any
    """Normalizes, tokenizes, moves to the device."""
    after: Any
    """Puts actions back into their units."""
    instructions: Instructions | None = None
    """What it was told while it learned; None: nobody knows."""

    def loss(self, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, float]]:
        """The loss of a batch of `Frames.batch`, and parts of it by name."""
        seen = self._shaped(self.before(dict(batch)))
        loss, parts = self.network.forward(seen)
        numbers = {k: float(v) for k, v in (parts or {}).items() if np.ndim(v) == 0}
        return loss, numbers

    @torch.no_grad()
    def chunk(
        self, images: Mapping[str, np.ndarray], state: np.ndarray, prompts: Sequence[str]
    ) -> np.ndarray:
        """Actions (n, chunk, size) float32 of n robots, from images (n, height, width, 3) uint8 and states (n, k).

        Raises PolicyError if what the model says is no action chunk, as pi0_fast's tokens may be none.
        """
        if self.instructions is not None:
            self.instructions.hear(prompts)
        feature = next(iter(self.config.image_features.values()))
        size = feature.shape[-1]
        batch = {IMAGES + name: to_float(resized(each, size)) for name, each in images.items()}
        batch |= {OBS_STATE: torch.from_numpy(state), "task": list(prompts)}
        self.network.eval()
        seen = self._shaped(self.before(batch))
        adapted = hasattr(self.network, "get_base_model")
        policy = self.network.get_base_model() if adapted else self.network
        try:
            predicted = policy.predict_action_chunk(seen)
        except AssertionError as error:
            raise PolicyError(f"the model answers no action chunk: {_line(error)}") from None
        actions = self.after(predicted[:, :, : self.action_size])
        return actions.float().numpy()

    @property
    def action_size(self) -> int:
        """Number of elements of an action."""
        return self.config.output_features[ACTION].shape[0]

    def _shaped(self, batch: dict[str, Any]) -> dict[str, Any]:
        """With an axis of one observation where the model wants it."""
        if self.kind == "diffusion":
            batch[OBS_STATE] = batch[OBS_STATE][:, None]
        return batch


def build(
    kind: str,
    config: PreTrainedConfig,
    statistics: Statistics,
    weights: str = "",
    lora: int = 0,
) -> Model:
    """A model, with pretrained weights if some are named.

    Raises DeftlyError, one line, where weights or tokenizers are neither on this machine nor can be fetched.
    """
    from lerobot.policies.factory import make_pre_post_processors  # type: ignore[import-not-found]

    file = weights_file(kind, weights) if weights else None
    tensors = {
        name: {key: torch.tensor(value) for key, value in each.items()}
        for name, each in statistics.items()
    }
    with _building(kind, weights):
        before, after = make_pre_post_processors(config, dataset_stats=tensors)
    network = network_of(kind, config, weights)
    if file is not None:
        _load_base(network, file)
    network.to(config.device)
    return Model(kind, config, adapted(network, lora), before, after)


def network_of(kind: str, config: PreTrainedConfig, weights: str = "") -> Any:
    """The network of a model with random weights; `weights` are named where something is missing.

    Raises DeftlyError, one line, where its tokenizers are neither on this machine nor can be fetched.
    """
    from lerobot.policies.factory import get_policy_class  # type: ignore[import-not-found]

    with _building(kind, weights):
        return get_policy_class(kind)(config)


@contextlib.contextmanager
def _building(kind: str, weights: str) -> Iterator[None]:
    """LeRobot builds in this block, quietly, and runs no code of others; what it raises becomes a DeftlyError."""
    try:
        with without_remote_code(), quiet():
            yield
    except Exception as error:  # LeRobot, transformers and torch raise anything
        raise DeftlyError(_unbuildable(kind, weights, error)) from None


def weights_file(kind: str, weights: str) -> Path:
    """The file of pretrained weights: of a folder, or of a repository of the hub, from which it is fetched.

    Raises DeftlyError, one line, where there is none.
    """
    if Path(weights).is_dir():
        file = Path(weights) / BASE_WEIGHTS
        if not file.is_file():
            raise DeftlyError(
                f"'{weights}' has no {BASE_WEIGHTS}: give --weights a folder that LeRobot's save_pretrained wrote"
            )
        return file
    from huggingface_hub import hf_hub_download  # type: ignore[import-not-found]

    try:
        return Path(hf_hub_download(weights, BASE_WEIGHTS))
    except (OSError, ValueError) as error:
        raise DeftlyError(_missing(kind, weights, error)) from None


def _load_base(network: Any, file: Path) -> None:
    """Write pretrained weights into a network. Raises DeftlyError unless it then has nothing random left.

    LeRobot's own loading of pi0_fast and pi05 goes on with random weights where it fails.
    """
    tensors = read_tensors(file)
    renamed = getattr(network, "_fix_pytorch_state_dict_keys", None)
    if renamed is not None:
        with quiet():
            fixed = renamed(tensors, network.config)
        tensors = {f"model.{name.removeprefix('model.')}": each for name, each in fixed.items()}
    try:
        missing = network.load_state_dict(tensors, strict=False).missing_keys
    except RuntimeError as error:
        raise DeftlyError(f"{file} is of another model: {_line(error)}") from None
    state = network.state_dict()
    written = {state[name].data_ptr() for name in tensors if name in state}
    lacking = [name for name in missing if state[name].data_ptr() not in written]
    if lacking:
        raise DeftlyError(
            f"{file} is of another model: it lacks {len(lacking)} of {len(state)} tensors, "
            f"first {printable(lacking[0])}"
        )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """What LeRobot says in this block goes to the error output, and its warnings nowhere: errors say what matters."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        logging.disable(before)


def adapted(network: Any, rank: int) -> nn.Module:
    """The network, or with LoRA of a rank around it; what is not adapted is frozen."""
    if not rank:
        return network
    from peft import LoraConfig, get_peft_model  # type: ignore[import-not-found]

    targets = (network._get_default_peft_targets() or {}).get("target_modules", LORA_TARGETS)
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    return get_peft_model(network, LoraConfig(r=rank, lora_alpha=rank, target_modules=targets))


def _unbuildable(kind: str, weights: str, error: BaseException) -> str:
    """Why a model cannot be made: what to fetch, if a file is what is missing."""
    causes = [error]
    while (deeper := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(deeper)
    for cause in causes:
        if isinstance(cause, OSError):
            return _missing(kind, weights, cause)
    return f"{kind} cannot be made of these settings: {_line(causes[-1])}"


def _missing(kind: str, weights: str, error: BaseException) -> str:
    """What to fetch, and where to put it."""
    recipe = RECIPES[kind]
    parts = [part for part in (weights, *recipe.tokenizers) if part]
    commands = "; ".join(f"hf download {part}" for part in parts if not Path(part).exists())
    offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
    return (
        f"{kind} needs {', '.join(parts)}, which cannot be read here{offline}: on a machine with the network type "
        f"{commands}, and copy its ~/.cache/huggingface (HF_HOME) here, or give --weights DIR ({_line(error)})"
    )


def _line(error: BaseException) -> str:
    return printable(" ".join(str(error).split()), 160)


def calibrate(network: nn.Module, model: Model, batch: Mapping[str, Any]) -> None:
    """Give a vision backbone that starts from random weights the statistics of its own activations.

    LeRobot's ResNets normalize by frozen statistics, which come with pretrained weights. With random ones they are 0
    and 1, activations grow from block to block, and little is learned. A pass over a batch sets them, layer after
    layer, to what the layer sees (layer-sequential unit variance, Mishkin & Matas 2016).
    """
    from torchvision.ops.misc import FrozenBatchNorm2d  # type: ignore[import-not-found]

    def measure(layer: Any, inputs: tuple[Tensor, ...]) -> None:
        seen = inputs[0].float()
        layer.running_mean.copy_(seen.mean((0, 2, 3)))
        layer.running_var.copy_(seen.var((0, 2, 3)).clamp_min(1e-6))

    layers = [each for each in network.modules() if isinstance(each, FrozenBatchNorm2d)]
    hooks = [layer.register_forward_pre_hook(measure) for layer in layers]
    try:
        with torch.no_grad():
            model.loss(batch)
    finally:
        for hook in hooks:
            hook.remove()
