"""`deftly finetune`: a model learns from demonstrations what a policy did, from images and words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Gt, Le, Lt
from typing_extensions import Doc

from deftly import render
from deftly.config import OUTPUT_FOLDER, SEEDS, Repeatable, Settings, parse
from deftly.console import duration, say, show
from deftly.errors import DeftlyError
from deftly.vla.recipes import RECIPES, Kind, Recipe

if TYPE_CHECKING:
    from deftly.data.lerobot import Dataset
    from deftly.vla.frames import Frames
    from deftly.vla.train import Plan


@dataclass(frozen=True)
class FinetuneArgs(Settings):
    """Fine-tune a model on demonstrations. What is unset is as the model's recipe has it: see docs/vla.md."""

    policy: Annotated[Kind, Doc("Which model.")] = "act"
    out: Annotated[
        Path | None, OUTPUT_FOLDER, Doc("Folder for checkpoint, metrics and TensorBoard's events.")
    ] = None
    resume: Annotated[bool, Doc("Go on from the checkpoint in --out, with the same settings.")] = (
        False
    )
    steps: Annotated[int, Ge(0), Le(10**8), Doc("Steps of the optimizer; 0: the recipe's.")] = 0
    batch: Annotated[int, Ge(0), Le(10**5), Doc("Frames in a step; 0: the recipe's.")] = 0
    learning_rate: Annotated[
        float, Ge(0), Lt(1), Doc("Highest learning rate; 0: the recipe's.")
    ] = 0.0
    chunk: Annotated[int, Ge(0), Le(1000), Doc("Actions predicted at once; 0: the recipe's.")] = 0
    executed: Annotated[
        int, Ge(0), Le(1000), Doc("Of these, executed before it looks again; 0: the recipe's.")
    ] = 0
    image_size: Annotated[
        int, Ge(0), Le(1024), Doc("Images are brought to this size, pixels; 0: the recipe's.")
    ] = 0
    weights: Annotated[
        str | None,
        Doc("Pretrained weights: a folder, a repository of the hub, or none; unset: the recipe's."),
    ] = None
    lora: Annotated[int, Ge(-1), Le(1024), Doc("Rank of LoRA; 0: none; -1: the recipe's.")] = -1
    set: Annotated[
        tuple[str, ...], Repeatable(), Doc("LeRobot's own settings of the model, NAME:VALUE.")
    ] = ()
    device: Annotated[str, Doc("Where it learns: cpu, cuda or cuda:N.")] = "cpu"
    memory_gb: Annotated[
        float,
        Ge(0),
        Doc("Refuse to start if the estimate is above this, GB; 0: what the device has."),
    ] = 0.0
    cache_gb: Annotated[float, Gt(0), Doc("Most memory for the images of the data set, GB.")] = 8.0
    save_every: Annotated[int, Ge(1), Doc("Steps between checkpoints.")] = 500
    eval_every: Annotated[int, Ge(0), Doc("Steps between evaluations in simulation; 0: none.")] = 0
    eval_episodes: Annotated[int, Ge(1), Le(500), Doc("Episodes of such an evaluation.")] = 20
    seed: Annotated[
        int, Ge(0), Lt(SEEDS), Doc("Decides weights, and which frames a step sees.")
    ] = 0
    dry_run: Annotated[bool, Doc("Say what it would cost, and stop.")] = False


def main(argv: list[str]) -> int:
    """Run `deftly finetune`."""
    render.choose_gl()  # before anything imports MuJoCo
    words = list(argv)
    dataset = Path(words.pop(0)) if words and not words[0].startswith("-") else None
    args = parse(FinetuneArgs, words, prog="deftly finetune DATASET")
    if dataset is None:
        raise DeftlyError(
            "finetune needs a data set: deftly finetune DIR, of 'deftly demos --out DIR'"
        )
    if args.out is None and not args.dry_run:
        raise DeftlyError("finetune needs a folder to write: --out DIR")
    from deftly.vla.models import require_installed

    require_installed()
    return _finetune(dataset, args)


def _finetune(dataset: Path, args: FinetuneArgs) -> int:
    """Read the data set, build the model, say what it costs, train."""
    import torch

    from deftly.data import lerobot
    from deftly.vla import models, train

    found = lerobot.require_whole(dataset)
    recipe = _recipe(args)
    _require_device(args.device)
    plan, frames = _read(found, args, recipe)
    torch.manual_seed(args.seed)
    cameras = tuple(frames.images)
    size = next(iter(frames.images.values())).shape[1]
    shapes = models.Shapes(frames.state.shape[1], frames.action.shape[1], cameras, size)
    config = models.config_of(args.policy, shapes, plan.chunk, plan.executed, args.set, args.device)
    model = models.build(args.policy, config, plan.statistics, plan.base, plan.lora)
    cost = models.cost_of(model, plan.batch)
    seconds = train.seconds_a_step(model, frames, plan.batch, plan.chunk)
    say(
        f"{args.policy}: {cost.parameters / 1e6:.1f} M parameters, {cost.learning / 1e6:.1f} M learn; "
        f"about {cost.memory_gb:.1f} GB and {duration(seconds * plan.steps)} for {plan.steps} steps of {plan.batch} "
        f"on {args.device}"
    )
    _require_memory(cost.memory_gb, args)
    if args.dry_run or args.out is None:
        return 0
    training = train.Training(plan, model, frames, args.out, args.resume)
    place = training.run(args.save_every, args.eval_every, _evaluation(args))
    show(f"checkpoint: {place}; measure it: deftly eval {plan.task} --policy {place}")
    return 0


