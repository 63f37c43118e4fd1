"""`deftly finetune`: a model learns from demonstrations what a policy did, from images and words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Gt, Le, Lt
from typing_extensions import Doc

from deftly import render
from deftly.config import OUTPUT_FOLDER, SEEDS, Repeatable, Settings, parse, split_word
from deftly.console import duration, say, show
from deftly.errors import DeftlyError
from deftly.files import sha256
from deftly.vla.recipes import RECIPES, Kind, Recipe

if TYPE_CHECKING:
    from deftly.data.dataset import Dataset
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
        str,
        Doc("Pretrained weights: a folder, a repository of the hub, or none; empty: the recipe's."),
    ] = ""
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
    task_file: Annotated[
        str | None, Doc("With eval-every: the file of the task, if it is none of Deftly's.")
    ] = None
    seed: Annotated[
        int, Ge(0), Lt(SEEDS), Doc("Decides weights, and which frames a step sees.")
    ] = 0
    dry_run: Annotated[bool, Doc("Say what it would cost, and stop.")] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.task_file and not self.eval_every:
            raise DeftlyError(
                "--task-file says where --eval-every evaluates: add --eval-every 2000"
            )


def main(argv: list[str]) -> int:
    """Run `deftly finetune`."""
    dataset, words = split_word(argv)
    args = parse(FinetuneArgs, words, prog="deftly finetune DATASET")
    if dataset is None:
        raise DeftlyError(
            "finetune needs a data set: deftly finetune DIR, of 'deftly demos --out DIR'"
        )
    if args.out is None and not args.dry_run:
        raise DeftlyError("finetune needs a folder to write: --out DIR")
    if args.eval_every:
        render.choose_gl()  # before anything imports MuJoCo
    from deftly.vla.models import require_installed

    require_installed()
    return _finetune(Path(dataset), args)


def _finetune(dataset: Path, args: FinetuneArgs) -> int:
    """Read the data set, say what it costs to learn from it, build the model, train."""
    import torch

    from deftly.data.dataset import require_whole
    from deftly.vla import cost, models, train

    found = require_whole(dataset)
    recipe = _recipe(args)
    _require_device(args.device)
    evaluate = _evaluation(found, args)
    room = _room_gb(args)
    plan, frames = _read(found, args, recipe)
    if args.out is not None:
        train.require_place(plan, args.out, args.resume)
    shapes = models.Shapes.of(found.contract, found.facts["layout"], frames.size)
    config = models.config_of(args.policy, shapes, plan.chunk, args.set, args.device)
    parameters = cost.of_settings(args.policy, config, plan.lora)
    _require_room(parameters.memory_gb, room, args)
    torch.manual_seed(args.seed)
    model = models.build(args.policy, config, plan.statistics, plan.base, plan.lora)
    with cost.said_if_too_large(args.device):
        need = parameters.memory_gb + plan.batch * cost.activations_gb(model, frames, plan.chunk)
        _require_room(need, room, args)
        seconds = cost.seconds_a_step(model, frames, plan.batch, plan.chunk)
        say(
            f"{args.policy}: {parameters.total / 1e6:.1f} M parameters, {parameters.learning / 1e6:.1f} M learn; "
            f"about {need:.1f} GB and {duration(seconds * plan.steps)} for {plan.steps} steps of {plan.batch} "
            f"on {args.device}"
        )
        if args.dry_run or args.out is None:
            return 0
        training = train.Training(plan, model, frames, args.out, args.resume)
        place = training.run(args.save_every, args.eval_every, evaluate)
    show(f"checkpoint: {place}; measure it: deftly eval {plan.task} --policy {place}")
    return 0


def _recipe(args: FinetuneArgs) -> Recipe:
    """The model's recipe with what was typed."""
    from deftly.vla.models import absolute

    recipe = RECIPES[args.policy]
    typed = {
        name: getattr(args, name)
        for name in ("steps", "batch", "learning_rate", "chunk", "executed", "image_size")
        if getattr(args, name)
    }
    if args.lora >= 0:
        typed["lora"] = args.lora
    if args.weights:
        typed["weights"] = "" if args.weights == "none" else absolute(args.weights)
    recipe = replace(recipe, **typed)
    if recipe.executed > recipe.chunk:
        raise DeftlyError(f"--executed {recipe.executed} is more than --chunk {recipe.chunk}")
    return recipe


