"""LeRobot's policies, as this package builds, asks and adapts them.

LeRobot is imported where it is used, so that this module can say that it is missing.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from deftly.config import suggest
from deftly.console import printable
from deftly.errors import DeftlyError
from deftly.vla.features import ACTION, IMAGES, OBS_STATE
from deftly.vla.frames import resized, to_float
from deftly.vla.recipes import RECIPES
from deftly.vla.statistics import Statistics

if TYPE_CHECKING:
    from lerobot.configs import PreTrainedConfig  # type: ignore[import-not-found]

LORA_TARGETS = r".*\.(q_proj|v_proj)"
"""Layers that LoRA adapts where the model does not say: queries and values of all attention (Hu et al. 2021)."""


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


def config_of(
    kind: str, shapes: Shapes, chunk: int, executed: int, extra: Sequence[str], device: str
) -> PreTrainedConfig:
    """LeRobot's settings of a model.

    Args:
        kind: One of `RECIPES`.
        shapes: Sizes of state, action and images.
        chunk: Actions that it predicts.
        executed: How many of them the robot executes before it looks again.
        extra: `NAME:VALUE` of LeRobot's own settings, values in JSON or plain words.
        device: Where it runs.

    Raises DeftlyError for a setting that it does not have, or refuses.
    """
    from lerobot.configs import FeatureType, PolicyFeature  # type: ignore[import-not-found]
    from lerobot.policies.factory import make_policy_config  # type: ignore[import-not-found]

    recipe = RECIPES[kind]
    settings = dict(recipe.config) | {recipe.chunk_field: chunk, "n_action_steps": executed}
    settings |= _parsed(kind, extra)
    image = (3, shapes.image_size, shapes.image_size)
    inputs = {IMAGES + name: PolicyFeature(FeatureType.VISUAL, image) for name in shapes.cameras}
    inputs[OBS_STATE] = PolicyFeature(FeatureType.STATE, (shapes.state,))
    outputs = {ACTION: PolicyFeature(FeatureType.ACTION, (shapes.action,))}
    try:
        config = make_policy_config(
            kind,
            **settings,
            input_features=inputs,
            output_features=outputs,
            device=device,
            push_to_hub=False,
        )
        config.validate_features()
    except (ValueError, TypeError, NotImplementedError) as error:
        raise DeftlyError(f"{kind} refuses these settings: {_line(error)}") from None
    return config


def _parsed(kind: str, extra: Sequence[str]) -> dict[str, Any]:
    from lerobot.configs import PreTrainedConfig  # type: ignore[import-not-found]
    from lerobot.policies.factory import make_policy_config  # type: ignore[import-not-found]

    assert make_policy_config  # its import registers the kinds
    known = [field.name for field in fields(PreTrainedConfig.get_choice_class(kind))]
    found = {}
    for word in extra:
        name, colon, value = word.partition(":")
        if not colon or name not in known:
            raise DeftlyError(f"--set NAME:VALUE: {kind} has no '{name}'{suggest(name, known)}")
        try:
            found[name] = json.loads(value)
        except json.JSONDecodeError:
            found[name] = value
    return found


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

    def loss(self, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, float]]:
        """The loss of a batch of `Frames.batch`, and parts of it by name."""
        loss, parts = self.network.forward(self._shaped(self.before(dict(batch))))
        numbers = {k: float(v) for k, v in (parts or {}).items() if np.ndim(v) == 0}
        return loss, numbers

    @torch.no_grad()
    def chunk(
        self, images: Mapping[str, np.ndarray], state: np.ndarray, prompts: Sequence[str]
    ) -> np.ndarray:
        """Actions (n, chunk, size) float32 of n robots, from images (n, height, width, 3) uint8 and states (n, k)."""
        size = next(iter(self.config.image_features.values())).shape[-1]
        batch = {IMAGES + name: to_float(resized(each, size)) for name, each in images.items()}
        batch |= {OBS_STATE: torch.from_numpy(state), "task": list(prompts)}
        self.network.eval()
        seen = self._shaped(self.before(batch))
        adapted = hasattr(self.network, "get_base_model")
        policy = self.network.get_base_model() if adapted else self.network
        predicted = policy.predict_action_chunk(seen)
        return self.after(predicted[:, :, : self.action_size]).float().numpy()

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
    from lerobot.policies.factory import get_policy_class, make_pre_post_processors  # type: ignore[import-not-found]

    tensors = {
        name: {key: torch.tensor(value) for key, value in each.items()}
        for name, each in statistics.items()
    }
    try:
        cls = get_policy_class(kind)
        if weights:
            config.pretrained_path = Path(weights)
            network = cls.from_pretrained(weights, config=config)
        else:
            network = cls(config)
        before, after = make_pre_post_processors(config, dataset_stats=tensors)
    except (OSError, ValueError, RuntimeError, ImportError, KeyError) as error:
        raise DeftlyError(_missing(kind, weights, error)) from None
    network.to(config.device)
    return Model(kind, config, _adapted(network, lora), before, after)


def _adapted(network: Any, rank: int) -> nn.Module:
    """The network, or with LoRA of a rank around it; what is not adapted is frozen."""
    if not rank:
        return network
    from peft import LoraConfig, get_peft_model  # type: ignore[import-not-found]

    targets = (network._get_default_peft_targets() or {}).get("target_modules", LORA_TARGETS)
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    return get_peft_model(network, LoraConfig(r=rank, lora_alpha=rank, target_modules=targets))


def _missing(kind: str, weights: str, error: Exception) -> str:
    """What to fetch, and where to put it."""
    recipe = RECIPES[kind]
    parts = [part for part in (weights or recipe.weights, *recipe.tokenizers) if part]
    if not parts:
        return f"{kind} cannot be made: {_line(error)}"
    commands = "; ".join(f"hf download {part}" for part in parts if not Path(part).exists())
    offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
    return (
        f"{kind} needs {', '.join(parts)}, which cannot be read here{offline}: on a machine with the network type "
        f"{commands}, or give folders with --weights DIR and --set NAME:DIR of its tokenizer ({_line(error)})"
    )


def _line(error: Exception) -> str:
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


class Cost(NamedTuple):
    """What a training takes."""

    parameters: int
    learning: int
    """Parameters that learn."""
    memory_gb: float
    """Of weights, gradients, moments and activations; the last is the smallest part for what LoRA adapts."""


def cost_of(model: Model, batch: int) -> Cost:
    """An estimate from the parameters; activations are taken as 0.2 GB a billion of them, image and batch element."""
    sizes = [(p.numel(), p.element_size(), p.requires_grad) for p in model.network.parameters()]
    total = sum(count for count, _, _ in sizes)
    learning = sum(count for count, _, learns in sizes if learns)
    held = sum(count * size for count, size, _ in sizes)
    # gradients as wide as the weights, and two moments
    moved = sum(count * 3 * max(size, 4) for count, size, learns in sizes if learns)
    images = max(1, len(model.config.image_features))
    activations = 0.2e9 * total / 1e9 * batch * images
    return Cost(total, learning, (held + moved + activations) / 1e9)
