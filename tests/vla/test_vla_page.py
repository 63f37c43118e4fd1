"""The numbers of docs/vla.md are those of the code."""

import re

import pytest
from documented import ROOT

from deftly.commands.demos import DemosArgs
from deftly.commands.finetune import FinetuneArgs
from deftly.vla.features import DROID_JOINTS
from deftly.vla.recipes import RECIPES
from deftly.vla.statistics import FLOOR

PAGE = (ROOT / "docs/vla.md").read_text()
WORDS = " ".join(PAGE.split())


def rows():
    """The cells of each model in the table of recipes."""
    found = re.findall(r"^\| `(\w+)` \|(.*)\|$", PAGE, re.MULTILINE)
    return {name: cells.split(" | ") for name, cells in found if name in RECIPES}


@pytest.mark.parametrize("kind", RECIPES)
def test_the_table_has_each_recipe(kind):
    recipe = RECIPES[kind]
    learns, source, training, chunks = (cell.strip() for cell in rows()[kind])
    assert training.startswith(f"{recipe.batch}, {recipe.steps:,}")
    assert chunks == f"{recipe.chunk}, {recipe.executed}"
    pixels = re.findall(r"(\d+) pixels", source)
    assert pixels == ([str(recipe.image_size)] if recipe.image_size else [])
    assert recipe.weights in source
    assert ("random weights" in source) == (not recipe.weights)
    assert ("LoRA" in learns) == bool(recipe.lora)
    assert not recipe.lora or f"rank {recipe.lora}" in learns


def test_numbers_in_the_text():
    demos, finetune = DemosArgs(), FinetuneArgs()
    assert f"{demos.size} x {demos.size} pixels" in WORDS
    assert f"success rate of {finetune.eval_episodes} episodes" in WORDS
    assert f"standard deviation of {100 * FLOOR:g} % of its range" in WORDS
    assert f"states and actions of {DROID_JOINTS + 1} numbers" in WORDS
    recipe = RECIPES["pi0_fast"]
    assert f"LoRA, batch {recipe.batch}, {recipe.steps:,} steps, no EMA" in WORDS


def test_every_flag_of_the_page_is_one():
    known = {f"--{name.replace('_', '-')}" for name in (*DemosArgs.__dataclass_fields__,)}
    known |= {f"--{name.replace('_', '-')}" for name in (*FinetuneArgs.__dataclass_fields__,)}
    known |= {"--policy", "--no-video", "--no-only-success", "--bind", "--settings-from", "--gate"}
    known |= {"--chunk.executed", "--episodes", "--failures", "--until-success", "--task.goal-x"}
    typed = {flag.rstrip(".") for flag in re.findall(r"(?<![\w-])--[a-z][a-z.-]*", PAGE)}
    assert typed <= known


@pytest.mark.vla
def test_the_size_of_the_models_that_learn_from_nothing():
    from deftly.vla import cost, models

    for kind in ("act", "diffusion"):
        recipe = RECIPES[kind]
        shapes = models.Shapes(8, 4, ("front", "wrist"), recipe.image_size)
        config = models.config_of(kind, shapes, recipe.chunk, (), "cpu")
        millions = cost.of_settings(kind, config, recipe.lora).total / 1e6
        assert f"all, {millions:.1f} M parameters" in rows()[kind][0]