def _read(found: Dataset, args: FinetuneArgs, recipe: Recipe) -> tuple[Plan, Frames]:
    """The plan, and the frames of the data set."""
    from deftly.data import frames
    from deftly.vla import models, statistics
    from deftly.vla.features import ACTION, IMAGES, OBS_STATE, layout_of
    from deftly.vla.train import Plan

    base = models.weights_file(args.policy, recipe.weights) if recipe.weights else None
    loaded = frames.load(found, recipe.image_size, args.cache_gb)
    ranges = layout_of(found.facts["layout"], found.contract).ranges
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
        prompts=tuple(dict.fromkeys(fact["prompt"] for fact in found.facts["episodes"])),
        base=recipe.weights,
        base_sha256=sha256(base, "pretrained weights") if base else "",
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

    kind, colon, number = device.partition(":")
    known = device == "cpu" or (kind == "cuda" and (number.isdecimal() or not colon))
    if not known:
        raise DeftlyError(f"--device {device} is none of cpu, cuda, cuda:N")
    count = torch.cuda.device_count()
    if kind == "cuda" and int(number or 0) >= count:
        sees = f"{count} GPUs" if count else "no GPU"
        raise DeftlyError(
            f"--device {device}: torch sees {sees} here: use cpu, or a machine with one"
        )


def _room_gb(args: FinetuneArgs) -> float:
    """Memory that a training may take, GB; infinite where the system does not say."""
    import torch

    from deftly.commands.doctor import memory_gb

    if args.memory_gb:
        return args.memory_gb
    if args.device.startswith("cuda"):
        return torch.cuda.get_device_properties(args.device).total_memory / 1e9
    return memory_gb().available or float("inf")


def _require_room(need_gb: float, room_gb: float, args: FinetuneArgs) -> None:
    """Raise DeftlyError if a training would not fit."""
    if need_gb > room_gb:
        limit = (
            f"--memory-gb is {room_gb:g}" if args.memory_gb else f"{args.device} has {room_gb:.1f}"
        )
        raise DeftlyError(
            f"{args.policy} needs about {need_gb:.1f} GB to learn, and {limit}: use a smaller --batch, --lora 16, or a "
            "larger device"
        )


def _evaluation(found: Dataset, args: FinetuneArgs) -> Callable[[Path], float] | None:
    """Success rate of a checkpoint in the environment of training, on episodes that no report uses; None: not wanted.

    Raises DeftlyError, before anything is trained, if the task is not at hand, or other than when it was collected.
    """
    if not args.eval_every:
        return None
    from deftly.evaluate import rollout
    from deftly.evaluate.handover import rebuild
    from deftly.evaluate.source import of_vla
    from deftly.policy.protocol import PolicyError
    from deftly.vla.cameras import seen_through

    facts, what = found.facts, f"the data set '{found.path}'"
    own, sim = rebuild(args.task_file, facts["settings"], facts["task"], what)
    task = seen_through(own, found.contract, what)

    def measured(place: Path) -> float:
        policy = of_vla(place).open(task.contract())
        try:
            result = rollout.run_episodes(
                task,
                policy,
                args.eval_episodes,
                seed=args.seed,
                purpose=rollout.VALIDATE,
                sim_cfg=sim,
            )
        except PolicyError as error:
            say(f"no episode of the evaluation succeeds: {error}")
            return 0.0
        finally:
            policy.close()
        return result.success_rate

    return measured
