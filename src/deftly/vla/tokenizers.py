"""Tokenizers of vision-language-action models as data: none of their folders brings code that is run.

LeRobot loads the tokenizers of pi0_fast with `trust_remote_code`: whoever names a folder or a repository, as the
settings in a checkpoint do, has Python run from there. Here they are read, and the one that needs code has it here.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from deftly.files import read_json

FAST = "processor_config.json"
"""File of a FAST tokenizer that holds its numbers."""
PLACES = ("lerobot.processor.tokenizer_processor", "lerobot.policies.pi0_fast.modeling_pi0_fast")
"""Modules of LeRobot that load tokenizers with `trust_remote_code`."""


class FastTokenizer:
    """FAST (K. Pertsch et al., FAST: Efficient action tokenization for VLA models, 2025, arXiv:2501.09747).

    The discrete cosine transform of a chunk along time, times `scale` and rounded, is read row by row as a text, each
    number less `min_token` a character, and byte-pair encoding makes tokens of it.

    Args:
        bpe_tokenizer: Of transformers, fast.
        scale: Steps in one unit of a coefficient of normalized actions.
        min_token: The smallest coefficient that has a character; smaller ones are taken for it.
    """

    def __init__(self, bpe_tokenizer: Any, scale: float, min_token: int):
        self.bpe_tokenizer = bpe_tokenizer
        self.scale = scale
        self.min_token = min_token

    def __call__(self, chunks: Any) -> list[list[int]]:
        """Tokens of chunks (n, horizon, action_size) of normalized actions."""
        from scipy.fft import dct

        coefficients = np.asarray(dct(np.asarray(chunks, np.float64), axis=1, norm="ortho"))
        places = np.around(coefficients * self.scale).astype(np.int64) - self.min_token
        rows = places.clip(min=0).reshape(len(places), -1)
        return [self.bpe_tokenizer("".join(map(chr, row)))["input_ids"] for row in rows]


def load_fast(name: str) -> FastTokenizer:
    """The FAST tokenizer of a folder, or of a repository of the Hugging Face hub.

    Raises OSError, ValueError or DeftlyError if there is none.
    """
    from transformers import PreTrainedTokenizerFast  # type: ignore[import-not-found]
    from transformers.utils import cached_file  # type: ignore[import-not-found]

    numbers = read_json(Path(str(cached_file(name, FAST))), "the numbers of a FAST tokenizer")
    fits = isinstance(numbers, dict) and type(numbers.get("min_token")) is int
    scale = numbers.get("scale") if fits else None
    if not isinstance(scale, (int, float)) or not scale > 0:
        raise ValueError(f"{FAST} of {name} has no 'scale' above 0 and whole 'min_token'")
    return FastTokenizer(PreTrainedTokenizerFast.from_pretrained(name), scale, numbers["min_token"])


class _Fast:
    """Stands where LeRobot asks transformers' `AutoProcessor` for a FAST tokenizer."""

    @staticmethod
    def from_pretrained(name: str, **_: Any) -> FastTokenizer:
        return load_fast(name)


class _Text:
    """Stands where LeRobot asks transformers' `AutoTokenizer` for a tokenizer of words."""

    @staticmethod
    def from_pretrained(name: str, **settings: Any) -> Any:
        from transformers import AutoTokenizer  # type: ignore[import-not-found]

        return AutoTokenizer.from_pretrained(name, **{**settings, "trust_remote_code": False})


STAND_INS: Mapping[str, type] = {"AutoProcessor": _Fast, "AutoTokenizer": _Text}


@contextlib.contextmanager
def without_remote_code() -> Iterator[None]:
    """LeRobot loads tokenizers in this block as data alone."""
    with contextlib.ExitStack() as stack:
        for place in map(importlib.import_module, PLACES):
            for name, stand_in in STAND_INS.items():
                stack.callback(setattr, place, name, getattr(place, name))
                setattr(place, name, stand_in)
        yield