def _recipe(args: FinetuneArgs) -> Recipe:
    """The model's recipe with what was typed."""
    recipe = RECIPES[args.policy]
    typed = {
        name: getattr(args, name)
        for name in ("steps", "batch", "learning_rate", "chunk", "executed", "image_size")
        if getattr(args, name)
    }
    if args.lora >= 0:
        typed["lora"] = args.lora
    if args.weights is not None:
        typed["weights"] = "" if args.weights == "none" else args.weights
    recipe = replace(recipe, **typed)
    if recipe.executed > recipe.chunk:
        raise DeftlyError(f"--executed {recipe.executed} is more than --chunk {recipe.chunk}")
    return recipe


def _read(found: Dataset, args: FinetuneArgs, recipe: Recipe) -> tuple[Plan, Frames]:
    """The plan, and the frames of the data set."""
    from deftly.data import lerobot
    from deftly.vla import frames, statistics
    from deftly.vla.features import ACTION, IMAGES, OBS_STATE, layout_of
    from deftly.vla.train import Plan

    rows = lerobot.read_rows(found.path, (OBS_STATE, ACTION, "episode_index"))
    images = {signal.name: signal.shape[0] for signal in found.contract.signals if signal.is_image}
    kinds = {name: found.info["features"][IMAGES + name]["dtype"] == "video" for name in images}
    size = recipe.image_size or next(iter(images.values()))
    prompts = [fact["prompt"] for fact in found.facts["episodes"]]
    loaded = frames.load(found.path, rows, prompts, kinds, size, args.cache_gb)
    layout = layout_of(found.facts["layout"], found.contract)
    ranges = layout.ranges
    measured = {
        OBS_STATE: statistics.of_numbers(loaded.state, ranges[OBS_STATE]),
        ACTION: statistics.of_numbers(loaded.action, ranges[ACTION]),
        **{IMAGES + name: statistics.of_images(each) for name, each in loaded.images.items()},
    }
    plan = Plan(
        kind=args.policy,
        task=found.facts["task"],
        settings=found.facts["settings"],
        contract=found.contract,
        layout=found.facts["layout"],
        statistics=measured,
        dataset=str(found.path),
        base=recipe.weights,
        lora=recipe.lora,
        chunk=recipe.chunk,
        executed=recipe.executed,
        steps=recipe.steps,
        batch=recipe.batch,
        learning_rate=recipe.learning_rate,
        seed=args.seed,
    )
    return plan, loaded


def _require_device(device: str) -> None:
    """Raise DeftlyError unless torch can use a device."""
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise DeftlyError(
            f"--device {device}: torch sees no GPU here: use cpu, or a machine with one"
        )


def _require_memory(need_gb: float, args: FinetuneArgs) -> None:
    """Raise DeftlyError if a training would not fit."""
    import os

    import torch

    if args.device.startswith("cuda"):
        has = torch.cuda.get_device_properties(args.device).total_memory / 1e9
    else:
        has = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    limit = args.memory_gb or has
    if need_gb > limit:
        raise DeftlyError(
            f"{args.policy} needs about {need_gb:.0f} GB to learn, and {args.device} has {limit:.0f}: use --lora 16, a "
            "smaller --batch, or a larger device"
        )


def _evaluation(args: FinetuneArgs) -> Callable[[Path], float] | None:
    """Success rate of a checkpoint in the environment of training, on episodes that no report uses."""
    if not args.eval_every:
        return None

    def measured(place: Path) -> float:
        from deftly.evaluate import rollout
        from deftly.evaluate.handover import load_task
        from deftly.evaluate.source import of_vla
        from deftly.vla import checkpoint
        from deftly.vla.cameras import seen_through

        found = checkpoint.load(place)
        cls = load_task(found.task, found.task, str(place))
        task = seen_through(cls(cls.Config()), found.contract)
        policy = of_vla(place).open(task.contract())
        result = rollout.run_episodes(
            task, policy, args.eval_episodes, seed=args.seed, purpose=rollout.VALIDATE
        )
        return result.success_rate

    return measured
