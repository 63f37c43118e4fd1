"""With which settings each kind of model is fine-tuned, as data: importing this needs neither torch nor LeRobot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["act", "diffusion", "smolvla", "pi0_fast", "pi05"]


@dataclass(frozen=True)
class Recipe:
    """How a kind of policy is fine-tuned unless the user says otherwise."""

    batch: int
    steps: int
    learning_rate: float
    chunk: int
    executed: int
    image_size: int
    """Pixels; 0: as in the data set, and the model resizes."""
    lora: int = 0
    """Rank of LoRA (Hu et al. 2021); 0: all parameters learn that the model lets learn."""
    weights: str = ""
    """Where its pretrained weights are on the Hugging Face hub; empty: it learns from random ones."""
    tokenizers: tuple[str, ...] = ()
    """Repositories of the hub that hold its tokenizers."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the model that differ from LeRobot's."""
    chunk_field: str = "chunk_size"
    """LeRobot's name of the setting that says how many actions are predicted."""


RECIPES: Mapping[str, Recipe] = {
    # Zhao et al. 2023, at a quarter of the width: what 200 episodes and a CPU bear.
    "act": Recipe(
        batch=8,
        steps=6_000,
        learning_rate=2e-4,
        chunk=16,
        executed=8,
        image_size=64,
        config={
            "pretrained_backbone_weights": None,
            "dim_model": 256,
            "n_heads": 8,
            "dim_feedforward": 1024,
            "n_encoder_layers": 3,
            "use_vae": False,
            "dropout": 0.0,
        },
    ),
    # Chi et al. 2023, of one observation: nobody has to remember for it.
    "diffusion": Recipe(
        batch=32,
        steps=20_000,
        learning_rate=1e-4,
        chunk=16,
        executed=8,
        image_size=96,
        chunk_field="horizon",
        config={
            "n_obs_steps": 1,
            "pretrained_backbone_weights": None,
            "crop_shape": None,
            "down_dims": (128, 256),
            "num_inference_steps": 10,
            "noise_scheduler_type": "DDIM",
        },
    ),
    # Shukor et al. 2025: the vision-language model stays, its action expert learns.
    "smolvla": Recipe(
        batch=16,
        steps=20_000,
        learning_rate=1e-4,
        chunk=16,
        executed=8,
        image_size=0,
        weights="lerobot/smolvla_base",
        tokenizers=("HuggingFaceTB/SmolVLM2-500M-Video-Instruct",),
    ),
    # Seed 003: LoRA, batch 2, 30,000 steps, no EMA; a card of 24 GB.
    "pi0_fast": Recipe(
        batch=2,
        steps=30_000,
        learning_rate=2.5e-5,
        chunk=10,
        executed=8,
        image_size=0,
        lora=16,
        weights="lerobot/pi0fast-base",
        tokenizers=("google/paligemma-3b-pt-224", "lerobot/fast-action-tokenizer"),
        config={"dtype": "bfloat16", "gradient_checkpointing": True},
    ),
    "pi05": Recipe(
        batch=2,
        steps=30_000,
        learning_rate=2.5e-5,
        chunk=10,
        executed=8,
        image_size=0,
        lora=16,
        weights="lerobot/pi05_base",
        tokenizers=("google/paligemma-3b-pt-224",),
        config={"dtype": "bfloat16", "gradient_checkpointing": True},
    ),
}
